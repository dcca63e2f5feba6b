//! Links that lead to whom the proxy asks, led back through the proxy: `rewriteURL` of
//! `k8s.io/apimachinery/pkg/util/proxy/transport.go`, with what it takes of Go's `path` and `net/url`.

use std::fmt::Write;

use crate::http::unescape;

/// What is asked through the proxy, as links in an answer may name it.
#[derive(Clone)]
pub(super) struct Links {
    /// The path of the proxy itself: `/api/v1/namespaces/default/pods/p/proxy`.
    pub(super) prefix: String,
    /// The address that is asked, and what the client calls this server.
    pub(super) address: String,
    pub(super) host: String,
}

impl Links {
    /// Where a link leads through the proxy. None where it stays as it is: it leads elsewhere, or is relative.
    pub(super) fn led(&self, link: &str) -> Option<String> {
        if link.bytes().any(|it| it.is_ascii_control()) {
            return None;
        }
        let (rest, tail) = link.split_at(link.find(['?', '#']).unwrap_or(link.len()));
        let colon = rest.find(':').filter(|at| rest.find('/').is_none_or(|slash| *at < slash));
        let (scheme, rest) = rest.split_at(colon.map_or(0, |at| at + 1));
        if !scheme.is_empty() && !is_scheme(scheme.trim_end_matches(':')) {
            return None;
        }
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        let ours = host.is_empty() || host == self.address || host == self.host;
        if !ours || !path.starts_with('/') || !is_escaped_well(path) {
            return None;
        }
        let origin = if !host.is_empty() && host == self.host { format!("{scheme}//{host}") } else { String::new() };
        let plain = unescape(path);
        let path = if plain.starts_with(self.prefix.as_bytes()) {
            path.to_owned()
        } else {
            let joined = [self.prefix.as_bytes(), b"/", &plain].concat();
            escape(&clean(&joined, plain.ends_with(b"/")))
        };
        let led = format!("{origin}{path}{tail}");
        (led != link).then_some(led)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|it: char| it.is_ascii_alphabetic())
        && text.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '+' | '-' | '.'))
}

fn is_escaped_well(path: &str) -> bool {
    path.split('%').skip(1).all(|it| it.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

/// A rooted path without empty, `.` and `..` segments, and never above the root: Go's `path.Clean`. It ends with a slash where
/// that is asked for.
pub(super) fn clean(path: &[u8], slash: bool) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for part in path.split(|it| *it == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    let mut clean = vec![b'/'];
    clean.extend(kept.join(&b'/'));
    if slash && !clean.ends_with(b"/") {
        clean.push(b'/');
    }
    clean
}

/// A path as Go's `URL.EscapedPath` writes it.
pub(super) fn escape(path: &[u8]) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => escaped.push(char::from(*byte)),
            b'-' | b'_' | b'.' | b'~' | b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'@' => {
                escaped.push(char::from(*byte));
            }
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_whom_is_asked_goes_through_the_proxy_and_any_other_stays() {
        let links = Links { prefix: "/p/proxy".into(), address: "10.0.0.1:80".into(), host: "localhost:8001".into() };
        for (link, led) in [
            ("/", Some("/p/proxy/")),
            ("/a/./b/../c%20d/?q=/x#/y", Some("/p/proxy/a/c%20d/?q=/x#/y")),
            ("/../x", Some("/p/x")),
            ("/a%ff", Some("/p/proxy/a%FF")),
            ("http://10.0.0.1:80/a", Some("/p/proxy/a")),
            ("//10.0.0.1:80/a", Some("/p/proxy/a")),
            ("http://localhost:8001/a", Some("http://localhost:8001/p/proxy/a")),
            ("http://localhost:8001/p/proxy/a", None),
            ("http://10.0.0.1:80/p/proxy/(a)", Some("/p/proxy/(a)")),
            ("/p/proxy/a", None),
            ("http://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("http://10.0.0.1:80", None),
            ("http://me@10.0.0.1:80/a", None),
            ("a/b", None),
            ("", None),
            ("#top", None),
            ("mailto:a@b", None),
            ("javascript:go('/x')", None),
            ("1x:/a", None),
            ("/a%zz", None),
            ("/a\n", None),
        ] {
            assert_eq!(links.led(link).as_deref(), led, "{link}");
        }
    }

    #[test]
    fn no_path_leads_above_the_root() {
        for (path, cleaned) in [("", "/"), ("/../..", "/"), ("a//b/./../c", "/a/c"), ("/a/..%2f", "/a/..%2f")] {
            assert_eq!(String::from_utf8(clean(path.as_bytes(), false)).unwrap(), cleaned, "{path}");
        }
        assert_eq!(escape(b"/a b/(c)%2e\xff$&+,:;=@"), "/a%20b/%28c%29%252e%FF$&+,:;=@");
    }
}
