//! Reading the log: entries of one tenant, its chain for verification, segments and their end.

use std::collections::VecDeque;
use std::path::Path;

use super::segment::{self, Found, FrameReader, SegmentInfo};
use super::{ReadLog, ReadLogError, Shared, io};
use crate::audit::{AuditRecord, Chain, Checkpoint, Filter, Group, Head, Tamper, Verifier, genesis};
use crate::clock::Timestamp;
use crate::ids::TenantNo;
use std::sync::Arc;

/// Why a chain did not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Tampered(#[from] Tamper),
    #[error(transparent)]
    Unreadable(#[from] ReadLogError),
}

impl ReadLog {
    /// The stored groups of one tenant that hold `from` or a later record, oldest first, up to what is durable now.
    /// Reads files: not for the async runtime.
    pub fn groups(&self, tenant: TenantNo, from: u64) -> Result<Groups, ReadLogError> {
        let (mut segments, end) = {
            let d = self.shared.durable.lock();
            (d.segments.clone(), d.end)
        };
        // Headers say which number a segment begins behind; the newest that begins before `from` is the first to read.
        let from = from.max(1);
        let mut first = segments.len() - 1;
        while first > 0 {
            let (_, header) = segment::open_segment(&self.shared.dir, segments[first], self.shared.options.vault)?;
            if header.heads.get(&tenant).is_none_or(|h| h.seq < from) {
                break;
            }
            first -= 1;
        }
        segments.drain(..first);
        Ok(Groups {
            shared: self.shared.clone(),
            tenant,
            from,
            segments: segments.into(),
            end,
            reader: None,
            ready: VecDeque::new(),
        })
    }

    /// The number behind which a tenant's records of `since` and later begin, or a little before it: segments know when they
    /// were begun. Reads files: not for the async runtime.
    pub fn behind(&self, tenant: TenantNo, since: Timestamp) -> Result<u64, ReadLogError> {
        let segments = self.shared.durable.lock().segments.clone();
        for number in segments.iter().rev() {
            let (_, header) = segment::open_segment(&self.shared.dir, *number, self.shared.options.vault)?;
            if header.created <= since || segments.first() == Some(number) {
                return Ok(header.heads.get(&tenant).map_or(0, |head| head.seq));
            }
        }
        Ok(0)
    }

    /// The entries of one tenant from number `from` on that the filter wants, oldest first.
    pub fn scan(&self, tenant: TenantNo, from: u64, filter: Filter) -> Result<Entries, ReadLogError> {
        Ok(Entries { groups: self.groups(tenant, from)?, filter, ready: VecDeque::new() })
    }

    /// Verifies the whole chain of a tenant as far back as segments are kept, against heads known from elsewhere
    /// (ascending). Answers the head.
    pub fn verify(&self, tenant: TenantNo, known: &[Head]) -> Result<Head, VerifyError> {
        let vault = self.shared.options.vault;
        let oldest = self.shared.durable.lock().segments[0];
        let (_, header) = segment::open_segment(&self.shared.dir, oldest, vault)?;
        let start = header.heads.get(&tenant).copied().unwrap_or_else(|| genesis(vault, tenant, Chain::Read));
        let mut verifier = Verifier::new(tenant, Chain::Read, start, known);
        for group in self.groups(tenant, start.seq + 1)? {
            let group = group?;
            let parsed = Group::parse(&group).expect("`Groups` gives only what it could parse");
            verifier.push(&parsed)?;
        }
        Ok(verifier.finish()?)
    }

    /// The segments that are there, oldest first.
    pub fn segments(&self) -> Result<Vec<SegmentInfo>, ReadLogError> {
        let numbers = self.shared.durable.lock().segments.clone();
        let mut out: Vec<SegmentInfo> = Vec::with_capacity(numbers.len());
        for number in numbers {
            let (file, header) = segment::open_segment(&self.shared.dir, number, self.shared.options.vault)?;
            let bytes = file.metadata().map_err(io("a segment could not be looked at"))?.len();
            if let Some(before) = out.last_mut() {
                before.until = Some(header.created);
            }
            out.push(SegmentInfo { number, bytes, since: header.created, until: None });
        }
        Ok(out)
    }

    /// Copies every segment into the directory `to`, the one being written up to what is durable now: a log that opens.
    /// `more` is told of each part's bytes and may wait; where it says `false` the copy stops. Answers whether it was
    /// finished. Reads and writes files: not for the async runtime.
    pub fn copy_to(&self, to: &Path, more: &mut dyn FnMut(u64) -> bool) -> Result<bool, ReadLogError> {
        let (segments, end) = {
            let durable = self.shared.durable.lock();
            (durable.segments.clone(), durable.end)
        };
        for number in &segments {
            let opened = segment::open_segment(&self.shared.dir, *number, self.shared.options.vault);
            let file = match opened {
                Ok((file, _)) => file,
                // Pruned since: the copy begins with the next one, as the log does.
                Err(_) if !self.shared.durable.lock().segments.contains(number) => continue,
                Err(error) => return Err(error),
            };
            let size = file.metadata().map_err(io("a segment could not be looked at"))?.len();
            let limit = if segments.last() == Some(number) { end } else { size };
            if !segment::copy(&file, limit, &segment::path(to, *number), more)? {
                return Ok(false);
            }
        }
        segment::sync_dir(to)?;
        Ok(true)
    }

