//! `export`: everything about a subject as one document, taken up again where it broke off.

use crate::cli::args::{self, ContextArgs, KeyArgs, SelectArgs};
use crate::cli::error::CliError;
use crate::cli::output::note;
use crate::cli::profile::write_private;
use crate::cli::session::Session;
use crate::grpc::pb;
use clap::Args;
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Code;

/// How often one run takes up a broken stream.
const RETRIES: u32 = 5;

/// `export`
#[derive(Debug, Args)]
#[command(
    after_help = "With --output the document grows in FILE.part and becomes FILE when it is whole and its checksum fits; a run
that broke off is taken up by the next one. Only the owner can read the file.

Examples:
  pii-vault export u-17 -p subject_access --output ana.json
  pii-vault export u-17 -p subject_access --format csv > ana.csv"
)]
pub struct Export {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    context: ContextArgs,
    /// Form of the document: json, csv
    #[arg(long, value_parser = args::export_format, default_value = "json")]
    format: i32,
    /// How to show the values: plain, masked, token
    #[arg(long, value_parser = args::view)]
    view: Option<i32>,
    /// File to write [default: standard output]
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Where the document goes, and how far it is.
struct Sink {
    part: Option<Part>,
    written: u64,
    hash: Sha256,
    etag: String,
}

struct Part {
    path: PathBuf,
    note: PathBuf,
    file: fs::File,
}

/// `export`
pub async fn export(s: &Session, a: Export) -> Result<(), CliError> {
    let s = s.patient();
    let mut request = pb::ExportSubjectRequest {
        key: Some(a.key.key(&s).await?),
        select: a.select.select(&s).await?,
        context: a.context.context(&s).await?,
        format: a.format,
        offset: 0,
        etag: String::new(),
        view: a.view.unwrap_or(0),
    };
    let mut sink = match &a.output {
        Some(path) => Sink::open(path, fingerprint(&request))?,
        None => Sink { part: None, written: 0, hash: Sha256::new(), etag: String::new() },
    };
    let mut tries = 0;
    let sha256 = loop {
        request.offset = sink.written;
        request.etag = sink.etag.clone();
        match stream(&s, &request, &mut sink).await {
            Ok(sha256) => break sha256,
            Err(CliError::Status(status))
                if sink.written > 0 && status.code() == Code::Aborted && sink.part.is_some() =>
            {
                note("the subject changed meanwhile; the export starts again");
                sink.restart()?;
            }
            Err(CliError::Status(status))
                if sink.written > 0 && status.code() == Code::Unavailable && tries < RETRIES =>
            {
                tries += 1;
                note(&format!("the connection broke after {} bytes; going on from there", sink.written));
                tokio::time::sleep(Duration::from_millis(200 << tries)).await;
            }
            Err(e) => return Err(e),
        }
    };
    let found = sink.hash.clone().finalize();
    if found[..] != sha256[..] {
        return Err(CliError::CheckFailed("the checksum of the document does not fit; it was not kept".into()));
    }
    if let (Some(part), Some(path)) = (sink.part, &a.output) {
        part.file.sync_all().map_err(CliError::io(part.path.display().to_string()))?;
        fs::rename(&part.path, path).map_err(CliError::io(path.display().to_string()))?;
        let _ = fs::remove_file(&part.note);
        note(&format!("{} bytes, SHA-256 {}", sink.written, HEXLOWER.encode(&found)));
    }
    Ok(())
}

/// One stream to its end; answers the checksum of the last chunk.
async fn stream(s: &Session, request: &pb::ExportSubjectRequest, sink: &mut Sink) -> Result<Vec<u8>, CliError> {
    let mut stream = s.records().export_subject(request.clone()).await?.into_inner();
    while let Some(chunk) = stream.message().await? {
        if chunk.offset != sink.written {
            let (got, at) = (chunk.offset, sink.written);
            return Err(CliError::Unexpected(format!("a chunk for byte {got} came at byte {at}")));
        }
        if !chunk.etag.is_empty() {
            sink.set_etag(&chunk.etag, request)?;
        }
        sink.write(s, &chunk.data)?;
        if chunk.last {
            return Ok(chunk.sha256.to_vec());
        }
    }
    Err(CliError::Status(Box::new(tonic::Status::unavailable("the stream ended before the document did"))))
}

impl Sink {
    fn open(path: &Path, fingerprint: String) -> Result<Self, CliError> {
        let beside = |suffix: &str| {
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(suffix);
            path.with_file_name(name)
        };
        let (part, note) = (beside(".part"), beside(".part.etag"));
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&part)
            .map_err(CliError::io(part.display().to_string()))?;
        let mut sink = Sink { part: None, written: 0, hash: Sha256::new(), etag: String::new() };
        // The note says which export the part belongs to; a part of another one is thrown away.
        let known = fs::read_to_string(&note).unwrap_or_default();
        match known.split_once('\n') {
            Some((of, etag)) if of == fingerprint => {
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    let read = file.read(&mut buffer).map_err(CliError::io(part.display().to_string()))?;
                    if read == 0 {
                        break;
                    }
                    sink.hash.update(&buffer[..read]);
                    sink.written += read as u64;
                }
                sink.etag = if sink.written > 0 { etag.to_string() } else { String::new() };
                zeroize::Zeroize::zeroize(&mut buffer);
            }
            _ => file.set_len(0).map_err(CliError::io(part.display().to_string()))?,
        }
        sink.part = Some(Part { path: part, note, file });
        Ok(sink)
    }

    fn restart(&mut self) -> Result<(), CliError> {
        if let Some(part) = &mut self.part {
            let again = part.file.set_len(0).and_then(|()| part.file.seek(SeekFrom::Start(0)).map(|_| ()));
            again.map_err(CliError::io(part.path.display().to_string()))?;
        }
        self.written = 0;
        self.hash = Sha256::new();
        self.etag.clear();
        Ok(())
    }

    fn set_etag(&mut self, etag: &str, request: &pb::ExportSubjectRequest) -> Result<(), CliError> {
        if let Some(part) = &self.part
            && self.etag != etag
        {
            write_private(&part.note, format!("{}\n{etag}", fingerprint(request)).as_bytes())?;
        }
        self.etag = etag.to_string();
        Ok(())
    }

    fn write(&mut self, s: &Session, data: &[u8]) -> Result<(), CliError> {
        match &mut self.part {
            Some(part) => part.file.write_all(data).map_err(CliError::io(part.path.display().to_string()))?,
            None => s.out.raw(data)?,
        }
        self.hash.update(data);
        self.written += data.len() as u64;
        Ok(())
    }
}

/// Tells one export from another without naming the subject: SHA-256 of the request without its position.
fn fingerprint(request: &pb::ExportSubjectRequest) -> String {
    use prost::Message as _;
    let plain = pb::ExportSubjectRequest { offset: 0, etag: String::new(), ..request.clone() };
    HEXLOWER.encode(&Sha256::digest(plain.encode_to_vec()))
}
