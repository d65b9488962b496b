//! Both chains of the audit recomputed, and compared with every checkpoint that is kept and with heads that others kept.

use crate::access::Verb;
use crate::audit::*;
use crate::ids::*;
use crate::storage::readlog::VerifyError;
use crate::vault::Vault;
use crate::vault::audit_read::{blocking, unreadable};
use crate::vault::call::Call;
use crate::vault::error::VaultError;

/// What is kept of a chain, and whether it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainVerdict {
    pub tenant: TenantNo,
    pub chain: Chain,
    /// Number of the first entry that is still kept; 0: there is none.
    pub first: u64,
    pub head: Head,
    /// The first position that does not fit.
    pub bad: Option<u64>,
    /// Heads from elsewhere that it was compared with, and those before what is kept.
    pub compared: u32,
    pub pruned: u32,
}

impl Vault {
    /// Recomputes both chains of the tenant and compares them with all checkpoints that are kept and with heads that others
    /// kept. A call in the vault's own tenant compares the chains of all tenants that `against` names.
    pub async fn verify_audit(&self, call: &Call, against: &[ChainHead]) -> Result<Vec<ChainVerdict>, VaultError> {
        call.permit(Verb::Audit)?;
        let own = call.tenant.no;
        let kept = self.kept_checkpoints().await?;
        let mut tenants = vec![own];
        if own == TenantNo::VAULT {
            tenants.extend(against.iter().map(|one| one.tenant));
            tenants.sort_unstable();
            tenants.dedup();
        }
        let mut verdicts = Vec::with_capacity(2 * tenants.len());
        for tenant in tenants {
            for chain in [Chain::Change, Chain::Read] {
                let of_chain = |one: &&ChainHead| one.tenant == tenant && one.chain == chain && one.head.seq > 0;
                let elsewhere: Vec<Head> = against.iter().filter(of_chain).map(|one| one.head).collect();
                let mut heads: Vec<Head> = kept.iter().filter_map(|c| c.head(tenant, chain)).collect();
                heads.retain(|head| head.seq > 0);
                heads.extend_from_slice(&elsewhere);
                heads.sort_by_key(|head| head.seq);
                heads.dedup();
                let mut verdict = match chain {
                    Chain::Change => self.verify_changes(tenant, heads).await?,
                    Chain::Read => self.verify_reads(tenant, heads).await?,
                };
                // A head is before the first entry that is kept when the entry behind it is gone, too.
                let before = |head: &&Head| verdict.first > head.seq + 1;
                verdict.pruned = elsewhere.iter().filter(before).count() as u32;
                let reached = verdict.bad.unwrap_or(u64::MAX);
                verdict.compared = elsewhere.iter().filter(|head| !before(head) && head.seq < reached).count() as u32;
                verdicts.push(verdict);
            }
        }
        self.note_listing(call, Action::VerifyAudit).await?;
        Ok(verdicts)
    }

    async fn verify_changes(&self, tenant: TenantNo, known: Vec<Head>) -> Result<ChainVerdict, VaultError> {
        let chain = Chain::Change;
        let mut verifier = Verifier::new(tenant, chain, genesis(self.keyring.vault(), tenant, chain), &known);
        let (mut after, mut first) = (0, 0);
        loop {
            let rows = self.store.audit_groups(tenant, after, 256).await?;
            let Some(last) = rows.last() else { break };
            after = last.first + u64::from(last.count) - 1;
            for row in &rows {
                let next = verifier.head().seq + 1;
                let pushed = match Group::parse(&row.body) {
                    Ok(group) => {
                        first = if first == 0 { group.first } else { first };
                        verifier.push(&group).map_err(|tamper| tamper.first)
                    }
                    Err(_) => Err(next),
                };
                if let Err(bad) = pushed {
                    return Ok(ChainVerdict {
                        tenant,
                        chain,
                        first,
                        head: verifier.head(),
                        bad: Some(bad),
                        compared: 0,
                        pruned: 0,
                    });
                }
            }
        }
        let head = verifier.head();
        let bad = verifier.finish().err().map(|tamper| tamper.first);
        Ok(ChainVerdict { tenant, chain, first, head, bad, compared: 0, pruned: 0 })
    }

    async fn verify_reads(&self, tenant: TenantNo, known: Vec<Head>) -> Result<ChainVerdict, VaultError> {
        let log = self.read_log.clone();
        blocking(move || {
            let chain = Chain::Read;
            let first = match log.groups(tenant, 1).map_err(unreadable)?.next() {
                Some(Ok(bytes)) => Group::parse(&bytes).map_or(0, |group| group.first),
                Some(Err(_)) | None => 0,
            };
            let head = log.head(tenant);
            let bad = match log.verify(tenant, &known) {
                Ok(_) => None,
                Err(VerifyError::Tampered(tamper)) => Some(tamper.first),
                // A segment that cannot be read: which of its entries is the first bad one is not known.
                Err(VerifyError::Unreadable(_)) => Some(first.max(1)),
            };
            Ok(ChainVerdict { tenant, chain, first, head, bad, compared: 0, pruned: 0 })
        })
        .await
    }
}
