//! How writes become durable and seen: whoever comes while a commit runs joins the next one.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use kit::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::key::{Draft, Entry, Key};
use super::log::{self, Log};
use super::memory::{Event, Memory};
use super::{Expect, WriteError};
use crate::count::{Counter, Histogram};

/// What waits to be committed, at most: in KiB, so that many large objects are as bounded as many small ones.
const QUEUE_KIB: usize = 64 << 10;
/// One transaction, at most.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 8 << 20;
/// Revisions in one step of a compaction; writes go between two steps.
const STEP: u64 = 256;
/// Seconds: from a tenth of what one durable write takes to more than anybody waits for.
const LATENCIES: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What is counted of writes.
pub(crate) struct Stats {
    /// Each from its arrival to its answer.
    pub(crate) writes: Histogram,
    /// Each transaction.
    pub(crate) commits: Histogram,
    /// Writes that were done.
    pub(crate) written: Counter,
    /// Transactions that were not.
    pub(crate) failures: Counter,
}

impl Stats {
    fn new() -> Self {
        let histogram = || Histogram::new(LATENCIES);
        let (written, failures) = (Counter::default(), Counter::default());
        Self { writes: histogram(), commits: histogram(), written, failures }
    }
}

pub(super) struct Committer {
    memory: Arc<RwLock<Memory>>,
    log: Mutex<Option<Log>>,
    durable: bool,
    clock: Clock,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
    /// Becomes true when a commit panicked: nothing is written any more.
    pub(super) broken: watch::Sender<bool>,
    pub(super) stats: Stats,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    /// Somebody is committing and will look here again before it ends.
    led: bool,
}

enum Work {
    Write(Request),
    Compact { through: u64, done: oneshot::Sender<Result<u64, WriteError>> },
}

struct Request {
    key: Key,
    expect: Expect,
    draft: Draft,
    deletes: bool,
    answer: oneshot::Sender<Result<Arc<Entry>, WriteError>>,
    _room: OwnedSemaphorePermit,
}

impl Committer {
    pub(super) fn new(memory: Arc<RwLock<Memory>>, log: Option<Log>, clock: Clock) -> Self {
        let durable = log.is_some();
        let room = Arc::new(Semaphore::new(QUEUE_KIB));
        let broken = watch::Sender::new(false);
        Self {
            memory,
            log: Mutex::new(log),
            durable,
            clock,
            queue: Mutex::default(),
            room,
            broken,
            stats: Stats::new(),
        }
    }

    pub(super) async fn write(
        self: &Arc<Self>,
        key: Key,
        expect: Expect,
        draft: Draft,
        deletes: bool,
    ) -> Result<Arc<Entry>, WriteError> {
        let asked = Instant::now();
        let kib = u32::try_from(draft.len() / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(kib).await.map_err(|_| WriteError::Stopped)?;
        let (answer, answered) = oneshot::channel();
        self.submit(Work::Write(Request { key, expect, draft, deletes, answer, _room: room }));
        let answer = answered.await.map_err(|_| WriteError::Stopped)?;
        self.stats.writes.observe(asked.elapsed());
        answer
    }

    /// One step of a compaction; returns how far it came.
    pub(super) async fn compact(self: &Arc<Self>, through: u64) -> Result<u64, WriteError> {
        let (done, answered) = oneshot::channel();
        self.submit(Work::Compact { through, done });
        answered.await.map_err(|_| WriteError::Stopped)?
    }

    /// Queues the work, and finds somebody to do it if nobody is at it.
    fn submit(self: &Arc<Self>, work: Work) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.broken.borrow() {
            return;
        }
        queue.waiting.push_back(work);
        if std::mem::replace(&mut queue.led, true) {
            return;
        }
        drop(queue);
        let this = self.clone();
        let lead = move || {
            let led = std::panic::catch_unwind(AssertUnwindSafe(|| while this.lead() {}));
            if led.is_err() {
                let mut queue = this.queue.lock().unwrap_or_else(PoisonError::into_inner);
                this.broken.send_replace(true);
                queue.waiting.clear();
            }
        };
        // On tokio's blocking threads and not on one of our own: a clock that is stopped for a test stands still
        // while a commit runs.
        if self.durable {
            drop(tokio::task::spawn_blocking(lead));
        } else {
            lead();
        }
    }

