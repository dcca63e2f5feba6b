//! Through the door, with an API server in this process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount,
};
use kit::{Clock, Shutdown, Tasks};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::objects::{ObjectKind, locked};
use super::*;
use crate::pod::types::{Root, VolumeSource};

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "ns";

struct House {
    client: Client,
    given: Given,
    clock: Clock,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

impl House {
    async fn open() -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let clock = Clock::starting_at("2026-03-26T12:00:00Z".parse().unwrap());
        let client = testkit::api_server(&clock, &tasks).await;
        let dir = tempfile::tempdir().unwrap();
        let claims = dir.path().join("claims");
        fs::create_dir(&claims).unwrap();
        let node = NodeFacts { claims, memory: 1 << 30, ..NodeFacts::default() };
        let given = Given::new(client.clone(), node, Allowed::default(), None, clock.clone(), tasks.clone());
        let house = Self { client, given, clock, tasks, dir };
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        let all = Api::<Namespace>::all(house.client.clone());
        all.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
        house
    }

    fn all<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn create<K>(&self, it: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize,
        K: std::fmt::Debug,
    {
        self.all().create(&PostParams::default(), &serde_json::from_value(it).unwrap()).await.unwrap()
    }

    async fn patch<K>(&self, name: &str, it: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        self.all::<K>().patch(name, &PatchParams::default(), &Patch::Merge(&it)).await.unwrap();
    }

    fn dir(&self, pod: &Pod) -> std::path::PathBuf {
        self.dir.path().join(pod.metadata.uid.as_deref().unwrap())
    }

    async fn volumes(&self, pod: &Pod) -> Result<Vec<Volume>, VolumeError> {
        self.given.volumes(pod, &self.dir(pod)).await
    }

    /// A file of a pod's volume, as the pod sees it.
    fn read(&self, pod: &Pod, path: &str) -> String {
        fs::read_to_string(self.dir(pod).join("volumes").join(path)).unwrap()
    }

    async fn changed(&self, pod: &Pod) {
        tokio::time::timeout(PATIENCE, self.given.changed(pod)).await.expect("a change");
    }

    /// Calls again after each change until the volumes are as they should be.
    async fn until(&self, pod: &Pod, is: impl Fn() -> bool) {
        let wait = async {
            loop {
                if self.volumes(pod).await.is_ok() && is() {
                    return;
                }
                self.given.changed(pod).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("volumes as they should be");
    }
}

/// A pod with these volumes, which its one container mounts.
fn pod(uid: &str, volumes: Value) -> Pod {
    let named = volumes.as_array().unwrap().iter();
    let mounts: Vec<_> = named.map(|it| json!({"name": it["name"], "mountPath": format!("/{}", it["name"])})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": format!("pod-{uid}"), "namespace": NAMESPACE, "uid": uid, "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes},
    }))
    .unwrap()
}

pub(super) fn image() -> ImageFacts {
    ImageFacts {
        root: Root::Host,
        entrypoint: vec!["run".into()],
        cmd: vec![],
        env: vec![],
        cwd: String::new(),
        user: 0,
        group: 0,
        groups: vec![],
        user_name: None,
        stop_signal: None,
    }
}

