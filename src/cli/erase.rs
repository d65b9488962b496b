//! `erase`: what is gone for good, now or later, and what became of it.

use crate::cli::args::{self, ContextArgs, KeyArgs, ListArgs, WriteArgs};
use crate::cli::batch::subject_of;
use crate::cli::error::{CliError, code_name};
use crate::cli::input;
use crate::cli::names::{Names, Noun};
use crate::cli::ops;
use crate::cli::output::{Col, note};
use crate::cli::profile::write_private;
use crate::cli::session::Session;
use crate::cli::text::Moment;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};
use std::path::PathBuf;
use tonic::Code;

const ERASURE: &[Col] = &[
    Col("ERASURE", "erasure"),
    Col("STATUS", "status"),
    Col("KIND", "kind"),
    Col("ERASED", "erased.class_id|class"),
    Col("HELD", "held.class_id|class"),
    Col("RECIPIENTS", "recipient_ids|recipient"),
    Col("ASKED", "create_time"),
    Col("SCHEDULED", "schedule_time"),
    Col("ERASED AT", "erase_time"),
    Col("ARCHIVES EXPIRE", "archives_expire_time"),
    Col("SEARCH EXPIRES", "search_expires_time"),
    Col("KEEPER", "guarantee.kind"),
    Col("ASSURANCE", "guarantee.assurance"),
    Col("SUBJECTS", "subject_count"),
    Col("DONE", "done_count"),
    Col("COMMITMENT SALT", "commitment_salt"),
];
const ERASURES: &[Col] = &[
    Col("ERASURE", "erasure"),
    Col("STATUS", "status"),
    Col("KIND", "kind"),
    Col("SUBJECTS", "subject_count"),
    Col("ASKED", "create_time"),
    Col("ERASED AT", "erase_time"),
];
const HELD: &[Col] = &[
    Col("HELD CLASS", "class_id|class"),
    Col("LEGAL BASIS", "legal_basis"),
    Col("UNTIL", "end_time"),
    Col("HOLD", "hold"),
    Col("READABLE FOR", "purpose_id|purpose"),
];

