//! How pods and containers come to be, and what is done when they end.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use kit::Backoff;

use super::cell::{Cell, Note, Running, read, unseen};
use super::link::{self, Link};
use super::{Runtime, socket};
use crate::cgroup;
use crate::engine::pods::Seat;
use crate::engine::{Engine, Ids, blocking};
use crate::fault::point;
use crate::launcher::message::DESCRIPTORS;
use crate::launcher::shim::{self, Container, Ended, News, Order, Pod};
use crate::launcher::{self, Rlimit, Start, Status, Trees};
use crate::pod::log::{Log, Rotation, Stream};
use crate::pod::{
    ContainerConfig, ContainerState, Exit, Kernel, PodConfig, PodState, Processes, Root, StartError, VolumeSource,
};
use crate::state::Process;
use crate::{Error, sys};

/// Bytes of the shared memory of a pod, as container runtimes have it.
const SHM: u64 = 64 << 20;
/// Bytes that a container may write outside its volumes when nothing is said.
const LAYER: u64 = 1 << 30;
/// Beyond a limit of what it may write there is this much: so that who exceeds it is ended for it, as a kubelet does, and
/// who writes faster than that is seen comes to an end all the same.
const SLACK: RangeInclusive<u64> = 16 << 20..=64 << 20;
/// Processes and threads of a container when nothing is said.
const PIDS: u32 = 8192;
/// How long what a container has written may take to be read once it has ended: somebody else may have its pipes.
const DRAIN: Duration = Duration::from_secs(2);

impl Runtime {
    /// Makes a pod, without any container. One that is there already stays; one whose shim is gone gets another.
    pub(crate) async fn create(&self, config: PodConfig) -> Result<PodState, Error> {
        let uid = config.uid.clone();
        if !is_uid(&uid) {
            return Err(Error::Rejected(format!("{uid:?} is no uid of a pod")));
        }
        let engine = &self.shared.engine;
        if engine.is_ending() {
            return Err(Error::Ending);
        }
        let dir = self.dir(&uid);
        let cell = {
            let now = engine.clock.now();
            let mut cells = self.cells();
            let new = || {
                let containers = Vec::new();
                let config = config.clone();
                let state = PodState { config, alive: false, frozen: false, address: None, created: now, containers };
                let note = Note { boot: engine.boot.clone(), slot: None, process: None, generation: 0, state };
                Arc::new(Cell::new(&uid, dir.clone(), note))
            };
            cells.entry(uid.clone()).or_insert_with(new).clone()
        };
        let work = cell.work.lock().await;
        if cell.live().state.alive {
            return Ok(cell.live().state.clone());
        }
        let runtime = self.clone();
        let (made, done) = tokio::sync::oneshot::channel();
        drop(work);
        // A caller who goes away in the middle changes nothing.
        engine.tasks.tenant("pod", async move {
            let _work = cell.work.lock().await;
            // Nobody would end what is made from here on.
            let ending = runtime.shared.engine.is_ending();
            if ending || !runtime.find(&cell.uid).is_ok_and(|it| Arc::ptr_eq(&it, &cell)) {
                let _ = made.send(Err(if ending { Error::Ending } else { Error::Gone(cell.uid.clone()) }));
                return;
            }
            if !cell.live().state.alive {
                cell.live().state.config = config;
                if let Err(error) = runtime.make(&cell).await {
                    if let Err(left) = runtime.stop(&cell).await {
                        tracing::error!(pod = cell.uid, error = kit::chain(&left), "cannot clear up after a pod");
                    }
                    let _ = made.send(Err(error));
                    return;
                }
            }
            let _ = made.send(Ok(cell.live().state.clone()));
        });
        done.await.map_err(Error::machine("make a pod"))?
    }

