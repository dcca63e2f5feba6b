//! The hands: the node in this process, and the sandboxes of sessions on it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kit::{Clock, Tasks};
use ledger::Ledger;
use node::Node;
use sandbox::{Options, Sandboxes};

use crate::home::Home;

/// The daemon that is the first process of every sandbox.
const EXECD: &[u8] = include_bytes!(env!("INSULA_EXECD"));

/// `None` where this machine makes no sandboxes, which is told: runs then go without tools.
pub(crate) async fn open(
    home: &Home,
    ledger: &Ledger,
    clock: &Clock,
    tasks: &Tasks,
    warm: usize,
) -> Result<Option<Sandboxes>> {
    let execd = unpack(home).context("unpack execd")?;
    let options = node::Options::new(home.path("node"), execd, clock.clone(), tasks.clone());
    let node = match Node::open(options).await {
        Ok(node) => node,
        Err(error @ node::Error::Machine { .. }) => {
            let why = kit::chain(&error);
            eprintln!(
                "Runs have no tools, because this machine makes no sandboxes: {why}; `insula doctor` says what to do"
            );
            return Ok(None);
        }
        Err(error) => return Err(error).context("start the node"),
    };
    let connector = sandbox::Node::within(move || node.connect());
    let options = Options::new(connector, ledger.clone(), clock.clone(), tasks.clone(), home.path("workspaces"));
    Ok(Some(Sandboxes::open(Options { warm, ..options }).await?))
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
