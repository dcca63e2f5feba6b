//! Claims and volumes through the server's door, and what is decided of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::plan::{self, ClaimStep, Position, VolumeStep};
use crate::local::tests::{House, all, create, gone, house_with, until};

fn claim(name: &str, spec: Value) -> Value {
    let mut it = json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}});
    for (key, value) in spec.as_object().unwrap() {
        it["spec"][key] = value.clone();
    }
    it
}

fn volume(name: &str, spec: Value) -> Value {
    let mut it = json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Mi"}, "hostPath": {"path": "/nowhere"}}});
    for (key, value) in spec.as_object().unwrap() {
        it["spec"][key] = value.clone();
    }
    it
}

fn phase(of: &PersistentVolumeClaim) -> &str {
    of.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

fn phase_of(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
}

fn claims(house: &House) -> Api<PersistentVolumeClaim> {
    house.of("default")
}

async fn bound(house: &House, name: &str) -> PersistentVolumeClaim {
    until(&claims(house), name, |it| it.is_some_and(|it| phase(it) == "Bound")).await;
    claims(house).get(name).await.unwrap()
}

async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> Result<K, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

#[tokio::test]
async fn whatever_class_a_claim_names_it_gets_a_directory() {
    let at = tempfile::tempdir().unwrap();
    let house = house_with(Some(at.path().join("volumes"))).await;
    let classes = house.all::<StorageClass>();
    assert!(classes.get("standard").await.is_ok(), "there from the beginning");
    create(&claims(&house), claim("default", json!({}))).await;
    create(&claims(&house), claim("unknown", json!({"storageClassName": "gp3"}))).await;
    classes.delete("standard", &DeleteParams::default()).await.unwrap();
    create(&claims(&house), claim("none", json!({}))).await;
    for (name, class) in [("default", Some("standard")), ("unknown", Some("gp3")), ("none", None)] {
        let claim = bound(&house, name).await;
        let (uid, spec) = (claim.uid().unwrap(), claim.spec.clone().unwrap());
        assert_eq!(spec.storage_class_name.as_deref(), class, "{name}");
        assert_eq!(spec.volume_name, Some(format!("pvc-{uid}")));
        let notes = claim.annotations();
        for key in ["pv.kubernetes.io/bind-completed", "pv.kubernetes.io/bound-by-controller"] {
            assert_eq!(notes.get(key).map(String::as_str), Some("yes"), "{name}: {key}");
        }
        assert_eq!(notes["volume.kubernetes.io/storage-provisioner"], "kubernetes.io/host-path");
        let status = claim.status.unwrap();
        assert_eq!((status.capacity.unwrap()["storage"].0.as_str(), status.access_modes.unwrap().len()), ("10Mi", 1));
        let volume = house.all::<PersistentVolume>().get(&format!("pvc-{uid}")).await.unwrap();
        assert_eq!(phase_of(&volume), "Bound");
        assert_eq!(volume.annotations()["pv.kubernetes.io/provisioned-by"], "kubernetes.io/host-path");
        assert_eq!(volume.finalizers(), ["kubernetes.io/pv-controller", "kubernetes.io/pv-protection"]);
        let spec = volume.spec.unwrap();
        assert_eq!(spec.claim_ref.unwrap().uid, Some(uid.clone()));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
        let path = at.path().join("volumes").join(format!("pvc-{uid}"));
        assert_eq!(spec.host_path.unwrap().path, path.to_str().unwrap());
        assert!(path.is_dir());
        let said = format!("Successfully provisioned volume pvc-{uid} using kubernetes.io/host-path");
        house.said("default", name, "ProvisioningSucceeded", &said).await;
    }
    create(&claims(&house), claim("static", json!({"storageClassName": ""}))).await;
    let said = "no persistent volumes available for this claim and no storage class is set";
    house.said("default", "static", "FailedBinding", said).await;
    create(&claims(&house), claim("block", json!({"storageClassName": "c", "volumeMode": "Block"}))).await;
    let said = "Failed to provision volume with StorageClass \"c\": kubernetes.io/host-path does not support block volume provisioning";
    house.said("default", "block", "ProvisioningFailed", said).await;
}

#[tokio::test]
async fn a_claim_takes_its_volume_and_what_is_in_it_along_unless_that_is_retained() {
    let at = tempfile::tempdir().unwrap();
    let elsewhere = at.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("kept"), "x").unwrap();
    let house = house_with(Some(at.path().join("volumes"))).await;
    let volumes = house.all::<PersistentVolume>();
    let kept = json!({"metadata": {"name": "kept"}, "provisioner": "example.com/any", "reclaimPolicy": "Retain"});
    create(&house.all::<StorageClass>(), kept).await;
    create(&claims(&house), claim("gone", json!({}))).await;
    create(&claims(&house), claim("kept", json!({"storageClassName": "kept"}))).await;
    let of = |claim: PersistentVolumeClaim| claim.spec.unwrap().volume_name.unwrap();
    let (gone_volume, kept_volume) = (of(bound(&house, "gone").await), of(bound(&house, "kept").await));
    let directory = at.path().join("volumes").join(&gone_volume);
    fs::create_dir(directory.join("inner")).unwrap();
    symlink(&elsewhere, directory.join("inner/link")).unwrap();
    for name in ["gone", "kept"] {
        claims(&house).delete(name, &DeleteParams::default()).await.unwrap();
    }
    gone(&volumes, &gone_volume).await;
    assert!(!directory.exists());
    assert!(elsewhere.join("kept").exists(), "links are not followed");
    until(&volumes, &kept_volume, |it| phase_of(it.unwrap()) == "Released").await;
    assert!(at.path().join("volumes").join(&kept_volume).is_dir());
    // What was not made here is not touched, wherever it claims to be.
    for (name, path) in [("near", elsewhere.to_str().unwrap()), ("pvc-x", "/pvc-x")] {
        let spec = json!({"hostPath": {"path": path}, "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": "default", "name": "nobody", "uid": "00000000-0000-4000-8000-000000000000"}});
        create(&volumes, volume(name, spec)).await;
        until(&volumes, name, |it| phase_of(it.unwrap()) == "Failed").await;
        let why = format!("host_path deleter only supports volumes below {}", at.path().join("volumes").display());
        let why = format!("{why} but received provided {path}");
        house.said("default", name, "VolumeFailedDelete", &why).await;
    }
    assert!(elsewhere.join("kept").exists());
}

