//! The kubelet's HTTP API, as far as `kubectl logs` and `kubectl exec` need it: every bound sandbox is a Pod with one
//! container.
//!
//! Paths, parameters, statuses and words are those of the kubelet of Kubernetes 1.34 (pkg/kubelet/server,
//! pkg/kubelet/kubelet_pods.go). Who may ask is settled before: whoever reaches a node may do everything.

mod channels;
mod exec;
mod logs;
mod spdy;
mod websocket;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::json;
use wire::node::Phase;

use crate::Error;
use crate::engine::{Engine, Sandbox};
use crate::proxy::{self, Body, full};

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

pub(crate) async fn answer(engine: &Arc<Engine>, request: Request<()>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match route(engine, request).await {
        Ok(response) => response,
        Err(refused) => refused.answer(path.starts_with(LOGS)),
    }
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
        let mut response = Response::new(full(said));
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

async fn route(engine: &Arc<Engine>, request: Request<()>) -> Result<Response<Body>, Refused> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.strip_prefix(PREFIX).unwrap_or_default().split('/').collect();
    let reads = request.method() == Method::GET;
    match segments.as_slice() {
        ["containerLogs", namespace, pod, container] if reads => {
            logs::answer(engine, namespace, pod, container, request.uri().query().unwrap_or_default()).await
        }
        ["exec", namespace, pod, container] if reads || request.method() == Method::POST => {
            exec::answer(engine, namespace, pod, container, request).await
        }
        ["attach", ..] => Err(without("attach: its first process takes no input; exec starts one that does")),
        ["portForward", ..] => Err(without("port-forward")),
        _ => Err(Refused(StatusCode::NOT_FOUND, format!("there is no {path}"))),
    }
}

fn without(what: &str) -> Refused {
    Refused(StatusCode::NOT_IMPLEMENTED, format!("a sandbox cannot {what}"))
}

/// The sandbox that is seen as this Pod.
fn find(engine: &Engine, namespace: &str, pod: &str) -> Option<Arc<Sandbox>> {
    engine.bound_with(&[(api::labels::POD_NAMESPACE, namespace), (api::labels::POD, pod)])
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
