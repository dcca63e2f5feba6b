//! Whether a node is one that a pod asks for, and one whose taints it bears.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::local::reader::Kind;

pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The affinity that a pod requires.
pub(super) fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// Whether the node is as the pod's selector and the affinity that it requires say.
pub(crate) fn wants(spec: &PodSpec, node: &Node) -> bool {
    let mut labels = spec.node_selector.iter().flatten();
    labels.all(|(name, value)| node.label(name) == Some(value.as_str()))
        && required(spec).is_none_or(|it| selects(it, node))
}

pub(super) fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|it| term(it, node))
}

/// A term of nothing selects nothing.
pub(super) fn term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let is_empty = labels.clone().chain(fields.clone()).next().is_none();
    !is_empty
        && labels.clone().all(|it| holds(it, node.label(&it.key)))
        && fields.clone().all(|it| it.key == "metadata.name" && holds(it, Some(node.name())))
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

/// Those that bear a taint.
pub(crate) fn tolerations<'a>(all: &'a [Toleration], taint: &'a Taint) -> impl Iterator<Item = &'a Toleration> {
    all.iter().filter(move |it| tolerates(it, taint))
}

/// Whether each of the taints that have one of these effects is borne.
pub(crate) fn bears(all: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    let mut against = taints.iter().filter(|it| effects.contains(&it.effect.as_str()));
    against.all(|taint| tolerations(all, taint).next().is_some())
}
