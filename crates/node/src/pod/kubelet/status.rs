//! What a pod's status says. Pure. Facts and words are a kubelet's of 1.34.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::{self, Facts};
use super::memory::{Ending, Memory, Part};
use super::plan::{Attempt, Seen, View};
use super::spec::{self, Kind};

/// Conditions that are a kubelet's to write.
const OURS: [&str; 6] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled", "DisruptionTarget"];
pub(super) const SCHEME: &str = "insula://";

/// What the API server shows of that which is written here.
pub(super) fn shown(pod: &Pod) -> PodStatus {
    let all = pod.status.clone().unwrap_or_default();
    let ours = all.conditions.unwrap_or_default().into_iter().filter(|it| OURS.contains(&it.type_.as_str()));
    // Which others wrote when a disruption was theirs.
    let ours = ours.filter(|it| it.type_ != "DisruptionTarget" || it.reason.as_deref() == Some("TerminationByKubelet"));
    let mut ours: Vec<PodCondition> = ours.collect();
    ours.sort_by_key(|it| OURS.iter().position(|name| *name == it.type_));
    PodStatus {
        conditions: Some(ours),
        container_statuses: all.container_statuses,
        ephemeral_container_statuses: all.ephemeral_container_statuses,
        host_ip: all.host_ip,
        host_ips: all.host_ips,
        init_container_statuses: all.init_container_statuses,
        message: all.message,
        observed_generation: all.observed_generation,
        phase: all.phase,
        pod_ip: all.pod_ip,
        pod_ips: all.pod_ips,
        reason: all.reason,
        start_time: all.start_time,
        ..PodStatus::default()
    }
}

/// In whole seconds, as Kubernetes writes it.
pub(super) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// What is said of a pod whose containers stand still.
pub(super) fn frozen(seen: &Seen<'_>) -> Option<String> {
    seen.state.filter(|it| it.alive && it.frozen).map(|it| it.config.frozen())
}

