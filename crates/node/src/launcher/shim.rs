//! The first process of a pod: it holds the pod's namespaces, starts its containers, reaps them, and outlives the node.
//!
//! It is forked from the launcher and executes nothing, so it costs a few pages. It is root of the pod's user namespace
//! and the first process of the pod's process namespace: whatever happens to it, nothing of the pod is left when it is gone.
//! Containers cannot see it, unless they share its process namespace; and even then they can neither stop nor read it, for
//! it has capabilities that they lack.
//!
//! It knows as little as can be. It copies no bytes: the other ends of a container's pipes are handed to the node, and it
//! keeps them open so that a container does not notice when the node is started anew. One request comes in one message
//! ([`Order`]) with a socket for its answer.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use super::container::{self, Stdio};
use super::stage::{Stage, tmpfs};
use super::zygote::has_ended;
use super::{Failure, Join, Rlimit, Shown, Start, Status, Step, inside, message, sentry, system};
use crate::guard::{Guards, Packed};
use crate::pod::{HostSpaces, Mount, Processes};
use crate::sys::{self, Fork};

/// Bytes that are kept of a container's last words.
const WORDS: u64 = 4096;
/// What of [`Order`] a shim understands that was made by this program. One that hears anything else takes its node for
/// broken.
pub(crate) const GENERATION: u32 = 1;
/// The first that knows [`Order::Usage`].
pub(crate) const TELLS_USAGE: u32 = 1;
/// The first that puts containers under a [`Container::filter`].
pub(crate) const FILTERS: u32 = 1;
/// Where volumes, last words and shared memory are, in the shim's own mount namespace.
pub(super) const VOLUMES: &str = "pod/vol";
pub(super) const MESSAGES: &str = "pod/msg";
pub(super) const SHM: &str = "pod/shm";

/// What makes a sandbox's first process the shim of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pod {
    /// Bytes of the /dev/shm that its containers share.
    pub shm: u64,
    /// Settings of its namespaces, by their names with dots.
    pub sysctls: Vec<(String, String)>,
    pub host: HostSpaces,
    /// Its control groups, as containers see theirs below them.
    #[serde(default)]
    pub groups: Vec<Shown>,
}

/// What a shim can be asked. The first descriptor is the socket for the answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Descriptors: a mount for each name. From then on containers can mount them.
    Volumes {
        names: Vec<String>,
    },
    /// The same, as a file system in memory of so many bytes, perhaps a group's.
    Memory {
        name: String,
        size: Option<u64>,
        group: Option<u32>,
    },
    /// Descriptors: a file with a [`Container`], the control groups, the image's root if there is one, and the host's
    /// devices.
    Start {
        key: String,
        groups: Vec<Join>,
        image: bool,
        devices: bool,
    },
    /// Descriptors: a file with a [`Command`], the control groups.
    Exec {
        key: String,
        groups: Vec<Join>,
    },
    Signal {
        key: String,
        signal: i32,
    },
    /// The answer brings a socket that is connecting to this port of the pod's loopback.
    Dial {
        port: u16,
        v6: bool,
    },
    /// The answer brings a socket in the pod's network, which is neither bound nor connected.
    Socket {
        kind: Socket,
    },
    /// The answer says how much a container has written to its root.
    Usage {
        key: String,
    },
    /// All containers that were not forgotten.
    State,
    /// The answer brings what a container's first answer brought.
    Streams {
        key: String,
    },
    /// Nothing more will be written to it.
    CloseInput {
        key: String,
    },
    /// A container that has ended, or whose command could not be executed.
    Forget {
        key: String,
    },
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Socket {
    Tcp,
    Udp,
    /// To ask for the network's devices, addresses and routes, and to change them.
    Routes,
}

