//! The pods of this machine as processes: what a CRI runtime is to a kubelet.
//!
//! A pod is a shim ([`crate::launcher::shim`]) and its containers. The shim outlives the node; the node keeps beside it,
//! in `pods/UID/state.json`, what it would have to know if the shim were gone too: after the machine's restart, say.

mod adopt;
mod cell;
mod disks;
mod freeze;
mod link;
mod start;
mod streams;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::SocketAddrUnix;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, oneshot, watch};
use wire::node::Stats;

use cell::{Cell, Running};
use start::Forgotten;
pub(crate) use streams::{Input, Output, Resize};

use super::log::{Log, Stream};
use super::network;
use super::{ExecConfig, Exit, PodState, StartError};
use crate::doctor::Finding;
use crate::engine::{Engine, Ids, blocking};
use crate::fault::point;
use crate::image::Images;
use crate::launcher::shim::{Command, Order, Socket, TELLS_USAGE};
use crate::{Error, sys};

/// How long the processes of a container may take to be gone once they are killed.
const END: Duration = Duration::from_secs(30);
/// How long a connection into a pod may take: nothing is farther away than the other side of this machine.
const DIAL: Duration = Duration::from_secs(5);
/// How long containers may take to end by themselves when the node does.
const LAST: Duration = Duration::from_secs(2);

/// The pods of this machine. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Runtime {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    dir: PathBuf,
    cells: Mutex<BTreeMap<String, Arc<Cell>>>,
    /// Held by whoever makes a file system.
    formatting: tokio::sync::Mutex<()>,
}

/// A process that was started in a container. Killed when this is dropped before its end.
pub(crate) struct Exec {
    pub stdin: Option<Input>,
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub resize: Option<Resize>,
    /// Its exit code, as a shell has it. Closed without one when the pod is gone.
    pub exit: oneshot::Receiver<i32>,
    _kill: Forgotten,
}

/// The streams of a container that runs.
pub(crate) struct Attach {
    pub stdin: Option<Input>,
    /// What it prints from now on; a reader that lags is cut off.
    pub output: broadcast::Receiver<(Stream, bytes::Bytes)>,
    pub resize: Option<Resize>,
    /// Becomes something when it ends.
    pub exit: watch::Receiver<Option<Exit>>,
    /// The end of the input is the container's own, and what it says of that is wanted; else the client is done with it.
    pub outlasts_input: bool,
}

