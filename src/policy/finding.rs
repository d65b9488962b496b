//! What parser and linter find in a file: rule, line and key, never a value.

use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// The file can be applied, but says something that will surprise.
    Warning,
    /// The file cannot be applied.
    Error,
}

/// One thing that parser or linter found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// Line of the file, from 1.
    pub line: u32,
    /// The key, with its table: `field.max_length`.
    pub key: String,
    /// Which rule found it, e.g. `unknown-key`; stable, for programs.
    pub rule: &'static str,
    /// For people. Names of the file may occur in it, texts do not.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "line {}: {severity}: {}: {} [{}]", self.line, self.key, self.message, self.rule)
    }
}

/// Every rule of the linter with what it says, for the reference page; the parser's own come first.
pub const RULES: &[(&str, Severity, &str)] = &[
    ("syntax", Severity::Error, "the file is not TOML"),
    ("too-long", Severity::Error, "the file is longer than 1 MiB"),
    ("unknown-key", Severity::Error, "a key that there is not"),
    ("not-enforced", Severity::Error, "a key that this version knows and does not enforce yet"),
    ("missing-key", Severity::Error, "a required key is not there"),
    ("wrong-value", Severity::Error, "a value of the wrong type or form"),
    ("said-twice", Severity::Error, "a list says the same thing twice"),
    ("duplicate-number", Severity::Error, "two records of one kind have the same number"),
    ("duplicate-name", Severity::Error, "two records of one kind have the same name"),
    ("number-reserved", Severity::Error, "a number is used that `[reserved]` lists"),
    ("unknown-name", Severity::Error, "a name refers to nothing in the file"),
    ("wrong-type", Severity::Error, "a key that the field's type cannot have"),
    ("length-missing", Severity::Error, "text or data without `max_length`"),
    ("length-too-large", Severity::Error, "text of more than 262,144 characters"),
    ("unique-not-searchable", Severity::Error, "`unique` without `searchable`"),
    ("searchable-many", Severity::Error, "items cannot be searched for"),
    (
        "searchable-retention",
        Severity::Error,
        "a searchable field in a class with retention: its index would outlive it",
    ),
    ("retention-shorter-than-hold", Severity::Error, "values expire before the law lets them go"),
    (
        "retention-longer-than-promised",
        Severity::Error,
        "a class is kept longer than the category of its field promises",
    ),
    ("retention-over-maximum", Severity::Error, "a retention or an override beyond `max_retention`"),
    (
        "override-without-retention",
        Severity::Error,
        "a plan overrides a class that has no retention, or the same twice",
    ),
    ("override-empty", Severity::Error, "the longest override is shorter than the shortest"),
    ("no-category", Severity::Error, "a field in no category, where there are categories"),
    ("forbidden-purpose", Severity::Error, "a purpose of a kind or name that `forbidden` lists"),
    ("hold-purpose", Severity::Error, "the purpose of a hold does not allow the held fields"),
    ("grant-without-purpose", Severity::Error, "a grant touches values and names no purpose"),
    ("grant-without-fields", Severity::Error, "a grant touches values and names no field"),
    ("recipient-without-dpa", Severity::Error, "a processor without the reference of an agreement"),
    ("recipient-without-transfer", Severity::Error, "a recipient outside the regions of `[transfer]` without a basis"),
    ("forbidden-recipient", Severity::Error, "a recipient is given data for a purpose of a forbidden kind or name"),
    (
        "basis-not-allowed",
        Severity::Error,
        "a purpose uses data of a category on a basis that the category does not allow",
    ),
    ("purpose-without-basis", Severity::Error, "the text claims bases, and none of them for a purpose of the file"),
    ("age-field", Severity::Error, "the age limit names a field of another type, or a many-valued one"),
    (
        "analytics-field",
        Severity::Error,
        "people cannot be grouped by that field: it is many-valued, data or has a retention",
    ),
    ("notice-too-short", Severity::Error, "a version takes effect sooner after its notice than the minimum"),
    ("notice-missing", Severity::Error, "a material change without a notice, where a minimum notice was promised"),
    ("consent-purpose", Severity::Error, "a field needs a consent for a purpose that is not based on consent"),
    ("claim-form", Severity::Error, "a claim has a value, a list or a recipient that its kind cannot have"),
    ("number-reused", Severity::Error, "a number means something else than in the version before"),
    ("number-dropped", Severity::Error, "a number left the file and `[reserved]` does not list it"),
    ("credentials-moved", Severity::Error, "credentials that are stored would stay behind in their former class"),
    ("search-changed", Severity::Error, "search was turned on or changed for a field that may hold values"),
    ("retention-missing", Severity::Warning, "a class does not say how long it is kept"),
    ("never-allowed", Severity::Warning, "a field that no purpose allows"),
    ("empty-class", Severity::Warning, "a class without fields"),
    ("empty-purpose", Severity::Warning, "a purpose that allows no field"),
    ("grant-in-vain", Severity::Warning, "none of a grant's purposes allows one of its fields"),
    ("mask-missing", Severity::Warning, "a masked view of a field without a mask is denied"),
    ("renamed", Severity::Warning, "a field or class has another name than in the version before"),
    ("length-shrunk", Severity::Warning, "stored values may be longer than new ones may be"),
    ("retention-changed", Severity::Warning, "stored values of a class will end at another time"),
    ("zone-changed", Severity::Warning, "another time zone moves the ends of months and years"),
    ("recipient-in-vain", Severity::Warning, "none of a recipient's purposes allows one of its fields"),
    ("agreement-ends", Severity::Warning, "the agreement with a recipient ends before this version takes effect"),
    (
        "tokens-not-made",
        Severity::Warning,
        "a recipient may have tokens only, which this version does not make: its reads are refused",
    ),
    ("clock-missing", Severity::Warning, "a right is claimed and its requests have no time limit"),
    (
        "deletion-contradicted",
        Severity::Warning,
        "the text promises deletion without exceptions, and keeps something elsewhere",
    ),
    ("claim-retention-missing", Severity::Warning, "the text does not say how long it keeps data that it collects"),
    (
        "deletion-omits",
        Severity::Warning,
        "the text's list of what a deletion removes leaves out data that it collects",
    ),
    ("sharing-differs", Severity::Warning, "a recipient is given data in one section of the text and not in another"),
    ("channel-without-processor", Severity::Warning, "the text names a channel and nobody who carries it"),
    ("data-without-category", Severity::Warning, "the text handles data that belongs to no category"),
    ("age-differs", Severity::Warning, "the text names two ages, or another than the rule"),
    ("objection-without-purpose", Severity::Warning, "the text lets people object to something that is no purpose"),
    ("claim-without-purpose", Severity::Warning, "the text names a use that is no purpose of the file"),
    ("purpose-unclaimed", Severity::Warning, "a purpose of the file that the text does not name"),
    ("claim-without-recipient", Severity::Warning, "the text names a recipient that the file does not have"),
    ("recipient-unclaimed", Severity::Warning, "a recipient of the file that the text does not name"),
    ("sharing-unclaimed", Severity::Warning, "a recipient may be given data that the text does not name for it"),
    ("retention-differs", Severity::Warning, "data is kept longer than the text says"),
    ("basis-differs", Severity::Warning, "a purpose has another basis than the text says"),
    ("grace-differs", Severity::Warning, "no class has the grace that the text promises"),
    (
        "backups-differ",
        Severity::Warning,
        "archives are kept longer than the text says, or the file does not say how long",
    ),
    ("clock-differs", Severity::Warning, "the time limit of a request is longer than the text says"),
    ("notice-differs", Severity::Warning, "the minimum notice is shorter than the text says"),
    ("forbidden-missing", Severity::Warning, "the text rules a use out and `forbidden` does not"),
    ("place-differs", Severity::Warning, "the text names another region or host than the file"),
    ("rule-missing", Severity::Warning, "a claim has no rule of the file behind it"),
    ("weaker-than-kept", Severity::Warning, "the text claims less than what is kept"),
    ("no-at-rest-claim", Severity::Warning, "the text does not claim that stored data is encrypted, and it is"),
    ("outside-the-vault", Severity::Note, "a claim that the vault cannot keep or check"),
];
