//! The node's side of the launcher.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::sys;

use super::{Answer, Ask, Attach, Disk, Failure, Found, Setup, Start, Status, Tell, Trees, message};

/// Longer than any start, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot start the launcher")]
    Start(#[source] io::Error),
    #[error("the launcher is gone")]
    Gone,
    #[error("the launcher did not answer in time")]
    Slow,
    #[error("cannot talk to the launcher")]
    Talk(#[source] io::Error),
    #[error("the launcher answers rubbish")]
    Answer(#[source] io::Error),
    #[error("{0}")]
    Failed(Failure),
    #[error("cannot map a range of ids ({0}): is there a line for this user in /etc/subuid and /etc/subgid?")]
    Map(String),
}

/// A running launcher. Ends when this is dropped.
pub(crate) struct Handle {
    shared: Arc<Shared>,
    pub found: Found,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    exits: Mutex<HashMap<i32, oneshot::Sender<Status>>>,
    gone: AtomicBool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Both sides read the end: the launcher goes, and who listens to it returns.
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// A process that exists and waits for [`Made::go`].
pub(crate) struct Made {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Resolves when it has ended and the launcher said how; an error when the launcher has gone.
    pub exit: oneshot::Receiver<Status>,
    answer: AsyncFd<OwnedFd>,
}

/// Ids to map into a launcher's user namespace by `newuidmap` and `newgidmap`: lines of inside, outside, count.
pub(crate) struct Ranges {
    pub uids: Vec<[u32; 3]>,
    pub gids: Vec<[u32; 3]>,
}

impl Handle {
    /// Starts `program` as a launcher and waits until it is ready. The second value must be driven: it tells of exits, and
    /// returns when the launcher is gone.
    pub(crate) async fn open(
        program: &Path,
        setup: &Setup,
        ranges: Option<Ranges>,
    ) -> Result<(Self, impl Future<Output = ()> + Send + use<>), Error> {
        let (ours, theirs) = message::pair().map_err(Error::Start)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| Error::Start(error.into()))?;
        let mut command = std::process::Command::new(program);
        command
            .arg0(super::NAME)
            .arg(serde_json::to_string(setup).map_err(|error| Error::Start(error.into()))?)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's ^C is for the node, which ends sandboxes in order.
            .process_group(0);
        let child = Command::from(command).spawn().map_err(Error::Start)?;
        let socket = sys::watch(ours).map_err(Error::Start)?;
        let found = tokio::time::timeout(DEADLINE, ready(&socket, &child, ranges)).await.map_err(|_| Error::Slow)??;
        let shared = Arc::new(Shared { socket, exits: Mutex::default(), gone: AtomicBool::new(false) });
        let reader = shared.clone();
        let listen = async move {
            let mut child = child;
            listen(&reader).await;
            let _ = child.wait().await;
        };
        Ok((Self { shared, found }, listen))
    }

    /// Whether it still answers, as far as is known.
    pub(crate) fn lives(&self) -> bool {
        !self.shared.gone.load(Ordering::Acquire)
    }

    /// Makes a process of its own namespaces that waits to become the launcher's program. `inherits`: what
    /// [`Start::inherits`] numbers.
    pub(crate) async fn start(&self, start: Start, inherits: &[BorrowedFd<'_>]) -> Result<Made, Error> {
        let answer = self.ask(&Ask::Start(Box::new(start)), inherits).await?;
        match deadline(receive::<Answer>(&answer)).await? {
            Some((Answer::Made { pid }, mut fds)) => {
                let pidfd = fds.pop().ok_or_else(|| Error::Answer(io::ErrorKind::InvalidData.into()))?;
                let (said, exit) = oneshot::channel();
                self.shared.exits.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, said);
                Ok(Made { pid, pidfd, exit, answer })
            }
            Some((Answer::Failed(failure), _)) => Err(Error::Failed(failure)),
            Some((Answer::Done, _)) | None => Err(self.gone()),
        }
    }

    pub(crate) async fn attach(&self, attach: Attach, pidfd: BorrowedFd<'_>) -> Result<(), Error> {
        let answer = self.ask(&Ask::Attach(attach), &[pidfd]).await?;
        match deadline(receive::<Answer>(&answer)).await? {
            Some((Answer::Done, _)) => Ok(()),
            Some((Answer::Failed(failure), _)) => Err(Error::Failed(failure)),
            Some((Answer::Made { .. }, _)) | None => Err(self.gone()),
        }
    }

    /// Mounts for a pod, in the order of the paths.
    pub(crate) async fn trees(&self, trees: Trees) -> Result<Vec<OwnedFd>, Error> {
        let answer = self.ask(&Ask::Trees(trees), &[]).await?;
        match deadline(receive::<Answer>(&answer)).await? {
            Some((Answer::Done, fds)) => Ok(fds),
            Some((Answer::Failed(failure), _)) => Err(Error::Failed(failure)),
            Some((Answer::Made { .. }, _)) | None => Err(self.gone()),
        }
    }

    /// A mount of the file system in a file.
    pub(crate) async fn disk(&self, asked: Disk) -> Result<OwnedFd, Error> {
        let answer = self.ask(&Ask::Disk(asked), &[]).await?;
        match deadline(receive::<Answer>(&answer)).await? {
            Some((Answer::Done, mut fds)) => fds.pop().ok_or_else(|| Error::Answer(io::ErrorKind::InvalidData.into())),
            Some((Answer::Failed(failure), _)) => Err(Error::Failed(failure)),
            Some((Answer::Made { .. }, _)) | None => Err(self.gone()),
        }
    }

    /// Makes the launcher answer for a sandbox's end should this node die.
    pub(crate) async fn adopt(&self, pidfd: BorrowedFd<'_>, cgroups: Vec<std::path::PathBuf>) -> Result<(), Error> {
        self.ask(&Ask::Adopt { cgroups }, &[pidfd]).await.map(drop)
    }

    /// Lets go of what is mounted for a sandbox that has ended; does not wait until the disk has everything.
    pub(crate) async fn release(&self, id: &str) -> Result<(), Error> {
        self.ask(&Ask::Release { id: id.to_owned() }, &[]).await.map(drop)
    }

    /// Remembers that it does not answer, before whoever listens to it has noticed.
    fn gone(&self) -> Error {
        self.shared.gone.store(true, Ordering::Release);
        Error::Gone
    }

    async fn ask(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<AsyncFd<OwnedFd>, Error> {
        let (ours, theirs) = message::pair().map_err(Error::Talk)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| Error::Talk(error.into()))?;
        let fds: Vec<_> = [theirs.as_fd()].into_iter().chain(fds.iter().copied()).collect();
        if let Err(error) = deadline(send(&self.shared.socket, ask, &fds)).await {
            return Err(if matches!(error, Error::Gone) { self.gone() } else { error });
        }
        sys::watch(ours).map_err(Error::Talk)
    }
}

impl Made {
    /// Lets it execute its program; returns when it has.
    pub(crate) async fn go(&mut self) -> Result<(), Error> {
        // One byte; a socket that takes messages takes it at once.
        rustix::io::write(self.answer.get_ref(), b"g").map_err(|error| Error::Talk(error.into()))?;
        match deadline(receive::<Answer>(&self.answer)).await? {
            // Exec has closed the other end.
            None => Ok(()),
            Some((Answer::Failed(failure), _)) => Err(Error::Failed(failure)),
            Some(_) => Err(Error::Answer(io::ErrorKind::InvalidData.into())),
        }
    }
}

async fn ready(socket: &AsyncFd<OwnedFd>, child: &Child, ranges: Option<Ranges>) -> Result<Found, Error> {
    loop {
        match receive::<Tell>(socket).await.map_err(talk)? {
            Some((Tell::Ready(found), _)) => return Ok(found),
            Some((Tell::Failed(failure), _)) => return Err(Error::Failed(failure)),
            Some((Tell::MapMe, _)) => {
                let pid = child.id().ok_or(Error::Gone)?.to_string();
                let ranges = ranges.as_ref().ok_or_else(|| Error::Map("none was given".into()))?;
                for (program, lines) in [("newuidmap", &ranges.uids), ("newgidmap", &ranges.gids)] {
                    let args = lines.iter().flatten().map(u32::to_string);
                    let done = Command::new(program).arg(&pid).args(args).stdin(Stdio::null()).output().await;
                    match done {
                        Ok(done) if done.status.success() => {}
                        Ok(done) => return Err(Error::Map(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
                        Err(error) => return Err(Error::Map(format!("{program}: {error}"))),
                    }
                }
                send(socket, &(), &[]).await.map_err(talk)?;
            }
            Some((Tell::Exited { .. }, _)) => {}
            None => return Err(Error::Gone),
        }
    }
}

async fn listen(shared: &Shared) {
    let exits = || shared.exits.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok(Some((told, _))) = receive::<Tell>(&shared.socket).await {
        if let Tell::Exited { pid, status } = told
            && let Some(waiting) = exits().remove(&pid)
        {
            let _ = waiting.send(status);
        }
    }
    shared.gone.store(true, Ordering::Release);
    // Who still waits learns that nobody will say.
    exits().clear();
}

/// What the system says, such as that too many descriptors are on their way, is no word of the launcher's.
fn talk(error: io::Error) -> Error {
    if error.raw_os_error().is_some() { Error::Talk(error) } else { Error::Answer(error) }
}

pub(crate) async fn deadline<T>(doing: impl Future<Output = io::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(DEADLINE, doing).await {
        Err(_) => Err(Error::Slow),
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(Error::Gone)
        }
        Ok(Err(error)) => Err(talk(error)),
    }
}

pub(crate) async fn receive<T: DeserializeOwned>(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|it| message::receive(it.as_fd())) {
            // The other end was closed with something unread: as good as closed.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(done) => return done,
            Err(_not_yet) => {}
        }
    }
}

pub(crate) async fn send(
    socket: &AsyncFd<OwnedFd>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        match ready.try_io(|it| message::send(it.as_fd(), message, fds)) {
            Ok(done) => return done,
            Err(_not_yet) => {}
        }
    }
}
