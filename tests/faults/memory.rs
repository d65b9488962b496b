//! T09: the memory of the running program is searched for keys, values and the text of an access key.
//!
//! The keys are computed here from the files, as the format says, with nothing of the vault's own code but its AADs.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use pb::erasure_service_client::ErasureServiceClient;
use pb::record_service_client::RecordServiceClient;
use pii_vault::crypto::aad::{Aad, Kind};
use pii_vault::grpc::pb;
use pii_vault::ids::*;
use sha2::Sha256;

use crate::net::*;
use crate::server::Place;
use crate::{Dice, rounds};

/// Something to look for.
pub struct Needle {
    what: String,
    bytes: Vec<u8>,
}

pub fn needle(what: impl Into<String>, bytes: &[u8]) -> Needle {
    assert!(bytes.len() >= 16);
    Needle { what: what.into(), bytes: bytes.to_vec() }
}

/// How often each needle lies in the writable memory of a process, with where.
pub fn search(pid: u32, needles: &[Needle]) -> Vec<(String, usize, String)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may read another process's map");
    let mut memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("root may read another process's memory");
    let mut found: Vec<(String, usize, String)> = needles.iter().map(|n| (n.what.clone(), 0, String::new())).collect();
    let mut first = [const { Vec::new() }; 256];
    for (i, needle) in needles.iter().enumerate() {
        first[usize::from(needle.bytes[0])].push(i);
    }
    let mut seen = 0;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(range), Some(rights)) = (words.next(), words.next()) else { continue };
        let name = words.nth(3).unwrap_or("anonymous");
        if !rights.starts_with("rw") || name.starts_with("[v") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        // A part of a mapping that was never touched, or went away meanwhile, is no finding.
        if memory.seek(SeekFrom::Start(from)).is_err() || memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        seen += bytes.len();
        for (at, byte) in bytes.iter().enumerate() {
            for i in &first[usize::from(*byte)] {
                if bytes[at..].starts_with(&needles[*i].bytes) {
                    found[*i].1 += 1;
                    found[*i].2 += &format!(" {name}+{at:x}");
                }
            }
        }
    }
    assert!(seen > 1 << 20, "only {seen} bytes were readable");
    found
}