#[tokio::test]
async fn a_claim_is_bound_to_the_smallest_volume_that_will_do_or_to_the_one_that_is_kept_for_it() {
    let house = house_with(None).await;
    let volumes = house.all::<PersistentVolume>();
    let kept = json!({"storageClassName": "c", "claimRef": {"namespace": "default", "name": "reserved"}});
    for (name, spec) in [
        ("large", json!({"storageClassName": "c", "capacity": {"storage": "1Gi"}})),
        ("small", json!({"storageClassName": "c", "capacity": {"storage": "1Mi"}})),
        ("right", json!({"storageClassName": "c", "capacity": {"storage": "20Mi"}})),
        ("other", json!({"storageClassName": "d"})),
        ("reserved", kept),
    ] {
        create(&volumes, volume(name, spec)).await;
        until(&volumes, name, |it| phase_of(it.unwrap()) == "Available").await;
    }
    for (name, spec, want) in [
        ("first", json!({"storageClassName": "c"}), "right"),
        ("second", json!({"storageClassName": "c"}), "large"),
        ("reserved", json!({"storageClassName": "c"}), "reserved"),
        ("named", json!({"storageClassName": "d", "volumeName": "other"}), "other"),
    ] {
        create(&claims(&house), claim(name, spec)).await;
        let spec = bound(&house, name).await.spec.unwrap();
        assert_eq!(spec.volume_name.as_deref(), Some(want), "{name}");
    }
    // Who waits gets what comes.
    create(&claims(&house), claim("late", json!({"storageClassName": "c"}))).await;
    house.said("default", "late", "ProvisioningFailed", "storageclass.storage.k8s.io \"c\" not found").await;
    create(&volumes, volume("late", json!({"storageClassName": "c"}))).await;
    assert_eq!(bound(&house, "late").await.spec.unwrap().volume_name.as_deref(), Some("late"));
    // And who loses it says so.
    merge(&volumes, "late", json!({"metadata": {"finalizers": null}})).await.unwrap();
    volumes.delete("late", &DeleteParams::default()).await.unwrap();
    until(&volumes, "late", |it| it.is_none_or(|it| it.metadata.deletion_timestamp.is_some())).await;
    merge(&volumes, "late", json!({"metadata": {"finalizers": null}})).await.ok();
    until(&claims(&house), "late", |it| phase(it.unwrap()) == "Lost").await;
    let said = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    house.said("default", "late", "ClaimLost", said).await;
}

