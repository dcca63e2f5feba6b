//! What a proxy asks: a server at an address of this machine that is not loopback, which answers with what it was asked, or
//! as the path says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kit::Tasks;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) struct Echo {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
}

pub(crate) const PAGE: &str = r#"<!DOCTYPE html><html><a href="/x/y?z=1&amp;b=2#f" title="/t">q</a><img src="//other/a"/><!-- <a href="/c"> --><script>"<a href=/d>"</script><a href="rel"></a></html>"#;

/// An address of this machine that others reach it at, where there is one. Nothing is sent to find out.
pub(crate) fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

impl Echo {
    /// Answers until the tasks end. None where this machine has no address but loopback.
    pub(crate) async fn serve(tasks: &Tasks) -> Option<Self> {
        let own = own_address()?;
        let (acceptor, _) = certified(&["somebody.else"]);
        let plain = listen(tasks, own, None, answer).await;
        let tls = listen(tasks, own, Some(acceptor), answer).await;
        Some(Self { plain, tls })
    }
}

/// TLS with a certificate for these names, and the certificate as PEM.
pub(crate) fn certified(names: &[&str]) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

/// Answers at a free port of an address until the tasks end; over TLS where there is an acceptor.
pub(crate) async fn listen<A, F>(tasks: &Tasks, own: IpAddr, acceptor: Option<TlsAcceptor>, answer: A) -> SocketAddr
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send,
{
    let listener = TcpListener::bind((own, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let (connections, shutdown) = (tasks.clone(), tasks.shutdown().clone());
    tasks.tenant("echo", async move {
        let taking = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, answer, shutdown) = (acceptor.clone(), answer.clone(), shutdown.clone());
                connections.tenant("echo's connection", async move {
                    let serving = async {
                        match acceptor {
                            None => connection(stream, answer).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    connection(stream, answer).await;
                                }
                            }
                        }
                    };
                    tokio::select! {
                        () = serving => {}
                        () = shutdown.begun() => {}
                    }
                });
            }
        };
        tokio::select! {
            () = taking => {}
            () = shutdown.begun() => {}
        }
    });
    at
}

async fn connection<F>(stream: impl AsyncRead + AsyncWrite + Unpin, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>>,
{
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
    // Who asks may leave whenever it likes.
    let _ = served.await;
}

/// Those that every client and every proxy sets in its own way are left out.
fn shown(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if !["host", "accept", "accept-encoding", "x-forwarded-for", "connection"].contains(&name.as_str()) {
            all.entry(name.to_string()).or_default().push(value.to_str().unwrap().to_owned());
        }
    }
    all
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    let response = Response::builder();
    let (response, body) = match parts.uri.path() {
        "/page" => (response.header("content-type", "text/html; charset=utf-8"), PAGE.into()),
        "/packed" => {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            packed.write_all(PAGE.as_bytes()).unwrap();
            let response = response.header("content-type", "text/html").header("content-encoding", "gzip");
            (response, packed.finish().unwrap())
        }
        "/moved" => (response.status(302).header("location", "/some/where/?a=b"), Vec::new()),
        "/gone" => (response.status(410).header("content-type", "text/plain"), b"gone".to_vec()),
        path => {
            let path = parts.uri.path_and_query().map_or(path, |it| it.as_str());
            let (method, headers) = (parts.method.as_str(), shown(&parts.headers));
            let said = json!({"method": method, "path": path, "headers": headers, "size": body.len()});
            (response.header("content-type", "application/json"), said.to_string().into_bytes())
        }
    };
    Ok(response.body(Full::new(body.into())).unwrap())
}