/// `erase`
#[derive(Debug, Subcommand)]
pub enum Erase {
    /// Erase a subject, or some of its classes
    #[command(after_help = "Examples:
  pii-vault erase preview u-17
  pii-vault erase subject u-17 --wait --receipt u-17.receipt.json
  pii-vault erase subject u-17 --class content --yes")]
    Subject {
        #[command(flatten)]
        key: KeyArgs,
        /// Only this class; may be repeated [default: all, and the id becomes a tombstone]
        #[arg(long = "class", short = 'c', value_delimiter = ',')]
        classes: Vec<String>,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Erase one class of a subject; it may be written again
    #[command(after_help = "Example:
  pii-vault erase class u-17 --class ig_token --yes")]
    Class {
        #[command(flatten)]
        key: KeyArgs,
        /// The class, by name or number
        #[arg(long, short = 'c')]
        class: String,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Erase single fields: the rest of their class is resealed under a new key
    #[command(after_help = "Example:
  pii-vault erase fields u-17 --field phone,nickname --yes --wait")]
    Fields {
        #[command(flatten)]
        key: KeyArgs,
        /// Field by name or number; may be repeated
        #[arg(long = "field", short = 'f', value_delimiter = ',', required = true)]
        fields: Vec<String>,
        /// Erase only if this is still the state that `get` showed
        #[arg(long)]
        etag: Option<String>,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Erase single items of a many-valued field
    #[command(after_help = "Example:
  pii-vault erase items u-17 --field message --item ITEM --yes")]
    Items {
        #[command(flatten)]
        key: KeyArgs,
        /// Many-valued field by name or number
        #[arg(long, short = 'f')]
        field: String,
        /// Name of an item; may be repeated
        #[arg(long = "item", required = true)]
        items: Vec<String>,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Erase every subject of a group and the group
    #[command(after_help = "Example:
  pii-vault erase group acme --wait --receipt acme.receipt.json")]
    Group {
        /// Id of the group
        group: String,
        #[command(flatten)]
        how: HowArgs,
    },
    /// Erase many subjects; each line of standard input is an id, or {"subject": "..."}
    #[command(after_help = "Output: a line of JSON for each line of input. Exit code 8 when some of them failed.

Example:
  pii-vault erase batch --yes < ids.txt > outcome.jsonl")]
    Batch {
        /// Only this class of each; may be repeated
        #[arg(long = "class", short = 'c', value_delimiter = ',')]
        classes: Vec<String>,
        #[command(flatten)]
        context: ContextArgs,
        /// Answer only when all are final
        #[arg(long)]
        wait: bool,
        /// Check everything, change nothing
        #[arg(long, visible_alias = "dry-run")]
        validate_only: bool,
    },
    /// What an erasure would do now
    #[command(after_help = "Examples:
  pii-vault erase preview u-17
  pii-vault erase preview --group acme")]
    Preview(TargetArgs),
    /// Erase later; until then the subject or group is frozen and it can be cancelled
    #[command(after_help = "Example:
  pii-vault erase schedule u-17 --at +30d")]
    Schedule {
        #[command(flatten)]
        target: TargetArgs,
        /// When to begin [default: after the grace time of the policy]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        at: Option<Moment>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Cancel a scheduled erasure
    #[command(after_help = "Example:
  pii-vault erase cancel 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Cancel {
        /// Name of the erasure
        erasure: String,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// One erasure as it stands
    #[command(after_help = "Example:
  pii-vault erase status 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 --wait")]
    Status {
        /// Name of the erasure
        erasure: String,
        /// Wait until it is final
        #[arg(long)]
        wait: bool,
        /// Write the receipt to this file
        #[arg(long, value_name = "FILE")]
        receipt: Option<PathBuf>,
    },
    /// List erasures, newest first
    #[command(after_help = "Example:
  pii-vault erase list --status pending --status scheduled")]
    List {
        /// Only those of this live subject
        #[arg(long)]
        subject: Option<String>,
        /// Only this status; may be repeated
        #[arg(long = "status", value_parser = args::erasure_status)]
        statuses: Vec<i32>,
        /// Only this kind; may be repeated
        #[arg(long = "kind", value_parser = args::erasure_kind)]
        kinds: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Follow what ends, for systems that hold copies
    #[command(after_help = "Keep the cursor of the last event that was worked off; each event comes at least once.

Example:
  pii-vault erase watch --json --follow --recipient twilio --cursor \"$(cat cursor)\"")]
    Watch {
        /// Go on after this [default: from the oldest event that is kept]
        #[arg(long, default_value = "")]
        cursor: String,
        /// Only what concerns this recipient; may be repeated
        #[arg(long = "recipient", value_delimiter = ',')]
        recipients: Vec<String>,
        /// Only this kind; may be repeated
        #[arg(long = "kind", value_parser = args::event_kind)]
        kinds: Vec<i32>,
        /// Stay and show what comes
        #[arg(long, short = 'F')]
        follow: bool,
    },
    /// Record that a recipient has deleted its copy of what an erasure destroyed
    #[command(after_help = "Examples:
  pii-vault erase acknowledge 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 twilio
  pii-vault erase acknowledge 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 twilio --recipient-ref 4be1d2...")]
    Acknowledge {
        /// Name of the erasure
        erasure: String,
        /// Whose copy is gone, by name or number
        recipient: String,
        /// Its reference to the person, as `erase watch` shows it; needed where an erasure is about several
        #[arg(long, value_name = "HEX", default_value = "")]
        recipient_ref: String,
    },
}

/// How an erasure is asked for and answered.
#[derive(Debug, Args)]
pub struct HowArgs {
    #[command(flatten)]
    context: ContextArgs,
    /// Wait until the keys are destroyed
    #[arg(long)]
    wait: bool,
    /// Write the receipt to this file, and the commitment's salt to FILE.salt
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
}

/// A subject or a group.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Id of the subject
    #[arg(value_name = "SUBJECT", required_unless_present = "group")]
    subject: Option<String>,
    /// A group instead of a subject
    #[arg(long, conflicts_with = "subject")]
    group: Option<String>,
    /// Only this class; may be repeated
    #[arg(long = "class", short = 'c', value_delimiter = ',')]
    classes: Vec<String>,
    #[command(flatten)]
    context: ContextArgs,
}

/// `erase`
pub async fn erase(s: &Session, yes: bool, command: Erase) -> Result<(), CliError> {
    match command {
        Erase::Subject { key, classes, how } => {
            let what = match (&key.subject, classes.is_empty()) {
                (Some(subject), true) => format!("This erases subject {subject} for good"),
                (_, true) => "This erases a subject for good".into(),
                (_, false) => format!("This erases {} of a subject for good", classes.join(", ")),
            };
            input::confirm(yes || how.write.validate_only, &what)?;
            let request = pb::EraseSubjectRequest {
                key: Some(key.key(s).await?),
                class_ids: s.numbers(Noun::Class, &classes).await?,
                context: how.context.context(s).await?,
                request_id: how.write.id(s),
                wait_final: false,
                validate_only: how.write.validate_only,
            };
            finish(s, &how, s.erasures().erase_subject(request).await?.into_inner().erasure).await
        }
        Erase::Class { key, class, how } => {
            input::confirm(yes || how.write.validate_only, &format!("This erases {class} of a subject for good"))?;
            let request = pb::EraseClassRequest {
                key: Some(key.key(s).await?),
                class_id: s.number(Noun::Class, &class).await?,
                context: how.context.context(s).await?,
                request_id: how.write.id(s),
                wait_final: false,
                validate_only: how.write.validate_only,
            };
            finish(s, &how, s.erasures().erase_class(request).await?.into_inner().erasure).await
        }
        Erase::Fields { key, fields, etag, how } => {
            let what = format!("This erases {} of a subject for good", fields.join(", "));
            input::confirm(yes || how.write.validate_only, &what)?;
            let field_ids = s.numbers(Noun::Field, &fields).await?;
            let request = pb::EraseFieldsRequest {
                key: Some(key.key(s).await?),
                select: Some(pb::Selector { field_ids, ..Default::default() }),
                context: how.context.context(s).await?,
                request_id: how.write.id(s),
                wait_final: false,
                etag: etag.unwrap_or_default(),
                validate_only: how.write.validate_only,
            };
            finish(s, &how, s.erasures().erase_fields(request).await?.into_inner().erasure).await
        }
        Erase::Items { key, field, items, how } => {
            let what = format!("This erases {} items for good", items.len());
            input::confirm(yes || how.write.validate_only, &what)?;
            let request = pb::EraseItemsRequest {
                key: Some(key.key(s).await?),
                field_id: s.number(Noun::Field, &field).await?,
                field: String::new(),
                items,
                context: how.context.context(s).await?,
                request_id: how.write.id(s),
                wait_final: false,
                validate_only: how.write.validate_only,
            };
            finish(s, &how, s.erasures().erase_items(request).await?.into_inner().erasure).await
        }
        Erase::Group { group, how } => {
            let what = format!("This erases group {group} with all its subjects for good");
            input::confirm(yes || how.write.validate_only, &what)?;
            let request = pb::EraseGroupRequest {
                group,
                context: how.context.context(s).await?,
                request_id: how.write.id(s),
                wait_final: false,
                validate_only: how.write.validate_only,
            };
            finish(s, &how, s.erasures().erase_group(request).await?.into_inner().erasure).await
        }
        Erase::Batch { classes, context, wait, validate_only } => {
            // Standard input holds the ids, so nobody can be asked there.
            if !yes && !validate_only {
                return Err(CliError::Usage("this cannot be taken back: say --yes".into()));
            }
            batch(s, classes, context, wait, validate_only).await
        }
        Erase::Preview(target) => preview(s, target).await,
        Erase::Schedule { target, at, write } => {
            let to = match (&target.subject, &target.group) {
                (Some(subject), _) => pb::schedule_erasure_request::Target::Key(args::subject_key(subject)),
                (None, group) => pb::schedule_erasure_request::Target::Group(group.clone().unwrap_or_default()),
            };
            let request = pb::ScheduleErasureRequest {
                target: Some(to),
                class_ids: s.numbers(Noun::Class, &target.classes).await?,
                schedule_time: args::at(s, at),
                context: target.context.context(s).await?,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            show(s, s.erasures().schedule_erasure(request).await?.into_inner().erasure.unwrap_or_default()).await
        }
        Erase::Cancel { erasure, context } => {
            let context = context.context(s).await?;
            let request = pb::CancelErasureRequest { erasure, context, request_id: args::new_id() };
            show(s, s.erasures().cancel_erasure(request).await?.into_inner().erasure.unwrap_or_default()).await
        }
        Erase::Status { erasure, wait, receipt } => {
            let mut found = get(s, &erasure).await?;
            if wait {
                found = wait_for(s, found).await?;
            }
            if let Some(path) = receipt {
                save_receipt(&path, &found)?;
            }
            show(s, found).await
        }
        Erase::List { subject, statuses, kinds, list } => {
            let key = subject.as_deref().map(args::subject_key);
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.erasures();
                    let (key, statuses, kinds) = (key.clone(), statuses.clone(), kinds.clone());
                    let request = pb::ListErasuresRequest { key, statuses, kinds, page_size, page_token };
                    async move {
                        let answer = client.list_erasures(request).await?.into_inner();
                        Ok((answer.erasures, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("erasures", &page, ERASURES, &Names::default())
        }
        Erase::Watch { cursor, recipients, kinds, follow } => watch(s, cursor, recipients, kinds, follow).await,
        Erase::Acknowledge { erasure, recipient, recipient_ref } => {
            let recipient_ref = data_encoding::HEXLOWER_PERMISSIVE
                .decode(recipient_ref.as_bytes())
                .map_err(|_| CliError::Usage("--recipient-ref: hexadecimal digits".into()))?;
            let recipient_id = s.number(Noun::Recipient, &recipient).await?;
            let request_id = args::new_id();
            s.wrote(&request_id);
            let recipient_ref = recipient_ref.into();
            let request = pb::AcknowledgeErasureRequest { erasure, recipient_id, recipient_ref, request_id };
            let answer = s.erasures().acknowledge_erasure(request).await?.into_inner();
            s.out.record(&answer, &[Col("RECORDED", "acknowledge_time")], &Names::default())
        }
    }
}

async fn get(s: &Session, erasure: &str) -> Result<pb::Erasure, CliError> {
    let request = pb::GetErasureRequest { erasure: erasure.to_string() };
    Ok(s.erasures().get_erasure(request).await?.into_inner().erasure.unwrap_or_default())
}

async fn finish(s: &Session, how: &HowArgs, erasure: Option<pb::Erasure>) -> Result<(), CliError> {
    let mut erasure = erasure.unwrap_or_default();
    if how.write.validate_only {
        return show(s, erasure).await;
    }
    let first = erasure.commitment_salt.clone();
    if how.wait {
        erasure = wait_for(s, erasure).await?;
    }
    // Only the call that erased is told the salt.
    if erasure.commitment_salt.is_empty() {
        erasure.commitment_salt = first;
    }
    if let Some(path) = &how.receipt {
        save_receipt(path, &erasure)?;
    }
    show(s, erasure).await
}

/// Follows the operation of a PENDING erasure to its end. The calls do not ask the server to wait: a large erasure takes
/// longer than a deadline, and a stream shows how far it is.
async fn wait_for(s: &Session, erasure: pb::Erasure) -> Result<pb::Erasure, CliError> {
    if erasure.status() != pb::ErasureStatus::Pending {
        return Ok(erasure);
    }
    ops::follow(s, &erasure.erasure, false).await?;
    get(s, &erasure.erasure).await
}

fn save_receipt(path: &std::path::Path, erasure: &pb::Erasure) -> Result<(), CliError> {
    if erasure.receipt.is_empty() {
        let name = &erasure.erasure;
        return Err(CliError::Unexpected(format!(
            "erasure {name} was accepted, but its receipt is not there yet; \
             `pii-vault erase status {name} --wait --receipt FILE` fetches it"
        )));
    }
    write_private(path, &erasure.receipt)?;
    if !erasure.commitment_salt.is_empty() {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".salt");
        let text = data_encoding::HEXLOWER.encode(&erasure.commitment_salt);
        write_private(&path.with_file_name(name), format!("{text}\n").as_bytes())?;
    }
    Ok(())
}

/// Prints an erasure.
pub async fn show(s: &Session, erasure: pb::Erasure) -> Result<(), CliError> {
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    s.out.record(&erasure, ERASURE, &names)?;
    if s.out.json {
        return Ok(());
    }
    if !erasure.held.is_empty() {
        s.out.line("")?;
        s.out.table(&erasure.held, HELD, &names)?;
    }
    let issued: u32 = erasure.erased.iter().map(|c| c.data_keys_issued).sum();
    if issued > 0 {
        note(&format!("{issued} data keys were given out in clear before; what they sealed elsewhere is not reached"));
    }
    if erasure.status() == pb::ErasureStatus::Pending {
        note("not final yet: `pii-vault erase status ERASURE --wait` waits for it");
    }
    if !erasure.commitment_salt.is_empty() {
        note("keep the commitment salt with the receipt if you must prove later whose erasure it was");
    }
    Ok(())
}

async fn preview(s: &Session, target: TargetArgs) -> Result<(), CliError> {
    let to = match (&target.subject, &target.group) {
        (Some(subject), _) => pb::preview_erasure_request::Target::Key(args::subject_key(subject)),
        (None, group) => pb::preview_erasure_request::Target::Group(group.clone().unwrap_or_default()),
    };
    let request = pb::PreviewErasureRequest {
        target: Some(to),
        class_ids: s.numbers(Noun::Class, &target.classes).await?,
        context: target.context.context(s).await?,
    };
    let answer = s.erasures().preview_erasure(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    let names = s.names_if_any().await;
    let goes = [
        Col("GOES", "class_id|class"),
        Col("FIELDS", "field_count"),
        Col("ITEMS", "item_count"),
        Col("DATA KEYS GIVEN OUT", "data_keys_issued|nonzero"),
    ];
    s.out.table(&answer.erased, &goes, &names)?;
    if !answer.held.is_empty() {
        s.out.line("")?;
        s.out.table(&answer.held, HELD, &names)?;
    }
    s.out.line("")?;
    let rest = [
        Col("SUBJECTS", "subject_count"),
        Col("RECIPIENTS", "recipient_ids|recipient"),
        Col("ARCHIVES EXPIRE", "archives_expire_time"),
        Col("SEARCH EXPIRES", "search_expires_time"),
    ];
    s.out.record(&answer, &rest, &names)
}

async fn batch(
    s: &Session,
    classes: Vec<String>,
    context: ContextArgs,
    wait: bool,
    validate_only: bool,
) -> Result<(), CliError> {
    let request = pb::BatchEraseSubjectsRequest {
        keys: Vec::new(),
        class_ids: s.numbers(Noun::Class, &classes).await?,
        context: context.context(s).await?,
        request_id: String::new(),
        wait_final: wait,
        validate_only,
    };
    let bar = s.out.progress(0, "erased");
    let (mut failed, mut total) = (0, 0);
    let mut lines = input::lines();
    loop {
        let chunk = lines.by_ref().take(1_000).map(|l| l.and_then(|(n, l)| Ok((n, subject_of(n, &l)?))));
        let chunk = chunk.collect::<Result<Vec<_>, _>>()?;
        if chunk.is_empty() {
            break;
        }
        let keys = chunk.iter().map(|(_, subject)| args::subject_key(subject)).collect();
        let request = pb::BatchEraseSubjectsRequest { keys, request_id: args::new_id(), ..request.clone() };
        let answer = s.erasures().batch_erase_subjects(request).await?.into_inner();
        if answer.outcomes.len() != chunk.len() {
            return Err(CliError::Unexpected("the server did not answer for every subject".into()));
        }
        for ((line, subject), outcome) in chunk.iter().zip(answer.outcomes) {
            total += 1;
            let mut told = json!({ "line": line, "subject": subject });
            match outcome.outcome {
                Some(pb::erase_outcome::Outcome::Erasure(erasure)) => told["erasure"] = wire(&erasure),
                other => {
                    failed += 1;
                    let error = match other {
                        Some(pb::erase_outcome::Outcome::Error(error)) => error,
                        _ => pb::ItemError::default(),
                    };
                    told["error"] = wire(&error);
                    told["error"]["code"] = Json::from(code_name(Code::from(error.code)));
                }
            }
            s.out.json_line(&told)?;
        }
        bar.set_position(total as u64);
    }
    bar.finish_and_clear();
    if failed == 0 { Ok(()) } else { Err(CliError::Partly { failed, total }) }
}

async fn watch(
    s: &Session,
    cursor: String,
    recipients: Vec<String>,
    kinds: Vec<i32>,
    follow: bool,
) -> Result<(), CliError> {
    let recipient_ids = s.numbers(Noun::Recipient, &recipients).await?;
    let request = pb::WatchErasuresRequest { cursor, recipient_ids, kinds, follow };
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    let mut stream = s.patient().erasures().watch_erasures(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        if s.out.json {
            s.out.json_line(&wire(&event))?;
            continue;
        }
        let classes: Vec<String> = event.class_ids.iter().map(|n| names.name(Noun::Class, *n)).collect();
        let time = event.event_time.as_ref().map(crate::cli::values::time_text).unwrap_or_default();
        let kind = event.kind().as_str_name().trim_start_matches("EVENT_KIND_").to_ascii_lowercase();
        let recipient = match event.recipient_id {
            0 => "own".to_string(),
            number => names.name(Noun::Recipient, number),
        };
        let reference = data_encoding::HEXLOWER.encode(&event.recipient_ref);
        let line = format!("{time}  {kind}  {recipient}  {reference}  {}  {}", classes.join(","), event.cursor);
        s.out.line(&crate::cli::text::printable(&line))?;
    }
    Ok(())
}
