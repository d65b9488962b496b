//! A disk for tests: it forgets what was not synced, tears at 512 B, reorders, fails where told, and counts its steps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::block::RECORD;
use super::file::ROOTS;
use super::guard::{self, Guard, GuardedMedium, ObjectId, Objects};
use super::medium::{BlockFile, Medium};

const SECTOR: usize = 512;

/// What shall fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Open,
    Read,
    /// Nothing of the write arrives.
    Write,
    /// As Linux does it: the error is told once, what was not yet written is lost, reads still show it.
    Sync,
    Full,
}

/// One step that changes something, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `replica/file`.
    pub file: String,
    pub what: &'static str,
    pub offset: u64,
    pub len: usize,
}

#[derive(Clone, Default)]
struct Sim {
    /// What a power loss leaves for certain.
    durable: Vec<u8>,
    /// What reads show.
    view: Vec<u8>,
    /// Written and not yet synced.
    pending: Vec<(usize, Vec<u8>)>,
    /// Its name survives.
    named: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Sim>,
    locked: BTreeSet<String>,
    log: Vec<Step>,
    off_at: Option<usize>,
    off: bool,
    /// (replica, fault, how many times yet)
    faults: Vec<(String, Fault, u32)>,
    token: Option<SimToken>,
}

/// Key objects of a machine's token: each is there or not, at once and durably.
#[derive(Clone, Default)]
struct SimToken {
    objects: BTreeMap<(String, ObjectId), [u8; 32]>,
    /// Every block that was ever written to a replica's roots: what all copies of the files hold.
    written: Vec<(String, u64, Vec<u8>)>,
}

