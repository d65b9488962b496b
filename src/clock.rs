//! Time enters the vault here and nowhere else: a call or a job takes `now` once and passes it on.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Milliseconds of a day; days here are always 24 h in UTC.
pub const DAY_MS: i64 = 86_400_000;

impl Timestamp {
    /// This time plus a number of milliseconds; stops at the ends of the range.
    pub fn plus_ms(self, ms: i64) -> Self {
        Timestamp(self.0.saturating_add(ms))
    }
    /// This time plus whole days of 24 h.
    pub fn plus_days(self, days: i64) -> Self {
        self.plus_ms(days.saturating_mul(DAY_MS))
    }
    /// Days since 1970-01-01 UTC, rounded down.
    pub fn day(self) -> i64 {
        self.0.div_euclid(DAY_MS)
    }
    /// RFC 3339 in UTC with milliseconds, e.g. `2026-11-21T08:00:00.000Z`.
    pub fn rfc3339(self) -> String {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => format!("{t:.3}"),
            Err(_) => format!("{} ms", self.0),
        }
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Wall clock.
    fn now(&self) -> Timestamp;
    /// Monotonic time since some fixed start; compared with the wall clock to notice jumps.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that may ask the machine for the time
    pub fn new() -> Self {
        SystemClock { start: Instant::now() }
    }
}
impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that may ask the machine for the time
    fn now(&self) -> Timestamp {
        let ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(d) => d.as_millis() as i64,
            Err(e) => -(e.duration().as_millis() as i64),
        };
        Timestamp(ms)
    }
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that tests move by hand. Wall and monotonic time can be moved apart, to play a clock jump.
pub struct ManualClock {
    wall: AtomicI64,
    mono: AtomicI64,
}
impl ManualClock {
    pub fn new(start: Timestamp) -> Self {
        ManualClock { wall: AtomicI64::new(start.0), mono: AtomicI64::new(0) }
    }
    /// Both clocks go on by `ms`.
    pub fn advance_ms(&self, ms: i64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
        self.mono.fetch_add(ms, Ordering::SeqCst);
    }
    /// Both clocks go on by whole days.
    pub fn advance_days(&self, days: i64) {
        self.advance_ms(days * DAY_MS);
    }
    /// Only the wall clock jumps.
    pub fn jump_wall_ms(&self, ms: i64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
    }
}
impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.wall.load(Ordering::SeqCst))
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.mono.load(Ordering::SeqCst).max(0) as u64)
    }
}
