//! One pod's task: looks, plans, acts, writes; wakes when anything that it knows has changed.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerUser, LinuxContainerUser, Node as NodeObject, Pod, PodStatus};
use kit::{Backoff, Shutdown};
use kube::Api;
use tokio::sync::watch;

use super::act::{Acting, Outcome};
use super::{CALL, Inner, Told};
use crate::pod::kubelet::memory::{Ending, Memory, Step, later};
use crate::pod::kubelet::plan::{Action, Plan, Seen, plan};
use crate::pod::kubelet::world::{Node, World};
use crate::pod::kubelet::{admission, memory, spec, status};
use crate::pod::{ContainerConfig, PodConfig, PodState};

/// What is about to change again is not written yet.
const SETTLE: SignedDuration = SignedDuration::from_millis(100);
/// Who writes what is ours is set right at once, and again after so long: two that disagree would otherwise write at each
/// other as fast as they can.
const PATIENCE: SignedDuration = SignedDuration::from_secs(10);

/// What is under way.
type Jobs<'a> = FuturesUnordered<BoxFuture<'a, Outcome>>;

pub(super) struct Task<'a, W: World> {
    inner: &'a Inner<W>,
    uid: &'a str,
    told: watch::Receiver<Told>,
    /// The last that was known of it; kept when the API server has none any more.
    pod: Arc<Pod>,
    memory: Memory,
    /// What was last written, and at which resource version.
    written: PodStatus,
    version: u64,
    writing: bool,
    /// Since when the status is not what is written.
    differs: Option<Timestamp>,
    failing: Backoff,
    /// No write before.
    pause: Option<Timestamp>,
    /// Until then nobody is set right again.
    patience: Option<Timestamp>,
    config: Option<PodConfig>,
    cancel: Shutdown,
    /// Given up by probes when the pod is frozen.
    probes: Shutdown,
    changes: Option<watch::Receiver<u64>>,
    /// Somebody looks whether what the pod was given is still right.
    guarded: bool,
    /// It is not any more, and has to be brought up to date when that is not under way.
    stale: bool,
}

impl<'a, W: World> Task<'a, W> {
    pub(super) fn new(inner: &'a Inner<W>, uid: &'a str, told: watch::Receiver<Told>) -> Self {
        let pod = told.borrow().pod.clone().unwrap_or_else(|| Arc::new(nobody(uid, inner.world.state(uid))));
        Self {
            inner,
            uid,
            told,
            written: status::shown(&pod),
            pod,
            memory: Memory::default(),
            version: 0,
            writing: false,
            differs: None,
            failing: Backoff::new(Duration::from_millis(200), Duration::from_secs(60)),
            pause: None,
            patience: None,
            config: None,
            cancel: Shutdown::new(),
            probes: Shutdown::new(),
            changes: None,
            guarded: false,
            stale: false,
        }
    }

    /// Until nothing is left of the pod.
    pub(super) async fn run(&mut self) {
        let inner = self.inner;
        let mut jobs: Jobs<'a> = FuturesUnordered::new();
        let node = self.node().await;
        loop {
            let told = self.told.borrow_and_update().clone();
            self.hear(&told);
            // First the number, then what it counts: what changes in between is looked at again.
            match &mut self.changes {
                Some(it) => drop(it.borrow_and_update()),
                None => self.changes = inner.world.watch(self.uid),
            }
            let state = inner.world.state(self.uid);
            self.tails(state.as_ref());
            let now = inner.clock.now();
            if self.stale && self.memory.volumes.done {
                self.stale = false;
                self.memory.changed(now);
            }
            let mut plan = self.plan(&told, state.as_ref(), &node, now);
            self.memory = plan.memory.clone();
            for note in plan.notes.drain(..) {
                inner.recorder.note(&self.pod, note);
            }
            for action in plan.actions.drain(..) {
                self.act(action, state.as_ref(), &mut jobs);
            }
            if self.memory.volumes.done && self.memory.ending.is_none() && !self.guarded {
                self.guarded = true;
                let acting = Acting { inner, pod: self.pod.clone() };
                jobs.push(async move { acting.changed().await }.boxed());
            }
            // When the node ends, it is not the pod's fault.
            let told = plan.status.take().filter(|_| !matches!(self.memory.ending, Some(Ending::Closed { .. })));
            let due = told.and_then(|status| self.write(status, plan.unsettled, now, &mut jobs));
            if plan.done && !self.writing {
                return;
            }
            let again = plan.again.into_iter().chain(due).min();
            self.wait(&mut jobs, again).await;
        }
    }

