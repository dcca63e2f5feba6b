//! `metrics.k8s.io`: what nodes and pods use.

use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::kubelets::{Nodes, house};

const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// Plays the kubelet of the node `n` once.
async fn tell(nodes: &mut Nodes) {
    let used = |nanos: u64, bytes: u64| {
        json!({
            "cpu": {"time": "2026-11-21T10:00:00Z", "usageNanoCores": nanos, "usageCoreNanoSeconds": 1},
            "memory": {"time": "2026-11-21T10:00:00Z", "workingSetBytes": bytes},
        })
    };
    let container = |name: &str, used: Value| {
        let mut it = used;
        it["name"] = json!(name);
        it
    };
    let mut node = used(1_500_000_000, 3 << 30);
    node["nodeName"] = json!("n");
    let summary = json!({"node": node, "pods": [
        {"podRef": {"name": "p", "namespace": "default", "uid": "u"}, "containers": [container("c", used(2_000_001, 5 << 20))]},
        // One of its containers says nothing yet.
        {"podRef": {"name": "two", "namespace": "default", "uid": "v"},
            "containers": [container("a", used(1, 1)), {"name": "b"}]},
        {"podRef": {"name": "unknown", "namespace": "default", "uid": "w"}, "containers": [container("c", used(1, 1))]},
    ]})
    .to_string();
    let (node, head, mut stream) = nodes.next().await;
    assert_eq!((node.as_str(), head.lines().next()), ("n", Some("GET /kubelet/stats/summary HTTP/1.1")));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", summary.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(summary.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn what_pods_and_nodes_use_is_asked_of_their_kubelets() {
    let (house, mut nodes) = house().await;
    house.send(Method::DELETE, "/api/v1/namespaces/default/pods/stuck?gracePeriodSeconds=0", &[], "").await.is(200);
    house.send(Method::DELETE, "/api/v1/nodes/hung", &[], "").await.is(200);
    let (list, ()) = tokio::join!(house.get(PODS), tell(&mut nodes));
    let list = list.is(200);
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("PodMetricsList"), 1));
    let path = format!("{PODS}/p");
    let (one, ()) = tokio::join!(house.get(&path), tell(&mut nodes));
    let mut one = one.is(200);
    assert_eq!(one, list["items"][0]);
    let created = one["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
    assert!(created.is_some_and(|it| it.is_string()));
    let want = json!({
        "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {"name": "p", "namespace": "default"},
        "timestamp": "2026-11-21T10:00:00Z", "window": "0s",
        "containers": [{"name": "c", "usage": {"cpu": "2000001n", "memory": "5Mi"}}],
    });
    assert_eq!(one, want);
    // The kubelets of other nodes are not there; theirs are left out.
    let (list, ()) = tokio::join!(house.get(NODES), tell(&mut nodes));
    let items = list.is(200)["items"].take();
    assert_eq!((items.as_array().unwrap().len(), &items[0]["metadata"]["name"]), (1, &json!("n")));
    assert_eq!(items[0]["usage"], json!({"cpu": "1500m", "memory": "3Gi"}));
    // Nobody is asked about nothing.
    let none = house.get(&format!("{PODS}?labelSelector=app%3Dnone")).await.is(200);
    assert_eq!(none["items"], json!([]));
    let named = house.get("/apis/metrics.k8s.io/v1beta1/pods?fieldSelector=metadata.name%3Dunbound").await.is(200);
    assert_eq!(named["items"], json!([]));
}

#[tokio::test]
async fn what_is_not_known_is_not_found_and_nothing_can_be_written() {
    let (house, mut nodes) = house().await;
    let message = async |path: &str| house.get(path).await;
    let gone = message(&format!("{NODES}/gone")).await;
    assert_eq!((gone.code, gone.message()), (404, "nodemetrics.metrics.k8s.io \"gone\" not found".into()));
    let never = message(&format!("{NODES}/never")).await;
    assert_eq!((never.code, never.message()), (404, "nodes \"never\" not found".into()));
    let never = message(&format!("{PODS}/never")).await;
    assert_eq!((never.code, never.message()), (404, "pods \"default/never\" not found".into()));
    let path = format!("{PODS}/two");
    let (two, ()) = tokio::join!(house.get(&path), tell(&mut nodes));
    assert_eq!((two.code, two.message()), (404, "podmetrics.metrics.k8s.io \"default/two\" not found".into()));
    assert_eq!(house.post(PODS, &json!({})).await.code, 405);
    assert_eq!(house.get(&format!("{PODS}?watch=1")).await.code, 405);
    let jane = [("impersonate-user", "jane")];
    assert_eq!(house.send(Method::GET, NODES, &jane, "").await.code, 403);
}

#[tokio::test]
async fn the_group_is_discovered_after_all_others() {
    let (house, _nodes) = house().await;
    let groups = house.get("/apis").await.is(200);
    let last = groups["groups"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["name"], &last["preferredVersion"]["version"]), (&json!("metrics.k8s.io"), &json!("v1beta1")));
    let list = house.get("/apis/metrics.k8s.io/v1beta1").await.is(200);
    assert_eq!((&list["resources"][1]["name"], &list["resources"][1]["kind"]), (&json!("pods"), &json!("PodMetrics")));
    assert_eq!(house.get("/apis/metrics.k8s.io").await.is(200)["kind"], "APIGroup");
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let all = house.send(Method::GET, "/apis", &accept, "").await.is(200);
    let last = all["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["metadata"]["name"], "metrics.k8s.io");
    assert_eq!(last["versions"][0]["resources"][0]["verbs"], json!(["get", "list"]));
}
