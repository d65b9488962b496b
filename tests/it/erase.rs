//! Erasures of subjects and classes over the vault floor.

use pii_vault::ids::*;
use pii_vault::policy::value::Value;
use pii_vault::receipt::Receipt;
use pii_vault::vault::find::Key;
use pii_vault::vault::hold::{HoldTarget, NewHold};
use pii_vault::vault::item::NewItem;
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::{Absence, Select};
use pii_vault::vault::request::Request;
use pii_vault::vault::{Call, Context, VaultError};

use crate::harness::*;

pub fn key(subject: &str) -> Key {
    Key::Subject(id(subject))
}

pub fn class(call: &Call, name: &str) -> ClassNo {
    call.tenant.policy().unwrap().class_by_name(&Name::parse("class", name).unwrap()).unwrap().no
}

pub async fn person(t: &TestVault, call: &Call, subject: &str) {
    let email = format!("{subject}@example.com");
    let one = put(call, subject, &[("name", "Asha"), ("email", &email)]);
    t.node.vault.put_fields(call, &purpose(call, "service"), one, None, false).await.expect("put");
}

/// An invoice of a subject, with the time of the call as its origin.
pub async fn invoice(t: &TestVault, call: &Call, subject: &str) -> ItemNo {
    let item = NewItem { value: Value::text("INV 1".into()), origin: None };
    let context = purpose(call, "payments");
    let (subject, field) = (id(subject), field(call, "invoice"));
    let done = t.node.vault.append_items(call, &context, &subject, field, &[item], None, false).await;
    done.expect("append").items[0].item
}

/// As many of them.
pub async fn invoices(t: &TestVault, call: &Call, subject: &str, count: usize) {
    let (context, field) = (purpose(call, "payments"), field(call, "invoice"));
    for from in (0..count).step_by(100) {
        let item = |n| NewItem { value: Value::text(format!("INV {n}")), origin: None };
        let items: Vec<NewItem> = (from..count.min(from + 100)).map(item).collect();
        t.node.vault.append_items(call, &context, &id(subject), field, &items, None, false).await.expect("append");
    }
}

fn request(call: &Call, n: u128) -> Option<Request> {
    let fingerprint = call.tenant.fingerprint("EraseSubject", &n.to_be_bytes());
    Some(Request { id: ObjectId(uuid::Uuid::from_u128(n)), fingerprint })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_subject_is_gone_with_a_receipt_that_verifies_offline() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    person(&t, &call, "usr_2").await;

    let none = Context::default();
    let done = vault.erase_subject(&call, &none, &key("usr_1"), &[], request(&call, 9), false).await.expect("erase");
    assert_eq!(done.operation.status, OperationStatus::Done);
    assert!(done.operation.held.is_empty());
    let receipt = done.receipt.clone().expect("a receipt");
    let verified = Receipt::verify(&receipt, &vault.receipt_keys()).expect("verifies");
    assert!(verified.receipt.is_about(&id("usr_1"), &done.salt.unwrap()));
    assert!(!verified.receipt.is_about(&id("usr_2"), &done.salt.unwrap()));
    assert_eq!(verified.receipt.erased.len(), 1);
    assert_eq!(verified.receipt.search_expires_at, Some(call.now.plus_days(30)), "an e-mail was searchable");

    let service = purpose(&call, "service");
    let got = vault.get_fields(&call, &service, &key("usr_1"), &Select::default()).await;
    assert!(matches!(got, Err(VaultError::SubjectErased)));
    let again = put(&call, "usr_1", &[("name", "Asha")]);
    assert!(matches!(vault.put_fields(&call, &service, again, None, false).await, Err(VaultError::SubjectErased)));
    let twice = vault.erase_subject(&call, &none, &key("usr_1"), &[], None, false).await;
    assert!(matches!(twice, Err(VaultError::SubjectErased)));
    let repeated = vault.erase_subject(&call, &none, &key("usr_1"), &[], request(&call, 9), false).await.unwrap();
    assert_eq!((repeated.operation.id, repeated.receipt, repeated.salt), (done.operation.id, done.receipt, done.salt));
    assert!(vault.get_fields(&call, &service, &key("usr_2"), &Select::default()).await.is_ok());

    let (events, _) = vault.feed(&call, 0, &[], &[], 10).await.unwrap();
    assert_eq!(events.rows.len(), 1);
    assert_eq!(events.rows[0].event.erasure, Some(done.operation.id));
    let listed = vault.list_erasures(&call, None, |_| true, None, 10).await.unwrap();
    assert_eq!(listed.rows.len(), 1);

    let t = t.restart().await;
    let call = t.call(tenant);
    let stored = t.node.vault.get_receipt(&call, done.operation.id).await.unwrap();
    assert_eq!(stored, receipt);
}