#[tokio::test]
async fn a_claim_waits_for_its_first_pod_and_grows_where_its_class_says_so() {
    let at = tempfile::tempdir().unwrap();
    let house = house_with(Some(at.path().to_owned())).await;
    let class = json!({"metadata": {"name": "late"}, "provisioner": "example.com/any",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true});
    create(&house.all::<StorageClass>(), class).await;
    create(&claims(&house), claim("c", json!({"storageClassName": "late"}))).await;
    let said = "waiting for first consumer to be created before binding";
    house.said("default", "c", "WaitForFirstConsumer", said).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}});
    create(&house.of::<Pod>("default"), pod).await;
    house.said("default", "c", "WaitForPodScheduled", "waiting for pod p to be scheduled").await;
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "n"}}});
    merge(&claims(&house), "c", chosen).await.unwrap();
    bound(&house, "c").await;
    let size = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
    merge(&claims(&house), "c", size("20Mi")).await.unwrap();
    let capacity = |it: &PersistentVolumeClaim| it.status.clone().unwrap().capacity.unwrap()["storage"].0.clone();
    until(&claims(&house), "c", |it| capacity(it.unwrap()) == "20Mi").await;
    house.said("default", "c", "VolumeResizeSuccessful", "Resize volume succeeded").await;
    let refused = merge(&claims(&house), "c", size("10Mi")).await.unwrap_err().to_string();
    assert!(refused.contains("field can not be less than status.capacity"), "{refused}");
    create(&claims(&house), claim("fixed", json!({}))).await;
    bound(&house, "fixed").await;
    let refused = merge(&claims(&house), "fixed", size("20Mi")).await.unwrap_err().to_string();
    assert!(refused.contains("only dynamically provisioned pvc can be resized"), "{refused}");
}

#[tokio::test]
async fn a_pod_gets_the_claims_that_it_describes_itself() {
    let at = tempfile::tempdir().unwrap();
    let house = house_with(Some(at.path().to_owned())).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": claim("", json!({}))["spec"]});
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]}});
    let pod = create(&house.of::<Pod>("default"), pod).await;
    let claim = bound(&house, "p-v").await;
    assert_eq!(claim.owner_references()[0].uid, pod.uid().unwrap());
    assert_eq!(claim.labels()["a"], "b");
    house.of::<Pod>("default").delete("p", &DeleteParams::default()).await.unwrap();
    gone(&claims(&house), "p-v").await;
    all(&house.all::<PersistentVolume>(), |all| all.is_empty()).await;
}

