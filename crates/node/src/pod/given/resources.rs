//! Amounts: limits, what the downward API says of them, and who is killed first when memory runs out.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use wire::node::Limits;

use super::NodeFacts;
use super::quantity::{millis, nanos, value};

type Amounts = Option<BTreeMap<String, Quantity>>;

/// The names that a kubelet gives memory on the disk.
const EPHEMERAL: &str = "ephemeral-storage";

/// What a resourceFieldRef stands for. Of limits that are not set, what the node has for pods.
///
/// # Errors
/// In the words of a kubelet.
pub(super) fn field(
    of: &ResourceFieldSelector,
    pod: &Pod,
    own: Option<&Container>,
    node: &NodeFacts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let name = of.container_name.as_deref().unwrap_or_default();
    let container = match own.filter(|_| name.is_empty()) {
        Some(own) => own,
        None => {
            let all = spec.into_iter().flat_map(|it| it.containers.iter().chain(it.init_containers.iter().flatten()));
            all.into_iter().find(|it| it.name == name).ok_or_else(|| format!("container {name} not found"))?
        }
    };
    let unknown = || format!("unsupported container resource : {}", of.resource);
    let (list, name) = of.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(name, "cpu" | "memory" | EPHEMERAL) && !name.starts_with("hugepages-") {
        return Err(unknown());
    }
    let resources = container.resources.as_ref();
    let quantity = match list {
        "limits" => {
            let set = |it: &&Quantity| nanos(it).is_some_and(|it| it != 0);
            let ours = resources.and_then(|it| get(&it.limits, name)).filter(set);
            let pods = spec.and_then(|it| it.resources.as_ref()).and_then(|it| get(&it.limits, name)).filter(set);
            let nodes = node.allocatable.get(name).filter(|_| !name.starts_with("hugepages-"));
            ours.or(pods).or(nodes)
        }
        "requests" => resources.and_then(|it| get(&it.requests, name)),
        _ => return Err(unknown()),
    };
    let divisor = of.divisor.as_ref().and_then(nanos).filter(|it| *it > 0).unwrap_or(1_000_000_000);
    // Rounded up to thousandths of a processor, and to bytes, before it is divided.
    let unit: i128 = if name == "cpu" { 1_000_000 } else { 1_000_000_000 };
    let up = |it: i128, by: i128| it.div_euclid(by) + i128::from(it.rem_euclid(by) != 0);
    let divisor = up(divisor, unit).max(1);
    let amount = up(quantity.and_then(nanos).unwrap_or(0), unit);
    Ok(up(amount, divisor).to_string())
}

fn get<'a>(all: &'a Amounts, name: &str) -> Option<&'a Quantity> {
    all.as_ref()?.get(name)
}

/// What a container may use.
pub(super) fn limits(pod: &Pod, container: &Container) -> Limits {
    let own = container.resources.as_ref();
    let whole = pod.spec.as_ref().and_then(|it| it.resources.as_ref());
    let of = |name| own.and_then(|it| get(&it.limits, name)).or_else(|| whole.and_then(|it| get(&it.limits, name)));
    let bytes = |name| of(name).and_then(value).and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0);
    let cpu = of("cpu").and_then(millis).filter(|it| *it > 0).map(|it| u32::try_from(it).unwrap_or(u32::MAX));
    Limits { memory: bytes("memory"), cpu, pids: None, disk: bytes(EPHEMERAL) }
}

/// How much less than all memory a file system in memory may hold.
pub(super) fn memory_volume(limit: Option<&Quantity>, pod: &Pod, node: &NodeFacts) -> Option<u64> {
    let bytes = |it: &Quantity| value(it).and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0);
    let node = node.allocatable.get("memory").and_then(bytes);
    let pod = pod.spec.as_ref().and_then(pod_memory);
    [node, pod, limit.and_then(bytes)].into_iter().flatten().min()
}

/// The sum of its containers' limits, when each has one, or the pod's own.
fn pod_memory(spec: &PodSpec) -> Option<u64> {
    let of = |amounts: &Amounts| get(amounts, "memory").and_then(value).and_then(|it| u64::try_from(it).ok());
    if let Some(it) = spec.resources.as_ref().and_then(|it| of(&it.limits)) {
        return Some(it);
    }
    let each = |it: &Container| it.resources.as_ref().and_then(|it| of(&it.limits)).filter(|it| *it > 0);
    let stays = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let mut sum: u64 = 0;
    for container in spec.containers.iter().chain(init.iter().filter(stays)) {
        sum = sum.saturating_add(each(container)?);
    }
    for container in init.iter().filter(|it| !stays(it)) {
        sum = sum.max(each(container)?);
    }
    Some(sum)
}

