//! A registry, by the distribution API: manifests and blobs, with whatever it wants to know who asks.

use std::net::IpAddr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use kit::{Backoff, ExposeSecret};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::credentials::Credential;
use super::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, LARGEST_MANIFEST, ManifestError, OCI_INDEX, OCI_MANIFEST};
use super::name::{Digest, Name};

const REDIRECTS: usize = 5;
const LARGEST_TOKEN: u64 = 1 << 20;

/// How long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Before it is asked again: the first time, and at most.
    pub(crate) base: Duration,
    pub(crate) most: Duration,
    /// Questions without any progress.
    pub(crate) tries: u32,
    /// Without a byte.
    pub(crate) stall: Duration,
    /// For all of an image.
    pub(crate) whole: Duration,
}

impl Patience {
    pub(crate) fn usual() -> Self {
        Self {
            base: Duration::from_millis(200),
            most: Duration::from_secs(5),
            tries: 5,
            stall: Duration::from_secs(60),
            whole: Duration::from_secs(2 * 60 * 60),
        }
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(self.base, self.most)
    }
}

/// Why a registry did not give what it was asked for, in containerd's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("{0}: not found")]
    NotFound(String),
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    #[error("failed to authorize: {0}")]
    Unauthorized(String),
    #[error("failed to do request: {method} \"{url}\": {why}")]
    Request { method: &'static str, url: String, why: String, passes: bool },
    #[error("unexpected status from {method} request to {url}: {status}")]
    Status { method: &'static str, url: String, status: StatusCode },
    #[error("{url}: {why}")]
    Broken { url: String, why: String },
    #[error("it ended {0} bytes too early")]
    Short(u64),
    #[error("unexpected commit digest {found}, expected {expected}: failed precondition")]
    Digest { found: Digest, expected: Digest },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl RegistryError {
    /// It may be otherwise in a moment.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Request { passes, .. } => *passes,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Short(_) => true,
            _ => false,
        }
    }
}

type Result<T> = std::result::Result<T, RegistryError>;

/// All registries. The clients are made when they are first needed: reading the machine's trust store takes a while.
pub(crate) struct Registries {
    far: OnceLock<reqwest::Client>,
    near: OnceLock<reqwest::Client>,
    pub(crate) patience: Patience,
}

impl Registries {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { far: OnceLock::new(), near: OnceLock::new(), patience }
    }

    /// To talk about one repository, as one of those who may.
    pub(crate) fn session(&self, name: &Name, credential: Option<&Credential>) -> Result<Session> {
        let host = if name.domain == "docker.io" { "registry-1.docker.io" } else { &name.domain };
        let near = is_loopback(host);
        let text = format!("{}://{host}/v2/{}/", if near { "http" } else { "https" }, name.path);
        let broken = |why: String| RegistryError::Broken { url: text.clone(), why };
        let base = Url::parse(&text).map_err(|error| broken(error.to_string()))?;
        let (slot, build) = match near {
            // No proxy leads to this machine itself.
            true => (&self.near, reqwest::Client::builder().no_proxy()),
            false => (&self.far, reqwest::Client::builder()),
        };
        let client = match slot.get() {
            Some(client) => client.clone(),
            None => {
                let client = build
                    .user_agent(concat!("insula/", env!("CARGO_PKG_VERSION")))
                    .connect_timeout(Duration::from_secs(10))
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| broken(kit::chain(&error)))?;
                slot.get_or_init(|| client).clone()
            }
        };
        Ok(Session {
            client,
            base,
            near,
            name: name.clone(),
            credential: credential.cloned(),
            known: Mutex::default(),
            patience: self.patience,
        })
    }
}

/// A registry of this machine, which is spoken to without TLS, as docker does.
fn is_loopback(domain: &str) -> bool {
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => domain,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

pub(crate) struct Session {
    client: reqwest::Client,
    base: Url,
    near: bool,
    name: Name,
    credential: Option<Credential>,
    /// What it accepted last.
    known: Mutex<Option<HeaderValue>>,
    patience: Patience,
}

/// A blob on its way.
pub(crate) struct Body {
    response: Response,
    /// The offset at which it begins.
    pub(crate) from: u64,
    stall: Duration,
    url: String,
}

impl Body {
    /// The next bytes; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        let failed = |why: String| RegistryError::Request { method: "Get", url: self.url.clone(), why, passes: true };
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| failed(kit::chain(&error.without_url()))),
            Err(_) => Err(failed("no byte came for too long".into())),
        }
    }

    async fn whole(&mut self, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(next) = self.next().await? {
            if (bytes.len() + next.len()) as u64 > most {
                return Err(RegistryError::Broken {
                    url: self.url.clone(),
                    why: format!("it is longer than {most} bytes"),
                });
            }
            bytes.extend_from_slice(&next);
        }
        Ok(bytes)
    }
}

