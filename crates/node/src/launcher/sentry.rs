//! gVisor in place of the machine's kernel: each container has a kernel of its own, the Sentry, which `runsc` starts.
//!
//! All that makes a container stays: its namespaces, its control groups, its root with what is mounted there. But it does not
//! enter that root: it enters a small one around it, in which there is `runsc`, what that was told of the container, and
//! nothing of the machine; and it becomes `runsc`, which runs the command in the Sentry, waits for it, and ends as it does.
//! Nothing in there is a command of the container's, so `runsc` is under none of our filters: it has its own, and needs the
//! rights over the pod's user namespace to get into them.
//!
//! The Sentry's network is the pod's.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

use super::container::bind;
use super::inside::{self, LAYER};
use super::shim::{Container, Refusal};
use super::stage::{Stage, tmpfs};
use super::{Failure, IdMap, Rlimit, Start, Step, message};
use crate::sys;

/// Its name in the stage and in the small root.
pub(super) const PROGRAM: &str = "runsc";
/// Where the container's root is, in the small one.
pub(super) const ROOT: &str = "/root";
/// What `runsc` calls the container: there is one.
const ID: &str = "it";
/// What `runsc` writes down of it, each time that something has changed.
const STATE: &str = "/run/it_sandbox:it.state";
/// Where commands in it write what they are called by the Sentry.
const COMMANDS: &str = "/run/exec";
/// How long a Sentry may take to have started its command, on a machine that has other things to do.
const UP: Duration = Duration::from_secs(60);

/// The small root, while it is made.
pub(super) struct Cage {
    /// As the OCI's runtime specification has them.
    mounts: Vec<Value>,
}

impl Cage {
    /// Around the root that was built last.
    pub(super) fn new(stage: &Stage, ids: &[IdMap]) -> Result<Self, Failure> {
        if !stage.runsc {
            return Err(Failure { step: "find runsc".into(), errno: libc::ENOENT });
        }
        let at = Path::new(LAYER);
        for dir in ["run", "tmp", "proc", "dev", "dev/pts", "mnt"] {
            // The layer's, which nobody has written to yet.
            fs::create_dir(at.join(dir)).step(|| format!("make /{dir} for runsc"))?;
        }
        let no = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
        // What the container writes must not leave it without room.
        tmpfs(&at.join("run"), 4 << 20, "0700", no)?;
        fs::create_dir(at.join("run/exec")).step(|| "make /run/exec for runsc".into())?;
        rustix::mount::mount("proc", at.join("proc"), "proc", no, None::<&CStr>)
            .step(|| "mount /proc for runsc".into())?;
        inside::terminals(ids, &at.join("dev/pts"))?;
        symlink("pts/ptmx", at.join("dev/ptmx")).step(|| "link /dev/ptmx".into())?;
        for (from, to) in [("dev/null", "dev/null"), (PROGRAM, PROGRAM)] {
            fs::write(at.join(to), "").step(|| format!("make /{to} for runsc"))?;
            rustix::mount::mount_bind(from, at.join(to)).step(|| format!("show /{to} to runsc"))?;
        }
        Ok(Self { mounts: Vec::new() })
    }

    /// Has the Sentry mount `source` at `path` of the container: what is mounted there in the machine's view of the root
    /// may be hidden by what the Sentry mounts.
    pub(super) fn mount(&mut self, source: &OwnedFd, path: &str, read_only: bool) -> Result<(), Refusal> {
        let at = format!("mnt/{}", self.mounts.len());
        bind(Path::new(LAYER), source, &at, read_only)?;
        self.mounts.push(json!({
            "type": "bind",
            "source": format!("/{at}"),
            "destination": format!("/{}", path.trim_start_matches('/')),
            "options": [if read_only { "ro" } else { "rw" }],
        }));
        Ok(())
    }

    /// Writes down for `runsc` what it is to run.
    pub(super) fn close(self, hostname: &str, process: Value) -> Result<(), Failure> {
        let config = json!({
            "ociVersion": "1.0.2",
            "process": process,
            "root": {"path": ROOT},
            "hostname": hostname,
            "mounts": self.mounts,
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]},
        });
        fs::write(Path::new(LAYER).join("config.json"), config.to_string()).step(|| "describe a container".into())
    }
}

