//! What goes on beside the calls: taking up after a start, following node and ledger, ending what nobody uses.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use jiff::Timestamp;
use kit::Backoff;
use ledger::{Change, Changes, Claim, RunId, State};
use wire::execd::RunCommand;
use wire::node::{Bind, Event, ExitReason, Phase, Sandbox, Workspace};

use crate::Error;
use crate::link::full;
use crate::live::{Key, Live, Owner, Place, Whose};
use crate::sandboxes::{Inner, labels};
use crate::shape::Shape;

/// How long a workspace may take to be emptied from within.
const EMPTYING: Duration = Duration::from_secs(300);

impl Inner {
    /// What the ledger's claims and the node agree on goes on; what only one of them knows is ended.
    pub(crate) async fn adopt(self: &Arc<Self>) -> Result<(), Error> {
        let claims = self.ledger.claims().await.map_err(Error::ledger("tell whose sandboxes are"))?;
        let mut claims: HashMap<String, Claim> = claims.into_iter().map(|it| (it.sandbox.clone(), it)).collect();
        for sandbox in self.link.list().await?.into_iter().filter(is_ours) {
            let claim = claims.remove(&sandbox.id);
            let kept = match &claim {
                Some(claim) if sandbox.bound && sandbox.phase == Phase::Running => self.adopt_one(claim).await?,
                None if !sandbox.bound && sandbox.phase == Phase::Running => self.warm.keep(&sandbox.id),
                _ => false,
            };
            if !kept {
                let inner = self.clone();
                self.tasks.tenant("sandbox end", async move {
                    inner.remove_sandbox(&sandbox.id).await;
                    if let Some(claim) = claim {
                        inner.unclaim(claim.epoch).await;
                    }
                });
            }
        }
        for claim in claims.into_values() {
            self.unclaim(claim.epoch).await;
        }
        Ok(())
    }

    /// Whether the sandbox of this claim goes on.
    async fn adopt_one(self: &Arc<Self>, claim: &Claim) -> Result<bool, Error> {
        let by = &claim.by;
        let owner = Owner {
            namespace: by.namespace.clone(),
            instance: by.instance.clone(),
            session: by.session.clone(),
            run: by.run.clone(),
            run_name: String::new(),
        };
        let key = owner.key();
        if matches!(key.whose, Whose::Run(_)) && self.is_over(&by.run).await {
            return Ok(false);
        }
        let (Ok(shape), Ok(workspace)) = (serde_json::from_str::<Shape>(&by.shape), self.workspaces.of(&key)) else {
            return Ok(false);
        };
        let (id, pod, run) = (claim.sandbox.clone(), by.pod.clone(), by.run.clone());
        let live = Live::new(id, pod, claim.epoch, shape, workspace, run, self.clock.clone());
        let place = self.place(key);
        let mut held = place.held.lock().await;
        self.settle(&place, &mut held, Arc::new(live));
        Ok(true)
    }

    /// Ends a sandbox when nobody has used it for as long as was said.
    pub(crate) async fn end_when_idle(&self, place: &Arc<Place>, live: &Arc<Live>) {
        let shutdown = self.tasks.shutdown().clone();
        loop {
            let due = live.unused_since().checked_add(self.idle).unwrap_or(Timestamp::MAX);
            tokio::select! {
                () = self.clock.until(due) => {}
                _ = live.over() => return,
                () = shutdown.begun() => return,
            }
            let is_idle = |it: &Live| {
                let due = it.unused_since().checked_add(self.idle).unwrap_or(Timestamp::MAX);
                it.id == live.id && due <= self.clock.now()
            };
            self.end_place(place, "nobody used it", is_idle).await;
        }
    }

