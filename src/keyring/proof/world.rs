//! A small world around a keyring: a store in files, a keeper on a disk that loses power, subjects with one sealed value
//! per class, and a plain model of what lives and what was erased.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Dice;
use super::spy::{CommitFault, Spy, copy_files};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::keys::{Dek, FAN_OUT, IndexKey, RootKek, TenantRoot, TenantSecret};
use crate::crypto::random;
use crate::crypto::recovery::RecoveryIdentity;
use crate::ids::*;
use crate::keyring::archive::setting::HORIZON_DAYS;
use crate::keyring::keeper::block::{self, RECORD, Record};
use crate::keyring::keeper::sim::SimDisk;
use crate::keyring::keeper::{FileKeeper, Keeper, root_block_aad};
use crate::keyring::ledger::{LedgerEntry, LedgerKind};
use crate::keyring::tree::{self, OpenNode, Tree};
use crate::keyring::*;
use crate::storage::sqlite::{Options, SqliteStore};
use crate::storage::*;

pub const VAULT: VaultId = VaultId([0x5A; 16]);
pub const TENANT: TenantNo = TenantNo(1);
pub const FIELD: FieldNo = FieldNo(7);
/// Values of the searchable field: few enough to guess them all.
pub const DOMAIN: usize = 40;
pub const ROOTS: &str = "roots.keeper";

/// A stored value: random, so that finding it anywhere means that it was recovered.
pub type Plain = [u8; 16];

/// A ciphertext with all that its AAD needs; whoever has the database knows as much.
#[derive(Clone)]
pub struct Sealed {
    pub class: ClassRef,
    pub expiry: Option<DekId>,
    pub bytes: Vec<u8>,
}

impl Sealed {
    fn aad(class: &ClassRef) -> Aad {
        Aad::new(Kind::Field, VAULT, class.tenant)
            .part(&class.uid.0.to_be_bytes())
            .part(&[class.class.0])
            .part(&class.key.dek.0)
    }
}

/// A searchable value's tag.
#[derive(Clone, Copy)]
pub struct Tagged {
    pub tag: TermTag,
    pub uid: SubjectUid,
}

#[derive(Clone)]
pub struct Class {
    pub key: KeyRef,
    pub plain: Plain,
    /// Values that this key sealed before.
    pub former: Vec<Plain>,
}

#[derive(Clone)]
pub struct Subject {
    pub digest: SubjectDigest,
    pub classes: BTreeMap<ClassNo, Class>,
    pub phone: usize,
}

/// A value that ends with a bucket.
#[derive(Clone)]
pub struct Expiring {
    pub bucket: Bucket,
    pub class: ClassRef,
    pub expiry: KeyRef,
    pub plain: Plain,
    pub sealed: Vec<u8>,
}

/// What was ever written where a thief may have copied it.
#[derive(Default)]
pub struct Seen {
    pub sealed: Vec<Sealed>,
    pub tags: Vec<Tagged>,
    /// Small records of the database.
    pub objects: Vec<Vec<u8>>,
}

/// Deliberate mistakes that the oracle must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Erasing overwrites the wrapped key in its leaf and re-keys nothing.
    DeleteOnly,
    /// The index secret lies in the database, wrapped by the root KEK.
    IndexOutside,
    /// A start discards d + 1.
    DiscardNext,
    /// The anchor is noted by rewriting the root's block.
    AnchorInRoot,
    /// Slots are given although no key archive has their keys.
    Uncovered,
    /// A restore drops by the caller's id what the ledger names by row number.
    LedgerById,
    /// A restore deletes the rows of the erased and keeps their keys in the tree.
    NoRekey,
}

/// What goes wrong in an erasure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Stop(SwapPoint),
    /// The power fails in the n-th keeper step from now.
    KeeperStep(usize),
    Commit(CommitFault),
}

pub struct World {
    tmp: tempfile::TempDir,
    /// Number of the directory that holds the present database files.
    epoch: usize,
    kek: [u8; 32],
    pub disk: SimDisk,
    pub replicas: usize,
    pub mutant: Option<Mutant>,
    pub clock: Arc<ManualClock>,
    /// Opens the key archive.
    pub recovery: [RecoveryIdentity; 1],
    /// As the database would hold it.
    pub setting: Vec<u8>,
    pub spy: Arc<Spy>,
    pub keeper: Arc<dyn Keeper>,
    pub ring: Arc<Keyring>,
    stop: Arc<Mutex<Option<SwapPoint>>>,
    pub nodes: Arc<Mutex<Vec<NodeRow>>>,
    pub seen: Seen,
    pub subjects: BTreeMap<SubjectUid, Subject>,
    pub expiring: Vec<Expiring>,
    pub buckets: BTreeMap<Bucket, KeyRef>,
    /// Values whose erasure was answered.
    pub erased: HashSet<Plain>,
    /// Subjects erased and their searchable value; `true` once guessing must be over.
    pub searchable_erased: Vec<(SubjectUid, usize, bool)>,
    pub index: SecretVersion,
}

