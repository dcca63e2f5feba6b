//! A sandbox that is somebody's, and whose it may be.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kit::Clock;
use ledger::{ClaimEpoch, RunId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::shape::Shape;

/// For whom a tool acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub namespace: String,
    pub instance: String,
    /// The session's key. "": none; sandbox and workspace are then the run's alone.
    pub session: String,
    pub run: RunId,
    /// As people know it.
    pub run_name: String,
}

/// What has one sandbox and one workspace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub namespace: String,
    pub instance: String,
    pub whose: Whose,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    Session(String),
    Run(RunId),
}

impl Owner {
    pub(crate) fn key(&self) -> Key {
        let whose = match self.session.as_str() {
            "" => Whose::Run(self.run.clone()),
            session => Whose::Session(session.to_owned()),
        };
        Key { namespace: self.namespace.clone(), instance: self.instance.clone(), whose }
    }
}

/// One owner's place for a sandbox. Whoever claims, changes or ends it holds the lock.
pub(crate) struct Place {
    pub key: Key,
    pub held: Arc<tokio::sync::Mutex<Held>>,
}

#[derive(Default)]
pub(crate) struct Held {
    pub live: Option<Arc<Live>>,
    /// The place was given up while one waited for it: look for the new one.
    pub given_up: bool,
}

pub(crate) struct Live {
    pub id: String,
    pub pod: String,
    pub epoch: ClaimEpoch,
    pub shape: Shape,
    pub workspace: PathBuf,
    clock: Clock,
    /// The latest to use it.
    run: Mutex<RunId>,
    calls: AtomicUsize,
    last: Mutex<Timestamp>,
    /// Why it is over, once it is.
    over: watch::Sender<Option<String>>,
    /// Bytes in the workspace when they were last counted.
    pub size: AtomicU64,
    counted: Mutex<Option<Instant>>,
    /// What its session is to be told before anything else.
    unsaid: Mutex<Option<String>>,
    /// Processes killed for want of memory that were seen.
    pub oom_kills: AtomicU64,
}

impl Live {
    pub(crate) fn new(
        id: String,
        pod: String,
        epoch: ClaimEpoch,
        shape: Shape,
        workspace: PathBuf,
        run: RunId,
        clock: Clock,
    ) -> Self {
        Self {
            id,
            pod,
            epoch,
            shape,
            workspace,
            run: Mutex::new(run),
            calls: AtomicUsize::new(0),
            last: Mutex::new(clock.now()),
            over: watch::Sender::new(None),
            size: AtomicU64::new(0),
            counted: Mutex::default(),
            unsaid: Mutex::default(),
            oom_kills: AtomicU64::new(0),
            clock,
        }
    }

    pub(crate) fn run(&self) -> MutexGuard<'_, RunId> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins; it lasts as long as what is returned.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    /// Calls in progress.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Acquire)
    }

    /// Its session's next call is told `why` the one before it was ended, when its workspace had `size` bytes.
    pub(crate) fn follows(&self, stopped: Stopped) {
        self.size.store(stopped.size, Ordering::Release);
        *self.unsaid.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopped.why);
    }

    /// What is to be told, once.
    pub(crate) fn unsaid(&self) -> Option<String> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Since when nobody has used it; now, while somebody does.
    pub(crate) fn unused_since(&self) -> Timestamp {
        if self.calls() > 0 {
            return self.clock.now();
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the workspace may be counted now: not when it was less than `rest` ago.
    pub(crate) fn begin_count(&self, rest: Duration) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted.is_none_or(|at| at.elapsed() >= rest);
        if due {
            *counted = Some(Instant::now());
        }
        due
    }

    /// It has ended, or is about to be; the first reason counts.
    pub(crate) fn end(&self, why: &str) {
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            over.get_or_insert_with(|| why.to_owned());
            first
        });
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.borrow().is_some()
    }

    /// Resolves with the reason when it is over.
    pub(crate) async fn over(&self) -> String {
        let mut over = self.over.subscribe();
        let why = over.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }
}

/// Why a sandbox was ended that had no call in progress, and what its workspace had grown to.
pub(crate) struct Stopped {
    pub why: String,
    pub size: u64,
}

/// A call in progress.
pub(crate) struct Busy(Arc<Live>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = self.0.clock.now();
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}
