//! The signed checkpoint over the heads of all chains: the newest one and the last one of each day.

use crate::access::Verb;
use crate::audit::*;
use crate::clock::Timestamp;
use crate::ids::*;
use crate::keyring::{Keyring, TenantKeyState};
use crate::storage::*;
use crate::vault::Vault;
use crate::vault::audit_tree::day_no;
use crate::vault::call::Call;
use crate::vault::error::VaultError;
use crate::vault::signers;

/// A checkpoint younger than this is answered as it is; older ones are made anew.
const CHECKPOINT_MS: i64 = 60_000;
/// Where the newest checkpoint is kept, in the vault's own tenant.
const CHECKPOINT_KEY: &[u8] = b"newest";
/// Prefix of the last checkpoint of each day (in UTC, by number, four bytes).
const OF_DAY: &[u8] = b"day";

pub(crate) fn day_key(at: Timestamp) -> Vec<u8> {
    [OF_DAY, &day_no(at).to_be_bytes()].concat()
}

/// The heads of the read chains that the newest checkpoint names: what the read log must hold when it is opened.
///
/// # Errors
/// `DataLoss` where the checkpoint was not signed by this vault.
pub async fn known_reads(
    store: &dyn Store,
    keyring: &Keyring,
    now: Timestamp,
) -> Result<Vec<(TenantNo, Head)>, VaultError> {
    if keyring.state(TenantNo::VAULT) != TenantKeyState::Ready {
        // Nothing can be compared; who opens such a vault hears of its keys.
        return Ok(Vec::new());
    }
    let row = store.object(TenantNo::VAULT, ObjectKind::Checkpoint, CHECKPOINT_KEY.to_vec()).await?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let keys: Vec<[u8; 32]> = signers::load(store, keyring, now).await?.iter().map(|one| one.public).collect();
    let checkpoint = Checkpoint::from_json(&row.body, &keys).map_err(|_| VaultError::DataLoss)?;
    let reads = checkpoint.heads().iter().filter(|one| one.chain == Chain::Read && one.head.seq > 0);
    Ok(reads.map(|one| (one.tenant, one.head)).collect())
}

impl Vault {
    /// The newest checkpoint, made now if the last one is older than a minute; or the last one of the day that `at` lies
    /// in. For who has the verb AUDIT.
    pub async fn get_checkpoint(&self, call: &Call, at: Option<Timestamp>) -> Result<Checkpoint, VaultError> {
        call.permit(Verb::Audit)?;
        if let Some(at) = at {
            let row = self.store.object(TenantNo::VAULT, ObjectKind::Checkpoint, day_key(at)).await?;
            let checkpoint = self.read_checkpoint(&row.ok_or(VaultError::NotFound)?)?;
            self.note_listing(call, Action::Checkpoint).await?;
            return Ok(checkpoint);
        }
        let tenant = call.tenant.no;
        let newest = self.stored_checkpoint().await?;
        let fresh = newest.filter(|c| {
            (0..CHECKPOINT_MS).contains(&(call.wall.0 - c.at().0)) && c.head(tenant, Chain::Change).is_some()
        });
        let checkpoint = match fresh {
            Some(checkpoint) => checkpoint,
            None => self.make_checkpoint(call.wall).await?,
        };
        self.note_listing(call, Action::Checkpoint).await?;
        Ok(checkpoint)
    }