/// A process, as the OCI's runtime specification has it.
pub(super) fn process(container: &Container, args: &[String], env: &[(String, String)], tty: bool) -> Value {
    let capabilities: Vec<_> = container.capabilities.iter().map(|it| format!("CAP_{it}")).collect();
    // As becoming another user leaves them.
    let held = if container.user == 0 { capabilities.as_slice() } else { &[] };
    let rlimits = container.rlimits.iter().filter_map(|&(which, value)| {
        let name = match which {
            Rlimit::Files => "RLIMIT_NOFILE",
            Rlimit::Core => "RLIMIT_CORE",
            Rlimit::Processes | Rlimit::Data => return None,
        };
        Some(json!({"type": name, "hard": value, "soft": value}))
    });
    json!({
        "terminal": tty,
        "user": {"uid": container.user, "gid": container.group, "additionalGids": container.groups},
        "args": args,
        "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "cwd": container.cwd,
        "capabilities": {"bounding": capabilities, "permitted": held, "effective": held},
        "rlimits": rlimits.collect::<Vec<_>>(),
        "noNewPrivileges": true,
    })
}

/// What `runsc` is told in each of its calls.
fn arguments(raw: bool, call: &[&str]) -> Vec<CString> {
    let mut all = vec![
        PROGRAM,
        "--root=/run",
        "--platform=systrap",
        "--ignore-cgroups",
        "--network=host",
        // Volumes are others' too.
        "--file-access=shared",
        // What is written is in the container's own layer.
        "--overlay2=none",
    ];
    if raw {
        all.push("--net-raw");
    }
    // No word of ours has a NUL in it.
    all.iter().chain(call).filter_map(|it| CString::new(*it).ok()).collect()
}

/// Becomes `runsc`. Returns only on failure.
fn execute(raw: bool, call: &[&str]) -> io::Error {
    let args = arguments(raw, call);
    let args: Vec<&CStr> = args.iter().map(CString::as_c_str).collect();
    sys::exec_path(c"/runsc", &args, &[])
}

fn has_raw(container: &Container) -> bool {
    container.capabilities.iter().any(|it| it == "NET_RAW")
}

/// Becomes the container, in the small root: its streams have the numbers that they should have.
pub(super) fn run(container: &Container) -> Failure {
    // What it has, its Sentry keeps for the network, whatever the container was given.
    let beyond = [(CapabilitySet::NET_ADMIN, "NET_ADMIN"), (CapabilitySet::NET_BIND_SERVICE, "NET_BIND_SERVICE")];
    for (capability, name) in beyond.into_iter().filter(|(_, name)| !container.capabilities.iter().any(|it| it == name))
    {
        if let Err(error) = rustix::thread::remove_capability_from_bounding_set(capability) {
            return Failure { step: format!("give up {name}"), errno: error.raw_os_error() };
        }
    }
    let error = execute(has_raw(container), &["run", "--bundle=/", ID]);
    Failure { step: "execute runsc".into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// Becomes a further process of the container, as soon as the Sentry is there. What goes wrong from here on is told as
/// `runsc` tells it: in the output, and by the exit code.
pub(super) fn exec(container: &Container, key: &str, process: &Value) -> Result<std::convert::Infallible, Failure> {
    let what = || "describe a process".to_owned();
    let file = rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC).step(what)?;
    let mut text = fs::File::from(file);
    io::Write::write_all(&mut text, process.to_string().as_bytes()).step(what)?;
    sys::dup_to(text.as_fd(), 3).step(|| "arrange descriptors".into())?;
    std::mem::forget(text);
    // Those of the shim, and the node's socket: that this one is closed tells that it has come to the command.
    sys::close_from(4).step(|| "arrange descriptors".into())?;
    forget_commands();
    let call = || {
        await_command()?;
        let name = format!("--internal-pid-file={COMMANDS}/{key}.{}", rustix::process::getpid().as_raw_nonzero());
        Err(execute(has_raw(container), &["exec", "--process=/proc/self/fd/3", &name, ID]))
    };
    let Err::<std::convert::Infallible, io::Error>(error) = call();
    let _ = io::Write::write_all(&mut io::stderr(), format!("cannot execute in gVisor: {error}\n").as_bytes());
    sys::exit_now(128)
}

/// Sends a signal to the container's first process, or to that of a command: the Sentry alone knows which it is. In a
/// process of its own in the container's namespaces; `host` is what runs there for it.
pub(super) fn signal(key: Option<&str>, host: &OwnedFd, signal: i32) -> ! {
    // What is in our memory is the shim's.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    sys::reset_signals();
    let call = || -> io::Result<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        for number in 0..=2 {
            sys::dup_to(null.as_fd(), number)?;
        }
        std::mem::forget(null);
        // Those of the shim are not kept from whoever waits for their end.
        sys::dup_to(host.as_fd(), 3)?;
        sys::close_from(4)?;
        let (host, number) = (sys::inherited(3), signal.to_string());
        let error = match key {
            None => {
                await_command()?;
                execute(false, &["kill", ID, &number])
            }
            Some(key) => match await_note(key, &host)? {
                Some(pid) => execute(false, &["kill", &format!("--pid={pid}"), ID, &number]),
                None => return sys::signal(host.as_fd(), libc::SIGKILL),
            },
        };
        Err(error)
    };
    sys::exit_now(i32::from(call().is_err()))
}