pub fn digest(uid: SubjectUid) -> SubjectDigest {
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&uid.0.to_be_bytes());
    SubjectDigest(digest)
}

pub fn tenant_row(no: TenantNo, name: &str) -> TenantRow {
    TenantRow {
        no,
        name: Name::parse("tenant", name).unwrap(),
        state: TenantState::Live,
        generation: Generation(1),
        body: b"{}".to_vec(),
        revision: Revision(1),
    }
}

impl World {
    pub async fn new(replicas: usize, mutant: Option<Mutant>) -> World {
        Self::over(SimDisk::new(), replicas, mutant).await
    }

    /// Its roots are guarded by a token.
    pub async fn guarded(replicas: usize) -> World {
        Self::over(SimDisk::guarded(), replicas, None).await
    }

    async fn over(disk: SimDisk, replicas: usize, mutant: Option<Mutant>) -> World {
        let media: Vec<_> = (0..replicas).map(|n| disk.medium(&format!("r{n}"))).collect();
        FileKeeper::create_on(&media, VAULT).unwrap();
        let keeper = Arc::new(FileKeeper::open_on(&media).unwrap());
        Self::on(disk, keeper, replicas, mutant).await
    }

    /// With a keeper elsewhere: no restarts.
    pub async fn with_keeper(keeper: Arc<dyn Keeper>) -> World {
        Self::on(SimDisk::new(), keeper, 0, None).await
    }

    async fn on(disk: SimDisk, keeper: Arc<dyn Keeper>, replicas: usize, mutant: Option<Mutant>) -> World {
        let tmp = tempfile::tempdir().unwrap();
        let kek = random::bytes();
        let clock = Arc::new(ManualClock::new(Timestamp(1_790_000_000_000)));
        let stop = Arc::new(Mutex::new(None));
        let nodes = Arc::new(Mutex::new(Vec::new()));
        let files = tmp.path().join("0");
        std::fs::create_dir_all(&files).unwrap();
        let spy = Self::open_store(files, &nodes);
        let recovery = [RecoveryIdentity::generate()];
        let setting = RecoverySetting::new(VAULT, &[recovery[0].recipient()], clock.now());
        let archive = KeyArchive::new(tmp.path().join("keys"), VAULT, None, HORIZON_DAYS, clock.clone());
        archive.put_setting(setting.clone()).unwrap();
        let options = Self::options(&clock, &stop, archive);
        let (vault_row, with) = (tenant_row(TenantNo::VAULT, "vault"), ChangeSet::default());
        let kek_now = RootKek::from_bytes(&kek);
        let ring = Keyring::init(spy.clone(), keeper.clone(), kek_now, options, vault_row, with).await.unwrap();
        ring.create_tenant(tenant_row(TENANT, "tenant-a"), ChangeSet::default()).await.unwrap();
        let mut world = World {
            tmp,
            epoch: 0,
            kek,
            disk,
            replicas,
            mutant,
            clock,
            recovery,
            setting: setting.sign(&ring.signing()),
            spy,
            keeper,
            ring,
            stop,
            nodes,
            seen: Seen::default(),
            subjects: BTreeMap::new(),
            expiring: Vec::new(),
            buckets: BTreeMap::new(),
            erased: HashSet::new(),
            searchable_erased: Vec::new(),
            index: SecretVersion(1),
        };
        if mutant == Some(Mutant::IndexOutside) {
            world.put_index_outside().await;
        }
        world
    }

    fn options(clock: &Arc<ManualClock>, stop: &Arc<Mutex<Option<SwapPoint>>>, archive: KeyArchive) -> KeyringOptions {
        let stop = stop.clone();
        KeyringOptions {
            archive: Some(Arc::new(archive)),
            hook: Some(Arc::new(move |_, point| *stop.lock() != Some(point))),
            ..KeyringOptions::new(clock.clone())
        }
    }

    pub fn open_store(files: PathBuf, nodes: &Arc<Mutex<Vec<NodeRow>>>) -> Arc<Spy> {
        let mut options = Options::new(files.join("vault.db"), VAULT).create();
        options.readers = 1;
        options.cache_bytes = 0;
        let store = Arc::new(SqliteStore::open(options).unwrap());
        Arc::new(Spy::new(store, files, nodes.clone()))
    }

