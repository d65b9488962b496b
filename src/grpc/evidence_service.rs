//! Evidence for auditors: a bundle as a stream of pieces.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::grpc::call::CallInfo;
use crate::grpc::convert;
use crate::grpc::identity::{Api, Scope};
use crate::grpc::pb;
use crate::grpc::status::internal;
use crate::grpc::vault_status::limit_exceeded;
use crate::vault::evidence::{EvidenceAsk, MAX_DRILLS, Piece, stream};
use crate::vault::report::Surroundings;

/// How many pieces until the credential is checked again.
const CHECK_EVERY: u32 = 256;

fn wire_piece(piece: Piece) -> pb::ExportEvidenceResponse {
    match piece {
        Piece::File(path) => pb::ExportEvidenceResponse { path, ..Default::default() },
        Piece::Data(data) => pb::ExportEvidenceResponse { data: data.into(), ..Default::default() },
        Piece::Manifest(manifest) => pb::ExportEvidenceResponse { manifest: manifest.into(), ..Default::default() },
    }
}

impl Api {
    /// What only the network and the folder of archives show.
    pub(crate) async fn surroundings<T>(&self, request: &Request<T>) -> Result<Surroundings, Status> {
        let tls = request.extensions().get::<CallInfo>().and_then(|info| info.peer.tls);
        let archives = match &self.backups {
            Some(backups) => Some(backups.seen().await.map_err(|_| internal())?),
            None => None,
        };
        Ok(Surroundings { tls: tls.map(|tls| (tls.version, tls.oldest)), archives })
    }
}

#[tonic::async_trait]
impl pb::evidence_service_server::EvidenceService for Api {
    type ExportEvidenceStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<pb::ExportEvidenceResponse, Status>> + Send>>;

    async fn export_evidence(
        &self,
        request: Request<pb::ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        let call = self.enter(&request, Scope::Named(&request.get_ref().tenant)).await?;
        let credential = self.credential(&request)?;
        call.permit(crate::access::Verb::Audit)?;
        let around = self.surroundings(&request).await?;
        let message = request.into_inner();
        if message.drills.len() > MAX_DRILLS {
            return Err(limit_exceeded("drills", MAX_DRILLS));
        }
        let (from, to) =
            (convert::opt_time("start_time", &message.start_time)?, convert::opt_time("end_time", &message.end_time)?);
        let stored = match (message.stored_drills, &self.backups) {
            (true, Some(backups)) => Some(backups.drill_reports().await),
            (true, None) => Some(Vec::new()),
            (false, _) => None,
        };
        let given = message.drills.iter().map(|json| json.to_vec()).collect();
        let evidence = self.vault.begin_evidence(call, EvidenceAsk { from, to, given, stored }, around).await?;
        let mut pieces = stream(self.vault.clone(), evidence);
        let (api, (to, from)) = (self.clone(), mpsc::channel(4));
        tokio::spawn(async move {
            let mut sent = 0u32;
            while let Some(piece) = pieces.recv().await {
                sent += 1;
                let valid = match sent.is_multiple_of(CHECK_EVERY) {
                    true => api.still_valid(&credential).await,
                    false => Ok(()),
                };
                let message = valid.and_then(|()| piece.map(wire_piece).map_err(Status::from));
                let over = message.is_err();
                // A closed channel is a client that went away.
                if to.send(message).await.is_err() || over {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(from))))
    }
}
