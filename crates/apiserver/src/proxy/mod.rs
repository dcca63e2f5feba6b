//! `proxy` of nodes, pods and services: a client's request, passed on to what stands behind the name, and the answer passed
//! back: `pkg/registry/core/{node,pod,service}` of upstream and `k8s.io/apimachinery/pkg/util/proxy`, to whose words the
//! errors keep. Bodies flow both ways as they come, and are never held.

mod html;
mod links;
mod page;
mod place;
mod tls;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_TYPE, HOST, LOCATION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;

use crate::access;
use crate::core::Core;
use crate::http::body::Body;
use crate::http::{Query, Target, unescape};
use crate::kubelets::{self, Unreached};
use crate::object::status::Problem;
use crate::peer::{self, Counted, Stream};
use links::{Links, clean, escape};
use place::{At, Place};

/// Requests that are passed on at once, but for those to kubelets, which have a room of their own.
const ROOM: usize = 512;
/// How long a connection may take (upstream's figure), and how long the handshake of TLS over it.
const CONNECT: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of an answer may take, with all of a request's body before it. Upstream waits as long as the client
/// does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Headers that are between two neighbours. That trailers follow is told on, as upstream does.
const HOPS: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Who may read an answer is this server's to say.
const CORS: [HeaderName; 4] = [
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// A request's body.
pub(crate) type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// Places for requests that are passed on.
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

/// What has a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nodes,
    Pods,
    Services,
}

impl Kind {
    /// `None` when something else is asked for.
    pub(crate) fn of(target: &Target) -> Option<Self> {
        if !target.group.is_empty() || target.version != "v1" || target.subresource != "proxy" {
            return None;
        }
        match (target.resource.as_str(), target.namespace.is_empty()) {
            ("nodes", true) => Some(Self::Nodes),
            ("pods", false) => Some(Self::Pods),
            ("services", false) => Some(Self::Services),
            _ => None,
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::Nodes => "node",
            Self::Pods => "pod",
            Self::Services => "service",
        }
    }
}

/// Whether a request is for a proxy, and so may take as long as it does.
pub(crate) fn is_asked(parts: &Parts) -> bool {
    let path = parts.uri.path();
    path.contains("proxy")
        && Target::parse(&parts.method, path, &Query::default()).is_some_and(|it| Kind::of(&it).is_some())
}

/// A request whose asker may.
pub(crate) struct Asked<'a> {
    pub(crate) kind: Kind,
    pub(crate) target: &'a Target,
    pub(crate) parts: &'a Parts,
    pub(crate) query: Query<'a>,
    pub(crate) body: Sent,
    /// Where the client is, if it comes over a network.
    pub(crate) from: Option<IpAddr>,
    /// The client's side of an upgrade. None in process, where the client is handed the other side itself.
    pub(crate) upgrade: Option<OnUpgrade>,
}

/// Passes the request on, and the answer back.
pub(crate) async fn answer(core: &Arc<Core>, asked: Asked<'_>) -> Result<Response<Body>, Problem> {
    let Asked { kind, target, parts, query, body, from, upgrade } = asked;
    let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];
    if !known.contains(&parts.method) {
        return Err(Problem::not_allowed());
    }
    if query.has("dryRun") {
        return Err(Problem::bad_request("dryRun is not supported"));
    }
    let place = place::of(core, kind, &target.namespace, &target.name).await?;
    let way = Way::of(parts, target.rest.len(), &place);
    if kubelets::is_upgrade(&parts.headers) {
        let request = way.upgrade(parts, from, body)?;
        return switched(core, &place, request, upgrade).await;
    }
    if way.path.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(way.to_directory(parts));
    }
    let request = way.request(parts, from, body)?;
    let failed = |failed: Failed| match failed {
        Failed::Busy => Problem::too_many_requests(),
        Failed::Dial(why) | Failed::Answer(why) => {
            Problem::unavailable(&format!("error trying to reach service: {why}"))
        }
    };
    let response = send(core, &place, request).await.map_err(failed)?;
    Ok(way.response(response))
}

