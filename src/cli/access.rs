//! `whoami`, `access-key`, `role`, `approval`, `test-access`: who may call the vault.

use crate::cli::args::{self, ListArgs, SelectArgs, WriteArgs};
use crate::cli::error::CliError;
use crate::cli::input;
use crate::cli::names::{Names, Noun};
use crate::cli::output::{Col, note};
use crate::cli::profile::write_private;
use crate::cli::session::Session;
use crate::cli::text::{Moment, duration, printable};
use crate::cli::values::wire;
use crate::grpc::pb;
use clap::Subcommand;
use data_encoding::HEXLOWER_PERMISSIVE;
use std::path::PathBuf;
use std::time::Duration;

const KEY: &[Col] = &[
    Col("ACCESS KEY", "access_key"),
    Col("NAME", "name"),
    Col("STATE", "state"),
    Col("OPERATOR", "operator|mark"),
    Col("ROLES", "role_ids|role"),
    Col("ACTOR", "actor_id"),
    Col("ISSUED BY", "issued_by"),
    Col("ISSUED", "create_time"),
    Col("EXPIRES", "expire_time"),
    Col("LAST USED", "use_time"),
    Col("SUBJECTS/H", "subjects_per_hour|nonzero"),
    Col("REVOKED", "revoke_time"),
    Col("PEPPER", "pepper_version"),
    Col("CERTIFICATE", "certificate_sha256"),
];
const KEYS: &[Col] = &[
    Col("ACCESS KEY", "access_key"),
    Col("NAME", "name"),
    Col("STATE", "state"),
    Col("ROLES", "role_ids|role"),
    Col("ACTOR", "actor_id"),
    Col("ISSUED", "create_time"),
    Col("EXPIRES", "expire_time"),
];
const GRANTS: &[Col] = &[
    Col("VERBS", "verbs"),
    Col("CLASSES", "class_ids|class"),
    Col("FIELDS", "field_ids|field"),
    Col("PURPOSES", "purpose_ids|purpose"),
    Col("RECIPIENTS", "recipient_ids|recipient"),
    Col("VIEW", "max_view"),
    Col("GROUPS", "groups"),
    Col("SUBJECTS/H", "subjects_per_hour|nonzero"),
];
const APPROVAL: &[Col] = &[
    Col("APPROVAL", "approval"),
    Col("STATE", "state"),
    Col("SUBJECT", "subject"),
    Col("SUBJECTS", "subjects"),
    Col("VERBS", "grant.verbs"),
    Col("FIELDS", "grant.field_ids|field"),
    Col("CLASSES", "grant.class_ids|class"),
    Col("PURPOSES", "grant.purpose_ids|purpose"),
    Col("REFERENCE", "reference"),
    Col("REQUESTER", "requester"),
    Col("APPROVER", "approver"),
    Col("ASKED", "create_time"),
    Col("EXPIRES", "expire_time"),
    Col("DECIDED", "decide_time"),
];

/// `whoami`
pub async fn whoami(s: &Session) -> Result<(), CliError> {
    let answer = s.access().who_am_i(pb::WhoAmIRequest {}).await?.into_inner();
    if s.out.json {
        return s.out.document(&wire(&answer));
    }
    let cols = [
        Col("TENANT", "tenant"),
        Col("TEST TENANT", "test|mark"),
        Col("ACCESS KEY", "access_key.access_key"),
        Col("NAME", "access_key.name"),
        Col("OPERATOR", "access_key.operator|mark"),
        Col("EXPIRES", "access_key.expire_time"),
        Col("ROLES", "roles.name"),
        Col("POLICY VERSION", "policy_version"),
        Col("TENANT TIME", "tenant_time"),
        Col("SERVER", "server_version"),
    ];
    let names = s.names_if_any().await;
    s.out.record(&answer, &cols, &names)?;
    show_grants(s, &answer.roles, &names)
}

fn show_grants(s: &Session, roles: &[pb::Role], names: &Names) -> Result<(), CliError> {
    for role in roles.iter().filter(|r| !r.grants.is_empty()) {
        s.out.line("")?;
        s.out.line(&format!("role {} ({})", printable(&role.name), role.role_id))?;
        s.out.table(&role.grants, GRANTS, names)?;
    }
    Ok(())
}

