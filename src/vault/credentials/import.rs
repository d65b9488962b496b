//! Passwords of other systems: their hashes are taken over, checked by the other system's algorithm, and made anew by
//! the vault's at the next good login. Fast hashes never rest as they came: they are wrapped in Argon2id at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use zeroize::Zeroizing;

use super::password::StoredPassword;
use super::{Draft, Edit, PASSWORD};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::clock::{DAY_MS, Timestamp};
use crate::crypto::foreign_hash::{ForeignError, ForeignHash};
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::{VaultError, Violation};
use crate::vault::find::Key;
use crate::vault::request::Request;

/// Most rows of a batch.
pub const MAX_ROWS: usize = 1_000;
/// Rows of one change.
const TOGETHER: usize = 250;
/// How long one call of a batch works before it says how far it came: well below the deadline of a call.
const BUDGET: Duration = Duration::from_secs(5);

/// One hash to take over.
pub struct ImportRow {
    pub subject: SubjectId,
    pub hash: Zeroizing<String>,
    pub must_change: bool,
}

/// What one import did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Otherwise the subject has a password already, which stays.
    pub imported: bool,
    /// As reports call it.
    pub algorithm: &'static str,
}

/// How far a batch came.
#[derive(Debug, Default)]
pub struct BatchImported {
    /// Rows from the first that were dealt with.
    pub done: usize,
    pub imported: usize,
    pub kept: usize,
    /// Rows that were refused, by their place.
    pub errors: Vec<(usize, VaultError)>,
}

/// What to do in a batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct BatchOptions {
    /// Put them in the place of passwords that are there.
    pub replace: bool,
    /// Make subjects that are not there.
    pub create_subjects: bool,
    pub validate_only: bool,
}

/// A chunk that can be committed.
#[derive(Default)]
struct Ready<'r> {
    change: ChangeSet,
    /// Given for it; handed back if it does not commit.
    slots: Vec<Slot>,
    /// The rows in it by their place in the batch, with what is stored of them.
    parts: Vec<(usize, &'r ImportRow, Option<StoredPassword>)>,
    /// Subjects that it makes.
    new: u64,
}

fn refused(path: &str, error: ForeignError) -> VaultError {
    VaultError::ValueInvalid(vec![Violation::new(path, error.to_string())])
}

impl Vault {
    /// What is stored of a hash; a fast one is wrapped, behind everybody who logs in.
    async fn take_over_hash(&self, call: &Call, hash: &str, must_change: bool) -> Result<StoredPassword, VaultError> {
        let foreign = ForeignHash::parse(hash, self.credentials.pool.limit_kib()).map_err(|e| refused("hash", e))?;
        let set = call.now;
        let Some((recipe, digest)) = foreign.fast() else {
            return Ok(StoredPassword { hash: hash.to_owned(), pepper: None, inner: None, set, must_change });
        };
        let (version, keyed) = self.peppered(call, digest)?;
        let hash = self.credentials.pool.hash_in_import(keyed).await?;
        Ok(StoredPassword { hash, pepper: Some(version), inner: Some(recipe.text()), set, must_change })
    }

    /// Takes over one hash.
    #[allow(clippy::too_many_arguments)] // the parts of one request
    pub async fn import_password(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        hash: &str,
        must_change: bool,
        replace: bool,
        request: Option<Request>,
        validate_only: bool,
    ) -> Result<Imported, VaultError> {
        let permit = call.permit(Verb::Credential)?;
        self.credential_rules(call)?;
        let limit = self.credentials.pool.limit_kib();
        let algorithm = ForeignHash::parse(hash, limit).map_err(|e| refused("hash", e))?.algorithm();
        if let Some(imported) = self.repeated(call, request.as_ref()).await? {
            return Ok(Imported { imported, algorithm });
        }
        let snapshot = self.resolve(call, context, key).await?;
        permit.for_group(snapshot.subject.group)?;
        self.must_be_open(&snapshot.subject)?;
        if validate_only {
            let there = self.open_credential(call, &snapshot, PASSWORD).await?;
            return Ok(Imported { imported: replace || there.is_none(), algorithm });
        }
        let stored = self.take_over_hash(call, hash, must_change).await?.to_bytes();
        let put = |_: &SubjectSnapshot, there: Option<&[u8]>, _: &mut Draft| {
            Ok(if there.is_some() && !replace { (Edit::Keep, false) } else { (Edit::Put(stored.clone()), true) })
        };
        let (verb, action) = (Verb::Credential, Action::ImportPassword);
        let imported = self.edit_credential(call, context, key, verb, PASSWORD, action, request.as_ref(), put).await?;
        Ok(Imported { imported, algorithm })
    }

