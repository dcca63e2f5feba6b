//! Where a name leads: `ResourceLocation` of upstream's nodes, pods and services. No name leads to this machine itself, but for
//! what pods in its network declare, nor to what only a link's neighbours reach (where clouds keep their secrets).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kit::is_global_unicast;
use rand::Rng;
use serde_json::Value;

use super::Kind;
use crate::core::Core;
use crate::kubelets::Inside;
use crate::object::status::{Problem, What};
use crate::store::Key;

/// How long the name of a node may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(10);
/// Where kubelets listen that do not say.
const KUBELET: u16 = 10250;
/// Which of a node's addresses is taken, in this order.
const PREFERRED: [&str; 5] = ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"];

/// Where to ask.
#[derive(Debug)]
pub(super) enum Place {
    /// Where `host` (and, where one is said, the port) stands for.
    Network { tls: bool, host: String, at: At },
    /// This node's kubelet, by the way there is to it.
    Kubelet(String),
}

#[derive(Debug)]
pub(super) enum At {
    /// One of these.
    Addresses(Vec<SocketAddr>),
    /// What the pod's kubelet connects to.
    Inside(Inside),
}

/// `[scheme:]name[:port]`.
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let it = match parts.as_slice() {
            [name] => Self { scheme: "", name, port: "" },
            [name, port] => Self { scheme: "", name, port },
            [scheme, name, port] => Self { scheme, name, port },
            _ => return None,
        };
        (!it.name.is_empty() && matches!(it.scheme, "" | "http" | "https")).then_some(it)
    }

    fn is_tls(&self) -> bool {
        self.scheme == "https"
    }
}

pub(super) async fn of(core: &Core, kind: Kind, namespace: &str, id: &str) -> Result<Place, Problem> {
    let invalid = || Problem::bad_request(format!("invalid {} request {id:?}", kind.singular()));
    let parsed = Id::parse(id).ok_or_else(invalid)?;
    match kind {
        Kind::Pods => pod(core, namespace, &parsed).and_then(|it| it.ok_or_else(invalid)),
        Kind::Services => service(core, namespace, id, &parsed),
        Kind::Nodes => node(core, &parsed).await.and_then(|it| it.ok_or_else(invalid)),
    }
}

fn list<'a>(of: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> + Clone {
    of.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn port(of: &Value, field: &str) -> Option<u16> {
    of.get(field).and_then(Value::as_u64)?.try_into().ok()
}

/// The addresses of a pod, the first one first.
fn addresses(pod: &Value) -> Vec<&str> {
    let first = pod.pointer("/status/podIP").and_then(Value::as_str).unwrap_or_default();
    let all: Vec<&str> = list(pod, "/status/podIPs").map(|it| text(it, "ip")).collect();
    if first.is_empty() || all.first() == Some(&first) { all } else { vec![first] }
}

fn not_allowed() -> Problem {
    Problem::bad_request("address not allowed")
}

/// None where the port is none.
fn pod(core: &Core, namespace: &str, id: &Id<'_>) -> Result<Option<Place>, Problem> {
    let pod = core.store.get(&Key::new("", "pods", namespace, id.name));
    let pod = pod.ok_or_else(|| Problem::not_found(What::new("", "pods"), id.name))?.value();
    let mut ports = ports(&pod);
    let chosen = match id.port {
        "" => ports.next().and_then(|it| port(it, "containerPort")),
        said => match said.parse::<u16>().ok().or_else(|| {
            let named = ports.find(|it| text(it, "name") == said);
            named.and_then(|it| port(it, "containerPort"))
        }) {
            Some(port) => Some(port),
            None => return Ok(None),
        },
    };
    let addresses = addresses(&pod);
    let Some(address) = addresses.first() else {
        let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|it| !it.is_empty());
        if bound && core.kubelets.is_some() {
            // Its node runs here, where a sandbox has no network but its own loopback.
            let why = format!("pod {:?} has no address: only from inside it is reached what listens there", id.name);
            return Err(Problem::unavailable(&format!("error trying to reach service: {why}")));
        }
        return Err(not_allowed());
    };
    reached(core, &pod, address, chosen, id.is_tls()).ok_or_else(not_allowed).map(Some)
}

