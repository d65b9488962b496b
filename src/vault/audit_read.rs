//! Looking at the audit: entries by filter, both chains verified, the signed checkpoint over all heads. Everybody who
//! looks needs the verb AUDIT and leaves an entry.

use crate::access::{FieldSet, Verb};
use crate::audit::*;
use crate::auth::Kind as PrincipalKind;
use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Kind};
use crate::ids::*;
use crate::keyring::{KeyRef, Keyring, TenantKeyState};
use crate::storage::readlog::{ReadLogError, VerifyError};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::audit_tree::day_no;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::signers;
use zeroize::Zeroizing;

/// Entries that one page looks at, however few it shows: a page costs a bounded time.
const LOOKS: usize = 20_000;
/// A checkpoint younger than this is answered as it is; older ones are made anew.
const CHECKPOINT_MS: i64 = 60_000;
/// Where the newest checkpoint is kept, in the vault's own tenant.
const CHECKPOINT_KEY: &[u8] = b"newest";
/// Prefix of the last checkpoint of each day (in UTC, by number, four bytes).
const OF_DAY: &[u8] = b"day";

pub(crate) fn day_key(at: Timestamp) -> Vec<u8> {
    [OF_DAY, &day_no(at).to_be_bytes()].concat()
}

/// The heads of the read chains that the newest checkpoint names: what the read log must hold when it is opened.
///
/// # Errors
/// `DataLoss` where the checkpoint was not signed by this vault.
pub async fn known_reads(
    store: &dyn Store,
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Vec<(TenantNo, Head)>, VaultError> {
    if keyring.state(TenantNo::VAULT) != TenantKeyState::Ready {
        // Nothing can be compared; who opens such a vault hears of its keys.
        return Ok(Vec::new());
    }
    let row = store.object(TenantNo::VAULT, ObjectKind::Checkpoint, CHECKPOINT_KEY.to_vec()).await?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let keys: Vec<[u8; 32]> = signers::load(store, keyring, now).await?.iter().map(|one| one.public).collect();
    let checkpoint = Checkpoint::from_json(&row.body, &keys).map_err(|_| VaultError::DataLoss)?;
    let reads = checkpoint.heads().iter().filter(|one| one.chain == Chain::Read && one.head.seq > 0);
    Ok(reads.map(|one| (one.tenant, one.head)).collect())
}

/// Which entries; empty lists and `None` are no condition.
#[derive(Debug, Clone, Default)]
pub struct EntryQuery {
    pub subject: Option<SubjectUid>,
    pub actors: Vec<ActorId>,
    pub purposes: Vec<PurposeNo>,
    pub recipients: Vec<RecipientNo>,
    pub actions: Vec<Action>,
    /// Inclusive.
    pub since: Option<Timestamp>,
    /// Exclusive.
    pub until: Option<Timestamp>,
}

impl EntryQuery {
    fn matches(&self, record: &AuditRecord) -> bool {
        self.subject.is_none_or(|uid| record.subject == Some(uid))
            && (self.actors.is_empty() || self.actors.contains(&record.actor))
            && (self.purposes.is_empty() || self.purposes.contains(&record.purpose))
            && (self.recipients.is_empty() || self.recipients.contains(&record.recipient))
            && (self.actions.is_empty() || self.actions.contains(&record.action))
            && self.since.is_none_or(|t| record.at >= t)
            && self.until.is_none_or(|t| record.at < t)
    }
}

/// A page of entries with their positions.
#[derive(Debug, Default)]
pub struct EntryPage {
    pub entries: Vec<(u64, AuditRecord)>,
    /// The last position that was looked at, shown or not.
    pub seen: u64,
    /// More may follow.
    pub more: bool,
}

impl EntryPage {
    /// Looks at a group; `false` when the page is full.
    fn take(
        &mut self,
        group: &Group<'_>,
        query: &EntryQuery,
        limit: usize,
        looks: &mut usize,
    ) -> Result<bool, VaultError> {
        for entry in group.entries() {
            let (position, record) = entry.map_err(|_| VaultError::DataLoss)?;
            if position <= self.seen {
                continue;
            }
            if self.entries.len() == limit || *looks == LOOKS {
                self.more = true;
                return Ok(false);
            }
            *looks += 1;
            self.seen = position;
            if query.matches(&record) {
                self.entries.push((position, record));
            }
        }
        Ok(true)
    }
}

/// Where somebody who follows a chain is. Segments of reads stay open between two looks: finding the place again means
/// reading a segment from its beginning.
pub struct Follower {
    chain: Chain,
    /// The last position that was taken.
    after: u64,
    reads: Option<crate::storage::readlog::Groups>,
}

impl Follower {
    /// The last position that was taken.
    pub fn after(&self) -> u64 {
        self.after
    }
}

/// A walk over a chain, between two steps.
pub(crate) enum EntryWalk {
    Changes { tenant: TenantNo, after: u64 },
    Reads(crate::storage::readlog::Groups),
}

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

/// What a caller wrote about a call: reason and reference.
pub struct Detail {
    pub reason: Zeroizing<String>,
    pub reference: Zeroizing<String>,
}

/// The entry of a read that found nobody.
pub(crate) fn miss(
    call: &Call,
    action: Action,
    purpose: PurposeNo,
    fields: &FieldSet,
    outcome: Outcome,
) -> AuditRecord {
    let mut entry = call.record(action, outcome);
    entry.fields = Fields::new(fields.iter().map(FieldNo));
    entry.purpose = purpose;
    entry
}

impl Vault {
    /// Notes that somebody looked at something that is no value.
    pub(crate) async fn note_listing(&self, call: &Call, action: Action) -> Result<(), VaultError> {
        let entry = call.record(action, Outcome::Ok);
        self.note_read(call, &entry).await?;
        Ok(())
    }

    /// Notes a read of somebody who is not there, or whom this caller may not look for: an entry without a subject, one
    /// for a call, however many it named. Answers what the caller is to hear.
    pub(crate) async fn missed(
        &self,
        call: &Call,
        action: Action,
        purpose: PurposeNo,
        fields: &FieldSet,
        error: VaultError,
    ) -> VaultError {
        let entry = miss(call, action, purpose, fields, error.outcome());
        match self.read_log.append(call.tenant.no, &entry).await {
            Ok(_) => error,
            Err(_) => VaultError::AuditUnavailable,
        }
    }

    /// Entries of one chain behind position `after`, in the order of the chain.
    pub async fn list_entries(
        &self,
        call: &Call,
        chain: Chain,
        query: EntryQuery,
        after: u64,
        limit: u32,
    ) -> Result<EntryPage, VaultError> {
        call.permit(Verb::Audit)?;
        let page = self.entries(call.tenant.no, chain, query, after, limit as usize).await?;
        self.note_listing(call, Action::ListEntries).await?;
        Ok(page)
    }

    /// Begins to follow a chain. `start` is the first position wanted, 0 is what comes from now on.
    pub async fn follow_entries(&self, call: &Call, chain: Chain, start: u64) -> Result<Follower, VaultError> {
        call.permit(Verb::Audit)?;
        self.note_listing(call, Action::FollowEntries).await?;
        let after = match start {
            0 => self.head_of(call.tenant.no, chain).await?.seq,
            start => start - 1,
        };
        Ok(Follower { chain, after, reads: None })
    }

    /// The position of the last entry that is there; 0: there is none.
    pub async fn last_entry(&self, call: &Call, chain: Chain) -> Result<u64, VaultError> {
        Ok(self.head_of(call.tenant.no, chain).await?.seq)
    }

    /// What came since; for who follows. About `most` entries, and none where nothing came.
    pub async fn entries_since(
        &self,
        call: &Call,
        follower: &mut Follower,
        most: usize,
    ) -> Result<Vec<(u64, AuditRecord)>, VaultError> {
        let (tenant, after) = (call.tenant.no, follower.after);
        if self.head_of(tenant, follower.chain).await?.seq <= after {
            return Ok(Vec::new());
        }
        let entries = match follower.chain {
            Chain::Change => self.entries(tenant, Chain::Change, EntryQuery::default(), after, most).await?.entries,
            Chain::Read => {
                let (log, open) = (self.read_log.clone(), follower.reads.take());
                let look = move || {
                    let mut groups = match open {
                        Some(groups) => groups,
                        None => log.groups(tenant, after + 1).map_err(unreadable)?,
                    };
                    let mut entries = Vec::with_capacity(most);
                    while entries.len() < most {
                        // It ends where the log did when it was opened; what came since begins anew.
                        let Some(bytes) = groups.next() else { return Ok((entries, None)) };
                        let bytes = bytes.map_err(unreadable)?;
                        for entry in Group::parse(&bytes).map_err(|_| VaultError::DataLoss)?.entries() {
                            let (position, record) = entry.map_err(|_| VaultError::DataLoss)?;
                            if position > after {
                                entries.push((position, record));
                            }
                        }
                    }
                    Ok((entries, Some(groups)))
                };
                let (entries, open) = blocking(look).await?;
                follower.reads = open;
                entries
            }
        };
        if let Some((last, _)) = entries.last() {
            follower.after = *last;
        }
        Ok(entries)
    }

    pub(crate) async fn head_of(&self, tenant: TenantNo, chain: Chain) -> Result<Head, VaultError> {
        match chain {
            Chain::Read => Ok(self.read_log.head(tenant)),
            Chain::Change => {
                let head = self.store.audit_head(tenant).await?;
                Ok(head.unwrap_or_else(|| genesis(self.keyring.vault(), tenant, Chain::Change)))
            }
        }
    }

    pub(crate) async fn entries(
        &self,
        tenant: TenantNo,
        chain: Chain,
        query: EntryQuery,
        after: u64,
        limit: usize,
    ) -> Result<EntryPage, VaultError> {
        let mut page = EntryPage { seen: after, ..EntryPage::default() };
        let mut looks = 0;
        match chain {
            Chain::Change => loop {
                let rows = self.store.audit_groups(tenant, page.seen, 64).await?;
                if rows.is_empty() {
                    return Ok(page);
                }
                for row in &rows {
                    let group = Group::parse(&row.body).map_err(|_| VaultError::DataLoss)?;
                    if !page.take(&group, &query, limit, &mut looks)? {
                        return Ok(page);
                    }
                }
            },
            Chain::Read => {
                let log = self.read_log.clone();
                blocking(move || {
                    for bytes in log.groups(tenant, after + 1).map_err(unreadable)? {
                        let bytes = bytes.map_err(unreadable)?;
                        let group = Group::parse(&bytes).map_err(|_| VaultError::DataLoss)?;
                        if !page.take(&group, &query, limit, &mut looks)? {
                            break;
                        }
                    }
                    Ok(page)
                })
                .await
            }
        }
    }

    /// The position behind which a chain's entries of `since` and later begin, or a little before it, and its end.
    pub(crate) async fn audit_behind(
        &self,
        tenant: TenantNo,
        chain: Chain,
        since: Timestamp,
    ) -> Result<(u64, u64), VaultError> {
        let head = self.head_of(tenant, chain).await?.seq;
        if chain == Chain::Read {
            let log = self.read_log.clone();
            let behind = blocking(move || log.behind(tenant, since).map_err(unreadable)).await?;
            return Ok((behind.min(head), head));
        }
        // Groups are in order of time, near enough: the clock that stamps them is watched.
        let (mut low, mut high) = (0, head);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.store.audit_groups(tenant, middle, 1).await?.first() {
                Some(group) if group.at < since => low = group.first + u64::from(group.count) - 1,
                _ => high = middle,
            }
        }
        Ok((low, head))
    }

    /// Begins to walk over all entries of a chain behind `after`.
    pub(crate) async fn walk_entries(
        &self,
        tenant: TenantNo,
        chain: Chain,
        after: u64,
    ) -> Result<EntryWalk, VaultError> {
        Ok(match chain {
            Chain::Change => EntryWalk::Changes { tenant, after },
            Chain::Read => {
                let log = self.read_log.clone();
                EntryWalk::Reads(blocking(move || log.groups(tenant, after + 1).map_err(unreadable)).await?)
            }
        })
    }

    /// Gives the entries of about `groups` more groups to `each`, with what it has gathered so far. Answers whether more
    /// may follow.
    pub(crate) async fn step_entries<T: Send + 'static>(
        &self,
        walk: EntryWalk,
        groups: usize,
        mut gathered: T,
        each: impl Fn(&AuditRecord, &mut T) + Send + 'static,
    ) -> Result<(EntryWalk, T, bool), VaultError> {
        let look = move |bytes: &[u8], gathered: &mut T| {
            let group = Group::parse(bytes).map_err(|_| VaultError::DataLoss)?;
            for entry in group.entries() {
                each(&entry.map_err(|_| VaultError::DataLoss)?.1, gathered);
            }
            Ok::<_, VaultError>(())
        };
        match walk {
            EntryWalk::Changes { tenant, after } => {
                let rows = self.store.audit_groups(tenant, after, groups.min(1_000) as u32).await?;
                let Some(last) = rows.last() else {
                    return Ok((EntryWalk::Changes { tenant, after }, gathered, false));
                };
                let after = last.first + u64::from(last.count) - 1;
                for row in &rows {
                    look(&row.body, &mut gathered)?;
                }
                Ok((EntryWalk::Changes { tenant, after }, gathered, true))
            }
            EntryWalk::Reads(mut from) => {
                let step = move || {
                    for _ in 0..groups {
                        let Some(bytes) = from.next() else { return Ok((EntryWalk::Reads(from), gathered, false)) };
                        look(&bytes.map_err(unreadable)?, &mut gathered)?;
                    }
                    Ok((EntryWalk::Reads(from), gathered, true))
                };
                blocking(step).await
            }
        }
    }

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

    /// The newest checkpoint, made now if the last one is older than a minute; or the last one of the day that `at` lies
    /// in. For who has the verb AUDIT.
    pub async fn get_checkpoint(&self, call: &Call, at: Option<Timestamp>) -> Result<Checkpoint, VaultError> {
        call.permit(Verb::Audit)?;
        if let Some(at) = at {
            let row = self.store.object(TenantNo::VAULT, ObjectKind::Checkpoint, day_key(at)).await?;
            let checkpoint = self.read_checkpoint(&row.ok_or(VaultError::NotFound)?)?;
            self.note_listing(call, Action::Checkpoint).await?;
            return Ok(checkpoint);
        }
        let tenant = call.tenant.no;
        let newest = self.stored_checkpoint().await?;
        let fresh = newest.filter(|c| {
            (0..CHECKPOINT_MS).contains(&(call.wall.0 - c.at().0)) && c.head(tenant, Chain::Change).is_some()
        });
        let checkpoint = match fresh {
            Some(checkpoint) => checkpoint,
            None => self.make_checkpoint(call.wall).await?,
        };
        self.note_listing(call, Action::Checkpoint).await?;
        Ok(checkpoint)
    }

    /// Signs the heads of all chains and keeps the result as the newest checkpoint and the last one of its day.
    pub async fn make_checkpoint(&self, now: Timestamp) -> Result<Checkpoint, VaultError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        self.checkpoint_now(now).await
    }

    /// The same, and the trees of a tenant's chains of changes and of reads as it signs them; `None`: a chain without
    /// entries, or without a tree.
    pub(crate) async fn checkpoint_with_trees(
        &self,
        tenant: TenantNo,
        now: Timestamp,
    ) -> Result<(Checkpoint, [Option<GrowingTree>; 2]), VaultError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let checkpoint = self.checkpoint_now(now).await?;
        let mut trees = [None, None];
        for (tree, chain) in trees.iter_mut().zip([Chain::Change, Chain::Read]) {
            *tree = self.kept_tree(tenant, chain, None).await?.map(|kept| kept.tree);
        }
        Ok((checkpoint, trees))
    }

    async fn checkpoint_now(&self, now: Timestamp) -> Result<Checkpoint, VaultError> {
        let (mut heads, mut change) = (Vec::new(), ChangeSet::default());
        for row in self.store.tenants().await? {
            for chain in [Chain::Change, Chain::Read] {
                heads.push(self.head_with_tree(row.no, chain, now, &mut change).await?);
            }
        }
        let checkpoint = Checkpoint::sign(self.keyring.vault(), now, heads, &self.keyring.signing());
        for key in [CHECKPOINT_KEY.to_vec(), day_key(now)] {
            let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
            let row = self.store.object(tenant, kind, key.clone()).await?;
            let revision = Revision(row.map_or(0, |row| row.revision.0) + 1);
            change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: checkpoint.to_json() }));
        }
        self.store.commit(change).await?;
        Ok(checkpoint)
    }

    /// The newest checkpoint that is kept, if its signature is right.
    pub(crate) async fn stored_checkpoint(&self) -> Result<Option<Checkpoint>, VaultError> {
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Checkpoint, CHECKPOINT_KEY.to_vec()).await?;
        row.map(|row| self.read_checkpoint(&row)).transpose()
    }

    pub(crate) fn read_checkpoint(&self, row: &ObjectRow) -> Result<Checkpoint, VaultError> {
        Checkpoint::from_json(&row.body, &self.receipt_keys()).map_err(|_| VaultError::DataLoss)
    }

    /// Rows of the last checkpoints of days after that of `after`, oldest first.
    pub(crate) async fn checkpoints_of_days(&self, after: &[u8], limit: u32) -> Result<Page<ObjectRow>, VaultError> {
        let after = if after.is_empty() { OF_DAY } else { after };
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        Ok(self.store.objects(tenant, kind, OF_DAY.to_vec(), after.to_vec(), limit).await?)
    }

    /// The last checkpoint of each day, and the newest.
    pub(crate) async fn kept_checkpoints(&self) -> Result<Vec<Checkpoint>, VaultError> {
        let (mut kept, mut after) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(TenantNo::VAULT, ObjectKind::Checkpoint, Vec::new(), after, 100).await?;
            for row in &page.rows {
                kept.push(self.read_checkpoint(row)?);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(kept),
            }
        }
    }

    /// Removes checkpoints of days before `before`; answers how many.
    pub(crate) async fn prune_checkpoints(&self, before: Timestamp) -> Result<usize, VaultError> {
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        let page = self.store.objects(tenant, kind, OF_DAY.to_vec(), OF_DAY.to_vec(), 100).await?;
        let end = day_key(before);
        let mut change = ChangeSet::default();
        for row in page.rows.into_iter().filter(|row| row.key < end) {
            change.change(Mutation::DeleteObject { tenant, kind, key: row.key });
        }
        let old = change.mutations.len();
        if old > 0 {
            self.store.commit(change).await?;
        }
        self.drop_trees(Some(before)).await?;
        Ok(old)
    }

    /// By who has the machine, with the server stopped: the read audit is what it is now, although it lacks what a
    /// checkpoint names. Checkpoints begin anew; those that others keep go on to show the loss, and so does the entry.
    pub async fn accept_audit_loss(&self) -> Result<(), VaultError> {
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        let mut change = ChangeSet::default();
        let mut after = Vec::new();
        loop {
            let page = self.store.objects(tenant, kind, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                change.change(Mutation::DeleteObject { tenant, kind, key: row.key.clone() });
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
        let now = self.clock.now();
        let entry = AuditRecord::new(now, ActorId(0), Action::VerifyAudit, Outcome::DataLoss);
        change.note(tenant, entry.to_bytes());
        self.store.commit(change).await?;
        self.drop_trees(None).await?;
        self.make_checkpoint(now).await?;
        Ok(())
    }

    /// What the caller of a recorded call wrote about it, where the class that it is sealed under still has its key and
    /// who asks may read that class; `None` otherwise.
    pub async fn entry_detail(&self, call: &Call, record: &AuditRecord) -> Result<Option<Detail>, VaultError> {
        let (Some(sealed), Some(uid), Some(class)) = (&record.detail, record.subject, record.class) else {
            return Ok(None);
        };
        let Some(policy) = call.tenant.policy.as_ref().filter(|_| call.principal.kind == PrincipalKind::Tenant) else {
            return Ok(None);
        };
        let reads = |g: &&crate::access::Grant| g.verbs.has(Verb::Read) && g.groups.is_none();
        let fields = policy.class(class).map(|rule| rule.fields);
        if !fields.is_some_and(|f| call.principal.grants.iter().filter(reads).any(|g| !g.fields.and(&f).is_empty())) {
            return Ok(None);
        }
        let Some(snapshot) = self.store.subject_by_uid(uid).await? else { return Ok(None) };
        let Some((row, slot)) = snapshot.class(class).and_then(|row| Some((row, row.slot?))) else { return Ok(None) };
        let key = KeyRef { slot, dek: row.dek };
        let aad = Aad::new(Kind::AuditDetail, self.keyring.vault(), call.tenant.no)
            .part(&row.uid.0.to_be_bytes())
            .part(&[row.class.0])
            .part(&row.version.0.to_be_bytes())
            .part(&row.dek.0);
        for _ in 0..4 {
            match self.keyring.with_dek(call.tenant.no, key, |dek| dek.audit_detail().open(&aad, sealed)) {
                Some(plain) => return Ok(plain.ok().and_then(|plain| read_detail(&plain))),
                None => self.keyring.load(call.tenant.no, &[key]).await?,
            }
        }
        Ok(None)
    }
}

/// Reads what [`crate::vault::Context::detail`] wrote.
fn read_detail(mut plain: &[u8]) -> Option<Detail> {
    let mut text = || {
        let (len, rest) = plain.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        plain = rest;
        Some(Zeroizing::new(std::str::from_utf8(text).ok()?.to_owned()))
    };
    let (reason, reference) = (text()?, text()?);
    plain.is_empty().then_some(Detail { reason, reference })
}

pub(crate) fn unreadable(error: ReadLogError) -> VaultError {
    tracing::error!(%error, "the read audit cannot be read");
    VaultError::AuditUnavailable
}

/// Runs what reads files off the async runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(VaultError::AuditUnavailable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Context;

    fn group(records: &[AuditRecord]) -> Vec<u8> {
        let mut builder = GroupBuilder::new();
        records.iter().for_each(|record| builder.push(record));
        let start = genesis(VaultId([1; 16]), TenantNo(1), Chain::Change);
        builder.link(TenantNo(1), Chain::Change, &start).unwrap().0.to_vec()
    }

    #[test]
    fn a_full_page_says_where_to_go_on() {
        let record = |actor| AuditRecord::new(Timestamp(5), ActorId(actor), Action::PutFields, Outcome::Ok);
        let bytes = group(&[record(1), record(2), record(1), record(1)]);
        let group = Group::parse(&bytes).unwrap();
        let query = EntryQuery { actors: vec![ActorId(1)], ..EntryQuery::default() };
        let (mut page, mut looks) = (EntryPage::default(), 0);
        assert!(!page.take(&group, &query, 2, &mut looks).unwrap());
        let positions: Vec<u64> = page.entries.iter().map(|(position, _)| *position).collect();
        assert_eq!((positions, page.seen, page.more), (vec![1, 3], 3, true));
        let mut rest = EntryPage { seen: 3, ..EntryPage::default() };
        assert!(rest.take(&group, &query, 2, &mut looks).unwrap());
        assert_eq!((rest.entries.len(), rest.seen, rest.more), (1, 4, false));
    }

    #[test]
    fn a_page_looks_at_no_more_than_its_budget() {
        let record = AuditRecord::new(Timestamp(5), ActorId(1), Action::PutFields, Outcome::Ok);
        let bytes = group(&[record.clone(), record]);
        let (mut page, mut looks) = (EntryPage::default(), LOOKS - 1);
        let query = EntryQuery { actions: vec![Action::GetFields], ..EntryQuery::default() };
        assert!(!page.take(&Group::parse(&bytes).unwrap(), &query, 100, &mut looks).unwrap());
        assert_eq!((page.entries.len(), page.seen, page.more), (0, 1, true));
    }

    #[test]
    fn a_detail_reads_back_and_nothing_else_does() {
        let context = Context {
            reason: Zeroizing::new("why".into()),
            reference: Zeroizing::new("T-1".into()),
            ..Context::default()
        };
        let plain = context.detail();
        let read = read_detail(&plain).unwrap();
        assert_eq!((read.reason.as_str(), read.reference.as_str()), ("why", "T-1"));
        for i in 0..plain.len() {
            assert!(read_detail(&plain[..i]).is_none());
        }
    }
}
