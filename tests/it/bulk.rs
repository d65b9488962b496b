//! Groups and tenants: many subjects under one operation.

use pii_vault::ids::*;
use pii_vault::receipt::{MemberProof, Receipt, Scope, commitment};
use pii_vault::storage::TenantState;
use pii_vault::vault::find::Key;
use pii_vault::vault::group::GroupState;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::Select;
use pii_vault::vault::{Call, Context, VaultError};

use crate::erase::{class, invoice, key};
use crate::harness::*;

async fn members(t: &TestVault, call: &Call, group: GroupNo, count: usize) {
    let service = purpose(call, "service");
    for chunk in (0..count).collect::<Vec<_>>().chunks(200) {
        let puts = chunk.iter().map(|i| {
            let mut one = put(call, &format!("m{i}"), &[("name", "Member")]);
            one.group = Some(group);
            t.node.vault.put_fields(call, &service, one, None, false)
        });
        for done in futures_util::future::join_all(puts).await {
            done.expect("put");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_with_one_receipt_over_all_its_members() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    let group = vault.create_group(&call, &id("acme"), None, vec![], None).await.expect("group");
    members(&t, &call, group, 1_200).await;
    let outsider = put(&call, "outsider", &[("name", "Other")]);
    let service = purpose(&call, "service");
    vault.put_fields(&call, &service, outsider, None, false).await.unwrap();
    invoice(&t, &call, "m7").await;
    let none = Context::default();
    let mut uids = Vec::new();
    for n in ["m1", "m1199"] {
        uids.push((n, vault.get_subject(&call, &id(n)).await.unwrap().subject.uid));
    }

    let first = vault.erase_group(&call, &none, &id("acme"), None, false).await.expect("first part");
    assert_eq!((first.operation.status, first.operation.done), (OperationStatus::Running, 1_000));
    let gone = vault.get_fields(&call, &service, &key("m0"), &Select::default()).await;
    assert!(matches!(gone, Err(VaultError::SubjectErased)));
    // It goes on after a restart, where it stopped.
    let t = t.restart().await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    while vault.go_on(&call, 10).await.unwrap() > 0 {}
    let done = vault.get_erasure(&call, first.operation.id).await.unwrap();
    assert_eq!((done.operation.status, done.operation.done), (OperationStatus::PartlyHeld, 1_200));
    assert_eq!(done.operation.held_members, 1);
    let verified = Receipt::verify(&done.receipt.unwrap(), &vault.receipt_keys()).unwrap();
    assert_eq!((verified.receipt.scope, verified.receipt.members.as_ref().unwrap().count), (Scope::Group, 1_200));
    for (n, uid) in uids {
        let proof = vault.member_proof(&call, first.operation.id, uid).await.expect("a proof");
        MemberProof::verify(&proof.to_json(), &verified).expect("under the root");
        assert_eq!(proof.member.commitment, commitment(tenant, &id(n), &first.salt.unwrap()));
    }
    assert!(vault.get_fields(&call, &service, &key("outsider"), &Select::default()).await.is_ok());
    assert_eq!(vault.group_by_no(&call, group).await.unwrap().state, GroupState::Erased);
    assert!(matches!(vault.erase_group(&call, &none, &id("acme"), None, true).await, Err(VaultError::WrongState(_))));

    // The held member follows when its hold ends, and with it the group's erasure.
    let until = done.operation.held[0].until.unwrap();
    t.clock.advance_ms(until.0 - call.now.0);
    let call = t.call(tenant);
    vault.run_due(&call, 100).await.unwrap();
    vault.go_on(&call, 10).await.unwrap();
    let after = vault.get_erasure(&call, first.operation.id).await.unwrap();
    assert_eq!(after.operation.status, OperationStatus::Done);
    let gone = vault.get_fields(&call, &service, &key("m7"), &Select::default()).await;
    assert!(matches!(gone, Err(VaultError::SubjectErased)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_erased_unless_a_hold_is_placed() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let other = t.tenant("second", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    crate::erase::person(&t, &call, "usr_1").await;
    crate::erase::person(&t, &t.call(other), "usr_1").await;
    let new = NewHold {
        classes: vec![class(&call, "account")],
        basis: Name::parse("basis", "litigation").unwrap(),
        purpose: purpose(&call, "legal_request").purpose.unwrap(),
        until: None,
    };
    let none = Context::default();
    let target = key("usr_1");
    let hold = vault.place_hold(&call, &none, HoldTarget::Subject(&target), &new, None, false).await.unwrap();
    let as_operator = || vault.call(t.operator(), vault.tenant(tenant).unwrap());
    assert!(
        matches!(vault.erase_tenant(&call, &[], None, false).await, Err(VaultError::Denied { .. })),
        "not by its own key"
    );
    assert!(matches!(vault.erase_tenant(&as_operator(), &[], None, false).await, Err(VaultError::Held { .. })));
    vault.release_hold(&call, &Default::default(), hold.id, None, false).await.unwrap();
    let done = vault.erase_tenant(&as_operator(), &[], None, false).await.expect("erase tenant").unwrap();
    assert_eq!(done.operation.status, OperationStatus::Done);
    let receipt = Receipt::verify(&done.receipt.unwrap(), &vault.receipt_keys()).unwrap().receipt;
    assert_eq!((receipt.scope, receipt.tenant, receipt.tenant_name.as_str()), (Scope::Tenant, tenant, "jina-connect"));
    assert_eq!(receipt.controller, "JINA CODE SYSTEMS");
    assert!(matches!(vault.tenant(tenant), Err(VaultError::TenantErased)));
    let rows = t.node.store.tenants().await.unwrap();
    assert_eq!(rows.iter().find(|row| row.no == tenant).unwrap().state, TenantState::Erased);
    assert_eq!(t.node.store.counts(tenant).await.unwrap(), Default::default());

    let t = t.restart().await;
    assert!(matches!(t.node.vault.tenant(tenant), Err(VaultError::TenantErased)));
    let call = t.call(other);
    let by_id = Key::Subject(id("usr_1"));
    t.node.vault.get_fields(&call, &purpose(&call, "service"), &by_id, &Select::default()).await.expect("another's");
}
