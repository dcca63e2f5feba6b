//! What pods are given: their volumes, and all that a container is started with. What a kubelet does between a PodSpec and
//! its runtime; the messages of errors are a kubelet's.
//!
//! What is given follows from the pod, what is read for it, and the node: pure functions. Reading is in `objects`, `tokens`
//! and `disks`, writing in `atomic` and `ownership`.

mod atomic;
mod container;
mod disks;
mod env;
mod expand;
mod names;
mod objects;
mod ownership;
mod payload;
mod profile;
mod quantity;
mod resources;
mod security;
mod services;
#[cfg(test)]
mod tests;
mod tokens;
mod volumes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kit::{Clock, Tasks};
use kube::Client;
use tokio::sync::watch;

use super::{ContainerConfig, ImageFacts, Kernel, Runtime, Volume};
use crate::engine::Ids;
pub(crate) use names::{Dns, host_name, hosts, machine_hosts, resolv};
use objects::{ObjectKind, Objects, Seen, Watched, locked};
pub(crate) use quantity::{millis, value};
pub use security::Allow;
pub(crate) use security::{Allowed, Refusal, beyond_sentry, host_ports, spaces};
use tokens::Token;

/// What a pod is told of its node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) addresses: Vec<IpAddr>,
    /// What the node has for pods: what limits are, for the downward API, that are not set.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// The directory below which those of PersistentVolumes are that were made for this node.
    pub(crate) claims: PathBuf,
    /// The directory of the seccomp profiles that containers can name.
    pub(crate) profiles: PathBuf,
    pub(crate) dns: Dns,
    /// The variables that name its proxy, in capital letters.
    pub(crate) proxy: Vec<(&'static str, String)>,
    /// Which ids files have whose owners are these inside.
    pub(crate) ids: Ids,
}

impl Default for NodeFacts {
    /// One that has nothing, and no ids but its own.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            allocatable: BTreeMap::new(),
            memory: 0,
            claims: PathBuf::new(),
            profiles: PathBuf::new(),
            dns: Dns::default(),
            proxy: Vec::new(),
            ids: Ids::Own { count: 1 },
        }
    }
}

/// What a container is told of its pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodFacts {
    /// The pod's addresses, the first one first.
    pub(crate) addresses: Vec<IpAddr>,
    /// The container whose processes it sees.
    pub(crate) target: Option<String>,
    /// What serves the pod.
    pub(crate) kernel: Kernel,
}

/// Why a container is not started: the reason that it waits, and the message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ConfigError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Why volumes are not there: the messages of the events that say so, of which the reason is `FailedMount`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", messages.join("; "))]
pub(crate) struct VolumeError {
    pub(crate) messages: Vec<String>,
}

impl VolumeError {
    pub(crate) const REASON: &str = "FailedMount";
}

/// Gives pods what they are given. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Given(Arc<Inner>);

struct Inner {
    objects: Objects,
    node: NodeFacts,
    allowed: Allowed,
    /// Who makes the sizes of claims hold, if somebody does.
    runtime: Option<Runtime>,
    clock: Clock,
    /// By uid, until they are forgotten.
    pods: Mutex<HashMap<String, Record>>,
}

/// What is known of what a pod was given.
struct Record {
    tokens: BTreeMap<(String, i64), Token>,
    /// What its volumes were made of.
    given: Seen,
    /// What its containers lacked: something must become of it.
    lacking: Seen,
    /// With how much had happened when the volumes were last made.
    watches: BTreeMap<ObjectKind, (Arc<Watched>, u64)>,
    /// The PersistentVolumes that it has for itself alone.
    alone: HashSet<String>,
    /// The PersistentVolumes below our directory, with their sizes, and whether those hold.
    sized: HashMap<String, (Option<u64>, bool)>,
    /// The volumes whose files were given to the pod's group.
    owned: HashSet<String>,
    revised: watch::Sender<()>,
}

impl Record {
    fn new() -> Self {
        Self {
            tokens: BTreeMap::new(),
            given: Seen::new(),
            lacking: Seen::new(),
            watches: BTreeMap::new(),
            alone: HashSet::new(),
            sized: HashMap::new(),
            owned: HashSet::new(),
            revised: watch::Sender::new(()),
        }
    }

    /// Whether there is something to do now; what containers lacked is said once.
    fn is_due(&mut self, now: Timestamp) -> bool {
        if self.tokens.values().any(|it| it.renew <= now) {
            return true;
        }
        let watches = &self.watches;
        let news = |mark: Option<u64>, (kind, name): &objects::Name, seen: &Option<String>| {
            let of =
                |(watched, since): &(Arc<Watched>, u64)| watched.is_news(mark.unwrap_or(*since), name, seen.as_deref());
            watches.get(kind).is_some_and(of)
        };
        let before = self.lacking.len();
        self.lacking.retain(|name, seen| !news(Some(0), name, seen));
        self.lacking.len() < before || self.given.iter().any(|(name, seen)| news(None, name, seen))
    }
}

