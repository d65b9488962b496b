//! One segment file: header, frames, zeros.
//!
//! ```text
//! header = "PVREADLG" | format u32 | length of the header u32 | vault id 16 B | segment number u64 | created i64
//!          | count u32 | count x (tenant u32, number u64, hash 32 B): all heads when the segment began
//!          | SHA-256 of the above | zeros up to a multiple of 4,096
//! frame  = magic u32 | length of the payload u32 | first 8 B of SHA-256(segment number, offset, payload) | payload
//! payload = (length u32 | group)*
//! ```
//! Numbers are little endian. Names are `<number, 10 digits>.readlog`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ReadLogError, ReadLogOptions, io};
use crate::audit::{Chain, Group, Head, genesis};
use crate::clock::Timestamp;
use crate::ids::{TenantNo, VaultId};

const MAGIC: &[u8; 8] = b"PVREADLG";
const FORMAT: u32 = 1;
const PAGE: usize = 4096;
const FIXED: usize = 8 + 4 + 4 + 16 + 8 + 8 + 4;
const HEAD: usize = 4 + 8 + 32;
const FRAME_MAGIC: [u8; 4] = *b"PVRF";
const FRAME_HEADER: usize = 16;
/// No batch is longer: the queue's bytes and one more call's worth.
const MAX_PAYLOAD: usize = 256 << 20;
/// Most tenants a header may list; bounds what a damaged length can claim.
const MAX_HEADER: usize = 256 << 20;

/// A segment, as shown to those who decide about pruning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    pub number: u64,
    /// Length of the file, zeros ahead included.
    pub bytes: u64,
    /// Its first entry is not older.
    pub since: Timestamp,
    /// Its last entry is not younger than about this; `None`: it is being written.
    pub until: Option<Timestamp>,
}

/// The file that is being written.
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    /// To notice that the name no longer leads to the file.
    device: u64,
    inode: u64,
    number: u64,
    created: Timestamp,
    header: u64,
    end: u64,
    /// The file holds zeros from `end` up to here.
    zeroed: u64,
}

impl Segment {
    /// Makes a segment that begins with these heads; durable with its name when this returns.
    pub(super) fn create(
        dir: &Path,
        options: &ReadLogOptions,
        number: u64,
        now: Timestamp,
        heads: &HashMap<TenantNo, Head>,
    ) -> Result<Self, ReadLogError> {
        let header = encode_header(options.vault, number, now, heads);
        let path = path(dir, number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(io("a new segment could not be made"))?;
        let zeroed = header.len() as u64 + options.ahead_bytes.min(options.segment_bytes);
        let mut bytes = header.clone();
        bytes.resize(zeroed as usize, 0);
        file.write_all_at(&bytes, 0).map_err(io("a new segment could not be written"))?;
        file.sync_all().map_err(io("a new segment could not be synced"))?;
        sync_dir(dir)?;
        Segment::of(file, path, number, now, header.len() as u64, header.len() as u64, zeroed)
    }

    fn of(
        file: File,
        path: PathBuf,
        number: u64,
        created: Timestamp,
        header: u64,
        end: u64,
        zeroed: u64,
    ) -> Result<Self, ReadLogError> {
        let meta = file.metadata().map_err(io("a segment could not be looked at"))?;
        Ok(Segment { file, path, device: meta.dev(), inode: meta.ino(), number, created, header, end, zeroed })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }
    pub(super) fn created(&self) -> Timestamp {
        self.created
    }
    /// Where the last frame ends.
    pub(super) fn end(&self) -> u64 {
        self.end
    }
    pub(super) fn is_empty(&self) -> bool {
        self.end == self.header
    }

    /// Closes the frame, writes it at the end and makes it durable.
    pub(super) fn append(&mut self, frame: &mut [u8], limit: u64, ahead: u64) -> Result<(), ReadLogError> {
        finish_frame(frame, self.number, self.end);
        let end = self.end + frame.len() as u64;
        if end > self.zeroed {
            let until = (end + ahead).min(limit.max(end));
            let zeros = vec![0u8; (until - end) as usize];
            self.file.write_all_at(&zeros, end).map_err(io("zeros could not be written"))?;
            self.zeroed = until;
        }
        self.file.write_all_at(frame, self.end).map_err(io("a frame could not be written"))?;
        self.file.sync_data().map_err(io("a frame could not be synced"))?;
        // Whoever removes, moves or cuts the file takes the frame with it: then it is not durable.
        let meta = std::fs::symlink_metadata(&self.path).map_err(io("the segment is gone"))?;
        if (meta.dev(), meta.ino()) != (self.device, self.inode) || meta.len() < end {
            return Err(ReadLogError::Missing { segment: self.number });
        }
        self.end = end;
        Ok(())
    }
}

/// Starts a frame in `out`.
pub(super) fn begin_frame(out: &mut Vec<u8>) {
    out.clear();
    out.resize(FRAME_HEADER, 0);
}

/// Adds a group to the frame.
pub(super) fn add_group(out: &mut Vec<u8>, group: &[u8]) {
    out.extend_from_slice(&(group.len() as u32).to_le_bytes());
    out.extend_from_slice(group);
}

fn finish_frame(frame: &mut [u8], number: u64, at: u64) {
    let (header, payload) = frame.split_at_mut(FRAME_HEADER);
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8..].copy_from_slice(&check(number, at, payload));
}

