//! The size of a workspace where the machine does not hold it: counted while a command runs, and for as long as its sandbox
//! lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wire::execd::code;

use crate::live::{Key, Live, Stopped};
use crate::sandboxes::Inner;
use crate::{Error, Hand, workspace};

/// Under a command a workspace is counted at most this often, and for a twentieth of the time at most.
const COUNTED: Duration = Duration::from_secs(2);
/// Counting may take one part in so many of the time.
const SHARE: u32 = 20;
/// Sessions that are still to be told why their sandbox was ended. When there are more, one of those that have waited is
/// not told any more.
const UNSAID: usize = 1024;

impl Hand {
    /// Whether the workspace is within its quota, as far as it was counted.
    pub(crate) fn has_room(&self) -> Result<(), Error> {
        let (size, quota) = (self.live.size.load(Ordering::Acquire), self.all.quota);
        if size <= quota {
            return Ok(());
        }
        let said = format!("the workspace has {size} bytes, more than its quota of {quota}: remove files first");
        Err(Error::Refused { code: code::TOO_LARGE.to_owned(), said })
    }

    /// Resolves when the workspace has grown over its quota, with its size.
    pub(crate) async fn growing(&self) -> u64 {
        let (live, quota) = (&self.live, self.all.quota);
        let before = live.size.load(Ordering::Acquire);
        let mut pause = COUNTED;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            let size = count(live).await;
            if size > quota && size > before {
                return size;
            }
            pause = COUNTED.max(began.elapsed() * SHARE);
        }
    }

    /// After a command: what is told of a workspace that is over its quota. One that was within it is counted off the way
    /// of the next call.
    pub(crate) async fn over_quota(&self) -> Option<String> {
        let quota = self.all.quota;
        if self.live.size.load(Ordering::Acquire) > quota {
            let size = count(&self.live).await;
            return (size > quota).then(|| {
                format!(
                    "[the workspace has {size} bytes, more than its quota of {quota}: remove files; if it goes on growing, \
                     the sandbox is ended]\n"
                )
            });
        }
        let (live, all) = (self.live.clone(), self.all.clone());
        if live.begin_count(COUNTED) {
            self.all.tasks.tenant("workspace size", async move {
                let size = count(&live).await;
                if size > all.quota {
                    tracing::info!(pod = live.pod, size, quota = all.quota, "a workspace is over its quota");
                }
            });
        }
        None
    }
}

impl Inner {
    /// Counts a workspace from time to time while its sandbox lives: what a command has left running writes on when no call
    /// is in progress. One that goes on growing over the quota ends its sandbox.
    pub(crate) async fn hold_quota(self: &Arc<Self>, key: &Key, live: &Arc<Live>) {
        let shutdown = self.tasks.shutdown().clone();
        let mut pause = Duration::ZERO;
        // What it had when it was first seen to be over.
        let mut over = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = live.over() => return,
                () = shutdown.begun() => return,
            }
            let began = Instant::now();
            let size = {
                // One at a time, however many sandboxes there are: nobody waits for it.
                let _turn = self.counting.acquire().await;
                count(live).await
            };
            if size <= self.quota {
                over = None;
            } else if size > over.get_or_insert(size).saturating_add(self.quota / 100) {
                let why = format!(
                    "its workspace went on growing over its quota of {} bytes and has {size}; remove files",
                    self.quota
                );
                tracing::info!(
                    pod = live.pod,
                    size,
                    quota = self.quota,
                    "a workspace goes on growing; ending its sandbox"
                );
                // A call in progress is told by its own end.
                if live.calls() == 0 {
                    self.tell_later(key, Stopped { why: why.clone(), size });
                }
                self.clone().end_live(live, &why);
                return;
            }
            pause = self.counted.max(began.elapsed() * SHARE);
        }
    }

    fn tell_later(&self, key: &Key, stopped: Stopped) {
        let mut unsaid = self.unsaid();
        if unsaid.len() >= UNSAID
            && !unsaid.contains_key(key)
            && let Some(one) = unsaid.keys().next().cloned()
        {
            unsaid.remove(&one);
        }
        unsaid.insert(key.clone(), stopped);
    }
}

async fn count(live: &Live) -> u64 {
    let path = live.workspace.clone();
    match tokio::task::spawn_blocking(move || workspace::size(&path)).await {
        Ok(size) => {
            live.size.store(size, Ordering::Release);
            size
        }
        // Not counted, because everything ends: it is as it was.
        Err(_) => live.size.load(Ordering::Acquire),
    }
}
