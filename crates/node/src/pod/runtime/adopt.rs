//! What an earlier node has left: pods whose shim lives go on as if nothing had been; of the others only what is on disk
//! is kept, for whoever starts their containers again.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Runtime;
use super::cell::{Cell, Note};
use super::start::Tag;
use crate::Error;
use crate::engine::pods::{GROUP, Seat, group};
use crate::pod::log::{Log, Rotation};

impl Runtime {
    pub(super) async fn adopt_all(&self) -> Result<(), Error> {
        let dir = &self.shared.dir;
        let entries = std::fs::read_dir(dir).map_err(Error::disk(format!("read {}", dir.display())))?;
        let uids: Vec<String> = entries.flatten().filter_map(|it| it.file_name().into_string().ok()).collect();
        // One that resists is no reason to have none at all: what is wrong is said again when somebody wants it.
        let said = |uid: &str, done: Result<(), Error>| {
            if let Err(error) = done {
                tracing::error!(pod = uid, error = kit::chain(&error), "cannot take over or clear a pod");
            }
        };
        futures::future::join_all(uids.iter().map(|uid| async move { said(uid, self.adopt(uid).await) })).await;
        let cgroups = &self.shared.engine.cgroups;
        for id in cgroups.present() {
            let Some(uid) = id.strip_prefix(GROUP) else { continue };
            if self.find(uid).is_err() {
                said(uid, self.clear(uid).await);
            }
        }
        Ok(())
    }

    async fn adopt(&self, uid: &str) -> Result<(), Error> {
        let engine = &self.shared.engine;
        let dir = self.dir(uid);
        let text = match std::fs::read(dir.join("state.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::disk(format!("read {}", dir.display()))(error));
            }
            text => text.unwrap_or_default(),
        };
        let Ok(note) = serde_json::from_slice::<Note>(&text) else {
            // Its maker died before it had written anything: what it was to be is asked for again.
            if !text.is_empty() {
                tracing::warn!(pod = uid, "nobody can read what an earlier node wrote of a pod; it is made anew");
            }
            self.clear(uid).await?;
            return self.remove_dir(uid).await;
        };
        let process = note.process.filter(|_| note.boot == engine.boot);
        let cell = Arc::new(Cell::new(uid, dir, note));
        self.cells().insert(uid.to_owned(), cell.clone());
        let living = process.and_then(|it| it.open());
        let Some(pidfd) = living else {
            let cleared = self.clear(uid).await;
            // Whatever resists, the shim is gone, and without one nothing of the pod runs.
            cell.settle(engine).await;
            return cleared;
        };
        let pidfd = Arc::new(pidfd);
        engine.keep_seat(uid, Seat { slot: cell.live().slot, pidfd: Some(pidfd.clone()) });
        cell.live().pidfd = Some(pidfd.clone());
        if let Err(error) = self.take_over(&cell, pidfd).await {
            tracing::warn!(
                pod = uid,
                error = kit::chain(&error),
                "a pod of an earlier node does not answer; ending it"
            );
            let _work = cell.work.lock().await;
            self.stop(&cell).await?;
        }
        Ok(())
    }

    async fn take_over(&self, cell: &Arc<Cell>, pidfd: Arc<OwnedFd>) -> Result<(), Error> {
        let engine = &self.shared.engine;
        let machine = Error::machine("take a pod over");
        if !cell.live().state.alive {
            return Err(Error::Gone(cell.uid.clone()));
        }
        let launcher = engine.launcher().await?;
        let told = launcher.adopt(std::os::fd::AsFd::as_fd(&*pidfd), engine.cgroups.dirs(&cell.group())).await;
        told.map_err(Error::machine("hand a pod to the launcher"))?;
        let link = self.connect(cell, pidfd).await?;
        let records = link.containers().await.map_err(machine)?;
        for record in &records {
            let Ok(tag) = serde_json::from_str::<Tag>(&record.tag) else { continue };
            let Tag { state, tty, stdin_once } = tag;
            let known = cell.live().state.containers.iter().any(|it| it.id == state.id);
            if !known {
                cell.add(state.clone());
            }
            let noted = cell.live().state.containers.iter().any(|it| it.id == state.id && it.exit.is_some());
            if noted {
                continue;
            }
            let streams = link.streams(&record.key, tty).await.map_err(Error::machine("take a container over"))?;
            let log =
                Log::open(&self.logs(&cell.uid, &state.name), state.attempt, engine.clock.clone(), Rotation::default());
            let log = log.map_err(Error::disk("open the log of a container"))?;
            let names = (state.name, state.attempt, record.key.clone(), format!("{}/c-{}", cell.group(), record.key));
            self.attend(cell, names, log, stdin_once, streams)?;
        }
        self.find_frozen(cell).await;
        self.catch_up(cell, &link).await.map_err(Error::machine("take a pod over"))?;
        // What the shim does not know has ended before it was started, or never was.
        let unknown: Vec<_> = {
            let live = cell.live();
            let running = |name: &str| live.running.contains_key(name);
            let left = live.state.containers.iter().filter(|it| it.exit.is_none() && !running(&it.name));
            left.map(|it| it.id.clone()).collect()
        };
        let now = engine.clock.now();
        for it in cell.live().state.containers.iter_mut().filter(|it| unknown.contains(&it.id)) {
            it.exit = Some(super::cell::unseen(now));
        }
        cell.bump();
        Ok(())
    }

    /// Ends whatever is in a pod's control groups, and removes them.
    async fn clear(&self, uid: &str) -> Result<(), Error> {
        let cgroups = &self.shared.engine.cgroups;
        let group = group(uid);
        cgroups.end_pod(&group).await.map_err(Error::machine("end what an earlier node has left"))?;
        cgroups.remove_pod(&group).await.map_err(Error::disk("remove a control group of an earlier node"))
    }
}
