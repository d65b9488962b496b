//! Backups for operators: begin one, look at the catalogue, delete what is past its horizon.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::clock::Timestamp;
use crate::grpc::convert::{self, wire_time};
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::words;
use crate::recovery::backups::{Backups, Part};
use crate::recovery::catalogue::Archive;
use crate::vault::VaultError;

type Answer<T> = Result<Response<T>, Status>;

fn wire(archive: &Archive, now: Timestamp, horizon_days: i64) -> pb::Backup {
    let state = match &archive.manifest {
        Err(_) => pb::BackupState::Damaged,
        Ok(_) if archive.expired(now, horizon_days) => pb::BackupState::Expired,
        Ok(_) => pb::BackupState::Whole,
    };
    pb::Backup {
        backup: archive.name.clone(),
        state: state as i32,
        create_time: archive.made_at().map(wire_time),
        expire_time: archive.expires_at(horizon_days).map(wire_time),
        bytes: archive.bytes,
    }
}

impl Api {
    fn backups(&self) -> Result<&Arc<Backups>, Status> {
        Ok(self.backups.as_ref().ok_or(VaultError::WrongState("this server makes no backups"))?)
    }
}

#[tonic::async_trait]
impl pb::backup_service_server::BackupService for Api {
    async fn create_backup(&self, request: Request<pb::CreateBackupRequest>) -> Answer<pb::CreateBackupResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let mut message = request.into_inner();
        let repeat_id = std::mem::take(&mut message.request_id);
        let repeat = words::request(&call, "CreateBackup", &repeat_id, &message)?;
        let part = match message.part {
            0 => Part::Both,
            part => match convert::choice::<pb::BackupPart>("part", part)? {
                pb::BackupPart::Unspecified => Part::Both,
                pb::BackupPart::Data => Part::Data,
                pb::BackupPart::Keys => Part::Keys,
            },
        };
        let backups = self.backups()?;
        let operation = backups.start(&call, part, repeat).await?;
        Ok(Response::new(pb::CreateBackupResponse { operation: operation.id.to_string() }))
    }

    async fn list_backups(&self, request: Request<pb::ListBackupsRequest>) -> Answer<pb::ListBackupsResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let backups = self.backups()?;
        let (options, now) = (backups.options(), self.vault.now());
        let all = backups.list(&call).await?;
        Ok(Response::new(pb::ListBackupsResponse {
            backups: all.iter().map(|one| wire(one, now, options.horizon_days)).collect(),
            horizon_days: u32::try_from(options.horizon_days).unwrap_or(u32::MAX),
            directory: options.dir.display().to_string(),
        }))
    }

    async fn prune_backups(&self, request: Request<pb::PruneBackupsRequest>) -> Answer<pb::PruneBackupsResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let backups = self.backups()?;
        let gone = backups.prune(&call, request.get_ref().validate_only).await?;
        let (horizon, now) = (backups.options().horizon_days, self.vault.now());
        let backups = gone.iter().map(|one| wire(one, now, horizon)).collect();
        Ok(Response::new(pb::PruneBackupsResponse { backups }))
    }
}
