//! What machines make: the runs that wait, who does them, what happened in them, what their sessions remember, and which
//! sandbox is whose.
//!
//! ```text
//! submit -> queued -> lease -> running -> finish -> done
//!              ^                  |
//!              +---- release -----+      cancel: from anywhere to done
//! ```
//!
//! # Guarantees
//! - What was acknowledged is durable: it survives the process's death at any instruction, and the machine's.
//! - A run has at most one holder. Each lease has an [`Epoch`]; whoever carries an older one changes nothing
//!   ([`Error::Stale`]). A run finishes once.
//! - Leases end with the process: [`Ledger::open`] voids what earlier ones held. Only one process may have the ledger
//!   open; the lock of the data directory is the caller's.
//! - Never more leased runs of an instance than its limit, never two of one session, sessions in the order of creation,
//!   instances in turn.
//! - A sandbox has at most one claim, and a session at most one sandbox. Each claim has a [`ClaimEpoch`]; it ends with its
//!   instance, or with its run where the sandbox is that run's alone.
//! - What is told ([`Ledger::changes`], [`Ledger::follow`]) is durable by then. A slow listener slows nobody.
//! - A full disk refuses writes ([`Error::Full`]); reads go on.
//!
//! Only queued and leased runs take memory, and what their followers have not fetched yet.

mod claims;
mod error;
mod live;
mod queue;
mod read;
mod run;
mod schema;
mod snapshot;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use kit::Clock;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub use claims::{Claim, ClaimEpoch, Claimant};
pub use error::Error;
use live::Live;
pub use live::{Change, Changes, Event, Follow};
pub use run::{
    Action, Cause, Entry, Epoch, Gate, Job, Outcome, Run, RunId, Sandbox, Seq, State, Step, Ticket, Tokens, ToolRules,
    Turn, Usage,
};
pub use snapshot::{Snapshot, check};
use writer::{Grant, Order, Receipt, Waiter, Writer, Written};

/// Bytes of a step in JSON; an answer of the model may have more.
pub const STEP_LIMIT: usize = 1 << 20;
/// Bytes of an [`Step::Answered`] and of an outcome in JSON.
pub const ANSWER_LIMIT: usize = 8 << 20;
/// Bytes of a job in JSON: more than an object of Kubernetes can have.
pub const JOB_LIMIT: usize = 4 << 20;
/// Entries of one run's log, and their bytes.
pub const LOG_ENTRIES: u32 = 10_000;
pub const LOG_BYTES: usize = 16 << 20;
/// Bytes of a session's turns that a lease brings: the newest that fit. More than any model's window.
pub const HISTORY_LIMIT: usize = 4 << 20;
/// Bytes of a name, an id or a session's key.
const NAME_LIMIT: usize = 1024;

/// KiB that may wait to be written; more orders wait for their turn.
const BACKLOG: u32 = 64 << 10;
/// Orders written in one transaction.
const BATCH: usize = 512;

/// Where the ledger is kept.
#[derive(Clone, Debug)]
pub enum Location {
    Memory,
    /// A file of SQLite, with its -wal and -shm beside it.
    File(PathBuf),
}

/// The ledger. Cheap to clone; the last clone, lease and follower closes it.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    inbox: Mutex<Inbox>,
    writer: Arc<Mutex<Writer>>,
    backlog: Arc<Semaphore>,
    reads: read::Pool,
    live: Arc<Live>,
    runtime: Handle,
}

#[derive(Default)]
struct Inbox {
    orders: Vec<Posted>,
    waiters: Vec<Waiter>,
    /// Somebody is at work on it.
    busy: bool,
    /// The writer died.
    closed: bool,
}

