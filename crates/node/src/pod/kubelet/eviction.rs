//! Who goes when the machine runs out of something, and in which words. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

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
}
