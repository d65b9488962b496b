//! `count`: how many people have which value of a field.

use crate::cli::error::CliError;
use crate::cli::names::Noun;
use crate::cli::output::note;
use crate::cli::session::Session;
use crate::cli::text::printable;
use crate::cli::values::{time_text, to_text, wire};
use crate::grpc::pb;
use clap::Args;

/// `count`
#[derive(Debug, Args)]
#[command(
    after_help = "Only fields that the policy lists in [analytics]; groups below its threshold are not shown, and the
table stays as it is until as many people have come, gone or changed.

Example:
  pii-vault count device_kind -p improvement"
)]
pub struct Count {
    /// Field, by name or number
    field: String,
    /// Purpose of kind `analytics`, by name or number
    #[arg(long, short = 'p')]
    purpose: String,
}

/// `count`
pub async fn count(s: &Session, a: Count) -> Result<(), CliError> {
    let purpose_id = s.number(Noun::Purpose, &a.purpose).await?;
    let request = pb::AggregateFieldsRequest {
        field_id: s.number(Noun::Field, &a.field).await?,
        context: Some(pb::AccessContext { purpose_id, ..Default::default() }),
    };
    let answer = s.policies().aggregate_fields(request).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    for cell in &answer.cells {
        let value = cell.value.as_ref().map(to_text).unwrap_or_default();
        s.out.line(&format!("{:>12}  {}", cell.count, printable(&value)))?;
    }
    let at = answer.count_time.as_ref().map(time_text).unwrap_or_default();
    note(&format!("counted at {at}; groups of fewer than {} people are not shown", answer.threshold));
    Ok(())
}
