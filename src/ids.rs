//! Identifiers as types, so that swapped arguments do not compile. Numbers here are permanent once given.

use std::fmt;

/// A name or number that does not have the form its type promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {rule}")]
pub struct IdError {
    /// Which identifier was refused, e.g. `subject`.
    pub what: &'static str,
    /// The rule it broke; never the text itself.
    pub rule: &'static str,
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(/// Number of a tenant inside one vault; 0 is the vault itself. Below 2^31. Never reused.
    TenantNo(u32));
number!(/// Row number of a subject, in order of creation, unique in the vault. Never reused.
    SubjectUid(i64));
number!(/// Permanent number of a field in a tenant's policy, from 1.
    FieldNo(u16));
impl ClassNo {
    /// The class of what the vault itself keeps about a subject: what the person decided. A policy's numbers end at 16.
    pub const OWN: ClassNo = ClassNo(17);
}

impl FieldNo {
    /// From here on numbers are the vault's own: credentials of the tenant's users, which are stored like values of a
    /// field, and which no schema, grant, read or export can name. A policy's numbers end at 1,023.
    pub const FIRST_OWN: FieldNo = FieldNo(0xff00);

    /// Whether the number is one of the vault's own.
    pub const fn is_own(self) -> bool {
        self.0 >= Self::FIRST_OWN.0
    }
}

number!(/// Permanent number of a retention class, 1 to 16.
    ClassNo(u8));
number!(/// Permanent number of a purpose in a tenant's policy, from 1.
    PurposeNo(u16));
number!(/// Permanent number of a recipient in a tenant's policy; 0 in requests means "stays with the caller".
    RecipientNo(u16));
number!(/// Permanent number of a role of a tenant, from 1.
    RoleNo(u32));
number!(/// Number of a group of subjects (the account of a tenant's customer), from 1.
    GroupNo(u32));
number!(/// Version of a subject's data key in one class, from 1; one higher after each re-key.
    DekVersion(u32));
number!(/// Version of a tenant secret (index, token, pepper), from 1.
    SecretVersion(u16));
number!(/// Version of a tenant's policy, from 1.
    PolicyVersion(u32));
number!(/// Revision of a row; 0 is "not there", a new row has 1.
    Revision(u64));
number!(/// Generation of a tenant's key tree; one higher with each swap of its root.
    Generation(u64));
number!(/// Position of a data key in a tenant's tree, 0 to 120^4 - 1.
    Slot(u32));
number!(/// Position of a node in a tenant's tree, counted level by level; 0 is the top.
    Ordinal(u32));
number!(/// Expiry bucket: days since 1970-01-01 UTC of the bucket's *last* day, so that its keys die when that day is over.
    /// 0 means "no end".
    Bucket(u32));
number!(/// Number of an item: milliseconds of its origin time shifted left by 20, plus 20 random bits; sorts by time.
    ItemNo(i64));
number!(/// Who acted: the number of an access key, 0 for the vault's own jobs.
    ActorId(u64));

impl Bucket {
    /// The value has no end of retention.
    pub const NONE: Bucket = Bucket(0);
}
impl TenantNo {
    /// The vault itself: its secrets, its audit, its operators.
    pub const VAULT: TenantNo = TenantNo(0);
}

/// Random identity of a vault, made by `init`; part of every AAD.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultId(pub [u8; 16]);

/// First 16 bytes of HKDF(DEK, "id"): tells one data key from another without revealing it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DekId(pub [u8; 16]);

/// Keyed digest of a subject's id: HMAC-SHA-256 under the tenant's digest secret, first 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubjectDigest(pub [u8; 16]);

/// Tag of a blind index: HMAC-SHA-256 under a field's index key, first 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TermTag(pub [u8; 16]);

/// Identity of an operation, a hold, an approval, a request: 16 random bytes, written as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ObjectId(pub uuid::Uuid);

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), data_encoding::HEXLOWER.encode(&self.0))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }
    )*};
}
hex_debug!(VaultId, DekId, SubjectDigest, TermTag);

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({})", self.0)
    }
}
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl ObjectId {
    /// A fresh random identity.
    pub fn random() -> Self {
        ObjectId(uuid::Uuid::new_v4())
    }

    /// Reads the canonical form (lower-case, with hyphens) and no other, so that one object has one name.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, IdError> {
        let rule = "must be a UUID in lower case with hyphens";
        let id = uuid::Uuid::try_parse(text).map_err(|_| IdError { what, rule })?;
        if id.to_string() != text {
            return Err(IdError { what, rule });
        }
        Ok(ObjectId(id))
    }
}

/// A lower-case name from a policy or an operator: `[a-z][a-z0-9_-]*`, at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct Name(Box<str>);

impl Name {
    /// Checks the form; `what` names the identifier in the error.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > 63 {
            return Err(IdError { what, rule: "must have 1 to 63 characters" });
        }
        if !bytes[0].is_ascii_lowercase()
            || !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
        {
            return Err(IdError { what, rule: "must start with a-z and contain only a-z, 0-9, '_' and '-'" });
        }
        Ok(Name(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Name::parse("name", &text).map_err(serde::de::Error::custom)
    }
}

/// An id that a caller chose for a subject or a group: 1 to 128 characters of `A-Z a-z 0-9 _ - . : @ +`, compared byte
/// by byte. Nothing else is accepted, so no two spellings (case folding, Unicode forms, look-alikes, NUL) can name one
/// subject. `Debug` does not show it: a caller may have chosen something personal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SubjectId(Box<str>);

impl SubjectId {
    /// Checks the form; `what` names the request field in the error.
    pub fn parse(what: &'static str, text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > 128 {
            return Err(IdError { what, rule: "must have 1 to 128 characters" });
        }
        if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'@' | b'+')) {
            return Err(IdError { what, rule: "may contain only A-Z a-z 0-9 _ - . : @ +" });
        }
        Ok(SubjectId(text.into()))
    }

    /// The text, for the digest, for sealing and for the caller who knows it already.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Debug for SubjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectId(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_or_a_refusal() {
        for bad in ["", "a b", "ä", "a\0", "\u{0430}bc", "a/b", &"x".repeat(129)] {
            assert!(SubjectId::parse("subject", bad).is_err(), "{bad:?}");
        }
        assert!(SubjectId::parse("subject", "usr_01-A.b:c@d+e").is_ok());
        for bad in ["", "A", "1a", "a.b", &"x".repeat(64)] {
            assert!(Name::parse("tenant", bad).is_err(), "{bad:?}");
        }
        assert!(ObjectId::parse("request_id", "67E55044-10B1-426F-9247-BB680E5FE0C8").is_err());
    }

    #[test]
    fn a_refusal_never_shows_the_text() {
        let shown = format!("{:?}", SubjectId::parse("subject", "jane doe").unwrap_err());
        assert!(!shown.contains("jane"));
    }
}