struct Posted {
    order: Order,
    answer: Option<oneshot::Sender<Written>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Ledger {
    /// Opens the ledger, makes it or brings it to this version's schema. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Newer`] for a ledger of a newer version, [`Error::Corrupt`] for what is none, [`Error::Open`] else; none
    /// of them changes the file.
    pub fn open(location: Location, clock: Clock) -> Result<Self, Error> {
        let runtime = Handle::try_current().map_err(|error| Error::Database { source: error.into() })?;
        let live = Arc::new(Live::new());
        let path = match &location {
            Location::Memory => None,
            Location::File(path) => Some(path.as_path()),
        };
        let writer = Arc::new(Mutex::new(Writer::new(schema::open(path)?, clock, live.clone())?));
        let reads = match path {
            Some(path) => read::Pool::open(path, runtime.clone())?,
            None => read::Pool::of(writer.clone(), runtime.clone()),
        };
        let backlog = Arc::new(Semaphore::new(BACKLOG as usize));
        Ok(Self(Arc::new(Inner { inbox: Mutex::default(), writer, backlog, reads, live, runtime })))
    }

    /// Queues a run. Idempotent by its id: while it is queued a new limit is taken over; once it was leased nothing changes.
    pub async fn submit(&self, ticket: Ticket) -> Result<(), Error> {
        for (what, text) in [
            ("the run's id", ticket.run.as_str()),
            ("the run's namespace", &ticket.namespace),
            ("the run's name", &ticket.name),
            ("the instance's name", &ticket.instance),
            ("the session's key", &ticket.session),
        ] {
            fits(what, text.len(), NAME_LIMIT)?;
        }
        let job = json(&ticket.job)?;
        fits("the job", job.len(), JOB_LIMIT)?;
        let bytes = job.len();
        self.order(Order::Submit { ticket: Box::new(ticket), job }, bytes).await?;
        Ok(())
    }

    /// Waits until a run is due and leases it to `holder` (a name for people). Losing the future loses nothing.
    ///
    /// A run whose record cannot be read fails, and the next one is waited for: nothing can come of it, now or later.
    pub async fn lease(&self, holder: &str) -> Result<Lease, Error> {
        loop {
            let (granted, grant) = oneshot::channel();
            let waiter = Waiter { holder: holder.to_owned(), ledger: Arc::downgrade(&self.0), granted };
            self.0.clone().post(None, Some(waiter));
            let Grant { hold, started, stopped } = grant.await.map_err(|_| Error::Closed)??;
            let (run, epoch) = (hold.run.clone(), hold.epoch);
            let error = match self.0.reads.read(move |database| read::leased(database, &run)).await {
                Ok(Some(read::Leased { ticket, log, history })) => {
                    return Ok(Lease { run: hold.run.clone(), epoch, ticket, started, log, history, stopped, hold });
                }
                Ok(None) => Error::Unreadable { what: format!("the job of run {} is missing", hold.run) },
                Err(error @ Error::Unreadable { .. }) => error,
                Err(error) => return Err(error),
            };
            match self.finish(&hold.run, epoch, Outcome::failed(Cause::Other, error.to_string())).await {
                Ok(()) => tracing::error!(run = %hold.run, %error, "a run is given up"),
                // Cancelled in this very moment: that is why its job was gone.
                Err(Error::Stale { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Appends a step to a run's log.
    pub async fn append(&self, run: &RunId, epoch: Epoch, step: Step) -> Result<Seq, Error> {
        self.append_all(run, epoch, vec![step]).await
    }

    /// Appends steps to a run's log, all of them or none, in one write; returns the place of the last.
    pub async fn append_all(&self, run: &RunId, epoch: Epoch, steps: Vec<Step>) -> Result<Seq, Error> {
        let (mut written, mut bytes) = (Vec::with_capacity(steps.len()), 0);
        for step in steps {
            let json = json(&step)?;
            let limit = if matches!(step, Step::Answered { .. }) { ANSWER_LIMIT } else { STEP_LIMIT };
            fits("a step", json.len(), limit)?;
            bytes += json.len();
            written.push((step, json));
        }
        match self.order(Order::Append { run: run.clone(), epoch, steps: written }, bytes).await? {
            Receipt::Entry(seq) => Ok(seq),
            Receipt::Nothing | Receipt::Claim(_) => Err(Error::Closed),
        }
    }

    /// Shows live text to followers. Never stored, never waits; what an old epoch says is dropped.
    pub fn stream(&self, run: &RunId, epoch: Epoch, text: &str) {
        self.0.live.text(run, epoch, text);
    }

    /// Ends a run; a succeeded one leaves its turn in its session.
    pub async fn finish(&self, run: &RunId, epoch: Epoch, outcome: Outcome) -> Result<(), Error> {
        let bytes = outcome.bytes();
        fits("the outcome", bytes, ANSWER_LIMIT)?;
        self.order(Order::Finish { run: run.clone(), epoch, outcome }, bytes).await?;
        Ok(())
    }

    /// Gives a lease back: somebody else goes on. A dropped [`Lease`] does the same, but nobody waits for that.
    pub async fn release(&self, run: &RunId, epoch: Epoch) -> Result<(), Error> {
        self.order(Order::Release { run: run.clone(), epoch }, 0).await?;
        Ok(())
    }

    /// Ends a run that is not done: unqueues it, or takes its lease away. Idempotent.
    pub async fn cancel(&self, run: &RunId, reason: &str) -> Result<(), Error> {
        fits("the reason", reason.len(), STEP_LIMIT)?;
        self.order(Order::Cancel { run: run.clone(), reason: reason.to_owned() }, reason.len()).await?;
        Ok(())
    }

    /// Deletes a run and its log, and stops it before where it is not done. Its session keeps its turn. Idempotent.
    pub async fn forget(&self, run: &RunId) -> Result<(), Error> {
        self.order(Order::Forget { run: run.clone() }, 0).await?;
        Ok(())
    }

    /// Deletes an instance's sessions and cancels its runs that are not done. The runs themselves stay until each is
    /// forgotten. Idempotent.
    pub async fn forget_instance(&self, namespace: &str, instance: &str) -> Result<(), Error> {
        let order = Order::ForgetInstance { namespace: namespace.to_owned(), instance: instance.to_owned() };
        self.order(order, 0).await?;
        Ok(())
    }

    /// A run as it is, if it is known.
    pub async fn run(&self, run: &RunId) -> Result<Option<Run>, Error> {
        let run = run.clone();
        self.0.reads.read(move |database| read::run(database, &run)).await
    }

    /// How many runs of an instance are leased.
    pub async fn running(&self, namespace: &str, instance: &str) -> Result<u32, Error> {
        let (namespace, instance) = (namespace.to_owned(), instance.to_owned());
        self.0.reads.read(move |database| read::running(database, &namespace, &instance)).await
    }

    /// How many runs an instance has ever had, forgotten ones too; 0 again once the instance is forgotten.
    pub async fn submitted(&self, namespace: &str, instance: &str) -> Result<u64, Error> {
        let (namespace, instance) = (namespace.to_owned(), instance.to_owned());
        self.0.reads.read(move |database| read::submitted(database, &namespace, &instance)).await
    }

    /// The runs whose state changes from now on.
    pub fn changes(&self) -> Changes {
        self.0.live.changes()
    }

    /// A run's log after `after` (`Seq(0)`: all), as it grows.
    pub fn follow(&self, run: &RunId, after: Seq) -> Follow {
        Follow::new(run.clone(), after, self.0.reads.clone(), self.0.live.clone())
    }

    async fn order(&self, order: Order, bytes: usize) -> Written {
        let weight = u32::try_from(bytes >> 10).unwrap_or(BACKLOG).saturating_add(1).min(BACKLOG);
        let place = self.0.backlog.clone().acquire_many_owned(weight).await.map_err(|_| Error::Closed)?;
        let (answer, written) = oneshot::channel();
        self.0.clone().post(Some(Posted { order, answer: Some(answer), _place: Some(place) }), None);
        written.await.map_err(|_| Error::Closed)?
    }
}

impl Inner {
    /// Puts something before the writer, and wakes it where it sleeps.
    fn post(self: Arc<Self>, order: Option<Posted>, waiter: Option<Waiter>) {
        {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            if inbox.closed {
                return; // The dropped sender says so.
            }
            inbox.orders.extend(order);
            inbox.waiters.extend(waiter);
            if std::mem::replace(&mut inbox.busy, true) {
                return;
            }
        }
        // One at a time (`busy`), on a thread that may block, as long as there is work. Not a thread of its own, so that
        // tokio knows of the work: its paused clock does not jump ahead of a write.
        self.runtime.clone().spawn_blocking(move || self.work());
    }

    fn work(&self) {
        let mut died = Died { inbox: &self.inbox, armed: true };
        loop {
            let (posted, waiters) = {
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                if inbox.orders.is_empty() && inbox.waiters.is_empty() {
                    inbox.busy = false;
                    died.armed = false;
                    return;
                }
                let count = inbox.orders.len().min(BATCH);
                (inbox.orders.drain(..count).collect::<Vec<_>>(), std::mem::take(&mut inbox.waiters))
            };
            let (orders, places): (Vec<_>, Vec<_>) =
                posted.into_iter().map(|it| ((it.order, it.answer), it._place)).unzip();
            self.writer.lock().unwrap_or_else(PoisonError::into_inner).work(orders, waiters);
            drop(places);
        }
    }
}

/// Closes the inbox when the writer panics, so that nobody waits for ever.
struct Died<'a> {
    inbox: &'a Mutex<Inbox>,
    armed: bool,
}

impl Drop for Died<'_> {
    fn drop(&mut self) {
        if self.armed {
            let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            inbox.closed = true;
            inbox.orders.clear();
            inbox.waiters.clear();
        }
    }
}

/// A run in one's hands. Dropping it gives the run back.
pub struct Lease {
    pub run: RunId,
    pub epoch: Epoch,
    pub ticket: Ticket,
    /// When the run was leased first, by whichever attempt: its timeout counts from here.
    pub started: Timestamp,
    /// What earlier attempts logged.
    pub log: Vec<Entry>,
    /// The turns of the session before this run, oldest first; the newest that fit into [`HISTORY_LIMIT`].
    pub history: Vec<Turn>,
    stopped: watch::Receiver<bool>,
    #[expect(dead_code, reason = "held for its drop")]
    hold: Hold,
}

impl Lease {
    /// Resolves when the run was cancelled, or the lease lost in another way.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopped = self.stopped.clone();
        async move {
            // The sender goes when the lease is over, however it ended.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }
}

/// Gives a lease back when it is dropped; too late is harmless.
struct Hold {
    ledger: Ledger,
    run: RunId,
    epoch: Epoch,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let order = Order::Release { run: self.run.clone(), epoch: self.epoch };
        self.ledger.0.clone().post(Some(Posted { order, answer: None, _place: None }), None);
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Database { source: error.into() })
}

fn fits(what: &'static str, size: usize, limit: usize) -> Result<(), Error> {
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
