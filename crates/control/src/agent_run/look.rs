//! All that is looked at before it is decided about a run.

use std::sync::Arc;

use api::agents::{AgentRun, MODEL_KEYS, SympoziumInstance, SympoziumPolicy};
use api::labels;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt};
use ledger::{Run, RunId};

use super::{Keeper, place, session};
use crate::kinds::{self, Class};
use crate::machinery::Error;

#[derive(Debug, Default)]
pub(crate) struct World {
    /// The run as the ledger knows it.
    pub(super) known: Option<Run>,
    /// Not one that is being deleted.
    pub(super) instance: Option<Arc<SympoziumInstance>>,
    /// The policy that the instance names, if there is one.
    pub(super) policy: Option<Arc<SympoziumPolicy>>,
    /// What there is of the Secret that [`Wanted`] names.
    pub(super) secret: Key,
    /// What there is of the class that [`Wanted`] names.
    pub(super) class: Class,
    /// The run of the same session before this one, which was not submitted yet, or has not ended where this one waits for
    /// its turn.
    pub(super) waits_for: Option<String>,
    /// Runs of the instance that go on, where this one waits for its turn.
    pub(super) going_on: u32,
    /// What is in the instance's memory.
    pub(super) memory: Option<String>,
}

/// A model's key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Key {
    #[default]
    NoSecret,
    /// The Secret has no entry that may be one.
    Unnamed,
    There,
}

/// What a run names, itself or by its instance and policy.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) secret: Option<String>,
    pub(super) class: Option<String>,
}

pub(super) fn wanted(run: &AgentRun, instance: &SympoziumInstance, policy: Option<&SympoziumPolicy>) -> Wanted {
    let own = Some(run.spec.model.auth_secret_ref.as_str()).filter(|name| !name.is_empty());
    let first = instance.spec.auth_refs.iter().flatten().map(|it| it.secret.as_str()).find(|name| !name.is_empty());
    let of_run = run.spec.agent_sandbox.as_ref().map(|it| (it.enabled, it.runtime_class.as_deref()));
    let of_instance = instance.spec.agents.default.agent_sandbox.as_ref();
    let of_instance = of_instance.map(|it| (it.enabled, it.runtime_class.as_deref()));
    let rules = policy
        .and_then(|policy| policy.spec.sandbox_policy.as_ref())
        .and_then(|rules| rules.agent_sandbox_policy.as_ref());
    let (enabled, class) = of_run.or(of_instance).unwrap_or_default();
    let class = class.filter(|name| enabled && !name.is_empty());
    let by_policy = rules.filter(|rules| rules.required).and_then(|rules| rules.default_runtime_class.as_deref());
    Wanted {
        secret: own.or(first).map(str::to_owned),
        class: class.or(by_policy).filter(|name| !name.is_empty()).map(str::to_owned),
    }
}

impl Keeper {
    pub(super) async fn see(&self, run: &AgentRun) -> Result<World, Error> {
        let mut world = World::default();
        if run.metadata.deletion_timestamp.is_some() || kinds::has_ended(run) {
            return Ok(world);
        }
        let namespace = run.namespace().unwrap_or_default();
        // Nothing is submitted before the finalizer is there: a run without it needs no look into the ledger.
        if run.finalizers().iter().any(|held| held == labels::RUN_FINALIZER) {
            world.known = self.known(run).await?;
        }
        if world.known.as_ref().is_some_and(|known| matches!(known.state, ledger::State::Done(_))) {
            return Ok(world);
        }
        world.instance = self
            .instances
            .find(&namespace, &run.spec.instance_ref)
            .await?
            .filter(|instance| instance.metadata.deletion_timestamp.is_none());
        let runs = world.known.as_ref().is_some_and(|known| known.state == ledger::State::Running);
        let Some(instance) = world.instance.as_ref().filter(|_| !runs) else { return Ok(world) };
        if let Some(name) = instance.spec.policy_ref.as_deref() {
            world.policy = match self.policies.find(&namespace, name).await? {
                None => self.policies.find(kinds::SYSTEM_NAMESPACE, name).await?,
                found => found,
            };
        }
        let wanted = wanted(run, instance, world.policy.as_deref());
        if let Some(name) = &wanted.secret {
            world.secret = match self.secrets.find(&namespace, name).await? {
                Some(_) if self.has_key(&namespace, name).await? => Key::There,
                Some(_) => Key::Unnamed,
                None => Key::NoSecret,
            };
        }
        if let Some(name) = &wanted.class {
            world.class = Class::of(self.classes.find("", name).await?.as_deref(), &self.handlers);
        }
        if world.known.is_some() {
            world.waits_for = self.before(run).map(|before| before.name_any());
            let going_on = self.ledger.running(&namespace, &run.spec.instance_ref).await;
            world.going_on = going_on.map_err(|source| Error::Ledger { doing: "count the instance's runs", source })?;
        } else {
            world.waits_for = self.waits_for(run).await?;
            if instance.spec.memory.as_ref().is_some_and(|memory| memory.enabled) {
                world.memory = self.memory(&namespace, &run.spec.instance_ref).await?;
            }
        }
        Ok(world)
    }

    /// Asked for each time: only the metadata of Secrets is cached.
    async fn has_key(&self, namespace: &str, name: &str) -> Result<bool, Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = secrets.get_opt(name).await;
        let found = found.map_err(|error| Error::api(format!("get Secret {namespace}/{name}"), error))?;
        let data = found.and_then(|it| it.data).unwrap_or_default();
        Ok(MODEL_KEYS.iter().any(|key| data.get(*key).is_some_and(|value| !value.0.is_empty())))
    }

    /// Asked for each time: only the metadata of ConfigMaps is cached.
    async fn memory(&self, namespace: &str, instance: &str) -> Result<Option<String>, Error> {
        let name = format!("{instance}{}", kinds::MEMORY_SUFFIX);
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = config_maps.get_opt(&name).await;
        let found = found.map_err(|error| Error::api(format!("get ConfigMap {namespace}/{name}"), error))?;
        Ok(found.and_then(|it| it.data).and_then(|mut data| data.remove(kinds::MEMORY_KEY)))
    }

    async fn known(&self, run: &AgentRun) -> Result<Option<Run>, Error> {
        let id = RunId::from(run.uid().unwrap_or_default());
        self.ledger.run(&id).await.map_err(|source| Error::Ledger { doing: "look up the run", source })
    }

    /// The open run of the same session that comes right before this one.
    fn before(&self, run: &AgentRun) -> Option<Arc<AgentRun>> {
        let here = place(run);
        let earlier = self.runs.tagged(&session(run)?).into_iter();
        earlier.filter(|it| it.metadata.deletion_timestamp.is_none() && place(it) < here).max_by_key(|it| place(it))
    }

    /// It is enough to look at the one right before: that one was not submitted before those before it either.
    async fn waits_for(&self, run: &AgentRun) -> Result<Option<String>, Error> {
        match self.before(run) {
            Some(before) if self.known(&before).await?.is_none() => Ok(Some(before.name_any())),
            _ => Ok(None),
        }
    }
}
