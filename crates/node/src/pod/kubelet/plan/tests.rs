//! Stories of one pod, told by plans alone: what is done is done at once, and every word of it is written down.

mod freezing;
mod life;
mod probing;
mod starting;
mod stopping;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerUser, Pod, PodStatus};
use serde_json::{Value, json};

use super::*;
use crate::pod::kubelet::memory::Ending;
use crate::pod::kubelet::status::shown;
use crate::pod::{ContainerState, Exit, PodConfig};

/// A node with one pod on it.
pub(super) struct Story {
    pub pod: Pod,
    pub gone: bool,
    pub state: Option<PodState>,
    pub node: Node,
    pub memory: Memory,
    pub order: Option<Ending>,
    pub refused: Option<Refused>,
    /// What was written.
    pub told: PodStatus,
    pub now: Timestamp,
    /// When the last plan wanted to look again.
    pub again: Option<Timestamp>,
    /// Starts that come to nothing.
    pub broken: BTreeMap<String, Refused>,
    /// Starts that are never done.
    pub slow: BTreeSet<String>,
    /// Containers that do not mind signals, and hooks that hang.
    pub deaf: BTreeSet<String>,
    pub hanging: BTreeSet<String>,
    /// What probes find; without a word they pass.
    pub probes: BTreeMap<(String, Probe), Option<bool>>,
    /// Nothing can be frozen or thawed.
    pub stuck: bool,
    /// What images say of how to end.
    pub stop_signals: BTreeMap<String, i32>,
}

impl Story {
    pub(super) fn new(spec: Value) -> Self {
        let meta = json!({"name": "p", "namespace": "n", "uid": "u", "generation": 1});
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        Self {
            pod: serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap(),
            gone: false,
            state: None,
            node: Node {
                pods: 10,
                cpu: 4000,
                memory: 1 << 34,
                addresses: vec![[10, 0, 0, 1].into()],
                ..Node::default()
            },
            memory: Memory::default(),
            order: None,
            refused: None,
            told: PodStatus::default(),
            now,
            again: None,
            broken: BTreeMap::new(),
            slow: BTreeSet::new(),
            deaf: BTreeSet::new(),
            hanging: BTreeSet::new(),
            probes: BTreeMap::new(),
            stuck: false,
            stop_signals: BTreeMap::new(),
        }
    }

    /// Plans until there is nothing to be done now; what was done and said, in order.
    pub(super) fn run(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for _ in 0..200 {
            let seen = Seen {
                pod: &self.pod,
                gone: self.gone,
                state: self.state.as_ref(),
                node: &self.node,
                others: admission::Promised::default(),
                refused: self.refused.clone(),
                order: self.order.as_ref(),
                told: &self.told,
                now: self.now,
            };
            let plan = plan(&seen, self.memory.clone());
            let quiet = plan.actions.is_empty() && plan.status.as_ref().is_none_or(|it| *it == self.told);
            self.memory = plan.memory;
            self.again = plan.again;
            for note in plan.notes {
                said.push(format!("{}: {}", note.reason, note.message));
            }
            for action in plan.actions {
                self.act(action, &mut said);
            }
            if let Some(status) = plan.status.filter(|_| !self.gone) {
                self.told = status.clone();
                // What others say of it stays.
                let before = self.pod.status.take().and_then(|it| it.conditions).unwrap_or_default();
                let others = before.into_iter().filter(|it| it.type_.contains('/'));
                let conditions = status.conditions.clone().into_iter().flatten().chain(others).collect();
                self.pod.status = Some(PodStatus { conditions: Some(conditions), ..status });
            }
            if quiet {
                return said;
            }
        }
        panic!("never quiet: {said:?}");
    }

    /// Lets time pass, looking whenever a plan wanted to, and at the end.
    pub(super) fn pass(&mut self, seconds: i64) -> Vec<String> {
        let end = self.now + SignedDuration::from_secs(seconds);
        let mut said = Vec::new();
        while let Some(again) = self.again.filter(|it| *it < end) {
            assert!(again > self.now, "looks again at once");
            self.now = again;
            said.extend(self.run());
        }
        self.now = end;
        said.extend(self.run());
        said
    }

