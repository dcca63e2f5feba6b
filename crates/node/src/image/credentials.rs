//! Passwords for registries, as pull secrets have them.

use std::collections::BTreeMap;

use base64::Engine as _;
use kit::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::name::Name;

const MOST: usize = 1000;

/// For the registries and repositories that its key fits.
#[derive(Clone, Debug)]
pub struct Credential {
    /// A host, perhaps with stars and a port, and what a path begins with.
    key: String,
    pub(crate) user: String,
    pub(crate) password: SecretString,
    /// To be exchanged for a token.
    pub(crate) identity: Option<SecretString>,
    /// To be shown as it is.
    pub(crate) token: Option<SecretString>,
}

#[derive(Deserialize)]
struct File {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: SecretText,
    auth: SecretText,
    identitytoken: SecretText,
    registrytoken: SecretText,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct SecretText(SecretString);

impl Default for SecretText {
    fn default() -> Self {
        Self(SecretString::from(""))
    }
}

impl SecretText {
    fn some(self) -> Option<SecretString> {
        (!self.0.expose_secret().is_empty()).then_some(self.0)
    }
}

impl Credential {
    /// Of a Secret of type `kubernetes.io/dockerconfigjson` (key `.dockerconfigjson`), or docker's `config.json`.
    ///
    /// # Errors
    /// A sentence, without a word of what it has, when it is none.
    pub fn parse_config(bytes: &[u8]) -> Result<Vec<Self>, String> {
        let file: File =
            serde_json::from_slice(bytes).map_err(|error| place("it has no \"auths\" that can be read", &error))?;
        Self::all(file.auths)
    }

    /// Of a Secret of type `kubernetes.io/dockercfg` (key `.dockercfg`).
    ///
    /// # Errors
    /// As [`Self::parse_config`].
    pub fn parse_legacy(bytes: &[u8]) -> Result<Vec<Self>, String> {
        Self::all(serde_json::from_slice(bytes).map_err(|error| place("it cannot be read", &error))?)
    }

    fn all(entries: BTreeMap<String, Entry>) -> Result<Vec<Self>, String> {
        if entries.len() > MOST {
            return Err(format!("it has more than {MOST} registries"));
        }
        let mut all = Vec::new();
        for (key, entry) in entries {
            let (mut user, mut password) = (entry.username, entry.password.0);
            if let Some(auth) = entry.auth.some() {
                let bad = || "an \"auth\" in it is no USER:PASSWORD in base64".to_owned();
                let text = auth.expose_secret().trim();
                let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad())?;
                let text = String::from_utf8(bytes).map_err(|_| bad())?;
                let (name, secret) = text.split_once(':').ok_or_else(bad)?;
                (user, password) = (name.to_owned(), SecretString::from(secret.trim_end_matches('\0')));
            }
            let (identity, token) = (entry.identitytoken.some(), entry.registrytoken.some());
            all.push(Self { key, user, password, identity, token });
        }
        // The longest key first, as a kubelet tries them.
        all.sort_by(|a, b| b.key.cmp(&a.key));
        Ok(all)
    }

    /// For one registry, whoever asks.
    pub fn new(registry: &str, user: &str, password: SecretString) -> Self {
        Self { key: registry.to_owned(), user: user.to_owned(), password, identity: None, token: None }
    }

    pub(crate) fn fits(&self, name: &Name) -> bool {
        let key = self.key.strip_prefix("https://").or_else(|| self.key.strip_prefix("http://")).unwrap_or(&self.key);
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        // docker login writes the version of the API behind its own registry.
        let path = match path {
            "v1" | "v2" => "",
            _ => path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path),
        };
        if name.domain == "docker.io" && matches!(host, "index.docker.io" | "registry-1.docker.io") {
            return true;
        }
        let split = |it: &str| match it.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host.to_owned(), Some(port.to_owned())),
            _ => (it.to_owned(), None),
        };
        let ((host, port), (domain, domain_port)) = (split(host), split(&name.domain));
        let (host, domain): (Vec<_>, Vec<_>) = (host.split('.').collect(), domain.split('.').collect());
        port == domain_port
            && host.len() == domain.len()
            && host.iter().zip(&domain).all(|(pattern, part)| star(pattern, part))
            && name.path.starts_with(path)
    }
}

/// Where a stranger's JSON is broken, and nothing of what it has.
fn place(what: &str, error: &serde_json::Error) -> String {
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// Whether a name fits a pattern in which `*` is anything.
fn star(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_fit_registries_as_a_kubelet_matches_them() {
        for (key, name, fits) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("docker.io", "busybox", true),
            ("index.docker.io", "gcr.io/x/y", false),
            ("gcr.io", "gcr.io/x/y", true),
            ("https://gcr.io/v2/", "gcr.io/x/y", true),
            ("gcr.io/x", "gcr.io/x/y", true),
            ("gcr.io/z", "gcr.io/x/y", false),
            ("*.azurecr.io", "me.azurecr.io/x", true),
            ("*.azurecr.io", "a.b.azurecr.io/x", false),
            ("*.*.dkr.ecr.*.amazonaws.com", "1.2.dkr.ecr.eu-west-1.amazonaws.com/x", true),
            ("pre*fix.io", "pre-any-fix.io/x", true),
            ("registry:5000", "registry:5000/x", true),
            ("registry", "registry:5000/x", false),
            ("registry.io:5000", "registry.io/x", false),
        ] {
            let credential = Credential::new(key, "", SecretString::from(""));
            assert_eq!(credential.fits(&Name::parse(name).unwrap()), fits, "{key} {name}");
        }
    }

    #[test]
    fn secrets_of_both_types_are_read_and_told_to_nobody() {
        let auth = base64::engine::general_purpose::STANDARD.encode("ann:se:cret");
        let entries =
            format!(r#"{{"gcr.io": {{"auth": "{auth}"}}, "gcr.io/x": {{"username": "bob", "password": "pw"}}}}"#);
        let config = Credential::parse_config(format!(r#"{{"auths": {entries}}}"#).as_bytes()).unwrap();
        let legacy = Credential::parse_legacy(entries.as_bytes()).unwrap();
        for all in [config, legacy] {
            let found: Vec<_> = all.iter().map(|it| (it.user.as_str(), it.password.expose_secret())).collect();
            assert_eq!(found, [("bob", "pw"), ("ann", "se:cret")], "the longer key first");
            assert!(!format!("{all:?}").contains("pw"));
        }
        for bad in [
            r#"{"auths": {"x": {"auth": "hunter2!"}}}"#,
            r#"{"auths": "hunter2"}"#,
            "hunter2",
            r#"{"auths": {"x": {"auth": 2}}}"#,
        ] {
            let error = Credential::parse_config(bad.as_bytes()).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
