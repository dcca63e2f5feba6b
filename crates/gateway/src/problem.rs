use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use kit::Class;
use serde_json::json;

/// An error as RFC 9457's problem JSON; `detail` is for people and says what to do.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// For what failed behind the door; the cause is for the log, not for the client.
    pub(crate) fn behind(class: Class, error: &dyn std::error::Error) -> Self {
        tracing::warn!(error = kit::chain(error), "a request failed");
        match class {
            Class::Retry(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "Not possible at the moment. Try again."),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Something went wrong here; the log says what."),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let body =
            json!({"type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail});
        let kind = HeaderValue::from_static("application/problem+json");
        (self.status, [(CONTENT_TYPE, kind)], body.to_string()).into_response()
    }
}
