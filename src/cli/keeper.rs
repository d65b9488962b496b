//! `keeper`: the erasable store of tenant roots and its replicas.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::causes::causes;
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, Output, Page};
use crate::cli::server::ConfigArgs;
use crate::cli::session::Session;
use crate::cli::values::wire;
use crate::clock::SystemClock;
use crate::grpc::pb;
use crate::keyring::keeper::ReplicaState;
use crate::server::node::add_replicas;

const REPLICA: &[Col] = &[
    Col("INDEX", "index"),
    Col("STATE", "state"),
    Col("REPLICA", "replica"),
    Col("PLACE", "place"),
    Col("BECAUSE", "detail"),
];

/// `keeper`
#[derive(Debug, Subcommand)]
pub enum Keeper {
    /// The replicas and which were given up
    #[command(after_help = "Example:
  pii-vault keeper status")]
    Status,
    /// Read every slot of every replica and the whole ledger, and compare them with the database
    #[command(after_help = "Exit code 7 when something is not right.

Example:
  pii-vault keeper verify")]
    Verify,
    /// Give up a replica that is away, for good
    #[command(
        after_help = "Erasures go on without it, receipts name it from then on, and should it return it is wiped before anything else. Take
it out of keeper.paths afterwards. INDEX and ID are those of `pii-vault keeper status`.

Example:
  pii-vault keeper retire 1 --replica 4f1c3a5e9b2d47608c1e2f3a4b5c6d7e"
    )]
    Retire {
        /// Its position in the configuration, from 0
        index: u32,
        /// Its identity
        #[arg(long, value_name = "ID")]
        replica: String,
    },
    Add(Add),
}

/// Make replicas in those places of keeper.paths that have none, as copies of the others; with the server stopped
#[derive(Debug, Args)]
#[command(after_help = "Name the new directory in keeper.paths first, on a disk of its own.

Example:
  pii-vault keeper add --config /etc/pii-vault/pii-vault.toml")]
pub struct Add {
    #[command(flatten)]
    config: ConfigArgs,
}

/// `keeper add`
pub async fn add(out: Output, args: Add) -> Result<(), CliError> {
    let config = args.config.load()?;
    let added = add_replicas(&config, Arc::new(SystemClock::new())).await;
    let replicas = added.map_err(|e| CliError::Unexpected(causes(&e)))?;
    let told = |state: &ReplicaState| match state {
        ReplicaState::Active => "active".to_owned(),
        ReplicaState::Away { reason } => format!("away: {reason}"),
        ReplicaState::Retired => "retired".to_owned(),
    };
    if out.json {
        let list: Vec<_> =
            replicas.iter().map(|r| json!({ "index": r.index, "place": r.place, "state": told(&r.state) })).collect();
        return out.document(&json!({ "replicas": list }));
    }
    let rows = replicas.iter().map(|r| vec![r.index.to_string(), told(&r.state), r.place.clone()]);
    out.rows(&["INDEX", "STATE", "PLACE"], rows.collect())
}

/// `keeper`
pub async fn keeper(s: &Session, yes: bool, command: Keeper) -> Result<(), CliError> {
    let none = Names::default();
    match command {
        Keeper::Status => {
            let answer = s.keepers().get_keeper(pb::GetKeeperRequest {}).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            s.out.line(&format!("keeper     {}", answer.kind))?;
            s.out.line(&format!("assurance  {}", answer.assurance))?;
            s.out.table(&answer.replicas, REPLICA, &none)?;
            if !answer.retired.is_empty() {
                s.out.line("\ngiven up:")?;
                s.out.table(&answer.retired, &[Col("REPLICA", "replica"), Col("AT", "retire_time")], &none)?;
            }
            Ok(())
        }
        Keeper::Verify => {
            let answer = s.patient().keepers().verify_keeper(pb::VerifyKeeperRequest {}).await?.into_inner();
            if s.out.json {
                s.out.document(&wire(&answer))?;
            } else {
                let cols = [
                    Col("TENANT", "tenant_no"),
                    Col("STATE", "state"),
                    Col("GENERATION", "generation"),
                    Col("REPLICAS", "replica_count"),
                    Col("WHAT TO DO", "advice"),
                ];
                s.out.table(&answer.tenants, &cols, &none)?;
                s.out.line(&format!("ledger: {} entries, chain and signatures right", answer.ledger_entries))?;
                for problem in &answer.problems {
                    s.out.line(&crate::cli::text::printable(problem))?;
                }
            }
            match answer.valid {
                true => Ok(()),
                false => Err(CliError::CheckFailed(format!("{} problems", answer.problems.len()))),
            }
        }
        Keeper::Retire { index, replica } => {
            input::confirm(yes, "This gives the replica up for good; receipts name it from now on")?;
            let request = pb::RetireReplicaRequest { index, replica };
            let retired = s.keepers().retire_replica(request).await?.into_inner().retired;
            let cols = [Col("REPLICA", "replica"), Col("AT", "retire_time")];
            s.out.list("retired", &Page { items: retired, more: false }, &cols, &none)
        }
        Keeper::Add(_) => Err(CliError::Unexpected("this command needs no server".into())),
    }
}
