//! Recovery keys on the command line: made here, where the operator is, and never sent anywhere.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::quickstart::write_private;
use crate::cli::server::{ConfigArgs, unexpected};
use crate::clock::{Clock, SystemClock};
use crate::crypto::recovery::{RecoveryIdentity, RecoveryRecipient};
use crate::ids::{Name, TenantNo};
use crate::server::Node;

/// How often a check word may be mistyped.
const TRIES: usize = 3;

/// Where the recovery key comes from, and goes.
#[derive(Debug, Args)]
pub struct RecoveryArgs {
    /// File for the private recovery key (mode 600) instead of showing it: move it to where the vault is not
    #[arg(long, value_name = "FILE", conflicts_with = "without_recovery")]
    recovery_out: Option<PathBuf>,
    /// Seal the key archive to this age recipient, whose private part you have (age-keygen); may be repeated
    #[arg(long, value_name = "AGE1...", conflicts_with = "without_recovery")]
    recovery_recipient: Vec<RecoveryRecipient>,
    /// Have none: whoever loses the keeper or the root key loses every subject
    #[arg(long)]
    without_recovery: bool,
}

/// Recovery keys before the vault is made.
pub struct Prepared {
    pub recipients: Vec<RecoveryRecipient>,
    made: Option<Made>,
}

/// A new key.
struct Made {
    identity: RecoveryIdentity,
    /// Where it goes; without one it is shown once.
    file: Option<PathBuf>,
    shown: bool,
}

impl RecoveryArgs {
    /// Makes a key if none is brought. Unless it goes to a file it is shown once: on a terminal now, where its check word
    /// is typed back, else with everything else that a script takes from the output.
    pub fn prepare(&self, out: Output) -> Result<Prepared, CliError> {
        if self.without_recovery {
            return Ok(Prepared { recipients: Vec::new(), made: None });
        }
        let mut recipients = self.recovery_recipient.clone();
        let made = match &self.recovery_out {
            Some(path) if path.exists() => {
                return Err(CliError::Usage(format!("{} exists already", path.display())));
            }
            Some(path) => Some(Made { identity: RecoveryIdentity::generate(), file: Some(path.clone()), shown: false }),
            None if !recipients.is_empty() => None,
            None => {
                let identity = RecoveryIdentity::generate();
                let shown = !out.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
                if shown {
                    show(out, &identity)?;
                }
                Some(Made { identity, file: None, shown })
            }
        };
        recipients.extend(made.iter().map(|made| made.identity.recipient()));
        Ok(Prepared { recipients, made })
    }
}

impl Prepared {
    /// Writes the key to its file, with what a restore needs beside it.
    pub fn finish(&self, vault: &str, public_key: &str) -> Result<(), CliError> {
        match &self.made {
            Some(Made { identity, file: Some(path), .. }) => {
                write_private(path, &recovery_key_text(identity, 1, vault, public_key))
            }
            _ => Ok(()),
        }
    }
    /// The private key, where only the output can bring it to its owner.
    pub fn unseen(&self) -> Option<Zeroizing<String>> {
        let made = self.made.as_ref().filter(|made| made.file.is_none() && !made.shown);
        made.map(|made| made.identity.text())
    }
    /// The recipients as text.
    pub fn texts(&self) -> Vec<String> {
        self.recipients.iter().map(ToString::to_string).collect()
    }
    /// Says what there is and what to do with it.
    pub fn tell(&self, out: Output) -> Result<(), CliError> {
        if self.recipients.is_empty() {
            return out.line("There is no recovery key: whoever loses the keeper or the root key loses every subject.");
        }
        for recipient in &self.recipients {
            out.line(&format!("Keys are archived for {recipient}."))?;
        }
        match &self.made {
            Some(Made { file: Some(path), .. }) => out.line(&format!(
                "The recovery key is in {}: move it offline. With it and a copy of the backups folder everyone comes back.",
                path.display()
            )),
            Some(_) => {
                if let Some(key) = self.unseen() {
                    out.line(&format!("recovery key   {}   (shown this once)", key.as_str()))?;
                }
                out.line("Keep the recovery key and the public key above together, offline.")
            }
            None => Ok(()),
        }
    }
}

