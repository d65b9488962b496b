//! All services of the vault behind one set of routes.

use std::sync::Arc;

use tonic::service::Routes;

use crate::grpc::direct::Services;
use crate::grpc::identity::Api;
use crate::grpc::limits::{MAX_DECODE_BYTES, MAX_ENCODE_BYTES};
use crate::grpc::pb;
use crate::recovery::backups::Backups;
use crate::vault::Vault;

/// The services over a vault, whose own access keys identify the callers. Health and reflection are added by the server.
pub fn routes(vault: Arc<Vault>, backups: Option<Arc<Backups>>) -> Services {
    routes_of(Arc::new(Api { keys: vault.clone(), vault, backups }))
}

macro_rules! services {
    ($($module:ident :: $server:ident,)+) => {
        /// The same over an API with an authenticator of its own.
        pub fn routes_of(api: Arc<Api>) -> Services {
            let mut routes = Routes::default();
            $(
                let service = pb::$module::$server::from_arc(api.clone())
                    .max_decoding_message_size(MAX_DECODE_BYTES)
                    .max_encoding_message_size(MAX_ENCODE_BYTES);
                routes = routes.add_service(service);
            )+
            Services::new(routes, api)
        }

        /// Full names of the services.
        pub const NAMES: &[&str] = &[$(<pb::$module::$server<Api> as tonic::server::NamedService>::NAME,)+];
    };
}

services! {
    record_service_server::RecordServiceServer,
    subject_service_server::SubjectServiceServer,
    erasure_service_server::ErasureServiceServer,
    access_service_server::AccessServiceServer,
    policy_service_server::PolicyServiceServer,
    tenant_service_server::TenantServiceServer,
    audit_service_server::AuditServiceServer,
    operation_service_server::OperationServiceServer,
    key_service_server::KeyServiceServer,
    credential_service_server::CredentialServiceServer,
    backup_service_server::BackupServiceServer,
    keeper_service_server::KeeperServiceServer,
    rights_service_server::RightsServiceServer,
    evidence_service_server::EvidenceServiceServer,
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use std::collections::BTreeSet;

    #[test]
    fn every_service_of_the_api_is_routed() {
        let set = prost_types::FileDescriptorSet::decode(pb::DESCRIPTOR_SET).unwrap();
        let described: BTreeSet<String> = set
            .file
            .iter()
            .flat_map(|file| file.service.iter().map(move |s| format!("{}.{}", file.package(), s.name())))
            .collect();
        let routed: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(routed, described);
    }
}
