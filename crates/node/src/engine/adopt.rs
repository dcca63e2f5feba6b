//! What an earlier node left: kept when it lives and answers, ended otherwise, and nothing else stays.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use wire::node::Phase;

use super::sandbox::Sandbox;
use super::{Engine, blocking, pods};
use crate::state::{Dir, State, Step};
use crate::{Error, proxy, sys};

/// How long an execd may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(3);

impl Engine {
    /// Looks at every directory and at every control group of ours.
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<(), Error> {
        let ids = Dir::all(&self.sandboxes).map_err(Error::disk(format!("read {}", self.sandboxes.display())))?;
        let found = futures::future::join_all(ids.iter().map(|id| self.adopt_or_end(id))).await;
        found.into_iter().collect::<Result<Vec<()>, _>>()?;
        for id in self.cgroups.present().into_iter().filter(|it| !it.starts_with(pods::GROUP)) {
            if self.find(&id).is_err() {
                self.cgroups.kill(&id);
                self.cgroups.remove(&id).await.map_err(Error::disk("remove a control group of an earlier node"))?;
            }
        }
        Ok(())
    }

    async fn adopt_or_end(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let dir = self.dir(id);
        let state = dir.read().filter(|it| it.boot == self.boot && it.id == id);
        let living = state.as_ref().and_then(|it| it.process).and_then(|it| it.open());
        match (state, living) {
            // Nobody's own: only who can still bind it has a use for it.
            (Some(state), Some(pidfd))
                if state.step == Step::Bound || (state.step == Step::Running && self.enters_strangers()) =>
            {
                if self.adopt(&dir, state, &pidfd).await? {
                    return Ok(());
                }
                self.end_stranger(id, Some(pidfd)).await?;
            }
            (_, living) => self.end_stranger(id, living).await?,
        }
        tracing::info!(sandbox = id, "ended what an earlier node had left");
        // A directory of a version that has more in it than we know is removed as well.
        blocking(move || dir.remove()).await?.map_err(Error::disk("remove a directory of an earlier node"))
    }

    /// Whether it answers; then it is ours.
    async fn adopt(self: &Arc<Self>, dir: &Dir, state: State, pidfd: &OwnedFd) -> Result<bool, Error> {
        let bound = state.step == Step::Bound;
        let sandbox = Arc::new(Sandbox::new(dir.clone(), state, true));
        let _ = self.thaw_all(&sandbox).await;
        if !matches!(tokio::time::timeout(ANSWER, proxy::ping(&sandbox, &self.tasks)).await, Ok(Ok(()))) {
            return Ok(false);
        }
        let hold = |fd: &OwnedFd| fd.try_clone().map_err(Error::disk("hold a process"));
        sandbox.runs_as(hold(pidfd)?);
        let launcher = self.launcher().await?;
        let told = launcher.adopt(pidfd.as_fd(), self.cgroups.dirs(&sandbox.id)).await;
        told.map_err(Error::machine("hand a sandbox to the launcher"))?;
        {
            let mut live = sandbox.live();
            live.phase = Phase::Running;
            live.bound = bound;
        }
        self.map().insert(sandbox.id.clone(), sandbox.clone());
        let (engine, watched) = (self.clone(), hold(pidfd)?);
        self.tasks.tenant("sandbox", async move { engine.watch(&sandbox, watched, None).await });
        Ok(true)
    }

    async fn end_stranger(&self, id: &str, living: Option<OwnedFd>) -> Result<(), Error> {
        if let Some(pidfd) = living {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = self.cgroups.freeze(id, false).await;
            let pidfd = sys::watch(pidfd).map_err(Error::machine("watch a process of an earlier node"))?;
            let ended = tokio::time::timeout(super::start::END, pidfd.readable()).await;
            ended.map_err(Error::machine("see a process of an earlier node end"))?.map(drop).unwrap_or_default();
        }
        self.cgroups.kill(id);
        self.cgroups.remove(id).await.map_err(Error::disk("remove a control group of an earlier node"))
    }
}
