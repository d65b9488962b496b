//! The swap: how keys die. The database commit is the only decision; the keeper's slots carry no state.
//!
//! 1. Collect what waits for the tenant.
//! 2. Write R(d+1) beside R(d) in every replica.
//! 3. Commit nodes, generation and the operations' own changes.
//! 4. Wipe what was replaced from memory.
//! 5. Append the ledger, overwrite R(d) in every replica.
//!
//! Step 6, the state `ERASED` and the receipt, belongs to the vault.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::clock::Timestamp;
use crate::crypto::keys::TenantRoot;
use crate::ids::*;
use crate::keyring::error::KeyringError;
use crate::keyring::keeper::KeeperError;
use crate::keyring::ledger::LedgerEntry;
use crate::keyring::loading::Keep;
use crate::keyring::ring::{Keyring, Present, TenantKeys};
use crate::keyring::state::TenantKeyState;
use crate::keyring::tree::{self, Grown, RESERVED};
use crate::storage::{ChangeSet, Conflict, Mutation, ObjectKind, Precondition, StoreError};

/// Most operations in one swap.
pub const MOST_OPERATIONS: usize = 1_000;
/// No operation joins a swap that touches this many leaves already (16 MiB of nodes); a larger one goes alone.
pub const MOST_LEAVES: usize = 4_000;
/// Most operations that wait for one tenant; more are `Busy`.
pub const MOST_WAITING: usize = 10_000;

/// One operation that drops keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwapOp {
    /// Slots whose keys die; each is freed in the same change set. Empty: the root is rotated.
    pub slots: Vec<Slot>,
    /// Numbers of leaves that get fresh node keys on their whole path although none of their keys dies.
    pub leaves: std::ops::Range<u32>,
    /// Committed together with the new nodes.
    pub change: ChangeSet,
    /// Durable before the old root is overwritten. Entries with generation 0 get the new one.
    pub ledger: Vec<LedgerEntry>,
}

/// The keys are gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swapped {
    /// The tree's new generation.
    pub generation: Generation,
    /// End of step 5.
    pub at: Timestamp,
}

/// Why an operation's keys are not (or not yet) gone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwapError {
    /// One of the operation's own preconditions (by its position in `change`), or a duplicate key. Nothing changed.
    #[error("a precondition of the operation no longer holds")]
    Conflict(Conflict),
    /// Too many operations wait. Nothing changed.
    #[error("too many erasures are waiting")]
    Busy,
    /// A keeper replica cannot be written. Nothing changed; the caller commits `ACCEPTED` and a job tries again.
    #[error("the keeper is away")]
    KeeperAway(#[source] KeeperError),
    /// The change is committed and memory is wiped, but the old root is not overwritten in every replica yet: `PENDING`.
    /// [`Keyring::settle`] ends it.
    #[error("committed as generation {generation}; the old root is not destroyed yet")]
    Unfinished { generation: Generation },
    #[error("the tenant's keys are not usable: {0:?}")]
    Refused(TenantKeyState),
    /// The database did not commit.
    #[error(transparent)]
    Store(StoreError),
    /// The tree could not be opened, or a slot is not in it.
    #[error("the slots cannot be dropped")]
    Tree(#[source] Arc<KeyringError>),
    /// It is not known whether the change was committed; a restart finds out.
    #[error("it is not known whether the change was committed")]
    Unclear,
    /// A test's hook stopped the swap here.
    #[error("stopped at {0:?}")]
    Stopped(SwapPoint),
}

/// Places between the steps, where a crash leaves something different behind each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SwapPoint {
    /// After 1: nothing was written.
    Collected,
    /// After 2.
    RootWritten,
    /// After 3.
    Committed,
    /// After 4.
    Wiped,
    /// Within 5: the ledger is durable, the old root is still there.
    LedgerWritten,
    /// After 5.
    RootDestroyed,
}

