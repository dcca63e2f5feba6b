//! Connections: how many, and for how long one may take nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kit::{Backoff, Shutdown, Tasks};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;

/// Further connections wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// A request's head, or the next request of a connection, is awaited for so long.
const HEAD: Duration = Duration::from_secs(30);
/// A client that takes no byte for so long is cut off.
const STUCK: Duration = Duration::from_secs(30);
/// What is under way at shutdown has so long to end.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) fn start(listener: TcpListener, router: Router, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let (places, connections) = (Arc::new(Semaphore::new(CONNECTIONS)), tasks.clone());
    tasks.platform("gateway", async move {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((listener.accept().await, place))
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted?,
                () = shutdown.begun() => return Ok::<_, io::Error>(()),
            };
            match accepted {
                Ok((stream, _)) => {
                    backoff.reset();
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    connections.tenant("gateway connection", async move {
                        serve(stream, router, shutdown).await;
                        drop(place);
                    });
                }
                // No descriptors left, for instance: connections that end will free some.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    });
}

async fn serve(stream: TcpStream, router: Router, shutdown: Shutdown) {
    // Events are small and each counts at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Impatient { stream, stuck: None });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = shutdown.begun() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(FAREWELL, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(error = kit::chain(&error), "a connection ended in its middle");
    }
}

/// A stream whose writes fail when the other side takes nothing for [`STUCK`].
struct Impatient {
    stream: TcpStream,
    stuck: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Impatient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, bytes) {
            self.stuck = None;
            return Poll::Ready(written);
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(STUCK)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