/// The port of a pod at one of its addresses. None where the address leads to somewhere else.
fn reached(core: &Core, pod: &Value, address: &str, port: Option<u16>, tls: bool) -> Option<Place> {
    let address: IpAddr = address.parse().ok()?;
    if is_global_unicast(address) {
        return Some(at(tls, address, port));
    }
    // Of the machine's loopback network: nobody listens there for all ports of the pod, or somebody else does.
    let number = port.unwrap_or(if tls { 443 } else { 80 });
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if !address.is_loopback() || node.is_empty() || core.kubelets.is_none() {
        return None;
    }
    // Inside of it is the machine itself: what else listens there is not the pod's.
    let is_host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    if is_host && !ports(pod).any(|it| self::port(it, "containerPort") == Some(number)) {
        return None;
    }
    let of = |field| pod.get("metadata").map(|it| text(it, field).to_owned()).unwrap_or_default();
    let (namespace, name, uid) = (of("namespace"), of("name"), of("uid"));
    let inside = Inside { node: node.to_owned(), namespace, pod: name, uid, port: number };
    Some(Place::Network { tls, host: said(address, port), at: At::Inside(inside) })
}

/// What the containers of a pod declare.
fn ports(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/spec/containers").flat_map(|it| list(it, "/ports"))
}

fn at(tls: bool, address: IpAddr, port: Option<u16>) -> Place {
    let to = SocketAddr::new(address, port.unwrap_or(if tls { 443 } else { 80 }));
    Place::Network { tls, host: said(address, port), at: At::Addresses(vec![to]) }
}

fn said(address: IpAddr, port: Option<u16>) -> String {
    match (port, address) {
        (Some(port), _) => SocketAddr::new(address, port).to_string(),
        (None, IpAddr::V4(address)) => address.to_string(),
        (None, IpAddr::V6(address)) => format!("[{address}]"),
    }
}

/// Addresses that serve the same ports.
struct Subset {
    /// With their names.
    ports: Vec<(String, u16)>,
    /// Each with the pod that it is said to be.
    ready: Vec<(String, Value)>,
}

/// One of the ready pods behind a service, at random. What is no pod's address is not asked: anybody may write Endpoints.
fn service(core: &Core, namespace: &str, id: &str, parsed: &Id<'_>) -> Result<Place, Problem> {
    let absent = || Problem::not_found(What::new("", "services"), parsed.name);
    let mut wanted = parsed.port.to_owned();
    if let Ok(number) = parsed.port.parse::<i64>() {
        let service = core.store.get(&Key::new("", "services", namespace, parsed.name)).ok_or_else(absent)?.value();
        let found = list(&service, "/spec/ports").find(|it| it.get("port").and_then(Value::as_i64) == Some(number));
        let Some(found) = found else {
            let why = format!("no service port {number} found for service {:?}", parsed.name);
            return Err(Problem::unavailable(&why));
        };
        wanted = text(found, "name").to_owned();
    }
    let subsets = subsets(core, namespace, parsed.name).ok_or_else(absent)?;
    let none = |name: &str| Problem::unavailable(&format!("no endpoints available for service {name:?}"));
    if subsets.is_empty() {
        return Err(none(parsed.name));
    }
    for subset in from_random(&subsets) {
        let ports = subset.ports.iter().filter(|(name, _)| *name == wanted).map(|(_, port)| *port);
        for port in ports {
            let asked = |(address, target): &(String, Value)| {
                let pod = whose(core, namespace, address, target)?;
                reached(core, &pod, address, Some(port), parsed.is_tls())
            };
            if let Some(place) = from_random(&subset.ready).find_map(asked) {
                return Ok(place);
            }
        }
    }
    Err(none(id))
}

/// All of them, from any of them on.
fn from_random<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let first = if all.is_empty() { 0 } else { rand::rng().random_range(0..all.len()) };
    all.iter().cycle().skip(first).take(all.len())
}

