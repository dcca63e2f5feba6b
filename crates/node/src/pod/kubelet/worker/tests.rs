//! A kubelet on a scripted world, with a real API server.

use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kit::{Clock, Shutdown, Tasks};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use serde_json::{Value, json};

use super::*;
use crate::pod::kubelet::stage::{NODE, Stage, ran};

const PATIENCE: Duration = Duration::from_secs(900);

struct House {
    client: Client,
    clock: Clock,
    tasks: Tasks,
    stage: Arc<Stage>,
}

impl House {
    async fn open() -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let clock = Clock::starting_at("2026-03-26T12:00:00Z".parse().unwrap());
        let client = testkit::api_server(&clock, &tasks).await;
        // What is bound to a node that is not there is taken away.
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
        let stage = Arc::new(Stage::new(clock.clone()));
        Self { client, clock, tasks, stage }
    }

    fn start(&self) -> (Kubelet<Stage>, Tasks) {
        let tasks = Tasks::new(self.tasks.shutdown().child());
        let (client, world, clock) = (self.client.clone(), self.stage.clone(), self.clock.clone());
        (start(Options { client, world, clock, tasks: tasks.clone() }), tasks)
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// A pod that is bound to the node.
    async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut all = json!({"nodeName": NODE, "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "busybox"}]});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        let it = json!({"metadata": {"name": name}, "spec": all});
        self.pods().create(&PostParams::default(), &serde_json::from_value(it).unwrap()).await.unwrap()
    }

    /// Every version of a pod from now on, until one passes; `None` is its end.
    async fn until(&self, name: &str, test: impl Fn(Option<&Pod>) -> bool) -> Vec<Pod> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut seen = Vec::new();
        let all = async {
            let mut events = std::pin::pin!(watcher(self.pods(), config));
            let mut listed = false;
            while let Some(event) = events.next().await {
                let pod = match event.unwrap() {
                    watcher::Event::Init => continue,
                    watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => Some(pod),
                    watcher::Event::InitDone if listed => continue,
                    watcher::Event::InitDone | watcher::Event::Delete(_) => None,
                };
                listed |= pod.is_some();
                let over = test(pod.as_ref());
                seen.extend(pod);
                if over {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
        seen
    }

    /// Waits until the stage has done so.
    async fn did(&self, what: &str) {
        let mut did = self.stage.did.subscribe();
        let all = did.wait_for(|all| all.iter().any(|it| it == what));
        let _ = tokio::time::timeout(PATIENCE, all).await.unwrap().unwrap();
    }

    /// Waits until there are such events of a pod, and returns reason and count of all of them, in their order.
    async fn events(&self, name: &str, last: &str) -> Vec<(String, i32)> {
        let events: Api<Event> = Api::default_namespaced(self.client.clone());
        let fields = format!("involvedObject.name={name}");
        let found = async {
            let changes = watcher(events.clone(), watcher::Config::default().fields(&fields));
            let mut changes = std::pin::pin!(changes);
            while let Some(event) = changes.try_next().await.unwrap() {
                let (watcher::Event::InitApply(event) | watcher::Event::Apply(event)) = event else { continue };
                if format!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default()) == last {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap();
        let mut all = events.list(&ListParams::default().fields(&fields)).await.unwrap().items;
        all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        all.into_iter().map(|it| (it.reason.unwrap(), it.count.unwrap())).collect()
    }
}

fn ready(it: Option<&Pod>) -> bool {
    let conditions = it.and_then(|it| it.status.as_ref()?.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
}

fn waits(it: Option<&Pod>, reason: &str) -> bool {
    let all = it.and_then(|it| it.status.as_ref()?.container_statuses.as_ref());
    let state = all.and_then(|all| all.first()?.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
    state == Some(reason)
}

fn debug<T: Debug>(it: &T) -> String {
    format!("{it:?}")
}

#[tokio::test(start_paused = true)]
async fn a_plain_pod_is_ready_after_one_write_and_gone_after_two_more() {
    let house = House::open().await;
    let _kubelet = house.start();
    let watching = house.until("p", ready);
    let creating = async {
        let made = house.create("p", json!({"terminationGracePeriodSeconds": 20})).await;
        made.metadata.uid.unwrap()
    };
    let (versions, uid) = futures::join!(watching, creating);
    // Of its creation, and of its being Ready.
    let phases: Vec<&str> = versions.iter().map(spec::phase).collect();
    assert!(matches!(phases.as_slice(), ["Running"] | ["Pending", "Running"]), "{phases:?}");
    let status = serde_json::to_value(versions.last().unwrap().status.clone().unwrap()).unwrap();
    assert_eq!(
        status["containerStatuses"][0]["user"],
        json!({"linux": {"uid": 7, "gid": 8, "supplementalGroups": [8, 9]}})
    );
    assert_eq!(status["containerStatuses"][0]["containerID"], format!("insula://{uid}-c-0"));
    assert_eq!(status["qosClass"], "BestEffort", "what others write stays");
    let events = house.events("p", "Started: Started container c").await;
    let reasons: Vec<&str> = events.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started"]);

    let watching = house.until("p", |it| it.is_none());
    let (pods, gently) = (house.pods(), DeleteParams::default());
    let deleting = pods.delete("p", &gently);
    let (versions, deleted) = futures::join!(watching, deleting);
    deleted.unwrap();
    assert_eq!(versions.last().map(spec::phase), Some("Failed"), "its end is told before it is gone");
    assert_eq!(*house.stage.did.borrow(), ["volumes", "create p", "start c", "signal 15 c", &format!("remove {uid}")]);
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_comes_back_goes_on_with_what_lives_and_ends_what_is_nobodys() {
    let house = House::open().await;
    let (_, first) = house.start();
    house.create("p", json!({})).await;
    let before = house.until("p", ready).await.pop().unwrap();
    first.end().await;
    house.stage.put("orphan", "x");
    let projected = json!({"metadata": {"name": "sandbox", "labels": {labels::PROJECTED: "true"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "sandbox", "image": "host"}]}});
    house.pods().create(&PostParams::default(), &serde_json::from_value(projected).unwrap()).await.unwrap();
    house.stage.did.send_replace(Vec::new());
    house.start();
    house.did("remove orphan").await;
    // What should change nothing has been looked at when a new one is Ready.
    house.create("q", json!({})).await;
    house.until("q", ready).await;
    let after = house.pods().get("p").await.unwrap();
    assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
    let did = house.stage.did.borrow().clone();
    assert!(!did.contains(&"create p".to_owned()) && !did.contains(&"create sandbox".to_owned()), "{did:?}");
    assert_eq!(did.iter().filter(|it| *it == "start c").count(), 1, "{did:?}");
    // A pod that was taken away by force takes its processes with it.
    let uid = before.metadata.uid.unwrap();
    house.pods().delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    house.did(&format!("remove {uid}")).await;
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn pods_find_the_labels_that_others_gave_the_node() {
    let house = House::open().await;
    let _kubelet = house.start();
    let label = json!({"metadata": {"labels": {"disk": "fast"}}});
    let nodes = Api::<Node>::all(house.client.clone());
    nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    house.create("p", json!({"nodeSelector": {"disk": "fast"}})).await;
    house.until("p", ready).await;
    house.create("q", json!({"nodeSelector": {"disk": "slow"}})).await;
    let over = |it: Option<&Pod>| it.is_some_and(|it| spec::phase(it) == "Failed");
    let status = house.until("q", over).await.pop().unwrap().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_crashes_again_and_again_is_one_event_that_counts() {
    let house = House::open().await;
    house.stage.brief.lock().unwrap().insert("c".to_owned(), 1);
    let _kubelet = house.start();
    house.create("p", json!({})).await;
    house.until("p", |it| waits(it, "CrashLoopBackOff")).await;
    let three = |it: Option<&Pod>| {
        let all = it.and_then(|it| it.status.as_ref()?.container_statuses.as_ref());
        all.is_some_and(|all| all.iter().any(|it| it.restart_count == 4))
    };
    let last = house.until("p", three).await.pop().unwrap();
    let message = format!("Back-off restarting failed container c in pod p_default({})", last.metadata.uid.unwrap());
    let events = house.events("p", &format!("BackOff: {message}")).await;
    let backoff = events.iter().find(|it| it.0 == "BackOff").unwrap();
    assert!(backoff.1 >= 2, "{events:?}");
    assert_eq!(events.iter().filter(|it| it.0 == "BackOff").count(), 1, "{events:?}");
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_nowhere_is_told_and_asked_for_again() {
    let house = House::open().await;
    house.stage.missing.lock().unwrap().insert("busybox".to_owned());
    let _kubelet = house.start();
    house.create("p", json!({})).await;
    house.until("p", |it| waits(it, "ErrImagePull")).await;
    house.until("p", |it| waits(it, "ImagePullBackOff")).await;
    let events = house.events("p", "Failed: Error: ImagePullBackOff").await;
    let reasons: Vec<&str> = events.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(reasons, ["Pulling", "Failed", "Failed", "BackOff", "Failed"]);
    house.stage.missing.lock().unwrap().clear();
    house.until("p", ready).await;
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn hooks_run_and_one_that_hangs_is_cut_off() {
    let house = House::open().await;
    house.stage.commands.lock().unwrap().insert("hello".to_owned(), ran(1, "no"));
    let _kubelet = house.start();
    let hooks =
        |hook: &str| json!({"name": "c", "image": "busybox", "lifecycle": {hook: {"exec": {"command": ["hello"]}}}});
    house.create("p", json!({"containers": [hooks("postStart")]})).await;
    house.until("p", |it| waits(it, "PostStartHookError")).await;
    let events = house.events("p", "Killing: FailedPostStartHook").await;
    let reasons: Vec<&str> = events.iter().map(|it| it.0.as_str()).take(5).collect();
    assert_eq!(reasons, ["Pulled", "Created", "Started", "FailedPostStartHook", "Killing"]);

    house.stage.commands.lock().unwrap().clear();
    house.create("q", json!({"containers": [hooks("preStop")], "terminationGracePeriodSeconds": 7})).await;
    house.until("q", ready).await;
    let began = house.clock.now();
    house.pods().delete("q", &DeleteParams::default()).await.unwrap();
    house.until("q", |it| it.is_none()).await;
    let took = house.clock.now().duration_since(began).as_secs();
    assert_eq!(took, 7, "the hook had all the time that there was");
    house.events("q", "FailedPreStopHook: PreStopHook failed").await;
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn when_the_node_ends_pods_end_in_order_and_within_their_time_and_run_again() {
    let house = House::open().await;
    let (kubelet, tasks) = house.start();
    let container = |name: &str, hook: &str| {
        let hook = json!({"preStop": {"exec": {"command": [hook]}}});
        json!([{"name": name, "image": "busybox", "lifecycle": hook}])
    };
    house.stage.commands.lock().unwrap().insert("quick".to_owned(), ran(0, ""));
    let critical = json!({"containers": container("late", "quick"), "priorityClassName": "system-node-critical"});
    house.create("critical", critical).await;
    for (name, hook, grace) in [("polite", "quick", 30), ("slow", "hangs", 30), ("brief", "hangs", 1)] {
        let spec = json!({"containers": container(name, hook), "terminationGracePeriodSeconds": grace});
        house.create(name, spec).await;
    }
    for name in ["critical", "polite", "slow", "brief"] {
        house.until(name, ready).await;
    }
    let before = house.stage.did.borrow().len();
    let began = house.clock.now();
    kubelet.close(Duration::from_secs(9)).await;
    let took = house.clock.now().duration_since(began).as_secs();
    assert_eq!(took, 6, "the critical one needed none of its time");
    let did: Vec<String> = house.stage.did.borrow()[before..].to_vec();
    let at = |what: &str| did.iter().position(|it| it == what).unwrap_or_else(|| panic!("{what} in {did:?}"));
    assert!(at("signal 15 polite") < at("signal 15 late") && at("signal 15 brief") < at("signal 15 late"), "{did:?}");
    assert!(house.stage.list().iter().all(|it| !it.alive));
    assert_eq!(at("signal 15 late") + 2, did.len(), "{did:?}");
    // What comes now is the next node's.
    house.create("new", json!({})).await;
    tasks.end().await;
    for it in house.pods().list(&ListParams::default()).await.unwrap() {
        let running = spec::phase(&it) == "Running";
        assert_eq!(running, it.metadata.name.as_deref() != Some("new"), "{:?}", it.metadata.name);
    }
    let _next = house.start();
    for name in ["critical", "polite", "slow", "brief", "new"] {
        let again = |it: Option<&Pod>| {
            it.is_some_and(|it| ready(Some(it)) && house.stage.state(spec::uid(it)).is_some_and(|it| it.alive))
        };
        house.until(name, again).await;
    }
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn probes_are_acted_on_and_told() {
    let house = House::open().await;
    house.stage.commands.lock().unwrap().insert("look".to_owned(), ran(1, "not yet"));
    let _kubelet = house.start();
    let probe = json!({"exec": {"command": ["look"]}, "periodSeconds": 3});
    let spec = json!({"containers": [{"name": "c", "image": "busybox", "readinessProbe": probe}]});
    house.create("p", spec).await;
    house.events("p", "Unhealthy: Readiness probe failed: not yet").await;
    assert!(!ready(Some(&house.pods().get("p").await.unwrap())));
    house.stage.commands.lock().unwrap().insert("look".to_owned(), ran(0, ""));
    house.until("p", ready).await;
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_is_given_is_brought_up_to_date_with_its_labels_and_what_it_is_made_of() {
    let house = House::open().await;
    let _kubelet = house.start();
    let items = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    house.create("p", json!({"volumes": [{"name": "v", "downwardAPI": {"items": items}}]})).await;
    house.until("p", ready).await;
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    house.pods().patch("p", &PatchParams::default(), &Patch::Merge(&labels)).await.unwrap();
    let mut did = house.stage.did.subscribe();
    for times in [2, 3] {
        let made = did.wait_for(|all| all.iter().filter(|it| *it == "volumes").count() >= times);
        let _ = tokio::time::timeout(PATIENCE, made).await.unwrap().unwrap();
        house.stage.changed.notify_one();
    }
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_pods_that_do_not_both_fit_one_runs() {
    let house = House::open().await;
    let resources = json!({"requests": {"cpu": "3"}});
    let wants = json!({"containers": [{"name": "c", "image": "busybox", "resources": resources}]});
    for name in ["a", "b"] {
        house.create(name, wants.clone()).await;
    }
    let _kubelet = house.start();
    let mut reasons = Vec::new();
    for name in ["a", "b"] {
        let seen = house.until(name, |it| ready(it) || it.is_some_and(|it| spec::phase(it) == "Failed")).await;
        reasons.extend(seen.last().unwrap().status.as_ref().unwrap().reason.clone());
    }
    assert_eq!(reasons, ["OutOfcpu"]);
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_pod_had_is_free_when_it_is_gone_though_it_is_still_being_cleared_up() {
    let house = House::open().await;
    let _kubelet = house.start();
    let ports = json!([{"containerPort": 80, "hostPort": 80}]);
    let wants = json!({"containers": [{"name": "c", "image": "busybox", "ports": ports}]});
    house.create("a", wants.clone()).await;
    house.until("a", ready).await;
    let held = house.stage.ends.write().await;
    house.pods().delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    house.create("b", wants).await;
    let seen = house.until("b", |it| ready(it) || it.is_some_and(|it| spec::phase(it) == "Failed")).await;
    assert_eq!(spec::phase(seen.last().unwrap()), "Running", "{seen:?}");
    drop(held);
    house.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_node_may_refuse_and_evict_and_a_strangers_status_is_set_right() {
    let house = House::open().await;
    let (kubelet, _tasks) = house.start();
    house.create("refused", json!({"hostNetwork": true})).await;
    let over = |it: Option<&Pod>| it.is_some_and(|it| spec::phase(it) == "Failed");
    let refused = house.until("refused", over).await.pop().unwrap().status.unwrap();
    assert_eq!(refused.reason.as_deref(), Some("HostNetworkForbidden"));
    assert_eq!(refused.message.as_deref(), Some("Pod was rejected: not here"));

    house.create("p", json!({})).await;
    let pod = house.until("p", ready).await.pop().unwrap();
    let wrong = json!({"status": {"podIP": "9.9.9.9", "podIPs": [{"ip": "9.9.9.9"}]}});
    let right = |it: Option<&Pod>| it.is_some_and(|it| debug(&it.status).contains("10.1.0.2"));
    for _ in 0..3 {
        house.pods().patch_status("p", &PatchParams::default(), &Patch::Merge(&wrong)).await.unwrap();
        house.until("p", right).await;
    }

    kubelet.evict(spec::uid(&pod), "The node was low on resource: memory. ".to_owned(), true);
    let evicted = house.until("p", over).await.pop().unwrap().status.unwrap();
    assert_eq!(evicted.reason.as_deref(), Some("Evicted"));
    let target = evicted.conditions.unwrap().into_iter().find(|it| it.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.reason.as_deref(), Some("TerminationByKubelet"));
    house.tasks.end().await;
}
