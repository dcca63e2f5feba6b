//! Through the server's door, with a node that the test is.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::local::tests::{House, create, gone, house, until};

const NS: &str = "default";

fn nodes(house: &House) -> Api<Node> {
    Api::all(house.server.client())
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": {
        "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn pod(name: &str) -> Value {
    // However long a test takes: a node that is not heard of is none to others.
    json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "tolerations": [{"operator": "Exists"}]}})
}

/// Does what a kubelet does, in no time: what is to run is ready, what is to go goes, and the node is heard of.
async fn kubelet(house: &House) {
    tokio::select! {
        () = run(house) => {}
        () = heartbeat(house) => {}
    }
}

async fn heartbeat(house: &House) {
    loop {
        let now = house.clock.now();
        let beat = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": crate::core::time(now)}]}});
        nodes(house).patch_status("n", &PatchParams::default(), &Patch::Merge(beat)).await.unwrap();
        house.clock.until(now + Duration::from_secs(5)).await;
    }
}

async fn run(house: &House) {
    let pods = house.of::<Pod>(NS);
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
        "lastTransitionTime": crate::core::time(house.clock.now())}]}});
    loop {
        let all = pods.list(&ListParams::default()).await.unwrap();
        for pod in &all.items {
            let placed = pod.spec.as_ref().unwrap().node_name.is_some();
            let ran = pod.status.as_ref().and_then(|it| it.phase.as_deref()) != Some("Pending");
            // Either may have gone meanwhile.
            if placed && pod.metadata.deletion_timestamp.is_some() {
                let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
            } else if placed && !ran {
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&ready)).await;
            }
        }
        let from = all.metadata.resource_version.unwrap();
        let mut changes = std::pin::pin!(pods.watch(&WatchParams::default(), &from).await.unwrap());
        while let Some(Ok(WatchEvent::Bookmark(_))) = changes.next().await {}
    }
}

/// The test, on a node that works.
async fn on_a_node(house: &House, test: Pin<Box<dyn Future<Output = ()> + '_>>) {
    create(&nodes(house), node("n")).await;
    tokio::select! {
        () = kubelet(house) => {}
        () = test => {}
    }
}

/// Waits until so many of the kind's objects are as they should be, and these are all.
async fn all_are<K>(api: &Api<K>, count: usize, is: impl Fn(&K) -> bool)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let wait = async {
        loop {
            let all = api.list(&ListParams::default()).await.unwrap();
            if all.items.len() == count && all.items.iter().all(&is) {
                return;
            }
            let from = all.metadata.resource_version.unwrap();
            let mut changes = std::pin::pin!(api.watch(&WatchParams::default(), &from).await.unwrap());
            while let Some(Ok(WatchEvent::Bookmark(_))) = changes.next().await {}
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(120), wait).await;
    if ended.is_err() {
        panic!("not {count} as they should be: {:#?}", api.list(&ListParams::default()).await.unwrap().items);
    }
}

/// Waits until this was said of the object, and returns it as it was said.
async fn said(house: &House, of: &str, reason: &str, message: &str) -> Event {
    let events = house.of::<Event>(NS);
    let is = |it: &Event| {
        it.involved_object.name.as_deref() == Some(of)
            && it.reason.as_deref() == Some(reason)
            && it.message.as_deref() == Some(message)
    };
    let wait = async {
        loop {
            let all = events.list(&ListParams::default()).await.unwrap();
            if let Some(it) = all.items.into_iter().find(&is) {
                return it;
            }
            let from = all.metadata.resource_version.unwrap();
            let mut changes = std::pin::pin!(events.watch(&WatchParams::default(), &from).await.unwrap());
            while let Some(Ok(WatchEvent::Bookmark(_))) = changes.next().await {}
        }
    };
    match tokio::time::timeout(Duration::from_secs(120), wait).await {
        Ok(it) => it,
        Err(_) => {
            let all = events.list(&ListParams::default()).await.unwrap().items;
            let all: Vec<_> = all.iter().map(|it| (&it.involved_object.name, &it.reason, &it.message)).collect();
            panic!("{message} is not said of {of}: {all:#?}");
        }
    }
}

fn scheduled(pod: &Pod) -> Option<(String, String)> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let it = all.iter().find(|it| it.type_ == "PodScheduled")?;
    Some((it.status.clone(), it.message.clone().unwrap_or_default()))
}

