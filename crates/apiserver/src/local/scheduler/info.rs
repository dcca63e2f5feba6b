//! What scheduling reads of a pod, worked out once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, NodeSelector, Pod, PodAffinityTerm, PodSpec, PreferredSchedulingTerm, ResourceRequirements, Toleration,
    TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::node::required;
use crate::local::reader::Kind;
use crate::object::quantity::Quantity as Amount;
use crate::object::selector::Labels;
use crate::verbs::scale::selector_text;

/// How much of each resource.
pub(super) type Amounts = BTreeMap<String, Amount>;
type Written = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// A pod, as the scheduler sees it.
pub(super) struct Info {
    pub(super) pod: Arc<Pod>,
    pub(super) requests: Amounts,
    pub(super) ports: Vec<Port>,
    pub(super) near: Vec<Term>,
    pub(super) apart: Vec<Term>,
    pub(super) rather_near: Vec<(i64, Term)>,
    pub(super) rather_apart: Vec<(i64, Term)>,
    pub(super) spread: Vec<Spread>,
    /// The claims that its volumes are.
    pub(super) claims: Vec<Claim>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) name: String,
    /// Made for this pod by somebody else.
    pub(super) ephemeral: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    protocol: String,
    ip: String,
    port: i32,
}

impl Port {
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.protocol == other.protocol
            && self.port == other.port
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// A term of an affinity between pods.
pub(super) struct Term {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Labels>,
    selector: Option<Labels>,
    pub(super) topology: String,
}

impl Term {
    pub(super) fn matches(&self, pod: &Pod, namespaces: &BTreeMap<String, BTreeMap<String, String>>) -> bool {
        let here = || {
            let selector = self.namespace_selector.as_ref();
            let labels = namespaces.get(pod.namespace());
            selector.is_some_and(|it| it.matches(|name| labels.and_then(|it| it.get(name)).map(String::as_str)))
        };
        (self.namespaces.contains(pod.namespace()) || here())
            && self.selector.as_ref().is_some_and(|it| it.matches(|name| pod.label(name)))
    }

    fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.namespace().to_owned());
        }
        let with = |keys: &Option<Vec<String>>, how: &str| -> Vec<String> {
            let said = keys.iter().flatten().filter_map(|key| Some(format!("{key} {how} ({})", pod.label(key)?)));
            said.collect()
        };
        let more = [with(&term.match_label_keys, "in"), with(&term.mismatch_label_keys, "notin")].concat();
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(|it| labels(it, &[])),
            selector: term.label_selector.as_ref().and_then(|it| labels(it, &more)),
            topology: term.topology_key.clone(),
        }
    }
}

pub(super) struct Spread {
    pub(super) topology: String,
    pub(super) selector: Option<Labels>,
    pub(super) max_skew: i64,
    pub(super) min_domains: Option<i64>,
    /// Otherwise it is only wished.
    pub(super) must: bool,
    pub(super) honors_affinity: bool,
    pub(super) honors_taints: bool,
}

impl Spread {
    fn of(it: &TopologySpreadConstraint, pod: &Pod) -> Self {
        let keys = it.match_label_keys.iter().flatten();
        let more: Vec<String> = keys.filter_map(|key| Some(format!("{key}={}", pod.label(key)?))).collect();
        Self {
            topology: it.topology_key.clone(),
            selector: it.label_selector.as_ref().and_then(|it| labels(it, &more)),
            max_skew: it.max_skew.into(),
            min_domains: it.min_domains.map(Into::into),
            must: it.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: it.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: it.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

fn labels(selector: &LabelSelector, more: &[String]) -> Option<Labels> {
    let mut parts = more.to_vec();
    let own = selector_text(&serde_json::to_value(selector).ok()?);
    if !own.is_empty() {
        parts.push(own);
    }
    Labels::parse(&parts.join(",")).ok()
}

impl Info {
    pub(super) fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let affinity = spec.affinity.as_ref();
        let (near, apart) =
            (affinity.and_then(|it| it.pod_affinity.as_ref()), affinity.and_then(|it| it.pod_anti_affinity.as_ref()));
        let terms = |all: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            all.into_iter().flatten().map(|it| Term::of(it, &pod)).collect()
        };
        let near_must = near.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
        let apart_must = apart.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
        let near_may = near.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref());
        let apart_may = apart.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_ref());
        let weighed = |all: Option<&Vec<k8s_openapi::api::core::v1::WeightedPodAffinityTerm>>| -> Vec<(i64, Term)> {
            let all = all.into_iter().flatten();
            all.map(|it| (it.weight.into(), Term::of(&it.pod_affinity_term, &pod))).collect()
        };
        Self {
            requests: requests(spec),
            ports: ports(spec),
            near: terms(near_must),
            apart: terms(apart_must),
            rather_near: weighed(near_may),
            rather_apart: weighed(apart_may),
            spread: spec.topology_spread_constraints.iter().flatten().map(|it| Spread::of(it, &pod)).collect(),
            claims: claims(spec, pod.name()),
            pod,
        }
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    pub(super) fn priority(&self) -> i32 {
        self.spec().and_then(|it| it.priority).unwrap_or_default()
    }

