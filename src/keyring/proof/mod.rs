//! Proofs by trying: crashes at every step of a swap, power losses, rollbacks, and the reachability oracle over random
//! histories. `PII_VAULT_TEST_FULL=1 cargo test --profile ci --lib keyring::proof` runs the full counts; without it CI's small
//! ones. `PII_VAULT_SEED=n` or `=a..b` chooses the oracle's histories.

use futures_util::FutureExt as _;

use mutants::Mutant;

mod archive;
mod crash;
mod erasing;
mod mutants;
mod oracle;
mod restoring;
mod spy;
mod thief;
mod together;
mod world;

/// CI's count, or the full one where it is asked for.
fn count(small: u64, full: u64) -> u64 {
    if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { full } else { small }
}

/// Plays histories, and answers the seeds of those that showed something wrong, with what; the first one of a mutant.
async fn run<F: Future<Output = Result<(), String>>>(
    seeds: std::ops::Range<u64>,
    mutant: Option<Mutant>,
    history: impl Fn(u64, Option<Mutant>) -> F,
) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for seed in seeds {
        // A panic names its seed too.
        let life = std::panic::AssertUnwindSafe(history(seed, mutant)).catch_unwind().await;
        if let Err(what) = life.unwrap_or_else(|_| Err("a panic".into())) {
            found.push((seed, what));
            if mutant.is_some() {
                break;
            }
        }
    }
    found
}

/// A mutant must be found within a few histories, for the right reason.
async fn must_catch<F: Future<Output = Result<(), String>>>(
    mutant: Mutant,
    what: &str,
    history: impl Fn(u64, Option<Mutant>) -> F,
) {
    let found = run(1000..1060, Some(mutant), history).await;
    let (seed, said) = found.first().unwrap_or_else(|| panic!("the oracle did not notice {mutant:?}"));
    assert!(said.contains(what), "seed {seed}: {said}");
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
