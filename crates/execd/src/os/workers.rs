//! Threads for what blocks: files and /proc.
//!
//! Not tokio's pool, because that one panics when the kernel refuses a thread, and a sandbox at its pids limit refuses
//! every one: then the work is done right here. Threads are few, have small stacks and end when nothing is to be done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// The most threads at once. More would only queue at the same disk.
const MOST: usize = 4;
/// Deep enough for the deepest recursion of ours (removing a tree of 64 levels before it is flattened).
const STACK: usize = 256 << 10;
/// How long an idle thread waits for more.
const LINGER: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Workers {
    /// Runs `job` on a thread where blocking is allowed. A job that panics is reported as `None`.
    ///
    /// The queue needs no bound of its own: every job belongs to a request, and requests are bounded.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.submit(Box::new(move || drop(done.send(job()))));
        result.await.ok()
    }

    fn submit(&self, job: Job) {
        let mut state = self.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            self.0.work.notify_one();
            return;
        }
        if state.threads < MOST {
            state.threads += 1;
            let workers = self.clone();
            let started = std::thread::Builder::new().stack_size(STACK).spawn(move || workers.work());
            if started.is_err() {
                state.threads -= 1;
                if state.threads == 0 {
                    // Nobody else will: the whole daemon waits for this one job, which is better than no answer.
                    let job = state.jobs.pop_front();
                    drop(state);
                    if let Some(job) = job {
                        run(job);
                    }
                }
            }
        }
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let (back, waited) = self.0.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's panic ends the job: its sender is dropped, so whoever waits for it learns of it.
fn run(job: Job) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn jobs_run_on_few_threads_and_a_panic_is_its_own() {
        let workers = Workers::default();
        assert_eq!(workers.run(|| panic!("its own")).await.map(|(): ()| ()), None);
        let jobs: Vec<_> = (0..100).map(|i| workers.run(move || i * 2)).collect();
        let mut sum = 0;
        for job in jobs {
            sum += job.await.unwrap();
        }
        assert_eq!(sum, 9900);
        assert!(workers.lock().threads <= MOST);
    }
}