/// `access-key`
#[derive(Debug, Subcommand)]
pub enum AccessKey {
    /// Issue an access key; its text is shown once
    #[command(
        after_help = "The text is printed on standard output and kept nowhere; with --output it goes to a file that only its owner can
read, and is not printed.

Examples:
  pii-vault access-key issue backend --role service --expires +365d --output backend.key
  pii-vault --tenant acme access-key issue admin --role admin
  pii-vault access-key issue alice --operator --output alice.key"
    )]
    Issue {
        /// What it is for: a-z, 0-9, _, -
        name: String,
        /// Role by name or number; may be repeated
        #[arg(long = "role", value_delimiter = ',', required_unless_present = "operator")]
        roles: Vec<String>,
        /// A key for the vault's operators, who manage tenants and see no values
        #[arg(long, conflicts_with = "roles")]
        operator: bool,
        /// When it ends [default: never]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        expires: Option<Moment>,
        /// SHA-256 of the client certificate (DER) it is bound to, in hexadecimal
        #[arg(long, value_name = "HEX")]
        certificate_sha256: Option<String>,
        /// Most different people whose values it may read in an hour
        #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
        subjects_per_hour: u32,
        /// File to write the text to
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Issue a successor with the same rights; the old key ends after an overlap
    #[command(after_help = "Example:
  pii-vault access-key rotate 7Q3K2M --overlap 24h --output backend.key")]
    Rotate {
        /// Name of the key
        access_key: String,
        /// Time in which both work, such as 24h [default: the old one ends at once]
        #[arg(long, value_parser = duration)]
        overlap: Option<Duration>,
        /// When the new one ends [default: as the old one would have]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        expires: Option<Moment>,
        /// SHA-256 of the client certificate the new one is bound to, in hexadecimal
        #[arg(long, value_name = "HEX")]
        certificate_sha256: Option<String>,
        /// File to write the text to
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
        /// UUID that makes a repeat safe
        #[arg(long, value_name = "UUID")]
        request_id: Option<String>,
    },
    /// End an access key: every call that starts afterwards is refused
    #[command(after_help = "Example:
  pii-vault access-key revoke 7Q3K2M --yes")]
    Revoke {
        /// Name of the key
        access_key: String,
    },
    /// Let a key that was stopped (READ_BREADTH) go on: it counts different people from nothing again
    #[command(after_help = "Look at what it read first: `audit access --actor N`. A key does not release itself.

Example:
  pii-vault access-key release 7Q3K2M")]
    Release {
        /// Name of the key
        access_key: String,
    },
    /// List access keys in order of their creation, without their texts
    #[command(after_help = "Example:
  pii-vault access-key list --state active")]
    List {
        /// Only this state; may be repeated
        #[arg(long = "state", value_parser = args::key_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// `access-key`
pub async fn access_key(s: &Session, yes: bool, command: AccessKey) -> Result<(), CliError> {
    match command {
        AccessKey::Issue { name, roles, operator, expires, certificate_sha256, subjects_per_hour, output, write } => {
            let request = pb::IssueAccessKeyRequest {
                name,
                role_ids: s.numbers(Noun::Role, &roles).await?,
                expire_time: args::at(s, expires),
                certificate_sha256: sha256(&certificate_sha256)?,
                tenant: if operator { String::new() } else { s.tenant() },
                request_id: write.id(s),
                validate_only: write.validate_only,
                operator,
                subjects_per_hour,
            };
            let answer = s.access().issue_access_key(request).await?.into_inner();
            hand_out(s, &answer.text, output, || wire(&answer))?;
            show_key(s, answer.access_key).await
        }
        AccessKey::Rotate { access_key, overlap, expires, certificate_sha256, output, request_id } => {
            let request = pb::RotateAccessKeyRequest {
                access_key,
                overlap_seconds: overlap.map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX)),
                expire_time: args::at(s, expires),
                certificate_sha256: sha256(&certificate_sha256)?,
                request_id: request_id.unwrap_or_else(args::new_id),
            };
            let answer = s.access().rotate_access_key(request).await?.into_inner();
            hand_out(s, &answer.text, output, || wire(&answer))?;
            show_key(s, answer.access_key).await
        }
        AccessKey::Revoke { access_key } => {
            input::confirm(yes, &format!("This ends access key {access_key} for good"))?;
            let request = pb::RevokeAccessKeyRequest { access_key, request_id: args::new_id() };
            let answer = s.access().revoke_access_key(request).await?.into_inner();
            s.out.record(&answer.access_key.unwrap_or_default(), KEY, &s.names_if_any().await)
        }
        AccessKey::Release { access_key } => {
            let request = pb::ReleaseAccessKeyRequest { access_key };
            let answer = s.access().release_access_key(request).await?.into_inner();
            s.out.record(&answer.access_key.unwrap_or_default(), KEY, &s.names_if_any().await)
        }
        AccessKey::List { states, list } => {
            let tenant = s.tenant();
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.access();
                    let (states, tenant) = (states.clone(), tenant.clone());
                    let request = pb::ListAccessKeysRequest { states, tenant, page_size, page_token };
                    async move {
                        let answer = client.list_access_keys(request).await?.into_inner();
                        Ok((answer.access_keys, answer.next_page_token))
                    }
                })
                .await?;
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            s.out.list("access_keys", &page, KEYS, &names)
        }
    }
}

