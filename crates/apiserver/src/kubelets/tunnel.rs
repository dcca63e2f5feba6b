//! An upgraded connection, joined to another: bytes both ways.

use std::time::Duration;

use http::Response;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use kit::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::http::body::Body;
use crate::object::status::Problem;

/// How long an end may go on sending when the other has said that it is done.
const LINGER: Duration = Duration::from_secs(30);
/// How long the switch may take once both have agreed to it.
const SWITCH: Duration = Duration::from_secs(10);

/// What the client is told of a peer that switches (101). The two connections are one from then on; in process, where the
/// client has no connection, it is handed the peer's.
pub(crate) fn switched(
    tasks: &Tasks,
    mut response: Response<Incoming>,
    client: Option<OnUpgrade>,
) -> Result<Response<Body>, Problem> {
    let peer = response.extensions_mut().remove::<OnUpgrade>();
    let mut answer = Response::new(Body::Whole(None));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    match (client, peer) {
        (Some(client), Some(peer)) => join(tasks, client, peer),
        (None, Some(peer)) => drop(answer.extensions_mut().insert(peer)),
        (_, None) => return Err(Problem::internal("the peer's connection cannot be taken over")),
    }
    Ok(answer)
}

/// Joins the client's connection and the peer's, once both have switched, until both are done or the server ends.
fn join(tasks: &Tasks, client: OnUpgrade, kubelet: OnUpgrade) {
    let shutdown = tasks.shutdown().clone();
    tasks.tenant("kubelet tunnel", async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = carry(client, kubelet) => {}
        }
    });
}

async fn carry(client: OnUpgrade, kubelet: OnUpgrade) {
    let switched = tokio::time::timeout(SWITCH, futures::future::try_join(client, kubelet)).await;
    let (client, kubelet) = match switched {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => {
            tracing::debug!(error = kit::chain(&error), "a client left before its session began");
            return;
        }
        Err(_) => return,
    };
    let split = |upgraded: Upgraded| tokio::io::split(TokioIo::new(upgraded));
    let ((from_client, to_client), (from_kubelet, to_kubelet)) = (split(client), split(kubelet));
    let mut there = std::pin::pin!(copy(from_client, to_kubelet));
    let mut back = std::pin::pin!(copy(from_kubelet, to_client));
    let whole = tokio::select! {
        whole = &mut there => whole && tokio::time::timeout(LINGER, back).await.is_ok(),
        whole = &mut back => whole && tokio::time::timeout(LINGER, there).await.is_ok(),
    };
    tracing::debug!(whole, "a session with a node ended");
}

/// Everything until the end, which is passed on. False when one of them broke off.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> bool {
    tokio::io::copy(&mut from, &mut to).await.is_ok() && to.shutdown().await.is_ok()
}
