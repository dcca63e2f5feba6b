//! Real pods in a real network, where this machine lets us make one.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::host::Host;
use super::netlink::Netlink;
use super::services::Served;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;
use crate::pod::runtime::tests::{Place, container};
use crate::pod::{ContainerConfig, HostSpaces};

/// Says who has come and how much it was told, once it was told all.
const SERVER: &str = "
import socket
s = socket.create_server(('0.0.0.0', 8080))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('0.0.0.0', 8081))
print('listens', flush=True)
while True:
    c, f = s.accept()
    n = 0
    while (d := c.recv(65536)):
        n += len(d)
    if n == 1:
        f = u.recvfrom(100)[1]
    c.sendall(f'{f[0]} {n}'.encode())
    c.close()
";

/// What a place answers to so many bytes, or that it does not.
const CLIENT: &str = "
import socket, sys
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[4]))
    c.sendall(b'x' * int(sys.argv[3]))
    c.shutdown(socket.SHUT_WR)
    print(c.makefile().read(), end='')
except OSError as e:
    print(type(e).__name__, end='')
";

/// What a place answers by way of a proxy, after the proxy's own status.
const TUNNEL: &str = "
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
c.sendall(f'CONNECT {sys.argv[3]} HTTP/1.1\\r\\nconnection: close\\r\\n\\r\\n'.encode())
f = c.makefile('rb')
status = f.readline().split()[1].decode()
while f.readline().strip(): pass
if status == '200':
    c.sendall(b'x' * int(sys.argv[4]))
    c.shutdown(socket.SHUT_WR)
    status += ' ' + f.read().decode()
else:
    status += ' '
print(status, end='')
";

/// A datagram from somebody else, and one of its own.
const SPOOFER: &str = "
import socket, struct, sys, time
to = sys.argv[1]
r = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
udp = struct.pack('!HHHH', 9, 8081, 9, 0) + b'x'
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 29, 1, 0, 64, 17, 0, socket.inet_aton(sys.argv[2]), socket.inet_aton(to))
r.sendto(ip + udp, (to, 0))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.sendto(b'x', (to, 8081))
";

fn python(script: &str) -> ContainerConfig {
    let mut it = container("c", "");
    it.args = ["python3", "-c", script].map(Into::into).to_vec();
    it.capabilities.push("NET_RAW".into());
    it
}

async fn serve(place: &Place, uid: &str) {
    listens(place, uid, SERVER).await;
}

/// Starts what says that it listens.
async fn listens(place: &Place, uid: &str, server: &str) {
    place.start(uid, python(server)).await;
    let mut output = place.runtime.attach(uid, "c", false).unwrap().output;
    if place.printed(uid, "c", 0).await.is_empty() {
        output.recv().await.unwrap();
    }
}

async fn ask(place: &Place, uid: &str, host: impl std::fmt::Display, port: u16, bytes: usize) -> String {
    ask_within(60, place, uid, host, port, bytes).await
}

/// `seconds`: how long nothing may happen.
async fn ask_within(
    seconds: u32,
    place: &Place,
    uid: &str,
    host: impl std::fmt::Display,
    port: u16,
    bytes: usize,
) -> String {
    let script = format!("exec python3 - {host} {port} {bytes} {seconds} <<'END'\n{CLIENT}\nEND");
    place.exec(uid, "c", &script).await.1
}

fn service(name: &str, address: &str, port: u16) -> Service {
    let metadata = json!({"name": name, "namespace": "default"});
    let ports = json!([{"name": "http", "port": port, "targetPort": 8080}]);
    serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterIP": address, "ports": ports}})).unwrap()
}

fn slice(service: &str, address: Ipv4Addr) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {
            "name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}, "hostname": "first"}],
    }))
    .unwrap()
}

fn network(place: &Place, ways: Ways) -> Network {
    let host = Host::new(place.runtime.clone(), place.tasks.clone(), Limit::new(100, 100));
    Network { ways: Arc::new(ways), host: Arc::new(host) }
}