    pub fn kek(&self) -> RootKek {
        RootKek::from_bytes(&self.kek)
    }
    /// Where the present database files are.
    pub fn files(&self) -> PathBuf {
        self.tmp.path().join(self.epoch.to_string())
    }
    /// The key archive as a start finds it.
    fn archive(&self) -> KeyArchive {
        KeyArchive::new(self.keys(), VAULT, Some(self.setting.clone()), HORIZON_DAYS, self.clock.clone())
    }
    /// Folder of the key archive.
    pub fn keys(&self) -> PathBuf {
        self.tmp.path().join("keys")
    }
    /// A place for a copy.
    pub fn place(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }
    /// Copies the database files there.
    pub fn back_up(&self, name: &str) -> PathBuf {
        let to = self.place(name);
        copy_files(&self.files(), &to);
        to
    }

    /// Starts again with what is on `disk` and in the files at `from`: the old process is gone without a goodbye.
    pub async fn restart(&mut self, disk: SimDisk, from: &std::path::Path) {
        self.epoch += 1;
        let files = self.files();
        copy_files(from, &files);
        *self.stop.lock() = None;
        self.disk = disk;
        if self.mutant == Some(Mutant::DiscardNext) {
            self.discard_next(&files).await;
        }
        let media: Vec<_> = (0..self.replicas).map(|n| self.disk.medium(&format!("r{n}"))).collect();
        self.keeper = Arc::new(FileKeeper::open_on(&media).unwrap());
        self.spy = Self::open_store(files, &self.nodes);
        let options = Self::options(&self.clock, &self.stop, self.archive());
        self.ring = Keyring::open(self.spy.clone(), self.keeper.clone(), self.kek(), options).await.unwrap();
    }

    /// The next swap stops there.
    pub fn stop_at(&self, point: SwapPoint) {
        *self.stop.lock() = Some(point);
    }

    /// As a kill leaves things: everything written is there.
    pub async fn kill(&mut self) {
        let (disk, files) = (self.disk.copy(), self.files());
        self.restart(disk, &files).await;
    }

    /// As a power loss leaves the keeper: unsynced sectors are old or new, and what was being written may be garbage.
    pub fn after_power_loss(&self, dice: &mut Dice) -> SimDisk {
        let image = self.disk.crash_image(|n| dice.below(n));
        if self.disk.is_off()
            && let Some(step) = self.disk.log().last().filter(|step| step.what == "write")
            && step.file.ends_with(ROOTS)
            && dice.once_in(2)
        {
            let (replica, name) = step.file.split_once('/').unwrap();
            let (from, len) = (step.offset as usize, step.len);
            image.tamper(replica, name, |bytes| {
                let end = bytes.len().min(from + len);
                random::fill(&mut bytes[from..end]);
            });
        }
        image
    }

    pub async fn power_loss(&mut self, dice: &mut Dice) {
        let (disk, files) = (self.after_power_loss(dice), self.files());
        self.restart(disk, &files).await;
    }

    fn seal(&mut self, class: ClassRef, expiry: Option<KeyRef>, plain: &Plain) -> Vec<u8> {
        let aad = Sealed::aad(&class);
        let bytes = self.ring.with_class(class, expiry, |keys| keys.cipher().seal(&aad, plain));
        let bytes = bytes.expect("a key that was just allocated or loaded is in memory");
        self.seen.sealed.push(Sealed { class, expiry: expiry.map(|key| key.dek), bytes: bytes.clone() });
        bytes
    }

    fn class_row(&self, class: &ClassRef, version: DekVersion, revision: u64, record: Vec<u8>) -> ClassRow {
        ClassRow {
            uid: class.uid,
            tenant: class.tenant,
            class: class.class,
            version,
            slot: Some(class.key.slot),
            dek: class.key.dek,
            state: ClassState::Live,
            revision: Revision(revision),
            data_keys_issued: 0,
            seals: 1,
            next_bucket: None,
            record,
        }
    }

    fn index_secret<R>(&self, version: SecretVersion, f: impl FnOnce(&TenantSecret) -> R) -> R {
        if self.mutant == Some(Mutant::IndexOutside) {
            let body = self.seen.objects.last().expect("the mutant wrote one");
            let root = self.kek().unwrap(&outside_aad(), body).unwrap();
            return f(&secret_of(&root));
        }
        self.ring.with_secret(TENANT, SecretKind::Index, version, f).expect("the tenant is ready")
    }

    async fn put_index_outside(&mut self) {
        let body = self.kek().wrap(&outside_aad(), &TenantRoot::generate());
        let mut change = ChangeSet::default();
        change.change(Mutation::PutObject(ObjectRow {
            tenant: TENANT,
            kind: ObjectKind::SecretState,
            key: b"index".to_vec(),
            revision: Revision(1),
            body: body.clone(),
        }));
        self.spy.commit(change).await.unwrap();
        self.seen.objects.push(body);
    }

