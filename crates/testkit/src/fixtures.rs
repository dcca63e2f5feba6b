//! One builder for each kind: a valid object with plain defaults, and a closure for what the test is about.

use std::collections::BTreeMap;

use api::agents::{
    Agent, AgentRun, AgentRunSpec, Agents, ModelSpec, SecretRef, SympoziumInstance, SympoziumInstanceSpec,
    SympoziumPolicy,
};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Where fixtures are, until a [`House`](crate::House) puts them into its own namespace.
pub const NAMESPACE: &str = "default";
/// The Secret that [`agent_run`] and [`instance`] name.
pub const KEY_SECRET: &str = "model-key";

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

/// A run of instance `me` without a session, that asks the model `scripted` to say something.
pub fn agent_run(name: &str, with: impl FnOnce(&mut AgentRun)) -> AgentRun {
    let model = ModelSpec {
        provider: "openai".to_owned(),
        model: "scripted".to_owned(),
        auth_secret_ref: KEY_SECRET.to_owned(),
        ..ModelSpec::default()
    };
    let spec = AgentRunSpec {
        instance_ref: "me".to_owned(),
        agent_id: "primary".to_owned(),
        task: "say something".to_owned(),
        model,
        ..AgentRunSpec::default()
    };
    let mut it = AgentRun { metadata: metadata(name), spec, status: None };
    with(&mut it);
    it
}

/// An instance with a model and a key, and nothing else.
pub fn instance(name: &str, with: impl FnOnce(&mut SympoziumInstance)) -> SympoziumInstance {
    let agent = Agent { model: "scripted".to_owned(), ..Agent::default() };
    let key = SecretRef { provider: Some("openai".to_owned()), secret: KEY_SECRET.to_owned() };
    let spec = SympoziumInstanceSpec {
        agents: Agents { default: agent },
        auth_refs: Some(vec![key]),
        ..SympoziumInstanceSpec::default()
    };
    let mut it = SympoziumInstance { metadata: metadata(name), spec, status: None };
    with(&mut it);
    it
}

/// A policy that says nothing.
pub fn policy(name: &str, with: impl FnOnce(&mut SympoziumPolicy)) -> SympoziumPolicy {
    let mut it = SympoziumPolicy { metadata: metadata(name), ..SympoziumPolicy::default() };
    with(&mut it);
    it
}

/// A Secret with one key, `API_KEY`.
pub fn secret(name: &str, value: &str) -> Secret {
    let data = BTreeMap::from([("API_KEY".to_owned(), value.to_owned())]);
    Secret { metadata: metadata(name), string_data: Some(data), ..Secret::default() }
}

pub fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ConfigMap { metadata: metadata(name), data: Some(data), ..ConfigMap::default() }
}

pub fn runtime_class(name: &str, handler: &str) -> RuntimeClass {
    let metadata = ObjectMeta { namespace: None, ..metadata(name) };
    RuntimeClass { handler: handler.to_owned(), metadata, ..RuntimeClass::default() }
}

pub fn node(name: &str, labels: &[(&str, &str)]) -> Node {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let metadata = ObjectMeta { namespace: None, labels: Some(labels), ..metadata(name) };
    Node { metadata, ..Node::default() }
}

/// An object from YAML.
///
/// # Panics
/// When it is none.
pub fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}
