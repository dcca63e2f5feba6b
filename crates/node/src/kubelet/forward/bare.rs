//! A connection that is one port's from the answer on, with nothing around it: an upgrade to `tcp`, as Docker calls it.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::super::exec::{UPGRADE, switch};
use super::super::{Kubelet, Refused, plain};
use super::ports;
use super::session::To;
use crate::proxy::Body;

const TCP: &str = "tcp";
/// How long an end may go on sending when the other has said that it is done.
const LINGER: Duration = Duration::from_secs(30);

pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).iter().any(|it| it.as_bytes().eq_ignore_ascii_case(TCP.as_bytes()))
}

/// Connects before it answers: who hears 101 has the port.
pub(super) async fn answer(kubelet: &Kubelet, to: To, mut request: Request<()>) -> Result<Response<Body>, Refused> {
    let ports = ports::ports(request.uri().query().unwrap_or_default())?;
    let [port] = *ports else {
        return Err(Refused(StatusCode::BAD_REQUEST, format!("{} ports: an upgrade to tcp has one", ports.len())));
    };
    let connection = match to.dial(port).await {
        Ok(connection) => connection,
        Err(why) => return Ok(plain(StatusCode::BAD_GATEWAY, why)),
    };
    let theirs = hyper::upgrade::on(&mut request);
    kubelet.session("port-forward", async move {
        if let Ok(Ok(theirs)) = timeout(UPGRADE, theirs).await {
            carry(TokioIo::new(theirs), connection).await;
        }
    });
    let mut answer = HeaderMap::new();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static(TCP));
    Ok(switch(answer))
}

async fn carry(client: impl AsyncRead + AsyncWrite, port: impl AsyncRead + AsyncWrite) {
    let ((from_client, to_client), (from_port, to_port)) = (tokio::io::split(client), tokio::io::split(port));
    let mut there = std::pin::pin!(copy(from_client, to_port));
    let mut back = std::pin::pin!(copy(from_port, to_client));
    let whole = tokio::select! {
        whole = &mut there => whole && timeout(LINGER, back).await.is_ok(),
        whole = &mut back => whole && timeout(LINGER, there).await.is_ok(),
    };
    tracing::debug!(whole, "a connection to a port of a pod ended");
}

/// Everything until the end, which is passed on. False when one of them broke off.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> bool {
    tokio::io::copy(&mut from, &mut to).await.is_ok() && to.shutdown().await.is_ok()
}