    /// Signs the heads of all chains and keeps the result as the newest checkpoint and the last one of its day.
    pub async fn make_checkpoint(&self, now: Timestamp) -> Result<Checkpoint, VaultError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        self.checkpoint_now(now).await
    }

    /// The same, and the trees of a tenant's chains of changes and of reads as it signs them; `None`: a chain without
    /// entries, or without a tree.
    pub(crate) async fn checkpoint_with_trees(
        &self,
        tenant: TenantNo,
        now: Timestamp,
    ) -> Result<(Checkpoint, [Option<GrowingTree>; 2]), VaultError> {
        let _one_at_a_time = self.checkpointing.lock().await;
        let checkpoint = self.checkpoint_now(now).await?;
        let mut trees = [None, None];
        for (tree, chain) in trees.iter_mut().zip([Chain::Change, Chain::Read]) {
            *tree = self.kept_tree(tenant, chain, None).await?.map(|kept| kept.tree);
        }
        Ok((checkpoint, trees))
    }

    async fn checkpoint_now(&self, now: Timestamp) -> Result<Checkpoint, VaultError> {
        let (mut heads, mut change) = (Vec::new(), ChangeSet::default());
        for row in self.store.tenants().await? {
            for chain in [Chain::Change, Chain::Read] {
                heads.push(self.head_with_tree(row.no, chain, now, &mut change).await?);
            }
        }
        let checkpoint = Checkpoint::sign(self.keyring.vault(), now, heads, &self.keyring.signing());
        for key in [CHECKPOINT_KEY.to_vec(), day_key(now)] {
            let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
            let row = self.store.object(tenant, kind, key.clone()).await?;
            let revision = Revision(row.map_or(0, |row| row.revision.0) + 1);
            change.change(Mutation::PutObject(ObjectRow { tenant, kind, key, revision, body: checkpoint.to_json() }));
        }
        self.store.commit(change).await?;
        Ok(checkpoint)
    }

    /// The newest checkpoint that is kept, if its signature is right.
    pub(crate) async fn stored_checkpoint(&self) -> Result<Option<Checkpoint>, VaultError> {
        let row = self.store.object(TenantNo::VAULT, ObjectKind::Checkpoint, CHECKPOINT_KEY.to_vec()).await?;
        row.map(|row| self.read_checkpoint(&row)).transpose()
    }

    pub(crate) fn read_checkpoint(&self, row: &ObjectRow) -> Result<Checkpoint, VaultError> {
        Checkpoint::from_json(&row.body, &self.receipt_keys()).map_err(|_| VaultError::DataLoss)
    }

    /// Rows of the last checkpoints of days after that of `after`, oldest first.
    pub(crate) async fn checkpoints_of_days(&self, after: &[u8], limit: u32) -> Result<Page<ObjectRow>, VaultError> {
        let after = if after.is_empty() { OF_DAY } else { after };
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        Ok(self.store.objects(tenant, kind, OF_DAY.to_vec(), after.to_vec(), limit).await?)
    }

    /// The last checkpoint of each day, and the newest.
    pub(crate) async fn kept_checkpoints(&self) -> Result<Vec<Checkpoint>, VaultError> {
        let (mut kept, mut after) = (Vec::new(), Vec::new());
        loop {
            let page = self.store.objects(TenantNo::VAULT, ObjectKind::Checkpoint, Vec::new(), after, 100).await?;
            for row in &page.rows {
                kept.push(self.read_checkpoint(row)?);
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => return Ok(kept),
            }
        }
    }

    /// Removes checkpoints of days before `before`; answers how many.
    pub(crate) async fn prune_checkpoints(&self, before: Timestamp) -> Result<usize, VaultError> {
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        let page = self.store.objects(tenant, kind, OF_DAY.to_vec(), OF_DAY.to_vec(), 100).await?;
        let end = day_key(before);
        let mut change = ChangeSet::default();
        for row in page.rows.into_iter().filter(|row| row.key < end) {
            change.change(Mutation::DeleteObject { tenant, kind, key: row.key });
        }
        let old = change.mutations.len();
        if old > 0 {
            self.store.commit(change).await?;
        }
        self.drop_trees(Some(before)).await?;
        Ok(old)
    }

    /// By who has the machine, with the server stopped: the read audit is what it is now, although it lacks what a
    /// checkpoint names. Checkpoints begin anew; those that others keep go on to show the loss, and so does the entry.
    pub async fn accept_audit_loss(&self) -> Result<(), VaultError> {
        let (tenant, kind) = (TenantNo::VAULT, ObjectKind::Checkpoint);
        let mut change = ChangeSet::default();
        let mut after = Vec::new();
        loop {
            let page = self.store.objects(tenant, kind, Vec::new(), after, 1_000).await?;
            for row in &page.rows {
                change.change(Mutation::DeleteObject { tenant, kind, key: row.key.clone() });
            }
            match page.rows.last() {
                Some(last) if page.more => after = last.key.clone(),
                _ => break,
            }
        }
        let now = self.clock.now();
        let entry = AuditRecord::new(now, ActorId(0), Action::VerifyAudit, Outcome::DataLoss);
        change.note(tenant, entry.to_bytes());
        self.store.commit(change).await?;
        self.drop_trees(None).await?;
        self.make_checkpoint(now).await?;
        Ok(())
    }
}
