//! Who goes when the machine runs out of something, and in which words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::spec;
use crate::pod::given::value;
use crate::projection::quantity;

/// What runs out: memory, or the disk that pods write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// `memory` or `ephemeral-storage`.
    pub resource: &'static str,
    /// Bytes: what should be left at least, and what is.
    pub threshold: u64,
    pub available: u64,
}

/// Bytes of the pressed resource that each container of a pod uses.
pub(crate) type Used = BTreeMap<String, u64>;

/// The pod that is ended next, and what its status says. Nobody is ended whose end gives nothing back.
///
/// As a kubelet ranks: who uses more than it requested before who does not, then by priority, then by how much more.
pub(crate) fn candidate<'a>(
    pods: impl IntoIterator<Item = (&'a Pod, Used)>,
    pressure: Pressure,
) -> Option<(&'a Pod, String)> {
    const CRITICAL: i32 = 2_000_000_000;
    let live = pods.into_iter().filter(|(pod, used)| !spec::is_over(pod) && used.values().any(|it| *it > 0));
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|it| it.priority).unwrap_or(0);
    let over = |(pod, used): &(&Pod, Used)| {
        let wanted: u64 = requested(pod, pressure.resource).into_values().fold(0, u64::saturating_add);
        let used: u64 = used.values().copied().fold(0, u64::saturating_add);
        i128::from(used) - i128::from(wanted)
    };
    let open = live.filter(|(pod, _)| priority(pod) < CRITICAL);
    let first = open.min_by_key(|it| (over(it) <= 0, priority(it.0), -over(it)))?;
    Some((first.0, message(first.0, &first.1, pressure)))
}

fn requested(pod: &Pod, resource: &str) -> BTreeMap<String, u64> {
    let units = spec::units(pod);
    let beside = units.iter().filter(|it| it.kind != spec::Kind::Init);
    let each = beside.map(|it| {
        let requests = it.spec.resources.as_ref().and_then(|it| it.requests.as_ref());
        let bytes = requests.and_then(|it| it.get(resource)).and_then(value);
        (it.name().to_owned(), bytes.and_then(|it| u64::try_from(it).ok()).unwrap_or(0))
    });
    each.collect()
}

fn message(pod: &Pod, used: &Used, pressure: Pressure) -> String {
    let Pressure { resource, threshold, available } = pressure;
    let (threshold, available) = (quantity(threshold), quantity(available));
    let mut all =
        format!("The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. ");
    for (name, wanted) in requested(pod, resource) {
        let used = used.get(&name).copied().unwrap_or(0);
        if used > wanted {
            let (used, wanted) = (quantity(used), quantity(wanted));
            all += &format!(
                "Container {name} was using {used}, request is {wanted}, has larger consumption of {resource}. "
            );
        }
    }
    all
}

const STORAGE: &str = "ephemeral-storage";

fn storage_limit(container: &Container) -> Option<(u64, &str)> {
    let limit = container.resources.as_ref()?.limits.as_ref()?.get(STORAGE)?;
    let bytes = value(limit).and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0)?;
    Some((bytes, &limit.0))
}

/// Whether a container of the pod may store so much and no more.
pub(crate) fn is_bounded(pod: &Pod) -> bool {
    spec::units(pod).iter().any(|it| storage_limit(&it.spec).is_some())
}