    async fn make(&self, cell: &Arc<Cell>) -> Result<(), Error> {
        let engine = &self.shared.engine;
        let config = cell.live().state.config.clone();
        let seat = engine.seat(&cell.uid)?;
        let dir = cell.dir.clone();
        let listener = blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let (at, _dir) = socket(&dir)?;
            match std::fs::remove_file(dir.join("shim")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            link::listen(&at)
        });
        let listener = listener.await?.map_err(Error::disk("make the directory of a pod"))?;
        point("pod: listening");
        let own = !config.host.users;
        let owner = engine.ids.outside(seat.slot, 0).filter(|_| own);
        let cgroups = engine.cgroups.pod(&cell.group(), owner).map_err(Error::disk("make control groups"))?;
        let start = Start {
            hostname: config.hostname.clone(),
            ids: if own { engine.ids.map(seat.slot) } else { Ids::same() },
            shift: own && engine.ids.shift(),
            cgroups,
            layer: 0,
            tmp: 0,
            rlimits: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            inherits: vec![3],
            probe: None,
            pod: Some(Pod {
                shm: SHM,
                sysctls: config.sysctls.clone(),
                host: config.host,
                groups: engine.cgroups.shown(&cell.group()),
            }),
        };
        let launcher = engine.launcher().await?;
        let mut made = launcher.start(start, &[listener.as_fd()]).await.map_err(Error::machine("make a pod"))?;
        point("pod: made");
        let process = Process::look(made.pid).map_err(Error::disk("look at a new process"))?;
        let pidfd = Arc::new(made.pidfd.try_clone().map_err(Error::disk("hold a process"))?);
        engine.keep_seat(&cell.uid, Seat { slot: seat.slot, pidfd: Some(pidfd.clone()) });
        {
            let mut live = cell.live();
            live.boot = engine.boot.clone();
            live.slot = seat.slot;
            live.process = Some(process);
            live.generation = shim::GENERATION;
            live.pidfd = Some(pidfd.clone());
            live.state.created = engine.clock.now();
            // Whatever there was before, was in another shim.
            live.running.clear();
        }
        cell.note().map_err(Error::disk("write a pod down"))?;
        point("pod: written down");
        made.go().await.map_err(Error::machine("start the shim of a pod"))?;
        point("pod: started");
        let link = self.connect(cell, pidfd).await?;
        self.volumes(&link, made.pid, &config).await.map_err(Error::machine("give a pod its volumes"))?;
        point("pod: given its volumes");
        cell.live().state.alive = true;
        cell.note().map_err(Error::disk("write a pod down"))?;
        point("pod: alive");
        cell.bump();
        Ok(())
    }

    /// Listens to a pod's shim from now on.
    pub(super) async fn connect(&self, cell: &Arc<Cell>, pidfd: Arc<OwnedFd>) -> Result<Link, Error> {
        let address = self.address(&cell.uid);
        let link = address.and_then(|(at, _dir)| Link::connect(&at)).map_err(Error::disk("reach the shim of a pod"))?;
        cell.live().link = Some(link.clone());
        let (runtime, cell, heard) = (self.clone(), cell.clone(), link.clone());
        self.shared.engine.tasks.tenant("pod", async move {
            let watched = pidfd.try_clone().and_then(sys::watch);
            loop {
                tokio::select! {
                    news = heard.news() => match news {
                        Some(News::Ended { key, ended }) => runtime.hear(&cell, &key, ended),
                        None => break,
                    },
                    _ = async { match &watched {
                        Ok(watched) => watched.readable().await.map(drop),
                        Err(_) => std::future::pending().await,
                    } } => break,
                }
            }
            runtime.lost(&cell, &pidfd).await;
        });
        Ok(link)
    }

    /// The shim does not speak any more. Whatever the reason, without one a pod is nothing.
    async fn lost(&self, cell: &Cell, shim: &Arc<OwnedFd>) {
        let mut failing = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            {
                // Whoever ends it on purpose holds this.
                let _work = cell.work.lock().await;
                let is_its = cell.live().pidfd.as_ref().is_some_and(|it| Arc::ptr_eq(it, shim));
                if !is_its {
                    return;
                }
                match self.stop(cell).await {
                    Ok(()) => return,
                    // Given up, it would be taken for alive.
                    Err(error) => {
                        tracing::error!(pod = cell.uid, error = kit::chain(&error), "cannot clear up after a pod");
                    }
                }
            }
            tokio::select! {
                () = self.shared.engine.tasks.shutdown().begun() => return,
                () = tokio::time::sleep(failing.pause()) => {}
            }
        }
    }

    /// A process of this pod has ended.
    fn hear(&self, cell: &Arc<Cell>, key: &str, ended: Ended) {
        if let Some(waiting) = cell.live().execs.remove(key) {
            let _ = waiting.send(code(ended.status).0);
            return;
        }
        let Some(running) = cell.by_key(key) else { return };
        let (engine, cell) = (self.shared.engine.clone(), cell.clone());
        self.shared.engine.tasks.tenant("container end", async move { finish(&engine, &cell, &running, ended).await });
    }

    async fn volumes(&self, link: &Link, pid: i32, pod: &PodConfig) -> Result<(), StartError> {
        let paths: Vec<_> = pod
            .volumes
            .iter()
            .filter_map(|it| match &it.source {
                VolumeSource::Path(path) => Some((it, path)),
                VolumeSource::Disk(_) | VolumeSource::Memory { .. } => None,
            })
            .collect();
        for batch in paths.chunks(DESCRIPTORS - 1) {
            let paths = batch.iter().map(|(_, path)| (*path).clone()).collect();
            let trees = self.trees(pod, Trees { pid, paths, ..Trees::default() }).await?;
            let names = batch.iter().map(|(volume, _)| volume.name.clone()).collect();
            let fds: Vec<_> = trees.iter().map(AsFd::as_fd).collect();
            link.ask(&Order::Volumes { names }, &fds).await?;
        }
        for volume in &pod.volumes {
            let name = volume.name.clone();
            match &volume.source {
                VolumeSource::Path(_) => {}
                VolumeSource::Disk(directory) => {
                    let shift = (self.shared.engine.ids.shift() && !pod.host.users).then_some(pid);
                    let tree = self.mounted(directory, None, shift).await?;
                    link.ask(&Order::Volumes { names: vec![name] }, &[tree.as_fd()]).await?;
                }
                VolumeSource::Memory { size } => {
                    let order = Order::Memory { name, size: *size, group: volume.fs_group };
                    link.ask(&order, &[]).await?;
                }
            }
        }
        Ok(())
    }

    async fn trees(&self, pod: &PodConfig, trees: Trees) -> Result<Vec<OwnedFd>, Error> {
        let engine = &self.shared.engine;
        let trees = Trees { shift: engine.ids.shift() && !pod.host.users && !trees.devices, ..trees };
        let mut made = engine.launcher().await?.trees(trees.clone()).await;
        if matches!(made, Err(launcher::Error::Gone)) {
            made = engine.launcher().await?.trees(trees).await;
        }
        made.map_err(Error::machine("mount what a pod is given"))
    }

    /// Starts a container: returns when its command has been executed.
    pub(crate) async fn start(&self, uid: &str, config: ContainerConfig) -> Result<ContainerState, StartError> {
        let cell = self.find(uid)?;
        let runtime = self.clone();
        let (said, started) = tokio::sync::oneshot::channel();
        // A caller who goes away in the middle changes nothing.
        self.shared.engine.tasks.tenant("container", async move {
            let _ = said.send(runtime.start_in(&cell, config).await);
        });
        started.await.map_err(Error::machine("start a container"))?
    }

    async fn start_in(&self, cell: &Arc<Cell>, config: ContainerConfig) -> Result<ContainerState, StartError> {
        let engine = &self.shared.engine;
        let _gate = cell.gate.read().await;
        cell.thawed()?;
        let (link, pod, slot, pid) = {
            let live = cell.live();
            let gone = || Error::Gone(cell.uid.clone());
            let (link, process) = (live.link.clone().ok_or_else(gone)?, live.process.ok_or_else(gone)?);
            (link, live.state.config.clone(), live.slot, process.pid)
        };
        if config.filter.is_some() && cell.live().generation < shim::FILTERS {
            // It would pass over what it does not know.
            let why = "this Pod was begun by an older version, which has no seccomp profiles: delete it";
            return Err(StartError::Config(why.to_owned()));
        }
        if cell.running(&config.name).is_some() {
            return Err(Error::Conflict(format!("the container {} runs already", config.name)).into());
        }
        let key = format!("{}.{}", config.name, config.attempt);
        let group_name = format!("c-{key}");
        let group = format!("{}/{group_name}", cell.group());
        let limits = cgroup::Limits {
            memory: config.limits.memory,
            cpu: config.limits.cpu,
            pids: Some(config.limits.pids.unwrap_or(PIDS)),
        };
        let owner = engine.ids.outside(slot, 0).filter(|_| !pod.host.users);
        let groups = engine.cgroups.container(&group, &limits, owner).map_err(Error::disk("make control groups"))?;
        point("container: groups made");
        let image = match &config.root {
            Root::Host => None,
            Root::Image(path) => {
                let wanted = Trees { pid, paths: vec![path.clone()], read_only: true, ..Trees::default() };
                self.trees(&pod, wanted).await?.pop()
            }
        };
        let devices = if config.privileged {
            let wanted = Trees { pid, paths: vec!["/dev".into()], devices: true, ..Trees::default() };
            self.trees(&pod, wanted).await?.pop()
        } else {
            None
        };
        let state = ContainerState {
            name: config.name.clone(),
            attempt: config.attempt,
            id: identity(&cell.uid, &key, engine.clock.now()),
            started: engine.clock.now(),
            exit: None,
            stop_signal: config.stop_signal,
        };
        let tag = Tag { state: state.clone(), tty: config.tty, stdin_once: config.stdin_once };
        let described =
            self.describe(&pod, &config, cell, &group_name, serde_json::to_string(&tag).unwrap_or_default());
        let fds = groups.iter().map(|(_, fd)| fd).chain(&image).chain(&devices);
        let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
        let joins = groups.iter().map(|(join, _)| *join).collect();
        let order =
            Order::Start { key: key.clone(), groups: joins, image: image.is_some(), devices: devices.is_some() };
        let log =
            Log::open(&self.logs(&cell.uid, &config.name), config.attempt, engine.clock.clone(), Rotation::default());
        let log = log.map_err(Error::disk("open the log of a container"))?;
        let started = match link.start(&order, &described, &fds).await {
            Ok(started) => started,
            Err(error) => {
                link.tell(&Order::Forget { key });
                log.close();
                if let Err(error) = engine.cgroups.remove(&group).await {
                    tracing::warn!(pod = cell.uid, %error, "a control group stays until the pod ends");
                }
                return Err(error);
            }
        };
        point("container: executed");
        cell.add(state.clone());
        let names = (config.name, config.attempt, key, group);
        let running = self.attend(cell, names, log, config.stdin_once, started)?;
        if cell.live().link.is_none() {
            // The pod has ended meanwhile, and whoever saw to that did not know of this one.
            cell.ended(&running, unseen(engine.clock.now()));
        }
        if let Err(error) = cell.note() {
            tracing::warn!(pod = cell.uid, %error, "cannot write down that a container was started");
        }
        point("container: written down");
        self.catch_up(cell, &link).await?;
        cell.bump();
        Ok(state)
    }

    /// Reads what a container writes from now on, and lets it be found.
    pub(super) fn attend(
        &self,
        cell: &Arc<Cell>,
        names: (String, u32, String, String),
        log: Log,
        stdin_once: bool,
        started: link::Started,
    ) -> Result<Arc<Running>, Error> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(Error::disk("copy a terminal"));
        let mut ends = Vec::new();
        let (mut input, mut terminal) = (started.input, None);
        match started.terminal {
            Some(it) => {
                input = Some(copy(&it)?);
                terminal = Some(copy(&it)?);
                ends.push((Stream::Stdout, it));
            }
            None => ends.extend([Stream::Stdout, Stream::Stderr].into_iter().zip(started.outputs)),
        }
        let running = Arc::new(Running::new(names, log, stdin_once, input, terminal));
        cell.live().running.insert(running.name.clone(), running.clone());
        self.shared.engine.tasks.tenant("container output", read(running.clone(), ends));
        Ok(running)
    }

    /// Ends that were told before we knew what had ended.
    pub(super) async fn catch_up(&self, cell: &Arc<Cell>, link: &Link) -> Result<(), StartError> {
        for record in link.containers().await? {
            if let Some(ended) = record.ended
                && cell.by_key(&record.key).is_some()
            {
                self.hear(cell, &record.key, ended);
            }
        }
        Ok(())
    }

    pub(super) fn logs(&self, uid: &str, container: &str) -> std::path::PathBuf {
        self.dir(uid).join("logs").join(container)
    }

    fn describe(&self, pod: &PodConfig, config: &ContainerConfig, cell: &Cell, group: &str, tag: String) -> Container {
        let mut hosts = pod.hosts.clone();
        if let Some(address) = cell.live().state.address
            && !pod.host.network
        {
            hosts.push_str(&format!("{address}\t{}\n", pod.names));
        }
        let processes = match &config.processes {
            Processes::Of(name) => Processes::Of(cell.running(name).map(|it| it.key.clone()).unwrap_or_default()),
            other => other.clone(),
        };
        Container {
            tag,
            args: config.args.clone(),
            env: config.env.clone(),
            cwd: config.cwd.clone(),
            hostname: pod.hostname.clone(),
            hosts,
            resolv: pod.resolv.clone(),
            layer: config.limits.disk.map_or(LAYER, with_slack),
            mounts: config.mounts.clone(),
            user: config.user,
            group: config.group,
            groups: config.groups.clone(),
            read_only_root: config.read_only_root,
            capabilities: config.capabilities.clone(),
            privileged: config.privileged,
            group_name: group.to_owned(),
            filter: config.filter.clone(),
            sentry: pod.kernel == Kernel::Sentry,
            processes,
            stdin: config.stdin,
            tty: config.tty,
            oom_score_adj: config.oom_score_adj,
            rlimits: vec![(Rlimit::Core, 0), (Rlimit::Files, self.shared.engine.files)],
            message_path: config.termination_message_path.clone(),
        }
    }
}

