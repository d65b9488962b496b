//! A change set commits whole or changes nothing and says why.

use std::sync::Arc;

use super::samples::*;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::storage::*;

pub async fn every_precondition_holds_or_conflicts(store: Arc<dyn Store>) {
    use Precondition::*;
    let uid = SubjectUid(1);
    let mut closed = subject_row(2);
    closed.state = SubjectState::Closed;
    let mut erased = class_row(1, 3);
    (erased.state, erased.version, erased.slot) = (ClassState::Erased, DekVersion(4), None);
    put(
        &*store,
        [
            Mutation::PutTenant(tenant_row(T)),
            Mutation::PutSubject(subject_row(1)),
            Mutation::PutSubject(closed),
            Mutation::PutClass(class_row(1, 1)),
            Mutation::PutClass(erased),
            Mutation::PutItemGroup(group_row(1, 20)),
            Mutation::PutExpiry(expiry(20, Some(900))),
            Mutation::PutExpiry(expiry(10, None)),
            Mutation::PutTerm(term(1, 6)),
            Mutation::PutObject(object(b"h1x")),
            Mutation::PutObject(object(&[0xff, 0xff, 1])),
            Mutation::PutTombstone(tombstone(77)),
        ],
    )
    .await;
    let tags = |tag: u8| vec![(SecretVersion(1), TermTag([tag; 16]))];
    let class_at = |class, version, revision| ClassAt {
        uid,
        class: ClassNo(class),
        version: DekVersion(version),
        revision: Revision(revision),
    };
    let class_still = |class, version, revision| ClassStill {
        uid,
        class: ClassNo(class),
        version: DekVersion(version),
        revision: Revision(revision),
    };
    let class_live = |class, version| ClassLive { uid, class: ClassNo(class), version: DekVersion(version) };
    let class_below = |class, version| ClassBelow { uid, class: ClassNo(class), version: DekVersion(version) };
    let group_at =
        |bucket, revision| ItemGroupAt { uid, field: FieldNo(9), bucket: Bucket(bucket), revision: Revision(revision) };
    let expiry_live =
        |bucket, dek| ExpiryLive { tenant: T, class: ClassNo(2), bucket: Bucket(bucket), dek: DekId([dek; 16]) };
    let free = |tag, owner| TermsFree { tenant: T, field: FieldNo(3), tags: tags(tag), owner: SubjectUid(owner) };
    let object_at = |key: &[u8], revision| ObjectAt {
        tenant: T,
        kind: ObjectKind::Hold,
        key: key.to_vec(),
        revision: Revision(revision),
    };
    let none_under = |prefix: &[u8]| NoObjectUnder { tenant: T, kind: ObjectKind::Hold, prefix: prefix.to_vec() };
    let cases: Vec<(Precondition, bool)> = vec![
        (TenantIs { tenant: T, state: TenantState::Live }, true),
        (TenantIs { tenant: T, state: TenantState::Erasing }, false),
        (TenantIs { tenant: OTHER, state: TenantState::Live }, false),
        (TreeGeneration { tenant: T, generation: Generation(1) }, true),
        (TreeGeneration { tenant: T, generation: Generation(2) }, false),
        (SubjectRoom { tenant: T, new: 1, most: 3 }, true),
        (SubjectRoom { tenant: T, new: 2, most: 3 }, false),
        (SubjectRoom { tenant: OTHER, new: 1, most: 0 }, false),
        (SubjectAt { uid, revision: Revision(1) }, true),
        (SubjectAt { uid, revision: Revision(2) }, false),
        (SubjectAt { uid: SubjectUid(9), revision: Revision(0) }, false),
        (SubjectLive { uid }, true),
        (SubjectLive { uid: SubjectUid(2) }, false),
        (SubjectLive { uid: SubjectUid(9) }, false),
        (SubjectAbsent { tenant: T, digest: digest(1) }, false),
        (SubjectAbsent { tenant: OTHER, digest: digest(1) }, true),
        (NoTombstone { tenant: T, digest: digest(77) }, false),
        (NoTombstone { tenant: OTHER, digest: digest(77) }, true),
        (class_at(1, 1, 1), true),
        (class_at(1, 1, 2), false),
        (class_at(1, 2, 1), false),
        (class_at(3, 4, 1), false),
        (class_at(2, 1, 1), false),
        (class_still(1, 1, 1), true),
        (class_still(1, 1, 2), false),
        (class_still(1, 2, 1), false),
        (class_still(3, 4, 1), true),
        (class_still(2, 1, 1), false),
        (class_live(1, 1), true),
        (class_live(1, 2), false),
        (class_live(3, 4), false),
        (class_below(2, 1), true),
        (class_below(3, 5), true),
        (class_below(3, 4), false),
        (class_below(1, 5), false),
        (group_at(20, 1), true),
        (group_at(20, 0), false),
        (group_at(21, 0), true),
        (group_at(21, 1), false),
        (expiry_live(20, 3), true),
        (expiry_live(20, 4), false),
        (expiry_live(10, 3), false),
        (expiry_live(30, 3), false),
        (free(6, 1), true),
        (free(6, 2), false),
        (free(7, 2), true),
        (object_at(b"h1x", 1), true),
        (object_at(b"h1x", 0), false),
        (object_at(b"h1", 0), true),
        (none_under(b"h1"), false),
        (none_under(b"h1y"), true),
        (none_under(b"h0"), true),
        (none_under(&[0xff, 0xff]), false),
        (none_under(&[0xff, 0xff, 2]), true),
        (none_under(b""), false),
    ];
    for (precondition, holds) in cases {
        let mut change = set([Mutation::PutObject(object(b"zz"))]);
        change.require(SubjectLive { uid }).require(precondition.clone());
        match store.commit(change).await {
            Ok(_) => assert!(holds, "{precondition:?} should not hold"),
            Err(StoreError::Conflict(Conflict::Precondition(1))) => assert!(!holds, "{precondition:?} should hold"),
            other => panic!("{precondition:?}: {other:?}"),
        }
    }
    store.close().await;
}

