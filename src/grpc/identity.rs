//! Who calls. Every method of every service begins with [`Api::enter`]: access key and connection give the principal,
//! the principal (and, for operators, the request's `tenant`) gives the tenant, and both give the vault's [`Call`].

use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use crate::auth::{Kind, Principal};
use crate::clock::Timestamp;
use crate::grpc::call::{CallInfo, PeerIdentity};
use crate::grpc::convert;
use crate::grpc::reason::Reason;
use crate::grpc::status::{bad_field, busy, credential_invalid, denied, internal, not_found, retry_later, status};
use crate::ids::{Name, TenantNo};
use crate::recovery::backups::Backups;
use crate::vault::tenant::Tenant;
use crate::vault::{Call, Vault, VaultError};

/// Why an access key does not open anything.
#[derive(Debug)]
pub enum AuthError {
    /// Malformed, unknown, wrong, revoked or expired; which of these is not told.
    Refused,
    /// It is bound to a client certificate that this connection did not present.
    Certificate,
    /// Too many first uses of keys are being checked.
    Busy { retry: Duration },
    /// The vault could not look it up.
    Failed(VaultError),
}

/// Turns the text of an access key into whose it is and what it may do.
#[tonic::async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The answer for a key that was used lately, without waiting; `None`: ask [`Authenticator::authenticate`].
    fn known(&self, key: &str, peer: &PeerIdentity, now: Timestamp) -> Option<Result<Arc<Principal>, AuthError>>;

    /// The principal of a key, on that connection, at that time of the machine. A key that was revoked before this
    /// began is refused.
    async fn authenticate(&self, key: &str, peer: &PeerIdentity, now: Timestamp) -> Result<Arc<Principal>, AuthError>;
}

/// Which tenant a method is about.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// The key's own; there is nothing here for operators, who see no values.
    Tenant,
    /// The key's own; for an operator that is the vault itself.
    Own,
    /// Operators only: the vault itself.
    Vault,
    /// The request's `tenant`: operators name one, tenants' keys leave it empty.
    Named(&'a str),
    /// The same, and an operator who names none means the vault itself.
    NamedOrVault(&'a str),
}

/// The API: what all services share. One type implements every service's trait, a file each.
#[derive(Clone)]
pub struct Api {
    pub(crate) vault: Arc<Vault>,
    pub(crate) keys: Arc<dyn Authenticator>,
    /// `None` where the server makes no archives.
    pub(crate) backups: Option<Arc<Backups>>,
}

const SEALED: &str = "the root key's provider is away for too long";

impl Api {
    /// Identifies the caller and the tenant of a call.
    pub(crate) async fn enter<T>(&self, request: &Request<T>, scope: Scope<'_>) -> Result<Call, Status> {
        let info = request.extensions().get::<CallInfo>().ok_or_else(internal)?;
        let key = bearer(request.metadata()).ok_or_else(credential_invalid)?;
        let now = self.vault.now();
        let principal = match self.keys.known(key, &info.peer, now) {
            Some(answer) => answer?,
            None => self.keys.authenticate(key, &info.peer, now).await?,
        };
        if principal.kind == Kind::Tenant && self.vault.sealed() {
            return Err(retry_later(Code::Unavailable, Reason::Sealed, SEALED, Duration::from_secs(60), &[]));
        }
        let tenant = self.tenant_of(&principal, scope)?;
        Ok(self.vault.call(principal, tenant))
    }

    /// What a stream keeps of its caller, to look again later.
    pub(crate) fn credential<T>(&self, request: &Request<T>) -> Result<Credential, Status> {
        let info = request.extensions().get::<CallInfo>().ok_or_else(internal)?;
        let key = bearer(request.metadata()).ok_or_else(credential_invalid)?;
        Ok(Credential { key: Zeroizing::new(key.to_owned()), peer: info.peer.clone() })
    }

    /// A stream outlives the moment it began in: a key that was revoked meanwhile ends it.
    pub(crate) async fn still_valid(&self, credential: &Credential) -> Result<(), Status> {
        self.keys.authenticate(&credential.key, &credential.peer, self.vault.now()).await?;
        Ok(())
    }

    fn tenant_of(&self, who: &Principal, scope: Scope<'_>) -> Result<Arc<Tenant>, Status> {
        let no = match (who.kind, scope) {
            (Kind::Tenant, Scope::Vault) => return Err(denied(Reason::NotPermitted, "operator.only")),
            (Kind::Tenant, Scope::Tenant | Scope::Own) => who.tenant,
            (Kind::Tenant, Scope::Named(name) | Scope::NamedOrVault(name)) => {
                let own = self.vault.tenant(who.tenant)?;
                // Another tenant's name and a name that nobody has are one answer.
                return if name.is_empty() || name == own.name.as_str() { Ok(own) } else { Err(not_found()) };
            }
            (Kind::Operator, Scope::Tenant) => return Err(denied(Reason::NotPermitted, "operator.no_values")),
            (Kind::Operator, Scope::Own | Scope::Vault | Scope::NamedOrVault("")) => TenantNo::VAULT,
            (Kind::Operator, Scope::Named("")) => {
                return Err(bad_field("tenant", "is required from operator keys"));
            }
            (Kind::Operator, Scope::Named(name) | Scope::NamedOrVault(name)) => {
                let name: Name = convert::name("tenant", name)?;
                self.vault.tenant_no(&name).filter(|no| *no != TenantNo::VAULT).ok_or_else(not_found)?
            }
        };
        Ok(self.vault.tenant(no)?)
    }
}

/// A caller's key and connection.
pub(crate) struct Credential {
    key: Zeroizing<String>,
    peer: Arc<PeerIdentity>,
}

/// The access key of `authorization: Bearer KEY`.
fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let text = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, key) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key)
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Status {
        match error {
            AuthError::Refused => credential_invalid(),
            AuthError::Certificate => status(
                tonic::Code::Unauthenticated,
                Reason::CertificateMismatch,
                "the access key is bound to a client certificate that was not presented",
                &[],
            ),
            AuthError::Busy { retry } => busy("too many access keys are being checked; nothing was done", retry),
            AuthError::Failed(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_key_is_taken() {
        let of = |text: &str| {
            let mut map = MetadataMap::new();
            map.insert("authorization", text.parse().unwrap());
            bearer(&map).map(str::to_owned)
        };
        assert_eq!(of("Bearer pv_live_x"), Some("pv_live_x".into()));
        assert_eq!(of("bearer pv_live_x"), Some("pv_live_x".into()));
        assert_eq!(of("Basic abc"), None);
        assert_eq!(of("pv_live_x"), None);
        assert_eq!(bearer(&MetadataMap::new()), None);
    }
}
