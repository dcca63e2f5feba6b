//! The node's protocol, as far as the projection speaks it.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kit::{Backoff, Tasks};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use wire::node::{BODY_LIMIT, Code, Event, GENERATION, GENERATION_HEADER, Node, Problem};

use super::Error;

/// How long a node may take to say something about itself: at the first time it tries what the machine can do.
const LOOK: Duration = Duration::from_secs(30);
/// Longer than the node waits for the kernel.
const END: Duration = Duration::from_secs(45);
/// The longest line of a watch: the first one names every sandbox.
const LINE: usize = 32 << 20;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

pub(super) struct Link {
    connect: Box<dyn Fn() -> Connecting + Send + Sync>,
    tasks: Tasks,
}

/// What is heard of the node.
#[allow(clippy::large_enum_variant, reason = "few wait at a time; nobody keeps many")]
pub(super) enum Heard {
    Said(Event),
    /// From here on nothing is known, until it names all again.
    Lost,
}

impl Link {
    pub(super) fn new<F, S>(connect: impl Fn() -> F + Send + Sync + 'static, tasks: Tasks) -> Self
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connect = move || -> Connecting {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Wire>) })
        };
        Self { connect: Box::new(connect), tasks }
    }

    /// Passes on what the node says, for ever, and whether it answers.
    pub(super) async fn follow(&self, heard: &mpsc::Sender<Heard>, answers: &watch::Sender<bool>) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
        loop {
            let ended = async {
                let mut events = std::pin::pin!(self.watch().await?);
                while let Some(event) = events.next().await {
                    backoff.reset();
                    answers.send_replace(true);
                    if heard.send(Heard::Said(event?)).await.is_err() {
                        break;
                    }
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = ended.await {
                // Whoever uses the node says it louder.
                tracing::debug!(error = kit::chain(&error), "lost sight of the node; looking again");
            }
            if answers.send_replace(false) && heard.send(Heard::Lost).await.is_err() {
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn watch(&self) -> Result<impl Stream<Item = Result<Event, Error>> + use<>, Error> {
        const DOING: &str = "follow the node";
        let (sender, response) = within(LOOK, self.send(DOING, Method::GET, "/v1/watch")).await?;
        let body = accepted(DOING, response).await?.into_body();
        // The sender is kept: without one, the connection would end.
        Ok(stream::unfold((sender, body, Vec::new()), |(sender, mut body, mut read)| async move {
            let mut seen = 0;
            loop {
                if let Some(at) = read.iter().skip(seen).position(|byte| *byte == b'\n') {
                    let rest = read.split_off(seen + at + 1);
                    return Some((
                        serde_json::from_slice(&read).map_err(Error::unreachable(DOING)),
                        (sender, body, rest),
                    ));
                }
                seen = read.len();
                if seen > LINE {
                    return None;
                }
                let frame = body.frame().await?.ok()?;
                read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
        }))
    }

    /// What the node says of itself.
    pub(super) async fn describe(&self) -> Result<Node, Error> {
        const DOING: &str = "ask the node what it is";
        within(LOOK, async {
            let (_sender, response) = self.send(DOING, Method::GET, "/v1/node").await?;
            answer(DOING, accepted(DOING, response).await?).await
        })
        .await
    }

    /// Returns when nothing of the sandbox is left, also when that was so before.
    pub(super) async fn end(&self, id: &str) -> Result<(), Error> {
        const DOING: &str = "end a sandbox whose Pod was deleted";
        within(END, async {
            let (_sender, response) = self.send(DOING, Method::DELETE, &format!("/v1/sandboxes/{id}")).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Ok(());
            }
            accepted(DOING, response).await?.into_body().collect().await.map_err(Error::unreachable(DOING))?;
            Ok(())
        })
        .await
    }

    async fn send(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), Error> {
        let stream = (self.connect)().await.map_err(Error::unreachable(doing))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Error::unreachable(doing))?;
        self.tasks.tenant("projection's connection to the node", async move {
            // Its end shows in what was asked over it.
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "node")
            .header(GENERATION_HEADER, GENERATION)
            .body(Full::default())
            .map_err(Error::unreachable(doing))?;
        let response = sender.send_request(request).await.map_err(Error::unreachable(doing))?;
        Ok((sender, response))
    }
}

async fn accepted(doing: &'static str, response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let said = match answer::<Problem>(doing, response).await {
        Ok(Problem { code: Code::Generation, message }) => format!("{message} (and this is generation {GENERATION})"),
        Ok(problem) => problem.message,
        Err(_) => status.to_string(),
    };
    Err(Error::Refused { doing, said })
}

/// A small body as JSON.
async fn answer<T: DeserializeOwned>(doing: &'static str, response: Response<Incoming>) -> Result<T, Error> {
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await.map_err(Error::unreachable(doing))?;
    serde_json::from_slice(&body.to_bytes()).map_err(Error::unreachable(doing))
}

/// Not longer than that.
pub(super) async fn within<T>(limit: Duration, doing: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, doing).await.unwrap_or(Err(Error::Late(limit.as_secs())))
}