    /// Ends the sandbox of a run without a session when the run is over.
    pub(crate) async fn follow_runs(self: &Arc<Self>, mut changes: Changes) -> Result<(), Infallible> {
        let shutdown = self.tasks.shutdown().clone();
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                () = shutdown.begun() => return Ok(()),
            };
            let concerns = |key: &Key| match (&change, &key.whose) {
                (Some(Change::Run { run, .. }), Whose::Run(own)) => run == own,
                (Some(Change::All), Whose::Run(_)) => true,
                _ => false,
            };
            if change.is_none() {
                // The ledger is gone, and with it the process.
                shutdown.begun().await;
                return Ok(());
            }
            let places: Vec<_> = self.places().values().filter(|it| concerns(&it.key)).cloned().collect();
            for place in places {
                let inner = self.clone();
                self.tasks.tenant("sandbox of a finished run", async move {
                    if let Whose::Run(run) = &place.key.whose
                        && inner.is_over(run).await
                    {
                        inner.end_place(&place, "its run is over", |_| true).await;
                    }
                });
            }
        }
    }

    async fn is_over(&self, run: &RunId) -> bool {
        let found = self.ledger.run(run).await;
        found.is_ok_and(|run| run.is_none_or(|run| matches!(run.state, State::Done(_))))
    }

    /// Learns from the node which sandboxes have ended.
    pub(crate) async fn follow_node(self: &Arc<Self>) -> Result<(), Infallible> {
        let shutdown = self.tasks.shutdown().clone();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
        loop {
            let followed = async {
                let mut events = self.link.watch().await?;
                while let Some(event) = events.next().await {
                    self.take_in(event?);
                    backoff.reset();
                }
                Ok::<_, Error>(())
            };
            let ended = tokio::select! {
                ended = followed => ended,
                () = shutdown.begun() => return Ok(()),
            };
            if let Err(error) = ended {
                tracing::warn!(error = kit::chain(&error), "lost sight of the node; looking again");
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => {}
                () = shutdown.begun() => return Ok(()),
            }
        }
    }

    fn take_in(self: &Arc<Self>, event: Event) {
        match event {
            Event::All { sandboxes } => {
                let there: HashMap<_, _> = sandboxes.iter().map(|it| (it.id.as_str(), it)).collect();
                self.warm.retain(|id| there.contains_key(id));
                let lost: Vec<_> = self.live().values().map(|(_, live)| live.clone()).collect();
                for live in lost.iter().filter(|live| !there.contains_key(live.id.as_str())) {
                    self.clone().end_live(live, "it is gone");
                }
            }
            Event::Changed { sandbox } if sandbox.phase == Phase::Ended => {
                self.warm.lost(&sandbox.id);
                let live = self.live().get(&sandbox.id).map(|(_, live)| live.clone());
                if let Some(live) = live {
                    self.clone().end_live(&live, why(&sandbox));
                }
            }
            Event::Changed { .. } => {}
        }
    }

    /// Takes a workspace out of the way and removes it behind.
    pub(crate) fn discard(self: &Arc<Self>, directory: &std::path::Path) -> Result<(), Error> {
        if let Some(away) = self.workspaces.discard(directory)? {
            self.clone().remove_directory(away);
        }
        Ok(())
    }

    /// Removes what was discarded.
    pub(crate) fn remove_directory(self: Arc<Self>, directory: PathBuf) {
        let inner = self.clone();
        self.tasks.tenant("workspace removal", async move {
            if let Err(error) = remove_all(&directory).await {
                // A user's own sandboxes may have files of ids that he is not: only a sandbox can remove those.
                let emptied = inner.empty(&directory).await;
                let removed = remove_all(&directory).await;
                if let (Err(_), Err(why)) = (removed, emptied) {
                    let (error, why) = (kit::chain(&error), kit::chain(&why));
                    tracing::warn!(path = %directory.display(), error, why, "a workspace stays until the next start");
                }
            }
        });
    }

    /// Removes what is in a directory of workspaces, from within a sandbox.
    async fn empty(&self, directory: &std::path::Path) -> Result<(), Error> {
        let id = self.start().await?;
        let emptied = async {
            let path = directory.to_str().unwrap_or_default().to_owned();
            let workspace = Some(Workspace { path, read_only: false, quota: None });
            self.link.bind(&id, &Bind { workspace, ..Bind::default() }).await?;
            let command = Some("find /workspace -mindepth 1 -delete".to_owned());
            let asked = RunCommand { command, timeout: Some(EMPTYING.as_millis() as u64), ..RunCommand::default() };
            let asked = serde_json::to_vec(&asked).map_err(Error::unreachable("pass a command on"))?;
            let done = self.link.execd(&id, Method::POST, "command", "application/json", full(asked)).await?;
            http_body_util::BodyExt::collect(done.into_body()).await.map_err(Error::unreachable("finish"))?;
            Ok(())
        };
        let emptied = tokio::time::timeout(EMPTYING, emptied).await;
        self.remove_sandbox(&id).await;
        emptied.map_err(Error::unreachable("empty a workspace in time"))?
    }
}

async fn remove_all(directory: &std::path::Path) -> Result<(), std::io::Error> {
    let directory = directory.to_owned();
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    removed.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn is_ours(sandbox: &Sandbox) -> bool {
    sandbox.labels.get(labels::USE).is_some_and(|it| it == labels::SESSIONS)
}

/// How a sandbox ended, for whoever was using it.
fn why(sandbox: &Sandbox) -> &'static str {
    match sandbox.exit.as_ref().map(|exit| exit.reason) {
        Some(ExitReason::OutOfMemory) => "it was out of memory",
        Some(ExitReason::Removed) => "it was deleted",
        Some(ExitReason::Exited) => "its first process ended",
        Some(ExitReason::Unknown) | None => "it is gone",
    }
}
