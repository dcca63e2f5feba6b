//! How the proxy gets to where a pod may go.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::policy::{Far, HOST, is_host};
use super::{Client, Proxy, Refused};
use crate::engine::blocking;
use crate::pod::network::dns::Known;
use crate::pod::network::forward::attend;

/// How long a name may take to be looked up, and a connection to be made.
const LOOKUP: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(20);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

/// What is on the other side.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) enum Reached {
    /// The place itself.
    Place(Box<dyn Stream>),
    /// Another proxy, which has to be asked in turn, and what lets us in there.
    Proxy(TcpStream, Option<HeaderValue>),
}

impl Proxy {
    /// Connects to a place for a pod: one of the cluster as the pod itself could, any other as the policy has it.
    pub(super) async fn reach(&self, client: &Client, host: &str, port: u16, tls: bool) -> Result<Reached, Refused> {
        if !is_host(host) {
            return Err(Refused(StatusCode::BAD_REQUEST, format!("{host:?} is no name of a host")));
        }
        let within = match &client.namespace {
            Some(namespace) => self.within(namespace, host),
            None => None,
        };
        let host = match within {
            Some(Known::Addresses(addresses)) => return self.connect_within(host, &addresses, port).await,
            Some(Known::Elsewhere(name)) => &*name.clone(),
            None => host,
        };
        let far = self.policy.may(host, port).ok_or_else(|| {
            let why = format!("pods may not go to {host}:{port}: `insula up --egress` says where they may");
            Refused(StatusCode::FORBIDDEN, why)
        })?;
        let scheme = if tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}:{port}", if host.contains(':') { format!("[{host}]") } else { host.into() });
        let upstream = uri.parse::<Uri>().ok().and_then(|it| self.upstream.intercept(&it));
        match upstream.filter(|_| far == Far::Public) {
            Some(upstream) => by_proxy(&upstream, host, port, tls).await,
            None => self.direct(host, port, far).await,
        }
    }

    /// What of the pods' network is meant. Names of the cluster that are none are nobody's.
    fn within(&self, namespace: &str, host: &str) -> Option<Known> {
        let cluster = self.cluster.as_ref()?;
        if let Ok(IpAddr::V4(address)) = host.parse() {
            return cluster.switch.is_within(address).then(|| Known::Addresses(vec![address]));
        }
        let found = cluster.names.known(namespace, host);
        let is_ours = [".cluster.local", ".svc"].iter().any(|it| host.ends_with(it));
        found.or_else(|| is_ours.then(|| Known::Addresses(Vec::new())))
    }

    async fn connect_within(&self, host: &str, addresses: &[Ipv4Addr], port: u16) -> Result<Reached, Refused> {
        let unreached = |why: String| Refused(StatusCode::BAD_GATEWAY, format!("cannot reach {host}:{port}: {why}"));
        let mut last = "there is no such name".to_owned();
        let Some(cluster) = &self.cluster else { return Err(unreached(last)) };
        for address in addresses.iter().take(ADDRESSES) {
            match cluster.switch.connect(SocketAddrV4::new(*address, port)).await {
                Ok(stream) => return Ok(Reached::Place(Box::new(stream))),
                Err(error) => last = error.to_string(),
            }
        }
        Err(unreached(last))
    }

    async fn direct(&self, host: &str, port: u16, far: Far) -> Result<Reached, Refused> {
        let unreached = |why: String| Refused(StatusCode::BAD_GATEWAY, format!("cannot reach {host}:{port}: {why}"));
        let slow = |_| Refused(StatusCode::GATEWAY_TIMEOUT, format!("cannot reach {host}:{port} in time"));
        let mut all: Vec<SocketAddr> = if host == HOST {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        } else {
            let found = tokio::time::timeout(LOOKUP, self.look_up(host.to_owned(), port)).await.map_err(slow)?;
            found.map_err(|error| unreached(error.to_string()))?
        };
        if far == Far::Public {
            let before = all.len();
            all.retain(|it| kit::is_public(it.ip()) && !is_here(*it));
            if all.len() < before && all.is_empty() {
                let why = format!(
                    "{host} is private, or this machine, where pods go only if `insula up --egress {host}:{port}` lets them"
                );
                return Err(Refused(StatusCode::FORBIDDEN, why));
            }
        }
        let connecting = async {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for to in all.into_iter().take(ADDRESSES) {
                match tokio::time::timeout(CONNECT / 2, TcpStream::connect(to)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(last)
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await.map_err(slow)?;
        let stream = connected.and_then(|it| attend(&it).map(|()| it));
        Ok(Reached::Place(Box::new(stream.map_err(|error| unreached(error.to_string()))?)))
    }

    /// The addresses of a name. Nobody can break it off, so that it keeps its place until it ends.
    async fn look_up(&self, host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let permit = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let work = move || {
            let _permit = permit;
            (host.as_str(), port).to_socket_addrs().map(|it| it.take(64).collect())
        };
        blocking(work).await.map_err(io::Error::other)?
    }
}

/// An address that is public and yet one of our own: whoever sends there sends from there.
fn is_here(to: SocketAddr) -> bool {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|it| it.connect(to).and_then(|()| it.local_addr()));
    source.is_ok_and(|it| it.ip() == to.ip())
}

/// By the proxy that this machine itself has to use. It looks names up, too: what is private there, it has to know.
async fn by_proxy(proxy: &Intercept, host: &str, port: u16, tls: bool) -> Result<Reached, Refused> {
    let at = proxy.uri();
    let failed = |why: String| {
        let said = at.host().unwrap_or_default();
        Refused(StatusCode::BAD_GATEWAY, format!("cannot reach {host}:{port} by the proxy {said}: {why}"))
    };
    let is_near = !host.contains('.') || [".internal", ".local", ".localhost"].iter().any(|it| host.ends_with(it));
    let may = host.parse::<IpAddr>().map_or(!is_near, kit::is_public);
    if !may {
        return Err(Refused(StatusCode::FORBIDDEN, format!("{host} is private, where pods do not go")));
    }
    if at.scheme_str() != Some("http") {
        return Err(failed("only proxies at http:// are used".into()));
    }
    let Some(name) = at.host() else { return Err(failed("it has no name".into())) };
    let connecting = async {
        let stream = TcpStream::connect((name, at.port_u16().unwrap_or(80))).await?;
        attend(&stream)?;
        match tls {
            true => tunnel(stream, host, port, proxy.basic_auth()).await,
            false => Ok(Reached::Proxy(stream, proxy.basic_auth().cloned())),
        }
    };
    let connected = tokio::time::timeout(CONNECT, connecting).await;
    let connected = connected.map_err(|_| failed("it does not answer in time".into()))?;
    connected.map_err(|error| failed(error.to_string()))
}

pub(super) async fn tunnel(
    stream: TcpStream,
    host: &str,
    port: u16,
    auth: Option<&HeaderValue>,
) -> io::Result<Reached> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = Request::builder().method(Method::CONNECT).uri(&place).header(header::HOST, &place);
    if let Some(auth) = auth {
        request = request.header(header::PROXY_AUTHORIZATION, auth);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if !response.status().is_success() {
            return Err(io::Error::other(format!("it answers {}", response.status())));
        }
        hyper::upgrade::on(response).await.map_err(io::Error::other)
    };
    // The connection is over when it has become a tunnel.
    let connection = async {
        let _ = connection.with_upgrades().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        upgraded = asked => Ok(Reached::Place(Box::new(TokioIo::new(upgraded?)))),
        () = connection => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
