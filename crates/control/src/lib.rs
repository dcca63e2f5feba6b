//! Every controller: what users declare through the Kubernetes API is brought about, and its status tells how far.
//!
//! One deep module (`machinery`) and one small room for each kind, all of them [level-triggered](Faults). Truth about runs
//! is the ledger's; what is written into an object's status is a projection of it, and nothing is decided from that.
//!
//! Nobody in here knows whether the API server is embedded or a cluster's.

mod agent_run;
mod fit;
mod instance;
mod kinds;
mod machinery;
mod policy;

use std::sync::Arc;

use kit::{Clock, Tasks};
use ledger::Ledger;
use sandbox::Sandboxes;

pub use machinery::Faults;
use machinery::Machinery;

/// Objects of one kind that are looked at at once.
const WORKERS: usize = 8;

/// What the controllers work with.
pub struct Options {
    pub client: kube::Client,
    pub ledger: Ledger,
    /// Ended with their runs and instances; `None` where runs have none.
    pub sandboxes: Option<Sandboxes>,
    /// The runtime handlers that are here: what a RuntimeClass may ask for. Runs of another are not begun.
    pub handlers: Vec<String>,
    pub clock: Clock,
    pub tasks: Tasks,
    /// The instance id of this installation. The field manager and what else must not be shared between two
    /// installations on one cluster derive from it.
    pub instance: String,
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger is closed, and with it every run.
    #[error("the ledger is gone")]
    LedgerGone,
}

/// Runs all controllers until shutdown. The kinds they keep must be installed.
///
/// - An object's spec is acted on as soon as its event arrives; nothing waits for a timer but what has a time of its own.
/// - One bad object, a panic included, stops no other.
/// - Losing the process at any moment loses nothing: the next one lists everything and goes on.
///
/// # Errors
/// When the ledger is gone. What the API server refuses is retried with backoff, and told by log and events.
pub async fn run(options: Options) -> Result<(), Error> {
    run_under(options, Arc::default()).await
}

/// As [`run`], under faults: for showing that they change nothing but time.
///
/// # Errors
/// As [`run`].
pub async fn run_under(options: Options, faults: Arc<Faults>) -> Result<(), Error> {
    let Options { client, ledger, sandboxes, handlers, clock, tasks, instance } = options;
    let handlers: Arc<[String]> = handlers.into();
    let shutdown = tasks.shutdown().clone();
    let manager = instance;
    // Asked for before anything is submitted: a change that nobody listens to is lost.
    let changes = ledger.changes();
    let mut machinery = Machinery::new(client, clock, tasks, manager.clone(), WORKERS, faults.clone());
    let runs = agent_run::Keeper::new(&mut machinery, ledger.clone(), sandboxes.clone(), handlers.clone());
    let runs = machinery.keep(runs);
    let instances = instance::Keeper::new(&mut machinery, ledger, sandboxes, handlers, manager);
    machinery.keep(instances);
    let policies = policy::Keeper::new(&mut machinery);
    machinery.keep(policies);
    machinery.start().await;
    tokio::select! {
        () = shutdown.begun() => Ok(()),
        () = agent_run::listen(changes, &runs, &faults) => Err(Error::LedgerGone),
    }
}
