//! `portForward`: connections to a pod's ports, many at once over one connection, as streams of SPDY. kubectl puts that
//! into the messages of a WebSocket since 1.31; other clients have two channels of a WebSocket for each port. An API server
//! that passes a request on has one connection for one port, bare.

mod bare;
mod ports;
mod session;

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::channels::Carrier;
use super::exec::{UPGRADE, switch, upgrade};
use super::{Found, Kubelet, Refused, Target, plain, without};
use crate::proxy::Body;

/// What is spoken over SPDY.
const PROTOCOL: &str = "portforward.k8s.io";
/// A WebSocket whose messages are SPDY.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// A WebSocket with channels.
const CHANNELS: &str = "v4.channel.k8s.io";

pub(super) async fn answer(
    kubelet: &Kubelet,
    target: Target<'_>,
    mut request: Request<()>,
) -> Result<Response<Body>, Refused> {
    let (pods, pod) = match kubelet.find(target) {
        Some(Found::Pod(pods, pod)) => (Arc::clone(pods), pod),
        Some(Found::Sandbox(..)) => return Err(without("port-forward")),
        None => return Err(Refused(StatusCode::NOT_FOUND, "pod does not exist".to_owned())),
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let state = pods.state(&uid).filter(|it| it.alive);
    if let Some(state) = state.as_ref().filter(|it| it.frozen) {
        return Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, state.config.frozen()));
    }
    if state.is_none() {
        let full_name = format!("{}_{}", target.name, target.namespace);
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, format!("pod not found ({full_name:?})")));
    }
    if bare::is_asked(request.headers()) {
        return bare::answer(kubelet, session::To { pods, name: target.name.to_owned(), uid }, request).await;
    }
    let (carrier, protocol, switched) = upgrade(request.headers(), &[PROTOCOL], &[TUNNEL, CHANNELS])?;
    let named =
        if protocol == CHANNELS { ports::ports(request.uri().query().unwrap_or_default())? } else { Vec::new() };
    let theirs = hyper::upgrade::on(&mut request);
    let name = target.name.to_owned();
    kubelet.session("port-forward", async move {
        if let Ok(Ok(theirs)) = tokio::time::timeout(UPGRADE, theirs).await {
            let to = session::To { pods, name, uid };
            let theirs = TokioIo::new(theirs);
            if protocol == CHANNELS {
                Box::pin(ports::serve(theirs, &named, to)).await;
            } else {
                Box::pin(session::serve(theirs, carrier == Carrier::WebSocket, to)).await;
            }
        }
    });
    Ok(switch(switched))
}
