//! Whether the clock may end anything. A wall clock that jumped would expire what is not over, or erase ahead of its
//! date, for good. So it is compared with the monotonic clock while the vault runs, and with the last time that was
//! stored when it starts; after a jump, ending by time is suspended until an operator confirms the clock. Reads and
//! writes go on.

use std::time::Duration;

use parking_lot::Mutex;

use crate::audit::{Action, AuditRecord, Outcome};
use crate::auth;
use crate::clock::{DAY_MS, Timestamp};
use crate::ids::*;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::{DenialKind, VaultError};
use crate::vault::request::Request;

/// At start the clock may be behind the stored time by this much: clocks are set back a little now and then.
const BEHIND_MS: i64 = 60_000;
/// At start it may be ahead by this much: a vault is not always on.
const AHEAD_MS: i64 = 31 * DAY_MS;
/// While running, wall and monotonic clock may differ by this much.
const APART_MS: i64 = 3_600_000;
/// Who confirms it says what another clock says; so far may the two be apart.
const CONFIRMED_MS: i64 = 300_000;
/// How often the time is stored at most.
const STORED_EVERY_MS: i64 = 60_000;
/// Key of the setting with the last time seen.
const LAST_TIME: &[u8] = b"last-time";

/// Why the clock is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockJump {
    /// What the wall clock said.
    pub seen: Timestamp,
    /// What was expected: the stored time, or the time by the monotonic clock.
    pub expected: Timestamp,
}

#[derive(Default)]
struct State {
    /// Wall and monotonic clock at the same moment, from which both are followed.
    start: Option<(Timestamp, Duration)>,
    stored: Option<Timestamp>,
    jump: Option<ClockJump>,
}

/// What the vault knows about its clock.
#[derive(Default)]
pub struct ClockGuard(Mutex<State>);

impl Vault {
    /// Looks at the clock: the first time against the stored time, later against the monotonic clock. Stores the time,
    /// at most each minute, while it is trusted.
    pub async fn watch_clock(&self) -> Result<(), VaultError> {
        let (now, mono) = (self.clock.now(), self.clock.monotonic());
        let first = self.clock_guard.0.lock().start.is_none();
        let last = if first { self.last_time().await? } else { None };
        let (jumped, store) = {
            let mut state = self.clock_guard.0.lock();
            let before = state.jump;
            if state.start.is_none() {
                state.start = Some((now, mono));
                state.stored = last;
                state.jump = last.filter(|last| at_start(*last, now)).map(|expected| ClockJump { seen: now, expected });
            } else if let (None, Some((wall, since))) = (state.jump, state.start) {
                let expected = wall.plus_ms(i64::try_from(mono.saturating_sub(since).as_millis()).unwrap_or(i64::MAX));
                if now.0.saturating_sub(expected.0).saturating_abs() > APART_MS {
                    state.jump = Some(ClockJump { seen: now, expected });
                }
            }
            let due = state.stored.is_none_or(|stored| now.0 - stored.0 >= STORED_EVERY_MS || now < stored);
            let store = state.jump.is_none() && due;
            if store {
                state.stored = Some(now);
            }
            (state.jump.filter(|_| before.is_none()), store)
        };
        if let Some(jump) = jumped {
            let (seen, expected) = (jump.seen.rfc3339(), jump.expected.rfc3339());
            tracing::error!(seen, expected, "the clock jumped: nothing ends by time until an operator confirms it");
            let record = AuditRecord::new(now, ActorId(0), Action::ClockJump, Outcome::Failed);
            let mut change = ChangeSet::default();
            change.note(TenantNo::VAULT, record.to_bytes());
            self.store.commit(change).await?;
        }
        if store {
            self.store_time(now, ChangeSet::default()).await?;
        }
        Ok(())
    }

    async fn last_time(&self) -> Result<Option<Timestamp>, VaultError> {
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Setting, LAST_TIME.to_vec()).await?;
        let read = |row: ObjectRow| row.body.as_slice().try_into().map(|b| Timestamp(i64::from_be_bytes(b)));
        row.map(read).transpose().map_err(|_| VaultError::DataLoss)
    }

    async fn store_time(&self, now: Timestamp, mut change: ChangeSet) -> Result<(), VaultError> {
        change.change(Mutation::PutObject(ObjectRow {
            tenant: TenantNo::VAULT,
            kind: ObjectKind::Setting,
            key: LAST_TIME.to_vec(),
            revision: Revision(1),
            body: now.0.to_be_bytes().to_vec(),
        }));
        self.store.commit(change).await?;
        Ok(())
    }

    /// The jump that waits for an operator; for readiness and status.
    pub fn clock_jump(&self) -> Option<ClockJump> {
        self.clock_guard.0.lock().jump
    }

    /// Asked before anything ends by time.
    ///
    /// # Errors
    /// `ClockUnsafe` after a jump, until it is confirmed.
    pub fn require_trusted_clock(&self) -> Result<(), VaultError> {
        match self.clock_jump() {
            Some(_) => Err(VaultError::ClockUnsafe),
            None => Ok(()),
        }
    }

    /// An operator says that the clock is right as it is now, because another clock says `said`.
    ///
    /// # Errors
    /// `Invalid` where the two differ by more than five minutes: then it is the clock that has to be set.
    pub async fn confirm_clock(
        &self,
        call: &Call,
        said: Timestamp,
        request: Option<Request>,
    ) -> Result<(), VaultError> {
        if call.principal.kind != auth::Kind::Operator {
            return Err(VaultError::denied(DenialKind::NotPermitted, "operator.only"));
        }
        if self.repeated::<()>(call, request.as_ref()).await?.is_some() {
            return Ok(());
        }
        if self.clock.now().0.saturating_sub(said.0).saturating_abs() > CONFIRMED_MS {
            return Err(VaultError::invalid("time", "is more than five minutes from what the server's clock says"));
        }
        let mut change = ChangeSet::default();
        self.remember(call, request.as_ref(), &(), &mut change);
        self.clock_is_right(call.principal.actor, change).await
    }

    /// The same by who has the machine: with the server stopped.
    pub async fn confirm_clock_here(&self) -> Result<(), VaultError> {
        self.clock_is_right(ActorId(0), ChangeSet::default()).await
    }

    async fn clock_is_right(&self, actor: ActorId, mut change: ChangeSet) -> Result<(), VaultError> {
        let now = self.clock.now();
        let record = AuditRecord::new(now, actor, Action::ClockConfirmed, Outcome::Ok);
        change.note(TenantNo::VAULT, record.to_bytes());
        self.store_time(now, change).await?;
        let mut state = self.clock_guard.0.lock();
        *state = State { start: Some((now, self.clock.monotonic())), stored: Some(now), jump: None };
        Ok(())
    }
}

/// Whether a clock that was last seen at `last` may not be trusted when it says `now` at start.
fn at_start(last: Timestamp, now: Timestamp) -> bool {
    now.plus_ms(BEHIND_MS) < last || now.0.saturating_sub(last.0) > AHEAD_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t37_a_start_a_minute_behind_or_a_month_ahead_is_a_jump() {
        let last = Timestamp(1_800_000_000_000);
        for (ms, jump) in [
            (0, false),
            (-BEHIND_MS, false),
            (-BEHIND_MS - 1, true),
            (AHEAD_MS, false),
            (AHEAD_MS + 1, true),
            (10 * 366 * DAY_MS, true),
            (-10 * 366 * DAY_MS, true),
        ] {
            assert_eq!(at_start(last, last.plus_ms(ms)), jump, "{ms}");
        }
    }
}