impl SwapPoint {
    /// All of them, in order.
    pub const ALL: [SwapPoint; 6] = [
        SwapPoint::Collected,
        SwapPoint::RootWritten,
        SwapPoint::Committed,
        SwapPoint::Wiped,
        SwapPoint::LedgerWritten,
        SwapPoint::RootDestroyed,
    ];
}

/// Called at each point; `false` stops the swap there, as a crash would. Only tests set one.
pub type Hook = Arc<dyn Fn(TenantNo, SwapPoint) -> bool + Send + Sync>;

/// What must be done in the keeper before the next swap; guarded by the swap lock.
#[derive(Default)]
pub struct Unsettled {
    pub ledger: Vec<LedgerEntry>,
    /// Everything below this generation is to be overwritten.
    pub destroy: Option<Generation>,
}

struct Waiting {
    op: SwapOp,
    answer: oneshot::Sender<Result<Swapped, SwapError>>,
}

type Answer = oneshot::Receiver<Result<Swapped, SwapError>>;

async fn answer(answer: Answer) -> Result<Swapped, SwapError> {
    // The sender is dropped unanswered only if the task died in the middle.
    answer.await.unwrap_or(Err(SwapError::Unclear))
}

/// Operations that wait for one tenant.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Waiting>,
    /// A task is at work and will look again before it ends.
    working: bool,
}

/// Why a step did not end.
enum Halt {
    Keeper(KeeperError),
    Stopped(SwapPoint),
}

impl From<KeeperError> for Halt {
    fn from(error: KeeperError) -> Self {
        tracing::warn!(%error, "the keeper refused or is away");
        Halt::Keeper(error)
    }
}

impl Halt {
    fn before_commit(self) -> SwapError {
        match self {
            Halt::Keeper(error) => SwapError::KeeperAway(error),
            Halt::Stopped(point) => SwapError::Stopped(point),
        }
    }
    fn after_commit(self, generation: Generation) -> SwapError {
        match self {
            Halt::Keeper(_) => SwapError::Unfinished { generation },
            Halt::Stopped(point) => SwapError::Stopped(point),
        }
    }
}

enum Attempt {
    Done(Swapped),
    /// All of the batch get this answer.
    Failed(SwapError),
    /// The operation at this position leaves the batch.
    Leaves(usize, SwapError),
    /// One of them is at fault and it is not said which.
    Apart(SwapError),
}

impl Keyring {
    /// Drops the operation's keys and commits its change, together with what else waits for the tenant. The answer
    /// comes after step 5. A caller who goes away does not stop it.
    pub async fn swap(self: &Arc<Self>, tenant: TenantNo, op: SwapOp) -> Result<Swapped, SwapError> {
        answer(self.enqueue(tenant, vec![op])?.remove(0)).await
    }

    /// The same for many, which share as few commits as they can; an answer for each, in order.
    pub async fn swap_all(self: &Arc<Self>, tenant: TenantNo, ops: Vec<SwapOp>) -> Vec<Result<Swapped, SwapError>> {
        let count = ops.len();
        match self.enqueue(tenant, ops) {
            Ok(answers) => futures_util::future::join_all(answers.into_iter().map(answer)).await,
            Err(error) => vec![Err(error); count],
        }
    }

    /// # Errors
    /// `Busy` where too many would wait: then none of them does.
    fn enqueue(self: &Arc<Self>, tenant: TenantNo, ops: Vec<SwapOp>) -> Result<Vec<Answer>, SwapError> {
        let keys = self.tenant(tenant).map_err(|_| SwapError::Refused(TenantKeyState::KeeperBehind))?;
        let mut queue = keys.queue.lock();
        if queue.waiting.len() + ops.len() > MOST_WAITING {
            return Err(SwapError::Busy);
        }
        let answers = ops.into_iter().map(|op| {
            let (answer, result) = oneshot::channel();
            queue.waiting.push_back(Waiting { op, answer });
            result
        });
        let answers: Vec<Answer> = answers.collect();
        if !queue.working && !answers.is_empty() {
            queue.working = true;
            tokio::spawn(work(self.clone(), keys.clone()));
        }
        Ok(answers)
    }