pub async fn a_bad_change_set_changes_nothing(store: Arc<dyn Store>) {
    store.commit(person(1)).await.unwrap();
    let head = store.audit_head(T).await.unwrap();
    // The same digest under another number; the mutations before it are undone with it.
    let mut twin = subject_row(2);
    twin.digest = digest(1);
    let mut change = set([
        Mutation::PutTombstone(tombstone(3)),
        Mutation::PutObject(object(b"x")),
        Mutation::PutSubject(twin),
        Mutation::PutTerm(term(2, 1)),
    ]);
    change.note(T, note(2));
    let refused = store.commit(change).await;
    assert!(matches!(refused, Err(StoreError::Conflict(Conflict::Duplicate))), "{refused:?}");
    assert!(matches!(store.subject(T, digest(3)).await.unwrap(), Lookup::Missing));
    assert!(store.object(T, ObjectKind::Hold, b"x".to_vec()).await.unwrap().is_none());
    assert_eq!(store.audit_head(T).await.unwrap(), head, "no audit of what did not happen");
    assert_eq!(found(&*store, 1).await.unwrap().subject, subject_row(1));
    // Two tenants of one name, while both live.
    let mut tenant = tenant_row(OTHER);
    tenant.name = tenant_row(T).name;
    put(&*store, [Mutation::PutTenant(tenant_row(T))]).await;
    let refused = store.commit(set([Mutation::PutTenant(tenant.clone())])).await;
    assert!(matches!(refused, Err(StoreError::Conflict(Conflict::Duplicate))));
    put(&*store, [Mutation::PutTenant(TenantRow { state: TenantState::Erased, ..tenant_row(T) })]).await;
    put(&*store, [Mutation::PutTenant(tenant)]).await;
    store.close().await;
}

/// Many at once, so that they share commits: those that conflict fall out one by one.
pub async fn one_bad_change_set_does_not_harm_its_neighbours(store: Arc<dyn Store>) {
    let mut waiting = Vec::new();
    for uid in 1..=200 {
        let store = store.clone();
        waiting.push(tokio::spawn(async move {
            let mut change = person(uid);
            if uid % 3 == 0 {
                change.require(Precondition::SubjectLive { uid: SubjectUid(100_000) });
            } else if uid % 7 == 0 {
                // Its slot belongs to another's class: refused after two mutations.
                change.change(Mutation::PutClass(ClassRow { slot: class_row(uid, 1).slot, ..class_row(uid, 3) }));
            }
            (uid, store.commit(change).await)
        }));
    }
    for task in waiting {
        let (uid, result) = task.await.unwrap();
        let there = found(&*store, uid).await;
        if uid % 3 == 0 {
            assert!(matches!(result, Err(StoreError::Conflict(Conflict::Precondition(1)))), "{result:?}");
            assert!(there.is_none());
        } else if uid % 7 == 0 {
            assert!(matches!(result, Err(StoreError::Conflict(Conflict::Duplicate))), "{result:?}");
            assert!(there.is_none());
        } else {
            result.unwrap();
            assert_eq!(there.unwrap().classes, [class_row(uid, 1), class_row(uid, 2)]);
        }
    }
    let good = (1..=200).filter(|uid| uid % 3 != 0 && uid % 7 != 0).count() as u64;
    assert_eq!(store.audit_head(T).await.unwrap().unwrap().seq, good);
    store.close().await;
}

pub async fn a_request_id_counts_once(store: Arc<dyn Store>) {
    let change = |n, uid| {
        let mut change = person(uid);
        change.change(Mutation::PutRequest(request(n)));
        change
    };
    store.commit(change(1, 1)).await.unwrap();
    assert_eq!(store.request(T, request(1).request).await.unwrap(), Some(request(1)));
    let again = store.commit(change(1, 2)).await;
    assert!(matches!(again, Err(StoreError::Conflict(Conflict::Request))), "{again:?}");
    assert!(found(&*store, 2).await.is_none());
    for n in 2..=10 {
        store.commit(change(n, i64::from(n))).await.unwrap();
    }
    let prune = |limit| [Mutation::PruneRequests { before: Timestamp(8), limit }];
    assert_eq!(put(&*store, prune(3)).await.removed, 3);
    assert_eq!(put(&*store, prune(30)).await.removed, 4);
    assert_eq!(put(&*store, prune(30)).await.removed, 0);
    assert_eq!(store.request(T, request(7).request).await.unwrap(), None);
    assert_eq!(store.request(T, request(8).request).await.unwrap(), Some(request(8)));
    store.close().await;
}
