//! T19, after dudect (Reparaz, Balasch, Verbauwhede, 2017): the time of comparing tags and keys must not tell where they
//! differ. `PII_VAULT_TEST_FULL=1` gives the full count.

use std::hint::black_box;
use std::time::Instant;

use super::aad::{Aad, Kind};
use super::aead::Cipher;
use super::{blind_index, random};
use crate::ids::{TenantNo, VaultId};

/// Welch's t beyond which two distributions count as different.
const LIMIT: f64 = 5.0;

fn samples() -> usize {
    if std::env::var_os("PII_VAULT_TEST_FULL").is_some() { 1_000_000 } else { 20_000 }
}

#[allow(clippy::disallowed_methods)] // measures the machine, not the vault's time
fn nanoseconds(run: &mut impl FnMut(bool), class: bool) -> f64 {
    let start = Instant::now();
    run(class);
    start.elapsed().as_nanos() as f64
}

/// |t| between the times of the two classes, in random order, without the slowest tenth (interrupts).
fn welch(samples: usize, mut run: impl FnMut(bool)) -> f64 {
    let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..samples {
        let class = random::bytes::<1>()[0] & 1 == 1;
        times[usize::from(class)].push(nanoseconds(&mut run, class));
    }
    let mut all: Vec<f64> = times.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let limit = all[all.len() * 9 / 10];
    let [a, b] = times.map(|mut times| {
        times.retain(|t| *t <= limit);
        let n = times.len() as f64;
        let mean = times.iter().sum::<f64>() / n;
        let variance = times.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n)
    });
    (a.0 - b.0).abs() / (a.1 + b.1).sqrt()
}

/// The machine's noise may pass the limit once; a leak passes it always.
fn leaks(mut run: impl FnMut(bool)) -> bool {
    (0..4).all(|_| welch(samples(), &mut run) >= LIMIT)
}

/// The same secret, and guesses that differ in their first or in their last byte.
fn guesses<const N: usize>() -> ([u8; N], [[u8; N]; 2]) {
    let secret = random::bytes::<N>();
    let (mut first, mut last) = (secret, secret);
    first[0] ^= 1;
    last[N - 1] ^= 1;
    (secret, [first, last])
}

fn compare<const N: usize>(equal: impl Fn(&[u8], &[u8]) -> bool) -> bool {
    let (secret, guesses) = guesses::<N>();
    leaks(|class| {
        let guess = &guesses[usize::from(class)];
        for _ in 0..32 {
            black_box(equal(black_box(&secret), black_box(guess)));
        }
    })
}

#[test]
fn t19_the_test_sees_a_comparison_that_stops_early() {
    assert!(compare::<32>(|a, b| {
        for (x, y) in a.iter().zip(b) {
            if black_box(x) != black_box(y) {
                return false;
            }
        }
        true
    }));
}

#[test]
fn t19_tags_and_keys_are_compared_in_constant_time() {
    assert!(!compare::<16>(blind_index::equal));
    assert!(!compare::<32>(blind_index::equal));
}

#[test]
fn t19_a_wrong_tag_is_refused_in_constant_time() {
    let cipher = Cipher::new(&random::bytes());
    let aad = Aad::new(Kind::Object, VaultId([7; 16]), TenantNo(1));
    let mut sealed = cipher.seal(&aad, &[9; 64]);
    let tag = sealed.len() - 16;
    // One buffer for both classes: two would differ by how they lie in the cache.
    assert!(!leaks(|class| {
        let wrong = tag + 15 * usize::from(class);
        sealed[wrong] ^= 1;
        black_box(cipher.open(&aad, black_box(&sealed)).is_err());
        sealed[wrong] ^= 1;
    }));
}