    /// Finishes steps 4 and 5 of an earlier swap: appends `ledger`, overwrites every root older than the present one
    /// in every replica. For operations found `COMMITTED`, after a start or after `Unfinished`; may be repeated.
    pub async fn settle(&self, tenant: TenantNo, ledger: Vec<LedgerEntry>) -> Result<Swapped, SwapError> {
        let keys = self.tenant(tenant).map_err(|_| SwapError::Refused(TenantKeyState::KeeperBehind))?;
        let mut unsettled = keys.swap.lock().await;
        let generation = present(&keys)?;
        unsettled.ledger.extend(ledger);
        unsettled.destroy = Some(generation);
        self.finish(&keys, &mut unsettled).await.map_err(|halt| halt.after_commit(generation))?;
        Ok(Swapped { generation, at: self.options.clock.now() })
    }

    /// Step 5.
    async fn finish(&self, keys: &TenantKeys, unsettled: &mut Unsettled) -> Result<(), Halt> {
        let Some(generation) = unsettled.destroy else { return Ok(()) };
        if !unsettled.ledger.is_empty() {
            self.keeper.append_ledger(unsettled.ledger.clone()).await?;
            unsettled.ledger.clear();
        }
        self.stop_at(keys.no, SwapPoint::LedgerWritten)?;
        match self.keeper.destroy(keys.no, generation).await {
            // A replica that was away during an earlier swap may lack the present root.
            Err(KeeperError::Unsure { .. }) => {
                let kek = keys.present.read().as_ref().map(|present| present.kek);
                let kek = kek.unwrap_or_else(|| self.kek_id());
                self.keeper.refresh(keys.no, generation, kek).await?;
                self.keeper.destroy(keys.no, generation).await?;
            }
            done => done?,
        }
        unsettled.destroy = None;
        self.stop_at(keys.no, SwapPoint::RootDestroyed)
    }

    /// Step 5 of an earlier swap, before something else is written.
    pub(super) async fn finish_first(&self, keys: &TenantKeys, unsettled: &mut Unsettled) -> Result<(), SwapError> {
        self.finish(keys, unsettled).await.map_err(Halt::before_commit)
    }

    fn stop_at(&self, tenant: TenantNo, point: SwapPoint) -> Result<(), Halt> {
        match &self.options.hook {
            Some(hook) if !hook(tenant, point) => Err(Halt::Stopped(point)),
            _ => Ok(()),
        }
    }

