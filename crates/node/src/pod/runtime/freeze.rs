//! Freezing: the processes of a pod's containers stand still, while its shim goes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Runtime;
use super::cell::{Cell, Running};
use crate::Error;
use crate::fault::point;

/// How long a freeze holds up all that comes after it.
const TURN: Duration = Duration::from_secs(3);

impl Runtime {
    /// Why pods cannot be frozen here, in doctor's words.
    pub(crate) fn no_freezer(&self) -> Option<String> {
        let (can, why) = self.shared.engine.cgroups.can("freezer");
        (!can).then_some(why)
    }

    /// Has every process of a pod's containers stand still, or go on. All of them or, when it fails, none. Until it is
    /// thawed no process is started in it. Idempotent.
    pub(crate) async fn freeze(&self, uid: &str, frozen: bool) -> Result<(), Error> {
        let cell = self.find(uid)?;
        let runtime = self.clone();
        let (said, done) = tokio::sync::oneshot::channel();
        // A caller who goes away in the middle changes nothing.
        self.shared.engine.tasks.tenant("freeze", async move {
            let _ = said.send(runtime.freeze_in(&cell, frozen).await);
        });
        done.await.map_err(Error::machine("freeze or thaw a pod"))?
    }

    async fn freeze_in(&self, cell: &Arc<Cell>, frozen: bool) -> Result<(), Error> {
        // What is being started in it has to be done: should that take its time, it is tried again.
        let gate = tokio::time::timeout(TURN, cell.gate.write()).await;
        let _gate = gate.map_err(Error::machine("wait for what is being started in a pod"))?;
        cell.link()?;
        let running = cell.all_running();
        if let Err(error) = self.stand(&running, frozen).await {
            if frozen {
                // Half frozen is worst.
                let _ = self.stand(&running, false).await;
            }
            return Err(error);
        }
        {
            let mut live = cell.live();
            // It may have ended meanwhile.
            live.state.frozen = frozen && live.link.is_some();
        }
        cell.bump();
        Ok(())
    }

    /// The kernel's part, for all of these at once.
    pub(super) async fn stand(&self, running: &[Arc<Running>], still: bool) -> Result<(), Error> {
        let cgroups = &self.shared.engine.cgroups;
        if !still && !cgroups.freezes() {
            return Ok(());
        }
        let each = running.iter().map(|it| async move {
            let done = cgroups.freeze(&it.group, still).await;
            point(if still { "container: stands still" } else { "container: goes on" });
            match done {
                // It has ended, and its groups are removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
                other => other,
            }
        });
        let done: io::Result<Vec<()>> = futures::future::join_all(each).await.into_iter().collect();
        done.map(drop).map_err(Error::machine(if still { "freeze a pod" } else { "thaw a pod" }))
    }

    /// What the kernel says of a pod that an earlier node has left. That one may have died half way.
    pub(super) async fn find_frozen(&self, cell: &Arc<Cell>) {
        let running = cell.all_running();
        let still = running.iter().filter(|it| self.shared.engine.cgroups.is_frozen(&it.group)).count();
        let mut frozen = still > 0;
        if frozen
            && still < running.len()
            && let Err(error) = self.stand(&running, false).await.map(|()| frozen = false)
        {
            // As frozen it is thawed before anything else is done about it, and that is tried again.
            tracing::warn!(pod = cell.uid, error = kit::chain(&error), "a pod that is half frozen does not thaw");
        }
        cell.live().state.frozen = frozen;
    }
}
