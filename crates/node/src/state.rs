//! What the node keeps on disk about each sandbox, written before it acts, so that the next node finds what this one did.
//!
//! `sandboxes/ID/state.json`, replaced whole. Not forced to the disk: it has to outlive the process, not the machine, for
//! with the machine every sandbox is gone (the boot id tells).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use wire::node::{Limits, Workspace};

/// The longest path that fits into a Unix socket's address.
const SOCKET_PATH: usize = 107;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub id: String,
    /// Of the boot in which it was made.
    pub boot: String,
    pub step: Step,
    /// Its first process.
    pub process: Option<Process>,
    /// Which range of the host's ids it has.
    pub slot: Option<u32>,
    pub labels: BTreeMap<String, String>,
    pub limits: Limits,
    pub hostname: String,
    pub workspace: Option<Workspace>,
    /// Of its execd; there once it is bound.
    pub token: Option<String>,
    pub created: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Creating,
    Running,
    /// Something of a bind was done, perhaps not all.
    Binding,
    Bound,
    Ending,
}

/// A process that cannot be taken for another one that got its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub pid: i32,
    /// In the kernel's ticks since boot.
    pub started: u64,
}

impl Process {
    pub(crate) fn look(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold anything, brackets too.
        let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let started = rest.split_whitespace().nth(19).and_then(|it| it.parse().ok());
        Ok(Self { pid, started: started.ok_or(io::ErrorKind::InvalidData)? })
    }

    /// Opens it if it is still there.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let fd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: what the number means now, the descriptor holds.
        (Self::look(self.pid).ok()? == self).then_some(fd)
    }
}

pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Replaces what is noted in a directory, whole.
pub(crate) fn replace(dir: &Path, text: &[u8]) -> io::Result<()> {
    let (new, now) = (dir.join("state.new"), dir.join("state.json"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    fs::rename(new, now)
}

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn of(sandboxes: &Path, id: &str) -> Self {
        Self(sandboxes.join(id))
    }

    pub(crate) fn write(&self, state: &State) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        replace(&self.0, &serde_json::to_vec(state)?)
    }

    /// What was written last; `None` when nothing readable was.
    pub(crate) fn read(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.0.join("state.json")).ok()?).ok()
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The socket on which execd will accept.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        let (path, _dir) = self.socket()?;
        UnixListener::bind(path)
    }

    pub(crate) async fn connect(&self) -> io::Result<UnixStream> {
        let (path, _dir) = self.socket()?;
        UnixStream::connect(path).await
    }

    /// A name of the socket that is short enough, and what must stay open while it is used.
    fn socket(&self) -> io::Result<(PathBuf, Option<fs::File>)> {
        let path = self.0.join("execd");
        if path.as_os_str().len() <= SOCKET_PATH {
            return Ok((path, None));
        }
        let dir = fs::File::open(&self.0)?;
        Ok((format!("/proc/self/fd/{}/execd", dir.as_raw_fd()).into(), Some(dir)))
    }

    /// The ids of all directories that are there.
    pub(crate) fn all(sandboxes: &Path) -> io::Result<BTreeSet<String>> {
        Ok(fs::read_dir(sandboxes)?.flatten().filter_map(|it| it.file_name().into_string().ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let me = Process::look(std::process::id() as i32).unwrap();
        assert!(me.open().is_some());
        assert!(Process { started: me.started + 1, ..me }.open().is_none(), "the same number, another process");
    }

    #[test]
    fn a_directory_may_be_deeper_than_a_socket_address_is_long() {
        let temp = tempfile::tempdir().unwrap();
        let deep = (0..8).fold(temp.path().to_owned(), |path, _| path.join("twenty-characters-ok"));
        fs::create_dir_all(&deep).unwrap();
        let dir = Dir::of(&deep, "it");
        fs::create_dir(deep.join("it")).unwrap();
        let listener = dir.listen().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async { dir.connect().await.unwrap() });
        listener.accept().unwrap();
    }
}
