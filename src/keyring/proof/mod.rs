//! Proofs by trying: crashes at every step of a swap, power losses, rollbacks, and the reachability oracle over random
//! histories. `PII_VAULT_FULL=1 cargo test --release --lib keyring::proof` runs the full counts; without it CI's small
//! ones. `PII_VAULT_SEED=n` or `=a..b` chooses the oracle's histories.

mod archive;
mod crash;
mod oracle;
mod restoring;
mod spy;
mod together;
mod world;

/// CI's count, or the full one where it is asked for.
fn count(small: u64, full: u64) -> u64 {
    if std::env::var_os("PII_VAULT_FULL").is_some() { full } else { small }
}

/// A seeded die (SplitMix64): the same seed rolls the same history.
pub(super) struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Dice(seed)
    }
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    /// True once in `n` times.
    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
