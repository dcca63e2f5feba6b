//! Pods of a running `insula up`: what they may have of the host, and how they end with it.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::LogParams;
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::*;

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

struct Pods {
    client: kube::Client,
    pods: Api<Pod>,
}

impl Pods {
    /// None where this machine runs none.
    async fn of(up: &Up, scratch: &Path) -> Option<Self> {
        let client = up.client().await;
        if std::fs::read_to_string(scratch.join("log")).unwrap().contains("this machine makes no sandboxes") {
            println!("skipped, since this machine makes no sandboxes");
            return None;
        }
        Some(Self { pods: Api::default_namespaced(client.clone()), client })
    }

    async fn try_create(&self, name: &str, container: Value, spec: Value) -> kube::Result<Pod> {
        let mut own = json!({"name": "c", "image": "host"});
        let mut all = json!({"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false});
        for (to, from) in [(&mut own, container), (&mut all, spec)] {
            to.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
        }
        all["containers"] = json!([own]);
        let pod = json!({"metadata": {"name": name}, "spec": all});
        self.pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await
    }

    async fn create(&self, name: &str, container: Value, spec: Value) {
        self.try_create(name, container, spec).await.unwrap();
    }

    async fn until(&self, name: &str, test: impl Fn(&Value) -> bool) -> Value {
        let value = |it: Option<&Pod>| it.map(|it| serde_json::to_value(it).unwrap()).unwrap_or_default();
        let found = await_condition(self.pods.clone(), name, |it: Option<&Pod>| test(&value(it)));
        let found = tokio::time::timeout(PATIENCE, found).await;
        match found {
            Ok(found) => value(found.unwrap().as_ref()),
            Err(_) => panic!("{name} is {:?}", self.pods.get(name).await.unwrap().status),
        }
    }

    async fn event(&self, reason: &str) -> String {
        let events: Api<Event> = Api::default_namespaced(self.client.clone());
        let config = watcher::Config::default().fields(&format!("reason={reason}"));
        let mut found = watcher(events, config).applied_objects().boxed();
        let found = tokio::time::timeout(PATIENCE, found.next()).await.unwrap();
        found.unwrap().unwrap().message.unwrap()
    }
}

fn sh(script: &str) -> Value {
    json!({"command": ["sh", "-c", script]})
}

fn ready(it: &Value) -> bool {
    let all = it["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

fn waits(it: &Value) -> &Value {
    &it["status"]["containerStatuses"][0]["state"]["waiting"]
}

const SERVER: &str = "
import socket
s = socket.create_server(('0.0.0.0', 8080))
while True:
    s.accept()[0].sendall(b'hello')
";

#[tokio::test]
async fn a_pod_has_of_the_host_what_a_flag_allows() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let args =
        ["--data-dir", data.to_str().unwrap(), "--warm", "0", "--allow", "network,ports", "--allow", "privileged"];
    let mut first = Up::start(&args, scratch.path());
    let Some(pods) = Pods::of(&first, scratch.path()).await else { return };
    pods.create("network", sh("echo begun; exec sleep 1000"), json!({"hostNetwork": true})).await;
    let network = pods.until("network", ready).await;
    assert_eq!((&network["status"]["podIP"], &network["status"]["hostIP"]), (&json!("127.0.0.1"), &json!("127.0.0.1")));

    let id = std::process::id();
    let at = std::net::SocketAddr::from(([127, 79, (id >> 8) as u8, id as u8], 8080));
    let port = json!([{"containerPort": 8080, "hostPort": 8080, "hostIP": at.ip()}]);
    let probe = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    let serves = json!({"command": ["python3", "-c", SERVER], "ports": port, "readinessProbe": probe});
    pods.create("ports", serves.clone(), json!({})).await;
    pods.until("ports", ready).await;
    let answer = async || {
        let mut said = String::new();
        tokio::net::TcpStream::connect(at).await.unwrap().read_to_string(&mut said).await.unwrap();
        said
    };
    assert_eq!(answer().await, "hello");
    pods.create("conflict", serves, json!({})).await;
    let why = |it: &Value| it["status"]["conditions"][0]["message"].as_str().unwrap_or_default().to_owned();
    let free = "free ports for the requested pod ports";
    pods.until("conflict", |it| it["status"]["phase"] == "Pending" && why(it).contains(free)).await;

    let privileged = json!({"securityContext": {"privileged": true}});
    let mut looks = sh("grep -q 'Seccomp:.0' /proc/self/status && mount -t tmpfs none /mnt");
    looks.as_object_mut().unwrap().extend(privileged.as_object().unwrap().clone());
    pods.create("privileged", looks, json!({"restartPolicy": "Never"})).await;
    let over = |it: &Value| matches!(it["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    assert_eq!(pods.until("privileged", over).await["status"]["phase"], "Succeeded");
    // What was not named stays refused.
    pods.create("pid", sh("exec sleep 1000"), json!({"hostPID": true})).await;
    let refused = pods.until("pid", |it| waits(it)["reason"] == "CreateContainerConfigError").await;
    let message = "hostPID is refused on this node: `insula up --allow pid` allows it";
    assert_eq!(waits(&refused)["message"], message);

    // The next one finds all of it.
    first.signal(Signal::KILL);
    let mut second = Up::start(&args, scratch.path());
    let pods = Pods::of(&second, scratch.path()).await.unwrap();
    assert_eq!(answer().await, "hello");
    assert_eq!(pods.pods.logs("network", &LogParams::default()).await.unwrap(), "begun\n");
    let again = pods.until("network", ready).await;
    for path in ["/status/podIP", "/status/containerStatuses/0/containerID"] {
        assert_eq!(again.pointer(path), network.pointer(path), "{path}");
    }
    assert!(second.signal(Signal::TERM).success());
}

#[tokio::test]
async fn pods_of_the_class_gvisor_have_a_kernel_of_their_own() {
    provider();
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|it| it.join("runsc").exists()) {
        return println!("skipped, since there is no runsc in PATH");
    }
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let args = ["--data-dir", data.to_str().unwrap(), "--warm", "0"];
    let mut first = Up::start(&args, scratch.path());
    let Some(pods) = Pods::of(&first, scratch.path()).await else { return };
    let classes: Api<RuntimeClass> = Api::all(pods.client.clone());
    let there = await_condition(classes, "gvisor", |it: Option<&RuntimeClass>| it.is_some());
    let class = tokio::time::timeout(PATIENCE, there).await.expect("runsc works").unwrap().unwrap();
    assert_eq!(class.handler, "runsc");

    let mut says = sh("dmesg | grep -c gVisor; exec sleep 1000");
    says["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 60});
    pods.create("guest", says, json!({"runtimeClassName": "gvisor"})).await;
    let before = pods.until("guest", ready).await;
    assert_eq!(pods.pods.logs("guest", &LogParams::default()).await.unwrap(), "1\n");
    let privileged = json!({"command": ["true"], "securityContext": {"privileged": true}});
    pods.create("privileged", privileged, json!({"runtimeClassName": "gvisor"})).await;
    let refused = pods.until("privileged", |it| waits(it)["reason"] == "CreateContainerConfigError").await;
    assert!(waits(&refused)["message"].as_str().unwrap().contains("not to be had with gVisor"), "{refused}");
    pods.create("network", sh("true"), json!({"runtimeClassName": "gvisor", "hostNetwork": true})).await;
    let said = pods.event("FailedCreatePodSandBox").await;
    assert!(said.contains("hostNetwork is not to be had with gVisor"), "{said}");

    first.signal(Signal::KILL);
    let mut second = Up::start(&args, scratch.path());
    let pods = Pods::of(&second, scratch.path()).await.unwrap();
    let after = pods.until("guest", ready).await;
    let id = |it: &Value| it["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&after), id(&before));
    let nodes: Api<Node> = Api::all(pods.client.clone());
    let name = after["spec"]["nodeName"].as_str().unwrap().to_owned();
    let named = await_condition(nodes, &name, |it: Option<&Node>| {
        let handlers = it.and_then(|it| it.status.as_ref()).and_then(|it| it.runtime_handlers.as_ref());
        handlers.into_iter().flatten().any(|it| it.name.as_deref() == Some("runsc"))
    });
    tokio::time::timeout(PATIENCE, named).await.expect("the Node names its handlers").unwrap();
    assert!(second.signal(Signal::TERM).success());
}

#[tokio::test]
async fn a_class_that_has_no_runtime_here_is_said_and_pods_end_in_order_with_their_node() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let args = ["--data-dir", data.to_str().unwrap(), "--warm", "0", "--pod-grace", "60"];
    let mut first = Up::start(&args, scratch.path());
    let Some(pods) = Pods::of(&first, scratch.path()).await else { return };
    let refused = pods.try_create("unknown", sh("true"), json!({"runtimeClassName": "none"})).await.unwrap_err();
    assert!(refused.to_string().contains("pod rejected: RuntimeClass \"none\" not found"), "{refused}");
    let class = json!({"metadata": {"name": "guest"}, "handler": "vm", "overhead": {"podFixed": {"cpu": "10m"}}});
    let classes: Api<RuntimeClass> = Api::all(pods.client.clone());
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    pods.create("guest", sh("true"), json!({"runtimeClassName": "guest"})).await;
    let says = "Failed to create pod sandbox: failed to get sandbox runtime: no runtime for \"vm\" is configured";
    assert_eq!(pods.event("FailedCreatePodSandBox").await, says);
    let guest = pods.until("guest", |it| waits(it)["reason"] == "ContainerCreating").await;
    assert_eq!((&guest["status"]["phase"], &guest["spec"]["overhead"]["cpu"]), (&json!("Pending"), &json!("10m")));

    // Ready when it minds the signal.
    let mut ends = sh("trap 'echo told; exit 0' TERM; echo begun; touch /tmp/begun; while :; do sleep 0.1; done");
    ends["readinessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/begun"]}, "periodSeconds": 1});
    ends["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1"]}}});
    pods.create("ends", ends, json!({"terminationGracePeriodSeconds": 60})).await;
    pods.until("ends", ready).await;
    assert!(first.signal(Signal::TERM).success());
    let mut second = Up::start(&args, scratch.path());
    let pods = Pods::of(&second, scratch.path()).await.unwrap();
    pods.until("ends", |it| ready(it) && it["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    let before = LogParams { previous: true, ..LogParams::default() };
    assert_eq!(pods.pods.logs("ends", &before).await.unwrap(), "begun\nhook\ntold\n");
    assert!(second.signal(Signal::TERM).success());
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_another_one() {
    provider();
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let mut up = Up::start(&["--data-dir", data.to_str().unwrap(), "--warm", "0"], scratch.path());
    let Some(pods) = Pods::of(&up, scratch.path()).await else { return };
    let nodes: Api<Node> = Api::all(pods.client.clone());
    // The node says it a moment after the API is there.
    let said = |it: Node| it.status?.allocatable?.get("cpu")?.0.parse::<f64>().ok();
    let mut cores = watcher(nodes, watcher::Config::default())
        .applied_objects()
        .try_filter_map(|it| std::future::ready(Ok(said(it))))
        .boxed();
    let cores = tokio::time::timeout(PATIENCE, cores.next()).await.unwrap().unwrap().unwrap();
    let container = |script: &str| {
        let mut it = sh(script);
        it["resources"] = json!({"requests": {"cpu": format!("{}m", (cores * 600.0) as u64)}});
        it
    };
    pods.create("usual", container("trap 'exit 0' TERM; sleep 1000 & wait"), json!({})).await;
    pods.until("usual", ready).await;
    // Seen before anything happens to it: then nothing of its end is missed.
    let mut seen = watcher::watch_object(pods.pods.clone(), "usual").boxed();
    let mut next = async || tokio::time::timeout(PATIENCE, seen.next()).await.unwrap().unwrap().unwrap();
    assert!(next().await.is_some());
    pods.create("important", container("sleep 1000"), json!({"priorityClassName": "system-node-critical"})).await;
    let mut told = Value::Null;
    while let Some(it) = next().await {
        if told.is_null() && it.metadata.deletion_timestamp.is_some() {
            told = serde_json::to_value(it).unwrap();
        }
    }
    let reason = |it: &Value| it["type"] == "DisruptionTarget" && it["reason"] == "PreemptionByScheduler";
    assert!(told["status"]["conditions"].as_array().unwrap().iter().any(reason), "{told}");
    let important = pods.until("important", ready).await;
    assert!(important["status"]["nominatedNodeName"].is_null());
    let by = important["metadata"]["uid"].as_str().unwrap();
    let node = important["spec"]["nodeName"].as_str().unwrap();
    assert_eq!(pods.event("Preempted").await, format!("Preempted by pod {by} on node {node}"));
    assert!(up.signal(Signal::TERM).success());
}