/// What a container is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Container {
    /// Given back by [`Order::State`].
    pub tag: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    pub hostname: String,
    pub hosts: String,
    pub resolv: String,
    /// Bytes of memory for what it writes outside its volumes.
    pub layer: u64,
    pub mounts: Vec<Mount>,
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
    pub read_only_root: bool,
    /// Names without CAP_.
    pub capabilities: Vec<String>,
    pub privileged: bool,
    /// What its control groups are called below the pod's.
    #[serde(default)]
    pub group_name: String,
    /// A filter of its own, beside that of all.
    #[serde(default)]
    pub filter: Option<Packed>,
    /// Its kernel is one of its own.
    #[serde(default)]
    pub sentry: bool,
    /// [`Processes::Of`] names a key.
    pub processes: Processes,
    pub stdin: bool,
    pub tty: bool,
    pub oom_score_adj: i32,
    pub rlimits: Vec<(Rlimit, u64)>,
    /// Where in it its last words are.
    pub message_path: String,
}

/// A further process in a container that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    /// The container's key.
    pub of: String,
    pub args: Vec<String>,
    /// On top of the container's.
    pub env: Vec<(String, String)>,
    pub stdin: bool,
    /// Nobody listens to its standard output, its standard error.
    #[serde(default)]
    pub unheard: [bool; 2],
    pub tty: bool,
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    Done,
    /// Descriptors: standard output and error to read from, then standard input to write to if there is one; none with a
    /// terminal. It has been executed when the socket closes after this.
    Made {
        input: bool,
    },
    /// Descriptor: the terminal.
    Terminal,
    /// Bytes.
    Used {
        bytes: u64,
    },
    /// Descriptor: a file with a [`Record`] for each.
    Containers,
    Refused(Refusal),
}

/// Why a command is not executed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The command itself.
    #[error("{0}")]
    Command(String),
    /// Something else that it was given.
    #[error("{0}")]
    Config(String),
    /// What it wants of this volume leads out of it, or cannot be made.
    #[error("cannot use a part of the volume {0}")]
    SubPath(String),
    #[error("{0}")]
    Machine(Failure),
    #[error("no such container runs")]
    Gone,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Machine(failure)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub key: String,
    pub tag: String,
    pub ended: Option<Ended>,
}

/// How a process ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub status: Status,
    /// A container's last words.
    pub message: String,
    /// Seconds and nanoseconds since 1970, by the machine's clock.
    pub at: (i64, i64),
}

/// What a shim says unasked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum News {
    Ended { key: String, ended: Ended },
}

/// A process that the shim started.
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    /// None for a command in a container.
    container: Option<Container>,
    /// The key of the container whose Sentry runs this command.
    within: Option<String>,
    streams: Vec<OwnedFd>,
    input: Option<OwnedFd>,
    ended: Option<Ended>,
    /// Looks at its root: that can hang, if its root is what a privileged container has mounted there.
    look: Option<OwnedFd>,
}

struct Shim<'a> {
    stage: &'a Stage,
    start: &'a Start,
    /// The host's directories.
    lowers: Vec<std::path::PathBuf>,
    node: Option<OwnedFd>,
    processes: BTreeMap<String, Process>,
    /// Where children hand terminals to us.
    births: OwnedFd,
    newborn: OwnedFd,
}

