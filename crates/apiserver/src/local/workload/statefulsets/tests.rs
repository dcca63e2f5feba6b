use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::claims::{self, Retention};
use super::plan::{Revision, Step, View};
use crate::local::tests::{House, all, create, gone, house, report, said, until};

fn set(spec: Value, status: Value) -> StatefulSet {
    let mut all = json!({"replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "s"}},
        "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "c"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "s", "namespace": "n", "uid": "set"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

/// `ORDINAL REVISION PHASE` and marks: `r` ready, `x` deleted.
fn pod(what: &str) -> Arc<Pod> {
    let words: Vec<&str> = what.split(' ').collect();
    let name = format!("s-{}", words[0]);
    let mut it = json!({
        "metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"),
            "labels": {"app": "s", "controller-revision-hash": words[1], "statefulset.kubernetes.io/pod-name": name}},
        "spec": {"containers": [{"name": "c"}], "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}]},
        "status": {"phase": words[2]},
    });
    if words.contains(&"r") {
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        it["status"]["conditions"] = json!([ready]);
    }
    if words.contains(&"x") {
        it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(it).unwrap())
}

/// The steps that change something: `+1 new` a pod made of a revision, `-2` one deleted.
fn steps(spec: Value, status: Value, pods: &[&str]) -> (String, String) {
    let set = set(spec, status);
    let spec = set.spec.as_ref().unwrap();
    let pods: Vec<Arc<Pod>> = pods.iter().map(|it| pod(it)).collect();
    let of = |name| Revision { name, template: &spec.template };
    let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
    let view = View { set: &set, spec, pods: &pods, current: of("old"), update: of("new"), now };
    let steps = view.plan().steps.into_iter().filter_map(|step| match step {
        Step::Create(pod, ordinal) => Some(format!("+{ordinal} {}", pod.labels()["controller-revision-hash"])),
        Step::Delete(pod) => Some(format!("-{}", pod.name_any().trim_start_matches("s-"))),
        Step::Keep(..) => None,
    });
    let status = view.status(0);
    let number = |it: Option<i32>| it.unwrap_or_default();
    let counts = format!(
        "{} {} {} {} {} {}",
        status.replicas,
        number(status.ready_replicas),
        number(status.available_replicas),
        number(status.current_replicas),
        number(status.updated_replicas),
        status.current_revision.unwrap()
    );
    (steps.collect::<Vec<_>>().join(", "), counts)
}

#[test]
fn pods_come_and_go_in_order_or_all_at_once() {
    let none = || json!({});
    let parallel = |more: Value| {
        let mut spec = json!({"podManagementPolicy": "Parallel"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let rolling = |more: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": more}});
    let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
    let all_old = ["0 old Running r", "1 old Running r", "2 old Running r"];
    for (why, spec, pods, wanted, counts) in [
        ("the first one first", none(), &[][..], "+0 new", "0 0 0 0 0 old"),
        ("the next when that is ready", none(), &["0 new Running"], "", "1 0 0 0 1 old"),
        ("now it is", none(), &["0 new Running r"], "+1 new", "1 1 1 0 1 old"),
        ("and for long enough", json!({"minReadySeconds": 30}), &["0 new Running r"], "", "1 1 0 0 1 old"),
        (
            "one that is missing before the others",
            none(),
            &["0 new Running r", "2 new Running r"],
            "+1 new",
            "2 2 2 0 2 old",
        ),
        ("all at once", parallel(none()), &["1 new Pending"], "+0 new, +2 new", "1 0 0 0 1 old"),
        (
            "from another number on",
            json!({"ordinals": {"start": 5}, "replicas": 2}),
            &["5 new Running r"],
            "+6 new",
            "1 1 1 0 1 old",
        ),
        ("one that failed goes", none(), &["0 new Failed"], "-0", "1 0 0 0 1 old"),
        ("one that succeeded, too", none(), &["0 new Succeeded"], "-0", "1 0 0 0 1 old"),
        ("one that goes is waited for", none(), &["0 new Running r x"], "", "1 1 1 0 0 old"),
        (
            "too many: the last one first",
            json!({"replicas": 1}),
            &["0 new Running r", "1 new Running r", "2 new Running r"],
            "-2",
            "3 3 3 0 3 old",
        ),
        (
            "not while another one is not ready",
            json!({"replicas": 1}),
            &["0 new Running r", "1 new Running", "2 new Running r"],
            "-2",
            "3 2 2 0 3 old",
        ),
        (
            "nor that one before the last",
            json!({"replicas": 1}),
            &["0 new Running r", "1 new Running", "2 new Running"],
            "",
            "3 1 1 0 3 old",
        ),
        (
            "all that are too many",
            parallel(json!({"replicas": 1})),
            &["0 new Running r", "1 new Running", "2 new Running r"],
            "-2, -1",
            "3 2 2 0 3 old",
        ),
        ("an update begins with the last", none(), &all_old, "-2", "3 3 3 3 0 old"),
        (
            "goes on when that is ready",
            none(),
            &["0 old Running r", "1 old Running r", "2 new Running"],
            "",
            "3 2 2 2 1 old",
        ),
        (
            "one after the other",
            none(),
            &["0 old Running r", "1 old Running r", "2 new Running r"],
            "-1",
            "3 3 3 2 1 old",
        ),
        ("and is done", none(), &["0 new Running r", "1 new Running r", "2 new Running r"], "", "3 3 3 3 3 new"),
        (
            "not below the partition",
            rolling(json!({"partition": 2})),
            &["0 old Running r", "1 old Running r", "2 new Running r"],
            "",
            "3 3 3 2 1 old",
        ),
        (
            "below it the old one comes again",
            rolling(json!({"partition": 2})),
            &["1 old Running r", "2 new Running r"],
            "+0 old",
            "2 2 2 1 1 old",
        ),
        ("several may be away", rolling(json!({"maxUnavailable": 2})), &all_old, "-2, -1", "3 3 3 3 0 old"),
        (
            "counting those that are",
            parallel(rolling(json!({"maxUnavailable": 2}))),
            &["0 old Running", "1 old Running r", "2 old Running r"],
            "-2",
            "3 2 2 3 0 old",
        ),
        ("only when somebody deletes them", on_delete.clone(), &all_old, "", "3 3 3 3 0 old"),
        ("and then they are new", on_delete, &["0 old Running r", "1 old Running r"], "+2 new", "2 2 2 2 0 old"),
    ] {
        let (done, counted) = steps(spec, none(), pods);
        assert_eq!((done.as_str(), counted.as_str()), (wanted, counts), "{why}");
    }
}

#[test]
fn claims_belong_to_whom_the_policy_says() {
    let owner = |kind: &str, name: &str, uid: &str| OwnerReference {
        api_version: if kind == "Pod" { "v1" } else { "apps/v1" }.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let (of_set, of_pod) = (|| owner("StatefulSet", "s", "set"), || owner("Pod", "s-1", "uid-s-1"));
    let stranger = || owner("Other", "o", "o");
    let uids =
        |of: Option<Vec<OwnerReference>>| of.map(|it| it.into_iter().map(|it| it.uid).collect::<Vec<_>>().join(" "));
    for (deleted, scaled, has, surplus, wanted) in [
        ("Retain", "Retain", vec![], false, None),
        ("Retain", "Retain", vec![of_set()], false, Some("")),
        ("Delete", "Retain", vec![], false, Some("set")),
        ("Delete", "Retain", vec![of_set()], true, None),
        ("Retain", "Delete", vec![], false, None),
        ("Retain", "Delete", vec![], true, Some("uid-s-1")),
        ("Delete", "Delete", vec![of_set()], true, Some("uid-s-1")),
        ("Delete", "Delete", vec![of_pod()], false, Some("set")),
        ("Delete", "Delete", vec![owner("Pod", "s-1", "older")], false, None),
        ("Delete", "Delete", vec![stranger()], false, None),
        ("Delete", "Delete", vec![stranger(), of_set()], false, Some("o")),
    ] {
        let policy = json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}});
        let set = set(policy, json!({}));
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.owner_references = Some(has.clone());
        let retention = Retention::of(set.spec.as_ref().unwrap());
        let found = claims::owners(&claim, retention, &set, &pod("1 new Running"), surplus);
        assert_eq!(uids(found).as_deref(), wanted, "{deleted} {scaled} {has:?} {surplus}");
    }
}

fn manifest(more: Value) -> Value {
    let mut spec = json!({"replicas": 2, "serviceName": "web", "selector": {"matchLabels": {"app": "s"}},
        "template": {"metadata": {"labels": {"app": "s"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}}}}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "s"}, "spec": spec})
}

fn doors(house: &House) -> (Api<StatefulSet>, Api<Pod>) {
    (house.of("default"), house.of("default"))
}

async fn run(pods: &Api<Pod>, name: &str) {
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    report(pods, name, json!({"phase": "Running", "conditions": [ready]})).await;
}

fn names(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(|it| it.name_any()).collect()
}

fn image(pod: &Pod) -> &str {
    pod.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

#[tokio::test]
async fn a_stateful_set_makes_updates_and_forgets_its_pods_in_order() {
    let house = house().await;
    let (sets, pods) = doors(&house);
    create(&sets, manifest(json!({}))).await;
    let first = all(&pods, |all| all.len() == 1).await;
    let spec = first[0].spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-0"), Some("web")));
    assert_eq!(first[0].labels()["apps.kubernetes.io/pod-index"], "0");
    run(&pods, "s-0").await;
    all(&pods, |all| names(all) == ["s-0", "s-1"]).await;
    run(&pods, "s-1").await;
    until(&sets, "s", |it| it.unwrap().status.as_ref().is_some_and(|it| it.available_replicas == Some(2))).await;
    let claims: Api<PersistentVolumeClaim> = house.of("default");
    let claimed: Vec<String> = all(&claims, |_| true).await.iter().map(|it| it.name_any()).collect();
    assert_eq!(claimed, ["data-s-0", "data-s-1"]);

    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    sets.patch("s", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    // The last one is made anew first; no pod is on a node here, so each goes at once.
    all(&pods, |all| all.iter().any(|it| it.name_any() == "s-1" && image(it) == "j")).await;
    assert_eq!(image(&pods.get("s-0").await.unwrap()), "i");
    run(&pods, "s-1").await;
    all(&pods, |all| all.iter().any(|it| it.name_any() == "s-0" && image(it) == "j")).await;
    run(&pods, "s-0").await;
    let is_done = |it: &StatefulSet| {
        let status = it.status.as_ref().unwrap();
        status.current_revision == status.update_revision && status.updated_replicas == Some(2)
    };
    until(&sets, "s", |it| is_done(it.unwrap())).await;
    let revisions: Api<ControllerRevision> = house.of("default");
    let mut numbers: Vec<i64> = all(&revisions, |_| true).await.iter().map(|it| it.revision).collect();
    numbers.sort();
    assert_eq!(numbers, [1, 2]);
    // Back to the first template: its revision becomes the last one.
    let back = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    sets.patch("s", &PatchParams::default(), &Patch::Merge(back)).await.unwrap();
    let numbers =
        |all: &[ControllerRevision]| all.iter().map(|it| it.revision).collect::<std::collections::BTreeSet<_>>();
    all(&revisions, |all| numbers(all) == [2, 3].into()).await;

    let scale = Patch::Merge(json!({"spec": {"replicas": 0}}));
    sets.patch("s", &PatchParams::default(), &scale).await.unwrap();
    all(&pods, |all| all.is_empty()).await;
    assert_eq!(all(&claims, |_| true).await.len(), 2);
    let said = said(&house, "default", "s", "SuccessfulDelete").await;
    let told = |text: &str| said.iter().any(|it| it.1 == text);
    assert!(told("create Claim data-s-0 Pod s-0 in StatefulSet s success"), "{said:?}");
    assert!(told("create Pod s-0 in StatefulSet s successful"), "{said:?}");
    assert!(told("delete Pod s-1 in StatefulSet s successful"), "{said:?}");
}

#[tokio::test]
async fn claims_go_with_what_the_policy_says() {
    let house = house().await;
    let (sets, pods) = doors(&house);
    let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    let parallel = json!({"podManagementPolicy": "Parallel", "persistentVolumeClaimRetentionPolicy": policy});
    create(&sets, manifest(parallel)).await;
    all(&pods, |all| all.len() == 2).await;
    let claims: Api<PersistentVolumeClaim> = house.of("default");
    all(&claims, |all| all.len() == 2 && all.iter().all(|it| it.owner_references().len() == 1)).await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("s", &PatchParams::default(), &scale).await.unwrap();
    gone(&claims, "data-s-1").await;
    sets.delete("s", &DeleteParams::default()).await.unwrap();
    gone(&claims, "data-s-0").await;
}