    /// One swap for all of `ops`.
    async fn attempt(&self, keys: &TenantKeys, ops: &[Waiting], unsettled: &mut Unsettled) -> Attempt {
        let d = match present(keys) {
            Ok(d) => d,
            Err(refused) => return Attempt::Failed(refused),
        };
        // What an earlier swap left comes first: its old root lies where the next one is to be written.
        if let Err(halt) = self.finish(keys, unsettled).await {
            return Attempt::Failed(halt.before_commit());
        }
        let next = Generation(d.0 + 1);
        let slots: Vec<Slot> = ops.iter().flat_map(|one| one.op.slots.iter().copied()).collect();
        let leaves: Vec<Ordinal> = ops.iter().flat_map(|one| one.op.leaves.clone()).map(tree::leaf).collect();
        let (root, mut grown) = match self.build(keys, (&slots, &leaves), TenantRoot::generate(), next).await {
            Ok(built) => built,
            Err(error) => return Attempt::Apart(SwapError::Tree(Arc::new(error))),
        };
        if let Err(halt) = self.stop_at(keys.no, SwapPoint::Collected) {
            return Attempt::Failed(halt.before_commit());
        }
        let block = self.wrap(keys.no, next, &root);
        let kek = block.kek;
        if let Err(error) = self.keeper.write_next(block).await {
            return Attempt::Failed(SwapError::KeeperAway(error));
        }
        if let Err(halt) = self.stop_at(keys.no, SwapPoint::RootWritten) {
            return Attempt::Failed(halt.before_commit());
        }
        let change = join(keys.no, d, ops, &slots, &mut grown);
        if let Err(error) = self.store.commit(change).await {
            match error {
                StoreError::Conflict(Conflict::Precondition(0)) => {
                    // Only this process swaps, and it holds the lock: memory is wrong, a restart reads again.
                    *keys.state.write() = TenantKeyState::DatabaseBehind;
                    return Attempt::Failed(SwapError::Refused(TenantKeyState::DatabaseBehind));
                }
                StoreError::Conflict(Conflict::Precondition(at)) => {
                    let (position, own) = owner(ops, at - 1);
                    return Attempt::Leaves(position, SwapError::Conflict(Conflict::Precondition(own)));
                }
                StoreError::Conflict(other) => return Attempt::Apart(SwapError::Conflict(other)),
                StoreError::Busy => return Attempt::Failed(SwapError::Busy),
                // Whether it was committed is read from the database. The keeper is left as it is.
                error => match self.store.nodes(keys.no, vec![tree::TOP]).await {
                    Ok(now) if now.generation == next => {}
                    Ok(now) if now.generation == d => return Attempt::Failed(SwapError::Store(error)),
                    _ => {
                        *keys.state.write() = TenantKeyState::KeeperBehind;
                        return Attempt::Failed(SwapError::Unclear);
                    }
                },
            }
        }
        // Committed: from here on nothing may fail the operations back, only delay them.
        unsettled.destroy = Some(next);
        for entry in ops.iter().flat_map(|one| &one.op.ledger) {
            let generation = if entry.generation == Generation(0) { next } else { entry.generation };
            unsettled.ledger.push(LedgerEntry { generation, ..*entry });
        }
        let ended = self.end(keys, unsettled, Present { generation: next, root, kek }, grown, &slots).await;
        match ended {
            Ok(()) => Attempt::Done(Swapped { generation: next, at: self.options.clock.now() }),
            Err(halt) => Attempt::Failed(halt.after_commit(next)),
        }
    }

    /// Steps 4 and 5.
    async fn end(
        &self,
        keys: &TenantKeys,
        unsettled: &mut Unsettled,
        new: Present,
        grown: Grown,
        slots: &[Slot],
    ) -> Result<(), Halt> {
        self.stop_at(keys.no, SwapPoint::Committed)?;
        self.wipe(keys, new, grown, slots);
        self.stop_at(keys.no, SwapPoint::Wiped)?;
        self.finish(keys, unsettled).await
    }

    /// The new nodes: copies of all touched ones with fresh keys. Opening many gives way to other tasks in between, and
    /// many are sealed off the runtime's threads, so that reads go on beside a mass erasure.
    async fn build(
        &self,
        keys: &TenantKeys,
        (slots, leaves): (&[Slot], &[Ordinal]),
        root: TenantRoot,
        next: Generation,
    ) -> Result<(TenantRoot, Grown), KeyringError> {
        const AT_ONCE: usize = 128;
        let tenant = keys.no;
        let damaged = |source| KeyringError::Damaged { tenant, source };
        let mut touched = tree::touched(slots).map_err(damaged)?;
        touched.extend(leaves.iter().flat_map(|leaf| tree::path(*leaf)));
        let touched: Vec<Ordinal> = touched.into_iter().collect();
        let many = touched.len() > AT_ONCE;
        let mut nodes = BTreeMap::new();
        for part in touched.chunks(AT_ONCE) {
            nodes.extend(self.open_nodes(keys, part.iter().copied().collect(), Keep::Copies, false).await?);
            if many {
                tokio::task::yield_now().await;
            }
        }
        let (tree, slots, leaves) = (self.tree(tenant), slots.to_vec(), leaves.to_vec());
        let seal = move || {
            let grown = tree.drop_slots(nodes, (&slots, &leaves), &root, next);
            (root, grown)
        };
        let (root, grown) = match many {
            true => tokio::task::spawn_blocking(seal).await.map_err(|_| KeyringError::Stopped)?,
            false => seal(),
        };
        Ok((root, grown.map_err(damaged)?))
    }

