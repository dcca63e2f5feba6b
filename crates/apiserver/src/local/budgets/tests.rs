//! Budgets and evictions through the server's door, and what is counted.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, EvictParams, Patch, PatchParams, PostParams};
use kube::core::Status;
use serde_json::{Value, json};

use super::plan::plan;
use crate::local::tests::{House, create, house_with, until};

const VIOLATED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

fn pod(name: &str, more: Value) -> Value {
    let mut it = json!({"metadata": {"name": name, "labels": {"app": "a"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in more.as_object().unwrap() {
        it["metadata"][key] = value.clone();
    }
    it
}

/// A pod that runs, ready or not.
async fn runs(house: &House, name: &str, ready: bool) {
    let pods = house.of::<Pod>("default");
    create(&pods, pod(name, json!({}))).await;
    let ready = if ready { "True" } else { "False" };
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn budget(house: &House, name: &str, spec: Value) -> PodDisruptionBudget {
    let mut it = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": "a"}}}});
    for (key, value) in spec.as_object().unwrap() {
        it["spec"][key] = value.clone();
    }
    create(&house.of("default"), it).await
}

/// Waits until a budget's status says: expected, desired, healthy, allowed.
async fn says(house: &House, name: &str, want: [i32; 4]) {
    let api = house.of::<PodDisruptionBudget>("default");
    until(&api, name, |it| {
        let it = it.unwrap().status.clone().unwrap_or_default();
        it.observed_generation == Some(1)
            && [it.expected_pods, it.desired_healthy, it.current_healthy, it.disruptions_allowed] == want
    })
    .await;
}

async fn evict(house: &House, name: &str, params: &EvictParams) -> Result<(), Box<Status>> {
    match house.of::<Pod>("default").evict(name, params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status),
        Err(other) => panic!("{other}"),
    }
}

fn causes(status: &Status) -> Vec<String> {
    status.details.iter().flat_map(|it| &it.causes).map(|it| format!("{}: {}", it.reason, it.message)).collect()
}

#[tokio::test(start_paused = true)]
async fn an_eviction_goes_as_far_as_the_budget_allows() {
    let house = house_with(None).await;
    for name in ["p", "q", "r"] {
        runs(&house, name, true).await;
    }
    budget(&house, "b", json!({"minAvailable": 2})).await;
    says(&house, "b", [3, 2, 3, 1]).await;
    let dry =
        EvictParams { post_options: PostParams { dry_run: true, ..PostParams::default() }, ..EvictParams::default() };
    evict(&house, "p", &dry).await.unwrap();
    evict(&house, "p", &EvictParams::default()).await.unwrap();
    let gone = house.of::<Pod>("default").get("p").await.unwrap();
    let condition = gone.status.unwrap().conditions.unwrap().into_iter().find(|it| it.type_ == "DisruptionTarget");
    assert_eq!(condition.unwrap().reason.as_deref(), Some("EvictionByEvictionAPI"));
    assert!(gone.metadata.deletion_timestamp.is_some(), "its node ends it");
    says(&house, "b", [3, 2, 2, 0]).await;
    let refused = evict(&house, "q", &EvictParams::default()).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (429, VIOLATED));
    let why = "DisruptionBudget: The disruption budget b needs 2 healthy pods and has 2 currently";
    assert_eq!(causes(&refused), [why]);
    // One that goes already, or does not run yet, is not asked about.
    evict(&house, "p", &EvictParams::default()).await.unwrap();
    create(&house.of::<Pod>("default"), pod("pending", json!({}))).await;
    evict(&house, "pending", &EvictParams::default()).await.unwrap();
    // One that is not ready may go while the others are enough.
    runs(&house, "unready", false).await;
    says(&house, "b", [5, 2, 2, 0]).await;
    evict(&house, "unready", &EvictParams::default()).await.unwrap();
    budget(&house, "other", json!({"maxUnavailable": 1})).await;
    let refused = evict(&house, "q", &EvictParams::default()).await.unwrap_err();
    let said = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    assert_eq!((refused.code, refused.message.as_str()), (500, said));
}

#[tokio::test]
async fn a_budget_counts_what_there_is_to_be_of_the_owners_of_its_pods() {
    let house = house_with(None).await;
    let spec = |replicas: i32| {
        json!({"replicas": replicas, "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}})
    };
    // Its pods are made for it, and stay without a node.
    let deployment: Deployment =
        create(&house.of("default"), json!({"metadata": {"name": "d"}, "spec": spec(4)})).await;
    budget(&house, "share", json!({"minAvailable": "30%"})).await;
    says(&house, "share", [4, 2, 0, 0]).await;
    budget(&house, "most", json!({"maxUnavailable": 3})).await;
    says(&house, "most", [4, 1, 0, 0]).await;
    let api: Api<PodDisruptionBudget> = house.of("default");
    let status = api.get("most").await.unwrap().status.unwrap();
    let condition = &status.conditions.unwrap()[0];
    assert_eq!((condition.type_.as_str(), condition.status.as_str()), ("DisruptionAllowed", "False"));
    assert_eq!(condition.reason, "InsufficientPods");
    // Of whose owner nobody knows how many there are to be.
    let mut stray = pod("stray", json!({"labels": {"app": "b"}}));
    stray["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "m", "uid": deployment.uid().unwrap(), "controller": true}]);
    stray["metadata"]["finalizers"] = json!(["example.com/stay"]);
    create(&house.of::<Pod>("default"), stray).await;
    budget(&house, "failed", json!({"minAvailable": "50%", "selector": {"matchLabels": {"app": "b"}}})).await;
    let why = "configmaps does not implement the scale subresource";
    until(&api, "failed", |it| {
        let all = it.unwrap().status.clone().and_then(|it| it.conditions).unwrap_or_default();
        all.iter().any(|it| it.reason == "SyncFailed" && it.message == why)
    })
    .await;
    let said = format!("Failed to calculate the number of expected pods: {why}");
    house.said("default", "failed", "CalculateExpectedPodCountFailed", &said).await;
}

#[test]
fn what_a_budget_allows() {
    let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
    let a_pod = |name: &str, ready: &str, more: Value| -> Arc<Pod> {
        let mut it = pod(name, more);
        it["status"] = json!({"conditions": [{"type": "Ready", "status": ready}]});
        it["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "u",
            "controller": true}]);
        Arc::new(serde_json::from_value(it).unwrap())
    };
    let pods = [
        a_pod("a", "True", json!({})),
        a_pod("b", "True", json!({})),
        a_pod("c", "False", json!({})),
        a_pod("d", "True", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
    ];
    let recent = json!({"a": "2026-01-01T00:09:00Z", "gone": "2026-01-01T00:09:00Z"});
    let old = json!({"a": "2026-01-01T00:07:00Z"});
    for (name, spec, disrupted, want) in [
        ("a number", json!({"minAvailable": 1}), json!({}), (4, 1, 2, 1, vec![], 0)),
        ("more than there are", json!({"minAvailable": 9}), json!({}), (4, 9, 2, 0, vec![], 0)),
        ("a share, rounded up", json!({"minAvailable": "10%"}), json!({}), (8, 1, 2, 1, vec![], 0)),
        ("the most, as a share", json!({"maxUnavailable": "80%"}), json!({}), (8, 1, 2, 1, vec![], 0)),
        ("evicted a moment ago", json!({"minAvailable": 0}), recent, (4, 0, 1, 1, vec!["a"], 0)),
        ("evicted, and still there", json!({"minAvailable": 0}), old, (4, 0, 2, 2, vec![], 1)),
    ] {
        let it = json!({"metadata": {}, "spec": spec, "status": {"disruptedPods": disrupted, "currentHealthy": 0,
            "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}});
        let budget: PodDisruptionBudget = serde_json::from_value(it).unwrap();
        let found = plan(&budget, &pods, |by| Ok(Some((by.uid.clone(), 8))), now).unwrap();
        let disrupted: Vec<&str> = found.disrupted.keys().map(String::as_str).collect();
        let is = (found.expected, found.desired, found.healthy, found.allowed, disrupted, found.lingering.len());
        assert_eq!(is, want, "{name}");
        assert_eq!(found.again.is_some(), !found.disrupted.is_empty(), "{name}");
    }
}