/// What of a container the shim keeps for the next node.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Tag {
    pub state: ContainerState,
    pub tty: bool,
    pub stdin_once: bool,
}

/// What is left to do when a container's first process has ended.
pub(super) async fn finish(engine: &Engine, cell: &Arc<Cell>, running: &Running, ended: Ended) {
    // Twice, when it was told and asked for at the same time.
    if running.exit.borrow().is_some() {
        return;
    }
    // What shares the pod's processes does not end with the first one.
    engine.cgroups.kill(&running.group);
    let mut drained = running.drained.subscribe();
    let _ = tokio::time::timeout(DRAIN, drained.wait_for(|it| *it)).await;
    point("container: ended");
    let (code, signal) = code(ended.status);
    let out_of_memory = engine.cgroups.usage(&running.group).oom_kills.is_some_and(|it| it > 0);
    let (seconds, nanos) = ended.at;
    let finished = Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0)).unwrap_or_else(|_| engine.clock.now());
    let exit = Exit { code, signal, out_of_memory, finished, message: ended.message, unseen: false };
    if let Err(error) = engine.cgroups.remove(&running.group).await {
        tracing::warn!(pod = cell.uid, %error, "a control group stays until the pod ends");
    }
    if let Ok(link) = cell.link() {
        link.tell(&Order::Forget { key: running.key.clone() });
    }
    point("container: forgotten");
    if running.exit.borrow().is_none() {
        cell.ended(running, exit);
    }
}

