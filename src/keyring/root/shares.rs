//! A passphrase in n shares, of which any k bring it back and fewer tell nothing: Shamir's scheme over GF(2^8), one
//! polynomial a byte, by the crate `blahaj`. The shares lie in files that their holders put in place for a start.
//!
//! ```text
//! pvs1-SET-K-SHARE-SUM   set 4 B, threshold, share, first 4 B of SHA-256 of all before it; hexadecimal
//! ```
//!
//! The sum finds a mistyped share; it proves nothing. Shares of different splits are never mixed: the set tells them apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use blahaj::{Share, Sharks};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{PassphraseParams, RootError, RootProvider, off_runtime, private_file, read_error};
use crate::crypto::keys::RootKek;
use crate::crypto::random;

const FORMAT: &str = "pvs1";
/// Most shares of a split.
pub const MOST: u8 = 32;
/// Name that a share's file ends with.
const SUFFIX: &str = "share";
/// How often a start looks for shares.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Where shares are put, and how long a start waits for enough of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharesOptions {
    /// Files `*.share` that only their owner may read; best in memory (`/run`).
    pub directory: PathBuf,
    pub wait: Duration,
    /// The public file with cost and salt of the passphrase.
    pub params: PathBuf,
}

/// A passphrase that is put together from shares.
pub struct SharesRoot(pub SharesOptions);

/// A share that was read.
struct Read {
    set: String,
    threshold: u8,
    share: Share,
}

fn sum(before: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(before.as_bytes())[..4])
}

/// Splits a passphrase into `shares` texts of which any `threshold` bring it back.
///
/// # Errors
/// `Form` unless 2 <= threshold <= shares <= 32.
pub fn split(passphrase: &[u8], threshold: u8, shares: u8) -> Result<Vec<Zeroizing<String>>, RootError> {
    if threshold < 2 || shares < threshold || shares > MOST {
        return Err(RootError::Form { rule: "from 2 to 32 shares, of which at least 2 and at most all are wanted" });
    }
    let set = HEXLOWER.encode(&random::bytes::<4>());
    let text = |share: Share| {
        let bytes = Zeroizing::new(Vec::from(&share));
        let mut text = Zeroizing::new(format!("{FORMAT}-{set}-{threshold}-{}", HEXLOWER.encode(&bytes)));
        let end = sum(&text);
        text.push('-');
        text.push_str(&end);
        text
    };
    Ok(Sharks(threshold).dealer(passphrase).take(shares.into()).map(text).collect())
}

fn read(text: &str) -> Result<Read, RootError> {
    let form = RootError::Form { rule: "a share is not what `keys split` wrote, or is mistyped" };
    let (before, end) = text.trim().rsplit_once('-').ok_or(form.clone())?;
    let parts: Vec<&str> = before.split('-').collect();
    let [FORMAT, set, threshold, hex] = parts[..] else { return Err(form) };
    if sum(before) != end || set.len() != 8 {
        return Err(form);
    }
    let bytes = Zeroizing::new(HEXLOWER.decode(hex.as_bytes()).map_err(|_| form.clone())?);
    let share = Share::try_from(bytes.as_slice()).map_err(|_| form.clone())?;
    let threshold = threshold.parse().ok().filter(|k| (2..=MOST).contains(k)).ok_or(form)?;
    Ok(Read { set: set.to_owned(), threshold, share })
}