fn limits() -> Limits {
    Limits { connections: Limit::new(100, 100), flows: Limit::new(100, 100) }
}

async fn answer(mut stream: TcpStream, bytes: usize) -> String {
    let mut said = String::new();
    stream.write_all(&vec![b'x'; bytes]).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_services_and_names_and_nothing_of_the_host() {
    let place = Place::open().await;
    // What others of this machine do at the same time, has other names.
    let seed = place.runtime.dir("").to_string_lossy().into_owned();
    let switch = match Switch::open(place.runtime.clone(), &seed).await {
        Ok(switch) => switch,
        Err(error) => {
            eprintln!("skipped: this machine makes no networks for pods: {}", kit::chain(&error));
            return place.close().await;
        }
    };
    let network = network(&place, Ways { switch: Some(switch.clone()), loopback: None });
    let gateway = switch.address();
    let names = network.serve_names(&place.tasks).await.unwrap();
    let resolv = format!("nameserver {gateway}\nsearch default.svc.cluster.local\noptions ndots:5 attempts:1\n");
    let mut addresses = Vec::new();
    for uid in ["a", "b"] {
        place.pod(uid, |it| it.resolv.clone_from(&resolv)).await;
        let IpAddr::V4(address) = network.join(uid, &[]).await.unwrap() else { panic!() };
        assert_eq!(network.join(uid, &[]).await.unwrap(), IpAddr::V4(address));
        serve(&place, uid).await;
        addresses.push(address);
    }
    let (a, b) = (addresses[0], addresses[1]);
    assert_ne!(a, b);
    assert!(place.runtime.list().iter().all(|it| it.config.uid != SWITCH));

    // The API server of this story is on the host's loopback.
    let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = api.local_addr().unwrap();
    place.tasks.tenant("api", async move {
        let (mut stream, _) = api.accept().await.unwrap();
        let _ = stream.write_all(b"api").await;
        let _ = stream.shutdown().await;
    });
    let services = [
        service("web", "10.96.7.7", 80),
        service("kubernetes", "10.96.0.1", 443),
        service("none", "10.96.7.8", 80),
        // Not even a service may be at a pod's address.
        service("thief", &b.to_string(), 8080),
    ];
    let mut bare = slice("bare", a);
    bare.endpoints[0].hostname = Some("first".into());
    let headless = service("bare", "None", 80);
    let slices = [slice("web", a), slice("thief", a), bare];
    let all: Vec<_> = services.iter().chain([&headless]).collect();
    let mut served = Served::new(network.clone(), kit::Clock::system(), place.tasks.clone(), limits(), names.clone());
    served.apply(plan::plan(&all, &slices.iter().collect::<Vec<_>>(), at, |it| it)).await.unwrap();

    for (host, port, bytes, said) in [
        (a.to_string(), 8080, 300_000, format!("{b} 300000")),
        ("10.96.7.7".into(), 80, 300_000, format!("{gateway} 300000")),
        ("web".into(), 80, 2, format!("{gateway} 2")),
        ("first.bare.default.svc.cluster.local".into(), 8080, 3, format!("{b} 3")),
        ("kubernetes".into(), 443, 0, "api".into()),
        (b.to_string(), 8080, 4, format!("{b} 4")),
        // Nothing ready; no such port; no such name; no name of ours.
        ("10.96.7.8".into(), 80, 0, "ConnectionRefusedError".into()),
        ("10.96.7.7".into(), 81, 0, "ConnectionRefusedError".into()),
        ("nobody".into(), 80, 0, "gaierror".into()),
        ("example.org".into(), 80, 0, "gaierror".into()),
    ] {
        assert_eq!(ask(&place, "b", &host, port, bytes).await, said, "{host}:{port}");
    }

    // By the proxy, whatever a program knows of exceptions: services as the pod names them, and of the host what is allowed.
    let host_server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = host_server.local_addr().unwrap().port();
    let greet = |mut stream: TcpStream, _, _| async move {
        let _ = stream.write_all(b"host").await;
        let _ = stream.shutdown().await;
    };
    let (stop, limit) = (place.tasks.shutdown().clone(), Limit::new(8, 8));
    place.tasks.tenant("host", forward::accept(host_server, stop, place.tasks.clone(), limit, greet));
    let policy = Egress::new(["deny".to_owned(), format!("host.insula.internal:{port}")]).unwrap();
    egress::start(switch.clone(), names, place.runtime.clone(), policy, &place.tasks).await.unwrap();
    let by_proxy = egress::variables(&switch);
    assert_eq!(by_proxy[1].0, "HTTPS_PROXY");
    let proxy = by_proxy[1].1.strip_prefix("http://").unwrap().replace(':', " ");
    for (to, bytes, said) in [
        (format!("host.insula.internal:{port}"), 0, "200 host".to_owned()),
        ("web:80".into(), 5, format!("200 {gateway} 5")),
        ("web.default:80".into(), 5, format!("200 {gateway} 5")),
        ("10.96.7.7:80".into(), 5, format!("200 {gateway} 5")),
        (format!("{a}:8080"), 5, format!("200 {gateway} 5")),
        (format!("127.0.0.1:{port}"), 0, "403 ".into()),
        ("example.org:80".into(), 0, "403 ".into()),
        ("nobody.default.svc:80".into(), 0, "502 ".into()),
        // The proxy is no way to what else listens where it does.
        (format!("{gateway}:53"), 0, "403 ".into()),
    ] {
        let script = format!("exec python3 - {proxy} {to} {bytes} <<'END'\n{TUNNEL}\nEND");
        assert_eq!(place.exec("b", "c", &script).await.1, said, "{to}");
    }

    // What listens at all addresses of the host, a pod reaches at none of them.
    let open = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = open.local_addr().unwrap().port();
    let host = Netlink::open().unwrap();
    let mut theirs: Vec<_> = host.addresses().unwrap().into_iter().map(|(_, it)| it.address).collect();
    theirs.push(gateway);
    // No service has it.
    theirs.push("10.96.7.9".parse().unwrap());
    for address in theirs {
        let said = ask_within(2, &place, "b", address, port, 0).await;
        assert!(["OSError", "TimeoutError", "ConnectionRefusedError"].contains(&said.as_str()), "{address}: {said}");
    }
    // The host reaches pods, and they answer.
    let leg = switch.leg().to_owned();
    if host.index(&leg).unwrap().is_some() {
        let reached = tokio::time::timeout(Duration::from_secs(30), TcpStream::connect((a, 8080))).await.unwrap();
        assert!(answer(reached.unwrap(), 100_000).await.ends_with(" 100000"));
    }

    // A datagram that pretends to be somebody else's does not arrive: the first that does is true.
    let spoof = format!("exec python3 - {a} {gateway} <<'END'\n{SPOOFER}\nEND");
    let (code, said) = place.exec("b", "c", &spoof).await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert_eq!(ask(&place, "b", a, 8080, 1).await, format!("{b} 1"));

    // Another node takes over what there is; who has left is not reached, and comes back to its address.
    let next = Switch::open(place.runtime.clone(), &seed).await.unwrap();
    assert_eq!((next.address(), next.join("a").await.unwrap()), (gateway, a));
    assert_eq!(next.owned().await.unwrap().len(), 3);
    next.leave("b").await;
    assert_eq!(ask(&place, "b", a, 8080, 0).await, "OSError");
    assert_eq!(next.join("b").await.unwrap(), b);
    assert_eq!(ask(&place, "b", a, 8080, 2).await, format!("{b} 2"));
    // A service that is gone is not served.
    served.apply(plan::plan(&[], &[], at, |it| it)).await.unwrap();
    assert!(!ask_within(2, &place, "b", "10.96.7.7", 80, 0).await.starts_with(&gateway.to_string()));
    assert_eq!(next.owned().await.unwrap(), Vec::<Ipv4Addr>::new());
    next.close().await;
    assert_eq!(host.index(&leg).unwrap(), None);
    place.close().await;
}

/// Answers each datagram with who it is, who has asked and how much.
const ECHO: &str = "
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('0.0.0.0', 5353))
print('listens', flush=True)
while True:
    d, f = u.recvfrom(65536)
    u.sendto(f'{socket.gethostname()} {f[0]} {len(d)}'.encode(), f)
