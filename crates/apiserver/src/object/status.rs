//! `metav1.Status` as `k8s.io/apimachinery/pkg/api/errors` words it.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::field::{FieldError, quote};

/// What an error is about: a group and a resource (`deployments`), or a kind where Kubernetes names the kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What<'a> {
    pub(crate) group: &'a str,
    /// Plural resource (`configmaps`), or the kind (`ConfigMap`) for [`Problem::invalid`].
    pub(crate) resource: &'a str,
}

impl<'a> What<'a> {
    pub(crate) fn new(group: &'a str, resource: &'a str) -> Self {
        Self { group, resource }
    }

    /// `deployments.apps`, `configmaps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.resource.to_owned() } else { format!("{}.{}", self.resource, self.group) }
    }

    fn details(&self, name: &str) -> Details {
        Details {
            name: name.to_owned(),
            group: self.group.to_owned(),
            kind: self.resource.to_owned(),
            ..Details::default()
        }
    }
}

/// A refused request: becomes the body (`kind: Status`) and the HTTP code of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: u16,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) details: Option<Box<Details>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) uid: String,
    pub(crate) causes: Vec<StatusCause>,
    /// Also sent as the header `Retry-After`.
    pub(crate) retry_after_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusCause {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) field: String,
}

impl From<&FieldError> for StatusCause {
    fn from(e: &FieldError) -> Self {
        Self { reason: e.reason.reason().to_owned(), message: e.body.clone(), field: e.path.clone() }
    }
}

impl Problem {
    fn new(code: u16, reason: &'static str, message: impl Into<String>, details: Option<Details>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: details.map(Box::new) }
    }

    pub(crate) fn not_found(what: What<'_>, name: &str) -> Self {
        let message = format!("{} {} not found", what.qualified(), quote(name));
        Self::new(404, "NotFound", message, Some(what.details(name)))
    }

    /// A path that no handler knows. Kubernetes answers plain text, and this Status where a group or version is unknown.
    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource", Some(Details::default()))
    }

    pub(crate) fn already_exists(what: What<'_>, name: &str) -> Self {
        let message = format!("{} {} already exists", what.qualified(), quote(name));
        Self::new(409, "AlreadyExists", message, Some(what.details(name)))
    }

    /// No free name was found for a `generateName`.
    pub(crate) fn generated_name_exists(what: What<'_>, name: &str) -> Self {
        let said = "already exists, the server was not able to generate a unique name for the object";
        let message = format!("{} {} {said}", what.qualified(), quote(name));
        Self::new(409, "AlreadyExists", message, Some(Details { retry_after_seconds: 1, ..what.details(name) }))
    }

    pub(crate) fn unauthorized(message: &str) -> Self {
        let message = if message.is_empty() { "not authorized" } else { message };
        Self::new(401, "Unauthorized", message, None)
    }

    /// `why` is, for RBAC, `User "x" cannot get resource "pods" in API group "" in the namespace "default"`.
    pub(crate) fn forbidden(what: What<'_>, name: &str, why: &str) -> Self {
        let message = match (what.resource.is_empty() && what.group.is_empty(), name) {
            (true, _) => format!("forbidden: {why}"),
            (false, "") => format!("{} is forbidden: {why}", what.qualified()),
            (false, name) => format!("{} {} is forbidden: {why}", what.qualified(), quote(name)),
        };
        Self::new(403, "Forbidden", message, Some(what.details(name)))
    }

    pub(crate) fn conflict(what: What<'_>, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", what.qualified(), quote(name));
        Self::new(409, "Conflict", message, Some(what.details(name)))
    }

    /// The object changed since the caller read it.
    pub(crate) fn modified(what: What<'_>, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(what, name, why)
    }

    /// Server-side apply met fields of other managers.
    pub(crate) fn apply_conflict(message: String, causes: Vec<StatusCause>) -> Self {
        Self::new(409, "Conflict", message, Some(Details { causes, ..Details::default() }))
    }

    /// A resourceVersion or continue token older than what is kept.
    pub(crate) fn expired(message: &str) -> Self {
        Self::new(410, "Expired", message, None)
    }

    /// `kind.resource` is the kind here: `ConfigMap "x" is invalid: ...`.
    pub(crate) fn invalid(kind: What<'_>, name: &str, errors: &[FieldError]) -> Self {
        let mut said: Vec<String> = Vec::new();
        for error in errors {
            let line = error.to_string();
            if !said.contains(&line) {
                said.push(line);
            }
        }
        let mut message = format!("{} {} is invalid", kind.qualified(), quote(name));
        match said.as_slice() {
            [] => {}
            [one] => message.push_str(&format!(": {one}")),
            many => message.push_str(&format!(": [{}]", many.join(", "))),
        }
        let causes = errors.iter().map(StatusCause::from).collect();
        Self::new(422, "Invalid", message, Some(Details { causes, ..kind.details(name) }))
    }

    /// A patch whose result or whose form cannot be used (422 without causes), e.g. a JSON patch `test` that failed.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message, Some(Details::default()))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, None)
    }

    /// There is no room for one more, now.
    pub(crate) fn too_many_requests() -> Self {
        let message = "Too many requests, please try again later.";
        Self::new(429, "TooManyRequests", message, Some(Details { retry_after_seconds: 1, ..Details::default() }))
    }

    pub(crate) fn unavailable(message: &str) -> Self {
        Self::new(503, "ServiceUnavailable", message, None)
    }

    pub(crate) fn method_not_supported(what: What<'_>, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind {}", quote(&what.qualified()));
        Self::new(405, "MethodNotAllowed", message, Some(what.details("")))
    }

    /// No route takes this method on this path.
    pub(crate) fn not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, Some(Details::default()))
    }

    pub(crate) fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message, None)
    }

    /// `accepted` in Kubernetes' order: `application/json, application/yaml, ...`.
    pub(crate) fn unsupported_media_type(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(415, "UnsupportedMediaType", message, None)
    }

    pub(crate) fn too_large(message: &str) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"), None)
    }

    pub(crate) fn timeout(message: &str, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds, ..Details::default() };
        Self::new(504, "Timeout", format!("Timeout: {message}"), Some(details))
    }

    pub(crate) fn internal(message: &str) -> Self {
        let cause = StatusCause { reason: String::new(), message: message.to_owned(), field: String::new() };
        let details = Details { causes: vec![cause], ..Details::default() };
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"), Some(details))
    }

    /// An error that Kubernetes passes on as it is: 500 without a reason.
    pub(crate) fn unexplained(message: impl Into<String>) -> Self {
        Self::new(500, "", message, None)
    }

    /// The `v1 Status` object, fields in Kubernetes' order, empty ones left out.
    pub(crate) fn to_value(&self) -> Value {
        let mut out = Map::new();
        out.insert("kind".into(), json!("Status"));
        out.insert("apiVersion".into(), json!("v1"));
        out.insert("metadata".into(), json!({}));
        out.insert("status".into(), json!("Failure"));
        out.insert("message".into(), json!(self.message));
        if !self.reason.is_empty() {
            out.insert("reason".into(), json!(self.reason));
        }
        if let Some(details) = &self.details {
            out.insert("details".into(), details.to_value());
        }
        out.insert("code".into(), json!(self.code));
        Value::Object(out)
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            out.insert("causes".into(), self.causes.iter().map(StatusCause::to_value).collect());
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        Value::Object(out)
    }
}

impl StatusCause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        Value::Object(out)
    }
}