    fn act(&mut self, action: Action, said: &mut Vec<String>) {
        let now = self.now;
        match action {
            Action::Volumes => self.memory.volumes.ended(false, now),
            Action::Create => {
                said.push("create".into());
                let containers = self.state.take().map(|it| it.containers).unwrap_or_default();
                let config = PodConfig {
                    uid: "u".into(),
                    namespace: "n".into(),
                    name: "p".into(),
                    hostname: "p".into(),
                    ..PodConfig::default()
                };
                let address = Some([10, 1, 0, 2].into());
                self.state = Some(PodState { config, alive: true, frozen: false, address, created: now, containers });
                self.memory.create.ended(false, now);
            }
            Action::Start { container, attempt } => {
                said.push(format!("start {container} {attempt}"));
                if self.slow.contains(&container) {
                    return;
                }
                if let Some(refused) = self.broken.get(&container).cloned() {
                    self.memory.not_started(&container, attempt, refused, now);
                    return;
                }
                self.memory.started(&container, ("image".into(), "sha256:1".into()), ContainerUser::default());
                let id = format!("{container}-{attempt}");
                let all = &mut self.state.as_mut().unwrap().containers;
                let stop_signal = self.stop_signals.get(&container).copied();
                all.push(ContainerState { name: container, attempt, id, started: now, exit: None, stop_signal });
            }
            Action::Cancel => said.push("cancel".into()),
            Action::PreStop { container, seconds } => {
                said.push(format!("hook of {container}, {seconds} s"));
                if !self.hanging.contains(&container) {
                    self.memory.pre_stopped(&container);
                }
            }
            Action::Signal { container, signal } => {
                said.push(format!("signal {signal} {container}"));
                if !self.deaf.contains(&container) {
                    self.exit(&container, 0);
                }
            }
            Action::Kill { container } => {
                said.push(format!("kill {container}"));
                self.exit(&container, 137);
                self.memory.killed(&container, true, now);
            }
            Action::Freeze | Action::Thaw => {
                let frozen = action == Action::Freeze;
                said.push(if frozen { "freeze" } else { "thaw" }.into());
                if !self.stuck {
                    self.state.as_mut().unwrap().frozen = frozen;
                }
                self.memory.turned(!self.stuck, now);
            }
            Action::Probe { container, kind, id } => {
                let passed = self.probes.get(&(container.clone(), kind)).copied().unwrap_or(Some(true));
                let view = crate::pod::kubelet::spec::units(&self.pod);
                let spec = view.iter().find(|it| it.name() == container).unwrap().spec.clone();
                let spec = match kind {
                    Probe::Startup => spec.startup_probe.clone(),
                    Probe::Liveness => spec.liveness_probe.clone(),
                    Probe::Readiness => spec.readiness_probe.clone(),
                };
                said.push(format!("{} probe of {container}", kind.name()));
                self.memory.probed(&container, kind, &id, &spec.unwrap(), passed, now);
            }
            Action::Stop => {
                said.push("stop".into());
                self.state.as_mut().unwrap().alive = false;
                self.memory.stop.ended(false, now);
            }
            Action::Remove => {
                said.push("remove".into());
                self.state = None;
                self.memory.remove.ended(false, now);
            }
            Action::Delete => {
                said.push("delete".into());
                self.gone = true;
                self.memory.delete.ended(false, now);
            }
        }
    }

    pub(super) fn exit(&mut self, container: &str, code: i32) {
        let finished = self.now;
        let all = &mut self.state.as_mut().unwrap().containers;
        let it = all.iter_mut().rev().find(|it| it.name == container && it.exit.is_none()).unwrap();
        let (message, unseen) = (String::new(), false);
        it.exit = Some(Exit { code, signal: None, out_of_memory: false, finished, message, unseen });
    }

    pub(super) fn delete(&mut self, grace: i64) {
        self.pod.metadata.deletion_timestamp = Some(crate::pod::kubelet::status::time(self.now));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    /// Phase, and of each container its state, in few words.
    pub(super) fn shows(&self) -> String {
        let phase = self.told.phase.clone().unwrap_or_default();
        let reason = self.told.reason.clone().map(|it| format!("/{it}")).unwrap_or_default();
        let all = self.told.init_container_statuses.iter().chain(&self.told.container_statuses).flatten();
        let each = all.chain(self.told.ephemeral_container_statuses.iter().flatten()).map(|it| {
            let state = it.state.clone().unwrap_or_default();
            let state = match (state.waiting, state.running, state.terminated) {
                (Some(it), ..) => it.reason.unwrap_or_default(),
                (_, Some(_), _) => "running".to_owned(),
                (.., Some(it)) => format!("{} {}", it.reason.unwrap_or_default(), it.exit_code),
                _ => "?".to_owned(),
            };
            let count = if it.restart_count > 0 { format!(" x{}", it.restart_count) } else { String::new() };
            let ready = if it.ready { " ready" } else { "" };
            format!("{}: {state}{count}{ready}", it.name)
        });
        let each: Vec<String> = each.collect();
        format!("{phase}{reason}; {}", each.join("; "))
    }

    pub(super) fn condition(&self, type_: &str) -> String {
        let it = self.told.conditions.iter().flatten().find(|it| it.type_ == type_).unwrap();
        let parts = [Some(it.status.clone()), it.reason.clone(), it.message.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("/")
    }

    /// Another process of the node comes: what was remembered is gone.
    pub(super) fn restart_node(&mut self) {
        self.memory = Memory::default();
        self.told = shown(&self.pod);
    }
}

pub(super) fn c(name: &str) -> Value {
    json!({"name": name, "image": "busybox"})
}

/// `c`, with more.
pub(super) fn with(name: &str, more: Value) -> Value {
    let mut it = c(name);
    for (key, value) in more.as_object().unwrap() {
        it[key] = value.clone();
    }
    it
}

pub(super) fn pod(policy: &str, containers: Value) -> Story {
    Story::new(json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 10, "containers": containers}))
}