/// Serves until it is killed.
pub(super) fn run(
    stage: &Stage,
    start: &Start,
    pod: &Pod,
    trees: Vec<OwnedFd>,
    answer: &OwnedFd,
    inherits: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let _ = fs::write("/proc/self/oom_score_adj", "-500").or_else(|_| fs::write("/proc/self/oom_score_adj", "0"));
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step(|| "keep mounts to ourselves".into())?;
    own_stage()?;
    let lowers = lowers(stage, trees)?;
    prepare(pod)?;
    system::keep(&pod.groups)?;
    if stage.guards.has(Guards::PROCESSES) {
        let no = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        rustix::mount::mount("proc", "proc", "proc", no, None::<&CStr>).step(|| "mount /proc".into())?;
    }
    // The stage is all that a pod needs of the host: the rest goes.
    let guards = stage.guards;
    if guards.has(Guards::ROOT) && guards.has(Guards::PROCESSES) {
        inside::enter(guards, Path::new("."))?;
    }
    rustix::system::sethostname(start.hostname.as_bytes()).step(|| "set the host name".into())?;
    if guards.has(Guards::NETWORK) && !pod.host.network {
        inside::loopback()?;
    }
    if pod.host.processes {
        // As the first process of a namespace would.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step(|| "reap for others".into())?;
    }
    for (name, value) in &pod.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(path, value).step(|| format!("set {name} to {value:?}"))?;
    }
    // What containers that share the pod's processes see as the first of them.
    rustix::thread::set_name(c"pause").step(|| "name the shim".into())?;
    sys::set_arguments("pause").step(|| "name the shim".into())?;
    rustix::process::setsid().step(|| "start a session".into())?;
    rustix::process::umask(Mode::empty());
    let children = sys::child_signals().step(|| "watch for children".into())?;

    // The node writes down who we are before we do anything; when it is gone, so are we.
    let mut word = [0u8; 1];
    if !matches!(rustix::io::read(answer, &mut word), Ok(1)) {
        sys::exit_now(0)
    }
    let what = || "arrange descriptors".to_owned();
    let listener = inherits.into_iter().next().ok_or(rustix::io::Errno::BADF).step(what)?;
    rustix::io::ioctl_fionbio(&listener, true).step(what)?;
    let (births, newborn) = message::pair().step(what)?;
    // As exec would: what the launcher had open is not ours, and the node sees that we are here.
    let kept = [&listener, &children, &births, &newborn];
    let kept = kept.into_iter().map(|it| rustix::io::fcntl_dupfd_cloexec(it, 3)).collect::<Result<Vec<_>, _>>();
    let mut kept = kept.step(what)?.into_iter();
    let (Some(listener), Some(children), Some(births), Some(newborn)) =
        (kept.next(), kept.next(), kept.next(), kept.next())
    else {
        return Err(Failure { step: what(), errno: libc::EBADF });
    };
    sys::close_all_but(&[&listener, &children, &births, &newborn]).step(what)?;
    // A process that is started puts its streams there: an answer's socket with such a number would be lost before the
    // answer is known.
    let null = || rustix::fs::open("dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step(what);
    let _streams = [null()?, null()?, null()?];
    Shim { stage, start, lowers, node: None, processes: BTreeMap::new(), births, newborn }.serve(&listener, &children)
}

/// The host's directories, where containers find them once the host's own root has gone.
fn lowers(stage: &Stage, trees: Vec<OwnedFd>) -> Result<Vec<std::path::PathBuf>, Failure> {
    let mut places = inside::place(stage, trees)?;
    for (lower, place) in stage.lowers.iter().zip(&mut places) {
        if place.is_absolute() {
            let at = Path::new("low").join(&lower.name);
            inside::read_only(place, &at, true)?;
            *place = at;
        }
    }
    Ok(places)
}

/// Goes to a copy of the stage: what a mount namespace was born with cannot become its root.
fn own_stage() -> Result<(), Failure> {
    use rustix::mount::OpenTreeFlags as Flags;
    let what = || "copy the stage".to_owned();
    let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC | Flags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, ".", flags).step(what)?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, ".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(what)?;
    rustix::process::fchdir(&tree).step(what)
}

fn prepare(pod: &Pod) -> Result<(), Failure> {
    tmpfs(Path::new("pod"), 16 << 20, "0755", MountFlags::NOSUID | MountFlags::NODEV)?;
    for dir in [VOLUMES, MESSAGES, SHM] {
        fs::create_dir(dir).step(|| format!("make {dir}"))?;
    }
    if pod.host.ipc {
        return rustix::mount::mount_bind_recursive("/dev/shm", SHM).step(|| "share the host's /dev/shm".into());
    }
    tmpfs(Path::new(SHM), pod.shm, "1777", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)
}