fn check(number: u64, at: u64, payload: &[u8]) -> [u8; 8] {
    let mut h = Sha256::new();
    h.update(number.to_le_bytes());
    h.update(at.to_le_bytes());
    h.update(payload);
    h.finalize()[..8].try_into().expect("a SHA-256 has 32 bytes")
}

/// The groups of a frame's payload.
pub(super) fn groups(payload: &[u8]) -> impl Iterator<Item = Result<&[u8], &'static str>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let split = rest
            .split_first_chunk::<4>()
            .and_then(|(len, tail)| tail.split_at_checked(u32::from_le_bytes(*len) as usize));
        match split {
            Some((group, tail)) => {
                rest = tail;
                Some(Ok(group))
            }
            None => {
                rest = &[];
                Some(Err("length of a group"))
            }
        }
    })
}

/// A segment's header, read.
pub(super) struct Header {
    pub vault: VaultId,
    pub number: u64,
    pub created: Timestamp,
    pub heads: HashMap<TenantNo, Head>,
    /// Where the first frame begins.
    pub len: u64,
}

fn encode_header(vault: VaultId, number: u64, created: Timestamp, heads: &HashMap<TenantNo, Head>) -> Vec<u8> {
    let used = FIXED + heads.len() * HEAD + 32;
    let len = used.next_multiple_of(PAGE);
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&vault.0);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&created.0.to_le_bytes());
    out.extend_from_slice(&(heads.len() as u32).to_le_bytes());
    let mut sorted: Vec<_> = heads.iter().collect();
    sorted.sort_by_key(|(t, _)| **t);
    for (tenant, head) in sorted {
        out.extend_from_slice(&tenant.0.to_le_bytes());
        out.extend_from_slice(&head.seq.to_le_bytes());
        out.extend_from_slice(&head.hash);
    }
    let sum: [u8; 32] = Sha256::digest(&out).into();
    out.extend_from_slice(&sum);
    out.resize(len, 0);
    out
}

/// Reads a segment's header; `Ok(None)` if it is not whole.
fn read_header(file: &File, number: u64) -> Result<Option<Header>, ReadLogError> {
    let size = file.metadata().map_err(io("a segment could not be looked at"))?.len();
    if size < PAGE as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0u8; PAGE];
    file.read_exact_at(&mut bytes, 0).map_err(io("a segment could not be read"))?;
    if &bytes[..8] != MAGIC {
        return Ok(None);
    }
    let u32_at = |b: &[u8], i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("four bytes"));
    let u64_at = |b: &[u8], i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
    let (format, len, count) = (u32_at(&bytes, 8), u32_at(&bytes, 12) as usize, u32_at(&bytes, 48) as usize);
    if format > FORMAT {
        return Err(ReadLogError::Newer { segment: number });
    }
    let used = FIXED + count.saturating_mul(HEAD) + 32;
    if len > MAX_HEADER || len as u64 > size || used > len || !len.is_multiple_of(PAGE) {
        return Ok(None);
    }
    bytes.resize(len, 0);
    file.read_exact_at(&mut bytes, 0).map_err(io("a segment could not be read"))?;
    let (signed, sum) = bytes[..used].split_at(used - 32);
    if Sha256::digest(signed)[..] != *sum {
        return Ok(None);
    }
    let mut heads = HashMap::with_capacity(count);
    for entry in signed[FIXED..].chunks_exact(HEAD) {
        let hash = entry[12..].try_into().expect("thirty-two bytes");
        heads.insert(TenantNo(u32_at(entry, 0)), Head { seq: u64_at(entry, 4), hash });
    }
    Ok(Some(Header {
        vault: VaultId(bytes[16..32].try_into().expect("sixteen bytes")),
        number: u64_at(&bytes, 32),
        created: Timestamp(u64_at(&bytes, 40) as i64),
        heads,
        len: len as u64,
    }))
}

