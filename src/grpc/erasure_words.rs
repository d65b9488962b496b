//! Erasures and holds as callers see them.

use tonic::Status;

use crate::access::Verb;
use crate::grpc::convert::wire_time;
use crate::grpc::identity::Api;
use crate::grpc::key_service::wire_keeper;
use crate::grpc::pb;
use crate::keyring::keeper::ReplicaState;
use crate::receipt::Receipt;
use crate::vault::Call;
use crate::vault::erase::Erasure;
use crate::vault::erasures::{ClassPreview, Preview};
use crate::vault::hold::Hold;
use crate::vault::operation::{ErasedPart, HeldPart, Operation, OperationKind, OperationStatus};

/// How far an erasure is, for callers.
pub(super) fn wire_status(operation: &Operation) -> pb::ErasureStatus {
    match operation.status {
        OperationStatus::Scheduled => pb::ErasureStatus::Scheduled,
        OperationStatus::Accepted
        | OperationStatus::Committed
        | OperationStatus::Running
        | OperationStatus::Paused
        | OperationStatus::Failed => pb::ErasureStatus::Pending,
        OperationStatus::Done => pb::ErasureStatus::Erased,
        OperationStatus::PartlyHeld if operation.erased_at.is_none() => pb::ErasureStatus::Held,
        OperationStatus::PartlyHeld => pb::ErasureStatus::PartlyHeld,
        OperationStatus::Cancelled => pb::ErasureStatus::Cancelled,
    }
}

pub(super) fn wire_kind(operation: &Operation) -> pb::ErasureKind {
    match operation.kind {
        OperationKind::EraseSubject | OperationKind::EraseBatch => pb::ErasureKind::Subject,
        OperationKind::EraseClasses if operation.classes.len() == 1 => pb::ErasureKind::Class,
        OperationKind::EraseClasses => pb::ErasureKind::Subject,
        OperationKind::EraseFields => pb::ErasureKind::Fields,
        OperationKind::EraseItems => pb::ErasureKind::Items,
        OperationKind::EraseFormer => pb::ErasureKind::Former,
        OperationKind::EraseGroup => pb::ErasureKind::Group,
        OperationKind::EraseTenant => pb::ErasureKind::Tenant,
        OperationKind::RotateIndex
        | OperationKind::RotateRoot
        | OperationKind::RotatePepper
        | OperationKind::RotateAccessPepper
        | OperationKind::RotatePageToken
        | OperationKind::RotateSigning
        | OperationKind::RotateKek
        | OperationKind::RekeyTree
        | OperationKind::RotateData
        | OperationKind::Reseal
        | OperationKind::Backup => pb::ErasureKind::Unspecified,
    }
}

pub(super) fn wire_held(held: &HeldPart, with_hold: bool) -> pb::HeldClass {
    pb::HeldClass {
        class_id: held.class.0.into(),
        legal_basis: held.basis.clone(),
        end_time: held.until.map(wire_time),
        hold: held.hold.filter(|_| with_hold).map_or(String::new(), |hold| hold.to_string()),
        purpose_id: held.purpose.0.into(),
    }
}

pub(super) fn hold_state(hold: &Hold, call: &Call) -> pb::HoldState {
    match (hold.released, hold.active(call.now)) {
        (Some(_), _) => pb::HoldState::Released,
        (None, true) => pb::HoldState::Active,
        (None, false) => pb::HoldState::Ended,
    }
}

