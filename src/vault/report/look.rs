//! What a report looks at once, before it judges the claims.

use std::collections::{BTreeMap, BTreeSet};

use super::{ArchivesSeen, Surroundings};
use crate::clock::Timestamp;
use crate::ids::*;
use crate::policy::compiled::Policy;
use crate::policy::file::{FieldType, Validator};
use crate::policy::value::{Value, check};
use crate::storage::ObjectKind;
use crate::vault::Vault;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::record::RecordView;
use crate::vault::rights::requests::RightsRequest;

/// Subjects that a report looks at, in so many places along the order of their creation.
const SAMPLE: u64 = 2_000;
const PLACES: u64 = 20;
/// A number that is right by the Luhn formula and was made for tests.
const TEST_CARD: &str = "4111 1111 1111 1111";

/// What was looked at.
pub(super) struct Seen {
    pub now: Timestamp,
    pub requests: Vec<RightsRequest>,
    /// Expiry keys that live, and the days of those that should be gone.
    pub expiry_keys: usize,
    pub expired: Vec<i64>,
    /// People of the sample and of the tenant.
    pub people: usize,
    pub all_people: u64,
    /// Records of the sample, those of them that are no sealed records, and how many the classes have.
    pub records: usize,
    pub unsealed: usize,
    pub by_class: BTreeMap<ClassNo, usize>,
    /// People of the sample about whose decisions something is on record.
    pub decided: usize,
    /// Credentials of the sample by kind and algorithm.
    pub credentials: BTreeMap<(&'static str, &'static str), u64>,
    /// Access keys, those of them without an Argon2id hash, and those that work.
    pub keys: usize,
    pub unhashed: usize,
    /// Text fields, and those that would take a card number.
    pub texts: usize,
    pub open_to_cards: Vec<String>,
    pub pinned: Option<Name>,
    pub node_region: String,
    pub tls: Option<(&'static str, &'static str)>,
    pub archives: Option<ArchivesSeen>,
}

impl Seen {
    pub fn overdue(&self) -> impl Iterator<Item = &RightsRequest> {
        self.requests.iter().filter(|request| request.overdue(self.now))
    }

    /// Answered, but after they were due.
    pub fn late(&self) -> impl Iterator<Item = &RightsRequest> {
        self.requests.iter().filter(|r| r.closed.zip(r.due).is_some_and(|(closed, due)| closed >= due))
    }

    /// In words: who was looked at.
    pub fn sample(&self) -> String {
        match self.people as u64 == self.all_people {
            true => format!("all {} people", self.people),
            false => format!("a sample of {} of {} people", self.people, self.all_people),
        }
    }
}

impl Vault {
    /// Looks at what is stored.
    pub(super) async fn look(&self, call: &Call, policy: &Policy, around: &Surroundings) -> Result<Seen, VaultError> {
        let tenant = call.tenant.no;
        let expiries = self.store.expiries(tenant).await?;
        let live = expiries.iter().filter(|row| row.slot.is_some());
        // The job that drops them runs each hour; a day more is a failure.
        let over = |bucket: Bucket| i64::from(bucket.0) < call.now.day() - 1;
        let texts: Vec<_> = policy.fields().filter(|f| f.kind == FieldType::Text).collect();
        let card = Value::text(TEST_CARD.into());
        let takes = |f: &&&_| check(f, &card).is_ok();
        let phones = |f: &&&crate::policy::compiled::FieldRule| f.validator == Validator::PhoneE164;
        let mut seen = Seen {
            now: call.now,
            requests: self.all_requests(call).await?,
            expiry_keys: live.clone().count(),
            expired: live.filter(|row| over(row.bucket)).map(|row| row.bucket.0.into()).collect(),
            people: 0,
            all_people: self.store.subject_count(tenant).await?,
            records: 0,
            unsealed: 0,
            by_class: BTreeMap::new(),
            decided: 0,
            credentials: BTreeMap::new(),
            keys: 0,
            unhashed: 0,
            texts: texts.len(),
            open_to_cards: texts.iter().filter(|f| takes(f) && !phones(f)).map(|f| f.name.to_string()).collect(),
            pinned: call.tenant.settings.region.clone(),
            node_region: self.options.region.clone(),
            tls: around.tls,
            archives: around.archives.clone(),
        };
        self.look_at_people(call, &mut seen).await?;
        self.look_at_keys(call, &mut seen).await?;
        Ok(seen)
    }

    /// Everybody while they are few, else some from all along the order in which they came.
    async fn look_at_people(&self, call: &Call, seen: &mut Seen) -> Result<(), VaultError> {
        let credentials = call.tenant.policy()?.credentials().is_some();
        let places = if seen.all_people <= SAMPLE { 1 } else { PLACES };
        // Numbers of subjects are given in order, over all tenants.
        let next = if places == 1 { 0 } else { self.store.next_uid().0 };
        let mut known = BTreeSet::new();
        for place in 0..places {
            let from = SubjectUid(next / places as i64 * place as i64);
            let limit = (SAMPLE / places) as u32;
            for snapshot in self.store.list_subjects(call.tenant.no, None, from, limit).await?.rows {
                if !known.insert(snapshot.subject.uid) {
                    continue;
                }
                for row in snapshot.classes.iter().filter(|row| row.slot.is_some() && !row.record.is_empty()) {
                    seen.records += 1;
                    seen.unsealed += usize::from(RecordView::parse(&row.record).is_err());
                    *seen.by_class.entry(row.class).or_default() += 1;
                    seen.decided += usize::from(row.class == ClassNo::OWN);
                }
                if credentials {
                    for (kind, algorithm, count) in self.credentials_of(call, &snapshot).await? {
                        *seen.credentials.entry((kind, algorithm)).or_default() += count;
                    }
                }
            }
        }
        seen.people = known.len();
        Ok(())
    }

    async fn look_at_keys(&self, call: &Call, seen: &mut Seen) -> Result<(), VaultError> {
        let mut after = Vec::new();
        loop {
            let page = self.store.objects(call.tenant.no, ObjectKind::AccessKey, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                seen.keys += 1;
                let hashed = row.body.windows(b"$argon2id$".len()).any(|part| part == b"$argon2id$");
                seen.unhashed += usize::from(!hashed);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(()),
            }
        }
    }
}
