//! Codes and TOTP on the wire.

use tonic::Request;

use super::Answer;
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::status::not_supported;

impl Api {
    pub(super) async fn issue_code_call(
        &self,
        request: Request<pb::IssueCodeRequest>,
    ) -> Answer<pb::IssueCodeResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("IssueCode"))
    }

    pub(super) async fn verify_code_call(
        &self,
        request: Request<pb::VerifyCodeRequest>,
    ) -> Answer<pb::VerifyCodeResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("VerifyCode"))
    }

    pub(super) async fn issue_recovery_codes_call(
        &self,
        request: Request<pb::IssueRecoveryCodesRequest>,
    ) -> Answer<pb::IssueRecoveryCodesResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("IssueRecoveryCodes"))
    }

    pub(super) async fn enrol_totp_call(
        &self,
        request: Request<pb::EnrolTotpRequest>,
    ) -> Answer<pb::EnrolTotpResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("EnrolTotp"))
    }

    pub(super) async fn confirm_totp_call(
        &self,
        request: Request<pb::ConfirmTotpRequest>,
    ) -> Answer<pb::ConfirmTotpResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("ConfirmTotp"))
    }

    pub(super) async fn verify_totp_call(
        &self,
        request: Request<pb::VerifyTotpRequest>,
    ) -> Answer<pb::VerifyTotpResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("VerifyTotp"))
    }

    pub(super) async fn remove_totp_call(
        &self,
        request: Request<pb::RemoveTotpRequest>,
    ) -> Answer<pb::RemoveTotpResponse> {
        self.enter(&request, Scope::Tenant).await?;
        Err(not_supported("RemoveTotp"))
    }
}
