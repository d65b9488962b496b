//! A small world around a keyring: a store in files, a keeper on a disk that loses power, subjects with one sealed value
//! per class, and a plain model of what lives and what was erased.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Dice;
use super::mutants::{Mutant, outside_aad, secret_of};
use super::spy::{Spy, copy_files};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::crypto::aad::{Aad, Kind};
use crate::crypto::keys::{Dek, IndexKey, RootKek, TenantSecret};
use crate::crypto::random;
use crate::crypto::recovery::RecoveryIdentity;
use crate::ids::*;
use crate::keyring::archive::setting::HORIZON_DAYS;
use crate::keyring::keeper::sim::SimDisk;
use crate::keyring::keeper::{FileKeeper, Keeper, OwnBlock};
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
    pub fn aad(class: &ClassRef) -> Aad {
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
    pub stop: Arc<Mutex<Option<SwapPoint>>>,
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

    pub fn seal(&mut self, class: ClassRef, expiry: Option<KeyRef>, plain: &Plain) -> Vec<u8> {
        let aad = Sealed::aad(&class);
        let bytes = self.ring.with_class(class, expiry, |keys| keys.cipher().seal(&aad, plain));
        let bytes = bytes.expect("a key that was just allocated or loaded is in memory");
        self.seen.sealed.push(Sealed { class, expiry: expiry.map(|key| key.dek), bytes: bytes.clone() });
        bytes
    }

    pub fn class_row(&self, class: &ClassRef, version: DekVersion, revision: u64, record: Vec<u8>) -> ClassRow {
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

    pub async fn row(&self, uid: SubjectUid, class: ClassNo) -> Option<ClassRow> {
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

    pub fn plains_of(&self, uid: SubjectUid, class: ClassNo) -> Vec<Plain> {
        let own = &self.subjects[&uid].classes[&class];
        let mut all = own.former.clone();
        all.push(own.plain);
        all.extend(self.expiring.iter().filter(|v| v.class.uid == uid && v.class.class == class).map(|v| v.plain));
        all
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

    /// Notes an anchor, and the power fails while it is written.
    pub async fn anchor_with_power_loss(&mut self, sequence: u64, dice: &mut Dice) {
        if self.mutant == Some(Mutant::AnchorInRoot) {
            return self.tear_present_root(dice).await;
        }
        self.disk.power_off_at(self.disk.steps() + dice.below(3));
        let _ = self.keeper.put_own(OwnBlock::Anchor, &[7; 104], sequence).await;
        self.power_loss(dice).await;
    }

    /// A data key of a live class as raw bytes, for searching files.
    pub async fn dek_bytes(&self, uid: SubjectUid, class: ClassNo) -> [u8; 32] {
        let key = self.subjects[&uid].classes[&class].key;
        self.ring.load(TENANT, &[key]).await.unwrap();
        self.ring.with_dek(TENANT, key, Dek::raw).unwrap()
    }
}
