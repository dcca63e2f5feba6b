//! Gives pods their nodes: `kube-scheduler` of upstream, its default profile.
//!
//! One task keeps a [`View`] of the nodes and what is on them, plans for one pod after another, and counts what it chose
//! as done at once; the writes go out together. A pod for which there is no place waits until something changes that
//! could help.

mod info;
mod node;
mod plan;
mod preempt;
mod score;
mod view;
mod volumes;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use self::info::Info;
pub(super) use self::node::{UNSCHEDULABLE, bears, tolerations, wants};
use self::plan::Plan;
use self::view::View;
use self::volumes::Shelf;
use super::agenda::Agenda;
use super::drive::changes;
use super::events::{Level, Recorder, reference};
use super::reader::{Kind, Reader};
use super::workload::pods;
use super::{World, call, is_stale, merge, options};
use crate::kinds::subresources;
use crate::object::status::Problem;
use crate::store::{Event, Key};

/// The scheduler that is meant when a pod names none.
const NAME: &str = "default-scheduler";
const MANAGER: &str = "kube-scheduler";
/// Writes that are under way at once, at most.
const AT_ONCE: usize = 128;
/// Planned for between two looks at what else is to be done, at most: however many wait, others have their turn.
const TURN: usize = 64;

const WATCHED: [(&str, &str); 6] = [
    ("", "pods"),
    ("", "nodes"),
    ("", "namespaces"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("storage.k8s.io", "storageclasses"),
];

pub(super) async fn follow(world: Arc<World>) {
    let Some(mut changes) = changes(&world.core, &WATCHED) else { return };
    let mut scheduler = Scheduler::new(world.clone());
    let mut writes: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
    let mut failed = Agenda::new(world.core.clock.clone());
    loop {
        // What is there already is looked at together.
        while let Some(change) = changes.next().now_or_never() {
            match change.flatten() {
                Some(change) => scheduler.observe(&change),
                None => return,
            }
        }
        scheduler.wake(failed.take(usize::MAX));
        for _ in 0..TURN {
            if writes.len() >= AT_ONCE || !scheduler.is_due() {
                break;
            }
            writes.extend(scheduler.next());
        }
        let goes_on = scheduler.is_due() && writes.len() < AT_ONCE;
        tokio::select! {
            change = changes.next() => match change.flatten() {
                Some(change) => scheduler.observe(&change),
                None => return,
            },
            Some(done) = writes.next() => scheduler.done(done).into_iter().for_each(|it| failed.failed(it)),
            () = failed.again() => {}
            () = tokio::task::yield_now(), if goes_on => {}
        }
    }
}

/// What became of a pod that was planned for.
struct Done {
    key: Key,
    result: Result<(), Problem>,
}

struct Scheduler {
    world: Arc<World>,
    nodes: Reader<Node>,
    budgets: Reader<PodDisruptionBudget>,
    shelf: Arc<Shelf>,
    said: Recorder,
    view: View,
    /// Those that want a node, the most important and then the oldest first.
    due: BTreeSet<(Reverse<i32>, u64, Key)>,
    /// All that have none.
    waiting: HashMap<Key, Waiting>,
    came: u64,
}

struct Waiting {
    pod: Arc<Info>,
    came: u64,
    /// Why it had to wait, as it was said last.
    why: Option<String>,
    /// A write for it is under way.
    busy: bool,
}

impl Scheduler {
    fn new(world: Arc<World>) -> Self {
        let mut it = Self {
            nodes: Reader::new(&world.core),
            budgets: Reader::new(&world.core),
            shelf: Arc::new(Shelf::new(&world)),
            said: world.events.of(&world.core, NAME).instance(NAME),
            view: View::default(),
            due: BTreeSet::new(),
            waiting: HashMap::new(),
            came: 0,
            world,
        };
        let list = |group, resource| it.world.core.store.list(group, resource, None, None, None).entries;
        for namespace in list("", "namespaces") {
            it.view.namespaces.insert(namespace.key.name.to_string(), namespace.labels().clone());
        }
        for node in it.nodes.list(None) {
            it.view.set_node(node);
        }
        let mut pods = it.world.pods.list(None);
        pods.sort_by_key(|it| it.metadata.creation_timestamp.clone());
        for pod in pods {
            it.pod(&pod.key(), pod);
        }
        it
    }

    fn observe(&mut self, change: &Event) {
        let key = &change.entry.key;
        let helps = match (&*key.resource, change.deleted) {
            ("pods", true) => {
                self.leave(key);
                let dismissed = self.view.dismiss(key);
                self.view.remove_pod(key) || dismissed
            }
            ("pods", false) => self.world.pods.of(&change.entry).is_some_and(|pod| self.pod(key, pod)),
            ("nodes", true) => {
                self.view.remove_node(&key.name);
                // What is said of those that wait counts it.
                true
            }
            ("nodes", false) => self.nodes.of(&change.entry).is_some_and(|it| self.view.set_node(it)),
            ("namespaces", true) => self.view.namespaces.remove(&*key.name).is_some(),
            ("namespaces", false) => {
                let labels = change.entry.labels();
                self.view.namespaces.insert(key.name.to_string(), labels.clone()).as_ref() != Some(labels)
            }
            _ => true,
        };
        if helps {
            self.wake_all();
        }
    }

    /// Takes a pod as it is now. True when it may help others.
    fn pod(&mut self, key: &Key, pod: Arc<Pod>) -> bool {
        let spec = pod.spec.as_ref();
        let placed = spec.and_then(|it| it.node_name.as_deref()).is_some_and(|it| !it.is_empty());
        let ours = spec.and_then(|it| it.scheduler_name.as_deref()).unwrap_or(NAME) == NAME;
        let gated = spec.and_then(|it| it.scheduling_gates.as_ref()).is_some_and(|it| !it.is_empty());
        if placed || !ours || gated || !pods::is_active(&pod) {
            self.leave(key);
            let (dismissed, expected) = (self.view.dismiss(key), self.view.is_assumed(key));
            let news = self.view.set_pod(key, &pod);
            if expected {
                self.wake_company();
            }
            return news || dismissed;
        }
        // Its node is on its way.
        if self.view.is_assumed(key) {
            return false;
        }
        let before = self.waiting.get(key);
        let same = |it: &Waiting| {
            it.pod.pod.spec == pod.spec
                && it.pod.pod.metadata.labels == pod.metadata.labels
                && it.pod.pod.uid() == pod.uid()
        };
        let came = before.map_or(self.came, |it| it.came);
        self.came += u64::from(before.is_none());
        let news = !before.is_some_and(same);
        let (why, busy) = match before {
            Some(it) => (it.why.clone(), it.busy),
            None => (pods::condition(&pod, "PodScheduled").and_then(|it| it.message.clone()), false),
        };
        let nominated = pod.status.as_ref().and_then(|it| it.nominated_node_name.clone());
        let info = Arc::new(Info::new(pod));
        let dismissed = match nominated.filter(|it| !it.is_empty()) {
            Some(node) => {
                self.view.nominate(key, &node, info.clone());
                false
            }
            None => !busy && self.view.dismiss(key),
        };
        self.waiting.insert(key.clone(), Waiting { pod: info, came, why, busy });
        if news {
            self.wake([key.clone()]);
        }
        dismissed
    }

    fn leave(&mut self, key: &Key) {
        if let Some(it) = self.waiting.remove(key) {
            self.due.remove(&(Reverse(it.pod.priority()), it.came, key.clone()));
        }
    }

    fn wake(&mut self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            if let Some(it) = self.waiting.get(&key) {
                self.due.insert((Reverse(it.pod.priority()), it.came, key));
            }
        }
    }

    fn wake_all(&mut self) {
        let all: Vec<Key> = self.waiting.keys().cloned().collect();
        self.wake(all);
    }

    /// Somebody has come to a node: who wants company may go now.
    fn wake_company(&mut self) {
        let wants = |it: &Waiting| !it.pod.near.is_empty() || !it.pod.spread.is_empty();
        let all: Vec<Key> = self.waiting.iter().filter(|(_, it)| wants(it)).map(|(key, _)| key.clone()).collect();
        self.wake(all);
    }

    fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Plans for the next one. Returns what is to be written, if anything is.
    fn next(&mut self) -> Option<BoxFuture<'static, Done>> {
        let (_, _, key) = self.due.pop_first()?;
        let it = self.waiting.get_mut(&key).filter(|it| !it.busy)?;
        let volumes = self.shelf.of(&it.pod, &self.view);
        let (world, said, pod) = (self.world.clone(), self.said.clone(), it.pod.pod.clone());
        let budgets = if self.view.has_lesser(&it.pod) { self.budgets.list(None) } else { Vec::new() };
        match plan::plan(&it.pod, &volumes, &self.view, &budgets) {
            Plan::Bind(node) => {
                self.view.assume(&key, &node, it.pod.clone());
                it.busy = true;
                Some(bind(world, said, key, pod, node).boxed())
            }
            Plan::Prepare { node, claims } if volumes.chosen.is_none() => {
                it.busy = true;
                let shelf = self.shelf.clone();
                let write = async move {
                    let result = shelf.prepare(&world, pod.namespace(), &claims, &node).await;
                    Done { key, result }
                };
                Some(write.boxed())
            }
            Plan::Prepare { .. } | Plan::Wait => None,
            Plan::Preempt { node, victims, why } => {
                it.why = Some(why.clone());
                it.busy = true;
                let lesser = self.view.lesser_nominated(&node, &it.pod);
                for (key, _) in &lesser {
                    self.view.dismiss(key);
                }
                self.view.nominate(&key, &node, it.pod.clone());
                let uid = |it: &Key| self.view.placed(it).map(|it| it.pod.uid().to_owned());
                let victims = victims.into_iter().filter_map(|it| Some((uid(&it)?, it))).collect();
                Some(preempt(world, said, key, pod, node, victims, lesser, why).boxed())
            }
            Plan::No(why) if it.why.as_ref() == Some(&why) => None,
            Plan::No(why) => {
                it.why = Some(why.clone());
                it.busy = true;
                if self.view.dismiss(&key) {
                    self.wake_all();
                }
                Some(refuse(world, said, key, pod, why, None).boxed())
            }
        }
    }

    /// Returns what is to be tried again later.
    fn done(&mut self, Done { key, result }: Done) -> Option<Key> {
        let bound = self.view.is_assumed(&key);
        if result.is_err() {
            self.view.forget(&key);
        }
        let it = self.waiting.get_mut(&key)?;
        it.busy = false;
        match result {
            // Seen or not, it has its node.
            Ok(()) if bound => drop(self.waiting.remove(&key)),
            // Something may have changed while it was written.
            Ok(()) => self.wake([key]),
            Err(problem) => {
                it.why = None;
                if !is_stale(&problem) {
                    tracing::info!(?key, why = problem.message, "a pod is not scheduled yet; trying again");
                    return Some(key);
                }
                // As it is now; what was seen meanwhile may have passed it by.
                match self.world.pods.get(&key.namespace, &key.name) {
                    Some(pod) => {
                        self.pod(&key, pod);
                        self.wake([key]);
                    }
                    None => self.leave(&key),
                }
            }
        }
        None
    }
}

