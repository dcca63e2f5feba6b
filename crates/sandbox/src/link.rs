//! The way to the node: HTTP/1.1 over an in-memory stream or a Unix socket, connections kept for the next call.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kit::Tasks;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::UnixStream;
use wire::node::{Code, GENERATION, GENERATION_HEADER, Problem};

use crate::Error;

/// A body on its way to the node.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

const CONNECT: Duration = Duration::from_secs(5);
/// More idle connections than this are closed.
const IDLE: usize = 32;
/// Most bytes of an answer that is read whole: a listing of 20,000 files fits.
const ANSWER: usize = 32 << 20;

/// Where a node is.
#[derive(Clone)]
pub struct Node(Place);

#[derive(Clone)]
enum Place {
    Within(Arc<dyn Fn() -> DuplexStream + Send + Sync>),
    At(PathBuf),
}

impl Node {
    /// In this process; `connect` makes a connection to it.
    pub fn within(connect: impl Fn() -> DuplexStream + Send + Sync + 'static) -> Self {
        Self(Place::Within(Arc::new(connect)))
    }

    /// Behind a Unix socket.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self(Place::At(socket.into()))
    }
}

pub(crate) struct Link {
    node: Node,
    tasks: Tasks,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl Link {
    pub(crate) fn new(node: Node, tasks: Tasks) -> Self {
        Self { node, tasks, idle: Mutex::default() }
    }

    /// One small call: JSON there and back, within `limit`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
        limit: Duration,
    ) -> Result<T, Error> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(Error::unreachable(doing))?,
            None => Vec::new(),
        };
        let asked = async {
            let response = self.send(doing, method, path, "application/json", full(body)).await?;
            answer(doing, accepted(doing, response).await?).await
        };
        tokio::time::timeout(limit, asked).await.map_err(Error::unreachable(doing))?
    }

    /// Sends a request and returns the answer's head, whatever its status. Dropping what comes back breaks the call off.
    pub(crate) async fn send(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
        kind: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "node")
            .header(header::CONTENT_TYPE, kind)
            .header(GENERATION_HEADER, GENERATION)
            .body(body)
            .map_err(Error::unreachable(doing))?;
        if let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.put(sender);
                    return Ok(response);
                }
                // Closed while it was idle, and nothing was sent: the request is still whole.
                Err(mut error) => match error.take_message() {
                    Some(whole) => request = whole,
                    None => return Err(Error::unreachable(doing)(error.into_error())),
                },
            }
        }
        let mut sender = self.connect().await.map_err(Error::unreachable(doing))?;
        let response = sender.send_request(request).await.map_err(Error::unreachable(doing))?;
        self.put(sender);
        Ok(response)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, crate::error::Source> {
        let stream = match &self.node.0 {
            Place::Within(connect) => Stream::Within(connect()),
            Place::At(path) => Stream::At(tokio::time::timeout(CONNECT, UnixStream::connect(path)).await??),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.tenant("node client", async move {
            // Its end shows in what was asked over it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|it| !it.is_closed());
        let at = idle.iter().position(SendRequest::is_ready)?;
        Some(idle.swap_remove(at))
    }

    /// It may still be busy with an answer's body: then it is passed over until it is ready.
    fn put(&self, it: SendRequest<Body>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !it.is_closed() {
            idle.push(it);
        }
    }
}

pub(crate) fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed_unsync()
}

/// The answer, if it is a success; else what the node, or the sandbox behind it, says.
pub(crate) async fn accepted(doing: &'static str, response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let said = Limited::new(response.into_body(), wire::node::BODY_LIMIT).collect().await;
    let said = said.map_err(Error::unreachable(doing))?.to_bytes();
    if let Ok(Problem { code, message }) = serde_json::from_slice(&said) {
        return Err(match code {
            Code::Gone | Code::Conflict => Error::Ended { why: message, begun: false },
            _ => Error::Node { doing, code, said: message },
        });
    }
    match serde_json::from_slice(&said) {
        Ok(wire::execd::Problem { code, message }) => Err(Error::Refused { code, said: message }),
        Err(_) => Err(Error::Nonsense(format!("an error without a reason, status {status}"))),
    }
}

/// A whole body as JSON.
pub(crate) async fn answer<T: DeserializeOwned>(doing: &'static str, response: Response<Incoming>) -> Result<T, Error> {
    let body = Limited::new(response.into_body(), ANSWER).collect().await.map_err(Error::unreachable(doing))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Error::Nonsense(error.to_string()))
}

enum Stream {
    Within(DuplexStream),
    At(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Within(it) => Pin::new(it).poll_read(cx, buf),
            Self::At(it) => Pin::new(it).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Within(it) => Pin::new(it).poll_write(cx, buf),
            Self::At(it) => Pin::new(it).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Within(it) => Pin::new(it).poll_flush(cx),
            Self::At(it) => Pin::new(it).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Within(it) => Pin::new(it).poll_shutdown(cx),
            Self::At(it) => Pin::new(it).poll_shutdown(cx),
        }
    }
}
