//! `put`, `get`, `delete`, `find`, `item`: values of one subject.

use crate::cli::args::{self, ContextArgs, KeyArgs, ListArgs, SelectArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, Page, note};
use crate::cli::session::Session;
use crate::cli::text::{Moment, printable};
use crate::cli::values;
use crate::grpc::convert::wire_time;
use crate::grpc::pb;
use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

/// `put`
#[derive(Debug, Args)]
#[command(
    after_help = "Values come from standard input, never from arguments: without --field one JSON object, with --field
a line for each, in that order. At a terminal each is asked for and not shown.

Examples:
  echo '{\"email\":\"ana@example.com\",\"phone\":\"+919812345678\"}' | pii-vault put u-17 -p service
  pii-vault put u-17 -p service --field email < email.txt
  pii-vault put u-17 -p service --mode create --group acme < person.json
  pii-vault put u-17 -p service --field phone --erase-former < phone.txt"
)]
pub struct Put {
    /// Id of the subject
    subject: String,
    /// Field whose value is the next line of standard input; may be repeated
    #[arg(long = "field", short = 'f', value_name = "FIELD", value_delimiter = ',')]
    fields: Vec<String>,
    #[command(flatten)]
    context: ContextArgs,
    /// What the write expects to find: upsert, create, update, recreate
    #[arg(long, value_parser = args::write_mode, default_value = "upsert")]
    mode: i32,
    /// Group the subject belongs to, set when it is created
    #[arg(long)]
    group: Option<String>,
    /// Where the values came from, by name or number
    #[arg(long)]
    source: Option<String>,
    /// When the values arose; retention counts from here [default: now]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    origin_time: Option<Moment>,
    /// Write only if this is still the state that `get` showed
    #[arg(long)]
    etag: Option<String>,
    /// Erase for good what is overwritten
    #[arg(long)]
    erase_former: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// `put`
pub async fn put(s: &Session, a: Put) -> Result<(), CliError> {
    let names = s.names().await?;
    let mut list = read_values(names, &a.fields)?;
    let source_id = s.opt_number(Noun::Source, &a.source).await?;
    let origin_time = args::at(s, a.origin_time);
    for value in &mut list {
        value.source_id = source_id;
        value.origin_time = origin_time;
    }
    let request = pb::PutFieldsRequest {
        subject: a.subject,
        values: list,
        context: a.context.context(s).await?,
        mode: a.mode,
        group: a.group.unwrap_or_default(),
        consents: Vec::new(),
        request_id: a.write.id(s),
        etag: a.etag.unwrap_or_default(),
        validate_only: a.write.validate_only,
        erase_former: a.erase_former,
    };
    let answer = s.records().put_fields(request).await?.into_inner();
    s.out.record(
        &answer,
        &[
            Col("ETAG", "etag"),
            Col("CREATED", "created|mark"),
            Col("COMMITTED", "commit_time"),
            Col("ERASED FORMER", "erasure"),
        ],
        names,
    )
}

/// Values from standard input: a JSON object, or a line for each named field.
fn read_values(names: &Names, fields: &[String]) -> Result<Vec<pb::Value>, CliError> {
    if fields.is_empty() {
        let bytes = input::whole("a JSON object of fields")?;
        let object: Json = serde_json::from_slice(&bytes).map_err(|e| not_json("standard input", &e))?;
        let Json::Object(object) = object else {
            return Err(CliError::Usage("standard input: needs a JSON object such as {\"email\": \"...\"}".into()));
        };
        return values::from_object(names, &object);
    }
    let value = |field: &String| {
        let number = values::field_number(names, field)?;
        values::from_text(names, number, &input::line(field)?)
    };
    fields.iter().map(value).collect()
}

/// JSON that does not parse: where, never what.
pub fn not_json(what: &str, error: &serde_json::Error) -> CliError {
    CliError::Usage(format!("{what}: not JSON at line {}, column {}", error.line(), error.column()))
}

/// `get`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault get u-17 -p support
  pii-vault get u-17 -p support -f email,phone --view masked
  pii-vault get u-17 -p service -f email --raw
  echo ana@example.com | pii-vault get --by email -p support --json")]
pub struct Get {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// How to show the values: plain, masked, token [default: what the policy gives]
    #[arg(long, value_parser = args::view, default_value = None)]
    view: Option<i32>,
    /// Show what is allowed when not everything is
    #[arg(long)]
    partial: bool,
    /// Print the value of the one field as it is, and nothing else
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// `get`
pub async fn get(s: &Session, a: Get) -> Result<(), CliError> {
    let request = pb::GetFieldsRequest {
        key: Some(a.key.key(s).await?),
        select: a.select.select(s).await?,
        context: a.context.context(s).await?,
        view: a.view.unwrap_or(0),
        partial: partial(a.partial),
    };
    let mut answer = s.records().get_fields(request).await?.into_inner();
    if a.raw {
        let [value] = answer.values.as_slice() else {
            return Err(CliError::Usage(format!("--raw needs one field, here are {}", answer.values.len())));
        };
        if value.kind.is_none() {
            return Err(CliError::Usage(format!("there is no value: {}", values::to_text(value))));
        }
        return match &value.kind {
            Some(pb::value::Kind::Data(bytes)) => s.out.raw(bytes),
            _ => s.out.line(&values::to_text(value)),
        };
    }
    let names = s.names_if_any().await;
    if s.out.json {
        values::name_values(&names, &mut answer.values);
        return s.out.document(&values::wire(&answer));
    }
    print_values(s, &names, &answer.values)?;
    if answer.state() != pb::SubjectState::Unspecified && answer.state() != pb::SubjectState::Active {
        note(&format!("the subject is {}", answer.state().as_str_name()));
    }
    Ok(())
}

fn partial(allowed: bool) -> i32 {
    if allowed { pb::Partial::Allowed as i32 } else { 0 }
}

fn print_values(s: &Session, names: &Names, list: &[pb::Value]) -> Result<(), CliError> {
    if list.is_empty() {
        note("no fields");
    }
    s.out.rows(&["FIELD", "VALUE", "VIEW", "EXPIRES"], list.iter().map(|v| value_row(names, v)).collect())
}

fn value_row(names: &Names, value: &pb::Value) -> Vec<String> {
    let view = match value.view() {
        pb::View::Unspecified | pb::View::Plain => "",
        pb::View::Masked => "masked",
        pb::View::Token => "token",
    };
    vec![
        printable(&names.name(Noun::Field, value.field_id)),
        printable(&values::to_text(value)),
        view.into(),
        value.expire_time.as_ref().map(values::time_text).unwrap_or_default(),
    ]
}

/// `delete`
#[derive(Debug, Args)]
#[command(
    after_help = "This hides values and deletes their rows; it is NOT an erasure: old copies of the database can still be
opened with the subject's key. `pii-vault erase fields` erases.

Example:
  pii-vault delete u-17 -p service --field nickname --yes"
)]
pub struct Delete {
    /// Id of the subject
    subject: String,
    /// Field by name or number; may be repeated
    #[arg(long = "field", short = 'f', value_name = "FIELD", value_delimiter = ',', required = true)]
    fields: Vec<String>,
    #[command(flatten)]
    context: ContextArgs,
    /// Delete only if this is still the state that `get` showed
    #[arg(long)]
    etag: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

/// `delete`
pub async fn delete(s: &Session, yes: bool, a: Delete) -> Result<(), CliError> {
    input::confirm(yes || a.write.validate_only, &format!("This deletes {} of a subject", a.fields.join(", ")))?;
    let request = pb::DeleteFieldsRequest {
        subject: a.subject,
        select: Some(pb::Selector { field_ids: s.numbers(Noun::Field, &a.fields).await?, ..Default::default() }),
        context: a.context.context(s).await?,
        request_id: a.write.id(s),
        etag: a.etag.unwrap_or_default(),
        validate_only: a.write.validate_only,
    };
    let answer = s.records().delete_fields(request).await?.into_inner();
    let cols = [Col("ETAG", "etag"), Col("DELETED", "deleted_field_ids|field"), Col("COMMITTED", "commit_time")];
    s.out.record(&answer, &cols, &s.names_if_any().await)
}

/// `find`
#[derive(Debug, Args)]
#[command(after_help = "The term is the first line of standard input. Values are shown only with --values.

Examples:
  echo ana@example.com | pii-vault find email -p support
  echo ana@example.com | pii-vault find email -p support --values -f name,phone")]
pub struct Find {
    /// Searchable field by name or number
    field: String,
    #[command(flatten)]
    context: ContextArgs,
    /// How to compare: exact, prefix, suffix, domain
    #[arg(long, value_parser = args::term_kind, default_value = "exact")]
    kind: i32,
    /// Only subjects of this group
    #[arg(long)]
    group: Option<String>,
    /// Also read and show values: those of --field and --class, or all
    #[arg(long)]
    values: bool,
    /// Field to read; may be repeated
    #[arg(long = "field", short = 'f', value_name = "FIELD", value_delimiter = ',', requires = "values")]
    fields: Vec<String>,
    /// Every single-valued field of a class; may be repeated
    #[arg(long = "class", short = 'c', value_name = "CLASS", value_delimiter = ',', requires = "values")]
    classes: Vec<String>,
    /// How to show the values: plain, masked, token
    #[arg(long, value_parser = args::view, requires = "values")]
    view: Option<i32>,
    #[command(flatten)]
    list: ListArgs,
}

/// `find`
pub async fn find(s: &Session, a: Find) -> Result<(), CliError> {
    let field_id = s.number(Noun::Field, &a.field).await?;
    let text = input::line(&a.field)?.to_string();
    let term = pb::Term { field_id, field: String::new(), kind: a.kind, text };
    let select = SelectArgs { fields: a.fields, classes: a.classes };
    // With values and no fields named, an empty selector asks for all of them; without values there is none.
    let select = if a.values { Some(select.select(s).await?.unwrap_or_default()) } else { None };
    let request = pb::FindSubjectsRequest {
        term: Some(term),
        context: a.context.context(s).await?,
        select,
        view: a.view.unwrap_or(0),
        group: a.group.unwrap_or_default(),
        page_size: 0,
        page_token: String::new(),
    };
    let mut page = a
        .list
        .pages(|page_size, page_token| {
            let mut client = s.subjects();
            let request = pb::FindSubjectsRequest { page_size, page_token, ..request.clone() };
            async move {
                let answer = client.find_subjects(request).await?.into_inner();
                Ok((answer.subjects, answer.next_page_token))
            }
        })
        .await?;
    let names = s.names_if_any().await;
    if s.out.json || !a.values {
        for found in &mut page.items {
            values::name_values(&names, &mut found.values);
        }
        return s.out.list("subjects", &page, &[Col("SUBJECT", "subject"), Col("STATE", "state")], &names);
    }
    let row = |found: &pb::FoundSubject| -> Vec<Vec<String>> {
        let with_id = |v| [vec![printable(&found.subject)], value_row(&names, v)].concat();
        found.values.iter().map(with_id).collect()
    };
    s.out.rows(&["SUBJECT", "FIELD", "VALUE", "VIEW", "EXPIRES"], page.items.iter().flat_map(row).collect())?;
    if page.items.is_empty() {
        note("no subjects");
    }
    Ok(())
}

/// `item`
#[derive(Debug, Subcommand)]
pub enum Item {
    /// Add items to a many-valued field; each line of standard input is one
    #[command(after_help = "Examples:
  pii-vault item append u-17 -p delivery --field message < messages.txt
  echo '{\"value\":\"Hello\",\"origin_time\":\"2026-11-01T10:00:00Z\"}' | \\
    pii-vault item append u-17 -p delivery --field message --jsonl")]
    Append(Append),
    /// List items of a many-valued field, oldest first
    #[command(after_help = "Example:
  pii-vault item list u-17 -p support --field message --from 2026-11-01 --limit 20")]
    List(ListItems),
    /// Show one item
    #[command(after_help = "Example:
  pii-vault item get u-17 -p support --field message --item 0000018bcfe56800-12345")]
    Get(GetItem),
    /// Delete items, which is not an erasure (`erase items` erases)
    #[command(after_help = "Example:
  pii-vault item delete u-17 -p service --field message --item ITEM --yes")]
    Delete(DeleteItems),
}

#[derive(Debug, Args)]
pub struct Append {
    /// Id of the subject
    subject: String,
    /// Many-valued field by name or number
    #[arg(long, short = 'f')]
    field: String,
    #[command(flatten)]
    context: ContextArgs,
    /// Lines are JSON: {"value": ..., "origin_time": "..."}
    #[arg(long)]
    jsonl: bool,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, Args)]
