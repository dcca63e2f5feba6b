use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::local::tests::{House, create, gone, house, until};

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "8", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}]}})
}

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "i"}]}})
}

fn keys(node: &Node) -> Vec<(String, String)> {
    let all = node.spec.iter().flat_map(|it| it.taints.iter().flatten());
    all.map(|it| (it.key.clone(), it.effect.clone())).collect()
}

async fn seconds(house: &House, seconds: u64) {
    house.clock.until(house.clock.now() + Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_not_heard_of_is_lost_and_its_pods_go_in_their_time() {
    let house = house().await;
    let nodes: Api<Node> = Api::all(house.server.client());
    let (leases, pods) = (house.of::<Lease>("kube-node-lease"), house.of::<Pod>("default"));
    create(&nodes, node("n")).await;
    create(&leases, json!({"metadata": {"name": "n"}, "spec": {"holderIdentity": "n"}})).await;
    create(&pods, pod("p", "n")).await;
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    // As long as its lease is renewed, all is well.
    for round in 0..10 {
        seconds(&house, 20).await;
        let renewed = json!({"spec": {"renewTime": format!("2026-01-01T00:00:00.{round:06}Z")}});
        leases.patch("n", &PatchParams::default(), &Patch::Merge(renewed)).await.unwrap();
    }
    seconds(&house, 39).await;
    assert!(keys(&nodes.get("n").await.unwrap()).is_empty());
    until(&nodes, "n", |it| !keys(it.unwrap()).is_empty()).await;
    let lost = nodes.get("n").await.unwrap();
    let unreachable = |effect: &str| ("node.kubernetes.io/unreachable".to_owned(), effect.to_owned());
    assert_eq!(keys(&lost), [unreachable("NoSchedule"), unreachable("NoExecute")]);
    for (kind, reason, message) in [
        ("Ready", "NodeStatusUnknown", "Kubelet stopped posting node status."),
        ("MemoryPressure", "NodeStatusUnknown", "Kubelet stopped posting node status."),
        ("PIDPressure", "NodeStatusNeverUpdated", "Kubelet never posted node status."),
    ] {
        let all = lost.status.as_ref().unwrap().conditions.clone().unwrap();
        let it = all.into_iter().find(|it| it.type_ == kind).unwrap();
        assert_eq!(
            (it.status.as_str(), it.reason.as_deref(), it.message.as_deref()),
            ("Unknown", Some(reason), Some(message))
        );
    }
    until(&pods, "p", |it| {
        let all = it.unwrap().status.as_ref().unwrap().conditions.clone().unwrap();
        all.iter().any(|it| it.type_ == "Ready" && it.status == "False")
    })
    .await;
    // Every pod tolerates that for five minutes, which admission says.
    seconds(&house, 270).await;
    assert!(pods.get("p").await.unwrap().metadata.deletion_timestamp.is_none());
    gone(&pods, "p").await;
    let events = house.of::<Event>("default").list(&ListParams::default()).await.unwrap().items;
    let said: Vec<_> =
        events.iter().map(|it| (it.reason.as_deref().unwrap(), it.message.as_deref().unwrap())).collect();
    for it in [
        ("NodeNotReady", "Node n status is now: NodeNotReady"),
        ("NodeNotReady", "Node is not ready"),
        ("TaintManagerEviction", "Marking for deletion Pod default/p"),
    ] {
        assert!(said.contains(&it), "{it:?} in {said:?}");
    }
    // It is heard of again.
    let back = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.patch_status("n", &PatchParams::default(), &Patch::Merge(back)).await.unwrap();
    until(&nodes, "n", |it| keys(it.unwrap()).is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_node_that_stays_not_ready_no_pod_is_ready_and_that_is_said_once() {
    let house = house().await;
    let nodes: Api<Node> = Api::all(house.server.client());
    let pods = house.of::<Pod>("default");
    create(&nodes, node("n")).await;
    create(&pods, pod("p", "n")).await;
    let runs = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(&runs)).await.unwrap();
    let is_ready = |it: &Pod| {
        let mut all = it.status.as_ref().unwrap().conditions.iter().flatten();
        all.any(|it| it.type_ == "Ready" && it.status == "True")
    };
    let turns = async |ready: &str| {
        let change = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        nodes.patch_status("n", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    };
    turns("False").await;
    seconds(&house, 4).await;
    turns("True").await;
    seconds(&house, 4).await;
    assert!(is_ready(&pods.get("p").await.unwrap()), "the node is back");
    turns("False").await;
    until(&pods, "p", |it| !is_ready(it.unwrap())).await;
    // Its kubelet knows better.
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(&runs)).await.unwrap();
    seconds(&house, 10).await;
    assert!(is_ready(&pods.get("p").await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_node_that_is_not_there_go_after_a_while() {
    let house = house().await;
    let nodes: Api<Node> = Api::all(house.server.client());
    let pods = house.of::<Pod>("default");
    create(&pods, pod("lost", "nowhere")).await;
    create(&pods, pod("early", "late")).await;
    seconds(&house, 20).await;
    create(&nodes, node("late")).await;
    gone(&pods, "lost").await;
    assert!(pods.get("early").await.unwrap().metadata.deletion_timestamp.is_none(), "its node came in time");
    nodes.delete("late", &Default::default()).await.unwrap();
    gone(&pods, "early").await;
}

#[tokio::test]
async fn a_taint_drives_out_who_does_not_bear_it() {
    let house = house().await;
    let nodes: Api<Node> = Api::all(house.server.client());
    let pods = house.of::<Pod>("default");
    create(&nodes, node("n")).await;
    let mut stays = pod("stays", "n");
    stays["spec"]["tolerations"] = json!([{"key": "example.com/x", "operator": "Exists"}]);
    create(&pods, stays).await;
    create(&pods, pod("goes", "n")).await;
    let spec = json!({"spec": {"unschedulable": true, "taints": [{"key": "example.com/x", "effect": "NoExecute"}]}});
    nodes.patch("n", &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    gone(&pods, "goes").await;
    assert!(pods.get("stays").await.unwrap().metadata.deletion_timestamp.is_none());
    let cordoned = ("node.kubernetes.io/unschedulable".to_owned(), "NoSchedule".to_owned());
    until(&nodes, "n", |it| keys(it.unwrap()).contains(&cordoned)).await;
    nodes.patch("n", &PatchParams::default(), &Patch::Merge(json!({"spec": {"unschedulable": null}}))).await.unwrap();
    until(&nodes, "n", |it| !keys(it.unwrap()).contains(&cordoned)).await;
}
