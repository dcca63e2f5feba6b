//! Whether this node takes a pod that was bound to it: a kubelet's own look, after the scheduler's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec::{self, Kind};
use super::world::{Node, Refused};
use crate::pod::given::{millis, value};

/// Thousandths of a processor, bytes, pods, ports of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    pub cpu: u64,
    pub memory: u64,
    pub pods: usize,
    pub ports: Vec<Port>,
}

impl Promised {
    /// The same and more.
    pub(super) fn and(mut self, more: &Self) -> Self {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        self.pods = self.pods.saturating_add(more.pods);
        self.ports.extend_from_slice(&more.ports);
        self
    }
}

/// A port of the host that a pod has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    protocol: String,
    ip: String,
    port: i32,
}

impl Port {
    fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.protocol == other.protocol
            && self.port == other.port
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

fn ports(pod: &Pod) -> Vec<Port> {
    let some = |text: &Option<String>, or: &str| text.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| or.into());
    let units = spec::units(pod);
    let lasting = units.iter().filter(|it| matches!(it.kind, Kind::Sidecar | Kind::Regular));
    let all = lasting.flat_map(|it| it.spec.ports.iter().flatten()).filter_map(|it| {
        let port = it.host_port.filter(|it| *it > 0)?;
        Some(Port { protocol: some(&it.protocol, "TCP"), ip: some(&it.host_ip, "0.0.0.0"), port })
    });
    all.collect()
}

/// What a pod requests: what it says for itself, or of its init containers the largest, of all others the sum.
pub(crate) fn requests(pod: &Pod) -> Promised {
    let amount = |all: Option<&BTreeMap<String, Quantity>>, name: &str| {
        let asked = all.and_then(|it| it.get(name))?;
        let amount = if name == "cpu" { millis(asked) } else { value(asked) };
        Some(amount.and_then(|it| u64::try_from(it).ok()).unwrap_or(0))
    };
    let of = |it: &Container, name: &str| {
        amount(it.resources.as_ref().and_then(|it| it.requests.as_ref()), name).unwrap_or(0)
    };
    let units = spec::units(pod);
    let total = |name: &str| {
        let (mut beside, mut most) = (0u64, 0u64);
        for it in &units {
            let wants = of(&it.spec, name);
            match it.kind {
                Kind::Init => most = most.max(beside.saturating_add(wants)),
                Kind::Sidecar | Kind::Regular => beside = beside.saturating_add(wants),
                Kind::Ephemeral => {}
            }
        }
        let spec = pod.spec.as_ref();
        let own = amount(spec.and_then(|it| it.resources.as_ref()?.requests.as_ref()), name);
        let overhead = amount(spec.and_then(|it| it.overhead.as_ref()), name).unwrap_or(0);
        own.unwrap_or_else(|| beside.max(most)).saturating_add(overhead)
    };
    Promised { cpu: total("cpu"), memory: total("memory"), pods: 1, ports: ports(pod) }
}

/// # Errors
/// Reason and message as of a kubelet's `status`, without its "Pod was rejected: ".
pub(super) fn admit(pod: &Pod, node: &Node, others: &Promised) -> Result<(), Refused> {
    let system = pod.spec.as_ref().and_then(|it| it.os.as_ref());
    if system.is_some_and(|it| it.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Refused { reason: "PodOSNotSupported".into(), message: message.to_owned() });
    }
    let Promised { cpu, memory, ports, .. } = requests(pod);
    let wants = [
        ("pods", 1, others.pods as u64, node.pods as u64),
        ("cpu", cpu, others.cpu, node.cpu),
        ("memory", memory, others.memory, node.memory),
    ];
    for (what, wants, used, has) in wants {
        if wants > 0 && used.saturating_add(wants) > has {
            let message =
                format!("Node didn't have enough resource: {what}, requested: {wants}, used: {used}, capacity: {has}");
            return Err(Refused { reason: format!("OutOf{what}").into(), message });
        }
    }
    if !selected(pod, node) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(Refused { reason: "NodeAffinity".into(), message: message.to_owned() });
    }
    if ports.iter().any(|it| others.ports.iter().any(|other| it.conflicts(other))) {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Refused { reason: "NodePorts".into(), message: message.to_owned() });
    }
    Ok(())
}

