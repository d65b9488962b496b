//! The rows of policies: what the largest one costs a read, what a plan and a report cost a full tenant.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::error::BenchError;
use super::report::Row;
use super::rows::{GET, HOT, Run, at_random, in_turn, key, measured, progress};
use super::served::{Served, failed, operator};
use super::stats::{Bound, Figure};
use super::wire::{Load, Wire, frame};
use crate::access::{Verb, VerbSet, View};
use crate::cli::people::person;
use crate::grpc::pb;
use crate::ids::*;
use crate::policy::compiled::Policy;
use crate::policy::value::Value;
use crate::vault::access_keys::NewAccessKey;
use crate::vault::find::Key;
use crate::vault::rights::{Decided, How, What};
use crate::vault::roles::{NewGrant, NewRole};
use crate::vault::tenant::TenantKind;
use crate::vault::tenants::NewTenant;
use crate::vault::value::NewValue;
use crate::vault::write::{Put, WriteMode};
use crate::vault::{Call, Context};

/// The largest of the three shipped policies by fields, classes and bytes.
const LARGEST: &str = include_str!("../../../examples/tenants/jiwa-ai.toml");
/// One class, one field, one purpose.
const TRIVIAL: &str = r#"
format = 1
time_zone = "UTC"
[controller]
name = "Example"
contact = "privacy@example.com"
[[class]]
number = 1
name = "account"
retention = "none"
[[field]]
number = 1
name = "phone"
class = "account"
type = "text"
validator = "phone_e164"
mask = "phone"
[[purpose]]
number = 1
name = "service"
basis = "contract"
classes = ["account"]
"#;

/// Which rules a read goes through.
struct Rules {
    tenant: &'static str,
    policy: &'static str,
    /// A purpose that allows the phone number; of the largest policy one that is based on consent.
    purpose: &'static str,
    recipient: Option<&'static str>,
}

const RULES: [Rules; 2] = [
    Rules { tenant: "rules-largest", policy: LARGEST, purpose: "notifications", recipient: Some("fonnte") },
    Rules { tenant: "rules-trivial", policy: TRIVIAL, purpose: "service", recipient: None },
];

/// How a read under those rules is asked for.
struct Reads {
    wire: Arc<Wire>,
    frames: Arc<Vec<Bytes>>,
}

