//! The slices of a service: a hundred endpoints each, changed as little as possible.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::{Value, json};

use super::{Labels, OF_SERVICE, SLICES, ZONE, annotate, made, owned_by, plan};
use crate::http::json::put;
use crate::local::World;
use crate::local::reader::Kind;
use crate::local::workload::pods;
use crate::local::write::set;
use crate::object::status::Problem;
use crate::store::{Entry, Key};

pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in a slice, at most.
const MOST: usize = 100;

/// A slice that is there.
pub(super) struct Slice {
    entry: Arc<Entry>,
    value: Value,
}

impl Slice {
    fn list(&self, field: &str) -> &[Value] {
        self.value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn is_owned_by(&self, uid: &str) -> bool {
        let owners = self.value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        owners.into_iter().flatten().any(|it| it.get("uid").is_some_and(|it| it == uid))
    }
}

/// The slices of a service that one of the controllers made.
pub(super) fn of(world: &World, namespace: &str, service: &str, manager: &str) -> Vec<Slice> {
    let all = world.core.store.list(SLICES.0, SLICES.1, Some(namespace), None, None).entries;
    let is = |it: &Arc<Entry>| {
        let labels = it.labels();
        labels.get(OF_SERVICE).is_some_and(|it| it == service) && labels.get(MANAGED_BY).is_some_and(|it| it == manager)
    };
    all.into_iter().filter(is).map(|entry| Slice { value: entry.value(), entry }).collect()
}

/// What slices are to say: ports, and endpoints in order.
pub(super) type Group = (Vec<Value>, Vec<Value>);

/// What the slices of one owner have in common.
pub(super) struct Common<'a> {
    pub(super) namespace: &'a str,
    pub(super) service: &'a str,
    pub(super) labels: Labels,
    pub(super) owner: Value,
    /// Endpoints in a slice, at most.
    pub(super) most: usize,
}

/// Brings the slices of a service in line with its pods.
pub(super) async fn write(
    world: &World,
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    trigger: Option<Timestamp>,
) -> Result<(), Problem> {
    let mut labels = plan::labels(service);
    labels.insert(OF_SERVICE.into(), json!(service.name()));
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    let common = Common {
        namespace: service.namespace(),
        service: service.name(),
        labels,
        owner: owned_by(service),
        most: MOST,
    };
    let families = plan::families(service).into_iter().map(|v6| {
        let mut groups = groups(service, pods, v6, &node);
        if groups.is_empty() {
            groups.push((Vec::new(), Vec::new()));
        }
        (kind(v6), groups)
    });
    let existing = of(world, service.namespace(), service.name(), MANAGER);
    settle(world, &common, families.collect(), existing, |it| annotate(it, trigger)).await
}

pub(super) fn kind(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

/// Writes what is wanted of each address type into the slices that are there, makes those that are missing and discards
/// the others. `note` sets annotations.
pub(super) async fn settle(
    world: &World,
    common: &Common<'_>,
    wanted: Vec<(&str, Vec<Group>)>,
    mut existing: Vec<Slice>,
    note: impl Fn(&mut Value),
) -> Result<(), Problem> {
    let owner = common.owner.pointer("/0/uid").and_then(Value::as_str).unwrap_or_default();
    let note = &note;
    for (kind, groups) in wanted {
        let fits = |it: &Slice| it.value.get("addressType").is_some_and(|it| it == kind) && it.is_owned_by(owner);
        let (mine, others): (Vec<Slice>, Vec<Slice>) = existing.into_iter().partition(fits);
        existing = others;
        let are: Vec<(&[Value], &[Value])> = mine.iter().map(|it| (it.list("ports"), it.list("endpoints"))).collect();
        let slots = arrange(groups, &are, common.most);
        let kept: HashSet<usize> = slots.iter().filter_map(|it| it.slice).collect();
        let mine = &mine;
        try_join_all(slots.into_iter().map(|slot| async move {
            let Slot { slice, ports, endpoints } = slot;
            let slice = slice.and_then(|at| mine.get(at));
            if let Some(slice) = slice
                && slice.list("endpoints") == endpoints
                && slice.list("ports") == ports
                && slice.value.pointer("/metadata/labels").and_then(Value::as_object) == Some(&common.labels)
            {
                return Ok(());
            }
            let fill = |it: &mut Value| {
                set(it, &["metadata", "labels"], Value::Object(common.labels.clone()));
                note(it);
                set(it, &["ports"], Value::Array(ports));
                set(it, &["endpoints"], Value::Array(endpoints));
            };
            if let Some(slice) = slice {
                return world.replace(&slice.entry, "", fill).await;
            }
            let mut object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"generateName": format!("{}-", common.service), "namespace": common.namespace,
                    "ownerReferences": common.owner},
                "addressType": kind,
            });
            fill(&mut object);
            made(world.make(&Key::new(SLICES.0, SLICES.1, common.namespace, ""), object).await)
        }))
        .await?;
        let surplus = mine.iter().enumerate().filter(|it| !kept.contains(&it.0));
        try_join_all(surplus.map(|it| world.discard(&it.1.entry))).await?;
    }
    try_join_all(existing.iter().map(|it| world.discard(&it.entry))).await.map(drop)
}

