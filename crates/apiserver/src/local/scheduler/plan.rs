//! The decision, without I/O: where a pod goes, or in Kubernetes' words why nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::info::{Info, Term};
use super::node::{UNSCHEDULABLE, bears, selects, tolerations, wants};
use super::preempt;
use super::score::best;
use super::view::{Place, View};
use crate::local::reader::Kind;
use crate::object::quantity::Quantity as Amount;
use crate::store::Key;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Bind(String),
    /// These claims have to get volumes that can be used on this node, first.
    Prepare {
        node: String,
        claims: Vec<String>,
    },
    /// These pods, which are less important, go from this node; and why there is no room now, as in `No`.
    Preempt {
        node: String,
        victims: Vec<Key>,
        why: String,
    },
    /// Others go for it already.
    Wait,
    /// In the words of the condition and the event.
    No(String),
}

/// What is known of the volumes that a pod's claims are bound to.
#[derive(Debug, Default)]
pub(super) struct Volumes {
    /// Why no node at all will do.
    pub(super) problem: Option<String>,
    /// Where they can be used.
    pub(super) reach: Vec<NodeSelector>,
    /// One is not there any more.
    pub(super) lost: bool,
    /// One may be used by one pod alone, and is.
    pub(super) taken: bool,
    /// Claims that get their volume once a node is chosen.
    pub(super) unbound: Vec<String>,
    /// The node that was chosen for them before.
    pub(super) chosen: Option<String>,
}

/// Why a node will not do.
#[derive(Clone)]
pub(super) struct Refusal {
    pub(super) reasons: Vec<String>,
    /// Were other pods to go, it might.
    curable: bool,
}

fn never<T>(reason: &str) -> Result<T, Refusal> {
    Err(Refusal { reasons: vec![reason.to_owned()], curable: false })
}

fn not_now<T>(reason: &str) -> Result<T, Refusal> {
    Err(Refusal { reasons: vec![reason.to_owned()], curable: true })
}

/// `budgets` matter when there are less important pods.
pub(super) fn plan(pod: &Info, volumes: &Volumes, view: &View, budgets: &[Arc<PodDisruptionBudget>]) -> Plan {
    let total = view.places().count();
    if total == 0 {
        return Plan::No("no nodes available to schedule pods".to_owned());
    }
    if let Some(problem) = &volumes.problem {
        return Plan::No(format!("0/{total} nodes are available: {problem}. not found"));
    }
    // Who is expected must not stand in for who is there, where a pod wants company.
    let expected = view.expected_by(pod);
    let looks: Vec<Look<'_>> = expected.iter().chain([view]).map(|it| Look::at(pod, it)).collect();
    let (mut fits, mut refusals) = (Vec::new(), Vec::new());
    for place in view.places() {
        match looks.iter().try_for_each(|it| it.filter(pod, volumes, place.node.name())) {
            Ok(()) => fits.push(place),
            Err(refusal) => refusals.push((place.node.name(), refusal)),
        }
    }
    match best(pod, view, &fits) {
        Some(node) if volumes.unbound.is_empty() => Plan::Bind(node.to_owned()),
        Some(node) => Plan::Prepare { node: node.to_owned(), claims: volumes.unbound.clone() },
        None => otherwise(pod, volumes, expected.as_ref().unwrap_or(view), budgets, &refusals),
    }
}

/// What becomes of a pod for which there is no room.
fn otherwise(
    pod: &Info,
    volumes: &Volumes,
    view: &View,
    budgets: &[Arc<PodDisruptionBudget>],
    refusals: &[(&str, Refusal)],
) -> Plan {
    let why = told(refusals.iter().map(|(_, it)| it));
    let and = |preemption: &str| Plan::No(format!("{why} no new claims to deallocate, preemption: {preemption}"));
    if pod.spec().and_then(|it| it.preemption_policy.as_deref()) == Some("Never") {
        return and("not eligible due to preemptionPolicy=Never.");
    }
    // From a node that will not do any more nothing is to be waited for.
    let lost = refusals.iter().any(|(node, it)| preempt::nominated(pod) == Some(*node) && !it.curable);
    if !lost && preempt::is_under_way(pod, view) {
        return Plan::Wait;
    }
    let (mut candidates, mut hopeless) = (Vec::new(), Vec::new());
    for (node, refusal) in refusals {
        let found = match refusal.curable {
            true => preempt::on(node, pod, volumes, view, budgets),
            false => Err(vec!["Preemption is not helpful for scheduling".to_owned()]),
        };
        match found {
            Ok(it) => candidates.push(it),
            Err(reasons) => hopeless.push(Refusal { reasons, curable: false }),
        }
    }
    match preempt::least(candidates) {
        Some(it) => Plan::Preempt { node: it.node, victims: it.victims.into_iter().map(|it| it.0).collect(), why },
        None => and(&told(hopeless.iter())),
    }
}