    /// Takes over many hashes, for some seconds; says how far it came. A row whose subject has a password already
    /// changes nothing (unless it replaces), so a batch may be sent again. Batches take turns at being made ready, some hundred
    /// rows each, and not at being written.
    ///
    /// # Errors
    /// Only what concerns the whole batch; what is wrong with a row is in the answer.
    pub async fn import_passwords(
        &self,
        call: &Call,
        rows: &[Result<ImportRow, Violation>],
        options: BatchOptions,
    ) -> Result<BatchImported, VaultError> {
        call.permit(Verb::Credential)?;
        self.credential_rules(call)?;
        let mut all = BatchImported::default();
        let mut until = None;
        for chunk in rows.chunks(TOGETHER) {
            // While one batch's chunk waits for the disk, another's is made ready.
            let turn = self.credentials.imports.lock().await;
            let until = *until.get_or_insert_with(|| self.monotonic() + BUDGET);
            // Fast hashes are wrapped side by side, in order, until the time is over.
            let limit = self.credentials.pool.limit_kib();
            let mut stored = Vec::with_capacity(chunk.len());
            for few in chunk.chunks(self.credentials.threads) {
                let mut work = Vec::with_capacity(few.len());
                for row in few {
                    work.push(self.take_over_row(call, row, options, limit));
                }
                stored.extend(join_all(work).await);
                if self.monotonic() >= until {
                    break;
                }
            }
            let here = stored.len();
            let ready = self.make_ready(call, &chunk[..here], stored, options, &mut all).await?;
            drop(turn);
            self.commit_ready(call, ready, options, &mut all).await?;
            all.done += here;
            if here < chunk.len() || self.monotonic() >= until {
                break;
            }
        }
        Ok(all)
    }

    /// What is stored of a row; `None` for one that has no form, `Some(Ok(None))` where nothing is to be stored.
    async fn take_over_row(
        &self,
        call: &Call,
        row: &Result<ImportRow, Violation>,
        options: BatchOptions,
        limit_kib: u32,
    ) -> Option<Result<Option<StoredPassword>, VaultError>> {
        let row = row.as_ref().ok()?;
        Some(match options.validate_only {
            true => ForeignHash::parse(&row.hash, limit_kib).map(|_| None).map_err(|e| refused("hash", e)),
            false => self.take_over_hash(call, &row.hash, row.must_change).await.map(Some),
        })
    }

