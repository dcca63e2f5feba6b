use serde_json::{Value, json};

use crate::House;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(spec: Value) -> Value {
    let mut it = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().unwrap() {
        it["spec"][key] = value.clone();
    }
    it
}

#[tokio::test]
async fn a_pod_gets_what_its_runtime_class_asks_for() {
    let house = House::open().await;
    let class = json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "c"}, "handler": "h",
        "overhead": {"podFixed": {"cpu": "250m"}},
        "scheduling": {"nodeSelector": {"k": "v"}, "tolerations": [{"key": "t", "operator": "Exists"}]}});
    house.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await.is(201);
    for (spec, why) in [
        (json!({"runtimeClassName": "none"}), "pod rejected: RuntimeClass \"none\" not found"),
        (
            json!({"overhead": {"cpu": "1"}}),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            json!({"runtimeClassName": "c", "overhead": {"cpu": "1"}}),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            json!({"runtimeClassName": "c", "nodeSelector": {"k": "w"}}),
            "conflict: runtimeClass.scheduling.nodeSelector[k] = v; pod.spec.nodeSelector[k] = w",
        ),
    ] {
        let refused = house.post(PODS, &pod(spec)).await.is(403);
        assert_eq!(refused["message"], format!("pods \"p\" is forbidden: {why}"));
    }
    let wanted = pod(json!({"runtimeClassName": "c", "overhead": {"cpu": "0.25"}, "nodeSelector": {"own": "x"},
        "tolerations": [{"key": "t", "operator": "Equal", "value": "covered"}]}));
    let spec = house.post(PODS, &wanted).await.is(201)["spec"].clone();
    assert_eq!(spec["nodeSelector"], json!({"own": "x", "k": "v"}));
    let keys: Vec<_> = spec["tolerations"].as_array().unwrap().iter().map(|it| it["key"].clone()).collect();
    assert_eq!(keys, ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "t"]);
}

#[tokio::test]
async fn a_pods_priority_is_that_of_its_class_and_two_classes_are_always_there() {
    const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";
    let house = House::open().await;
    let refused = house.delete(&format!("{CLASSES}/system-node-critical")).await.is(403);
    let why = "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system priority class and cannot be deleted";
    assert_eq!(refused["message"], why);
    let critical = pod(json!({"priorityClassName": "system-cluster-critical"}));
    let spec = house.post(PODS, &critical).await.is(201)["spec"].clone();
    assert_eq!((&spec["priority"], &spec["preemptionPolicy"]), (&json!(2_000_000_000), &json!("PreemptLowerPriority")));
    house.delete(&format!("{PODS}/p")).await.is(200);
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "low"},
        "value": 5, "preemptionPolicy": "Never", "globalDefault": true});
    house.post(CLASSES, &class).await.is(201);
    for (field, given, message) in [
        (
            "priority",
            json!(7),
            "the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 5 from the given PriorityClass name",
        ),
        (
            "preemptionPolicy",
            json!("PreemptLowerPriority"),
            "the string value of PreemptionPolicy (PreemptLowerPriority) must not be provided in pod spec; priority admission controller computed Never from the given PriorityClass name",
        ),
    ] {
        let mut spec = json!({});
        spec[field] = given;
        let refused = house.post(PODS, &pod(spec)).await.is(403);
        assert_eq!(refused["message"], format!("pods \"p\" is forbidden: {message}"));
    }
    let spec = house.post(PODS, &pod(json!({}))).await.is(201)["spec"].clone();
    let is = (&spec["priorityClassName"], &spec["priority"], &spec["preemptionPolicy"]);
    assert_eq!(is, (&json!("low"), &json!(5), &json!("Never")));
}

#[tokio::test]
async fn a_pod_without_a_node_goes_at_once_and_one_with_a_node_when_that_has_ended_it_or_by_force() {
    let house = House::open().await;
    house.post(PODS, &pod(json!({}))).await.is(201);
    let deleted = house.delete(&format!("{PODS}/p")).await.is(200);
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 0);
    house.get(&format!("{PODS}/p")).await.is(404);

    let somewhere = pod(json!({"nodeName": "n", "terminationGracePeriodSeconds": 7}));
    house.post(PODS, &somewhere).await.is(201);
    let path = format!("{PODS}/p");
    for (query, grace) in
        [("", 7), ("?gracePeriodSeconds=20", 7), ("?gracePeriodSeconds=3", 3), ("?gracePeriodSeconds=-1", 1)]
    {
        let going = house.delete(&format!("{path}{query}")).await.is(200);
        assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], grace, "{query}");
        assert!(going["metadata"]["deletionTimestamp"].is_string());
        house.get(&path).await.is(200);
    }
    house.delete(&format!("{path}?gracePeriodSeconds=0")).await.is(200);
    house.get(&path).await.is(404);
    // What has ended has nothing left to wait for.
    house.post(PODS, &somewhere).await.is(201);
    house.patch(&format!("{path}/status"), "merge", &json!({"status": {"phase": "Succeeded"}})).await.is(200);
    house.delete(&path).await.is(200);
    house.get(&path).await.is(404);
}