/// The text of a key goes to a file, or alone to standard output so that `> FILE` keeps just that. In JSON it is part of
/// the answer, unless it went to a file.
pub(super) fn hand_out(
    s: &Session,
    text: &str,
    output: Option<PathBuf>,
    answer: impl FnOnce() -> serde_json::Value,
) -> Result<(), CliError> {
    let mut answer = s.out.json.then(answer);
    if let Some(path) = output {
        if !text.is_empty() {
            write_private(&path, format!("{text}\n").as_bytes())?;
            note(&format!("the key is in {}", path.display()));
        }
        if let Some(answer) = &mut answer {
            answer["text"] = "".into();
        }
    } else if !s.out.json && !text.is_empty() {
        s.out.line(text)?;
        note("this text is shown once and kept nowhere");
    }
    match answer {
        Some(answer) => s.out.document(&answer),
        None => Ok(()),
    }
}

/// What the key is, for people: on standard error, because its text has standard output for itself.
async fn show_key(s: &Session, key: Option<pb::AccessKey>) -> Result<(), CliError> {
    if let Some(key) = key
        && !s.out.json
    {
        note(&format!("access key {}, name {}, actor {}", key.access_key, printable(&key.name), key.actor_id));
    }
    Ok(())
}

fn sha256(hex: &Option<String>) -> Result<prost::bytes::Bytes, CliError> {
    let Some(hex) = hex else { return Ok(Default::default()) };
    // openssl prints colons between the bytes.
    let bare = hex.replace(':', "");
    let bytes = HEXLOWER_PERMISSIVE.decode(bare.as_bytes()).ok().filter(|b| b.len() == 32);
    bytes.map(Into::into).ok_or_else(|| CliError::Usage("--certificate-sha256: needs 64 hexadecimal digits".into()))
}