impl Run {
    /// Reads under the largest policy beside reads under a trivial one, in turn; a plan and a report over everybody.
    pub async fn policies(&mut self) -> Result<(), BenchError> {
        progress("hot GetFields under the largest policy");
        // In a vault of its own: the other rows count the people of theirs.
        let dir = self.plan.dir.join("rules");
        super::prepare_dir(&dir, &self.plan.dir)?;
        let mut target = self.vault(&dir, self.plan.core).await?;
        let people = HOT.min(self.plan.subjects);
        let made = target.part.ask(json!({ "do": "rules", "count": people })).await?;
        let mut sides = Vec::new();
        for rules in &RULES {
            let side = &made[rules.tenant];
            let number = |name: &str| side[name].as_u64().unwrap_or(0) as u32;
            let wire = self.wire(target.part.port()?, side["credential"].as_str().unwrap_or_default()).await?;
            let request = |n: u64| pb::GetFieldsRequest {
                key: Some(key(&person(n).id)),
                select: Some(pb::Selector { field_ids: vec![number("field")], ..Default::default() }),
                context: Some(pb::AccessContext {
                    purpose_id: number("purpose"),
                    recipient_id: number("recipient"),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let answer = wire.ask::<pb::GetFieldsResponse>(GET, &request(0)).await?;
            if !matches!(answer.values.first().and_then(|v| v.kind.as_ref()), Some(pb::value::Kind::Text(_))) {
                return Err(failed("a read under the rules of the bench answers no value"));
            }
            let frames: Arc<Vec<Bytes>> = Arc::new((0..people).map(|n| frame(&request(n))).collect());
            let warm = Load { calls: people, ..Load::new(GET, self.plan.in_flight, self.plan.window * 100) };
            wire.drive(&warm, in_turn(frames.clone())).await?;
            sides.push(Reads { wire, frames });
        }
        let load = Load::new(GET, self.plan.in_flight, self.plan.window);
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for i in 0..self.plan.windows {
            let order = if i % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut pair = [(0.0, 0.0); 2];
            for side in order {
                let next = at_random(sides[side].frames.clone());
                let (window, cpu) = measured(&target.part, &sides[side].wire, &load, next).await?;
                pair[side] = (window.rate(), cpu);
            }
            rates.push((pair[0].0, pair[1].0));
            cpus.push((pair[0].1, pair[1].1));
        }
        let what = "hot GetFields, largest policy with consent and recipient";
        self.rows.extend(
            Row::against(format!("{what}, rate"), "calls/s", "trivial policy", &rates)
                .map(|row| row.bound(Bound::AtLeast(0.95))),
        );
        self.rows.extend(Row::against(format!("{what}, server CPU"), "us/call", "trivial policy", &cpus));

        target.part.end().await?;

        let mut target = self.vault(&self.vault_dir(), None).await?;
        let subjects = self.plan.subjects;
        for (act, name, most) in [("plan", "PlanPolicy", 30.0), ("report", "GetReport", 10.0)] {
            progress(name);
            let done = target.part.ask(json!({ "do": act })).await?;
            let seconds = done["seconds"].as_f64().unwrap_or(f64::NAN);
            self.rows.push(
                Row::plain(format!("{name} over {subjects} subjects"), Figure::one(seconds), "s")
                    .bound(Bound::AtMost(most)),
            );
        }
        target.part.end().await
    }
}

impl Served {
    /// A tenant for each of the rules, with people, their consents and a key; how to read there.
    pub(super) async fn rules(&self, dir: &Path, count: u64) -> Result<Json, BenchError> {
        let mut made = serde_json::Map::new();
        for rules in &RULES {
            made.insert(rules.tenant.into(), self.rules_of(rules, dir, count).await?);
        }
        Ok(Json::Object(made))
    }

    async fn rules_of(&self, rules: &Rules, dir: &Path, count: u64) -> Result<Json, BenchError> {
        let vault = &self.node.vault;
        let name = |text: &str| Name::parse("name", text).map_err(failed);
        let key_file = dir.join(format!("{}.key", rules.tenant));
        let tenant = match vault.tenant_no(&name(rules.tenant)?) {
            Some(tenant) => tenant,
            None => {
                let own = vault.tenant(TenantNo::VAULT).map_err(failed)?;
                let kind = TenantKind::Test;
                let new =
                    NewTenant { name: name(rules.tenant)?, kind, region: None, display_name: None, quota_subjects: 0 };
                let own = vault.call(operator(), own);
                vault.create_tenant(&own, new, Some(rules.policy), None).await.map_err(failed)?.no
            }
        };
        let call = self.call_in(tenant)?;
        let policy = call.tenant.policy().map_err(failed)?.clone();
        let purpose = policy.purpose_by_name(&name(rules.purpose)?).ok_or_else(|| failed("no such purpose"))?;
        let field = policy.field_by_name(&name("phone")?).ok_or_else(|| failed("no such field"))?.no;
        let recipient = match rules.recipient {
            Some(text) => policy.recipient_by_name(&name(text)?).ok_or_else(|| failed("no such recipient"))?.no,
            None => RecipientNo(0),
        };
        if !key_file.exists() {
            for n in 0..count {
                self.put_phone(&call, &policy, purpose.no, field, n, rules.recipient.is_some()).await?;
            }
            let text = self.reader(tenant, &policy).await?;
            std::fs::write(&key_file, text).map_err(BenchError::io("access key"))?;
        }
        let credential = std::fs::read_to_string(&key_file).map_err(BenchError::io("access key"))?;
        Ok(json!({
            "credential": credential, "field": field.0, "purpose": purpose.no.0, "recipient": recipient.0,
        }))
    }

    async fn put_phone(
        &self,
        call: &Call,
        policy: &Policy,
        purpose: PurposeNo,
        field: FieldNo,
        n: u64,
        consent: bool,
    ) -> Result<(), BenchError> {
        let vault = &self.node.vault;
        let person = person(n);
        let id = SubjectId::parse("subject", &person.id).map_err(failed)?;
        let put = |field, text: String| Put {
            subject: id.clone(),
            values: vec![NewValue { field, value: Value::text(text), origin: None }],
            mode: WriteMode::Upsert,
            group: None,
            etag: None,
            erase_former: false,
        };
        let context = |purpose| Context { purpose: Some(purpose), ..Context::default() };
        if consent {
            let name = |text: &str| Name::parse("name", text).map_err(failed);
            let first = policy.purpose_by_name(&name("sign_in")?).ok_or_else(|| failed("no such purpose"))?.no;
            let field = policy.field_by_name(&name("name")?).ok_or_else(|| failed("no such field"))?.no;
            let done = vault.put_fields(call, &context(first), put(field, person.name.clone()), None, false).await;
            done.map_err(failed)?;
            let decided = Decided { what: What::Granted(purpose), at: None, how: How::Asked, evidence: "bench" };
            let key = Key::Subject(id.clone());
            vault.decide_right(call, &Context::default(), &key, &decided, None).await.map_err(failed)?;
        }
        let done = vault.put_fields(call, &context(purpose), put(field, person.phone.clone()), None, false).await;
        done.map_err(failed).map(drop)
    }

    /// A key that may read everything for every purpose.
    async fn reader(&self, tenant: TenantNo, policy: &Policy) -> Result<String, BenchError> {
        let vault = &self.node.vault;
        let call = vault.local_call(tenant).map_err(failed)?;
        let grant = NewGrant {
            classes: vec![],
            fields: vec![],
            purposes: policy.purposes().map(|purpose| purpose.no).collect(),
            verbs: VerbSet::from_iter([Verb::Read]),
            max_view: View::Plain,
            groups: None,
            subjects_per_hour: 0,
        };
        let role = NewRole { name: Name::parse("role", "reader").map_err(failed)?, grants: vec![grant] };
        let role = vault.create_role(&call, role, None, false).await.map_err(failed)?;
        let role = role.ok_or_else(|| failed("no role was made"))?;
        let name = Name::parse("access key", "reader").map_err(failed)?;
        let new =
            NewAccessKey { name, roles: vec![role.no], expires: None, certificate: None, subjects_per_hour: None };
        let issued = vault.issue_access_key(&call, new, None, false).await.map_err(failed)?;
        let text = issued.and_then(|key| key.text).ok_or_else(|| failed("no access key was issued"))?;
        Ok(text.to_string())
    }

    /// A plan that gives two values of each person an end and looks at the audit; answers how many values there are.
    pub(super) async fn plan(&self) -> Result<u64, BenchError> {
        let call = self.call()?;
        let version = call.tenant.settings.policy;
        let text = self.node.vault.get_policy(&call, version).await.map_err(failed)?.text;
        // Addresses and programs of devices, two values of each person, would end after a year.
        let device = "name = \"device\"\n";
        let shorter = text.replacen(device, &format!("{device}retention = \"365d\"\n"), 1);
        let draft = self.node.vault.draft_policy(&call, &shorter).map_err(failed)?;
        let plan = self.node.vault.plan_policy(&call, &draft, 7, &mut |_| true).await.map_err(failed)?;
        let values: u64 = plan.fields.values().map(|field| field.stored).sum();
        if values == 0 {
            return Err(failed("the plan of the bench looks at no value"));
        }
        Ok(values)
    }
}
