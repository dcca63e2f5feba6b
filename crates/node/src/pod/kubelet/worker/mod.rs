//! Keeps one task for each pod of this node.

mod act;
mod pod;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::labels;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kit::{Clock, Tasks};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, Semaphore, watch};

use super::admission::{Promised, requests};
use super::events::{self, Recorder};
use super::memory::Ending;
use super::spec;
use super::world::World;

/// What is done at once, over all pods. Probes are not among it: one that hangs would hold up those of others, and each
/// container has but three.
const STARTS: usize = 32;
const WRITES: usize = 16;
/// The longest that the API server may take for a call.
pub(super) const CALL: Duration = Duration::from_secs(30);
/// How long a pod waits for another task when the one that it had broke down.
const BROKEN: Duration = Duration::from_secs(10);

/// What a kubelet is made of.
pub(crate) struct Options<W> {
    pub client: Client,
    pub world: Arc<W>,
    pub clock: Clock,
    pub tasks: Tasks,
}

/// Runs the pods that are bound to its node. Cheap to clone.
pub(crate) struct Kubelet<W>(Arc<Inner<W>>);

impl<W> Clone for Kubelet<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<W> {
    client: Client,
    world: Arc<W>,
    clock: Clock,
    tasks: Tasks,
    recorder: Recorder,
    pods: Mutex<BTreeMap<String, Entry>>,
    /// How many have come.
    came: AtomicU64,
    closing: AtomicBool,
    /// A pod's task has ended.
    left: Notify,
    starts: Semaphore,
    writes: Semaphore,
}

/// One pod, as its task is told of it.
#[derive(Clone, Debug, Default)]
struct Told {
    /// `None`: the API server has none with this uid.
    pod: Option<Arc<Pod>>,
    order: Option<Ending>,
}

struct Entry {
    told: watch::Sender<Told>,
    promised: Promised,
    works: bool,
    /// It was taken: its status has a start time.
    begun: bool,
    /// Of those that have not begun, who has the lower number goes first.
    came: u64,
}

/// Starts a kubelet, until the shutdown of its tasks: what runs then goes on without it.
///
/// - A pod that is bound to the node and does not show a sandbox (the label [`labels::PROJECTED`]) is run as its spec says.
/// - What the API server shows of it is written by server-side apply on `status`; the object is removed when nothing of a
///   deleted pod is left.
/// - What the runtime has and the API server has not is ended, once the API server has named all pods.
pub(crate) fn start<W: World>(options: Options<W>) -> Kubelet<W> {
    let Options { client, world, clock, tasks } = options;
    let node = world.node().name;
    let (recorder, writer) = events::recorder(client.clone(), node.clone(), clock.clone());
    let kubelet = Kubelet(Arc::new(Inner {
        client,
        world,
        clock,
        tasks: tasks.clone(),
        recorder,
        pods: Mutex::default(),
        came: AtomicU64::new(0),
        closing: AtomicBool::new(false),
        left: Notify::new(),
        starts: Semaphore::new(STARTS),
        writes: Semaphore::new(WRITES),
    }));
    let shutdown = tasks.shutdown().clone();
    tasks.platform("events of pods", async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = writer.keep() => {}
        }
        Ok::<_, Infallible>(())
    });
    let (it, shutdown) = (kubelet.clone(), tasks.shutdown().clone());
    tasks.platform("kubelet", async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = it.keep(&node) => {}
        }
        Ok::<_, Infallible>(())
    });
    kubelet
}

impl<W: World> Kubelet<W> {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods that are known, with what the API server says of them.
    pub(crate) fn known(&self) -> Vec<Arc<Pod>> {
        self.pods().values().filter_map(|it| it.told.borrow().pod.clone()).collect()
    }

    /// Ends a pod for the node's sake: its phase becomes Failed, reason `Evicted`. `disruption`: it is no fault of its own.
    pub(crate) fn evict(&self, uid: &str, message: String, disruption: bool) {
        let order = Ending::Failed { reason: "Evicted".to_owned(), message, grace: Some(1), disruption };
        self.order(uid, order);
    }

    fn order(&self, uid: &str, order: Ending) {
        if let Some(it) = self.pods().get(uid) {
            it.told.send_modify(|told| {
                told.order.get_or_insert(order);
            });
        }
    }

    /// Ends all pods because the node ends, within this time: those that are critical last, in the last third of it. What
    /// the API server is told of them stays: they run again with the next node. No pod is begun from now on.
    pub(crate) async fn close(&self, within: Duration) {
        self.0.closing.store(true, Ordering::Release);
        let critical = within / 3;
        for (is_critical, most) in [(false, within.saturating_sub(critical)), (true, critical)] {
            let grace = i64::try_from(most.as_secs()).unwrap_or(i64::MAX);
            let pods = self.known().into_iter().filter(|it| spec::is_critical(it) == is_critical);
            let ends = pods.map(|pod| async move {
                let uid = spec::uid(&pod);
                self.order(uid, Ending::Closed { grace });
                if tokio::time::timeout(most, self.ended(uid)).await.is_err()
                    && let Err(error) = self.0.world.stop(uid).await
                {
                    tracing::warn!(pod = pod.metadata.name, error = kit::chain(&error), "cannot end a pod");
                }
            });
            futures::future::join_all(ends).await;
        }
    }

