//! `schema`: names and numbers of the tenant's policy, as tables or as constants of a language.

use crate::cli::constants::{self, Language};
use crate::cli::error::CliError;
use crate::cli::output::Col;
use crate::cli::session::Session;
use crate::cli::text::printable;
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::Args;

/// `schema`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  pii-vault schema
  pii-vault schema --constants rust > src/pii_numbers.rs
  pii-vault schema --constants go > pii/numbers.go")]
pub struct Schema {
    /// Write constants for a language instead
    #[arg(long, value_name = "LANGUAGE", value_enum)]
    constants: Option<Language>,
    /// Number of the policy version [default: the one in force]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    version: u32,
}

/// `schema`
pub async fn schema(s: &Session, a: Schema) -> Result<(), CliError> {
    let request = pb::GetSchemaRequest { version: a.version, tenant: s.tenant() };
    let schema = s.policies().get_schema(request).await?.into_inner();
    if let Some(language) = a.constants {
        return s.out.raw(constants::write(language, &schema).as_bytes());
    }
    if s.out.json {
        return s.out.document(&wire(&schema));
    }
    let names = crate::cli::names::Names::new(schema.clone());
    s.out.pairs([
        ("POLICY VERSION", schema.policy_version.to_string()),
        ("CONTROLLER", printable(&schema.controller)),
        ("TIME ZONE", printable(&schema.time_zone)),
        ("REGION", printable(&schema.region)),
    ])?;
    let fields = [
        Col("FIELD", "field_id"),
        Col("NAME", "name"),
        Col("TYPE", "type"),
        Col("CLASS", "class_id|class"),
        Col("MAX", "max_length|nonzero"),
        Col("VALIDATOR", "validator"),
        Col("SEARCH", "searchable|mark"),
        Col("UNIQUE", "unique|mark"),
        Col("MANY", "many|mark"),
        Col("MASK", "maskable|mark"),
        Col("RETIRED", "retired|mark"),
    ];
    s.out.line("")?;
    s.out.table(&schema.fields, &fields, &names)?;
    let classes = [
        Col("CLASS", "class_id"),
        Col("NAME", "name"),
        Col("RETENTION", "retention"),
        Col("AT MOST", "max_retention"),
        Col("GRACE", "grace"),
        Col("HOLD", "hold"),
        Col("KEPT", "hold_keep"),
        Col("READABLE FOR", "hold_purpose_id|purpose"),
    ];
    s.out.line("")?;
    s.out.table(&schema.classes, &classes, &names)?;
    let purposes = [
        Col("PURPOSE", "purpose_id"),
        Col("NAME", "name"),
        Col("BASIS", "basis"),
        Col("VIEW", "max_view"),
        Col("REFERENCE", "reference_needed|mark"),
        Col("APPROVAL", "approval_needed|mark"),
        Col("FIELDS", "field_ids|field"),
    ];
    s.out.line("")?;
    s.out.table(&schema.purposes, &purposes, &names)?;
    let rest = [
        ("RECIPIENT", &schema.recipients),
        ("ROLE", &schema.roles),
        ("PLAN", &schema.plans),
        ("SOURCE", &schema.sources),
    ];
    for (head, list) in rest.into_iter().filter(|(_, list)| !list.is_empty()) {
        s.out.line("")?;
        s.out.table(list, &[Col(head, "id"), Col("NAME", "name")], &names)?;
    }
    Ok(())
}
