//! Floor 3: rows in, rows out, all or nothing. Sees ids, envelopes and sealed nodes; never a secret, never a value.
//!
//! A transaction is a value: [`ChangeSet`] holds preconditions, mutations and encoded audit entries, and is committed
//! whole or answered with [`StoreError::Conflict`], upon which the caller reads again and decides again.

#[cfg(test)]
pub mod conformance;
mod exclusive;
pub mod readlog;
pub mod rows;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;

use crate::access::ClassSet;
use crate::audit::Head;
use crate::clock::Timestamp;
use crate::ids::*;
pub use exclusive::exclusive;
pub use rows::*;

/// What must still be true when the change set commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The tenant's row has this state.
    TenantIs { tenant: TenantNo, state: TenantState },
    /// The tenant's settings have this revision; swaps of its tree do not count.
    TenantSettingsAt { tenant: TenantNo, revision: Revision },
    /// The tenant's tree has this generation; for swaps and births of nodes only.
    TreeGeneration { tenant: TenantNo, generation: Generation },
    /// With `new` more subjects the tenant has at most `most`. Counted before this change set: one for all that it makes.
    SubjectRoom { tenant: TenantNo, new: u64, most: u64 },
    /// The subject's row is there with this revision.
    SubjectAt { uid: SubjectUid, revision: Revision },
    /// The subject's row is there and `Live`, whatever its revision.
    SubjectLive { uid: SubjectUid },
    /// No subject has this digest.
    SubjectAbsent { tenant: TenantNo, digest: SubjectDigest },
    /// No tombstone has this digest.
    NoTombstone { tenant: TenantNo, digest: SubjectDigest },
    /// The class row is there with this version and revision, and `Live`.
    ClassAt { uid: SubjectUid, class: ClassNo, version: DekVersion, revision: Revision },
    /// The class row is there with this version and `Live` (its record may have changed): for appended items.
    ClassLive { uid: SubjectUid, class: ClassNo, version: DekVersion },
    /// The class row is there with this version and revision, whatever its state: for work on values that are kept.
    ClassStill { uid: SubjectUid, class: ClassNo, version: DekVersion, revision: Revision },
    /// There is no row of this class, or it is `Erased` with a version below this one.
    ClassBelow { uid: SubjectUid, class: ClassNo, version: DekVersion },
    /// The item group has this revision; 0: it is not there.
    ItemGroupAt { uid: SubjectUid, field: FieldNo, bucket: Bucket, revision: Revision },
    /// The subject's class has so many item groups: none was added since they were listed.
    ItemGroupsOf { tenant: TenantNo, uid: SubjectUid, class: ClassNo, count: u32 },
    /// The bucket's expiry row is there, has this dek id and is not dropped.
    ExpiryLive { tenant: TenantNo, class: ClassNo, bucket: Bucket, dek: DekId },
    /// None of these tags of a unique field belongs to another subject.
    TermsFree { tenant: TenantNo, field: FieldNo, tags: Vec<(SecretVersion, TermTag)>, owner: SubjectUid },
    /// The object has this revision; 0: it is not there.
    ObjectAt { tenant: TenantNo, kind: ObjectKind, key: Vec<u8>, revision: Revision },
    /// No object of this kind has a key that starts with `prefix` (no hold on this class, say).
    NoObjectUnder { tenant: TenantNo, kind: ObjectKind, prefix: Vec<u8> },
}

