//! Looking at the audit: entries by filter, page by page or followed. Everybody who looks needs the verb AUDIT and leaves an
//! entry.

use crate::access::{FieldSet, Verb};
use crate::audit::*;
use crate::auth::Kind as PrincipalKind;
use crate::clock::Timestamp;
use crate::crypto::aad::{Aad, Kind};
use crate::ids::*;
use crate::keyring::KeyRef;
use crate::storage::readlog::ReadLogError;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use zeroize::Zeroizing;

/// Entries that one page looks at, however few it shows: a page costs a bounded time.
const LOOKS: usize = 20_000;
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
