//! Made roles as they are stored: an object for each, named by its number.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;
use crate::vault::error::VaultError;
use crate::vault::{put_of_live_tenant, to_json};

/// What is stored of a grant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GrantBody {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassNo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldNo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub purposes: Vec<PurposeNo>,
    pub verbs: u32,
    pub masked: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<GroupNo>>,
    #[serde(default)]
    pub subjects_per_hour: u32,
}

/// What is stored of a made role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleBody {
    pub name: Name,
    pub grants: Vec<GrantBody>,
    pub created: Timestamp,
    pub by: ActorId,
}

/// Key of a role's object.
pub(super) fn role_key(no: RoleNo) -> Vec<u8> {
    no.0.to_be_bytes().to_vec()
}

/// Number of the role of an object.
pub(super) fn key_no(row: &ObjectRow) -> Result<RoleNo, VaultError> {
    let bytes: [u8; 4] = row.key.as_slice().try_into().map_err(|_| VaultError::DataLoss)?;
    Ok(RoleNo(u32::from_be_bytes(bytes)))
}

pub(super) fn read_body(row: &ObjectRow) -> Result<RoleBody, VaultError> {
    serde_json::from_slice(&row.body).map_err(|_| VaultError::DataLoss)
}

/// The next revision of a role, as part of a change.
pub(super) fn put_role(
    tenant: TenantNo,
    no: RoleNo,
    former: Revision,
    body: &RoleBody,
    change: &mut ChangeSet,
) -> ObjectRow {
    put_of_live_tenant(tenant, ObjectKind::Role, role_key(no), former, to_json(body), change)
}
