//! Passwords on the wire.

use tonic::Request;

use super::Answer;
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::status::not_supported;

impl Api {
    pub(super) async fn set_password_call(
        &self,
        request: Request<pb::SetPasswordRequest>,
    ) -> Answer<pb::SetPasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("SetPassword"))
    }

    pub(super) async fn verify_password_call(
        &self,
        request: Request<pb::VerifyPasswordRequest>,
    ) -> Answer<pb::VerifyPasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("VerifyPassword"))
    }

    pub(super) async fn change_password_call(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Answer<pb::ChangePasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("ChangePassword"))
    }

    pub(super) async fn remove_password_call(
        &self,
        request: Request<pb::RemovePasswordRequest>,
    ) -> Answer<pb::RemovePasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("RemovePassword"))
    }

    pub(super) async fn unlock_password_call(
        &self,
        request: Request<pb::UnlockPasswordRequest>,
    ) -> Answer<pb::UnlockPasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("UnlockPassword"))
    }

    pub(super) async fn import_password_call(
        &self,
        request: Request<pb::ImportPasswordRequest>,
    ) -> Answer<pb::ImportPasswordResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("ImportPassword"))
    }

    pub(super) async fn batch_import_passwords_call(
        &self,
        request: Request<pb::BatchImportPasswordsRequest>,
    ) -> Answer<pb::BatchImportPasswordsResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("BatchImportPasswords"))
    }

    pub(super) async fn report_credentials_call(
        &self,
        request: Request<pb::ReportCredentialsRequest>,
    ) -> Answer<pb::ReportCredentialsResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("ReportCredentials"))
    }
}