    /// Does what waits, as much as fits in one transaction. False when nothing was left.
    fn lead(&self) -> bool {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut compact = None;
        {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            while batch.len() < BATCH && bytes < BATCH_BYTES {
                match queue.waiting.pop_front() {
                    Some(Work::Write(request)) => {
                        bytes += request.draft.len();
                        batch.push(request);
                    }
                    Some(Work::Compact { through, done }) => {
                        compact = Some((through, done));
                        break;
                    }
                    None => break,
                }
            }
            if batch.is_empty() && compact.is_none() {
                queue.led = false;
                return false;
            }
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.commit(log.as_mut(), batch);
        if let Some((through, done)) = compact {
            let _ = done.send(self.compact_step(log.as_mut(), through));
        }
        true
    }

    fn commit(&self, mut log: Option<&mut Log>, batch: Vec<Request>) {
        let verdicts = self.judge(&batch);
        let events: Vec<_> = verdicts.iter().filter_map(|it| it.as_ref().ok().cloned()).collect();
        let appended = match log.as_deref_mut() {
            Some(log) if !events.is_empty() => {
                let began = Instant::now();
                let appended = log.append(&events, self.clock.now());
                self.stats.commits.observe(began.elapsed());
                self.stats.failures.add(u64::from(appended.is_err()));
                appended
            }
            _ => Ok(()),
        };
        match appended {
            Ok(()) => {
                self.stats.written.add(events.len() as u64);
                self.publish(&events);
                for (request, verdict) in batch.into_iter().zip(verdicts) {
                    let _ = request.answer.send(verdict.map(|event| event.entry.clone()));
                }
            }
            // Each by itself: what is too much for the disk must not take the others along, and who lost only
            // against a write that did not happen is judged anew.
            Err(_) if batch.len() > 1 => {
                for request in batch {
                    self.commit(log.as_deref_mut(), vec![request]);
                }
            }
            Err(error) => {
                let error = if log::is_full(&error) { WriteError::Full } else { WriteError::Failed(error) };
                if let Some(request) = batch.into_iter().next() {
                    let _ = request.answer.send(Err(error));
                }
            }
        }
    }

    /// What each request comes to when they are done one after the other.
    fn judge(&self, batch: &[Request]) -> Vec<Result<Arc<Event>, WriteError>> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let mut rev = memory.revision;
        let mut ahead: HashMap<&Key, Option<Arc<Entry>>> = HashMap::new();
        let mut verdicts = Vec::with_capacity(batch.len());
        for request in batch {
            let current = match ahead.get(&request.key) {
                Some(entry) => entry.clone(),
                None => memory.get(&request.key).cloned(),
            };
            if let Err(refused) = request.expect.check(current.as_ref()) {
                verdicts.push(Err(refused));
                continue;
            }
            rev += 1;
            let mut key = request.key.clone();
            memory.intern(&mut key);
            let entry = Arc::new(request.draft.at(key, rev));
            ahead.insert(&request.key, (!request.deletes).then(|| entry.clone()));
            verdicts.push(Ok(Arc::new(Event { rev, entry, prev: current, deleted: request.deletes })));
        }
        verdicts
    }

    fn compact_step(&self, log: Option<&mut Log>, through: u64) -> Result<u64, WriteError> {
        let (from, revision) = {
            let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
            (memory.compacted, memory.revision)
        };
        // The newest row stays whatever it is: the next revision is counted from it.
        let through = through.min(from + STEP).min(revision.saturating_sub(1));
        let Some(log) = log.filter(|_| through > from) else { return Ok(from) };
        log.compact(from, through).map_err(|error| match log::is_full(&error) {
            true => WriteError::Full,
            false => WriteError::Failed(error),
        })?;
        self.memory.write().unwrap_or_else(PoisonError::into_inner).compacted = through;
        Ok(through)
    }

    /// Keeps commits waiting while it is held.
    #[cfg(test)]
    pub(super) fn hold(&self) -> std::sync::MutexGuard<'_, Option<Log>> {
        self.log.lock().unwrap()
    }

    /// Lets the file grow by this many pages and no further.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, more: u32) {
        let log = self.hold();
        let log = log.as_ref().unwrap();
        log.limit_pages(log.pages().unwrap() + more).unwrap();
    }

    fn publish(&self, events: &[Arc<Event>]) {
        if events.is_empty() {
            return;
        }
        let bells = self.memory.write().unwrap_or_else(PoisonError::into_inner).publish(events);
        let rev = events.last().map_or(0, |event| event.rev);
        for bell in bells {
            bell.send_replace(rev);
        }
    }
}