/// The file of a recovery key: an age identity, with whose archives it opens and whose signature they must have.
pub fn recovery_key_text(identity: &RecoveryIdentity, epoch: u32, vault: &str, public_key: &str) -> Zeroizing<String> {
    Zeroizing::new(format!(
        "# pii-vault recovery key, epoch {epoch}. Keep it offline: it opens key archives until they expire.\n\
         # vault: {vault}\n# public signing key: {public_key}\n# recipient: {}\n{}\n",
        identity.recipient(),
        identity.text().as_str()
    ))
}

/// Shows a key once and has its end typed back.
fn show(out: Output, identity: &RecoveryIdentity) -> Result<(), CliError> {
    out.line(
        "The recovery key, shown this once. Write it down or print it; keep it offline, with the public key below.",
    )?;
    out.line("")?;
    out.line(&format!("  {}", identity.text().as_str()))?;
    out.line("")?;
    let word = identity.check_word();
    for _ in 0..TRIES {
        print!("Its last {} characters, from where you keep it: ", word.len());
        std::io::stdout().flush().map_err(CliError::io("standard output"))?;
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().lock().read_line(&mut line).map_err(CliError::io("standard input"))?;
        if line.trim().eq_ignore_ascii_case(&word) {
            return Ok(());
        }
        out.line("That is not it.")?;
    }
    Err(CliError::Usage("the recovery key was not typed back: nothing was made".into()))
}

/// What is there to do about recovery. The server must not be running.
#[derive(Debug, Subcommand)]
pub enum Recovery {
    /// To whom keys are archived, how old that key is, and how old each tenant's key archive
    #[command(after_help = "Examples:
  pii-vault recovery status --config pii-vault.toml")]
    Status {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Archive keys for one more recovery key
    #[command(after_help = "Examples:
  pii-vault recovery add --config pii-vault.toml --recovery-recipient age1...
  pii-vault recovery add --config pii-vault.toml --recovery-out second.key")]
    Add {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        recovery: RecoveryArgs,
    },
    /// A new recovery key in place of those that there are: once a year, or when one was lost or seen
    #[command(after_help = "Examples:
  pii-vault recovery rotate --config pii-vault.toml --recovery-out recovery-2027.key

The key archive is written anew for the new key. Copies from before still open with the old one, until they expire.")]
    Rotate {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        recovery: RecoveryArgs,
    },
    /// After a restore: access keys that were stopped work again, scheduled erasures go on
    #[command(after_help = "Examples:
  pii-vault recovery confirm --config pii-vault.toml
  pii-vault recovery confirm --config pii-vault.toml --operator-key-file operator.key")]
    Confirm {
        #[command(flatten)]
        config: ConfigArgs,
        /// Also issue a new operator's access key into this file (mode 600): when the restored ones are under a pepper that was
        /// rotated away since, or all are lost
        #[arg(long, value_name = "FILE")]
        operator_key_file: Option<PathBuf>,
    },
}

async fn open(config: &ConfigArgs) -> Result<Node, CliError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    Node::open(&config.load()?, clock).await.map_err(unexpected)
}

pub async fn recovery(out: Output, command: Recovery) -> Result<(), CliError> {
    match command {
        Recovery::Status { config } => {
            let node = open(&config).await?;
            let told = status(out, &node).await;
            node.close().await;
            told
        }
        Recovery::Add { config, recovery } => set(out, &config, &recovery, true).await,
        Recovery::Rotate { config, recovery } => set(out, &config, &recovery, false).await,
        Recovery::Confirm { config, operator_key_file } => {
            if let Some(path) = operator_key_file.as_ref().filter(|path| path.exists()) {
                return Err(CliError::Usage(format!("{} exists already", path.display())));
            }
            let node = open(&config).await?;
            let confirmed = node.vault.confirm_restore().await;
            let issued = match &operator_key_file {
                Some(path) => issue_operator_key(&node, path).await,
                None => Ok(()),
            };
            node.close().await;
            let keys = confirmed.map_err(unexpected)?;
            issued?;
            match out.json {
                true => out.document(&json!({ "access_keys": keys })),
                false => out.line(&format!("Confirmed: {keys} access keys work again, scheduled erasures go on.")),
            }
        }
    }
}

