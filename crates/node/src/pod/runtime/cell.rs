//! One pod as the node knows it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot, watch};

use super::link::Link;
use super::streams::{self, End};
use crate::Error;
use crate::engine::Engine;
use crate::engine::pods::group;
use crate::pod::log::{Log, Stream};
use crate::pod::{ContainerState, Exit, PodState, StartError};
use crate::state::Process;

/// Pieces of output that somebody who is attached may lag behind.
const PIECES: usize = 256;

pub(super) struct Cell {
    pub uid: String,
    pub dir: PathBuf,
    /// Held by whoever makes or ends it: one at a time.
    pub work: tokio::sync::Mutex<()>,
    /// Held for reading by whoever starts a process in it, for writing by whoever freezes it: none is half started then.
    pub gate: tokio::sync::RwLock<()>,
    live: Mutex<Live>,
    /// Held by whoever writes it down: containers that end at the same time would mix what they write.
    noting: Mutex<()>,
    pub changed: watch::Sender<u64>,
}

pub(super) struct Live {
    pub state: PodState,
    /// Of the boot in which the shim was made.
    pub boot: String,
    pub slot: Option<u32>,
    pub process: Option<Process>,
    /// Which orders the shim understands.
    pub generation: u32,
    pub pidfd: Option<Arc<OwnedFd>>,
    pub link: Option<Link>,
    pub running: BTreeMap<String, Arc<Running>>,
    pub execs: BTreeMap<String, oneshot::Sender<i32>>,
}

/// What is on disk, beside what the shim knows.
#[derive(Serialize, Deserialize)]
pub(super) struct Note {
    pub boot: String,
    pub slot: Option<u32>,
    pub process: Option<Process>,
    /// Of the shim.
    #[serde(default)]
    pub generation: u32,
    pub state: PodState,
}

/// A container that runs, or whose end is not yet written down.
pub(super) struct Running {
    pub name: String,
    pub attempt: u32,
    /// Its name at the shim.
    pub key: String,
    /// Its control groups.
    pub group: String,
    pub log: Log,
    pub output: broadcast::Sender<(Stream, bytes::Bytes)>,
    pub exit: watch::Sender<Option<Exit>>,
    pub stdin_once: bool,
    input: Mutex<Option<OwnedFd>>,
    pub terminal: Option<OwnedFd>,
    /// Becomes true when all that it has written was read.
    pub drained: watch::Sender<bool>,
}

