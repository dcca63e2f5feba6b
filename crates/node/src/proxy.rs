//! The way to a sandbox's execd: HTTP/1.1 over the Unix socket that it inherited, connections kept for the next call.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kit::Tasks;

use crate::Error;
use crate::engine::Sandbox;
use crate::sent::Sent;

/// What any body can fail with.
pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way, whoever made it.
pub(crate) type Body = UnsyncBoxBody<Bytes, Fault>;

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than execd needs to answer a call of ours.
const CALL: Duration = Duration::from_secs(10);
/// An idle connection that is older is not used again. execd closes one after 300 s, and who sends at that moment does
/// not know what became of the request.
const FRESH: Duration = Duration::from_secs(60);
/// More idle connections than this to one sandbox are closed.
const IDLE: usize = 16;
/// What execd may say to a call of ours.
const SAID: usize = 64 * 1024;

/// Idle connections to one execd, and when each was last used.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<(SendRequest<Body>, Instant)>>);

impl Pool {
    fn take(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(it, used)| !it.is_closed() && used.elapsed() < FRESH);
        let at = idle.iter().position(|(it, _)| it.is_ready())?;
        Some(idle.swap_remove(at).0)
    }

    /// It may still be busy with an answer's body: then it is passed over until it is ready.
    fn put(&self, it: SendRequest<Body>) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !it.is_closed() {
            idle.push((it, Instant::now()));
        }
    }
}

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn connect(sandbox: &Sandbox, tasks: &Tasks) -> Result<SendRequest<Body>, Error> {
    let stream = tokio::time::timeout(CONNECT, sandbox.dir.connect()).await;
    let stream = stream.map_err(Error::execd("does not accept"))?.map_err(Error::execd("is not there"))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::execd("does not accept"))?;
    tasks.tenant("execd connection", async move {
        // Its end shows in what was asked over it.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// Sends one request, over an idle connection if there is one.
pub(crate) async fn send(
    sandbox: &Sandbox,
    tasks: &Tasks,
    request: Request<Body>,
) -> Result<Response<Incoming>, Error> {
    let mut request = request;
    if let Some(mut sender) = sandbox.pool.take() {
        match sender.try_send_request(request).await {
            Ok(response) => {
                sandbox.pool.put(sender);
                return Ok(response);
            }
            // Closed while it was idle, and nothing was sent: the request is still whole.
            Err(mut error) => match error.take_message() {
                Some(whole) => request = whole,
                None => return Err(Error::execd("broke off")(error.into_error())),
            },
        }
    }
    let mut sender = connect(sandbox, tasks).await?;
    let response = sender.send_request(request).await.map_err(Error::execd("broke off"))?;
    sandbox.pool.put(sender);
    Ok(response)
}

/// Makes a caller's request one for execd: its path, our token, no header that is between the caller and us.
pub(crate) fn outgoing(sandbox: &Sandbox, request: Request<Sent>, path: &str) -> Result<Request<Body>, Error> {
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let (mut parts, body) = request.into_parts();
    parts.uri = path.parse().map_err(|error| Error::Rejected(format!("{path:?} is no path: {error}")))?;
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::AUTHORIZATION,
        header::COOKIE,
    ] {
        parts.headers.remove(name);
    }
    parts.headers.remove("keep-alive");
    if let Some(upgrade) = upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, upgrade);
    }
    admit(sandbox, &mut parts.headers)?;
    Ok(Request::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
}

/// A request of our own.
pub(crate) fn request(sandbox: &Sandbox, method: Method, path: &str, body: Body) -> Result<Request<Body>, Error> {
    let mut request =
        Request::builder().method(method).uri(path).body(body).map_err(Error::execd("cannot be asked"))?;
    admit(sandbox, request.headers_mut())?;
    Ok(request)
}

/// Adds what every request to an execd has: our token, once there is one.
fn admit(sandbox: &Sandbox, headers: &mut HeaderMap) -> Result<(), Error> {
    headers.insert(header::HOST, HeaderValue::from_static("execd"));
    headers.remove(wire::execd::TOKEN_HEADER);
    if let Some(token) = sandbox.token() {
        let mut value = HeaderValue::try_from(token).map_err(Error::execd("has a token that is none"))?;
        value.set_sensitive(true);
        headers.insert(wire::execd::TOKEN_HEADER, value);
    }
    Ok(())
}

/// A small call of our own.
async fn call(sandbox: &Sandbox, tasks: &Tasks, method: Method, path: &str, body: Vec<u8>) -> Result<(), Error> {
    let mut request = request(sandbox, method, path, full(body))?;
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let asked = async {
        let response = send(sandbox, tasks, request).await?;
        let status = response.status();
        let said = Limited::new(response.into_body(), SAID).collect().await.map_err(Error::execd("broke off"))?;
        Ok((status, said.to_bytes()))
    };
    match tokio::time::timeout(CALL, asked).await.map_err(Error::execd("does not answer"))?? {
        (StatusCode::OK | StatusCode::NO_CONTENT, _) => Ok(()),
        (status, said) => {
            let said = String::from_utf8_lossy(&said).chars().take(300).collect::<String>();
            Err(Error::execd(format!("refuses {path}"))(format!("{status}: {said}")))
        }
    }
}

/// Whether it answers.
pub(crate) async fn ping(sandbox: &Sandbox, tasks: &Tasks) -> Result<(), Error> {
    call(sandbox, tasks, Method::GET, "/ping", Vec::new()).await
}

/// Gives it token, environment and limits.
pub(crate) async fn bind(sandbox: &Sandbox, tasks: &Tasks, bind: &wire::execd::Bind) -> Result<(), Error> {
    let body = serde_json::to_vec(bind).map_err(Error::execd("cannot be told"))?;
    call(sandbox, tasks, Method::POST, wire::execd::BIND, body).await
}