    pub fn tag(&mut self, uid: SubjectUid, phone: usize) -> Mutation {
        let version = self.index;
        let tag = self.index_secret(version, |secret| IndexKey::derive(secret, FIELD).tag(&[phone as u8]));
        self.seen.tags.push(Tagged { tag, uid });
        Mutation::PutTerm(TermRow { tenant: TENANT, field: FIELD, version, tag, uid })
    }

    /// A subject with `classes` classes.
    pub async fn create(&mut self, classes: u8, dice: &mut Dice) -> SubjectUid {
        let uid = self.spy.next_uid();
        self.create_as(uid, digest(uid), classes, dice).await;
        uid
    }

    /// A subject with this digest, which may be that of an erased one.
    pub async fn create_as(&mut self, uid: SubjectUid, digest: SubjectDigest, classes: u8, dice: &mut Dice) {
        let keys = self.ring.allocate(TENANT, classes as usize).await.unwrap();
        let phone = dice.below(DOMAIN);
        let mut subject = Subject { digest, classes: BTreeMap::new(), phone };
        let mut change = ChangeSet::default();
        change.change(Mutation::PutSubject(SubjectRow {
            uid,
            tenant: TENANT,
            digest: subject.digest,
            sealed_id: vec![1],
            state: SubjectState::Live,
            group: None,
            revision: Revision(1),
            created: Timestamp(1),
            touched: Timestamp(1),
            due: None,
        }));
        for (n, key) in keys.into_iter().enumerate() {
            let class = ClassRef { tenant: TENANT, uid, class: ClassNo(n as u8 + 1), key };
            let plain = random::bytes();
            let record = self.seal(class, None, &plain);
            change.change(Mutation::TakeSlot { tenant: TENANT, slot: key.slot });
            change.change(Mutation::PutClass(self.class_row(&class, DekVersion(1), 1, record)));
            subject.classes.insert(class.class, Class { key, plain, former: vec![] });
        }
        change.change(self.tag(uid, phone));
        self.spy.commit(change).await.unwrap();
        self.subjects.insert(uid, subject);
    }

    async fn row(&self, uid: SubjectUid, class: ClassNo) -> Option<ClassRow> {
        self.spy.subject_by_uid(uid).await.unwrap()?.class(class).cloned()
    }

    /// A new value under the same key.
    pub async fn put(&mut self, uid: SubjectUid, class: ClassNo) {
        let old = self.subjects[&uid].classes[&class].clone();
        let at = ClassRef { tenant: TENANT, uid, class, key: old.key };
        self.ring.load(TENANT, &[old.key]).await.unwrap();
        let plain = random::bytes();
        let record = self.seal(at, None, &plain);
        let row = self.row(uid, class).await.unwrap();
        let mut change = ChangeSet::default();
        change.change(Mutation::PutClass(ClassRow { record, revision: Revision(row.revision.0 + 1), ..row }));
        self.spy.commit(change).await.unwrap();
        let own = self.subjects.get_mut(&uid).unwrap().classes.get_mut(&class).unwrap();
        own.former.push(std::mem::replace(&mut own.plain, plain));
    }

    fn entry(&self, uid: SubjectUid, class: ClassNo, version: DekVersion) -> LedgerEntry {
        LedgerEntry {
            kind: LedgerKind::Erased,
            tenant: TENANT,
            uid,
            class,
            version,
            generation: Generation(0),
            at: Timestamp(5),
            object: ObjectId::random(),
            until: Timestamp(0),
            number: 0,
        }
    }

    fn plains_of(&self, uid: SubjectUid, class: ClassNo) -> Vec<Plain> {
        let own = &self.subjects[&uid].classes[&class];
        let mut all = own.former.clone();
        all.push(own.plain);
        all.extend(self.expiring.iter().filter(|v| v.class.uid == uid && v.class.class == class).map(|v| v.plain));
        all
    }

    /// The operation that erases classes of a subject.
    pub async fn erasure(&self, uid: SubjectUid, classes: &[ClassNo]) -> SwapOp {
        let mut op = SwapOp::default();
        for class in classes {
            let row = self.row(uid, *class).await.unwrap();
            op.slots.push(row.slot.expect("a live class has a slot"));
            op.change.require(Precondition::ClassAt {
                uid,
                class: *class,
                version: row.version,
                revision: row.revision,
            });
            op.ledger.push(self.entry(uid, *class, row.version));
            op.change.change(Mutation::PutClass(ClassRow {
                slot: None,
                state: ClassState::Erased,
                revision: Revision(row.revision.0 + 1),
                record: vec![],
                ..row
            }));
        }
        op
    }

