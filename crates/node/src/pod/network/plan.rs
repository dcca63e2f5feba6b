//! What is to be listened for and answered, from the services and endpoints that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use kube::ResourceExt;

use super::To;
use super::dns::Zone;

/// Most ports of services that the node listens for.
const LISTENERS: usize = 4096;
/// Labels that say that somebody else carries a service's connections.
const OTHERS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
const SERVICE: &str = "kubernetes.io/service-name";

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// ClusterIPs.
    pub addresses: BTreeSet<Ipv4Addr>,
    pub listeners: BTreeMap<Place, Target>,
    pub zone: Zone,
    /// Ports that are not listened for, because there are too many.
    pub left_out: usize,
}

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In the pods' network.
    Cluster(Protocol, SocketAddrV4),
    /// At the host's 127.0.0.1.
    Node(Protocol, u16),
}

impl Protocol {
    /// None: not carried.
    fn of(said: Option<&str>) -> Option<Self> {
        match said.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub endpoints: Vec<To>,
    /// How long a client keeps its endpoint after its last connection.
    pub affinity: Option<Duration>,
}

/// `api`: where the API server is. `within`: where in the pods' network somebody is who is known by another address.
pub(super) fn plan(
    services: &[&Service],
    slices: &[&EndpointSlice],
    api: SocketAddr,
    within: impl Fn(Ipv4Addr) -> Ipv4Addr,
) -> Plan {
    let mut by_service: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices.iter().filter(|it| it.address_type == "IPv4") {
        if let (Some(namespace), Some(service)) = (slice.namespace(), slice.labels().get(SERVICE)) {
            by_service.entry((namespace, service.clone())).or_default().push(slice);
        }
    }
    let mut plan = Plan::default();
    // The order decides what is left out.
    let mut services: Vec<_> = services.to_vec();
    services.sort_by_key(|it| (it.namespace(), it.name_any()));
    for service in services {
        let (Some(namespace), Some(spec)) = (service.namespace(), &service.spec) else { continue };
        let name = (namespace, service.name_any());
        let slices = by_service.get(&name).map(Vec::as_slice).unwrap_or_default();
        let cluster = spec.cluster_ip.as_deref().unwrap_or_default();
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        if kind == "ExternalName" {
            plan.zone.alias(&name, spec.external_name.as_deref().unwrap_or_default());
            continue;
        }
        if cluster == "None" {
            headless(&mut plan.zone, &name, slices, &within);
            continue;
        }
        let Ok(address) = cluster.parse::<Ipv4Addr>() else { continue };
        if address.is_loopback() || address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            continue;
        }
        let ports = spec.ports.as_deref().unwrap_or_default();
        plan.zone.service(&name, address, &named(ports));
        if service.labels().keys().any(|it| OTHERS.contains(&it.as_str())) {
            continue;
        }
        plan.addresses.insert(address);
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = spec.session_affinity_config.as_ref().and_then(|it| it.client_ip.as_ref());
            let seconds = config.and_then(|it| it.timeout_seconds).unwrap_or(10_800);
            Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        });
        let is_api = name.0 == "default" && name.1 == "kubernetes";
        for port in ports {
            let Some(protocol) = Protocol::of(port.protocol.as_deref()) else { continue };
            // Whatever its endpoints say: somebody else may have written them.
            let endpoints: Vec<To> = match (is_api, protocol) {
                (true, Protocol::Tcp) => vec![To::Api(api)],
                (true, Protocol::Udp) => Vec::new(),
                (false, _) => {
                    let all = endpoints(slices, port, protocol).into_iter();
                    all.map(|it| To::Pod(SocketAddrV4::new(within(*it.ip()), it.port()))).collect()
                }
            };
            // Nobody listens for what nobody answers: connections are refused at once, and datagrams as unreachable.
            if endpoints.is_empty() {
                continue;
            }
            let places = [
                u16::try_from(port.port).ok().map(|it| Place::Cluster(protocol, SocketAddrV4::new(address, it))),
                port.node_port
                    .and_then(|it| u16::try_from(it).ok())
                    .filter(|it| *it > 0)
                    .map(|it| Place::Node(protocol, it)),
            ];
            for place in places.into_iter().flatten() {
                if plan.listeners.len() >= LISTENERS {
                    plan.left_out += 1;
                    continue;
                }
                plan.listeners.insert(place, Target { endpoints: endpoints.clone(), affinity });
            }
        }
    }
    plan
}

/// Name, protocol in lower case, and number of the ports that have a name.
fn named(ports: &[ServicePort]) -> Vec<(&str, String, u16)> {
    let named = ports.iter().filter_map(|it| {
        let protocol = it.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((it.name.as_deref()?, protocol, u16::try_from(it.port).ok()?))
    });
    named.collect()
}

