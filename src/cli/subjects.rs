//! `subject` and `group`: people and the accounts that own them, without values.

use crate::cli::args::{self, ContextArgs, KeyArgs, ListArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::names::{Names, Noun};
use crate::cli::output::Col;
use crate::cli::session::Session;
use crate::grpc::pb;
use clap::{Args, Subcommand};

const SUBJECT: &[Col] = &[
    Col("SUBJECT", "subject"),
    Col("STATE", "state"),
    Col("GROUP", "group"),
    Col("CREATED", "create_time"),
    Col("ACTIVE", "active_time"),
    Col("REFERENCE", "recipient_ref"),
    Col("ETAG", "etag"),
];
const SUBJECTS: &[Col] = &[
    Col("SUBJECT", "subject"),
    Col("STATE", "state"),
    Col("GROUP", "group"),
    Col("CREATED", "create_time"),
    Col("ACTIVE", "active_time"),
];
const CLASSES: &[Col] = &[
    Col("CLASS", "class_id|class"),
    Col("STATUS", "status"),
    Col("KEY VERSION", "data_key_version"),
    Col("HOLDS", "holds"),
];
const GROUP: &[Col] = &[
    Col("GROUP", "group"),
    Col("STATE", "state"),
    Col("OWNER", "owner"),
    Col("PLAN", "plan_id|plan"),
    Col("REGION", "region"),
    Col("TIME ZONE", "time_zone"),
    Col("RETENTION CLASS", "retention.class_id|class"),
    Col("RETENTION DAYS", "retention.days"),
    Col("CREATED", "create_time"),
    Col("ETAG", "etag"),
];
const GROUPS: &[Col] =
    &[Col("GROUP", "group"), Col("STATE", "state"), Col("PLAN", "plan_id|plan"), Col("CREATED", "create_time")];

/// `subject`
#[derive(Debug, Subcommand)]
pub enum Subject {
    /// State of one subject and its classes
    #[command(after_help = "Examples:
  pii-vault subject show u-17
  echo ana@example.com | pii-vault subject show --by email -p support")]
    Show {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// List subjects in order of their creation
    #[command(after_help = "Example:
  pii-vault subject list --state closed --limit 50")]
    List {
        /// Only this state; may be repeated [default: all but erased]
        #[arg(long = "state", value_parser = args::subject_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Close a subject: no more writes, "as long as active" ends
    #[command(after_help = "Example:
  pii-vault subject close u-17 --reason 'account cancelled'")]
    Close(ChangeSubject),
    /// Open a closed subject again
    #[command(after_help = "Example:
  pii-vault subject reopen u-17")]
    Reopen(ChangeSubject),
    /// Note that a subject is active today
    #[command(after_help = "Example:
  pii-vault subject touch u-17")]
    Touch {
        /// Id of the subject
        subject: String,
    },
}

#[derive(Debug, Args)]
pub struct ChangeSubject {
    /// Id of the subject
    subject: String,
    #[command(flatten)]
    context: ContextArgs,
    /// Only if this is still the state that `subject show` showed
    #[arg(long)]
    etag: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

/// `subject`
pub async fn subject(s: &Session, command: Subject) -> Result<(), CliError> {
    match command {
        Subject::Show { key, context } => {
            let request = pb::GetSubjectRequest { key: Some(key.key(s).await?), context: context.context(s).await? };
            show(s, s.subjects().get_subject(request).await?.into_inner().subject).await
        }
        Subject::List { states, list } => {
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.subjects();
                    let request = pb::ListSubjectsRequest { states: states.clone(), page_size, page_token };
                    async move {
                        let answer = client.list_subjects(request).await?.into_inner();
                        Ok((answer.subjects, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("subjects", &page, SUBJECTS, &Names::default())
        }
        Subject::Close(a) => {
            let request = pb::CloseSubjectRequest {
                subject: a.subject,
                context: a.context.context(s).await?,
                request_id: a.write.id(s),
                etag: a.etag.unwrap_or_default(),
                validate_only: a.write.validate_only,
            };
            show(s, s.subjects().close_subject(request).await?.into_inner().subject).await
        }
        Subject::Reopen(a) => {
            let request = pb::ReopenSubjectRequest {
                subject: a.subject,
                context: a.context.context(s).await?,
                request_id: a.write.id(s),
                etag: a.etag.unwrap_or_default(),
                validate_only: a.write.validate_only,
            };
            show(s, s.subjects().reopen_subject(request).await?.into_inner().subject).await
        }
        Subject::Touch { subject } => {
            let answer = s.subjects().touch_subject(pb::TouchSubjectRequest { subject }).await?.into_inner();
            s.out.record(&answer, &[Col("ACTIVE", "active_time")], &Names::default())
        }
    }
}

async fn show(s: &Session, subject: Option<pb::Subject>) -> Result<(), CliError> {
    let subject = subject.unwrap_or_default();
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    s.out.record(&subject, SUBJECT, &names)?;
    if s.out.json || subject.classes.is_empty() {
        return Ok(());
    }
    s.out.line("")?;
    s.out.table(&subject.classes, CLASSES, &names)
}

/// `group`
#[derive(Debug, Subcommand)]
pub enum Group {
    /// Create a group: the account of one of the tenant's customers
    #[command(after_help = "Example:
  pii-vault group create acme --plan enterprise --retention content=180")]
    Create(GroupArgs),
    /// Show a group
    #[command(after_help = "Example:
  pii-vault group show acme")]
    Show {
        /// Id of the group
        group: String,
    },
    /// List groups in order of their creation
    #[command(after_help = "Example:
  pii-vault group list --state active")]
    List {
        /// Only this state; may be repeated [default: all but erased]
        #[arg(long = "state", value_parser = args::group_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Change a group: what is named is replaced, the rest stays
    #[command(after_help = "Examples:
  pii-vault group update acme --state closed
  pii-vault group update acme --plan basic --no-retention")]
    Update {
        #[command(flatten)]
        group: GroupArgs,
        /// New state: active, closed
        #[arg(long, value_parser = args::group_state)]
        state: Option<i32>,
        /// Take away the group's own retentions
        #[arg(long, conflicts_with = "retention")]
        no_retention: bool,
        /// Only if this is still the state that `group show` showed
        #[arg(long)]
        etag: Option<String>,
    },
    /// List the subjects of a group in order of their creation
    #[command(after_help = "Example:
  pii-vault group subjects acme")]
    Subjects {
        /// Id of the group
        group: String,
        /// Only this state; may be repeated [default: all but erased]
        #[arg(long = "state", value_parser = args::subject_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
}

#[derive(Debug, Args)]
pub struct GroupArgs {
    /// Id of the group
    group: String,
    /// Subject id of its owner
    #[arg(long)]
    owner: Option<String>,
    /// Plan by name or number
    #[arg(long)]
    plan: Option<String>,
    /// Retention of its own, where the plan allows it; may be repeated
    #[arg(long, value_name = "CLASS=DAYS")]
    retention: Vec<String>,
    /// Region of the customer
    #[arg(long)]
    region: Option<String>,
    /// IANA time zone of the customer
    #[arg(long)]
    time_zone: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

impl GroupArgs {
    /// The group, and which of its fields were named.
    async fn group(&self, s: &Session) -> Result<(pb::Group, Vec<String>), CliError> {
        let mut retention = Vec::new();
        for text in &self.retention {
            let bad = || CliError::Usage(format!("--retention {text}: needs CLASS=DAYS"));
            let (class, days) = text.split_once('=').ok_or_else(bad)?;
            let days = days.parse().map_err(|_| bad())?;
            retention.push(pb::RetentionOverride { class_id: s.number(Noun::Class, class).await?, days });
        }
        let named = [
            ("owner", self.owner.is_some()),
            ("plan_id", self.plan.is_some()),
            ("retention", !self.retention.is_empty()),
            ("region", self.region.is_some()),
            ("time_zone", self.time_zone.is_some()),
        ];
        let mask = named.into_iter().filter(|(_, is)| *is).map(|(path, _)| path.to_string()).collect();
        let group = pb::Group {
            group: self.group.clone(),
            owner: self.owner.clone().unwrap_or_default(),
            plan_id: s.opt_number(Noun::Plan, &self.plan).await?,
            retention,
            region: self.region.clone().unwrap_or_default(),
            time_zone: self.time_zone.clone().unwrap_or_default(),
            ..Default::default()
        };
        Ok((group, mask))
    }
}

/// `group`
pub async fn group(s: &Session, command: Group) -> Result<(), CliError> {
    match command {
        Group::Create(a) => {
            let (group, _) = a.group(s).await?;
            let request = pb::CreateGroupRequest {
                group: Some(group),
                request_id: a.write.id(s),
                validate_only: a.write.validate_only,
            };
            show_group(s, s.subjects().create_group(request).await?.into_inner().group).await
        }
        Group::Show { group } => {
            let request = pb::GetGroupRequest { group };
            show_group(s, s.subjects().get_group(request).await?.into_inner().group).await
        }
        Group::List { states, list } => {
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.subjects();
                    let request = pb::ListGroupsRequest { states: states.clone(), page_size, page_token };
                    async move {
                        let answer = client.list_groups(request).await?.into_inner();
                        Ok((answer.groups, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("groups", &page, GROUPS, &s.names_if_any().await)
        }
        Group::Update { group: a, state, no_retention, etag } => {
            let (mut group, mut paths) = a.group(s).await?;
            if let Some(state) = state {
                group.state = state;
                paths.push("state".into());
            }
            if no_retention {
                paths.push("retention".into());
            }
            if paths.is_empty() {
                return Err(CliError::Usage("name what to change, such as --plan or --state".into()));
            }
            group.etag = etag.unwrap_or_default();
            let request = pb::UpdateGroupRequest {
                group: Some(group),
                update_mask: Some(prost_types::FieldMask { paths }),
                request_id: a.write.id(s),
                validate_only: a.write.validate_only,
            };
            show_group(s, s.subjects().update_group(request).await?.into_inner().group).await
        }
        Group::Subjects { group, states, list } => {
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.subjects();
                    let (group, states) = (group.clone(), states.clone());
                    let request = pb::ListGroupSubjectsRequest { group, states, page_size, page_token };
                    async move {
                        let answer = client.list_group_subjects(request).await?.into_inner();
                        Ok((answer.subjects, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("subjects", &page, SUBJECTS, &Names::default())
        }
    }
}

async fn show_group(s: &Session, group: Option<pb::Group>) -> Result<(), CliError> {
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    s.out.record(&group.unwrap_or_default(), GROUP, &names)
}
