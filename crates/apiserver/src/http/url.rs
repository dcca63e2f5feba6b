//! What a URL asks for: `k8s.io/apiserver/pkg/endpoints/request.RequestInfo`.

use std::borrow::Cow;

use http::Method;

/// A request for a resource, taken apart. Parts that the URL does not name are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; empty for a method
    /// that means nothing on a resource.
    pub(crate) verb: &'static str,
    /// Segments beyond the subresource: `/pods/p/proxy/a/b`.
    pub(crate) rest: Vec<String>,
}

/// The longest path that is looked at.
pub(crate) const MAX_PATH: usize = 8 << 10;

impl Target {
    /// `None` when the path names no resource (`/api`, `/apis/apps`, `/version`).
    pub(crate) fn parse(method: &Method, path: &str, query: &Query<'_>) -> Option<Self> {
        if path.len() > MAX_PATH {
            return None;
        }
        // An escaped slash separates as a plain one does.
        let path = decode(path);
        let mut parts = path.trim_matches('/').split('/').map(Cow::Borrowed);
        let prefix = parts.next()?;
        let mut target = Self::default();
        match prefix.as_ref() {
            "api" => {}
            "apis" => target.group = parts.next()?.into_owned(),
            _ => return None,
        }
        target.version = parts.next()?.into_owned();
        let mut parts: Vec<String> = parts.map(Cow::into_owned).collect();
        if parts.is_empty() {
            return None;
        }
        let by_path = (parts.len() > 1 && matches!(parts.first().map(String::as_str), Some("watch" | "proxy")))
            .then(|| parts.remove(0));
        target.verb = match (by_path.as_deref(), method) {
            (Some("watch"), _) => "watch",
            (Some(_), _) => "proxy",
            (None, &Method::POST) => "create",
            (None, &Method::GET | &Method::HEAD) => "get",
            (None, &Method::PUT) => "update",
            (None, &Method::PATCH) => "patch",
            (None, &Method::DELETE) => "delete",
            _ => "",
        };
        if parts.first().is_some_and(|first| first == "namespaces")
            && let Some(namespace) = parts.get(1)
        {
            target.namespace.clone_from(namespace);
            if parts.get(2).is_some_and(|third| !matches!(third.as_str(), "status" | "finalize")) {
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        target.resource = parts.next()?;
        target.name = parts.next().unwrap_or_default();
        target.subresource = parts.next().unwrap_or_default();
        target.rest = parts.collect();
        if target.name.is_empty() {
            target.verb = match target.verb {
                "get" if query.flag("watch") => "watch",
                "get" => "list",
                "delete" => "deletecollection",
                other => other,
            };
        }
        Some(target)
    }
}

/// Percent-decoding; what is not UTF-8 afterwards is replaced, and so matches nothing.
fn decode(part: &str) -> Cow<'_, str> {
    if !part.contains('%') {
        return Cow::Borrowed(part);
    }
    Cow::Owned(String::from_utf8_lossy(&unescape(part)).into_owned())
}

/// The bytes that a part of a URL stands for. What is escaped badly stays as it is.
pub(crate) fn unescape(part: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |b: &u8| char::from(*b).to_digit(16);
        match (first, after) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                let byte = hex(high).unwrap_or_default() * 16 + hex(low).unwrap_or_default();
                bytes.push(u8::try_from(byte).unwrap_or_default());
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// A percent-encoded text.
pub(crate) fn unescaped(text: &str) -> String {
    decode(text).into_owned()
}

/// A query string; values are decoded when asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// Every value of a parameter, in order.
    pub(crate) fn all(self, name: &str) -> impl Iterator<Item = String> {
        self.0.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key) == name).then(|| decode(&value.replace('+', " ")).into_owned())
        })
    }

    /// The first value of a parameter, empty counting as absent.
    pub(crate) fn get(self, name: &str) -> Option<String> {
        self.all(name).next().filter(|value| !value.is_empty())
    }

    pub(crate) fn has(self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// A boolean as Kubernetes reads it from a query: present and neither `false` nor `0`.
    pub(crate) fn flag(self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, url: &str) -> Option<Target> {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        Target::parse(method, path, &Query::new(query))
    }

    #[test]
    fn paths_are_taken_apart_as_upstream_does() {
        // verb, group, version, namespace, resource, name, subresource
        for (method, url, want) in [
            (Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]),
            (Method::GET, "/api/v1/namespaces/other", ["get", "", "v1", "other", "namespaces", "other", ""]),
            (
                Method::PUT,
                "/api/v1/namespaces/other/finalize",
                ["update", "", "v1", "other", "namespaces", "other", "finalize"],
            ),
            (Method::GET, "/api/v1/namespaces/other/pods", ["list", "", "v1", "other", "pods", "", ""]),
            (Method::GET, "/api/v1/namespaces/other/pods?watch=1", ["watch", "", "v1", "other", "pods", "", ""]),
            (Method::GET, "/api/v1/pods?watch=false", ["list", "", "v1", "", "pods", "", ""]),
            (Method::GET, "/api/v1/watch/namespaces/other/pods", ["watch", "", "v1", "other", "pods", "", ""]),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/n/deployments",
                ["deletecollection", "apps", "v1", "n", "deployments", "", ""],
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/n/deployments/d/scale/",
                ["patch", "apps", "v1", "n", "deployments", "d", "scale"],
            ),
            (Method::POST, "/apis/x.io/v1/things", ["create", "x.io", "v1", "", "things", "", ""]),
            (Method::GET, "/apis/x.io/v1/things/a%3Ab", ["get", "x.io", "v1", "", "things", "a:b", ""]),
        ] {
            let t = parse(&method, url).unwrap();
            assert_eq!(
                [t.verb, &t.group, &t.version, &t.namespace, &t.resource, &t.name, &t.subresource],
                want,
                "{url}"
            );
        }
        for url in ["/", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1", "/version", "/openapi/v3/apis/apps/v1"] {
            assert_eq!(parse(&Method::GET, url), None, "{url}");
        }
    }

    #[test]
    fn query_values_are_decoded() {
        let query = Query::new("labelSelector=a%3Db%2Cc+in+%28d%29&dryRun=All&empty=&flag");
        assert_eq!(query.get("labelSelector").unwrap(), "a=b,c in (d)");
        assert_eq!(query.get("empty"), None);
        assert!(query.flag("flag") && query.has("dryRun") && !query.has("force"));
    }
}
