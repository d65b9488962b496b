//! `rights`: what people decide about the use of their data, and what they ask for.

use crate::cli::args::{self, ContextArgs, ListArgs};
use crate::cli::error::CliError;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, note};
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::{Subcommand, ValueEnum};

const DECISION: &[Col] = &[
    Col("DECISION", "kind"),
    Col("PURPOSE", "purpose_id|purpose"),
    Col("CLASS", "class_id|class"),
    Col("WHEN", "decide_time"),
    Col("HOW", "how"),
    Col("POLICY", "policy_version"),
    Col("EVIDENCE", "evidence"),
];
const DISCLOSURE: &[Col] = &[
    Col("RECIPIENT", "recipient_id|recipient"),
    Col("FIELDS", "field_ids|field"),
    Col("PURPOSES", "purpose_ids|purpose"),
    Col("READS", "reads"),
    Col("FIRST", "first_time"),
    Col("LAST", "last_time"),
    Col("AGREEMENT", "agreement"),
    Col("ERASED", "erase_time"),
    Col("DELETED THERE", "acknowledge_time"),
    Col("SUBJECT UID", "subject_uid|nonzero"),
];
const NOMINEE: &[Col] = &[
    Col("NOMINEE UID", "subject_uid"),
    Col("FOR", "scopes"),
    Col("SINCE", "name_time"),
    Col("UNTIL", "expire_time"),
    Col("COUNTS", "active|mark"),
];
const REQUEST: &[Col] = &[
    Col("REQUEST", "request"),
    Col("KIND", "kind"),
    Col("STATE", "state"),
    Col("ARRIVED", "arrive_time"),
    Col("DUE", "due_time"),
    Col("OVERDUE", "overdue|mark"),
    Col("CLOSED", "close_time"),
    Col("SUBJECT UID", "subject_uid|nonzero"),
    Col("NOMINEE UID", "nominee_uid|nonzero"),
];

/// How a consent came.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum How {
    /// The person was asked, or said so
    Asked,
    /// By going on to use the service after a notice
    Use,
    /// Taken over from another system
    Imported,
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Ending {
    /// It was done
    Done,
    /// A no, for a reason that the law gives
    Refused,
}

