//! On which nodes a DaemonSet has pods, and the pods.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Taint, Toleration,
};

use crate::local::reader::Kind;
use crate::local::workload::from_template;

pub(super) const HASH: &str = "controller-revision-hash";
/// What counted before there were revisions; an annotation of the set and a label of its pods.
pub(super) const GENERATION: &str = "pod-template-generation";
const DEPRECATED_GENERATION: &str = "deprecated.daemonset.template.generation";
/// What pods of a DaemonSet bear: keys and effects of taints.
const BORNE: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NO_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");
const NAME: &str = "metadata.name";

pub(super) fn generation(set: &DaemonSet) -> Option<i64> {
    set.annotation(DEPRECATED_GENERATION)?.parse().ok()
}

/// Whether the node gets a pod, and whether one that is there may stay.
pub(super) fn should_run(spec: &DaemonSetSpec, node: &Node) -> (bool, bool) {
    let Some(template) = &spec.template.spec else { return (false, false) };
    let pinned = template.node_name.as_deref().filter(|it| !it.is_empty());
    if pinned.is_some_and(|it| it != node.name()) || !fits(template, node) {
        return (false, false);
    }
    let tolerations = tolerations(template);
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    let bears = |effects: &[&str]| {
        let mut against = taints.iter().filter(|it| effects.contains(&it.effect.as_str()));
        against.all(|taint| tolerations.iter().any(|it| tolerates(it, taint)))
    };
    (bears(&["NoSchedule", "NoExecute"]), bears(&["NoExecute"]))
}

fn fits(spec: &PodSpec, node: &Node) -> bool {
    let mut labels = spec.node_selector.iter().flatten();
    if !labels.all(|(name, value)| node.label(name) == Some(value.as_str())) {
        return false;
    }
    let required = spec.affinity.as_ref().and_then(|it| it.node_affinity.as_ref());
    let required = required.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|it| it.node_selector_terms.iter().any(|it| selects(it, node)))
}

fn selects(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let is_empty = labels.clone().chain(fields.clone()).next().is_none();
    !is_empty
        && labels.clone().all(|it| holds(it, node.label(&it.key)))
        && fields.clone().all(|it| it.key == NAME && holds(it, Some(node.name())))
}

fn holds(it: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = it.values.as_deref().unwrap_or_default();
    let among = value.is_some_and(|value| values.iter().any(|it| it == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match it.operator.as_str() {
        "In" => among,
        "NotIn" => !among,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(it, than)| it > than),
        "Lt" => numbers().is_some_and(|(it, than)| it < than),
        _ => false,
    }
}

fn tolerates(it: &Toleration, taint: &Taint) -> bool {
    let (key, effect) = (it.key.as_deref().unwrap_or_default(), it.effect.as_deref().unwrap_or_default());
    let (wanted, value) = (it.value.as_deref().unwrap_or_default(), taint.value.as_deref().unwrap_or_default());
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && (it.operator.as_deref() == Some("Exists") || (!key.is_empty() && wanted == value))
}

/// Those of the template, and those that every pod of a DaemonSet has.
fn tolerations(template: &PodSpec) -> Vec<Toleration> {
    let mut all = template.tolerations.clone().unwrap_or_default();
    let network = (template.host_network == Some(true)).then_some(NO_NETWORK);
    for (key, effect) in BORNE.into_iter().chain(network) {
        let one = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let same = |it: &Toleration| (&it.key, &it.operator, &it.effect) == (&one.key, &one.operator, &one.effect);
        match all.iter_mut().find(|it| same(it)) {
            Some(it) => *it = one,
            None => all.push(one),
        }
    }
    all
}

/// The node for which a pod was made.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|it| !it.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|it| it.match_fields.iter().flatten());
    let field = fields.find(|it| it.key == NAME && it.operator == "In")?;
    match field.values.as_deref()? {
        [one] => Some(one),
        _ => None,
    }
}

/// The pod for a node: the scheduler binds it to that one and no other.
pub(super) fn pod(set: &DaemonSet, template: &PodTemplateSpec, hash: &str, node: &str) -> Pod {
    let mut pod = from_template(template, set);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    if let Some(generation) = generation(set) {
        labels.insert(GENERATION.to_owned(), generation.to_string());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let field = NodeSelectorRequirement {
        key: NAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = &mut affinity.required_during_scheduling_ignored_during_execution;
    *required = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_fields: Some(vec![field]), match_expressions: None }],
    });
    pod
}
