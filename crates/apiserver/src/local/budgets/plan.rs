use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::local::reader::Kind;
use crate::local::workload::{self, controller, pods as of_pods};

/// Whoever was evicted is expected to be on its way after this.
const DELETION: Duration = Duration::from_secs(2 * 60);

/// What a budget's status should say.
pub(super) struct Found {
    pub(super) expected: i32,
    pub(super) desired: i32,
    pub(super) healthy: i32,
    pub(super) allowed: i32,
    pub(super) disrupted: BTreeMap<String, Timestamp>,
    /// When that is to be looked at again.
    pub(super) again: Option<Timestamp>,
    /// Evicted, and still there.
    pub(super) lingering: Vec<Arc<Pod>>,
    /// Some pods have no controller, so nobody knows how many there are to be.
    pub(super) unmanaged: bool,
}

/// `pods` are those that the budget selects; `scale` says of a pod's controller who decides how many there are, and how
/// many there are to be.
pub(super) fn plan(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: impl Fn(&OwnerReference) -> Result<Option<(String, i32)>, String>,
    now: Timestamp,
) -> Result<Found, String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let (mut expected, mut desired, mut unmanaged) = (0, 0, false);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            (expected, unmanaged) = wanted(pods, scale)?;
            desired = expected.saturating_sub(share(most, expected)?).max(0);
        }
        (None, Some(IntOrString::Int(least))) => (expected, desired) = (count, *least),
        (None, Some(least)) => {
            (expected, unmanaged) = wanted(pods, scale)?;
            desired = share(least, expected)?;
        }
        (None, None) => {}
    }
    let before = budget.status.as_ref().and_then(|it| it.disrupted_pods.as_ref());
    let (mut disrupted, mut lingering, mut again) = (BTreeMap::new(), Vec::new(), None::<Timestamp>);
    for pod in pods.iter().filter(|it| !it.is_deleting()) {
        let Some(at) = before.and_then(|it| it.get(pod.name())).map(|it| it.0) else { continue };
        let until = at.saturating_add(SignedDuration::try_from(DELETION).unwrap_or_default()).unwrap_or(Timestamp::MAX);
        if until < now {
            lingering.push(pod.clone());
        } else {
            again = Some(again.map_or(until, |it| it.min(until)));
            disrupted.insert(pod.name().to_owned(), at);
        }
    }
    let is_healthy = |it: &&Arc<Pod>| !it.is_deleting() && !disrupted.contains_key(it.name()) && of_pods::is_ready(it);
    let healthy = i32::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i32::MAX);
    let allowed = if expected <= 0 { 0 } else { healthy.saturating_sub(desired).max(0) };
    // A moment after the last at which it is still believed.
    let again = again.and_then(|it| it.checked_add(SignedDuration::from_secs(1)).ok());
    Ok(Found { expected, desired, healthy, allowed, disrupted, again, lingering, unmanaged })
}

/// How many pods there are to be, and whether there are some besides.
fn wanted(
    pods: &[Arc<Pod>],
    scale: impl Fn(&OwnerReference) -> Result<Option<(String, i32)>, String>,
) -> Result<(i32, bool), String> {
    let (mut scales, mut seen, mut unmanaged) = (HashMap::new(), HashSet::new(), false);
    for pod in pods {
        let Some(by) = controller(&**pod) else {
            unmanaged = true;
            continue;
        };
        if !seen.insert(by.uid.clone()) {
            continue;
        }
        let (who, count) = scale(by)?.ok_or_else(|| format!("found no controllers for pod {:?}", pod.name()))?;
        scales.insert(who, count);
    }
    Ok((scales.values().fold(0, |sum, it| sum.saturating_add(*it)), unmanaged))
}

/// A number, or the part of a whole, rounded up.
fn share(of: &IntOrString, whole: i32) -> Result<i32, String> {
    if let IntOrString::String(text) = of
        && text.strip_suffix('%').is_none_or(|it| it.parse::<i64>().is_err())
    {
        return Err("invalid value for IntOrString: invalid type: string is not a percentage".to_owned());
    }
    Ok(workload::share(of, whole, true))
}
