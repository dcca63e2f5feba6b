//! Who has to go so that a more important pod finds room, without I/O: `DefaultPreemption` of upstream.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::info::Info;
use super::plan::{Look, Volumes};
use super::view::View;
use crate::local::budgets::selects;
use crate::local::reader::Kind;
use crate::local::workload::pods;
use crate::store::Key;

/// Why a pod goes, as its condition has it.
pub(super) const REASON: &str = "PreemptionByScheduler";

/// The node from which others go for the pod.
pub(super) fn nominated(pod: &Info) -> Option<&str> {
    pod.pod.status.as_ref().and_then(|it| it.nominated_node_name.as_deref()).filter(|it| !it.is_empty())
}

/// Whether the pod waits for others that go for it.
pub(super) fn is_under_way(pod: &Info, view: &View) -> bool {
    let Some(place) = nominated(pod).and_then(|it| view.place(it)) else { return false };
    let goes = |it: &Info| {
        it.priority() < pod.priority()
            && it.pod.is_deleting()
            && pods::condition(&it.pod, "DisruptionTarget").is_some_and(|it| it.reason.as_deref() == Some(REASON))
    };
    place.spot.pods.values().any(|it| goes(it))
}

/// The pods that go from a node.
pub(super) struct Candidate {
    pub(super) node: String,
    pub(super) victims: Vec<(Key, Arc<Info>)>,
    /// How many of them a budget protects.
    violations: usize,
}

/// The pods of a node without which this one would have room there: as few and as unimportant ones as can be.
///
/// # Errors
/// Why not, in the words of the event.
pub(super) fn on(
    node: &str,
    pod: &Info,
    volumes: &Volumes,
    view: &View,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate, Vec<String>> {
    let place = view.place(node).into_iter().flat_map(|it| &it.spot.pods);
    let mut lesser: Vec<(Key, Arc<Info>)> =
        place.filter(|(_, it)| it.priority() < pod.priority()).map(|(key, it)| (key.clone(), it.clone())).collect();
    if lesser.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    let mut rest = view.clone();
    for (key, _) in &lesser {
        rest.remove_pod(key);
    }
    let fits = |rest: &View| Look::at(pod, rest).filter(pod, volumes, node);
    fits(&rest).map_err(|it| it.reasons)?;
    lesser.sort_by(|(a, x), (b, y)| (Reverse(x.priority()), since(x), a).cmp(&(Reverse(y.priority()), since(y), b)));
    let (protected, others) = protect(lesser, budgets);
    let mut found = Candidate { node: node.to_owned(), victims: Vec::new(), violations: 0 };
    let protected = protected.into_iter().map(|it| (it, true));
    for ((key, info), counts) in protected.chain(others.into_iter().map(|it| (it, false))) {
        rest.put(&key, node, info.clone());
        if fits(&rest).is_err() {
            rest.remove_pod(&key);
            found.victims.push((key, info));
            found.violations += usize::from(counts);
        }
    }
    if found.victims.is_empty() {
        // Its place is kept for another one, who is not there yet.
        return Err(vec!["No preemption victims found for incoming pod".to_owned()]);
    }
    Ok(found)
}

/// The node where the least is lost.
pub(super) fn least(candidates: Vec<Candidate>) -> Option<Candidate> {
    let loss = |it: &Candidate| {
        let of = || it.victims.iter().map(|(_, it)| it.priority());
        let highest = of().max();
        // A pod more is a loss, however unimportant it is.
        let sum: i64 = of().map(|it| i64::from(it) + i64::from(i32::MAX) + 1).sum();
        let first = it.victims.iter().filter(|(_, it)| Some(it.priority()) == highest).map(|(_, it)| since(it)).min();
        (it.violations, highest, sum, it.victims.len(), Reverse(first))
    };
    candidates.into_iter().min_by_key(loss)
}

/// Those whose end their budgets do not allow, and all others.
#[allow(clippy::type_complexity, reason = "twice what is given")]
fn protect(
    pods: Vec<(Key, Arc<Info>)>,
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<(Key, Arc<Info>)>, Vec<(Key, Arc<Info>)>) {
    let allowed = |it: &PodDisruptionBudget| it.status.as_ref().map_or(0, |it| it.disruptions_allowed);
    let mut left: Vec<i32> = budgets.iter().map(|it| allowed(it)).collect();
    let counted = |budget: &PodDisruptionBudget, pod: &Pod| {
        let disrupted = budget.status.as_ref().and_then(|it| it.disrupted_pods.as_ref());
        budget.namespace() == pod.namespace()
            && selects(budget, pod)
            && !disrupted.is_some_and(|it| it.contains_key(pod.name()))
    };
    pods.into_iter().partition(|(_, it)| {
        let mut violates = false;
        for (_, left) in budgets.iter().zip(&mut left).filter(|(budget, _)| counted(budget, &it.pod)) {
            *left = left.saturating_sub(1);
            violates |= *left < 0;
        }
        violates
    })
}

/// Since when it runs; one that does not yet is lost most easily.
fn since(pod: &Info) -> Timestamp {
    pod.pod.status.as_ref().and_then(|it| it.start_time.as_ref()).map_or(Timestamp::MAX, |it| it.0)
}