pub struct ListItems {
    #[command(flatten)]
    key: KeyArgs,
    /// Many-valued field by name or number
    #[arg(long, short = 'f')]
    field: String,
    #[command(flatten)]
    context: ContextArgs,
    /// How to show the values: plain, masked, token
    #[arg(long, value_parser = args::view)]
    view: Option<i32>,
    /// Only items that arose at or after this
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    from: Option<Moment>,
    /// Only items that arose before this
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    to: Option<Moment>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Args)]
pub struct GetItem {
    #[command(flatten)]
    key: KeyArgs,
    /// Many-valued field by name or number
    #[arg(long, short = 'f')]
    field: String,
    /// Name of the item
    #[arg(long)]
    item: String,
    #[command(flatten)]
    context: ContextArgs,
    /// How to show the value: plain, masked, token
    #[arg(long, value_parser = args::view)]
    view: Option<i32>,
}

#[derive(Debug, Args)]
pub struct DeleteItems {
    /// Id of the subject
    subject: String,
    /// Many-valued field by name or number
    #[arg(long, short = 'f')]
    field: String,
    /// Name of an item; may be repeated
    #[arg(long = "item", value_name = "ITEM", required = true)]
    items: Vec<String>,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    write: WriteArgs,
}

/// `item`
pub async fn item(s: &Session, yes: bool, command: Item) -> Result<(), CliError> {
    match command {
        Item::Append(a) => append(s, a).await,
        Item::List(a) => list_items(s, a).await,
        Item::Get(a) => {
            let request = pb::GetItemRequest {
                key: Some(a.key.key(s).await?),
                field_id: s.number(Noun::Field, &a.field).await?,
                field: String::new(),
                item: a.item,
                context: a.context.context(s).await?,
                view: a.view.unwrap_or(0),
            };
            let answer = s.records().get_item(request).await?.into_inner();
            show_items(s, Page { items: answer.item.into_iter().collect(), more: false }).await
        }
        Item::Delete(a) => {
            input::confirm(yes || a.write.validate_only, &format!("This deletes {} items", a.items.len()))?;
            let request = pb::DeleteItemsRequest {
                subject: a.subject,
                field_id: s.number(Noun::Field, &a.field).await?,
                field: String::new(),
                items: a.items,
                context: a.context.context(s).await?,
                request_id: a.write.id(s),
                validate_only: a.write.validate_only,
            };
            let answer = s.records().delete_items(request).await?.into_inner();
            let cols = [Col("DELETED", "deleted_count"), Col("COMMITTED", "commit_time")];
            s.out.record(&answer, &cols, &Names::default())
        }
    }
}

