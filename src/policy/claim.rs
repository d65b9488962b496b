//! Claims: what a sentence of a published privacy policy says, in words that a program compares. Each kind says what it
//! may be about, what its value looks like, and who keeps it.

/// What `about` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Nothing,
    /// Kinds of data in the text's own words; each should be a category.
    Data,
    /// Categories.
    Categories,
    /// Categories or fields.
    Fields,
    /// Purposes or kinds of purposes in the text's own words.
    Purposes,
    /// Kinds of purposes of the list that `forbidden` takes.
    Kinds,
    /// Kinds of requests.
    Requests,
    /// Channels, in words of the file.
    Channels,
}

/// What `value` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Nothing,
    /// A period, or one of these words.
    Period(&'static [&'static str]),
    /// A time limit.
    Within,
    Choice(&'static [&'static str]),
    Basis,
    Transfer,
    /// Years, or `minors` for 18.
    Age,
    Number,
    Text,
}

/// Who keeps a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Rules of the file.
    Rules,
    /// The vault itself, whatever the file says.
    Vault,
    /// The application; the vault may have evidence.
    Application,
    /// Nobody here: it is about something that the vault does not see.
    Outside,
}

macro_rules! claims {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $about:expr, $form:expr, $kept:expr;)*) => {
        /// Kinds of claims.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ClaimKind { $($(#[doc = $doc])+ $name,)* }
        impl ClaimKind {
            /// As a policy file writes it.
            pub const fn name(self) -> &'static str {
                match self { $(ClaimKind::$name => $text),* }
            }
            pub(super) fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(ClaimKind::$name),)* _ => None }
            }
            pub const fn about(self) -> About {
                match self { $(ClaimKind::$name => $about),* }
            }
            pub const fn form(self) -> Form {
                match self { $(ClaimKind::$name => $form),* }
            }
            pub const fn kept(self) -> Kept {
                match self { $(ClaimKind::$name => $kept),* }
            }
            /// For the reference page.
            pub const fn words(self) -> &'static str {
                match self { $(ClaimKind::$name => concat!($($doc),+)),* }
            }
            /// All, in the order of the reference page.
            pub const ALL: &'static [ClaimKind] = &[$(ClaimKind::$name),*];
        }
        /// Their names.
        pub const CLAIMS: &[&str] = &[$($text),*];
    };
}
claims! {
    /// Who answers for the data.
    Controller = "controller", About::Nothing, Form::Text, Kept::Rules;
    /// Data that the text lists as collected.
    Collects = "collects", About::Data, Form::Nothing, Kept::Rules;
    /// Data that the text handles in another section than its list.
    Handles = "handles", About::Data, Form::Nothing, Kept::Rules;
    /// The longest that a value may be, in characters.
    MaxLength = "max_length", About::Fields, Form::Number, Kept::Rules;
    /// What data is used for.
    Uses = "uses", About::Purposes, Form::Nothing, Kept::Rules;
    /// What data is used for and nothing else.
    OnlyFor = "only_for", About::Purposes, Form::Text, Kept::Rules;
    /// The lawful basis of purposes.
    Basis = "basis", About::Purposes, Form::Basis, Kept::Rules;
    /// Consent is asked for.
    Consent = "consent", About::Purposes, Form::Nothing, Kept::Rules;
    /// Using the service is taken as consent or as acceptance.
    ConsentByUse = "consent_by_use", About::Nothing, Form::Nothing, Kept::Application;
    /// A person approves first.
    Approval = "approval", About::Purposes, Form::Nothing, Kept::Rules;
    /// A recipient is given data; with nothing in `about`, data that the text does not name.
    Shares = "shares", About::Fields, Form::Nothing, Kept::Rules;
    /// A channel on which the service communicates.
    Channel = "channel", About::Channels, Form::Nothing, Kept::Rules;
    /// What data is never used for.
    Never = "never", About::Kinds, Form::Nothing, Kept::Rules;
    /// Authorities are given data.
    Authorities = "authorities", About::Purposes, Form::Nothing, Kept::Rules;
    /// Every processor is bound by an agreement.
    Agreements = "agreements", About::Nothing, Form::Nothing, Kept::Rules;
    /// Data reaches a recipient without what tells who a person is.
    WithoutIdentity = "without_identity", About::Nothing, Form::Nothing, Kept::Rules;
    /// How long data is kept; `active`: as long as the account is, `request`: until deletion is asked for.
    Retention = "retention", About::Categories, Form::Period(&["active", "request"]), Kept::Rules;
    /// Customers of some plans set the retention.
    RetentionByPlan = "retention_by_plan", About::Categories, Form::Nothing, Kept::Rules;
    /// Time after the end of an account in which it can come back.
    Grace = "grace", About::Nothing, Form::Period(&[]), Kept::Rules;
    /// How long backups are kept.
    Backups = "backups", About::Nothing, Form::Period(&[]), Kept::Rules;
    /// People can have their data deleted: `anytime` without any exception, `law` except what the law keeps.
    Deletion = "deletion", About::Nothing, Form::Choice(&["anytime", "law", "request"]), Kept::Rules;
    /// What a deletion removes.
    DeletionCovers = "deletion_covers", About::Categories, Form::Nothing, Kept::Rules;
    /// What a deletion does not reach.
    DeletionLeaves = "deletion_leaves", About::Nothing, Form::Text, Kept::Application;
    /// Rights that people have.
    Rights = "rights", About::Requests, Form::Nothing, Kept::Rules;
    /// Purposes to which people may object.
    Objection = "objection", About::Purposes, Form::Nothing, Kept::Rules;
    /// By when requests are answered.
    Answered = "answered", About::Requests, Form::Within, Kept::Rules;
    /// An authority takes complaints.
    Complaint = "complaint", About::Nothing, Form::Nothing, Kept::Rules;
    /// Contact of a data protection officer.
    Officer = "officer", About::Nothing, Form::Nothing, Kept::Rules;
    /// The service is not for people below an age.
    Age = "age", About::Nothing, Form::Age, Kept::Rules;
    /// Changes are announced; with a period, so long before.
    Notice = "notice", About::Nothing, Form::Period(&["announced"]), Kept::Rules;
    /// Aggregates only, no single person.
    Aggregated = "aggregated", About::Purposes, Form::Nothing, Kept::Rules;
    /// Encryption on the network.
    InTransit = "in_transit", About::Nothing, Form::Choice(&["tls", "tls1.2", "tls1.3"]), Kept::Vault;
    /// Encryption of what is stored.
    AtRest = "at_rest", About::Nothing, Form::Choice(&["encrypted", "aes-128", "aes-256"]), Kept::Vault;
    /// How passwords are stored.
    Passwords = "passwords", About::Nothing, Form::Choice(&["hashed", "md5", "sha1", "sha256", "pbkdf2", "bcrypt", "scrypt", "argon2id"]), Kept::Vault;
    /// Keys of programs are stored as hashes.
    KeysHashed = "keys_hashed", About::Nothing, Form::Nothing, Kept::Vault;
    /// No card numbers are stored.
    NoCards = "no_cards", About::Nothing, Form::Nothing, Kept::Vault;
    /// Few people have access.
    Restricted = "restricted", About::Nothing, Form::Nothing, Kept::Rules;
    /// Where the data is.
    Region = "region", About::Nothing, Form::Text, Kept::Rules;
    /// On whose machines the data is.
    Host = "host", About::Nothing, Form::Text, Kept::Rules;
    /// What carries data across a border.
    Transfer = "transfer", About::Nothing, Form::Transfer, Kept::Rules;
    /// Who runs an instance of their own answers for it.
    SelfHosted = "self_hosted", About::Nothing, Form::Nothing, Kept::Rules;
    /// Audits and tests by others.
    Audited = "audited", About::Nothing, Form::Period(&[]), Kept::Application;
    /// Sessions and sign-in of the application.
    Sessions = "sessions", About::Nothing, Form::Nothing, Kept::Outside;
    /// Access can be taken back at another company.
    RevokedElsewhere = "revoked_elsewhere", About::Nothing, Form::Nothing, Kept::Outside;
    /// Cookies of a website.
    Cookies = "cookies", About::Nothing, Form::Nothing, Kept::Outside;
    /// Trackers of others.
    Trackers = "trackers", About::Nothing, Form::Nothing, Kept::Outside;
    /// The source can be read.
    OpenSource = "open_source", About::Nothing, Form::Nothing, Kept::Outside;
    /// Good measures in general.
    Measures = "measures", About::Nothing, Form::Nothing, Kept::Outside;
}