/// Bytes of the layer of a container with this limit.
fn with_slack(limit: u64) -> u64 {
    limit.saturating_add((limit / 10).clamp(*SLACK.start(), *SLACK.end()))
}

/// As a shell tells it.
fn code(status: Status) -> (i32, Option<i32>) {
    match status {
        Status::Code(code) => (code, None),
        Status::Signal(signal) => (128 + signal, Some(signal)),
    }
}

/// The id of a container: nobody else's, ever.
fn identity(uid: &str, key: &str, started: Timestamp) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{uid}/{key}/{}", started.as_nanosecond()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len())
        && uid.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-')
        && !uid.starts_with('-')
}

/// Kills a process when nobody is interested in it any more. One that has ended is not there to be killed.
pub(super) struct Forgotten {
    cell: Weak<Cell>,
    key: String,
}

impl Forgotten {
    pub(super) fn new(cell: &Arc<Cell>, key: &str) -> Self {
        Self { cell: Arc::downgrade(cell), key: key.to_owned() }
    }
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.upgrade() {
            let waiting = cell.live().execs.remove(&self.key).is_some();
            if waiting && let Ok(link) = cell.link() {
                link.tell(&Order::Signal { key: self.key.clone(), signal: libc::SIGKILL });
            }
        }
    }
}
