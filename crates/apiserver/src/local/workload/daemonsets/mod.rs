//! DaemonSets: a pod on each node that fits.

mod place;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use super::history::{self, Present};
use super::{claim, is_terminating, owners, selector, slow_start};
use crate::local::World;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader};
use crate::object::status::Problem;
use crate::store::{Event, Key};
use plan::{Plan, View};

/// How long a failed pod is left alone after another one failed there; twice as long each time.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
const LONGEST: SignedDuration = SignedDuration::from_mins(15);
/// Pods made or deleted at once, at most.
const AT_ONCE: usize = 250;

/// Of a set's generation and a node: when a pod failed there last, and for how long the next is left alone.
type Failures = HashMap<(String, i64, String), (Timestamp, SignedDuration)>;

struct Sets {
    world: Arc<World>,
    sets: Reader<DaemonSet>,
    nodes: Reader<Node>,
    revisions: Reader<ControllerRevision>,
    by: Recorder,
    failures: Mutex<Failures>,
}

pub(in crate::local) async fn follow(world: Arc<World>) {
    let core = &world.core.clone();
    let it = &Sets {
        sets: Reader::new(core),
        nodes: Reader::new(core),
        revisions: Reader::new(core),
        by: world.events.of(core, "daemonset-controller"),
        failures: Mutex::default(),
        world,
    };
    let first = || it.sets.list(None).iter().map(|it| it.key()).collect();
    let watched = [("apps", "daemonsets"), ("", "pods"), ("", "nodes")];
    drive(core, &watched, first, |change| it.wakes(change), |key| it.sync(key)).await;
}

impl Sets {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        match &*change.entry.key.resource {
            "daemonsets" => vec![change.entry.key.clone()],
            "nodes" if self.matters(change) => self.sets.list(None).iter().map(|it| it.key()).collect(),
            "nodes" => Vec::new(),
            _ => owners(&self.world.pods, &self.sets, change, |set: &DaemonSet| selector(&set.spec.as_ref()?.selector)),
        }
    }

    /// Whether other pods may be wanted on the node now.
    fn matters(&self, change: &Event) -> bool {
        let (now, before) = (self.nodes.of(&change.entry), change.prev.as_deref().and_then(|it| self.nodes.of(it)));
        let (Some(now), Some(before)) = (now, before) else { return true };
        change.deleted || now.metadata.labels != before.metadata.labels || now.spec != before.spec
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            let all = self.sets.list(None);
            self.failures().retain(|(uid, _, _), _| all.iter().any(|it| it.uid() == uid));
            return Ok(None);
        };
        let Some(spec) = set.spec.as_ref().filter(|_| !set.is_deleting()) else { return Ok(None) };
        if spec.selector == Default::default() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.by.warning(&*set, "SelectingAll", message);
            return Ok(None);
        }
        let Some(selector) = selector(&spec.selector) else { return Ok(None) };
        let mut revisions = claim(&self.world, &self.revisions, &*set, &selector).await?;
        history::in_order(&mut revisions);
        let stored = self.world.core.store.get(&key).map(|it| it.value()).unwrap_or_default();
        let data = history::snapshot(stored.pointer("/spec/template").unwrap_or(&Value::Null));
        let before = set.status.as_ref().and_then(|it| it.collision_count);
        let mut collisions = before.unwrap_or_default();
        let labels = spec.template.metadata.as_ref().and_then(|it| it.labels.clone());
        let present = Present { data: &data, labels, hash_label: place::HASH };
        let current =
            history::current(&self.world, &self.revisions, &*set, &revisions, present, &mut collisions).await?;
        let hash = current.label(place::HASH).unwrap_or_default();
        let pods = claim(&self.world, &self.world.pods, &*set, &selector).await?;
        let nodes = self.nodes.list(None);
        let now = self.world.core.clock.now();
        let view = View { set: &set, spec, nodes: &nodes, pods: &pods, hash, now };
        let generation = set.metadata.generation.unwrap_or_default();
        let of = |node: &str| (set.uid().to_owned(), generation, node.to_owned());
        let plan = {
            let failures = self.failures();
            view.plan(|node| failures.get(&of(node)).and_then(|(at, pause)| at.saturating_add(*pause).ok()))
        };
        if !plan.failed.is_empty() {
            let mut failures = self.failures();
            // One that was long ago is forgotten.
            failures.retain(|_, (at, _)| now.duration_since(*at) <= LONGEST * 2);
            for node in &plan.failed {
                let it = failures.entry(of(node)).or_insert((now, SignedDuration::ZERO));
                let pause = if it.1.is_zero() { PAUSE } else { (it.1 * 2).min(LONGEST) };
                *it = (now, pause);
            }
        }
        plan.events.iter().for_each(|event| self.by.remark(&*set, event));
        let again = plan.again;
        let done = self.act(&set, &view, plan).await;
        // What was done is in the store by now.
        let mut after = self.world.pods.list(Some(&key.namespace));
        after.retain(|it| super::is_controlled_by(&**it, &*set));
        let view = View { pods: &after, ..view };
        let status = view.status(Some(collisions).filter(|it| *it > 0).or(before));
        if set.status.as_ref() != Some(&status) {
            self.world.set_status(&*set, &status).await?;
        }
        done?;
        let live = |it: &ControllerRevision| {
            let hash = it.label(place::HASH);
            it.uid() == current.uid() || pods.iter().chain(&after).any(|pod| pod.label(place::HASH) == hash)
        };
        history::truncate(&self.world, &revisions, spec.revision_history_limit, live).await?;
        Ok(again.into_iter().chain(view.next_available()).min())
    }

    async fn act(&self, set: &DaemonSet, view: &View<'_>, plan: Plan) -> Result<(), Problem> {
        let create = plan.create.get(..AT_ONCE.min(plan.create.len())).unwrap_or_default();
        let made = slow_start(create.len(), async |at| {
            let Some(node) = create.get(at) else { return Ok(()) };
            let pod = place::pod(set, &view.spec.template, view.hash, node);
            self.world.create_pod(&self.by, set, &pod).await.map(drop)
        });
        let wrong = made.await.1.filter(|it| !is_terminating(it));
        let deleted = plan.delete.iter().take(AT_ONCE).map(|pod| self.world.delete_pod(&self.by, set, pod));
        let wrong =
            join_all(deleted).await.into_iter().filter_map(Result::err).fold(wrong, |it, next| it.or(Some(next)));
        wrong.map_or(Ok(()), Err)
    }
}
