//! Through the server's door, with a clock that is given.

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kit::{Clock, Shutdown, Tasks};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Meta;
use super::garbage::plan::{Step, Tie, plan};
use crate::verbs::Propagation;
use crate::{ApiServer, Data, Options};

/// Long enough for any machine.
const WAIT: Duration = Duration::from_secs(120);

pub(super) struct House {
    pub(super) server: ApiServer,
    pub(super) clock: Clock,
}

pub(super) async fn house() -> House {
    house_with(None).await
}

pub(super) async fn house_with(volumes: Option<PathBuf>) -> House {
    let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let tasks = Tasks::new(Shutdown::new());
    let options = Options { data: Data::Memory, clock: clock.clone(), tasks, kubelets: None, audit: None, volumes };
    House { server: ApiServer::open(options).await.unwrap(), clock }
}

impl House {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.server.client(), "default")
    }

    pub(super) fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.server.client(), namespace)
    }

    pub(super) fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.server.client())
    }
}

impl House {
    pub(super) fn all<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::ClusterResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.server.client())
    }

    /// Waits until this was said of an object in a namespace.
    pub(super) async fn said(&self, namespace: &str, name: &str, reason: &str, message: &str) {
        let is = |it: &Event| {
            let about = it.involved_object.name.as_deref() == Some(name);
            about && it.reason.as_deref() == Some(reason) && it.message.as_deref() == Some(message)
        };
        all(&self.of::<Event>(namespace), |all| all.iter().any(is)).await;
    }
}

/// Waits until the object is as it should be; `None` is that it is gone.
pub(super) async fn until<K>(api: &Api<K>, name: &str, as_wanted: impl Fn(Option<&K>) -> bool)
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let wait = async {
        loop {
            let now = api.get_opt(name).await.unwrap();
            if as_wanted(now.as_ref()) {
                return;
            }
            let version = match now {
                Some(now) => now.resource_version().unwrap(),
                None => api.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap(),
            };
            let of_it = WatchParams::default().fields(&format!("metadata.name={name}"));
            let mut changes = std::pin::pin!(api.watch(&of_it, &version).await.unwrap());
            // Any change of it: then look again.
            while let Some(Ok(WatchEvent::Bookmark(_))) = futures::StreamExt::next(&mut changes).await {}
        }
    };
    tokio::time::timeout(WAIT, wait).await.unwrap_or_else(|_| panic!("{name} is not as it should be"));
}

/// Waits until the objects are as they should be, and returns them in order of name.
pub(super) async fn all<K>(api: &Api<K>, as_wanted: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let wait = async {
        loop {
            let listed = api.list(&Default::default()).await.unwrap();
            if as_wanted(&listed.items) {
                return listed.items;
            }
            let version = listed.metadata.resource_version.unwrap();
            let mut changes = std::pin::pin!(api.watch(&WatchParams::default(), &version).await.unwrap());
            while let Some(Ok(WatchEvent::Bookmark(_))) = futures::StreamExt::next(&mut changes).await {}
        }
    };
    tokio::time::timeout(WAIT, wait).await.unwrap_or_else(|_| panic!("they are not as they should be"))
}

/// What the events in the namespace say of an object, in order: reasons and messages.
pub(super) async fn said(house: &House, namespace: &str, name: &str, until: &str) -> Vec<(String, String)> {
    let of_it = |it: &&Event| it.involved_object.name.as_deref() == Some(name);
    let reason = |it: &Event| it.reason.clone().unwrap_or_default();
    let events = all(&house.of::<Event>(namespace), |all| all.iter().filter(of_it).any(|it| reason(it) == until)).await;
    let mut events: Vec<&Event> = events.iter().filter(of_it).collect();
    events.sort_by_key(|it| (it.metadata.creation_timestamp.clone(), it.name_any()));
    events.into_iter().map(|it| (reason(it), it.message.clone().unwrap_or_default())).collect()
}

/// Writes a part of a status, as a kubelet would.
pub(super) async fn report<K>(api: &Api<K>, name: &str, status: Value)
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