impl Running {
    pub(super) fn new(
        (name, attempt, key, group): (String, u32, String, String),
        log: Log,
        stdin_once: bool,
        input: Option<OwnedFd>,
        terminal: Option<OwnedFd>,
    ) -> Self {
        let output = broadcast::channel(PIECES).0;
        let exit = watch::Sender::new(None);
        let (input, drained) = (Mutex::new(input), watch::Sender::new(false));
        Self { name, attempt, key, group, log, output, exit, stdin_once, input, terminal, drained }
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends of our own to write to it and to tell its terminal's size.
    pub(super) fn input(&self) -> (Option<End>, Option<End>) {
        let copy = |fd: &OwnedFd| fd.try_clone().and_then(streams::end).ok();
        let terminal = self.terminal.as_ref().and_then(copy);
        (self.held().as_ref().and_then(copy), terminal)
    }

    pub(super) fn close_input(&self) {
        *self.held() = None;
    }
}

impl Cell {
    pub(super) fn new(uid: &str, dir: PathBuf, note: Note) -> Self {
        let live = Live {
            state: note.state,
            boot: note.boot,
            slot: note.slot,
            process: note.process,
            generation: note.generation,
            pidfd: None,
            link: None,
            running: BTreeMap::new(),
            execs: BTreeMap::new(),
        };
        Self {
            uid: uid.to_owned(),
            dir,
            work: tokio::sync::Mutex::default(),
            gate: tokio::sync::RwLock::default(),
            live: Mutex::new(live),
            noting: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn group(&self) -> String {
        group(&self.uid)
    }

    pub(super) fn link(&self) -> Result<Link, Error> {
        self.live().link.clone().ok_or_else(|| Error::Gone(self.uid.clone()))
    }

    pub(super) fn running(&self, container: &str) -> Option<Arc<Running>> {
        self.live().running.get(container).cloned()
    }

    pub(super) fn by_key(&self, key: &str) -> Option<Arc<Running>> {
        self.live().running.values().find(|it| it.key == key).cloned()
    }

    pub(super) fn all_running(&self) -> Vec<Arc<Running>> {
        self.live().running.values().cloned().collect()
    }

    /// Nobody starts a process in it that it would keep from beginning.
    pub(super) fn thawed(&self) -> Result<(), StartError> {
        let state = &self.live().state;
        if state.frozen { Err(StartError::Frozen(state.config.frozen())) } else { Ok(()) }
    }

    /// Whoever watches looks again.
    pub(super) fn bump(&self) {
        self.changed.send_modify(|it| *it += 1);
    }

    /// Resolves with the exit code of a process that is about to be started.
    pub(super) fn await_exec(&self, key: &str) -> oneshot::Receiver<i32> {
        let (said, exit) = oneshot::channel();
        self.live().execs.insert(key.to_owned(), said);
        exit
    }

    /// Writes down what it would need to know without its shim.
    pub(super) fn note(&self) -> io::Result<()> {
        let _alone = self.noting.lock().unwrap_or_else(PoisonError::into_inner);
        let text = {
            let live = self.live();
            let note = Note {
                boot: live.boot.clone(),
                slot: live.slot,
                process: live.process,
                generation: live.generation,
                state: live.state.clone(),
            };
            serde_json::to_vec(&note)?
        };
        crate::state::replace(&self.dir, &text)
    }

    /// A container has ended: how, and what is to be known of it from then on.
    pub(super) fn ended(&self, running: &Running, exit: Exit) {
        {
            let mut live = self.live();
            let state = live.state.containers.iter_mut();
            if let Some(state) = state.into_iter().find(|it| it.name == running.name && it.attempt == running.attempt) {
                state.exit = Some(exit.clone());
            }
            // Told twice, it may come when the next attempt runs already.
            if live.running.get(&running.name).is_some_and(|it| it.attempt == running.attempt) {
                live.running.remove(&running.name);
            }
        }
        running.log.close();
        running.exit.send_replace(Some(exit));
        if let Err(error) = self.note() {
            tracing::warn!(pod = self.uid, %error, "cannot write down that a container ended");
        }
        self.bump();
    }

    /// The shim is gone, and nothing runs any more; nobody saw how what ran has ended.
    pub(super) async fn settle(&self, engine: &Engine) {
        // First: a container that is being started sees by it that nobody else will end it.
        self.live().link = None;
        let left = self.all_running();
        let now = engine.clock.now();
        for it in left {
            self.ended(&it, unseen(now));
        }
        {
            let mut live = self.live();
            live.state.alive = false;
            live.state.frozen = false;
            live.pidfd = None;
            live.process = None;
            live.execs.clear();
            for it in live.state.containers.iter_mut().filter(|it| it.exit.is_none()) {
                it.exit = Some(unseen(now));
            }
        }
        if let Err(error) = self.note() {
            tracing::warn!(pod = self.uid, %error, "cannot write down that a pod ended");
        }
        self.bump();
    }

    /// Remembers a new container, and of each name the latest two.
    pub(super) fn add(&self, state: ContainerState) {
        let mut live = self.live();
        let name = state.name.clone();
        live.state.containers.push(state);
        let count = live.state.containers.iter().filter(|it| it.name == name).count();
        if count > 2
            && let Some(oldest) = live.state.containers.iter().position(|it| it.name == name)
        {
            live.state.containers.remove(oldest);
        }
    }
}

/// An end that nobody saw.
pub(super) fn unseen(at: jiff::Timestamp) -> Exit {
    Exit { code: 137, signal: None, out_of_memory: false, finished: at, message: String::new(), unseen: true }
}

/// Reads what a container writes until all its ends are closed.
pub(super) async fn read(running: Arc<Running>, ends: Vec<(Stream, OwnedFd)>) {
    let reads = ends.into_iter().map(|(stream, fd)| pump(&running, stream, fd));
    futures::future::join_all(reads).await;
    running.drained.send_replace(true);
}

async fn pump(running: &Running, stream: Stream, fd: OwnedFd) {
    let Ok(fd) = streams::end(fd) else { return };
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        // There is always something to read of who prints without end.
        tokio::task::coop::consume_budget().await;
        let Ok(mut ready) = fd.readable().await else { return };
        match ready.try_io(|it| Ok(rustix::io::read(it.as_fd(), &mut buffer[..])?)) {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                running.log.write(stream, bytes);
                if running.output.receiver_count() > 0 {
                    let _ = running.output.send((stream, bytes::Bytes::copy_from_slice(bytes)));
                }
            }
            Err(_not_yet) => {}
        }
    }
}