async fn append(s: &Session, a: Append) -> Result<(), CliError> {
    let names = s.names().await?;
    let field_id = s.number(Noun::Field, &a.field).await?;
    let mut items = Vec::new();
    for line in input::lines() {
        let (number, line) = line?;
        let (value, origin_time) = if a.jsonl {
            let what = format!("line {number}");
            let json: Json = serde_json::from_str(&line).map_err(|e| not_json(&what, &e))?;
            let bad = || CliError::Usage(format!("{what}: needs {{\"value\": ..., \"origin_time\": \"...\"}}"));
            let value = values::from_json(names, field_id, json.get("value").ok_or_else(bad)?)?;
            let origin = match json.get("origin_time") {
                None => None,
                Some(Json::String(text)) => Some(wire_time(Moment::parse(text).map_err(|_| bad())?.resolve(s.now()))),
                Some(_) => return Err(bad()),
            };
            (value, origin)
        } else {
            (values::from_text(names, field_id, &line)?, None)
        };
        items.push(pb::NewItem { values: vec![value], origin_time });
    }
    if items.is_empty() || items.len() > 1_000 {
        return Err(CliError::Usage(format!("1 to 1,000 items in one commit, here are {}", items.len())));
    }
    let request = pb::AppendItemsRequest {
        subject: a.subject,
        field_id,
        field: String::new(),
        items,
        context: a.context.context(s).await?,
        request_id: a.write.id(s),
        validate_only: a.write.validate_only,
    };
    let answer = s.records().append_items(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&values::wire(&answer));
    }
    s.out.table(&answer.items, &[Col("ITEM", "item"), Col("EXPIRES", "expire_time")], names)
}

