//! Runs: from the object to the ledger, and from the ledger to the status.

mod job;
mod look;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::agents::{AgentRun, SympoziumInstance, SympoziumPolicy};
use api::labels;
use jiff::Timestamp;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{Client, ResourceExt};
use ledger::{Change, Changes, Ledger, RunId, Ticket};
use sandbox::Sandboxes;

use crate::kinds::{self, SecretMeta};
use crate::machinery::{Cache, Error, Faults, Machinery, ObjectName, Plan, Wakes};

pub(crate) struct Keeper {
    client: Client,
    ledger: Ledger,
    sandboxes: Option<Sandboxes>,
    /// The runtime handlers that are here.
    handlers: Arc<[String]>,
    runs: Cache<AgentRun>,
    instances: Cache<SympoziumInstance>,
    policies: Cache<SympoziumPolicy>,
    secrets: Cache<SecretMeta>,
    classes: Cache<RuntimeClass>,
}

/// What a run's keeper does to the ledger, and to sandboxes.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    Submit(Box<Ticket>),
    Cancel {
        run: RunId,
        reason: String,
    },
    /// Stops it, too.
    Forget {
        namespace: String,
        instance: String,
        run: RunId,
    },
}

impl Keeper {
    pub(crate) fn new(
        machinery: &mut Machinery,
        ledger: Ledger,
        sandboxes: Option<Sandboxes>,
        handlers: Arc<[String]>,
    ) -> Self {
        Self {
            client: machinery.client.clone(),
            ledger,
            sandboxes,
            handlers,
            runs: machinery.cache(),
            instances: machinery.cache(),
            policies: machinery.cache(),
            secrets: machinery.cache(),
            classes: machinery.cache(),
        }
    }
}

impl crate::machinery::Keeper for Keeper {
    type Kind = AgentRun;
    type World = look::World;
    type Effect = Effect;

    const FINALIZER: Option<&'static str> = Some(labels::RUN_FINALIZER);

    fn wakes(&self, on: &Wakes<Self>) {
        let runs = self.runs.clone();
        on.on(&self.runs, move |run| next_of_session(&runs, run).into_iter().collect());
        let runs = self.runs.clone();
        on.on_declared(&self.instances, move |instance| of_instance(&runs, instance));
        let (runs, instances) = (self.runs.clone(), self.instances.clone());
        on.on_declared(&self.policies, move |policy| {
            let bound = instances.tagged(&kinds::with_policy(&policy.name_any()));
            bound.iter().flat_map(|instance| of_instance(&runs, instance)).collect()
        });
        let (runs, instances) = (self.runs.clone(), self.instances.clone());
        on.on_declared(&self.secrets, move |secret| {
            let tag = kinds::with_secret(&secret.namespace().unwrap_or_default(), &secret.name_any());
            let mut names: Vec<ObjectName> = runs.tagged(&tag).iter().map(|run| ObjectName::of(run.as_ref())).collect();
            names.extend(instances.tagged(&tag).iter().flat_map(|instance| of_instance(&runs, instance)));
            names
        });
        let runs = self.runs.clone();
        on.on_declared(&self.classes, move |_| {
            runs.tagged(kinds::OPEN).iter().map(|run| ObjectName::of(run.as_ref())).collect()
        });
    }

    async fn look(&self, it: &AgentRun, _: Timestamp) -> Result<look::World, Error> {
        self.see(it).await
    }

    fn plan(it: &AgentRun, world: &look::World, now: Timestamp) -> Plan<Effect> {
        plan::plan(it, world, now)
    }

    async fn effect(&self, effect: &Effect) -> Result<(), Error> {
        let (doing, done) = match effect {
            Effect::Submit(ticket) => ("submit the run", self.ledger.submit(ticket.as_ref().clone()).await),
            Effect::Cancel { run, reason } => ("cancel the run", self.ledger.cancel(run, reason).await),
            Effect::Forget { run, .. } => ("forget the run", self.ledger.forget(run).await),
        };
        done.map_err(|source| Error::Ledger { doing, source })?;
        if let (Effect::Forget { namespace, instance, run }, Some(sandboxes)) = (effect, &self.sandboxes) {
            let done = sandboxes.end_run(namespace, instance, run).await;
            done.map_err(|source| Error::Sandboxes { doing: "end the run's sandbox", source })?;
        }
        Ok(())
    }
}

/// Wakes runs whose state in the ledger changed, until the ledger is gone.
pub(crate) async fn listen(mut changes: Changes, runs: &Wakes<Keeper>, faults: &Faults) {
    while let Some(change) = changes.next().await {
        if faults.lost() {
            continue;
        }
        match change {
            Change::Run { namespace, name, .. } => {
                let name = ObjectName { namespace: namespace.as_ref().into(), name: name.as_ref().into() };
                if let Some(run) = runs.kept().get(&name)
                    && let Some(next) = next_of_session(runs.kept(), &run)
                {
                    runs.wake(next);
                }
                runs.wake(name);
            }
            Change::All => runs.wake_all(),
        }
    }
}

/// Every run of the instance that has not ended.
fn of_instance(runs: &Cache<AgentRun>, instance: &SympoziumInstance) -> Vec<ObjectName> {
    let tag = kinds::of_instance(&instance.namespace().unwrap_or_default(), &instance.name_any());
    runs.tagged(&tag).iter().map(|run| ObjectName::of(run.as_ref())).collect()
}

/// Runs of one session go in this order.
pub(crate) fn place(run: &AgentRun) -> (Option<Timestamp>, String) {
    (run.creation_timestamp().map(|at| at.0), run.uid().unwrap_or_default())
}

fn session(run: &AgentRun) -> Option<String> {
    let key = &run.spec.session_key;
    let namespace = run.namespace().unwrap_or_default();
    (!key.is_empty()).then(|| kinds::of_session(&namespace, &run.spec.instance_ref, key))
}

/// The run of the same session that comes right after this one, if it has not ended.
fn next_of_session(runs: &Cache<AgentRun>, run: &AgentRun) -> Option<ObjectName> {
    let here = place(run);
    let later = runs.tagged(&session(run)?).into_iter().filter(|it| place(it) > here);
    later.min_by_key(|it| place(it)).map(|it| ObjectName::of(it.as_ref()))
}
