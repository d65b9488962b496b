//! The keeper for operators: its replicas, a look at every slot, and giving a replica up.

use data_encoding::HEXLOWER;
use tonic::{Request, Response, Status};

use crate::clock::Timestamp;
use crate::grpc::convert::wire_time;
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::keyring::keeper::{ReplicaState, ReplicaStatus};

type Answer<T> = Result<Response<T>, Status>;

fn hex(id: &[u8; 16]) -> String {
    if *id == [0; 16] { String::new() } else { HEXLOWER.encode(id) }
}

fn wire_replica(replica: &ReplicaStatus) -> pb::Replica {
    let (state, detail) = match &replica.state {
        ReplicaState::Active => (pb::ReplicaState::Active, String::new()),
        ReplicaState::Away { reason } => (pb::ReplicaState::Away, reason.clone()),
        ReplicaState::Retired => (pb::ReplicaState::Retired, String::new()),
    };
    pb::Replica {
        index: replica.index as u32,
        replica: hex(&replica.id),
        place: replica.place.clone(),
        state: state as i32,
        detail,
    }
}

fn wire_retired(retired: Vec<([u8; 16], Timestamp)>) -> Vec<pb::RetiredReplica> {
    let one = |(id, at)| pb::RetiredReplica { replica: hex(&id), retire_time: Some(wire_time(at)) };
    retired.into_iter().map(one).collect()
}

#[tonic::async_trait]
impl pb::keeper_service_server::KeeperService for Api {
    async fn get_keeper(&self, request: Request<pb::GetKeeperRequest>) -> Answer<pb::GetKeeperResponse> {
        self.enter(&request, Scope::Vault).await?;
        let keeper = self.vault.keeper();
        Ok(Response::new(pb::GetKeeperResponse {
            kind: keeper.kind().into(),
            assurance: keeper.assurance().into(),
            replicas: keeper.replicas().iter().map(wire_replica).collect(),
            retired: wire_retired(keeper.retired()),
        }))
    }

    async fn verify_keeper(&self, request: Request<pb::VerifyKeeperRequest>) -> Answer<pb::VerifyKeeperResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let report = self.vault.verify_keeper(&call).await?;
        let tenant = |one: &crate::keyring::care::SlotsReport| pb::TenantKeys {
            tenant_no: one.tenant.0,
            state: one.state.name().into(),
            generation: one.generation.0,
            replica_count: one.holding,
            advice: one.state.advice().into(),
        };
        Ok(Response::new(pb::VerifyKeeperResponse {
            valid: report.problems.is_empty(),
            tenants: report.tenants.iter().map(tenant).collect(),
            orphan_nos: report.orphans.iter().map(|no| no.0).collect(),
            ledger_entries: report.ledger.seq,
            problems: report.problems,
        }))
    }

    async fn retire_replica(&self, request: Request<pb::RetireReplicaRequest>) -> Answer<pb::RetireReplicaResponse> {
        let call = self.enter(&request, Scope::Vault).await?;
        let message = request.into_inner();
        self.vault.retire_replica(&call, message.index as usize, &message.replica).await?;
        Ok(Response::new(pb::RetireReplicaResponse { retired: wire_retired(self.vault.keeper().retired()) }))
    }
}