    /// The model's part of an erasure whose end was answered.
    pub fn note_erased(&mut self, uid: SubjectUid, classes: &[ClassNo]) {
        for class in classes {
            let gone = self.plains_of(uid, *class);
            self.erased.extend(gone);
            self.expiring.retain(|v| !(v.class.uid == uid && v.class.class == *class));
            let subject = self.subjects.get_mut(&uid).unwrap();
            subject.classes.remove(class);
        }
        if self.subjects[&uid].classes.is_empty() {
            let phone = self.subjects[&uid].phone;
            self.searchable_erased.push((uid, phone, false));
            self.subjects.remove(&uid);
        }
    }

    /// Erases, with or without a fault; after a fault the world restarts and finds out what happened.
    pub async fn erase(
        &mut self,
        uid: SubjectUid,
        classes: &[ClassNo],
        fault: Option<Fault>,
        dice: &mut Dice,
    ) -> Result<(), String> {
        if self.mutant == Some(Mutant::DeleteOnly) {
            return self.erase_by_deleting(uid, classes).await;
        }
        let op = self.erasure(uid, classes).await;
        match &fault {
            None => {}
            Some(Fault::Stop(point)) => *self.stop.lock() = Some(*point),
            Some(Fault::KeeperStep(n)) => self.disk.power_off_at(self.disk.steps() + n),
            Some(Fault::Commit(fault)) => *self.spy.fault.lock() = Some(fault.clone()),
        }
        let ledger = op.ledger.clone();
        let before = self.ring.generation(TENANT).unwrap();
        let result = self.ring.swap(TENANT, op).await;
        if fault.is_none() {
            result.map_err(|error| format!("an erasure without a fault failed: {error}"))?;
            self.note_erased(uid, classes);
            return Ok(());
        }
        if let Ok(swapped) = &result {
            // The answer was given: the receipt may be out, whatever comes now.
            if swapped.generation <= before {
                return Err("a swap did not raise the generation".into());
            }
            self.note_erased(uid, classes);
        }
        match fault {
            Some(Fault::KeeperStep(_)) => self.power_loss(dice).await,
            _ if dice.once_in(2) => self.power_loss(dice).await,
            _ => self.kill().await,
        }
        self.after_fault(before, result, uid, classes, ledger).await
    }

    /// What a vault does after a restart: operations found committed are settled, then answered.
    async fn after_fault(
        &mut self,
        before: Generation,
        result: Result<Swapped, SwapError>,
        uid: SubjectUid,
        classes: &[ClassNo],
        ledger: Vec<LedgerEntry>,
    ) -> Result<(), String> {
        let state = self.ring.state(TENANT);
        if state != TenantKeyState::Ready {
            return Err(format!("after a crash the tenant is {state:?} ({result:?})"));
        }
        let now = self.ring.generation(TENANT).unwrap();
        let committed = self.is_erased(uid, classes[0]).await;
        let expected = if committed { Generation(before.0 + 1) } else { before };
        if now != expected {
            return Err(format!("generation {now} where {expected} was committed"));
        }
        if result.is_ok() && !committed {
            return Err("an answered erasure is not in the database".into());
        }
        if result.is_err() { self.end_after_restart(uid, classes, ledger).await } else { Ok(()) }
    }

    async fn is_erased(&self, uid: SubjectUid, class: ClassNo) -> bool {
        self.row(uid, class).await.is_none_or(|row| row.state == ClassState::Erased)
    }

    /// Settles an erasure that was not answered, if it was committed.
    pub async fn end_after_restart(
        &mut self,
        uid: SubjectUid,
        classes: &[ClassNo],
        ledger: Vec<LedgerEntry>,
    ) -> Result<(), String> {
        if self.is_erased(uid, classes[0]).await {
            let settled = self.ring.settle(TENANT, ledger).await;
            settled.map_err(|error| format!("a committed erasure cannot be settled: {error}"))?;
            self.note_erased(uid, classes);
        }
        Ok(())
    }

    /// The mutant: a fresh key in the leaf, sealed again under the key that the leaf had before.
    async fn erase_by_deleting(&mut self, uid: SubjectUid, classes: &[ClassNo]) -> Result<(), String> {
        let op = self.erasure(uid, classes).await;
        let tree = Tree { vault: VAULT, tenant: TENANT };
        let roots = self.present_roots();
        let mut change = op.change;
        for slot in op.slots {
            let path = tree::path(tree::leaf_of(slot));
            let rows = self.spy.nodes(TENANT, path.clone()).await.unwrap().nodes;
            let top = roots.iter().find_map(|(_, root)| tree.open_top(root, rows[0].as_ref().unwrap()).ok()).unwrap();
            let one = tree.open_child(&top, rows[1].as_ref().unwrap()).unwrap();
            let two = tree.open_child(&one, rows[2].as_ref().unwrap()).unwrap();
            let row = rows[3].clone().unwrap();
            let mut leaf = tree.open_child(&two, &row).unwrap();
            leaf.keys.refresh(tree::index_in_leaf(slot));
            let (_, index) = tree::parent(row.ordinal).unwrap();
            let aad = Aad::node(VAULT, TENANT, row.ordinal, row.generation);
            let blob = two.keys.child(index).seal_node(&aad, &leaf.keys);
            change.change(Mutation::PutNode(NodeRow { blob, ..row }));
        }
        self.spy.commit(change).await.unwrap();
        self.note_erased(uid, classes);
        Ok(())
    }