    /// The last segment, from the oldest on, whose entries are all older than `before`; `None` if there is none.
    pub fn prunable(&self, before: Timestamp) -> Result<Option<u64>, ReadLogError> {
        let old = self.segments()?.into_iter().take_while(|s| s.until.is_some_and(|t| t < before));
        Ok(old.last().map(|s| s.number))
    }

    /// Removes the segments up to and including `through`. Their last heads must be in the signed checkpoint, so that the
    /// rest of each chain stays verifiable; the segment being written stays. Answers how many were removed.
    pub fn prune(&self, through: u64, checkpoint: &Checkpoint) -> Result<usize, ReadLogError> {
        let segments = self.shared.durable.lock().segments.clone();
        let refuse = |why| ReadLogError::NotPrunable { segment: through, why };
        if segments.last().is_none_or(|last| through >= *last) {
            return Err(refuse("it is being written"));
        }
        if through < segments[0] {
            return Ok(0);
        }
        let (_, next) = segment::open_segment(&self.shared.dir, through + 1, self.shared.options.vault)?;
        let covered = |(t, h): (&TenantNo, &Head)| checkpoint.head(*t, Chain::Read).is_some_and(|c| c.seq >= h.seq);
        if !next.heads.iter().all(covered) {
            return Err(refuse("no signed checkpoint covers it"));
        }
        let mut removed = 0;
        for number in segments.into_iter().take_while(|n| *n <= through) {
            segment::remove(&self.shared.dir, number)?;
            self.shared.durable.lock().segments.retain(|n| *n != number);
            removed += 1;
        }
        Ok(removed)
    }
}

/// Groups of one tenant, oldest first.
pub struct Groups {
    shared: Arc<Shared>,
    tenant: TenantNo,
    from: u64,
    segments: VecDeque<u64>,
    end: u64,
    reader: Option<(u64, FrameReader)>,
    ready: VecDeque<Vec<u8>>,
}

impl Groups {
    fn advance(&mut self) -> Result<Option<Vec<u8>>, ReadLogError> {
        loop {
            if let Some(group) = self.ready.pop_front() {
                return Ok(Some(group));
            }
            let Some((number, reader)) = &mut self.reader else {
                let Some(number) = self.segments.pop_front() else { return Ok(None) };
                let (file, header) = segment::open_segment(&self.shared.dir, number, self.shared.options.vault)?;
                let size = file.metadata().map_err(io("a segment could not be looked at"))?.len();
                let limit = if self.segments.is_empty() { self.end } else { size };
                self.reader = Some((number, FrameReader::new(file, number, header.len, limit)));
                continue;
            };
            let number = *number;
            match reader.next()? {
                Found::Frame(at, payload) => {
                    let damaged = |what| ReadLogError::Damaged { segment: number, at, what };
                    for bytes in segment::groups(reader.bytes(payload)) {
                        let bytes = bytes.map_err(damaged)?;
                        let group = Group::parse(bytes).map_err(|_| damaged("a group"))?;
                        if group.tenant == self.tenant && group.last() >= self.from {
                            self.ready.push_back(bytes.to_vec());
                        }
                    }
                }
                Found::End => {
                    let whole = if self.segments.is_empty() {
                        reader.at() == self.end
                    } else {
                        matches!(reader.tail()?, segment::Tail::Zeros)
                    };
                    if !whole {
                        return Err(ReadLogError::Damaged { segment: number, at: reader.at(), what: "a frame" });
                    }
                    self.reader = None;
                }
            }
        }
    }
}

impl Iterator for Groups {
    type Item = Result<Vec<u8>, ReadLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, Some(Err(_))) {
            (self.segments, self.reader) = (VecDeque::new(), None);
        }
        next
    }
}

/// Entries of one tenant with their numbers, oldest first.
pub struct Entries {
    groups: Groups,
    filter: Filter,
    ready: VecDeque<(u64, AuditRecord)>,
}

impl Iterator for Entries {
    type Item = Result<(u64, AuditRecord), ReadLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            let group = match self.groups.next()? {
                Ok(group) => group,
                Err(e) => return Some(Err(e)),
            };
            let parsed = Group::parse(&group).expect("`Groups` gives only what it could parse");
            for entry in parsed.entries() {
                match entry {
                    Ok((seq, record)) if seq >= self.groups.from && self.filter.matches(&record) => {
                        self.ready.push_back((seq, record));
                    }
                    Ok(_) => {}
                    Err(_) => {
                        let number = self.groups.reader.as_ref().map_or(0, |(n, _)| *n);
                        return Some(Err(ReadLogError::Damaged { segment: number, at: 0, what: "a record" }));
                    }
                }
            }
        }
    }
}