#[tokio::test(flavor = "multi_thread")]
async fn jc18_a_hold_keeps_invoices_alone_and_they_erase_themselves_at_its_end() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    let item = invoice(&t, &call, "usr_1").await;
    let billing = class(&call, "billing");

    let none = Context::default();
    let done = vault.erase_subject(&call, &none, &key("usr_1"), &[], None, false).await.expect("erase");
    assert_eq!(done.operation.status, OperationStatus::PartlyHeld);
    assert_eq!(done.operation.held.len(), 1);
    assert_eq!(done.operation.held[0].class, billing);
    let service = purpose(&call, "service");
    let select = Select { partial: true, ..Select::default() };
    let got = vault.get_fields(&call, &service, &key("usr_1"), &select).await.expect("held, not gone");
    assert!(
        got.values.iter().all(|v| matches!(v.what, Err(Absence::Erased | Absence::Restricted | Absence::NeverSet)))
    );
    let invoices = field(&call, "invoice");
    let payments = purpose(&call, "payments");
    assert!(vault.get_item(&call, &payments, &key("usr_1"), invoices, item, None).await.is_err(), "another purpose");
    let legal = purpose(&call, "legal_obligation");
    vault.get_item(&call, &legal, &key("usr_1"), invoices, item, None).await.expect("the hold's purpose");

    // The hold's end, to the millisecond.
    let until = done.operation.held[0].until.unwrap();
    t.clock.advance_ms(until.0 - call.now.0 - 1);
    let call = t.call(tenant);
    vault.run_due(&call, 10).await.unwrap();
    vault.get_item(&call, &legal, &key("usr_1"), invoices, item, None).await.expect("a moment before");
    t.clock.advance_ms(1);
    let call = t.call(tenant);
    vault.run_due(&call, 10).await.unwrap();
    let gone = vault.get_item(&call, &legal, &key("usr_1"), invoices, item, None).await;
    assert!(matches!(gone, Err(VaultError::SubjectErased)), "{:?}", gone.err());
    let ended = vault.get_erasure(&call, done.operation.id).await.unwrap();
    assert_eq!(ended.operation.status, OperationStatus::Done);
    let receipt = Receipt::verify(&ended.receipt.unwrap(), &vault.receipt_keys()).unwrap().receipt;
    assert!(receipt.held.is_empty() && receipt.erased.iter().any(|e| e.class == billing));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placed_hold_wins_over_an_erasure_until_it_is_released() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    let none = Context::default();
    let new = NewHold {
        classes: vec![],
        basis: Name::parse("basis", "litigation-17").unwrap(),
        purpose: purpose(&call, "legal_request").purpose.unwrap(),
        until: None,
    };
    let target = key("usr_1");
    let hold = vault.place_hold(&call, &none, HoldTarget::Subject(&target), &new, None, false).await.expect("hold");
    let held = vault.erase_subject(&call, &none, &key("usr_1"), &[], None, false).await.expect("held");
    assert_eq!(held.operation.status, OperationStatus::PartlyHeld);
    assert!(held.operation.erased.is_empty() && held.receipt.is_none());
    let account = class(&call, "account");
    assert!(held.operation.held.iter().any(|part| part.class == account && part.hold == Some(hold.id)));
    let (released, resumed) =
        vault.release_hold(&call, &Default::default(), hold.id, None, false).await.expect("release");
    assert!(released.released.is_some());
    assert_eq!(resumed, [held.operation.id], "it erases by itself");
    let ended = vault.get_erasure(&call, held.operation.id).await.unwrap();
    assert_eq!(ended.operation.status, OperationStatus::Done);
    let got = vault.get_fields(&call, &purpose(&call, "service"), &key("usr_1"), &Select::default()).await;
    assert!(matches!(got, Err(VaultError::SubjectErased)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_erased_alone_leaves_the_others_and_may_be_written_again() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    invoice(&t, &call, "usr_1").await;
    let account = class(&call, "account");
    let none = Context::default();
    let done = vault.erase_subject(&call, &none, &key("usr_1"), &[account], None, false).await.expect("erase class");
    assert_eq!(done.operation.status, OperationStatus::Done);
    let service = purpose(&call, "service");
    let select = Select { partial: true, ..Select::default() };
    let got = vault.get_fields(&call, &service, &key("usr_1"), &select).await.expect("still there");
    let name = got.values.iter().find(|v| v.field == field(&call, "name")).unwrap();
    assert!(matches!(name.what, Err(Absence::Erased)));
    person(&t, &call, "usr_1").await;
    let got = vault.get_fields(&call, &service, &key("usr_1"), &select).await.unwrap();
    assert_eq!(
        text(&got.values.iter().find(|v| v.field == field(&call, "name")).unwrap().what.as_ref().unwrap().0),
        "Asha"
    );
    let second = vault.erase_subject(&call, &none, &key("usr_1"), &[account], None, false).await.expect("again");
    assert_eq!(second.operation.erased[0].through, DekVersion(2));
}
