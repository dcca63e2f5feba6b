//! What this API asks of the pods of this machine: the door to whoever runs them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;
use wire::node::Stats;

use crate::pod::{ExecConfig, Log, PodState, StartError, Stream};

pub(crate) type Reader = Pin<Box<dyn AsyncRead + Send>>;
pub(crate) type Writer = Pin<Box<dyn AsyncWrite + Send>>;
pub(crate) type Connection = Pin<Box<dyn Duplex>>;
/// Sets the size of a terminal: rows, columns.
pub(crate) type Resize = Box<dyn FnMut(u16, u16) + Send>;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// The pods of this machine. What is called a container's name is that of any of a pod's: one of the init containers and
/// the ephemeral ones, too.
pub(crate) trait Pods: Send + Sync + 'static {
    /// What this node is called.
    fn node(&self) -> String;

    /// All that are bound to this node, with the status that this node gives them.
    fn list(&self) -> Vec<Arc<Pod>>;

    fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let is = |pod: &Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        self.list().into_iter().find(is)
    }

    /// What runs of a pod. `None` when nothing was ever started.
    fn state(&self, uid: &str) -> Option<PodState>;

    /// The log of an attempt at a container, ended or not.
    ///
    /// # Errors
    /// `NotFound` when there is none any more.
    fn log(&self, uid: &str, container: &str, attempt: u32) -> io::Result<Log>;

    /// Runs a command in a container that runs.
    fn exec(&self, uid: &str, container: &str, config: ExecConfig) -> BoxFuture<'static, Result<Exec, StartError>>;

    /// The streams of a container; its input when that is asked for. `None` when it does not run.
    fn attach(&self, uid: &str, container: &str, stdin: bool) -> Option<Attach>;

    /// A connection to a port of the pod's loopback.
    fn dial(&self, uid: &str, port: u16) -> BoxFuture<'static, io::Result<Connection>>;

    /// What a container uses; without a name, the whole pod.
    fn usage(&self, uid: &str, container: Option<&str>) -> Option<Stats>;
}

/// A command that runs. It is killed when `exit` is dropped before its end.
pub(crate) struct Exec {
    /// The command reads the end of its input when this is shut down or dropped.
    pub stdin: Option<Writer>,
    /// Of a terminal, everything.
    pub stdout: Option<Reader>,
    pub stderr: Option<Reader>,
    pub resize: Option<Resize>,
    /// Its exit code, as a shell has it. `None` when its pod has gone.
    pub exit: BoxFuture<'static, Option<i32>>,
}

/// The streams of a container that runs.
pub(crate) struct Attach {
    /// Shut down where the client's input ends: the container's ends then if it is `stdinOnce`.
    pub stdin: Option<Writer>,
    /// What it prints from now on; a reader that lags is cut off.
    pub output: broadcast::Receiver<(Stream, Bytes)>,
    pub resize: Option<Resize>,
    /// Its end.
    pub exit: BoxFuture<'static, ()>,
    /// Whether the client goes on seeing what it prints when it has no more input for it.
    pub outlasts_input: bool,
}
