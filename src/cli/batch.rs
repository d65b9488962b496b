//! `batch put` and `batch get`: JSON Lines in, JSON Lines out, a thousand subjects a call.

use crate::cli::args::{self, ContextArgs, SelectArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::records::not_json;
use crate::cli::session::Session;
use crate::cli::values;
use crate::grpc::pb;
use clap::{Args, Subcommand};
use prost::Message as _;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

/// Elements of one call, and their bytes: below the 4 MiB that the server decodes.
const MAX_ELEMENTS: usize = 1_000;
const MAX_ATOMIC: usize = 100;
const MAX_BYTES: usize = 3 * 1024 * 1024;

/// `batch`
#[derive(Debug, Subcommand)]
pub enum Batch {
    /// Write fields of many subjects; each line of standard input is one
    #[command(
        after_help = "A line: {\"subject\": \"u-17\", \"fields\": {\"email\": \"...\"}, \"group\": \"acme\", \"mode\": \"create\", \"etag\": \"...\"}
Output: a line for each line of input, {\"line\": 1, \"subject\": ..., \"etag\": ...} or {..., \"error\": {...}}.
Exit code 8 when some of them failed.

Example:
  pii-vault batch put -p service < people.jsonl > outcome.jsonl"
    )]
    Put(BatchPut),
    /// Read fields of many subjects; each line of standard input is a subject's id, or {\"subject\": \"...\"}
    #[command(
        after_help = "Output: a line for each line of input, {\"line\": 1, \"subject\": ..., \"fields\": {...}} or {..., \"error\": {...}}.
Exit code 8 when some of them failed.

Example:
  pii-vault batch get -p export -f email,phone < ids.txt > people.jsonl"
    )]
    Get(BatchGet),
}

#[derive(Debug, Args)]
pub struct BatchPut {
    #[command(flatten)]
    context: ContextArgs,
    /// All in one commit or none; at most 100 lines
    #[arg(long)]
    atomic: bool,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, Args)]
pub struct BatchGet {
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// How to show the values: plain, masked, token
    #[arg(long, value_parser = args::view)]
    view: Option<i32>,
    /// Show what is allowed when not everything is
    #[arg(long)]
    partial: bool,
}