impl Shim<'_> {
    fn serve(&mut self, listener: &OwnedFd, children: &OwnedFd) -> Result<(), Failure> {
        loop {
            let mut ready = vec![
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(children, PollFlags::IN),
                PollFd::new(&self.births, PollFlags::IN),
            ];
            ready.extend(self.node.as_ref().map(|it| PollFd::new(it, PollFlags::IN)));
            match rustix::event::poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.step(|| "wait for requests".into())?,
            };
            let ready: Vec<bool> = ready.iter().map(|it| !it.revents().is_empty()).collect();
            let is = |at: usize| ready.get(at).copied().unwrap_or_default();
            if is(2) {
                self.adopt_terminals();
            }
            if is(1) {
                let mut info = [0u8; 128];
                while rustix::io::read(children, &mut info).is_ok() {}
                self.reap();
            }
            if is(3) {
                self.hear();
            }
            if is(0)
                && let Ok(node) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
                && rustix::io::ioctl_fionbio(&node, true).is_ok()
            {
                // The latest one: an earlier node is gone, or about to be.
                self.lose_node();
                self.node = Some(node);
            }
        }
    }

    /// Nobody waits for the commands of a node that has gone.
    fn lose_node(&mut self) {
        self.node = None;
        let commands = self.processes.iter().filter(|(_, it)| it.container.is_none() && it.ended.is_none());
        for (key, _) in commands {
            let _ = self.signal(key, libc::SIGKILL);
        }
    }

    fn adopt_terminals(&mut self) {
        if let Ok(Some((key, fds))) = message::receive::<String>(self.births.as_fd())
            && let Some(process) = self.processes.get_mut(&key)
        {
            process.streams = fds;
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or_default()),
            };
            let Some((key, process)) = self.processes.iter_mut().find(|(_, it)| it.pid == pid && it.ended.is_none())
            else {
                continue;
            };
            let key = key.clone();
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            let message = process.container.as_ref().map(|_| words(&key)).unwrap_or_default();
            let ended = Ended { status, message, at: (now.tv_sec, now.tv_nsec) };
            process.ended = Some(ended.clone());
            process.input = None;
            let is_command = process.container.is_none();
            let told = self
                .node
                .as_ref()
                .map(|node| message::send(node.as_fd(), &News::Ended { key: key.clone(), ended }, &[]));
            if is_command {
                self.processes.remove(&key);
            }
            if let Some(Err(_)) = told {
                // It does not listen: it has to come again and ask.
                self.lose_node();
            }
        }
    }

    fn hear(&mut self) {
        let Some(node) = &self.node else { return };
        match message::receive::<Order>(node.as_fd()) {
            Ok(Some((order, fds))) => {
                let mut fds = fds.into_iter();
                let Some(answer) = fds.next() else { return };
                let fds: Vec<OwnedFd> = fds.collect();
                if let Err(refusal) = self.obey(order, &answer, fds) {
                    let _ = message::send(answer.as_fd(), &Said::Refused(refusal), &[]);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(None) | Err(_) => self.lose_node(),
        }
    }

    fn obey(&mut self, order: Order, answer: &OwnedFd, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        match order {
            Order::Start { key, groups, image, devices } => {
                return self.start(key, groups, (image, devices), answer, fds);
            }
            Order::Exec { key, groups } => return self.exec(key, groups, answer, fds),
            Order::Volumes { names } => {
                for (name, tree) in names.iter().zip(fds) {
                    volume(name, &tree)?;
                }
            }
            Order::Memory { name, size, group } => memory(&name, size, group)?,
            Order::Signal { key, signal } => self.signal(&key, signal)?,
            Order::Dial { port, v6 } => {
                let socket = dial(port, v6)?;
                return reply(answer, &Said::Done, &[&socket]);
            }
            Order::Socket { kind } => return reply(answer, &Said::Done, &[&open(kind)?]),
            Order::Usage { key } => return self.usage(&key, answer),
            Order::State => {
                let records = self.processes.iter().filter_map(|(key, it)| {
                    let tag = it.container.as_ref()?.tag.clone();
                    Some(Record { key: key.clone(), tag, ended: it.ended.clone() })
                });
                let file = message::file(&records.collect::<Vec<_>>()).step(|| "tell of the containers".into())?;
                return reply(answer, &Said::Containers, &[&file]);
            }
            Order::Streams { key } => {
                let process = self.processes.get(&key).ok_or(Refusal::Gone)?;
                let fds: Vec<&OwnedFd> = process.streams.iter().chain(&process.input).collect();
                return reply(answer, &Said::Made { input: process.input.is_some() }, &fds);
            }
            Order::CloseInput { key } => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.input = None;
                }
            }
            Order::Forget { key } => {
                if let Some(process) = self.processes.remove(&key)
                    && process.ended.is_none()
                {
                    let _ = rustix::process::pidfd_send_signal(&process.pidfd, rustix::process::Signal::KILL);
                }
                // Also of one that never came so far; a command has none.
                let _ = fs::remove_file(Path::new(MESSAGES).join(&key));
            }
        }
        reply(answer, &Said::Done, &[])
    }

    fn signal(&self, key: &str, signal: i32) -> Result<(), Refusal> {
        let process = self.processes.get(key).filter(|it| it.ended.is_none()).ok_or(Refusal::Gone)?;
        // Killed, a container's own first process takes the Sentry with it.
        let is_sentry = process.container.as_ref().is_some_and(|it| it.sentry) && signal != libc::SIGKILL;
        let (container, command) = match &process.within {
            Some(container) => (self.processes.get(container), Some(key)),
            None if is_sentry => (Some(process), None),
            None => (None, None),
        };
        let Some(container) = container else {
            return Ok(sys::signal(process.pidfd.as_fd(), signal).step(|| format!("send signal {signal}"))?);
        };
        use rustix::thread::ThreadNameSpaceType as Type;
        match through(&container.pidfd, Type::PROCESS_ID | Type::MOUNT, 0, None)? {
            Fork::Child => sentry::signal(command, &process.pidfd, signal),
            Fork::Parent { .. } => Ok(()),
        }
    }

    /// Asks the file system that the container's root is written to, which only its mount namespace has.
    fn usage(&mut self, key: &str, answer: &OwnedFd) -> Result<(), Refusal> {
        let process = self.processes.get_mut(key).filter(|it| it.ended.is_none()).ok_or(Refusal::Gone)?;
        if process.look.as_ref().is_some_and(|it| !has_ended(it)) {
            return Err(Refusal::Config("its root does not answer".to_owned()));
        }
        match through(&process.pidfd, rustix::thread::ThreadNameSpaceType::MOUNT, 0, None)? {
            Fork::Child => {
                let said = match rustix::fs::statvfs("/").step(|| "look at a root".into()) {
                    Ok(it) => Said::Used { bytes: it.f_blocks.saturating_sub(it.f_bfree).saturating_mul(it.f_frsize) },
                    Err(failure) => Said::Refused(failure.into()),
                };
                let _ = message::send(answer.as_fd(), &said, &[]);
                sys::exit_now(0)
            }
            Fork::Parent { pidfd, .. } => {
                process.look = pidfd;
                Ok(())
            }
        }
    }

    fn start(
        &mut self,
        key: String,
        groups: Vec<Join>,
        (image, devices): (bool, bool),
        answer: &OwnedFd,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Refusal> {
        let (config, groups, mut rest) = unpack::<Container>(groups, fds)?;
        if self.processes.contains_key(&key) {
            return Err(Refusal::Config(format!("the container {key} is there already")));
        }
        let devices = if devices { rest.pop() } else { None };
        let image = if image { rest.pop() } else { None };
        let words = Path::new(MESSAGES).join(&key);
        fs::write(&words, "").step(|| "make a file for last words".into())?;
        let stdio = Stdio::new(config.tty, config.stdin, [false; 2])?;
        let target = match &config.processes {
            Processes::Of(key) => {
                let process = self.processes.get(key).filter(|it| it.ended.is_none()).ok_or(Refusal::Gone)?;
                Some(&process.pidfd)
            }
            Processes::Own | Processes::Pod => None,
        };
        let own = matches!(config.processes, Processes::Own) && self.stage.guards.has(Guards::PROCESSES);
        let spaces = libc::CLONE_NEWNS | if own { libc::CLONE_NEWPID } else { 0 };
        let birth = birth(&groups);
        let forked = match target {
            None => sys::clone_child(spaces as u64, birth).step(|| "clone into namespaces".into())?,
            Some(target) => {
                let enter = rustix::thread::ThreadNameSpaceType::PROCESS_ID;
                through(target, enter, spaces as u64, birth)?
            }
        };
        let (pid, pidfd) = match forked {
            Fork::Parent { child, pidfd } => (child, pidfd.ok_or(Refusal::Gone)?),
            Fork::Child => container::run(
                self.stage,
                &self.start.ids,
                &self.lowers,
                &config,
                (image, devices),
                &groups,
                &words,
                stdio,
                answer,
                (self.newborn.as_fd(), key.as_str()),
            ),
        };
        self.keep(key, (pid, pidfd), Some(config), None, stdio, answer)
    }

    fn exec(&mut self, key: String, groups: Vec<Join>, answer: &OwnedFd, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let (command, groups, _) = unpack::<Command>(groups, fds)?;
        let of = self.processes.get(&command.of).filter(|it| it.ended.is_none()).ok_or(Refusal::Gone)?;
        let container = of.container.as_ref().ok_or(Refusal::Gone)?;
        let stdio = Stdio::new(command.tty, command.stdin, command.unheard)?;
        use rustix::thread::ThreadNameSpaceType as Type;
        let birth = birth(&groups);
        let (pid, pidfd) = match through(&of.pidfd, Type::PROCESS_ID | Type::MOUNT, 0, birth)? {
            Fork::Child => {
                let newborn = (self.newborn.as_fd(), key.as_str());
                container::enter(self.stage, container, &command, &groups, stdio, answer, newborn)
            }
            Fork::Parent { child, pidfd } => (child, pidfd.ok_or(Refusal::Gone)?),
        };
        let within = container.sentry.then(|| command.of.clone());
        self.keep(key, (pid, pidfd), None, within, stdio, answer)
    }

    /// Remembers a process that was started, and hands the other ends of its streams to the node.
    fn keep(
        &mut self,
        key: String,
        (pid, pidfd): (Pid, OwnedFd),
        container: Option<Container>,
        within: Option<String>,
        stdio: Stdio,
        answer: &OwnedFd,
    ) -> Result<(), Refusal> {
        let (streams, input) = stdio.ours();
        let fds: Vec<&OwnedFd> = streams.iter().chain(&input).collect();
        let said = reply(answer, &Said::Made { input: input.is_some() }, &fds);
        // The node alone decides when a command's input ends; a container's outlives the node.
        let (streams, input) = if container.is_some() { (streams, input) } else { (Vec::new(), None) };
        self.processes.insert(key, Process { pid, pidfd, container, within, streams, input, ended: None, look: None });
        said
    }
}

