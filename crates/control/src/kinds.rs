//! The kinds that are watched, and under which words their objects are found.

use api::agents::{AgentRun, RunPhase, SympoziumInstance, SympoziumPolicy};
use api::reasons;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::machinery::Cached;

/// Of Secrets and ConfigMaps only names matter here, so only metadata is fetched: no key ever enters these caches.
pub(crate) type SecretMeta = PartialObjectMeta<Secret>;
pub(crate) type ConfigMapMeta = PartialObjectMeta<ConfigMap>;
pub(crate) type NodeMeta = PartialObjectMeta<Node>;

impl Cached for SecretMeta {}
impl Cached for ConfigMapMeta {}
impl Cached for NodeMeta {}
impl Cached for RuntimeClass {}
impl Cached for SympoziumPolicy {}

/// What there is of an isolation class that is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Class {
    #[default]
    Missing,
    /// The RuntimeClass is there; its handler, this one, is not.
    NoHandler(String),
    /// Both are.
    There { handler: String },
}

impl Class {
    pub(crate) fn of(found: Option<&RuntimeClass>, handlers: &[String]) -> Self {
        match found.map(|it| it.handler.clone()) {
            None => Self::Missing,
            Some(handler) if handlers.contains(&handler) => Self::There { handler },
            Some(handler) => Self::NoHandler(handler),
        }
    }

    /// Why nothing can be isolated in this class, by its name: a reason and a sentence.
    pub(crate) fn lack(&self, name: &str) -> Option<(&'static str, String)> {
        match self {
            Self::There { .. } => None,
            Self::Missing => Some((reasons::RUNTIME_CLASS_MISSING, format!("RuntimeClass {name:?} not found"))),
            Self::NoHandler(handler) => Some((
                reasons::RUNTIME_HANDLER_MISSING,
                format!("RuntimeClass {name:?} needs the handler {handler:?}, which this machine has not"),
            )),
        }
    }
}

/// Where policies are that bind instances of every namespace that has none of that name itself.
pub(crate) const SYSTEM_NAMESPACE: &str = "sympozium-system";

/// The memory of instance `x` is the ConfigMap `x-memory` with one key. As in the original.
pub(crate) const MEMORY_SUFFIX: &str = "-memory";
pub(crate) const MEMORY_KEY: &str = "MEMORY.md";

/// Runs that have not ended, anywhere.
pub(crate) const OPEN: &str = "open";
/// Runs that go on.
pub(crate) fn active(namespace: &str, instance: &str) -> String {
    format!("active/{namespace}/{instance}")
}
/// Runs that have not ended, by instance; by session; by the Secret that they name.
pub(crate) fn of_instance(namespace: &str, instance: &str) -> String {
    format!("instance/{namespace}/{instance}")
}
pub(crate) fn of_session(namespace: &str, instance: &str, session: &str) -> String {
    format!("session/{namespace}/{instance}/{session}")
}
/// Also instances, by the Secrets that they name.
pub(crate) fn with_secret(namespace: &str, secret: &str) -> String {
    format!("secret/{namespace}/{secret}")
}
/// All runs of an instance, ended or not.
pub(crate) fn ever_of_instance(namespace: &str, instance: &str) -> String {
    format!("ever/{namespace}/{instance}")
}
/// Instances, by the policy that they name; of all namespaces.
pub(crate) fn with_policy(policy: &str) -> String {
    format!("policy/{policy}")
}

pub(crate) fn phase(run: &AgentRun) -> Option<RunPhase> {
    run.status.as_ref().and_then(|status| status.phase)
}

pub(crate) fn has_ended(run: &AgentRun) -> bool {
    phase(run).is_some_and(RunPhase::is_final)
}

impl Cached for AgentRun {
    fn tags(&self) -> Vec<String> {
        let (namespace, instance) = (self.namespace().unwrap_or_default(), &self.spec.instance_ref);
        let mut tags = vec![ever_of_instance(&namespace, instance)];
        if has_ended(self) {
            return tags;
        }
        tags.push(OPEN.to_owned());
        tags.push(of_instance(&namespace, instance));
        if phase(self) == Some(RunPhase::Running) {
            tags.push(active(&namespace, instance));
        }
        if !self.spec.session_key.is_empty() {
            tags.push(of_session(&namespace, instance, &self.spec.session_key));
        }
        if !self.spec.model.auth_secret_ref.is_empty() {
            tags.push(with_secret(&namespace, &self.spec.model.auth_secret_ref));
        }
        tags
    }
}

impl Cached for SympoziumInstance {
    fn tags(&self) -> Vec<String> {
        let namespace = self.namespace().unwrap_or_default();
        let mut tags: Vec<String> = secrets(self).into_iter().map(|secret| with_secret(&namespace, &secret)).collect();
        tags.extend(self.spec.policy_ref.as_deref().filter(|name| !name.is_empty()).map(with_policy));
        tags
    }
}

/// Every Secret that an instance names, each once, in the order of the spec.
pub(crate) fn secrets(instance: &SympoziumInstance) -> Vec<String> {
    let spec = &instance.spec;
    let keys = spec.auth_refs.iter().flatten().map(|it| it.secret.as_str());
    let channels = spec.channels.iter().flatten().filter_map(|it| it.config_ref.as_ref()).map(|it| it.secret.as_str());
    let servers = spec.mcp_servers.iter().flatten().filter_map(|it| it.auth_secret.as_deref());
    let mut names: Vec<String> = Vec::new();
    for name in keys.chain(channels).chain(servers) {
        if !name.is_empty() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}