#[tokio::test]
async fn a_pod_gets_a_node_and_it_is_said_in_the_scheduler_s_words() {
    let house = house().await;
    create(&nodes(&house), node("n")).await;
    let pods = house.of::<Pod>(NS);
    create(&pods, pod("p")).await;
    until(&pods, "p", |it| it.unwrap().spec.as_ref().unwrap().node_name.as_deref() == Some("n")).await;
    assert_eq!(scheduled(&pods.get("p").await.unwrap()), Some(("True".into(), String::new())));
    let event = said(&house, "p", "Scheduled", "Successfully assigned default/p to n").await;
    assert_eq!(event.type_.as_deref(), Some("Normal"));
    assert_eq!(event.action.as_deref(), Some("Binding"));
    assert_eq!(event.reporting_component.as_deref(), Some("default-scheduler"));
    assert!(event.event_time.is_some() && event.first_timestamp.is_none() && event.source.unwrap().component.is_none());
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_that_changes() {
    let house = house().await;
    let pods = house.of::<Pod>(NS);
    let mut it = pod("p");
    it["spec"]["nodeSelector"] = json!({"disk": "fast"});
    create(&pods, it).await;
    let none = "no nodes available to schedule pods";
    until(&pods, "p", |it| scheduled(it.unwrap()) == Some(("False".into(), none.into()))).await;
    let mut gated = pod("gated");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.com/gate"}]);
    create(&pods, gated).await;
    let mut other = pod("other");
    other["spec"]["schedulerName"] = json!("other");
    create(&pods, other).await;
    create(&nodes(&house), node("n")).await;
    let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    until(&pods, "p", |it| scheduled(it.unwrap()) == Some(("False".into(), why.into()))).await;
    let event = said(&house, "p", "FailedScheduling", why).await;
    assert_eq!((event.type_.as_deref(), event.action.as_deref()), (Some("Warning"), Some("Scheduling")));
    let labels = json!({"metadata": {"labels": {"disk": "fast"}}});
    nodes(&house).patch("n", &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    until(&pods, "p", |it| it.unwrap().spec.as_ref().unwrap().node_name.is_some()).await;
    // What is gated, or somebody else's, was not touched; then the gate is opened.
    for name in ["gated", "other"] {
        assert_eq!(pods.get(name).await.unwrap().spec.unwrap().node_name, None, "{name}");
    }
    assert_eq!(scheduled(&pods.get("other").await.unwrap()), None);
    let open = json!({"spec": {"schedulingGates": null}});
    pods.patch("gated", &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    until(&pods, "gated", |it| it.unwrap().spec.as_ref().unwrap().node_name.is_some()).await;
}

#[tokio::test]
async fn a_pod_waits_for_its_claims() {
    let house = house().await;
    create(&nodes(&house), node("n")).await;
    let (pods, claims) = (house.of::<Pod>(NS), house.of::<PersistentVolumeClaim>(NS));
    let mut it = pod("p");
    it["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    create(&pods, it).await;
    let why = |why: &str| Some(("False".to_owned(), format!("0/1 nodes are available: {why}. not found")));
    let missing = why("persistentvolumeclaim \"c\" not found");
    until(&pods, "p", |it| scheduled(it.unwrap()) == missing).await;
    // One that nothing binds by itself: a class of no name, and no volume.
    let claim = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    create(&claims, claim).await;
    let unbound = why("pod has unbound immediate PersistentVolumeClaims");
    until(&pods, "p", |it| scheduled(it.unwrap()) == unbound).await;
}

#[tokio::test]
async fn many_pods_at_once_get_no_more_than_there_is() {
    let house = house().await;
    create(&nodes(&house), node("a")).await;
    create(&nodes(&house), node("b")).await;
    let pods = house.of::<Pod>(NS);
    let mut it = pod("");
    it["metadata"]["generateName"] = json!("p-");
    it["metadata"].as_object_mut().unwrap().shift_remove("name");
    it["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
    let made = (0..20).map(|_| create(&pods, it.clone()));
    futures::future::join_all(made).await;
    // Sixteen fit; the others say so, all of them.
    let waits = |it: &Pod| {
        scheduled(it)
            .is_some_and(|it| it.0 == "False" && it.1.starts_with("0/2 nodes are available: 2 Insufficient cpu."))
    };
    all_are(&pods, 20, |it| it.spec.as_ref().unwrap().node_name.is_some() || waits(it)).await;
    let all = pods.list(&ListParams::default()).await.unwrap().items;
    let on = |name: &str| all.iter().filter(|it| it.spec.as_ref().unwrap().node_name.as_deref() == Some(name)).count();
    assert_eq!((on("a"), on("b")), (8, 8));
    let one = all.iter().find(|it| it.spec.as_ref().unwrap().node_name.is_some()).unwrap();
    pods.delete(&one.name_any(), &DeleteParams::default().grace_period(0)).await.unwrap();
    all_are(&pods, 19, |it| it.spec.as_ref().unwrap().node_name.is_some() || waits(it)).await;
    let placed = |it: &&Pod| it.spec.as_ref().unwrap().node_name.is_some();
    crate::local::tests::all(&pods, |all| all.iter().filter(placed).count() == 16).await;
}

fn set(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

async fn merge<K>(api: &Api<K>, name: &str, change: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap()
}

#[tokio::test]
async fn a_replica_set_keeps_its_number_of_pods() {
    let house = house().await;
    let (sets, pods) = (house.of::<ReplicaSet>(NS), house.of::<Pod>(NS));
    on_a_node(
        &house,
        Box::pin(async {
            let mut orphan = pod("orphan");
            orphan["metadata"]["labels"] = json!({"app": "s"});
            create(&pods, orphan).await;
            let made = create(&sets, set("s", 3)).await;
            let full = |count: i32| {
                move |it: Option<&ReplicaSet>| {
                    it.unwrap().status.as_ref().is_some_and(|it| {
                        let all = [it.ready_replicas, it.available_replicas, it.fully_labeled_replicas];
                        it.replicas == count && all.iter().all(|it| it.unwrap_or_default() == count)
                    })
                }
            };
            until(&sets, "s", full(3)).await;
            let all = pods.list(&ListParams::default()).await.unwrap().items;
            assert_eq!(all.len(), 3);
            for it in &all {
                let owner = &it.owner_references()[0];
                assert_eq!((owner.uid.as_str(), owner.controller), (made.metadata.uid.as_deref().unwrap(), Some(true)));
            }
            let own = all.iter().find(|it| it.name_any() != "orphan").unwrap().name_any();
            assert!(own.starts_with("s-") && own.len() == 7, "{own}");
            let event = said(&house, "s", "SuccessfulCreate", &format!("Created pod: {own}")).await;
            assert_eq!(event.source.unwrap().component.as_deref(), Some("replicaset-controller"));
            // One that no longer matches is let go, and replaced; one that is deleted, too.
            merge(&pods, "orphan", json!({"metadata": {"labels": {"app": "mine"}}})).await;
            until(&pods, "orphan", |it| it.unwrap().owner_references().is_empty()).await;
            pods.delete(&own, &DeleteParams::default()).await.unwrap();
            gone(&pods, &own).await;
            all_are(&pods, 4, |_| true).await;
            until(&sets, "s", full(3)).await;
            let scaled = merge(&sets, "s", json!({"spec": {"replicas": 0}})).await;
            until(&sets, "s", |it| {
                full(0)(it) && it.unwrap().status.as_ref().unwrap().observed_generation == scaled.metadata.generation
            })
            .await;
            all_are(&pods, 1, |it| it.name_any() == "orphan").await;
        }),
    )
    .await;
}

#[tokio::test]
async fn a_replication_controller_does_the_same_and_takes_its_pods_along() {
    let house = house().await;
    let (controllers, pods) = (house.of::<ReplicationController>(NS), house.of::<Pod>(NS));
    on_a_node(
        &house,
        Box::pin(async {
            let mut it = set("r", 2);
            it["spec"]["selector"] = json!({"app": "r"});
            create(&controllers, it).await;
            until(&controllers, "r", |it| {
                it.unwrap().status.as_ref().is_some_and(|it| it.available_replicas == Some(2))
            })
            .await;
            controllers.delete("r", &DeleteParams::background()).await.unwrap();
            all_are(&pods, 0, |_| true).await;
        }),
    )
    .await;
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_made_when_it_can() {
    let house = house().await;
    let (sets, quotas) = (house.of::<ReplicaSet>(NS), house.of::<ResourceQuota>(NS));
    on_a_node(
        &house,
        Box::pin(async {
            create(&quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}})).await;
            until(&quotas, "q", |it| it.unwrap().status.as_ref().is_some_and(|it| it.hard.is_some())).await;
            create(&sets, set("s", 2)).await;
            let failure = |it: Option<&ReplicaSet>| {
                let all = it.unwrap().status.as_ref().and_then(|it| it.conditions.clone()).unwrap_or_default();
                all.into_iter()
                    .find(|it| it.type_ == "ReplicaFailure")
                    .map(|it| (it.reason, it.message.unwrap_or_default()))
            };
            until(&sets, "s", |it| failure(it).is_some()).await;
            let (reason, why) = failure(Some(&sets.get("s").await.unwrap())).unwrap();
            assert_eq!(reason.as_deref(), Some("FailedCreate"));
            assert!(
                why.ends_with("is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"),
                "{why}"
            );
            said(&house, "s", "FailedCreate", &format!("Error creating: {why}")).await;
            merge(&quotas, "q", json!({"spec": {"hard": {"pods": "5"}}})).await;
            until(&sets, "s", |it| {
                failure(it).is_none() && it.unwrap().status.as_ref().unwrap().ready_replicas == Some(2)
            })
            .await;
        }),
    )
    .await;
}

fn condition(it: &Deployment, kind: &str) -> Option<(String, String, String)> {
    let all = it.status.as_ref()?.conditions.as_ref()?;
    let it = all.iter().find(|it| it.type_ == kind)?;
    Some((it.status.clone(), it.reason.clone()?, it.message.clone()?))
}

fn says(it: Option<&Deployment>, kind: &str, status: &str, reason: &str, message: &str) -> bool {
    condition(it.unwrap(), kind) == Some((status.into(), reason.into(), message.into()))
}

fn done(it: Option<&Deployment>, count: i32) -> bool {
    let it = it.unwrap();
    let reason = condition(it, "Progressing").map(|it| it.1);
    let status = it.status.clone().unwrap_or_default();
    status.observed_generation == it.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas] == [Some(count); 3]
        && status.unavailable_replicas.is_none()
        && reason.as_deref() == Some("NewReplicaSetAvailable")
}

fn image(name: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}})
}

