//! T23: lists, batches, searches and exports obey the same rule as a single read. Random policies and grants, called through
//! the service; what may be seen is said here once more in plain words.

use pii_vault::access::{Verb, VerbSet, View};
use pii_vault::grpc::pb;
use pii_vault::grpc::pb::record_service_client::RecordServiceClient;
use pii_vault::grpc::pb::rights_service_client::RightsServiceClient;
use pii_vault::grpc::pb::subject_service_client::SubjectServiceClient;
use pii_vault::ids::*;
use pii_vault::vault::access_keys::NewAccessKey;
use pii_vault::vault::roles::{NewGrant, NewRole};
use proptest::prelude::*;
use tonic::Code;

use crate::net::*;

/// Single-valued fields; the many-valued one and the one to search by.
const FIELDS: [u32; 5] = [1, 2, 3, 4, EMAIL_FIELD];
const NOTE: u32 = 6;
const EMAIL_FIELD: u32 = 5;
const PURPOSES: [u16; 3] = [1, 2, 3];

const HEAD: &str = r#"format = 1
time_zone = "UTC"
forbidden = ["sale"]
[controller]
name = "Example"
contact = "privacy@example.com"
[[category]]
name = "person"
"#;

/// Class of a field of this test's policies.
fn class_of(field: u32) -> u16 {
    match field {
        1 | EMAIL_FIELD => 1,
        2 | NOTE => 2,
        _ => 3,
    }
}

/// Whether a field of this test's policies has a mask.
fn has_mask(field: u32) -> bool {
    field != 2 && field != NOTE
}

#[derive(Debug, Clone)]
struct Purpose {
    classes: Vec<u16>,
    fields: Vec<u32>,
    view: View,
    /// Based on consent; the subject `in` consented, `out` did not.
    consent: bool,
}

/// Empty lists of classes and fields: every field. Empty list of groups: every subject.
#[derive(Debug, Clone)]
struct GrantOf {
    classes: Vec<u16>,
    fields: Vec<u32>,
    purposes: Vec<u16>,
    verbs: Vec<Verb>,
    view: View,
    group: bool,
}

#[derive(Debug, Clone)]
struct Case {
    purposes: Vec<Purpose>,
    grants: Vec<GrantOf>,
    asked: u16,
}

fn view() -> impl Strategy<Value = View> {
    prop_oneof![2 => Just(View::Plain), 1 => Just(View::Masked)]
}

fn case() -> impl Strategy<Value = Case> {
    let classes = || prop::sample::subsequence(vec![1u16, 2, 3], 0..=3);
    let fields = || prop::sample::subsequence(vec![1u32, 2, 3, 4, EMAIL_FIELD, NOTE], 0..=3);
    let purpose = (prop::sample::subsequence(vec![1u16, 2, 3], 1..=2), fields(), view(), any::<bool>())
        .prop_map(|(classes, fields, view, consent)| Purpose { classes, fields, view, consent });
    let grant = (
        classes(),
        fields(),
        prop::sample::subsequence(PURPOSES.to_vec(), 1..=3),
        prop::sample::subsequence(vec![Verb::Read, Verb::Export, Verb::Find], 1..=3),
        view(),
        any::<bool>(),
    )
        .prop_map(|(classes, fields, purposes, verbs, view, group)| GrantOf {
            classes,
            fields,
            purposes,
            verbs,
            view,
            group,
        });
    (prop::collection::vec(purpose, 3), prop::collection::vec(grant, 1..4), prop::sample::select(PURPOSES.to_vec()))
        .prop_map(|(purposes, grants, asked)| Case { purposes, grants, asked })
}

