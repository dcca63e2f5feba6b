//! The hands: the node, in this process or another one, and the sandboxes of sessions on it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use apiserver::Kubelets;
use kit::{Clock, Tasks};
use ledger::Ledger;
use node::{Allow, Egress, ImageMap, Node, PodOptions, projection};
use sandbox::{Options, Sandboxes};
use tokio::io::DuplexStream;
use tokio::net::UnixStream;
use tokio_util::either::Either;

use crate::home::Home;

/// The daemon that is the first process of every sandbox.
const EXECD: &[u8] = include_bytes!(env!("INSULA_EXECD"));

/// How a node is reached.
#[derive(Clone)]
enum Way {
    Within(Node),
    At(PathBuf),
}

impl Way {
    async fn connect(self) -> io::Result<Either<DuplexStream, UnixStream>> {
        Ok(match self {
            Self::Within(node) => Either::Left(node.connect()),
            Self::At(socket) => Either::Right(UnixStream::connect(socket).await?),
        })
    }
}

/// The way to the one node's kubelet, known once [`open`] has opened the node: the API server starts before it.
#[derive(Clone, Default)]
pub(crate) struct Kubelet(Arc<OnceLock<Way>>);

impl Kubelet {
    /// Ends the Pods of a node in this process, within this time.
    pub(crate) async fn end_pods(&self, within: Duration) {
        if let Some(Way::Within(node)) = self.0.get() {
            node.end_pods(within).await;
        }
    }

    /// For an API server.
    pub(crate) fn reached(&self) -> Kubelets {
        let (it, ours) = (self.clone(), projection::machine_name());
        let connect = move |name: &str| {
            let way = if name == ours { it.0.get().cloned() } else { None };
            let name = name.to_owned();
            async move {
                match way {
                    Some(way) => way.connect().await,
                    None => Err(io::Error::new(ErrorKind::NotFound, format!("no node {name:?} runs here"))),
                }
            }
        };
        Kubelets::new(connect).prefix("/kubelet")
    }
}

/// What [`open`] is given.
pub(crate) struct Open<'a> {
    pub(crate) home: &'a Home,
    pub(crate) client: &'a kube::Client,
    pub(crate) ledger: &'a Ledger,
    pub(crate) clock: &'a Clock,
    pub(crate) tasks: &'a Tasks,
    /// Sandboxes kept ready.
    pub(crate) warm: usize,
    /// The Unix socket of a node in another process.
    pub(crate) elsewhere: Option<&'a Path>,
    /// Knows the node from then on.
    pub(crate) kubelet: &'a Kubelet,
    /// What names of images mean here.
    pub(crate) images: ImageMap,
    /// What Pods may have of this machine.
    pub(crate) host_paths: Vec<PathBuf>,
    /// Where the Kubernetes API is answered.
    pub(crate) kube: SocketAddr,
    /// Where Pods may go.
    pub(crate) egress: Egress,
    pub(crate) allow: Allow,
}

/// The sandboxes of the node that answers `elsewhere`, else of one in this process, which Kubernetes sees
/// as Pods from here on. `None` where this machine makes none, which is told: runs then go without tools.
pub(crate) async fn open(options: Open<'_>) -> Result<Option<Sandboxes>> {
    let Open { home, client, ledger, clock, tasks, warm, elsewhere, kubelet, images, host_paths, kube, egress, allow } =
        options;
    let name = projection::machine_name();
    let mut shown = projection::Options::new(client.clone(), name.as_str(), home.dir(), clock.clone(), tasks.clone());
    let (at, way) = match elsewhere {
        Some(socket) => (sandbox::Node::at(socket), Way::At(socket.to_owned())),
        None => match node(home, images, clock, tasks).await {
            Ok(node) => {
                let pods = PodOptions {
                    client: client.clone(),
                    name,
                    claims: home.path("volumes"),
                    profiles: home.path("seccomp"),
                    host_paths,
                    allow,
                    most: shown.most,
                    api: kube,
                    egress,
                };
                node.run_pods(pods).await.context("run pods")?;
                shown.runs_pods = true;
                let way = Way::Within(node.clone());
                (sandbox::Node::within(move || node.connect()), way)
            }
            Err(error) => {
                let Some(machine @ node::Error::Machine { .. }) = error.downcast_ref() else { return Err(error) };
                let why = kit::chain(machine);
                eprintln!(
                    "Runs have no tools, because this machine makes no sandboxes: {why}; `insula doctor` says what to do"
                );
                return Ok(None);
            }
        },
    };
    let _ = kubelet.0.set(way.clone());
    projection::start(shown, move || way.clone().connect());
    let options = Options::new(at, ledger.clone(), clock.clone(), tasks.clone(), home.path("workspaces"));
    let opened = Sandboxes::open(Options { warm, ..options }).await;
    Ok(Some(match elsewhere {
        Some(socket) => opened.with_context(|| format!("use the node at {}", socket.display()))?,
        None => opened?,
    }))
}

/// A node in this process, with the execd that belongs to it.
pub(crate) async fn node(home: &Home, image_map: ImageMap, clock: &Clock, tasks: &Tasks) -> Result<Node> {
    let execd = unpack(home).context("unpack execd")?;
    let options = node::Options::new(home.path("node"), execd, clock.clone(), tasks.clone());
    Node::open(node::Options { image_map, ..options }).await.context("start the node")
}

/// Writes execd where the node finds it, unless it is there already. Sandboxes that run an older one keep theirs.
fn unpack(home: &Home) -> std::io::Result<PathBuf> {
    let path = home.path("execd");
    if fs::read(&path).is_ok_and(|found| found == EXECD) {
        return Ok(path);
    }
    let fresh = home.path("execd.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&fresh)?;
    file.write_all(EXECD)?;
    drop(file);
    fs::rename(&fresh, &path)?;
    Ok(path)
}