/// A machine's disks; each replica is a directory on it. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// One with a token, whose keys guard the roots on it.
    pub fn guarded() -> Self {
        let disk = Self::default();
        disk.0.lock().token = Some(SimToken::default());
        disk
    }

    /// The directory of a replica.
    pub fn medium(&self, replica: &str) -> Arc<dyn Medium> {
        let plain = Arc::new(SimMedium { disk: self.clone(), replica: replica.into() });
        match self.0.lock().token {
            Some(_) => Arc::new(GuardedMedium::new(plain, self.guard())),
            None => plain,
        }
    }

    fn guard(&self) -> Guard {
        Guard { objects: Arc::new(self.clone()), label: "sim".into() }
    }

    /// The same disk beside the token as `other` has it now: an old copy of the files, or another token.
    pub fn beside_token_of(&self, other: &SimDisk) -> SimDisk {
        let disk = self.copy();
        let token = other.0.lock().token.clone();
        disk.0.lock().token = token;
        disk
    }

    /// How many key objects there are.
    pub fn objects(&self) -> usize {
        self.0.lock().token.as_ref().map_or(0, |token| token.objects.len())
    }

    /// Every root record that who holds all files ever written, and the present token, can have.
    pub fn records(&self) -> Vec<[u8; RECORD]> {
        let written = self.0.lock().token.as_ref().map(|token| token.written.clone());
        let Some(written) = written else {
            let bytes = self.all_bytes();
            let chunks = bytes.iter().flat_map(|(_, bytes)| bytes.chunks_exact(RECORD));
            return chunks.map(|record| record.try_into().expect("its length")).collect();
        };
        guard::readable(&self.guard(), &written)
    }

    /// Steps (writes, growths, syncs) so far.
    pub fn steps(&self) -> usize {
        self.0.lock().log.len()
    }

    /// The steps so far, in order.
    pub fn log(&self) -> Vec<Step> {
        self.0.lock().log.clone()
    }

    /// The power fails during step `step` (from 0): a write may arrive in parts, a sync does not return; everything
    /// after it is refused.
    pub fn power_off_at(&self, step: usize) {
        self.0.lock().off_at = Some(step);
    }

    /// The power has failed.
    pub fn is_off(&self) -> bool {
        self.0.lock().off
    }

    /// The next `times` operations of that kind on a replica fail.
    pub fn fail(&self, replica: &str, fault: Fault, times: u32) {
        self.0.lock().faults.push((replica.into(), fault, times));
    }

    /// No more failures.
    pub fn heal(&self) {
        self.0.lock().faults.clear();
    }

    /// A possible disk after a power loss now: of each unsynced sector any version from the synced one to the last.
    /// `pick(n)` answers a number below n.
    pub fn crash_image(&self, mut pick: impl FnMut(usize) -> usize) -> SimDisk {
        let state = self.0.lock();
        let mut files = BTreeMap::new();
        for (name, sim) in &state.files {
            if !sim.named && pick(2) == 0 {
                continue;
            }
            let mut bytes = sim.durable.clone();
            let mut versions: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
            let mut pieces = Vec::new();
            for (offset, data) in &sim.pending {
                let mut at = 0;
                while at < data.len() {
                    let sector = (offset + at) / SECTOR;
                    let n = ((sector + 1) * SECTOR - (offset + at)).min(data.len() - at);
                    pieces.push((sector, offset + at, &data[at..at + n]));
                    at += n;
                }
            }
            for (sector, _, data) in &pieces {
                versions.entry(*sector).or_default().push(data);
            }
            let keep: BTreeMap<usize, usize> = versions.iter().map(|(s, v)| (*s, pick(v.len() + 1))).collect();
            let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
            for (sector, offset, data) in pieces {
                let nth = seen.entry(sector).or_default();
                *nth += 1;
                if *nth > keep[&sector] {
                    continue;
                }
                if bytes.len() < offset + data.len() {
                    bytes.resize(offset + data.len(), 0);
                }
                bytes[offset..offset + data.len()].copy_from_slice(data);
            }
            files.insert(name.clone(), Sim { view: bytes.clone(), durable: bytes, pending: Vec::new(), named: true });
        }
        let token = state.token.clone();
        SimDisk(Arc::new(Mutex::new(State { files, token, ..State::default() })))
    }

    /// An exact copy of what reads show now: a thief's copy, or an old backup.
    pub fn copy(&self) -> SimDisk {
        let state = self.0.lock();
        let files = state
            .files
            .iter()
            .map(|(name, sim)| {
                let bytes = sim.view.clone();
                (name.clone(), Sim { view: bytes.clone(), durable: bytes, pending: Vec::new(), named: true })
            })
            .collect();
        let token = state.token.clone();
        SimDisk(Arc::new(Mutex::new(State { files, token, ..State::default() })))
    }

    /// Changes a file's bytes behind everyone's back.
    pub fn tamper(&self, replica: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let sim = state.files.get_mut(&format!("{replica}/{name}")).expect("the test names a file that is there");
        change(&mut sim.view);
        sim.durable = sim.view.clone();
        sim.pending.clear();
    }

    /// Takes a replica's files away (a lost disk).
    pub fn lose(&self, replica: &str) {
        self.0.lock().files.retain(|name, _| !name.starts_with(&format!("{replica}/")));
    }

    /// Copies a replica's files from another disk (an old copy comes back).
    pub fn put_back(&self, replica: &str, from: &SimDisk) {
        let prefix = format!("{replica}/");
        let old: Vec<_> = from
            .0
            .lock()
            .files
            .iter()
            .filter(|(n, _)| n.starts_with(&prefix))
            .map(|(n, s)| (n.clone(), s.clone()))
            .collect();
        self.0.lock().files.extend(old);
    }

    /// All bytes of all files, for searching.
    pub fn all_bytes(&self) -> Vec<(String, Vec<u8>)> {
        self.0.lock().files.iter().map(|(n, s)| (n.clone(), s.view.clone())).collect()
    }
}

struct SimMedium {
    disk: SimDisk,
    replica: String,
}

struct SimFile {
    disk: SimDisk,
    replica: String,
    name: String,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.0.lock().locked.remove(&self.name);
    }
}

impl State {
    fn check(&mut self, replica: &str, fault: Fault) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        if let Some(at) = self.faults.iter().position(|(r, f, left)| r == replica && *f == fault && *left > 0) {
            self.faults[at].2 -= 1;
            return Err(match fault {
                Fault::Full => io::Error::from(io::ErrorKind::StorageFull),
                _ => io::Error::other("injected"),
            });
        }
        Ok(())
    }

    /// Notes a step; `Err` if the power fails in it.
    fn step(&mut self, file: &str, what: &'static str, offset: u64, len: usize) -> io::Result<()> {
        let number = self.log.len();
        self.log.push(Step { file: file.into(), what, offset, len });
        if self.off_at == Some(number) {
            self.off = true;
            return Err(io::Error::other("the power went off"));
        }
        Ok(())
    }

    fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) {
        if let Some(token) = self.token.as_mut().filter(|_| name.ends_with(ROOTS)) {
            token.written.push((name.into(), offset as u64, bytes.to_vec()));
        }
        let sim = self.files.get_mut(name).expect("an open file is there");
        if sim.view.len() < offset + bytes.len() {
            sim.view.resize(offset + bytes.len(), 0);
        }
        sim.view[offset..offset + bytes.len()].copy_from_slice(bytes);
        sim.pending.push((offset, bytes.to_vec()));
    }

    fn sync(&mut self, name: &str) {
        let sim = self.files.get_mut(name).expect("an open file is there");
        for (offset, data) in std::mem::take(&mut sim.pending) {
            if sim.durable.len() < offset + data.len() {
                sim.durable.resize(offset + data.len(), 0);
            }
            sim.durable[offset..offset + data.len()].copy_from_slice(&data);
        }
    }
}