/// Waits until none of them is found: what closed connections held goes when their tasks end.
pub async fn forgotten(pid: u32, words: &[Needle]) {
    let begun = Instant::now();
    loop {
        let found = hits(&search(pid, words));
        if found.is_empty() {
            return;
        }
        let said = || format!("after the connection was closed:\n{}", found.join("\n"));
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", said());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Those that were found, for a message.
pub fn hits(found: &[(String, usize, String)]) -> Vec<String> {
    found.iter().filter(|(_, n, _)| *n > 0).map(|(what, n, place)| format!("{n} x {what}:{place}")).collect()
}

fn open(key: &[u8], aad: &Aad, sealed: &[u8]) -> Option<Vec<u8>> {
    let cipher = Aes256Gcm::new_from_slice(key).unwrap();
    let (nonce, msg) = sealed.split_at(12);
    cipher.decrypt(&Nonce::try_from(nonce).unwrap(), Payload { msg, aad: aad.as_bytes() }).ok()
}

/// HKDF-SHA-256 as `crypto::kdf` documents it.
fn derive<const N: usize>(ikm: &[u8], label: &str) -> [u8; N] {
    let mut out = [0; N];
    let info = [label.as_bytes(), &[0]].concat();
    Hkdf::<Sha256>::new(None, ikm).expand(&info, &mut out).unwrap();
    out
}

/// A tenant's keys as the files of now give them to who has root KEK and keeper.
struct Keys {
    root: Vec<u8>,
    /// The keys of the nodes on the way to the leaf, from the top's child on.
    path: Vec<Vec<u8>>,
    dek: Vec<u8>,
}

impl Keys {
    /// Root, path and data key of a subject's class.
    fn read(place: &Place, uid: i64, class: u8) -> Keys {
        let kek = std::fs::read_to_string(place.dir.path().join("secrets/root.key")).unwrap();
        let kek = data_encoding::HEXLOWER.decode(kek.trim().as_bytes()).unwrap();
        let keeper = std::fs::read(place.config.keeper.paths[0].join("roots.keeper")).unwrap();
        let number = place.tenant.0;
        let db = database(place, |db| {
            let generation: i64 =
                db.query_row("SELECT generation FROM tenant WHERE no = ?1", [number], |row| row.get(0)).unwrap();
            let (slot, dek): (u32, Vec<u8>) = db
                .query_row("SELECT slot, dek FROM subject_class WHERE id = ?1", [uid << 5 | i64::from(class)], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .unwrap();
            let leaf = 14_521 + slot / 120;
            let middle = (leaf - 14_521) / 120;
            let ordinals = [0, 1 + middle / 120, 121 + middle, leaf];
            let nodes = ordinals.map(|ordinal| {
                let id = i64::from(number) << 21 | i64::from(ordinal);
                let found = db.query_row("SELECT generation, blob FROM node WHERE id = ?1", [id], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
                });
                (ordinal, found.unwrap())
            });
            (generation, slot, dek, nodes)
        });
        let (generation, slot, dek_id, nodes) = db;
        let vault = VaultId(keeper[8..24].try_into().unwrap());
        let block = (0..2)
            .map(|turn| &keeper[(16 + 2 * number as usize + turn) * 4096..][..512])
            .find(|block| block[28] == 1 && block[32..40] == (generation as u64).to_be_bytes())
            .expect("a slot of this generation");
        let aad = Aad::new(Kind::Root, vault, place.tenant).part(&block[32..40]).part(&block[40..56]);
        let root = open(&kek, &aad, &block[56..116]).expect("the root opens");
        let (mut key, mut path) = (root.clone(), Vec::new());
        let mut plain = Vec::new();
        for (i, (ordinal, (generation, blob))) in nodes.iter().enumerate() {
            let aad = Aad::node(vault, place.tenant, Ordinal(*ordinal), Generation(*generation as u64));
            plain = open(&key, &aad, &blob[1..]).expect("a node opens");
            if let Some((below, _)) = nodes.get(i + 1) {
                let index = ((below - [1, 121, 14_521][i]) % 120) as usize;
                key = plain[index * 32..][..32].to_vec();
                path.push(key.clone());
            }
        }
        let dek = plain[slot as usize % 120 * 32..][..32].to_vec();
        assert_eq!(derive::<16>(&dek, "pii-vault/1 id")[..], dek_id[..], "the right key was computed");
        Keys { root, path, dek }
    }

    fn needles(&self, whose: &str) -> Vec<Needle> {
        let mut needles = vec![
            needle(format!("data key of {whose}"), &self.dek),
            needle(format!("value key of {whose}"), &derive::<32>(&self.dek, "pii-vault/1 value")),
            needle(format!("manifest key of {whose}"), &derive::<32>(&self.dek, "pii-vault/1 manifest")),
            needle(format!("root over {whose}"), &self.root),
        ];
        needles
            .extend(self.path.iter().enumerate().map(|(i, key)| needle(format!("node {} over {whose}", i + 1), key)));
        needles
    }
}

fn database<T>(place: &Place, look: impl FnOnce(&rusqlite::Connection) -> T) -> T {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(place.config.data_dir.join("vault.db"), flags).unwrap();
    look(&db)
}

/// Uids of live subjects in order of creation.
fn uids(place: &Place) -> Vec<i64> {
    database(place, |db| {
        let mut rows = db.prepare("SELECT uid FROM subject WHERE tenant = ?1 ORDER BY uid").unwrap();
        rows.query_map([place.tenant.0], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    })
}

/// Whether the search can find something: a word of this very test's memory.
pub fn control(path: &Path) {
    let word = format!("control {} {}", path.display(), std::process::id());
    let held = word.clone().into_bytes();
    assert!(search(std::process::id(), &[needle("control", &held)])[0].1 >= 2, "two copies are held here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_memory_holds_no_dead_key_at_the_answer_and_no_value_soon_after() {
    let place = Place::new(tempfile::tempdir().unwrap(), 2).await;
    control(place.dir.path());
    let key = place.keys(1).await.remove(0);
    let (server, _) = place.serve().await;
    let mut records = RecordServiceClient::new(server.channel.clone());
    let mut dice = Dice(std::process::id().into());
    let mut secret = |role: &str| format!("{role}{:016x}{:016x}", dice.next(), dice.next());
    let names: Vec<String> = (0..8).map(|_| secret("Nm")).collect();
    let emails: Vec<String> = (0..8).map(|_| secret("em")).collect();
    for (i, (name, email)) in names.iter().zip(&emails).enumerate() {
        let values = vec![text_value(NAME, name), text_value(EMAIL, &format!("{email}@example.com"))];
        let (subject, context) = (format!("usr_{i}"), for_purpose(SERVICE));
        let put = pb::PutFieldsRequest { subject: subject.clone(), values, context, ..Default::default() };
        records.put_fields(with(&key.text, put)).await.expect("put");
        for _ in 0..3 {
            let get =
                pb::GetFieldsRequest { key: by_id(&subject), context: for_purpose(SERVICE), ..Default::default() };
            records.get_fields(with(&key.text, get)).await.expect("get");
        }
    }
    let keys: Vec<Keys> = uids(&place).into_iter().map(|uid| Keys::read(&place, uid, 1)).collect();
    assert_eq!(keys.len(), 8);
    // What is alive is held, or the search looks for the wrong bytes.
    let living = search(server.pid(), &keys[0].needles("the first"));
    assert!(living[0].1 > 0 && living[4].1 > 0, "{living:?}");

    // Keys are gone when the erasure is answered.
    let mut erasures = ErasureServiceClient::new(server.channel.clone());
    let mut dead = Vec::new();
    for (i, mine) in keys.iter().enumerate().take(4) {
        let before = Keys::read(&place, uids(&place)[0], 1);
        assert_eq!(before.dek, mine.dek);
        let erase = pb::EraseSubjectRequest { key: by_id(&format!("usr_{i}")), wait_final: true, ..Default::default() };
        let done = erasures.erase_subject(with(&key.text, erase)).await.expect("erase").into_inner();
        assert_eq!(done.erasure.unwrap().status, pb::ErasureStatus::Erased as i32);
        dead.extend(before.needles(&format!("usr_{i}")));
        let at_answer = hits(&search(server.pid(), &dead));
        assert!(at_answer.is_empty(), "at the answer:\n{}", at_answer.join("\n"));
    }

    // Values and the text of the key: not for long.
    let mut words: Vec<Needle> =
        names.iter().enumerate().map(|(i, n)| needle(format!("name {i}"), n.as_bytes())).collect();
    words.extend(emails.iter().enumerate().map(|(i, e)| needle(format!("e-mail {i}"), e.as_bytes())));
    words.push(needle("access key", key.text.as_bytes()));
    println!("at the answer: {}", hits(&search(server.pid(), &words)).len());
    let wait = rounds(5, 60) as u64;
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let later = hits(&search(server.pid(), &words));
    println!("after {wait} s with the connection open:\n{}", later.join("\n"));
    drop((records, erasures));
    let place_pid = server.pid();
    let server = server.hang_up();
    forgotten(place_pid, &words).await;
    drop(server);
}

/// What the kernel says of a running server: no core file whatever kills it, and its pages are locked, for these tests run
/// as root, whom no limit of locked memory binds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_a_server_leaves_no_core_file_and_is_not_swapped_out() {
    let place = Place::new(tempfile::tempdir().unwrap(), 1).await;
    let (server, _) = place.serve().await;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", server.pid())).unwrap();
    let limits = read("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    let status = read("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    assert!(locked.trim().trim_end_matches(" kB").parse::<u64>().unwrap() > 0, "{locked}");
    let log = place.log();
    assert!(!log.contains("swapped out"), "{log}");
    server.stop();
}