/// `batch`
pub async fn batch(s: &Session, command: Batch) -> Result<(), CliError> {
    match command {
        Batch::Put(a) => put(s, a).await,
        Batch::Get(a) => get(s, a).await,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutLine {
    subject: String,
    #[serde(default)]
    fields: Map<String, Json>,
    #[serde(default)]
    group: String,
    mode: Option<String>,
    #[serde(default)]
    etag: String,
    #[serde(default)]
    erase_former: bool,
}

/// How many of how many failed.
#[derive(Default)]
struct Count {
    failed: usize,
    total: usize,
}

impl Count {
    fn result(self) -> Result<(), CliError> {
        match self.failed {
            0 => Ok(()),
            failed => Err(CliError::Partly { failed, total: self.total }),
        }
    }
}

async fn put(s: &Session, a: BatchPut) -> Result<(), CliError> {
    if a.write.request_id.is_some() && !a.atomic {
        // A second chunk under the same id would be another body.
        return Err(CliError::Usage("--request-id needs --atomic: other batches may take several calls".into()));
    }
    let names = s.names().await?;
    let context = a.context.context(s).await?;
    let bar = s.out.progress(0, "written");
    let mut count = Count::default();
    let mut chunk: Vec<(usize, pb::SubjectPut)> = Vec::new();
    let mut bytes = 0;
    for line in input::lines() {
        let (number, line) = line?;
        let element = put_line(names, number, &line)?;
        let size = element.encoded_len() + 8;
        if !chunk.is_empty() && !a.atomic && (chunk.len() == MAX_ELEMENTS || bytes + size > MAX_BYTES) {
            send_puts(s, &a, &context, std::mem::take(&mut chunk), &mut count).await?;
            bar.set_position(count.total as u64);
            bytes = 0;
        }
        bytes += size;
        chunk.push((number, element));
        if a.atomic && chunk.len() > MAX_ATOMIC {
            return Err(CliError::Usage(format!("--atomic takes at most {MAX_ATOMIC} lines")));
        }
    }
    if !chunk.is_empty() {
        send_puts(s, &a, &context, chunk, &mut count).await?;
    }
    bar.finish_and_clear();
    count.result()
}

fn put_line(names: &crate::cli::names::Names, number: usize, line: &str) -> Result<pb::SubjectPut, CliError> {
    let what = format!("line {number}");
    // serde's own message could repeat a value, so only the place is told.
    let line: PutLine = serde_json::from_str(line).map_err(|e| match e.is_data() {
        true => CliError::Usage(format!(
            "{what}: needs {{\"subject\", \"fields\", \"group\", \"mode\", \"etag\", \"erase_former\"}}, column {}",
            e.column()
        )),
        false => not_json(&what, &e),
    })?;
    let mode = line.mode.as_deref().map(args::write_mode).transpose();
    Ok(pb::SubjectPut {
        subject: line.subject,
        values: values::from_object(names, &line.fields).map_err(|e| CliError::Usage(format!("{what}: {e}")))?,
        mode: mode.map_err(|e| CliError::Usage(format!("{what}: mode: {e}")))?.unwrap_or(0),
        group: line.group,
        consents: Vec::new(),
        etag: line.etag,
        erase_former: line.erase_former,
    })
}

async fn send_puts(
    s: &Session,
    a: &BatchPut,
    context: &Option<pb::AccessContext>,
    chunk: Vec<(usize, pb::SubjectPut)>,
    count: &mut Count,
) -> Result<(), CliError> {
    let (lines, puts): (Vec<usize>, Vec<pb::SubjectPut>) = chunk.into_iter().unzip();
    let subjects: Vec<String> = puts.iter().map(|p| p.subject.clone()).collect();
    let request = pb::BatchPutFieldsRequest {
        puts,
        context: context.clone(),
        atomic: a.atomic,
        request_id: a.write.id(s),
        validate_only: a.write.validate_only,
    };
    let answer = s.records().batch_put_fields(request).await?.into_inner();
    expect_all(answer.outcomes.len(), lines.len())?;
    for ((line, subject), outcome) in lines.iter().zip(&subjects).zip(answer.outcomes) {
        count.total += 1;
        let mut told = json!({ "line": line, "subject": subject });
        match outcome.outcome {
            Some(pb::put_outcome::Outcome::Put(put)) => merge(&mut told, values::wire(&put)),
            Some(pb::put_outcome::Outcome::Error(error)) => fail(&mut told, &error, count),
            None => fail(&mut told, &pb::ItemError::default(), count),
        }
        s.out.json_line(&told)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetLine {
    subject: String,
}

async fn get(s: &Session, a: BatchGet) -> Result<(), CliError> {
    let request = pb::BatchGetFieldsRequest {
        keys: Vec::new(),
        select: a.select.select(s).await?,
        context: a.context.context(s).await?,
        view: a.view.unwrap_or(0),
        partial: if a.partial { pb::Partial::Allowed as i32 } else { 0 },
    };
    let bar = s.out.progress(0, "read");
    let mut count = Count::default();
    // Answers are larger than questions: fewer subjects a call than the API allows.
    let mut chunk: Vec<(usize, String)> = Vec::new();
    for line in input::lines() {
        let (number, line) = line?;
        chunk.push((number, subject_of(number, &line)?));
        if chunk.len() == 250 {
            send_gets(s, &request, std::mem::take(&mut chunk), &mut count).await?;
            bar.set_position(count.total as u64);
        }
    }
    if !chunk.is_empty() {
        send_gets(s, &request, chunk, &mut count).await?;
    }
    bar.finish_and_clear();
    count.result()
}

/// The id on a line: as it is, as a JSON string, or in an object.
pub fn subject_of(number: usize, line: &str) -> Result<String, CliError> {
    let what = format!("line {number}");
    let text = line.trim();
    if text.starts_with('{') {
        let parsed: Result<GetLine, _> = serde_json::from_str(text);
        return parsed
            .map(|l| l.subject)
            .map_err(|_| CliError::Usage(format!("{what}: needs {{\"subject\": \"...\"}}")));
    }
    if text.starts_with('"') {
        return serde_json::from_str(text).map_err(|e| not_json(&what, &e));
    }
    Ok(text.to_string())
}

async fn send_gets(
    s: &Session,
    request: &pb::BatchGetFieldsRequest,
    chunk: Vec<(usize, String)>,
    count: &mut Count,
) -> Result<(), CliError> {
    let keys = chunk.iter().map(|(_, subject)| args::subject_key(subject)).collect();
    let request = pb::BatchGetFieldsRequest { keys, ..request.clone() };
    let answer = s.records().batch_get_fields(request).await?.into_inner();
    expect_all(answer.outcomes.len(), chunk.len())?;
    let names = s.names_if_any().await;
    for ((line, subject), outcome) in chunk.iter().zip(answer.outcomes) {
        count.total += 1;
        let mut told = json!({ "line": line, "subject": subject });
        match outcome.outcome {
            Some(pb::get_outcome::Outcome::Result(result)) => {
                told["fields"] = values::to_object(&names, &result.values);
                told["etag"] = Json::String(result.etag.clone());
                let absent: Map<String, Json> = result
                    .values
                    .iter()
                    .filter(|v| v.kind.is_none())
                    .map(|v| {
                        let name = names.name(crate::cli::names::Noun::Field, v.field_id);
                        (name, Json::from(v.absence().as_str_name()))
                    })
                    .collect();
                if !absent.is_empty() {
                    told["absent"] = Json::Object(absent);
                }
            }
            Some(pb::get_outcome::Outcome::Error(error)) => fail(&mut told, &error, count),
            None => fail(&mut told, &pb::ItemError::default(), count),
        }
        s.out.json_line(&told)?;
    }
    Ok(())
}

fn expect_all(got: usize, asked: usize) -> Result<(), CliError> {
    if got == asked {
        return Ok(());
    }
    Err(CliError::Unexpected(format!("the server answered {got} outcomes for {asked} elements")))
}

fn fail(told: &mut Json, error: &pb::ItemError, count: &mut Count) {
    count.failed += 1;
    told["error"] = values::wire(error);
    told["error"]["code"] = Json::from(crate::cli::error::code_name(tonic::Code::from(error.code)));
}

fn merge(told: &mut Json, more: Json) {
    if let (Json::Object(told), Json::Object(more)) = (told, more) {
        told.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::names::Names;

    #[test]
    fn ids_come_in_three_forms() {
        for line in ["u-1", "\"u-1\"", "{\"subject\":\"u-1\"}", " u-1 "] {
            assert_eq!(subject_of(1, line).unwrap(), "u-1");
        }
        assert!(subject_of(1, "{\"id\":\"u-1\"}").is_err());
    }

    #[test]
    fn a_bad_line_is_named_by_its_number_and_not_repeated() {
        for line in [
            "{\"subject\":\"canary\",\"x\":1}",
            "{\"subject\":{\"canary\":1}}",
            "canary",
            "{\"subject\":\"s\",\"mode\":\"no\"}",
        ] {
            let error = put_line(&Names::default(), 7, line).unwrap_err().to_string();
            assert!(error.contains("line 7") && !error.contains("canary"), "{error}");
        }
    }
}