async fn bind(world: Arc<World>, said: Recorder, key: Key, pod: Arc<Pod>, node: String) -> Done {
    let result = match call(&world.core, &key) {
        Some(mut call) => {
            call.subresource = "binding".to_owned();
            subresources::assign(&mut call, &node, pod.uid(), &options(MANAGER)).await
        }
        None => Ok(()),
    };
    if result.is_ok() {
        let message = format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
        said.say(reference(&*pod), Level::Normal, "Scheduled", "Binding", message);
    }
    Done { key, result }
}

/// Says why it has no node, and for which one it waits.
async fn refuse(
    world: Arc<World>,
    said: Recorder,
    key: Key,
    pod: Arc<Pod>,
    why: String,
    nominated: Option<String>,
) -> Done {
    said.say(reference(&*pod), Level::Warning, "FailedScheduling", "Scheduling", why.clone());
    let before = pods::condition(&pod, "PodScheduled");
    let since = before.filter(|it| it.status == "False").and_then(|it| it.last_transition_time.clone());
    let condition = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(why),
        observed_generation: pod.metadata.generation,
        last_transition_time: since.or_else(|| Some(Time(world.core.clock.now()))),
        last_probe_time: None,
    };
    let mut pod = Pod::clone(&pod);
    pod.status.get_or_insert_default().nominated_node_name = nominated;
    Done { key, result: world.set_condition(MANAGER, &pod, condition).await }
}

