use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{Method, Request};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;

use crate::echo::{Echo, PAGE, own_address};
use crate::kubelets::{Nodes, house, request, text};
use crate::{Answer, House, send};

const NODE: &str = "/api/v1/nodes/n/proxy";
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

async fn over_tls(house: &House) -> kube::Client {
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    crate::serving::client(&house.server.kubeconfig(at)).await
}

/// Answers the next request of a node so.
async fn says(nodes: &mut Nodes, answer: &[u8]) -> (String, DuplexStream) {
    let (node, head, mut stream) = nodes.next().await;
    assert_eq!(node, "n");
    stream.write_all(answer).await.unwrap();
    (head, stream)
}

#[tokio::test]
async fn a_request_is_passed_on_without_what_says_who_asks_and_its_answer_without_who_may_read_it() {
    let (house, mut nodes) = house().await;
    let client = over_tls(&house).await;
    let headers = [
        ("x-remote-user", "root"),
        ("impersonate-user", "system:admin"),
        ("impersonate-group", "system:masters"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-mine", "1"),
        ("te", "trailers"),
        ("x-hop", "1"),
        ("connection", "x-hop"),
        ("cookie", "a=b"),
    ];
    let path = format!("{NODE}/a%20b/../c%2Fd/?q=%2F&path=x");
    let answer =
        b"HTTP/1.1 302 Found\r\nset-cookie: a=b\r\naccess-control-allow-origin: *\r\ncache-control: max-age=3\r\n\
        location: /e/\r\nkeep-alive: timeout=5\r\ncontent-length: 2\r\n\r\nhi";
    let (answer, (head, _)) =
        tokio::join!(send(&client, Method::PATCH, &path, &headers, "body"), says(&mut nodes, answer));
    let head = head.to_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("patch /kubelet/c/d/?q=%2f&path=x http/1.1"));
    let mut rest: Vec<&str> = lines.filter(|it| !it.is_empty() && !it.starts_with("host: 127.0.0.1:")).collect();
    rest.sort_unstable();
    assert_eq!(
        rest,
        [
            "content-length: 4",
            "cookie: a=b",
            "te: trailers",
            "user-agent: tests/1",
            "x-forwarded-for: 10.0.0.1, 127.0.0.1",
            "x-forwarded-uri: /api/v1/nodes/n/proxy/c/d/",
            "x-mine: 1",
        ]
    );
    assert_eq!((answer.code, answer.text.as_str()), (302, "hi"));
    assert_eq!(answer.headers["location"], "/api/v1/nodes/n/proxy/e/");
    let caches: Vec<_> = answer.headers.get_all("cache-control").iter().collect();
    assert_eq!(caches, ["no-cache, private", "max-age=3"]);
    assert_eq!(answer.headers["set-cookie"], "a=b");
    assert!(!["access-control-allow-origin", "keep-alive"].iter().any(|it| answer.headers.contains_key(*it)));
}

#[tokio::test]
async fn bodies_flow_both_ways_as_they_come_and_may_be_larger_than_an_object() {
    let (house, mut nodes) = house().await;
    for client in [house.client.clone(), over_tls(&house).await] {
        let body = vec![b'x'; 5 << 20];
        let request = Request::put(format!("{NODE}/up")).body(Body::from(body.clone())).unwrap();
        let kubelet = async {
            let (_, head, mut stream) = nodes.next().await;
            assert!(head.to_lowercase().contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let mut read = vec![0; body.len()];
            stream.read_exact(&mut read).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n").await.unwrap();
            stream
        };
        let (response, mut stream) = tokio::join!(client.send(request), kubelet);
        let mut answer = response.unwrap().into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one\n");
        stream.write_all(b"4\r\ntwo\n\r\n").await.unwrap();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "two\n");
        drop(answer);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the other side is not told that nobody listens");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let (house, mut nodes) = house().await;
    for client in [house.client.clone(), over_tls(&house).await] {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf"[..],
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ] {
            let breaking = async { drop(says(&mut nodes, answer).await) };
            let (response, ()) = tokio::join!(client.send(request(Method::GET, &format!("{NODE}/"), &[])), breaking);
            assert!(response.unwrap().into_body().collect().await.is_err());
        }
    }
}

