//! Nodes that are not heard of, and pods whose node is lost, gone or no longer bears them: `nodelifecycle`,
//! `tainteviction` and `podgc` of upstream.

pub(super) mod ended;
mod plan;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use self::plan::GRACE;
use super::drive::drive;
use super::events::{Level, Recorder};
use super::reader::{Kind, Reader, key};
use super::workload::{MANAGER, pods};
use super::{World, call};
use crate::object::status::Problem;
use crate::store::{Event, Key};
use crate::verbs::{DeleteOptions, delete};

/// How long a node may say that it is not ready before its pods are said not to be: one that is only connected anew is
/// back by then, and no service has lost its endpoints. Upstream looks as often.
const BLIP: Duration = Duration::from_secs(5);
/// How late a look may come because much is to be done.
const LATE: Duration = Duration::from_secs(10);
const LEASES: &str = "kube-node-lease";

pub(super) async fn follow(world: Arc<World>) {
    let it = Loop {
        nodes: Reader::new(&world.core),
        node_said: world.events.of(&world.core, "node-controller"),
        taint_said: world.events.of(&world.core, "taint-eviction-controller"),
        heard: Mutex::default(),
        unwell: Mutex::default(),
        world,
    };
    let first = || {
        let pods = it.world.pods.list(None);
        let named = pods.iter().filter_map(|it| pods::node(it)).map(|it| key::<Node>("", it));
        it.nodes.list(None).iter().map(|it| it.key()).chain(named).collect()
    };
    let watched = [("", "nodes"), ("coordination.k8s.io", "leases"), ("", "pods")];
    drive(&it.world.core, &watched, first, |change| it.wakes(change), |key| it.sync(key)).await;
}

struct Loop {
    world: Arc<World>,
    nodes: Reader<Node>,
    node_said: Recorder,
    taint_said: Recorder,
    /// The last sign of each node, and when it was seen; of those that are not there, since when not.
    heard: Mutex<HashMap<String, (Option<Sign>, Timestamp)>>,
    unwell: Mutex<HashMap<String, Unwell>>,
}

/// A node that is not ready.
#[derive(Clone, Debug)]
struct Unwell {
    /// Since when, in its own words: another time is another turn for the worse.
    says: Option<Time>,
    /// When that was seen.
    since: Timestamp,
    /// Whether it was said of its pods.
    told: bool,
}

/// Whether some pods cannot stay on it.
fn evicts(node: &Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|it| it.taints.iter().flatten());
    taints.any(|it| it.effect == "NoExecute")
}

/// What changes with every sign: the Lease's time, and that of the condition.
type Sign = (Option<String>, Option<Time>);