    /// The mutant: before a start, slots above the database's generation are wiped.
    async fn discard_next(&mut self, files: &std::path::Path) {
        let probe = self.place("probe");
        let _ = std::fs::remove_dir_all(&probe);
        copy_files(files, &probe);
        let spy = Self::open_store(probe, &Arc::new(Mutex::new(Vec::new())));
        let generation = spy.nodes(TENANT, vec![tree::TOP]).await.unwrap().generation;
        for n in 0..self.replicas {
            self.disk.tamper(&format!("r{n}"), ROOTS, |bytes| {
                for record in bytes.chunks_exact_mut(RECORD) {
                    let found = block::decode(VAULT, (&*record).try_into().unwrap());
                    if matches!(found, Record::Root(root) if root.tenant == TENANT && root.generation > generation) {
                        record.fill(0);
                    }
                }
            });
        }
    }

    /// A new version of a class under a new key with a new value; the old key dies with the old value.
    pub async fn rotate(&mut self, uid: SubjectUid, class: ClassNo) {
        let row = self.row(uid, class).await.unwrap();
        let key = self.ring.allocate(TENANT, 1).await.unwrap()[0];
        let at = ClassRef { tenant: TENANT, uid, class, key };
        let plain = random::bytes();
        let record = self.seal(at, None, &plain);
        let version = DekVersion(row.version.0 + 1);
        let mut op = SwapOp { slots: vec![row.slot.unwrap()], ..SwapOp::default() };
        let (revision, old) = (row.revision, row.version);
        op.change.require(Precondition::ClassAt { uid, class, version: old, revision });
        op.change.change(Mutation::TakeSlot { tenant: TENANT, slot: key.slot });
        let new = self.class_row(&at, version, revision.0 + 1, record);
        op.change.change(Mutation::PutClass(new));
        op.ledger.push(self.entry(uid, class, old));
        self.ring.swap(TENANT, op).await.unwrap();
        let gone = self.plains_of(uid, class);
        self.erased.extend(gone);
        self.expiring.retain(|v| !(v.class.uid == uid && v.class.class == class));
        self.subjects.get_mut(&uid).unwrap().classes.insert(class, Class { key, plain, former: vec![] });
    }

    /// A value that ends with a bucket, under the class's key and the bucket's.
    pub async fn put_expiring(&mut self, uid: SubjectUid, class: ClassNo, bucket: Bucket) {
        let expiry = match self.buckets.get(&bucket) {
            Some(key) => *key,
            None => {
                let key = self.ring.allocate(TENANT, 1).await.unwrap()[0];
                let mut change = ChangeSet::default();
                change.change(Mutation::TakeSlot { tenant: TENANT, slot: key.slot });
                let (slot, dek) = (Some(key.slot), key.dek);
                let row = ExpiryRow { tenant: TENANT, class: ClassNo(1), bucket, slot, dek };
                change.change(Mutation::PutExpiry(row));
                self.spy.commit(change).await.unwrap();
                self.buckets.insert(bucket, key);
                key
            }
        };
        let key = self.subjects[&uid].classes[&class].key;
        self.ring.load(TENANT, &[key, expiry]).await.unwrap();
        let at = ClassRef { tenant: TENANT, uid, class, key };
        let plain = random::bytes();
        let sealed = self.seal(at, Some(expiry), &plain);
        self.expiring.push(Expiring { bucket, class: at, expiry, plain, sealed });
    }

    /// The bucket is over: one slot dies for everyone.
    pub async fn end_bucket(&mut self, bucket: Bucket) {
        let Some(key) = self.buckets.remove(&bucket) else { return };
        let mut op = SwapOp { slots: vec![key.slot], ..SwapOp::default() };
        op.change.require(Precondition::ExpiryLive { tenant: TENANT, class: ClassNo(1), bucket, dek: key.dek });
        let row = ExpiryRow { tenant: TENANT, class: ClassNo(1), bucket, slot: None, dek: key.dek };
        op.change.change(Mutation::PutExpiry(row));
        self.ring.swap(TENANT, op).await.unwrap();
        self.erased.extend(self.expiring.iter().filter(|v| v.bucket == bucket).map(|v| v.plain));
        self.expiring.retain(|v| v.bucket != bucket);
    }

