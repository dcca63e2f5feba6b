//! What the parts of a pod say to each other: plain data.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What a pod is made with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct PodConfig {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    /// One process namespace for all containers; its first process is the shim.
    pub share_processes: bool,
    /// Whose system calls its containers make.
    #[serde(default)]
    pub kernel: Kernel,
    /// /etc/hosts, but for the pod's own address.
    pub hosts: String,
    /// What it is called there.
    #[serde(default)]
    pub names: String,
    /// TCP ports that its containers declare.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// The whole of /etc/resolv.conf.
    pub resolv: String,
    pub volumes: Vec<Volume>,
    /// Settings of the pod's own kernel namespaces.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    /// What it has of the host in place of its own.
    #[serde(default)]
    pub host: HostSpaces,
    /// What the node listens for at the host's addresses.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

impl PodConfig {
    /// What is said to whoever wants something of it while it is frozen. Without a colon: clients take such words for YAML.
    pub(crate) fn frozen(&self) -> String {
        let (namespace, name, annotation) = (&self.namespace, &self.name, api::labels::FROZEN);
        format!("the pod is frozen; kubectl annotate -n {namespace} pod {name} {annotation}- thaws it")
    }
}

/// Which kernel serves the containers of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kernel {
    #[default]
    Machine,
    /// gVisor's, one for each container.
    Sentry,
}

/// Which namespaces of a pod are the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostSpaces {
    pub network: bool,
    pub processes: bool,
    pub ipc: bool,
    /// Its ids are the host's, and its capabilities are over the machine. Who is in another namespace of the host's could
    /// do nothing in it without them.
    pub users: bool,
}

/// A TCP port of a pod that is reached at a place of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub at: SocketAddr,
    pub to: u16,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub name: String,
    pub source: VolumeSource,
    /// The group of one in memory. What is on the disk has its owners already.
    pub fs_group: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum VolumeSource {
    /// A directory or file of this machine. Its owners inside are its owners outside (ids are shifted).
    Path(PathBuf),
    /// The file system in a file of this directory, of ids as above.
    Disk(PathBuf),
    /// A file system in memory, made with the pod. Bytes.
    Memory { size: Option<u64> },
}

/// What a container is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerConfig {
    pub name: String,
    /// How many of this name were started before.
    pub attempt: u32,
    pub root: Root,
    /// The first is looked up in `PATH` of `env`, inside the root, if it has no slash.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Made when it is not there.
    pub cwd: String,
    pub mounts: Vec<Mount>,
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
    pub read_only_root: bool,
    /// Names without CAP_; the whole set.
    pub capabilities: Vec<String>,
    /// No filter of system calls, all of /proc, and the devices of the machine that it may open.
    pub privileged: bool,
    /// A filter of system calls on top of the node's own.
    pub filter: Option<crate::guard::Packed>,
    pub processes: Processes,
    pub stdin: bool,
    /// The input ends with the first client that was attached to it.
    pub stdin_once: bool,
    pub tty: bool,
    pub limits: wire::node::Limits,
    pub oom_score_adj: i32,
    /// A path inside, whose content (or, by policy, the end of the log) is the message of its end.
    pub termination_message_path: String,
    /// How its image wants to be told to end.
    pub stop_signal: Option<i32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Root {
    /// The machine's own /usr etc.
    Host,
    /// An unpacked image.
    Image(PathBuf),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub volume: String,
    pub sub_path: String,
    pub path: String,
    pub read_only: bool,
}

/// Whose processes a container sees.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Processes {
    Own,
    Pod,
    /// Those of this container.
    Of(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodState {
    pub config: PodConfig,
    /// The shim lives. When it does not, all containers have ended, and `create` makes another one.
    pub alive: bool,
    /// The processes of its containers stand still, and no others are started. The kernel is asked, not the disk.
    #[serde(skip)]
    pub frozen: bool,
    pub address: Option<IpAddr>,
    pub created: jiff::Timestamp,
    /// Every container that was ever started here and not forgotten, the latest two attempts of each name.
    pub containers: Vec<ContainerState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    pub name: String,
    pub attempt: u32,
    /// 64 hexadecimal digits.
    pub id: String,
    pub started: jiff::Timestamp,
    pub exit: Option<Exit>,
    /// How its image wants to be told to end; SIGTERM when it says nothing.
    #[serde(default)]
    pub stop_signal: Option<i32>,
}

/// How a container ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// As a shell has it: 128 + signal where one ended it.
    pub code: i32,
    pub signal: Option<i32>,
    /// A process of it was killed for want of memory.
    pub out_of_memory: bool,
    pub finished: jiff::Timestamp,
    /// What it left in its termination message file, at most 4096 bytes.
    pub message: String,
    /// Nobody saw how: it ended while no node and no shim looked (the machine was restarted). Code 137.
    pub unseen: bool,
}

/// Why a container does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The command cannot be executed (not found, no permission): what a kubelet shows as `StartError`, code 128.
    #[error("{0}")]
    Command(String),
    /// Something else is wrong with what it was given (a mount on a file):
    /// `CreateContainerError`.
    #[error("{0}")]
    Config(String),
    /// Its sub path of this volume leads out of it, or cannot be made: `CreateContainerConfigError`.
    #[error("cannot use a part of the volume {0}")]
    SubPath(String),
    /// The pod stands still.
    #[error("{0}")]
    Frozen(String),
    #[error(transparent)]
    Machine(#[from] Error),
}

/// What is run in a container that runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExecConfig {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a container takes from its image.
#[derive(Clone, Debug)]
pub(crate) struct ImageFacts {
    pub root: Root,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: String,
    /// User, group, further groups: by numbers; a name was looked up in the image's own /etc/passwd and /etc/group.
    pub user: u32,
    pub group: u32,
    pub groups: Vec<u32>,
    /// The image names a user by a name (runAsNonRoot cannot verify it).
    pub user_name: Option<String>,
    /// The signal by which it is told to end, if it says one.
    pub stop_signal: Option<i32>,
}