impl Case {
    fn policy(&self) -> String {
        let mut text = String::from(HEAD);
        for (no, name) in [(1, "account"), (2, "content"), (3, "billing")] {
            text += &format!("[[class]]\nnumber = {no}\nname = \"{name}\"\nretention = \"none\"\n");
        }
        let names = ["account", "content", "billing"];
        for field in FIELDS.into_iter().chain([NOTE]) {
            let class = names[usize::from(class_of(field)) - 1];
            text += &format!("[[field]]\nnumber = {field}\nname = \"f{field}\"\nclass = \"{class}\"\n");
            text += "category = \"person\"\ntype = \"text\"\nmax_length = 100\n";
            text += if has_mask(field) { "mask = \"last:2\"\n" } else { "" };
            text += if field == NOTE { "many = true\n" } else { "" };
            text += if field == EMAIL_FIELD { "searchable = true\n" } else { "" };
        }
        for (no, purpose) in PURPOSES.iter().zip(&self.purposes) {
            let classes: Vec<_> =
                purpose.classes.iter().map(|c| format!("\"{}\"", names[usize::from(*c) - 1])).collect();
            let fields: Vec<_> = purpose.fields.iter().map(|f| format!("\"f{f}\"")).collect();
            let basis = if purpose.consent { "consent" } else { "contract" };
            text += &format!("[[purpose]]\nnumber = {no}\nname = \"p{no}\"\nbasis = \"{basis}\"\n");
            text += &format!("classes = [{}]\n", classes.join(", "));
            if !fields.is_empty() {
                text += &format!("fields = [{}]\n", fields.join(", "));
            }
            text += if purpose.view == View::Masked { "view = \"masked\"\n" } else { "" };
        }
        // Puts what is read below; nobody else has it.
        text += "[[purpose]]\nnumber = 9\nname = \"fill\"\nbasis = \"contract\"\n";
        text += "classes = [\"account\", \"content\", \"billing\"]\n";
        text
    }

    /// How a field of a subject is to be shown for a verb; `None`: not at all.
    fn expected(&self, verb: Verb, field: u32, in_group: bool) -> Option<View> {
        let purpose = &self.purposes[usize::from(self.asked) - 1];
        let every = |g: &GrantOf| g.classes.is_empty() && g.fields.is_empty();
        let granted = self
            .grants
            .iter()
            .filter(|g| g.verbs.contains(&verb) && g.purposes.contains(&self.asked))
            .filter(|g| every(g) || g.classes.contains(&class_of(field)) || g.fields.contains(&field))
            .filter(|g| !g.group || in_group)
            .map(|g| g.view)
            .max()?;
        if !purpose.classes.contains(&class_of(field)) && !purpose.fields.contains(&field) {
            return None;
        }
        if purpose.consent && !in_group {
            return None;
        }
        let view = granted.min(purpose.view);
        let shows = matches!(verb, Verb::Read | Verb::Export);
        if shows && view == View::Masked && !has_mask(field) { None } else { Some(view) }
    }
}

/// What only this field of this subject holds.
fn canary(subject: &str, field: u32) -> String {
    format!("canary-{subject}-{field}-x")
}

/// What a value is shown as.
fn shown(value: &pb::Value) -> Result<&str, pb::Absence> {
    match &value.kind {
        Some(pb::value::Kind::Text(text)) => Ok(text),
        _ => Err(value.absence()),
    }
}

/// Compares one shown value with the rule.
fn check(case: &Case, how: &str, subject: &str, field: u32, value: &pb::Value, verb: Verb) {
    let whole = canary(subject, field);
    match (case.expected(verb, field, subject == "in"), shown(value)) {
        (Some(View::Plain), Ok(text)) => assert_eq!(text, whole, "{how}: field {field} of {subject}"),
        (Some(View::Masked), Ok(text)) => {
            assert_ne!(text, whole, "{how}: field {field} of {subject} is to be masked");
            assert_eq!(value.view(), pb::View::Masked);
        }
        (None, Err(pb::Absence::Denied | pb::Absence::NoConsent)) => {}
        (wanted, got) => panic!("{how}: field {field} of {subject}: {wanted:?} is the rule, got {got:?}"),
    }
}

