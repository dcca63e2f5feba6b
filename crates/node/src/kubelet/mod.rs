//! The kubelet's HTTP API: logs, exec, attach, forwarded ports and usage of the pods of this machine. Every bound sandbox
//! is a Pod too, with one container.
//!
//! Paths, parameters, statuses and words are those of the kubelet of Kubernetes 1.34 (pkg/kubelet/server,
//! pkg/kubelet/kubelet_pods.go). Who may ask is settled before: whoever reaches a node may do everything.

mod channels;
mod door;
mod exec;
mod forward;
mod framed;
mod logs;
mod process;
mod running;
mod spdy;
mod spec;
mod stats;
#[cfg(test)]
mod tests;
mod websocket;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use kit::{Clock, Tasks};
use serde_json::{Value, json};
use wire::node::Phase;

use crate::Error;
use crate::engine::{Engine, Sandbox};
use crate::proxy::{self, Body, full};
pub(crate) use {door::Pods, running::Running};

/// What all paths of this API begin with.
pub(crate) const PREFIX: &str = "/kubelet/";
const LOGS: &str = "/kubelet/containerLogs/";
/// The one container of a sandbox's Pod.
const CONTAINER: &str = "sandbox";
/// How long execd may take to begin its answer.
const BEGIN: Duration = Duration::from_secs(10);
/// What execd may say when it refuses.
const SAID: usize = 64 << 10;

/// Why there is no answer: a status, and words for whoever asked.
struct Refused(StatusCode, String);

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, kit::chain(&error))
    }
}

/// What serves it.
pub(crate) struct Kubelet {
    clock: Clock,
    tasks: Tasks,
    /// The sandboxes of this machine, if it has some.
    engine: Option<Arc<Engine>>,
    pods: OnceLock<Arc<dyn Pods>>,
    samples: stats::Samples,
}

/// A pod that somebody names.
#[derive(Clone, Copy, Debug)]
struct Target<'a> {
    namespace: &'a str,
    name: &'a str,
    uid: Option<&'a str>,
}

