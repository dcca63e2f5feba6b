//! The node's protocol, served over whatever carries bytes both ways.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, broadcast};
use wire::node::{BODY_LIMIT, Code, Event, GENERATION, GENERATION_HEADER, Phase, Problem, Sandboxes};

use crate::engine::Engine;
use crate::proxy::{self, Body, Fault, full};
use crate::sent::Sent;
use crate::{Error, Node, kubelet};

/// Connections at once over the Unix socket.
const CONNECTIONS: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long a connection may be silent between requests, and in the middle of one's headers.
const SILENCE: Duration = Duration::from_secs(300);
/// How long what is under way may take when the node ends.
const LAST: Duration = Duration::from_secs(10);

/// Answers requests on one connection until it closes or the node ends.
pub(crate) async fn connection(node: Node, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let shutdown = node.engine.tasks.shutdown().clone();
    let service = service_fn(move |request| {
        let node = node.clone();
        async move { Ok::<_, Infallible>(answer(&node, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // A caller that breaks off is his own affair.
        _ = &mut serving => {}
        () = shutdown.begun() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(LAST, serving).await;
        }
    }
}

/// Accepts until the node ends. The socket is its owner's alone, from the start.
pub(crate) fn listen(node: &Node, at: &Path) -> Result<(), Error> {
    clear(at)?;
    let bound = || -> io::Result<UnixListener> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(at)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        UnixListener::from_std(socket.into())
    };
    let listener = bound().map_err(Error::disk(format!("listen at {}", at.display())))?;
    let (tasks, node) = (node.engine.tasks.clone(), node.clone());
    let shutdown = tasks.shutdown().clone();
    let spawn = tasks.clone();
    tasks.platform("node socket", async move {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(seat) = room.clone().acquire_owned().await else { return Ok(()) };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let node = node.clone();
                        spawn.tenant("node connection", async move {
                            connection(node, stream).await;
                            drop(seat);
                        });
                    }
                    // Out of descriptors, for one: others go on, and this passes.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = shutdown.begun() => return Ok::<_, io::Error>(()),
            }
        }
    });
    Ok(())
}

/// Removes the socket of a node that is gone, and nothing else.
fn clear(at: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::Rejected(format!("{} is there and is no socket", at.display())));
        }
        _ => {}
    }
    match std::os::unix::net::UnixStream::connect(at) {
        Ok(_) => Err(Error::InUse(at.display().to_string())),
        Err(_) => std::fs::remove_file(at).map_err(Error::disk(format!("replace {}", at.display()))),
    }
}

async fn answer(node: &Node, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let (body, rest) = Sent::new(body);
    let response = if parts.uri.path().starts_with(kubelet::PREFIX) {
        drop(body);
        node.kubelet.answer(Request::from_parts(parts, ())).await
    } else {
        let answered = route(node, Request::from_parts(parts, body)).await;
        let mut response = answered.unwrap_or_else(|error| problem(&error));
        response.headers_mut().insert(GENERATION_HEADER, HeaderValue::from(GENERATION));
        response
    };
    rest.pass_over().await;
    response
}

fn problem(error: &Error) -> Response<Body> {
    let code = error.code();
    if matches!(code, Code::Machine | Code::Execd) {
        tracing::warn!(error = kit::chain(error), "a request failed");
    }
    json(code.status(), &Problem { code, message: kit::chain(error) })
}