/// Opens a segment for reading and checks that it is what its name says.
pub(super) fn open_segment(dir: &Path, number: u64, vault: VaultId) -> Result<(File, Header), ReadLogError> {
    let file = match File::open(path(dir, number)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ReadLogError::Missing { segment: number }),
        Err(e) => return Err(io("a segment could not be opened")(e)),
    };
    let header = read_header(&file, number)?;
    let header = header.ok_or(ReadLogError::Damaged { segment: number, at: 0, what: "the header" })?;
    if header.vault != vault {
        return Err(ReadLogError::Foreign { segment: number });
    }
    if header.number != number {
        return Err(ReadLogError::Damaged { segment: number, at: 0, what: "the number in the header" });
    }
    Ok((file, header))
}

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.readlog"))
}

/// Makes creations and removals in the directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), ReadLogError> {
    let dir = File::open(dir).map_err(io("the directory could not be opened"))?;
    dir.sync_all().map_err(io("the directory could not be synced"))
}

/// Copies the first `limit` bytes into a new file, durably. `false`: `more` stopped it.
pub(super) fn copy(
    from: &File,
    limit: u64,
    to: &Path,
    more: &mut dyn FnMut(u64) -> bool,
) -> Result<bool, ReadLogError> {
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let out = out.map_err(io("a copy of a segment could not be made"))?;
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < limit {
        let part = &mut buf[..(limit - at).min(1 << 20) as usize];
        from.read_exact_at(part, at).map_err(io("a segment could not be read"))?;
        out.write_all_at(part, at).map_err(io("a copy of a segment could not be written"))?;
        at += part.len() as u64;
        if !more(part.len() as u64) {
            return Ok(false);
        }
    }
    out.sync_all().map_err(io("a copy of a segment could not be synced"))?;
    Ok(true)
}

/// What [`FrameReader::next`] found at its place.
pub(super) enum Found {
    /// A valid frame: where it begins and its payload.
    Frame(u64, std::ops::Range<usize>),
    /// No valid frame; the reader stays where it is.
    End,
}

/// Reads frames in order through a buffer.
pub(super) struct FrameReader {
    file: File,
    number: u64,
    at: u64,
    limit: u64,
    buf: Vec<u8>,
    /// Offset in the file of the first byte of `buf`.
    start: u64,
}

impl FrameReader {
    /// Frames of `file` from offset `at` up to `limit`.
    pub(super) fn new(file: File, number: u64, at: u64, limit: u64) -> Self {
        FrameReader { file, number, at, limit, buf: Vec::new(), start: at }
    }