#[test]
fn what_becomes_of_a_claim() {
    let made = |it: Value| -> Arc<PersistentVolume> { Arc::new(serde_json::from_value(it).unwrap()) };
    let free = |name: &str, spec: Value| {
        let mut it = volume(name, spec);
        it["status"] = json!({"phase": "Available"});
        made(it)
    };
    let a_class = |mode: &str| -> StorageClass {
        let it = json!({"metadata": {"name": "c"}, "provisioner": "p", "volumeBindingMode": mode});
        serde_json::from_value(it).unwrap()
    };
    let (soon, late) = (a_class("Immediate"), a_class("WaitForFirstConsumer"));
    let of_c = |more: Value| {
        let mut it = claim("it", json!({"storageClassName": "c"}));
        it["metadata"]["uid"] = "u".into();
        it["metadata"]["namespace"] = "n".into();
        for (key, value) in more.as_object().unwrap() {
            it["spec"][key] = value.clone();
        }
        it
    };
    let c = |spec: Value| {
        let mut spec = spec;
        spec["storageClassName"] = "c".into();
        spec
    };
    let theirs = json!({"namespace": "n", "name": "it", "uid": "other"});
    let bind = |name: &str| ClaimStep::Bind(name.to_owned());
    let waits = |reason: &str| format!("Pending {reason}");
    let short = |step: ClaimStep| match step {
        ClaimStep::Pending(Some(note)) => waits(note.reason),
        step => format!("{step:?}"),
    };
    for (name, claim, volumes, class, want) in [
        (
            "fewest modes first",
            of_c(json!({})),
            vec![
                free("a", c(json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}))),
                free("b", c(json!({"capacity": {"storage": "1Gi"}}))),
            ],
            Some(&soon),
            short(bind("b")),
        ),
        (
            "labels",
            of_c(json!({"selector": {"matchLabels": {"a": "b"}}})),
            vec![free("a", c(json!({})))],
            Some(&soon),
            short(ClaimStep::Provision),
        ),
        (
            "too many modes",
            of_c(json!({"accessModes": ["ReadWriteMany"]})),
            vec![free("a", c(json!({})))],
            Some(&soon),
            short(ClaimStep::Provision),
        ),
        (
            "another's",
            of_c(json!({})),
            vec![free("a", c(json!({"claimRef": theirs})))],
            Some(&soon),
            short(ClaimStep::Provision),
        ),
        (
            "free ones wait for the scheduler",
            of_c(json!({})),
            vec![free("a", c(json!({})))],
            Some(&late),
            waits("WaitForFirstConsumer"),
        ),
        (
            "kept ones do not",
            of_c(json!({})),
            vec![free("a", c(json!({"claimRef": {"namespace": "n", "name": "it"}})))],
            Some(&late),
            short(bind("a")),
        ),
        (
            "named and too small",
            of_c(json!({"volumeName": "a"})),
            vec![free("a", c(json!({"capacity": {"storage": "1Mi"}})))],
            Some(&soon),
            waits("VolumeMismatch"),
        ),
        (
            "named and another's",
            of_c(json!({"volumeName": "a"})),
            vec![free("a", c(json!({"claimRef": theirs})))],
            Some(&soon),
            waits("FailedBinding"),
        ),
        ("named and nowhere", of_c(json!({"volumeName": "a"})), vec![], Some(&soon), short(ClaimStep::Pending(None))),
        (
            "with a source",
            of_c(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}})),
            vec![],
            None,
            waits("ProvisioningFailed"),
        ),
    ] {
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        let at = Position { volumes: &volumes, class, default_class: None, unscheduled: &[], provisions: true };
        assert_eq!(short(plan::claim(&claim, &at)), want, "{name}");
    }
    let unclassed: PersistentVolumeClaim = serde_json::from_value(claim("it", json!({}))).unwrap();
    let at = Position { volumes: &[], class: None, default_class: Some("d"), unscheduled: &[], provisions: true };
    assert_eq!(plan::claim(&unclassed, &at), ClaimStep::TakeClass("d".into()));
}

#[test]
fn what_becomes_of_a_volume_whose_claim_went_elsewhere() {
    let ours = json!({"pv.kubernetes.io/provisioned-by": "kubernetes.io/host-path"});
    let chosen = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    for (name, notes, policy, phase, want) in [
        ("made for it", ours.clone(), "Delete", "Bound", VolumeStep::Phase("Released")),
        ("made for it, and released", ours, "Delete", "Released", VolumeStep::Reclaim),
        ("chosen for it", chosen, "Retain", "Bound", VolumeStep::Unbind(true)),
        ("kept for it", json!({}), "Retain", "Bound", VolumeStep::Unbind(false)),
    ] {
        let mut it = volume(
            "v",
            json!({"persistentVolumeReclaimPolicy": policy,
            "claimRef": {"namespace": "n", "name": "c", "uid": "u"}}),
        );
        it["metadata"]["annotations"] = notes;
        it["metadata"]["finalizers"] = json!(["kubernetes.io/pv-controller"]);
        it["status"] = json!({"phase": phase});
        let mut claim = claim("c", json!({"volumeName": "other"}));
        claim["metadata"]["uid"] = "u".into();
        let (it, claim) = (serde_json::from_value(it).unwrap(), serde_json::from_value(claim).unwrap());
        assert_eq!(plan::volume(&it, Some(&claim)), want, "{name}");
    }
}