/// Makes tenant, people and key of a case; answers the key's text.
async fn prepare(running: &Running, case: &Case, n: usize) -> String {
    let t = &running.test;
    let tenant = t.tenant(&format!("tenant-{n}"), &case.policy()).await;
    let vault = &t.node.vault;
    let all = running.key(tenant, "filler").await;
    let mut subjects = SubjectServiceClient::new(running.channel.clone());
    let mut records = RecordServiceClient::new(running.channel.clone());
    let make = pb::CreateGroupRequest {
        group: Some(pb::Group { group: "acme".into(), ..Default::default() }),
        ..Default::default()
    };
    subjects.create_group(with(&all, make)).await.expect("group");
    for (subject, group) in [("in", "acme"), ("out", "")] {
        let values = FIELDS.iter().map(|field| text_value(*field, &canary(subject, *field))).collect();
        let (context, group) = (for_purpose(9), group.to_owned());
        let put = pb::PutFieldsRequest { subject: subject.into(), values, context, group, ..Default::default() };
        records.put_fields(with(&all, put)).await.expect("put");
        let append = pb::AppendItemsRequest {
            subject: subject.into(),
            field_id: NOTE,
            items: vec![pb::NewItem { values: vec![text_value(0, &canary(subject, NOTE))], origin_time: None }],
            context: for_purpose(9),
            ..Default::default()
        };
        records.append_items(with(&all, append)).await.expect("append");
    }
    let mut rights = RightsServiceClient::new(running.channel.clone());
    for (no, _) in PURPOSES.iter().zip(&case.purposes).filter(|(_, purpose)| purpose.consent) {
        let consent = pb::ConsentGrant { purpose_id: u32::from(*no), ..Default::default() };
        let grant = pb::GrantConsentRequest { key: by_id("in"), consent: Some(consent), ..Default::default() };
        rights.grant_consent(with(&all, grant)).await.expect("consent");
    }
    let call = vault.local_call(tenant).unwrap();
    let grants = case.grants.iter().map(|g| NewGrant {
        classes: g.classes.iter().map(|no| ClassNo(*no as u8)).collect(),
        fields: g.fields.iter().map(|no| FieldNo(*no as u16)).collect(),
        purposes: g.purposes.iter().map(|no| PurposeNo(*no)).collect(),
        verbs: VerbSet::from_iter(g.verbs.iter().copied()),
        max_view: g.view,
        groups: g.group.then(|| vec![crate::harness::id("acme")]),
        subjects_per_hour: 0,
    });
    let new = NewRole { name: Name::parse("role", "case").unwrap(), grants: grants.collect() };
    let role = vault.create_role(&call, new, None, false).await.expect("role").unwrap().no;
    let new = NewAccessKey {
        name: Name::parse("name", "case").unwrap(),
        roles: vec![role],
        expires: None,
        certificate: None,
        subjects_per_hour: None,
    };
    let issued = vault.issue_access_key(&call, new, None, false).await.expect("key").unwrap();
    issued.text.unwrap().to_string()
}

