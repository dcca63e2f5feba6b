use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::place;
use super::plan::View;
use crate::local::tests::{all, create, house, report, said, until};

fn set(spec: Value) -> DaemonSet {
    let mut all = json!({"selector": {"matchLabels": {"app": "d"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c"}], "nodeSelector": {"role": "x"}}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "d", "namespace": "n", "uid": "set"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all})).unwrap()
}

fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
    let it = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
    Arc::new(serde_json::from_value(it).unwrap())
}

/// `NAME NODE REVISION PHASE` and marks: `r` ready, `x` deleted, `u` not bound yet.
fn pod(what: &str) -> Arc<Pod> {
    let words: Vec<&str> = what.split(' ').collect();
    let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [words[1]]}]});
    let required = json!({"nodeSelectorTerms": [term]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
    let mut it = json!({
        "metadata": {"name": words[0], "namespace": "n", "uid": words[0], "labels": {"controller-revision-hash": words[2]}},
        "spec": {"containers": [{"name": "c"}], "affinity": affinity},
        "status": {"phase": words[3]},
    });
    if words.contains(&"r") {
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        it["status"]["conditions"] = json!([ready]);
    }
    if words.contains(&"x") {
        it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    if !words.contains(&"u") {
        it["spec"]["nodeName"] = json!(words[1]);
    }
    Arc::new(serde_json::from_value(it).unwrap())
}

#[test]
fn each_node_that_fits_gets_a_pod_and_they_are_renewed_within_bounds() {
    let fits = || json!({"role": "x"});
    let tainted = |effect: &str| json!([{"key": "k", "effect": effect}]);
    let nodes = [
        node("a", fits(), json!(null)),
        node("b", fits(), json!(null)),
        node("other", json!({}), json!(null)),
        node("closed", fits(), tainted("NoSchedule")),
        node("shut", fits(), tainted("NoExecute")),
        node("cordoned", fits(), json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])),
    ];
    let rolling = |more: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": more}});
    let surge = || rolling(json!({"maxUnavailable": 0, "maxSurge": 1}));
    let new = ["a0 a new Running r", "b0 b new Running r", "c0 cordoned new Running r"];
    let old = ["a0 a old Running r", "b0 b old Running r", "c0 cordoned old Running r"];
    for (why, spec, pods, created, deleted) in [
        ("none yet", json!({}), &[][..], "a b cordoned", ""),
        ("all there", json!({}), &new, "", ""),
        ("one is going", json!({}), &["a0 a new Running x", new[1], new[2]], "", ""),
        ("where it does not fit", json!({}), &[new[0], new[1], new[2], "o other new Running"], "", "o"),
        (
            "where it may stay, and where not",
            json!({}),
            &[new[0], new[1], new[2], "p closed new Running", "s shut new Running"],
            "",
            "s",
        ),
        ("failed and succeeded ones go", json!({}), &["a0 a new Failed", "b0 b new Succeeded", new[2]], "", "a0 b0"),
        ("one a node", json!({}), &[new[0], "a1 a new Running u", new[1], new[2]], "", "a1"),
        ("for a node that is gone", json!({}), &[new[0], new[1], new[2], "l lost new Pending u"], "", "l"),
        ("renewed one by one", json!({}), &old, "", "a0"),
        ("the next when that is ready", json!({}), &["a1 a new Running", old[1], old[2]], "", ""),
        ("two at once", rolling(json!({"maxUnavailable": "50%"})), &old, "", "a0 b0"),
        ("one that is not ready anyway", json!({}), &[old[0], "b0 b old Running", old[2]], "", "b0"),
        ("only when somebody deletes them", json!({"updateStrategy": {"type": "OnDelete"}}), &old, "", ""),
        ("new ones beside old ones", surge(), &old, "a", ""),
        ("waiting for the new one", surge(), &[old[0], "a1 a new Running", old[1], old[2]], "", ""),
        ("which is there", surge(), &[old[0], "a1 a new Running r", old[1], old[2]], "", "a0"),
    ] {
        let set = set(spec);
        let pods: Vec<Arc<Pod>> = pods.iter().map(|it| pod(it)).collect();
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let view = View { set: &set, spec: set.spec.as_ref().unwrap(), nodes: &nodes, pods: &pods, hash: "new", now };
        let plan = view.plan(|_| None);
        let names = plan.delete.iter().map(|it| it.name_any()).collect::<Vec<_>>().join(" ");
        assert_eq!((plan.create.join(" ").as_str(), names.as_str()), (created, deleted), "{why}");
        assert_eq!(view.status(None).desired_number_scheduled, 3, "{why}");
    }
    // A failed pod is left alone for a while.
    let (set, failed) = (set(json!({})), [pod("a0 a new Failed"), pod(new[1]), pod(new[2])]);
    let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
    let view = View { set: &set, spec: set.spec.as_ref().unwrap(), nodes: &nodes, pods: &failed, hash: "new", now };
    let until = now.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    let plan = view.plan(|_| Some(until));
    assert!(plan.delete.is_empty() && plan.again == Some(until));
    let status = view.status(None);
    assert_eq!(
        (status.number_ready, status.updated_number_scheduled, status.number_unavailable),
        (2, Some(3), Some(1))
    );
}