/// The paths and names of one request.
struct Way {
    /// What is asked for there, unescaped. Empty where the client asked for the proxy itself, without a slash.
    path: Vec<u8>,
    /// What was asked for here, unescaped.
    asked: Vec<u8>,
    links: Links,
}

impl Way {
    /// `depth`: so many segments of the path are behind the subresource.
    fn of(parts: &Parts, depth: usize, place: &Place) -> Self {
        let asked = unescape(parts.uri.path());
        let slash = asked.ends_with(b"/");
        let from = asked.iter().take_while(|it| **it == b'/').count();
        let to = asked.len() - asked.iter().rev().take_while(|it| **it == b'/').count();
        let segments: Vec<&[u8]> = asked.get(from..to).unwrap_or_default().split(|it| *it == b'/').collect();
        let rest = segments.get(segments.len().saturating_sub(depth)..).unwrap_or_default();
        let path = if rest.is_empty() && !slash { Vec::new() } else { clean(&rest.join(&b'/'), slash) };
        let prefix = asked.strip_suffix(path.as_slice()).unwrap_or(&asked);
        let address = match place {
            Place::Network { host, .. } => host.clone(),
            Place::Kubelet(node) => node.clone(),
        };
        let said = parts.headers.get(HOST).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let host = parts.uri.authority().map_or(said, |it| it.as_str()).to_owned();
        let links = Links { prefix: String::from_utf8_lossy(prefix).into_owned(), address, host };
        Self { path, asked, links }
    }

