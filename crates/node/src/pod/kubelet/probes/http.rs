//! `httpGet`: as a kubelet asks, without looking at certificates, following redirects to the same host only.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{HTTPGetAction, HTTPHeader};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::{Found, MOST, Target, dialed, of_get, place};
use crate::pod::kubelet::world::{Wire, World};

const REDIRECTS: usize = 10;
const AGENT: &str = "kube-probe/1.34";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub https: bool,
    /// `None`: the pod itself.
    pub host: Option<String>,
    pub port: u16,
    pub path: String,
}

impl Url {
    pub(super) fn text(&self, address: &str) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", place(self.host.as_deref().unwrap_or(address), self.port), self.path)
    }

    /// Where a redirect leads; `None`: to another host.
    fn follow(&self, location: &str, address: &str) -> Option<Self> {
        let to: Uri = location.parse().ok()?;
        let path = to.path_and_query().map_or("/", |it| it.as_str());
        let Some(host) = to.host() else {
            let base = self.path.rsplit_once('/').map_or("", |it| it.0);
            let path = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
            return Some(Self { path, ..self.clone() });
        };
        if host != self.host.as_deref().unwrap_or(address) {
            return None;
        }
        let https = to.scheme_str() == Some("https");
        let port = to.port_u16().unwrap_or(if https { 443 } else { 80 });
        Some(Self { https, port, path: path.to_owned(), host: self.host.clone() })
    }
}

pub(super) struct Answer {
    status: StatusCode,
    location: Option<String>,
    body: Bytes,
}

pub(super) async fn probe<W: World>(target: &Target<'_, W>, get: &HTTPGetAction, limit: Duration) -> Found {
    let mut url = match of_get(target.container, get) {
        Ok(url) => url,
        Err(error) => return Found::Unknown(error),
    };
    let first = url.text(&target.address);
    let all = async {
        for _ in 0..=REDIRECTS {
            let answer = match ask(target, &url, get.http_headers.as_deref().unwrap_or_default()).await {
                Ok(answer) => answer,
                Err(error) => return Found::Failed(format!("Get \"{}\": {error}", url.text(&target.address))),
            };
            if !answer.status.is_redirection() {
                let status = answer.status;
                return if status.is_success() {
                    Found::Passed
                } else {
                    Found::Failed(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
                };
            }
            let Some(location) = &answer.location else { return Found::Passed };
            match url.follow(location, &target.address) {
                Some(to) => url = to,
                None => {
                    let body = String::from_utf8_lossy(&answer.body);
                    return Found::Warned(format!("Probe terminated redirects, Response body: {body}"));
                }
            }
        }
        Found::Failed(format!("Get \"{}\": stopped after {REDIRECTS} redirects", url.text(&target.address)))
    };
    tokio::time::timeout(limit, all).await.unwrap_or_else(|_| {
        let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
        Found::Failed(format!("Get \"{first}\": {why}"))
    })
}

/// One request. Errors in words.
pub(super) async fn ask<W: World>(target: &Target<'_, W>, url: &Url, extra: &[HTTPHeader]) -> Result<Answer, String> {
    let at = place(url.host.as_deref().unwrap_or(&target.address), url.port);
    let wire = target.dial(url.host.as_deref(), url.port).await.map_err(|error| dialed(&at, &error))?;
    let wire: Box<dyn Wire> =
        if url.https { Box::new(tls(wire, url.host.as_deref().unwrap_or(&target.address)).await?) } else { wire };
    let (mut sender, connection) = http1::handshake(TokioIo::new(wire)).await.map_err(|error| kit::chain(&error))?;
    let mut request = Request::get(&url.path).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers(&at, extra);
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| kit::chain(&error))?;
        let (status, location) = (answer.status(), answer.headers().get(header::LOCATION));
        let location = location.and_then(|it| it.to_str().ok()).map(str::to_owned);
        let mut body = answer.into_body();
        let mut read = BytesMut::new();
        while read.len() < MOST
            && let Some(Ok(frame)) = body.frame().await
        {
            read.extend_from_slice(frame.data_ref().map_or(&[], |it| it));
        }
        read.truncate(MOST);
        Ok(Answer { status, location, body: read.freeze() })
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        ended = connection => match ended {
            // What was still to be read has been.
            Ok(()) => answered.await,
            Err(error) => Err(kit::chain(&error)),
        },
    }
}

fn headers(at: &str, extra: &[HTTPHeader]) -> HeaderMap {
    let mut all = HeaderMap::new();
    for it in extra {
        let name = HeaderName::try_from(&it.name).ok();
        if let Some((name, value)) = name.zip(HeaderValue::try_from(&it.value).ok()) {
            all.append(name, value);
        }
    }
    let own = [(header::HOST, at), (header::USER_AGENT, AGENT), (header::ACCEPT, "*/*"), (header::CONNECTION, "close")];
    for (name, value) in own {
        // Who names an empty one wants none.
        if !all.contains_key(&name)
            && let Ok(value) = HeaderValue::try_from(value)
        {
            all.insert(name, value);
        }
    }
    all
}

/// A connection whose other side may be anybody: a probe asks whether somebody answers, not who.
async fn tls(wire: Box<dyn Wire>, address: &str) -> Result<tokio_rustls::client::TlsStream<Box<dyn Wire>>, String> {
    let provider = CryptoProvider::get_default().ok_or_else(|| "no TLS provider".to_owned())?;
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider.clone())))
        .with_no_client_auth();
    let name = ServerName::try_from(address.to_owned()).map_err(|error| error.to_string())?;
    TlsConnector::from(Arc::new(config)).connect(name, wire).await.map_err(|error| error.to_string())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