/// What a pod's containers may store together, as Kubernetes adds it up: who has no limit adds nothing.
fn storage_of_all(units: &[spec::Unit<'_>]) -> Option<(u64, String)> {
    let (mut all, mut sidecars, mut first) = (0_u64, 0_u64, 0_u64);
    let mut texts = Vec::new();
    for it in units.iter().filter(|it| it.kind != spec::Kind::Ephemeral) {
        let Some((bytes, text)) = storage_limit(&it.spec) else { continue };
        texts.push(text);
        match it.kind {
            spec::Kind::Init => first = first.max(sidecars.saturating_add(bytes)),
            spec::Kind::Sidecar => {
                sidecars = sidecars.saturating_add(bytes);
                all = all.saturating_add(bytes);
                first = first.max(sidecars);
            }
            _ => all = all.saturating_add(bytes),
        }
    }
    let text = match texts.as_slice() {
        [] => return None,
        [one] => (*one).to_owned(),
        _ => quantity(all.max(first)),
    };
    Some((all.max(first), text))
}

/// What the status of a pod says that stores more than its containers may: `used` is what each has written to its root and
/// printed, `volumes` what its volumes on the disk hold. In a kubelet's words, of which the last is a blank.
pub(crate) fn oversized(pod: &Pod, used: &Used, volumes: u64) -> Option<String> {
    let units = spec::units(pod);
    let (most, text) = storage_of_all(&units)?;
    if used.values().fold(volumes, |sum, it| sum.saturating_add(*it)) > most {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {text}. "));
    }
    let regular = units.iter().filter(|it| it.kind == spec::Kind::Regular);
    regular.into_iter().find_map(|it| {
        let (name, (most, text)) = (it.name(), storage_limit(&it.spec)?);
        (used.get(name).is_some_and(|it| *it > most))
            .then(|| format!("Container {name} exceeded its local ephemeral storage limit {text:?}. "))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_uses_more_than_it_asked_for_and_matters_least_goes_first() {
        let pod = |name: &str, priority: i32, request: &str| -> Pod {
            let resources = json!({"requests": {"memory": request}});
            let spec = json!({"priority": priority, "containers": [{"name": "c", "resources": resources}]});
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
        };
        let used = |bytes: u64| Used::from([("c".to_owned(), bytes << 20)]);
        let all = [
            (pod("within", 0, "100Mi"), used(90)),
            (pod("important", 10, "0"), used(500)),
            (pod("little", 0, "10Mi"), used(20)),
            (pod("much", 0, "10Mi"), used(30)),
            (pod("critical", 2_000_000_000, "0"), used(900)),
            (pod("nothing", -1, "0"), used(0)),
        ];
        let pressure = Pressure { resource: "memory", threshold: 100 << 20, available: 50 << 20 };
        let mut left: Vec<_> = all.iter().collect();
        let mut gone = Vec::new();
        while let Some((pod, message)) = candidate(left.iter().map(|it| (&it.0, it.1.clone())), pressure) {
            let name = pod.metadata.name.clone();
            gone.push((name.clone().unwrap(), message));
            left.retain(|it| it.0.metadata.name != name);
        }
        let names: Vec<&str> = gone.iter().map(|it| it.0.as_str()).collect();
        assert_eq!(names, ["much", "little", "important", "within"]);
        assert_eq!(
            gone[0].1,
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using 30Mi, \
             request is 10Mi, has larger consumption of memory. "
        );
    }

    #[test]
    fn who_stores_more_than_it_may_is_told_so() {
        let limit = |it: &str| json!({"limits": {"ephemeral-storage": it}});
        let pod = |init: serde_json::Value, all: &[(&str, Option<&str>)]| -> Pod {
            let one = |(name, most): &(&str, Option<&str>)| json!({"name": name, "resources": most.map(limit)});
            let spec = json!({"initContainers": init, "containers": all.iter().map(one).collect::<Vec<_>>()});
            serde_json::from_value(json!({"spec": spec})).unwrap()
        };
        let whole =
            |most: &str| format!("Pod ephemeral local storage usage exceeds the total limit of containers {most}. ");
        let own =
            |name: &str, most: &str| format!("Container {name} exceeded its local ephemeral storage limit {most:?}. ");
        let one = || pod(json!([]), &[("a", Some("5Mi"))]);
        let beside = || pod(json!([]), &[("a", Some("5Mi")), ("b", None)]);
        let two = || pod(json!([]), &[("a", Some("5Mi")), ("b", Some("10Mi"))]);
        let first = || {
            let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": limit("1Mi")});
            let init = json!({"name": "i", "resources": limit("20Mi")});
            pod(json!([sidecar, init]), &[("a", Some("5Mi"))])
        };
        // What containers have, and volumes.
        let table = [
            (one(), [5 << 20, 0], 0, None),
            (one(), [(5 << 20) + 1, 0], 0, Some(whole("5Mi"))),
            (one(), [4 << 20, 0], 2 << 20, Some(whole("5Mi"))),
            (beside(), [0, 6 << 20], 0, Some(whole("5Mi"))),
            (two(), [6 << 20, 0], 0, Some(own("a", "5Mi"))),
            (two(), [6 << 20, 10 << 20], 0, Some(whole("15Mi"))),
            (two(), [5 << 20, 9 << 20], 1 << 20, None),
            (first(), [6 << 20, 0], 0, Some(own("a", "5Mi"))),
            (first(), [5 << 20, 0], 17 << 20, Some(whole("21Mi"))),
            (pod(json!([]), &[("a", None)]), [9 << 30, 0], 0, None),
            (pod(json!([]), &[("a", Some("0"))]), [9 << 30, 0], 0, None),
        ];
        for (pod, [a, b], volumes, is) in table {
            let used = Used::from([("a".to_owned(), a), ("b".to_owned(), b)]);
            assert_eq!(oversized(&pod, &used, volumes), is, "{pod:?}");
        }
        assert!(is_bounded(&first()) && !is_bounded(&pod(json!([]), &[("a", None)])));
    }
}
