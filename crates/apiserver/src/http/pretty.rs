//! JSON for people: `curl` and browsers are answered in lines, as upstream answers them.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, USER_AGENT};
use http::request::Parts;

use super::Query;

/// Whether the answer is to be in lines: `isPrettyPrint` of `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.
pub(crate) fn wanted(request: &Parts) -> bool {
    match request.uri.path() {
        // These always are, and those never.
        "/" | "/version" => return true,
        path if ["/openapi/", "/openid/", "/.well-known/"].iter().any(|it| path.starts_with(it)) => return false,
        _ => {}
    }
    let by_type = |clause: &str| clause.split(';').any(|it| it.trim() == "pretty=1");
    if said(&request.headers, ACCEPT).split(',').any(by_type) {
        return true;
    }
    match Query::new(request.uri.query().unwrap_or_default()).get("pretty") {
        Some(asked) => matches!(asked.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|it| said(&request.headers, USER_AGENT).starts_with(it)),
    }
}

fn said(headers: &HeaderMap, name: http::HeaderName) -> &str {
    headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default()
}

/// Puts a document that has no spaces between its parts into lines, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Indenter {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Something was opened, and whether anything is in it is not known yet.
    opened: bool,
}

impl Indenter {
    /// The next piece, in lines.
    pub(crate) fn indent(&mut self, piece: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(piece.len() + piece.len() / 2);
        for &byte in piece {
            if self.in_string {
                out.push(byte);
                (self.in_string, self.escaped) = match byte {
                    _ if self.escaped => (true, false),
                    b'\\' => (true, true),
                    b'"' => (false, false),
                    _ => (true, false),
                };
                continue;
            }
            let closes = matches!(byte, b'}' | b']');
            let empty = std::mem::take(&mut self.opened);
            if empty && !closes {
                self.line(&mut out);
            }
            match byte {
                b'{' | b'[' => {
                    out.push(byte);
                    self.depth += 1;
                    self.opened = true;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if !empty {
                        self.line(&mut out);
                    }
                    out.push(byte);
                }
                b',' => {
                    out.push(byte);
                    self.line(&mut out);
                }
                b':' => out.extend_from_slice(b": "),
                _ => {
                    self.in_string = byte == b'"';
                    out.push(byte);
                }
            }
        }
        out.into()
    }

    fn line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + 2 * self.depth, b' ');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a\\\\\"{}:,\\[\\] \n]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            let fields = prop::collection::btree_map("[a\"{:,]{0,3}", inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                fields.prop_map(|it| Value::Object(it.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_document_in_pieces_is_indented_as_serde_does(value in value(), size in 1usize..20) {
            let (compact, mut indenter) = (value.to_string(), Indenter::default());
            let pieces: Vec<u8> = compact.as_bytes().chunks(size).flat_map(|it| indenter.indent(it)).collect();
            prop_assert_eq!(String::from_utf8(pieces).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        }
    }

    #[test]
    fn people_and_who_asks_for_it_get_lines() {
        for (uri, agent, accept, lines) in [
            ("/api/v1/pods", "curl/8.5.0", "*/*", true),
            ("/api/v1/pods", "Mozilla/5.0 (X11)", "*/*", true),
            ("/api/v1/pods?pretty=0", "curl/8.5.0", "*/*", false),
            ("/api/v1/pods?pretty=yes", "curl/8.5.0", "*/*", false),
            ("/api/v1/pods?pretty", "kubectl/v1.34.2", "*/*", false),
            ("/api/v1/pods?limit=1&pretty=true", "kubectl/v1.34.2", "*/*", true),
            ("/api/v1/pods", "kubectl/v1.34.2", "application/json; pretty=1", true),
            ("/api/v1/pods", "kubectl/v1.34.2", "application/json", false),
            ("/version", "kubectl/v1.34.2", "*/*", true),
            ("/openapi/v3", "curl/8.5.0", "*/*", false),
        ] {
            let request = http::Request::get(uri).header(USER_AGENT, agent).header(ACCEPT, accept).body(()).unwrap();
            assert_eq!(wanted(&request.into_parts().0), lines, "{uri} {agent} {accept}");
        }
        let none = json!({"a": {}, "b": [[]]}).to_string();
        assert_eq!(Indenter::default().indent(none.as_bytes()), "{\n  \"a\": {},\n  \"b\": [\n    []\n  ]\n}");
    }
}