/// `role`
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Create a role
    #[command(after_help = GRANT_HELP)]
    Create {
        /// Name: a-z, 0-9, _, -
        name: String,
        /// What it allows; may be repeated
        #[arg(long = "grant", value_name = "GRANT", required = true)]
        grants: Vec<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Change a role: its name and grants are replaced as a whole
    #[command(after_help = GRANT_HELP)]
    Update {
        /// The role, by name or number
        role: String,
        /// New name [default: the old one]
        #[arg(long)]
        name: Option<String>,
        /// What it allows; may be repeated
        #[arg(long = "grant", value_name = "GRANT", required = true)]
        grants: Vec<String>,
        /// Only if this is still the state that `role list --json` showed
        #[arg(long)]
        etag: Option<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List roles by number, those of the policy too
    #[command(after_help = "Example:
  pii-vault role list --grants")]
    List {
        /// Also show what each allows
        #[arg(long)]
        grants: bool,
        #[command(flatten)]
        list: ListArgs,
    },
}

const GRANT_HELP: &str =
    "A grant is words of the form KEY=A,B with the keys verbs, classes, fields, purposes, recipients, view, groups,
subjects_per_hour; verbs is required. Everything in one grant must fit a call; several grants are alternatives.

Example:
  pii-vault role create support \\
    --grant 'verbs=read,find classes=account purposes=support view=masked subjects_per_hour=100' \\
    --grant 'verbs=subject'
  pii-vault role update support --grant 'verbs=read classes=account purposes=support view=plain'";

/// `role`
pub async fn role(s: &Session, command: Role) -> Result<(), CliError> {
    match command {
        Role::Create { name, grants, write } => {
            let grants = parse_grants(s, &grants).await?;
            let request = pb::CreateRoleRequest {
                role: Some(pb::Role { name, grants, ..Default::default() }),
                tenant: s.tenant(),
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            show_role(s, s.access().create_role(request).await?.into_inner().role).await
        }
        Role::Update { role, name, grants, etag, write } => {
            let role_id = s.number(Noun::Role, &role).await?;
            let name = match name {
                Some(name) => name,
                None if role.parse::<u32>().is_err() => role,
                None => return Err(CliError::Usage("--name is needed when the role is given by number".into())),
            };
            let grants = parse_grants(s, &grants).await?;
            let etag = etag.unwrap_or_default();
            let request = pb::UpdateRoleRequest {
                role: Some(pb::Role { role_id, name, grants, etag, ..Default::default() }),
                tenant: s.tenant(),
                request_id: write.id(s),
                validate_only: write.validate_only,
            };
            show_role(s, s.access().update_role(request).await?.into_inner().role).await
        }
        Role::List { grants, list } => {
            let tenant = s.tenant();
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.access();
                    let request = pb::ListRolesRequest { tenant: tenant.clone(), page_size, page_token };
                    async move {
                        let answer = client.list_roles(request).await?.into_inner();
                        Ok((answer.roles, answer.next_page_token))
                    }
                })
                .await?;
            let cols = [
                Col("ROLE", "role_id"),
                Col("NAME", "name"),
                Col("FROM POLICY", "from_policy|mark"),
                Col("VERBS", "grants.verbs"),
            ];
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            s.out.list("roles", &page, &cols, &names)?;
            if grants && !s.out.json { show_grants(s, &page.items, &names) } else { Ok(()) }
        }
    }
}

async fn show_role(s: &Session, role: Option<pb::Role>) -> Result<(), CliError> {
    let role = role.unwrap_or_default();
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    s.out.record(&role, &[Col("ROLE", "role_id"), Col("NAME", "name"), Col("ETAG", "etag")], &names)?;
    if s.out.json { Ok(()) } else { show_grants(s, std::slice::from_ref(&role), &names) }
}

async fn parse_grants(s: &Session, texts: &[String]) -> Result<Vec<pb::Grant>, CliError> {
    let mut grants = Vec::with_capacity(texts.len());
    for text in texts {
        grants.push(parse_grant(s, text).await?);
    }
    Ok(grants)
}

async fn parse_grant(s: &Session, text: &str) -> Result<pb::Grant, CliError> {
    let mut grant = pb::Grant::default();
    for word in text.split_whitespace() {
        let bad = |rule: &str| CliError::Usage(format!("--grant: {word:?}: {rule}"));
        let (key, list) = word.split_once('=').ok_or_else(|| bad("needs the form KEY=A,B"))?;
        let list: Vec<String> = list.split(',').filter(|t| !t.is_empty()).map(String::from).collect();
        let one = || list.first().filter(|_| list.len() == 1).ok_or_else(|| bad("takes one value"));
        match key {
            "verbs" => {
                let verbs = list.iter().map(|v| args::verb(v)).collect::<Result<Vec<_>, _>>();
                grant.verbs = verbs.map_err(|rule| bad(&rule))?;
            }
            "classes" => grant.class_ids = s.numbers(Noun::Class, &list).await?,
            "fields" => grant.field_ids = s.numbers(Noun::Field, &list).await?,
            "purposes" => grant.purpose_ids = s.numbers(Noun::Purpose, &list).await?,
            "recipients" => grant.recipient_ids = s.numbers(Noun::Recipient, &list).await?,
            "groups" => grant.groups = list,
            "view" => grant.max_view = args::view(one()?).map_err(|rule| bad(&rule))?,
            "subjects_per_hour" => grant.subjects_per_hour = one()?.parse().map_err(|_| bad("needs a number"))?,
            _ => {
                return Err(bad(
                    "keys are verbs, classes, fields, purposes, recipients, view, groups, subjects_per_hour",
                ));
            }
        }
    }
    if grant.verbs.is_empty() {
        return Err(CliError::Usage("--grant: verbs=... is missing".into()));
    }
    Ok(grant)
}

