//! The node's protocol: HTTP/1.1 with JSON bodies, over an in-memory stream or a Unix socket.
//!
//! | call | body → answer |
//! |---|---|
//! | `GET /v1/node` | → [`Node`] |
//! | `POST /v1/sandboxes` | [`Create`] → 201 [`Sandbox`]; with an id that exists: 200, the one that is there |
//! | `GET /v1/sandboxes` | → [`Sandboxes`] |
//! | `GET /v1/sandboxes/{id}` | → [`Sandbox`] |
//! | `POST /v1/sandboxes/{id}/bind` | [`Bind`] → [`Sandbox`]; 409 when it is bound already |
//! | `POST /v1/sandboxes/{id}/freeze`, `…/thaw` | → [`Sandbox`]; idempotent |
//! | `GET /v1/sandboxes/{id}/stats` | → [`Stats`] |
//! | `DELETE /v1/sandboxes/{id}` | → [`Sandbox`] in phase `Ended`; answered when nothing of it is left |
//! | `ANY /v1/sandboxes/{id}/execd/{path}` | the sandbox's execd at `/{path}`, streamed both ways, upgrades too; the node adds the token |
//! | `GET /v1/watch` | → lines of JSON, each an [`Event`]: first all that is there, then every change |
//! | `GET /kubelet/containerLogs/{namespace}/{pod}/{container}` | as the kubelet of Kubernetes 1.34 serves it, errors too |
//! | `GET`, `POST /kubelet/exec/{namespace}/{pod}/{container}`, `…/attach/…` | the same, over WebSocket or SPDY (`v5.channel.k8s.io`, `v4.channel.k8s.io`) |
//! | `GET`, `POST /kubelet/portForward/{namespace}/{pod}` | the same, over SPDY (`portforward.k8s.io`), in the messages of a WebSocket or not; with `Upgrade: tcp` and one `port` that port's connection as it is, or 502 |
//! | `GET /kubelet/pods`, `…/stats/summary`, `…/metrics/resource`, `…/healthz` | the same |
//!
//! Below `/kubelet` a bound sandbox with the labels `insula.dev/namespace` and `insula.dev/pod` is a Pod too; its one
//! container is called `sandbox`, and takes neither `attach` nor `portForward`.
//!
//! Every request may carry [`GENERATION_HEADER`]; a node refuses a generation that it does not know (400, `Generation`).
//! Every answer but the kubelet's carries the node's, and errors are [`Problem`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What this side speaks. Raised when a field or call changes its meaning; added optional fields do not.
pub const GENERATION: u32 = 1;
/// The header that names the sender's generation.
pub const GENERATION_HEADER: &str = "insula-node-generation";
/// A body of a request to the node itself (not to an execd) is at most this long.
pub const BODY_LIMIT: usize = 256 * 1024;

/// How execd is started as the first process of a sandbox. Its token comes later, over the socket:
/// [`crate::execd::BIND`].
pub mod init {
    /// A listening Unix stream socket.
    pub const LISTEN_FD: i32 = 3;
    /// The arguments, `argv[0]` included.
    pub const ARGS: [&str; 3] = ["execd", "--listen-fd", "3"];
}

/// The node itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub generation: u32,
    pub version: String,
    /// What was found by doing it.
    pub can: BTreeMap<String, Ability>,
    /// How the size of a workspace is kept.
    pub quota: Quota,
    pub sandboxes: usize,
}

/// Whether something works on this machine, and the reason, with what to do about it where it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ability {
    pub ok: bool,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quota {
    /// The file system refuses to grow over it.
    Hard,
    /// Counted from time to time.
    Counted,
}

/// A warm sandbox: an execd over the image, nobody's yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Create {
    /// 1 to 40 of `a-z`, `0-9` and `-`; the node makes one when there is none. The same id again finds the same sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The only image there is yet is `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub limits: Limits,
}

/// What a sandbox may use. What is not given is the node's default; what the machine cannot limit is not limited, and
/// [`Node::can`] says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, those of /tmp, /dev/shm and a writable layer in memory included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Bytes of the writable layer: everything that is neither workspace nor /tmp. Only at creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

/// What makes a warm sandbox somebody's. Once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bind {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Workspace>,
    /// Of every command, under the command's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where commands run that name no directory; /workspace when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// At most 63 of `a-z`, `A-Z`, `0-9`, `-` and `.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Added to those of its creation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub limits: Limits,
}

/// A directory of the host, seen in the sandbox as /workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workspace {
    /// Absolute. Made when it is not there.
    pub path: String,
    #[serde(default)]
    pub read_only: bool,
    /// Most bytes in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    pub id: String,
    pub phase: Phase,
    pub bound: bool,
    pub labels: BTreeMap<String, String>,
    pub limits: Limits,
    pub hostname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<Workspace>,
    /// RFC 3339.
    pub created: String,
    /// It was started by an earlier process of the node.
    pub adopted: bool,
    /// How its first process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Starting,
    Running,
    Frozen,
    Ending,
    /// Nothing of it is left.
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    pub reason: ExitReason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// RFC 3339.
    pub at: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// By itself.
    Exited,
    /// Somebody asked for it.
    Removed,
    /// A process in it was killed for want of memory, the first one too.
    OutOfMemory,
    /// It was started by an earlier process of the node; how it ended nobody saw.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sandboxes {
    pub sandboxes: Vec<Sandbox>,
}

/// What a sandbox uses now; `None` where the machine does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Bytes, the page cache that can be dropped not included.
    pub memory: Option<u64>,
    /// Microseconds of processor time since its start.
    pub cpu_usec: Option<u64>,
    pub pids: Option<u32>,
    /// Processes killed for want of memory since its start.
    pub oom_kills: Option<u64>,
    /// Bytes in the workspace.
    pub workspace: Option<u64>,
}

/// One line of `GET /v1/watch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
#[allow(clippy::large_enum_variant, reason = "one at a time goes over the wire; nobody keeps many")]
pub enum Event {
    /// The first line: all that is there.
    All { sandboxes: Vec<Sandbox> },
    /// This is now so.
    Changed { sandbox: Sandbox },
}

/// Every error's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: Code,
    /// For humans.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// 400: the request is wrong and stays wrong.
    Rejected,
    /// 400: a generation that this node does not know.
    Generation,
    /// 404: no such sandbox, or not any more.
    Gone,
    /// 409: not in this phase, or bound already.
    Conflict,
    /// 502: the sandbox's execd does not answer.
    Execd,
    /// 503: try again; the machine or the node has no room now.
    Unavailable,
    /// 500: the machine cannot do it.
    Machine,
}

impl Code {
    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::Rejected | Self::Generation => 400,
            Self::Gone => 404,
            Self::Conflict => 409,
            Self::Execd => 502,
            Self::Unavailable => 503,
            Self::Machine => 500,
        }
    }
}