#[tokio::test(start_paused = true)]
async fn updates_of_what_a_pod_was_given_reach_it() {
    let house = House::open().await;
    house.create::<ConfigMap>(json!({"metadata": {"name": "cm"}, "data": {"a": "1", "b": "2"}})).await;
    house.create::<Secret>(json!({"metadata": {"name": "s"}, "data": {"k": "aGk="}})).await;
    let pod = pod(
        "u",
        json!([
            {"name": "cm", "configMap": {"name": "cm"}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}},
            {"name": "all", "projected": {"sources": [
                {"configMap": {"name": "cm", "items": [{"key": "a", "path": "x/a"}]}}, {"secret": {"name": "s"}},
                {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            ]}},
            {"name": "e", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]),
    );
    let volumes = house.volumes(&pod).await.unwrap();
    let names: Vec<_> = volumes.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["cm", "s", "all", "e", "m"]);
    assert!(matches!(volumes[4].source, VolumeSource::Memory { size: Some(1_048_576) }));
    assert!(matches!(&volumes[3].source, VolumeSource::Path(path) if path.is_dir()));
    assert_eq!((house.read(&pod, "cm/b"), house.read(&pod, "s/k")), ("2".into(), "hi".into()));
    assert_eq!((house.read(&pod, "all/x/a"), house.read(&pod, "all/l")), ("1".into(), "a=\"b\"".into()));
    fs::write(house.dir(&pod).join("volumes/e/mine"), "x").unwrap();

    house.patch::<ConfigMap>("cm", json!({"data": {"a": "new", "b": null}})).await;
    house.changed(&pod).await;
    house.until(&pod, || house.read(&pod, "cm/a") == "new").await;
    assert_eq!(house.read(&pod, "all/x/a"), "new");
    assert!(!house.dir(&pod).join("volumes/cm/b").exists());
    assert_eq!(house.read(&pod, "e/mine"), "x");

    // What others change is nothing to this pod.
    house.create::<ConfigMap>(json!({"metadata": {"name": "other"}})).await;
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, house.given.changed(&pod)).await.is_err());
    house.all::<ConfigMap>().delete("cm", &DeleteParams::default()).await.unwrap();
    house.changed(&pod).await;
    let messages = house.volumes(&pod).await.unwrap_err().messages;
    assert_eq!(
        messages,
        [
            "MountVolume.SetUp failed for volume \"cm\" : configmap \"cm\" not found",
            "MountVolume.SetUp failed for volume \"all\" : configmap \"cm\" not found",
        ]
    );
    assert_eq!(house.read(&pod, "cm/a"), "new", "what runs keeps what it had");
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_lacks_is_said_and_its_coming_too() {
    let house = House::open().await;
    let pod = pod("u", json!([{"name": "v", "secret": {"secretName": "late"}}]));
    let why = house.volumes(&pod).await.unwrap_err();
    assert_eq!(why.messages, ["MountVolume.SetUp failed for volume \"v\" : secret \"late\" not found"]);
    house.create::<Secret>(json!({"metadata": {"name": "late"}, "data": {"k": "aGk="}})).await;
    house.changed(&pod).await;
    house.until(&pod, || house.read(&pod, "v/k") == "hi").await;

    let container: Container = serde_json::from_value(json!({
        "name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "x"}}}],
    }))
    .unwrap();
    let (image, facts) = (image(), PodFacts::default());
    let start = || house.given.container(&pod, &container, &image, 3, &facts);
    let why = start().await.unwrap_err();
    assert_eq!((why.reason, why.message.as_str()), ("CreateContainerConfigError", "configmap \"cm\" not found"));
    house.create::<ConfigMap>(json!({"metadata": {"name": "cm"}})).await;
    house.changed(&pod).await;
    // The watch may have told of what was there before the key.
    let wait = async {
        let why = start().await.unwrap_err();
        assert_eq!(why.message, "couldn't find key x in ConfigMap ns/cm");
        house.patch::<ConfigMap>("cm", json!({"data": {"x": "y"}})).await;
        house.given.changed(&pod).await;
        start().await.unwrap()
    };
    let config = tokio::time::timeout(PATIENCE, wait).await.unwrap();
    assert!(
        config.env.contains(&("A".into(), "y".into())) && config.env.contains(&("HOSTNAME".into(), "pod-u".into()))
    );
    assert_eq!((config.args, config.attempt, config.cwd.as_str()), (vec!["run".to_owned()], 3, "/"));
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn services_are_told_to_who_wants_them() {
    let house = House::open().await;
    let ports = json!([{"port": 80}]);
    house.create::<Service>(json!({"metadata": {"name": "web"}, "spec": {"ports": ports}})).await;
    let container: Container = serde_json::from_value(json!({"name": "c"})).unwrap();
    for (links, told) in [(true, true), (false, false)] {
        let mut pod = pod("u", json!([]));
        pod.spec.as_mut().unwrap().enable_service_links = Some(links);
        let config = house.given.container(&pod, &container, &image(), 0, &PodFacts::default()).await.unwrap();
        let port = config.env.iter().find(|it| it.0 == "WEB_SERVICE_PORT").map(|it| it.1.as_str());
        assert_eq!(port, told.then_some("80"));
    }
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_are_the_pods_and_renewed_before_they_end() {
    let house = House::open().await;
    house.create::<ServiceAccount>(json!({"metadata": {"name": "sa"}})).await;
    let made = house.create::<Pod>(json!({
        "metadata": {"name": "p"},
        "spec": {
            "serviceAccountName": "sa", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "t", "mountPath": "/t"}]}],
            "volumes": [{"name": "t", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": "me"}},
            ]}}],
        },
    }));
    let pod = made.await;
    let begun = house.clock.now();
    house.volumes(&pod).await.unwrap();
    let first = house.read(&pod, "t/token");
    assert_eq!(first.split('.').count(), 3);
    house.volumes(&pod).await.unwrap();
    assert_eq!(house.read(&pod, "t/token"), first);

    // Nothing else happens: time jumps.
    house.given.changed(&pod).await;
    let age = house.clock.now().duration_since(begun).as_secs();
    assert!((2870..3600).contains(&age), "{age}");
    house.volumes(&pod).await.unwrap();
    assert_ne!(house.read(&pod, "t/token"), first);

    // The account goes: what there is is used until it ends.
    house.all::<ServiceAccount>().delete("sa", &DeleteParams::default()).await.unwrap();
    house.given.changed(&pod).await;
    house.volumes(&pod).await.unwrap();
    let mut ended = Ok(vec![]);
    while ended.is_ok() {
        house.given.changed(&pod).await;
        ended = house.volumes(&pod).await;
    }
    let age = house.clock.now().duration_since(begun).as_secs();
    assert!((2870 + 3590..3600 + 3600).contains(&age), "{age}");
    let why = ended.unwrap_err().to_string();
    assert!(why.contains("refresh failed: serviceaccounts \"sa\" not found"), "{why}");
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn claims_are_directories_and_some_are_one_pods_alone() {
    let house = House::open().await;
    let volumes = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]);
    let (first, second) = (pod("one", volumes.clone()), pod("two", volumes));
    let why = house.volumes(&first).await.unwrap_err();
    assert_eq!(
        why.messages,
        [
            "Unable to attach or mount volumes: unmounted volumes=[d], unattached volumes=[], failed to process volumes=[d]: \
             error processing PVC ns/data: failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found",
        ]
    );
    let (modes, size) = (json!(["ReadWriteOncePod"]), json!({"storage": "1Mi"}));
    let claim = house.create::<PersistentVolumeClaim>(json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": modes, "resources": {"requests": size}, "volumeName": "pv", "storageClassName": ""},
    }));
    let claim = claim.await;
    let path = house.dir.path().join("claims/pv");
    let pv = json!({"metadata": {"name": "pv"}, "spec": {
        "capacity": size, "accessModes": modes, "hostPath": {"path": path},
        "claimRef": {"namespace": NAMESPACE, "name": "data", "uid": claim.metadata.uid},
    }});
    let all = Api::<PersistentVolume>::all(house.client.clone());
    all.create(&PostParams::default(), &serde_json::from_value(pv).unwrap()).await.unwrap();
    let bound = json!({"status": {"phase": "Bound"}});
    let claims = house.all::<PersistentVolumeClaim>();
    claims.patch_status("data", &PatchParams::default(), &Patch::Merge(&bound)).await.unwrap();
    house.changed(&first).await;
    house.until(&first, || true).await;
    assert!(path.is_dir());
    let volumes = house.volumes(&first).await.unwrap();
    assert!(matches!(&volumes[0].source, VolumeSource::Path(at) if at.ends_with("claims/pv")));

    let why = house.volumes(&second).await.unwrap_err().to_string();
    assert!(why.ends_with("ReadWriteOncePod access mode and is already in use by another pod"), "{why}");
    house.given.forget("one");
    house.volumes(&second).await.unwrap();
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn pods_share_a_watch_that_ends_with_the_last_of_them() {
    let house = House::open().await;
    house.create::<ConfigMap>(json!({"metadata": {"name": "cm"}})).await;
    let volumes = json!([{"name": "v", "configMap": {"name": "cm"}}]);
    let pods: Vec<_> = ["a", "b", "c"].into_iter().map(|uid| pod(uid, volumes.clone())).collect();
    for pod in &pods {
        house.volumes(pod).await.unwrap();
    }
    let watched = || {
        let pods = locked(&house.given.0.pods);
        let all = pods.values().filter_map(|it| it.watches.get(&ObjectKind::ConfigMap)).map(|it| Arc::as_ptr(&it.0));
        (pods.len(), all.collect::<HashSet<_>>().len())
    };
    assert_eq!(watched(), (3, 1));
    let watch = Arc::downgrade(&locked(&house.given.0.pods)["a"].watches[&ObjectKind::ConfigMap].0);
    pods.iter().for_each(|it| house.given.forget(it.metadata.uid.as_deref().unwrap()));
    assert!(watch.upgrade().is_none());
    house.tasks.end().await;
}