/// `FitError` of upstream.
fn told<'a>(refusals: impl Iterator<Item = &'a Refusal>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut total = 0;
    for refusal in refusals {
        total += 1;
        for reason in &refusal.reasons {
            *counts.entry(reason).or_default() += 1;
        }
    }
    let mut all: Vec<String> = counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    all.sort();
    format!("0/{total} nodes are available: {}.", all.join(", "))
}

/// The nodes as they are, or would be, from where a pod stands.
pub(super) struct Look<'a> {
    view: &'a View,
    around: Around,
}

impl<'a> Look<'a> {
    pub(super) fn at(pod: &Info, view: &'a View) -> Self {
        Self { view, around: Around::of(pod, view) }
    }

    /// Whether the pod can go to this node.
    pub(super) fn filter(&self, pod: &Info, volumes: &Volumes, node: &str) -> Result<(), Refusal> {
        match self.view.place(node) {
            Some(place) => filter(pod, volumes, self.view, &self.around, place),
            None => never("node(s) were unschedulable"),
        }
    }
}

/// Whether the pod can go there, asked in the order of upstream's plugins.
fn filter(pod: &Info, volumes: &Volumes, view: &View, around: &Around, place: Place<'_>) -> Result<(), Refusal> {
    let node = place.node;
    if pod.needs().and_then(named).is_some_and(|names| !names.contains(node.name())) {
        return never("node(s) didn't satisfy plugin(s) [NodeAffinity]");
    }
    let cordon = Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
    if node.spec.as_ref().and_then(|it| it.unschedulable) == Some(true) && !tolerated(pod, &cordon) {
        return never("node(s) were unschedulable");
    }
    if !is_tolerant(pod, place) {
        return never("node(s) had untolerated taint(s)");
    }
    if !asks_for(pod, place) {
        return never("node(s) didn't match Pod's node affinity/selector");
    }
    let there = || place.spot.pods.values().flat_map(|it| &it.ports);
    if pod.ports.iter().any(|port| there().any(|it| it.conflicts(port))) {
        return not_now("node(s) didn't have free ports for the requested pod ports");
    }
    fit(pod, place)?;
    if volumes.taken {
        return not_now(
            "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod",
        );
    }
    if volumes.lost {
        return never("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
    }
    if !volumes.reach.iter().all(|it| selects(it, node)) {
        return never("node(s) didn't match PersistentVolume's node affinity");
    }
    if volumes.chosen.as_deref().is_some_and(|it| it != node.name()) {
        return never("node(s) didn't find available persistent volumes to bind");
    }
    spread(pod, around, place)?;
    company(pod, view, around, place)
}

pub(super) fn tolerated(pod: &Info, taint: &Taint) -> bool {
    tolerations(pod.tolerations(), taint).next().is_some()
}

fn is_tolerant(pod: &Info, place: Place<'_>) -> bool {
    bears(pod.tolerations(), place.taints(), &["NoSchedule", "NoExecute"])
}

fn asks_for(pod: &Info, place: Place<'_>) -> bool {
    pod.spec().is_none_or(|it| wants(it, place.node))
}

/// The names of nodes, when it is required by name.
fn named(selector: &NodeSelector) -> Option<BTreeSet<&str>> {
    let mut names = BTreeSet::new();
    for term in &selector.node_selector_terms {
        let field = term.match_fields.iter().flatten().find(|it| it.key == "metadata.name" && it.operator == "In")?;
        names.extend(field.values.iter().flatten().map(String::as_str));
    }
    (!selector.node_selector_terms.is_empty()).then_some(names)
}

fn fit(pod: &Info, place: Place<'_>) -> Result<(), Refusal> {
    let mut refusal = Refusal { reasons: Vec::new(), curable: true };
    let none = Amount::whole(0);
    let room = place.spot.allocatable.get("pods").and_then(|it| it.as_whole()).unwrap_or_default();
    if i64::try_from(place.spot.pods.len()).unwrap_or(i64::MAX) >= room {
        refusal.reasons.push("Too many pods".to_owned());
    }
    for (resource, wanted) in pod.requests.iter().filter(|it| it.1.sign() > 0) {
        if *wanted > place.left(resource) {
            refusal.reasons.push(format!("Insufficient {resource}"));
            refusal.curable &= *wanted <= place.spot.allocatable.get(resource).copied().unwrap_or(none);
        }
    }
    if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
}

/// How many pods, in each domain (the value of a topology's label).
type Domains = BTreeMap<String, i64>;

/// What is counted once for all nodes.
pub(super) struct Around {
    /// Of each constraint that must hold.
    spread: Vec<Domains>,
    /// Of each term: the pods that match all of them, and the pods that match it.
    near: Vec<Domains>,
    apart: Vec<Domains>,
    /// Topologies in which others keep this one away.
    kept_away: BTreeSet<(String, String)>,
}

impl Around {
    fn of(pod: &Info, view: &View) -> Self {
        let mut around = Self {
            spread: pod.spread.iter().map(|_| Domains::new()).collect(),
            near: pod.near.iter().map(|_| Domains::new()).collect(),
            apart: pod.apart.iter().map(|_| Domains::new()).collect(),
            kept_away: BTreeSet::new(),
        };
        around.count_spread(pod, view);
        if pod.near.is_empty() && pod.apart.is_empty() && !view.has_loners() {
            return around;
        }
        let note = |domains: &mut [Domains], terms: &[Term], place: Place<'_>, counts: &dyn Fn(&Term) -> bool| {
            for (domains, term) in domains.iter_mut().zip(terms) {
                if let Some(domain) = place.label(&term.topology).filter(|_| counts(term)) {
                    *domains.entry(domain.to_owned()).or_default() += 1;
                }
            }
        };
        for (place, other) in view.pods() {
            let matches = |term: &Term| term.matches(&other.pod, &view.namespaces);
            if !pod.near.is_empty() && pod.near.iter().all(matches) {
                note(&mut around.near, &pod.near, place, &|_| true);
            }
            note(&mut around.apart, &pod.apart, place, &matches);
            for term in other.apart.iter().filter(|it| it.matches(&pod.pod, &view.namespaces)) {
                let domain = place.label(&term.topology);
                around.kept_away.extend(domain.map(|it| (term.topology.clone(), it.to_owned())));
            }
        }
        around
    }

    fn count_spread(&mut self, pod: &Info, view: &View) {
        let has_all =
            |place: Place<'_>| pod.spread.iter().filter(|it| it.must).all(|it| place.label(&it.topology).is_some());
        for (domains, constraint) in self.spread.iter_mut().zip(&pod.spread).filter(|it| it.1.must) {
            for place in view.places().filter(|it| has_all(*it)) {
                let counts = (!constraint.honors_affinity || asks_for(pod, place))
                    && (!constraint.honors_taints || is_tolerant(pod, place));
                let Some(domain) = place.label(&constraint.topology).filter(|_| counts) else { continue };
                *domains.entry(domain.to_owned()).or_default() += like(pod, constraint.selector.as_ref(), place);
            }
        }
    }
}