/// The reference table of `docs/POLICY.md`.
pub fn markdown() -> String {
    let mut out = String::from("| Claim | About | Value | Kept by | Meaning |\n|---|---|---|---|---|\n");
    for kind in ClaimKind::ALL {
        let about = match kind.about() {
            About::Nothing => "",
            About::Data => "data, in the text's words",
            About::Categories => "categories",
            About::Fields => "categories, fields",
            About::Purposes => "purposes, in the text's words",
            About::Kinds => "kinds of purposes",
            About::Requests => "requests",
            About::Channels => "channels",
        };
        let quoted = |list: &[&str]| list.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
        let value = match kind.form() {
            Form::Nothing => String::new(),
            Form::Period([]) => "period".into(),
            Form::Period(words) => format!("period, {}", quoted(words)),
            Form::Within => "time limit".into(),
            Form::Choice(words) => quoted(words),
            Form::Basis => "lawful basis".into(),
            Form::Transfer => "basis of a transfer".into(),
            Form::Age => "years, or `minors`".into(),
            Form::Number => "number".into(),
            Form::Text => "text".into(),
        };
        let kept = match kind.kept() {
            Kept::Rules => "rules of the file",
            Kept::Vault => "the vault",
            Kept::Application => "the application",
            Kept::Outside => "outside the vault",
        };
        out += &format!("| `{}` | {about} | {value} | {kept} | {} |\n", kind.name(), kind.words().trim());
    }
    out
}