/// Where a port of a service leads: to what is ready; where nothing is, to what ends and still serves.
fn endpoints(slices: &[&EndpointSlice], port: &ServicePort, protocol: Protocol) -> Vec<SocketAddrV4> {
    let of = |wanted: fn(&Endpoint) -> bool| {
        let mut all = BTreeSet::new();
        for slice in slices {
            let is_it = |it: &&EndpointPort| {
                it.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                    && Protocol::of(it.protocol.as_deref()) == Some(protocol)
            };
            let number = slice.ports.iter().flatten().find(is_it).and_then(|it| it.port);
            let Some(number) = number.and_then(|it| u16::try_from(it).ok()) else { continue };
            for endpoint in slice.endpoints.iter().filter(|it| wanted(it)) {
                all.extend(address(endpoint).map(|it| SocketAddrV4::new(it, number)));
            }
        }
        all.into_iter().collect::<Vec<_>>()
    };
    let ready = of(is_ready);
    if !ready.is_empty() {
        return ready;
    }
    of(|it| {
        let conditions = it.conditions.as_ref();
        conditions.is_some_and(|it| it.serving.unwrap_or(true) && it.terminating.unwrap_or(false))
    })
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true)
}

/// The first one; the others of an endpoint mean the same.
fn address(endpoint: &Endpoint) -> Option<Ipv4Addr> {
    endpoint.addresses.first()?.parse().ok()
}

fn headless(
    zone: &mut Zone,
    name: &(String, String),
    slices: &[&EndpointSlice],
    within: impl Fn(Ipv4Addr) -> Ipv4Addr,
) {
    zone.headless(name);
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter_map(|it| {
            let protocol = it.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            let name = it.name.as_deref().filter(|it| !it.is_empty())?;
            Some((name, protocol, u16::try_from(it.port?).ok()?))
        });
        let ports: Vec<_> = ports.collect();
        for endpoint in slice.endpoints.iter().filter(|it| is_ready(it)) {
            if let Some(address) = address(endpoint).map(&within) {
                zone.endpoint(name, endpoint.hostname.as_deref(), address, &ports);
            }
        }
    }
}

/// Whose turn it is among the endpoints of one port.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: usize,
    /// Which endpoint a client had last, and when.
    last: BTreeMap<Ipv4Addr, (To, Duration)>,
}

/// Most clients whose endpoint is remembered, for each port of a service.
const CLIENTS: usize = 4096;

impl Turns {
    /// The endpoints to try, best first. `now`: since whenever, as long as it goes on.
    pub(super) fn take(&mut self, target: &Target, client: Ipv4Addr, now: Duration) -> Vec<To> {
        let mut order = target.endpoints.clone();
        if order.is_empty() {
            return order;
        }
        let by = self.next % order.len();
        order.rotate_left(by);
        self.next = self.next.wrapping_add(1);
        let Some(patience) = target.affinity else { return order };
        self.last.retain(|_, (to, at)| now.saturating_sub(*at) < patience && target.endpoints.contains(to));
        if let Some((kept, _)) = self.last.get(&client)
            && let Some(at) = order.iter().position(|it| it == kept)
        {
            order.swap(0, at);
        }
        order
    }

