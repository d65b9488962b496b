//! Whether the audit goes on from heads that somebody kept, by signatures and proofs alone: what the server says of itself
//! counts for nothing here.

use crate::audit::{Chain, ChainHead, HeadProof, goes_on_from};
use crate::cli::error::CliError;
use crate::cli::receipt::ids;
use crate::clock::Timestamp;
use crate::grpc::pb;
use serde_json::{Value, json};

/// A checkpoint of now is not older; the clocks of two machines may differ by so much.
const FRESH_MS: i64 = 3_600_000;

/// Heads that somebody kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// When the newest of them was signed.
    pub at: Timestamp,
    /// Whose they are, in hexadecimal.
    pub vault: String,
    /// By tenant, chain and position.
    pub heads: Vec<ChainHead>,
}

/// What was shown.
#[derive(Debug, Default)]
pub struct Shown {
    /// Heads that a checkpoint of now goes on from.
    pub proven: usize,
    /// Heads that were signed without a tree, by a version before there were any: compared by the server alone.
    pub by_word: usize,
    /// Heads before what is kept, as the server says; nothing is said about them.
    pub pruned: usize,
    /// Heads of chains that were not answered for: other tenants', which are for operators.
    pub unanswered: usize,
    /// Chains that do not go on from a head.
    pub wrong: Vec<String>,
}

impl Shown {
    /// With what another part of the heads shows.
    pub fn add(&mut self, other: Shown) {
        self.proven += other.proven;
        self.by_word += other.by_word;
        self.pruned += other.pruned;
        self.unanswered += other.unanswered;
        self.wrong.extend(other.wrong);
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let Shown { proven, by_word, pruned, unanswered, wrong } = self;
        json!({ "proven": proven, "by_word": by_word, "pruned": pruned, "unanswered": unanswered, "wrong": wrong })
    }
}

/// Number of a chain in answers.
pub fn wire_chain(chain: Chain) -> i32 {
    match chain {
        Chain::Change => pb::AuditChain::Changes as i32,
        Chain::Read => pb::AuditChain::Reads as i32,
    }
}

/// Checks what the server answered about `kept`.
///
/// # Errors
/// A signed head of now that does not count: its signature, its vault, its chain or its time.
pub fn check(
    kept: &Kept,
    answer: &pb::VerifyAuditResponse,
    keys: &[[u8; 32]],
    now: Timestamp,
) -> Result<Shown, CliError> {
    let mut shown = Shown::default();
    // Whoever is answered for the vault itself is an operator, and is answered for every tenant.
    let all = answer.chains.iter().any(|chain| chain.tenant_number == 0);
    for heads in kept.heads.chunk_by(|a, b| (a.tenant, a.chain) == (b.tenant, b.chain)) {
        let (tenant, chain) = (heads[0].tenant, heads[0].chain);
        let name = format!("chain {} of tenant {tenant}", chain.name());
        let verdict = answer.chains.iter().find(|one| (one.tenant_number, one.chain) == (tenant.0, wire_chain(chain)));
        let Some(verdict) = verdict else {
            shown.unanswered += heads.len();
            if all {
                shown.wrong.push(format!("{name}: the server does not answer for it"));
            }
            continue;
        };
        let mut extensions = answer.extensions.iter();
        let extension = extensions.find(|one| (one.tenant_number, one.chain) == (tenant.0, wire_chain(chain)));
        let goes_on = match extension {
            Some(extension) => {
                let present = present(kept, extension, keys, now).map_err(|why| {
                    CliError::CheckFailed(format!("{name}, the checkpoint of now: {why} (keys: {})", ids(keys)))
                })?;
                goes_on_from(heads, &present, &extension.steps.iter().map(step).collect::<Vec<_>>())
            }
            None => vec![false; heads.len()],
        };
        for (head, goes_on) in heads.iter().zip(goes_on) {
            match (goes_on, head.tree) {
                (true, _) => shown.proven += 1,
                (false, None) => shown.by_word += 1,
                (false, Some(_)) if head.head.seq + 1 < verdict.first_position => shown.pruned += 1,
                (false, Some(_)) => {
                    shown.wrong.push(format!("{name}: it is not proven to go on from entry {}", head.head.seq));
                }
            }
        }
    }
    Ok(shown)
}

/// The signed head of now.
fn present(
    kept: &Kept,
    extension: &pb::ChainExtension,
    keys: &[[u8; 32]],
    now: Timestamp,
) -> Result<HeadProof, String> {
    let proof = HeadProof::from_json(&extension.present, keys).map_err(|error| error.to_string())?;
    let head = proof.head();
    if (head.tenant.0, wire_chain(head.chain)) != (extension.tenant_number, extension.chain) {
        return Err("it is of another chain".into());
    }
    if proof.vault() != kept.vault {
        return Err("it is of another vault".into());
    }
    if proof.at() < kept.at || (now.0 - proof.at().0).abs() > FRESH_MS {
        return Err(format!(
            "it is of {}, which is not now: either clock is wrong, or it is an old one",
            proof.at().rfc3339()
        ));
    }
    Ok(proof)
}

fn step(step: &pb::ConsistencyProof) -> Option<Vec<[u8; 32]>> {
    let hashes = step.hashes.iter().map(|hash| hash.as_ref().try_into().ok());
    step.found.then(|| hashes.collect::<Option<Vec<_>>>()).flatten()
}
