//! What is asked of a running pod: its logs, a command in it, its streams, its ports. `pkg/registry/core/pod` of
//! upstream, to whose words the answers keep.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use serde_json::Value;

use super::{Unreached, tunnel};
use crate::access;
use crate::core::{Core, time};
use crate::http::body::Body;
use crate::http::{Query, Target};
use crate::object::FieldError;
use crate::object::status::{Details, Problem, What};
use crate::store::Key;

/// What is read of an error that a kubelet sends.
const SAID: usize = 50_000;
/// Headers of an upgrade that a kubelet is shown, beside those of WebSocket.
const SHOWN: [HeaderName; 3] = [CONNECTION, UPGRADE, HeaderName::from_static("x-stream-protocol-version")];

/// A subresource of a pod that its node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    Exec,
    Attach,
    PortForward,
}

impl Part {
    /// `None` when something else is asked for, or nothing that there is.
    pub(crate) fn of(target: &Target) -> Option<Self> {
        let pod = target.group.is_empty() && target.version == "v1" && target.resource == "pods";
        if !pod || target.namespace.is_empty() || !target.rest.is_empty() {
            return None;
        }
        match (target.subresource.as_str(), target.verb) {
            ("log", "get") => Some(Self::Log),
            ("exec", "get" | "create") => Some(Self::Exec),
            ("attach", "get" | "create") => Some(Self::Attach),
            ("portforward", "get" | "create") => Some(Self::PortForward),
            _ => None,
        }
    }
}

/// A request whose asker may.
pub(crate) struct Asked<'a> {
    pub(crate) part: Part,
    pub(crate) namespace: &'a str,
    pub(crate) pod: &'a str,
    pub(crate) query: Query<'a>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    /// The client's side of an upgrade. None in process, where the client is handed the kubelet's side itself.
    pub(crate) upgrade: Option<OnUpgrade>,
}

/// Asks the pod's kubelet. The answer to a log flows as the kubelet writes it and ends with the client; that to an upgrade
/// is the kubelet's own.
pub(crate) async fn answer(core: &Arc<Core>, asked: Asked<'_>) -> Result<Response<Body>, Problem> {
    let Asked { part, namespace, pod: name, query, .. } = asked;
    // What is asked for must make sense whatever becomes of the pod.
    let (place, parameters) = match part {
        Part::Log => ("containerLogs", log_options(name, query)?),
        Part::Exec => ("exec", streams(query)),
        Part::Attach => ("attach", streams(query)),
        Part::PortForward => ("portForward", ports(query)?),
    };
    let pod = core.store.get(&Key::new("", "pods", namespace, name));
    let pod = pod.ok_or_else(|| Problem::not_found(What::new("", "pods"), name))?.value();
    let container = match part {
        Part::PortForward => String::new(),
        _ => format!("/{}", container(name, &pod, query)?),
    };
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        if part == Part::Log {
            return Ok(nothing());
        }
        return Err(Problem::bad_request(format!("pod {name} does not have a host assigned")));
    }
    if core.store.get(&Key::new("", "nodes", "", node)).is_none() {
        // Upstream speaks of a pod here too.
        return Err(Problem::not_found(What::new("", "pods"), node));
    }
    // A log is passed on as it comes, over a WebSocket too.
    let upgrades = is_upgrade(asked.headers) && (part != Part::Log || is_websocket(asked.headers));
    if part != Part::Log && !upgrades {
        return Err(Problem::bad_request("Upgrade request required"));
    }
    let Some(kubelets) = core.kubelets.as_ref() else {
        return Err(Problem::unexplained(format!("error dialing backend: there is no way to the node {node}")));
    };
    let mut uri = format!("{}/{place}/{namespace}/{name}{container}", kubelets.prefix);
    if !parameters.is_empty() {
        let _ = write!(uri, "?{parameters}");
    }
    let mut request = Request::builder().uri(&uri).header(http::header::HOST, host(node));
    if upgrades {
        request = request.method(asked.method.clone());
        for (name, value) in asked.headers {
            if *name == SEC_WEBSOCKET_PROTOCOL {
                request = request.header(name, access::without_token(value.to_str().unwrap_or_default()));
            } else if SHOWN.contains(name) || *name == USER_AGENT || name.as_str().starts_with("sec-websocket-") {
                request = request.header(name, value);
            }
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| Problem::internal(&error.to_string()))?;
    let answered = kubelets.ask(&core.tasks, node, request).await;
    let response = answered.map_err(|error| match (error, part) {
        (Unreached::Busy, _) => Problem::too_many_requests(),
        (error @ Unreached::Silent { .. }, _) => Problem::timeout(&error.to_string(), 0),
        (error, Part::Log) => Problem::unexplained(format!("Get {uri:?}: {error}")),
        (error, _) => Problem::unexplained(format!("error dialing backend: {error}")),
    })?;
    match part {
        Part::Log if response.status() != StatusCode::SWITCHING_PROTOCOLS => logged(name, response).await,
        _ => switched(core, response, asked.upgrade),
    }
}

