//! Keys as objects to look after; no call ever shows one.

use tonic::{Request, Response, Status};

use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::tenant_service::wire_state;
use crate::grpc::words;
use crate::keyring::keeper::ReplicaState;
use crate::vault::keys::{KeyInfo, KeyKind};

type Answer<T> = Result<Response<T>, Status>;

fn wire_kind(kind: KeyKind) -> pb::KeyKind {
    match kind {
        KeyKind::TenantRoot => pb::KeyKind::TenantRoot,
        KeyKind::Index => pb::KeyKind::Index,
        KeyKind::Digest => pb::KeyKind::Digest,
        KeyKind::Data => pb::KeyKind::Data,
        KeyKind::Expiry => pb::KeyKind::Expiry,
        KeyKind::PasswordPepper => pb::KeyKind::PasswordPepper,
        KeyKind::Pepper => pb::KeyKind::Pepper,
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
        seal_count: 0,
        key_count: key.count,
        left_count: key.left,
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
        let reset = convert::opt_time("reset_time", &message.reset_time)?;
        if reset.is_some() && kind != pb::KeyKind::PasswordPepper {
            return Err(Bad::rule("reset_time", "is for PASSWORD_PEPPER only").into());
        }
        // The vault itself has nothing to search, so no index secret.
        let has_index = call.tenant.no != crate::ids::TenantNo::VAULT;
        if !(kind == pb::KeyKind::TenantRoot
            || matches!(kind, pb::KeyKind::Index | pb::KeyKind::PasswordPepper) && has_index)
        {
            return Err(Bad::not_supported("kind").into());
        }
        if message.validate_only {
            self.vault.may_rotate(&call)?;
            return Ok(Response::new(pb::RotateKeysResponse { operation: String::new() }));
        }
        let operation = match kind {
            pb::KeyKind::Index => self.vault.rotate_index(&call, repeat).await?,
            pb::KeyKind::PasswordPepper => self.vault.rotate_pepper(&call, reset, repeat).await?,
            _ => self.vault.rotate_root(&call, repeat).await?,
        };
        Ok(Response::new(pb::RotateKeysResponse { operation: operation.id.to_string() }))
    }

    async fn get_seal_status(&self, request: Request<pb::GetSealStatusRequest>) -> Answer<pb::GetSealStatusResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let keeper = self.vault.keeper();
        let (kind, assurance) = wire_keeper(&**keeper);
        let replica = |replica: &crate::keyring::keeper::ReplicaStatus| pb::KeeperReplica {
            name: replica.place.clone(),
            available: replica.state == ReplicaState::Active,
        };
        let tenants = self.vault.list_tenants(&call).await?;
        let refused = tenants.iter().filter(|view| {
            !matches!(wire_state(view), pb::TenantState::Active | pb::TenantState::Erasing | pb::TenantState::Erased)
        });
        let refused =
            refused.map(|view| pb::RefusedTenant { tenant: view.name.to_string(), state: wire_state(view) as i32 });
        Ok(Response::new(pb::GetSealStatusResponse {
            sealed: false,
            root_provider: self.vault.root_provider().into(),
            keeper: kind as i32,
            assurance: assurance as i32,
            replicas: keeper.replicas().iter().map(replica).collect(),
            covered: false,
            refused: refused.collect(),
        }))
    }
}