impl Session {
    /// A manifest or an index by tag or digest, and its media type. Verified where a digest was said.
    pub(crate) async fn manifest(&self, version: &str) -> Result<(Vec<u8>, String)> {
        let mut backoff = self.patience.backoff();
        let (bytes, media_type) = loop {
            match self.manifest_once(version).await {
                Err(error) if error.passes() && backoff.failures() + 1 < self.patience.tries => {
                    tokio::time::sleep(backoff.pause()).await;
                }
                done => break done?,
            }
        };
        if let Some(expected) = Digest::parse(version) {
            let found = Digest::of(&bytes);
            if found != expected {
                return Err(RegistryError::Digest { found, expected });
            }
        }
        Ok((bytes, media_type))
    }

    async fn manifest_once(&self, version: &str) -> Result<(Vec<u8>, String)> {
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let mut body = self.get(&format!("manifests/{version}"), &accept, 0).await?;
        let media_type = body.response.headers().get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok((body.whole(LARGEST_MANIFEST).await?, media_type))
    }

    /// A blob from an offset on, or from its begin where the registry cannot do that.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<Body> {
        self.get(&format!("blobs/{digest}"), "*/*", from).await
    }

    async fn get(&self, path: &str, accept: &str, from: u64) -> Result<Body> {
        let broken = |url: &Url, why: String| RegistryError::Broken { url: shown(url), why };
        let asked = self.base.join(path).map_err(|error| broken(&self.base, error.to_string()))?;
        let (mut url, mut redirects, mut proved) = (asked.clone(), 0, false);
        loop {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap_or(HeaderValue::from_static("*/*")));
            if from > 0
                && let Ok(range) = HeaderValue::from_str(&format!("bytes={from}-"))
            {
                headers.insert(RANGE, range);
            }
            // Who we are is said to the registry alone, not to where it keeps its blobs.
            if url.origin() == self.base.origin()
                && let Some(known) = self.known()
            {
                headers.insert(AUTHORIZATION, known);
            }
            let response = self.send(Method::GET, &url, headers, None).await?;
            let status = response.status();
            let location = response.headers().get(LOCATION).and_then(|it| it.to_str().ok());
            match status {
                StatusCode::UNAUTHORIZED if !proved && url.origin() == self.base.origin() => {
                    let known = self.prove(response.headers()).await?;
                    *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
                    proved = true;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(RegistryError::Denied("authorization failed".into()));
                }
                StatusCode::NOT_FOUND => return Err(RegistryError::NotFound(self.name.to_string())),
                // All of it was there already.
                StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => return Err(RegistryError::Short(0)),
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    let from = if status == StatusCode::OK { 0 } else { start(&response).unwrap_or(from) };
                    return Ok(Body { from, stall: self.patience.stall, url: shown(&url), response });
                }
                _ if status.is_redirection() && location.is_some() && redirects < REDIRECTS => {
                    let next =
                        url.join(location.unwrap_or_default()).map_err(|error| broken(&url, error.to_string()))?;
                    if next.scheme() != "https" && !(self.near && next.scheme() == "http") {
                        return Err(broken(&url, "it leads to where nothing is encrypted".into()));
                    }
                    (url, redirects) = (next, redirects + 1);
                }
                _ => return Err(RegistryError::Status { method: "GET", url: shown(&url), status }),
            }
        }
    }

    fn known(&self) -> Option<HeaderValue> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, method: Method, url: &Url, headers: HeaderMap, body: Option<String>) -> Result<Response> {
        let verb = if method == Method::GET { "Get" } else { "Post" };
        let failed = |why: String, passes: bool| RegistryError::Request { method: verb, url: shown(url), why, passes };
        let mut request = self.client.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body);
        }
        match tokio::time::timeout(self.patience.stall, request.send()).await {
            // Where nobody answers, the next one who asks comes later.
            Ok(sent) => sent.map_err(|error| {
                let passes = !error.is_connect() || error.is_timeout();
                failed(kit::chain(&error.without_url()), passes)
            }),
            Err(_) => Err(failed("it does not answer".into(), true)),
        }
    }

    /// What a registry accepts that has asked who we are; nothing where we have nothing to say.
    async fn prove(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>> {
        if let Some(token) = self.credential.as_ref().and_then(|it| it.token.as_ref()) {
            return secret(format!("Bearer {}", token.expose_secret())).map(Some);
        }
        let asked = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|it| it.to_str().ok()).map(challenge);
        let asked: Vec<_> = asked.collect();
        if let Some((_, fields)) = asked.iter().find(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
            return self.token(fields).await.map(Some);
        }
        if asked.iter().any(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")) {
            return match self.basic() {
                Some(basic) => basic.map(Some),
                None => Err(RegistryError::Denied("no basic auth credentials".into())),
            };
        }
        Err(RegistryError::Denied("authorization failed: no way to authorize was offered".into()))
    }

    fn basic(&self) -> Option<Result<HeaderValue>> {
        let it = self.credential.as_ref().filter(|it| !it.user.is_empty())?;
        let text = format!("{}:{}", it.user, it.password.expose_secret());
        Some(secret(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))))
    }

    async fn token(&self, fields: &[(String, String)]) -> Result<HeaderValue> {
        let field = |name: &str| fields.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
        let unauthorized = |why: &str| RegistryError::Unauthorized(why.to_owned());
        let realm = field("realm").ok_or_else(|| unauthorized("no realm specified for token auth challenge"))?;
        let mut url = Url::parse(realm).map_err(|_| unauthorized("the realm for token auth is no URL"))?;
        if url.scheme() != "https" && !(self.near && url.scheme() == "http") {
            return Err(unauthorized("the realm for token auth is not encrypted"));
        }
        let scope = field("scope").map_or_else(|| format!("repository:{}:pull", self.name.path), str::to_owned);
        let identity = self.credential.as_ref().and_then(|it| it.identity.as_ref());
        let (method, mut headers) = (if identity.is_some() { Method::POST } else { Method::GET }, HeaderMap::new());
        let form = {
            // What encodes a query encodes a form, too.
            let mut asked = if identity.is_some() { self.base.clone() } else { url.clone() };
            let mut pairs = asked.query_pairs_mut();
            pairs.extend_pairs(field("service").map(|it| ("service", it))).append_pair("scope", &scope);
            if let Some(identity) = identity {
                pairs.append_pair("grant_type", "refresh_token").append_pair("client_id", "insula");
                pairs.append_pair("refresh_token", identity.expose_secret());
            }
            drop(pairs);
            asked.query().unwrap_or_default().to_owned()
        };
        let body = match identity {
            Some(_) => Some(form),
            None => {
                url.set_query(Some(&form));
                if let Some(basic) = self.basic() {
                    headers.insert(AUTHORIZATION, basic?);
                }
                None
            }
        };
        let response = self.send(method, &url, headers, body).await?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let url = shown(&url);
            return Err(RegistryError::Unauthorized(format!(
                "failed to fetch {} token: unexpected status from GET request to {url}: {status}",
                if self.credential.is_some() { "oauth" } else { "anonymous" }
            )));
        }
        if status != StatusCode::OK {
            return Err(RegistryError::Status { method: "GET", url: shown(&url), status });
        }
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let mut body = Body { from: 0, stall: self.patience.stall, url: shown(&url), response };
        let bytes = body.whole(LARGEST_TOKEN).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| unauthorized("the token server gave no token"))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        if token.is_empty() {
            return Err(unauthorized("the token server gave no token"));
        }
        secret(format!("Bearer {token}"))
    }
}