    /// What asks for the proxy itself is led to its root, so that relative links lead there too.
    fn to_directory(&self, parts: &Parts) -> Response<Body> {
        let query = parts.uri.query().map_or_else(String::new, |it| format!("?{it}"));
        let mut response = Response::new(Body::Whole(None));
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", escape(&self.asked))) {
            response.headers_mut().insert(LOCATION, location);
        }
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        response
    }

    /// The path that is asked for there, escaped.
    fn path(&self) -> String {
        if self.path.is_empty() { "/".to_owned() } else { escape(&self.path) }
    }

    /// What is passed on of the headers: nothing that says who asks here.
    fn headers(&self, parts: &Parts, from: Option<IpAddr>) -> HeaderMap {
        let mut headers = parts.headers.clone();
        let ours = |name: &HeaderName| {
            let name = name.as_str();
            ["impersonate-", "x-remote-extra-"].iter().any(|it| name.starts_with(it))
                || matches!(name, "x-remote-user" | "x-remote-uid" | "x-remote-group")
        };
        let ours: Vec<HeaderName> = headers.keys().filter(|it| ours(it)).cloned().collect();
        for name in ours.iter().chain([&AUTHORIZATION]) {
            headers.remove(name);
        }
        let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|it| it.to_str().ok());
        let offered = offered.map(access::without_token).filter(|it| !it.is_empty()).collect::<Vec<_>>().join(", ");
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
        let mut set = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
                headers.insert(name, value);
            }
        };
        if !offered.is_empty() {
            set(SEC_WEBSOCKET_PROTOCOL, &offered);
        }
        set(HOST, if self.links.host.is_empty() { &self.links.address } else { &self.links.host });
        if let Some(from) = from {
            let before = parts.headers.get_all(FORWARDED_FOR).iter().filter_map(|it| it.to_str().ok());
            let all: Vec<String> = before.map(str::to_owned).chain([from.to_string()]).collect();
            set(FORWARDED_FOR, &all.join(", "));
        }
        headers
    }

    fn made(method: &Method, uri: &str, headers: HeaderMap, body: Sent) -> Result<Request<Sent>, Problem> {
        let request = Request::builder().method(method.clone()).uri(uri).body(body);
        let mut request = request.map_err(|error| Problem::internal(&error.to_string()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn request(&self, parts: &Parts, from: Option<IpAddr>, body: Sent) -> Result<Request<Sent>, Problem> {
        let mut headers = self.headers(parts, from);
        without_hops(&mut headers);
        let trailers = |it: &HeaderValue| {
            it.to_str().is_ok_and(|it| it.split(',').any(|one| one.trim().eq_ignore_ascii_case("trailers")))
        };
        if parts.headers.get_all(TE).iter().any(trailers) {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let path = self.path();
        let forwarded = [self.links.prefix.as_bytes(), b"/", path.as_bytes()].concat();
        if let Ok(value) = HeaderValue::from_bytes(&clean(&forwarded, path.ends_with('/'))) {
            headers.insert(FORWARDED_URI, value);
        }
        if !body.is_end_stream() && body.size_hint().exact().is_none() && !headers.contains_key(CONTENT_LENGTH) {
            // Said, because what reads has no body otherwise.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let uri = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        Self::made(&parts.method, &uri, headers, body)
    }

    /// An upgrade is passed on with what is between neighbours, and (as upstream has it) without its query: so no right to
    /// read from a kubelet becomes one to run commands.
    fn upgrade(&self, parts: &Parts, from: Option<IpAddr>, body: Sent) -> Result<Request<Sent>, Problem> {
        Self::made(&parts.method, &self.path(), self.headers(parts, from), body)
    }

    fn response(&self, response: Response<Incoming>) -> Response<Body> {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        without_hops(&mut headers);
        CORS.iter().for_each(|name| drop(headers.remove(name)));
        private(&mut headers);
        let text = |name: HeaderName| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
        let (location, media, encoding) = (text(LOCATION), text(CONTENT_TYPE), text(CONTENT_ENCODING));
        if !location.is_empty() {
            if let Some(led) = self.links.led(&location).and_then(|it| HeaderValue::from_str(&it).ok()) {
                headers.insert(LOCATION, led);
            }
        } else if media.split(';').next().unwrap_or_default().trim() == "text/html" && !body.is_end_stream() {
            let body = match page::Led::new(body, &encoding, self.links.clone()) {
                Ok(page) => {
                    headers.remove(CONTENT_LENGTH);
                    page.boxed_unsync()
                }
                Err(body) => as_it_comes(body),
            };
            return assembled(parts.status, headers, body);
        }
        assembled(parts.status, headers, as_it_comes(body))
    }
}

fn as_it_comes(body: Incoming) -> Sent {
    body.map_err(io::Error::other).boxed_unsync()
}

fn assembled(status: StatusCode, headers: HeaderMap, body: Sent) -> Response<Body> {
    let mut response = Response::new(Body::Passed(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Beside what the answer says of caches, what this server says.
fn private(headers: &mut HeaderMap) {
    let theirs: Vec<HeaderValue> = headers.get_all(CACHE_CONTROL).iter().cloned().collect();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    for it in theirs {
        headers.append(CACHE_CONTROL, it);
    }
}

/// Takes out what is between neighbours, with what `Connection` names.
fn without_hops(headers: &mut HeaderMap) {
    let said = headers.get_all(CONNECTION).iter().filter_map(|it| it.to_str().ok());
    let named: Vec<HeaderName> = said.flat_map(|it| it.split(',')).filter_map(|it| it.trim().parse().ok()).collect();
    for name in named.iter().chain(&HOPS) {
        headers.remove(name);
    }
}

/// Why there is no answer.
enum Failed {
    /// There is no room for one more.
    Busy,
    Dial(String),
    Answer(String),
}

/// Asks at the place, and waits for the head of the answer.
async fn send(core: &Core, place: &Place, request: Request<Sent>) -> Result<Response<Incoming>, Failed> {
    let (tls, host, at) = match place {
        Place::Network { tls, host, at } => (*tls, host, at),
        Place::Kubelet(node) => return ask_kubelet(core, node, request).await,
    };
    let permit = core.proxied.0.clone().try_acquire_owned().map_err(|_| Failed::Busy)?;
    let late = || match at {
        At::Addresses(all) => all.first().map_or_else(|| host.clone(), ToString::to_string),
        At::Inside(_) => host.clone(),
    };
    let connected = tokio::time::timeout(CONNECT, dial(core, host, at)).await;
    let connected = connected.map_err(|_| Failed::Dial(format!("dial tcp {}: i/o timeout", late())));
    let stream = connected?.map_err(Failed::Dial)?;
    let stream: Box<dyn Stream> = if tls {
        let name = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host.as_str(), |it| it.0);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|error| Failed::Dial(error.to_string()))?;
        let connector = tls::connector().map_err(|error| Failed::Dial(kit::chain(&error)))?;
        let greeted = tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await;
        let greeted = greeted.map_err(|_| Failed::Dial("net/http: TLS handshake timeout".to_owned()))?;
        Box::new(greeted.map_err(|error| Failed::Dial(kit::chain(&error)))?)
    } else {
        stream
    };
    let asked = peer::ask(&core.tasks, Counted { stream, _permit: permit }, request).await;
    asked.map_err(|error| Failed::Answer(broken(&error)))
}

/// The words are those of Go.
async fn dial(core: &Core, host: &str, at: &At) -> Result<Box<dyn Stream>, String> {
    let inside = match at {
        At::Addresses(all) => return peer::dial(all).await.map(|it| Box::new(it) as Box<dyn Stream>),
        At::Inside(inside) => inside,
    };
    let Some(kubelets) = core.kubelets.as_ref() else {
        return Err(format!("there is no way to the node {}", inside.node));
    };
    kubelets.dial(&core.tasks, inside).await.map_err(|error| match error {
        Unreached::Refused(why) => format!("dial tcp {host}: {why}"),
        error => error.to_string(),
    })
}

async fn ask_kubelet(core: &Core, node: &str, mut request: Request<Sent>) -> Result<Response<Incoming>, Failed> {
    let Some(kubelets) = core.kubelets.as_ref() else {
        return Err(Failed::Dial(format!("there is no way to the node {node}")));
    };
    let uri = request.uri().path_and_query().map_or("/", |it| it.as_str());
    *request.uri_mut() = kubelets.path(uri).parse().map_err(|_| Failed::Answer(format!("{uri}: no path")))?;
    kubelets.ask(&core.tasks, node, request).await.map_err(|error| match error {
        Unreached::Busy => Failed::Busy,
        Unreached::Dial { .. } => Failed::Dial(error.to_string()),
        _ => Failed::Answer(error.to_string()),
    })
}

/// In Go's words, where it has some.
fn broken(error: &hyper::Error) -> String {
    if error.is_incomplete_message() { "EOF".to_owned() } else { kit::chain(error) }
}

/// An upgrade: passed on, and when the other side agrees, the two connections are one.
async fn switched(
    core: &Core,
    place: &Place,
    request: Request<Sent>,
    client: Option<OnUpgrade>,
) -> Result<Response<Body>, Problem> {
    let failed = |failed: Failed| match failed {
        Failed::Busy => Problem::too_many_requests(),
        Failed::Dial(why) => Problem::unexplained(format!("error dialing backend: {why}")),
        Failed::Answer(why) => Problem::unexplained(why),
    };
    let response = send(core, place, request).await.map_err(failed)?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => kubelets::switched(&core.tasks, response, client),
        status if status.as_u16() < 400 => {
            Err(Problem::unexplained(format!("invalid upgrade response: status code {}", status.as_u16())))
        }
        status => {
            let (parts, body) = response.into_parts();
            let mut headers = parts.headers;
            without_hops(&mut headers);
            Ok(assembled(status, headers, as_it_comes(body)))
        }
    }
}
