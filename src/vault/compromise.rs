//! What is done when a key may be known to somebody else: the runbook of `docs/OPERATIONS.md`, in its order, and what no
//! rotation can take back. May be repeated: a step that runs already goes on.

use std::collections::BTreeSet;

use crate::access::Verb;
use crate::audit::{Action, Chain, Outcome};
use crate::auth::{self, KeyId};
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::storage::ChangeSet;
use crate::vault::Vault;
use crate::vault::access_report::seen_of;
use crate::vault::audit_read::EntryQuery;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::operation::{Operation, OperationStatus};
use crate::vault::rotation::{DataScope, OwnSecret, own_key_only};

/// Days that users have to log in after the pepper of their passwords leaked, and holders of access keys to get new ones.
const PEPPER_DAYS: i64 = 30;
/// Steps of a root key's rotation that are gone here; the job goes on with the rest.
const MOST_STEPS: usize = 1_000;
/// Entries looked at together.
const TOGETHER: usize = 10_000;

/// What leaked.
pub enum Leaked {
    AccessKey(KeyId),
    Root,
    TenantRoot,
    Data(DataScope),
    Index,
    PasswordPepper,
    AccessKeyPepper,
    PageToken,
    Signing,
}

/// One step of the runbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub what: String,
    /// Number and name of the tenant, and the operation, where there is one.
    pub operation: Option<ObjectId>,
    pub tenant: Option<Name>,
    /// Somebody has to do it.
    pub by_hand: bool,
}

/// How much was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accesses {
    pub subjects: u64,
    /// Entries of the audit by which somebody saw a value.
    pub reads: u64,
    /// Nothing of the time asked about was pruned from the audit.
    pub complete: bool,
}

/// What was done, and what cannot be undone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answered {
    pub steps: Vec<Step>,
    pub cannot_undo: Vec<String>,
    /// What was read meanwhile: by the access key, or by anybody of the tenant.
    pub access: Accesses,
    /// Recipients of the tenant's policy, by name: who may have to be told.
    pub recipients: Vec<String>,
    /// Archives of that time hold what the key opened.
    pub archives: bool,
}

impl Answered {
    fn did(&mut self, what: impl Into<String>, tenant: Option<&Name>, operation: Option<&Operation>) {
        let operation = operation.map(|operation| operation.id);
        self.steps.push(Step { what: what.into(), operation, tenant: tenant.cloned(), by_hand: false });
    }
    fn by_hand(&mut self, what: &str) {
        self.steps.push(Step { what: what.into(), operation: None, tenant: None, by_hand: true });
    }
    fn lost(&mut self, what: impl Into<String>) {
        self.cannot_undo.push(what.into());
    }
}

impl Vault {
    /// Does what is to be done about a leaked key, and tells what it cannot do. With `check`, only tells.
    ///
    /// # Errors
    /// `RootKey` for a root key while the configuration names no next one; nothing was done then.
    pub async fn answer_compromise(
        &self,
        call: &Call,
        leaked: Leaked,
        since: Option<Timestamp>,
        check: bool,
    ) -> Result<Answered, VaultError> {
        if !matches!(leaked, Leaked::AccessKey(_)) {
            self.may_rotate(call)?;
        }
        let mut answered = Answered { archives: true, ..Answered::default() };
        let (mut actors, mut of) = (Vec::new(), call.tenant.clone());
        let name = call.tenant.name.clone();
        let own = Some(&name).filter(|_| call.tenant.no != TenantNo::VAULT);
        match leaked {
            Leaked::AccessKey(id) => {
                of = self.tenant(self.answer_access_key(call, id, check, &mut answered).await?)?;
                actors.push(ActorId(id.0));
            }
            Leaked::Root => self.answer_root(call, check, &mut answered).await?,
            Leaked::TenantRoot => {
                if !check {
                    let root = self.rotate_root(call, None).await?;
                    answered.did("a new tenant root", own, Some(&root));
                    let tree = self.rekey_tree(call, None).await?;
                    answered.did("fresh keys for every node of the tree", own, Some(&tree));
                }
                answered
                    .by_hand("if the keeper was copied: `keys compromised root`, so that the copy opens with no key");
                answered.lost("who has the old root and a copy of the database from before opens what it held then");
            }
            Leaked::Data(scope) => {
                let begun = self.rotate_data(call, scope, None, check).await?;
                answered.did("new data keys; every value is sealed anew", own, begun.as_ref());
                answered.lost("values in copies of the database from before, for who has the old data keys");
            }
            Leaked::Index => {
                if !check {
                    let begun = self.rotate_index(call, None).await?;
                    answered.did("a new index secret; every tag is made anew", own, Some(&begun));
                }
                answered.lost(
                    "tags in copies of the database from before: values of small domains can be guessed from them",
                );
            }
            Leaked::PasswordPepper => {
                if !check {
                    let end = call.now.plus_ms(PEPPER_DAYS * DAY_MS);
                    let begun = self.rotate_pepper(call, Some(end), None).await?;
                    answered.did("a new pepper; who does not log in for 30 days must reset", own, Some(&begun));
                }
                answered.lost("hashes in copies of the database from before: weak passwords can be guessed from them");
            }
            Leaked::AccessKeyPepper => {
                if !check {
                    let end = call.now.plus_ms(PEPPER_DAYS * DAY_MS);
                    let begun = self.rotate_own_secret(call, OwnSecret::AccessKeyPepper, Some(end), None).await?;
                    answered.did("a new pepper; access keys of the old one end in 30 days", None, Some(&begun));
                }
                answered.by_hand("issue every access key anew (`access-key rotate`), operators' keys first");
                answered.by_hand("tenants issue their users' API keys and recovery codes anew");
                answered.lost(
                    "digests of codes in copies of the database from before: short codes can be guessed from them",
                );
            }
            Leaked::PageToken => {
                if !check {
                    let begun = self.rotate_own_secret(call, OwnSecret::PageToken, None, None).await?;
                    answered.did("a new key of page tokens; the old one goes after a day", None, Some(&begun));
                }
                answered.lost("nothing: a forged page token shows its own key's lists from another place, no more");
                answered.archives = false;
            }
            Leaked::Signing => {
                if !check {
                    let begun = self.rotate_signing(call, None).await?;
                    answered.did("a new signing key, signed by the old one", None, Some(&begun));
                }
                answered
                    .by_hand("hand out `receipt keys`; trust the old key for receipts and records from before only");
                answered.lost("a receipt, record or checkpoint signed by the old key alone proves nothing since then");
                answered.archives = false;
            }
        }
        if of.no != TenantNo::VAULT {
            answered.access = self.accesses(of.no, actors, since).await?;
            if let Ok(policy) = of.policy() {
                answered.recipients = policy.recipients().map(|recipient| recipient.name.to_string()).collect();
            }
        }
        if !check {
            let mut change = ChangeSet::default();
            change.note(call.tenant.no, call.record(Action::Compromised, Outcome::Ok).to_bytes());
            self.store.commit(change).await?;
        }
        Ok(answered)
    }