    /// Step 4: replaces root and nodes in memory and wipes every key that came from a dropped slot, waiting for the
    /// calls that use one.
    fn wipe(&self, keys: &TenantKeys, new: Present, grown: Grown, slots: &[Slot]) {
        let dropped: HashSet<Slot> = slots.iter().copied().collect();
        {
            let mut present = keys.present.write();
            *present = Some(new);
            // Tenant secrets are few and read on every call: they lie apart from the nodes.
            if dropped.iter().any(|slot| slot.0 < RESERVED)
                && let Some(leaf_0) = grown.nodes.get(&tree::leaf(0))
            {
                keys.set_secrets(leaf_0);
            }
            for (ordinal, node) in grown.nodes {
                self.nodes.replace(keys.no, ordinal, node);
            }
        }
        keys.replaced.notify_waiters();
        // After the nodes, so that a class key made in between comes from the new ones or is taken away here.
        if !dropped.is_empty() {
            self.classes.purge_slots(keys.no, &dropped);
        }
        if let Some(free) = keys.slots.lock().as_mut() {
            free.give_back(slots, self.covering());
        }
    }
}

fn present(keys: &TenantKeys) -> Result<Generation, SwapError> {
    let state = *keys.state.read();
    match (state, keys.present.read().as_ref()) {
        (TenantKeyState::Ready, Some(present)) => Ok(present.generation),
        _ => Err(SwapError::Refused(state)),
    }
}

/// Works until nothing waits. While one swap runs, the next batch gathers.
async fn work(ring: Arc<Keyring>, keys: Arc<TenantKeys>) {
    /// If the task dies in the middle, whoever waits hears of it and the next operation starts a new one.
    struct Alive<'a>(&'a TenantKeys);
    impl Drop for Alive<'_> {
        fn drop(&mut self) {
            let mut queue = self.0.queue.lock();
            queue.working = false;
            queue.waiting.clear();
        }
    }
    let alive = Alive(&keys);
    loop {
        let mut unsettled = keys.swap.lock().await;
        let batch = {
            let mut queue = keys.queue.lock();
            let batch = collect(&mut queue.waiting);
            queue.working = !batch.is_empty();
            batch
        };
        if batch.is_empty() {
            std::mem::forget(alive);
            return;
        }
        // Halves wait here when it is not clear who is at fault.
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            while !part.is_empty() {
                match ring.attempt(&keys, &part, &mut unsettled).await {
                    Attempt::Done(swapped) => part.drain(..).for_each(|one| reply(one, Ok(swapped))),
                    Attempt::Failed(error) => part.drain(..).for_each(|one| reply(one, Err(error.clone()))),
                    Attempt::Leaves(position, error) => reply(part.remove(position), Err(error)),
                    Attempt::Apart(error) if part.len() == 1 => reply(part.remove(0), Err(error)),
                    Attempt::Apart(_) => {
                        let second = part.split_off(part.len() / 2);
                        parts.push(second);
                    }
                }
            }
        }
    }
}

fn reply(one: Waiting, result: Result<Swapped, SwapError>) {
    // Whoever went away finds the outcome in the operation's row.
    let _ = one.answer.send(result);
}

/// Takes from the front what may share a swap. All preconditions of a change set are checked before its first mutation,
/// so an operation that reads or writes what an earlier one writes waits for the next swap.
fn collect(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut batch: Vec<Waiting> = Vec::new();
    let mut prints = Footprint::default();
    let mut leaves: HashSet<Ordinal> = HashSet::new();
    while batch.len() < MOST_OPERATIONS
        && let Some(one) = waiting.front()
    {
        let print = Footprint::of(&one.op);
        if !batch.is_empty() && prints.meets(&print) {
            break;
        }
        leaves.extend(one.op.slots.iter().map(|slot| tree::leaf_of(*slot)));
        leaves.extend(one.op.leaves.clone().map(tree::leaf));
        if !batch.is_empty() && leaves.len() > MOST_LEAVES {
            break;
        }
        prints.join(print);
        batch.extend(waiting.pop_front());
    }
    batch
}