/// `rights`
#[derive(Debug, Subcommand)]
pub enum Rights {
    /// Record that a person consents to a purpose
    #[command(after_help = "Example:
  pii-vault rights consent u-17 marketing --evidence 'sign-up form 3'")]
    Consent {
        /// Id of the subject
        subject: String,
        /// Purpose, by name or number
        purpose: String,
        /// When the person agreed [default: now]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        at: Option<Moment>,
        /// How it came
        #[arg(long, value_enum, default_value = "asked")]
        how: How,
        /// How it came, in words, such as the name of a form; stored sealed
        #[arg(long, value_name = "TEXT", default_value = "")]
        evidence: String,
    },
    /// Record that a person takes a consent back; counts for every call from then on
    #[command(after_help = "Example:
  pii-vault rights withdraw u-17 marketing")]
    Withdraw {
        /// Id of the subject
        subject: String,
        /// Purpose, by name or number
        purpose: String,
        /// How it came, in words; stored sealed
        #[arg(long, value_name = "TEXT", default_value = "")]
        evidence: String,
    },
    /// Record that a person objects to a purpose, or no longer does
    #[command(after_help = "Examples:
  pii-vault rights object u-17 analytics
  pii-vault rights object u-17 analytics --end")]
    Object {
        /// Id of the subject
        subject: String,
        /// Purpose, by name or number
        purpose: String,
        /// The person objects no longer
        #[arg(long)]
        end: bool,
        /// How it came, in words; stored sealed
        #[arg(long, value_name = "TEXT", default_value = "")]
        evidence: String,
    },
    /// Record that a person had the use of a class restricted, or no longer has
    #[command(after_help = "Examples:
  pii-vault rights restrict u-17 usage
  pii-vault rights restrict u-17 usage --end")]
    Restrict {
        /// Id of the subject
        subject: String,
        /// Class, by name or number
        class: String,
        /// The person has it restricted no longer
        #[arg(long)]
        end: bool,
        /// How it came, in words; stored sealed
        #[arg(long, value_name = "TEXT", default_value = "")]
        evidence: String,
    },
    /// Show what a person decided, and what counts now
    #[command(after_help = "Example:
  pii-vault rights show u-17")]
    Show {
        /// Id of the subject
        subject: String,
    },
    /// Show who was given which fields of a person, or what a recipient was given of whom
    #[command(after_help = "Examples:
  pii-vault rights disclosures u-17
  pii-vault rights disclosures --recipient twilio --pending")]
    Disclosures {
        /// Id of the subject
        #[arg(required_unless_present = "recipient", conflicts_with = "recipient")]
        subject: Option<String>,
        /// All that this recipient was given, by name or number
        #[arg(long)]
        recipient: Option<String>,
        /// Only what was erased and whose deletion the recipient has not confirmed
        #[arg(long, requires = "recipient")]
        pending: bool,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Record that a person named somebody who may ask in their place
    #[command(after_help = "Examples:
  pii-vault rights nominate u-17 u-18 --for access,erase
  pii-vault rights nominate u-17 u-18 --for grievance --until 2027-01-01T00:00:00Z")]
    Nominate {
        /// Id of the subject
        subject: String,
        /// Id of the one who is named
        nominee: String,
        /// Kinds of requests, of those that the policy lets nominees make
        #[arg(long = "for", value_name = "KIND", value_delimiter = ',', required = true)]
        scopes: Vec<String>,
        /// When it ends [default: as the policy says]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        until: Option<Moment>,
    },
    /// Take a nomination back
    #[command(after_help = "Example:
  pii-vault rights unnominate u-17 u-18")]
    Unnominate {
        /// Id of the subject
        subject: String,
        /// Id of the one who was named
        nominee: String,
    },
    /// Note that somebody asked for something; the policy says by when it must be answered
    #[command(after_help = "Examples:
  pii-vault rights request erase --subject u-17
  pii-vault rights request access --subject u-17 --region us-ca --arrived -2d
  pii-vault rights request erase --subject u-17 --acting-for u-18
  pii-vault rights request dpa")]
    Request {
        /// access, correct, erase, restrict, object, portability, nominate, withdraw, grievance, dpa, incident
        kind: String,
        /// Whose [default: nobody in the vault]
        #[arg(long)]
        subject: Option<String>,
        /// When it came [default: now]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        arrived: Option<Moment>,
        /// Region of the person, where the policy has time limits of its own for it
        #[arg(long, value_name = "NAME", default_value = "")]
        region: String,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Note how a request was answered
    #[command(after_help = "Example:
  pii-vault rights close 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 done")]
    Close {
        /// Name of the request
        request: String,
        /// How
        #[arg(value_enum)]
        ending: Ending,
    },
    /// List requests, those that are due first at the front
    #[command(after_help = "Examples:
  pii-vault rights requests
  pii-vault rights requests --overdue
  pii-vault rights requests --all")]
    Requests {
        /// Only those that are overdue
        #[arg(long)]
        overdue: bool,
        /// Those that were answered, too
        #[arg(long, conflicts_with = "overdue")]
        all: bool,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// `rights`
pub async fn rights(s: &Session, command: Rights) -> Result<(), CliError> {
    let key = |subject: &str| Some(args::subject_key(subject));
    let request_id = || {
        let id = args::new_id();
        s.wrote(&id);
        id
    };
    let mut client = s.rights();
    match command {
        Rights::Consent { subject, purpose, at, how, evidence } => {
            let how = match how {
                How::Asked => pb::DecisionHow::Asked,
                How::Use => pb::DecisionHow::Use,
                How::Imported => pb::DecisionHow::Imported,
            };
            let purpose_id = s.number(Noun::Purpose, &purpose).await?;
            let consent = pb::ConsentGrant { purpose_id, grant_time: args::at(s, at), evidence };
            let request = pb::GrantConsentRequest {
                key: key(&subject),
                consent: Some(consent),
                how: how as i32,
                context: None,
                request_id: request_id(),
            };
            let answer = client.grant_consent(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Withdraw { subject, purpose, evidence } => {
            let request = pb::WithdrawConsentRequest {
                key: key(&subject),
                purpose_id: s.number(Noun::Purpose, &purpose).await?,
                evidence,
                context: None,
                request_id: request_id(),
            };
            let answer = client.withdraw_consent(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Object { subject, purpose, end, evidence } => {
            let request = pb::RecordObjectionRequest {
                key: key(&subject),
                purpose_id: s.number(Noun::Purpose, &purpose).await?,
                end,
                evidence,
                context: None,
                request_id: request_id(),
            };
            let answer = client.record_objection(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Restrict { subject, class, end, evidence } => {
            let request = pb::RestrictClassRequest {
                key: key(&subject),
                class_id: s.number(Noun::Class, &class).await?,
                end,
                evidence,
                context: None,
                request_id: request_id(),
            };
            let answer = client.restrict_class(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Show { subject } => {
            let request = pb::GetRightsRequest { key: key(&subject), context: None };
            let answer = client.get_rights(request).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            let names = s.names_if_any().await;
            s.out.table(&answer.decisions, DECISION, &names)?;
            let list = |noun, numbers: &[u32]| {
                let named: Vec<String> = numbers.iter().map(|no| names.name(noun, *no)).collect();
                if named.is_empty() { "none".to_owned() } else { named.join(", ") }
            };
            note(&format!("consents that count: {}", list(Noun::Purpose, &answer.consented_purpose_ids)));
            note(&format!("objections: {}", list(Noun::Purpose, &answer.objected_purpose_ids)));
            note(&format!("restricted: {}", list(Noun::Class, &answer.restricted_class_ids)));
            if !answer.nominees.is_empty() {
                s.out.table(&answer.nominees, NOMINEE, &names)?;
            }
            Ok(())
        }
        Rights::Disclosures { subject: None, recipient, pending, list } => {
            let recipient_id = s.opt_number(Noun::Recipient, &recipient).await?;
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.rights();
                    let request = pb::ListDisclosuresRequest {
                        recipient_id,
                        pending,
                        page_size,
                        page_token,
                        ..Default::default()
                    };
                    async move {
                        let answer = client.list_disclosures(request).await?.into_inner();
                        Ok((answer.disclosures, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("disclosures", &page, DISCLOSURE, &s.names_if_any().await)
        }
        Rights::Nominate { subject, nominee, scopes, until } => {
            let request = pb::SetNomineeRequest {
                key: key(&subject),
                nominee: key(&nominee),
                scopes,
                expire_time: args::at(s, until),
                context: None,
                request_id: request_id(),
            };
            let answer = client.set_nominee(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Unnominate { subject, nominee } => {
            let (key, nominee) = (key(&subject), key(&nominee));
            let request = pb::RemoveNomineeRequest { key, nominee, context: None, request_id: request_id() };
            let answer = client.remove_nominee(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "commit_time")], &Names::default())
        }
        Rights::Disclosures { subject: Some(subject), .. } => {
            let request = pb::ListDisclosuresRequest { key: key(&subject), ..Default::default() };
            let answer = client.list_disclosures(request).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            s.out.table(&answer.disclosures, DISCLOSURE, &s.names_if_any().await)?;
            if !answer.complete {
                note("the audit is longer than one call looks at: `pii-vault audit list` goes on");
            }
            Ok(())
        }
        Rights::Request { kind, subject, arrived, region, context } => {
            let request = pb::CreateRequestRequest {
                kind,
                key: subject.as_deref().and_then(key),
                arrive_time: args::at(s, arrived),
                region,
                context: context.context(s).await?,
                request_id: request_id(),
            };
            let answer = client.create_request(request).await?.into_inner();
            s.out.record(&answer.request.unwrap_or_default(), REQUEST, &Names::default())
        }
        Rights::Close { request, ending } => {
            let state = match ending {
                Ending::Done => pb::RightsRequestState::Done,
                Ending::Refused => pb::RightsRequestState::Refused,
            };
            let request = pb::UpdateRequestRequest { request, state: state as i32, request_id: request_id() };
            let answer = client.update_request(request).await?.into_inner();
            s.out.record(&answer.request.unwrap_or_default(), REQUEST, &Names::default())
        }
        Rights::Requests { overdue, all, list } => {
            let state = if all || overdue { 0 } else { pb::RightsRequestState::Open as i32 };
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.rights();
                    let request = pb::ListRequestsRequest { state, overdue, page_size, page_token };
                    async move {
                        let answer = client.list_requests(request).await?.into_inner();
                        Ok((answer.requests, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("requests", &page, REQUEST, &Names::default())
        }
    }
}
