//! Which request does what.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, StatusCode};
use wire::execd::{BIND, EXEC, LOG, TOKEN_HEADER, code};

use crate::daemon::Daemon;
use crate::files::{Files, upload};
use crate::metrics::{self, Watch};
use crate::os::users::Users;
use crate::reply::{Body, Problem, Result, empty, events, json};
use crate::request::{self, Query, segment};
use crate::{command, command::journal, command::session, terminal};

/// Of a body that nobody wanted, or whose sender was refused in its middle, so much is read over, for so long.
const REST: usize = 64 << 20;
const REST_TIME: Duration = Duration::from_secs(5);

/// Answers one request, when its body has been read to the end: who is still sending would find the connection closed
/// and not read the answer, or send the next request into it.
pub(crate) async fn answer(daemon: Rc<Daemon>, request: Request<Incoming>) -> Result {
    let (head, mut body) = request.into_parts();
    let answer = route(daemon, head, &mut body).await;
    if !body.is_end_stream() {
        let _ = tokio::time::timeout(REST_TIME, pass_over(&mut body)).await;
    }
    answer
}

/// Reads what is left of a body, as far as it is worth it.
async fn pass_over(body: &mut Incoming) {
    let mut left = REST;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

async fn route(daemon: Rc<Daemon>, mut head: Parts, body: &mut Incoming) -> Result {
    let method = head.method;
    let path = head.uri.path();
    match (&method, path) {
        (&Method::GET, "/ping") => return Ok(empty()),
        (&Method::POST, BIND) => return daemon.bind(request::json(body).await?),
        _ => daemon.admit(head.headers.get(TOKEN_HEADER).map(|token| token.as_bytes()))?,
    }
    let query = Query::parse(head.uri.query());
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (&method, segments.as_slice()) {
        (&Method::POST, ["command"]) => command::run(daemon, request::json(body).await?).await,
        (&Method::DELETE, ["command"]) => {
            command::interrupt(&daemon, &String::from_utf8_lossy(query.need("id")?)).await
        }
        (&Method::GET, ["command", "status", id]) => command::status(&daemon, &segment(id)),
        (&Method::GET, ["command", id, "logs"]) => {
            command::logs(&daemon, &segment(id), query.number("cursor", 0)?.unwrap_or(0))
        }
        (&Method::POST, ["session"]) => session::create(&daemon, &request::json_or_default(body).await?),
        (&Method::POST, ["session", id, "run"]) => {
            let id = segment(id);
            session::run(daemon, id, &request::json(body).await?)
        }
        (&Method::DELETE, ["session", id]) => session::delete(&daemon, &segment(id)).await,
        (&Method::POST, ["pty"]) => terminal::create(&daemon, request::json_or_default(body).await?),
        (&Method::GET, ["pty", id]) => terminal::status(&daemon, &segment(id)),
        (&Method::DELETE, ["pty", id]) => terminal::delete(&daemon, &segment(id)).await,
        (&Method::GET, ["pty", id, "ws"]) => {
            let upgrade = head.extensions.remove::<OnUpgrade>();
            terminal::connect(&daemon, &segment(id), &query, &head.headers, upgrade)
        }
        _ if path == EXEC && method == Method::GET => {
            let upgrade = head.extensions.remove::<OnUpgrade>();
            terminal::exec(&daemon, &query, &head.headers, upgrade)
        }
        _ if path == LOG && method == Method::GET => {
            journal::read(daemon, query.get("follow") == Some(b"1"), query.number("tail", 0)?)
        }
        (&Method::GET, ["metrics"]) => Ok(json(&metrics::read(&daemon).await)),
        (&Method::GET, ["metrics", "watch"]) => Ok(events(Body::Watch(Box::new(Watch::new(daemon))))),
        (_, ["v1", "filesystem", uid, gid, rest @ ..]) => {
            let number = |id: &str| {
                id.parse::<u32>()
                    .ok()
                    .filter(|id| *id != u32::MAX)
                    .ok_or_else(|| Problem::parameter("uid and gid must be numbers"))
            };
            let (uid, gid) = (number(uid)?, number(gid)?);
            let who = Users::read().identity(uid, Some(gid));
            let own = uid == rustix::process::getuid().as_raw() && gid == rustix::process::getgid().as_raw();
            let files = Files::new(daemon, (!own).then_some(who));
            files_answer(files, &method, rest, &query, &head.headers, body).await
        }
        (_, rest @ (["files", ..] | ["directories", ..])) => {
            files_answer(Files::new(daemon, None), &method, rest, &query, &head.headers, body).await
        }
        _ => Err(unknown(&method, path)),
    }
}

async fn files_answer(
    files: Files,
    method: &Method,
    path: &[&str],
    query: &Query,
    headers: &hyper::HeaderMap,
    body: &mut Incoming,
) -> Result {
    match (method, path) {
        (&Method::GET, ["files", "info"]) => files.info(query).await,
        (&Method::GET, ["files", "search"]) => files.search(query).await,
        (&Method::GET, ["files", "download"]) => files.download(query, headers).await,
        (&Method::POST, ["files", "upload"]) => {
            let kind = headers.get(CONTENT_TYPE).map(|kind| String::from_utf8_lossy(kind.as_bytes()).into_owned());
            upload(files, &kind.unwrap_or_default(), body).await
        }
        (&Method::POST, ["files", "permissions"]) => files.permissions(request::json(body).await?).await,
        (&Method::POST, ["files", "mv"]) => files.rename(request::json(body).await?).await,
        (&Method::POST, ["files", "replace"]) => {
            let verbose = query.text("verbose").is_some_and(|verbose| verbose.eq_ignore_ascii_case("true"));
            files.replace(request::json(body).await?, verbose).await
        }
        (&Method::DELETE, ["files"]) => files.remove_files(query).await,
        (&Method::GET, ["directories", "list"]) => files.list(query).await,
        (&Method::POST, ["directories"]) => files.make_directories(request::json(body).await?).await,
        (&Method::DELETE, ["directories"]) => files.remove_directories(query).await,
        _ => Err(unknown(method, &format!("/{}", path.join("/")))),
    }
}

fn unknown(method: &Method, path: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, code::NOT_SUPPORTED, format!("execd has no {method} {path}"))
}
