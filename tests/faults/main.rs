//! The program as a process of its own, and what happens to it: it is killed, its disks fill, its files vanish, its memory
//! is read, its machine is lost. `PII_VAULT_TEST_FULL=1` runs the full counts; `docs/TESTS.md` has the commands.

#![allow(clippy::disallowed_methods)] // these tests look at the real clock

#[path = "../it/harness.rs"]
#[allow(dead_code)] // the other binaries use the rest
mod harness;
#[path = "../it/net.rs"]
#[allow(dead_code)] // the same
mod net;

mod backup;
mod credentials;
mod disks;
mod doctor;
mod hsm;
mod kill;
mod lost;
mod memory;
mod rotations;
mod runbook;
mod sandbox;
mod server;

/// CI's count, or the full one where it is asked for.
fn rounds(few: usize, all: usize) -> usize {
    if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { all } else { few }
}

/// A seeded die (SplitMix64): the same seed rolls the same numbers.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
