//! Which addresses and ports a service leads to.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::Labels;
use crate::http::json::put;
use crate::local::reader::Kind;
use crate::local::workload::pods;

/// Who made the Endpoints.
pub(super) const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Addresses that Endpoints have, at most.
const MOST: usize = 1000;

/// What services know of a pod: no other change of it matters.
#[derive(PartialEq)]
pub(super) struct Face<'a> {
    labels: Vec<(&'a String, &'a String)>,
    addresses: Vec<&'a str>,
    uid: &'a str,
    node: &'a str,
    hostname: Option<&'a str>,
    ready: Option<(bool, Option<jiff::Timestamp>)>,
    is_over: bool,
    is_deleting: bool,
}

impl<'a> Face<'a> {
    pub(super) fn of(pod: &'a Pod) -> Self {
        let spec = pod.spec.as_ref();
        let ready = pods::condition(pod, "Ready");
        Self {
            labels: pod.metadata.labels.iter().flatten().collect(),
            addresses: addresses(pod).collect(),
            uid: pod.uid(),
            node: node(pod),
            hostname: spec.and_then(|it| it.hostname.as_deref()),
            ready: ready.map(|it| (it.status == "True", it.last_transition_time.as_ref().map(|it| it.0))),
            is_over: pods::is_over(pod),
            is_deleting: pod.is_deleting(),
        }
    }
}

pub(super) fn node(pod: &Pod) -> &str {
    pods::node(pod).unwrap_or_default()
}

fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let all = status.and_then(|it| it.pod_ips.as_deref()).unwrap_or_default();
    let one = status.and_then(|it| it.pod_ip.as_deref()).filter(|_| all.is_empty());
    all.iter().map(|it| it.ip.as_str()).chain(one)
}

/// Whether it is somewhere, and something may still run there.
pub(super) fn has_place(pod: &Pod) -> bool {
    !pods::is_over(pod) && addresses(pod).next().is_some()
}

/// The pod's addresses of a family.
pub(super) fn addresses_of(pod: &Pod, v6: bool) -> Vec<String> {
    let all = addresses(pod).filter_map(|it| it.parse::<IpAddr>().ok());
    all.filter(|it| it.is_ipv6() == v6).map(|it| it.to_string()).collect()
}

pub(super) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|it| it.cluster_ip.as_deref() == Some("None"))
}

pub(super) fn publishes_all(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|it| it.publish_not_ready_addresses == Some(true))
}

pub(super) fn ports(service: &Service) -> &[ServicePort] {
    service.spec.as_ref().and_then(|it| it.ports.as_deref()).unwrap_or_default()
}

/// Whether a headless service of no ports leads to hosts.
pub(super) fn is_portless(service: &Service) -> bool {
    ports(service).is_empty() && is_headless(service)
}

/// The families of addresses that the service has, its first one first: whether it is IPv6.
pub(super) fn families(service: &Service) -> Vec<bool> {
    let all = service.spec.as_ref().and_then(|it| it.ip_families.as_deref()).unwrap_or_default();
    if all.is_empty() { vec![false] } else { all.iter().map(|it| it == "IPv6").collect() }
}

/// The hostname by which a headless service knows the pod.
pub(super) fn hostname<'a>(service: &Service, pod: &'a Pod) -> Option<&'a str> {
    let spec = pod.spec.as_ref()?;
    let within = spec.subdomain.as_deref() == Some(service.name());
    spec.hostname.as_deref().filter(|it| !it.is_empty() && within)
}

/// The number of a service's port on a pod.
pub(super) fn number(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        Some(IntOrString::Int(number)) => return Some(*number),
        None => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let protocol = |it: &Option<String>| it.clone().unwrap_or_else(|| "TCP".to_owned());
    let sidecars = spec.init_containers.iter().flatten().filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let find = |it: &Container| {
        let all = it.ports.iter().flatten();
        let found = |it: &&_| {
            let it: &k8s_openapi::api::core::v1::ContainerPort = it;
            it.name.as_ref() == Some(name) && protocol(&it.protocol) == protocol(&port.protocol)
        };
        all.into_iter().find(found).map(|it| it.container_port)
    };
    spec.containers.iter().find_map(find).or_else(|| sidecars.into_iter().find_map(find))
}

