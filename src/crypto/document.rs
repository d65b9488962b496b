//! Signed documents: canonical JSON (RFC 8785) with an Ed25519 signature over the same JSON without `signature`, in a domain of
//! its own. Most are `{body, format, key_id, signature}`; [`sign`] and [`check`] serve forms that lie flatter.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::crypto::sign::{Domain, Signing, key_id, verify as right};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    body: Value,
    format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// Why a document does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DocumentRefused {
    #[error("it is not what it should be, in its one canonical form")]
    Form,
    #[error("nobody signed it")]
    Unsigned,
    #[error("it was signed by a key that is not among those given")]
    UnknownKey,
    #[error("the signature does not fit the contents")]
    Signature,
}

/// The one spelling of a plain struct of texts and whole numbers.
pub fn canonical<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value).expect("plain structs of texts and whole numbers are JSON")
}

/// The signature over a form whose own `signature` is left out, in hexadecimal.
pub fn sign<T: Serialize>(domain: Domain, unsigned: &T, key: &Signing) -> String {
    HEXLOWER.encode(&key.sign(domain, &canonical(unsigned)))
}

/// Whether a signature over a form without it is right, by the key of that id among those given.
pub fn check<T: Serialize>(
    domain: Domain,
    unsigned: &T,
    id: &str,
    signature: Option<&str>,
    public_keys: &[[u8; 32]],
) -> Result<(), DocumentRefused> {
    let text = signature.ok_or(DocumentRefused::Unsigned)?;
    let key = public_keys.iter().find(|key| key_id(key) == id).ok_or(DocumentRefused::UnknownKey)?;
    let signature = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    let signature: [u8; 64] = signature.ok_or(DocumentRefused::Form)?;
    right(key, domain, &canonical(unsigned), &signature).then_some(()).ok_or(DocumentRefused::Signature)
}

/// The document over `body`, which must be a plain struct of texts and whole numbers; without a key it says that nobody
/// signed it.
pub fn write(domain: Domain, format: &str, body: &impl Serialize, key: Option<&Signing>) -> Vec<u8> {
    let body = serde_json::to_value(body).expect("plain structs of texts and whole numbers are JSON");
    let mut document = Document { body, format: format.to_owned(), key_id: key.map(Signing::key_id), signature: None };
    document.signature = key.map(|key| sign(domain, &document, key));
    canonical(&document)
}

/// What a document says, signed or not, and whether anybody signed it; the signature is not looked at.
pub fn read(format: &str, json: &[u8]) -> Result<(Value, bool), DocumentRefused> {
    let document: Document = serde_json::from_slice(json).map_err(|_| DocumentRefused::Form)?;
    if document.format != format {
        return Err(DocumentRefused::Form);
    }
    Ok((document.body, document.signature.is_some()))
}

/// Checks a document with nothing but public keys; answers what it says and the id of the key that signed it.
pub fn verify(
    domain: Domain,
    format: &str,
    json: &[u8],
    public_keys: &[[u8; 32]],
) -> Result<(Value, String), DocumentRefused> {
    let document: Document = serde_json::from_slice(json).map_err(|_| DocumentRefused::Form)?;
    if document.format != format || canonical(&document) != json {
        return Err(DocumentRefused::Form);
    }
    let id = document.key_id.clone().ok_or(DocumentRefused::Unsigned)?;
    let (signature, unsigned) = (document.signature.clone(), Document { signature: None, ..document });
    check(domain, &unsigned, &id, signature.as_deref(), public_keys)?;
    Ok((unsigned.body, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_refused_at_every_byte_that_is_changed_or_cut_off() {
        let key = Signing::generate();
        let body = serde_json::json!({ "at": 7, "text": "who" });
        let good = write(Domain::Drill, "a form", &body, Some(&key));
        let keys = [key.public()];
        assert_eq!(verify(Domain::Drill, "a form", &good, &keys).unwrap(), (body.clone(), key.key_id()));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(verify(Domain::Drill, "a form", &bad, &keys).is_err(), "byte {at}");
            }
            assert!(verify(Domain::Drill, "a form", &good[..at], &keys).is_err(), "cut at {at}");
        }
        let refused =
            |domain, format: &str, json: &[u8], keys: &[[u8; 32]]| verify(domain, format, json, keys).unwrap_err();
        assert_eq!(refused(Domain::Evidence, "a form", &good, &keys), DocumentRefused::Signature);
        assert_eq!(refused(Domain::Drill, "another", &good, &keys), DocumentRefused::Form);
        assert_eq!(refused(Domain::Drill, "a form", &good, &[[3; 32]]), DocumentRefused::UnknownKey);
        let plain = write(Domain::Drill, "a form", &body, None);
        assert_eq!(refused(Domain::Drill, "a form", &plain, &keys), DocumentRefused::Unsigned);
        assert_eq!(
            (read("a form", &plain).unwrap(), read("a form", &good).unwrap()),
            ((body.clone(), false), (body, true))
        );
    }
}