    /// The node; with the labels that others may have given it since, where a pod that is new wants them.
    async fn node(&mut self) -> Node {
        let mut node = self.inner.world.node();
        let nodes: Api<NodeObject> = Api::all(self.inner.client.clone());
        let mut failing = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        loop {
            let asks = self.told.borrow().pod.as_ref().is_some_and(|pod| {
                let begun = pod.status.as_ref().is_some_and(|it| it.start_time.is_some());
                !begun && pod.metadata.deletion_timestamp.is_none() && !admission::selected(pod, &node)
            });
            if !asks {
                return node;
            }
            // Without an answer the pod waits: refused, it would have failed for good.
            match tokio::time::timeout(CALL, nodes.get_opt(&node.name)).await {
                Ok(Ok(found)) => {
                    node.labels = found.and_then(|it| it.metadata.labels).unwrap_or_default();
                    return node;
                }
                Ok(Err(_)) | Err(_) => tokio::time::sleep(failing.pause()).await,
            }
        }
    }

    fn hear(&mut self, told: &Told) {
        let Some(pod) = &told.pod else { return };
        if Arc::ptr_eq(pod, &self.pod) {
            return;
        }
        let (before, after) = (&self.pod.metadata, &pod.metadata);
        let renamed = before.labels != after.labels || before.annotations != after.annotations;
        self.stale |= renamed && is_told_of_itself(pod);
        self.pod = pod.clone();
        self.compare();
    }

    /// Who else writes a kubelet's part of the status is corrected; what is older than our own words is not news.
    fn compare(&mut self) {
        let version = self.pod.metadata.resource_version.as_deref().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
        if version <= self.version || self.writing {
            return;
        }
        let shown = status::shown(&self.pod);
        if shown != self.written {
            let now = self.inner.clock.now();
            match self.patience.filter(|it| *it > now) {
                Some(until) => self.pause = self.pause.max(Some(until.min(later(now, PATIENCE)))),
                None => self.patience = Some(later(now, PATIENCE)),
            }
        }
        self.written = shown;
    }

    /// The ends of logs that are the messages of containers' ends.
    fn tails(&mut self, state: Option<&PodState>) {
        let containers = self.pod.spec.iter().flat_map(|it| it.init_containers.iter().flatten().chain(&it.containers));
        for it in containers.filter(|it| it.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")) {
            let ended = state.iter().flat_map(|it| &it.containers).filter(|state| state.name == it.name);
            for state in ended {
                let part = self.memory.part(&it.name);
                let wanted = state.exit.as_ref().is_some_and(|exit| exit.code != 0 && exit.message.is_empty());
                if wanted && !part.tails.contains_key(&state.attempt) {
                    let tail = self.inner.world.tail(self.uid, &it.name, state.attempt, 2048, 80);
                    part.tails.insert(state.attempt, tail);
                    while part.tails.len() > memory::ENDS {
                        part.tails.pop_first();
                    }
                }
            }
        }
    }

    fn plan(&self, told: &Told, state: Option<&PodState>, node: &Node, now: Timestamp) -> Plan {
        let new = !self.memory.admitted;
        let seen = Seen {
            pod: &self.pod,
            gone: told.pod.is_none(),
            state,
            node,
            others: if new { self.inner.promised(self.uid) } else { admission::Promised::default() },
            refused: if new { self.inner.world.admit(&self.pod).err() } else { None },
            order: told.order.as_ref(),
            told: &self.written,
            now,
        };
        plan(&seen, self.memory.clone())
    }