/// The pods that have the same numbers for the service's ports, together.
fn groups(service: &Service, of: &[Arc<Pod>], v6: bool, node: &impl Fn(&str) -> Option<Arc<Node>>) -> Vec<Group> {
    let all = plan::publishes_all(service);
    let mut groups: Vec<Group> = Vec::new();
    for pod in of {
        let addresses = plan::addresses_of(pod, v6);
        let at = node(plan::node(pod));
        // Nobody is sent to a node that is not there.
        if addresses.is_empty() || (at.is_none() && !all) {
            continue;
        }
        let (serving, terminating) = (pods::is_ready(pod), pod.is_deleting());
        let ready = all || (serving && !terminating);
        let mut endpoint = json!({"addresses": addresses,
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
        if let Some(name) = plan::hostname(service, pod) {
            put(&mut endpoint, "hostname", json!(name));
        }
        put(&mut endpoint, "targetRef", plan::target(pod));
        if !plan::node(pod).is_empty() {
            put(&mut endpoint, "nodeName", json!(plan::node(pod)));
        }
        if let Some(zone) = at.as_ref().and_then(|it| it.label(ZONE)).filter(|it| !it.is_empty()) {
            put(&mut endpoint, "zone", json!(zone));
        }
        let ports = plan::ports(service).iter().filter_map(|port| {
            let number = plan::number(pod, port)?;
            let mut it = json!({"name": port.name.as_deref().unwrap_or_default(),
                "protocol": port.protocol.as_deref().unwrap_or("TCP"), "port": number});
            if let Some(protocol) = &port.app_protocol {
                put(&mut it, "appProtocol", json!(protocol));
            }
            Some(it)
        });
        let ports: Vec<Value> = ports.collect();
        match groups.iter_mut().find(|it| it.0 == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((ports, vec![endpoint])),
        }
    }
    groups
}

/// What a slice is to say: one that is there, by its place among those, or a new one.
#[derive(Debug, PartialEq)]
struct Slot {
    slice: Option<usize>,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
}

/// Distributes endpoints over slices so that few of those that are there change. Those that are in no slot are surplus.
fn arrange(groups: Vec<Group>, existing: &[(&[Value], &[Value])], most: usize) -> Vec<Slot> {
    let mut slots: Vec<Slot> = Vec::new();
    for (ports, wanted) in groups {
        let mut left: Vec<Option<Value>> = wanted.into_iter().map(Some).collect();
        let places: HashMap<(String, String), usize> =
            left.iter().enumerate().filter_map(|(at, it)| Some((identity(it.as_ref()?), at))).collect();
        let mut mine: Vec<Slot> = Vec::new();
        for (at, (_, endpoints)) in existing.iter().enumerate().filter(|it| it.1.0 == ports) {
            let stay = endpoints.iter().filter_map(|it| left.get_mut(*places.get(&identity(it))?)?.take());
            mine.push(Slot { slice: Some(at), ports: ports.clone(), endpoints: stay.take(most).collect() });
        }
        let mut left: Vec<Value> = left.into_iter().flatten().collect();
        let changes = |it: &Slot| it.slice.and_then(|at| existing.get(at)).is_none_or(|was| was.1 != it.endpoints);
        // What is written anyway is filled first.
        for slot in mine.iter_mut().filter(|it| changes(it)) {
            let room = most.saturating_sub(slot.endpoints.len()).min(left.len());
            slot.endpoints.extend(left.drain(..room));
        }
        while left.len() >= most.max(1) {
            let endpoints = left.drain(..most.max(1)).collect();
            mine.push(Slot { slice: None, ports: ports.clone(), endpoints });
        }
        if !left.is_empty() {
            let room = |it: &Slot| most.checked_sub(it.endpoints.len() + left.len());
            let fullest =
                mine.iter_mut().filter(|it| it.slice.is_some() && room(it).is_some()).min_by_key(|it| room(it));
            match fullest {
                Some(slot) => slot.endpoints.append(&mut left),
                None => mine.push(Slot { slice: None, ports: ports.clone(), endpoints: left }),
            }
        }
        let placeholder = ports.is_empty() && mine.iter().all(|it| it.endpoints.is_empty());
        if placeholder {
            mine.truncate(1);
            if mine.is_empty() {
                mine.push(Slot { slice: None, ports, endpoints: Vec::new() });
            }
        } else {
            mine.retain(|it| !it.endpoints.is_empty());
        }
        slots.append(&mut mine);
    }
    // Instead of making one and discarding another, the other is changed.
    let used: HashSet<usize> = slots.iter().filter_map(|it| it.slice).collect();
    let mut free = (0..existing.len()).filter(|it| !used.contains(it));
    for slot in slots.iter_mut().filter(|it| it.slice.is_none()) {
        slot.slice = free.next();
    }
    slots
}

/// By what an endpoint is known again.
fn identity(endpoint: &Value) -> (String, String) {
    let text = |path: &str| endpoint.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/addresses/0"), text("/targetRef/uid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> Value {
        json!({"addresses": [name], "conditions": {"ready": true}})
    }

    fn endpoints(names: &[&str]) -> Vec<Value> {
        names.iter().map(|it| endpoint(it)).collect()
    }

    fn shown(slots: &[Slot]) -> Vec<(Option<usize>, String)> {
        let names = |it: &Slot| it.endpoints.iter().map(|it| it["addresses"][0].as_str().unwrap()).collect::<String>();
        slots.iter().map(|it| (it.slice, names(it))).collect()
    }

    #[test]
    fn few_slices_change_when_pods_come_and_go() {
        let port = vec![json!({"port": 80})];
        let other = vec![json!({"port": 81})];
        type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], &'a [(Option<usize>, &'a str)]);
        let cases: [Case<'_>; 8] = [
            ("the first ones", &["a", "b"], &[], &[(None, "ab")]),
            ("more than fit", &["a", "b", "c", "d", "e"], &[], &[(None, "abc"), (None, "de")]),
            ("nothing new", &["a", "b"], &["ba"], &[(Some(0), "ba")]),
            ("one more, where there is room", &["a", "b", "c", "d"], &["abc", ""], &[(Some(0), "abc"), (Some(1), "d")]),
            ("the fullest that has room", &["a", "b", "c", "d"], &["a", "bc"], &[(Some(0), "a"), (Some(1), "bcd")]),
            ("one in place of another", &["a", "c"], &["ab"], &[(Some(0), "ac")]),
            ("a slice that is empty goes", &["a"], &["a", "bc"], &[(Some(0), "a")]),
            ("all are others", &["x"], &["abc"], &[(Some(0), "x")]),
        ];
        for (name, wanted, existing, want) in cases {
            let kept: Vec<Vec<Value>> =
                existing.iter().map(|it| it.chars().map(|it| endpoint(&it.to_string())).collect()).collect();
            let are: Vec<(&[Value], &[Value])> = kept.iter().map(|it| (port.as_slice(), it.as_slice())).collect();
            let slots = arrange(vec![(port.clone(), endpoints(wanted))], &are, 3);
            let want: Vec<_> = want.iter().map(|it| (it.0, it.1.to_owned())).collect();
            assert_eq!(shown(&slots), want, "{name}");
        }
        let kept = endpoints(&["a"]);
        let slots = arrange(vec![(other.clone(), endpoints(&["a"]))], &[(&port, &kept)], 3);
        assert_eq!(slots, [Slot { slice: Some(0), ports: other, endpoints: kept }], "other ports, in the same slice");
        let slots = arrange(vec![(vec![], vec![])], &[(&port, &endpoints(&["a"]))], 3);
        assert_eq!(slots, [Slot { slice: Some(0), ports: vec![], endpoints: vec![] }], "none: one that says so");
    }
}