/// Has others go from a node, so that the pod finds room there.
#[allow(clippy::too_many_arguments, reason = "what was planned; one caller")]
async fn preempt(
    world: Arc<World>,
    said: Recorder,
    key: Key,
    pod: Arc<Pod>,
    node: String,
    victims: Vec<(String, Key)>,
    lesser: Vec<(Key, Arc<Pod>)>,
    why: String,
) -> Done {
    // It is said first: were the others gone and it were not known for whom, anybody would take their place.
    let mut done = refuse(world.clone(), said.clone(), key, pod.clone(), why, Some(node.clone())).await;
    if done.result.is_ok() {
        for (_, other) in lesser {
            dismiss(&world, &other).await;
        }
        for (uid, victim) in victims {
            if let Err(problem) = evict(&world, &said, &pod, &node, &uid, &victim).await {
                done.result = Err(problem);
            }
        }
    }
    done
}

/// Somebody more important has the place that it was waiting for.
async fn dismiss(world: &World, pod: &Pod) {
    let none = json!({"status": {"nominatedNodeName": null}});
    if let Err(problem) = merge(&world.core, &pod.key(), "status", none, MANAGER).await {
        tracing::debug!(
            pod = pod.name(),
            why = problem.message,
            "a nomination stays until the pod is planned for again"
        );
    }
}

async fn evict(world: &World, said: &Recorder, by: &Pod, node: &str, uid: &str, victim: &Key) -> Result<(), Problem> {
    let Some(pod) = world.pods.get(&victim.namespace, &victim.name).filter(|it| it.uid() == uid) else {
        return Ok(());
    };
    let condition = PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(preempt::REASON.to_owned()),
        message: Some(format!("{NAME}: preempting to accommodate a higher priority pod")),
        observed_generation: pod.metadata.generation,
        last_transition_time: Some(Time(world.core.clock.now())),
        last_probe_time: None,
    };
    world.set_condition(MANAGER, &pod, condition).await?;
    // One that goes already is waited for all the same.
    if pod.is_deleting() {
        return Ok(());
    }
    world.delete_one(victim, uid).await?;
    let message = format!("Preempted by pod {} on node {node}", by.uid());
    said.say_with(reference(&*pod), Some(reference(by)), Level::Normal, "Preempted", "Preempting", message);
    Ok(())
}