/// What the Sentry calls a command, as soon as that is known; `None` when the command has ended, or does not begin.
fn await_note(key: &str, host: &OwnedFd) -> io::Result<Option<u32>> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, COMMANDS, WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO)?;
    let end = Instant::now() + UP;
    loop {
        if let Some(pid) = command(key) {
            return Ok(Some(pid));
        }
        let mut ready = [PollFd::new(&changes, PollFlags::IN), PollFd::new(host, PollFlags::IN)];
        let some = rustix::event::poll(&mut ready, Some(&left(end)?));
        let [_, ended] = ready.map(|it| !it.revents().is_empty());
        match some {
            Ok(0) => return Ok(None),
            Ok(_) if ended => return Ok(None),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0u8; 4096];
        while rustix::io::read(&changes, &mut events).is_ok_and(|count| count > 0) {}
    }
}

fn left(end: Instant) -> io::Result<Timespec> {
    Timespec::try_from(end.saturating_duration_since(Instant::now())).map_err(io::Error::other)
}

/// What the Sentry calls a command that runs.
fn command(key: &str) -> Option<u32> {
    let name = |it: &fs::DirEntry| it.file_name().to_string_lossy().rsplit_once('.').is_some_and(|(it, _)| it == key);
    let found = fs::read_dir(COMMANDS).ok()?.flatten().find(name)?;
    fs::read_to_string(found.path()).ok()?.trim().parse().ok()
}

/// Removes the notes of commands that have ended.
fn forget_commands() {
    for entry in fs::read_dir(COMMANDS).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|it| it.rsplit_once('.')).and_then(|(_, pid)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Waits until the Sentry has started the container's command. When that has ended, so have we.
fn await_command() -> io::Result<()> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, "/run", WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO)?;
    let end = Instant::now() + UP;
    loop {
        // Half written, it is no JSON; the rest is a change.
        let state = fs::read(STATE).ok().and_then(|it| serde_json::from_slice::<Value>(&it).ok());
        if state.is_some_and(|it| it.get("status").is_some_and(|it| it == "running")) {
            return Ok(());
        }
        let mut ready = [PollFd::new(&changes, PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&left(end)?)) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not come up")),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0u8; 4096];
        while rustix::io::read(&changes, &mut events).is_ok_and(|count| count > 0) {}
    }
}

/// Has a Sentry run a program of the machine's, in a sandbox's namespaces, and becomes it.
pub(super) fn probe(stage: &Stage, start: &Start, answer: &OwnedFd, inherits: Vec<OwnedFd>) -> Result<(), Failure> {
    let cage = Cage::new(stage, &start.ids)?;
    let process = json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "cwd": "/",
        "noNewPrivileges": true,
    });
    cage.close(&start.hostname, process)?;
    inside::enter(stage.guards, Path::new(LAYER))?;
    inside::loopback()?;
    rustix::process::setsid().step(|| "start a session".into())?;
    sys::reset_signals();
    let (_, answer) = inside::descriptors(stage, start, answer, inherits)?;
    let mut word = [0u8; 1];
    if !matches!(rustix::io::read(&answer, &mut word), Ok(1)) {
        sys::exit_now(0)
    }
    let error = execute(false, &["run", "--bundle=/", ID]);
    let failure = Failure { step: "execute runsc".into(), errno: error.raw_os_error().unwrap_or(libc::EIO) };
    let _ = message::send(answer.as_fd(), &super::Answer::Failed(failure), &[]);
    sys::exit_now(127)
}
