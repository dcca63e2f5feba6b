//! A pod's row: what its containers say of it, condensed.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

use super::human;
use super::show::{NONE, Of};

pub(super) fn cells(pod: Of<'_>, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(then) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, human(then, now)),
        _ => summary.restarts.to_string(),
    };
    let gates = pod.items("spec.readinessGates");
    let gates = match gates.len() {
        0 => NONE.to_owned(),
        all => format!("{}/{all}", gates.filter(|gate| pod.condition(gate.text("conditionType"))).count()),
    };
    let ip = pod.items("status.podIPs").next().map(|ip| ip.text("ip")).filter(|ip| !ip.is_empty());
    vec![
        pod.name(),
        format!("{}/{}", summary.ready, summary.containers).into(),
        summary.reason.into(),
        restarts.into(),
        pod.age(now),
        ip.unwrap_or(NONE).into(),
        pod.text_or("spec.nodeName", NONE).into(),
        pod.text_or("status.nominatedNodeName", NONE).into(),
        gates.into(),
    ]
}

struct Summary {
    ready: usize,
    containers: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    reason: String,
}

/// Why a container that ended without a reason did.
fn ending(prefix: &str, terminated: Of<'_>) -> String {
    match (terminated.text("reason"), terminated.int("signal")) {
        ("", 0) => format!("{prefix}ExitCode:{}", terminated.int("exitCode")),
        ("", signal) => format!("{prefix}Signal:{signal}"),
        (reason, _) => format!("{prefix}{reason}"),
    }
}

fn summarize(pod: Of<'_>) -> Summary {
    let phase = pod.text("status.phase");
    let mut reason = pod.text_or("status.reason", phase).to_owned();
    let gated = |c: &Of<'_>| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated";
    if pod.items("status.conditions").any(|c| gated(&c)) {
        "SchedulingGated".clone_into(&mut reason);
    }
    let sidecars: HashMap<&str, bool> =
        pod.items("spec.initContainers").map(|c| (c.text("name"), c.text("restartPolicy") == "Always")).collect();
    let containers = pod.list("spec.containers").len() + sidecars.values().filter(|s| **s).count();
    let is_sidecar = |c: Of<'_>| sidecars.get(c.text("name")).copied().unwrap_or_default();
    let restarted = |c: Of<'_>| c.time("lastState.terminated.finishedAt");
    let (mut ready, mut restarts, mut last_restart) = (0, 0, None);
    let (mut sidecar_restarts, mut last_sidecar_restart) = (0, None);
    let mut initializing = false;
    for (i, status) in pod.items("status.initContainerStatuses").enumerate() {
        restarts += status.int("restartCount");
        last_restart = last_restart.max(restarted(status));
        if is_sidecar(status) {
            sidecar_restarts += status.int("restartCount");
            last_sidecar_restart = last_sidecar_restart.max(restarted(status));
        }
        let terminated = status.get("state.terminated").map(Of);
        let waiting = status.text("state.waiting.reason");
        reason = match terminated {
            Some(terminated) if terminated.int("exitCode") == 0 => continue,
            _ if is_sidecar(status) && status.flag("started") => {
                ready += usize::from(status.flag("ready"));
                continue;
            }
            Some(terminated) => ending("Init:", terminated),
            None if !matches!(waiting, "" | "PodInitializing") => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", pod.list("spec.initContainers").len()),
        };
        initializing = true;
        break;
    }
    if !initializing || pod.condition("Initialized") {
        (restarts, last_restart) = (sidecar_restarts, last_sidecar_restart);
        let mut running = false;
        for status in pod.items("status.containerStatuses").rev() {
            restarts += status.int("restartCount");
            last_restart = last_restart.max(restarted(status));
            let waiting = status.text("state.waiting.reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut reason);
            } else if let Some(terminated) = status.get("state.terminated") {
                reason = ending("", Of(terminated));
            } else if status.flag("ready") && status.get("state.running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            (if pod.condition("Ready") { "Running" } else { "NotReady" }).clone_into(&mut reason);
        }
    }
    if pod.is_deleted() && pod.text("status.reason") == "NodeLost" {
        "Unknown".clone_into(&mut reason);
    } else if pod.is_deleted() && !matches!(phase, "Succeeded" | "Failed") {
        "Terminating".clone_into(&mut reason);
    }
    Summary { ready, containers, restarts, last_restart, reason }
}
