//! The decisions, without I/O: what is wrong with a node, and who has to leave it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::local::reader::Kind;
use crate::local::scheduler::{UNSCHEDULABLE, tolerations};
use crate::local::workload::pods;

/// So long after its last sign a node counts as lost.
pub(super) const GRACE: Duration = Duration::from_secs(40);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// What a kubelet tells of its node; a lost one's is unknown.
const TOLD: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions, their bad state, and the taint that follows from it.
const TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|it| it.type_ == kind)
}

pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|it| it.status == "True")
}

/// The conditions of a node of which nothing is heard. None when they say so already.
pub(super) fn lost(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    if condition(node, "Ready").is_some_and(|it| it.status == "Unknown") {
        return None;
    }
    let mut all = node.status.as_ref().and_then(|it| it.conditions.clone()).unwrap_or_default();
    for kind in TOLD {
        let (reason, message) = match all.iter().any(|it| it.type_ == kind) {
            true => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            false => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heard = all.iter().find(|it| it.type_ == kind).and_then(|it| it.last_heartbeat_time.clone());
        let created = || node.metadata.creation_timestamp.clone();
        let unknown = NodeCondition {
            type_: kind.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: heard.or_else(created),
            last_transition_time: Some(Time(now)),
        };
        match all.iter_mut().find(|it| it.type_ == kind) {
            Some(it) if it.status == "Unknown" => {}
            Some(it) => *it = unknown,
            None => all.push(unknown),
        }
    }
    Some(all)
}

/// The taints that the node should have. None when it has them.
pub(super) fn taints(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let spec = node.spec.as_ref();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, bad, taint) in TAINTS {
        if condition(node, kind).is_some_and(|it| it.status == bad) {
            wanted.push((taint, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    if spec.and_then(|it| it.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |it: &Taint| match it.effect.as_str() {
        "NoSchedule" => it.key == UNSCHEDULABLE || TAINTS.iter().any(|(_, _, key)| *key == it.key),
        "NoExecute" => it.key == NOT_READY || it.key == UNREACHABLE,
        _ => false,
    };
    let is = |it: &Taint, (key, effect): &(&str, &str)| it.key == *key && it.effect == *effect;
    let before = spec.and_then(|it| it.taints.clone()).unwrap_or_default();
    let mut after: Vec<Taint> =
        before.iter().filter(|it| !ours(it) || wanted.iter().any(|want| is(it, want))).cloned().collect();
    for want in &wanted {
        if !after.iter().any(|it| is(it, want)) {
            after.push(Taint {
                key: want.0.to_owned(),
                effect: want.1.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (after != before).then_some(after)
}

/// When a pod has to leave a node because of its taints. None when it may stay.
pub(super) fn leaves(pod: &Pod, node: &Node) -> Option<Timestamp> {
    if pod.is_deleting() || pods::is_over(pod) {
        return None;
    }
    let all = pod.spec.as_ref().and_then(|it| it.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.iter().flat_map(|it| it.taints.iter().flatten()).filter(|it| it.effect == "NoExecute");
    let mut first: Option<Timestamp> = None;
    for taint in taints {
        let since = taint.time_added.as_ref().map_or(Timestamp::MIN, |it| it.0);
        let mut borne = tolerations(all, taint).peekable();
        let end = match borne.peek() {
            None => Some(Timestamp::MIN),
            Some(_) => {
                let seconds = borne.filter_map(|it| it.toleration_seconds).min();
                let after =
                    |it: i64| since.saturating_add(SignedDuration::from_secs(it.max(0))).unwrap_or(Timestamp::MAX);
                seconds.map(after)
            }
        };
        first = [first, end].into_iter().flatten().min();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(conditions: Value, spec: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": spec, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn taints_follow_from_conditions_and_leave_others_alone() {
        let now = at("2026-01-01T00:00:00Z");
        let ready = |it: &str| json!([{"type": "Ready", "status": it}]);
        let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
        let all = |node: &Node| -> Option<Vec<(String, String)>> {
            taints(node, now).map(|all| all.into_iter().map(|it| (it.key, it.effect)).collect())
        };
        let want =
            |all: &[(&str, &str)]| Some(all.iter().map(|it| (it.0.to_owned(), it.1.to_owned())).collect::<Vec<_>>());
        let other = taint("example.com/mine", "NoExecute");
        assert_eq!(all(&node(ready("True"), json!({}))), None);
        assert_eq!(
            all(&node(ready("False"), json!({"taints": [other]}))),
            want(&[("example.com/mine", "NoExecute"), (NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")])
        );
        let both = json!({"taints": [taint(NOT_READY, "NoSchedule"), taint(NOT_READY, "NoExecute"), other]});
        assert_eq!(all(&node(ready("False"), both.clone())), None);
        assert_eq!(all(&node(ready("True"), both.clone())), want(&[("example.com/mine", "NoExecute")]));
        assert_eq!(
            all(&node(ready("Unknown"), both)),
            want(&[("example.com/mine", "NoExecute"), (UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])
        );
        let pressed = json!([{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "True"}]);
        assert_eq!(
            all(&node(pressed, json!({"unschedulable": true}))),
            want(&[("node.kubernetes.io/memory-pressure", "NoSchedule"), (UNSCHEDULABLE, "NoSchedule")])
        );
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_every_taint() {
        let since = "2026-01-01T00:00:00Z";
        let tainted = |keys: &[&str]| {
            let all: Vec<Value> =
                keys.iter().map(|key| json!({"key": key, "effect": "NoExecute", "timeAdded": since})).collect();
            node(json!([]), json!({"taints": all}))
        };
        let pod = |tolerations: Value, phase: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p"}, "spec": {"containers": [], "tolerations": tolerations},
                "status": {"phase": phase}}),
            )
            .unwrap()
        };
        let bears = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        for (tolerations, keys, want) in [
            (json!([]), vec![], None),
            (json!([]), vec!["a"], Some(Timestamp::MIN)),
            (json!([bears("a", None)]), vec!["a"], None),
            (json!([bears("a", Some(300))]), vec!["a"], Some(at("2026-01-01T00:05:00Z"))),
            (json!([bears("a", Some(300)), bears("a", Some(60))]), vec!["a"], Some(at("2026-01-01T00:01:00Z"))),
            (json!([bears("a", Some(300))]), vec!["a", "b"], Some(Timestamp::MIN)),
            (json!([bears("a", Some(300)), bears("b", None)]), vec!["a", "b"], Some(at("2026-01-01T00:05:00Z"))),
        ] {
            assert_eq!(leaves(&pod(tolerations.clone(), "Running"), &tainted(&keys)), want, "{tolerations} {keys:?}");
            assert_eq!(leaves(&pod(tolerations, "Succeeded"), &tainted(&keys)), None);
        }
    }
}