/// How a pod's resources are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// The pod's quality of service: as its status has it, or computed as Kubernetes does.
pub(crate) fn qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|it| it.qos_class.as_deref()) {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    let Some(spec) = &pod.spec else { return Qos::BestEffort };
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all: Vec<_> = match &spec.resources {
        Some(it) => vec![Some(it)],
        None => containers().map(|it| it.resources.as_ref()).collect(),
    };
    let mut sums: [BTreeMap<&str, i128>; 2] = Default::default();
    let mut guaranteed = true;
    for it in all {
        let mut limited = BTreeSet::new();
        let lists = [it.and_then(|it| it.requests.as_ref()), it.and_then(|it| it.limits.as_ref())];
        for (at, (sum, list)) in sums.iter_mut().zip(lists).enumerate() {
            for name in ["cpu", "memory"] {
                let Some(amount) = list.and_then(|it| it.get(name)).and_then(nanos).filter(|it| *it > 0) else {
                    continue;
                };
                let sum = sum.entry(name).or_default();
                *sum = sum.saturating_add(amount);
                if at == 1 {
                    limited.insert(name);
                }
            }
        }
        guaranteed &= limited.len() == 2;
    }
    let [requests, limits] = sums;
    if requests.is_empty() && limits.is_empty() {
        Qos::BestEffort
    } else if guaranteed && requests == limits {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// As a kubelet computes it: the more a container asked for, the later it is killed.
pub(super) fn oom_score_adj(pod: &Pod, container: &Container, memory: u64) -> i32 {
    const GUARANTEED: i64 = -997;
    let spec = pod.spec.as_ref();
    if spec.and_then(|it| it.priority_class_name.as_deref()) == Some("system-node-critical") {
        return -997;
    }
    match qos(pod) {
        Qos::Guaranteed => return -997,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    let memory = i128::from(memory.max(1));
    let request = |it: &Container| {
        i128::from(it.resources.as_ref().and_then(|it| get(&it.requests, "memory")).and_then(value).unwrap_or(0))
    };
    let containers = spec.map(|it| it.containers.as_slice()).unwrap_or_default();
    // What the pod asks for beyond its containers is shared among them.
    let whole = spec.and_then(|it| it.resources.as_ref()).and_then(|it| get(&it.requests, "memory")).and_then(value);
    let init = spec.and_then(|it| it.init_containers.as_deref()).unwrap_or_default();
    let stays = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
    let lasting = || containers.iter().chain(init.iter().filter(stays));
    let shared = whole.map_or(0, |whole| {
        let asked: i128 = lasting().map(request).sum();
        let count = i128::try_from(lasting().count()).unwrap_or(1).max(1);
        (i128::from(whole) - asked).max(0) / count
    });
    let score = |asked: i128| 1000 - 1000 * (asked + shared) / memory;
    let mut adjust = score(request(container));
    if stays(&container) && init.iter().any(|it| it.name == container.name) {
        adjust = adjust.min(score(containers.iter().map(request).min().unwrap_or(0)));
    }
    let adjust = adjust.clamp(i128::from(1000 + GUARANTEED), 999);
    i32::try_from(adjust).unwrap_or(999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn one(resources: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": resources}]}))
    }

    #[test]
    fn limits_and_who_dies_first_are_as_a_kubelet_computes_them() {
        const MEMORY: u64 = 16 << 30;
        let both = json!({"cpu": "1500m", "memory": "1Gi"});
        let table = [
            (one(json!({})), Qos::BestEffort, 1000, (None, None)),
            (one(json!({"limits": both, "requests": both})), Qos::Guaranteed, -997, (Some(1 << 30), Some(1500))),
            (one(json!({"requests": {"memory": "4Gi"}})), Qos::Burstable, 750, (None, None)),
            (one(json!({"requests": {"memory": "1Mi"}})), Qos::Burstable, 999, (None, None)),
            (one(json!({"requests": {"memory": "16Gi"}})), Qos::Burstable, 3, (None, None)),
            (
                one(json!({"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi"}})),
                Qos::Burstable,
                938,
                (Some(1 << 30), None),
            ),
            (
                pod(json!({"priorityClassName": "system-node-critical", "containers": [{"name": "c"}]})),
                Qos::BestEffort,
                -997,
                (None, None),
            ),
        ];
        for (pod, class, adjust, limited) in table {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let limits = limits(&pod, container);
            assert_eq!((qos(&pod), (limits.memory, limits.cpu)), (class, limited), "{pod:?}");
            assert_eq!(oom_score_adj(&pod, container, MEMORY), adjust, "{pod:?}");
        }
    }

    #[test]
    fn resource_fields_are_divided_and_rounded_up() {
        let node = NodeFacts {
            allocatable: [("cpu", "4"), ("memory", "1000")].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned()))).into(),
            ..NodeFacts::default()
        };
        let pod = one(json!({"limits": {"cpu": "250m"}, "requests": {"memory": "1025Ki", "ephemeral-storage": "1"}}));
        let table = [
            (json!({"resource": "limits.cpu"}), Ok("1")),
            (json!({"resource": "limits.cpu", "divisor": "1m"}), Ok("250")),
            (json!({"resource": "limits.memory"}), Ok("1000")),
            (json!({"resource": "requests.memory", "divisor": "1Mi"}), Ok("2")),
            (json!({"resource": "requests.memory", "divisor": "0"}), Ok("1049600")),
            (json!({"resource": "requests.cpu"}), Ok("0")),
            (json!({"resource": "requests.ephemeral-storage"}), Ok("1")),
            (json!({"resource": "requests.hugepages-2Mi"}), Ok("0")),
            (json!({"resource": "limits.gpu"}), Err("unsupported container resource : limits.gpu")),
            (json!({"resource": "x"}), Err("unsupported container resource : x")),
            (json!({"resource": "limits.cpu", "containerName": "d"}), Err("container d not found")),
        ];
        for (of, is) in table {
            let of: ResourceFieldSelector = serde_json::from_value(of).unwrap();
            let own = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(field(&of, &pod, Some(own), &node).as_deref().map_err(String::as_str), is, "{of:?}");
        }
    }

    #[test]
    fn a_volume_in_memory_holds_no_more_than_its_pod_may_use() {
        let node =
            NodeFacts { allocatable: [("memory".to_owned(), Quantity("1Gi".into()))].into(), ..NodeFacts::default() };
        let small = one(json!({"limits": {"memory": "10Mi"}}));
        let limit = Quantity("1Mi".into());
        assert_eq!(memory_volume(None, &one(json!({})), &node), Some(1 << 30));
        assert_eq!(memory_volume(None, &small, &node), Some(10 << 20));
        assert_eq!(memory_volume(Some(&limit), &small, &node), Some(1 << 20));
        assert_eq!(memory_volume(None, &one(json!({})), &NodeFacts::default()), None);
    }
}
