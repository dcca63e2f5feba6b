//! Which pods are deleted first: `ActivePodsWithRanks` of upstream.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::pods;
use crate::local::reader::Kind;

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods of these that can best be spared. `siblings` are all pods among which they shall be spread.
pub(super) fn first_to_go(
    mut pods: Vec<Arc<Pod>>,
    siblings: Vec<Arc<Pod>>,
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        let mut crowd: HashMap<Option<&str>, usize> = HashMap::new();
        for pod in &siblings {
            *crowd.entry(pods::node(pod)).or_default() += 1;
        }
        pods.sort_by(|a, b| order(a, b, &crowd, now));
        pods.truncate(count);
    }
    pods
}

fn order(a: &Pod, b: &Pod, crowd: &HashMap<Option<&str>, usize>, now: Timestamp) -> Ordering {
    let phase = |it: &Pod| match pods::phase(it) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |it: &Pod| it.annotation(COST).and_then(|it| it.parse::<i32>().ok()).unwrap_or_default();
    let together = |it: &Pod| Reverse(crowd.get(&pods::node(it)).copied().unwrap_or_default());
    let first = |it: &Pod| (pods::node(it).is_some(), phase(it), pods::is_ready(it), cost(it), together(it));
    let created = |it: &Pod| it.metadata.creation_timestamp.as_ref().map_or(now, |it| it.0);
    first(a)
        .cmp(&first(b))
        .then_with(|| match (pods::ready_since(a), pods::ready_since(b)) {
            (Some(a), Some(b)) => age(a, now).cmp(&age(b, now)),
            _ => Ordering::Equal,
        })
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| age(created(a), now).cmp(&age(created(b), now)))
        .then_with(|| a.uid().cmp(b.uid()))
}

/// How long ago, in powers of two: of pods that are about as old, any may go.
fn age(since: Timestamp, now: Timestamp) -> u32 {
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or_default();
    seconds.checked_ilog2().map_or(0, |it| it + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, more: Value) -> Arc<Pod> {
        let mut it = json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        for (path, value) in more.as_object().unwrap() {
            let (at, last) = path.rsplit_once('/').unwrap();
            it.pointer_mut(at).unwrap()[last] = value.clone();
        }
        Arc::new(serde_json::from_value(it).unwrap())
    }

    #[test]
    fn pods_that_are_worth_less_go_first() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let ready = |at: &str| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]);
        for (goes, stays) in [
            (json!({"/spec/nodeName": ""}), json!({"/status/phase": "Pending"})),
            (json!({"/status/phase": "Pending"}), json!({"/status/phase": "Unknown"})),
            (json!({"/status/phase": "Unknown"}), json!({"/status/conditions": []})),
            (json!({"/status/conditions": []}), json!({"/metadata/annotations": {COST: "-5"}})),
            (json!({"/metadata/annotations": {COST: "-5"}}), json!({})),
            (json!({"/metadata/annotations": {COST: "no number"}}), json!({"/spec/nodeName": "empty"})),
            (json!({"/status/conditions": ready("2026-01-01T00:59:00Z")}), json!({})),
            (
                json!({"/status/containerStatuses": [{"restartCount": 1, "name": "c", "image": "", "imageID": "", "ready": true}]}),
                json!({}),
            ),
            (
                json!({"/metadata/creationTimestamp": "2026-01-01T00:59:00Z"}),
                json!({"/metadata/creationTimestamp": "2026-01-01T00:01:00Z"}),
            ),
        ] {
            let said = format!("{goes} before {stays}");
            // The names are against it.
            let both = vec![pod("a", stays), pod("b", goes)];
            // Where the last one counts, two are together on `n`.
            let siblings = vec![both[0].clone(), both[1].clone(), pod("c", json!({}))];
            let chosen = first_to_go(both, siblings, 1, now);
            assert_eq!(chosen[0].name(), "b", "{said}");
        }
    }
}