#[tokio::test]
async fn pages_lead_back_through_the_proxy_however_they_are_packed() {
    let (house, mut nodes) = house().await;
    let packed = {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(PAGE.as_bytes(), flate2::Compression::best()).read_to_end(&mut packed).unwrap();
        packed
    };
    let led = PAGE.replace("\"/x/y?", &format!("\"{NODE}/x/y?"));
    for (encoding, page) in
        [("", PAGE.as_bytes()), ("content-encoding: gzip\r\n", &packed), ("content-encoding: br\r\n", b"?")]
    {
        let length = page.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\n{encoding}content-length: {length}\r\n\r\n"
        );
        let answer = [head.as_bytes(), page].concat();
        let asking = house.client.send(request(Method::GET, &format!("{NODE}/index"), &[]));
        let (response, _) = tokio::join!(asking, says(&mut nodes, &answer));
        let body = response.unwrap().into_body().collect().await.unwrap().to_bytes();
        let mut text = String::new();
        match encoding {
            "" => text.push_str(std::str::from_utf8(&body).unwrap()),
            "content-encoding: br\r\n" => {
                assert_eq!(body, "?", "what cannot be read is passed as it is");
                continue;
            }
            _ => drop(flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut text).unwrap()),
        }
        assert_eq!(text, led);
    }
}

#[tokio::test]
async fn an_upgrade_becomes_one_connection_and_its_query_stays_here() {
    let (house, mut nodes) = house().await;
    let switch = [("connection", "Upgrade"), ("upgrade", "websocket"), ("authorization", "Basic none-of-theirs")];
    for client in [house.client.clone(), over_tls(&house).await] {
        let kubelet = async {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
            let (head, mut stream) = says(&mut nodes, answer).await;
            assert_eq!(head.lines().next().unwrap(), "GET /kubelet/exec/default/p/c HTTP/1.1");
            assert!(head.to_lowercase().contains("upgrade: websocket") && !head.contains("none-of-theirs"), "{head}");
            assert_eq!(text::<2>(&mut stream).await, "hi");
            stream
        };
        let speaker = async {
            let path = format!("{NODE}/exec/default/p/c?command=sh");
            let response = client.send(request(Method::GET, &path, &switch)).await.unwrap();
            assert_eq!(response.status().as_u16(), 101);
            let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
            assert_eq!(text::<5>(&mut stream).await, "hello");
            stream.write_all(b"hi").await.unwrap();
        };
        let (mut kubelet, ()) = tokio::join!(kubelet, speaker);
        assert_eq!(kubelet.read(&mut [0]).await.unwrap(), 0, "the other side is not told that the client left");
    }
    let path = format!("{NODE}/x");
    let refused = b"HTTP/1.1 403 No\r\nx-why: because\r\ncontent-length: 2\r\n\r\nno";
    let (answer, _) = tokio::join!(house.send(Method::GET, &path, &switch, ""), says(&mut nodes, refused));
    assert_eq!((answer.code, answer.text.as_str(), &answer.headers["x-why"]), (403, "no", &"because".parse().unwrap()));
    let fine = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (answer, _) = tokio::join!(house.send(Method::GET, &path, &switch, ""), says(&mut nodes, fine));
    assert_eq!((answer.code, answer.message().as_str()), (500, "invalid upgrade response: status code 200"));
}

#[tokio::test(start_paused = true)]
async fn who_never_answers_or_never_ends_its_head_is_given_up() {
    let (house, mut nodes) = house().await;
    let path = format!("{NODE}/x");
    let (answer, _kept) = tokio::join!(house.get(&path), nodes.next());
    let said = "error trying to reach service: n did not answer in 30 s";
    assert_eq!((answer.code, answer.message().as_str()), (503, said));
    let endless = async {
        let (_, _, mut stream) = nodes.next().await;
        let mut written = 0;
        stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
        while stream.write_all(b"x-more: and more\r\n").await.is_ok() {
            written += 18;
            assert!(written < 1 << 20, "{written} bytes of a head were taken");
        }
    };
    let (answer, ()) = tokio::join!(house.get(&path), endless);
    assert_eq!(answer.code, 503, "{}", answer.text);
    // What has begun takes as long as it does.
    let slow = async {
        let (_, _, mut stream) = nodes.next().await;
        let mut read = [0; 3];
        stream.read_exact(&mut read).await.unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        stream.write_all(b"ok").await.unwrap();
        stream
    };
    let (answer, _) = tokio::join!(house.send(Method::POST, &path, &[], "abc"), slow);
    assert_eq!((answer.code, answer.text.as_str()), (200, "ok"));
}

