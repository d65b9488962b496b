//! The rows of rotations: how long each takes until its old key is gone, and what readers and writers notice of one that
//! gives everyone new data keys.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::ends::{Readers, Turns};
use super::error::BenchError;
use super::recover::scaled;
use super::report::Row;
use super::rows::{HOT, Run, Target, progress};
use super::served::{Served, failed, operator};
use super::stats::{Bound, Figure};
use crate::crypto::keys::FAN_OUT;
use crate::ids::*;
use crate::vault::operation::{Operation, OperationStatus};
use crate::vault::rotation::DataScope;
use crate::vault::tenant::TenantKind;
use crate::vault::tenants::NewTenant;

/// Between two looks at an operation.
const LOOK: Duration = Duration::from_millis(5);
/// Rotations that are begun until one is met under way.
const BEGUN_AT_MOST: usize = 20;

impl Run {
    /// Rotations: root key, index secret, tree, data keys; the last beside readers and beside writers too.
    pub async fn rotations(&mut self) -> Result<(), BenchError> {
        self.root_key().await?;
        let mut target = self.vault(&self.vault_dir(), None).await?;
        let subjects = self.plan.subjects;

        progress("rotating the index secret");
        let asked = json!({ "do": "rotate", "kind": "index", "first_pass_only": self.plan.smoke });
        let done = target.part.ask(asked).await?;
        let first = done["first_pass"].as_f64().unwrap_or(f64::NAN);
        let what = format!("index rotation: every tag of {subjects} subjects made anew");
        self.rows.push(Row::plain(what, Figure::one(first), "s").bound(scaled(180.0, subjects)));
        // Calls that began before it are waited for, whatever the count.
        if !self.plan.smoke {
            let row = Row::plain("the same, until the old secret is gone", Figure::one(seconds(&done)), "s");
            self.rows.push(row.bound(Bound::AtMost(180.0)));
        }

        progress("rotating the whole tree");
        let done = rotate(&mut target, "tree").await?;
        let slots = done["rows"].as_u64().unwrap_or(0) * FAN_OUT as u64;
        let what = format!("tree rotation of {slots} slots");
        self.rows.push(Row::plain(what, Figure::one(seconds(&done)), "s").bound(scaled(120.0, slots)));

        progress(&format!("rotating the data keys of {subjects} subjects"));
        let done = rotate(&mut target, "data").await?;
        let what = format!("data key rotation of {subjects} subjects of five fields");
        self.rows.push(Row::plain(what, Figure::one(seconds(&done)), "s").bound(scaled(600.0, subjects)));
        let alone = subjects as f64 / seconds(&done);
        self.rows.push(Row::plain("the same, rate", Figure::one(alone), "subjects/s"));

        self.beside_rotation(&mut target).await?;
        self.puts_and_rotation(&mut target).await?;
        target.part.end().await
    }

    /// One key over the roots of many tenants.
    async fn root_key(&mut self) -> Result<(), BenchError> {
        let tenants = (self.plan.subjects / 1_000).clamp(10, 1_000);
        progress(&format!("rotating the root key of {tenants} tenants"));
        let dir = self.plan.dir.join("tenants");
        super::prepare_dir(&dir, &self.plan.dir)?;
        let mut target = self.vault(&dir, None).await?;
        target.part.ask(json!({ "do": "tenants", "count": tenants })).await?;
        let done = rotate(&mut target, "root").await?;
        let what = format!("root key rotation of {tenants} tenants");
        let bound = Bound::AtMost((10.0 * tenants as f64 / 1_000.0).max(2.0));
        self.rows.push(Row::plain(what, Figure::one(seconds(&done)), "s").bound(bound));
        target.part.end().await
    }

    /// What paced readers notice: rest, rest again, and a rotation of all data keys, by turns.
    async fn beside_rotation(&mut self, target: &mut Target) -> Result<(), BenchError> {
        progress("reads beside a rotation of data keys");
        let frames = self.get_frames(target, HOT.min(self.plan.subjects));
        let readers = Readers { wire: target.wire.clone(), frames };
        let mut turns = Turns::default();
        self.window_at_rest(&readers).await?;
        for _ in 0..self.plan.windows {
            let idle = self.window_at_rest(&readers).await?;
            let again = self.window_at_rest(&readers).await?;
            target.part.ask(json!({ "do": "rotate on" })).await?;
            turns.add(idle, again, self.window_at_rest(&readers).await?);
            target.part.ask(json!({ "do": "rotate off" })).await?;
        }
        self.rows.extend(turns.rows("a data key rotation"));
        Ok(())
    }

