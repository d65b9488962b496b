//! HKDF-SHA-256 (RFC 5869). Every label the vault derives with stands here, so that no two uses share one.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// What a derived key is for. The text is part of the stored format and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    DekId,
    ValueSeal,
    ManifestMac,
    AuditDetail,
    ExpiringSeal,
    ExpiringMac,
    IndexField,
    SubjectDigest,
    SubjectIdSeal,
    ObjectSeal,
    RequestFingerprint,
    DataKey,
    Detached,
    ApiKeyChecksum,
    ApiKeyPepper,
    RootKekId,
    PassphraseKek,
    SigningSeal,
    AnchorMac,
    Commitment,
    PageToken,
    RecipientRef,
    PasswordPepper,
    GuessSource,
    UserKeyChecksum,
    UserKeyPepper,
    CodeDigest,
}

impl Label {
    /// All of them, for the test that no two share a text.
    #[cfg(test)]
    pub(in crate::crypto) const ALL: &'static [Label] = &[
        Label::DekId,
        Label::ValueSeal,
        Label::ManifestMac,
        Label::AuditDetail,
        Label::ExpiringSeal,
        Label::ExpiringMac,
        Label::IndexField,
        Label::SubjectDigest,
        Label::SubjectIdSeal,
        Label::ObjectSeal,
        Label::RequestFingerprint,
        Label::DataKey,
        Label::Detached,
        Label::ApiKeyChecksum,
        Label::ApiKeyPepper,
        Label::RootKekId,
        Label::PassphraseKek,
        Label::SigningSeal,
        Label::AnchorMac,
        Label::Commitment,
        Label::PageToken,
        Label::RecipientRef,
        Label::PasswordPepper,
        Label::GuessSource,
        Label::UserKeyChecksum,
        Label::UserKeyPepper,
        Label::CodeDigest,
    ];

    pub(in crate::crypto) fn text(self) -> &'static [u8] {
        match self {
            Label::DekId => b"pii-vault/1 id",
            Label::ValueSeal => b"pii-vault/1 value",
            Label::ManifestMac => b"pii-vault/1 manifest",
            Label::AuditDetail => b"pii-vault/1 audit detail",
            Label::ExpiringSeal => b"pii-vault/1 expiring value",
            Label::ExpiringMac => b"pii-vault/1 expiring manifest",
            Label::IndexField => b"pii-vault/1 index field",
            Label::SubjectDigest => b"pii-vault/1 subject digest",
            Label::SubjectIdSeal => b"pii-vault/1 subject id",
            Label::ObjectSeal => b"pii-vault/1 object",
            Label::RequestFingerprint => b"pii-vault/1 request fingerprint",
            Label::DataKey => b"pii-vault/1 data key",
            Label::Detached => b"pii-vault/1 detached",
            Label::ApiKeyChecksum => b"pii-vault/1 access key checksum",
            Label::ApiKeyPepper => b"pii-vault/1 access key pepper",
            Label::RootKekId => b"pii-vault/1 root kek id",
            Label::PassphraseKek => b"pii-vault/1 passphrase kek",
            Label::SigningSeal => b"pii-vault/1 signing key",
            Label::AnchorMac => b"pii-vault/1 anchor",
            Label::Commitment => b"pii-vault/1 commitment",
            Label::PageToken => b"pii-vault/1 page token",
            Label::RecipientRef => b"pii-vault/1 recipient ref",
            Label::PasswordPepper => b"pii-vault/1 password pepper",
            Label::GuessSource => b"pii-vault/1 guess source",
            Label::UserKeyChecksum => b"pii-vault/1 api key checksum",
            Label::UserKeyPepper => b"pii-vault/1 api key pepper",
            Label::CodeDigest => b"pii-vault/1 code digest",
        }
    }
}

/// HKDF-SHA-256(salt = none, ikm = `parts` joined, info = label || 0 || `context`) to `N` bytes (at most 255 x 32).
/// Parts of the key material have fixed lengths, 96 bytes in all at most, so that joining them is unambiguous.
pub fn derive<const N: usize>(parts: &[&[u8]], label: Label, context: &[u8]) -> Zeroizing<[u8; N]> {
    let mut joined = Zeroizing::new([0u8; 96]);
    let mut len = 0;
    for part in parts {
        joined[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    let mut out = Zeroizing::new([0u8; N]);
    hkdf(None, &joined[..len], &[label.text(), &[0], context], out.as_mut_slice())
        .expect("N is far below the limit of HKDF");
    out
}

/// HKDF-SHA-256, extract and expand; `None` if `out` is longer than 255 x 32 bytes. A function of its own so that test
/// vectors reach it.
pub(in crate::crypto) fn hkdf(salt: Option<&[u8]>, ikm: &[u8], info: &[&[u8]], out: &mut [u8]) -> Option<()> {
    Hkdf::<Sha256>::new(salt, ikm).expand_multi_info(info, out).ok()
}
