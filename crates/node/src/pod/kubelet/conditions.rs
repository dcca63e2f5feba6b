//! The conditions of a pod. Pure; reasons and messages are a kubelet's of 1.34.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::memory::{Ending, Memory};
use super::plan::{Seen, View};
use super::spec::Kind;
use super::status::{frozen, time};

pub(super) struct Facts<'a> {
    pub seen: &'a Seen<'a>,
    pub views: &'a [View<'a>],
    pub memory: &'a Memory,
    /// What the pod comes to, also while something of it is left.
    pub phase: &'a str,
    /// One for each view.
    pub statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Says {
    is: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Says {
    fn new(is: bool) -> Self {
        Self { is, ..Self::default() }
    }

    fn because(is: bool, reason: &'static str) -> Self {
        Self { is, reason: Some(reason), message: None }
    }

    fn not(reason: &'static str, message: String) -> Self {
        Self { is: false, reason: Some(reason), message: Some(message) }
    }
}

pub(super) fn conditions(facts: &Facts<'_>) -> Vec<PodCondition> {
    let alive = facts.seen.state.is_some_and(|it| it.alive) && !facts.memory.remove.busy && !over(facts);
    let ready = containers_ready(facts);
    let mut all = vec![
        condition(facts, "PodReadyToStartContainers", Says::new(alive)),
        condition(facts, "Initialized", initialized(facts)),
        condition(facts, "Ready", gates(facts, ready.clone())),
        condition(facts, "ContainersReady", ready),
    ];
    let told = facts.seen.pod.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    let scheduled = told.iter().find(|it| it.type_ == "PodScheduled").filter(|it| it.status == "True").cloned();
    all.push(scheduled.map_or_else(
        || condition(facts, "PodScheduled", Says::new(true)),
        |it| PodCondition { observed_generation: facts.seen.pod.metadata.generation, ..it },
    ));
    if let Some(Ending::Failed { message, disruption: true, .. }) = &facts.memory.ending {
        let says = Says { is: true, reason: Some("TerminationByKubelet"), message: Some(message.clone()) };
        all.push(condition(facts, "DisruptionTarget", says));
    } else {
        all.extend(facts.seen.told.conditions.iter().flatten().find(|it| it.type_ == "DisruptionTarget").cloned());
    }
    all
}

/// Whether the pod has been ended with all that ran in it.
fn over(facts: &Facts<'_>) -> bool {
    facts.memory.ending == Some(Ending::Deleted) && facts.views.iter().all(|it| it.running().is_none())
}

fn condition(facts: &Facts<'_>, type_: &str, says: Says) -> PodCondition {
    let status = if says.is { "True" } else { "False" };
    let before = facts.seen.told.conditions.iter().flatten().find(|it| it.type_ == type_);
    let since = before.filter(|it| it.status == status).and_then(|it| it.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: says.reason.map(str::to_owned),
        message: says.message,
        last_transition_time: Some(since.unwrap_or_else(|| time(facts.seen.now))),
        observed_generation: facts.seen.pod.metadata.generation,
        last_probe_time: None,
    }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn initialized(facts: &Facts<'_>) -> Says {
    if facts.phase == "Succeeded" {
        return Says::because(true, "PodCompleted");
    }
    let pairs = || facts.views.iter().zip(&facts.statuses);
    let begun = pairs().any(|(view, status)| {
        let state = status.state.as_ref();
        let last = status.last_state.as_ref();
        let ran = state.is_some_and(|it| it.running.is_some() || it.terminated.is_some());
        view.unit.kind == Kind::Regular && (ran || last.is_some_and(|it| it.terminated.is_some()))
    });
    if begun {
        return Says::new(true);
    }
    let names: Vec<&str> = pairs()
        .filter(|(view, status)| match view.unit.kind {
            Kind::Init => !status.ready,
            Kind::Sidecar => status.started != Some(true),
            _ => false,
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    if names.is_empty() {
        return Says::new(true);
    }
    Says::not("ContainersNotInitialized", format!("containers with incomplete status: {}", list(&names)))
}

fn containers_ready(facts: &Facts<'_>) -> Says {
    match facts.phase {
        "Succeeded" => return Says::because(false, "PodCompleted"),
        "Failed" => return Says::because(false, "PodFailed"),
        _ => {}
    }
    if let Some(why) = frozen(facts.seen) {
        return Says::not("Frozen", why);
    }
    let pairs = facts.views.iter().zip(&facts.statuses);
    let names: Vec<&str> = pairs
        .filter(|(view, status)| matches!(view.unit.kind, Kind::Sidecar | Kind::Regular) && !status.ready)
        .map(|(_, status)| status.name.as_str())
        .collect();
    if names.is_empty() {
        return Says::new(true);
    }
    Says::not("ContainersNotReady", format!("containers with unready status: {}", list(&names)))
}

/// A pod is Ready when its containers are, and what others say of it by its readiness gates.
fn gates(facts: &Facts<'_>, containers: Says) -> Says {
    if !containers.is {
        return containers;
    }
    let pod = facts.seen.pod;
    let told = pod.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.iter().flat_map(|it| it.readiness_gates.iter().flatten());
    let not: Vec<String> = gates
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match told.iter().find(|it| it.type_ == *type_) {
                None => Some(format!("corresponding condition of pod readiness gate \"{type_}\" does not exist.")),
                Some(it) if it.status != "True" => {
                    Some(format!("the status of pod readiness gate \"{type_}\" is not \"True\", but {}", it.status))
                }
                Some(_) => None,
            }
        })
        .collect();
    if not.is_empty() { containers } else { Says::not("ReadinessGatesNotReady", not.join(", ")) }
}
