//! `report`: what the published text claims, and what is true.

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::receipt::{public_keys, trim};
use crate::cli::session::Session;
use crate::grpc::pb;
use crate::report::Report as Signed;
use clap::{Args, Subcommand, ValueEnum};
use std::fs;
use std::path::PathBuf;

/// How a report is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The signed document itself
    Json,
    Markdown,
    /// One page without anything from elsewhere, to print
    Html,
}

/// `report`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  pii-vault report
  pii-vault report --format html -o report.html
  pii-vault report --format json -o report.json
  pii-vault report verify report.json --public-key vault-keys.txt --format html -o report.html"
)]
pub struct Report {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a signed report with public keys alone; needs no server
    #[command(after_help = "Example:
  pii-vault report verify report.json --public-key vault-keys.txt")]
    Verify(Verify),
}

/// `report verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// File with the signed report
    file: PathBuf,
    /// A public key, or a file with some; may be repeated
    #[arg(long = "public-key", value_name = "KEY", required = true)]
    public_keys: Vec<String>,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Args)]
struct Show {
    /// How it is shown [default: markdown; with --json: json]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this file
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Show {
    fn write(&self, out: Output, signed: &[u8], report: &Signed) -> Result<(), CliError> {
        let text = match self.format.unwrap_or(if out.json { Format::Json } else { Format::Markdown }) {
            Format::Json => [signed, b"\n"].concat(),
            Format::Markdown => report.markdown().into_bytes(),
            Format::Html => report.html().into_bytes(),
        };
        match &self.output {
            Some(path) => fs::write(path, text).map_err(CliError::io(path.display().to_string())),
            None => out.raw(&text),
        }
    }
}

impl Report {
    /// `report verify`, which needs no server.
    pub fn offline(&self) -> Option<&Verify> {
        self.command.as_ref().map(|Command::Verify(verify)| verify)
    }
}

/// `report verify`
pub fn verify(out: Output, a: &Verify) -> Result<(), CliError> {
    let keys = public_keys(&a.public_keys)?;
    let bytes = fs::read(&a.file).map_err(CliError::io(a.file.display().to_string()))?;
    let (report, key) = Signed::verify(trim(&bytes), &keys)
        .map_err(|e| CliError::CheckFailed(format!("the report is not right: {e}")))?;
    crate::cli::output::note(&format!("the signature is right (key {key})"));
    a.show.write(out, trim(&bytes), &report)
}

/// `report`
pub async fn report(s: &Session, a: Report) -> Result<(), CliError> {
    let request = pb::GetReportRequest { tenant: s.tenant() };
    let signed = s.policies().get_report(request).await?.into_inner().report;
    let report = Signed::read(&signed).ok_or_else(|| CliError::Unexpected("the answer is no report".into()))?;
    a.show.write(s.out, &signed, &report)
}
