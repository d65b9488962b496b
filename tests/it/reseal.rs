//! Erasing less than a class: what stays is readable, what goes is gone, and the key version moves on.

use pii_vault::ids::*;
use pii_vault::policy::value::Value;
use pii_vault::receipt::{Receipt, Scope};
use pii_vault::vault::VaultError;
use pii_vault::vault::item::NewItem;
use pii_vault::vault::operation::OperationStatus;
use pii_vault::vault::read::{Absence, Select};

use crate::erase::{class, invoice, key, person};
use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn erased_fields_are_gone_and_the_rest_of_the_class_stays() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    let email = field(&call, "email");
    let service = purpose(&call, "service");
    let done = vault
        .erase_fields(&call, &service, &key("usr_1"), &[email], None, None, false, false)
        .await
        .expect("erase e-mail");
    assert_eq!(done.operation.status, OperationStatus::Done);
    let receipt = Receipt::verify(&done.receipt.unwrap(), &vault.receipt_keys()).unwrap().receipt;
    assert_eq!((receipt.scope, receipt.erased[0].through_version), (Scope::Fields, DekVersion(1)));
    assert!(receipt.search_expires_at.is_some());
    let got = vault.get_fields(&call, &service, &key("usr_1"), &Select::default()).await.unwrap();
    let of = |name| got.values.iter().find(|v| v.field == field(&call, name)).unwrap();
    assert_eq!(text(&of("name").what.as_ref().unwrap().0), "Asha");
    assert!(matches!(of("email").what, Err(Absence::NeverSet)));
    let found = vault.find_subjects(&call, &service, email, "usr_1@example.com", SubjectUid(0), 10).await.unwrap();
    assert!(found.subjects.is_empty());
    let nothing = vault.erase_fields(&call, &service, &key("usr_1"), &[email], None, None, false, false).await;
    assert!(matches!(nothing, Err(VaultError::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn jc20_a_put_that_erases_what_it_overwrites_answers_an_erasure() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    let service = purpose(&call, "service");
    let mut new = put(&call, "usr_1", &[("name", "Asha Rao")]);
    new.erase_former = true;
    let done = vault.put_fields(&call, &service, new, None, false).await.expect("put");
    let erasure = vault.get_erasure(&call, done.erasure.expect("an erasure")).await.unwrap();
    assert_eq!(erasure.operation.erased[0].through, DekVersion(1));
    let got = vault.get_fields(&call, &service, &key("usr_1"), &Select::default()).await.unwrap();
    assert_eq!(got.etag, done.etag);
    let of = |name| got.values.iter().find(|v| v.field == field(&call, name)).unwrap();
    assert_eq!(text(&of("name").what.as_ref().unwrap().0), "Asha Rao");
    assert_eq!(text(&of("email").what.as_ref().unwrap().0), "usr_1@example.com");
    let mut first = put(&call, "usr_1", &[("organisation", "Acme")]);
    first.erase_former = true;
    let done = vault.put_fields(&call, &service, first, None, false).await.expect("nothing was there");
    assert_eq!(done.erasure, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_items_go_alone_and_a_hold_forbids_it() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let vault = &t.node.vault;
    person(&t, &call, "usr_1").await;
    let delivery = purpose(&call, "delivery");
    let message = field(&call, "message");
    let new = |text: &str| NewItem { value: Value::text(text.into()), origin: None };
    let items = [new("one"), new("two"), new("three")];
    let done = vault.append_items(&call, &delivery, &id("usr_1"), message, &items, None, false).await.expect("append");
    let second = done.items[1].item;
    let erased = vault.erase_items(&call, &delivery, &key("usr_1"), message, &[second], None, false, false).await;
    assert_eq!(erased.expect("erase").operation.status, OperationStatus::Done);
    let page = vault
        .list_items(&call, &delivery, &key("usr_1"), message, None, None, None, None, 10)
        .await
        .expect("the group's sum is right");
    let mut left: Vec<&str> = page.items.iter().map(|item| text(&item.value)).collect();
    left.sort();
    assert_eq!(left, ["one", "three"]);
    // Items appended afterwards join the same group.
    vault.append_items(&call, &delivery, &id("usr_1"), message, &[new("four")], None, false).await.expect("append");
    let page = vault.list_items(&call, &delivery, &key("usr_1"), message, None, None, None, None, 10).await.unwrap();
    assert_eq!(page.items.len(), 3);

    let bill = invoice(&t, &call, "usr_1").await;
    let held =
        vault.erase_items(&call, &delivery, &key("usr_1"), field(&call, "invoice"), &[bill], None, false, false).await;
    let billing = class(&call, "billing");
    assert!(matches!(held, Err(VaultError::Held { class, .. }) if class == billing));
}