    /// Retags everyone under the next version of the index secret and drops the last one.
    pub async fn rotate_index(&mut self) {
        let old = self.index;
        self.index = SecretVersion(old.0 + 1);
        if self.mutant == Some(Mutant::IndexOutside) {
            self.put_index_outside().await;
        }
        let mut change = ChangeSet::default();
        let people: Vec<(SubjectUid, usize)> = self.subjects.iter().map(|(uid, s)| (*uid, s.phone)).collect();
        for (uid, phone) in people {
            change.change(self.tag(uid, phone));
        }
        change.change(Mutation::DeleteTermsOfVersion { tenant: TENANT, version: old, limit: u32::MAX });
        self.spy.commit(change).await.unwrap();
        if self.mutant != Some(Mutant::IndexOutside) {
            let slots = vec![secret_slot(SecretKind::Index, old)];
            self.ring.swap(TENANT, SwapOp { slots, ..SwapOp::default() }).await.unwrap();
        }
        self.searchable_erased.iter_mut().for_each(|(_, _, over)| *over = true);
    }

    pub async fn rotate_root(&mut self) {
        self.ring.swap(TENANT, SwapOp::default()).await.unwrap();
    }

    /// Notes an anchor, and the power fails while it is written.
    pub async fn anchor_with_power_loss(&mut self, sequence: u64, dice: &mut Dice) {
        if self.mutant == Some(Mutant::AnchorInRoot) {
            let generation = self.ring.generation(TENANT).unwrap();
            let disk = self.disk.copy();
            let replica = format!("r{}", dice.below(self.replicas));
            disk.tamper(&replica, ROOTS, |bytes| {
                for record in bytes.chunks_exact_mut(RECORD) {
                    let found = block::decode(VAULT, (&*record).try_into().unwrap());
                    if matches!(found, Record::Root(root) if root.tenant == TENANT && root.generation == generation) {
                        random::fill(&mut record[RECORD / 2..]);
                        random::fill(&mut record[..100]);
                    }
                }
            });
            let files = self.files();
            return self.restart(disk, &files).await;
        }
        self.disk.power_off_at(self.disk.steps() + dice.below(3));
        let _ = self.keeper.put_own(crate::keyring::keeper::OwnBlock::Anchor, &[7; 104], sequence).await;
        self.power_loss(dice).await;
    }

    /// Roots of the tenant that the present keeper's bytes hold, anywhere, under the present KEK; beside a token, those that
    /// it opens of all files ever written.
    pub fn present_roots(&self) -> Vec<(Generation, TenantRoot)> {
        let kek = self.kek();
        let mut roots = Vec::new();
        for record in self.disk.records() {
            if let Record::Root(root) = block::decode(VAULT, &record) {
                let aad = root_block_aad(VAULT, root.tenant, root.generation, &root.kek);
                if root.tenant == TENANT
                    && let Ok(key) = kek.unwrap(&aad, &root.wrapped)
                {
                    roots.push((root.generation, key));
                }
            }
        }
        roots
    }

    /// Everything that opens for who holds every node and ciphertext ever written, the present keeper and KEK.
    pub fn reachable(&self) -> Reachable {
        let tree = Tree { vault: VAULT, tenant: TENANT };
        let mut open: Vec<(Ordinal, OpenNode)> = Vec::new();
        let rows = self.nodes.lock().clone();
        let mut left: Vec<&NodeRow> = rows.iter().filter(|row| row.tenant == TENANT).collect();
        for (_, root) in self.present_roots() {
            left.retain(|row| {
                let node = if row.ordinal == tree::TOP { tree.open_top(&root, row).ok() } else { None };
                let keep = node.is_none();
                open.extend(node.map(|node| (tree::TOP, node)));
                keep
            });
        }
        loop {
            let before = open.len();
            left.retain(|row| {
                let Some((above, _)) = tree::parent(row.ordinal) else { return true };
                let node = open.iter().filter(|(o, _)| *o == above).find_map(|(_, n)| tree.open_child(n, row).ok());
                let keep = node.is_none();
                open.extend(node.map(|node| (row.ordinal, node)));
                keep
            });
            if open.len() == before {
                break;
            }
        }
        let mut keys: HashMap<DekId, (usize, usize)> = HashMap::new();
        let mut secrets: Vec<TenantSecret> = Vec::new();
        for (at, (ordinal, node)) in open.iter().enumerate().filter(|(_, (o, _))| tree::level(*o) == 3) {
            for index in 0..FAN_OUT {
                keys.insert(node.keys.dek(index).id(), (at, index));
            }
            if *ordinal == tree::leaf(0) {
                secrets.extend((0..tree::RESERVED as usize).map(|index| node.keys.secret(index)));
            }
        }
        // Whatever else in the database the root KEK wraps.
        let kek = self.kek();
        secrets
            .extend(self.seen.objects.iter().filter_map(|o| kek.unwrap(&outside_aad(), o).ok()).map(|r| secret_of(&r)));
        let dek = |id: &DekId| keys.get(id).map(|(at, index)| open[*at].1.keys.dek(*index));
        let mut plains = HashSet::new();
        for sealed in &self.seen.sealed {
            let Some(key) = dek(&sealed.class.key.dek) else { continue };
            let keys = match &sealed.expiry {
                None => key.class_keys(),
                Some(id) => match keys.get(id) {
                    Some((at, index)) => key.expiring_keys(&open[*at].1.keys.expiry(*index)),
                    None => continue,
                },
            };
            if let Ok(plain) = keys.cipher().open(&Sealed::aad(&sealed.class), &sealed.bytes) {
                plains.insert(<Plain>::try_from(plain.as_slice()).unwrap());
            }
        }
        let mut guesses = HashSet::new();
        for secret in &secrets {
            let key = IndexKey::derive(secret, FIELD);
            let table: HashMap<TermTag, usize> = (0..DOMAIN).map(|n| (key.tag(&[n as u8]), n)).collect();
            guesses.extend(self.seen.tags.iter().filter_map(|t| Some((t.uid, *table.get(&t.tag)?))));
        }
        Reachable { plains, guesses }
    }