impl Runtime {
    /// The pods below `dir`: those that an earlier node has left are taken over.
    pub(crate) async fn open(engine: Arc<Engine>, dir: PathBuf) -> Result<Self, Error> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(Error::disk(format!("make {}", dir.display())))?;
        // Volumes are below it, and no links are followed to those.
        let dir = dir.canonicalize().map_err(Error::disk(format!("find {}", dir.display())))?;
        let runtime = Self {
            shared: Arc::new(Shared {
                engine,
                dir,
                cells: Mutex::default(),
                formatting: tokio::sync::Mutex::default(),
            }),
        };
        runtime.adopt_all().await?;
        let (ending, shutdown) = (runtime.clone(), runtime.shared.engine.tasks.shutdown().clone());
        runtime.shared.engine.tasks.tenant("pods", async move {
            shutdown.begun().await;
            ending.end_all().await;
        });
        Ok(runtime)
    }

    fn cells(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Cell>>> {
        self.shared.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, uid: &str) -> Result<Arc<Cell>, Error> {
        self.cells().get(uid).cloned().ok_or_else(|| Error::Gone(uid.to_owned()))
    }

    fn running(&self, uid: &str, container: &str) -> Result<(Arc<Cell>, Arc<Running>), Error> {
        let cell = self.find(uid)?;
        let running = cell.running(container).ok_or_else(|| Error::Gone(format!("{uid}/{container}")))?;
        Ok((cell, running))
    }

    /// Where what belongs to a pod is: `volumes/`, `logs/CONTAINER/`, and our own notes.
    pub(crate) fn dir(&self, uid: &str) -> PathBuf {
        self.shared.dir.join(uid)
    }

    /// The log of one attempt at a container, ended or not.
    pub(crate) fn log(&self, uid: &str, container: &str, attempt: u32) -> std::io::Result<Log> {
        if let Ok((_, running)) = self.running(uid, container)
            && running.attempt == attempt
        {
            return Ok(running.log.clone());
        }
        Log::ended(&self.dir(uid).join("logs").join(container), attempt, self.shared.engine.clock.clone())
    }

    /// Everything that is known of a pod now. `None` when there is none.
    pub(crate) fn state(&self, uid: &str) -> Option<PodState> {
        self.find(uid).ok().map(|it| it.live().state.clone())
    }

    /// All pods, without what only holds their network.
    pub(crate) fn list(&self) -> Vec<PodState> {
        self.cells().values().filter(|it| it.uid != network::SWITCH).map(|it| it.live().state.clone()).collect()
    }

    /// Tells a pod's address from now on.
    pub(crate) fn set_address(&self, uid: &str, address: IpAddr) -> Result<PodState, Error> {
        let cell = self.find(uid)?;
        cell.live().state.address = Some(address);
        cell.note().map_err(Error::disk("write a pod down"))?;
        Ok(cell.live().state.clone())
    }

    /// The images of this machine.
    pub(crate) fn images(&self) -> Images {
        self.shared.engine.images.clone()
    }

    /// Whether pods can have kernels of their own.
    pub(crate) async fn sentry(&self) -> Finding {
        self.shared.engine.sentry().await
    }

    /// There is a program that could give them some.
    pub(crate) fn has_runsc(&self) -> bool {
        self.shared.engine.has_runsc()
    }

    /// Whether the processes of a pod are found again by its control groups.
    pub(crate) fn finds_processes(&self) -> bool {
        self.shared.engine.cgroups.holds()
    }

    /// Which ids files of a pod have on this machine.
    pub(crate) fn ids(&self) -> Ids {
        self.shared.engine.ids.clone()
    }

    /// Changes whenever anything in this pod's state does.
    pub(crate) fn watch(&self, uid: &str) -> Option<watch::Receiver<u64>> {
        self.find(uid).ok().map(|it| it.changed.subscribe())
    }

    /// What a container uses; of the whole pod when none is named.
    pub(crate) fn usage(&self, uid: &str, container: Option<&str>) -> Option<Stats> {
        let cgroups = &self.shared.engine.cgroups;
        let group = match container {
            Some(name) => self.running(uid, name).ok()?.1.group.clone(),
            None => self.find(uid).ok()?.group(),
        };
        let usage = cgroups.usage(&group);
        Some(Stats {
            memory: usage.memory,
            cpu_usec: usage.cpu_usec,
            pids: usage.pids,
            oom_kills: usage.oom_kills,
            workspace: None,
        })
    }

    /// Bytes on the disk, as its user sees it, that a container has: what it has written to its root, which nobody has to
    /// read for that, and its logs.
    pub(crate) async fn stored(&self, uid: &str, container: &str) -> u64 {
        let logs = self.dir(uid).join("logs").join(container);
        let logs = blocking(move || Log::size(&logs)).await.unwrap_or_default();
        let Ok((cell, running)) = self.running(uid, container) else { return logs };
        if cell.live().generation < TELLS_USAGE {
            return logs;
        }
        let Ok(link) = cell.link() else { return logs };
        // One that ends meanwhile has nothing any more.
        logs.saturating_add(link.usage(&running.key).await.unwrap_or_default())
    }

    /// Sends a signal to a container's first process.
    pub(crate) async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<(), Error> {
        let (cell, running) = self.running(uid, container)?;
        let order = Order::Signal { key: running.key.clone(), signal };
        match cell.link()?.ask(&order, &[]).await {
            Ok(_) => Ok(()),
            Err(StartError::Machine(error)) => Err(error),
            Err(error) => Err(Error::machine("send a signal")(error)),
        }
    }

    /// Kills all processes of a container; returns when its end is known.
    pub(crate) async fn kill(&self, uid: &str, container: &str) -> Result<(), Error> {
        let Ok((cell, running)) = self.running(uid, container) else { return Ok(()) };
        let mut exit = running.exit.subscribe();
        self.shared.engine.cgroups.kill(&running.group);
        if let Ok(link) = cell.link() {
            link.tell(&Order::Signal { key: running.key.clone(), signal: libc::SIGKILL });
        }
        let ended = tokio::time::timeout(END, exit.wait_for(Option::is_some)).await;
        ended.map(drop).map_err(Error::machine("see a killed container end"))
    }

    /// Starts a process in a container that runs.
    pub(crate) async fn exec(&self, uid: &str, container: &str, config: ExecConfig) -> Result<Exec, StartError> {
        let (cell, running) = self.running(uid, container)?;
        let _gate = cell.gate.read().await;
        cell.thawed()?;
        let link = cell.link()?;
        let key = format!("exec-{}", kit::id());
        let groups = self.shared.engine.cgroups.join(&running.group);
        let groups = groups.map_err(Error::disk("open the control groups of a container"))?;
        let fds: Vec<_> = groups.iter().map(|(_, fd)| fd.as_fd()).collect();
        let order = Order::Exec { key: key.clone(), groups: groups.iter().map(|(join, _)| *join).collect() };
        let command = Command {
            of: running.key.clone(),
            args: config.args,
            env: config.env,
            stdin: config.stdin,
            unheard: [!config.stdout, !config.stderr],
            tty: config.tty,
        };
        // Known before it can end.
        let exit = cell.await_exec(&key);
        let kill = Forgotten::new(&cell, &key);
        let started = link.start(&order, &command, &fds).await?;
        let end = |fd: OwnedFd| streams::end(fd).map_err(Error::disk("watch the streams of a process"));
        if let Some(terminal) = started.terminal {
            let copy = terminal.try_clone().map_err(Error::disk("copy a terminal"))?;
            let (read, write) = (end(terminal)?, end(copy)?);
            return Ok(Exec {
                stdin: config.stdin.then(|| Input::new(write.clone())),
                stdout: Some(Output::new(read)),
                stderr: None,
                resize: Some(Resize::new(write)),
                exit,
                _kill: kill,
            });
        }
        let mut outputs = started.outputs.into_iter();
        let (stdout, stderr) = (outputs.next().map(end).transpose()?, outputs.next().map(end).transpose()?);
        Ok(Exec {
            stdin: started.input.map(end).transpose()?.map(Input::new),
            stdout: stdout.map(Output::new).filter(|_| config.stdout),
            stderr: stderr.map(Output::new).filter(|_| config.stderr),
            resize: None,
            exit,
            _kill: kill,
        })
    }

    /// The streams of a container, if it runs; its input when that is asked for.
    pub(crate) fn attach(&self, uid: &str, container: &str, stdin: bool) -> Option<Attach> {
        let (cell, running) = self.running(uid, container).ok()?;
        let output = running.output.subscribe();
        let exit = running.exit.subscribe();
        let (input, resize) = running.input();
        let stdin = input.filter(|_| stdin).map(|fd| {
            if !running.stdin_once {
                return Input::new(fd);
            }
            let (cell, running) = (Arc::downgrade(&cell), Arc::downgrade(&running));
            Input::closing(fd, move || {
                if let (Some(cell), Some(running)) = (cell.upgrade(), running.upgrade()) {
                    running.close_input();
                    if let Ok(link) = cell.link() {
                        link.tell(&Order::CloseInput { key: running.key.clone() });
                    }
                }
            })
        });
        let outlasts_input = running.stdin_once && resize.is_none();
        Some(Attach { stdin, output, resize: resize.map(Resize::new), exit, outlasts_input })
    }

    /// A connection to a port of the pod's loopback, from inside its network.
    pub(crate) async fn dial(&self, uid: &str, port: u16) -> std::io::Result<TcpStream> {
        let cell = self.find(uid).map_err(std::io::Error::other)?;
        // The kernel would take the connection, and nobody would answer.
        cell.thawed().map_err(std::io::Error::other)?;
        let link = cell.link().map_err(std::io::Error::other)?;
        let dial = async |v6: bool| {
            let mut fds = link.ask(&Order::Dial { port, v6 }, &[]).await.map_err(std::io::Error::other)?;
            let socket = fds.pop().ok_or(std::io::ErrorKind::InvalidData)?;
            let stream = TcpStream::from_std(socket.into())?;
            // Connected, or not.
            stream.writable().await?;
            match stream.take_error()? {
                None => Ok(stream),
                Some(error) => Err(error),
            }
        };
        let dialled = async {
            match dial(false).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    // As "localhost" does.
                    dial(true).await.map_err(|_| error)
                }
                other => other,
            }
        };
        tokio::time::timeout(DIAL, dialled).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
    }

    /// A socket in a pod's network that is neither bound nor connected, and never blocks.
    pub(crate) async fn socket(&self, uid: &str, kind: Socket) -> std::io::Result<OwnedFd> {
        let link = self.find(uid).and_then(|it| it.link()).map_err(std::io::Error::other)?;
        let mut fds = link.ask(&Order::Socket { kind }, &[]).await.map_err(std::io::Error::other)?;
        fds.pop().ok_or_else(|| std::io::ErrorKind::InvalidData.into())
    }

    /// Kills everything in a pod and removes all that was made for it. Idempotent.
    pub(crate) async fn remove(&self, uid: &str) -> Result<(), Error> {
        let Ok(cell) = self.find(uid) else { return Ok(()) };
        let _work = cell.work.lock().await;
        self.stop(&cell).await?;
        self.remove_dir(uid).await?;
        point("pod: directory removed");
        self.shared.engine.leave_seat(uid);
        self.cells().remove(uid);
        cell.bump();
        Ok(())
    }

    /// Ends a pod's first process and with it everything in the pod. What is known of it, and its directory, stay.
    pub(crate) async fn end(&self, uid: &str) -> Result<(), Error> {
        let Ok(cell) = self.find(uid) else { return Ok(()) };
        let _work = cell.work.lock().await;
        self.stop(&cell).await
    }

    async fn remove_dir(&self, uid: &str) -> Result<(), Error> {
        let dir = self.dir(uid);
        let removed = blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        removed.await?.map_err(Error::disk("remove the directory of a pod"))
    }

    /// Ends the shim, and with it everything in the pod; what is on disk stays.
    async fn stop(&self, cell: &Cell) -> Result<(), Error> {
        // Known until nothing is left: who fails here tries again.
        let pidfd = cell.live().pidfd.clone();
        let group = cell.group();
        if let Some(pidfd) = pidfd {
            let _ = rustix::process::pidfd_send_signal(&*pidfd, rustix::process::Signal::KILL);
            self.shared.engine.cgroups.kill_pod(&group);
            point("pod: killed");
            let pidfd = pidfd.try_clone().and_then(sys::watch).map_err(Error::disk("watch the shim of a pod"))?;
            let ended = tokio::time::timeout(END, pidfd.readable()).await;
            ended.map_err(Error::machine("see the shim of a pod end"))?.map(drop).unwrap_or_default();
        }
        if cell.live().state.config.host.processes {
            // They do not end with the shim.
            self.shared.engine.cgroups.end_pod(&group).await.map_err(Error::machine("end the processes of a pod"))?;
        }
        cell.settle(&self.shared.engine).await;
        point("pod: settled");
        let removed = self.shared.engine.cgroups.remove_pod(&group).await;
        removed.map_err(Error::disk("remove the control groups of a pod"))?;
        point("pod: groups removed");
        Ok(())
    }

    /// The node ends: containers are told, and what does not end is ended. What they were stays known.
    async fn end_all(&self) {
        let cells: Vec<_> = self.cells().values().cloned().collect();
        let ends = cells.into_iter().map(|cell| async move {
            let running = cell.all_running();
            // Frozen, they would not hear of it.
            if let Err(error) = self.stand(&running, false).await {
                tracing::warn!(pod = cell.uid, error = kit::chain(&error), "cannot thaw a pod that ends");
            }
            for it in &running {
                let _ = self.signal(&cell.uid, &it.name, libc::SIGTERM).await;
            }
            let ended = running.iter().map(|it| async {
                let _ = it.exit.subscribe().wait_for(Option::is_some).await;
            });
            let _ = tokio::time::timeout(LAST, futures::future::join_all(ended)).await;
            let _work = cell.work.lock().await;
            if let Err(error) = self.stop(&cell).await {
                tracing::error!(pod = cell.uid, error = kit::chain(&error), "cannot end a pod");
            }
        });
        futures::future::join_all(ends).await;
        self.shared.engine.cgroups.close();
    }

    fn address(&self, uid: &str) -> std::io::Result<(SocketAddrUnix, Option<std::fs::File>)> {
        socket(&self.dir(uid))
    }
}

/// A name of a pod's socket that is short enough, and what must stay open while it is used.
fn socket(dir: &Path) -> std::io::Result<(SocketAddrUnix, Option<std::fs::File>)> {
    use std::os::fd::AsRawFd;
    let path = dir.join("shim");
    match SocketAddrUnix::new(&path) {
        Ok(at) => Ok((at, None)),
        Err(_) => {
            let dir = std::fs::File::open(dir)?;
            Ok((SocketAddrUnix::new(format!("/proc/self/fd/{}/shim", dir.as_raw_fd()))?, Some(dir)))
        }
    }
}
