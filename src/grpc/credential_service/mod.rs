//! Passwords, API keys and codes of the tenant's own users: a file for each, which this service hands on to.

mod api_keys;
mod codes;
mod passwords;
mod verdict;

use tonic::{Request, Response, Status};

use crate::grpc::identity::Api;
use crate::grpc::pb;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::credential_service_server::CredentialService for Api {
    async fn set_password(&self, request: Request<pb::SetPasswordRequest>) -> Answer<pb::SetPasswordResponse> {
        self.set_password_call(request).await
    }
    async fn verify_password(&self, request: Request<pb::VerifyPasswordRequest>) -> Answer<pb::VerifyPasswordResponse> {
        self.verify_password_call(request).await
    }
    async fn change_password(&self, request: Request<pb::ChangePasswordRequest>) -> Answer<pb::ChangePasswordResponse> {
        self.change_password_call(request).await
    }
    async fn remove_password(&self, request: Request<pb::RemovePasswordRequest>) -> Answer<pb::RemovePasswordResponse> {
        self.remove_password_call(request).await
    }
    async fn unlock_password(&self, request: Request<pb::UnlockPasswordRequest>) -> Answer<pb::UnlockPasswordResponse> {
        self.unlock_password_call(request).await
    }
    async fn import_password(&self, request: Request<pb::ImportPasswordRequest>) -> Answer<pb::ImportPasswordResponse> {
        self.import_password_call(request).await
    }
    async fn batch_import_passwords(
        &self,
        request: Request<pb::BatchImportPasswordsRequest>,
    ) -> Answer<pb::BatchImportPasswordsResponse> {
        self.batch_import_passwords_call(request).await
    }
    async fn report_credentials(
        &self,
        request: Request<pb::ReportCredentialsRequest>,
    ) -> Answer<pb::ReportCredentialsResponse> {
        self.report_credentials_call(request).await
    }
    async fn issue_api_key(&self, request: Request<pb::IssueApiKeyRequest>) -> Answer<pb::IssueApiKeyResponse> {
        self.issue_api_key_call(request).await
    }
    async fn verify_api_key(&self, request: Request<pb::VerifyApiKeyRequest>) -> Answer<pb::VerifyApiKeyResponse> {
        self.check_api_key(request).await.map(Response::new)
    }
    async fn rotate_api_key(&self, request: Request<pb::RotateApiKeyRequest>) -> Answer<pb::RotateApiKeyResponse> {
        self.rotate_api_key_call(request).await
    }
    async fn revoke_api_key(&self, request: Request<pb::RevokeApiKeyRequest>) -> Answer<pb::RevokeApiKeyResponse> {
        self.revoke_api_key_call(request).await
    }
    async fn list_api_keys(&self, request: Request<pb::ListApiKeysRequest>) -> Answer<pb::ListApiKeysResponse> {
        self.list_api_keys_call(request).await
    }
    async fn issue_code(&self, request: Request<pb::IssueCodeRequest>) -> Answer<pb::IssueCodeResponse> {
        self.issue_code_call(request).await
    }
    async fn verify_code(&self, request: Request<pb::VerifyCodeRequest>) -> Answer<pb::VerifyCodeResponse> {
        self.verify_code_call(request).await
    }
    async fn issue_recovery_codes(
        &self,
        request: Request<pb::IssueRecoveryCodesRequest>,
    ) -> Answer<pb::IssueRecoveryCodesResponse> {
        self.issue_recovery_codes_call(request).await
    }
    async fn enrol_totp(&self, request: Request<pb::EnrolTotpRequest>) -> Answer<pb::EnrolTotpResponse> {
        self.enrol_totp_call(request).await
    }
    async fn confirm_totp(&self, request: Request<pb::ConfirmTotpRequest>) -> Answer<pb::ConfirmTotpResponse> {
        self.confirm_totp_call(request).await
    }
    async fn verify_totp(&self, request: Request<pb::VerifyTotpRequest>) -> Answer<pb::VerifyTotpResponse> {
        self.verify_totp_call(request).await
    }
    async fn remove_totp(&self, request: Request<pb::RemoveTotpRequest>) -> Answer<pb::RemoveTotpResponse> {
        self.remove_totp_call(request).await
    }
}