/// The pod that has this address, if it is the one that it is said to be.
fn whose(core: &Core, namespace: &str, address: &str, target: &Value) -> Option<Value> {
    let pod = core.store.get(&Key::new("", "pods", namespace, text(target, "name")))?.value();
    (text(target, "namespace") == namespace && addresses(&pod).contains(&address)).then_some(pod)
}

/// What the Endpoints of the service's name say, else the EndpointSlices: there may be nobody who makes the one of the other.
fn subsets(core: &Core, namespace: &str, name: &str) -> Option<Vec<Subset>> {
    let ports = |of: &Value| {
        let named = list(of, "/ports").filter_map(|it| Some((text(it, "name").to_owned(), port(it, "port")?)));
        named.collect::<Vec<_>>()
    };
    let target = |of: &Value| of.get("targetRef").cloned().unwrap_or_default();
    if let Some(endpoints) = core.store.get(&Key::new("", "endpoints", namespace, name)) {
        let endpoints = endpoints.value();
        let all = list(&endpoints, "/subsets").map(|subset| Subset {
            ports: ports(subset),
            ready: list(subset, "/addresses").map(|it| (text(it, "ip").to_owned(), target(it))).collect(),
        });
        return Some(all.collect());
    }
    let slices = core.store.list("discovery.k8s.io", "endpointslices", Some(namespace), None, None).entries;
    let ours = slices.iter().filter(|it| it.labels().get("kubernetes.io/service-name").is_some_and(|it| *it == *name));
    let all: Vec<Subset> = ours
        .map(|slice| {
            let slice = slice.value();
            let ready =
                list(&slice, "/endpoints").filter(|it| it.pointer("/conditions/ready") != Some(&Value::Bool(false)));
            let address = |it: &Value| Some((list(it, "/addresses").next()?.as_str()?.to_owned(), target(it)));
            Subset { ports: ports(&slice), ready: ready.filter_map(address).collect() }
        })
        .collect();
    (!all.is_empty()).then_some(all)
}

/// None where the port is none.
async fn node(core: &Core, id: &Id<'_>) -> Result<Option<Place>, Problem> {
    let node = core.store.get(&Key::new("", "nodes", "", id.name));
    let node = node.ok_or_else(|| Problem::not_found(What::new("", "nodes"), id.name))?.value();
    let kubelet = node.pointer("/status/daemonEndpoints/kubeletEndpoint").and_then(|it| port(it, "Port"));
    let kubelet = kubelet.filter(|it| *it > 0).unwrap_or(KUBELET);
    let wanted = match id.port {
        "" => kubelet,
        said => match said.parse() {
            Ok(port) => port,
            Err(_) => return Ok(None),
        },
    };
    let is_kubelet = wanted == kubelet;
    if is_kubelet && core.kubelets.is_some() {
        // No address leads there, and none could lead astray.
        return Ok(Some(Place::Kubelet(id.name.to_owned())));
    }
    let all = list(&node, "/status/addresses");
    let host = PREFERRED.iter().find_map(|kind| all.clone().find(|it| text(it, "type") == *kind));
    let Some(host) = host.map(|it| text(it, "address")) else {
        let known: Vec<String> = all.map(|it| format!("{{{} {}}}", text(it, "type"), text(it, "address"))).collect();
        let known = known.join(" ");
        return Err(Problem::unexplained(format!("no preferred addresses found; known addresses: [{known}]")));
    };
    let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, wanted))).await;
    let found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        _ => return Err(Problem::bad_request(format!("lookup {host}: no such host"))),
    };
    // What was looked at is what is asked: a name may lead elsewhere the next time.
    if found.is_empty() || !found.iter().all(|it| is_global_unicast(it.ip())) {
        return Err(not_allowed());
    }
    if is_kubelet {
        let why = format!("error trying to reach service: there is no way to the kubelet of the node {}", id.name);
        return Err(Problem::unavailable(&why));
    }
    let host = if host.contains(':') { format!("[{host}]:{wanted}") } else { format!("{host}:{wanted}") };
    Ok(Some(Place::Network { tls: id.is_tls(), host, at: At::Addresses(found) }))
}