impl Given {
    /// Nothing is done until the first call.
    pub(crate) fn new(
        client: Client,
        node: NodeFacts,
        allowed: Allowed,
        runtime: Option<Runtime>,
        clock: Clock,
        tasks: Tasks,
    ) -> Self {
        let objects = Objects::new(client, tasks);
        Self(Arc::new(Inner { objects, node, allowed, runtime, clock, pods: Mutex::default() }))
    }

    /// Whether a kubelet would turn this pod away: then it fails, and nothing of it is started.
    pub(crate) fn refuses(&self, pod: &Pod) -> Option<Refusal> {
        security::refusal(pod)
    }

    /// What a container gets other than it asked for, for an event.
    pub(crate) fn remark(&self, pod: &Pod, container: &Container) -> Option<&'static str> {
        security::remark(pod, container)
    }

    /// Reads what the pod's volumes are made of, writes it below `dir/volumes/NAME`, and says what to mount: the volumes that
    /// containers mount, in their order. Idempotent; called again, it brings what is there up to date, all at once for each
    /// volume. Not to be called twice at a time for one pod.
    ///
    /// # Errors
    /// The messages of a kubelet's events. It is to be tried again, after [`Self::changed`] or a while.
    pub(crate) async fn volumes(&self, pod: &Pod, dir: &Path) -> Result<Vec<Volume>, VolumeError> {
        volumes::prepare(&self.0, pod, dir).await
    }

    /// What one container is started with.
    ///
    /// # Errors
    /// What a kubelet says of a container that waits. It is to be tried again, after [`Self::changed`] or a while.
    pub(crate) async fn container(
        &self,
        pod: &Pod,
        container: &Container,
        image: &ImageFacts,
        attempt: u32,
        facts: &PodFacts,
    ) -> Result<ContainerConfig, ConfigError> {
        container::config(&self.0, pod, container, image, attempt, facts).await
    }

    /// Returns when what the pod was given is not what it should be given any more, when something that it lacked has come,
    /// or when a token must be renewed: then [`Self::volumes`] is to be called again. The pod's own labels and annotations
    /// are the caller's to watch.
    pub(crate) async fn changed(&self, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        locked(&self.0.pods).entry(uid.clone()).or_insert_with(Record::new);
        while let Some(wait) = self.wait(&uid) {
            wait.await;
        }
    }

    /// What to wait for before it is looked again whether there is something to do; `None` when there is.
    fn wait(&self, uid: &str) -> Option<impl Future<Output = ()> + use<>> {
        let clock = self.0.clock.clone();
        let mut pods = locked(&self.0.pods);
        let (mut changes, renew) = match pods.get_mut(uid) {
            Some(record) => {
                // Before it is asked what they have to say, so that nothing is missed.
                let mut changes: Vec<_> = record.watches.values().map(|(it, _)| it.changes()).collect();
                changes.push(record.revised.subscribe());
                if record.is_due(clock.now()) {
                    return None;
                }
                (changes, record.tokens.values().map(|it| it.renew).min())
            }
            // It was forgotten: nothing changes for it any more.
            None => (Vec::new(), None),
        };
        Some(async move {
            if changes.is_empty() {
                std::future::pending::<()>().await;
            }
            let any = futures::future::select_all(changes.iter_mut().map(|it| Box::pin(it.changed())));
            tokio::select! {
                () = clock.until(renew.unwrap_or(Timestamp::MAX)), if renew.is_some() => {}
                _ = any => {}
            }
        })
    }

    /// The pod is gone: nothing is watched or kept for it any more. Its directory is the caller's.
    pub(crate) fn forget(&self, uid: &str) {
        locked(&self.0.pods).remove(uid);
    }

    /// Bytes that a pod's own volumes on the disk hold. Reads whole directories, as [`Self::overfull`] does.
    pub(crate) async fn stored(&self, pod: &Pod, dir: &Path) -> u64 {
        let all = volumes::on_disk(pod, dir);
        let measured = tokio::task::spawn_blocking(move || {
            all.iter().filter_map(|it| ownership::usage(it).ok()).fold(0, u64::saturating_add)
        });
        measured.await.unwrap_or_default()
    }

    /// The message with which a kubelet evicts a pod whose volumes on the disk hold more than they may. Reads whole
    /// directories: for every minute, not for every second.
    pub(crate) async fn overfull(&self, pod: &Pod, dir: &Path) -> Option<String> {
        let limited = volumes::limited(pod, dir);
        let measured = tokio::task::spawn_blocking(move || {
            let over = |(name, dir, most, text): (String, PathBuf, u64, String)| {
                let used = ownership::usage(&dir).ok()?;
                (used > most).then(|| format!("Usage of EmptyDir volume {name:?} exceeds the limit {text:?}. "))
            };
            limited.into_iter().find_map(over)
        });
        measured.await.ok().flatten()
    }
}
