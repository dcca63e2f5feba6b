//! The objects: an append-only log by revision, and everything live in memory.
//!
//! - A write is durable before it is acknowledged and before anybody sees it. Revisions are given out in order, one a
//!   write, and never again. Writes that come at the same time share a transaction; each is judged by itself.
//! - Get, list and watch are answered from memory. Events older than the window kept there come from the log, until
//!   it is compacted: then [`TooOld`].
//! - A watcher reads the shared history at its own pace. A slow one is cut off and slows nobody.
//! - In memory alone (`Data::Memory`) the window is all the history there is.

mod commit;
mod compact;
mod key;
mod log;
mod memory;
mod snapshot;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use kit::{Clock, Tasks};
use serde_json::Value;

use crate::Data;
use commit::{Committer, Stats};
use key::Draft;
pub(crate) use key::{Entry, Key, MAX_OBJECT};
use log::{Log, Reader};
pub(crate) use memory::{Event, Listed};
use memory::{Memory, Scope, Undo, Window};
pub use snapshot::{BackupError, Snapshot, restored};
pub(crate) use watch::Watch;

const WINDOW: Window = Window { events: 100_000, bytes: 16 << 20 };

/// What must be true of the key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Absent,
    /// It is there, as this revision wrote it.
    Rev(u64),
}

impl Expect {
    fn check(self, current: Option<&Arc<Entry>>) -> Result<(), WriteError> {
        match (self, current) {
            (Self::Absent, None) => Ok(()),
            (Self::Absent, Some(current)) => Err(WriteError::Exists { current: current.clone() }),
            (Self::Rev(_), None) => Err(WriteError::Absent),
            (Self::Rev(rev), Some(current)) if current.rev == rev => Ok(()),
            (Self::Rev(_), Some(current)) => Err(WriteError::Conflict { current: current.clone() }),
        }
    }
}

/// What to do with the key. The objects are given whole; `metadata.resourceVersion` is filled in by the commit.
pub(crate) enum Change {
    Put(Value),
    /// With the last state, which watchers are shown.
    Delete(Value),
}

/// History before `oldest` is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is too old, the oldest kept is {oldest}")]
pub(crate) struct TooOld {
    pub(crate) asked: u64,
    pub(crate) oldest: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("{current:?} was written meanwhile")]
    Conflict { current: Arc<Entry> },
    #[error("{current:?} exists")]
    Exists { current: Arc<Entry> },
    #[error("it is not there")]
    Absent,
    #[error("an object with metadata, a name and no slash in its key is needed")]
    NotAnObject,
    #[error("the object has {size} bytes, the limit is {MAX_OBJECT}")]
    TooLarge { size: usize },
    /// Nothing was written; reads go on, and so do writes once there is room.
    #[error("the disk is full")]
    Full,
    #[error("cannot write the log")]
    Failed(#[source] rusqlite::Error),
    /// The writer is broken and the process about to end. Whether the write happened is unknown.
    #[error("the store has stopped")]
    Stopped,
}

/// Why a store cannot be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is held by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot write {}", path.display())]
    NotWritable { path: PathBuf, source: io::Error },
    #[error("{} was written by a newer version (its layout is {found}, this program knows {known})", path.display())]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{} is damaged: {why}", path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("cannot open {}", path.display())]
    Failed { path: PathBuf, source: rusqlite::Error },
}

impl OpenError {
    fn of(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, NotADatabase, PermissionDenied, ReadOnly};
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => Self::Corrupt { path, why: source.to_string() },
            Some(DatabaseBusy) => Self::InUse { path },
            Some(PermissionDenied | ReadOnly) => Self::NotWritable { path, source: io::Error::other(source) },
            _ => Self::Failed { path, source },
        }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Store(Arc<Inner>);

struct Inner {
    memory: Arc<RwLock<Memory>>,
    committer: Arc<Committer>,
    reader: Option<Arc<Reader>>,
    clock: Clock,
}

impl Store {
    /// Opens the store, making it when it is new. Blocks: a second or so for a gigabyte. Must be called inside a tokio
    /// runtime; the process ends through `tasks` should the writer ever break.
    pub(crate) fn open(data: &Data, clock: Clock, tasks: &Tasks) -> Result<Self, OpenError> {
        Self::open_with(data, clock, tasks, WINDOW)
    }

    fn open_with(data: &Data, clock: Clock, tasks: &Tasks, window: Window) -> Result<Self, OpenError> {
        let store = match data {
            Data::Memory => Self::new(Memory::new(0, 0, Vec::new(), window), None, None, clock),
            Data::Dir(dir) => {
                let it = Log::open(dir)?;
                let memory = Memory::new(it.revision, it.compacted, it.live, window);
                Self::new(memory, Some(it.log), Some(it.reader), clock)
            }
        };
        let mut broken = store.0.committer.broken.subscribe();
        let shutdown = tasks.shutdown().clone();
        tasks.platform("store", async move {
            tokio::select! {
                () = shutdown.begun() => Ok(()),
                _ = broken.wait_for(|it| *it) => Err(WriteError::Stopped),
            }
        });
        if store.0.reader.is_some() {
            let (store, shutdown) = (store.clone(), tasks.shutdown().clone());
            tasks.platform("store compaction", async move {
                tokio::select! {
                    () = shutdown.begun() => Ok(()),
                    ended = compact::run(store) => ended,
                }
            });
        }
        Ok(store)
    }

