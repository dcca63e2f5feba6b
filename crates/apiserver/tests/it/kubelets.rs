use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use apiserver::{Data, Kubelets};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::{House, tokens};

const POD: &str = "/api/v1/namespaces/default/pods/p";
const SWITCH: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ("authorization", "Basic none-of-the-node's-business"),
];

/// The kubelets of a house: each connection to one comes out here, with the node's name.
pub(crate) struct Nodes(mpsc::UnboundedReceiver<(String, DuplexStream)>);

impl Nodes {
    pub(crate) async fn next(&mut self) -> (String, String, DuplexStream) {
        let (node, mut stream) = self.0.recv().await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(stream.read_u8().await.unwrap()));
        }
        (node, head, stream)
    }
}

pub(crate) async fn house() -> (House, Nodes) {
    let (sender, connections) = mpsc::unbounded_channel();
    let kubelets = Kubelets::new(move |node: &str| {
        let (ours, theirs) = tokio::io::duplex(4096);
        let known = node == "n";
        if known {
            sender.send((node.to_owned(), theirs)).unwrap();
        }
        let hangs = node == "hung";
        async move {
            match known {
                _ if hangs => std::future::pending().await,
                true => Ok(ours),
                false => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            }
        }
    });
    let house = House::with(Data::Memory, Some(kubelets.prefix("/kubelet"))).await;
    for node in ["n", "gone", "hung"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        house.post("/api/v1/nodes", &node).await.is(201);
    }
    for (name, node, containers) in [
        ("p", "n", vec!["c"]),
        ("two", "n", vec!["a", "b"]),
        ("unbound", "", vec!["c"]),
        ("lost", "gone", vec!["c"]),
        ("stuck", "hung", vec!["c"]),
        ("nowhere", "never-was", vec!["c"]),
    ] {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name, "image": "host"})).collect();
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "containers": containers, "initContainers": [{"name": "first", "image": "host"}]}});
        // Nobody gives one to the pod that shall have none.
        pod["spec"]["schedulerName"] = json!("nobody");
        if !node.is_empty() {
            pod["spec"]["nodeName"] = json!(node);
        }
        house.post("/api/v1/namespaces/default/pods", &pod).await.is(201);
    }
    (house, Nodes(connections))
}

pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

pub(crate) async fn text<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn a_log_flows_as_the_kubelet_writes_it_and_ends_with_its_reader() {
    let (house, mut nodes) = house().await;
    let path =
        format!("{POD}/log?follow=true&tailLines=5&timestamps=1&sinceTime=2026-01-02T03:04:05%2B01:00&previous=0");
    let asked = house.client.send(request(Method::GET, &path, &[]));
    let kubelet = async {
        let (node, head, mut stream) = nodes.next().await;
        assert_eq!(node, "n");
        let line = head.lines().next().unwrap();
        let path = "/kubelet/containerLogs/default/p/c?follow=true&timestamps=true&tailLines=5&sinceTime=2026-01-02T02%3A04%3A05Z";
        assert_eq!(line, format!("GET {path} HTTP/1.1"));
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n").await.unwrap();
        stream
    };
    let (response, mut stream) = tokio::join!(asked, kubelet);
    let response = response.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"text/plain".parse().unwrap())
    );
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one\n");
    stream.write_all(b"4\r\ntwo\n\r\n").await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two\n");
    drop(body);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the kubelet is not told that nobody listens");
}