fn json(status: u16, value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(full(serde_json::to_vec(value).unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn route(node: &Node, request: Request<Sent>) -> Result<Response<Body>, Error> {
    if let Some(theirs) = request.headers().get(GENERATION_HEADER)
        && theirs.to_str().ok().and_then(|it| it.parse::<u32>().ok()).is_none_or(|it| it > GENERATION || it == 0)
    {
        let message = format!("this node speaks generation {GENERATION}; update it, or use an older client");
        return Ok(json(Code::Generation.status(), &Problem { code: Code::Generation, message }));
    }
    let engine = &node.engine;
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let mut parts = path.strip_prefix("/v1/").unwrap_or_default().splitn(4, '/');
    let (what, id, call, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    match (what, id, call) {
        (Some("node"), None, _) if method == Method::GET => Ok(json(200, &node.describe().await)),
        (Some("watch"), None, _) if method == Method::GET => Ok(watch(engine)),
        (Some("sandboxes"), None, _) if method == Method::GET => Ok(json(200, &Sandboxes { sandboxes: engine.list() })),
        (Some("sandboxes"), None, _) if method == Method::POST => {
            let (sandbox, new) = engine.create(read(request).await?).await?;
            Ok(json(if new { 201 } else { 200 }, &sandbox))
        }
        (Some("sandboxes"), Some(id), None) if method == Method::GET => Ok(json(200, &engine.find(id)?.view())),
        (Some("sandboxes"), Some(id), None) if method == Method::DELETE => Ok(json(200, &engine.remove(id).await?)),
        (Some("sandboxes"), Some(id), Some("bind")) if method == Method::POST => {
            let bind = read(request).await?;
            Ok(json(200, &engine.bind(id, bind).await?))
        }
        (Some("sandboxes"), Some(id), Some(call @ ("freeze" | "thaw"))) if method == Method::POST => {
            Ok(json(200, &engine.freeze(id, call == "freeze").await?))
        }
        (Some("sandboxes"), Some(id), Some("stats")) if method == Method::GET => {
            Ok(json(200, &engine.stats(id).await?))
        }
        (Some("sandboxes"), Some(id), Some("execd")) => execd(engine, id, rest.unwrap_or_default(), request).await,
        _ => Err(Error::Rejected(format!("there is no call {method} {path}"))),
    }
}

async fn read<T: DeserializeOwned>(request: Request<Sent>) -> Result<T, Error> {
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|error| Error::Rejected(format!("cannot read the body: {error}")))?.to_bytes();
    serde_json::from_slice(&body)
        .map_err(|error| Error::Rejected(format!("the body is not what this call takes: {error}")))
}

/// Passes a request to the sandbox's execd and its answer back, both as they come.
async fn execd(
    engine: &Arc<Engine>,
    id: &str,
    path: &str,
    mut request: Request<Sent>,
) -> Result<Response<Body>, Error> {
    let sandbox = engine.find(id)?;
    let phase = sandbox.live().phase;
    if phase != Phase::Running {
        return Err(Error::Conflict(format!("the sandbox {id} is {phase:?}")));
    }
    let query = request.uri().query().map(|it| format!("?{it}")).unwrap_or_default();
    let theirs = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let request = proxy::outgoing(&sandbox, request, &format!("/{path}{query}"))?;
    let mut response = proxy::send(&sandbox, &engine.tasks, request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(theirs) = theirs
    {
        let ours = hyper::upgrade::on(&mut response);
        engine.tasks.tenant("execd upgrade", async move {
            if let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) {
                let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(theirs), &mut TokioIo::new(ours)).await;
            }
        });
    }
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// First all, then every change; ends for whoever cannot keep up.
fn watch(engine: &Arc<Engine>) -> Response<Body> {
    // Subscribed before it is listed: nothing falls between.
    let changes = engine.changes.subscribe();
    let all = Event::All { sandboxes: engine.list() };
    let shutdown = engine.tasks.shutdown().clone();
    let lines = stream::unfold((Some(all), changes), move |(first, mut changes)| {
        let shutdown = shutdown.clone();
        async move {
            let event = match first {
                Some(event) => event,
                None => tokio::select! {
                    changed = changes.recv() => match changed {
                        Ok(sandbox) => Event::Changed { sandbox },
                        Err(broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed) => return None,
                    },
                    () = shutdown.begun() => return None,
                },
            };
            let mut line = serde_json::to_vec(&event).ok()?;
            line.push(b'\n');
            Some((Ok::<_, Fault>(Frame::data(Bytes::from(line))), (None, changes)))
        }
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}