/// Whose operation a position in the joined preconditions (without the first) belongs to, and where it is there.
fn owner(ops: &[Waiting], mut at: usize) -> (usize, usize) {
    for (position, one) in ops.iter().enumerate() {
        let own = one.op.change.preconditions.len();
        if at < own {
            return (position, at);
        }
        at -= own;
    }
    (ops.len() - 1, at)
}

/// The change set of a swap: the generation first, then every operation's preconditions; nodes, generation and freed
/// slots, then every operation's mutations.
fn join(tenant: TenantNo, d: Generation, ops: &[Waiting], slots: &[Slot], grown: &mut Grown) -> ChangeSet {
    let mut change = ChangeSet::default();
    change.require(Precondition::TreeGeneration { tenant, generation: d });
    change.mutations.extend(std::mem::take(&mut grown.rows).into_iter().map(Mutation::PutNode));
    change.change(Mutation::SetGeneration { tenant, generation: Generation(d.0 + 1) });
    for one in ops {
        change.preconditions.extend(one.op.change.preconditions.iter().cloned());
        change.mutations.extend(one.op.change.mutations.iter().cloned());
        change.audit.extend(one.op.change.audit.iter().cloned());
    }
    // Last: a class row gives its slot back before the slot is free.
    let free = slots.iter().filter(|slot| slot.0 >= RESERVED);
    change.mutations.extend(free.map(|slot| Mutation::FreeSlot { tenant, slot: *slot }));
    change
}

/// A row, or rows that are treated as one here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Row {
    Slot(Slot),
    Subject(SubjectUid),
    Digest(TenantNo, SubjectDigest),
    Bucket(TenantNo, ClassNo, Bucket),
    Term(TenantNo, FieldNo, TermTag),
    Object(TenantNo, ObjectKind, Vec<u8>),
    Request(TenantNo, ObjectId),
    Tenant(TenantNo),
}

/// What an operation reads and writes.
#[derive(Default)]
struct Footprint {
    reads: HashSet<Row>,
    writes: HashSet<Row>,
    /// Kinds of objects of which some must be absent, and kinds that are written.
    kinds_read: HashSet<(TenantNo, ObjectKind)>,
    kinds_written: HashSet<(TenantNo, ObjectKind)>,
}

impl Footprint {
    fn of(op: &SwapOp) -> Footprint {
        let mut print = Footprint::default();
        print.writes.extend(op.slots.iter().map(|slot| Row::Slot(*slot)));
        for precondition in &op.change.preconditions {
            print.read(precondition);
        }
        for mutation in &op.change.mutations {
            print.write(mutation);
        }
        print
    }

    fn read(&mut self, precondition: &Precondition) {
        use Precondition as P;
        let row = match precondition {
            P::TenantIs { tenant, .. } | P::TenantSettingsAt { tenant, .. } | P::TreeGeneration { tenant, .. } => {
                Row::Tenant(*tenant)
            }
            // Nothing that swaps makes a subject; counted with the tenant's own row all the same.
            P::SubjectRoom { tenant, .. } => Row::Tenant(*tenant),
            P::SubjectAt { uid, .. } | P::SubjectLive { uid } => Row::Subject(*uid),
            P::ClassAt { uid, .. } | P::ClassLive { uid, .. } | P::ClassBelow { uid, .. } => Row::Subject(*uid),
            P::ClassStill { uid, .. } => Row::Subject(*uid),
            P::ItemGroupAt { uid, .. } | P::ItemGroupsOf { uid, .. } => Row::Subject(*uid),
            P::SubjectAbsent { tenant, digest } | P::NoTombstone { tenant, digest } => Row::Digest(*tenant, *digest),
            P::ExpiryLive { tenant, class, bucket, .. } => Row::Bucket(*tenant, *class, *bucket),
            P::ObjectAt { tenant, kind, key, .. } => Row::Object(*tenant, *kind, key.clone()),
            P::TermsFree { tenant, field, tags, .. } => {
                self.reads.extend(tags.iter().map(|(_, tag)| Row::Term(*tenant, *field, *tag)));
                return;
            }
            P::NoObjectUnder { tenant, kind, .. } => {
                self.kinds_read.insert((*tenant, *kind));
                return;
            }
        };
        self.reads.insert(row);
    }

