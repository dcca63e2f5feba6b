//! The one door to sandboxes: whose they are, what is done in them, and when they go.
//!
//! A session has at most one sandbox at a time and one workspace, a directory that outlives it; a run without a session
//! has its own. [`Sandboxes::claim`] gives a session the sandbox it has, or a warm one in about the time of one commit
//! to the disk and one bind; the [`Hand`] that it returns runs commands and works on files through the sandbox's execd.
//!
//! # Guarantees
//! - A claim is in the ledger before the sandbox is the session's. After a crash, what ledger and node agree on goes on;
//!   everything else of ours is ended. A command whose caller is gone is killed by its execd.
//! - Starting and ending are off the way of a claim that finds a warm sandbox; filling up is bounded, and stops while the
//!   machine is short of memory.
//! - A sandbox is ended when it was not used for [`Options::idle`], with its instance, with the run that used it last, and
//!   with its run where there is no session. A workspace is removed with its instance, or with its run.
//! - What comes out of a sandbox is parsed with limits, and every wait for it has a deadline; a sandbox that does not
//!   answer is ended.

mod error;
mod files;
mod hand;
mod keep;
mod link;
mod live;
mod node;
mod output;
mod quota;
mod sandboxes;
mod shape;
mod warm;
mod workspace;

use std::path::PathBuf;
use std::time::Duration;

use kit::{Clock, Tasks};
use ledger::Ledger;

pub use error::Error;
pub use files::{Content, WRITE_LIMIT};
pub use hand::{Command, Done, Exit, Hand};
pub use link::Node;
pub use live::Owner;
pub use sandboxes::{Sandboxes, labels};
pub use shape::{HANDLERS, Want, image, limit};

/// What [`Sandboxes::open`] is given.
pub struct Options {
    pub node: Node,
    pub ledger: Ledger,
    pub clock: Clock,
    pub tasks: Tasks,
    /// Where workspaces are; made when it is not there, and this user's alone. The node must see it at the same path.
    pub workspaces: PathBuf,
    /// Sandboxes kept ready.
    pub warm: usize,
    /// How long a sandbox stays that nobody uses.
    pub idle: Duration,
    /// Bytes of one workspace. Where the node cannot hold it hard, it is counted: a command under which it grows over it is
    /// killed, no file is written until there is room again, and a sandbox in which it goes on growing is ended.
    pub quota: u64,
    /// How often a workspace is counted while no command runs. At the speed of a disk it can grow by a few gigabytes in ten
    /// seconds, which its quota is of the size of; counting one of some thousand files takes milliseconds.
    pub counted: Duration,
}

impl Options {
    /// Two warm sandboxes, ten minutes idle, 10 GiB for a workspace.
    pub fn new(node: Node, ledger: Ledger, clock: Clock, tasks: Tasks, workspaces: impl Into<PathBuf>) -> Self {
        let (idle, counted) = (Duration::from_secs(600), Duration::from_secs(10));
        Self { node, ledger, clock, tasks, workspaces: workspaces.into(), warm: 2, idle, quota: 10 << 30, counted }
    }
}

/// Ten random letters and digits: enough to be the only one, short enough to be read.
fn short_id() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let random: [u8; 10] = rand::random();
    random.iter().filter_map(|byte| LETTERS.get(usize::from(byte % 32))).map(|byte| char::from(*byte)).collect()
}
