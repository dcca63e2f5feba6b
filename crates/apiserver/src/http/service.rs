//! The one service: reads a request, finds out who asks, and answers it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;

use super::body::Body;
use super::pretty;
use super::reply::Reply;
use super::resource::{self, Asked};
use super::url::{Query, Target};
use crate::access::{self, Attributes, User};
use crate::audit;
use crate::core::Core;
use crate::discovery;
use crate::kubelets;
use crate::metrics::Route;
use crate::object::status::Problem;
use crate::proxy;
use hyper::upgrade::OnUpgrade;

/// The largest body that is read (upstream's limit).
const MAX_BODY: usize = 3 << 20;
/// How long a request may take until its answer begins (upstream's `--request-timeout`), but for what is passed on.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The API server as a tower service, for requests of one user. Never fails: what goes wrong is a `Status`.
#[derive(Clone)]
pub(crate) struct Service {
    core: Arc<Core>,
    user: Option<User>,
    from: Option<IpAddr>,
}

impl Service {
    /// `user` is whom the connection has shown to be there; without one, each request must say (or is anonymous).
    /// `from` is where it comes from, if it comes over a network.
    pub(crate) fn new(core: Arc<Core>, user: Option<User>, from: Option<IpAddr>) -> Self {
        Self { core, user, from }
    }
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (core, user, from) = (self.core.clone(), self.user.clone(), self.from);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let upgrade = parts.extensions.remove::<OnUpgrade>();
            let (began, in_flight) = (Instant::now(), core.metrics.begin(&parts.method));
            let audit = core.audit.as_ref().map(|it| it.begin(&parts, from));
            let mut seen = Seen { audit, ..Seen::default() };
            let patience = if proxy::is_asked(&parts) { proxy::PATIENCE } else { TIMEOUT };
            let work = tokio::time::timeout(patience, serve(&core, user, &parts, body, from, upgrade, &mut seen));
            let mut response = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(response)) => response,
                Ok(Err(_)) => {
                    failed(&parts, &Problem::timeout("request did not complete within the allotted timeout", 0))
                }
                Err(_) => {
                    tracing::error!(method = %parts.method, path = parts.uri.path(), "a request panicked");
                    failed(&parts, &Problem::internal("this request caused the API server to panic"))
                }
            };
            drop(in_flight);
            // A watch that has begun is counted when it ends.
            if let Some(route) = seen.route.filter(|it| !(it.is_watch() && response.status() == StatusCode::OK)) {
                core.metrics.ended(&route, response.status().as_u16(), began.elapsed());
            }
            if let Some(mut asked) = seen.audit {
                asked.ended(response.status().as_u16(), seen.refused);
                // What is a stream ends with it.
                response = response.map(|body| body.with(asked));
            }
            Ok(response)
        })
    }
}

/// What is found out about a request while it is answered.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) warnings: Vec<String>,
    /// None for what is nothing that is served.
    pub(crate) route: Option<Route>,
    /// The reason of a refusal.
    refused: Option<Cow<'static, str>>,
    /// Only where there is an audit log.
    audit: Option<Box<audit::Asked>>,
}

impl Seen {
    pub(crate) fn annotate(&mut self, annotations: audit::Annotations) {
        if let Some(asked) = &mut self.audit {
            asked.annotated(annotations);
        }
    }

    /// `Ok` when the user may.
    fn authorize(&mut self, core: &Core, user: &User, wanted: &Attributes, version: &str) -> Result<(), Problem> {
        let Some(asked) = &mut self.audit else { return access::authorize(core, user, wanted) };
        let decision = access::decide(core, user, wanted);
        asked.decided(wanted, version, &decision);
        access::told(user, wanted, &decision)
    }
}

fn failed(request: &Parts, problem: &Problem) -> Response<Body> {
    respond(request, &[], Err(problem.clone()))
}

/// What a request comes to.
enum Answer {
    Reply(Reply),
    /// A node's, as it is.
    Passed(Response<Body>),
}

