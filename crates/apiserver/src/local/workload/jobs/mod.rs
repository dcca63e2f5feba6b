//! Jobs: pods are made until enough have succeeded or too many have failed. And what is finished goes when its time is over.

mod indexes;
mod plan;
mod policy;
mod template;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{MANAGER, claim_those, controller, is_terminating, owners, selector, slow_start};
use crate::http::json::put;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader, key};
use crate::local::{World, call, options};
use crate::object::status::{Problem, What};
use crate::store::{Event, Key};
use crate::verbs::patch::{Language, patch};
use crate::verbs::{DeleteOptions, Propagation, delete};
use plan::{Failures, Managed, State, is_tracked};

/// Holds a pod until it is counted.
const TRACKED: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Who acts on Jobs that name nobody.
const CONTROLLER: &str = "kubernetes.io/job-controller";

/// The condition with which it finished.
pub(super) fn finished(job: &Job) -> Option<&JobCondition> {
    let ends = |it: &&JobCondition| it.status == "True" && matches!(it.type_.as_str(), "Complete" | "Failed");
    job.status.as_ref()?.conditions.iter().flatten().find(ends)
}

struct Jobs {
    world: Arc<World>,
    jobs: Reader<Job>,
    by: Recorder,
    /// By uid. Forgotten with the process, as upstream.
    failures: Mutex<HashMap<String, Failures>>,
}

pub(in crate::local) async fn follow(world: Arc<World>) {
    let core = &world.core.clone();
    let it = &Jobs {
        jobs: Reader::new(core),
        by: world.events.of(core, "job-controller"),
        failures: Mutex::default(),
        world,
    };
    let first = || {
        let pods = it.world.pods.list(None);
        let lost = pods.iter().filter(|pod| it.is_lost(pod)).map(|pod| pod.key());
        it.jobs.list(None).iter().map(|job| job.key()).chain(lost).collect()
    };
    drive(core, &[("batch", "jobs"), ("", "pods")], first, |change| it.wakes(change), |key| it.sync(key)).await;
}