    /// Returns when nothing of a pod runs.
    async fn ended(&self, uid: &str) {
        while let Some(mut changes) = self.0.world.watch(uid) {
            changes.borrow_and_update();
            if !self.0.world.state(uid).is_some_and(|it| it.alive) || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// For ever.
    async fn keep(&self, node: &str) {
        let api: Api<Pod> = Api::all(self.0.client.clone());
        let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
        let mut seen = pin!(watcher(api, config).default_backoff());
        let mut listing: Option<BTreeSet<String>> = None;
        loop {
            tokio::select! {
                event = seen.next() => match event {
                    Some(Ok(watcher::Event::Init)) => listing = Some(BTreeSet::new()),
                    Some(Ok(watcher::Event::InitApply(pod))) => {
                        if let Some(all) = &mut listing {
                            all.insert(spec::uid(&pod).to_owned());
                        }
                        self.see(pod);
                    }
                    Some(Ok(watcher::Event::InitDone)) => self.all(&listing.take().unwrap_or_default()),
                    Some(Ok(watcher::Event::Apply(pod))) => self.see(pod),
                    Some(Ok(watcher::Event::Delete(pod))) => self.lost(spec::uid(&pod)),
                    Some(Err(error)) => tracing::debug!(error = kit::chain(&error), "watching pods failed; trying again"),
                    None => return,
                },
                () = self.0.left.notified() => self.again(),
            }
        }
    }

    fn see(&self, pod: Pod) {
        let projected = pod.metadata.labels.as_ref().is_some_and(|all| all.contains_key(labels::PROJECTED));
        let uid = spec::uid(&pod).to_owned();
        if projected || uid.is_empty() {
            return;
        }
        let promised = if spec::is_over(&pod) { Promised::default() } else { requests(&pod) };
        let begun = pod.status.as_ref().is_some_and(|it| it.start_time.is_some());
        let pod = Arc::new(pod);
        let mut pods = self.pods();
        if let Some(it) = pods.get_mut(&uid) {
            it.promised = promised;
            it.begun = begun;
            it.told.send_modify(|told| told.pod = Some(pod));
            return;
        }
        if self.0.closing.load(Ordering::Acquire) {
            return;
        }
        let told = watch::Sender::new(Told { pod: Some(pod), order: None });
        let came = self.0.came.fetch_add(1, Ordering::Relaxed);
        pods.insert(uid.clone(), Entry { told, promised, works: true, begun, came });
        drop(pods);
        self.work(uid, Duration::ZERO);
    }

    fn lost(&self, uid: &str) {
        if let Some(it) = self.pods().get_mut(uid) {
            // The scheduler has given its room away already.
            it.promised = Promised::default();
            it.told.send_modify(|told| told.pod = None);
        }
    }

    /// The API server has named all: what else there is, is nobody's.
    fn all(&self, named: &BTreeSet<String>) {
        let gone: Vec<String> = self.pods().keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.lost(uid));
        for state in self.0.world.list() {
            let uid = state.config.uid;
            if named.contains(&uid) || self.pods().contains_key(&uid) {
                continue;
            }
            tracing::info!(
                pod = state.config.name,
                namespace = state.config.namespace,
                "runs and is nobody's: ending it"
            );
            let told = watch::Sender::new(Told::default());
            let nothing = Promised::default();
            self.pods().insert(uid.clone(), Entry { told, promised: nothing, works: true, begun: true, came: 0 });
            self.work(uid, Duration::ZERO);
        }
    }

    /// Tasks that have ended: with their pods, or too early.
    fn again(&self) {
        let mut early = Vec::new();
        self.pods().retain(|uid, it| {
            if it.works {
                return true;
            }
            let stays = it.told.borrow().pod.is_some();
            if stays {
                it.works = true;
                early.push(uid.clone());
            }
            stays
        });
        early.into_iter().for_each(|uid| self.work(uid, BROKEN));
    }

    fn work(&self, uid: String, after: Duration) {
        let Some(told) = self.pods().get(&uid).map(|it| it.told.subscribe()) else { return };
        let kubelet = self.clone();
        let shutdown = self.0.tasks.shutdown().clone();
        self.0.tasks.tenant("pod", async move {
            let _leaves = Leaves { kubelet: &kubelet, uid: &uid };
            let mut task = pod::Task::new(&kubelet.0, &uid, told);
            let working = async {
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
                task.run().await;
            };
            tokio::select! {
                () = shutdown.begun() => {}
                () = working => {}
            }
        });
    }
}

/// Says that a pod's task has ended, however it did.
struct Leaves<'a, W: World> {
    kubelet: &'a Kubelet<W>,
    uid: &'a str,
}

impl<W: World> Drop for Leaves<'_, W> {
    fn drop(&mut self) {
        if let Some(it) = self.kubelet.pods().get_mut(self.uid) {
            it.works = false;
        }
        self.kubelet.0.left.notify_one();
    }
}

impl<W: World> Inner<W> {
    /// What the pods that count before this one have been promised. Of two that do not both fit, one is taken.
    fn promised(&self, but: &str) -> Promised {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let came = pods.get(but).map_or(u64::MAX, |it| it.came);
        let others = pods.iter().filter(|(uid, it)| uid.as_str() != but && (it.begun || it.came < came));
        others.fold(Promised::default(), |sum, (_, it)| sum.and(&it.promised))
    }
}