    /// One change of what was taken over of the first rows of a chunk; what is refused and what stays goes to `all`.
    async fn make_ready<'r>(
        &self,
        call: &Call,
        rows: &'r [Result<ImportRow, Violation>],
        stored: Vec<Option<Result<Option<StoredPassword>, VaultError>>>,
        options: BatchOptions,
        all: &mut BatchImported,
    ) -> Result<Ready<'r>, VaultError> {
        let known: Vec<&ImportRow> = rows.iter().filter_map(|row| row.as_ref().ok()).collect();
        let digests = known.iter().map(|row| call.tenant.digest(&row.subject)).collect();
        let mut lookups = self.store.subjects(call.tenant.no, digests).await?.into_iter();
        let mut ready = Ready::default();
        for (i, (row, stored)) in rows.iter().zip(stored).enumerate() {
            let at = all.done + i;
            let row = match row {
                Ok(row) => row,
                Err(violation) => {
                    all.errors.push((at, VaultError::Invalid(vec![violation.clone()])));
                    continue;
                }
            };
            let one = match lookups.next().zip(stored) {
                Some((lookup, Ok(stored))) => {
                    let is_new = matches!(lookup, Lookup::Missing);
                    let made = self.import_one(call, row, lookup, stored.as_ref(), options).await;
                    made.map(|made| made.map(|made| (made, stored, is_new)))
                }
                Some((_, Err(error))) => Err(error),
                None => Err(VaultError::DataLoss),
            };
            match one {
                Ok(None) => all.kept += 1,
                Ok(Some(((change, given), stored, is_new))) => {
                    ready.change.preconditions.extend(change.preconditions);
                    ready.change.mutations.extend(change.mutations);
                    ready.change.audit.extend(change.audit);
                    ready.slots.extend(given);
                    ready.new += u64::from(is_new);
                    ready.parts.push((at, row, stored));
                }
                Err(error @ (VaultError::Store(_) | VaultError::Busy { .. } | VaultError::Keyring(_))) => {
                    self.keyring.release(call.tenant.no, &ready.slots);
                    return Err(error);
                }
                Err(error) => all.errors.push((at, error)),
            }
        }
        Ok(ready)
    }

    /// Commits a chunk whole; one by one where somebody writes beside us or not all of it has room.
    async fn commit_ready(
        &self,
        call: &Call,
        ready: Ready<'_>,
        options: BatchOptions,
        all: &mut BatchImported,
    ) -> Result<(), VaultError> {
        let Ready { mut change, slots, parts, new } = ready;
        let room = self.require_room(call, new, &mut change).await;
        let whole = match room {
            // Only checked.
            Ok(()) if change.mutations.is_empty() => Ok(()),
            Ok(()) => self.store.commit(change).await.map(drop).map_err(VaultError::from),
            Err(error) => Err(error),
        };
        if whole.is_ok() {
            all.imported += parts.len();
            return Ok(());
        }
        self.keyring.release(call.tenant.no, &slots);
        match whole {
            Err(VaultError::Quota(_) | VaultError::Conflict) => {}
            other => return other,
        }
        for (at, row, stored) in parts {
            match self.import_alone(call, row, stored.as_ref(), options).await {
                Ok(true) => all.imported += 1,
                Ok(false) => all.kept += 1,
                Err(error) => all.errors.push((at, error)),
            }
        }
        Ok(())
    }

    async fn import_alone(
        &self,
        call: &Call,
        row: &ImportRow,
        stored: Option<&StoredPassword>,
        options: BatchOptions,
    ) -> Result<bool, VaultError> {
        for _ in 0..6 {
            let lookup = self.store.subject(call.tenant.no, call.tenant.digest(&row.subject)).await?;
            let new = u64::from(matches!(lookup, Lookup::Missing));
            let Some((mut change, given)) = self.import_one(call, row, lookup, stored, options).await? else {
                return Ok(false);
            };
            let room = self.require_room(call, new, &mut change).await;
            if room.is_err() || change.mutations.is_empty() {
                self.keyring.release(call.tenant.no, given.as_slice());
                return room.map(|()| true);
            }
            match self.store.commit(change).await {
                Ok(_) => return Ok(true),
                Err(error) => {
                    self.keyring.release(call.tenant.no, given.as_slice());
                    self.retry_or_answer(call, error, None).await?;
                }
            }
        }
        Err(VaultError::Conflict)
    }

    /// The change that stores one row; `None` where a password is there and stays.
    async fn import_one(
        &self,
        call: &Call,
        row: &ImportRow,
        lookup: Lookup,
        stored: Option<&StoredPassword>,
        options: BatchOptions,
    ) -> Result<Option<(ChangeSet, Option<Slot>)>, VaultError> {
        let tenant = call.tenant.no;
        let permit = call.permit(Verb::Credential)?;
        let mut change = ChangeSet::default();
        let snapshot = match lookup {
            Lookup::Found(snapshot) => {
                permit.for_group(snapshot.subject.group)?;
                self.must_be_open(&snapshot.subject)?;
                if !options.replace && self.open_credential(call, &snapshot, PASSWORD).await?.is_some() {
                    return Ok(None);
                }
                change.require(Precondition::SubjectLive { uid: snapshot.subject.uid });
                snapshot
            }
            Lookup::Erased(_) => return Err(VaultError::SubjectErased),
            Lookup::Missing if !options.create_subjects => return Err(VaultError::NotFound),
            Lookup::Missing => {
                call.permit_for(Verb::Credential, None)?;
                let digest = call.tenant.digest(&row.subject);
                change.require(Precondition::NoTombstone { tenant, digest });
                change.require(Precondition::SubjectAbsent { tenant, digest });
                let uid = self.store.next_uid();
                let subject = SubjectRow {
                    uid,
                    tenant,
                    digest,
                    sealed_id: call.tenant.seal_id(uid, &row.subject),
                    state: SubjectState::Live,
                    group: None,
                    revision: Revision(1),
                    created: call.now,
                    touched: Timestamp(call.now.day() * DAY_MS),
                    due: None,
                };
                change.change(Mutation::PutSubject(subject.clone()));
                Arc::new(SubjectSnapshot { subject, classes: Vec::new() })
            }
        };
        let Some(stored) = stored else { return Ok(Some((ChangeSet::default(), None))) };
        let value = Some(stored.to_bytes());
        let given = self.write_credential(call, &snapshot, PASSWORD, value, &mut change).await?;
        let mut entry = call.record(Action::ImportPassword, Outcome::Ok);
        entry.subject = Some(snapshot.subject.uid);
        entry.class = Some(self.credential_rules(call)?.class);
        change.note(tenant, entry.to_bytes());
        Ok(Some((change, given)))
    }
}
