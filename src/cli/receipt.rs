//! `receipt`: fetch signed receipts and check them without a server.

use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, Output, Page};
use crate::cli::profile::write_private;
use crate::cli::session::Session;
use crate::crypto::sign::key_id;
use crate::grpc::pb;
use crate::ids::SubjectId;
use crate::receipt::Receipt as Signed;
use clap::{Args, Subcommand};
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// `receipt`
#[derive(Debug, Subcommand)]
pub enum Receipt {
    /// Fetch the receipt of a finished erasure
    #[command(after_help = "Example:
  pii-vault receipt get 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10 --output u-17.receipt.json")]
    Get {
        /// Name of the erasure
        erasure: String,
        /// File to write [default: standard output]
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check a receipt with the vault's public key alone, without a server
    #[command(
        after_help = "The key: 64 hexadecimal digits, base64, or a file with one key a line (`receipt keys --output FILE` makes
one). Get it from the vault's operator by another way than the receipt. With --subject and --salt-file also checks whose
erasure it was. Exit code 7 when the receipt is not right.

Examples:
  pii-vault receipt verify u-17.receipt.json --public-key vault-keys.txt
  pii-vault receipt verify u-17.receipt.json --public-key vault-keys.txt --subject u-17 --salt-file u-17.receipt.json.salt"
    )]
    Verify(Verify),
    /// The public keys that receipts and audit checkpoints are signed with
    #[command(after_help = "Example:
  pii-vault receipt keys --output vault-keys.txt")]
    Keys {
        /// File to write, one key a line
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The receipt; `-`: standard input
    file: PathBuf,
    /// Public key of the vault, or a file with keys; may be repeated
    #[arg(long = "public-key", short = 'k', value_name = "KEY", required = true)]
    public_keys: Vec<String>,
    /// Also check that it is about this subject; needs --salt-file
    #[arg(long, requires = "salt_file")]
    subject: Option<String>,
    /// File with the salt that the erasing call was told
    #[arg(long, value_name = "FILE", requires = "subject")]
    salt_file: Option<PathBuf>,
}

/// `receipt get` and `receipt keys`
pub async fn receipt(s: &Session, command: Receipt) -> Result<(), CliError> {
    match command {
        Receipt::Get { erasure, output } => {
            let answer = s.erasures().get_receipt(pb::GetReceiptRequest { erasure }).await?.into_inner();
            match output {
                Some(path) => write_private(&path, &answer.receipt),
                None => s.out.raw(&answer.receipt).and_then(|()| s.out.raw(b"\n")),
            }
        }
        Receipt::Keys { output } => {
            let keys = s.erasures().get_receipt_keys(pb::GetReceiptKeysRequest {}).await?.into_inner().keys;
            if let Some(path) = output {
                let lines: String = keys.iter().map(|k| HEXLOWER_PERMISSIVE.encode(&k.public_key) + "\n").collect();
                return fs::write(&path, lines).map_err(CliError::io(path.display().to_string()));
            }
            let cols = [
                Col("KEY", "key_id"),
                Col("PUBLIC KEY", "public_key"),
                Col("FROM", "create_time"),
                Col("TO", "retire_time"),
            ];
            s.out.list("keys", &Page { items: keys, more: false }, &cols, &Names::default())
        }
        Receipt::Verify(a) => verify(s.out, a),
    }
}

/// `receipt verify`: needs no server.
pub fn verify(out: Output, a: Verify) -> Result<(), CliError> {
    let keys = public_keys(&a.public_keys)?;
    let bytes = match a.file.to_str() {
        Some("-") => input::whole("a receipt")?.to_vec(),
        _ => fs::read(&a.file).map_err(CliError::io(a.file.display().to_string()))?,
    };
    let verified = Signed::verify(trim(&bytes), &keys)
        .map_err(|e| CliError::CheckFailed(format!("the receipt is not right: {e}")))?;
    if let (Some(subject), Some(path)) = (&a.subject, &a.salt_file) {
        let id = SubjectId::parse("subject", subject).map_err(|e| CliError::Usage(e.to_string()))?;
        let text = fs::read_to_string(path).map_err(CliError::io(path.display().to_string()))?;
        let salt = bytes32(&text).ok_or_else(|| CliError::Usage(format!("{}: not a salt", path.display())))?;
        if !verified.receipt.is_about(&id, &salt) {
            return Err(CliError::CheckFailed(
                "the receipt is genuine, but not about this subject with this salt".into(),
            ));
        }
    }
    if out.json {
        let receipt = serde_json::to_value(&verified.receipt).map_err(|e| CliError::Unexpected(e.to_string()))?;
        return out.document(&json!({ "valid": true, "key_id": verified.key_id, "receipt": receipt,
            "subject_matches": a.subject.as_ref().map(|_| true) }));
    }
    out.line(&format!("The signature is right (key {}).", verified.key_id))?;
    if a.subject.is_some() {
        out.line("It is about the subject that was named.")?;
    }
    out.line("")?;
    let text: Vec<String> = verified.receipt.render().lines().map(crate::cli::text::printable).collect();
    out.line(&text.join("\n"))
}

/// A receipt without the line end that editors and `receipt get` put behind it.
pub fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii_end()
}

/// Public keys from arguments: each a key or a file with keys.
pub fn public_keys(texts: &[String]) -> Result<Vec<[u8; 32]>, CliError> {
    let mut keys = Vec::new();
    for text in texts {
        if let Some(key) = bytes32(text) {
            keys.push(key);
            continue;
        }
        let file = fs::read_to_string(Path::new(text))
            .map_err(|e| CliError::Usage(format!("--public-key {text}: neither a key of 32 bytes nor a file ({e})")))?;
        for (number, line) in file.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
            let bad = || CliError::Usage(format!("{text}:{}: not a key of 32 bytes", number + 1));
            keys.push(bytes32(line).ok_or_else(bad)?);
        }
    }
    if keys.is_empty() {
        return Err(CliError::Usage("--public-key: there is no key in it".into()));
    }
    Ok(keys)
}

/// 32 bytes from hexadecimal or base64.
fn bytes32(text: &str) -> Option<[u8; 32]> {
    let text = text.trim().as_bytes();
    let bytes = HEXLOWER_PERMISSIVE.decode(text).ok().or_else(|| BASE64.decode(text).ok())?;
    bytes.try_into().ok()
}

/// Ids of keys, for messages.
pub fn ids(keys: &[[u8; 32]]) -> String {
    keys.iter().map(key_id).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_as_hex_base64_or_files() {
        let key = [7u8; 32];
        let hex = HEXLOWER_PERMISSIVE.encode(&key);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, format!("# vault\n{hex}\n\n{hex}\n")).unwrap();
        let texts = [hex, BASE64.encode(&key), path.display().to_string()];
        assert_eq!(public_keys(&texts).unwrap(), [key; 4]);
        fs::write(&path, "nonsense\n").unwrap();
        let error = public_keys(&texts[2..]).unwrap_err().to_string();
        assert!(error.contains("keys:1"), "{error}");
        assert!(public_keys(&["/nowhere".into()]).is_err());
    }
}