impl SimDisk {
    fn with_token<T>(&self, act: impl FnOnce(&mut SimToken) -> T) -> io::Result<T> {
        let mut state = self.0.lock();
        state.check("token", Fault::Open)?;
        Ok(act(state.token.as_mut().expect("a disk with a token")))
    }

    fn cipher(&self, label: &str, id: &ObjectId) -> io::Result<Option<Aes256Gcm>> {
        let key = self.with_token(|token| token.objects.get(&(label.to_owned(), *id)).copied())?;
        Ok(key.map(|key| Aes256Gcm::new(&key.into())))
    }
}

impl Objects for SimDisk {
    fn make(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        self.with_token(|token| token.objects.insert((label.into(), *id), crate::crypto::random::bytes()))?;
        self.0.lock().step("token", "make", 0, 0)
    }

    fn seal(&self, label: &str, id: &ObjectId, nonce: [u8; 12], aad: &[u8], plain: &[u8]) -> io::Result<Vec<u8>> {
        let cipher = self.cipher(label, id)?.ok_or_else(|| io::Error::other("no such object"))?;
        cipher.encrypt(&Nonce::from(nonce), Payload { msg: plain, aad }).map_err(|_| io::Error::other("does not seal"))
    }

    fn unseal(
        &self,
        label: &str,
        id: &ObjectId,
        nonce: [u8; 12],
        aad: &[u8],
        sealed: &[u8],
    ) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        let opened = |cipher: Aes256Gcm| cipher.decrypt(&Nonce::from(nonce), Payload { msg: sealed, aad }).ok();
        Ok(self.cipher(label, id)?.and_then(opened).map(Zeroizing::new))
    }

    fn list(&self, label: &str) -> io::Result<Vec<ObjectId>> {
        self.with_token(|token| token.objects.keys().filter(|(other, _)| other == label).map(|(_, id)| *id).collect())
    }

    fn destroy(&self, label: &str, id: &ObjectId) -> io::Result<()> {
        self.with_token(|token| token.objects.remove(&(label.into(), *id)))?;
        self.0.lock().step("token", "destroy", 0, 0)
    }
}

impl Medium for SimMedium {
    fn place(&self) -> String {
        self.replica.clone()
    }

    fn open(&self, name: &str) -> io::Result<Option<Arc<dyn BlockFile>>> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Open)?;
        let name = format!("{}/{name}", self.replica);
        if !state.files.contains_key(&name) {
            return Ok(None);
        }
        if !state.locked.insert(name.clone()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Some(Arc::new(SimFile { disk: self.disk.clone(), replica: self.replica.clone(), name })))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Open)?;
        let name = format!("{}/{name}", self.replica);
        if state.files.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.files.insert(name.clone(), Sim::default());
        state.locked.insert(name.clone());
        Ok(Arc::new(SimFile { disk: self.disk.clone(), replica: self.replica.clone(), name }))
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Sync)?;
        state.step(&self.replica, "sync names", 0, 0)?;
        let prefix = format!("{}/", self.replica);
        state.files.iter_mut().filter(|(n, _)| n.starts_with(&prefix)).for_each(|(_, sim)| sim.named = true);
        Ok(())
    }
}

impl BlockFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Read)?;
        let view = &state.files[&self.name].view;
        let from = (offset as usize).min(view.len());
        let n = (view.len() - from).min(buf.len());
        buf[..n].copy_from_slice(&view[from..from + n]);
        Ok(n)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Write)?;
        state.write(&self.name, offset as usize, bytes);
        state.step(&self.name, "write", offset, bytes.len())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if let Err(e) = state.check(&self.replica, Fault::Sync) {
            if !state.off {
                state.files.get_mut(&self.name).expect("an open file is there").pending.clear();
            }
            return Err(e);
        }
        state.step(&self.name, "sync", 0, 0)?;
        state.sync(&self.name);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.name].view.len() as u64)
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check(&self.replica, Fault::Full)?;
        let at = state.files[&self.name].view.len();
        if (len as usize) > at {
            state.write(&self.name, at, &vec![0; len as usize - at]);
        }
        state.step(&self.name, "grow", at as u64, (len as usize).saturating_sub(at))?;
        state.sync(&self.name);
        Ok(())
    }
}