#[tokio::test]
async fn a_disk_that_holds_more_than_it_may_is_told() {
    let tasks = Tasks::new(Shutdown::new());
    let clock = Clock::starting_at("2026-03-26T12:00:00Z".parse().unwrap());
    let client = testkit::api_server(&clock, &tasks).await;
    let given = Given::new(client, NodeFacts::default(), Allowed::default(), None, clock, tasks.clone());
    let dir = tempfile::tempdir().unwrap();
    let pod = pod("u", json!([{"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "free", "emptyDir": {}}]));
    given.volumes(&pod, dir.path()).await.unwrap();
    let volumes: &Path = &dir.path().join("volumes");
    fs::write(volumes.join("free/x"), vec![1; 2 << 20]).unwrap();
    assert_eq!(given.overfull(&pod, dir.path()).await, None);
    fs::write(volumes.join("cache/x"), vec![1; 2 << 20]).unwrap();
    let message = given.overfull(&pod, dir.path()).await;
    assert_eq!(message.as_deref(), Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". "));
    tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn files_are_for_the_pods_user_and_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let house = House::open().await;
    house.create::<Secret>(json!({"metadata": {"name": "s"}, "data": {"k": "aGk="}})).await;
    let secret =
        json!([{"name": "s", "secret": {"secretName": "s", "defaultMode": 256}}, {"name": "e", "emptyDir": {}}]);
    let mut pod = pod("u", secret);
    pod.spec.as_mut().unwrap().security_context =
        serde_json::from_value(json!({"runAsUser": 1000, "fsGroup": 3000})).unwrap();
    let node = NodeFacts { ids: Ids::Slots, ..NodeFacts::default() };
    let given =
        Given::new(house.client.clone(), node, Allowed::default(), None, house.clock.clone(), house.tasks.clone());
    given.volumes(&pod, &house.dir(&pod)).await.unwrap();
    let of = |path: &str| {
        let it = fs::metadata(house.dir(&pod).join("volumes").join(path)).unwrap();
        (it.uid(), it.gid(), it.mode() & 0o7777)
    };
    assert_eq!(of("s"), (0, 3000, 0o2777));
    assert_eq!(of("s/..data"), (0, 3000, 0o2755));
    assert_eq!(of("s/k"), (0, 3000, 0o440));
    assert_eq!(of("e"), (0, 3000, 0o2777));
    house.tasks.end().await;
}