async fn obeys(running: &Running, case: &Case, n: usize) {
    let key = prepare(running, case, n).await;
    let context = for_purpose(u32::from(case.asked));
    let mut records = RecordServiceClient::new(running.channel.clone());
    let select = |fields: &[u32]| Some(pb::Selector { field_ids: fields.to_vec(), ..Default::default() });
    let partial = pb::Partial::Allowed as i32;

    for subject in ["in", "out"] {
        let ask = |fields: &[u32], partial| pb::GetFieldsRequest {
            key: by_id(subject),
            select: select(fields),
            context: context.clone(),
            partial,
            ..Default::default()
        };
        let any = FIELDS.iter().any(|f| case.expected(Verb::Read, *f, subject == "in").is_some());
        match records.get_fields(with(&key, ask(&FIELDS, partial))).await {
            Ok(answer) => {
                for (field, value) in FIELDS.iter().zip(&answer.into_inner().values) {
                    check(case, "GetFields", subject, *field, value, Verb::Read);
                }
            }
            Err(status) => {
                let no = [Code::PermissionDenied, Code::FailedPrecondition].contains(&status.code());
                assert!(!any && no, "{status:?}");
            }
        }
        // One field, all or nothing; and everything that there is.
        for field in FIELDS {
            let one = records.get_fields(with(&key, ask(&[field], 0))).await;
            let allowed = case.expected(Verb::Read, field, subject == "in").is_some();
            assert_eq!(one.is_ok(), allowed, "GetFields of {field} of {subject}: {:?}", one.err());
        }
        if let Ok(answer) = records.get_fields(with(&key, ask(&[], 0))).await {
            for value in answer.into_inner().values.iter().filter(|value| value.kind.is_some()) {
                check(case, "GetFields of all", subject, value.field_id, value, Verb::Read);
            }
        }
        let list = pb::ListItemsRequest {
            key: by_id(subject),
            field_id: NOTE,
            context: context.clone(),
            ..Default::default()
        };
        let listed = records.list_items(with(&key, list)).await;
        let allowed = case.expected(Verb::Read, NOTE, subject == "in").is_some();
        assert_eq!(listed.is_ok(), allowed, "ListItems of {subject}: {:?}", listed.err());
        if let Ok(listed) = listed {
            for item in listed.into_inner().items {
                check(case, "ListItems", subject, NOTE, &item.values[0], Verb::Read);
            }
        }
        for format in [pb::ExportFormat::Json, pb::ExportFormat::Csv] {
            let export = pb::ExportSubjectRequest {
                key: by_id(subject),
                context: context.clone(),
                format: format as i32,
                ..Default::default()
            };
            let mut document = Vec::new();
            if let Ok(answer) = records.export_subject(with(&key, export)).await {
                let mut chunks = answer.into_inner();
                while let Ok(Some(chunk)) = chunks.message().await {
                    document.extend_from_slice(&chunk.data);
                }
            }
            let document = String::from_utf8(document).unwrap();
            for field in FIELDS.into_iter().chain([NOTE]) {
                let plain = case.expected(Verb::Export, field, subject == "in") == Some(View::Plain);
                let there = document.contains(&canary(subject, field));
                assert_eq!(there, plain, "export of field {field} of {subject}");
            }
        }
    }

    let batch = pb::BatchGetFieldsRequest {
        keys: vec![by_id("in").unwrap(), by_id("out").unwrap()],
        select: select(&FIELDS),
        context: context.clone(),
        partial,
        ..Default::default()
    };
    if let Ok(answer) = records.batch_get_fields(with(&key, batch)).await {
        for (subject, outcome) in ["in", "out"].iter().zip(answer.into_inner().outcomes) {
            let any = FIELDS.iter().any(|f| case.expected(Verb::Read, *f, *subject == "in").is_some());
            match outcome.outcome {
                Some(pb::get_outcome::Outcome::Result(got)) => {
                    for (field, value) in FIELDS.iter().zip(&got.values) {
                        check(case, "BatchGetFields", subject, *field, value, Verb::Read);
                    }
                }
                _ => assert!(!any, "{subject} was refused in the batch"),
            }
        }
    }

    let mut people = SubjectServiceClient::new(running.channel.clone());
    for subject in ["in", "out"] {
        let find = pb::FindSubjectsRequest {
            term: Some(pb::Term { field_id: EMAIL_FIELD, text: canary(subject, EMAIL_FIELD), ..Default::default() }),
            context: context.clone(),
            select: select(&FIELDS),
            ..Default::default()
        };
        let allowed = case.expected(Verb::Find, EMAIL_FIELD, subject == "in").is_some();
        match people.find_subjects(with(&key, find)).await {
            Err(_) => {}
            Ok(answer) => {
                let answer = answer.into_inner();
                assert!(allowed || answer.subjects.is_empty(), "FindSubjects told of {subject}");
                for found in &answer.subjects {
                    for value in &found.values {
                        if value.kind.is_some() {
                            check(case, "FindSubjects", subject, value.field_id, value, Verb::Read);
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: crate::harness::rounds(4, 100),
        rng_seed: crate::harness::seed(),
        max_shrink_iters: 30, failure_persistence: None, ..ProptestConfig::default()
    })]
    /// 50 random policies and grants over one server in each case.
    #[test]
    fn t23_every_way_to_read_obeys_the_rule_of_a_single_read(cases in prop::collection::vec(case(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let running = Running::new().await;
            for (n, case) in cases.iter().enumerate() {
                obeys(&running, case, n).await;
            }
        });
    }
}