pub(super) fn status(seen: &Seen<'_>, views: &[View<'_>], memory: &Memory) -> PodStatus {
    let told = seen.told;
    let generation = seen.pod.metadata.generation;
    let since = memory.since.map(time);
    if let Some(Ending::Rejected { reason, message }) = &memory.ending {
        // Nothing else is known of it.
        return PodStatus {
            conditions: told.conditions.clone(),
            phase: Some("Failed".to_owned()),
            reason: Some(reason.clone()),
            message: Some(format!("Pod was rejected: {message}")),
            start_time: since,
            observed_generation: generation,
            ..PodStatus::default()
        };
    }
    let before = told.phase.as_deref().unwrap_or("Pending");
    if spec::is_terminal(before) && seen.state.is_none() {
        // It is over, and nothing is left that could say more.
        return told.clone();
    }
    let has_init = views.iter().any(|it| matches!(it.unit.kind, Kind::Init | Kind::Sidecar));
    let begun = views.iter().any(|it| it.unit.kind == Kind::Regular && it.current().is_some());
    let quiet = views.iter().all(|it| it.running().is_none()) && !memory.parts.values().any(|it| it.starting.is_some());
    let mut facts = Facts { seen, views, memory, phase: "", statuses: Vec::new() };
    facts.statuses =
        views.iter().map(|it| container(it, memory.parts.get(it.unit.name()), seen, has_init, begun)).collect();
    let found = phase(views, &facts.statuses, seen.pod, memory.ending.is_some() && quiet, begun);
    let failed = matches!(memory.ending, Some(Ending::Failed { .. }));
    facts.phase = if failed { "Failed" } else { found };
    // What is over stays over, and is over when nothing of it is left.
    let alive = seen.state.is_some_and(|it| it.alive);
    let over = memory.ending.is_some() && quiet && (!alive || memory.ending == Some(Ending::Deleted));
    let phase = match facts.phase {
        _ if spec::is_terminal(before) => before,
        it if spec::is_terminal(it) && !over => before,
        _ if over && memory.ending == Some(Ending::Deleted) && !spec::is_terminal(facts.phase) => "Failed",
        it => it,
    };
    let conditions = conditions::conditions(&facts);
    if over && memory.ending == Some(Ending::Deleted) {
        let initialized = views.iter().all(|it| it.unit.kind != Kind::Init || it.end().is_some_and(|it| it.code == 0));
        facts.statuses.iter_mut().filter(|_| initialized).for_each(lost);
    }
    let (reason, message) = match &memory.ending {
        _ if phase == before && spec::is_terminal(before) => (told.reason.clone(), told.message.clone()),
        Some(Ending::Failed { reason, message, .. }) if phase == "Failed" => {
            (Some(reason.clone()), Some(message.clone()))
        }
        _ => (None, None),
    };
    let hosts: Vec<String> = seen.node.addresses.iter().map(ToString::to_string).collect();
    let address = seen.state.and_then(|it| it.address).map(|it| it.to_string()).or_else(|| told.pod_ip.clone());
    let statuses = std::mem::take(&mut facts.statuses);
    let of = |kinds: &[Kind], sorted: bool| {
        let all = views.iter().zip(&statuses).filter(|(view, _)| kinds.contains(&view.unit.kind));
        let mut all: Vec<ContainerStatus> = all.map(|(_, it)| it.clone()).collect();
        if sorted {
            all.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Some(all).filter(|it| !it.is_empty())
    };
    PodStatus {
        conditions: Some(conditions),
        init_container_statuses: of(&[Kind::Init, Kind::Sidecar], false),
        container_statuses: of(&[Kind::Regular], true),
        ephemeral_container_statuses: of(&[Kind::Ephemeral], true),
        host_ip: hosts.first().cloned(),
        host_ips: Some(hosts.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: address.clone(),
        pod_ips: address.map(|ip| vec![PodIP { ip }]),
        phase: Some(phase.to_owned()),
        reason,
        message,
        start_time: since,
        observed_generation: generation,
        ..PodStatus::default()
    }
}

/// Of a container that never ran and never will.
fn lost(it: &mut ContainerStatus) {
    let state = it.state.get_or_insert_default();
    if state.terminated.is_none() {
        *state = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        };
    }
}

fn container(view: &View<'_>, part: Option<&Part>, seen: &Seen<'_>, has_init: bool, begun: bool) -> ContainerStatus {
    let spec = &view.unit.spec;
    let creating = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let starting = part.and_then(|it| it.starting);
    // What is being started is not shown before its hook has run, nor what its hook has failed.
    let hidden = |it: &Attempt| it.end.is_none() && (starting == Some(it.number) || view.fails_hook(part));
    let last = view.last.as_ref().filter(|it| !hidden(it));
    let (last, before) = if last.is_some() { (last, view.before.as_ref()) } else { (view.before.as_ref(), None) };
    let mut state = last.map_or_else(|| waiting(creating, None), attempt_state);
    let mut last_state = before.map(attempt_state).unwrap_or_default();
    let known = view.shown.filter(|it| it.container_id.as_deref().is_some_and(|it| !it.is_empty()));
    if last.is_none()
        && let Some(known) = known
    {
        // Its processes' own records are gone: what was written of it is all that is known.
        if let Some(it) = known.state.as_ref().filter(|it| it.terminated.is_some()) {
            state = it.clone();
        }
        last_state = known.last_state.clone().unwrap_or_default();
    }
    let again = match last.map(|it| it.end.as_ref()) {
        None => state.terminated.is_none(),
        Some(None) => false,
        Some(Some(end)) => {
            let failed = part.and_then(|it| it.failed.as_ref()).is_some_and(|it| it.reason == "RunContainerError");
            match view.unit.kind {
                // Nobody starts it again, and it waits all the same.
                Kind::Ephemeral => failed,
                Kind::Init if end.code == 0 || begun => false,
                _ => view.unit.restarts(seen.pod, end.code),
            }
        }
    };
    let frozen = frozen(seen);
    let waits = match &frozen {
        // Nothing is started in it.
        Some(why) => Some(("Frozen".to_owned(), why.clone())),
        None => why_waiting(view, part, seen),
    };
    if again && let Some((reason, message)) = waits {
        if state.terminated.is_some() {
            last_state = state;
        }
        state = waiting(&reason, Some(message));
    }
    let id = last.map(|it| format!("{SCHEME}{}", it.id));
    let same = view.shown.filter(|it| it.container_id == id && id.is_some());
    let image = part.and_then(|it| it.image.clone()).or_else(|| same.map(|it| (it.image.clone(), it.image_id.clone())));
    let image = image.filter(|_| last.is_some()).or_else(|| known.map(|it| (it.image.clone(), it.image_id.clone())));
    let (image, image_id) = image.unwrap_or_else(|| (spec.image.clone().unwrap_or_default(), String::new()));
    let user = part.and_then(|it| it.user.clone()).or_else(|| same.and_then(|it| it.user.clone()));
    let requests = spec.resources.as_ref().and_then(|it| it.requests.clone()).filter(|it| !it.is_empty());
    let mounts = spec.volume_mounts.iter().flatten().map(|it| VolumeMountStatus {
        name: it.name.clone(),
        mount_path: it.mount_path.clone(),
        read_only: it.read_only.filter(|it| *it),
        recursive_read_only: it.read_only.filter(|it| *it).map(|_| {
            let asked = it.recursive_read_only.as_deref();
            if matches!(asked, Some("Enabled" | "IfPossible")) { "Enabled" } else { "Disabled" }.to_owned()
        }),
    });
    let mounts: Vec<VolumeMountStatus> = mounts.collect();
    let attempts =
        last.map_or_else(|| known.map_or(0, |it| it.restart_count), |it| i32::try_from(it.number).unwrap_or(i32::MAX));
    ContainerStatus {
        name: spec.name.clone(),
        container_id: id.or_else(|| known.and_then(|it| it.container_id.clone())),
        image,
        image_id,
        ready: view.ready(part) && (frozen.is_none() || view.running().is_none()),
        started: (view.unit.kind != Kind::Ephemeral).then(|| view.started(part)),
        restart_count: attempts,
        resources: last.map(|_| spec.resources.clone().unwrap_or_default()),
        allocated_resources: last.and(requests),
        state: Some(state),
        last_state: Some(last_state),
        user: last.and(user),
        volume_mounts: Some(mounts).filter(|it| !it.is_empty()),
        ..ContainerStatus::default()
    }
}

fn attempt_state(it: &Attempt) -> ContainerState {
    let Some(end) = &it.end else {
        return ContainerState {
            running: Some(ContainerStateRunning { started_at: it.started.map(time) }),
            ..ContainerState::default()
        };
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{SCHEME}{}", it.id)),
            exit_code: end.code,
            finished_at: Some(time(end.finished)),
            message: Some(end.message.clone()).filter(|it| !it.is_empty()),
            reason: Some(end.reason.to_owned()),
            signal: None,
            // What never started did so when time began.
            started_at: Some(time(it.started.unwrap_or(Timestamp::UNIX_EPOCH))),
        }),
        ..ContainerState::default()
    }
}

