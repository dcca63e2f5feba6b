//! What a pod's status says to whoever counts it.

use std::cmp::{Ordering, Reverse};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::local::reader::Kind;

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

/// The node that it is bound to.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|it| !it.is_empty())
}

/// Whether it has ended, well or not, and will not run again.
pub(crate) fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it runs or will.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_over(pod) && !pod.is_deleting()
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|it| it.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|it| it.status == "True")
}

/// Since when it is ready. None when it is not.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|it| it.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::MAX, |it| it.0))
}

/// From when on it counts as available, if it stays ready for so long. None when it is not ready.
pub(crate) fn available_from(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    match min_ready_seconds {
        0 => Some(Timestamp::MIN),
        seconds => Some(since.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)),
    }
}

pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_from(pod, min_ready_seconds).is_some_and(|it| it <= now)
}

/// How often its containers were started again, all of them.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|it| it.container_statuses.iter().flatten());
    all.map(|it| it.restart_count).max().unwrap_or_default()
}

/// Which of two active pods can be done without: the lesser.
pub(crate) fn by_loss(a: &Pod, b: &Pod) -> Ordering {
    let key = |pod: &Pod| {
        let phase = match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let made = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |it| it.0);
        let since = ready_since(pod);
        (node(pod).is_some(), phase, since.is_some(), Reverse(since), Reverse(restarts(pod)), Reverse(made))
    };
    key(a).cmp(&key(b)).then_with(|| a.name().cmp(b.name()))
}
