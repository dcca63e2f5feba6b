//! The launcher: a small single-threaded process that is kept ready and forks one process per sandbox.
//!
//! The node is threaded, so it must not fork; a program started anew per sandbox costs a millisecond and a half. So the
//! node starts the launcher once, from its own program ([`main`]), and asks it over a socket: each request carries a
//! socket of its own for the answer, and whatever descriptors the sandbox is to inherit. The launcher forks a *builder*
//! (outside, with the launcher's rights), the builder clones the sandbox's first process into its namespaces, writes its
//! id maps, tells the node who it is, and goes. Nothing of a sandbox is visible in the host's mount table: every mount is
//! made in the launcher's or in the sandbox's own mount namespace.
//!
//! The first process waits for the node's word before it executes anything: the node first writes down who it is. A node
//! that died in between never says it, the socket closes, and the process ends.

mod builder;
mod container;
mod devices;
mod disk;
mod handle;
mod inside;
pub(crate) mod message;
mod probe;
mod sentry;
pub(crate) mod shim;
mod stage;
mod system;
mod zygote;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use container::make_in;
pub(crate) use disk::{FILES, image, is_marked, mark, size};
pub use disk::{IMAGE, MARK};
pub(crate) use handle::{Error, Handle, Made, Ranges, deadline, receive, send};
pub(crate) use probe::{Probe, Works};
pub(crate) use system::Shown;
pub(crate) use zygote::main;

use crate::guard::Guards;

/// `argv[0]` under which a program that can be a launcher is one.
pub(crate) const NAME: &str = "insula-launcher";

/// How the launcher is to set itself up; its only argument, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// An existing directory of ours to mount on, in the launcher's own mount namespace.
    pub stage: PathBuf,
    /// Ids of the host that a user namespace of the launcher's own is to hold; `None` as root, who needs none.
    pub rootless: Option<Rootless>,
    /// What sandboxes are started with; `None` where they only try things.
    pub program: Option<PathBuf>,
    /// gVisor's program, if there is one.
    #[serde(default)]
    pub runsc: Option<PathBuf>,
    /// The file that a living node has locked.
    pub lock: PathBuf,
    pub guards: Guards,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Rootless {
    /// Our own id alone.
    One,
    /// Our own id and the ranges of /etc/subuid and /etc/subgid; the node runs `newuidmap` and `newgidmap`.
    Range,
}

/// One line of a uid_map and gid_map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub inside: u32,
    /// As seen from the launcher's user namespace.
    pub outside: u32,
    pub count: u32,
}

/// What the launcher can be asked; beside it, descriptors in the order named.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Descriptors: answer, then [`Start::inherits`] in their order.
    Start(Box<Start>),
    /// Descriptors: answer, the sandbox's pidfd.
    Attach(Attach),
    /// Descriptors: answer. They come back in the order of the paths.
    Trees(Trees),
    /// Descriptors: answer. A mount comes back.
    Disk(Disk),
    /// Descriptors: answer (unused), the pidfd of a sandbox that an earlier launcher started. It is ended with ours when
    /// no node comes back.
    Adopt { cgroups: Vec<PathBuf> },
    /// Descriptors: answer (unused). The sandbox has ended; what the launcher keeps mounted for it goes.
    Release { id: String },
}

/// A sandbox to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub hostname: String,
    pub ids: Vec<IdMap>,
    /// Show the host's files as owned by the same ids inside, as far as [`Start::ids`] reaches (root only).
    pub shift: bool,
    pub cgroups: Vec<Cgroup>,
    /// Bytes of memory for what it writes outside its workspace; gone with the sandbox.
    pub layer: u64,
    /// Bytes of /tmp and of /dev/shm.
    pub tmp: u64,
    pub rlimits: Vec<(Rlimit, u64)>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Numbers under which the program finds the descriptors that came along.
    pub inherits: Vec<i32>,
    /// Instead of a program, try what works in there.
    pub probe: Option<Probe>,
    /// Instead of a program, be the shim of this pod.
    pub pod: Option<shim::Pod>,
}

/// Directories or files of the host that a pod is to see.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Trees {
    /// The pod's first process.
    pub pid: i32,
    /// At most [`message::DESCRIPTORS`]; none with a link in it.
    pub paths: Vec<PathBuf>,
    pub read_only: bool,
    /// Show their owners as the same ids inside.
    pub shift: bool,
    /// Whole trees, whose device nodes can be opened.
    pub devices: bool,
}

/// The file system in a file of a directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub directory: PathBuf,
    /// Make it so large, if it is smaller.
    pub bytes: Option<u64>,
    /// Show its owners as the same ids inside of this process.
    pub shift: Option<i32>,
}

/// A control group to make, to write into and to start the sandbox in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    pub dir: PathBuf,
    pub writes: Vec<(String, String)>,
    pub join: Join,
}

/// How a sandbox comes into a control group. Moving a whole process costs many milliseconds (the kernel waits until no
/// other process forks), so neither does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Join {
    /// Version 1: the builder moves its only thread, and its child is born there.
    Thread,
    /// Version 2: the child is born there.
    Birth,
}

/// A directory of the host that is seen as /workspace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Workspace {
    pub source: PathBuf,
    pub read_only: bool,
    /// It is a file system in a file there.
    pub disk: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Rlimit {
    Processes,
    /// Bytes of memory that a process can write to.
    Data,
    Core,
    Files,
}

/// What a running sandbox gets late.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attach {
    /// Names the sandbox to [`Ask::Release`].
    pub id: String,
    pub pid: i32,
    pub workspace: Option<Workspace>,
    pub shift: bool,
    pub hostname: Option<String>,
}

/// What comes back on the answer's socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Descriptor: its pidfd. The process exists and waits for one byte on the same socket before it executes.
    Made {
        pid: i32,
    },
    /// Attached.
    Done,
    Failed(Failure),
}

/// The step that failed, in words, and the system's error number.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("cannot {step}: {}", std::io::Error::from_raw_os_error(*.errno))]
pub(crate) struct Failure {
    pub step: String,
    pub errno: i32,
}

/// What the launcher says unasked on its own socket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// It lives in a user namespace of its own and waits until ids are mapped into it.
    MapMe,
    /// Ready. What was found by doing it.
    Ready(Found),
    /// It could not become ready.
    Failed(Failure),
    /// A sandbox's first process has ended; said before it is reaped.
    Exited { pid: i32, status: Status },
}

/// What the launcher found out about the machine.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Overlay mounts work inside a sandbox's user namespace.
    pub overlay: bool,
    /// Host files can be shown under shifted ids.
    pub shift: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
}

trait Step<T> {
    /// Names what was being done, for the one who reads the failure.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step(), errno: error.raw_os_error() })
    }
}

impl<T> Step<T> for Result<T, std::ffi::NulError> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|_| Failure { step: step(), errno: libc::EINVAL })
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step(), errno: error.raw_os_error().unwrap_or(libc::EIO) })
    }
}