#[tokio::test]
async fn a_log_is_passed_through_to_a_client_of_websocket() {
    let (house, mut nodes) = house().await;
    let kubelet = async {
        let (_, head, mut stream) = nodes.next().await;
        assert_eq!(head.lines().next().unwrap(), "GET /kubelet/containerLogs/default/p/c?follow=true HTTP/1.1");
        assert!(head.to_lowercase().contains("sec-websocket-protocol: v5.channel.k8s.io"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nframes";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let path = format!("{POD}/log?follow=true");
    let (response, _stream) = tokio::join!(house.client.send(request(Method::GET, &path, &SWITCH)), kubelet);
    let response = response.unwrap();
    assert_eq!(response.status().as_u16(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    assert_eq!(text::<6>(&mut stream).await, "frames");
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_writes_without_end_waits_for_its_reader() {
    let (house, mut nodes) = house().await;
    let path = format!("{POD}/log?follow=true");
    let kubelet = async {
        let (_, _, mut stream) = nodes.next().await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.unwrap();
        stream
    };
    let (response, mut stream) = tokio::join!(house.client.send(request(Method::GET, &path, &[])), kubelet);
    let _unread = response.unwrap();
    let mut taken = 0;
    let line = [b'x'; 4096];
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(200), stream.write(&line)).await {
        taken += written.unwrap();
        assert!(taken < 1 << 20, "{taken} bytes were taken that nobody has read");
    }
}

/// Bytes both ways after the switch, and the end of the one side told to the other.
async fn converse(client: &kube::Client, nodes: &mut Nodes, method: Method) {
    let path = format!("{POD}/exec?command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false");
    let line = format!(
        "{method} /kubelet/exec/default/p/c?input=1&output=1&command=sh&command=-c&command=echo+a%26b HTTP/1.1"
    );
    let kubelet = async {
        let (_, head, mut stream) = nodes.next().await;
        assert_eq!(head.lines().next().unwrap(), line);
        let lower = head.to_lowercase();
        assert!(lower.contains("upgrade: websocket") && lower.contains("sec-websocket-protocol: v5.channel.k8s.io"));
        assert!(!lower.contains("authorization"), "{head}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                      sec-websocket-protocol: v5.channel.k8s.io\r\n\r\nhello";
        stream.write_all(answer.as_bytes()).await.unwrap();
        assert_eq!(text::<4>(&mut stream).await, "\0\u{1}hi");
        stream.write_all(b"bye").await.unwrap();
        stream
    };
    let speaker = async {
        let response = client.send(request(method.clone(), &path, &SWITCH)).await.unwrap();
        assert_eq!(response.status().as_u16(), 101);
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        assert_eq!(text::<5>(&mut stream).await, "hello");
        stream.write_all(b"\0\x01hi").await.unwrap();
        assert_eq!(text::<3>(&mut stream).await, "bye");
        stream
    };
    let (mut kubelet, speaker) = tokio::join!(kubelet, speaker);
    drop(speaker);
    assert_eq!(kubelet.read(&mut [0]).await.unwrap(), 0, "the kubelet is not told that the client left");
}

#[tokio::test]
async fn a_session_is_passed_through_in_process_and_over_tls() {
    let (house, mut nodes) = house().await;
    converse(&house.client, &mut nodes, Method::GET).await;
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let client = crate::serving::client(&house.server.kubeconfig(at)).await;
    converse(&client, &mut nodes, Method::GET).await;
    converse(&client, &mut nodes, Method::POST).await;
}

#[tokio::test]
async fn a_browser_shows_its_token_as_a_protocol_and_the_node_does_not_see_it() {
    let (house, mut nodes) = house().await;
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    tokens::account(&house, "page").await;
    let token = tokens::token(&house, "page", &json!({})).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    house.post(&format!("{rbac}/roles"), &role).await.is(201);
    let binding = json!({"metadata": {"name": "b"}, "subjects": [{"kind": "ServiceAccount", "name": "page"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}});
    house.post(&format!("{rbac}/rolebindings"), &binding).await.is(201);
    let browser = tokens::stranger(&house, at, None).await;
    let hidden = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(&token));
    let offered = format!("{hidden}, v5.channel.k8s.io");
    let headers = [SWITCH[0], SWITCH[1], ("sec-websocket-protocol", offered.as_str())];
    let path = format!("{POD}/exec?command=sh");
    let kubelet = async {
        let (_, head, mut stream) = nodes.next().await;
        let protocols: Vec<&str> = head.lines().filter(|line| line.starts_with("sec-websocket-protocol")).collect();
        assert_eq!(protocols, ["sec-websocket-protocol: v5.channel.k8s.io"]);
        stream.write_all(b"HTTP/1.1 400 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        stream
    };
    let (response, _) = tokio::join!(browser.send(request(Method::GET, &path, &headers)), kubelet);
    assert_eq!(response.unwrap().status().as_u16(), 400, "the kubelet was not asked");
    let plain = browser.send(request(Method::GET, POD, &headers[2..])).await.unwrap();
    assert_eq!(plain.status().as_u16(), 403, "nobody's, where there is no WebSocket");
}

#[tokio::test]
async fn a_refusal_of_a_kubelet_reaches_the_client() {
    let (house, mut nodes) = house().await;
    let waiting = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
    let kubelet = async |nodes: &mut Nodes, status: &str, said: &str| {
        let (_, _, mut stream) = nodes.next().await;
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{said}", said.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let log = format!("{POD}/log");
    let (refused, _) = tokio::join!(house.get(&log), kubelet(&mut nodes, "400 Bad Request", waiting));
    assert_eq!((refused.code, refused.message().as_str()), (400, waiting));
    let (absent, _) = tokio::join!(house.get(&log), kubelet(&mut nodes, "404 Not Found", "no such log"));
    assert_eq!((absent.code, absent.json()["reason"].as_str()), (404, Some("NotFound")));
    let (failed, _) = tokio::join!(house.get(&log), kubelet(&mut nodes, "500 Oh", "disk"));
    assert_eq!((failed.code, failed.message().as_str()), (500, "Internal error occurred: disk"));
    let exec = format!("{POD}/exec?command=x");
    let asked = house.send(Method::POST, &exec, &SWITCH, "");
    let (refused, _) = tokio::join!(asked, kubelet(&mut nodes, "404 Not Found", "container not found"));
    assert_eq!((refused.code, refused.text.as_str()), (404, "container not found"));
    let asked = house.send(Method::POST, &exec, &SWITCH, "");
    let (odd, _) = tokio::join!(asked, kubelet(&mut nodes, "200 OK", ""));
    assert_eq!((odd.code, odd.message().as_str()), (500, "invalid upgrade response: status code 200"));
}

#[tokio::test]
async fn what_cannot_be_asked_of_a_pod_is_said_as_kubernetes_says_it() {
    let (house, _nodes) = house().await;
    let pods = "/api/v1/namespaces/default/pods";
    for (path, code, said) in [
        ("absent/log", 404, "pods \"absent\" not found"),
        ("two/log", 400, "a container name must be specified for pod two, choose one of: [first a b]"),
        ("two/log?container=x", 400, "container x is not valid for pod two"),
        (
            "p/log?tailLines=-1",
            422,
            "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "p/log?limitBytes=0",
            422,
            "PodLogOptions \"p\" is invalid: limitBytes: Invalid value: 0: must be greater than 0",
        ),
        (
            "p/log?sinceSeconds=0",
            422,
            "PodLogOptions \"p\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0",
        ),
        ("p/log?tailLines=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("nowhere/log", 404, "pods \"never-was\" not found"),
        ("lost/log", 500, "Get \"/kubelet/containerLogs/default/lost/c\": dial gone: connection refused"),
        ("p/exec", 400, "Upgrade request required"),
        ("unbound/exec", 400, "pod unbound does not have a host assigned"),
        ("two/attach", 400, "a container name must be specified for pod two, choose one of: [first a b]"),
        ("unbound/portforward", 400, "pod unbound does not have a host assigned"),
        ("absent/portforward", 404, "pods \"absent\" not found"),
    ] {
        let answer = house.get(&format!("{pods}/{path}")).await;
        assert_eq!((answer.code, answer.message().as_str()), (code, said), "{path}");
    }
    assert_eq!(house.get(&format!("{pods}/unbound/log")).await.code, 204);
    let lost = house.send(Method::GET, &format!("{pods}/lost/exec?command=x"), &SWITCH, "").await;
    assert_eq!((lost.code, lost.message().as_str()), (500, "error dialing backend: dial gone: connection refused"));
    let post = house.send(Method::POST, &format!("{pods}/p/log"), &[], "").await;
    assert_eq!(post.code, 405, "{}", post.text);
    let listed = house.get("/api/v1").await.json();
    let exec = listed["resources"].as_array().unwrap().iter().find(|it| it["name"] == "pods/exec").unwrap();
    assert_eq!((&exec["kind"], &exec["verbs"]), (&json!("PodExecOptions"), &json!(["create", "get"])));
    let one = [("impersonate-user", "jane")];
    let refused = house.send(Method::GET, &format!("{pods}/p/exec"), &one, "").await;
    let said = "pods \"p\" is forbidden: User \"jane\" cannot get resource \"pods/exec\" in API group \"\" in the namespace \"default\"";
    assert_eq!((refused.code, refused.message().as_str()), (403, said));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_answer_is_given_up() {
    let (house, mut nodes) = house().await;
    let stuck = house.get("/api/v1/namespaces/default/pods/stuck/log").await;
    let said = "Get \"/kubelet/containerLogs/default/stuck/c\": dial hung: i/o timeout";
    assert_eq!((stuck.code, stuck.message().as_str()), (500, said));
    let exec = format!("{POD}/exec?command=x");
    let (silent, _) = tokio::join!(house.send(Method::GET, &exec, &SWITCH, ""), nodes.next());
    assert_eq!((silent.code, silent.json()["reason"].as_str()), (504, Some("Timeout")));
}

#[tokio::test]
async fn there_are_only_so_many_sessions_at_once() {
    let (house, mut nodes) = house().await;
    let path = format!("{POD}/log?follow=true");
    let mut open: Vec<(Response<Body>, DuplexStream)> = Vec::new();
    for _ in 0..512 {
        let kubelet = async {
            let (_, _, mut stream) = nodes.next().await;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            stream
        };
        let (response, stream) = tokio::join!(house.client.send(request(Method::GET, &path, &[])), kubelet);
        open.push((response.unwrap(), stream));
    }
    let refused = house.get(&path).await;
    assert_eq!((refused.code, refused.headers["retry-after"].to_str().unwrap()), (429, "1"));
}
