//! From what a handler says to an HTTP response.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, LOCATION, RETRY_AFTER, VARY, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::Value;

use super::body::Body;
use crate::object::status::Problem;

pub(crate) const JSON: &str = "application/json";
/// What is smaller is not worth compressing (upstream's figure).
const COMPRESSED_FROM: usize = 128 << 10;
/// All warnings of an answer together; what is beyond is dropped, as upstream does.
const WARNINGS: usize = 4 << 10;

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) body: Body,
    pub(crate) etag: Option<String>,
    pub(crate) location: Option<String>,
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &'static str, body: impl Into<Body>) -> Self {
        Self { status, content_type, body: body.into(), etag: None, location: None }
    }

    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self::new(status, JSON, Bytes::from(value.to_string()))
    }

    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", Bytes::from(text.into()))
    }

    /// What is at no path that the server knows.
    pub(crate) fn nothing_here() -> Self {
        Self::text(404, "404 page not found\n")
    }

    pub(crate) fn problem(problem: &Problem) -> Self {
        Self::json(problem.code, &problem.to_value())
    }

    /// The same in lines, where it is JSON.
    pub(crate) fn indented(mut self) -> Self {
        if self.content_type.starts_with(JSON) {
            self.body = self.body.indented();
        }
        self
    }

    /// The response, compressed when the client takes that and the body is worth it.
    pub(crate) fn into_response(self, request: &HeaderMap, warnings: &[String], retry_after: u32) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let takes_gzip = request
            .get(http::header::ACCEPT_ENCODING)
            .and_then(|it| it.to_str().ok())
            .is_some_and(|it| it.split(',').any(|one| one.split(';').next().is_some_and(|name| name.trim() == "gzip")));
        if takes_gzip {
            compress(&mut response);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        let mut told = 0;
        for text in warnings {
            told += text.len();
            if told > WARNINGS {
                break;
            }
            // RFC 7234: code, agent, quoted text.
            let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace(|c: char| c.is_control(), " ");
            if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
                headers.append(WARNING, value);
            }
        }
        let mut set = |name: HeaderName, text: Option<String>| {
            if let Some(value) = text.and_then(|text| HeaderValue::from_str(&text).ok()) {
                headers.insert(name, value);
            }
        };
        set(RETRY_AFTER, (retry_after > 0).then(|| retry_after.to_string()));
        set(ETAG, self.etag);
        set(LOCATION, self.location);
        response
    }
}

fn compress(response: &mut Response<Body>) {
    let body = std::mem::replace(response.body_mut(), Body::Whole(None));
    let whole = match body {
        Body::Whole(Some(bytes)) if bytes.len() >= COMPRESSED_FROM => bytes,
        Body::Items(items) if items.size() >= COMPRESSED_FROM => items.whole(),
        other => {
            *response.body_mut() = other;
            return;
        }
    };
    let mut encoder = GzEncoder::new(Vec::with_capacity(whole.len() / 4), Compression::fast());
    match encoder.write_all(&whole).and_then(|()| encoder.finish()) {
        Ok(small) => {
            *response.body_mut() = Bytes::from(small).into();
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        Err(_) => *response.body_mut() = whole.into(),
    }
}