/// What is seen as a Pod.
enum Found<'a> {
    Sandbox(&'a Arc<Engine>, Arc<Sandbox>),
    Pod(&'a Arc<dyn Pods>, Arc<Pod>),
}

impl Kubelet {
    pub(crate) fn new(clock: Clock, tasks: Tasks, engine: Option<Arc<Engine>>) -> Self {
        Self { clock, tasks, engine, pods: OnceLock::new(), samples: stats::Samples::default() }
    }

    /// From now on these are served. The first that are given stay.
    pub(crate) fn serve(&self, pods: Arc<dyn Pods>) {
        let _ = self.pods.set(pods);
    }

    pub(crate) async fn answer(&self, request: Request<()>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match self.route(request).await {
            Ok(response) => response,
            Err(refused) => refused.answer(path.starts_with(LOGS)),
        }
    }

    async fn route(&self, request: Request<()>) -> Result<Response<Body>, Refused> {
        let path = request.uri().path().to_owned();
        let segments: Vec<&str> =
            path.strip_prefix(PREFIX).unwrap_or_default().trim_end_matches('/').split('/').collect();
        let reads = request.method() == Method::GET;
        let upgrades = reads || request.method() == Method::POST;
        let target = |namespace, name, uid| Target { namespace, name, uid };
        match segments.as_slice() {
            ["containerLogs", namespace, pod, container] if reads => {
                let query = request.uri().query().unwrap_or_default();
                let log = logs::answer(self, target(namespace, pod, None), container, query).await?;
                if framed::is_asked(request.headers()) { framed::answer(self, request, log) } else { Ok(log) }
            }
            [part @ ("exec" | "attach"), namespace, pod, uid @ .., container] if upgrades && uid.len() < 2 => {
                let to = if *part == "exec" { exec::To::Command } else { exec::To::Container };
                exec::answer(self, target(namespace, pod, uid.first().copied()), container, to, request).await
            }
            ["portForward", namespace, pod, uid @ ..] if upgrades && uid.len() < 2 => {
                forward::answer(self, target(namespace, pod, uid.first().copied()), request).await
            }
            ["stats", "summary"] if upgrades => Ok(json(&self.summary())),
            ["metrics", "resource"] if reads => Ok(text("text/plain; version=0.0.4; charset=utf-8", self.resources())),
            ["pods"] if reads => Ok(json(&self.list())),
            ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] if reads => {
                Ok(text("text/plain; charset=utf-8", "ok"))
            }
            _ => Err(Refused(StatusCode::NOT_FOUND, format!("there is no {path}"))),
        }
    }

    fn find(&self, target: Target<'_>) -> Option<Found<'_>> {
        let Target { namespace, name, uid } = target;
        if let Some(engine) = &self.engine {
            let labels = [(api::labels::POD_NAMESPACE, namespace), (api::labels::POD, name)];
            if let Some(sandbox) = engine.bound_with(&labels) {
                return Some(Found::Sandbox(engine, sandbox));
            }
        }
        let pods = self.pods.get()?;
        let pod = pods.find(namespace, name)?;
        (uid.is_none() || pod.metadata.uid.as_deref() == uid).then_some(Found::Pod(pods, pod))
    }

    /// `PodList`, of those that this node runs.
    fn list(&self) -> Value {
        let all = self.pods.get().map(|it| it.list()).unwrap_or_default();
        let items: Vec<&Pod> = all.iter().map(Arc::as_ref).collect();
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    /// Talks to a client until one of both ends.
    fn session(&self, name: &'static str, talk: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.tasks.shutdown().clone();
        self.tasks.tenant(name, async move {
            tokio::select! {
                () = talk => {}
                () = shutdown.begun() => {}
            }
        });
    }
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    text("application/json", serde_json::to_vec(value).unwrap_or_default())
}

fn text(kind: &'static str, said: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(said));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// As what streams to containers is refused.
fn plain(code: StatusCode, why: String) -> Response<Body> {
    let mut response = text("text/plain; charset=utf-8", why);
    *response.status_mut() = code;
    response
}

impl Refused {
    /// In plain words, as the kubelet has it, or as a `metav1.Status`: who asks for an upgrade reads words with a colon in
    /// them as a YAML of one.
    fn answer(self, plain: bool) -> Response<Body> {
        let Self(code, why) = self;
        let reason = match code {
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
            _ => "",
        };
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": why, "reason": reason, "code": code.as_u16(),
        });
        let (kind, said) = match plain {
            true => ("text/plain; charset=utf-8", why),
            false => ("application/json", status.to_string()),
        };
        let mut response = text(kind, said);
        *response.status_mut() = code;
        response
    }
}

fn without(what: &str) -> Refused {
    Refused(StatusCode::NOT_IMPLEMENTED, format!("a sandbox cannot {what}"))
}

fn is_running(sandbox: &Sandbox) -> Result<(), Refused> {
    let phase = sandbox.live().phase;
    if phase == Phase::Running {
        return Ok(());
    }
    let why = format!("container {CONTAINER:?} is not running: the sandbox {} is {phase:?}", sandbox.id);
    Err(Refused(StatusCode::BAD_REQUEST, why))
}

/// Asks the sandbox's execd something of our own; `headers` are added.
async fn ask(
    engine: &Engine,
    sandbox: &Sandbox,
    path: &str,
    headers: &[(header::HeaderName, &'static str)],
) -> Result<Response<Incoming>, Refused> {
    let mut request = proxy::request(sandbox, Method::GET, path, full(""))?;
    for (name, value) in headers {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let asked = async {
        let response = proxy::send(sandbox, &engine.tasks, request).await?;
        if matches!(response.status(), StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS) {
            return Ok(response);
        }
        let said = Limited::new(response.into_body(), SAID).collect().await;
        let said = said.map_err(Error::execd("broke off"))?.to_bytes();
        let why = match serde_json::from_slice::<wire::execd::Problem>(&said) {
            Ok(problem) => problem.message,
            Err(_) => String::from_utf8_lossy(&said).into_owned(),
        };
        Err(Refused(StatusCode::INTERNAL_SERVER_ERROR, format!("the sandbox refuses: {why}")))
    };
    tokio::time::timeout(BEGIN, asked).await.map_err(Error::execd("does not answer"))?
}