    /// Both rates where writers take all that they can.
    async fn puts_and_rotation(&mut self, target: &mut Target) -> Result<(), BenchError> {
        progress("puts beside a rotation of data keys");
        let (mut puts, mut moved) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.windows {
            let alone = self.puts(target).await?;
            target.part.ask(json!({ "do": "rotate on" })).await?;
            let beside = self.puts(target).await?;
            let done = target.part.ask(json!({ "do": "rotate off" })).await?;
            puts.push((beside, alone));
            moved.push(done["rows"].as_f64().unwrap_or(f64::NAN) / seconds(&done));
        }
        let what = "durable PutFields, 256 in flight, beside a data key rotation";
        self.rows.extend(Row::against(what, "subjects/s", "without", &puts));
        let rate = Figure::of(moved).map(|f| Row::plain("the rotation beside those puts", f, "subjects/s"));
        self.rows.extend(rate);
        Ok(())
    }
}

fn seconds(done: &Json) -> f64 {
    done["seconds"].as_f64().unwrap_or(f64::NAN)
}

async fn rotate(target: &mut Target, kind: &str) -> Result<Json, BenchError> {
    target.part.ask(json!({ "do": "rotate", "kind": kind })).await
}

/// A rotation of data keys that is let go on and held, by turns.
pub(super) struct Turn {
    operation: ObjectId,
    /// What was done, and when, as it went on.
    done: u64,
    since: Duration,
}

impl Served {
    /// Tenants without anybody in them.
    pub(super) async fn tenants(&self, count: u64) -> Result<(), BenchError> {
        let vault = &self.node.vault;
        let own = vault.tenant(TenantNo::VAULT).map_err(failed)?;
        for n in 0..count {
            let name = Name::parse("tenant", &format!("t-{n}")).map_err(failed)?;
            let new = NewTenant { name, kind: TenantKind::Test, region: None, display_name: None, quota_subjects: 0 };
            vault.create_tenant(&vault.call(operator(), own.clone()), new, None, None).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Begins a rotation and waits for its signed end; the jobs of the server do the work.
    pub(super) async fn rotate(&self, kind: &str, first_pass_only: bool) -> Result<Json, BenchError> {
        let vault = &self.node.vault;
        let tenant = if kind == "root" { TenantNo::VAULT } else { self.tenant };
        let call = self.call_in(tenant)?;
        let began = self.clock.monotonic();
        let subjects = vault.get_tenant(&self.call()?).await.map_err(failed)?.subjects;
        let begun = match kind {
            "root" => vault.rotate_kek(&call, None, None).await,
            "index" => vault.rotate_index(&call, None).await,
            "tree" => vault.rekey_tree(&call, None).await,
            _ => self.begin_data().await,
        };
        let id = begun.map_err(failed)?.id;
        let mut first_pass = None;
        loop {
            let operation = self.looked_at(tenant, id).await?;
            let took = (self.clock.monotonic() - began).as_secs_f64();
            if operation.done >= subjects {
                first_pass.get_or_insert(took);
            }
            match operation.status {
                _ if first_pass_only && first_pass.is_some() => {
                    return Ok(json!({ "rows": operation.done, "seconds": took, "first_pass": first_pass }));
                }
                OperationStatus::Done => {
                    return Ok(json!({ "rows": operation.done, "seconds": took, "first_pass": first_pass }));
                }
                status if status.is_final() => return Err(failed(format!("a rotation ended as {status:?}"))),
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn begin_data(&self) -> Result<Operation, crate::vault::VaultError> {
        let call = self.call().map_err(|_| crate::vault::VaultError::NotFound)?;
        let begun = self.node.vault.rotate_data(&call, DataScope::default(), None, false).await?;
        begun.ok_or(crate::vault::VaultError::NotFound)
    }

    async fn looked_at(&self, tenant: TenantNo, id: ObjectId) -> Result<Operation, BenchError> {
        Ok(self.node.vault.operation(tenant, id).await.map_err(failed)?.0)
    }

    /// Lets a rotation of all data keys go on; returns once it moves.
    pub(super) async fn rotate_on(&self) -> Result<Turn, BenchError> {
        let call = self.call()?;
        // One of few subjects may be over in a single step, between two looks.
        for _ in 0..BEGUN_AT_MOST {
            let before = self.begin_data().await.map_err(failed)?;
            if before.status == OperationStatus::Paused {
                self.node.vault.pause_operation(&call, before.id, false, None).await.map_err(failed)?;
            }
            loop {
                let now = self.looked_at(self.tenant, before.id).await?;
                if now.status.is_final() {
                    break;
                }
                if now.done > before.done {
                    return Ok(Turn { operation: before.id, done: now.done, since: self.clock.monotonic() });
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Err(failed("every rotation ended before it was measured: more subjects are needed"))
    }

    /// Holds it again; answers how many subjects it had meanwhile.
    pub(super) async fn rotate_off(&self, turn: Turn) -> Result<Json, BenchError> {
        let held = self.node.vault.pause_operation(&self.call()?, turn.operation, true, None).await;
        let seconds = (self.clock.monotonic() - turn.since).as_secs_f64();
        let now = self.looked_at(self.tenant, turn.operation).await?;
        // It may have ended before it was held.
        if let Err(error) = held
            && !now.status.is_final()
        {
            return Err(failed(error));
        }
        Ok(json!({ "rows": now.done.saturating_sub(turn.done), "seconds": seconds }))
    }
}