/// The labels that a service hands on.
pub(super) fn labels(service: &Service) -> Labels {
    let own = service.metadata.labels.iter().flatten();
    let mut all: Labels = own.map(|(key, value)| (key.clone(), json!(value))).collect();
    if is_headless(service) {
        all.insert(HEADLESS.into(), json!(""));
    } else {
        all.shift_remove(HEADLESS);
    }
    all
}

pub(super) fn target(pod: &Pod) -> Value {
    json!({"kind": "Pod", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid()})
}

/// An address, whether it is ready, and what identifies it: its number comes first, so that they sort by it.
type Address = (Option<IpAddr>, String, bool);

/// The subsets of a service's Endpoints: ports that lead to the same addresses together. Whether some were left out.
pub(super) fn subsets(service: &Service, of: &[Arc<Pod>]) -> (Vec<Value>, bool) {
    let v6 = families(service).first().copied().unwrap_or_default();
    let all = publishes_all(service);
    let mut shown: Vec<(Address, Value)> = Vec::new();
    let mut by_port: Vec<(Option<Value>, Vec<Address>)> = Vec::new();
    for pod in of.iter().filter(|it| all || !it.is_deleting()) {
        let Some(ip) = addresses_of(pod, v6).into_iter().next() else { continue };
        let id: Address = (ip.parse().ok(), pod.uid().to_owned(), all || pods::is_ready(pod));
        let mut numbers: Vec<Option<Value>> = Vec::new();
        if is_portless(service) {
            numbers.push(None);
        }
        for port in ports(service) {
            let Some(number) = number(pod, port) else { continue };
            let mut it = json!({"port": number, "protocol": port.protocol.as_deref().unwrap_or("TCP")});
            if let Some(name) = port.name.as_ref().filter(|it| !it.is_empty()) {
                put(&mut it, "name", json!(name));
            }
            if let Some(protocol) = &port.app_protocol {
                put(&mut it, "appProtocol", json!(protocol));
            }
            numbers.push(Some(it));
        }
        if numbers.is_empty() {
            continue;
        }
        let mut address = json!({"ip": ip, "targetRef": target(pod)});
        if let Some(name) = hostname(service, pod) {
            put(&mut address, "hostname", json!(name));
        }
        if !node(pod).is_empty() {
            put(&mut address, "nodeName", json!(node(pod)));
        }
        shown.push((id.clone(), address));
        for number in numbers {
            match by_port.iter_mut().find(|it| it.0 == number) {
                Some((_, ids)) => ids.push(id.clone()),
                None => by_port.push((number, vec![id.clone()])),
            }
        }
    }
    shown.sort_by(|a, b| a.0.cmp(&b.0));
    let mut grouped: Vec<(Vec<Address>, Vec<Value>)> = Vec::new();
    for (port, mut ids) in by_port {
        ids.sort();
        match grouped.iter_mut().find(|it| it.0 == ids) {
            Some((_, ports)) => ports.extend(port),
            None => grouped.push((ids, port.into_iter().collect())),
        }
    }
    let mut left = MOST;
    let total: usize = grouped.iter().map(|it| it.0.len()).sum();
    // Those that are ready come first where there is no room for all.
    let room = |ready: bool, left: &mut usize, ids: &[Address]| -> Vec<Value> {
        let wanted = ids.iter().filter(|it| it.2 == ready);
        let found = wanted.filter_map(|id| shown.binary_search_by(|it| it.0.cmp(id)).ok().and_then(|at| shown.get(at)));
        let taken: Vec<Value> = found.take(*left).map(|it| it.1.clone()).collect();
        *left -= taken.len();
        taken
    };
    let ready: Vec<Vec<Value>> = grouped.iter().map(|it| room(true, &mut left, &it.0)).collect();
    let subsets = grouped.into_iter().zip(ready).map(|((ids, ports), ready)| {
        let unready = room(false, &mut left, &ids);
        let mut subset = json!({});
        for (field, values) in [("addresses", ready), ("notReadyAddresses", unready), ("ports", ports)] {
            if !values.is_empty() {
                put(&mut subset, field, Value::Array(values));
            }
        }
        subset
    });
    (subsets.collect(), total > MOST)
}
