//! Keys as objects to look after; no call ever shows one.

use tonic::{Request, Response, Status};

use crate::auth::{KeyId, Kind};
use crate::clock::Timestamp;
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::operation_service::operation_position;
use crate::grpc::page::Pages;
use crate::grpc::pb;
use crate::grpc::tenant_service::wire_state;
use crate::grpc::words;
use crate::keyring::keeper::ReplicaState;
use crate::vault::Call;
use crate::vault::compromise::{Leaked, Step};
use crate::vault::keys::{KeyInfo, KeyKind};
use crate::vault::rotation::{DataScope, OwnSecret};

type Answer<T> = Result<Response<T>, Status>;

fn wire_kind(kind: KeyKind) -> pb::KeyKind {
    match kind {
        KeyKind::Root => pb::KeyKind::Root,
        KeyKind::TenantRoot => pb::KeyKind::TenantRoot,
        KeyKind::Tree => pb::KeyKind::Tree,
        KeyKind::Index => pb::KeyKind::Index,
        KeyKind::Digest => pb::KeyKind::Digest,
        KeyKind::Data => pb::KeyKind::Data,
        KeyKind::Expiry => pb::KeyKind::Expiry,
        KeyKind::PasswordPepper => pb::KeyKind::PasswordPepper,
        KeyKind::AccessKeyPepper => pb::KeyKind::AccessKeyPepper,
        KeyKind::PageToken => pb::KeyKind::PageToken,
        KeyKind::Signing => pb::KeyKind::Signing,
    }
}

fn wire_key(key: &KeyInfo) -> pb::KeyInfo {
    let state = if key.retiring { pb::KeyState::Retiring } else { pb::KeyState::Current };
    pb::KeyInfo {
        kind: wire_kind(key.kind) as i32,
        version: key.version,
        state: state as i32,
        create_time: key.created.map(wire_time),
        rotate_by_time: key.rotate_by.map(wire_time),
        seal_count: key.seals,
        key_count: key.count,
        left_count: key.left,
        period_days: key.period_days,
        key_id: key.id.clone().unwrap_or_default(),
    }
}

/// The wire's words for a keeper.
pub(crate) fn wire_keeper(keeper: &dyn crate::keyring::keeper::Keeper) -> (pb::KeeperKind, pb::KeeperAssurance) {
    let kind = match keeper.kind() {
        "pkcs11" => pb::KeeperKind::Pkcs11,
        _ => pb::KeeperKind::File,
    };
    let assurance = match keeper.assurance() {
        "physical" => pb::KeeperAssurance::Physical,
        _ => pb::KeeperAssurance::Logical,
    };
    (kind, assurance)
}

/// What is said must fit the kind.
fn only(said: bool, field: &'static str, fits: bool) -> Result<(), Status> {
    if said && !fits { Err(Bad::rule(field, "is not for keys of this kind").into()) } else { Ok(()) }
}

fn data_scope(message: &mut pb::RotateKeysRequest) -> Result<DataScope, Status> {
    Ok(DataScope {
        classes: convert::class_nos("class_ids", &message.class_ids)?,
        subject: message.key.take().map(|key| words::key(Some(key))).transpose()?,
        per_second: message.per_second,
    })
}

/// What a message says that leaked.
fn leaked(message: &mut pb::RespondToCompromiseRequest) -> Result<Leaked, Status> {
    if !message.access_key.is_empty() {
        only(message.kind != 0, "kind", false)?;
        let id = KeyId::parse(&message.access_key);
        return Ok(Leaked::AccessKey(id.ok_or_else(|| Bad::rule("access_key", "is not the name of a key"))?));
    }
    let kind = convert::choice::<pb::KeyKind>("kind", message.kind)?;
    only(!message.class_ids.is_empty(), "class_ids", kind == pb::KeyKind::Data)?;
    only(message.key.is_some(), "key", kind == pb::KeyKind::Data)?;
    Ok(match kind {
        pb::KeyKind::Root => Leaked::Root,
        pb::KeyKind::TenantRoot | pb::KeyKind::Tree => Leaked::TenantRoot,
        pb::KeyKind::Index => Leaked::Index,
        pb::KeyKind::PasswordPepper => Leaked::PasswordPepper,
        pb::KeyKind::AccessKeyPepper => Leaked::AccessKeyPepper,
        pb::KeyKind::PageToken => Leaked::PageToken,
        pb::KeyKind::Signing => Leaked::Signing,
        pb::KeyKind::Data => Leaked::Data(DataScope {
            classes: convert::class_nos("class_ids", &message.class_ids)?,
            subject: message.key.take().map(|key| words::key(Some(key))).transpose()?,
            per_second: 0,
        }),
        _ => return Err(Bad::not_supported("kind").into()),
    })
}

