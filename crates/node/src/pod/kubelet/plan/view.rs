//! One container: what the spec wants, and what became of it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use sha2::{Digest, Sha256};

use super::super::memory::{Kind as Probe, Memory, Part, later, shown_until};
use super::super::spec::{self, Unit};
use super::Seen;
use crate::pod::ContainerState;

#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    pub unit: Unit<'a>,
    /// The latest attempt, and the one before it.
    pub last: Option<Attempt>,
    pub before: Option<Attempt>,
    /// The number of the next attempt.
    pub next: u32,
    /// What the API server shows.
    pub shown: Option<&'a ContainerStatus>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    pub number: u32,
    pub id: String,
    pub started: Option<Timestamp>,
    pub end: Option<End>,
    /// It belongs to an earlier life of the pod, before the machine was restarted.
    pub stale: bool,
    /// How its image wants to be told to end.
    pub stop_signal: Option<i32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct End {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
    pub finished: Timestamp,
}

impl View<'_> {
    pub(crate) fn running(&self) -> Option<&Attempt> {
        self.last.as_ref().filter(|it| it.end.is_none())
    }

    pub(crate) fn end(&self) -> Option<&End> {
        self.last.as_ref().and_then(|it| it.end.as_ref())
    }

    /// The latest attempt, if it is of this life of the pod.
    pub(crate) fn current(&self) -> Option<&Attempt> {
        self.last.as_ref().filter(|it| !it.stale)
    }

    /// It runs, its postStart hook has run, and its startup probe has passed.
    pub(crate) fn started(&self, part: Option<&Part>) -> bool {
        let starting = part.is_some_and(|it| it.starting.is_some());
        let passed = || match &self.unit.spec.startup_probe {
            None => true,
            Some(_) => part.and_then(|it| it.probes.get(&Probe::Startup)).is_some_and(|it| it.result == Some(true)),
        };
        self.running().is_some() && !starting && !self.fails_hook(part) && passed()
    }

    /// It runs, and is about to be ended: its postStart hook has failed.
    pub(crate) fn fails_hook(&self, part: Option<&Part>) -> bool {
        let failed = part.and_then(|it| it.failed.as_ref());
        self.running().is_some() && failed.is_some_and(|it| it.reason == "PostStartHookError")
    }

    pub(crate) fn ready(&self, part: Option<&Part>) -> bool {
        let passed = || match &self.unit.spec.readiness_probe {
            None => true,
            Some(_) => part.and_then(|it| it.probes.get(&Probe::Readiness)).is_some_and(|it| it.result == Some(true)),
        };
        match self.unit.kind {
            spec::Kind::Init => self.end().is_some_and(|it| it.code == 0),
            spec::Kind::Ephemeral => false,
            _ => self.started(part) && passed(),
        }
    }

    /// When it may be started again after it crashed: never without a crash.
    pub(crate) fn waits_until(&self, part: Option<&Part>) -> Option<Timestamp> {
        part?.backoff?.until(self.end()?.finished)
    }

    /// Whether its crash is shown as waiting by now; and when it will be.
    pub(crate) fn shows_wait(&self) -> Option<Timestamp> {
        Some(shown_until(self.end()?.finished))
    }
}

pub(crate) fn views<'a>(seen: &Seen<'a>, memory: &Memory) -> Vec<View<'a>> {
    let empty: &[ContainerState] = &[];
    let of_state = seen.state.map_or(empty, |it| &it.containers);
    let created = seen.state.map(|it| it.created);
    let pod = seen.pod;
    let units = spec::units(pod).into_iter().map(|unit| {
        let part = memory.parts.get(unit.name());
        let own = of_state.iter().filter(|it| it.name == unit.name());
        let mut attempts: Vec<Attempt> = own.map(|it| attempt(it, &unit, part, created)).collect();
        attempts.extend(part.iter().flat_map(|it| &it.stillborn).map(|it| Attempt {
            number: it.attempt,
            id: made_up(spec::uid(pod), unit.name(), it.attempt),
            started: None,
            end: Some(End { code: 128, reason: "StartError", message: it.message.clone(), finished: it.at }),
            stale: false,
            stop_signal: None,
        }));
        attempts.sort_by_key(|it| it.number);
        let last = attempts.pop();
        let shown = pod.status.as_ref().and_then(|it| shown(it, &unit));
        // What the pod's own state has forgotten, its status may know.
        let counted = shown.filter(|it| it.container_id.as_ref().is_some_and(|id| !id.is_empty()));
        let counted = counted.map_or(0, |it| u32::try_from(it.restart_count).unwrap_or(0).saturating_add(1));
        let next = last.as_ref().map_or(0, |it| it.number.saturating_add(1)).max(counted);
        View { unit, last, before: attempts.pop(), next, shown }
    });
    units.collect()
}

fn shown<'a>(status: &'a PodStatus, unit: &Unit<'_>) -> Option<&'a ContainerStatus> {
    let list = match unit.kind {
        spec::Kind::Init | spec::Kind::Sidecar => &status.init_container_statuses,
        spec::Kind::Regular => &status.container_statuses,
        spec::Kind::Ephemeral => &status.ephemeral_container_statuses,
    };
    list.iter().flatten().find(|it| it.name == unit.name())
}

fn attempt(it: &ContainerState, unit: &Unit<'_>, part: Option<&Part>, created: Option<Timestamp>) -> Attempt {
    let end = it.exit.as_ref().map(|exit| {
        let reason = match exit.code {
            _ if exit.out_of_memory => "OOMKilled",
            _ if exit.unseen => "ContainerStatusUnknown",
            0 => "Completed",
            _ => "Error",
        };
        let logs = unit.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && exit.code != 0;
        let message = if exit.message.is_empty() && exit.unseen {
            "The container could not be located when the pod was terminated".to_owned()
        } else if exit.message.is_empty() && logs {
            part.and_then(|part| part.tails.get(&it.attempt)).cloned().unwrap_or_default()
        } else {
            exit.message.clone()
        };
        End { code: exit.code, reason, message, finished: exit.finished }
    });
    let stale = end.is_some() && created.is_some_and(|created| created > it.started);
    let (number, id, stop_signal) = (it.attempt, it.id.clone(), it.stop_signal);
    Attempt { number, id, started: Some(it.started), end, stale, stop_signal }
}

/// The id of what never was.
fn made_up(uid: &str, container: &str, attempt: u32) -> String {
    let hash = Sha256::digest(format!("{uid}/{container}/{attempt}"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whichever is later.
pub(super) fn due(at: Timestamp, seconds: i64) -> Timestamp {
    later(at, jiff::SignedDuration::from_secs(seconds))
}