/// The passphrase, once there are enough shares of one split.
///
/// # Errors
/// `Missing` while there are too few; `Form` where a text is no share.
pub fn combine(texts: &[Zeroizing<String>]) -> Result<Zeroizing<Vec<u8>>, RootError> {
    let mut sets: BTreeMap<(String, u8), Vec<Share>> = BTreeMap::new();
    for text in texts {
        let Read { set, threshold, share } = read(text)?;
        let shares = sets.entry((set, threshold)).or_default();
        // The same share twice counts once.
        if !shares.iter().any(|known| Vec::from(known) == Vec::from(&share)) {
            shares.push(share);
        }
    }
    for ((_, threshold), shares) in &sets {
        if shares.len() >= usize::from(*threshold) {
            let enough = &shares[..usize::from(*threshold)];
            let scheme = Sharks(*threshold);
            let joined = scheme.recover(enough).map_err(|_| RootError::Form { rule: "the shares do not fit together" });
            return Ok(Zeroizing::new(joined?));
        }
    }
    let there = sets.values().map(Vec::len).max().unwrap_or(0);
    let wanted = sets.keys().map(|(_, threshold)| *threshold).max().unwrap_or(0);
    Err(RootError::Missing { what: format!("{there} shares of the passphrase are there, {wanted} are needed") })
}

fn gather(directory: &Path) -> Result<Vec<Zeroizing<String>>, RootError> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        if path.extension().is_some_and(|end| end == SUFFIX) {
            let bytes = private_file(&path)?;
            let text = std::str::from_utf8(&bytes).map_err(|_| RootError::Form { rule: "a share is text" })?;
            texts.push(Zeroizing::new(text.to_owned()));
        }
    }
    Ok(texts)
}

#[async_trait]
impl RootProvider for SharesRoot {
    fn describe(&self) -> String {
        "shares".into()
    }

    async fn load(&self) -> Result<RootKek, RootError> {
        let begun = tokio::time::Instant::now();
        let mut told = None;
        loop {
            let options = self.0.clone();
            let looked = off_runtime(move || {
                let passphrase = combine(&gather(&options.directory)?)?;
                PassphraseParams::read(&options.params)?.kek(&passphrase)
            });
            let error = match looked.await {
                Ok(kek) => return Ok(kek),
                // One that is being put there, or was mistyped, may be put right while this waits.
                Err(error @ (RootError::Missing { .. } | RootError::Form { .. } | RootError::Exposed { .. })) => error,
                Err(error) => return Err(error),
            };
            if begun.elapsed() >= self.0.wait {
                return Err(error);
            }
            if told.as_ref() != Some(&error) {
                tracing::warn!(%error, "waiting for shares of the passphrase");
                told = Some(error);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_k_shares_bring_it_back_and_fewer_do_not() {
        let passphrase = "correct horse é battery".as_bytes();
        let shares = split(passphrase, 3, 5).unwrap();
        assert_eq!(shares.len(), 5);
        for mask in 0u32..32 {
            let some: Vec<_> = (0..5).filter(|n| mask >> n & 1 == 1).map(|n| shares[n].clone()).collect();
            match some.len() {
                0..3 => assert!(matches!(combine(&some), Err(RootError::Missing { .. })), "{mask:b}"),
                _ => assert_eq!(combine(&some).unwrap().as_slice(), passphrase, "{mask:b}"),
            }
        }
        let twice = [shares[0].clone(), shares[0].clone(), shares[1].clone()];
        assert!(matches!(combine(&twice), Err(RootError::Missing { .. })), "the same one twice counts once");
        let other = split(passphrase, 3, 5).unwrap();
        let mixed = [shares[0].clone(), shares[1].clone(), other[2].clone()];
        assert!(matches!(combine(&mixed), Err(RootError::Missing { .. })), "two splits are not mixed");
        for (k, n) in [(1, 3), (4, 3), (2, 33), (0, 0)] {
            assert!(split(passphrase, k, n).is_err());
        }
    }

    #[test]
    fn a_mistyped_share_is_told() {
        let shares = split(b"a passphrase", 2, 2).unwrap();
        for at in 0..shares[0].len() {
            let mut bad = shares[0].as_bytes().to_vec();
            bad[at] ^= 1;
            let Ok(bad) = String::from_utf8(bad) else { continue };
            let texts = [Zeroizing::new(bad), shares[1].clone()];
            assert!(matches!(combine(&texts), Err(RootError::Form { .. })), "at {at}");
        }
        assert!(combine(&[Zeroizing::new("nonsense".into())]).is_err());
    }
}
