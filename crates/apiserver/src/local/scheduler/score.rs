//! Which of the nodes that will do is best: upstream's default scores, each from 0 to 100, and their weights.

use k8s_openapi::api::core::v1::Taint;

use super::info::Info;
use super::node::term;
use super::plan::{like, tolerated};
use super::view::{Place, View};
use crate::local::reader::Kind;

/// The name of the best one; of equals the one with the fewest pods.
pub(super) fn best<'a>(pod: &Info, view: &View, fits: &[Place<'a>]) -> Option<&'a str> {
    if let [only] = fits {
        return Some(only.node.name());
    }
    let scores = |of: &dyn Fn(Place<'_>) -> i64| -> Vec<i64> { fits.iter().map(|it| of(*it)).collect() };
    let company = company(pod, view);
    let parts = [
        (3, normal(scores(&|it| -untolerated(pod, it)))),
        (2, normal(scores(&|it| wished(pod, it)))),
        (2, normal(scores(&company))),
        (2, normal(scores(&|it| -crowd(pod, it)))),
        (1, scores(&|it| free(pod, it))),
    ];
    let total = |at: usize| -> i64 {
        parts.iter().map(|(weight, scores)| weight * scores.get(at).copied().unwrap_or_default()).sum()
    };
    let order = |at: usize, place: &Place<'_>| (total(at), std::cmp::Reverse(place.spot.pods.len()));
    let chosen = fits.iter().enumerate().rev().max_by_key(|(at, place)| order(*at, place));
    chosen.map(|(_, place)| place.node.name())
}

/// From 0 for the worst to 100 for the best; nothing where all are the same.
fn normal(scores: Vec<i64>) -> Vec<i64> {
    let (least, most) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
    let range = most - least;
    scores.into_iter().map(|it| if range == 0 { 0 } else { (it - least) * 100 / range }).collect()
}

fn untolerated(pod: &Info, place: Place<'_>) -> i64 {
    let against = |it: &&Taint| it.effect == "PreferNoSchedule" && !tolerated(pod, it);
    i64::try_from(place.taints().iter().filter(against).count()).unwrap_or(i64::MAX)
}

fn wished(pod: &Info, place: Place<'_>) -> i64 {
    pod.wishes().iter().filter(|it| term(&it.preference, place.node)).map(|it| i64::from(it.weight)).sum()
}

/// How many are there already of those that are to be spread.
fn crowd(pod: &Info, place: Place<'_>) -> i64 {
    pod.spread.iter().filter(|it| !it.must).map(|it| like(pod, it.selector.as_ref(), place)).sum()
}

/// What the pod would rather be near to, less what it would rather not.
fn company<'a>(pod: &'a Info, view: &'a View) -> impl Fn(Place<'_>) -> i64 + 'a {
    let near = pod.rather_near.iter().map(|(weight, term)| (*weight, term));
    let apart = pod.rather_apart.iter().map(|(weight, term)| (-*weight, term));
    let mut weighed: Vec<(i64, &str, &str)> = Vec::new();
    for (weight, term) in near.chain(apart) {
        for (place, _) in view.pods().filter(|(_, other)| term.matches(&other.pod, &view.namespaces)) {
            weighed.extend(place.label(&term.topology).map(|domain| (weight, term.topology.as_str(), domain)));
        }
    }
    move |place| {
        weighed.iter().filter(|(_, topology, domain)| place.label(topology) == Some(domain)).map(|it| it.0).sum()
    }
}

/// How much of the processors and the memory would be left, in percent.
fn free(pod: &Info, place: Place<'_>) -> i64 {
    let of = |resource: &str| {
        let all = place.spot.allocatable.get(resource).map_or(0.0, |it| it.as_float());
        let asked = pod.requests.get(resource).map_or(0.0, |it| it.as_float());
        if all <= 0.0 { 0.0 } else { ((place.left(resource).as_float() - asked) / all).clamp(0.0, 1.0) }
    };
    #[allow(clippy::cast_possible_truncation, reason = "between 0 and 100")]
    let percent = ((of("cpu") + of("memory")) * 50.0) as i64;
    percent
}