fn respond(request: &Parts, warnings: &[String], done: Result<Answer, Problem>) -> Response<Body> {
    let (reply, retry_after) = match done {
        Ok(Answer::Reply(reply)) => (reply, 0),
        Ok(Answer::Passed(response)) => return response,
        Err(problem) => (Reply::problem(&problem), problem.details.as_ref().map_or(0, |it| it.retry_after_seconds)),
    };
    let reply = if pretty::wanted(request) { reply.indented() } else { reply };
    reply.into_response(&request.headers, warnings, retry_after)
}

async fn serve<B>(
    core: &Arc<Core>,
    user: Option<User>,
    parts: &Parts,
    body: B,
    from: Option<IpAddr>,
    upgrade: Option<OnUpgrade>,
    seen: &mut Seen,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let done = handle(core, user, parts, body, from, upgrade, seen).await;
    seen.refused = done.as_ref().err().map(|problem| problem.reason.clone());
    let mut response = respond(parts, &seen.warnings, done);
    if parts.method == Method::HEAD {
        *response.body_mut() = Body::Whole(None);
    }
    response
}

async fn handle<B>(
    core: &Arc<Core>,
    user: Option<User>,
    parts: &Parts,
    body: B,
    from: Option<IpAddr>,
    upgrade: Option<OnUpgrade>,
    seen: &mut Seen,
) -> Result<Answer, Problem>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let user = match user {
        Some(user) => user,
        None => access::authenticate(core, &parts.headers)?,
    };
    if let Some(asked) = &mut seen.audit {
        asked.user(&user);
    }
    let user = access::impersonated(core, user, &parts.headers)?;
    if let Some(asked) = &mut seen.audit {
        asked.impersonated(&user);
    }
    let path = parts.uri.path();
    let query = Query::new(parts.uri.query().unwrap_or_default());
    let Some(target) = Target::parse(&parts.method, path, &query) else {
        seen.route = Route::of_path(&parts.method, path);
        let wanted = Attributes::Path { verb: parts.method.as_str().to_lowercase(), path: path.to_owned() };
        seen.authorize(core, &user, &wanted, "")?;
        return discovery::answer(core, parts, path).await.map(Answer::Reply);
    };
    seen.authorize(core, &user, &Attributes::of(&target, query), &target.version)?;
    if let Some(kind) = proxy::Kind::of(&target) {
        if let Some(resource) = core.registry.now().find("", "v1", &target.resource) {
            seen.route = Some(Route::of(resource, &target, query, &parts.headers).connect());
        }
        let body = body.map_err(|error| io::Error::other(error.to_string())).boxed_unsync();
        let asked = proxy::Asked { kind, target: &target, parts, query, body, from, upgrade };
        return Box::pin(proxy::answer(core, asked)).await.map(Answer::Passed);
    }
    if parts.method == Method::HEAD {
        return Err(Problem::not_allowed());
    }
    if let Some(part) = kubelets::Part::of(&target) {
        if let Some(pods) = core.registry.now().find("", "v1", "pods") {
            seen.route = Some(Route::of(pods, &target, query, &parts.headers).connect());
        }
        let Target { namespace, name, .. } = &target;
        let (method, headers) = (&parts.method, &parts.headers);
        let asked = kubelets::Asked { part, namespace, pod: name, query, method, headers, upgrade };
        return Box::pin(kubelets::answer(core, asked)).await.map(Answer::Passed);
    }
    if let Some(of) = kubelets::usage::Of::asked(core, &target) {
        seen.route = Route::of_path(&parts.method, path);
        return Box::pin(of.answer(core, &target, query)).await.map(Answer::Reply);
    }
    let body = read(body).await?;
    let asked = Asked { target, query, headers: &parts.headers, body, user };
    resource::answer(core, asked, seen).await.map(Answer::Reply)
}

/// The whole body, within the limit.
async fn read<B>(body: B) -> Result<Bytes, Problem>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    let too_large = || Problem::too_large(&format!("limit is {MAX_BODY}"));
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let mut body = std::pin::pin!(body);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Problem::bad_request(format!("the body of the request could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > MAX_BODY {
            return Err(too_large());
        }
        // Most bodies are one frame, and that needs no copy.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&first);
                first = Bytes::new();
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}