/// A pod without a node has logged nothing.
fn nothing() -> Response<Body> {
    let mut response = Response::new(Body::Whole(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The kubelet is asked for what the node is called; a name that no header can hold is asked for as nobody.
pub(super) fn host(node: &str) -> HeaderValue {
    HeaderValue::from_str(node).unwrap_or(HeaderValue::from_static("kubelet"))
}

pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let said = headers.get_all(CONNECTION).iter().filter_map(|it| it.to_str().ok());
    said.into_iter().any(|it| it.to_ascii_lowercase().contains("upgrade"))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get_all(UPGRADE).iter().any(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The container that is meant: the one that is named, or the only one there is.
fn container(name: &str, pod: &Value, query: Query<'_>) -> Result<String, Problem> {
    let all = |field: &str| -> Vec<String> {
        let containers = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array).into_iter().flatten();
        containers.filter_map(|it| it.get("name")?.as_str().map(str::to_owned)).collect()
    };
    let main = all("containers");
    let every = [all("initContainers"), main.clone(), all("ephemeralContainers")].concat();
    match (query.get("container"), main.as_slice()) {
        (Some(wanted), _) if every.contains(&wanted) => Ok(wanted),
        (Some(wanted), _) => Err(Problem::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Problem::bad_request(format!("a container name must be specified for pod {name}"))),
        (None, _) => Err(Problem::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            every.join(" ")
        ))),
    }
}

/// A query that is put together.
#[derive(Default)]
struct Parameters(String);

impl Parameters {
    fn add(&mut self, name: &str, value: &str) {
        let separator = if self.0.is_empty() { "" } else { "&" };
        let _ = write!(self.0, "{separator}{name}=");
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => self.0.push(char::from(byte)),
                b' ' => self.0.push('+'),
                _ => drop(write!(self.0, "%{byte:02X}")),
            }
        }
    }
}

/// `PodLogOptions`, checked and in the kubelet's words.
fn log_options(pod: &str, query: Query<'_>) -> Result<String, Problem> {
    let number = |name: &str| match query.all(name).next() {
        None => Ok(None),
        Some(text) => crate::http::options::number(&text).map(Some),
    };
    let (seconds, lines, bytes) = (number("sinceSeconds")?, number("tailLines")?, number("limitBytes")?);
    let since = match query.get("sinceTime").filter(|it| it != "null") {
        None => None,
        Some(text) => Some(text.parse::<jiff::Timestamp>().map_err(|_| {
            let layout = "2006-01-02T15:04:05Z07:00";
            Problem::bad_request(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
        })?),
    };
    let mut errors = Vec::new();
    let invalid = |name: &str, value: i64, why: &str| FieldError::invalid(name, &value.into(), why);
    if let Some(lines) = lines.filter(|it| *it < 0) {
        errors.push(invalid("tailLines", lines, "must be greater than or equal to 0"));
    }
    if let Some(bytes) = bytes.filter(|it| *it < 1) {
        errors.push(invalid("limitBytes", bytes, "must be greater than 0"));
    }
    match seconds {
        Some(_) if since.is_some() => {
            errors.push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        Some(seconds) if seconds < 1 => errors.push(invalid("sinceSeconds", seconds, "must be greater than 0")),
        _ => {}
    }
    if query.has("stream") {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(What::new("", "PodLogOptions"), pod, &errors));
    }
    let mut all = Parameters::default();
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            all.add(name, "true");
        }
    }
    for (name, value) in [("sinceSeconds", seconds), ("tailLines", lines), ("limitBytes", bytes)] {
        if let Some(value) = value {
            all.add(name, &value.to_string());
        }
    }
    if let Some(since) = since {
        all.add("sinceTime", &time(since));
    }
    Ok(all.0)
}

