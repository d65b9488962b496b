//! Erasures about several subjects.

use crate::ids::*;
use crate::receipt::Member;
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::error::VaultError;

impl Vault {
    /// Members of an erasure about several subjects, in its order.
    pub(crate) async fn members_of(&self, tenant: TenantNo, id: ObjectId) -> Result<Vec<Member>, VaultError> {
        let prefix = id.0.as_bytes().to_vec();
        let (mut members, mut after) = (Vec::new(), prefix.clone());
        loop {
            let page = self.store.objects(tenant, ObjectKind::Members, prefix.clone(), after, 100).await?;
            for row in &page.rows {
                let part: Vec<Member> = serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)?;
                members.extend(part);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(members),
            }
        }
    }
}