    /// Begins to write the status, unless it is written, or about to change again; then it says when.
    fn write(&mut self, status: PodStatus, unsettled: bool, now: Timestamp, jobs: &mut Jobs<'a>) -> Option<Timestamp> {
        if status == self.written {
            self.differs = None;
            return None;
        }
        let since = *self.differs.get_or_insert(now);
        // A clock that was set back does not hold anything up.
        let settled = if unsettled { later(since, SETTLE).min(later(now, SETTLE)) } else { now };
        let due = settled.max(self.pause.unwrap_or(settled));
        if self.writing || due > now {
            return Some(due).filter(|it| *it > now);
        }
        self.writing = true;
        self.differs = None;
        let acting = Acting { inner: self.inner, pod: self.pod.clone() };
        jobs.push(async move { acting.write(status).await }.boxed());
        None
    }

    fn act(&mut self, action: Action, state: Option<&PodState>, jobs: &mut Jobs<'a>) {
        let acting = Acting { inner: self.inner, pod: self.pod.clone() };
        let address = state.and_then(|it| it.address);
        let pod = self.pod.clone();
        let container = |name: &str| {
            let all = spec::units(&pod);
            all.into_iter()
                .find(|it| it.name() == name)
                .map(|it| (it.spec.into_owned(), it.target.map(str::to_owned), it.kind))
        };
        jobs.push(match action {
            Action::Volumes => async move { acting.volumes().await }.boxed(),
            Action::Create => {
                let config = self.config.clone();
                async move { acting.create(config).await }.boxed()
            }
            Action::Start { container: name, attempt } => {
                let Some((spec, target, kind)) = container(&name) else { return };
                if self.cancel.has_begun() {
                    self.cancel = Shutdown::new();
                }
                let cancel = self.cancel.clone();
                async move { acting.start(spec, target, kind, attempt, address, &cancel).await }.boxed()
            }
            Action::Cancel => {
                self.cancel.begin();
                return;
            }
            Action::PreStop { container: name, seconds } => {
                let Some((spec, _, kind)) = container(&name) else { return };
                async move { acting.pre_stop(spec, kind, seconds, address).await }.boxed()
            }
            Action::Signal { container, signal } => async move { acting.signal(container, signal).await }.boxed(),
            Action::Kill { container } => async move { acting.kill(container).await }.boxed(),
            Action::Freeze => {
                std::mem::replace(&mut self.probes, Shutdown::new()).begin();
                async move { acting.freeze(true).await }.boxed()
            }
            Action::Thaw => async move { acting.freeze(false).await }.boxed(),
            Action::Probe { container: name, kind, id } => {
                let Some((spec, _, unit)) = container(&name) else { return };
                let cancel = self.probes.clone();
                async move { acting.probe(spec, unit, kind, id, address, &cancel).await }.boxed()
            }
            Action::Stop => async move { acting.stop().await }.boxed(),
            Action::Remove => async move { acting.remove().await }.boxed(),
            Action::Delete => async move { acting.delete().await }.boxed(),
        });
    }

    async fn wait(&mut self, jobs: &mut Jobs<'a>, again: Option<Timestamp>) {
        let Self { inner, told, changes, .. } = self;
        let changed = async {
            if let Some(it) = changes
                && it.changed().await.is_ok()
            {
                return;
            }
            // It is gone: there is none to wait for, or another one.
            *changes = None;
            std::future::pending().await
        };
        let due = async {
            match again {
                Some(at) => inner.clock.until(at).await,
                None => std::future::pending().await,
            }
        };
        let heard = async {
            // Without a sender the kubelet itself is gone.
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            Some(outcome) = jobs.next() => Some(outcome),
            () = heard => None,
            () = changed => None,
            () = due => None,
        };
        if let Some(outcome) = outcome {
            self.learn(outcome);
        }
        // Whatever else is known by now belongs to the same look.
        while let Some(Some(outcome)) = jobs.next().now_or_never() {
            self.learn(outcome);
        }
    }

