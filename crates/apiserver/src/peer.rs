//! Somebody whom the server asks something on a client's behalf: one HTTP/1.1 request over a connection of its own, which
//! lasts as long as the answer, or what it was upgraded to.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kit::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// What is read ahead of a slow client, over each connection, and the longest head of an answer.
const READ_AHEAD: usize = 64 << 10;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that holds its place among those that there may be.
pub(crate) struct Counted {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// Sends a request, and waits for the head of the answer. Whoever stops waiting, or reading, ends the connection.
pub(crate) async fn ask<S, B>(
    tasks: &Tasks,
    connection: S,
    request: Request<B>,
) -> Result<Response<Incoming>, hyper::Error>
where
    S: Stream + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TokioIo::new(connection);
    let (mut sender, connection) = http1::Builder::new().max_buf_size(READ_AHEAD).handshake(stream).await?;
    let shutdown = tasks.shutdown().clone();
    tasks.tenant("connection to a peer", async move {
        tokio::select! {
            () = shutdown.begun() => {}
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(error = kit::chain(&error), "a connection to a peer ended");
                }
            }
        }
    });
    sender.send_request(request).await
}

/// Connects to the first of the addresses that answers. The words are those of Go.
pub(crate) async fn dial(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut why = String::new();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => {
                let said = match error.kind() {
                    io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                    io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
                    io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
                    _ => error.to_string(),
                };
                why = format!("dial tcp {address}: {said}");
            }
        }
    }
    Err(why)
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