/// The revisions of the ReplicaSets, with their sizes and histories.
async fn revisions(sets: &Api<ReplicaSet>) -> BTreeSet<(String, i32, String)> {
    let all = sets.list(&ListParams::default()).await.unwrap().items;
    let one = |it: &ReplicaSet| {
        let note =
            |name: &str| it.annotations().get(&format!("deployment.kubernetes.io/{name}")).cloned().unwrap_or_default();
        (note("revision"), it.spec.as_ref().unwrap().replicas.unwrap(), note("revision-history"))
    };
    all.iter().map(one).collect()
}

#[tokio::test]
async fn a_deployment_rolls_forth_and_back_and_remembers() {
    let house = house().await;
    let (deployments, sets) = (house.of::<Deployment>(NS), house.of::<ReplicaSet>(NS));
    let expect = |all: &[(&str, i32, &str)]| -> BTreeSet<(String, i32, String)> {
        all.iter().map(|it| (it.0.to_owned(), it.1, it.2.to_owned())).collect()
    };
    on_a_node(
        &house,
        Box::pin(async {
            let mut it = set("d", 3);
            it["spec"]["revisionHistoryLimit"] = json!(1);
            it["metadata"]["annotations"] = json!({"example.com/note": "x"});
            create(&deployments, it).await;
            until(&deployments, "d", |it| done(it, 3)).await;
            let now = deployments.get("d").await.unwrap();
            assert_eq!(now.annotations()["deployment.kubernetes.io/revision"], "1");
            let first = sets.list(&ListParams::default()).await.unwrap().items.remove(0);
            let (name, hash) = (first.name_any(), first.labels()["pod-template-hash"].clone());
            assert_eq!(name, format!("d-{hash}"));
            assert_eq!(first.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap()["pod-template-hash"], hash);
            assert_eq!(first.annotations()["example.com/note"], "x");
            assert_eq!(first.annotations()["deployment.kubernetes.io/max-replicas"], "4");
            assert!(says(
                Some(&now),
                "Progressing",
                "True",
                "NewReplicaSetAvailable",
                &format!("ReplicaSet \"{name}\" has successfully progressed.")
            ));
            assert!(says(
                Some(&now),
                "Available",
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability."
            ));
            let event =
                said(&house, "d", "ScalingReplicaSet", &format!("Scaled up replica set {name} from 0 to 3")).await;
            assert_eq!(event.reporting_component.as_deref(), Some("deployment-controller"));

            merge(&deployments, "d", image("two")).await;
            until(&deployments, "d", |it| done(it, 3)).await;
            assert_eq!(revisions(&sets).await, expect(&[("1", 0, ""), ("2", 3, "")]));
            for (from, to) in [(3, 2), (2, 1), (1, 0)] {
                said(&house, "d", "ScalingReplicaSet", &format!("Scaled down replica set {name} from {from} to {to}"))
                    .await;
            }
            // Back: the first one is the third.
            merge(&deployments, "d", image("i")).await;
            until(&deployments, "d", |it| done(it, 3)).await;
            assert_eq!(revisions(&sets).await, expect(&[("3", 3, "1"), ("2", 0, "")]));
            assert_eq!(deployments.get("d").await.unwrap().annotations()["deployment.kubernetes.io/revision"], "3");
            // One old one is kept.
            merge(&deployments, "d", image("three")).await;
            until(&deployments, "d", |it| done(it, 3)).await;
            all_are(&sets, 2, |_| true).await;
            assert_eq!(revisions(&sets).await, expect(&[("4", 3, ""), ("3", 0, "1")]));
            // Scaled, and to nothing.
            merge(&deployments, "d", json!({"spec": {"replicas": 5}})).await;
            until(&deployments, "d", |it| done(it, 5)).await;
            merge(&deployments, "d", json!({"spec": {"replicas": 0}})).await;
            all_are(&house.of::<Pod>(NS), 0, |_| true).await;
            deployments.delete("d", &DeleteParams::background()).await.unwrap();
            all_are(&sets, 0, |_| true).await;
        }),
    )
    .await;
}