    /// The oracle: recovered and erased have nothing in common, and everything that lives is recovered, by the thief
    /// and by the vault itself.
    pub async fn check(&self) -> Result<(), String> {
        let reachable = self.reachable();
        if let Some(plain) = self.erased.iter().find(|plain| reachable.plains.contains(*plain)) {
            let sealed = self.seen.sealed.len();
            return Err(format!("an erased value was recovered ({sealed} ciphertexts, {plain:02x?})"));
        }
        if self.searchable_erased.iter().any(|(uid, phone, over)| *over && reachable.guesses.contains(&(*uid, *phone)))
        {
            return Err("an erased searchable value was guessed after its search had ended".into());
        }
        for (uid, subject) in &self.subjects {
            for (class, own) in &subject.classes {
                if !reachable.plains.contains(&own.plain) {
                    return Err(format!("a live value cannot be recovered (subject {uid})"));
                }
                self.read(*uid, *class, own).await?;
            }
        }
        for value in &self.expiring {
            let load = self.ring.load(TENANT, &[value.class.key, value.expiry]).await;
            load.map_err(|e| format!("an expiring value's keys do not load: {e}"))?;
            let aad = Sealed::aad(&value.class);
            let open = self.ring.with_class(value.class, Some(value.expiry), |k| k.cipher().open(&aad, &value.sealed));
            if open.and_then(Result::ok).is_none_or(|plain| plain.as_slice() != value.plain) {
                return Err("a live expiring value does not open".into());
            }
        }
        Ok(())
    }

    /// Reads a value as the vault does.
    async fn read(&self, uid: SubjectUid, class: ClassNo, own: &Class) -> Result<(), String> {
        let row = self.row(uid, class).await.ok_or("a live class has no row")?;
        let key = KeyRef { slot: row.slot.ok_or("a live class has no slot")?, dek: row.dek };
        let at = ClassRef { tenant: TENANT, uid, class, key };
        self.ring.load(TENANT, &[key]).await.map_err(|e| format!("a live key does not load: {e}"))?;
        let open = self.ring.with_class(at, None, |keys| keys.cipher().open(&Sealed::aad(&at), &row.record));
        match open {
            Some(Ok(plain)) if plain.as_slice() == own.plain => Ok(()),
            Some(Ok(_)) => Err("a live value is another one".into()),
            Some(Err(_)) => Err("a live value does not open".into()),
            None => Err("a loaded key is not in memory".into()),
        }
    }

    /// A data key of a live class as raw bytes, for searching files.
    pub async fn dek_bytes(&self, uid: SubjectUid, class: ClassNo) -> [u8; 32] {
        let key = self.subjects[&uid].classes[&class].key;
        self.ring.load(TENANT, &[key]).await.unwrap();
        self.ring.with_dek(TENANT, key, Dek::raw).unwrap()
    }
}

pub struct Reachable {
    pub plains: HashSet<Plain>,
    pub guesses: HashSet<(SubjectUid, usize)>,
}

fn outside_aad() -> Aad {
    Aad::new(Kind::Object, VAULT, TENANT)
}

fn secret_of(root: &TenantRoot) -> TenantSecret {
    TenantSecret::from_bytes(&root.raw())
}