/// Whether the pod wants a node with such labels.
pub(super) fn selected(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    if spec.node_selector.iter().flatten().any(|(name, value)| node.labels.get(name) != Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|it| it.node_selector_terms.iter().any(|term| fits(term, node)))
}

fn fits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let named = BTreeMap::from([("metadata.name".to_owned(), node.name.clone())]);
    // An empty term selects nothing.
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|it| holds(it, &node.labels))
        && fields.iter().all(|it| holds(it, &named))
}

fn holds(it: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&it.key);
    let values = it.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|value| values.contains(value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match it.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(has, than)| has > than),
        "Lt" => numbers().is_some_and(|(has, than)| has < than),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_is_refused_in_a_kubelets_words() {
        let node = Node {
            name: "here".into(),
            labels: BTreeMap::from([("zone".into(), "a".into()), ("n".into(), "5".into())]),
            cpu: 2000,
            memory: 1 << 30,
            pods: 2,
            ..Node::default()
        };
        let plain = |resources| json!({"containers": [{"name": "c", "resources": {"requests": resources}}]});
        let term = |it| {
            let required = json!({"nodeSelectorTerms": [it]});
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
        };
        let expression = |operator: &str, value: &str| {
            let key = if value.parse::<i64>().is_ok() { "n" } else { "zone" };
            term(json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]}))
        };
        let affinity = Some("Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
        let cpu = "Node didn't have enough resource: cpu, requested: 1000000, used: 100, capacity: 2000";
        let memory = "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824";
        let init = json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"memory": "2Gi"}}}], "containers": [],
        });
        let port = |port: u16, protocol: &str, ip: &str| {
            let it = json!({"containerPort": 1, "hostPort": port, "protocol": protocol, "hostIP": ip});
            json!({"containers": [{"name": "c", "ports": [it]}]})
        };
        let taken = Some("Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports");
        let table = [
            (port(80, "TCP", "127.0.0.1"), taken),
            (port(80, "TCP", ""), taken),
            (port(80, "UDP", ""), None),
            (port(81, "TCP", ""), None),
            (port(80, "TCP", "127.0.0.2"), None),
            (plain(json!({"cpu": "1900m"})), None),
            (plain(json!({"cpu": "1000"})), Some(cpu)),
            (init, Some(memory)),
            (json!({"containers": [], "resources": {"requests": {"memory": "2Gi"}}}), Some(memory)),
            (json!({"containers": [], "nodeSelector": {"zone": "a"}}), None),
            (json!({"containers": [], "nodeSelector": {"zone": "b"}}), affinity),
            (expression("In", "a"), None),
            (expression("NotIn", "a"), affinity),
            (expression("Gt", "4"), None),
            (expression("Lt", "4"), affinity),
            (term(json!({})), affinity),
            (json!({"containers": [], "os": {"name": "linux"}}), None),
            (
                json!({"containers": [], "os": {"name": "windows"}}),
                Some("Failed to admit pod as the OS field doesn't match node OS"),
            ),
            (term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["here"]}]})), None),
        ];
        for (spec, says) in table {
            let others = Promised { cpu: 100, pods: 1, ..requests(&pod(port(80, "TCP", "127.0.0.1"))) };
            let said = admit(&pod(spec.clone()), &node, &others).err().map(|it| it.message);
            assert_eq!(said.as_deref(), says, "{spec}");
        }
        let full = Promised { pods: 2, ..Promised::default() };
        let refused = admit(&pod(json!({"containers": []})), &node, &full).unwrap_err();
        assert_eq!(refused.reason, "OutOfpods");
        assert_eq!(refused.message, "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2");
    }
}