    /// Where the next frame would begin.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The bytes of a range that [`FrameReader::next`] gave; valid until the next call.
    pub(super) fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.buf[range]
    }

    pub(super) fn next(&mut self) -> Result<Found, ReadLogError> {
        let Some(header) = self.fetch(FRAME_HEADER)? else { return Ok(Found::End) };
        let h = &self.buf[header.clone()];
        let len = u32::from_le_bytes(h[4..8].try_into().expect("four bytes")) as usize;
        if h[..4] != FRAME_MAGIC || len > MAX_PAYLOAD {
            return Ok(Found::End);
        }
        let Some(frame) = self.fetch(FRAME_HEADER + len)? else { return Ok(Found::End) };
        let payload = frame.start + FRAME_HEADER..frame.end;
        let sum = &self.buf[frame.start + 8..frame.start + 16];
        if *sum != check(self.number, self.at, &self.buf[payload.clone()]) {
            return Ok(Found::End);
        }
        let at = self.at;
        self.at += (FRAME_HEADER + len) as u64;
        Ok(Found::Frame(at, payload))
    }

    /// Has `n` bytes from `at` on in the buffer; `None` if the file or the limit ends before.
    fn fetch(&mut self, n: usize) -> Result<Option<std::ops::Range<usize>>, ReadLogError> {
        const CHUNK: usize = 256 << 10;
        if self.at + n as u64 > self.limit {
            return Ok(None);
        }
        let from = (self.at - self.start) as usize;
        if from + n > self.buf.len() {
            self.buf.drain(..from.min(self.buf.len()));
            self.start = self.at;
            let have = self.buf.len();
            let want = n.max(CHUNK).min((self.limit - self.at) as usize);
            self.buf.resize(want.max(have), 0);
            let mut filled = have;
            while filled < self.buf.len() {
                match self.file.read_at(&mut self.buf[filled..], self.start + filled as u64) {
                    Ok(0) => break,
                    Ok(k) => filled += k,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(io("a segment could not be read")(e)),
                }
            }
            self.buf.truncate(filled);
        }
        let from = (self.at - self.start) as usize;
        Ok((from + n <= self.buf.len()).then_some(from..from + n))
    }

    /// What lies behind the last valid frame: nothing but zeros, or else how many bytes and whether a valid frame is among
    /// them.
    pub(super) fn tail(&mut self) -> Result<Tail, ReadLogError> {
        let mut rest = vec![0u8; (self.limit - self.at) as usize];
        let mut filled = 0;
        while filled < rest.len() {
            match self.file.read_at(&mut rest[filled..], self.at + filled as u64) {
                Ok(0) => break,
                Ok(k) => filled += k,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io("a segment could not be read")(e)),
            }
        }
        let rest = &rest[..filled];
        let Some(last) = rest.iter().rposition(|b| *b != 0) else { return Ok(Tail::Zeros) };
        for (i, window) in rest.windows(FRAME_HEADER).enumerate() {
            if window[..4] != FRAME_MAGIC {
                continue;
            }
            let len = u32::from_le_bytes(window[4..8].try_into().expect("four bytes")) as usize;
            let payload = rest[i + FRAME_HEADER..].get(..len);
            if payload.is_some_and(|p| window[8..] == check(self.number, self.at + i as u64, p)) {
                return Ok(Tail::FramesBehind);
            }
        }
        Ok(Tail::Torn(last as u64 + 1))
    }
}

pub(super) enum Tail {
    Zeros,
    /// Bytes up to the last that is not zero, none of them in a valid frame.
    Torn(u64),
    /// A valid frame behind a place where there is none: not a crash.
    FramesBehind,
}

/// What the directory holds.
pub(super) struct State {
    pub heads: HashMap<TenantNo, Head>,
    pub segments: Vec<u64>,
    pub torn_bytes: u64,
}

/// Numbers of the segments in the directory, ascending and without a gap.
fn list(dir: &Path) -> Result<Vec<u64>, ReadLogError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("the directory could not be read"))? {
        let name = entry.map_err(io("the directory could not be read"))?.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".readlog")).and_then(|n| n.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    match numbers.windows(2).find(|w| w[1] != w[0] + 1) {
        Some(w) => Err(ReadLogError::Missing { segment: w[0] + 1 }),
        None => Ok(numbers),
    }
}

