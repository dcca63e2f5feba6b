//! The model's key: read from its Secret at each lease, kept by nobody.

use api::agents::MODEL_KEYS;
use k8s_openapi::api::core::v1::Secret;
use kit::SecretString;
use kube::{Api, Client};

/// Why there is no key (yet).
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the Secret {name:?} is not there")]
    Missing { name: String },
    #[error("the Secret {name:?} has no key: it needs one of {}", MODEL_KEYS.join(", "))]
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
    let found = MODEL_KEYS.iter().filter_map(|key| data.remove(*key)).find(|key| !key.0.is_empty());
    let key = found.ok_or_else(|| Error::Nameless { name: name() })?;
    let key = String::from_utf8(key.0).map_err(|_| Error::Binary { name: name() })?;
    Ok(SecretString::from(key))
}