/// `approval`
#[derive(Debug, Subcommand)]
pub enum Approval {
    /// Ask a second person to approve something
    #[command(after_help = "Examples:
  pii-vault approval request --subject u-17 --verb read --field email -p legal_request --reference CASE-17
  pii-vault --tenant acme approval request --verb erase --reference CLOSING-ACME")]
    Request {
        /// Subject it is for; may be repeated, for one `batch get` of that list [default: none in particular]
        #[arg(long = "subject", value_name = "SUBJECT")]
        subjects: Vec<String>,
        /// What should be allowed; may be repeated
        #[arg(long = "verb", value_parser = args::verb, value_delimiter = ',', required = true)]
        verbs: Vec<i32>,
        #[command(flatten)]
        select: SelectArgs,
        /// Purpose; may be repeated
        #[arg(long = "purpose", short = 'p', value_delimiter = ',')]
        purposes: Vec<String>,
        /// Recipient; may be repeated
        #[arg(long = "recipient", value_delimiter = ',')]
        recipients: Vec<String>,
        /// The most telling view: plain, masked, token
        #[arg(long, value_parser = args::view)]
        view: Option<i32>,
        /// Case or ticket; the call must name the same one
        #[arg(long)]
        reference: String,
        /// When it ends, at most 7 days ahead [default: in 24 h]
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        expires: Option<Moment>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Approve what another person asked for
    #[command(after_help = "Example:
  pii-vault approval approve 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Approve {
        /// Name of the approval
        approval: String,
    },
    /// Deny what another person asked for
    #[command(after_help = "Example:
  pii-vault approval deny 0b9c6c1e-53a5-4f8e-9a51-2b7d3a1f6a10")]
    Deny {
        /// Name of the approval
        approval: String,
    },
    /// List approvals, newest first
    #[command(after_help = "Examples:
  pii-vault approval list --state pending
  pii-vault --tenant acme approval list")]
    List {
        /// Only this state; may be repeated
        #[arg(long = "state", value_parser = args::approval_state)]
        states: Vec<i32>,
        #[command(flatten)]
        list: ListArgs,
    },
}

/// `approval`
pub async fn approval(s: &Session, command: Approval) -> Result<(), CliError> {
    let approval = match command {
        Approval::Request { mut subjects, verbs, select, purposes, recipients, view, reference, expires, write } => {
            let select = select.select(s).await?.unwrap_or_default();
            let grant = pb::Grant {
                class_ids: select.class_ids,
                field_ids: select.field_ids,
                purpose_ids: s.numbers(Noun::Purpose, &purposes).await?,
                recipient_ids: s.numbers(Noun::Recipient, &recipients).await?,
                max_view: view.unwrap_or(0),
                verbs,
                ..Default::default()
            };
            let request = pb::RequestApprovalRequest {
                subject: if subjects.len() == 1 { subjects.remove(0) } else { String::new() },
                subjects,
                grant: Some(grant),
                reference,
                expire_time: args::at(s, expires),
                request_id: write.id(s),
                validate_only: write.validate_only,
                tenant: s.tenant(),
            };
            s.access().request_approval(request).await?.into_inner().approval
        }
        Approval::Approve { approval } => {
            let request = pb::ApproveRequest { approval, request_id: args::new_id() };
            s.access().approve(request).await?.into_inner().approval
        }
        Approval::Deny { approval } => {
            let request = pb::DenyRequest { approval, request_id: args::new_id() };
            s.access().deny(request).await?.into_inner().approval
        }
        Approval::List { states, list } => {
            let page = list
                .pages(|page_size, page_token| {
                    let mut client = s.access();
                    let (states, tenant) = (states.clone(), s.tenant());
                    let request = pb::ListApprovalsRequest { states, tenant, page_size, page_token };
                    async move {
                        let answer = client.list_approvals(request).await?.into_inner();
                        Ok((answer.approvals, answer.next_page_token))
                    }
                })
                .await?;
            let names = if s.out.json { Names::default() } else { s.names_if_any().await };
            return s.out.list("approvals", &page, APPROVAL, &names);
        }
    };
    let names = if s.out.json { Names::default() } else { s.names_if_any().await };
    s.out.record(&approval.unwrap_or_default(), APPROVAL, &names)
}
