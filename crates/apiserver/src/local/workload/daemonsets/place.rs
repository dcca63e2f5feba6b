//! On which nodes a DaemonSet has pods, and the pods.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, PodTemplateSpec, Toleration,
};

use crate::local::reader::Kind;
use crate::local::scheduler::{bears, wants};
use crate::local::workload::{from_template, pods};

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
    if pinned.is_some_and(|it| it != node.name()) || !wants(template, node) {
        return (false, false);
    }
    let tolerations = tolerations(template);
    let taints = node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default();
    let bears = |effects: &[&str]| bears(&tolerations, taints, effects);
    (bears(&["NoSchedule", "NoExecute"]), bears(&["NoExecute"]))
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
    if let Some(node) = pods::node(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
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
