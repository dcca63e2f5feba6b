//! Answers: JSON, errors in the API's one shape, and bodies.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use wire::execd::code;

use crate::command::journal::Reading;
use crate::command::{LogText, Output};
use crate::files::Content;
use crate::metrics::Watch;

pub(crate) type Reply = Response<Body>;
pub(crate) type Result<T = Reply> = std::result::Result<T, Problem>;

/// The body of an answer. Streams are pulled: nothing is read for a client that does not take what it has.
pub(crate) enum Body {
    Full(Option<Bytes>),
    Output(Box<Output>),
    Log(LogText),
    Journal(Box<Reading>),
    Content(Box<Content>),
    Watch(Box<Watch>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let data = match self.get_mut() {
            Self::Full(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Output(output) => output.poll(cx).map(|next| next.map(Ok)),
            Self::Log(log) => Poll::Ready(log.next()),
            Self::Journal(journal) => journal.poll(cx).map(|next| next.map(Ok)),
            Self::Content(content) => content.poll(cx),
            Self::Watch(watch) => watch.poll(cx).map(|next| next.map(Ok)),
        };
        data.map(|next| next.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

/// What went wrong, as the client sees it.
#[derive(Debug)]
pub(crate) struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_REQUEST, message)
    }

    pub(crate) fn parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_PARAMETER, message)
    }

    pub(crate) fn runtime(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::RUNTIME, message)
    }

    pub(crate) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, code::TOO_MANY, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, code::TOO_LARGE, message)
    }

    pub(crate) fn no_context(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code::CONTEXT_NOT_FOUND, message)
    }

    /// An error of the kernel about `what`.
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        let message = format!("{what}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, code::FILE_NOT_FOUND, message),
            io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => Self::parameter(message),
            _ => Self::runtime(message),
        }
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        let body = wire::execd::Problem { code: problem.code.to_owned(), message: problem.message };
        let mut reply = json(&body);
        *reply.status_mut() = problem.status;
        reply
    }
}

/// 200 with nothing in it.
pub(crate) fn empty() -> Reply {
    Response::new(Body::Full(None))
}

/// 200 with `value`.
pub(crate) fn json(value: &impl Serialize) -> Reply {
    // Our own types have string keys and no failing serialiser.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut reply = Response::new(Body::Full(Some(bytes.into())));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// 200 with a stream of events.
pub(crate) fn events(body: Body) -> Reply {
    let mut reply = Response::new(body);
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply
}

/// Sets a header whose value may hold what a header may not: then it is left out.
pub(crate) fn header(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

pub(crate) fn length(reply: &mut Reply, bytes: u64) {
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
}

/// For a service that always has an answer.
pub(crate) fn settle(result: Result) -> std::result::Result<Reply, Infallible> {
    Ok(result.unwrap_or_else(Reply::from))
}
