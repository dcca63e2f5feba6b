//! Sandboxes kept ready for whoever comes next.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::Backoff;
use tokio::sync::Notify;

use crate::Error;
use crate::sandboxes::Inner;

/// Made at once, so that filling leaves the machine to those who work.
const AT_ONCE: usize = 2;
/// Nothing is made ready while less memory than this is free, or less than a twentieth of all.
const MEMORY: u64 = 256 << 20;

pub(crate) struct Warm {
    wanted: usize,
    ready: Mutex<VecDeque<String>>,
    taken: Notify,
}

impl Warm {
    pub(crate) fn new(wanted: usize) -> Self {
        Self { wanted, ready: Mutex::default(), taken: Notify::new() }
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> usize {
        self.ready().len()
    }

    /// One that is ready; another one will take its place.
    pub(crate) fn take(&self) -> Option<String> {
        let taken = self.ready().pop_front()?;
        self.taken.notify_one();
        Some(taken)
    }

    /// Keeps one of an earlier process, if there is room.
    pub(crate) fn keep(&self, id: &str) -> bool {
        let mut ready = self.ready();
        let room = ready.len() < self.wanted;
        if room {
            ready.push_back(id.to_owned());
        }
        room
    }

    /// It has ended by itself.
    pub(crate) fn lost(&self, id: &str) {
        self.ready().retain(|it| it != id);
        self.taken.notify_one();
    }

    /// Forgets those that are not among `there`.
    pub(crate) fn retain(&self, there: impl Fn(&str) -> bool) {
        self.ready().retain(|it| there(it));
        self.taken.notify_one();
    }
}

impl Inner {
    /// Keeps the warm set filled until shutdown.
    pub(crate) async fn fill(&self) -> Result<(), std::convert::Infallible> {
        let shutdown = self.tasks.shutdown().clone();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let filled = tokio::select! {
                filled = self.fill_once() => filled,
                () = shutdown.begun() => return Ok(()),
            };
            let pause = match filled {
                Ok(true) => {
                    backoff.reset();
                    continue;
                }
                Ok(false) => {
                    tokio::select! {
                        () = self.warm.taken.notified() => continue,
                        () = shutdown.begun() => return Ok(()),
                    }
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        tracing::warn!(error = kit::chain(&error), "cannot make sandboxes ready; trying again");
                    }
                    backoff.pause()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.begun() => return Ok(()),
            }
        }
    }

    /// Starts some, if some are missing.
    async fn fill_once(&self) -> Result<bool, Error> {
        let missing = self.warm.wanted.saturating_sub(self.warm.count());
        if missing == 0 {
            return Ok(false);
        }
        if let Some((free, all)) = memory()
            && free < MEMORY.max(all / 20)
        {
            let why = format!("the machine has {} MiB of memory free", free >> 20);
            return Err(Error::Unfit(format!("{why}, too little to keep sandboxes ready")));
        }
        let starts = (0..missing.min(AT_ONCE)).map(|_| async {
            let id = self.start().await?;
            self.warm.ready().push_back(id);
            Ok(())
        });
        futures::future::join_all(starts).await.into_iter().collect::<Result<Vec<()>, Error>>()?;
        Ok(true)
    }
}

/// Bytes of memory that can be had without swapping, and of all.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((line("MemAvailable:")?, line("MemTotal:")?))
}