#[tokio::test]
async fn each_method_needs_the_right_of_its_verb() {
    let (house, mut nodes) = house().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get", "patch"]}]);
    house.post(&format!("{rbac}/clusterroles"), &json!({"metadata": {"name": "r"}, "rules": rules})).await.is(201);
    let binding = json!({"metadata": {"name": "b"}, "subjects": [{"kind": "User", "name": "joe"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r"}});
    house.post(&format!("{rbac}/clusterrolebindings"), &binding).await.is(201);
    let (joe, path) = ([("impersonate-user", "joe")], format!("{NODE}/x"));
    let fine = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for method in [Method::GET, Method::HEAD, Method::PATCH] {
        let (answer, (head, _)) = tokio::join!(house.send(method, &path, &joe, ""), says(&mut nodes, fine));
        assert_eq!((answer.code, head.contains("joe")), (200, false), "{head}");
    }
    for (method, verb) in
        [(Method::POST, "create"), (Method::PUT, "update"), (Method::DELETE, "delete"), (Method::OPTIONS, "")]
    {
        let answer = house.send(method, &path, &joe, "").await;
        let said = format!(
            r#"nodes "n" is forbidden: User "joe" cannot {verb} resource "nodes/proxy" in API group "" at the cluster scope"#
        );
        assert_eq!((answer.code, answer.message()), (403, said));
    }
    assert_eq!(house.send(Method::GET, &format!("{PODS}/p/proxy/"), &joe, "").await.code, 403);
}

#[tokio::test]
async fn what_leads_nowhere_is_said_as_kubernetes_says_it() {
    let (house, _nodes) = house().await;
    house.post(SERVICES, &json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await.is(201);
    house.becomes("/api/v1/namespaces/default/endpoints", "kubernetes", |_| true).await;
    for (path, code, said) in [
        ("/api/v1/nodes/gone/proxy/", 503, "error trying to reach service: dial gone: connection refused"),
        ("/api/v1/nodes/gone:10250/proxy/", 503, "error trying to reach service: dial gone: connection refused"),
        ("/api/v1/nodes/gone:1/proxy/", 500, "no preferred addresses found; known addresses: []"),
        ("/api/v1/nodes/gone:x/proxy/", 400, "invalid node request \"gone:x\""),
        ("/api/v1/namespaces/default/pods/unbound/proxy/", 400, "address not allowed"),
        (
            "/api/v1/namespaces/default/pods/p/proxy/",
            503,
            "error trying to reach service: pod \"p\" has no address: only from inside it is reached what listens there",
        ),
        ("/api/v1/namespaces/default/pods/p:nope/proxy/", 400, "invalid pod request \"p:nope\""),
        ("/api/v1/namespaces/default/services/s:80/proxy/", 404, "services \"s\" not found"),
        ("/api/v1/namespaces/default/services/s:81/proxy/", 503, "no service port 81 found for service \"s\""),
        (
            "/api/v1/namespaces/default/services/kubernetes/proxy/",
            503,
            "no endpoints available for service \"kubernetes\"",
        ),
    ] {
        let answer = house.get(path).await;
        assert_eq!((answer.code, answer.message().as_str()), (code, said), "{path}");
    }
}

/// A pod with this address and port.
async fn pod(house: &House, name: &str, address: &str, port: u16) {
    let container = json!({"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": port}]});
    let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
    house.post(PODS, &pod).await.is(201);
    let status = json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}});
    house.patch(&format!("{PODS}/{name}/status"), "merge", &status).await.is(200);
}

