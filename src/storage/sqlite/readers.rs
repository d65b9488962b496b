//! Reader threads, each with its own connection and its own prepared statements.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::RwLock;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::{CLOSED, Result};
use super::file::connect;
use super::{Options, Shared};
use crate::storage::StoreError;

type Task = Box<dyn FnOnce(&Connection) + Send>;

pub struct Readers {
    queue: RwLock<Option<Sender<Task>>>,
}

impl Readers {
    /// Starts the threads. The last sender of `done` is dropped when all of them have closed their connections.
    pub fn start(
        options: &Options,
        shared: &Arc<Shared>,
        done: Sender<()>,
        threads: &mut Vec<JoinHandle<()>>,
    ) -> Result<Self> {
        let (sender, receiver) = bounded::<Task>(options.read_queue.max(1));
        for n in 0..options.readers.max(1) {
            let conn = connect(options, true)?;
            let (receiver, shared, done) = (receiver.clone(), shared.clone(), done.clone());
            let thread = std::thread::Builder::new()
                .name(format!("store-reader-{n}"))
                .spawn(move || {
                    run(&conn, &receiver, &shared);
                    drop(conn);
                    drop(done);
                })
                .map_err(|e| StoreError::Engine(Arc::new(e)))?;
            threads.push(thread);
        }
        Ok(Readers { queue: RwLock::new(Some(sender)) })
    }

    /// Runs `read` on one of the threads. Each statement is a snapshot of its own; use [`snapshot`] for several.
    ///
    /// # Errors
    /// `Busy` when too many reads wait.
    pub async fn run<T: Send + 'static>(
        &self,
        shared: &Arc<Shared>,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        shared.may_read()?;
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move |conn| {
            // Nobody waits any more: a caller who hung up costs no read.
            if !answer.is_closed() {
                let _ = answer.send(read(conn));
            }
        });
        match self.queue.read().as_ref().map(|queue| queue.try_send(task)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => return Err(StoreError::Busy),
            Some(Err(TrySendError::Disconnected(_))) | None => return Err(CLOSED),
        }
        let result = match answered.await {
            Ok(result) => result,
            // It panicked; see `run`.
            Err(dropped) => Err(StoreError::Engine(Arc::new(dropped))),
        };
        if let Err(StoreError::Damaged { .. }) = &result {
            shared.damaged();
        }
        result
    }

    /// Takes no more; the threads end after what is queued.
    pub fn close(&self) {
        self.queue.write().take();
    }

    /// How many reads wait.
    pub fn waiting(&self) -> usize {
        self.queue.read().as_ref().map_or(0, Sender::len)
    }
}

fn run(conn: &Connection, tasks: &Receiver<Task>, shared: &Shared) {
    for task in tasks {
        // A panic here is a defect of one read; the others go on. The caller learns of it by the dropped answer.
        if catch_unwind(AssertUnwindSafe(|| task(conn))).is_err() {
            tracing::error!("a read panicked");
            if !conn.is_autocommit() && conn.execute_batch("ROLLBACK").is_err() {
                shared.damaged();
            }
        }
    }
}

/// Runs several statements on one snapshot.
pub fn snapshot<T>(conn: &Connection, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    let run = |sql| conn.prepare_cached(sql).and_then(|mut s| s.execute([])).map_err(super::error::engine);
    run("BEGIN")?;
    let result = read(conn);
    run("COMMIT")?;
    result
}
