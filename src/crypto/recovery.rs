//! Recovery keys: age v1 (c2sp.org/age), X25519 recipients. Whoever has one of the private parts, which never are on the
//! vault's machine, opens the key archive without root KEK and keeper. age does the cryptography; here only the
//! contents are ours: the keys of leaves, 3,840 bytes each, one after the other.

use std::fmt;
use std::io::{Read, Write};
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::crypto::keys::{NODE_BYTES, NodeKeys};
use crate::secret::Secret;

/// Characters of a check word.
const CHECK_WORD: usize = 6;

/// Why a recovery key or what was sealed to one cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    #[error("not an age X25519 recipient (age1...)")]
    NotARecipient,
    #[error("not an age X25519 identity (AGE-SECRET-KEY-1...)")]
    NotAnIdentity,
    /// It was sealed to other recipients.
    #[error("none of the given recovery keys opens it")]
    OtherKey,
    /// Opened, and not what was sealed: damaged or cut off.
    #[error("it does not open: damaged or cut off")]
    Damaged,
}

/// The public part: what archives are sealed to.
#[derive(Clone)]
pub struct RecoveryRecipient(age::x25519::Recipient);

impl FromStr for RecoveryRecipient {
    type Err = RecoveryError;
    fn from_str(text: &str) -> Result<Self, RecoveryError> {
        text.trim().parse().map(RecoveryRecipient).map_err(|_| RecoveryError::NotARecipient)
    }
}

impl fmt::Display for RecoveryRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RecoveryRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryRecipient({})", self.0)
    }
}

/// The private part. Made where the operator is, shown once, kept offline.
pub struct RecoveryIdentity(age::x25519::Identity);

impl RecoveryIdentity {
    /// A fresh pair.
    pub fn generate() -> Self {
        RecoveryIdentity(age::x25519::Identity::generate())
    }
    /// The public part.
    pub fn recipient(&self) -> RecoveryRecipient {
        RecoveryRecipient(self.0.to_public())
    }
    /// A second handle on the same key.
    pub fn again(&self) -> Self {
        RecoveryIdentity(self.0.clone())
    }
    /// `AGE-SECRET-KEY-1...`, to be shown once.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }
    /// The last characters of the text, typed back by whoever keeps it.
    pub fn check_word(&self) -> Zeroizing<String> {
        let text = self.text();
        Zeroizing::new(text[text.len() - CHECK_WORD..].to_owned())
    }
    /// Those in a file: a line each; other lines that begin with `#` and empty ones are left out, as age does.
    ///
    /// # Errors
    /// `NotAnIdentity` where a line is something else, or there is none.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, RecoveryError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let found: Vec<Self> = lines
            .map(|line| line.parse().map(RecoveryIdentity).map_err(|_| RecoveryError::NotAnIdentity))
            .collect::<Result<_, _>>()?;
        if found.is_empty() { Err(RecoveryError::NotAnIdentity) } else { Ok(found) }
    }
}

impl fmt::Debug for RecoveryIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryIdentity({})", self.0.to_public())
    }
}

/// Seals the keys of some leaves to every recipient, as one age file: about 200 B, 100 B a recipient, 3,840 B a leaf.
/// There must be a recipient.
pub fn seal_leaves<'a>(recipients: &[RecoveryRecipient], leaves: impl Iterator<Item = &'a NodeKeys>) -> Vec<u8> {
    let to = recipients.iter().map(|one| &one.0 as &dyn age::Recipient);
    let sealing = age::Encryptor::with_recipients(to).expect("there is a recipient, and all are X25519");
    let in_memory = "writing to memory does not fail";
    let mut writer = sealing.wrap_output(Vec::new()).expect(in_memory);
    leaves.for_each(|leaf| writer.write_all(leaf.bytes()).expect(in_memory));
    writer.finish().expect(in_memory)
}

/// Opens what [`seal_leaves`] made of `count` leaves.
///
/// # Errors
/// `OtherKey`, `Damaged`.
pub fn open_leaves(
    identities: &[RecoveryIdentity],
    sealed: &[u8],
    count: usize,
) -> Result<Vec<NodeKeys>, RecoveryError> {
    let opening = age::Decryptor::new_buffered(sealed).map_err(|_| RecoveryError::Damaged)?;
    let mut reader =
        opening.decrypt(identities.iter().map(|one| &one.0 as &dyn age::Identity)).map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => RecoveryError::OtherKey,
            _ => RecoveryError::Damaged,
        })?;
    let mut leaves = Vec::with_capacity(count);
    for _ in 0..count {
        let mut bytes = Secret::new(vec![0u8; NODE_BYTES].into_boxed_slice());
        reader.read_exact(bytes.expose_mut()).map_err(|_| RecoveryError::Damaged)?;
        leaves.push(NodeKeys::from_secret(bytes));
    }
    // The last part of an age file says that it is the last.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(leaves),
        _ => Err(RecoveryError::Damaged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_open_under_each_recipient_and_no_other_key() {
        let (a, b) = (RecoveryIdentity::generate(), RecoveryIdentity::generate());
        let leaves = [NodeKeys::generate(), NodeKeys::generate()];
        let sealed = seal_leaves(&[a.recipient(), b.recipient()], leaves.iter());
        for identity in [a, b] {
            let text = format!("# a comment\n\n{}\n", identity.text().as_str());
            let read = RecoveryIdentity::parse_file(&text).unwrap();
            let opened = open_leaves(&read, &sealed, 2).unwrap();
            assert!(opened.iter().zip(&leaves).all(|(a, b)| a.dek(7).id() == b.dek(7).id()));
            assert!(matches!(open_leaves(&read, &sealed, 1), Err(RecoveryError::Damaged)));
            assert!(matches!(open_leaves(&read, &sealed, 3), Err(RecoveryError::Damaged)));
            assert!(matches!(open_leaves(&read, &sealed[..sealed.len() - 1], 2), Err(RecoveryError::Damaged)));
        }
        let other = [RecoveryIdentity::generate()];
        assert!(matches!(open_leaves(&other, &sealed, 2), Err(RecoveryError::OtherKey)));
    }

    #[test]
    fn what_is_no_key_is_refused_and_no_debug_shows_one() {
        assert_eq!("age1xyz".parse::<RecoveryRecipient>().unwrap_err(), RecoveryError::NotARecipient);
        assert_eq!(RecoveryIdentity::parse_file("# nothing\n").unwrap_err(), RecoveryError::NotAnIdentity);
        assert_eq!(RecoveryIdentity::parse_file("age1abc").unwrap_err(), RecoveryError::NotAnIdentity);
        let identity = RecoveryIdentity::generate();
        assert!(identity.text().ends_with(identity.check_word().as_str()));
        assert!(!format!("{identity:?}").contains(identity.check_word().as_str()));
        let text = identity.recipient().to_string();
        assert_eq!(text.parse::<RecoveryRecipient>().unwrap().to_string(), text);
    }
}
