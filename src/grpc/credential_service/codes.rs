//! Codes and TOTP on the wire.

use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::verdict::wire_verdict;
use super::{Answer, passwords};
use crate::auth::Alphabet;
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::{pb, words};
use crate::vault::credentials::code::{NewCode, RECOVERY};
use crate::vault::credentials::recovery_code::USUAL_CODES;

/// Longest text of a code, with room for blanks and hyphens.
const MAX_CODE: usize = 256;

/// 0: as the policy says.
fn wish(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn alphabet(number: i32) -> Result<Option<Alphabet>, Bad> {
    let alphabet: Option<pb::CodeAlphabet> = convert::opt_choice("alphabet", number)?;
    Ok(alphabet.map(|alphabet| match alphabet {
        pb::CodeAlphabet::Letters => Alphabet::Letters,
        pb::CodeAlphabet::Digits | pb::CodeAlphabet::Unspecified => Alphabet::Digits,
    }))
}

/// What a user typed, and where: too long is refused before anything is looked up.
fn typed(text: String, source: &[u8]) -> Result<Zeroizing<String>, Status> {
    let text = Zeroizing::new(text);
    if text.len() > MAX_CODE {
        return Err(Bad::rule("text", "is longer than allowed").into());
    }
    passwords::source(source)?;
    Ok(text)
}

fn wire_text(mut text: Zeroizing<String>) -> String {
    std::mem::take(&mut *text)
}

impl Api {
    pub(super) async fn issue_code_call(
        &self,
        request: Request<pb::IssueCodeRequest>,
    ) -> Answer<pb::IssueCodeResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "IssueCode", &repeat_id, &message)?;
        let new = NewCode {
            used_for: convert::name("use", &message.r#use)?,
            length: wish(message.length),
            alphabet: alphabet(message.alphabet)?,
            life_s: wish(message.life_seconds),
            tries: wish(message.tries),
        };
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let issued = self.vault.issue_code(&call, &context, &key, new, repeat).await?;
        Ok(Response::new(pb::IssueCodeResponse {
            text: issued.text.map_or(String::new(), wire_text),
            expire_time: Some(wire_time(issued.expires)),
        }))
    }

    pub(super) async fn verify_code_call(
        &self,
        request: Request<pb::VerifyCodeRequest>,
    ) -> Answer<pb::VerifyCodeResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let text = typed(message.text, &message.source)?;
        let used_for = convert::name("use", &message.r#use)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let (verdict, left_count) = match used_for.as_str() {
            RECOVERY => self.vault.verify_recovery_code(&call, &context, &key, &text).await?,
            _ => (self.vault.verify_code(&call, &context, &key, &used_for, &text).await?, 0),
        };
        let (verdict, detail) = wire_verdict(verdict, self.vault.sees_why(&call));
        Ok(Response::new(pb::VerifyCodeResponse { verdict, left_count, detail }))
    }

    pub(super) async fn issue_recovery_codes_call(
        &self,
        request: Request<pb::IssueRecoveryCodesRequest>,
    ) -> Answer<pb::IssueRecoveryCodesResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "IssueRecoveryCodes", &repeat_id, &message)?;
        let count = wish(message.count).unwrap_or(USUAL_CODES);
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let texts = self.vault.issue_recovery_codes(&call, &context, &key, count, repeat).await?;
        let texts = texts.into_iter().map(wire_text).collect();
        Ok(Response::new(pb::IssueRecoveryCodesResponse { texts }))
    }

    pub(super) async fn enrol_totp_call(
        &self,
        request: Request<pb::EnrolTotpRequest>,
    ) -> Answer<pb::EnrolTotpResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let account = Zeroizing::new(message.account);
        convert::opt_text("issuer", &message.issuer, 64)?;
        convert::opt_text("account", &account, 128)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let made = self.vault.enrol_totp(&call, &context, &key, &message.issuer, &account).await?;
        Ok(Response::new(pb::EnrolTotpResponse { secret: wire_text(made.secret), uri: wire_text(made.uri) }))
    }

    pub(super) async fn confirm_totp_call(
        &self,
        request: Request<pb::ConfirmTotpRequest>,
    ) -> Answer<pb::ConfirmTotpResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let text = typed(message.text, &[])?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let verdict = self.vault.confirm_totp(&call, &context, &key, &text).await?;
        let (verdict, detail) = wire_verdict(verdict, self.vault.sees_why(&call));
        Ok(Response::new(pb::ConfirmTotpResponse { verdict, detail }))
    }

    pub(super) async fn verify_totp_call(
        &self,
        request: Request<pb::VerifyTotpRequest>,
    ) -> Answer<pb::VerifyTotpResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let text = typed(message.text, &message.source)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let verdict = self.vault.verify_totp(&call, &context, &key, &text).await?;
        let (verdict, detail) = wire_verdict(verdict, self.vault.sees_why(&call));
        Ok(Response::new(pb::VerifyTotpResponse { verdict, detail }))
    }

    pub(super) async fn remove_totp_call(
        &self,
        request: Request<pb::RemoveTotpRequest>,
    ) -> Answer<pb::RemoveTotpResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "RemoveTotp", &repeat_id, &message)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let removed = self.vault.remove_totp(&call, &context, &key, repeat).await?;
        Ok(Response::new(pb::RemoveTotpResponse { removed }))
    }
}