/// Opens or makes the log: reads the last segment, clears a torn last frame, checks links and known heads.
pub(super) fn open_dir(
    dir: &Path,
    options: &ReadLogOptions,
    known: &[(TenantNo, Head)],
    now: Timestamp,
) -> Result<(Segment, State), ReadLogError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io("the directory could not be made"))?;
    let mut segments = list(dir)?;
    if let [.., before, last] = segments[..] {
        // A crash while the segment was being made: nothing can have been written to it yet.
        let file = File::open(path(dir, last)).map_err(io("a segment could not be opened"))?;
        if read_header(&file, last)?.is_none() && only_begun(&file)? {
            tracing::warn!(segment = last, "removed a read audit segment whose creation was interrupted");
            remove(dir, last)?;
            segments.retain(|n| *n <= before);
        }
    } else if let [only] = segments[..] {
        let file = File::open(path(dir, only)).map_err(io("a segment could not be opened"))?;
        if only == 1 && read_header(&file, only)?.is_none() && only_begun(&file)? {
            remove(dir, only)?;
            segments.clear();
        }
    }
    let Some(&last) = segments.last() else {
        check_known(options.vault, known, &HashMap::new(), &HashMap::new(), &HashMap::new())?;
        let heads = HashMap::new();
        let segment = Segment::create(dir, options, 1, now, &heads)?;
        return Ok((segment, State { heads, segments: vec![1], torn_bytes: 0 }));
    };

    let (file, header) = open_segment(dir, last, options.vault)?;
    let size = file.metadata().map_err(io("a segment could not be looked at"))?.len();
    let mut reader = FrameReader::new(file, last, header.len, size);
    let wanted: HashMap<TenantNo, Head> = known.iter().copied().collect();
    let mut heads = header.heads.clone();
    let mut met: HashMap<TenantNo, Head> = HashMap::new();
    let mut last_frame = None;
    while let Found::Frame(at, payload) = reader.next()? {
        let damaged = |what| ReadLogError::Damaged { segment: last, at, what };
        for group in groups(reader.bytes(payload.clone())) {
            let group = Group::parse(group.map_err(damaged)?).map_err(|_| damaged("a group"))?;
            let prev = heads.get(&group.tenant).copied();
            let prev = prev.unwrap_or_else(|| genesis(options.vault, group.tenant, Chain::Read));
            if group.chain != Chain::Read || group.first != prev.seq + 1 || group.prev != prev.hash {
                return Err(damaged("a group that does not follow the one before"));
            }
            let head = group.head();
            if wanted.get(&group.tenant).is_some_and(|k| k.seq == head.seq) {
                met.insert(group.tenant, head);
            }
            heads.insert(group.tenant, head);
        }
        last_frame = Some((at, payload.len() + FRAME_HEADER));
    }
    let end = reader.at();
    let torn_bytes = match reader.tail()? {
        Tail::Zeros => 0,
        Tail::Torn(bytes) => bytes,
        Tail::FramesBehind => {
            return Err(ReadLogError::Damaged { segment: last, at: end, what: "a frame that is not the last" });
        }
    };
    check_known(options.vault, known, &header.heads, &heads, &met)?;

    let path = path(dir, last);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(io("a segment could not be opened"))?;
    if let Some((at, len)) = last_frame {
        // The last frame may be in the page cache only (a failed or interrupted sync): write it once more, so that the
        // sync below really carries it.
        let mut frame = vec![0u8; len];
        file.read_exact_at(&mut frame, at).map_err(io("a segment could not be read"))?;
        file.write_all_at(&frame, at).map_err(io("a frame could not be written"))?;
    }
    if torn_bytes > 0 {
        let zeros = vec![0u8; torn_bytes as usize];
        file.write_all_at(&zeros, end).map_err(io("a torn frame could not be cleared"))?;
    }
    file.sync_all().map_err(io("a segment could not be synced"))?;
    sync_dir(dir)?;
    let segment = Segment::of(file, path, last, header.created, header.len, end, size.max(end))?;
    Ok((segment, State { heads, segments, torn_bytes }))
}

/// Whether the file holds nothing behind the place of a small header: then no frame was ever written.
fn only_begun(file: &File) -> Result<bool, ReadLogError> {
    let size = file.metadata().map_err(io("a segment could not be looked at"))?.len() as usize;
    let mut buf = vec![0u8; 64 << 10];
    let mut at = 0;
    while at < size {
        let n = file.read_at(&mut buf, at as u64).map_err(io("a segment could not be read"))?;
        if n == 0 {
            break;
        }
        if buf[..n].windows(4).any(|w| w == FRAME_MAGIC) {
            return Ok(false);
        }
        at += n;
    }
    Ok(true)
}

pub(super) fn remove(dir: &Path, number: u64) -> Result<(), ReadLogError> {
    std::fs::remove_file(path(dir, number)).map_err(io("a segment could not be removed"))?;
    sync_dir(dir)
}

/// Compares what was recorded elsewhere with what the log holds.
fn check_known(
    vault: VaultId,
    known: &[(TenantNo, Head)],
    before: &HashMap<TenantNo, Head>,
    heads: &HashMap<TenantNo, Head>,
    met: &HashMap<TenantNo, Head>,
) -> Result<(), ReadLogError> {
    for (tenant, k) in known {
        let start = || genesis(vault, *tenant, Chain::Read);
        let found = heads.get(tenant).copied().unwrap_or_else(start);
        let began = before.get(tenant).copied().unwrap_or_else(start);
        if found.seq < k.seq {
            return Err(ReadLogError::Truncated { tenant: *tenant, found: found.seq, known: k.seq });
        }
        let same = match () {
            _ if k.seq < began.seq => true, // in an older segment: the full verification looks there
            _ if k.seq == began.seq => began.hash == k.hash,
            _ => met.get(tenant) == Some(k),
        };
        if !same {
            return Err(ReadLogError::Replaced { tenant: *tenant, known: k.seq });
        }
    }
    Ok(())
}
