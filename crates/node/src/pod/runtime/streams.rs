//! The ends of a process's streams that the node holds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys;

/// One end, shared by whoever has to do with it.
pub(super) type End = Arc<AsyncFd<OwnedFd>>;

/// To write to a process. Dropped or shut down, its other side reads the end, if it was the only one.
pub(crate) struct Input {
    fd: Option<End>,
    closing: Option<Box<dyn FnOnce() + Send + Sync>>,
}

/// To read what a process writes.
pub(crate) struct Output {
    fd: End,
}

/// The size of a process's terminal.
#[derive(Clone)]
pub(crate) struct Resize {
    fd: End,
}

/// Makes an end one that never blocks.
pub(super) fn end(fd: OwnedFd) -> io::Result<End> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(sys::watch(fd)?))
}

impl Input {
    pub(super) fn new(fd: End) -> Self {
        Self { fd: Some(fd), closing: None }
    }

    /// `closing` is called when it is closed.
    pub(super) fn closing(fd: End, closing: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { fd: Some(fd), closing: Some(Box::new(closing)) }
    }

    fn close(&mut self) {
        self.fd = None;
        if let Some(closing) = self.closing.take() {
            closing();
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.close();
    }
}

impl Output {
    pub(super) fn new(fd: End) -> Self {
        Self { fd }
    }
}

impl Resize {
    pub(super) fn new(fd: End) -> Self {
        Self { fd }
    }

    pub(crate) fn to(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.fd.get_ref(), size)?)
    }
}

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let read = guard.try_io(|it| {
                let count = rustix::io::read(it.as_fd(), buf.initialize_unfilled())?;
                buf.advance(count);
                Ok(())
            });
            match read {
                // The other end of a terminal was closed by its last process.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(done) => return Poll::Ready(done),
                Err(_not_yet) => {}
            }
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(fd) = &self.fd else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        loop {
            let mut guard = ready!(fd.poll_write_ready(cx))?;
            match guard.try_io(|it| Ok(rustix::io::write(it.as_fd(), bytes)?)) {
                Ok(done) => return Poll::Ready(done),
                Err(_not_yet) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