/// A new key of the operators, whose text goes into a file of mode 600.
async fn issue_operator_key(node: &Node, path: &Path) -> Result<(), CliError> {
    let name = Name::parse("name", &format!("operator-{}", node.vault.now().0)).map_err(unexpected)?;
    let issued = node.vault.issue_first_key(name).await.map_err(unexpected)?;
    match issued.text {
        Some(text) => write_private(path, &format!("{}\n", *text)),
        None => Err(CliError::Unexpected("the key was issued before".into())),
    }
}

async fn set(out: Output, config: &ConfigArgs, recovery: &RecoveryArgs, keep: bool) -> Result<(), CliError> {
    let prepared = recovery.prepare(out)?;
    if prepared.recipients.is_empty() {
        return Err(CliError::Usage("a vault that has a recovery key keeps one".into()));
    }
    let node = open(config).await?;
    let (vault, public) = (node.keyring.vault(), data_encoding::HEXLOWER.encode(&node.keyring.signing().public()));
    let call = node.vault.local_call(TenantNo::VAULT).map_err(unexpected)?;
    let done = node.vault.set_recovery(&call, &prepared.recipients, keep).await;
    node.close().await;
    let done = done.map_err(unexpected)?;
    prepared.finish(&vault.to_string(), &public)?;
    if out.json {
        let written: Vec<u32> = done.written.iter().map(|no| no.0).collect();
        return out.document(&json!({ "recovery_recipients": prepared.texts(), "tenants_written": written }));
    }
    out.line(&format!("The key archives of {} tenants were written anew.", done.written.len()))?;
    prepared.tell(out)
}

async fn status(out: Output, node: &Node) -> Result<(), CliError> {
    let status = node.vault.recovery_status().await.map_err(unexpected)?;
    let restored = node.vault.restored().await.map_err(unexpected)?;
    if out.json {
        let files = status.files.iter().map(|(no, file)| {
            json!({
                "tenant": no.0,
                "leaves": file.map(|f| f.leaves),
                "written": file.map(|f| f.written.rfc3339()),
                "expires": file.map(|f| f.latest_expiry.rfc3339()),
            })
        });
        return out.document(&json!({
            "recovery": status.active(),
            "epoch": status.setting.as_ref().map(|s| s.present.number),
            "recipients": status.setting.as_ref().map(|s| s.present.recipients.clone()),
            "rotation_due": status.epoch_due,
            "confirmation_due": restored.is_some(),
            "key_archives": files.collect::<Vec<_>>(),
        }));
    }
    match status.setting.as_ref().filter(|_| status.active()) {
        None => out.line("no recovery key: whoever loses the keeper or the root key loses every subject")?,
        Some(setting) => {
            let due = if status.epoch_due { "; older than a year: `pii-vault recovery rotate`" } else { "" };
            let (number, since) = (setting.present.number, setting.present.since.rfc3339());
            out.line(&format!("epoch {number} since {since}{due}"))?;
            for recipient in &setting.present.recipients {
                out.line(&format!("  {recipient}"))?;
            }
        }
    }
    if restored.is_some() {
        out.line("a restore waits for `pii-vault recovery confirm`")?;
    }
    let rows = status.files.iter().map(|(no, file)| {
        let text = |f: &dyn Fn(&crate::keyring::archive::FileState) -> String| file.as_ref().map_or("-".into(), f);
        vec![
            no.to_string(),
            text(&|f| (u64::from(f.leaves) * 120).to_string()),
            text(&|f| f.written.rfc3339()),
            text(&|f| f.latest_expiry.rfc3339()),
        ]
    });
    out.rows(&["TENANT", "SLOTS RECORDED", "WRITTEN WHOLE", "ALL COPIES EXPIRE"], rows.collect())
}
