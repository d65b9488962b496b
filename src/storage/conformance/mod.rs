//! What every backend does alike. A backend's tests call [`all`] with a maker of empty stores for the vault
//! [`samples::VAULT`].

mod changes;
pub mod samples;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::audit::{Chain, Group, genesis, verify};
use samples::*;

pub async fn all(make: impl Fn() -> Arc<dyn Store>) {
    every_row_reads_back(make()).await;
    changes::every_precondition_holds_or_conflicts(make()).await;
    changes::a_bad_change_set_changes_nothing(make()).await;
    changes::one_bad_change_set_does_not_harm_its_neighbours(make()).await;
    changes::a_request_id_counts_once(make()).await;
    slots_are_given_once(make()).await;
    row_numbers_are_given_once(make()).await;
    pages_meet_without_gaps(make()).await;
    mass_deletions_stop_at_their_limit(make()).await;
    a_cleared_tenant_leaves_its_row_and_its_audit(make()).await;
    the_audit_has_no_gap(make()).await;
    the_listener_hears_before_the_answer(make()).await;
    closing_finishes_what_is_queued(make()).await;
}

async fn every_row_reads_back(store: Arc<dyn Store>) {
    use Mutation::*;
    let tenant = tenant_row(T);
    put(&*store, [PutTenant(tenant_row(OTHER)), PutTenant(tenant.clone())]).await;
    assert_eq!(store.tenants().await.unwrap(), [tenant.clone(), tenant_row(OTHER)]);
    put(&*store, [SetGeneration { tenant: T, generation: Generation(2) }]).await;

    let node =
        |ordinal| NodeRow { tenant: T, ordinal: Ordinal(ordinal), generation: Generation(2), blob: vec![4; 3869] };
    put(&*store, [PutNode(node(0)), PutNode(node(121)), PutNode(NodeRow { tenant: OTHER, ..node(0) })]).await;
    let nodes = store.nodes(T, vec![Ordinal(121), Ordinal(1)]).await.unwrap();
    assert_eq!((nodes.generation, nodes.nodes), (Generation(2), vec![Some(node(121)), None]));
    assert_eq!(store.list_nodes(T, None, 10).await.unwrap(), [node(0), node(121)]);
    assert_eq!(store.list_nodes(T, Some(Ordinal(0)), 10).await.unwrap(), [node(121)]);

    let (subject, mut class) = (subject_row(1), class_row(1, 2));
    class.next_bucket = Some(Bucket(30));
    put(&*store, [PutSubject(subject.clone()), PutClass(class.clone()), PutClass(class_row(1, 1))]).await;
    let whole = SubjectSnapshot { subject: subject.clone(), classes: vec![class_row(1, 1), class.clone()] };
    assert_eq!(*found(&*store, 1).await.unwrap(), whole);
    assert_eq!(*store.subject_by_uid(SubjectUid(1)).await.unwrap().unwrap(), whole);
    assert!(store.subject_by_uid(SubjectUid(2)).await.unwrap().is_none());
    assert!(matches!(store.subject(OTHER, digest(1)).await.unwrap(), Lookup::Missing));
    assert_eq!(store.classes_due(T, ClassNo(2), Bucket(30), 9).await.unwrap(), [class.clone()]);
    assert!(store.classes_due(T, ClassNo(2), Bucket(29), 9).await.unwrap().is_empty());
    let classes = |all: &[u16]| all.iter().copied().collect::<ClassSet>();
    let seen = store.survey(T, classes(&[2]), SubjectUid(0), 9).await.unwrap();
    assert_eq!((seen.rows.len(), seen.last, seen.subjects, seen.more), (1, SubjectUid(1), 1, false));
    assert_eq!(seen.rows[0], (subject.group, class.clone()));
    assert_eq!(store.survey(T, classes(&[1, 2]), SubjectUid(0), 1).await.unwrap().rows.len(), 2);
    let none = store.survey(T, classes(&[3]), SubjectUid(0), 9).await.unwrap();
    assert!(none.rows.is_empty() && none.last == SubjectUid(1));
    assert!(store.survey(OTHER, classes(&[2]), SubjectUid(0), 9).await.unwrap().subjects == 0);
    put(&*store, [TouchSubject { uid: SubjectUid(1), at: Timestamp(50) }]).await;
    put(&*store, [TouchSubject { uid: SubjectUid(1), at: Timestamp(40) }]).await;
    assert_eq!(found(&*store, 1).await.unwrap().subject.touched, Timestamp(50));
    let erased = ClassRow { state: ClassState::Erased, slot: None, record: Vec::new(), ..class };
    put(&*store, [PutClass(erased.clone()), DeleteClass { uid: SubjectUid(1), class: ClassNo(1) }]).await;
    assert_eq!(found(&*store, 1).await.unwrap().classes, [erased]);

    put(&*store, [PutItemGroup(group_row(1, 20)), PutItem(item_row(1, 20, 8)), PutItem(item_row(1, 20, 9))]).await;
    let taken = store.commit(set([Mutation::AddItem(item_row(1, 20, 9))])).await;
    assert!(matches!(taken, Err(StoreError::Conflict(Conflict::Duplicate))), "{taken:?}");
    let key = group_row(1, 20).key;
    assert_eq!(store.item_groups(SubjectUid(1), None).await.unwrap(), [group_row(1, 20)]);
    assert_eq!(store.item_groups(SubjectUid(1), Some(FieldNo(9))).await.unwrap().len(), 1);
    assert!(store.item_groups(SubjectUid(1), Some(FieldNo(8))).await.unwrap().is_empty());
    let asked = vec![SubjectUid(7_000), SubjectUid(1)];
    assert_eq!(store.item_groups_of(asked).await.unwrap(), [group_row(1, 20)]);
    assert_eq!(store.item(key, ItemNo(9)).await.unwrap(), Some(item_row(1, 20, 9)));
    let one = Mutation::DeleteItem {
        tenant: T,
        class: ClassNo(2),
        bucket: Bucket(20),
        uid: SubjectUid(1),
        field: FieldNo(9),
        item: ItemNo(9),
    };
    put(&*store, [one]).await;
    assert_eq!(store.items(key, ItemNo(0), 9).await.unwrap().rows, [item_row(1, 20, 8)]);
    assert_eq!(store.item(key, ItemNo(9)).await.unwrap(), None);
    put(&*store, [DeleteItemGroup { uid: SubjectUid(1), field: FieldNo(9), bucket: Bucket(20) }]).await;
    assert!(store.item_groups(SubjectUid(1), None).await.unwrap().is_empty());

    put(&*store, [PutTerm(term(1, 6)), PutTerm(term(1, 6)), PutTerm(term(2, 6)), PutTerm(term(1, 7))]).await;
    let tags = vec![(SecretVersion(1), TermTag([6; 16])), (SecretVersion(1), TermTag([7; 16]))];
    let uids = store.find_terms(T, FieldNo(3), tags.clone(), SubjectUid(0), 9).await.unwrap();
    assert_eq!((uids.rows, uids.more), (vec![SubjectUid(1), SubjectUid(2)], false));
    assert_eq!(store.count_terms(T, SecretVersion(1)).await.unwrap(), 3);
    put(&*store, [DeleteTerms { tenant: T, uid: SubjectUid(1), field: Some(FieldNo(4)) }]).await;
    assert_eq!(store.count_terms(T, SecretVersion(1)).await.unwrap(), 3);
    put(&*store, [DeleteTerms { tenant: T, uid: SubjectUid(1), field: None }]).await;
    assert_eq!(store.find_terms(T, FieldNo(3), tags, SubjectUid(0), 9).await.unwrap().rows, [SubjectUid(2)]);

    let stone = tombstone(1);
    put(&*store, [DeleteSubject { uid: SubjectUid(1) }, PutTombstone(stone.clone())]).await;
    assert!(matches!(store.subject(T, digest(1)).await.unwrap(), Lookup::Erased(found) if found == stone));
    let both = store.subjects(T, vec![digest(8), digest(1)]).await.unwrap();
    assert!(matches!(&both[..], [Lookup::Missing, Lookup::Erased(_)]));
    put(&*store, [DeleteTombstone { tenant: T, digest: digest(1) }]).await;
    assert!(matches!(store.subject(T, digest(1)).await.unwrap(), Lookup::Missing));
    // Its classes went with it: a subject of the same number has none.
    put(&*store, [PutSubject(subject)]).await;
    assert!(found(&*store, 1).await.unwrap().classes.is_empty());

    put(&*store, [PutExpiry(expiry(20, Some(900))), PutExpiry(expiry(10, None))]).await;
    assert_eq!(store.expiries(T).await.unwrap(), [expiry(10, None), expiry(20, Some(900))]);
    put(&*store, [DeleteExpiry { tenant: T, class: ClassNo(2), bucket: Bucket(10) }]).await;
    assert_eq!(store.expiries(T).await.unwrap(), [expiry(20, Some(900))]);

    put(&*store, [PutObject(object(b"a")), PutObject(object(b"ab"))]).await;
    assert_eq!(store.object(T, ObjectKind::Hold, b"a".to_vec()).await.unwrap(), Some(object(b"a")));
    assert_eq!(store.object(T, ObjectKind::Role, b"a".to_vec()).await.unwrap(), None);
    put(&*store, [DeleteObject { tenant: T, kind: ObjectKind::Hold, key: b"a".to_vec() }]).await;
    assert_eq!(store.object(T, ObjectKind::Hold, b"a".to_vec()).await.unwrap(), None);

    put(&*store, [PutFeed { tenant: T, at: Timestamp(1), body: vec![1] }]).await;
    put(&*store, [PutFeed { tenant: T, at: Timestamp(2), body: vec![2] }]).await;
    let feed = store.feed(T, 0, 9).await.unwrap().rows;
    assert_eq!(feed.iter().map(|f| (f.seq, f.body[0])).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
    assert_eq!(put(&*store, [PruneFeed { tenant: T, before: Timestamp(9), limit: 9 }]).await.removed, 2);
    put(&*store, [PutFeed { tenant: T, at: Timestamp(3), body: vec![3] }]).await;
    assert_eq!(store.feed(T, 0, 9).await.unwrap().rows[0].seq, 3, "numbers are never given again");

    let counts = store.counts(T).await.unwrap();
    assert_eq!(
        counts,
        TenantCounts { subjects: 1, classes: 0, most_seals: 0, items: 0, terms: 1, tombstones: 0, nodes: 2 }
    );
    store.health().unwrap();
    store.close().await;
}

async fn slots_are_given_once(store: Arc<dyn Store>) {
    let duplicate = |r: Result<Committed, StoreError>| matches!(r, Err(StoreError::Conflict(Conflict::Duplicate)));
    let with_slot = |uid, slot| Mutation::PutClass(ClassRow { slot: Some(Slot(slot)), ..class_row(uid, 1) });
    put(&*store, [Mutation::PutSubject(subject_row(1)), with_slot(1, 40)]).await;
    assert_eq!(store.slots(T).await.unwrap(), SlotUse { next: Slot(41), free: vec![] });
    assert!(duplicate(store.commit(set([with_slot(2, 40)])).await), "two classes");
    assert!(duplicate(store.commit(set([Mutation::PutExpiry(expiry(3, Some(40)))])).await), "a class and a bucket");
    put(&*store, [Mutation::PutExpiry(expiry(3, Some(50)))]).await;
    assert!(duplicate(store.commit(set([with_slot(2, 50)])).await), "a bucket and a class");
    assert!(duplicate(store.commit(set([Mutation::PutExpiry(expiry(4, Some(50)))])).await), "two buckets");
    // Dropped and not yet free: it is neither given nor free, and its number does not come back.
    put(&*store, [Mutation::PutExpiry(expiry(3, None))]).await;
    assert_eq!(store.slots(T).await.unwrap(), SlotUse { next: Slot(51), free: vec![] });
    put(&*store, [Mutation::FreeSlot { tenant: T, slot: Slot(50) }]).await;
    put(&*store, [Mutation::FreeSlot { tenant: T, slot: Slot(7) }]).await;
    assert_eq!(store.slots(T).await.unwrap(), SlotUse { next: Slot(51), free: vec![Slot(7), Slot(50)] });
    assert!(duplicate(store.commit(set([with_slot(2, 7)])).await), "free, but not taken");
    let take = |uid| set([Mutation::TakeSlot { tenant: T, slot: Slot(7) }, with_slot(uid, 7)]);
    let (one, two) = tokio::join!(store.commit(take(2)), store.commit(take(3)));
    assert!(one.is_ok() != two.is_ok() && (duplicate(one) || duplicate(two)), "one of two takers");
    assert_eq!(store.slots(T).await.unwrap(), SlotUse { next: Slot(51), free: vec![Slot(50)] });
    assert_eq!(store.slots(OTHER).await.unwrap(), SlotUse { next: Slot(0), free: vec![] });
    let fresh = |uid| set([Mutation::TakeSlot { tenant: T, slot: Slot(90) }, with_slot(uid, 90)]);
    put(&*store, fresh(4).mutations).await;
    let below = [Mutation::TakeSlot { tenant: T, slot: Slot(80) }, with_slot(6, 80)];
    put(&*store, below).await;
    assert!(duplicate(store.commit(fresh(5)).await), "a fresh slot, given already");
    store.close().await;
}

async fn row_numbers_are_given_once(store: Arc<dyn Store>) {
    let first = store.next_uid();
    let second = store.next_uid();
    assert!(second > first);
    put(&*store, [Mutation::PutSubject(subject_row(second.0 + 500))]).await;
    assert!(store.next_uid().0 > second.0 + 500, "a restored row's number is not given again");
    store.close().await;
}

async fn pages_meet_without_gaps(store: Arc<dyn Store>) {
    for uid in 1..=25 {
        store.commit(person(uid)).await.unwrap();
    }
    let stranger = SubjectRow { tenant: OTHER, ..subject_row(26) };
    put(&*store, [Mutation::PutSubject(stranger)]).await;
    for (group, expected) in [(None, 25), (Some(GroupNo(5)), 12), (Some(GroupNo(6)), 0)] {
        let (mut after, mut seen) = (SubjectUid(0), Vec::new());
        loop {
            let page = store.list_subjects(T, group, after, 5).await.unwrap();
            assert!(page.rows.iter().all(|s| s.classes.len() == 2));
            seen.extend(page.rows.iter().map(|s| s.subject.uid));
            if !page.more {
                break;
            }
            after = *seen.last().unwrap();
        }
        assert_eq!(seen.len(), expected);
        assert!(seen.is_sorted());
    }
    let items: Vec<_> = (1..=12).map(|n| Mutation::PutItem(item_row(1, 20, n))).collect();
    put(&*store, items).await;
    let page = store.items(group_row(1, 20).key, ItemNo(5), 7).await.unwrap();
    assert_eq!((page.rows.len(), page.rows[0].item, page.more), (7, ItemNo(6), false));
    assert!(store.items(group_row(1, 20).key, ItemNo(0), 11).await.unwrap().more);
    let key = group_row(1, 20).key;
    let (mut after, mut met) = (None, Vec::new());
    loop {
        let page = store.item_times(T, key.class, after, 5).await.unwrap();
        met.extend(page.rows.iter().map(|one| (one.bucket, one.uid, one.field, one.item)));
        after = page.rows.last().copied();
        if !page.more {
            break;
        }
    }
    assert!(met.len() > 5 && met.windows(2).all(|pair| pair[0] < pair[1]), "{met:?}");
    assert!(store.item_times(OTHER, key.class, None, 5).await.unwrap().rows.is_empty());

    let groups = [(1, 20), (2, 20), (1, 21), (2, 22)];
    put(&*store, groups.map(|(uid, bucket)| Mutation::PutItemGroup(group_row(uid, bucket)))).await;
    let between = async |from, to, after: Option<(u32, i64)>, limit| {
        let after = after.map(|(b, u)| (Bucket(b), SubjectUid(u), FieldNo(9)));
        let page = store.item_groups_between(T, ClassNo(2), Bucket(from), Bucket(to), after, limit).await.unwrap();
        (page.rows.iter().map(|g| (g.key.uid.0, g.key.bucket.0)).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(between(20, 22, None, 9).await, (groups.to_vec(), false));
    assert_eq!(between(20, 21, None, 2).await, (groups[..2].to_vec(), true));
    assert_eq!(between(20, 21, Some((20, 2)), 2).await, (groups[2..3].to_vec(), false));
    assert_eq!(between(21, 22, Some((20, 2)), 9).await, (groups[2..].to_vec(), false));

    for n in 0..10u8 {
        put(&*store, [Mutation::PutObject(object(&[b'k', n])), Mutation::PutTerm(term(i64::from(n), 1))]).await;
    }
    put(&*store, [Mutation::PutObject(object(b"l")), Mutation::PutObject(object(b"k"))]).await;
    let objects = async |prefix: &[u8], after: &[u8], limit| {
        let page = store.objects(T, ObjectKind::Hold, prefix.to_vec(), after.to_vec(), limit).await.unwrap();
        (page.rows.iter().map(|o| o.key.clone()).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(objects(b"k", b"", 50).await.0.len(), 11);
    assert_eq!(objects(b"", b"", 50).await.0.len(), 12);
    assert_eq!(objects(b"", b"k\x09", 50).await, (vec![b"l".to_vec()], false));
    assert_eq!(objects(b"k", b"k\x07", 50).await, (vec![b"k\x08".to_vec(), b"k\x09".to_vec()], false));
    assert_eq!(objects(b"k", b"k", 1).await, (vec![b"k\x00".to_vec()], true));
    let tags = vec![(SecretVersion(1), TermTag([1; 16])), (SecretVersion(2), TermTag([1; 16]))];
    let page = store.find_terms(T, FieldNo(3), tags, SubjectUid(3), 3).await.unwrap();
    assert_eq!((page.rows, page.more), (vec![SubjectUid(4), SubjectUid(5), SubjectUid(6)], true));
    store.close().await;
}

async fn mass_deletions_stop_at_their_limit(store: Arc<dyn Store>) {
    let mut rows = Vec::new();
    for uid in 1..=4 {
        for bucket in [20, 21] {
            rows.push(Mutation::PutItemGroup(group_row(uid, bucket)));
            rows.extend((1..=5).map(|n| Mutation::PutItem(item_row(uid, bucket, n))));
        }
        rows.extend((0..5).map(|tag| Mutation::PutTerm(term(uid, tag))));
        rows.push(Mutation::PutTerm(TermRow { version: SecretVersion(2), ..term(uid, 9) }));
    }
    put(&*store, rows).await;
    let bucket = |limit| [Mutation::DeleteBucket { tenant: T, class: ClassNo(2), bucket: Bucket(20), limit }];
    let removed = [put(&*store, bucket(7)).await.removed, put(&*store, bucket(17)).await.removed];
    assert_eq!(removed, [7, 17], "20 items and 4 groups");
    assert_eq!(put(&*store, bucket(9)).await.removed, 0);
    assert!(store.items(group_row(3, 20).key, ItemNo(0), 9).await.unwrap().rows.is_empty());
    assert_eq!(store.items(group_row(3, 21).key, ItemNo(0), 9).await.unwrap().rows.len(), 5);

    let of = |limit| [Mutation::DeleteItemsOf { tenant: T, uid: SubjectUid(3), class: ClassNo(2), limit }];
    assert_eq!(put(&*store, of(3)).await.removed, 3);
    assert_eq!(store.item_groups(SubjectUid(3), None).await.unwrap().len(), 1, "its items are not all gone");
    assert_eq!(put(&*store, of(u32::MAX)).await.removed, 3);
    assert!(store.item_groups(SubjectUid(3), None).await.unwrap().is_empty());
    assert_eq!(put(&*store, of(u32::MAX)).await.removed, 0);
    assert_eq!(store.items(group_row(2, 21).key, ItemNo(0), 9).await.unwrap().rows.len(), 5);

    let version = |limit| [Mutation::DeleteTermsOfVersion { tenant: T, version: SecretVersion(1), limit }];
    let removed = [put(&*store, version(12)).await.removed, put(&*store, version(12)).await.removed];
    assert_eq!(removed, [12, 8]);
    assert_eq!(store.count_terms(T, SecretVersion(1)).await.unwrap(), 0);
    assert_eq!(store.count_terms(T, SecretVersion(2)).await.unwrap(), 4);
    store.close().await;
}

async fn a_cleared_tenant_leaves_its_row_and_its_audit(store: Arc<dyn Store>) {
    let node = |tenant| NodeRow { tenant, ordinal: Ordinal(3), generation: Generation(1), blob: vec![1; 3869] };
    for uid in 1..=10 {
        store.commit(person(uid)).await.unwrap();
        found(&*store, uid).await.unwrap();
    }
    put(
        &*store,
        [
            Mutation::PutTenant(tenant_row(T)),
            Mutation::PutNode(node(T)),
            Mutation::PutNode(node(OTHER)),
            Mutation::PutNode(NodeRow { tenant: TenantNo(0), ..node(T) }),
            Mutation::PutItemGroup(group_row(1, 20)),
            Mutation::PutItem(item_row(1, 20, 1)),
            Mutation::PutItem(item_row(1, 20, 2)),
            Mutation::PutTerm(term(1, 1)),
            Mutation::PutTombstone(tombstone(70)),
            Mutation::PutExpiry(expiry(20, Some(900))),
            Mutation::FreeSlot { tenant: T, slot: Slot(901) },
            Mutation::PutObject(object(b"k")),
            Mutation::PutObject(ObjectRow { tenant: OTHER, ..object(b"k") }),
            Mutation::PutRequest(request(1)),
            Mutation::PutFeed { tenant: T, at: Timestamp(1), body: vec![1] },
            Mutation::PutSubject(SubjectRow { tenant: OTHER, ..subject_row(50) }),
        ],
    )
    .await;
    let mut rounds = 0;
    while put(&*store, [Mutation::ClearTenant { tenant: T, limit: 4 }]).await.removed > 0 {
        rounds += 1;
        assert!(rounds < 40);
    }
    assert!(rounds >= 5);
    assert_eq!(store.counts(T).await.unwrap(), TenantCounts::default());
    assert!(found(&*store, 1).await.is_none() && store.cached_subject(T, digest(1)).is_none());
    assert!(store.expiries(T).await.unwrap().is_empty() && store.slots(T).await.unwrap().free.is_empty());
    assert!(store.object(T, ObjectKind::Hold, b"k".to_vec()).await.unwrap().is_none());
    assert!(store.request(T, request(1).request).await.unwrap().is_none());
    assert!(store.feed(T, 0, 9).await.unwrap().rows.is_empty());
    assert!(store.items(group_row(1, 20).key, ItemNo(0), 9).await.unwrap().rows.is_empty());
    assert_eq!(store.tenants().await.unwrap(), [tenant_row(T)]);
    assert_eq!(store.audit_head(T).await.unwrap().unwrap().seq, 10);
    let other = store.counts(OTHER).await.unwrap();
    assert_eq!((other.subjects, other.nodes, store.counts(TenantNo(0)).await.unwrap().nodes), (1, 1, 1));
    assert!(store.object(OTHER, ObjectKind::Hold, b"k".to_vec()).await.unwrap().is_some());
    store.close().await;
}

async fn the_audit_has_no_gap(store: Arc<dyn Store>) {
    assert_eq!(store.audit_head(T).await.unwrap(), None);
    let mut waiting = Vec::new();
    for uid in 1..=300 {
        let store = store.clone();
        waiting.push(tokio::spawn(async move {
            let mut change = person(uid);
            change.note(OTHER, note(uid)).note(T, note(uid));
            if uid % 5 == 0 {
                change.require(Precondition::SubjectLive { uid: SubjectUid(9999) });
            }
            store.commit(change).await
        }));
    }
    for task in waiting {
        let _ = task.await.unwrap();
    }
    let bad = set([]).note(T, vec![0xff; 9]).clone();
    assert!(store.commit(bad).await.is_err(), "an entry that nobody could read");
    for (tenant, entries) in [(T, 480), (OTHER, 240)] {
        let head = store.audit_head(tenant).await.unwrap().unwrap();
        assert_eq!(head.seq, entries);
        let (mut after, mut rows) = (0, Vec::new());
        loop {
            let page = store.audit_groups(tenant, after, 3).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.first + u64::from(last.count) - 1;
            rows.extend(page);
        }
        for row in &rows {
            let group = Group::parse(&row.body).unwrap();
            assert_eq!((group.first, group.count, group.time), (row.first, row.count, row.at));
        }
        let bodies = rows.iter().map(|row| &row.body[..]);
        let from = genesis(VAULT, tenant, Chain::Change);
        assert_eq!(verify(tenant, Chain::Change, bodies, from, &[head]).unwrap(), head);
    }
    store.close().await;
}

async fn the_listener_hears_before_the_answer(store: Arc<dyn Store>) {
    struct Heard(AtomicUsize, parking_lot::Mutex<Vec<SubjectUid>>);
    impl CommitListener for Heard {
        fn committed(&self, uids: &[SubjectUid]) {
            self.1.lock().extend(uids);
            self.0.fetch_add(uids.len(), Ordering::SeqCst);
        }
    }
    let heard = Arc::new(Heard(AtomicUsize::new(0), parking_lot::Mutex::default()));
    store.set_listener(heard.clone());
    for uid in 1..=50 {
        store.commit(person(uid)).await.unwrap();
        assert_eq!(heard.0.load(Ordering::SeqCst), uid as usize);
        found(&*store, uid).await.unwrap();
        let mut class = class_row(uid, 1);
        class.revision = Revision(2);
        put(&*store, [Mutation::PutClass(class)]).await;
        assert!(store.cached_subject(T, digest(uid)).is_none(), "purged before the answer");
        assert_eq!(found(&*store, uid).await.unwrap().classes[0].revision, Revision(2));
        heard.0.store(uid as usize, Ordering::SeqCst);
    }
    assert!(heard.1.lock().contains(&SubjectUid(50)));
    store.close().await;
}

async fn closing_finishes_what_is_queued(store: Arc<dyn Store>) {
    let mut waiting = Vec::new();
    for uid in 1..=100 {
        let store = store.clone();
        waiting.push(tokio::spawn(async move { store.commit(person(uid)).await }));
    }
    tokio::task::yield_now().await;
    store.close().await;
    let mut done = 0;
    for task in waiting {
        match task.await.unwrap() {
            Ok(_) => done += 1,
            Err(StoreError::Closed { .. }) => {}
            Err(other) => panic!("neither done nor closed: {other:?}"),
        }
    }
    let refused = store.commit(person(500)).await;
    assert!(matches!(refused, Err(StoreError::Closed { .. })) && done <= 100);
    assert!(matches!(store.subject(T, digest(1)).await, Err(StoreError::Closed { .. })));
    assert!(matches!(store.health(), Err(StoreError::Closed { .. })));
}
