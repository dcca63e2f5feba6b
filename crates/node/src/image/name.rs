//! Names of images, as docker reads and writes them.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// What a name without a domain lies at.
const DEFAULT_DOMAIN: &str = "docker.io";
const LONGEST: usize = 255;

/// The digest of a blob: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let ok = hex.len() == 64 && hex.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        ok.then(|| Self(text.to_owned()))
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn finish(hash: Sha256) -> Self {
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{hex}"))
    }

    pub(crate) fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("{:?} is no sha256 digest", text.chars().take(100).collect::<String>()))
    }
}

impl From<Digest> for String {
    fn from(it: Digest) -> Self {
        it.0
    }
}

/// Why something is no name, in docker's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidName(String);

/// A parsed name: `busybox` is `docker.io/library/busybox`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// With its port, if it has one.
    pub(crate) domain: String,
    pub(crate) path: String,
    /// As it was said; see [`Name::full`].
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

impl Name {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        let bad = || InvalidName("invalid reference format".to_owned());
        // More than any name has: the longest repository, tag and digest.
        if text.len() > 1024 {
            return Err(bad());
        }
        if text.len() == 64 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidName(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (mut domain, mut rest) = match text.split_once('/') {
            Some((first, rest)) if is_domain(first) => (first.to_owned(), rest.to_owned()),
            _ => (DEFAULT_DOMAIN.to_owned(), text.to_owned()),
        };
        if domain == "index.docker.io" {
            domain = DEFAULT_DOMAIN.to_owned();
        }
        if domain == DEFAULT_DOMAIN && !rest.contains('/') {
            rest = format!("library/{rest}");
        }
        let remote = rest.split(':').next().unwrap_or_default();
        if remote.to_lowercase() != remote {
            return Err(InvalidName(format!("invalid reference format: repository name ({remote}) must be lowercase")));
        }
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest.to_owned(), Some(digest_of(digest)?)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path.to_owned(), Some(tag.to_owned())),
            None => (rest, None),
        };
        if !valid_domain(&domain) || !path.split('/').all(valid_component) || !tag.as_deref().is_none_or(valid_tag) {
            return Err(bad());
        }
        if domain.len() + 1 + path.len() > LONGEST {
            return Err(InvalidName(format!("repository name must not be more than {LONGEST} characters")));
        }
        Ok(Self { domain, path, tag, digest })
    }

    /// Where its images are, without tag and digest.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// With the tag `latest` if it names none and no digest.
    pub(crate) fn full(&self) -> Self {
        let mut full = self.clone();
        if full.tag.is_none() && full.digest.is_none() {
            full.tag = Some("latest".to_owned());
        }
        full
    }

    /// By what it is known in the store: its digest, else its tag.
    pub(crate) fn key(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.repository()),
            None => format!("{}:{}", self.repository(), self.version()),
        }
    }

    /// What a registry is asked for: the digest, else the tag.
    pub(crate) fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn digest_of(text: &str) -> Result<Digest, InvalidName> {
    Digest::parse(text).ok_or_else(|| {
        let other = text.split_once(':').is_some_and(|(kind, hex)| {
            !kind.is_empty() && kind != "sha256" && hex.len() >= 32 && hex.bytes().all(|it| it.is_ascii_hexdigit())
        });
        InvalidName(if other { "unsupported digest algorithm" } else { "invalid reference format" }.to_owned())
    })
}

/// Whether what is before the first slash is a domain and no part of a path.
fn is_domain(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.to_lowercase() != first
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let label = |it: &str| {
        !it.is_empty()
            && it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !it.starts_with('-')
            && !it.ends_with('-')
    };
    let host = match host.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    host && port.is_none_or(|it| it.parse::<u16>().is_ok())
}

/// Small letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn valid_component(text: &str) -> bool {
    let plain = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit();
    let between = |it: &str| matches!(it, "" | "." | "_" | "__") || it.bytes().all(|it| it == b'-');
    let ends = |it: Option<u8>| it.is_some_and(plain);
    ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.split(|it: char| it.is_ascii() && plain(it as u8)).all(between)
}

fn valid_tag(text: &str) -> bool {
    let word = |it: u8| it.is_ascii_alphanumeric() || it == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|it| word(it) || matches!(it, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c"),
            ("bitnami/kubectl", "docker.io/bitnami/kubectl:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:z", "localhost:5000/x/y:z"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("UPPER/x:1", "UPPER/x:1"),
            ("gcr.io/a__b/c-_d", ""),
            ("gcr.io/a__b/c---d.e:V1.2_3", "gcr.io/a__b/c---d.e:V1.2_3"),
            (&format!("busybox@{digest}"), &format!("docker.io/library/busybox@{digest}")),
            (&format!("busybox:1@{digest}"), &format!("docker.io/library/busybox:1@{digest}")),
        ] {
            let found = Name::parse(text).map(|it| it.full().to_string()).unwrap_or_default();
            assert_eq!(found, full, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_in_dockers_words() {
        for (text, why) in [
            ("", "invalid reference format"),
            (":::", "invalid reference format"),
            ("busybox:", "invalid reference format"),
            ("busy box", "invalid reference format"),
            ("busybox@sha256:123", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("../etc/passwd", "invalid reference format"),
            ("gcr.io/../x", "invalid reference format"),
            ("host:99999/x", "invalid reference format"),
            ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
            (&format!("x@sha512:{}", "a".repeat(128)), "unsupported digest algorithm"),
            (&"a".repeat(300), "repository name must not be more than 255 characters"),
            (&"a/".repeat(4000), "invalid reference format"),
            (
                &"a".repeat(64),
                &format!("invalid repository name ({}), cannot specify 64-byte hexadecimal strings", "a".repeat(64)),
            ),
        ] {
            assert_eq!(Name::parse(text).unwrap_err().to_string(), why, "{text}");
        }
    }
}