    /// How much these access keys (none: all) read since then.
    async fn accesses(
        &self,
        tenant: TenantNo,
        actors: Vec<ActorId>,
        since: Option<Timestamp>,
    ) -> Result<Accesses, VaultError> {
        let first = self.entries(tenant, Chain::Read, EntryQuery::default(), 0, 1).await?;
        let complete = match first.entries.first() {
            None | Some((1, _)) => true,
            Some((_, oldest)) => since.is_some_and(|since| oldest.at < since),
        };
        let query = EntryQuery { actors, since, ..EntryQuery::default() };
        let (mut subjects, mut reads, mut after) = (BTreeSet::new(), 0, 0);
        loop {
            let page = self.entries(tenant, Chain::Read, query.clone(), after, TOGETHER).await?;
            for uid in page.entries.iter().filter_map(|(_, record)| seen_of(record)) {
                subjects.insert(uid);
                reads += 1;
            }
            if !page.more {
                return Ok(Accesses { subjects: subjects.len() as u64, reads, complete });
            }
            after = page.seen;
        }
    }

    /// Answers whose key it is.
    async fn answer_access_key(
        &self,
        call: &Call,
        id: KeyId,
        check: bool,
        answered: &mut Answered,
    ) -> Result<TenantNo, VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            call.permit(Verb::Access)?;
        }
        let tenant = self.reachable(call, id)?.tenant;
        if !check {
            self.revoke_access_key(call, id, None).await?;
            answered.did("the access key is revoked; every call that starts from now on is refused", None, None);
        }
        answered.lost("what was read with it: `audit access` names subjects and fields");
        answered
            .by_hand("tell the persons concerned and the authority in time: `rights request incident` keeps the clock");
        answered.archives = false;
        Ok(tenant)
    }

    /// First what wraps, then what was wrapped: a new root under the old key would be known too.
    async fn answer_root(&self, call: &Call, check: bool, answered: &mut Answered) -> Result<(), VaultError> {
        own_key_only(call)?;
        answered
            .lost("who has the old root key and a copy of keeper and database from before opens what they held then");
        if check {
            self.next_kek(call, None).await?;
            return Ok(());
        }
        let mut kek = self.rotate_kek(call, None, None).await?;
        for _ in 0..MOST_STEPS {
            let done = kek.done;
            kek = self.step_rotation(call, kek.id, 10_000).await?.0;
            if kek.status != OperationStatus::Running || kek.done == done {
                break;
            }
        }
        let ended = kek.status == OperationStatus::Done;
        answered.did(
            match ended {
                true => "every root is wrapped by the next root key, and none by the old one",
                false => "roots are being wrapped by the next root key; what is refused waits",
            },
            None,
            Some(&kek),
        );
        for tenant in self.live_tenants() {
            let own = self.call(call.principal.clone(), tenant.clone());
            let name = Some(&tenant.name).filter(|_| tenant.no != TenantNo::VAULT);
            let root = self.rotate_root(&own, None).await?;
            answered.did("a new tenant root", name, Some(&root));
            let tree = self.rekey_tree(&own, None).await?;
            answered.did("fresh keys for every node of the tree", name, Some(&tree));
        }
        let signing = self.rotate_signing(call, None).await?;
        answered.did("a new signing key: the old one was sealed by the old root key", None, Some(&signing));
        answered.by_hand("destroy the old root key where it came from, unless `keys records` says destroyed");
        answered.by_hand("hand out `receipt keys`, and write the new public key beside the recovery key");
        Ok(())
    }
}