impl Api {
    pub(super) fn wire_operation(&self, call: &Call, operation: &Operation) -> pb::Erasure {
        let with_hold = call.permit(Verb::Hold).is_ok();
        let keeper = self.vault.keeper();
        let (kind, assurance) = wire_keeper(&**keeper);
        let hex = |id: &[u8; 16]| data_encoding::HEXLOWER.encode(id);
        let active = keeper.replicas().iter().filter(|r| r.state == ReplicaState::Active).count();
        let guarantee = pb::KeeperGuarantee {
            kind: kind as i32,
            assurance: assurance as i32,
            replicas: active as u32,
            retired_replicas: keeper.retired().iter().map(|(id, _)| hex(id)).collect(),
        };
        let erased = |part: &ErasedPart| pb::ClassOutcome {
            class_id: part.class.0.into(),
            data_key_version: part.through.0,
            data_keys_issued: 0,
        };
        let several = matches!(operation.kind, OperationKind::EraseGroup | OperationKind::EraseTenant);
        pb::Erasure {
            erasure: operation.id.to_string(),
            status: wire_status(operation) as i32,
            erased: operation.erased.iter().map(erased).collect(),
            held: operation.held.iter().map(|held| wire_held(held, with_hold)).collect(),
            erase_time: operation.erased_at.map(wire_time),
            recipient_ids: operation.recipients.iter().map(|no| no.0.into()).collect(),
            guarantee: operation.erased_at.is_some().then_some(guarantee),
            search_expires_time: operation.search_expires_at.map(wire_time),
            kind: wire_kind(operation) as i32,
            create_time: Some(wire_time(operation.created)),
            schedule_time: operation.due.filter(|_| operation.status == OperationStatus::Scheduled).map(wire_time),
            subject_count: if several { operation.total } else { 1 },
            done_count: if several { operation.done } else { operation.erased_at.is_some().into() },
            ..Default::default()
        }
    }

    pub(super) fn wire_erasure(&self, call: &Call, erasure: Erasure) -> pb::Erasure {
        let mut wire = self.wire_operation(call, &erasure.operation);
        if let Some(receipt) = erasure.receipt {
            // Our own receipt: read for what only it says.
            if let Ok(read) = Receipt::verify(&receipt, &self.vault.receipt_keys()) {
                wire.archives_expire_time = read.receipt.archives_expire_at.map(wire_time);
            }
            wire.receipt = receipt.into();
        }
        wire.commitment_salt = erasure.salt.map_or(Default::default(), |salt| salt.to_vec().into());
        wire
    }

    /// The same of an erasure below a class; one that was only checked has no name and no state.
    pub(super) fn wire_part(&self, call: &Call, erasure: Erasure, only_checked: bool) -> pb::Erasure {
        let wire = self.wire_erasure(call, erasure);
        match only_checked {
            true => pb::Erasure { erasure: String::new(), status: 0, create_time: None, ..wire },
            false => wire,
        }
    }

    pub(super) fn wire_preview(&self, call: &Call, preview: &Preview) -> pb::Erasure {
        let with_hold = call.permit(Verb::Hold).is_ok();
        let outcome = |class: &ClassPreview| pb::ClassOutcome {
            class_id: class.class.0.into(),
            data_key_version: 0,
            data_keys_issued: u32::try_from(class.data_keys_issued).unwrap_or(u32::MAX),
        };
        pb::Erasure {
            erased: preview.erased.iter().map(outcome).collect(),
            held: preview.held.iter().map(|held| wire_held(held, with_hold)).collect(),
            search_expires_time: preview.search_expires_at.map(wire_time),
            subject_count: preview.subjects,
            ..Default::default()
        }
    }

    pub(super) async fn wire_hold(&self, call: &Call, hold: &Hold) -> Result<pb::Hold, Status> {
        let subject = match hold.subject {
            Some(uid) => self.vault.id_of(call, uid).await?.map_or(String::new(), |id| id.as_str().to_owned()),
            None => String::new(),
        };
        let group = match hold.group {
            Some(no) if hold.subject.is_none() => self.vault.group_by_no(call, no).await?.id.as_str().to_owned(),
            _ => String::new(),
        };
        Ok(pb::Hold {
            hold: hold.id.to_string(),
            subject,
            group,
            class_ids: hold.classes.iter().map(|class| class.0.into()).collect(),
            legal_basis: hold.basis.clone(),
            purpose_id: hold.purpose.0.into(),
            state: hold_state(hold, call) as i32,
            create_time: Some(wire_time(hold.placed)),
            end_time: hold.until.map(wire_time),
            release_time: hold.released.map(wire_time),
        })
    }
}