pub(super) async fn gone<K: Resource + Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str) {
    until(api, name, |it| it.is_none()).await;
}

pub(super) async fn there<K: Resource + Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str) {
    until(api, name, |it| it.is_some()).await;
}

pub(super) async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Resource + Clone + Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
}

fn map(name: &str, metadata: Value) -> Value {
    let mut it = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
    it["metadata"]["name"] = name.into();
    it
}

fn owner(it: &ConfigMap, blocks: bool) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "ConfigMap".into(),
        name: it.name_any(),
        uid: it.uid().unwrap(),
        block_owner_deletion: blocks.then_some(true),
        controller: None,
    }
}

async fn owned(api: &Api<ConfigMap>, name: &str, owners: &[OwnerReference]) -> ConfigMap {
    create(api, map(name, json!({"ownerReferences": owners}))).await
}

async fn hold<K: Resource + Clone + Debug + DeserializeOwned>(api: &Api<K>, name: &str, finalizers: Value) {
    let patch = json!({"metadata": {"finalizers": finalizers}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

fn propagated(policy: PropagationPolicy) -> DeleteParams {
    DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }
}

#[tokio::test]
async fn what_has_lost_its_owner_goes_through_all_generations() {
    let house = house().await;
    let maps = house.maps();
    let root = create(&maps, map("root", json!({}))).await;
    let other = create(&maps, map("other", json!({}))).await;
    let child = owned(&maps, "child", &[owner(&root, false)]).await;
    owned(&maps, "grandchild", &[owner(&child, false)]).await;
    owned(&maps, "shared", &[owner(&root, false), owner(&other, false)]).await;
    maps.delete("root", &propagated(PropagationPolicy::Background)).await.unwrap();
    gone(&maps, "child").await;
    gone(&maps, "grandchild").await;
    // Who has another owner stays, and forgets the lost one.
    until(&maps, "shared", |it| it.unwrap().owner_references() == [owner(&other, false)]).await;
}

#[tokio::test]
async fn an_owner_is_who_the_reference_says_by_kind_name_namespace_and_uid() {
    let house = house().await;
    let maps = house.maps();
    let real = create(&maps, map("real", json!({}))).await;
    let good = owner(&real, false);
    for (name, wrong) in [
        ("uid", OwnerReference { uid: "3b3fe4ee-0000-4000-8000-000000000000".into(), ..good.clone() }),
        ("name", OwnerReference { name: "other".into(), ..good.clone() }),
        ("kind", OwnerReference { kind: "Secret".into(), ..good.clone() }),
    ] {
        owned(&maps, name, &[wrong]).await;
        gone(&maps, name).await;
    }
    create(&house.namespaces(), json!({"metadata": {"name": "far"}})).await;
    let far = house.of::<ConfigMap>("far");
    owned(&far, "namespace", std::slice::from_ref(&good)).await;
    gone(&far, "namespace").await;
    let said = house.of::<Event>("far").list(&Default::default()).await.unwrap().items;
    let said = said.into_iter().find(|it| it.reason.as_deref() == Some("OwnerRefInvalidNamespace")).unwrap();
    let uid = &good.uid;
    let want =
        format!("ownerRef [v1/ConfigMap, namespace: far, name: real, uid: {uid}] does not exist in namespace \"far\"");
    assert_eq!((said.involved_object.name.as_deref(), said.message), (Some("namespace"), Some(want)));
    // Of a kind that is not served nobody can say that the owner is gone.
    let unknown = OwnerReference { api_version: "example.com/v1".into(), kind: "Unknown".into(), ..good.clone() };
    owned(&maps, "unknown", &[unknown]).await;
    owned(&maps, "last", &[OwnerReference { name: "nobody".into(), ..good.clone() }]).await;
    gone(&maps, "last").await;
    assert!(maps.get_opt("unknown").await.unwrap().is_some());
    assert!(maps.get_opt("real").await.unwrap().is_some());
}

#[tokio::test]
async fn an_owner_deleted_in_the_foreground_waits_for_those_who_block_it() {
    let house = house().await;
    let maps = house.maps();
    let root = create(&maps, map("root", json!({}))).await;
    let child = owned(&maps, "child", &[owner(&root, true)]).await;
    owned(&maps, "grandchild", &[owner(&child, true)]).await;
    owned(&maps, "idle", &[owner(&root, false)]).await;
    hold(&maps, "grandchild", json!(["example.com/hold"])).await;
    hold(&maps, "idle", json!(["example.com/hold"])).await;
    maps.delete("root", &propagated(PropagationPolicy::Foreground)).await.unwrap();
    until(&maps, "grandchild", |it| it.unwrap().metadata.deletion_timestamp.is_some()).await;
    until(&maps, "idle", |it| it.unwrap().metadata.deletion_timestamp.is_some()).await;
    for waits in ["root", "child"] {
        assert_eq!(maps.get(waits).await.unwrap().finalizers(), ["foregroundDeletion"], "{waits}");
    }
    hold(&maps, "grandchild", json!(null)).await;
    for name in ["grandchild", "child", "root"] {
        gone(&maps, name).await;
    }
    assert!(maps.get_opt("idle").await.unwrap().is_some(), "it does not block its owner");
}

#[tokio::test]
async fn owners_that_wait_for_each_other_go_all_the_same() {
    let house = house().await;
    let maps = house.maps();
    let a = create(&maps, map("a", json!({}))).await;
    let b = owned(&maps, "b", &[owner(&a, true)]).await;
    let patch = json!({"metadata": {"ownerReferences": [owner(&b, true)]}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    maps.delete("a", &propagated(PropagationPolicy::Foreground)).await.unwrap();
    gone(&maps, "a").await;
    gone(&maps, "b").await;
}

#[tokio::test]
async fn orphans_stay_and_forget_their_owner() {
    let house = house().await;
    let maps = house.maps();
    let root = create(&maps, map("root", json!({}))).await;
    let other = create(&maps, map("other", json!({}))).await;
    owned(&maps, "child", &[owner(&root, true)]).await;
    owned(&maps, "shared", &[owner(&root, false), owner(&other, false)]).await;
    maps.delete("root", &propagated(PropagationPolicy::Orphan)).await.unwrap();
    gone(&maps, "root").await;
    assert!(maps.get("child").await.unwrap().owner_references().is_empty());
    assert_eq!(maps.get("shared").await.unwrap().owner_references(), [owner(&other, false)]);
}

#[tokio::test]
async fn custom_resources_own_and_are_owned() {
    let house = house().await;
    let maps = house.maps();
    let definition = json!({
        "metadata": {"name": "boats.example.com"},
        "spec": {
            "group": "example.com", "scope": "Cluster",
            "names": {"plural": "boats", "singular": "boat", "kind": "Boat"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                          "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    house.server.install(vec![serde_json::from_value(definition).unwrap()]).await.unwrap();
    let kind = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk("example.com", "v1", "Boat"));
    let boats: Api<kube::api::DynamicObject> = Api::all_with(house.server.client(), &kind);
    let boat = boats.create(&PostParams::default(), &kube::api::DynamicObject::new("b", &kind)).await.unwrap();
    let of_boat = OwnerReference {
        api_version: "example.com/v1".into(),
        kind: "Boat".into(),
        name: "b".into(),
        uid: boat.uid().unwrap(),
        ..OwnerReference::default()
    };
    owned(&maps, "child", &[of_boat]).await;
    // With the definition goes the boat, and with the boat its child, although its kind is unknown by then.
    let definitions: Api<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition> =
        Api::all(house.server.client());
    definitions.delete("boats.example.com", &DeleteParams::default()).await.unwrap();
    gone(&maps, "child").await;
}

#[tokio::test]
async fn a_namespace_takes_its_content_with_it_and_says_what_it_waits_for() {
    let house = house().await;
    let namespaces = house.namespaces();
    create(&namespaces, json!({"metadata": {"name": "n"}})).await;
    let (maps, accounts) = (house.of::<ConfigMap>("n"), house.of::<ServiceAccount>("n"));
    there(&accounts, "default").await;
    create(&maps, map("c", json!({}))).await;
    create(&maps, map("held", json!({"finalizers": ["example.com/hold"]}))).await;
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    let says = |it: &Namespace, kind: &str| {
        let all = it.status.as_ref().and_then(|it| it.conditions.clone()).unwrap_or_default();
        all.into_iter().find(|it| it.type_ == kind).map(|it| (it.status, it.message.unwrap_or_default()))
    };
    let text = |status: &str, message: &str| Some((status.to_owned(), message.to_owned()));
    until(&namespaces, "n", |it| {
        let it = it.unwrap();
        says(it, "NamespaceContentRemaining")
            == text("True", "Some resources are remaining: configmaps. has 1 resource instances")
    })
    .await;
    let waits = namespaces.get("n").await.unwrap();
    assert_eq!(waits.status.as_ref().unwrap().phase.as_deref(), Some("Terminating"));
    assert_eq!(
        says(&waits, "NamespaceFinalizersRemaining"),
        text(
            "True",
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        )
    );
    assert_eq!(
        says(&waits, "NamespaceDeletionContentFailure"),
        text("False", "All content successfully deleted, may be waiting on finalization")
    );
    assert!(accounts.list(&Default::default()).await.unwrap().items.is_empty());
    assert!(maps.create(&PostParams::default(), &ConfigMap::default()).await.is_err());
    hold(&maps, "held", json!(null)).await;
    gone(&namespaces, "n").await;
    // Its name is free again, and what is made there now has nothing of the old.
    create(&namespaces, json!({"metadata": {"name": "n"}})).await;
    there(&maps, "kube-root-ca.crt").await;
    assert!(maps.get_opt("c").await.unwrap().is_none());
}

#[tokio::test]
async fn every_namespace_has_its_account_and_the_authority_whatever_is_done_to_them() {
    let house = house().await;
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        there(&house.of::<ServiceAccount>(namespace), "default").await;
        there(&house.of::<ConfigMap>(namespace), "kube-root-ca.crt").await;
    }
    let maps = house.maps();
    let good = maps.get("kube-root-ca.crt").await.unwrap().data;
    assert!(good.as_ref().unwrap()["ca.crt"].starts_with("-----BEGIN CERTIFICATE-----"));
    let patch = json!({"data": {"ca.crt": "forged", "more": "x"}});
    maps.patch("kube-root-ca.crt", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    until(&maps, "kube-root-ca.crt", |it| it.unwrap().data == good).await;
    let accounts = house.of::<ServiceAccount>("default");
    let first = accounts.get("default").await.unwrap().uid();
    accounts.delete("default", &DeleteParams::default()).await.unwrap();
    until(&accounts, "default", |it| it.is_some_and(|it| it.uid() != first)).await;
}

#[tokio::test]
async fn the_server_says_where_pods_reach_it_whatever_is_done_to_that() {
    let house = house().await;
    let services = house.of::<Service>("default");
    let (endpoints, slices) = (house.of::<Endpoints>("default"), house.of::<EndpointSlice>("default"));
    there(&services, "kubernetes").await;
    there(&endpoints, "kubernetes").await;
    there(&slices, "kubernetes").await;
    let address = services.get("kubernetes").await.unwrap().spec.unwrap().cluster_ip.unwrap();
    let subsets = endpoints.get("kubernetes").await.unwrap().subsets;
    let slice = slices.get("kubernetes").await.unwrap();
    let first = &subsets.as_ref().unwrap()[0];
    assert_eq!(first.addresses.as_ref().unwrap()[0].ip, address);
    assert_eq!(slice.endpoints[0].addresses, [address]);
    let port = &first.ports.as_ref().unwrap()[0];
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(port.port));
    // Nobody sends pods elsewhere, by a slice or by endpoints that are mirrored.
    let elsewhere =
        json!({"subsets": [{"addresses": [{"ip": "203.0.113.9"}], "ports": [{"name": "https", "port": 1}]}]});
    endpoints.patch("kubernetes", &PatchParams::default(), &Patch::Merge(elsewhere)).await.unwrap();
    until(&endpoints, "kubernetes", |it| it.unwrap().subsets == subsets).await;
    slices.delete("kubernetes", &DeleteParams::default()).await.unwrap();
    until(&slices, "kubernetes", |it| it.is_some_and(|it| it.endpoints == slice.endpoints)).await;
    let all = slices.list(&Default::default()).await.unwrap().items;
    assert_eq!(all.into_iter().map(|it| it.name_any()).collect::<Vec<_>>(), ["kubernetes"]);
}

#[tokio::test(start_paused = true)]
async fn events_go_an_hour_after_they_were_last_written() {
    let house = house().await;
    let events = house.of::<Event>("default");
    let event = |name: &str| {
        json!({"metadata": {"name": name, "namespace": "default"}, "reason": "r", "type": "Normal",
               "involvedObject": {"kind": "ConfigMap", "name": "c", "namespace": "default"}})
    };
    create(&events, event("once")).await;
    create(&events, event("again")).await;
    let minutes = async |minutes: u64| house.clock.until(house.clock.now() + Duration::from_secs(60 * minutes)).await;
    minutes(40).await;
    let patch = json!({"count": 2});
    events.patch("again", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    minutes(19).await;
    assert!(events.get_opt("once").await.unwrap().is_some());
    minutes(2).await;
    assert!(events.get_opt("once").await.unwrap().is_none());
    minutes(38).await;
    assert!(events.get_opt("again").await.unwrap().is_some());
    minutes(2).await;
    assert!(events.get_opt("again").await.unwrap().is_none());
    // The real clock had no part in it.
    assert!(house.clock.now() > "2026-01-01T01:40:00Z".parse::<Timestamp>().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_claim_in_use_and_a_bound_volume_outlive_their_deletion() {
    let house = house().await;
    let (claims, pods) = (house.of::<PersistentVolumeClaim>("default"), house.of::<Pod>("default"));
    let volumes: Api<PersistentVolume> = Api::all(house.server.client());
    let storage = json!({"storage": "1Gi"});
    let claim = |name: &str| json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": storage}}});
    let mut used = claim("used");
    used["spec"]["volumeName"] = "v".into();
    let made = create(&claims, used).await;
    assert_eq!(made.finalizers(), ["kubernetes.io/pvc-protection"]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]}});
    create(&pods, pod).await;
    create(&claims, claim("free")).await;
    let spec = json!({"capacity": storage, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}});
    create(&volumes, json!({"metadata": {"name": "v"}, "spec": spec})).await;
    let phase = |it: Option<&PersistentVolumeClaim>| it.and_then(|it| it.status.as_ref()?.phase.clone());
    until(&claims, "used", |it| phase(it).as_deref() == Some("Bound")).await;
    volumes.delete("v", &DeleteParams::default()).await.unwrap();
    claims.delete("used", &DeleteParams::default()).await.unwrap();
    claims.delete("free", &DeleteParams::default()).await.unwrap();
    // What was deleted later is gone, so those before it were looked at.
    gone(&claims, "free").await;
    assert!(claims.get("used").await.unwrap().metadata.deletion_timestamp.is_some());
    assert_eq!(volumes.get("v").await.unwrap().finalizers(), ["kubernetes.io/pv-protection"]);
    pods.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    gone(&claims, "used").await;
    // With its claim it is released.
    gone(&volumes, "v").await;
    // And what loses its protection before its time has it again.
    create(&claims, claim("bare")).await;
    hold(&claims, "bare", json!(null)).await;
    until(&claims, "bare", |it| it.is_some_and(|it| it.finalizers() == ["kubernetes.io/pvc-protection"])).await;
}

#[tokio::test]
async fn a_kind_that_nobody_acts_on_says_so_once_in_a_namespace() {
    let house = house().await;
    create(&house.namespaces(), json!({"metadata": {"name": "n"}})).await;
    let policy = |name: &str| json!({"metadata": {"name": name}, "spec": {"podSelector": {}}});
    create(&house.of::<NetworkPolicy>("n"), policy("first")).await;
    create(&house.of::<NetworkPolicy>("n"), policy("second")).await;
    create(&house.of::<NetworkPolicy>("default"), policy("other")).await;
    let events = house.of::<Event>("default");
    let name = "unattended.networkpolicies.networking.k8s.io";
    there(&events, name).await;
    let said = events.get(name).await.unwrap();
    assert_eq!(said.involved_object.name.as_deref(), Some("other"));
    assert_eq!(said.reason.as_deref(), Some("NotActedOn"));
    let all = house.of::<Event>("n").list(&Default::default()).await.unwrap().items;
    let said: Vec<_> = all.iter().map(|it| (it.name_any(), it.involved_object.name.clone().unwrap())).collect();
    assert_eq!(said, [(name.to_owned(), "first".to_owned())]);
}

#[tokio::test]
async fn a_pod_goes_with_its_namespace() {
    let house = house().await;
    create(&house.namespaces(), json!({"metadata": {"name": "n"}})).await;
    let pods = house.of::<Pod>("n");
    create(&pods, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})).await;
    house.namespaces().delete("n", &DeleteParams::default()).await.unwrap();
    gone(&house.namespaces(), "n").await;
}

#[test]
fn what_becomes_of_an_object_by_its_owners_and_dependents() {
    let meta = |it: Value| serde_json::from_value::<Meta>(it).unwrap();
    let owners = |uids: &[&str]| {
        meta(json!({"uid": "me", "ownerReferences": uids.iter().map(|it| json!({"uid": it})).collect::<Vec<_>>()}))
    };
    let going = |finalizers: &[&str]| meta(json!({"uid": "me", "deletionTimestamp": "t", "finalizers": finalizers}));
    let dependent = |blocks: bool| meta(json!({"ownerReferences": [{"uid": "me", "blockOwnerDeletion": blocks}]}));
    let delete = |propagation, unblock| Step::Delete { propagation, unblock };
    let detach = |uids: &[&str]| Step::Detach(uids.iter().map(|it| (*it).to_owned()).collect());
    let circular = meta(json!({
        "deletionTimestamp": "t", "finalizers": ["foregroundDeletion"], "ownerReferences": [{"uid": "me"}],
    }));
    let blocking = meta(json!({"uid": "me", "ownerReferences": [{"uid": "a", "blockOwnerDeletion": true}]}));
    let held = |finalizer: &str| meta(json!({"ownerReferences": [{"uid": "a"}], "finalizers": [finalizer]}));
    use Propagation::{Background, Foreground, Orphan};
    for (it, ties, dependents, want) in [
        (owners(&[]), vec![], vec![dependent(true)], Step::Nothing),
        (owners(&["a"]), vec![Tie::Solid], vec![], Step::Nothing),
        (owners(&["a"]), vec![Tie::Absent], vec![dependent(true)], delete(Background, false)),
        (held("orphan"), vec![Tie::Absent], vec![], delete(Orphan, false)),
        (held("foregroundDeletion"), vec![Tie::Absent], vec![], delete(Foreground, false)),
        (owners(&["a", "b"]), vec![Tie::Absent, Tie::Unresolved], vec![], Step::Unresolved),
        (owners(&["a", "b", "c"]), vec![Tie::Absent, Tie::Solid, Tie::Waiting], vec![], detach(&["a", "c"])),
        (owners(&["a"]), vec![Tie::Waiting], vec![], delete(Background, false)),
        (owners(&["a"]), vec![Tie::Waiting], vec![dependent(false)], delete(Foreground, false)),
        (owners(&["a"]), vec![Tie::Waiting], vec![circular.clone()], delete(Foreground, false)),
        (blocking, vec![Tie::Waiting], vec![circular], delete(Foreground, true)),
        (going(&["example.com/hold"]), vec![], vec![dependent(true)], Step::Nothing),
        (going(&["orphan"]), vec![], vec![dependent(true)], Step::Orphan),
        (going(&["foregroundDeletion"]), vec![], vec![dependent(false), dependent(true)], Step::Nothing),
        (going(&["foregroundDeletion"]), vec![], vec![dependent(false)], Step::Release("foregroundDeletion")),
    ] {
        assert_eq!(plan(&it, &ties, dependents.iter()), want, "{it:?} {ties:?} {dependents:?}");
    }
}