fn secret(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).map_err(|_| {
        RegistryError::Unauthorized("a token or password has characters that no header can have".into())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Without the query: what stores blobs signs there who may read them.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    let _ = url.set_password(None);
    url.to_string()
}

/// Where the bytes of an answer begin: `bytes 100-199/200`.
fn start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// `Bearer realm="…",service="…"` as its scheme and fields.
fn challenge(text: &str) -> (String, Vec<(String, String)>) {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or_else(|| (text.trim(), ""));
    let mut fields = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.push((name, value.to_owned()));
        rest = after;
    }
    (scheme.to_owned(), fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_with_commas_in_them() {
        let (scheme, fields) =
            challenge(r#"Bearer realm="https://a/t",service="r.io", scope="repository:x:pull,push""#);
        assert_eq!(scheme, "Bearer");
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("realm", "https://a/t"), ("service", "r.io"), ("scope", "repository:x:pull,push")]);
        assert_eq!(challenge("Basic"), ("Basic".into(), vec![]));
        assert_eq!(challenge("Basic realm=x").1, [("realm".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn only_registries_of_this_machine_are_spoken_to_without_tls() {
        for near in ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(near), "{near}");
        }
        for far in ["localhost.example.com", "10.0.0.1:5000", "registry:5000", "[2001:db8::1]:5000", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(far), "{far}");
        }
    }
}