/// Has a child go into namespaces of `target` and clone from there; the clone is a child of ours.
fn through(
    target: &OwnedFd,
    enter: rustix::thread::ThreadNameSpaceType,
    spaces: u64,
    birth: Option<std::os::fd::BorrowedFd<'_>>,
) -> Result<Fork, Refusal> {
    let (here, there) = message::pair().step(|| "make a socket".into())?;
    match sys::fork().step(|| "fork".into())? {
        Fork::Child => {
            drop(here);
            let made = rustix::thread::move_into_thread_name_spaces(target.as_fd(), enter)
                .step(|| "enter the container".into())
                .and_then(|()| sys::clone_into(spaces, birth).step(|| "clone in the container".into()));
            match made {
                Ok(Fork::Child) => return Ok(Fork::Child),
                Ok(Fork::Parent { child, pidfd }) => {
                    let pid: Result<i32, Failure> = Ok(child.as_raw_nonzero().get());
                    let pidfd: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
                    let _ = message::send(there.as_fd(), &pid, &pidfd);
                }
                Err(failure) => {
                    let _ = message::send(there.as_fd(), &Err::<i32, _>(failure), &[]);
                }
            }
            sys::exit_now(0)
        }
        Fork::Parent { .. } => {
            drop(there);
            let said = message::receive::<Result<i32, Failure>>(here.as_fd()).step(|| "hear of a child".into())?;
            let (pid, mut fds) = said.ok_or(Refusal::Gone)?;
            let child = Pid::from_raw(pid?).ok_or(Refusal::Gone)?;
            Ok(Fork::Parent { child, pidfd: fds.pop() })
        }
    }
}