impl Jobs {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        let changed = &change.entry.key;
        if *changed.resource == *"jobs" {
            let mut due = vec![changed.clone()];
            if change.deleted {
                let pods = self.world.pods.list(Some(&changed.namespace));
                due.extend(pods.iter().filter(|it| self.is_lost(it)).map(|it| it.key()));
            }
            return due;
        }
        let of = |job: &Job| selector(job.spec.as_ref()?.selector.as_ref()?);
        let mut due = owners(&self.world.pods, &self.jobs, change, of);
        if !change.deleted && self.world.pods.of(&change.entry).is_some_and(|it| self.is_lost(&it)) {
            due.push(changed.clone());
        }
        due
    }

    /// Whether a pod waits to be counted by nobody.
    fn is_lost(&self, pod: &Pod) -> bool {
        let counts = |job: Arc<Job>, uid: &str| job.uid() == uid && finished(&job).is_none();
        is_tracked(pod)
            && controller(pod).is_none_or(|by| {
                by.kind == "Job" && !self.jobs.get(pod.namespace(), &by.name).is_some_and(|it| counts(it, &by.uid))
            })
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        if *key.resource == *"pods" {
            if let Some(pod) = self.world.pods.get(&key.namespace, &key.name).filter(|it| self.is_lost(it)) {
                // Somebody may be about to adopt it.
                let unchanged = pod.metadata.resource_version.as_deref();
                self.release(&pod, unchanged).await?;
            }
            return Ok(None);
        }
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else {
            let all = self.jobs.list(None);
            self.failures().retain(|uid, _| all.iter().any(|it| it.uid() == uid));
            return Ok(None);
        };
        let Some(spec) = &job.spec else { return Ok(None) };
        if spec.managed_by.as_deref().is_some_and(|it| it != CONTROLLER) {
            return Ok(None);
        }
        if let Some(end) = finished(&job) {
            self.failures().remove(job.uid());
            return self.expire(&job, spec, end).await;
        }
        self.act(&job, spec).await
    }

    async fn act(&self, job: &Job, spec: &JobSpec) -> Result<Option<Timestamp>, Problem> {
        let Some(selector) = spec.selector.as_ref().and_then(selector) else { return Ok(None) };
        let pods = claim_those(&self.world, &self.world.pods, job, &selector, Some(TRACKED), |_| true).await?;
        let failures = self.failures().get(job.uid()).cloned().unwrap_or_default();
        // Times in a status are whole seconds, and what is decided by them must be the same when it is read again.
        let now = whole(self.world.core.clock.now());
        let state = State::of(job, spec, &pods, failures, now);
        let managing = state.manage();
        let mut managed = Managed::default();
        let ended = managing.end.iter().map(async |it| (it, self.world.delete_pod(&self.by, job, it).await));
        let removed = managing.remove.iter().map(async |it| match self.release(it, None).await {
            Ok(()) => (it, self.world.delete_pod(&self.by, job, it).await),
            Err(problem) => (it, Err(problem)),
        });
        let mut wrong = None;
        for (pod, done) in join_all(ended).await.into_iter().chain(join_all(removed).await) {
            match done {
                Ok(()) => managed.deleted.push(pod.clone()),
                Err(problem) => wrong = wrong.or(Some(problem)),
            }
        }
        let (made, not_made) = slow_start(managing.create.len(), |at| self.create(job, managing.create.get(at))).await;
        managed.created = made.len();
        wrong = wrong.or_else(|| not_made.filter(|it| !is_terminating(it)));
        managed.failed = wrong.is_some();

        let mut tracking = state.track(&managed);
        let events = std::mem::take(&mut tracking.events);
        let flushed = tracking.status.clone();
        if job.status.as_ref() != Some(&flushed) {
            self.world.set_status(job, &flushed).await?;
            self.failures().insert(job.uid().to_owned(), state.failures.clone());
        }
        events.iter().for_each(|it| self.by.remark(job, it));
        let mut released = Vec::new();
        let releases = tracking.release.iter().map(async |it| (it, self.release(it, None).await));
        for (pod, done) in join_all(releases).await {
            match done {
                Ok(()) => released.push(pod.clone()),
                Err(problem) => wrong = wrong.or(Some(problem)),
            }
        }
        let (settled, events) = tracking.settle(job, &released);
        if settled != flushed {
            let fresh = self.jobs.get(job.namespace(), job.name());
            let same = fresh.filter(|it| it.uid() == job.uid() && it.status.as_ref() == Some(&flushed));
            let fresh = same.ok_or_else(|| Problem::modified(What::new("batch", "jobs"), job.name()))?;
            self.world.set_status(&*fresh, &settled).await?;
        }
        events.iter().for_each(|it| self.by.remark(job, it));
        wrong.map_or(Ok(managing.again), Err)
    }

    async fn create(&self, job: &Job, pod: Option<&Pod>) -> Result<(), Problem> {
        match pod {
            Some(pod) => self.world.create_pod(&self.by, job, pod).await.map(drop),
            None => Ok(()),
        }
    }

    /// Takes the finalizer from a pod, if it has the revision. One that is gone has none.
    async fn release(&self, pod: &Pod, revision: Option<&str>) -> Result<(), Problem> {
        if !is_tracked(pod) {
            return Ok(());
        }
        let Some(mut call) = call(&self.world.core, &key::<Pod>(pod.namespace(), pod.name())) else { return Ok(()) };
        let mut metadata = json!({"uid": pod.uid(), "$deleteFromPrimitiveList/finalizers": [TRACKED]});
        if let Some(revision) = revision {
            put(&mut metadata, "resourceVersion", json!(revision));
        }
        let change = json!({"metadata": metadata});
        match patch(&mut call, Language::Strategic, &Bytes::from(change.to_string()), &options(MANAGER)).await {
            // Another one has its name: then this one is gone as well.
            Err(problem) if !matches!(problem.code, 404 | 409) => Err(problem),
            _ => Ok(()),
        }
    }

    /// Deletes a finished Job when its time is over.
    async fn expire(&self, job: &Job, spec: &JobSpec, end: &JobCondition) -> Result<Option<Timestamp>, Problem> {
        let (Some(seconds), Some(since)) = (spec.ttl_seconds_after_finished, &end.last_transition_time) else {
            return Ok(None);
        };
        if job.is_deleting() {
            return Ok(None);
        }
        let at = since.0.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX);
        if at > self.world.core.clock.now() {
            return Ok(Some(at));
        }
        let Some(mut call) = call(&self.world.core, &job.key()) else { return Ok(None) };
        let options = DeleteOptions {
            uid: Some(job.uid().to_owned()),
            resource_version: job.metadata.resource_version.clone(),
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        delete::delete(&mut call, &options).await.map(|_| None)
    }
}

/// Without a part of a second, as objects have it.
pub(super) fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