#[tokio::test]
async fn pods_are_asked_at_their_addresses_and_services_at_those_of_their_ready_pods() {
    let house = House::open().await;
    for (n, address) in ["127.0.0.1", "169.254.169.254", "::1", "0.0.0.0"].into_iter().enumerate() {
        pod(&house, &format!("bad-{n}"), address, 80).await;
        let answer = house.get(&format!("{PODS}/bad-{n}/proxy/")).await;
        assert_eq!((answer.code, answer.message().as_str()), (400, "address not allowed"), "{address}");
    }
    let Some(echo) = Echo::serve(&house.tasks).await else {
        println!("the rest is skipped: this machine has no address but loopback");
        return;
    };
    let (own, plain, tls) = (echo.plain.ip().to_string(), echo.plain.port(), echo.tls.port());
    pod(&house, "p", &own, plain).await;
    let path = |answer: &Answer| answer.json()["path"].as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned();
    for name in
        ["p".to_owned(), format!("p:{plain}"), "p:web".to_owned(), "http:p:web".to_owned(), format!("https:p:{tls}")]
    {
        let answer = house.get(&format!("{PODS}/{name}/proxy/a?b=c")).await;
        assert_eq!((answer.code, path(&answer).as_str()), (200, "/a?b=c"), "{name}");
    }
    let slash = house.get(&format!("{PODS}/p/proxy?a=b")).await;
    assert_eq!((slash.code, &slash.headers["location"]), (301, &format!("{PODS}/p/proxy/?a=b").parse().unwrap()));
    assert_eq!(path(&house.send(Method::POST, &format!("{PODS}/p/proxy"), &[], "x").await), "/");

    let ports = json!([{"name": "web", "port": 80}, {"name": "other", "port": 81}]);
    house.post(SERVICES, &json!({"metadata": {"name": "s"}, "spec": {"ports": ports}})).await.is(201);
    let is = |name: &str| json!({"kind": "Pod", "namespace": "default", "name": name});
    let slice = json!({"metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
    "ports": [{"name": "web", "port": plain}], "endpoints": [
        {"addresses": ["10.255.0.1"], "targetRef": is("p")},
        {"addresses": ["127.0.0.1"], "targetRef": is("bad-0")},
        {"addresses": [&own]},
        {"addresses": [&own], "conditions": {"ready": false}, "targetRef": is("p")},
    ]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    house.post(slices, &slice).await;
    let none = house.get(&format!("{SERVICES}/s:web/proxy/")).await;
    let said = "no endpoints available for service \"s:web\"";
    assert_eq!((none.code, none.message().as_str()), (503, said), "none of these is a ready pod");
    let ready = json!([{"op": "add", "path": "/endpoints/0/addresses/0", "value": own}]);
    house.patch(&format!("{slices}/s-1"), "json", &ready).await;
    house
        .post(
            "/api/v1/namespaces/default/endpoints",
            &json!({"metadata": {"name": "s"}, "subsets": [
                {"addresses": [{"ip": &own, "targetRef": is("p")}], "ports": [{"name": "web", "port": plain}, {"name": "tls", "port": tls}]}]}),
        )
        .await
        .is(201);
    for name in ["s:80", "s:web", "http:s:web", "https:s:tls"] {
        let answer = house.get(&format!("{SERVICES}/{name}/proxy/a/")).await;
        assert_eq!((answer.code, path(&answer).as_str()), (200, "/a/"), "{name}");
    }
    for name in ["s", "s:81", "s:other"] {
        assert_eq!(house.get(&format!("{SERVICES}/{name}/proxy/")).await.code, 503, "{name}");
    }
    house.delete("/api/v1/namespaces/default/endpoints/s").await.is(200);
    let by_slice = house.get(&format!("{SERVICES}/s:web/proxy/a")).await;
    assert_eq!((by_slice.code, path(&by_slice).as_str()), (200, "/a"), "{}", by_slice.text);
}

/// The kubelet's next connection, once it has agreed that it is a port's, and what it was asked.
async fn dialled(nodes: &mut Nodes) -> (String, DuplexStream) {
    let (head, stream) =
        says(nodes, b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\n").await;
    assert!(head.to_lowercase().contains("upgrade: tcp\r\n"), "{head}");
    (head.lines().next().unwrap().to_owned(), stream)
}

#[tokio::test]
async fn pods_of_a_loopback_network_are_reached_from_inside_by_their_kubelet() {
    let (house, mut nodes) = house().await;
    let bound = async |name: &str, address: &str, host: bool| {
        let container = json!({"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]});
        let spec = json!({"containers": [container], "nodeName": "n", "schedulerName": "nobody", "hostNetwork": host});
        let made = house.post(PODS, &json!({"metadata": {"name": name}, "spec": spec})).await.is(201);
        let status = json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}});
        house.patch(&format!("{PODS}/{name}/status"), "merge", &status).await.is(200);
        made["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let (near, host) = (bound("near", "127.64.1.2", false).await, bound("host", "127.0.0.1", true).await);
    bound("link", "169.254.169.254", false).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}});
    house.post(SERVICES, &service).await.is(201);
    let target = json!({"kind": "Pod", "namespace": "default", "name": "near"});
    let slice = json!({"metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080}], "endpoints": [{"addresses": ["127.64.1.2"], "targetRef": target}]});
    house.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;

    let client = over_tls(&house).await;
    for (path, pod, uid, port) in [
        (format!("{PODS}/near/proxy/a?b=c"), "near", &near, 8080),
        (format!("{PODS}/near:9/proxy/a?b=c"), "near", &near, 9),
        (format!("{SERVICES}/s:80/proxy/a?b=c"), "near", &near, 8080),
        (format!("{PODS}/host/proxy/a?b=c"), "host", &host, 8080),
    ] {
        let inside = async {
            let (asked, mut stream) = dialled(&mut nodes).await;
            assert_eq!(asked, format!("POST /kubelet/portForward/default/{pod}/{uid}?port={port} HTTP/1.1"));
            assert_eq!(text::<18>(&mut stream).await, "GET /a?b=c HTTP/1.");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            stream
        };
        let (answer, _) = tokio::join!(send(&client, Method::GET, &path, &[], ""), inside);
        assert_eq!((answer.code, answer.text.as_str()), (200, "hi"), "{path}");
    }

    // An upgrade inside of it, which ends with either side; and TLS.
    let inside = async {
        let (_, mut stream) = dialled(&mut nodes).await;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(stream.read_u8().await.unwrap()));
        }
        assert!(head.starts_with("GET /live HTTP/1.1\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello";
        stream.write_all(answer).await.unwrap();
        assert_eq!(text::<2>(&mut stream).await, "hi");
        stream
    };
    let speaker = async {
        let switch = [("connection", "Upgrade"), ("upgrade", "websocket")];
        let asked = request(Method::GET, &format!("{PODS}/near/proxy/live"), &switch);
        let response = client.send(asked).await.unwrap();
        assert_eq!(response.status().as_u16(), 101);
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        assert_eq!(text::<5>(&mut stream).await, "hello");
        stream.write_all(b"hi").await.unwrap();
    };
    let (mut inside, ()) = tokio::join!(inside, speaker);
    assert_eq!(inside.read(&mut [0]).await.unwrap(), 0, "the pod is not told that the client left");
    let path = format!("{PODS}/https:near:8443/proxy/");
    let greeted = async { dialled(&mut nodes).await.1.read_u8().await.unwrap() };
    let (answer, first) = tokio::join!(house.get(&path), greeted);
    assert_eq!((answer.code, first), (503, 0x16));

    let path = format!("{PODS}/near:81/proxy/");
    let refused = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 27\r\n\r\nconnect: connection refused";
    let (answer, _) = tokio::join!(house.get(&path), says(&mut nodes, refused));
    let said = "error trying to reach service: dial tcp 127.64.1.2:81: connect: connection refused";
    assert_eq!((answer.code, answer.message().as_str()), (503, said));
    // What else listens at the machine, is not the pod's; and what only a link's neighbours reach is nobody's.
    for name in ["host:81", "link"] {
        let answer = house.get(&format!("{PODS}/{name}/proxy/")).await;
        assert_eq!((answer.code, answer.message().as_str()), (400, "address not allowed"), "{name}");
    }
}

#[tokio::test]
async fn a_pod_that_breaks_the_rules_of_http_is_an_error_of_the_service() {
    let house = House::open().await;
    let Some(own) = own_address() else {
        println!("skipped: this machine has no address but loopback");
        return;
    };
    let listener = TcpListener::bind((own, 0)).await.unwrap();
    pod(&house, "p", &own.to_string(), listener.local_addr().unwrap().port()).await;
    let path = format!("{PODS}/p/proxy/");
    for (answer, said) in [(&b""[..], "EOF"), (b"HTTP/1.1 200 OK\r\nx", "EOF"), (b"rubbish\r\n\r\n", "")] {
        let rude = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
        };
        let (answer, ()) = tokio::join!(house.get(&path), rude);
        let (code, message) = (answer.code, answer.message());
        assert!(code == 503 && message.starts_with(&format!("error trying to reach service: {said}")), "{message}");
    }
    drop(listener);
    let answer = house.get(&path).await;
    assert!(answer.code == 503 && answer.message().ends_with("connect: connection refused"), "{}", answer.text);
}

#[tokio::test]
async fn documents_name_the_proxies() {
    let house = House::open().await;
    let all = house.get("/api/v1").await.is(200);
    for (name, kind) in [("nodes", "Node"), ("pods", "Pod"), ("services", "Service")] {
        let named = |it: &&Value| it["name"] == format!("{name}/proxy");
        let found = all["resources"].as_array().unwrap().iter().find(named).unwrap();
        assert_eq!(found["kind"], format!("{kind}ProxyOptions"));
        assert_eq!(found["verbs"], json!(["create", "delete", "get", "patch", "update"]));
    }
    let path = "/api/v1/namespaces/{namespace}/pods/{name}/proxy/{path}";
    let v3 = house.get("/openapi/v3/api/v1").await.is(200);
    let put = &v3["paths"][path]["put"];
    assert_eq!(put["operationId"], "connectCoreV1PutNamespacedPodProxyWithPath");
    assert_eq!(v3["paths"]["/api/v1/nodes/{name}/proxy"]["head"]["operationId"], "connectCoreV1HeadNodeProxy");
    let v2 = house.get("/openapi/v2").await.is(200);
    assert_eq!(v2["paths"][path]["options"]["responses"]["200"]["schema"], json!({"type": "string"}));
}
