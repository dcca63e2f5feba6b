//! What is to be done for a DaemonSet, as `pkg/controller/daemon` of upstream decides it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::place::{GENERATION, HASH, generation, node_of, should_run};
use crate::local::events::Remark;
use crate::local::reader::Kind;
use crate::local::workload::pods::{available_from, is_available, is_over, is_ready, phase};
use crate::local::workload::share;

/// What is looked at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) spec: &'a DaemonSetSpec,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pods: &'a [Arc<Pod>],
    /// Of the present revision.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes that get a pod.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    pub(super) events: Vec<Remark>,
    /// Nodes on which a pod has failed that is deleted now.
    pub(super) failed: Vec<String>,
    pub(super) again: Option<Timestamp>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.create.is_empty() && self.delete.is_empty()
    }
}

/// The new one and the old one.
type Pair<'a> = (Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>);
type ByNode<'a> = BTreeMap<&'a str, Vec<&'a Arc<Pod>>>;

impl<'a> View<'a> {
    fn by_node(&self) -> ByNode<'a> {
        let mut all = ByNode::new();
        for pod in self.pods.iter().filter(|it| !(is_over(it) && it.is_deleting())) {
            if let Some(node) = node_of(pod) {
                all.entry(node).or_default().push(pod);
            }
        }
        all
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or_default(), self.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let by_generation = || {
            let label = pod.label(GENERATION).and_then(|it| it.parse::<i64>().ok());
            label.is_some() && label == generation(self.set)
        };
        (!self.hash.is_empty() && pod.label(HASH) == Some(self.hash)) || by_generation()
    }

    /// How many pods may be there besides, and how many nodes may be without, of so many.
    fn bounds(&self, desired: usize) -> (usize, usize) {
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.filter(|_| self.rolls()).and_then(|it| it.rolling_update.as_ref());
        let total = i32::try_from(desired).unwrap_or(i32::MAX);
        let of = |it: Option<_>| it.map_or(0, |it| usize::try_from(share(it, total, true)).unwrap_or_default());
        let surge = of(rolling.and_then(|it| it.max_surge.as_ref()));
        let unavailable = of(rolling.and_then(|it| it.max_unavailable.as_ref()));
        if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    fn rolls(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|it| it.type_.as_deref()) != Some("OnDelete")
    }

    /// `waits` tells until when a failed pod on a node is left alone.
    pub(super) fn plan(&self, waits: impl Fn(&str) -> Option<Timestamp>) -> Plan {
        let by_node = self.by_node();
        let mut plan = Plan::default();
        for node in self.nodes {
            let pods = by_node.get(node.name()).map(Vec::as_slice);
            self.manage(&mut plan, node, pods, &waits);
        }
        // Nobody else deletes what waits for a node that is not there.
        for (_, pods) in by_node.iter().filter(|it| self.nodes.iter().all(|node| node.name() != *it.0)) {
            let waiting = pods.iter().filter(|it| it.spec.as_ref().is_none_or(|it| it.node_name.is_none()));
            plan.delete.extend(waiting.filter(|it| !it.is_deleting()).map(|it| (*it).clone()));
        }
        // What is made and deleted now is looked at before more is.
        if plan.is_empty() && self.rolls() {
            self.roll(&mut plan, by_node);
        }
        plan
    }

    fn manage(
        &self,
        plan: &mut Plan,
        node: &Node,
        pods: Option<&[&Arc<Pod>]>,
        waits: &impl Fn(&str) -> Option<Timestamp>,
    ) {
        let name = node.name();
        let (runs, stays) = should_run(self.spec, node);
        let Some(pods) = pods else {
            if runs {
                plan.create.push(name.to_owned());
            }
            return;
        };
        let living = || pods.iter().copied().filter(|it| !it.is_deleting());
        if !stays {
            plan.delete.extend(living().cloned());
            return;
        }
        let mut running = Vec::new();
        for pod in living() {
            let what = format!("daemon pod {}/{} on node {name}", pod.namespace(), pod.name());
            match phase(pod) {
                "Failed" => {
                    if let Some(until) = waits(name).filter(|it| *it > self.now) {
                        plan.again = plan.again.into_iter().chain([until]).min();
                        continue;
                    }
                    let message = format!("Found failed {what}, will try to kill it");
                    plan.events.push(Remark::warning("FailedDaemonPod", message));
                    plan.failed.push(name.to_owned());
                    plan.delete.push(pod.clone());
                }
                "Succeeded" => {
                    let message = format!("Found succeeded {what}, will try to delete it");
                    plan.events.push(Remark::normal("SucceededDaemonPod", message));
                    plan.delete.push(pod.clone());
                }
                _ => running.push(pod),
            }
        }
        let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some());
        let made = |pod: &Pod| pod.metadata.creation_timestamp.clone();
        running.sort_by(|a, b| (!placed(a), made(a), a.name()).cmp(&(!placed(b), made(b), b.name())));
        if self.bounds(1).0 == 0 {
            plan.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        if running.is_empty() && runs {
            plan.create.push(name.to_owned());
        }
        // Two may be there, an old one and a new one, until the new one is available or the old one is not ready.
        let (mut new, mut old) = (None, None);
        if running.len() > 1 {
            for pod in running {
                let first = if pod.label(HASH) == Some(self.hash) { &mut new } else { &mut old };
                match first {
                    None => *first = Some(pod),
                    Some(_) => plan.delete.push(pod.clone()),
                }
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!is_ready(old) || self.is_available(new))
        {
            plan.delete.push(old.clone());
        }
    }

    /// The one new and the one old pod among those on a node; None when there are several of a kind.
    fn pair(&self, pods: &[&'a Arc<Pod>]) -> Option<Pair<'a>> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().copied().filter(|it| !it.is_deleting()) {
            let one = if self.is_updated(pod) { &mut new } else { &mut old };
            if one.replace(pod).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    fn roll(&self, plan: &mut Plan, mut by_node: ByNode<'a>) {
        let wanting: Vec<&str> =
            self.nodes.iter().filter(|it| should_run(self.spec, it).0).map(|it| it.name()).collect();
        for node in &wanting {
            by_node.entry(node).or_default();
        }
        let (surge, unavailable) = self.bounds(wanting.len());
        if surge == 0 {
            self.replace(plan, &by_node, unavailable);
        } else {
            self.surge(plan, &by_node, &wanting, surge);
        }
    }

    /// Deletes old pods: those that are of no use, and others as long as not too many nodes are without.
    fn replace(&self, plan: &mut Plan, by_node: &ByNode<'a>, most: usize) {
        let mut without: usize = 0;
        let mut candidates = Vec::new();
        for pods in by_node.values() {
            match self.pair(pods) {
                None | Some((None, None) | (Some(_), Some(_))) => without += 1,
                Some((Some(new), None)) => without += usize::from(!self.is_available(new)),
                Some((None, Some(old))) if !self.is_available(old) => {
                    plan.delete.push(old.clone());
                    without += 1;
                }
                Some((None, Some(old))) => candidates.push(old.clone()),
            }
        }
        plan.delete.extend(candidates.into_iter().take(most.saturating_sub(without)));
    }

    /// Makes new pods beside old ones, and deletes the old ones when the new ones are available.
    fn surge(&self, plan: &mut Plan, by_node: &ByNode<'a>, wanting: &[&str], most: usize) {
        let (mut surplus, mut available): (usize, usize) = (0, 0);
        let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
        for (node, pods) in by_node {
            let Some((new, old)) = self.pair(pods) else {
                surplus += 1;
                continue;
            };
            available += usize::from(old.or(new).is_some_and(|it| self.is_available(it)));
            let Some(old) = old else { continue };
            let runs = wanting.contains(node);
            match new {
                Some(new) if self.is_available(new) => plan.delete.push(old.clone()),
                Some(_) => surplus += 1,
                None if !self.is_available(old) && !runs => plan.delete.push(old.clone()),
                None if !self.is_available(old) => plan.create.push((*node).to_owned()),
                None if !runs => misplaced.push(old.clone()),
                None => candidates.push((*node).to_owned()),
            }
        }
        plan.delete.extend(misplaced.into_iter().take(available.saturating_sub(wanting.len())));
        plan.create.extend(candidates.into_iter().take(most.saturating_sub(surplus)));
    }

    pub(super) fn status(&self, collisions: Option<i32>) -> DaemonSetStatus {
        let by_node = self.by_node();
        let before = self.set.status.as_ref();
        let mut status = DaemonSetStatus {
            collision_count: collisions,
            conditions: before.and_then(|it| it.conditions.clone()),
            observed_generation: self.set.metadata.generation,
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        for node in self.nodes {
            let pods = by_node.get(node.name());
            if !should_run(self.spec, node).0 {
                status.number_misscheduled += i32::from(pods.is_some());
                continue;
            }
            status.desired_number_scheduled += 1;
            let placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|it| it.node_name.is_some());
            let made = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            let oldest = pods.into_iter().flatten().min_by_key(|it| (!placed(it), made(it), it.name()));
            let Some(pod) = oldest else { continue };
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(is_ready(pod));
            available += i32::from(self.is_available(pod));
            updated += i32::from(self.is_updated(pod));
        }
        let some = |it: i32| Some(it).filter(|it| *it != 0);
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        status
    }

    /// When the next pod becomes available by having been ready for long enough.
    pub(super) fn next_available(&self) -> Option<Timestamp> {
        let seconds = self.spec.min_ready_seconds.unwrap_or_default();
        self.pods.iter().filter_map(|it| available_from(it, seconds)).filter(|it| *it > self.now).min()
    }
}
