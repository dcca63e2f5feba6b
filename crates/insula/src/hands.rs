//! The hands: the node, in this process or another one, and the sandboxes of sessions on it.

use std::fs;
use std::future::ready;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kit::{Clock, Tasks};
use ledger::Ledger;
use node::{Node, projection};
use sandbox::{Options, Sandboxes};
use tokio::net::UnixStream;

use crate::home::Home;

/// The daemon that is the first process of every sandbox.
const EXECD: &[u8] = include_bytes!(env!("INSULA_EXECD"));

/// The sandboxes of the node that answers at the Unix socket `elsewhere`, else of one in this process, which Kubernetes sees
/// as Pods from here on. `None` where this machine makes none, which is told: runs then go without tools.
pub(crate) async fn open(
    home: &Home,
    client: &kube::Client,
    ledger: &Ledger,
    clock: &Clock,
    tasks: &Tasks,
    warm: usize,
    elsewhere: Option<&Path>,
) -> Result<Option<Sandboxes>> {
    let name = projection::machine_name();
    let shown = projection::Options::new(client.clone(), name, home.dir(), clock.clone(), tasks.clone());
    let at = match elsewhere {
        Some(socket) => {
            let path = socket.to_owned();
            projection::start(shown, move || UnixStream::connect(path.clone()));
            sandbox::Node::at(socket)
        }
        None => match node(home, clock, tasks).await {
            Ok(node) => {
                let way = node.clone();
                projection::start(shown, move || ready(Ok(way.connect())));
                sandbox::Node::within(move || node.connect())
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
    let options = Options::new(at, ledger.clone(), clock.clone(), tasks.clone(), home.path("workspaces"));
    let opened = Sandboxes::open(Options { warm, ..options }).await;
    Ok(Some(match elsewhere {
        Some(socket) => opened.with_context(|| format!("use the node at {}", socket.display()))?,
        None => opened?,
    }))
}

/// A node in this process, with the execd that belongs to it.
pub(crate) async fn node(home: &Home, clock: &Clock, tasks: &Tasks) -> Result<Node> {
    let execd = unpack(home).context("unpack execd")?;
    let options = node::Options::new(home.path("node"), execd, clock.clone(), tasks.clone());
    Node::open(options).await.context("start the node")
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
