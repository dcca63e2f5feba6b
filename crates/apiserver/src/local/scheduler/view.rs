//! The nodes and what is on them, kept by what is watched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::info::{Amounts, Info, add, amounts, none, subtract};
use crate::local::reader::Kind;
use crate::local::workload::pods;
use crate::object::quantity::Quantity as Amount;
use crate::store::Key;

#[derive(Clone, Default)]
pub(super) struct View {
    nodes: BTreeMap<String, Spot>,
    placed: HashMap<Key, (String, Arc<Info>)>,
    /// Placed here, and not yet seen to be.
    assumed: HashSet<Key>,
    /// How many of the placed want others to keep away.
    loners: usize,
    /// How many of the placed have each priority.
    priorities: BTreeMap<i32, usize>,
    /// Those for whom others go from a node.
    nominated: HashMap<Key, (String, Arc<Info>)>,
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// A node with its pods.
#[derive(Clone, Default)]
pub(super) struct Spot {
    /// None when there are pods of a node that is not there.
    node: Option<Arc<Node>>,
    pub(super) allocatable: Amounts,
    pub(super) requested: Amounts,
    pub(super) pods: HashMap<Key, Arc<Info>>,
}

/// A node that is there.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) node: &'a Node,
    pub(super) spot: &'a Spot,
}

impl<'a> Place<'a> {
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        self.node.label(name)
    }

    pub(super) fn taints(&self) -> &'a [Taint] {
        self.node.spec.as_ref().and_then(|it| it.taints.as_deref()).unwrap_or_default()
    }

    /// What is left of a resource.
    pub(super) fn left(&self, resource: &str) -> Amount {
        let of = |all: &Amounts| all.get(resource).copied().unwrap_or_else(none);
        of(&self.spot.allocatable).plus(of(&self.spot.requested).negated())
    }
}

/// What a node says that can matter to a pod that waits for one.
fn offer(node: &Node) -> impl PartialEq + '_ {
    let spec = node.spec.as_ref().map(|it| (it.unschedulable, &it.taints));
    (&node.metadata.labels, spec, node.status.as_ref().map(|it| &it.allocatable))
}

impl View {
    pub(super) fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.nodes.values().filter_map(|spot| Some(Place { node: spot.node.as_deref()?, spot }))
    }

    pub(super) fn place(&self, node: &str) -> Option<Place<'_>> {
        let spot = self.nodes.get(node)?;
        Some(Place { node: spot.node.as_deref()?, spot })
    }

    /// Every placed pod and where it is.
    pub(super) fn pods(&self) -> impl Iterator<Item = (Place<'_>, &Arc<Info>)> {
        self.places().flat_map(|place| place.spot.pods.values().map(move |it| (place, it)))
    }

    pub(super) fn has_loners(&self) -> bool {
        self.loners > 0
    }

    pub(super) fn placed(&self, key: &Key) -> Option<&Arc<Info>> {
        self.placed.get(key).map(|it| &it.1)
    }

    /// Whether there is anybody less important.
    pub(super) fn has_lesser(&self, than: &Info) -> bool {
        self.priorities.first_key_value().is_some_and(|(lowest, _)| *lowest < than.priority())
    }

    /// Others go from this node, so that it has room there: until it is placed, that room is its own.
    pub(super) fn nominate(&mut self, key: &Key, node: &str, pod: Arc<Info>) {
        self.nominated.insert(key.clone(), (node.to_owned(), pod));
    }

    /// True when it was nominated: that may help another one that waits.
    pub(super) fn dismiss(&mut self, key: &Key) -> bool {
        self.nominated.remove(key).is_some()
    }

    /// Those that were nominated for this node and are less important.
    pub(super) fn lesser_nominated(&self, node: &str, than: &Info) -> Vec<(Key, Arc<Pod>)> {
        let all = self.nominated.iter().filter(|(_, (at, it))| at == node && it.priority() < than.priority());
        all.map(|(key, (_, it))| (key.clone(), it.pod.clone())).collect()
    }

    /// What this pod will find once those that were nominated and are as important have come; None when there are none.
    pub(super) fn expected_by(&self, pod: &Info) -> Option<Self> {
        let key = pod.pod.key();
        let first = |(it, (_, info)): &(&Key, &(String, Arc<Info>))| **it != key && info.priority() >= pod.priority();
        let mut first = self.nominated.iter().filter(first).peekable();
        first.peek()?;
        let mut view = self.clone();
        for (key, (node, info)) in first {
            view.put(key, node, info.clone());
        }
        Some(view)
    }

    /// True when it may help a pod that waits.
    pub(super) fn set_node(&mut self, node: Arc<Node>) -> bool {
        let spot = self.nodes.entry(node.name().to_owned()).or_default();
        let news = spot.node.as_deref().is_none_or(|before| offer(before) != offer(&node));
        spot.allocatable = amounts(node.status.as_ref().and_then(|it| it.allocatable.as_ref()));
        spot.node = Some(node);
        news
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        if let Some(spot) = self.nodes.get_mut(name) {
            spot.node = None;
            if spot.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// Takes a pod as it is now. True when that may help another one that waits.
    pub(super) fn set_pod(&mut self, key: &Key, pod: &Arc<Pod>) -> bool {
        let node = pod.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_default();
        if pods::is_over(pod) {
            return self.remove_pod(key);
        }
        if node.is_empty() {
            return false;
        }
        let assumed = self.assumed.remove(key);
        let before = self.placed.get(key);
        let same = before.is_some_and(|(at, before)| *at == node && before.pod.spec == pod.spec);
        let labels = before.map(|it| it.1.pod.metadata.labels.clone());
        self.put(key, &node, Arc::new(Info::new(pod.clone())));
        // What was assumed is no news.
        !(assumed || same && labels == Some(pod.metadata.labels.clone()))
    }

    pub(super) fn assume(&mut self, key: &Key, node: &str, pod: Arc<Info>) {
        self.put(key, node, pod);
        self.assumed.insert(key.clone());
    }

    /// It was not to be.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.assumed.contains(key) {
            self.remove_pod(key);
        }
    }

    pub(super) fn is_assumed(&self, key: &Key) -> bool {
        self.assumed.contains(key)
    }

    pub(super) fn put(&mut self, key: &Key, node: &str, info: Arc<Info>) {
        self.remove_pod(key);
        let spot = self.nodes.entry(node.to_owned()).or_default();
        add(&mut spot.requested, &info.requests);
        spot.pods.insert(key.clone(), info.clone());
        self.loners += usize::from(!info.apart.is_empty());
        *self.priorities.entry(info.priority()).or_default() += 1;
        self.placed.insert(key.clone(), (node.to_owned(), info));
    }

    /// True when it was anywhere.
    pub(super) fn remove_pod(&mut self, key: &Key) -> bool {
        self.assumed.remove(key);
        let Some((node, info)) = self.placed.remove(key) else { return false };
        self.loners -= usize::from(!info.apart.is_empty());
        if let Some(count) = self.priorities.get_mut(&info.priority()) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&info.priority());
            }
        }
        if let Some(spot) = self.nodes.get_mut(&node) {
            spot.pods.remove(key);
            subtract(&mut spot.requested, &info.requests);
            if spot.pods.is_empty() && spot.node.is_none() {
                self.nodes.remove(&node);
            }
        }
        true
    }
}