/// One change of one row, or of a range of rows that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Inserts or replaces.
    PutTenant(TenantRow),
    /// Sets the settings alone, beside swaps that go on.
    SetTenantSettings {
        tenant: TenantNo,
        body: Vec<u8>,
        revision: Revision,
    },
    /// Sets the generation alone: the commit of a swap.
    SetGeneration {
        tenant: TenantNo,
        generation: Generation,
    },
    /// Inserts or replaces a node.
    PutNode(NodeRow),
    /// Removes all rows of a tenant but its tenant row and its audit, at most `limit` rows; for a tenant's erasure, in
    /// batches.
    ClearTenant {
        tenant: TenantNo,
        limit: u32,
    },
    PutSubject(SubjectRow),
    /// Removes the row and what is left of its class rows.
    DeleteSubject {
        uid: SubjectUid,
    },
    /// Only the coarse activity day changes; no revision.
    TouchSubject {
        uid: SubjectUid,
        at: Timestamp,
    },
    /// A row that replaces one of the same version does not lower the count of seals, unless it erases.
    PutClass(ClassRow),
    /// So many values were sealed under the class's key beside its record; no revision.
    CountSeals {
        uid: SubjectUid,
        class: ClassNo,
        by: u32,
    },
    DeleteClass {
        uid: SubjectUid,
        class: ClassNo,
    },
    PutItemGroup(ItemGroupRow),
    DeleteItemGroup {
        uid: SubjectUid,
        field: FieldNo,
        bucket: Bucket,
    },
    /// A new item of its group; a duplicate where its number is taken there.
    AddItem(ItemRow),
    /// In place of the item of that number.
    PutItem(ItemRow),
    DeleteItem {
        tenant: TenantNo,
        class: ClassNo,
        bucket: Bucket,
        uid: SubjectUid,
        field: FieldNo,
        item: ItemNo,
    },
    /// All items and item groups of a subject's class (its key is dead): at most `limit` items, `u32::MAX` for all.
    DeleteItemsOf {
        tenant: TenantNo,
        uid: SubjectUid,
        class: ClassNo,
        limit: u32,
    },
    /// Items and item groups of a bucket that is over, at most `limit` items.
    DeleteBucket {
        tenant: TenantNo,
        class: ClassNo,
        bucket: Bucket,
        limit: u32,
    },
    PutTerm(TermRow),
    /// All tags of one field of one subject, or of all fields.
    DeleteTerms {
        tenant: TenantNo,
        uid: SubjectUid,
        field: Option<FieldNo>,
    },
    /// Tags of an index secret's version that is being retired, at most `limit`.
    DeleteTermsOfVersion {
        tenant: TenantNo,
        version: SecretVersion,
        limit: u32,
    },
    PutTombstone(TombstoneRow),
    /// An erased id starts a new life on purpose.
    DeleteTombstone {
        tenant: TenantNo,
        digest: SubjectDigest,
    },
    PutExpiry(ExpiryRow),
    DeleteExpiry {
        tenant: TenantNo,
        class: ClassNo,
        bucket: Bucket,
    },
    /// The slot's key was replaced: it may be given again (once covered by a key archive, where there is one).
    FreeSlot {
        tenant: TenantNo,
        slot: Slot,
    },
    /// A slot is given: it is free no longer. Fresh ones were never free, and may commit in any order.
    TakeSlot {
        tenant: TenantNo,
        slot: Slot,
    },
    PutObject(ObjectRow),
    DeleteObject {
        tenant: TenantNo,
        kind: ObjectKind,
        key: Vec<u8>,
    },
    /// Remembers a request's answer; a second one with the same id is [`Conflict::Request`].
    PutRequest(RequestRow),
    /// Forgets answers older than this.
    PruneRequests {
        before: Timestamp,
        limit: u32,
    },
    /// Appends to the feed of erasures; its number is given at commit.
    PutFeed {
        tenant: TenantNo,
        at: Timestamp,
        body: Vec<u8>,
    },
    /// Removes feed events older than this.
    PruneFeed {
        tenant: TenantNo,
        before: Timestamp,
        limit: u32,
    },
}

/// One all-or-nothing change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Checked in order before the first mutation.
    pub preconditions: Vec<Precondition>,
    /// Applied in order.
    pub mutations: Vec<Mutation>,
    /// Audit entries (`audit::AuditRecord::to_bytes`), each with the tenant whose change chain it joins.
    pub audit: Vec<(TenantNo, Vec<u8>)>,
}

impl ChangeSet {
    pub fn require(&mut self, precondition: Precondition) -> &mut Self {
        self.preconditions.push(precondition);
        self
    }
    pub fn change(&mut self, mutation: Mutation) -> &mut Self {
        self.mutations.push(mutation);
        self
    }
    /// Puts the next revision of an object in place of the one of `former`, which must still be there; 0: of none.
    pub fn replace_object(
        &mut self,
        tenant: TenantNo,
        kind: ObjectKind,
        key: Vec<u8>,
        former: Revision,
        body: Vec<u8>,
    ) -> &mut Self {
        self.require(Precondition::ObjectAt { tenant, kind, key: key.clone(), revision: former });
        self.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision: Revision(former.0 + 1), body }))
    }
    pub fn note(&mut self, tenant: TenantNo, entry: Vec<u8>) -> &mut Self {
        self.audit.push((tenant, entry));
        self
    }
}

/// Which precondition no longer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// The precondition at this position.
    Precondition(usize),
    /// The request id was used before.
    Request,
    /// A row with this unique key is there already (digest, slot, term of a unique field, number of an item).
    Duplicate,
}

