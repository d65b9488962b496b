//! `code`: one-time codes, recovery codes and TOTP of the tenant's own users. What a user typed comes from standard input.

use crate::cli::args::{ContextArgs, KeyArgs};
use crate::cli::error::{CliError, right};
use crate::cli::input;
use crate::cli::names::Names;
use crate::cli::output::{Col, note};
use crate::cli::session::Session;
use crate::cli::text::duration;
use crate::cli::values::wire;
use crate::cli::{args, values};
use crate::grpc::pb;
use clap::{Args, Subcommand};
use std::time::Duration;

const VERDICT: &[Col] = &[Col("VERDICT", "verdict"), Col("WHY", "detail")];

/// `code`
#[derive(Debug, Subcommand)]
pub enum Code {
    /// Issue a code that works once; a former one for the same use ends
    #[command(after_help = "The code is printed alone on standard output; what is not said is as the policy says.

Examples:
  pii-vault code issue u-17 --use reset
  pii-vault code issue u-17 --use confirm --length 8 --alphabet letters --life 1d")]
    Issue {
        #[command(flatten)]
        key: KeyArgs,
        /// What it is for: a-z, 0-9, _, -
        #[arg(long = "use", value_name = "USE")]
        used_for: String,
        /// Characters, 6 to 64
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        length: u32,
        /// digits or letters
        #[arg(long, value_parser = args::code_alphabet)]
        alphabet: Option<i32>,
        /// Time it works, such as 15m
        #[arg(long, value_parser = duration)]
        life: Option<Duration>,
        /// Wrong tries after which it ends, 1 to 20
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        tries: u32,
        /// UUID that makes a repeat safe; a repeat shows no code
        #[arg(long, value_name = "UUID")]
        request_id: Option<String>,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Check a code, the first line of standard input; a right one is used up
    #[command(after_help = "Exit code 0 when it is right, 4 when it is not. Recovery codes have the use `recovery`.

Example:
  echo 482915 | pii-vault code verify u-17 --use reset")]
    Verify {
        #[command(flatten)]
        key: KeyArgs,
        /// What it is for
        #[arg(long = "use", value_name = "USE")]
        used_for: String,
        #[command(flatten)]
        typed: Typed,
    },
    /// Issue recovery codes, each of which works once; former ones end
    #[command(after_help = "Example:
  pii-vault code recovery u-17 --count 10")]
    Recovery {
        #[command(flatten)]
        key: KeyArgs,
        /// How many, at most 20
        #[arg(long, value_name = "N", default_value_t = 10)]
        count: u32,
        /// UUID that makes a repeat safe; a repeat shows no codes
        #[arg(long, value_name = "UUID")]
        request_id: Option<String>,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Codes of an app (TOTP, RFC 6238)
    #[command(subcommand)]
    Totp(Totp),
}

/// `code totp`
#[derive(Debug, Subcommand)]
pub enum Totp {
    /// Make a secret and show it once; it counts once it was confirmed
    #[command(after_help = "Example:
  pii-vault code totp enrol u-17 --issuer Example --account jane@example.com")]
    Enrol {
        #[command(flatten)]
        key: KeyArgs,
        /// Who issues it, as the user's app shows it
        #[arg(long)]
        issuer: String,
        /// The account's name, as the user's app shows it
        #[arg(long)]
        account: String,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Confirm the secret that was made last by a first code of it, the first line of standard input
    #[command(after_help = "Exit code 0 when it is right, 4 when it is not.

Example:
  echo 482915 | pii-vault code totp confirm u-17")]
    Confirm {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Check a code, the first line of standard input; it is taken once
    #[command(after_help = "Exit code 0 when it is right, 4 when it is not.

Example:
  echo 482915 | pii-vault code totp verify u-17")]
    Verify {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        typed: Typed,
    },
    /// Remove a user's secret
    #[command(after_help = "Example:
  pii-vault code totp remove u-17 --yes")]
    Remove {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        context: ContextArgs,
    },
}

/// Beside what a user typed.
#[derive(Debug, Args)]
pub struct Typed {
    /// Where the user is
    #[arg(long, default_value = "", hide_default_value = true)]
    source: String,
    #[command(flatten)]
    context: ContextArgs,
}

/// `code`
pub async fn code(s: &Session, yes: bool, command: Code) -> Result<(), CliError> {
    match command {
        Code::Issue { key, used_for, length, alphabet, life, tries, request_id, context } => {
            let request = pb::IssueCodeRequest {
                key: Some(key.key(s).await?),
                r#use: used_for,
                length,
                alphabet: alphabet.unwrap_or_default(),
                life_seconds: life.map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX)),
                tries,
                context: context.context(s).await?,
                request_id: request_id.unwrap_or_else(args::new_id),
            };
            let answer = s.credentials().issue_code(request).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            s.out.line(&answer.text)?;
            if let Some(end) = &answer.expire_time {
                note(&format!("it works until {}", values::time_text(end)));
            }
            Ok(())
        }
        Code::Verify { key, used_for, typed } => {
            let (key, context) = (Some(key.key(s).await?), typed.context.context(s).await?);
            let text = input::line("code")?.to_string();
            let source = typed.source.into_bytes().into();
            let request = pb::VerifyCodeRequest { key, r#use: used_for, text, source, context };
            let answer = s.credentials().verify_code(request).await?.into_inner();
            s.out.record(&answer, &[VERDICT[0], VERDICT[1], Col("LEFT", "left_count|nonzero")], &Names::default())?;
            right(answer.verdict)
        }
        Code::Recovery { key, count, request_id, context } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let request_id = request_id.unwrap_or_else(args::new_id);
            let request = pb::IssueRecoveryCodesRequest { key, count, context, request_id };
            let answer = s.credentials().issue_recovery_codes(request).await?.into_inner();
            if s.out.json {
                return s.out.document(&wire(&answer));
            }
            answer.texts.iter().try_for_each(|text| s.out.line(text))
        }
        Code::Totp(command) => totp(s, yes, command).await,
    }
}

async fn totp(s: &Session, yes: bool, command: Totp) -> Result<(), CliError> {
    match command {
        Totp::Enrol { key, issuer, account, context } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let request = pb::EnrolTotpRequest { key, issuer, account, context };
            let answer = s.credentials().enrol_totp(request).await?.into_inner();
            s.out.record(&answer, &[Col("SECRET", "secret"), Col("QR CODE", "uri")], &Names::default())
        }
        Totp::Confirm { key, context } => {
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let text = input::line("code")?.to_string();
            let request = pb::ConfirmTotpRequest { key, text, context };
            let answer = s.credentials().confirm_totp(request).await?.into_inner();
            s.out.record(&answer, VERDICT, &Names::default())?;
            right(answer.verdict)
        }
        Totp::Verify { key, typed } => {
            let (key, context) = (Some(key.key(s).await?), typed.context.context(s).await?);
            let text = input::line("code")?.to_string();
            let source = typed.source.into_bytes().into();
            let request = pb::VerifyTotpRequest { key, text, source, context };
            let answer = s.credentials().verify_totp(request).await?.into_inner();
            s.out.record(&answer, VERDICT, &Names::default())?;
            right(answer.verdict)
        }
        Totp::Remove { key, context } => {
            input::confirm(yes, "This removes a TOTP secret; the user must enrol anew")?;
            let (key, context) = (Some(key.key(s).await?), context.context(s).await?);
            let request = pb::RemoveTotpRequest { key, context, request_id: args::new_id() };
            let answer = s.credentials().remove_totp(request).await?.into_inner();
            s.out.record(&answer, &[Col("REMOVED", "removed")], &Names::default())
        }
    }
}