/// `PodExecOptions` and `PodAttachOptions` in the kubelet's words.
fn streams(query: Query<'_>) -> String {
    let mut all = Parameters::default();
    for (name, kubelets) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(name) {
            all.add(kubelets, "1");
        }
    }
    query.all("command").for_each(|word| all.add("command", &word));
    all.0
}

fn ports(query: Query<'_>) -> Result<String, Problem> {
    let mut ports = Vec::new();
    for text in query.all("ports") {
        let port: i32 = text
            .parse()
            .map_err(|_| format!("cannot convert to []int32: strconv.ParseUint: parsing {text:?}: invalid syntax"))
            .map_err(Problem::bad_request)?;
        ports.push(port.to_string());
    }
    let mut all = Parameters::default();
    if !ports.is_empty() {
        all.add("port", &ports.join(","));
    }
    Ok(all.0)
}

/// The log as it comes, or what the kubelet says why there is none.
async fn logged(pod: &str, response: Response<Incoming>) -> Result<Response<Body>, Problem> {
    let status = response.status();
    if !status.is_success() {
        return Err(refused(pod, status, &said(response).await));
    }
    let frames = stream::unfold(response.into_body(), |mut body| async move {
        loop {
            match body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some((data, body)),
                    Err(_) => continue,
                },
                Err(error) => {
                    tracing::debug!(error = kit::chain(&error), "a log broke off");
                    return None;
                }
            }
        }
    });
    let mut response = Response::new(Body::Stream(frames.boxed()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// What a kubelet says why it does not.
pub(super) async fn said(response: Response<Incoming>) -> String {
    let said = tokio::time::timeout(super::ANSWER, Limited::new(response.into_body(), SAID).collect()).await;
    let said = said.ok().and_then(Result::ok).map(|it| it.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&said).into_owned()
}

/// `GenericHttpResponseChecker` and `NewGenericServerResponse`, for what a kubelet says.
fn refused(pod: &str, status: StatusCode, said: &str) -> Problem {
    let (code, reason, message) = match status.as_u16() {
        500 => return Problem::internal(said),
        400 => return Problem::bad_request(said),
        404 => (404, "NotFound", "the server could not find the requested resource".to_owned()),
        401 => (401, "Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => (403, "Forbidden", said.to_owned()),
        503 => (503, "ServiceUnavailable", "the server is currently unable to handle the request".to_owned()),
        429 => (
            429,
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later".to_owned(),
        ),
        code if code >= 500 => {
            let why = format!("an error on the server ({said:?}) has prevented the request from succeeding");
            (code, "InternalError", why)
        }
        code => {
            (code, "", format!("the server responded with the status code {code} but did not return more information"))
        }
    };
    let details = Details { name: pod.to_owned(), kind: "pods/log".to_owned(), ..Details::default() };
    let message = format!("{message} ( pods/log {pod})");
    Problem { code, reason: reason.into(), message, details: Some(Box::new(details)) }
}

/// The kubelet's answer to an upgrade; after a 101 the two connections are one.
fn switched(core: &Core, response: Response<Incoming>, client: Option<OnUpgrade>) -> Result<Response<Body>, Problem> {
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel::switched(&core.tasks, response, client);
    }
    if status.as_u16() < 400 {
        let why = format!("invalid upgrade response: status code {}", status.as_u16());
        return Err(Problem::unexplained(why));
    }
    let content_type = response.headers().get(CONTENT_TYPE).cloned();
    let said = response.into_body().into_data_stream().take_while(|it| std::future::ready(it.is_ok()));
    let said = said.filter_map(|it| std::future::ready(it.ok()));
    let mut response = Response::new(Body::Stream(said.boxed()));
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    Ok(response)
}
