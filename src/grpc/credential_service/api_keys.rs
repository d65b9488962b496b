//! API keys on the wire.

use tonic::Request;

use super::Answer;
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::status::not_supported;

impl Api {
    pub(super) async fn issue_api_key_call(
        &self,
        request: Request<pb::IssueApiKeyRequest>,
    ) -> Answer<pb::IssueApiKeyResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("IssueApiKey"))
    }

    pub(super) async fn verify_api_key_call(
        &self,
        request: Request<pb::VerifyApiKeyRequest>,
    ) -> Answer<pb::VerifyApiKeyResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("VerifyApiKey"))
    }

    pub(super) async fn rotate_api_key_call(
        &self,
        request: Request<pb::RotateApiKeyRequest>,
    ) -> Answer<pb::RotateApiKeyResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("RotateApiKey"))
    }

    pub(super) async fn revoke_api_key_call(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Answer<pb::RevokeApiKeyResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("RevokeApiKey"))
    }

    pub(super) async fn list_api_keys_call(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Answer<pb::ListApiKeysResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("ListApiKeys"))
    }
}