#[test]
fn a_pod_is_pinned_to_its_node_and_bears_its_taints() {
    let set = set(json!({}));
    let pod = place::pod(&set, &set.spec.as_ref().unwrap().template, "h", "a");
    assert_eq!(place::node_of(&pod), Some("a"));
    let spec = pod.spec.as_ref().unwrap();
    let keys: Vec<_> = spec.tolerations.iter().flatten().map(|it| it.key.clone().unwrap()).collect();
    assert_eq!(keys.len(), 6);
    assert_eq!(pod.labels()["controller-revision-hash"], "h");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_set_follows_the_nodes() {
    let house = house().await;
    let (sets, pods): (Api<DaemonSet>, Api<Pod>) = (house.of("default"), house.of("default"));
    let nodes: Api<Node> = Api::all(house.server.client());
    create(&nodes, json!({"metadata": {"name": "a"}})).await;
    let template = |image: &str| json!({"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let spec = json!({"selector": {"matchLabels": {"app": "d"}}, "template": template("i")});
    create(&sets, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    all(&pods, |all| all.len() == 1).await;
    create(&nodes, json!({"metadata": {"name": "b"}})).await;
    let on = |node: &str, all: &[Pod]| all.iter().find(|it| place::node_of(it) == Some(node)).map(|it| it.name_any());
    let made = all(&pods, |all| all.len() == 2).await;
    let ready = async |all: &[Pod]| {
        for pod in all {
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            report(&pods, &pod.name_any(), json!({"phase": "Running", "conditions": [ready]})).await;
        }
    };
    ready(&made).await;
    until(&sets, "d", |it| it.unwrap().status.as_ref().is_some_and(|it| it.number_available == Some(2))).await;
    let change = Patch::Merge(json!({"spec": {"template": template("j")}}));
    sets.patch("d", &PatchParams::default(), &change).await.unwrap();
    let image = |it: &Pod| it.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    // One after the other.
    for updated in 1..=2 {
        let mut now =
            all(&pods, |all| all.len() == 2 && all.iter().filter(|it| image(it) == "j").count() == updated).await;
        // As soon as the new one is ready, the old one goes.
        now.retain(|it| image(it) == "j");
        ready(&now).await;
    }
    until(&sets, "d", |it| it.unwrap().status.as_ref().is_some_and(|it| it.updated_number_scheduled == Some(2))).await;
    assert!(on("a", &all(&pods, |_| true).await).is_some());
    nodes.delete("b", &DeleteParams::default()).await.unwrap();
    until(&sets, "d", |it| it.unwrap().status.as_ref().is_some_and(|it| it.desired_number_scheduled == 1)).await;
    let said = said(&house, "default", "d", "SuccessfulDelete").await;
    assert!(said.iter().any(|it| it.0 == "SuccessfulCreate" && it.1.starts_with("Created pod: d-")));
}