/// How many pods of the pod's namespace there are selected, those that go not counted.
pub(super) fn like(pod: &Info, selector: Option<&crate::object::selector::Labels>, place: Place<'_>) -> i64 {
    let Some(selector) = selector else { return 0 };
    let counts = |other: &&std::sync::Arc<Info>| {
        other.pod.namespace() == pod.pod.namespace()
            && !other.pod.is_deleting()
            && selector.matches(|name| other.pod.label(name))
    };
    i64::try_from(place.spot.pods.values().filter(counts).count()).unwrap_or(i64::MAX)
}

fn spread(pod: &Info, around: &Around, place: Place<'_>) -> Result<(), Refusal> {
    for (domains, constraint) in around.spread.iter().zip(&pod.spread).filter(|it| it.1.must) {
        let Some(domain) = place.label(&constraint.topology) else {
            return never("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let few = constraint.min_domains.is_some_and(|it| i64::try_from(domains.len()).is_ok_and(|have| have < it));
        let least = if few { 0 } else { domains.values().copied().min().unwrap_or_default() };
        let own = constraint.selector.as_ref().is_some_and(|it| it.matches(|name| pod.pod.label(name)));
        let then = domains.get(domain).copied().unwrap_or_default() + i64::from(own);
        if then.saturating_sub(least) > constraint.max_skew {
            return not_now("node(s) didn't match pod topology spread constraints");
        }
    }
    Ok(())
}

fn company(pod: &Info, view: &View, around: &Around, place: Place<'_>) -> Result<(), Refusal> {
    let has = |domains: &Domains, term: &Term| place.label(&term.topology).is_some_and(|it| domains.contains_key(it));
    let near = || around.near.iter().zip(&pod.near);
    if !near().all(|(domains, term)| has(domains, term)) {
        // The first of a group that wants to be together may be anywhere.
        let first = around.near.iter().all(BTreeMap::is_empty)
            && pod.near.iter().all(|it| place.label(&it.topology).is_some() && it.matches(&pod.pod, &view.namespaces));
        if !first {
            return never("node(s) didn't match pod affinity rules");
        }
    }
    if around.apart.iter().zip(&pod.apart).any(|(domains, term)| has(domains, term)) {
        return not_now("node(s) didn't match pod anti-affinity rules");
    }
    if around.kept_away.iter().any(|(topology, domain)| place.label(topology) == Some(domain.as_str())) {
        return not_now("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    Ok(())
}
