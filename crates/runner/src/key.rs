//! The model's key: read from its Secret at each lease, kept by nobody.

use k8s_openapi::api::core::v1::Secret;
use kit::SecretString;
use kube::{Api, Client};

/// Which entry of a Secret is the key; else its only one.
const NAMES: [&str; 3] = ["API_KEY", "OPENAI_API_KEY", "PROVIDER_API_KEY"];

/// Why there is no key (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the Secret {name:?} is not there")]
    Missing { name: String },
    #[error("the Secret {name:?} has no key: it needs one of API_KEY, OPENAI_API_KEY and PROVIDER_API_KEY")]
    Nameless { name: String },
    #[error("the key in the Secret {name:?} is no text")]
    Binary { name: String },
    #[error("cannot read the Secret {name:?}")]
    Unreadable { name: String, source: Box<kube::Error> },
}

pub(crate) async fn read(client: &Client, namespace: &str, name: &str) -> Result<SecretString, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let name = || name.to_owned();
    let found = secrets.get_opt(&name()).await;
    let secret = found.map_err(|source| Error::Unreadable { name: name(), source: Box::new(source) })?;
    let mut data = secret.ok_or_else(|| Error::Missing { name: name() })?.data.unwrap_or_default();
    let found = match NAMES.iter().find_map(|key| data.remove(*key)) {
        None if data.len() == 1 => data.pop_first().map(|(_, value)| value),
        found => found,
    };
    let key = found.filter(|key| !key.0.is_empty()).ok_or_else(|| Error::Nameless { name: name() })?;
    let key = String::from_utf8(key.0).map_err(|_| Error::Binary { name: name() })?;
    Ok(SecretString::from(key))
}