async fn list_items(s: &Session, a: ListItems) -> Result<(), CliError> {
    let request = pb::ListItemsRequest {
        key: Some(a.key.key(s).await?),
        field_id: s.number(Noun::Field, &a.field).await?,
        field: String::new(),
        context: a.context.context(s).await?,
        view: a.view.unwrap_or(0),
        start_time: args::at(s, a.from),
        end_time: args::at(s, a.to),
        page_size: 0,
        page_token: String::new(),
    };
    let page = a
        .list
        .pages(|page_size, page_token| {
            let mut client = s.records();
            let request = pb::ListItemsRequest { page_size, page_token, ..request.clone() };
            async move {
                let answer = client.list_items(request).await?.into_inner();
                Ok((answer.items, answer.next_page_token))
            }
        })
        .await?;
    show_items(s, page).await
}

async fn show_items(s: &Session, mut page: Page<pb::Item>) -> Result<(), CliError> {
    let names = s.names_if_any().await;
    if s.out.json {
        for item in &mut page.items {
            values::name_values(&names, &mut item.values);
        }
        let items: Vec<Json> = page.items.iter().map(values::wire).collect();
        return s.out.document(&json!({ "items": items, "more": page.more }));
    }
    let time = |t: &Option<prost_types::Timestamp>| t.as_ref().map(values::time_text).unwrap_or_default();
    let row = |item: &pb::Item| {
        let text = item.values.iter().map(values::to_text).collect::<Vec<_>>().join(", ");
        vec![printable(&item.item), time(&item.origin_time), time(&item.expire_time), printable(&text)]
    };
    s.out.rows(&["ITEM", "ORIGIN", "EXPIRES", "VALUE"], page.items.iter().map(row).collect())?;
    match (page.items.len(), page.more) {
        (0, _) => note("no items"),
        (n, true) => note(&format!("there are more than {n}; --limit 0 shows all")),
        _ => {}
    }
    Ok(())
}
