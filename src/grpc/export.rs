//! The document of an export and its chunks: one JSON object, or CSV by RFC 4180. The same export gives the same bytes,
//! so an interrupted stream goes on at an offset and the SHA-256 in the last chunk covers the whole document.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use data_encoding::BASE64;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::Status;
use zeroize::Zeroizing;

use crate::access::View;
use crate::clock::Timestamp;
use crate::grpc::pb;
use crate::grpc::status::{bad_field, internal};
use crate::grpc::words::item_name;
use crate::ids::FieldNo;
use crate::policy::file::Controller;
use crate::policy::value::Value;
use crate::vault::export::{Export, ExportRow};
use crate::vault::{Vault, VaultError};

/// Bytes of the document in one chunk; with its numbers a chunk stays below 64 KiB.
const CHUNK: usize = 60 << 10;
/// Chunks made ahead of a client that reads slowly.
const AHEAD: usize = 4;

/// Form of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    Csv,
}

/// The answer's stream.
pub struct Chunks(mpsc::Receiver<Result<pb::ExportSubjectResponse, Status>>);

impl tokio_stream::Stream for Chunks {
    type Item = Result<pb::ExportSubjectResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Writes the document in a task of its own, as fast as the client reads; stops when the client goes away.
pub fn stream(vault: Arc<Vault>, export: Export, form: Form, offset: u64) -> Chunks {
    let (to, from) = mpsc::channel(AHEAD);
    let etag = export.etag.clone();
    tokio::spawn(async move {
        let mut cutter = Cutter::new(offset, etag);
        let end = write(&vault, export, form, &mut cutter, &to).await;
        // A closed channel is a client that went away: nobody is left to be told.
        let _ = match end {
            Ok(()) => to.send(cutter.finish()).await,
            Err(Stop::Failed(status)) => to.send(Err(status)).await,
            Err(Stop::Gone) => Ok(()),
        };
    });
    Chunks(from)
}

enum Stop {
    Failed(Status),
    Gone,
}

impl From<VaultError> for Stop {
    fn from(error: VaultError) -> Self {
        Stop::Failed(error.into())
    }
}

async fn write(
    vault: &Vault,
    mut export: Export,
    form: Form,
    cutter: &mut Cutter,
    to: &mpsc::Sender<Result<pb::ExportSubjectResponse, Status>>,
) -> Result<(), Stop> {
    let mut document = Document::begin(form, &export)?;
    loop {
        let rows = vault.export_next(&mut export).await?;
        let last = rows.is_none();
        for row in rows.into_iter().flatten() {
            document.row(&export, row)?;
        }
        if last {
            document.end()?;
        }
        cutter.push(&document.take());
        while let Some(chunk) = cutter.full() {
            to.send(Ok(chunk)).await.map_err(|_| Stop::Gone)?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Cuts the document's bytes from an offset on into chunks, and hashes all of them.
struct Cutter {
    hash: Sha256,
    /// Bytes of the document so far.
    seen: u64,
    skip: u64,
    waiting: Zeroizing<Vec<u8>>,
    /// Position of `waiting` in the document.
    at: u64,
    etag: Option<String>,
}

impl Cutter {
    fn new(offset: u64, etag: String) -> Self {
        let waiting = Zeroizing::new(Vec::with_capacity(2 * CHUNK));
        Cutter { hash: Sha256::new(), seen: 0, skip: offset, waiting, at: offset, etag: Some(etag) }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        let skipped = self.skip.saturating_sub(self.seen).min(bytes.len() as u64) as usize;
        self.seen += bytes.len() as u64;
        self.waiting.extend_from_slice(&bytes[skipped..]);
    }

    /// A chunk, when there is more than one chunk's worth: the last one is for [`Self::finish`].
    fn full(&mut self) -> Option<pb::ExportSubjectResponse> {
        (self.waiting.len() > CHUNK).then(|| self.cut(CHUNK))
    }

    fn cut(&mut self, len: usize) -> pb::ExportSubjectResponse {
        let data: Vec<u8> = self.waiting.drain(..len).collect();
        let offset = self.at;
        self.at += len as u64;
        let etag = self.etag.take().unwrap_or_default();
        pb::ExportSubjectResponse { data: data.into(), offset, etag, ..Default::default() }
    }

    fn finish(mut self) -> Result<pb::ExportSubjectResponse, Status> {
        if self.skip > self.seen {
            return Err(bad_field("offset", "is behind the end of the document"));
        }
        let mut chunk = self.cut(self.waiting.len());
        chunk.last = true;
        chunk.sha256 = self.hash.finalize().to_vec().into();
        Ok(chunk)
    }
}

/// The document as it grows.
struct Document {
    form: Form,
    out: Zeroizing<Vec<u8>>,
    /// The many-valued field whose list is open (JSON).
    list: Option<FieldNo>,
    /// Whether something was written into the object or list that is open (JSON).
    filled: bool,
    in_items: bool,
}

#[derive(Serialize)]
struct Head<'a> {
    format: &'static str,
    controller: &'a Controller,
    policy_version: u32,
    subject: &'a str,
    exported_at: String,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    item: Option<String>,
    value: JsonValue<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonValue<'a> {
    Text(&'a str),
    Made(String),
    Integer(i64),
    Number(f64),
    Flag(bool),
}

fn json_value(value: &Value) -> JsonValue<'_> {
    match value {
        Value::Text(text) => JsonValue::Text(text.expose()),
        Value::Data(data) => JsonValue::Made(BASE64.encode(data.expose())),
        Value::Integer(n) => JsonValue::Integer(*n),
        Value::Number(n) => JsonValue::Number(*n),
        Value::Flag(flag) => JsonValue::Flag(*flag),
        Value::Date(date) => JsonValue::Made(date.to_string()),
        Value::Time(time) => JsonValue::Made(rfc3339(*time)),
    }
}

fn csv_value(value: &Value) -> Zeroizing<String> {
    Zeroizing::new(match value {
        Value::Text(text) => text.expose().clone(),
        Value::Data(data) => BASE64.encode(data.expose()),
        Value::Integer(n) => n.to_string(),
        Value::Number(n) => n.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Date(date) => date.to_string(),
        Value::Time(time) => rfc3339(*time),
    })
}

/// RFC 3339 in UTC with milliseconds; years 1 to 9999.
fn rfc3339(time: Timestamp) -> String {
    let known = jiff::Timestamp::from_millisecond(time.0).map(|t| format!("{t:.3}"));
    known.unwrap_or_else(|_| format!("{} ms", time.0))
}

impl Document {
    fn begin(form: Form, export: &Export) -> Result<Self, Stop> {
        let mut out = Zeroizing::new(Vec::with_capacity(8 << 10));
        match form {
            Form::Json => {
                let head = Head {
                    format: "pii-vault export v1",
                    controller: export.policy.controller(),
                    policy_version: export.policy.version().0,
                    subject: export.subject.as_str(),
                    exported_at: rfc3339(export.as_of),
                };
                json(&mut out, &head)?;
                out.pop(); // the closing brace: fields and items follow
                out.extend_from_slice(b",\"fields\":{");
            }
            Form::Csv => csv_line(&mut out, ["field", "item", "origin_time", "expire_time", "value"])?,
        }
        Ok(Document { form, out, list: None, filled: false, in_items: false })
    }

    fn row(&mut self, export: &Export, row: ExportRow) -> Result<(), Stop> {
        let name = export.policy.field(row.field).map_or("", |rule| rule.name.as_str());
        let item = row.item.map(item_name);
        let (origin_time, expire_time) = (row.origin.map(rfc3339), row.expire.map(rfc3339));
        if self.form == Form::Csv {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let value = csv_value(&row.value);
            return csv_line(&mut self.out, [name, &text(&item), &text(&origin_time), &text(&expire_time), &value]);
        }
        if row.item.is_some() && self.list != Some(row.field) {
            self.close_list();
            if !self.in_items {
                self.out.extend_from_slice(b"},\"items\":{");
                self.in_items = true;
            } else {
                self.out.push(b',');
            }
            json(&mut self.out, name)?;
            self.out.extend_from_slice(b":[");
            (self.list, self.filled) = (Some(row.field), false);
        }
        if std::mem::replace(&mut self.filled, true) {
            self.out.push(b',');
        }
        if row.item.is_none() {
            json(&mut self.out, name)?;
            self.out.push(b':');
        }
        let view = (row.view == View::Masked).then_some("masked");
        json(&mut self.out, &JsonRow { item, value: json_value(&row.value), origin_time, expire_time, view })
    }

    fn close_list(&mut self) {
        if self.list.take().is_some() {
            self.out.push(b']');
        }
    }

    fn end(&mut self) -> Result<(), Stop> {
        if self.form == Form::Json {
            self.close_list();
            self.out.extend_from_slice(if self.in_items { b"}}\n" } else { b"},\"items\":{}}\n" });
        }
        Ok(())
    }

    fn take(&mut self) -> Zeroizing<Vec<u8>> {
        std::mem::replace(&mut self.out, Zeroizing::new(Vec::with_capacity(8 << 10)))
    }
}

fn json<T: Serialize + ?Sized>(out: &mut Zeroizing<Vec<u8>>, value: &T) -> Result<(), Stop> {
    serde_json::to_writer(&mut **out, value).map_err(|_| Stop::Failed(internal()))
}

fn csv_line(out: &mut Zeroizing<Vec<u8>>, cells: [&str; 5]) -> Result<(), Stop> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(&mut **out);
    let written = writer.write_record(cells).is_ok() && writer.flush().is_ok();
    if written { Ok(()) } else { Err(Stop::Failed(internal())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(document: &[u8], offset: u64) -> Result<Vec<pb::ExportSubjectResponse>, Status> {
        let mut cutter = Cutter::new(offset, "e".into());
        let mut out = Vec::new();
        for part in document.chunks(7_000) {
            cutter.push(part);
            while let Some(chunk) = cutter.full() {
                out.push(chunk);
            }
        }
        out.push(cutter.finish()?);
        Ok(out)
    }

    #[test]
    fn an_export_goes_on_at_any_byte() {
        let document: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let hash = Sha256::digest(&document).to_vec();
        for offset in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 199_999, 200_000] {
            let chunks = chunks(&document, offset as u64).unwrap();
            let data: Vec<u8> = chunks.iter().flat_map(|c| c.data.iter().copied()).collect();
            assert_eq!(data, document[offset..], "from {offset}");
            let mut at = offset as u64;
            for (i, chunk) in chunks.iter().enumerate() {
                let last = i + 1 == chunks.len();
                assert!(chunk.offset == at && chunk.data.len() <= CHUNK && chunk.last == last);
                assert_eq!((chunk.etag == "e", !chunk.sha256.is_empty()), (i == 0, last));
                at += chunk.data.len() as u64;
            }
            assert_eq!(chunks.last().unwrap().sha256, hash);
        }
        assert!(chunks(&document, 200_001).is_err());
    }

    #[test]
    fn cells_are_quoted_by_rfc_4180() {
        let mut out = Zeroizing::new(Vec::new());
        assert!(csv_line(&mut out, ["name", "", "", "", "Lee, \"Ann\"\r\n2nd"]).is_ok());
        assert_eq!(&out[..], b"name,,,,\"Lee, \"\"Ann\"\"\r\n2nd\"\r\n");
        let mut all = csv::ReaderBuilder::new().has_headers(false).from_reader(&out[..]);
        assert_eq!(&all.records().next().unwrap().unwrap()[4], "Lee, \"Ann\"\r\n2nd");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
    }
}
