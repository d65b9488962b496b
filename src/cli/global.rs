//! Options that every command takes.

use crate::cli::text;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Options of every command.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Address of the server, such as https://vault.example:7443 [env: PII_VAULT_SERVER]
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Name in the server's certificate, when the address has another [env: PII_VAULT_SERVER_NAME]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub server_name: Option<String>,
    /// PEM file with the authorities that the server's certificate is checked with [default: the system's]
    /// [env: PII_VAULT_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// PEM file with the client's certificate [env: PII_VAULT_CLIENT_CERT]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub client_cert: Option<PathBuf>,
    /// PEM file with the client's private key [env: PII_VAULT_CLIENT_KEY]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub client_key: Option<PathBuf>,
    /// File with the access key [env: PII_VAULT_ACCESS_KEY_FILE, or the key itself in PII_VAULT_ACCESS_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub credential_file: Option<PathBuf>,
    /// Profile to use [env: PII_VAULT_PROFILE]
    #[arg(long, global = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Tenant the call is about; for operator keys [env: PII_VAULT_TENANT]
    #[arg(long, global = true, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Time a call may take, such as 10s or 2m [default: 30s] [env: PII_VAULT_TIMEOUT]
    #[arg(long, global = true, value_name = "TIME", value_parser = text::duration)]
    pub timeout: Option<Duration>,
    /// Print JSON with the field names of the API
    #[arg(long, global = true)]
    pub json: bool,
    /// Do not ask before what cannot be taken back
    #[arg(long, short = 'y', global = true)]
    pub yes: bool,
    /// Talk to a server on another machine without TLS
    #[arg(long, global = true, hide_short_help = true)]
    pub plaintext: bool,
}