/// The group of version 2 that a child is to be born in.
fn birth(groups: &[(Join, OwnedFd)]) -> Option<std::os::fd::BorrowedFd<'_>> {
    groups.iter().find(|(join, _)| *join == Join::Birth).map(|(_, fd)| fd.as_fd())
}

/// The description, the control groups and what else came along.
type Unpacked<T> = (T, Vec<(Join, OwnedFd)>, Vec<OwnedFd>);

fn unpack<T: serde::de::DeserializeOwned>(groups: Vec<Join>, fds: Vec<OwnedFd>) -> Result<Unpacked<T>, Refusal> {
    let mut fds = fds.into_iter();
    let file = fds.next().ok_or(rustix::io::Errno::BADF).step(|| "find the description".into())?;
    let it = message::open(file).map_err(|error| Refusal::Config(format!("cannot read the description: {error}")))?;
    let count = groups.len();
    let groups: Vec<_> = groups.into_iter().zip(fds.by_ref().take(count)).collect();
    Ok((it, groups, fds.collect()))
}

fn reply(answer: &OwnedFd, said: &Said, fds: &[&OwnedFd]) -> Result<(), Refusal> {
    let fds: Vec<_> = fds.iter().map(|it| it.as_fd()).collect();
    Ok(message::send(answer.as_fd(), said, &fds).step(|| "answer the node".into())?)
}

