//! `profile`: named servers and credentials.

use crate::cli::error::CliError;
use crate::cli::global::GlobalArgs;
use crate::cli::input;
use crate::cli::output::{Output, note};
use crate::cli::profile::{self, ProfileFile, Settings, process_env, write_private};
use clap::Subcommand;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `profile`
#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Make or change a profile from the global options that are given
    #[command(
        after_help = "The access key itself is never in the profile: it points to a file, or --store-key puts the key from standard input
into a file beside the profiles that only you can read.

Examples:
  pii-vault profile set prod --server https://vault.example:7443 --ca ca.pem --credential-file ~/.keys/vault
  pii-vault profile set prod --store-key < key.txt
  pii-vault profile set ops --server vault.example:7443 --tenant acme --timeout 2m"
    )]
    Set {
        /// Name of the profile
        name: String,
        /// Read the access key from standard input and keep it in a file of its own
        #[arg(long)]
        store_key: bool,
    },
    /// List profiles; `*` marks the one in use
    List,
    /// Show what holds now, from flags, environment and profile; never the key
    Show {
        /// Name of the profile [default: the one in use]
        name: Option<String>,
    },
    /// Use a profile when nothing names another
    Use {
        /// Name of the profile
        name: String,
    },
    /// Forget a profile; files it points to stay
    Remove {
        /// Name of the profile
        name: String,
    },
}

/// `profile`
pub fn profile(out: Output, flags: &GlobalArgs, command: ProfileCommand) -> Result<(), CliError> {
    let path = profile::path(&process_env)?;
    let mut file = ProfileFile::load(&path)?;
    match command {
        ProfileCommand::Set { name, store_key } => {
            check_name(&name)?;
            let profile = file.profile.entry(name.clone()).or_default();
            let absolute = |given: &Option<PathBuf>| -> Result<Option<PathBuf>, CliError> {
                let absolute = |p| std::path::absolute(p).map_err(CliError::io(format!("{}", Path::new(p).display())));
                given.as_ref().map(absolute).transpose()
            };
            let keep = |new: Option<PathBuf>, old: &mut Option<PathBuf>| {
                if new.is_some() {
                    *old = new;
                }
            };
            keep(absolute(&flags.ca)?, &mut profile.ca);
            keep(absolute(&flags.client_cert)?, &mut profile.client_cert);
            keep(absolute(&flags.client_key)?, &mut profile.client_key);
            keep(absolute(&flags.credential_file)?, &mut profile.credential_file);
            for (new, old) in [
                (&flags.server, &mut profile.server),
                (&flags.server_name, &mut profile.server_name),
                (&flags.tenant, &mut profile.tenant),
            ] {
                if new.is_some() {
                    old.clone_from(new);
                }
            }
            if let Some(timeout) = flags.timeout {
                profile.timeout = Some(format!("{}ms", timeout.as_millis()));
            }
            if store_key {
                let key = input::line("access key")?;
                let relative = Path::new("keys").join(&name);
                let base = path.parent().unwrap_or(Path::new(""));
                write_private(&base.join(&relative), format!("{}\n", key.trim()).as_bytes())?;
                profile.credential_file = Some(relative);
            }
            if file.current.is_none() {
                file.current = Some(name.clone());
            }
            file.save(&path)?;
            note(&format!("profile {name} is in {}", path.display()));
            Ok(())
        }
        ProfileCommand::List => {
            if out.json {
                return out.document(&json!({ "current": file.current, "profiles": file.profile }));
            }
            let mark = |name: &String| if Some(name) == file.current.as_ref() { "*" } else { "" };
            let row = |(name, p): (&String, &profile::Profile)| {
                let text = |t: &Option<String>| t.clone().unwrap_or_default();
                vec![mark(name).into(), name.clone(), text(&p.server), text(&p.tenant)]
            };
            out.rows(&["", "PROFILE", "SERVER", "TENANT"], file.profile.iter().map(row).collect())?;
            if file.profile.is_empty() {
                note(&format!("no profiles in {}", path.display()));
            }
            Ok(())
        }
        ProfileCommand::Show { name } => {
            let flags = GlobalArgs { profile: name.or_else(|| flags.profile.clone()), ..flags.clone() };
            let told = Settings::resolve(&flags, &process_env, &file, &path)?.told();
            if out.json {
                let map = told.into_iter().map(|(k, v)| (k.to_string(), v.into())).collect();
                return out.document(&serde_json::Value::Object(map));
            }
            out.pairs(told)
        }
        ProfileCommand::Use { name } => {
            known(&file, &name, &path)?;
            file.current = Some(name);
            file.save(&path)
        }
        ProfileCommand::Remove { name } => {
            known(&file, &name, &path)?;
            file.profile.remove(&name);
            file.current = file.current.filter(|c| *c != name);
            file.save(&path)
        }
    }
}

fn known(file: &ProfileFile, name: &str, path: &Path) -> Result<(), CliError> {
    if file.profile.contains_key(name) {
        return Ok(());
    }
    Err(CliError::Usage(format!("there is no profile {name:?} in {}", path.display())))
}

/// The name of a profile is also the name of a file.
fn check_name(name: &str) -> Result<(), CliError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if (1..=63).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(CliError::Usage("the name of a profile has 1 to 63 letters, digits, - and _".into()))
}