impl Loop {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        let key_ = &change.entry.key;
        match (&*key_.resource, &*key_.namespace) {
            ("nodes", _) => vec![key_.clone()],
            ("leases", LEASES) => vec![key::<Node>("", &key_.name)],
            // A pod matters only where pods cannot stay; the last one of a node that is not there has it forgotten.
            ("pods", _) => {
                let pod = self.world.pods.of(&change.entry);
                let name = pod.as_deref().and_then(pods::node);
                let stays = |name: &&str| self.nodes.get("", name).is_some_and(|it| !evicts(&it));
                name.filter(|it| !stays(it)).map(|it| key::<Node>("", it)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        let now = self.world.core.clock.now();
        let Some(node) = self.nodes.get("", &key.name) else { return self.orphans(&key.name, now).await };
        let lost = plan::condition(&node, "Ready").is_some_and(|it| it.status == "Unknown");
        let mut end = self.heard(node.name(), Some(self.sign(&node)), now);
        if end <= now && !lost {
            // Who looks so late has slept himself, as a laptop does: the node gets its time again.
            if end.checked_add(LATE).is_ok_and(|it| it < now) {
                self.heard(node.name(), None, now);
                end = self.heard(node.name(), Some(self.sign(&node)), now);
            } else if self.lose(&node, now).await? {
                return Ok(None);
            }
        }
        if let Some(taints) = plan::taints(&node, now) {
            let taints = if taints.is_empty() { Value::Null } else { json!(taints) };
            self.world.change(&*node, json!({"spec": {"taints": taints}})).await?;
            return Ok(None);
        }
        let told = self.tell_pods(&node, lost, now).await?;
        let next = self.evict(&node, now).await?;
        // One that is lost already is not lost again; any sign of it wakes this up.
        Ok([Some(end).filter(|_| !lost), told, next].into_iter().flatten().min())
    }

    fn unwell(&self) -> MutexGuard<'_, HashMap<String, Unwell>> {
        self.unwell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a node that is lost, or stays not ready, no pod is ready. That is said once: a pod that is said to be ready
    /// after that is so in the eyes of its kubelet, and two who contradict each other would never end. Returns when it
    /// has to be said.
    async fn tell_pods(&self, node: &Node, lost: bool, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
        let Some(ready) = plan::condition(node, "Ready").filter(|it| it.status != "True") else {
            self.unwell().remove(node.name());
            return Ok(None);
        };
        let says = ready.last_transition_time.clone();
        let before = self.unwell().get(node.name()).filter(|it| it.says == says).cloned();
        let it = before.unwrap_or(Unwell { says, since: now, told: false });
        self.unwell().insert(node.name().to_owned(), it.clone());
        let at = it.since.checked_add(BLIP).unwrap_or(Timestamp::MAX);
        if it.told {
            return Ok(None);
        }
        if !lost && at > now {
            return Ok(Some(at));
        }
        self.say_not_ready(node, now).await?;
        self.unwell().insert(node.name().to_owned(), Unwell { told: true, ..it });
        Ok(None)
    }

    fn sign(&self, node: &Node) -> Sign {
        let lease = Key::new("coordination.k8s.io", "leases", LEASES, node.name());
        let lease = self.world.core.store.get(&lease).map(|it| it.value());
        let renewed = lease.and_then(|it| it.pointer("/spec/renewTime").and_then(Value::as_str).map(str::to_owned));
        (renewed, plan::condition(node, "Ready").and_then(|it| it.last_heartbeat_time.clone()))
    }

    /// Notes what was heard of a node. Returns when it counts as lost, or gone, unless more is heard.
    fn heard(&self, name: &str, sign: Option<Sign>, now: Timestamp) -> Timestamp {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let known = heard.entry(name.to_owned()).or_insert_with(|| (sign.clone(), now));
        if known.0 != sign {
            *known = (sign, now);
        }
        known.1.checked_add(GRACE).unwrap_or(Timestamp::MAX)
    }

    /// Nothing was heard of it. True when that was written now.
    async fn lose(&self, node: &Node, now: Timestamp) -> Result<bool, Problem> {
        let Some(conditions) = plan::lost(node, now) else { return Ok(false) };
        let mut status = node.status.clone().unwrap_or_default();
        status.conditions = Some(conditions);
        self.world.set_status(node, &status).await?;
        if plan::is_ready(node) {
            let about = json!({"kind": "Node", "apiVersion": "v1", "name": node.name(), "uid": node.uid()});
            let message = format!("Node {} status is now: NodeNotReady", node.name());
            self.node_said.say(about, Level::Normal, "NodeNotReady", "", message);
        }
        Ok(true)
    }

    fn pods_of(&self, name: &str) -> Vec<Arc<Pod>> {
        let mut all = self.world.pods.list(None);
        all.retain(|it| pods::node(it) == Some(name));
        all
    }

    async fn say_not_ready(&self, node: &Node, now: Timestamp) -> Result<(), Problem> {
        for pod in self.pods_of(node.name()) {
            let Some(ready) = pods::condition(&pod, "Ready").filter(|it| it.status == "True").cloned() else {
                continue;
            };
            let condition = PodCondition { status: "False".to_owned(), last_transition_time: Some(Time(now)), ..ready };
            unless_gone(self.world.set_condition(MANAGER, &pod, condition).await)?;
            self.node_said.warning(&*pod, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }

    /// Deletes the pods that do not bear the node's taints any longer. Returns when the next one has to go.
    async fn evict(&self, node: &Node, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
        let mut next: Option<Timestamp> = None;
        if !evicts(node) {
            return Ok(next);
        }
        for pod in self.pods_of(node.name()) {
            match plan::leaves(&pod, node) {
                Some(end) if end <= now => {
                    let message = format!("Marking for deletion Pod {}/{}", pod.namespace(), pod.name());
                    self.taint_said.normal(&*pod, "TaintManagerEviction", message);
                    let why = ("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
                    self.remove(&pod, why, None, now).await?;
                }
                end => next = [next, end].into_iter().flatten().min(),
            }
        }
        Ok(next)
    }

    /// Removes the pods of a node that is not there, and has not been for a while.
    async fn orphans(&self, name: &str, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
        self.unwell().remove(name);
        let pods = self.pods_of(name);
        if pods.is_empty() {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            return Ok(None);
        }
        let end = self.heard(name, None, now);
        if end > now {
            return Ok(Some(end));
        }
        // What only finalizers hold would be told again and again that it goes.
        let goes = |it: &Pod| it.is_deleting() && it.metadata.deletion_grace_period_seconds == Some(0);
        for pod in pods.iter().filter(|it| !goes(it)) {
            self.remove(pod, ("DeletionByPodGC", "PodGC: node no longer exists"), Some(0), now).await?;
        }
        Ok(None)
    }

    /// Says why a pod goes, and deletes it; one that is to go at once has failed.
    async fn remove(&self, pod: &Pod, why: (&str, &str), grace: Option<i64>, now: Timestamp) -> Result<(), Problem> {
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some(why.0.to_owned()),
            message: Some(why.1.to_owned()),
            observed_generation: pod.metadata.generation,
            last_transition_time: Some(Time(now)),
            last_probe_time: None,
        };
        let mut pod = pod.clone();
        if grace == Some(0) && !pods::is_over(&pod) {
            pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
        }
        unless_gone(self.world.set_condition(MANAGER, &pod, condition).await)?;
        let Some(mut call) = call(&self.world.core, &pod.key()) else { return Ok(()) };
        let options = DeleteOptions { uid: Some(pod.uid().to_owned()), grace, ..DeleteOptions::default() };
        unless_gone(delete::delete(&mut call, &options).await.map(drop))
    }
}

fn unless_gone(done: Result<(), Problem>) -> Result<(), Problem> {
    done.or_else(|problem| if problem.code == 404 { Ok(()) } else { Err(problem) })
}
