//! The call of a webhook: one connection, one request, one answer of bounded size. The words of failures are those of Go's
//! client, as far as it has words for them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::endpoint::{self, Endpoint};
use crate::core::Core;
use crate::peer;

/// An answer is at most so large (what a request's body may be).
const ANSWER_MAX: usize = 3 << 20;
const AGENT: &str = "kube-apiserver-admission";

/// Where a webhook is, and whom it must show to be.
pub(super) struct Target {
    place: Place,
    tls: Result<TlsConnector, String>,
}

enum Place {
    Url(Uri),
    Service {
        namespace: String,
        name: String,
        port: u16,
        path: String,
    },
    /// What the configuration says is neither.
    Nowhere(String),
}

impl Target {
    /// Of a `clientConfig`.
    pub(super) fn new(of: &Value) -> Self {
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let place = match of.get("service").filter(|it| it.is_object()) {
            Some(service) => Place::Service {
                namespace: text(service, "namespace"),
                name: text(service, "name"),
                port: service.get("port").and_then(Value::as_u64).and_then(|it| it.try_into().ok()).unwrap_or(443),
                path: text(service, "path"),
            },
            None => match text(of, "url").parse::<Uri>() {
                Ok(url) => Place::Url(url),
                Err(why) => Place::Nowhere(why.to_string()),
            },
        };
        Self { place, tls: connector(&text(of, "caBundle")) }
    }

    /// Asks, and waits for the answer no longer than this.
    pub(super) async fn post(&self, core: &Core, question: &Value, patience: Duration) -> Result<Bytes, String> {
        let query = format!("timeout={}s", patience.as_secs());
        let (shown, endpoint, path) = match &self.place {
            Place::Url(url) => {
                let host = url.host().unwrap_or_default();
                let path = if url.path().is_empty() { "/" } else { url.path() };
                let shown = format!("https://{}{path}?{query}", url.authority().map_or(host, |it| it.as_str()));
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let endpoint = Ok(Endpoint { host: name.clone(), port: url.port_u16().unwrap_or(443), name });
                (shown, endpoint, path.to_owned())
            }
            Place::Service { namespace, name, port, path } => {
                let path = if path.is_empty() { "/" } else { path };
                let shown = format!("https://{name}.{namespace}.svc:{port}{path}?{query}");
                (shown, endpoint::of_service(core, namespace, name, *port), path.to_owned())
            }
            Place::Nowhere(why) => return Err(why.clone()),
        };
        let done = async {
            let endpoint = endpoint?;
            let tls = self.tls.as_ref().map_err(Clone::clone)?;
            exchange(&endpoint, tls, &format!("{path}?{query}"), question.to_string().into()).await
        };
        let failed = |why: String| format!("failed to call webhook: Post {shown:?}: {why}");
        match tokio::time::timeout(patience, done).await {
            Ok(Ok(Answer { status: 200..=206, body })) => Ok(body),
            Ok(Ok(answer)) => Err(format!("failed to call webhook: {}", answer.refusal())),
            Ok(Err(why)) => Err(failed(why)),
            Err(_) => Err(failed("context deadline exceeded".to_owned())),
        }
    }
}

/// Trusts what the bundle of certificates (PEM, in base64) vouches for, and nobody else.
fn connector(bundle: &str) -> Result<TlsConnector, String> {
    let unusable = || "unable to load root certificates: unable to parse bytes as PEM block".to_owned();
    let pem = STANDARD.decode(bundle).map_err(|_| unusable())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        roots.add(certificate.map_err(|_| unusable())?).map_err(|_| unusable())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| kit::chain(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

struct Answer {
    status: u16,
    body: Bytes,
}

impl Answer {
    /// What client-go says of an answer that is none.
    fn refusal(&self) -> String {
        let said = serde_json::from_slice::<Value>(&self.body).ok();
        if let Some(message) = said
            .filter(|it| it.get("kind").is_some_and(|it| it == "Status"))
            .and_then(|it| it.get("message").and_then(Value::as_str).map(str::to_owned))
        {
            return message;
        }
        let said = String::from_utf8_lossy(&self.body);
        let said = said.trim();
        match self.status {
            400 => "the server rejected our request for an unknown reason".to_owned(),
            401 => "the server has asked for the client to provide credentials".to_owned(),
            403 => said.to_owned(),
            404 => "the server could not find the requested resource".to_owned(),
            405 => "the server does not allow this method on the requested resource".to_owned(),
            409 => "the server reported a conflict".to_owned(),
            415 => "the media type is not supported".to_owned(),
            429 => "the server has received too many requests and has asked us to try again later".to_owned(),
            503 => "the server is currently unable to handle the request".to_owned(),
            504 => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
            500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
            status => {
                let reason = StatusCode::from_u16(status).ok().and_then(|it| it.canonical_reason()).unwrap_or_default();
                format!("the server responded with the status code {status} but did not return more information ({reason})")
            }
        }
    }
}

async fn exchange(endpoint: &Endpoint, tls: &TlsConnector, path: &str, question: Bytes) -> Result<Answer, String> {
    let stream = connect(endpoint).await?;
    // A call is one small message there and one back.
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(endpoint.name.clone()).map_err(|error| kit::chain(&error))?;
    let stream = tls.connect(name, stream).await.map_err(|error| handshake_failed(&error))?;
    let broke = |error: hyper::Error| kit::chain(&error);
    let (mut sender, connection) =
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let request = Request::post(path)
        .header(HOST, format!("{}:{}", endpoint.name, endpoint.port))
        .header(ACCEPT, "application/json, */*")
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, AGENT)
        .body(Full::new(question))
        .map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broke)?.into_data() else { continue };
            if read.len() + data.len() > ANSWER_MAX {
                return Err(format!("the response has more than {ANSWER_MAX} bytes"));
            }
            read.extend_from_slice(&data);
        }
        Ok(Answer { status, body: read.freeze() })
    };
    let mut answered = std::pin::pin!(answered);
    tokio::select! {
        biased;
        answer = &mut answered => answer,
        // The connection ends first where it breaks, or when all of the answer has come.
        _ = connection => answered.await,
    }
}

async fn connect(to: &Endpoint) -> Result<TcpStream, String> {
    match tokio::net::lookup_host((to.host.as_str(), to.port)).await {
        Ok(found) => peer::dial(&found.collect::<Vec<_>>()).await,
        Err(_) => Err(format!("dial tcp: lookup {}: no such host", to.host)),
    }
}

fn handshake_failed(error: &std::io::Error) -> String {
    use rustls::CertificateError;
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    let verify = |why: String| format!("tls: failed to verify certificate: x509: {why}");
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            verify("certificate signed by unknown authority".to_owned())
        }
        Some(rustls::Error::InvalidCertificate(other)) => verify(other.to_string()),
        _ => kit::chain(error),
    }
}