    pub(super) fn needs(&self) -> Option<&NodeSelector> {
        required(self.spec()?)
    }

    pub(super) fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|it| it.tolerations.as_deref()).unwrap_or_default()
    }

    pub(super) fn wishes(&self) -> &[PreferredSchedulingTerm] {
        let affinity = self.spec().and_then(|it| it.affinity.as_ref()?.node_affinity.as_ref());
        let wishes = affinity.and_then(|it| it.preferred_during_scheduling_ignored_during_execution.as_deref());
        wishes.unwrap_or_default()
    }
}

fn ports(spec: &PodSpec) -> Vec<Port> {
    let sidecars = spec.init_containers.iter().flatten().filter(|it| is_sidecar(it));
    let all = spec.containers.iter().chain(sidecars).flat_map(|it| it.ports.iter().flatten());
    let some = |text: &Option<String>, or: &str| text.clone().filter(|it| !it.is_empty()).unwrap_or_else(|| or.into());
    let ports = all.filter_map(|it| {
        let port = it.host_port.filter(|it| *it > 0)?;
        Some(Port { protocol: some(&it.protocol, "TCP"), ip: some(&it.host_ip, "0.0.0.0"), port })
    });
    ports.collect()
}

fn claims(spec: &PodSpec, pod: &str) -> Vec<Claim> {
    let all = spec.volumes.iter().flatten().filter_map(|it| match (&it.persistent_volume_claim, &it.ephemeral) {
        (Some(claim), _) => Some(Claim { name: claim.claim_name.clone(), ephemeral: false }),
        (None, Some(_)) => Some(Claim { name: format!("{pod}-{}", it.name), ephemeral: true }),
        (None, None) => None,
    });
    all.collect()
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(super) fn amounts(written: Option<&Written>) -> Amounts {
    let all = written.into_iter().flatten();
    all.filter_map(|(name, it)| Some((name.clone(), Amount::parse(&it.0).ok()?))).collect()
}

fn asked(of: &Option<ResourceRequirements>) -> Amounts {
    amounts(of.as_ref().and_then(|it| it.requests.as_ref()))
}

pub(super) fn none() -> Amount {
    Amount::whole(0)
}

pub(super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.entry(name.clone()).or_insert_with(none);
        *sum = sum.plus(*amount);
    }
}

pub(super) fn subtract(from: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        let rest = from.entry(name.clone()).or_insert_with(none);
        *rest = rest.plus(amount.negated());
    }
}

fn raise(to: &mut Amounts, at_least: &Amounts) {
    for (name, amount) in at_least {
        let most = to.entry(name.clone()).or_insert(*amount);
        *most = (*most).max(*amount);
    }
}

/// What it needs at its fullest: its containers together with the sidecars, or an init container with the sidecars that
/// were started before it, and the overhead of running it at all.
fn requests(spec: &PodSpec) -> Amounts {
    let mut together = Amounts::new();
    for container in &spec.containers {
        add(&mut together, &asked(&container.resources));
    }
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut now = asked(&container.resources);
        if is_sidecar(container) {
            add(&mut sidecars, &now);
            raise(&mut starting, &sidecars);
        } else {
            add(&mut now, &sidecars);
            raise(&mut starting, &now);
        }
    }
    add(&mut together, &sidecars);
    raise(&mut together, &starting);
    // What is said of the pod as a whole goes before what is said of its parts.
    together.extend(asked(&spec.resources));
    add(&mut together, &amounts(spec.overhead.as_ref()));
    together
}
