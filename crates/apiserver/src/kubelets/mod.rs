//! The way to the nodes: each node's kubelet serves an HTTP API, over a connection that somebody else opens.

mod pods;
mod tunnel;
pub(crate) mod usage;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kit::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::peer::{self, Counted, Stream};
pub(crate) use pods::{Asked, Part, answer, is_upgrade};
pub(crate) use tunnel::switched;

/// Connections to kubelets at once: logs that are followed, sessions, forwarded ports.
const CONNECTIONS: usize = 512;
/// How long a kubelet may take to be there.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);

/// How a node's kubelet is reached: what `kubectl logs`, `exec`, `attach` and `port-forward` need. Cheap to clone; clones
/// share one limit of 512 connections.
///
/// One HTTP/1.1 request is made over each connection, with the kubelet's own paths:
/// `GET {prefix}/containerLogs/{namespace}/{pod}/{container}` with `follow`, `previous`, `timestamps`, `sinceSeconds`,
/// `sinceTime`, `tailLines` and `limitBytes`; `GET` or `POST {prefix}/exec/{namespace}/{pod}/{container}` with `command`,
/// `input`, `output`, `error` and `tty`; `{prefix}/attach/...`; `{prefix}/portForward/{namespace}/{pod}` with `port`. The
/// latter three are upgrades: with the client's own `Upgrade` and `Sec-WebSocket-*` headers, answered by the kubelet, and
/// from its 101 on bytes go both ways unread. So is a log, for a client that asks for it over a WebSocket. `pods/proxy`
/// reaches a pod whose address is of its machine's loopback network by `POST {prefix}/portForward/{namespace}/{pod}/{uid}`
/// with one `port` and `Upgrade: tcp`: the kubelet connects to it before it answers 101, and the connection is the port's
/// from then on. What is asked of `nodes/proxy` is asked as it is, at `{prefix}{path}`; for
/// `metrics.k8s.io`, `GET {prefix}/stats/summary`.
///
/// A kubelet has 10 s to be there and 30 s to send the head of its answer, also where there is nothing to log yet. Whoever
/// is asked whether they may has been authenticated and authorized before.
#[derive(Clone)]
pub struct Kubelets {
    connect: Arc<Connect>,
    prefix: Arc<str>,
    room: Arc<Semaphore>,
}

type Connect = dyn Fn(&str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> + Send + Sync;

impl std::fmt::Debug for Kubelets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelets").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Why a kubelet did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error("too many connections to nodes")]
    Busy,
    #[error("dial {node}: {why}")]
    Dial { node: String, why: String },
    #[error("{node} did not answer in {} s", ANSWER.as_secs())]
    Silent { node: String },
    #[error("{node}: {why}")]
    Broken { node: String, why: String },
    /// In its own words.
    #[error("{0}")]
    Refused(String),
}

/// A TCP port inside a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: String,
    pub(crate) port: u16,
}

impl Kubelets {
    /// `connect` opens a connection to the kubelet of a node, which it is given the name of.
    pub fn new<F, S>(connect: impl Fn(&str) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connect = move |node: &str| -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
            let connecting = connect(node);
            Box::pin(async move { connecting.await.map(|stream| Box::new(stream) as Box<dyn Stream>) })
        };
        Self { connect: Arc::new(connect), prefix: "".into(), room: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Kubelets serve their API below this path (`/kubelet`); nothing unless said.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.trim_end_matches('/').into();
        self
    }

    /// Sends a request to the kubelet of a node, over a connection of its own, and waits for the head of its answer. The
    /// connection lasts as long as the answer's body, or what it was upgraded to.
    pub(crate) async fn ask<B>(
        &self,
        tasks: &Tasks,
        node: &str,
        request: Request<B>,
    ) -> Result<Response<Incoming>, Unreached>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let permit = self.room.clone().try_acquire_owned().map_err(|_| Unreached::Busy)?;
        let stream = self.open(node).await?;
        answered(node, peer::ask(tasks, Counted { stream, _permit: permit }, request)).await
    }

    /// Connects to a port inside a pod. It takes none of the kubelets' connections: whoever asks counts for himself.
    pub(crate) async fn dial(&self, tasks: &Tasks, to: &Inside) -> Result<Box<dyn Stream>, Unreached> {
        let Inside { node, namespace, pod, uid, port } = to;
        let broken = |why: String| Unreached::Broken { node: node.clone(), why };
        let stream = self.open(node).await?;
        let request = Request::post(self.path(&format!("/portForward/{namespace}/{pod}/{uid}?port={port}")))
            .header(HOST, pods::host(node))
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp")
            .body(Empty::<Bytes>::new());
        let request = request.map_err(|error| broken(error.to_string()))?;
        let response = answered(node, peer::ask(tasks, stream, request)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Unreached::Refused(pods::said(response).await));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| broken(kit::chain(&error)))?;
        Ok(Box::new(TokioIo::new(upgraded)))
    }

    async fn open(&self, node: &str) -> Result<Box<dyn Stream>, Unreached> {
        let dial = |why: String| Unreached::Dial { node: node.to_owned(), why };
        let stream = tokio::time::timeout(CONNECT, (self.connect)(node)).await;
        stream.map_err(|_| dial("i/o timeout".to_owned()))?.map_err(|error| dial(error.to_string()))
    }

    /// The path of the kubelet's own, below what its API has in front of it.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

/// The head of an answer, if it begins in time.
async fn answered(
    node: &str,
    asked: impl Future<Output = Result<Response<Incoming>, hyper::Error>>,
) -> Result<Response<Incoming>, Unreached> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answered) => answered.map_err(|error| Unreached::Broken { node: node.to_owned(), why: kit::chain(&error) }),
        Err(_) => Err(Unreached::Silent { node: node.to_owned() }),
    }
}
