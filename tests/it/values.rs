//! Values over the vault floor: put, read, find, delete, restart.

use pii_vault::vault::VaultError;
use pii_vault::vault::find::Key;
use pii_vault::vault::read::Select;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn values_come_back_after_a_restart_and_only_for_their_purpose() {
    let t = TestVault::new().await;
    let tenant = t.tenant("jina-connect", JINA).await;
    let call = t.call(tenant);
    let service = purpose(&call, "service");
    let one = put(&call, "usr_1", &[("name", "आशा शर्मा"), ("email", "Asha+x@Example.com")]);
    let done = t.node.vault.put_fields(&call, &service, one, None, false).await.expect("put");
    assert!(done.created);

    let t = t.restart().await;
    let call = t.call(tenant);
    let key = Key::Subject(id("usr_1"));
    let got = t.node.vault.get_fields(&call, &service, &key, &Select::default()).await.expect("get");
    let name = got.values.iter().find(|v| v.field == field(&call, "name")).unwrap();
    assert_eq!(text(&name.what.as_ref().unwrap().0), "आशा शर्मा");
    assert_eq!(got.etag, done.etag);

    let by_email =
        Key::Unique { field: field(&call, "email"), text: zeroize::Zeroizing::new("asha+X@example.COM".into()) };
    let found = t.node.vault.get_fields(&call, &service, &by_email, &Select::default()).await.expect("by email");
    assert_eq!(found.uid, got.uid);

    let wrong = Select { fields: vec![field(&call, "email")], ..Select::default() };
    let refused = t.node.vault.get_fields(&call, &purpose(&call, "analytics"), &key, &wrong).await;
    assert!(matches!(refused, Err(VaultError::Denied { .. })), "{:?}", refused.err());
    let missing = t.node.vault.get_fields(&call, &service, &Key::Subject(id("usr_2")), &Select::default()).await;
    assert!(matches!(missing, Err(VaultError::NotFound)));
}
