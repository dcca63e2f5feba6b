//! Durable writes of the ledger: `cargo bench -p ledger [-- DIRECTORY]` (default: a temporary one).
//!
//! Every figure is taken at the caller: from the call to its answer, which is durable by then.

#![expect(clippy::expect_used, reason = "what cannot be done cannot be measured")]

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kit::{Clock, Shutdown, Tasks};
use ledger::{Cause, Epoch, Job, Ledger, Location, Outcome, RunId, Step, Ticket};

const RUNS: usize = 4_000;
/// Runs of a follow-up measurement wait beside this many queued ones.
const QUEUED: usize = 100_000;

fn ticket(run: usize) -> Ticket {
    Ticket {
        run: format!("{run:032}").into(),
        namespace: "default".to_owned(),
        name: format!("run-{run}"),
        instance: format!("tenant-{}", run % 100),
        session: format!("session-{}", run % 10_000),
        created: Timestamp::UNIX_EPOCH,
        limit: u32::MAX,
        timeout: Duration::from_secs(600),
        job: Job { task: "x".repeat(1_000), ..Job::default() },
    }
}

/// Does `count` things, `at_once` at a time, and prints how long each took.
async fn measure<F, D>(what: &str, count: usize, at_once: usize, tasks: &Tasks, thing: F)
where
    F: Fn(usize) -> D + Clone + Send + Sync + 'static,
    D: Future<Output = ()> + Send,
{
    let times = Arc::new(Mutex::new(Vec::with_capacity(count)));
    let begun = Instant::now();
    let (done, mut all) = tokio::sync::mpsc::channel::<()>(1);
    for lane in 0..at_once {
        let (times, thing, done) = (times.clone(), thing.clone(), done.clone());
        tasks.tenant("lane", async move {
            let mut own = Vec::with_capacity(count / at_once + 1);
            for number in (lane..count).step_by(at_once) {
                let from = Instant::now();
                thing(number).await;
                own.push(from.elapsed());
            }
            times.lock().unwrap_or_else(|it| it.into_inner()).extend(own);
            drop(done);
        });
    }
    drop(done);
    let _ = all.recv().await;
    let took = begun.elapsed();
    let mut times = times.lock().unwrap_or_else(|it| it.into_inner()).clone();
    times.sort_unstable();
    let at =
        |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).map_or(0.0, |it| it.as_secs_f64() * 1e3);
    let per_second = times.len() as f64 / took.as_secs_f64();
    println!("{what:<28} {at_once:>4} {per_second:>10.0} {:>9.3} {:>9.3} {:>9.3}", at(0.5), at(0.95), at(0.99));
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = tempfile::tempdir()?;
    let directory = std::env::args().skip(1).find(|it| !it.starts_with('-')).map(PathBuf::from);
    let path = directory.unwrap_or_else(|| home.path().to_owned()).join("bench-ledger.db");
    let ledger = Ledger::open(Location::File(path), Clock::system())?;
    let tasks = Tasks::new(Shutdown::new());
    println!("{:<28} {:>4} {:>10} {:>9} {:>9} {:>9}", "", "at", "per s", "p50 ms", "p95 ms", "p99 ms");
    for (round, at_once) in [1, 16, 64, 256].into_iter().enumerate() {
        let first = round * RUNS;
        let it = ledger.clone();
        let submit = move |run| {
            let ledger = it.clone();
            async move { ledger.submit(ticket(first + run)).await.expect("submit") }
        };
        measure("submit", RUNS, at_once, &tasks, submit).await;
        let leases: Arc<Mutex<Vec<(RunId, Epoch)>>> = Arc::default();
        let held = Arc::new(Mutex::new(Vec::new()));
        let (it, found) = (ledger.clone(), (leases.clone(), held.clone()));
        let lease = move |_| {
            let (ledger, (leases, held)) = (it.clone(), found.clone());
            async move {
                let lease = ledger.lease("bench").await.expect("lease");
                leases.lock().expect("lock").push((lease.run.clone(), lease.epoch));
                held.lock().expect("lock").push(lease);
            }
        };
        measure("lease", RUNS, at_once, &tasks, lease).await;
        let leases = Arc::new(leases.lock().expect("lock").clone());
        let of = move |run: usize| leases.get(run).cloned().expect("leased");
        let (it, run_of) = (ledger.clone(), of.clone());
        let append = move |run| {
            let (ledger, (run, epoch)) = (it.clone(), run_of(run));
            async move {
                let step = Step::Noted { text: "x".repeat(1_000) };
                ledger.append(&run, epoch, step).await.expect("append");
            }
        };
        measure("append 1 KB", RUNS, at_once, &tasks, append).await;
        let it = ledger.clone();
        let finish = move |run| {
            let (ledger, (run, epoch)) = (it.clone(), of(run));
            async move {
                let outcome = Outcome::succeeded("x".repeat(1_000));
                ledger.finish(&run, epoch, outcome).await.expect("finish");
            }
        };
        measure("finish", RUNS, at_once, &tasks, finish).await;
    }
    let it = ledger.clone();
    let submit = move |run| {
        let ledger = it.clone();
        async move { ledger.submit(ticket(1_000_000 + run)).await.expect("submit") }
    };
    measure("submit, many queued", QUEUED, 256, &tasks, submit).await;
    let it = ledger.clone();
    let whole = move |_| {
        let ledger = it.clone();
        async move {
            let lease = ledger.lease("bench").await.expect("lease");
            let outcome = Outcome::failed(Cause::Other, "");
            ledger.finish(&lease.run, lease.epoch, outcome).await.expect("finish");
        }
    };
    measure("lease + finish, 100,000 wait", RUNS, 16, &tasks, whole).await;
    tasks.end().await;
    Ok(())
}
