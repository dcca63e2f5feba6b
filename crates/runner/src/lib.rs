//! The brain: leases runs from the ledger and drives each to its outcome, with a model and with tools.
//!
//! Every step of a run is in its log before it is acted on. Whoever leases the run next goes on from there: no answer
//! is asked for twice that was logged, and no tool call that was begun is begun again; the model is told that its
//! outcome is unknown.
//!
//! A run that takes longer than its timeout fails; one that was cancelled drops what it is doing, at once. At shutdown
//! runs are given back as they are.

mod brain;
mod hands;
mod key;
mod tools;
mod transcript;
mod window;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use kit::{Backoff, Class, Clock, Shutdown, Tasks};
use ledger::{Cause, Lease, Ledger, Outcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use brain::{Attempt, Stop};
pub use hands::Hands;
pub use tools::{Output, Tools};
use transcript::Transcript;

/// Leases asked for at once, so that a burst of runs shares the ledger's commits.
const ASKING: usize = 16;

pub struct Options {
    pub ledger: Ledger,
    /// Reads the Secrets with the models' keys.
    pub client: kube::Client,
    pub clock: Clock,
    pub tasks: Tasks,
    pub http: reqwest::Client,
    /// Runs driven at once; 2,000 is a good number for one machine, each costs less than 100 KB.
    pub concurrency: usize,
    /// Addresses of providers by name, for jobs that name none: in place of the providers' own.
    pub providers: BTreeMap<String, String>,
    /// `None`: runs have no tools, and models that call one are told so.
    pub tools: Option<Arc<dyn Tools>>,
}

/// Drives runs until shutdown.
pub struct Runner {
    shared: Arc<Shared>,
    tasks: Tasks,
    concurrency: usize,
}

struct Shared {
    ledger: Ledger,
    client: kube::Client,
    clock: Clock,
    http: reqwest::Client,
    providers: BTreeMap<String, String>,
    tools: Option<Arc<dyn Tools>>,
    /// How failures are spaced.
    backoff: Backoff,
}

/// The runner cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot lease runs")]
pub struct Error(#[from] ledger::Error);

impl Runner {
    pub fn new(options: Options) -> Self {
        let Options { ledger, client, clock, tasks, http, concurrency, providers, tools } = options;
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let shared = Arc::new(Shared { ledger, client, clock, http, providers, tools, backoff });
        Self { shared, tasks, concurrency: concurrency.max(1) }
    }

    /// Leases and drives runs until shutdown, each as a task of its tenant.
    ///
    /// # Errors
    /// When the ledger is closed or damaged.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let slots = Arc::new(Semaphore::new(self.concurrency));
        let holder = format!("runner-{}", kit::id());
        let mut asking = FuturesUnordered::new();
        for _ in 0..ASKING.min(self.concurrency) {
            asking.push(self.lease(&slots, &holder));
        }
        loop {
            let leased = tokio::select! {
                biased;
                () = shutdown.begun() => return Ok(()),
                Some(leased) = asking.next() => leased,
            };
            let (lease, slot) = leased?;
            let (shared, shutdown) = (self.shared.clone(), shutdown.clone());
            self.tasks.tenant("run", async move {
                shared.attempt(lease, &shutdown).await;
                drop(slot);
            });
            asking.push(self.lease(&slots, &holder));
        }
    }

    async fn lease(
        &self,
        slots: &Arc<Semaphore>,
        holder: &str,
    ) -> Result<(Lease, Option<OwnedSemaphorePermit>), Error> {
        let slot = slots.clone().acquire_owned().await.ok();
        let mut backoff = self.shared.backoff.clone();
        loop {
            let error = match self.shared.ledger.lease(holder).await {
                Ok(lease) => return Ok((lease, slot)),
                Err(error) => error,
            };
            match error.class() {
                Class::Gone | Class::Retry(_) => {
                    tracing::warn!(error = kit::chain(&error), "cannot lease a run now");
                    tokio::time::sleep(backoff.pause()).await;
                }
                Class::Conflict | Class::Rejected | Class::Bug => return Err(error.into()),
            }
        }
    }
}

impl Shared {
    /// Drives a leased run as far as it goes: to its end, to its cancellation or to shutdown.
    async fn attempt(&self, mut lease: Lease, shutdown: &Shutdown) {
        let log = std::mem::take(&mut lease.log);
        let history = std::mem::take(&mut lease.history);
        let lease = lease;
        let cancelled = lease.cancelled();
        let work = async {
            let outcome = match Transcript::read(&log) {
                Ok(transcript) => {
                    drop(log);
                    let mut attempt = Attempt::new(self, &lease, history, transcript);
                    let late = self.clock.until(attempt.deadline());
                    let driven = tokio::select! {
                        biased;
                        driven = AssertUnwindSafe(attempt.drive()).catch_unwind() => Some(driven),
                        () = late => None,
                    };
                    let ended = match driven {
                        None => Ok(attempt.late().await),
                        Some(driven) => driven,
                    };
                    match ended {
                        Ok(Ok(outcome)) => outcome,
                        Ok(Err(Stop::Lost)) => return,
                        Ok(Err(Stop::Damaged(error))) => Outcome::failed(Cause::Other, error.to_string()),
                        Ok(Err(Stop::Ledger(error))) => Outcome::failed(Cause::Other, kit::chain(&error)),
                        // Whatever it was would happen again: the run fails, nobody else's does.
                        Err(_) => Outcome::failed(Cause::Other, "internal error: the run's task panicked"),
                    }
                }
                Err(damaged) => Outcome::failed(Cause::Other, damaged.to_string()),
            };
            self.finish(&lease, outcome).await;
        };
        tokio::select! {
            () = work => {}
            () = cancelled => {}
            () = shutdown.begun() => {
                // Before the process ends, as far as that lets us; the ledger would void the lease at its next start.
                if let Err(error) = self.ledger.release(&lease.run, lease.epoch).await {
                    tracing::warn!(run = %lease.run, error = kit::chain(&error), "cannot give the run back");
                }
            }
        }
    }

    /// Ends the run; a ledger that cannot write now is waited for.
    async fn finish(&self, lease: &Lease, mut outcome: Outcome) {
        let mut backoff = self.backoff.clone();
        loop {
            let Err(error) = self.ledger.finish(&lease.run, lease.epoch, outcome.clone()).await else { return };
            tracing::warn!(run = %lease.run, error = kit::chain(&error), "cannot finish the run");
            match error.class() {
                Class::Retry(_) => tokio::time::sleep(backoff.pause()).await,
                // An answer that the ledger does not take would not be taken from the next attempt either.
                Class::Rejected if matches!(outcome, Outcome::Succeeded { .. }) => {
                    outcome = Outcome::failed(Cause::Other, kit::chain(&error));
                }
                Class::Conflict | Class::Rejected | Class::Gone | Class::Bug => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