    fn write(&mut self, mutation: &Mutation) {
        use Mutation as M;
        let row = match mutation {
            M::PutTenant(row) => Row::Tenant(row.no),
            M::SetGeneration { tenant, .. } | M::SetTenantSettings { tenant, .. } | M::ClearTenant { tenant, .. } => {
                Row::Tenant(*tenant)
            }
            M::PutNode(row) => Row::Tenant(row.tenant),
            M::PutSubject(row) => {
                self.writes.insert(Row::Digest(row.tenant, row.digest));
                Row::Subject(row.uid)
            }
            M::DeleteSubject { uid } | M::TouchSubject { uid, .. } | M::DeleteClass { uid, .. } => Row::Subject(*uid),
            M::CountSeals { uid, .. } => Row::Subject(*uid),
            M::PutClass(row) => Row::Subject(row.uid),
            M::PutItemGroup(row) => Row::Subject(row.key.uid),
            M::DeleteItemGroup { uid, .. } | M::DeleteItem { uid, .. } | M::DeleteItemsOf { uid, .. } => {
                Row::Subject(*uid)
            }
            M::AddItem(row) | M::PutItem(row) => Row::Subject(row.group.uid),
            M::DeleteBucket { tenant, class, bucket, .. } | M::DeleteExpiry { tenant, class, bucket } => {
                Row::Bucket(*tenant, *class, *bucket)
            }
            M::PutExpiry(row) => Row::Bucket(row.tenant, row.class, row.bucket),
            M::PutTerm(row) => {
                self.writes.insert(Row::Subject(row.uid));
                Row::Term(row.tenant, row.field, row.tag)
            }
            M::DeleteTerms { uid, .. } => Row::Subject(*uid),
            M::PutTombstone(row) => Row::Digest(row.tenant, row.digest),
            M::DeleteTombstone { tenant, digest } => Row::Digest(*tenant, *digest),
            M::FreeSlot { slot, .. } | M::TakeSlot { slot, .. } => Row::Slot(*slot),
            M::PutObject(row) => {
                self.kinds_written.insert((row.tenant, row.kind));
                Row::Object(row.tenant, row.kind, row.key.clone())
            }
            M::DeleteObject { tenant, kind, key } => {
                self.kinds_written.insert((*tenant, *kind));
                Row::Object(*tenant, *kind, key.clone())
            }
            M::PutRequest(row) => Row::Request(row.tenant, row.request),
            // Appends and prunings meet nobody.
            M::DeleteTermsOfVersion { .. } | M::PruneRequests { .. } | M::PutFeed { .. } | M::PruneFeed { .. } => {
                return;
            }
        };
        self.writes.insert(row);
    }

    fn meets(&self, other: &Footprint) -> bool {
        let writes_what_is_used = |a: &Footprint, b: &Footprint| {
            b.writes.iter().any(|row| a.writes.contains(row) || a.reads.contains(row))
                || b.kinds_written.iter().any(|kind| a.kinds_read.contains(kind))
        };
        writes_what_is_used(self, other) || writes_what_is_used(other, self)
    }

    fn join(&mut self, other: Footprint) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
        self.kinds_read.extend(other.kinds_read);
        self.kinds_written.extend(other.kinds_written);
    }
}
