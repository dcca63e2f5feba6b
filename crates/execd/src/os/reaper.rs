//! Reaps every child: the commands that we started and the orphans that the kernel gave us, as PID 1 or as subreaper.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

#[derive(Default)]
pub(crate) struct Reaper {
    waiting: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
    /// Told of after every death of a child, whose ever it was.
    pub died: Notify,
}

impl Reaper {
    /// Makes orphans our children even where we are not PID 1.
    pub(crate) fn adopt_orphans() -> io::Result<()> {
        Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
    }

    /// Resolves with the end of `pid`. Must be asked for before control goes back to the event loop after the start,
    /// so that the end cannot have been reaped.
    pub(crate) fn exit(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, tell);
        told
    }

    /// Reaps for ever.
    pub(crate) async fn run(&self) -> io::Result<()> {
        let mut child = signal(SignalKind::child())?;
        loop {
            self.reap();
            if child.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn reap(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(exit) = exit(status)
                && let Some(tell) = self.waiting.borrow_mut().remove(&pid)
            {
                let _ = tell.send(exit);
            }
        }
        self.died.notify_waiters();
    }

    /// Resolves when there is no child left at all. Needs [`Reaper::run`] beside it.
    pub(crate) async fn childless(&self) {
        loop {
            let died = self.died.notified();
            tokio::pin!(died);
            died.as_mut().enable();
            // Looks without reaping: an end must not pass its owner by.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if matches!(rustix::process::waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD)) {
                return;
            }
            died.await;
        }
    }
}

fn exit(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}
