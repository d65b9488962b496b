//! Passwords on the wire.

use std::mem::take;

use bytes::Bytes;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::Answer;
use super::verdict::{wire_verdict, wire_wait};
use crate::grpc::convert::{self, Bad, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::vault_status::limit_exceeded;
use crate::grpc::words;
use crate::vault::credentials::import::{BatchOptions, ImportRow, MAX_ROWS};
use crate::vault::credentials::password::{MAX_SOURCE, PasswordText};
use crate::vault::{VaultError, Violation};

fn password(path: &str, bytes: Bytes) -> Result<PasswordText, Status> {
    // The message's own buffer goes with the message; this copy is wiped.
    Ok(PasswordText::parse(path, Zeroizing::new(bytes.to_vec()))?)
}

/// Where a user is: at most 256 bytes of whatever the tenant takes for one place.
pub(super) fn source(bytes: &[u8]) -> Result<&[u8], Status> {
    match bytes.len() <= MAX_SOURCE {
        true => Ok(bytes),
        false => Err(Bad::rule("source", "must not be longer than 256 bytes").into()),
    }
}

fn hash_text(hash: &str) -> Result<(), Violation> {
    match hash {
        "" => Err(Violation::new("hash", "is required")),
        long if long.len() > 1_024 => Err(Violation::new("hash", "must not be longer than 1,024 bytes")),
        _ => Ok(()),
    }
}

/// A status as one element of a batch has it.
fn item_error(error: VaultError) -> pb::ItemError {
    convert::item_error(&Status::from(error))
}

impl Api {
    pub(super) async fn set_password_call(
        &self,
        request: Request<pb::SetPasswordRequest>,
    ) -> Answer<pb::SetPasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = take(&mut message.request_id);
        // A fingerprint of a password would serve to guess it.
        let text = password("password", take(&mut message.password))?;
        let repeat = words::request(&call, "SetPassword", &repeat_id, &message)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let (must_change, check) = (message.must_change, message.validate_only);
        let at = self.vault.set_password(&call, &context, &key, &text, must_change, repeat, check).await?;
        Ok(Response::new(pb::SetPasswordResponse { commit_time: Some(wire_time(at)) }))
    }

    pub(super) async fn verify_password_call(
        &self,
        request: Request<pb::VerifyPasswordRequest>,
    ) -> Answer<pb::VerifyPasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let text = password("password", message.password)?;
        let (context, key, from) =
            (words::context(message.context)?, words::key(message.key)?, source(&message.source)?);
        let checked = self.vault.verify_password(&call, &context, &key, &text, from).await?;
        let sees_why = self.vault.sees_why(&call);
        let (verdict, detail) = wire_verdict(checked.verdict, sees_why);
        let retry_after_s = wire_wait(checked.verdict, sees_why);
        Ok(Response::new(pb::VerifyPasswordResponse {
            verdict,
            must_change: checked.must_change,
            retry_after_s,
            detail,
        }))
    }

    pub(super) async fn change_password_call(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Answer<pb::ChangePasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let old = password("password", message.password)?;
        let new = password("new_password", message.new_password)?;
        let (context, key, from) =
            (words::context(message.context)?, words::key(message.key)?, source(&message.source)?);
        let changed = self.vault.change_password(&call, &context, &key, &old, &new, from).await?;
        let sees_why = self.vault.sees_why(&call);
        let (verdict, detail) = wire_verdict(changed.verdict, sees_why);
        let retry_after_s = wire_wait(changed.verdict, sees_why);
        let commit_time = changed.at.map(wire_time);
        Ok(Response::new(pb::ChangePasswordResponse { verdict, commit_time, retry_after_s, detail }))
    }

    pub(super) async fn remove_password_call(
        &self,
        request: Request<pb::RemovePasswordRequest>,
    ) -> Answer<pb::RemovePasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = take(&mut message.request_id);
        let repeat = words::request(&call, "RemovePassword", &repeat_id, &message)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let removed = self.vault.remove_password(&call, &context, &key, repeat).await?;
        Ok(Response::new(pb::RemovePasswordResponse { removed }))
    }

    pub(super) async fn unlock_password_call(
        &self,
        request: Request<pb::UnlockPasswordRequest>,
    ) -> Answer<pb::UnlockPasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let unlocked = self.vault.unlock_password(&call, &context, &key).await?;
        Ok(Response::new(pb::UnlockPasswordResponse { unlocked }))
    }

    pub(super) async fn import_password_call(
        &self,
        request: Request<pb::ImportPasswordRequest>,
    ) -> Answer<pb::ImportPasswordResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let mut message = request.into_inner();
        let repeat_id = take(&mut message.request_id);
        let hash = Zeroizing::new(take(&mut message.hash));
        hash_text(&hash).map_err(|violation| VaultError::Invalid(vec![violation]))?;
        let repeat = words::request(&call, "ImportPassword", &repeat_id, &message)?;
        let (context, key) = (words::context(message.context)?, words::key(message.key)?);
        let (must_change, replace, check) = (message.must_change, message.replace, message.validate_only);
        let imported =
            self.vault.import_password(&call, &context, &key, &hash, must_change, replace, repeat, check).await?;
        let algorithm = imported.algorithm.to_owned();
        Ok(Response::new(pb::ImportPasswordResponse { imported: imported.imported, algorithm }))
    }

    pub(super) async fn batch_import_passwords_call(
        &self,
        request: Request<pb::BatchImportPasswordsRequest>,
    ) -> Answer<pb::BatchImportPasswordsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let message = request.into_inner();
        if message.rows.is_empty() {
            return Err(Bad::rule("rows", "must not be empty").into());
        }
        if message.rows.len() > MAX_ROWS {
            return Err(limit_exceeded("rows", MAX_ROWS));
        }
        let row = |row: pb::PasswordImport| {
            let hash = Zeroizing::new(row.hash);
            let subject = crate::ids::SubjectId::parse("subject", &row.subject)
                .map_err(|error| Violation::new("subject", error.rule))?;
            hash_text(&hash)?;
            Ok(ImportRow { subject, hash, must_change: row.must_change })
        };
        let mut rows: Vec<Result<ImportRow, Violation>> = message.rows.into_iter().map(row).collect();
        let mut seen = std::collections::HashSet::new();
        for row in &mut rows {
            if let Ok(one) = row
                && !seen.insert(one.subject.clone())
            {
                *row = Err(Violation::new("subject", "is in another row, too"));
            }
        }
        let options = BatchOptions {
            replace: message.replace,
            create_subjects: message.create_subjects,
            validate_only: message.validate_only,
        };
        let done = self.vault.import_passwords(&call, &rows, options).await?;
        let error = |(row, error): (usize, VaultError)| pb::PasswordImportError {
            row: row as u32,
            error: Some(item_error(error)),
        };
        Ok(Response::new(pb::BatchImportPasswordsResponse {
            done_count: done.done as u32,
            imported_count: done.imported as u32,
            kept_count: done.kept as u32,
            errors: done.errors.into_iter().map(error).collect(),
        }))
    }

    pub(super) async fn report_credentials_call(
        &self,
        request: Request<pb::ReportCredentialsRequest>,
    ) -> Answer<pb::ReportCredentialsResponse> {
        let call = self.enter(&request, Scope::Tenant).await?;
        let report = self.vault.report_credentials(&call).await?;
        let count = |(kept, count): (crate::vault::credentials::report::Kept, u64)| pb::CredentialCount {
            kind: kept.kind.into(),
            algorithm: kept.algorithm.into(),
            parameters: kept.parameters,
            count,
        };
        Ok(Response::new(pb::ReportCredentialsResponse {
            counts: report.counts.into_iter().map(count).collect(),
            password_count: report.passwords,
            outdated_count: report.outdated,
            must_reset_count: report.must_reset,
            report_time: Some(wire_time(report.at)),
        }))
    }
}