    /// Remembers who answered a client.
    pub(super) fn had(&mut self, client: Ipv4Addr, to: To, now: Duration) {
        if self.last.len() >= CLIENTS
            && !self.last.contains_key(&client)
            && let Some(oldest) = self.last.iter().min_by_key(|(_, (_, at))| *at).map(|(client, _)| *client)
        {
            self.last.remove(&oldest);
        }
        self.last.insert(client, (to, now));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::network::dns::Known;

    fn api() -> SocketAddr {
        "127.0.0.1:6443".parse().unwrap()
    }

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})).unwrap()
    }

    fn slice(service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": service, "namespace": "d", "labels": {SERVICE: service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    /// Listeners in words.
    fn said(plan: &Plan) -> Vec<String> {
        let said = plan.listeners.iter().map(|(place, target)| {
            let to = target.endpoints.iter().map(|it| match it {
                To::Pod(at) => at.to_string(),
                To::Api(at) => format!("api {at}"),
            });
            format!("{place} -> {}", to.collect::<Vec<_>>().join(", "))
        });
        said.collect()
    }

    #[test]
    fn each_port_of_a_service_leads_to_what_is_ready() {
        let http = json!([{"name": "http", "port": 80}]);
        let one = json!([{"name": "http", "port": 8080}]);
        let ready = |all: &[(&str, bool)]| {
            let all = all.iter().map(|(it, ready)| json!({"addresses": [it], "conditions": {"ready": ready}}));
            all.collect::<Value>()
        };
        let (two, none) = (ready(&[("10.1.0.1", true), ("10.1.0.2", false), ("10.1.0.3", true)]), json!([]));
        let ends =
            json!([{"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        let web = "10.96.0.9:80 -> 10.1.0.1:8080, 10.1.0.3:8080";
        for (spec, ports, endpoints, wanted) in [
            (json!({"clusterIP": "10.96.0.9", "ports": http}), &one, &two, vec![web]),
            (json!({"clusterIP": "10.96.0.9", "ports": http}), &one, &none, vec![]),
            (json!({"clusterIP": "10.96.0.9", "ports": http}), &one, &ends, vec!["10.96.0.9:80 -> 10.1.0.4:8080"]),
            (json!({"clusterIP": "10.96.0.9", "ports": http}), &json!([{"name": "other", "port": 1}]), &two, vec![]),
            (json!({"clusterIP": "None", "ports": http}), &one, &two, vec![]),
            (json!({"clusterIP": "127.0.0.1", "ports": http}), &one, &two, vec![]),
            (json!({"clusterIP": "fd00::1", "ports": http}), &one, &two, vec![]),
            (json!({"type": "ExternalName", "externalName": "example.org"}), &one, &two, vec![]),
            (
                json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80, "protocol": "UDP"}]}),
                &one,
                &two,
                vec![],
            ),
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.9",
                    "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
                &one,
                &two,
                vec![web, "127.0.0.1:30080 -> 10.1.0.1:8080, 10.1.0.3:8080"],
            ),
            // The same number, and each goes where its own does.
            (
                json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [
                    {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
                    {"name": "tcp", "port": 53, "nodePort": 30053},
                    {"name": "sctp", "port": 53, "protocol": "SCTP"}]}),
                &json!([{"name": "tcp", "port": 5300}, {"name": "udp", "port": 5353, "protocol": "UDP"},
                    {"name": "sctp", "port": 9, "protocol": "SCTP"}]),
                &ends,
                vec![
                    "10.96.0.9:53 -> 10.1.0.4:5300",
                    "10.96.0.9:53/UDP -> 10.1.0.4:5353",
                    "127.0.0.1:30053 -> 10.1.0.4:5300",
                    "127.0.0.1:30053/UDP -> 10.1.0.4:5353",
                ],
            ),
        ] {
            let (service, slice) = (service("s", spec), slice("s", ports.clone(), endpoints.clone()));
            let plan = plan(&[&service], &[&slice], api(), |it| it);
            assert_eq!(said(&plan), wanted, "{service:?}");
        }
    }

    #[test]
    fn only_the_api_server_is_outside() {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]});
        let mut kubernetes = service("kubernetes", spec);
        let ports = json!([{"name": "https", "port": 6443}]);
        let slice = slice("kubernetes", ports, json!([{"addresses": ["192.0.2.1"]}]));
        // Of another namespace: refused when somebody connects, for it is no pod's.
        let told = |service: &Service, slices: &[&EndpointSlice]| said(&plan(&[service], slices, api(), |it| it));
        assert_eq!(told(&kubernetes, &[&slice]), ["10.96.0.1:443 -> 192.0.2.1:6443"]);
        kubernetes.metadata.namespace = Some("default".into());
        let mut slice = slice;
        slice.metadata.namespace = Some("default".into());
        for slices in [&[][..], &[&slice][..]] {
            assert_eq!(told(&kubernetes, slices), ["10.96.0.1:443 -> api 127.0.0.1:6443"]);
        }
    }

    #[test]
    fn who_is_known_by_another_address_is_reached_within() {
        let within = |it: Ipv4Addr| match it.is_loopback() {
            true => Ipv4Addr::from_bits(it.to_bits() & 0xffff | 0x0a46_0000),
            false => it,
        };
        let ports = json!([{"name": "http", "port": 80}]);
        let endpoints = json!([{"addresses": ["127.64.1.2"], "hostname": "one"}]);
        let (web, bare) = (json!({"clusterIP": "10.96.0.9", "ports": ports}), json!({"clusterIP": "None"}));
        let services = [service("web", web), service("bare", bare)];
        let slices = [slice("web", ports.clone(), endpoints.clone()), slice("bare", ports.clone(), endpoints)];
        let plan = plan(&services.each_ref(), &slices.each_ref(), api(), within);
        assert_eq!(said(&plan), ["10.96.0.9:80 -> 10.70.1.2:80"]);
        let named = plan.zone.known("one.bare.d.svc.cluster.local");
        assert_eq!(named, Some(Known::Addresses(vec!["10.70.1.2".parse().unwrap()])));
    }

    #[test]
    fn endpoints_take_turns_and_a_client_may_keep_its_own() {
        let all = ["10.1.0.1:1", "10.1.0.2:1", "10.1.0.3:1"].map(|it| To::Pod(it.parse().unwrap()));
        let mut target = Target { endpoints: all.to_vec(), affinity: None };
        let mut turns = Turns::default();
        let [one, two] = ["10.9.0.1", "10.9.0.2"].map(|it| it.parse::<Ipv4Addr>().unwrap());
        let at = Duration::from_secs;
        let first: Vec<To> = (0..6).filter_map(|it| turns.take(&target, one, at(it)).first().copied()).collect();
        assert_eq!(first, [all, all].concat());
        target.affinity = Some(at(10));
        let mut take = |target: &Target, client, now| {
            let order = turns.take(target, client, at(now));
            turns.had(client, order[0], at(now));
            order[0]
        };
        let kept = take(&target, one, 0);
        assert!((1..5).all(|now| take(&target, one, now) == kept) && take(&target, two, 5) != kept);
        // Until it has stayed away too long, or what it had is gone.
        assert_eq!(take(&target, one, 13), kept);
        target.endpoints.retain(|it| *it != kept);
        assert_ne!(take(&target, one, 14), kept);
        assert!(turns.take(&Target { endpoints: vec![], affinity: None }, one, at(20)).is_empty());
    }
}