impl Api {
    /// Places of the archives that were made since a time; told to operators.
    async fn archives_since(&self, call: &Call, since: Option<Timestamp>) -> Result<Vec<String>, Status> {
        let operator = call.principal.kind == Kind::Operator;
        let Some(backups) = self.backups.as_ref().filter(|_| operator) else { return Ok(Vec::new()) };
        let made = backups.list(call).await?.into_iter();
        let meant = made.filter(|one| since.is_none_or(|since| one.made_at().is_none_or(|at| at >= since)));
        Ok(meant.map(|one| one.path.display().to_string()).collect())
    }
}

#[tonic::async_trait]
impl pb::key_service_server::KeyService for Api {
    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Answer<pb::ListKeysResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let kinds: Vec<pb::KeyKind> = convert::choices("kinds", &request.get_ref().kinds)?;
        let keys = self.vault.list_keys(&call).await?;
        let wanted = |key: &&KeyInfo| kinds.is_empty() || kinds.contains(&wire_kind(key.kind));
        Ok(Response::new(pb::ListKeysResponse { keys: keys.iter().filter(wanted).map(wire_key).collect() }))
    }

    async fn rotate_keys(&self, request: Request<pb::RotateKeysRequest>) -> Answer<pb::RotateKeysResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RotateKeys", &repeat_id, &message)?;
        let kind = convert::choice::<pb::KeyKind>("kind", message.kind)?;
        only(message.reset_time.is_some(), "reset_time", kind == pb::KeyKind::PasswordPepper)?;
        only(message.revoke_time.is_some(), "revoke_time", kind == pb::KeyKind::AccessKeyPepper)?;
        only(!message.class_ids.is_empty(), "class_ids", kind == pb::KeyKind::Data)?;
        only(message.key.is_some(), "key", kind == pb::KeyKind::Data)?;
        only(message.per_second > 0, "per_second", kind == pb::KeyKind::Data)?;
        only(!message.provider.is_empty(), "provider", kind == pb::KeyKind::Root)?;
        // The vault itself has nothing to search and no people, and only the vault signs.
        let of_vault = call.tenant.no == crate::ids::TenantNo::VAULT;
        let possible = match kind {
            pb::KeyKind::Root | pb::KeyKind::Signing => of_vault,
            pb::KeyKind::AccessKeyPepper | pb::KeyKind::PageToken => of_vault,
            pb::KeyKind::Index | pb::KeyKind::PasswordPepper | pb::KeyKind::Data => !of_vault,
            pb::KeyKind::TenantRoot | pb::KeyKind::Tree => true,
            _ => false,
        };
        if !possible {
            return Err(Bad::not_supported("kind").into());
        }
        self.vault.may_rotate(&call)?;
        let provider = Some(message.provider.as_str()).filter(|provider| !provider.is_empty());
        let check = message.validate_only;
        let operation = match kind {
            pb::KeyKind::Data => {
                let scope = data_scope(&mut message)?;
                self.vault.rotate_data(&call, scope, repeat, check).await?
            }
            pb::KeyKind::Root if check => {
                self.vault.next_kek(&call, provider).await?;
                None
            }
            _ if check => None,
            pb::KeyKind::Root => Some(self.vault.rotate_kek(&call, provider, repeat).await?),
            pb::KeyKind::Signing => Some(self.vault.rotate_signing(&call, repeat).await?),
            pb::KeyKind::Tree => Some(self.vault.rekey_tree(&call, repeat).await?),
            pb::KeyKind::Index => Some(self.vault.rotate_index(&call, repeat).await?),
            pb::KeyKind::PasswordPepper => {
                let reset = convert::opt_time("reset_time", &message.reset_time)?;
                Some(self.vault.rotate_pepper(&call, reset, repeat).await?)
            }
            pb::KeyKind::AccessKeyPepper => {
                let revoke = convert::opt_time("revoke_time", &message.revoke_time)?;
                Some(self.vault.rotate_own_secret(&call, OwnSecret::AccessKeyPepper, revoke, repeat).await?)
            }
            pb::KeyKind::PageToken => {
                Some(self.vault.rotate_own_secret(&call, OwnSecret::PageToken, None, repeat).await?)
            }
            _ => Some(self.vault.rotate_root(&call, repeat).await?),
        };
        let operation = operation.map_or(String::new(), |operation| operation.id.to_string());
        Ok(Response::new(pb::RotateKeysResponse { operation }))
    }

    async fn list_rotations(&self, request: Request<pb::ListRotationsRequest>) -> Answer<pb::ListRotationsResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let limit = convert::page_size(std::mem::take(&mut message.page_size))?;
        let token = std::mem::take(&mut message.page_token);
        let pages = Pages::new(&call, "ListRotations", &message);
        let after = operation_position(&pages, &token)?;
        let page = self.vault.list_rotations(&call, after, limit).await?;
        let next_page_token = page.rows.last().filter(|_| page.more).map_or(String::new(), |last| {
            pages.token(&[&last.ended.0.to_be_bytes()[..], last.operation.0.as_bytes()].concat())
        });
        let wire = |view: crate::vault::rotation::RotationView| pb::Rotation {
            operation: view.operation.to_string(),
            end_time: Some(wire_time(view.ended)),
            record: view.record.into(),
        };
        let rotations = page.rows.into_iter().map(wire).collect();
        Ok(Response::new(pb::ListRotationsResponse { rotations, next_page_token }))
    }

    async fn respond_to_compromise(
        &self,
        request: Request<pb::RespondToCompromiseRequest>,
    ) -> Answer<pb::RespondToCompromiseResponse> {
        let call = self.enter(&request, Scope::NamedOrVault(&request.get_ref().tenant)).await?;
        let mut message = request.into_inner();
        let since = convert::opt_time("since", &message.since)?;
        let leaked = leaked(&mut message)?;
        let answered = self.vault.answer_compromise(&call, leaked, since, message.validate_only).await?;
        let archives = match answered.archives {
            true => self.archives_since(&call, since).await?,
            false => Vec::new(),
        };
        let wire = |step: &Step| pb::CompromiseStep {
            step: step.what.clone(),
            operation: step.operation.map_or(String::new(), |id| id.to_string()),
            tenant: step.tenant.as_ref().map_or(String::new(), |name| name.to_string()),
            by_hand: step.by_hand,
        };
        Ok(Response::new(pb::RespondToCompromiseResponse {
            steps: answered.steps.iter().map(wire).collect(),
            subjects_read: answered.access.subjects,
            calls: answered.access.reads,
            complete: answered.access.complete,
            cannot_undo: answered.cannot_undo,
            recipients: answered.recipients,
            archives,
        }))
    }

    async fn get_seal_status(&self, request: Request<pb::GetSealStatusRequest>) -> Answer<pb::GetSealStatusResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let keeper = self.vault.keeper();
        let (kind, assurance) = wire_keeper(&**keeper);
        let replica = |replica: &crate::keyring::keeper::ReplicaStatus| pb::KeeperReplica {
            name: replica.place.clone(),
            available: replica.state == ReplicaState::Active,
            reason: match &replica.state {
                ReplicaState::Away { reason } => reason.clone(),
                ReplicaState::Active | ReplicaState::Retired => String::new(),
            },
        };
        let tenants = self.vault.list_tenants(&call).await?;
        let refused = tenants.iter().filter(|view| {
            !matches!(wire_state(view), pb::TenantState::Active | pb::TenantState::Erasing | pb::TenantState::Erased)
        });
        let refused =
            refused.map(|view| pb::RefusedTenant { tenant: view.name.to_string(), state: wire_state(view) as i32 });
        Ok(Response::new(pb::GetSealStatusResponse {
            sealed: self.vault.sealed(),
            root_provider: self.vault.root_provider().into(),
            keeper: kind as i32,
            assurance: assurance as i32,
            replicas: keeper.replicas().iter().map(replica).collect(),
            covered: false,
            refused: refused.collect(),
        }))
    }
}
