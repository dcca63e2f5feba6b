//! Instances: what a tenant names, whether it is there, and what is made for it.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::agents::{AgentRun, SympoziumInstance, SympoziumPolicy};
use api::labels;
use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::ResourceExt;
use ledger::Ledger;
use sandbox::Sandboxes;

use crate::kinds::{self, Class, ConfigMapMeta, NodeMeta, SecretMeta};
use crate::machinery::{Cache, Error, Machinery, ObjectName, Plan, Wakes};

pub(crate) struct Keeper {
    ledger: Ledger,
    sandboxes: Option<Sandboxes>,
    /// The runtime handlers that are here.
    handlers: Arc<[String]>,
    /// The field manager: what marks children as ours.
    manager: String,
    instances: Cache<SympoziumInstance>,
    runs: Cache<AgentRun>,
    policies: Cache<SympoziumPolicy>,
    secrets: Cache<SecretMeta>,
    config_maps: Cache<ConfigMapMeta>,
    nodes: Cache<NodeMeta>,
    classes: Cache<RuntimeClass>,
}

/// What is there of all that an instance names.
#[derive(Debug, Default)]
pub(crate) struct World {
    manager: String,
    /// Secrets that are named and not there.
    missing_secrets: Vec<String>,
    has_policy: bool,
    /// The isolation class that it names.
    class: Class,
    has_node: bool,
    memory: Option<Memory>,
    /// Runs that go on.
    active: usize,
    /// Run objects, ended or not.
    runs: usize,
    /// Runs that the ledger was ever given: those whose objects are gone, too.
    submitted: u64,
}

/// The ConfigMap with the name of the instance's memory.
#[derive(Debug, PartialEq)]
struct Memory {
    uid: String,
    /// Made by us for this instance.
    ours: bool,
}

/// What an instance's keeper does to the ledger.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    /// Its sessions go, and its runs are stopped.
    Forget { namespace: String, instance: String },
}

impl Keeper {
    pub(crate) fn new(
        machinery: &mut Machinery,
        ledger: Ledger,
        sandboxes: Option<Sandboxes>,
        handlers: Arc<[String]>,
        manager: String,
    ) -> Self {
        Self {
            ledger,
            sandboxes,
            handlers,
            manager,
            instances: machinery.cache(),
            runs: machinery.cache(),
            policies: machinery.cache(),
            secrets: machinery.cache(),
            config_maps: machinery.cache(),
            nodes: machinery.cache(),
            classes: machinery.cache(),
        }
    }

    async fn has_policy(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        Ok(self.policies.find(namespace, name).await?.is_some()
            || self.policies.find(kinds::SYSTEM_NAMESPACE, name).await?.is_some())
    }

    async fn memory(&self, it: &SympoziumInstance, namespace: &str) -> Result<Option<Memory>, Error> {
        let found = self.config_maps.find(namespace, &plan::memory_name(it)).await?;
        Ok(found.map(|found| Memory {
            uid: found.uid().unwrap_or_default(),
            ours: found.labels().get(labels::MANAGED_BY) == Some(&self.manager)
                && found.labels().get(labels::INSTANCE) == plan::label(it).as_ref(),
        }))
    }
}

impl crate::machinery::Keeper for Keeper {
    type Kind = SympoziumInstance;
    type World = World;
    type Effect = Effect;

    const FINALIZER: Option<&'static str> = Some(labels::INSTANCE_FINALIZER);
    /// Every run of the instance counts into its status.
    const PACE: Duration = Duration::from_millis(100);

    fn wakes(&self, on: &Wakes<Self>) {
        on.on(&self.runs, |run| {
            let namespace = run.namespace().unwrap_or_default();
            vec![ObjectName { namespace, name: run.spec.instance_ref.clone() }]
        });
        let instances = self.instances.clone();
        on.on_declared(&self.policies, move |policy| names(&instances.tagged(&kinds::with_policy(&policy.name_any()))));
        let instances = self.instances.clone();
        on.on_declared(&self.secrets, move |secret| {
            names(&instances.tagged(&kinds::with_secret(&secret.namespace().unwrap_or_default(), &secret.name_any())))
        });
        on.on_declared(&self.config_maps, |child| {
            let namespace = child.namespace().unwrap_or_default();
            let name = child.name_any().strip_suffix(kinds::MEMORY_SUFFIX).map(str::to_owned);
            name.map(|name| ObjectName { namespace, name }).into_iter().collect()
        });
        // Nodes and classes come and go rarely, and any instance may ask for any of them.
        let instances = self.instances.clone();
        on.on_declared(&self.nodes, move |_| names(&instances.all()));
        let instances = self.instances.clone();
        on.on_declared(&self.classes, move |_| names(&instances.all()));
    }

    async fn look(&self, it: &SympoziumInstance, _: Timestamp) -> Result<World, Error> {
        let (namespace, name) = (it.namespace().unwrap_or_default(), it.name_any());
        let mut world = World { manager: self.manager.clone(), ..World::default() };
        world.memory = self.memory(it, &namespace).await?;
        if it.metadata.deletion_timestamp.is_some() {
            return Ok(world);
        }
        for secret in kinds::secrets(it) {
            if self.secrets.find(&namespace, &secret).await?.is_none() {
                world.missing_secrets.push(secret);
            }
        }
        if let Some(policy) = it.spec.policy_ref.as_deref() {
            world.has_policy = self.has_policy(&namespace, policy).await?;
        }
        if let Some(class) = plan::class(it) {
            world.class = Class::of(self.classes.find("", class).await?.as_deref(), &self.handlers);
        }
        if let Some(selector) = plan::selector(it) {
            world.has_node = self.nodes.all().iter().any(|node| matches(selector, node.labels()));
        }
        world.active = self.runs.count(&kinds::active(&namespace, &name));
        world.runs = self.runs.count(&kinds::ever_of_instance(&namespace, &name));
        let submitted = self.ledger.submitted(&namespace, &name).await;
        world.submitted = submitted.map_err(|source| Error::Ledger { doing: "count the instance's runs", source })?;
        Ok(world)
    }

    fn plan(it: &SympoziumInstance, world: &World, _: Timestamp) -> Plan<Effect> {
        plan::plan(it, world)
    }

    async fn effect(&self, effect: &Effect) -> Result<(), Error> {
        let Effect::Forget { namespace, instance } = effect;
        let done = self.ledger.forget_instance(namespace, instance).await;
        done.map_err(|source| Error::Ledger { doing: "forget the instance", source })?;
        if let Some(sandboxes) = &self.sandboxes {
            let done = sandboxes.end_instance(namespace, instance).await;
            done.map_err(|source| Error::Sandboxes { doing: "end the instance's sandboxes", source })?;
        }
        Ok(())
    }
}

fn names(instances: &[std::sync::Arc<SympoziumInstance>]) -> Vec<ObjectName> {
    instances.iter().map(|it| ObjectName::of(it.as_ref())).collect()
}

fn matches(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
