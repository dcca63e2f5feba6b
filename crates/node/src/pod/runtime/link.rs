//! The node's side of a shim.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use crate::launcher::message;
use crate::launcher::shim::{News, Order, Record, Refusal, Said};
use crate::launcher::{self, deadline, receive, send};
use crate::pod::StartError;
use crate::{Error, sys};

/// A connection to a shim. The shim listens to the latest one only.
#[derive(Clone)]
pub(super) struct Link {
    socket: Arc<AsyncFd<OwnedFd>>,
}

/// A process that a shim has started.
pub(super) struct Started {
    /// Standard output and error.
    pub outputs: Vec<OwnedFd>,
    pub input: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

/// Listens where a shim is to accept.
pub(super) fn listen(at: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, at)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

impl Link {
    /// Connects; a shim that was only just made answers when it has come so far.
    pub(super) fn connect(at: &SocketAddrUnix) -> io::Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, at)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket: Arc::new(sys::watch(socket)?) })
    }

    /// What the shim says unasked; `None` when it is gone.
    pub(super) async fn news(&self) -> Option<News> {
        receive::<News>(&self.socket).await.ok().flatten().map(|(news, _)| news)
    }

    /// Orders something whose answer is awaited.
    async fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<AsyncFd<OwnedFd>, launcher::Error> {
        let (ours, theirs) = message::pair().map_err(launcher::Error::Talk)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| launcher::Error::Talk(error.into()))?;
        let fds: Vec<_> = [theirs.as_fd()].into_iter().chain(fds.iter().copied()).collect();
        deadline(send(&self.socket, order, &fds)).await?;
        sys::watch(ours).map_err(launcher::Error::Talk)
    }

    /// Orders something that is done when it is answered; what the answer brings.
    pub(super) async fn ask(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, StartError> {
        match self.answer(order, fds).await? {
            (Said::Done, fds) => Ok(fds),
            _ => Err(rubbish().into()),
        }
    }

    async fn answer(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> Result<(Said, Vec<OwnedFd>), StartError> {
        let answer = self.order(order, fds).await.map_err(machine)?;
        match deadline(receive::<Said>(&answer)).await.map_err(machine)? {
            Some((Said::Refused(refusal), _)) => Err(refused(refusal)),
            Some(answered) => Ok(answered),
            None => Err(machine(launcher::Error::Gone).into()),
        }
    }

    pub(super) async fn containers(&self) -> Result<Vec<Record>, StartError> {
        match self.answer(&Order::State, &[]).await? {
            (Said::Containers, mut fds) => {
                let file = fds.pop().ok_or_else(rubbish)?;
                Ok(message::open(file).map_err(|error| machine(launcher::Error::Answer(error)))?)
            }
            _ => Err(rubbish().into()),
        }
    }

    /// Bytes that a container has written to its root.
    pub(super) async fn usage(&self, key: &str) -> Result<u64, StartError> {
        match self.answer(&Order::Usage { key: key.to_owned() }, &[]).await? {
            (Said::Used { bytes }, _) => Ok(bytes),
            _ => Err(rubbish().into()),
        }
    }

    /// The streams of a container that runs. One with a terminal has one that is no pipe.
    pub(super) async fn streams(&self, key: &str, tty: bool) -> Result<Started, StartError> {
        match self.answer(&Order::Streams { key: key.to_owned() }, &[]).await? {
            (Said::Made { .. }, mut fds) if tty => {
                Ok(Started { outputs: Vec::new(), input: None, terminal: fds.pop() })
            }
            (Said::Made { input }, mut fds) => {
                let input = if input { fds.pop() } else { None };
                Ok(Started { outputs: fds, input, terminal: None })
            }
            _ => Err(rubbish().into()),
        }
    }

    /// Starts a process: returns when its program has been executed, or why it was not.
    pub(super) async fn start(
        &self,
        order: &Order,
        config: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Started, StartError> {
        // Its environment may hold whole ConfigMaps.
        let config = message::file(config).map_err(Error::machine("describe a process"))?;
        let fds: Vec<_> = [config.as_fd()].into_iter().chain(fds.iter().copied()).collect();
        let answer = self.order(order, &fds).await.map_err(machine)?;
        let mut started = Started { outputs: Vec::new(), input: None, terminal: None };
        let mut made = false;
        loop {
            match deadline(receive::<Said>(&answer)).await.map_err(machine)? {
                Some((Said::Made { input }, mut fds)) => {
                    made = true;
                    started.input = if input { fds.pop() } else { None };
                    started.outputs = fds;
                }
                Some((Said::Terminal, mut fds)) => started.terminal = fds.pop(),
                Some((Said::Refused(refusal), _)) => return Err(refused(refusal)),
                Some(_) => return Err(rubbish().into()),
                // Executed: that has closed the other end.
                None if made => return Ok(started),
                None => return Err(machine(launcher::Error::Gone).into()),
            }
        }
    }

    /// Orders something whose answer nobody awaits, at once.
    pub(super) fn tell(&self, order: &Order) {
        if let Ok((_, theirs)) = message::pair() {
            // A shim that takes nothing more is about to be replaced or is gone.
            let _ = message::send(self.socket.get_ref().as_fd(), order, &[theirs.as_fd()]);
        }
    }
}

fn machine(error: launcher::Error) -> Error {
    Error::machine("ask the shim of a pod")(error)
}

fn rubbish() -> Error {
    machine(launcher::Error::Answer(io::ErrorKind::InvalidData.into()))
}

fn refused(refusal: Refusal) -> StartError {
    match refusal {
        Refusal::Command(why) => StartError::Command(why),
        Refusal::Config(why) => StartError::Config(why),
        Refusal::SubPath(volume) => StartError::SubPath(volume),
        Refusal::Gone => StartError::Machine(Error::Gone("container".into())),
        Refusal::Machine(failure) => StartError::Machine(Error::machine("start a container")(failure)),
    }
}