/// Makes the place of a volume: a file if it is one, else a directory.
fn volume(name: &str, tree: &OwnedFd) -> Result<(), Refusal> {
    let at = Path::new(VOLUMES).join(name);
    let step = || format!("mount the volume {name}");
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree).step(step)?.st_mode);
    let made = if kind.is_dir() { fs::create_dir(&at) } else { fs::write(&at, "") };
    match made {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).step(step)?,
        _ => {}
    }
    rustix::mount::move_mount(tree.as_fd(), "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step)?;
    Ok(())
}

fn memory(name: &str, size: Option<u64>, group: Option<u32>) -> Result<(), Refusal> {
    let at = Path::new(VOLUMES).join(name);
    fs::create_dir(&at).step(|| format!("make the volume {name}"))?;
    // Without a size the kernel takes half of the machine; the pod's limit of memory counts all the same.
    let size = size.unwrap_or(1 << 40);
    tmpfs(&at, size, "1777", MountFlags::NOSUID | MountFlags::NODEV)?;
    if let Some(group) = group {
        let step = || format!("give the volume {name} to the group {group}");
        rustix::fs::chown(&at, None, Some(rustix::fs::Gid::from_raw(group))).step(step)?;
        rustix::fs::chmod(&at, Mode::from_raw_mode(0o3777)).step(step)?;
    }
    Ok(())
}

fn open(kind: Socket) -> Result<OwnedFd, Failure> {
    let (family, of) = match kind {
        Socket::Tcp => (AddressFamily::INET, SocketType::STREAM),
        Socket::Udp => (AddressFamily::INET, SocketType::DGRAM),
        Socket::Routes => (AddressFamily::NETLINK, SocketType::RAW),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, of, flags, None).step(|| "open a socket".into())
}

fn dial(port: u16, v6: bool) -> Result<OwnedFd, Refusal> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).step(|| "open a socket".into())?;
    let to = match v6 {
        true => std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)),
        false => std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port)),
    };
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Ok(Err(error).step(|| format!("connect to port {port}"))?),
    }
}

/// A container's last words.
fn words(key: &str) -> String {
    let mut text = Vec::new();
    // The file is ours, what is in it is the container's.
    if let Ok(file) = fs::File::open(Path::new(MESSAGES).join(key)) {
        let _ = file.take(WORDS).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}