";

/// Asks from one port, one after the other; what was answered, and from where.
const ASKER: &str = "
import socket, sys
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(('', int(sys.argv[1])))
u.settimeout(60)
to = (sys.argv[2], int(sys.argv[3]))
for n in sys.argv[4:]:
    try:
        if n == '0': u.connect(to)
        u.sendto(b'x' * int(n), to) if n != '0' else u.send(b'')
        d, f = u.recvfrom(100)
        print(d.decode(), '%s:%s' % f, end=';')
    except OSError as e:
        print(type(e).__name__, end=';')
";

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_to_a_services_endpoint_while_that_is_one_and_answers_come_from_the_service() {
    let place = Place::open().await;
    let seed = place.runtime.dir("").to_string_lossy().into_owned();
    let (switch, loopback) = match Switch::open(place.runtime.clone(), &seed).await {
        Ok(switch) => (Some(switch), None),
        Err(error) => {
            eprintln!("only at a port of the host: this machine makes no networks for pods: {}", kit::chain(&error));
            (None, Some(Loopback::new(place.runtime.clone(), seed, place.tasks.clone(), Limit::new(100, 100))))
        }
    };
    let network = network(&place, Ways { switch: switch.clone(), loopback });
    let mut pods = BTreeMap::new();
    for uid in ["a", "b"] {
        place.pod(uid, |it| it.hostname = uid.into()).await;
        let IpAddr::V4(address) = network.join(uid, &[]).await.unwrap() else { panic!() };
        listens(&place, uid, ECHO).await;
        pods.insert(uid, address);
    }
    let both = |node_port: u16| -> Service {
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.7.7", "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": node_port},
            {"name": "tcp", "port": 53, "targetPort": 8080}]});
        serde_json::from_value(json!({"metadata": {"name": "dns", "namespace": "default"}, "spec": spec})).unwrap()
    };
    let ends = |uids: &[&str]| {
        let mut slice = slice("dns", pods["a"]);
        slice.ports = serde_json::from_value(json!([{"name": "udp", "port": 5353, "protocol": "UDP"}])).unwrap();
        let all = uids.iter().map(|it| json!({"addresses": [pods[it].to_string()]}));
        slice.endpoints = serde_json::from_value(all.collect()).unwrap();
        slice
    };
    let names = dns::Names::default();
    let mut served = Served::new(network.clone(), kit::Clock::system(), place.tasks.clone(), limits(), names);
    let api: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let plan = |port: u16, uids: &[&str]| plan::plan(&[&both(port)], &[&ends(uids)], api, |it| it);
    // One that nobody else has.
    let port = loop {
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        if served.apply(plan(port, &["a", "b"])).await.is_ok() {
            break port;
        }
    };
    let host = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    host.connect(("127.0.0.1", port)).await.unwrap();
    let ask = async || {
        host.send(b"host").await.unwrap();
        let mut said = [0; 100];
        let got = tokio::time::timeout(Duration::from_secs(60), host.recv(&mut said)).await.unwrap().unwrap();
        String::from_utf8_lossy(&said[..got]).split(' ').next().unwrap().to_owned()
    };
    let first = ask().await;
    assert_eq!(ask().await, first);
    let other = if first == "a" { "b" } else { "a" };
    served.apply(plan(port, &[other])).await.unwrap();
    assert_eq!(ask().await, other);

    if let Some(switch) = &switch {
        let gateway = switch.address();
        let ask = async |from: u16, port: u16, sizes: &str| {
            let script = format!("exec python3 - {from} 10.96.7.7 {port} {sizes} <<'END'\n{ASKER}\nEND");
            place.exec("b", "c", &script).await.1
        };
        served.apply(plan(port, &["a"])).await.unwrap();
        // Also what is larger than a packet, and oneself.
        let said = format!("a {gateway} 1 10.96.7.7:53;a {gateway} 40000 10.96.7.7:53;");
        assert_eq!(ask(7000, 53, "1 40000").await, said);
        served.apply(plan(port, &["b"])).await.unwrap();
        assert_eq!(ask(7000, 53, "2").await, format!("b {gateway} 2 10.96.7.7:53;"));
        // No such port; nobody there.
        assert_eq!(ask(7000, 54, "0").await, "ConnectionRefusedError;");
        served.apply(plan(port, &[])).await.unwrap();
        let gone = async { while ask(7000, 53, "0").await != "ConnectionRefusedError;" {} };
        tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
        // What another test forks right now has the socket, too, until it executes.
        let again = async {
            while served.apply(plan(port, &["a"])).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), again).await.unwrap();
        assert_eq!(ask(7000, 53, "3").await, format!("a {gateway} 3 10.96.7.7:53;"));
        switch.close().await;
    }
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_the_host_reaches_the_ports_that_a_pod_declares() {
    let place = Place::open().await;
    let limit = Limit::new(100, 100);
    let seed = place.runtime.dir("").to_string_lossy().into_owned();
    let loopback = Loopback::new(place.runtime.clone(), seed, place.tasks.clone(), limit);
    let network = network(&place, Ways { switch: None, loopback: Some(loopback) });
    let ports = [8080, 8080];
    let mut addresses = Vec::new();
    for uid in ["a", "b"] {
        place.pod(uid, |_| {}).await;
        let IpAddr::V4(address) = network.join(uid, &ports).await.unwrap() else { panic!() };
        assert_eq!(network.join(uid, &ports).await.unwrap(), IpAddr::V4(address));
        serve(&place, uid).await;
        addresses.push(address);
    }
    assert_ne!(addresses[0], addresses[1]);
    for address in &addresses {
        let reached = TcpStream::connect((*address, 8080)).await.unwrap();
        assert_eq!(answer(reached, 300_000).await, "127.0.0.1 300000");
    }
    // At a port of the host, which is one pod's alone.
    let id = std::process::id();
    let at = SocketAddr::from(([127, 78, (id >> 8) as u8, id as u8], 8080));
    let host_ports = [HostPort { at, to: 8080 }];
    place.runtime.set_address("a", addresses[0].into()).unwrap();
    for _ in 0..2 {
        network.listen_for("a", &host_ports).await.unwrap();
    }
    assert_eq!(answer(TcpStream::connect(at).await.unwrap(), 300_000).await, "127.0.0.1 300000");
    let taken = kit::chain(&network.listen_for("b", &host_ports).await.unwrap_err());
    assert!(taken.contains(&format!("listen at the host port {at}")), "{taken}");
    let to = To::Pod(SocketAddrV4::new(addresses[0], 8080));
    assert_eq!(answer(network.connect(to).await.unwrap(), 2).await, "127.0.0.1 2");
    network.leave("a").await;
    network.leave("a").await;
    assert!(network.connect(to).await.is_err());
    // What another test forks right now has the listener, too, until it executes.
    let closed = async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), closed).await.unwrap();
    assert_eq!(network.dns(), None);

    // What pods in the host's network declare are endpoints, and nothing else that listens there.
    let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let theirs = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let to = |it: &TcpListener| To::Pod(SocketAddrV4::new(Ipv4Addr::LOCALHOST, it.local_addr().unwrap().port()));
    let host = HostSpaces { network: true, users: place.runtime.ids().is_root(), ..HostSpaces::default() };
    let ports = vec![ours.local_addr().unwrap().port()];
    assert!(network.connect(to(&ours)).await.is_err());
    place.pod("c", |it| (it.host, it.ports) = (host, ports)).await;
    network.connect(to(&ours)).await.unwrap();
    assert!(network.connect(to(&theirs)).await.is_err());
    place.close().await;
}