    fn learn(&mut self, outcome: Outcome) {
        let now = self.inner.clock.now();
        let memory = &mut self.memory;
        match outcome {
            Outcome::Volumes(config) => {
                memory.volumes.ended(config.is_none(), now);
                self.config = config.or_else(|| self.config.take());
            }
            Outcome::Changed => {
                self.guarded = false;
                self.stale = true;
            }
            Outcome::Created(done) => {
                memory.create.ended(!done, now);
                if !done && self.config.is_none() {
                    memory.volumes = Step::default();
                }
            }
            Outcome::Started { container, image, config } => {
                memory.started(&container, image, user(&config));
            }
            Outcome::NotStarted { container, image, attempt, refused } => {
                let part = memory.part(&container);
                part.image = image.or_else(|| part.image.take());
                memory.not_started(&container, attempt, refused, now);
            }
            Outcome::HookFailed { container, image, config, refused } => {
                memory.started(&container, image, user(&config));
                let part = memory.part(&container);
                part.fail(refused, now);
                part.doomed = Some("FailedPostStartHook".to_owned());
            }
            Outcome::Cancelled { container } => memory.part(&container).starting = None,
            Outcome::TurnedAway { container } => memory.part(&container).turned_away(),
            Outcome::PreStopped { container } => memory.pre_stopped(&container),
            Outcome::Signalled => {}
            Outcome::Killed { container, done } => memory.killed(&container, done, now),
            Outcome::Turned(done) => memory.turned(done, now),
            Outcome::Probed { container, kind, id, spec, passed } => {
                memory.probed(&container, kind, &id, &spec, passed, now);
            }
            Outcome::Stopped(done) => memory.stop.ended(!done, now),
            Outcome::Removed(done) => memory.remove.ended(!done, now),
            Outcome::Deleted(done) => memory.delete.ended(!done, now),
            Outcome::Written { status, version } => {
                self.writing = false;
                match version {
                    Some(version) => {
                        self.failing.reset();
                        self.pause = None;
                        self.version = version;
                        self.written = *status;
                    }
                    None => {
                        let pause = SignedDuration::try_from(self.failing.pause()).unwrap_or(SETTLE);
                        self.pause = Some(later(now, pause));
                    }
                }
                // What was heard while this was under way. Where nobody is left to be told (0), nothing is.
                if version != Some(0) {
                    self.compare();
                }
            }
        }
    }
}

/// Whether its labels or annotations may be in its volumes.
fn is_told_of_itself(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|it| it.volumes.iter().flatten());
    volumes.any(|it| {
        let mut sources = it.projected.iter().flat_map(|it| it.sources.iter().flatten());
        it.downward_api.is_some() || sources.any(|it| it.downward_api.is_some())
    })
}

fn user(config: &ContainerConfig) -> ContainerUser {
    let groups: Vec<i64> = std::iter::once(config.group).chain(config.groups.iter().copied()).map(i64::from).collect();
    let mut all = Vec::new();
    for group in groups {
        if !all.contains(&group) {
            all.push(group);
        }
    }
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: config.user.into(),
            gid: config.group.into(),
            supplemental_groups: Some(all),
        }),
    }
}

/// A pod that the API server does not know.
fn nobody(uid: &str, state: Option<PodState>) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.to_owned());
    if let Some(state) = state {
        pod.metadata.name = Some(state.config.name);
        pod.metadata.namespace = Some(state.config.namespace);
        let mut spec = k8s_openapi::api::core::v1::PodSpec::default();
        let mut names: Vec<String> = state.containers.into_iter().map(|it| it.name).collect();
        names.sort();
        names.dedup();
        spec.containers = names
            .into_iter()
            .map(|name| k8s_openapi::api::core::v1::Container { name, ..Default::default() })
            .collect();
        pod.spec = Some(spec);
    }
    pod
}