/// What a store can answer instead of doing what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Read again and decide again.
    #[error("a precondition no longer holds")]
    Conflict(Conflict),
    /// The writer's queue is full: nothing was queued.
    #[error("too many writes are waiting")]
    Busy,
    /// No space left; reads go on.
    #[error("the disk is full")]
    DiskFull,
    /// The store was closed, by shutdown or after an error that makes further writes unsafe.
    #[error("the store is closed: {reason}")]
    Closed { reason: &'static str },
    /// What was read cannot be what was written.
    #[error("the database is damaged: {what}")]
    Damaged { what: &'static str },
    /// The file is not one to open: none there, another program's, another vault's, or open in another process.
    #[error("the database file is refused: {what}")]
    Refused { what: &'static str },
    /// The file was written by a newer version.
    #[error("the database has schema {found}, this version knows {known}")]
    Newer { found: u32, known: u32 },
    /// Any other error of the database engine; its text holds no values.
    #[error("database error")]
    Engine(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// What a commit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// Rows that mutations with a `limit` removed; when it is 0, nothing was left for them to remove.
    pub removed: u64,
}

/// What is known of a digest.
#[derive(Debug, Clone)]
pub enum Lookup {
    Found(Arc<SubjectSnapshot>),
    Erased(TombstoneRow),
    Missing,
}

/// One page of rows and whether more follow.
#[derive(Debug, Clone)]
pub struct Page<T> {
    pub rows: Vec<T>,
    pub more: bool,
}

/// Watches a copy, on the copy's own thread: told after each part how many bytes are done and how many there are. It may
/// wait, to leave the disk to others; `false` stops the copy.
pub type CopyWatch = Box<dyn FnMut(u64, u64) -> bool + Send>;

/// Called by the writer after COMMIT and before any answer: purges what memory still holds of these subjects.
pub trait CommitListener: Send + Sync {
    fn committed(&self, uids: &[SubjectUid]);
}

/// What every backend does. All methods may be called from any task; none blocks the async runtime.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Commits, durably, or changes nothing. When it has answered `Ok`, every read that starts afterwards sees it.
    async fn commit(&self, change: ChangeSet) -> Result<Committed, StoreError>;

    /// The subject with its classes, if the ciphertext cache has it: no I/O, no waiting.
    fn cached_subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Option<Arc<SubjectSnapshot>>;
    /// The subject with its classes by the digest of its id.
    async fn subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Result<Lookup, StoreError>;
    /// Several at once, in the order asked.
    async fn subjects(&self, tenant: TenantNo, digests: Vec<SubjectDigest>) -> Result<Vec<Lookup>, StoreError>;
    /// By row number; `None` when it is not there.
    async fn subject_by_uid(&self, uid: SubjectUid) -> Result<Option<Arc<SubjectSnapshot>>, StoreError>;
    /// Subjects of a tenant (of one group, where asked) in order of creation, after `after`.
    async fn list_subjects(
        &self,
        tenant: TenantNo,
        group: Option<GroupNo>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<Arc<SubjectSnapshot>>, StoreError>;
    /// Class rows, in `classes`, of the next `subjects` subjects of a tenant after `after`: a pass over everything that is
    /// stored, in pages.
    async fn survey(
        &self,
        tenant: TenantNo,
        classes: ClassSet,
        after: SubjectUid,
        subjects: u32,
    ) -> Result<Survey, StoreError>;

    /// Times of all items of a tenant's class, by (bucket, uid, field, item), after `after`; their content is not read.
    async fn item_times(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        after: Option<ItemTimes>,
        limit: u32,
    ) -> Result<Page<ItemTimes>, StoreError>;

    /// A number for a new subject; numbers are given once, in order, and lost ones are never reused.
    fn next_uid(&self) -> SubjectUid;
    /// Numbers below this one are not given any more: an older database forgets which were. Durable with the next
    /// commit or an orderly close.
    fn skip_uids(&self, below: SubjectUid);

    /// Tenants by number; all of them.
    async fn tenants(&self) -> Result<Vec<TenantRow>, StoreError>;

    /// Nodes by ordinal with the generation of the same snapshot.
    async fn nodes(&self, tenant: TenantNo, ordinals: Vec<Ordinal>) -> Result<NodeSnapshot, StoreError>;
    /// Nodes of a tenant in order, after `after` (`None`: from the top).
    async fn list_nodes(
        &self,
        tenant: TenantNo,
        after: Option<Ordinal>,
        limit: u32,
    ) -> Result<Vec<NodeRow>, StoreError>;
    /// The highest slot ever given to a class or a bucket, and the free ones below it.
    async fn slots(&self, tenant: TenantNo) -> Result<SlotUse, StoreError>;
    /// Slots from `from` to before `to` that are given to a class or a bucket, ascending; for a restore.
    async fn slot_owners(&self, tenant: TenantNo, from: Slot, to: Slot) -> Result<Vec<SlotOwner>, StoreError>;

    /// Item groups of a subject's field, by bucket; of all its fields where `field` is `None`.
    async fn item_groups(&self, uid: SubjectUid, field: Option<FieldNo>) -> Result<Vec<ItemGroupRow>, StoreError>;
    /// Item groups of many subjects in the order asked, each one's by field and bucket; for jobs that take pages of them.
    async fn item_groups_of(&self, uids: Vec<SubjectUid>) -> Result<Vec<ItemGroupRow>, StoreError>;
    /// Items of one group by number, after `after`.
    async fn items(&self, group: ItemGroupKey, after: ItemNo, limit: u32) -> Result<Page<ItemRow>, StoreError>;
    /// One item.
    async fn item(&self, group: ItemGroupKey, item: ItemNo) -> Result<Option<ItemRow>, StoreError>;
    /// Item groups of a tenant's class with a bucket in `from..=to`, after `after` by (bucket, uid, field): for
    /// retention changes, holds and the sweep.
    async fn item_groups_between(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        from: Bucket,
        to: Bucket,
        after: Option<(Bucket, SubjectUid, FieldNo)>,
        limit: u32,
    ) -> Result<Page<ItemGroupRow>, StoreError>;
    /// Classes whose record has a section with a bucket of at most `until`: for the sweep.
    async fn classes_due(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        until: Bucket,
        limit: u32,
    ) -> Result<Vec<ClassRow>, StoreError>;

    /// Subjects that have one of these tags in a field, by uid, after `after`.
    async fn find_terms(
        &self,
        tenant: TenantNo,
        field: FieldNo,
        tags: Vec<(SecretVersion, TermTag)>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<SubjectUid>, StoreError>;
    /// How many tags a version of the index secret still has.
    async fn count_terms(&self, tenant: TenantNo, version: SecretVersion) -> Result<u64, StoreError>;

    /// Expiry rows of a tenant.
    async fn expiries(&self, tenant: TenantNo) -> Result<Vec<ExpiryRow>, StoreError>;

    /// One object.
    async fn object(&self, tenant: TenantNo, kind: ObjectKind, key: Vec<u8>) -> Result<Option<ObjectRow>, StoreError>;
    /// Objects of a kind whose key starts with `prefix`, by key, after `after` (exclusive).
    async fn objects(
        &self,
        tenant: TenantNo,
        kind: ObjectKind,
        prefix: Vec<u8>,
        after: Vec<u8>,
        limit: u32,
    ) -> Result<Page<ObjectRow>, StoreError>;

    /// A remembered answer.
    async fn request(&self, tenant: TenantNo, request: ObjectId) -> Result<Option<RequestRow>, StoreError>;

    /// Groups of the change audit of a tenant with their last sequence number above `after`, in order.
    async fn audit_groups(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Vec<AuditGroupRow>, StoreError>;
    /// Where a tenant's change audit ends; `None` while it has no entry.
    async fn audit_head(&self, tenant: TenantNo) -> Result<Option<Head>, StoreError>;
    /// Feed events of a tenant after a number, in order.
    async fn feed(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Page<FeedRow>, StoreError>;

    /// How many subjects a tenant has: a counter, no scan.
    async fn subject_count(&self, tenant: TenantNo) -> Result<u64, StoreError>;
    /// Counts for usage and reports; may scan, so never at start.
    async fn counts(&self, tenant: TenantNo) -> Result<TenantCounts, StoreError>;
    /// A consistent copy of the whole database as a new file at `path`, not yet synced: whoever asks does that, beside
    /// what else it does with the file. `watch` paces it.
    ///
    /// # Errors
    /// `Refused` where there is a file already or `watch` stopped it, `DiskFull`. Nothing is left behind then.
    async fn copy_to(&self, path: std::path::PathBuf, watch: CopyWatch) -> Result<(), StoreError>;
    /// Moves the write-ahead log into the database file and truncates it.
    async fn checkpoint(&self) -> Result<(), StoreError>;
    /// `Err` with the reason once writes are refused for good.
    fn health(&self) -> Result<(), StoreError>;
    /// Who is told of commits; set once, before the first write.
    fn set_listener(&self, listener: Arc<dyn CommitListener>);
    /// Stops taking writes, finishes what is queued, closes the files.
    async fn close(&self);
}