#[tokio::test]
async fn a_paused_deployment_is_scaled_and_does_not_roll() {
    let house = house().await;
    let (deployments, sets) = (house.of::<Deployment>(NS), house.of::<ReplicaSet>(NS));
    on_a_node(
        &house,
        Box::pin(async {
            create(&deployments, set("d", 1)).await;
            until(&deployments, "d", |it| done(it, 1)).await;
            merge(&deployments, "d", json!({"spec": {"paused": true}})).await;
            until(&deployments, "d", |it| {
                says(it, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused")
            })
            .await;
            let mut change = image("two");
            change["spec"]["replicas"] = json!(2);
            merge(&deployments, "d", change).await;
            until(&deployments, "d", |it| it.unwrap().status.as_ref().unwrap().available_replicas == Some(2)).await;
            assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 1);
            merge(&deployments, "d", json!({"spec": {"paused": false}})).await;
            until(&deployments, "d", |it| done(it, 2)).await;
            assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 2);
        }),
    )
    .await;
}

#[tokio::test]
async fn a_recreated_deployment_never_runs_two_versions_at_once() {
    let house = house().await;
    let (deployments, pods) = (house.of::<Deployment>(NS), house.of::<Pod>(NS));
    create(&nodes(&house), node("n")).await;
    let mut it = set("d", 2);
    it["spec"]["strategy"] = json!({"type": "Recreate"});
    create(&deployments, it).await;
    tokio::select! {
        () = kubelet(&house) => {}
        () = until(&deployments, "d", |it| done(it, 2)) => {}
    }
    // Without a kubelet they stay, on their way out.
    merge(&deployments, "d", image("two")).await;
    all_are(&pods, 2, |it| it.metadata.deletion_timestamp.is_some()).await;
    let images = |it: &Pod| it.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
    let from = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    tokio::select! {
        () = kubelet(&house) => {}
        () = until(&deployments, "d", |it| done(it, 2)) => {}
    }
    let mut there = BTreeSet::from(["i".to_owned()]);
    let mut old = 2;
    let mut changes = std::pin::pin!(pods.watch(&WatchParams::default().timeout(120), &from).await.unwrap());
    while there.len() < 2 {
        match changes.next().await.unwrap().unwrap() {
            WatchEvent::Deleted(it) if images(&it) == "i" => old -= 1,
            WatchEvent::Added(it) => {
                assert_eq!((old, images(&it).as_str()), (0, "two"), "the old ones have gone");
                there.insert(images(&it));
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_does_not_get_on_says_so() {
    let house = house().await;
    let deployments = house.of::<Deployment>(NS);
    // There is no node at all.
    let mut it = set("d", 1);
    it["spec"]["progressDeadlineSeconds"] = json!(30);
    create(&deployments, it).await;
    until(&deployments, "d", |it| condition(it.unwrap(), "Progressing").is_some_and(|it| it.0 == "False")).await;
    let now = deployments.get("d").await.unwrap();
    let name = house.of::<ReplicaSet>(NS).list(&ListParams::default()).await.unwrap().items[0].name_any();
    let late = format!("ReplicaSet \"{name}\" has timed out progressing.");
    assert!(says(Some(&now), "Progressing", "False", "ProgressDeadlineExceeded", &late));
    assert!(says(
        Some(&now),
        "Available",
        "False",
        "MinimumReplicasUnavailable",
        "Deployment does not have minimum availability."
    ));
    assert_eq!(now.status.unwrap().unavailable_replicas, Some(1));
}
