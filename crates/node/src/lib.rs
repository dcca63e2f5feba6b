//! The sandbox engine: root file systems, namespaces, control groups, filters, and the protocol by which it is asked.
//!
//! A [`Node`] works in one directory and is reached over its protocol only ([`wire::node`]): in one process over
//! [`Node::connect`], from another over [`Node::listen`]. A sandbox is a process tree in its own user, pid, mount, network,
//! uts, ipc and cgroup namespaces over the image `host`, with execd as its first process. It is started warm, and bound to
//! a workspace, an environment and limits later, once.
//!
//! What a machine allows is found by doing it ([`doctor`]): as root every sandbox has a range of ids of its own and hard
//! limits; as anybody else one id (or the ranges of /etc/subuid) and what control groups were delegated.
//!
//! Killed at any instruction, a node leaves a directory from which the next one adopts what lives and ends the rest. When
//! no next one comes within a minute, the launcher ends the sandboxes.

mod cgroup;
pub mod doctor;
mod engine;
mod error;
mod fault;
mod guard;
mod image;
mod kubelet;
mod launcher;
mod pod;
pub mod projection;
mod proxy;
mod quota;
mod sent;
mod server;
mod state;
mod sys;

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::DuplexStream;

pub use engine::Options;
pub use error::Error;
#[cfg(feature = "holes")]
pub use fault::{STEPS, die_at};
pub use guard::Guards;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub use image::fuzzing;
pub use image::{Credential, ImageError, ImageMap, Images, Limits as ImageLimits, Listed as ListedImage, PullProgress};
/// The file in the directory of a workspace that is bounded, and the extended attribute that says that it is ours.
pub use launcher::{IMAGE as WORKSPACE_IMAGE, MARK as WORKSPACE_MARK};

pub use pod::{Allow, Egress, PodOptions};

use engine::Engine;
use kubelet::Kubelet;
use pod::Runtime;

/// Bytes on their way in one direction of an in-memory connection.
const PIPE: usize = 256 * 1024;

/// Is the launcher, if this program was started as one, and then never returns.
///
/// Every program that opens a [`Node`] calls it first thing in `main`, before it makes any thread: nodes start their
/// launcher from it ([`Options::launcher`]).
pub fn launcher_main() {
    launcher::main();
}

/// A running node. Cheap to clone. Ends all its sandboxes when the shutdown of its tasks begins.
#[derive(Clone)]
pub struct Node {
    pub(crate) engine: Arc<Engine>,
    pub(crate) kubelet: Arc<Kubelet>,
    runtime: Runtime,
    close: Arc<OnceLock<pod::Close>>,
}

impl Node {
    /// Takes the directory, starts the launcher, adopts the sandboxes of an earlier node that live and answer, and ends
    /// everything else that it left.
    ///
    /// # Errors
    /// [`Error::InUse`] when another node works in the directory; [`Error::Machine`] when this machine makes no sandboxes:
    /// the message says at which step, [`doctor::probe`] what to do.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let pods = options.data.join("pods");
        let engine = Engine::open(options).await?;
        let runtime = Runtime::open(engine.clone(), pods).await?;
        let kubelet = Kubelet::new(engine.clock.clone(), engine.tasks.clone(), Some(engine.clone()));
        Ok(Self { engine, kubelet: Arc::new(kubelet), runtime, close: Arc::default() })
    }

    /// Runs the Pods of a cluster that are bound to this node, from now on: as a kubelet does. To be called once.
    ///
    /// # Errors
    /// When the network of the pods cannot be made.
    pub async fn run_pods(&self, options: PodOptions) -> Result<(), Error> {
        let (clock, tasks) = (self.engine.clock.clone(), self.engine.tasks.clone());
        let dir = self.engine.directory().to_owned();
        let (pods, close) = pod::Here::start(self.runtime.clone(), dir, options, clock, tasks).await?;
        self.kubelet.serve(pods);
        let _ = self.close.set(close);
        Ok(())
    }

    /// Ends the Pods in order, before the shutdown of the node's tasks begins: their hooks run, they are asked to end, and
    /// have their grace as far as this time allows; critical ones last, in its last third. They run again with the next
    /// node, and none is begun in this one from here on.
    pub async fn end_pods(&self, within: Duration) {
        if let Some(close) = self.close.get() {
            close(within).await;
        }
    }

    /// A connection to this node's protocol within this process: one HTTP/1.1 connection, served until it is dropped. Below
    /// `/kubelet` it serves what an API server asks a node's kubelet.
    pub fn connect(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let node = self.clone();
        self.engine.tasks.tenant("node connection", async move { server::connection(node, theirs).await });
        ours
    }

    /// What this machine can do, tried once with this node's launcher, and what the node holds.
    pub async fn describe(&self) -> wire::node::Node {
        let found = self.engine.findings().await;
        let sentry = self.engine.sentry_so_far();
        let can = found
            .iter()
            .chain([&sentry])
            .map(|it| (it.name.to_owned(), wire::node::Ability { ok: it.ok, why: it.why.clone() }));
        let quota = found.iter().any(|it| it.name == "quota" && it.ok);
        wire::node::Node {
            generation: wire::node::GENERATION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            can: can.collect(),
            quota: if quota { wire::node::Quota::Hard } else { wire::node::Quota::Counted },
            sandboxes: self.engine.list().len(),
        }
    }

    /// Serves the protocol at a Unix socket too, which is this user's alone. One that nobody listens at is replaced.
    ///
    /// # Errors
    /// When somebody listens there, something else than a socket is there, or none can be made.
    pub fn listen(&self, at: &Path) -> Result<(), Error> {
        server::listen(self, at)
    }
}
