//! Pods' one way out: an HTTP proxy in their network, which connects for them where the policy lets them go.
//!
//! It looks names up itself: what was looked at is what is connected to. Names and addresses of the cluster are those of
//! the pod that asks, so that a program that knows of proxies and of no exceptions reaches services, too.

mod policy;
mod reach;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioIo, TokioTimer};
use kit::{Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::dns::Names;
use super::forward::{self, Limit, Seat};
use super::switch::{SERVICES, Switch};
use crate::Error;
use crate::pod::Runtime;
use crate::proxy::{Body, full};
pub use policy::Egress;
use policy::host;
use reach::Reached;

/// Where it listens, at the first address of the pods' network.
const PORT: u16 = 3128;
/// Connections of all pods at once, and of one pod: who comes then waits, or is refused.
const CONNECTIONS: usize = 1024;
const OF_ONE: usize = 256;
/// How long a connection may take to say what it wants, and be silent between two requests.
const HEADERS: Duration = Duration::from_secs(60);
/// Names that are looked up at once. Each takes a thread of those that wait for the disk, too, for as long as the machine's
/// own resolver has patience, which pods may ask for names that nobody answers for.
const LOOKUPS: usize = 64;
/// The most of a request that is read before its body.
const HEAD: usize = 64 << 10;
const FIELDS: usize = 128;

/// Why a pod is not connected: a status, and words for its program.
struct Refused(StatusCode, String);

struct Proxy {
    policy: Egress,
    /// What this machine itself has to use.
    upstream: Matcher,
    /// None: nobody asks from a cluster.
    cluster: Option<Cluster>,
    tasks: Tasks,
    lookups: Arc<Semaphore>,
}

struct Cluster {
    switch: Switch,
    names: Names,
    runtime: Runtime,
}

/// Who asks.
struct Client {
    /// Of the pod, if it is one.
    namespace: Option<String>,
    _seat: Seat,
}

/// The variables that tell programs of it: names in capital letters, and values.
pub(super) fn variables(switch: &Switch) -> Vec<(&'static str, String)> {
    let url = format!("http://{}:{PORT}", switch.address());
    let (pods, services) = (switch.subnet(), SERVICES);
    // Ranges for those who know them, the first service's address for those who do not.
    let near = format!(
        "localhost,127.0.0.1,::1,127.0.0.0/8,{}/{},{}/{},10.96.0.1,.svc,.cluster.local",
        pods.address, pods.bits, services.address, services.bits
    );
    vec![("HTTP_PROXY", url.clone()), ("HTTPS_PROXY", url), ("NO_PROXY", near)]
}

/// Serves until the shutdown of the tasks begins.
pub(super) async fn start(
    switch: Switch,
    names: Names,
    runtime: Runtime,
    policy: Egress,
    tasks: &Tasks,
) -> Result<(), Error> {
    let at = SocketAddrV4::new(switch.address(), PORT);
    let listener = switch.listen(at).await.map_err(Error::machine("listen for what pods want of the world"))?;
    let cluster = Some(Cluster { switch, names, runtime });
    serve(listener, Proxy::new(policy, Matcher::from_env(), cluster, tasks.clone()));
    Ok(())
}

fn serve(listener: TcpListener, proxy: Arc<Proxy>) {
    let (stop, tasks) = (proxy.tasks.shutdown().clone(), proxy.tasks.clone());
    let limit = Limit::new(CONNECTIONS, OF_ONE);
    let (handled, own) = (tasks.clone(), stop.clone());
    let handle = move |stream, from: SocketAddr, seat| converse(proxy.clone(), stream, from, seat, own.clone());
    tasks.tenant("way out of pods", forward::accept(listener, stop, handled, limit, handle));
}

/// One connection of a pod, until it ends or becomes a tunnel.
async fn converse(proxy: Arc<Proxy>, stream: TcpStream, from: SocketAddr, seat: Seat, stop: Shutdown) {
    let Some(client) = proxy.client(from.ip(), seat).await else { return };
    let client = Arc::new(client);
    if forward::attend(&stream).is_err() {
        return;
    }
    let service = service_fn(move |request| {
        let (proxy, client) = (proxy.clone(), client.clone());
        async move { Ok::<_, Infallible>(proxy.answer(client, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEAD)
        .max_headers(FIELDS)
        // Who has said all that he has to say may still listen.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        () = stop.begun() => {}
        _ = serving => {}
    }
}

impl Proxy {
    fn new(policy: Egress, upstream: Matcher, cluster: Option<Cluster>, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { policy, upstream, cluster, tasks, lookups: Arc::new(Semaphore::new(LOOKUPS)) })
    }

    /// None for strangers.
    async fn client(&self, from: IpAddr, seat: Seat) -> Option<Client> {
        let namespace = match (&self.cluster, from) {
            (Some(cluster), IpAddr::V4(from)) => {
                let uid = cluster.switch.whose(from).await?;
                Some(cluster.runtime.state(&uid)?.config.namespace)
            }
            (Some(_), _) => return None,
            (None, _) => None,
        };
        Some(Client { namespace, _seat: seat })
    }

    async fn answer(self: &Arc<Self>, client: Arc<Client>, request: Request<Incoming>) -> Response<Body> {
        let answered = match *request.method() {
            Method::CONNECT => self.tunnel(client, request).await,
            _ => self.pass(&client, request).await,
        };
        answered.unwrap_or_else(|Refused(status, why)| {
            tracing::debug!(%status, why, "a pod is not connected");
            let mut response = Response::new(full(format!("insula: {why}\n")));
            *response.status_mut() = status;
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        })
    }

    async fn tunnel(
        self: &Arc<Self>,
        client: Arc<Client>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refused> {
        let (host, port) = place(request.uri(), None)?;
        let reached = match self.reach(&client, &host, port, true).await? {
            Reached::Place(it) => it,
            Reached::Proxy(..) => return Err(Refused(StatusCode::BAD_GATEWAY, "there is no tunnel".into())),
        };
        let ends = self.tasks.shutdown().clone();
        self.tasks.tenant("tunnel of a pod", async move {
            let _client = client;
            let carried = async {
                let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
                let (mut pod, mut place) = (TokioIo::new(upgraded), reached);
                // Each direction ends when its own source does; either may break off.
                let _ = tokio::io::copy_bidirectional(&mut pod, &mut place).await;
            };
            tokio::select! {
                () = ends.begun() => {}
                () = carried => {}
            }
        });
        Ok(Response::new(full("")))
    }

    async fn pass(&self, client: &Client, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        match request.uri().scheme_str() {
            Some("http") => {}
            Some(_) => return Err(Refused(StatusCode::BAD_REQUEST, "ask for all but http:// by CONNECT".into())),
            None => {
                let why = "this is the proxy by which pods reach other machines; ask it for http://HOST/PATH";
                return Err(Refused(StatusCode::BAD_REQUEST, why.into()));
            }
        }
        let (host, port) = place(request.uri(), Some(80))?;
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().map(|it| it.as_str()).unwrap_or_default();
        // Names of users are for whoever is asked, and go in a header of their own.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, it)| it).to_owned();
        let path = parts.uri.path_and_query().map_or("/", |it| it.as_str()).to_owned();
        strip(&mut parts.headers);
        let invalid = |_| Refused(StatusCode::BAD_REQUEST, format!("{authority:?} is no name of a host"));
        parts.headers.insert(header::HOST, HeaderValue::from_str(&authority).map_err(invalid)?);
        let (stream, target) = match self.reach(client, &host, port, false).await? {
            Reached::Place(stream) => (stream, path),
            Reached::Proxy(stream, auth) => {
                if let Some(auth) = auth {
                    parts.headers.insert(header::PROXY_AUTHORIZATION, auth);
                }
                (Box::new(stream) as Box<dyn reach::Stream>, format!("http://{authority}{path}"))
            }
        };
        let broken = |error: hyper::Error| {
            Refused(StatusCode::BAD_GATEWAY, format!("{host}:{port} breaks off: {}", kit::chain(&error)))
        };
        parts.uri = target.parse().map_err(|_| Refused(StatusCode::BAD_REQUEST, "that is no path".into()))?;
        parts.version = http::Version::HTTP_11;
        let handshake = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD * 2)
            .max_headers(FIELDS)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let ends = self.tasks.shutdown().clone();
        self.tasks.tenant("request of a pod", async move {
            tokio::select! {
                () = ends.begun() => {}
                _ = connection => {}
            }
        });
        let response = sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?;
        let (mut parts, body) = response.into_parts();
        strip(&mut parts.headers);
        Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
    }
}

/// Host and port that are asked for.
fn place(uri: &Uri, default: Option<u16>) -> Result<(String, u16), Refused> {
    let port = uri.port_u16().or_else(|| default.filter(|_| uri.port().is_none()));
    match (uri.host(), port) {
        (Some(name), Some(port)) if port > 0 => Ok((host(name), port)),
        _ => Err(Refused(StatusCode::BAD_REQUEST, format!("{uri} names no host and port"))),
    }
}

/// Takes away what is between two neighbours.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .filter_map(|it| it.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::EXPECT,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}