/// Why a container that should run does not.
fn why_waiting(view: &View<'_>, part: Option<&Part>, seen: &Seen<'_>) -> Option<(String, String)> {
    let part = part?;
    let now = seen.now;
    let waits = view.waits_until(Some(part)).is_some_and(|until| until > now);
    let wait = match part.starting {
        // It has waited, and that is so until it runs.
        Some(_) => part.waited,
        None if waits && !view.fails_hook(Some(part)) => part.backoff.map(|it| it.wait),
        None => None,
    };
    if let Some(wait) = wait
        && view.shows_wait().is_some_and(|it| it <= now)
    {
        let wait = wait.as_secs();
        let wait = if wait < 60 { format!("{wait}s") } else { format!("{}m{}s", wait / 60, wait % 60) };
        let (name, pod) = (view.unit.name(), spec::full_name(seen.pod));
        return Some((
            "CrashLoopBackOff".into(),
            format!("back-off {wait} restarting failed container={name} pod={pod}"),
        ));
    }
    let failed = part.failed.as_ref()?;
    if failed.is_pull() && failed.shown_until() <= now && part.starting.is_none() {
        let image = view.unit.spec.image.as_deref().unwrap_or_default();
        let message = format!("Back-off pulling image \"{image}\": {}: {}", failed.reason, failed.message);
        return Some(("ImagePullBackOff".into(), message));
    }
    Some((failed.reason.to_string(), failed.message.clone()))
}

/// As `getPhase` of a kubelet has it.
fn phase(views: &[View<'_>], statuses: &[ContainerStatus], pod: &Pod, terminal: bool, begun: bool) -> &'static str {
    let (mut pending, mut pending_sidecars) = (0, 0);
    let (mut running, mut waiting, mut stopped, mut final_, mut succeeded) = (0, 0, 0, 0, 0);
    for (view, status) in views.iter().zip(statuses) {
        let state = status.state.clone().unwrap_or_default();
        let code = |it: &ContainerState| it.terminated.as_ref().map(|it| it.exit_code);
        let ended = code(&state);
        let last = status.last_state.as_ref().and_then(code);
        let restarts = |code: i32| view.unit.restarts(pod, code);
        match view.unit.kind {
            Kind::Ephemeral => {}
            Kind::Init => match (state.running.is_some(), ended, last) {
                (false, Some(code), _) | (false, None, Some(code)) if code != 0 && !restarts(code) => return "Failed",
                (false, Some(_), _) | (false, None, Some(_)) => {}
                _ => pending += 1,
            },
            Kind::Sidecar => match (state.running.is_some(), ended, last) {
                (true, ..) => {
                    pending_sidecars += u32::from(status.started != Some(true));
                    running += 1;
                }
                (false, None, None) => {
                    pending_sidecars += 1;
                    waiting += 1;
                }
                _ => {}
            },
            Kind::Regular => match (state.running.is_some(), ended, last) {
                (true, ..) => running += 1,
                (false, Some(code), _) => {
                    stopped += 1;
                    final_ += u32::from(!restarts(code));
                    succeeded += u32::from(code == 0);
                }
                (false, None, Some(code)) => {
                    stopped += 1;
                    final_ += u32::from(!restarts(code));
                }
                _ => waiting += 1,
            },
        }
    }
    if pending > 0 || (pending_sidecars > 0 && !begun) || waiting > 0 {
        "Pending"
    } else if running > 0 {
        "Running"
    } else if stopped == 0 {
        "Pending"
    } else if !terminal && stopped != final_ {
        "Running"
    } else if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    }
}
