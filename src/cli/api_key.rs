//! `api-key`: API keys of the tenant's own users.

use crate::cli::access::hand_out;
use crate::cli::args::{self, ContextArgs, KeyArgs, ListArgs, WriteArgs};
use crate::cli::error::{CliError, right};
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, note};
use crate::cli::session::Session;
use crate::cli::text::{Moment, duration};
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::Subcommand;
use std::path::PathBuf;
use std::time::Duration;

const KEYS: &[Col] = &[
    Col("API KEY", "api_key"),
    Col("LABEL", "label"),
    Col("STATE", "state"),
    Col("SCOPES", "scope_ids"),
    Col("SOURCES", "sources"),
    Col("ISSUED", "create_time"),
    Col("EXPIRES", "expire_time"),
    Col("REVOKED", "revoke_time"),
    Col("LAST USED", "use_time"),
];
const FOUND: &[Col] = &[
    Col("VERDICT", "verdict"),
    Col("WHY", "detail"),
    Col("API KEY", "api_key"),
    Col("SUBJECT", "subject"),
    Col("SCOPES", "scope_ids"),
    Col("EXPIRES", "expire_time"),
];

/// `api-key`
#[derive(Debug, Subcommand)]
pub enum ApiKey {
    /// Issue an API key to a user; its text is shown once
    #[command(
        after_help = "The text is printed on standard output and kept nowhere; with --output it goes to a file that only its owner can
read, and is not printed.

Examples:
  pii-vault api-key issue u-17 --label 'nightly export' --scope 3,4 --expires +90d
  pii-vault api-key issue u-17 --from 192.0.2.0/24 --output u-17.key"
    )]
    Issue {
        #[command(flatten)]
        key: KeyArgs,
        /// What the user calls it
        #[arg(long, default_value = "", hide_default_value = true)]
        label: String,
        /// What it may do, by the tenant's own numbers; may be repeated
        #[arg(long = "scope", value_name = "NUMBER", value_delimiter = ',')]
        scopes: Vec<u32>,
        /// Network it may be used from, such as 192.0.2.0/24; may be repeated [default: any]
        #[arg(long = "from", visible_alias = "source", value_name = "NETWORK", value_delimiter = ',')]
        sources: Vec<String>,
        /// When it ends [default: never]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        expires: Option<Moment>,
        /// File to write the text to
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Check an API key, the first line of standard input, and say whose it is
    #[command(after_help = "Exit code 0 when it works, 4 when it does not.

Example:
  pii-vault api-key verify --source 192.0.2.7 < u-17.key")]
    Verify {
        /// The address it came from; needed where keys name networks
        #[arg(long, default_value = "", hide_default_value = true)]
        source: String,
    },
    /// Issue a successor with the same rights; the old key ends after an overlap
    #[command(after_help = "Example:
  pii-vault api-key rotate 7Q3K2M --overlap 24h --output u-17.key")]
    Rotate {
        /// Name of the key
        api_key: String,
        /// Time in which both work, such as 24h [default: the old one ends at once]
        #[arg(long, value_parser = duration)]
        overlap: Option<Duration>,
        /// When the new one ends [default: as the old one would have]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        expires: Option<Moment>,
        /// File to write the text to
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// UUID that makes a repeat safe
        #[arg(long, value_name = "UUID")]
        request_id: Option<String>,
    },
    /// End an API key: every check that starts afterwards says no
    #[command(after_help = "Example:
  pii-vault api-key revoke 7Q3K2M --yes")]
    Revoke {
        /// Name of the key
        api_key: String,
    },
    /// List a user's API keys in order of their creation, without their texts
    #[command(after_help = "Example:
  pii-vault api-key list u-17 --state active")]
    List {
        #[command(flatten)]
        key: KeyArgs,
        /// Only this state; may be repeated
        #[arg(long = "state", value_parser = args::api_key_state)]
        states: Vec<i32>,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// `api-key`
pub async fn api_key(s: &Session, yes: bool, command: ApiKey) -> Result<(), CliError> {
    match command {
        ApiKey::Issue { key, label, scopes, sources, expires, output, context, write } => {
            let request = pb::IssueApiKeyRequest {
                key: Some(key.key(s).await?),
                label,
                scope_ids: scopes,
                expire_time: args::at(s, expires),
                sources,
                context: context.context(s).await?,
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            let answer = s.credentials().issue_api_key(request).await?.into_inner();
            hand_out(s, &answer.text, output, || wire(&answer))?;
            told(s, answer.api_key);
            Ok(())
        }
        ApiKey::Verify { source } => {
            let text = input::line("API key")?.to_string();
            let request = pb::VerifyApiKeyRequest { text, source };
            let answer = s.credentials().verify_api_key(request).await?.into_inner();
            s.out.record(&answer, FOUND, &Names::default())?;
            right(answer.verdict)
        }
        ApiKey::Rotate { api_key, overlap, expires, output, request_id } => {
            let request = pb::RotateApiKeyRequest {
                api_key,
                overlap_seconds: overlap.map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX)),
                expire_time: args::at(s, expires),
                request_id: request_id.unwrap_or_else(args::new_id),
            };
            let answer = s.credentials().rotate_api_key(request).await?.into_inner();
            hand_out(s, &answer.text, output, || wire(&answer))?;
            told(s, answer.api_key);
            Ok(())
        }
        ApiKey::Revoke { api_key } => {
            input::confirm(yes, &format!("This ends API key {api_key} for good"))?;
            let request = pb::RevokeApiKeyRequest { api_key, request_id: args::new_id() };
            let answer = s.credentials().revoke_api_key(request).await?.into_inner();
            s.out.record(&answer.api_key.unwrap_or_default(), KEYS, &Names::default())
        }
        ApiKey::List { key, states, context, list } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.credentials();
                    let (key, context, states) = (key.clone(), context.clone(), states.clone());
                    let request = pb::ListApiKeysRequest { key, context, states, page_size, page_token };
                    async move {
                        let answer = client.list_api_keys(request).await?.into_inner();
                        Ok((answer.api_keys, answer.next_page_token))
                    }
                })
                .await?;
            s.out.list("api_keys", &page, KEYS, &Names::default())
        }
    }
}

/// What the key is, for people: on standard error, because its text has standard output for itself.
fn told(s: &Session, key: Option<pb::ApiKey>) {
    if let Some(key) = key
        && !s.out.json
    {
        note(&format!("API key {}", key.api_key));
    }
}
