//! A store that remembers every node it was ever handed, committed or not, and whose commits can go wrong.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::access::ClassSet;
use crate::audit::Head;
use crate::ids::*;
use crate::storage::*;

/// What happens to the next swap's commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitFault {
    /// Not committed, and the answer is an error.
    Lost,
    /// Committed, and the answer is an error.
    Unclear,
    /// Committed or not, the answer is an error and so is every read: the process can only be restarted.
    Dead { committed: bool },
    /// The files are copied there just before; then it goes on.
    CopyBefore(PathBuf),
}

pub struct Spy {
    pub inner: Arc<dyn Store>,
    pub files: PathBuf,
    pub nodes: Arc<Mutex<Vec<NodeRow>>>,
    pub fault: Mutex<Option<CommitFault>>,
    dead: Mutex<bool>,
}

const BROKEN: StoreError = StoreError::Closed { reason: "a test broke it" };

impl Spy {
    pub fn new(inner: Arc<dyn Store>, files: PathBuf, nodes: Arc<Mutex<Vec<NodeRow>>>) -> Self {
        Spy { inner, files, nodes, fault: Mutex::new(None), dead: Mutex::new(false) }
    }
}

/// Copies database and log as they lie there: what a kill leaves, or a thief takes.
pub fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["vault.db", "vault.db-wal"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[async_trait]
impl Store for Spy {
    async fn commit(&self, change: ChangeSet) -> Result<Committed, StoreError> {
        let mut swap = false;
        for mutation in &change.mutations {
            match mutation {
                Mutation::PutNode(row) => self.nodes.lock().push(row.clone()),
                Mutation::SetGeneration { .. } => swap = true,
                _ => {}
            }
        }
        let fault = if swap { self.fault.lock().take() } else { None };
        match fault {
            None => self.inner.commit(change).await,
            Some(CommitFault::CopyBefore(to)) => {
                copy_files(&self.files, &to);
                self.inner.commit(change).await
            }
            Some(CommitFault::Lost) => Err(BROKEN),
            Some(CommitFault::Unclear) => {
                self.inner.commit(change).await?;
                Err(BROKEN)
            }
            Some(CommitFault::Dead { committed }) => {
                if committed {
                    self.inner.commit(change).await?;
                }
                *self.dead.lock() = true;
                Err(BROKEN)
            }
        }
    }
    async fn nodes(&self, tenant: TenantNo, ordinals: Vec<Ordinal>) -> Result<NodeSnapshot, StoreError> {
        if *self.dead.lock() {
            return Err(BROKEN);
        }
        self.inner.nodes(tenant, ordinals).await
    }

    fn cached_subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Option<Arc<SubjectSnapshot>> {
        self.inner.cached_subject(tenant, digest)
    }
    async fn subject(&self, tenant: TenantNo, digest: SubjectDigest) -> Result<Lookup, StoreError> {
        self.inner.subject(tenant, digest).await
    }
    async fn subjects(&self, tenant: TenantNo, digests: Vec<SubjectDigest>) -> Result<Vec<Lookup>, StoreError> {
        self.inner.subjects(tenant, digests).await
    }
    async fn subject_by_uid(&self, uid: SubjectUid) -> Result<Option<Arc<SubjectSnapshot>>, StoreError> {
        self.inner.subject_by_uid(uid).await
    }
    async fn list_subjects(
        &self,
        tenant: TenantNo,
        group: Option<GroupNo>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<Arc<SubjectSnapshot>>, StoreError> {
        self.inner.list_subjects(tenant, group, after, limit).await
    }
    fn skip_uids(&self, below: SubjectUid) {
        self.inner.skip_uids(below);
    }
    fn next_uid(&self) -> SubjectUid {
        self.inner.next_uid()
    }
    async fn tenants(&self) -> Result<Vec<TenantRow>, StoreError> {
        self.inner.tenants().await
    }
    async fn survey(&self, t: TenantNo, c: ClassSet, after: SubjectUid, subjects: u32) -> Result<Survey, StoreError> {
        self.inner.survey(t, c, after, subjects).await
    }
    async fn item_times(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        after: Option<ItemTimes>,
        limit: u32,
    ) -> Result<Page<ItemTimes>, StoreError> {
        self.inner.item_times(tenant, class, after, limit).await
    }
    async fn list_nodes(&self, t: TenantNo, after: Option<Ordinal>, limit: u32) -> Result<Vec<NodeRow>, StoreError> {
        self.inner.list_nodes(t, after, limit).await
    }
    async fn slots(&self, tenant: TenantNo) -> Result<SlotUse, StoreError> {
        self.inner.slots(tenant).await
    }
    async fn slot_owners(&self, tenant: TenantNo, from: Slot, to: Slot) -> Result<Vec<SlotOwner>, StoreError> {
        self.inner.slot_owners(tenant, from, to).await
    }
    async fn item_groups(&self, uid: SubjectUid, field: Option<FieldNo>) -> Result<Vec<ItemGroupRow>, StoreError> {
        self.inner.item_groups(uid, field).await
    }
    async fn item_groups_of(&self, uids: Vec<SubjectUid>) -> Result<Vec<ItemGroupRow>, StoreError> {
        self.inner.item_groups_of(uids).await
    }
    async fn items(&self, group: ItemGroupKey, after: ItemNo, limit: u32) -> Result<Page<ItemRow>, StoreError> {
        self.inner.items(group, after, limit).await
    }
    async fn item(&self, group: ItemGroupKey, item: ItemNo) -> Result<Option<ItemRow>, StoreError> {
        self.inner.item(group, item).await
    }
    async fn item_groups_between(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        from: Bucket,
        to: Bucket,
        after: Option<(Bucket, SubjectUid, FieldNo)>,
        limit: u32,
    ) -> Result<Page<ItemGroupRow>, StoreError> {
        self.inner.item_groups_between(tenant, class, from, to, after, limit).await
    }
    async fn classes_due(
        &self,
        tenant: TenantNo,
        class: ClassNo,
        until: Bucket,
        limit: u32,
    ) -> Result<Vec<ClassRow>, StoreError> {
        self.inner.classes_due(tenant, class, until, limit).await
    }
    async fn find_terms(
        &self,
        tenant: TenantNo,
        field: FieldNo,
        tags: Vec<(SecretVersion, TermTag)>,
        after: SubjectUid,
        limit: u32,
    ) -> Result<Page<SubjectUid>, StoreError> {
        self.inner.find_terms(tenant, field, tags, after, limit).await
    }
    async fn count_terms(&self, tenant: TenantNo, version: SecretVersion) -> Result<u64, StoreError> {
        self.inner.count_terms(tenant, version).await
    }
    async fn expiries(&self, tenant: TenantNo) -> Result<Vec<ExpiryRow>, StoreError> {
        self.inner.expiries(tenant).await
    }
    async fn object(&self, t: TenantNo, kind: ObjectKind, key: Vec<u8>) -> Result<Option<ObjectRow>, StoreError> {
        self.inner.object(t, kind, key).await
    }
    async fn objects(
        &self,
        tenant: TenantNo,
        kind: ObjectKind,
        prefix: Vec<u8>,
        after: Vec<u8>,
        limit: u32,
    ) -> Result<Page<ObjectRow>, StoreError> {
        self.inner.objects(tenant, kind, prefix, after, limit).await
    }
    async fn request(&self, tenant: TenantNo, request: ObjectId) -> Result<Option<RequestRow>, StoreError> {
        self.inner.request(tenant, request).await
    }
    async fn audit_groups(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Vec<AuditGroupRow>, StoreError> {
        self.inner.audit_groups(tenant, after, limit).await
    }
    async fn audit_head(&self, tenant: TenantNo) -> Result<Option<Head>, StoreError> {
        self.inner.audit_head(tenant).await
    }
    async fn feed(&self, tenant: TenantNo, after: u64, limit: u32) -> Result<Page<FeedRow>, StoreError> {
        self.inner.feed(tenant, after, limit).await
    }
    async fn subject_count(&self, tenant: TenantNo) -> Result<u64, StoreError> {
        self.inner.subject_count(tenant).await
    }
    async fn counts(&self, tenant: TenantNo) -> Result<TenantCounts, StoreError> {
        self.inner.counts(tenant).await
    }
    async fn copy_to(&self, path: PathBuf, watch: CopyWatch) -> Result<(), StoreError> {
        self.inner.copy_to(path, watch).await
    }
    async fn checkpoint(&self) -> Result<(), StoreError> {
        self.inner.checkpoint().await
    }
    fn health(&self) -> Result<(), StoreError> {
        self.inner.health()
    }
    fn set_listener(&self, listener: Arc<dyn CommitListener>) {
        self.inner.set_listener(listener);
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}
