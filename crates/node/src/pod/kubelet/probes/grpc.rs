//! `grpc.health.v1.Health/Check`: one call, by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::GRPCAction;
use tokio::sync::mpsc;

use super::{Found, MOST, Target, place};
use crate::pod::kubelet::world::World;

/// gRPC's statuses that matter here.
const OK: u32 = 0;
const UNIMPLEMENTED: u32 = 12;
/// A health check's.
const SERVING: u64 = 1;

pub(super) async fn probe<W: World>(target: &Target<'_, W>, grpc: &GRPCAction, limit: Duration, seconds: i32) -> Found {
    let port = match u16::try_from(grpc.port) {
        Ok(port) if port > 0 => port,
        _ => return Found::Unknown(format!("invalid port number: {}", grpc.port)),
    };
    let at = place(&target.address, port);
    // A client of gRPC tries to connect until its time is over; who refuses now is not asked again before the next probe.
    let refused = || {
        Found::Failed(format!(
            "timeout: failed to connect service \"{at}\" within {seconds}s: context deadline exceeded"
        ))
    };
    let Ok(Ok(wire)) = tokio::time::timeout(limit, target.dial(None, port)).await else { return refused() };
    let late = || {
        let why = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";
        Found::Failed(format!("timeout: health rpc did not complete within {seconds}s: {why}"))
    };
    match tokio::time::timeout(limit, check(wire, &at, grpc.service.as_deref().unwrap_or_default())).await {
        Err(_) => late(),
        Ok(Err(error)) => Found::Failed(format!("error: health rpc probe failed: {error}")),
        Ok(Ok(Said { code: OK, status: SERVING, .. })) => Found::Passed,
        Ok(Ok(Said { code: OK, status, .. })) => {
            let status = match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                _ => "SERVICE_UNKNOWN",
            };
            Found::Failed(format!("service unhealthy (responded with \"{status}\")"))
        }
        Ok(Ok(Said { code: UNIMPLEMENTED, message, .. })) => {
            let what = "this server does not implement the grpc health protocol (grpc.health.v1.Health)";
            Found::Failed(format!("error: {what}: {message}"))
        }
        Ok(Ok(Said { code, message, .. })) => {
            Found::Failed(format!("error: health rpc probe failed: rpc error: code = {} desc = {message}", name(code)))
        }
    }
}

struct Said {
    code: u32,
    message: String,
    status: u64,
}

/// The tasks of an HTTP/2 connection, run by who made it: they end with it.
#[derive(Clone)]
struct Here(mpsc::UnboundedSender<BoxFuture<'static, ()>>);

impl<F> Executor<F> for Here
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        let _ = self.0.send(Box::pin(async move { drop(task.await) }));
    }
}

async fn check<S>(wire: S, at: &str, service: &str) -> Result<Said, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (tasks, mut given) = mpsc::unbounded_channel();
    let shaken = http2::handshake(Here(tasks), TokioIo::new(wire)).await;
    let (mut sender, connection) = shaken.map_err(|error| kit::chain(&error))?;
    let request = Request::post(format!("http://{at}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.34")
        .body(Full::new(message(service)))
        .map_err(|error| error.to_string())?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| kit::chain(&error))?;
        let (head, mut body) = answer.into_parts();
        let mut read = BytesMut::new();
        let mut last = head.headers;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| kit::chain(&error))?;
            match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => last.extend(frame.into_trailers().unwrap_or_default()),
            }
            if read.len() > MOST {
                return Err("the answer is too long".to_owned());
            }
        }
        said(&last, &read)
    };
    let (mut answered, mut connection) = (std::pin::pin!(answered), std::pin::pin!(connection));
    let mut running = FuturesUnordered::new();
    let mut connected = true;
    loop {
        tokio::select! {
            said = &mut answered => return said,
            _ = &mut connection, if connected => connected = false,
            Some(task) = given.recv() => running.push(task),
            Some(()) = running.next() => {}
        }
    }
}

/// A request for the health of a service, with gRPC's prefix.
fn message(service: &str) -> Bytes {
    let mut inner = BytesMut::new();
    if !service.is_empty() {
        inner.put_u8(0x0a);
        let mut left = service.len();
        while left > 0x7f {
            inner.put_u8(u8::try_from(left & 0x7f).unwrap_or(0) | 0x80);
            left >>= 7;
        }
        inner.put_u8(u8::try_from(left).unwrap_or(0));
        inner.put_slice(service.as_bytes());
    }
    let mut all = BytesMut::new();
    all.put_u8(0);
    all.put_u32(u32::try_from(inner.len()).unwrap_or(u32::MAX));
    all.unsplit(inner);
    all.freeze()
}

fn said(last: &HeaderMap, body: &[u8]) -> Result<Said, String> {
    let text = |name: &str| last.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let code = text("grpc-status").parse().map_err(|_| "the server does not speak gRPC".to_owned())?;
    // An empty message says the first of its values: UNKNOWN. Otherwise its first field is the status.
    let status = match body.get(5..) {
        Some([0x08, status, ..]) => u64::from(*status),
        _ => 0,
    };
    Ok(Said { code, message: text("grpc-message").to_owned(), status })
}

fn name(code: u32) -> &'static str {
    const ALL: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    ALL.get(code as usize).copied().unwrap_or("Unknown")
}