    fn new(memory: Memory, log: Option<Log>, reader: Option<Reader>, clock: Clock) -> Self {
        let memory = Arc::new(RwLock::new(memory));
        let committer = Arc::new(Committer::new(memory.clone(), log, clock.clone()));
        Self(Arc::new(Inner { memory, committer, reader: reader.map(Arc::new), clock }))
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.0.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The newest revision that readers see. 0 in an empty store.
    pub(crate) fn revision(&self) -> u64 {
        self.memory().revision
    }

    /// How many objects there are of each group and resource.
    pub(crate) fn counts(&self) -> BTreeMap<(Arc<str>, Arc<str>), usize> {
        self.memory().counts()
    }

    /// The revision through which history is forgotten.
    pub(crate) fn compacted(&self) -> u64 {
        self.memory().compacted
    }

    /// What is counted of writes.
    pub(crate) fn stats(&self) -> &Stats {
        &self.0.committer.stats
    }

    /// Waits until readers see this revision. The caller sets the deadline.
    pub(crate) async fn reached(&self, rev: u64) {
        let mut bell = self.memory().any_bell();
        let _ = bell.wait_for(|now| *now >= rev).await;
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.memory().get(key).cloned()
    }

    /// The resource's objects in order of key, strictly after `after`, at most `limit`. One consistent state.
    pub(crate) fn list(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        after: Option<&Key>,
        limit: Option<usize>,
    ) -> Listed {
        self.memory().list((group, resource, namespace), after, limit, &Undo::new())
    }

    /// [`Store::list`] as it was at an older revision; at the newest when `rev` is not older.
    pub(crate) async fn list_at(
        &self,
        rev: u64,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        after: Option<&Key>,
        limit: Option<usize>,
    ) -> Result<Listed, TooOld> {
        let scope = Scope::Of { group: group.into(), resource: resource.into(), namespace: namespace.map(Into::into) };
        let mut undo = Undo::new();
        let mut looked = rev;
        loop {
            let oldest = {
                let memory = self.memory();
                if memory.undo(group, resource, looked, &mut undo) {
                    let mut listed = memory.list((group, resource, namespace), after, limit, &undo);
                    listed.rev = listed.rev.min(rev);
                    return Ok(listed);
                }
                if self.0.reader.is_some() { memory.compacted } else { memory.kept_after(&scope) }
            };
            let too_old = TooOld { asked: rev, oldest };
            let reader = self.0.reader.clone().filter(|_| rev >= oldest).ok_or(too_old)?;
            let scope = scope.clone();
            let page = tokio::task::spawn_blocking(move || reader.events(&scope, looked)).await;
            let Ok(Ok(page)) = page else { return Err(too_old) };
            for event in page.events {
                undo.entry(event.entry.key.place()).or_insert_with(|| event.prev.clone());
            }
            looked = page.through;
        }
    }

    /// Every live object of every resource, and the revision at which this was the truth.
    pub(crate) fn everything(&self) -> (Vec<Arc<Entry>>, u64) {
        let memory = self.memory();
        (memory.everything().cloned().collect(), memory.revision)
    }

    /// Every live object in a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<Entry>> {
        self.memory().in_namespace(namespace).cloned().collect()
    }

    /// Does the change if the key is as expected. Durable when it returns, and then already seen by every reader.
    ///
    /// The write happens even if the caller stops waiting for it.
    pub(crate) async fn write(&self, key: Key, expect: Expect, change: Change) -> Result<Arc<Entry>, WriteError> {
        if !key.is_storable() {
            return Err(WriteError::NotAnObject);
        }
        let (object, deletes) = match &change {
            Change::Put(object) => (object, false),
            Change::Delete(object) => (object, true),
        };
        let draft = Draft::new(object)?;
        self.0.committer.write(key, expect, draft, deletes).await
    }

    /// The resource's events after a revision.
    pub(crate) fn watch(
        &self,
        group: &str,
        resource: &str,
        namespace: Option<&str>,
        after: u64,
    ) -> Result<Watch, TooOld> {
        self.watch_scope(
            Scope::Of { group: group.into(), resource: resource.into(), namespace: namespace.map(Into::into) },
            after,
        )
    }

    /// Rings, before a write returns, whenever an object of the resource may have changed.
    pub(crate) fn bell(&self, group: &str, resource: &str) -> tokio::sync::watch::Receiver<u64> {
        let scope = Scope::Of { group: group.into(), resource: resource.into(), namespace: None };
        self.0.memory.write().unwrap_or_else(PoisonError::into_inner).bell(&scope)
    }

    /// Every resource's events after a revision.
    pub(crate) fn watch_everything(&self, after: u64) -> Result<Watch, TooOld> {
        self.watch_scope(Scope::All, after)
    }

    fn watch_scope(&self, scope: Scope, after: u64) -> Result<Watch, TooOld> {
        let Inner { memory, reader, .. } = &*self.0;
        let mut guard = memory.write().unwrap_or_else(PoisonError::into_inner);
        let in_memory = guard.kept_after(&scope);
        let oldest = if reader.is_some() { in_memory.min(guard.compacted) } else { in_memory };
        if after < oldest {
            return Err(TooOld { asked: after, oldest });
        }
        let bell = guard.bell(&scope);
        drop(guard);
        Ok(Watch::new(scope, after, after < in_memory, memory.clone(), reader.clone(), bell))
    }

    /// Forgets the history through a revision, but for what is live. Step by step, writes go between.
    async fn compact(&self, through: u64) -> Result<(), WriteError> {
        loop {
            let before = self.memory().compacted;
            if before >= through || self.0.committer.compact(through).await? == before {
                return Ok(());
            }
        }
    }
}
