//! The objects, as they are written.

use api::labels;
use jiff::Timestamp;
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};
use wire::node::{Limits, Sandbox};

use super::plan::{Key, Seen, State};

/// The one container of a Pod.
const CONTAINER: &str = "sandbox";
/// The only image there is.
const IMAGE: &str = "host";

/// The Pod of a sandbox. What is no value of a label is left out: names of runs and instances may be longer.
pub(super) fn pod(key: &Key, node: &str, it: &Sandbox) -> Value {
    let mut all = Map::new();
    let ours = [(labels::PROJECTED, "true"), (labels::MANAGED_BY, "insula"), (labels::COMPONENT, "agent-run")];
    let whose =
        [labels::INSTANCE, labels::AGENT_RUN].map(|name| (name, it.labels.get(name).map_or("", String::as_str)));
    for (name, value) in ours.into_iter().chain(whose).filter(|(_, value)| is_label(value)) {
        all.insert(name.to_owned(), value.into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "labels": all,
            "annotations": {
                labels::SANDBOX: it.id,
                "kubernetes.io/description": "Shows a sandbox that runs anyway; deleting it ends the sandbox.",
            },
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "containers": [{
                "name": CONTAINER, "image": IMAGE, "imagePullPolicy": "Never", "resources": resources(&it.limits),
            }],
        },
    })
}

/// A sandbox reserves nothing: without requests of zero, Kubernetes would take its limits for them.
fn resources(limits: &Limits) -> Value {
    let cpu = limits.cpu.map(|it| ("cpu", format!("{it}m")));
    let memory = limits.memory.map(|it| ("memory", quantity(it)));
    let given: Vec<_> = [cpu, memory].into_iter().flatten().collect();
    let requests: Map<String, Value> = given.iter().map(|(name, _)| ((*name).to_owned(), json!("0"))).collect();
    let limits: Map<String, Value> = given.into_iter().map(|(name, it)| (name.to_owned(), json!(it))).collect();
    if limits.is_empty() { json!({}) } else { json!({"limits": limits, "requests": requests}) }
}

/// Bytes in the largest unit that divides them.
pub(crate) fn quantity(bytes: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    match units.into_iter().find(|(_, bits)| bytes > 0 && bytes.is_multiple_of(1 << bits)) {
        Some((unit, bits)) => format!("{}{unit}", bytes >> bits),
        None => bytes.to_string(),
    }
}

fn is_label(value: &str) -> bool {
    let inner = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    let edge = |it: Option<char>| it.is_some_and(|it| it.is_ascii_alphanumeric());
    value.len() <= 63 && value.chars().all(inner) && edge(value.chars().next()) && edge(value.chars().last())
}

/// How a sandbox is, for the status of its Pod.
pub(super) fn pod_status(it: &Sandbox, seen: &Seen, now: Timestamp) -> Value {
    let state = State::of(it);
    let created = time(seen.created.unwrap_or(now));
    let since = match seen.told {
        Some((told, Some(since))) if told == state => time(since),
        None if state == State::Ready => created.clone(),
        _ => time(now),
    };
    let ready = |type_: &str| match state {
        State::Ready => json!({"type": type_, "status": "True", "lastTransitionTime": since}),
        State::Frozen => json!({
            "type": type_, "status": "False", "lastTransitionTime": since,
            "reason": State::FROZEN, "message": "the sandbox is frozen: its processes stand still",
        }),
    };
    // A warm sandbox runs for longer than it is somebody's.
    let started = it.created.parse::<Timestamp>().map_or_else(|_| created.clone(), time);
    let done = |type_: &str| json!({"type": type_, "status": "True", "lastTransitionTime": created});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"uid": seen.uid},
        "status": {
            "phase": "Running",
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "startTime": created,
            "conditions": [done("PodScheduled"), done("Initialized"), ready("ContainersReady"), ready("Ready")],
            "containerStatuses": [{
                "name": CONTAINER,
                "image": IMAGE,
                "imageID": "",
                "containerID": format!("insula://{}", it.id),
                "ready": state == State::Ready,
                "started": true,
                "restartCount": 0,
                "state": {"running": {"startedAt": started}},
            }],
        },
    })
}

/// Says in an event that a Pod is in the way of a sandbox's. Its name makes it one event for each sandbox.
pub(super) fn in_the_way(pod: &DynamicObject, node: &str, id: &str, now: Timestamp) -> Value {
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": meta.namespace, "name": format!("{name}.{id}")},
        "type": "Warning",
        "reason": "NameTaken",
        "message": format!("the sandbox {id} runs, and cannot be shown: this Pod has its name and is not ours"),
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": meta.namespace, "name": name, "uid": meta.uid,
        },
        "source": {"component": super::MANAGER, "host": node},
        "firstTimestamp": time(now),
        "lastTimestamp": time(now),
        "count": 1,
    })
}

/// As Kubernetes writes times: whole seconds.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_and_only_labels_are_labels() {
        for (bytes, text) in [(0, "0"), (1000, "1000"), (1 << 31, "2Gi"), (3 << 20, "3Mi"), (1025 << 10, "1025Ki")] {
            assert_eq!(quantity(bytes), text);
        }
        let long = "x".repeat(64);
        for (value, is) in [("me", true), ("a.b_C-1", true), ("", false), ("-a", false), ("a b", false), (&long, false)]
        {
            assert_eq!(is_label(value), is, "{value}");
        }
    }
}
