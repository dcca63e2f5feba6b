//! What Kubernetes sees of a node: a real API server, and a node that says what a test lets it say. The last story has both
//! for real.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use api::labels;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event as Told, Namespace, Node, Pod};
use k8s_openapi::{NamespaceResourceScope, Resource};
use kit::{Clock, Shutdown, Tasks};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config, watch_object, watcher};
use kube::{Api, Client, ResourceExt};
use node::projection::{self, Options};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio::sync::{broadcast, watch};
use wire::node::{Ability, Bind, Event, Limits, Phase, Quota, Sandbox};

use crate::cell::Cell;

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "here";

/// A node as its protocol shows it.
#[derive(Clone)]
struct Scripted {
    state: Arc<Mutex<BTreeMap<String, Sandbox>>>,
    /// What happens; `None` cuts everybody off.
    changes: broadcast::Sender<Option<Event>>,
    away: watch::Sender<bool>,
    /// Whether sandboxes that shall end do.
    ends: watch::Sender<bool>,
    tasks: Tasks,
}

impl Scripted {
    fn new(tasks: &Tasks) -> Self {
        let (changes, away, ends) = (broadcast::channel(64).0, watch::Sender::new(false), watch::Sender::new(true));
        Self { state: Arc::default(), changes, away, ends, tasks: tasks.clone() }
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<String, Sandbox>> {
        self.state.lock().unwrap()
    }

    /// This is now so.
    fn say(&self, sandbox: Sandbox) {
        let mut state = self.state();
        match sandbox.phase {
            Phase::Ended => drop(state.remove(&sandbox.id)),
            _ => drop(state.insert(sandbox.id.clone(), sandbox.clone())),
        }
        let _ = self.changes.send(Some(Event::Changed { sandbox }));
    }

    /// `None` where there is no such sandbox.
    fn set(&self, id: &str, phase: Phase) -> Option<Sandbox> {
        let found = self.state().get(id).cloned();
        let sandbox = Sandbox { phase, ..found? };
        self.say(sandbox.clone());
        Some(sandbox)
    }

    fn go_away(&self, away: bool) {
        self.away.send_replace(away);
        let _ = self.changes.send(None);
    }

    async fn connect(self) -> io::Result<DuplexStream> {
        if *self.away.borrow() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let tasks = self.tasks.clone();
        let service = service_fn(move |request| {
            let node = self.clone();
            async move { Ok::<_, Infallible>(node.answer(request).await) }
        });
        tasks.tenant("scripted node", async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service).await;
        });
        Ok(ours)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let line = |it: Value| Response::new(Full::from(it.to_string()).boxed_unsync());
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/node") => line(json!(wire::node::Node {
                generation: 1,
                version: "7.8.9".into(),
                can: BTreeMap::from([("userns".into(), Ability { ok: true, why: String::new() })]),
                quota: Quota::Counted,
                sandboxes: 0,
            })),
            (&Method::GET, "/v1/watch") => {
                let changes = self.changes.subscribe();
                let all = Event::All { sandboxes: self.state().values().cloned().collect() };
                let changes = stream::unfold(changes, |mut changes| async {
                    Some((changes.recv().await.ok().flatten()?, changes))
                });
                let lines = stream::iter([all])
                    .chain(changes)
                    .map(|event| Ok(Frame::data(Bytes::from(serde_json::to_string(&event).unwrap() + "\n"))));
                Response::new(StreamBody::new(lines).boxed_unsync())
            }
            (&Method::DELETE, path) => {
                let id = path.strip_prefix("/v1/sandboxes/").unwrap();
                self.set(id, Phase::Ending);
                self.ends.subscribe().wait_for(|it| *it).await.unwrap();
                if let Some(it) = self.set(id, Phase::Ended) {
                    return line(json!(it));
                }
                let gone = wire::node::Problem { code: wire::node::Code::Gone, message: id.to_owned() };
                let mut response = line(json!(gone));
                *response.status_mut() = http::StatusCode::NOT_FOUND;
                response
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A sandbox that is somebody's: the Pod `me-<id>` in the namespace.
fn bound(id: &str, namespace: &str) -> Sandbox {
    let all = [
        (labels::POD_NAMESPACE, namespace),
        (labels::POD, &format!("me-{id}")),
        (labels::INSTANCE, "me"),
        (labels::AGENT_RUN, "first"),
    ];
    Sandbox {
        id: id.into(),
        phase: Phase::Running,
        bound: true,
        labels: all.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        limits: Limits { memory: Some(2 << 30), cpu: Some(500), ..Limits::default() },
        hostname: format!("me-{id}"),
        workspace: None,
        created: "2026-03-26T11:59:58.25Z".into(),
        adopted: false,
        exit: None,
    }
}

/// An API server, and a node whose projection has begun.
struct House {
    client: Client,
    clock: Clock,
    tasks: Tasks,
    projection: Tasks,
    node: Scripted,
}

impl House {
    async fn open() -> Self {
        let house = Self::furnish().await;
        house.project();
        house
    }

    /// Before the projection.
    async fn furnish() -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let clock = Clock::starting_at("2026-03-26T12:00:00Z".parse().unwrap());
        let client = testkit::api_server(&clock, &tasks).await;
        let projection = Tasks::new(tasks.shutdown().child());
        Self { node: Scripted::new(&tasks), client, clock, tasks, projection }
    }

    fn project(&self) {
        let node = self.node.clone();
        let options = Options::new(self.client.clone(), NODE, "/", self.clock.clone(), self.projection.clone());
        projection::start(options, move || node.clone().connect());
    }

    async fn create<K>(&self, it: Value) -> K
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + serde::Serialize,
        K: std::fmt::Debug,
    {
        let it: K = serde_json::from_value(it).unwrap();
        let all = Api::namespaced(self.client.clone(), it.meta().namespace.as_deref().unwrap_or("default"));
        all.create(&PostParams::default(), &it).await.unwrap()
    }

    async fn pod(&self, name: &str, test: impl Fn(&Value) -> bool) -> Value {
        let pods = Api::<Pod>::default_namespaced(self.client.clone());
        until(&pods, name, |it| it.is_some_and(&test)).await
    }

    async fn no_pod(&self, name: &str) {
        let pods = Api::<Pod>::default_namespaced(self.client.clone());
        until(&pods, name, |it| it.is_none()).await;
    }

    async fn delete(&self, name: &str, how: DeleteParams) {
        let pods = Api::<Pod>::default_namespaced(self.client.clone());
        pods.delete(name, &how).await.unwrap();
    }

    /// Waits until the node does not know the sandbox any more.
    async fn ended(&self, id: &str) {
        let mut changes = self.node.changes.subscribe();
        let gone = async {
            while self.node.state().contains_key(id) {
                changes.recv().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }

    /// Of the given time, which jumps.
    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn end(self) {
        self.projection.end().await;
        self.tasks.end().await;
    }
}

/// Waits until an object, or that there is none, is as `test` says.
async fn until<K>(all: &Api<K>, name: &str, test: impl Fn(Option<&Value>) -> bool) -> Value
where
    K: Resource + kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    let mut last = None;
    let mut seen = std::pin::pin!(watch_object(all.clone(), name));
    let found = tokio::time::timeout(PATIENCE, async {
        while let Some(it) = seen.try_next().await.unwrap() {
            last = it.map(|it| json!(it));
            if test(last.as_ref()) {
                return;
            }
        }
    });
    assert!(found.await.is_ok(), "{name} stays {last:#?}");
    last.unwrap_or_default()
}

fn condition<'a>(it: &'a Value, type_: &str) -> &'a Value {
    let all = it["status"]["conditions"].as_array();
    all.and_then(|all| all.iter().find(|it| it["type"] == type_)).unwrap_or(&Value::Null)
}

fn is_ready(it: &Value) -> bool {
    condition(it, "Ready")["status"] == "True"
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_is_a_pod_while_it_is_somebodys() {
    let house = House::open().await;
    let warm = Sandbox { bound: false, labels: BTreeMap::new(), ..bound("w", "default") };
    house.node.say(warm);
    let pods = Api::<Pod>::default_namespaced(house.client.clone());
    let mut of_a_short_run = std::pin::pin!(watch_object(pods, "me-s"));
    assert!(of_a_short_run.next().await.unwrap().unwrap().is_none());
    house.node.say(bound("s", "default"));
    house.pass(Duration::from_millis(100)).await;
    house.node.set("s", Phase::Ended);
    house.node.say(bound("a", "default"));
    let pod = house.pod("me-a", is_ready).await;
    assert_eq!(
        pod["metadata"]["labels"],
        json!({
            "app.kubernetes.io/managed-by": "insula", "insula.dev/projected": "true", "sympozium.ai/agent-run": "first",
            "sympozium.ai/component": "agent-run", "sympozium.ai/instance": "me",
        })
    );
    let container = &pod["spec"]["containers"][0];
    assert_eq!((&pod["spec"]["nodeName"], &container["name"]), (&json!(NODE), &json!("sandbox")));
    assert_eq!(
        container["resources"],
        json!({
            "limits": {"cpu": "500m", "memory": "2Gi"}, "requests": {"cpu": "0", "memory": "0"},
        })
    );
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    for type_ in ["PodScheduled", "Initialized", "ContainersReady"] {
        assert_eq!(condition(&pod, type_)["status"], "True");
    }
    let told = &status["containerStatuses"][0];
    assert_eq!(told["containerID"], "insula://a");
    assert_eq!(told["state"]["running"]["startedAt"], "2026-03-26T11:59:58Z");

    let shown = tokio::time::timeout(PATIENCE, of_a_short_run.next()).await;
    assert!(shown.is_err(), "it was gone before anybody could look: {shown:?}");

    house.node.set("a", Phase::Frozen);
    let frozen = house.pod("me-a", |it| !is_ready(it)).await;
    assert_eq!(condition(&frozen, "Ready")["reason"], "Frozen");
    assert_eq!(frozen["status"]["containerStatuses"][0]["ready"], false);
    house.node.set("a", Phase::Running);
    house.pod("me-a", is_ready).await;

    house.node.set("a", Phase::Ended);
    house.no_pod("me-a").await;
    assert!(house.node.state().contains_key("w"), "a warm one is no Pod, and nobody ends it");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_takes_its_sandbox_with_it_and_is_gone_when_that_is() {
    let house = House::open().await;
    house.node.ends.send_replace(false);
    house.node.say(bound("a", "default"));
    house.pod("me-a", is_ready).await;
    house.delete("me-a", DeleteParams::default()).await;
    let mut changes = house.node.changes.subscribe();
    while house.node.state()["a"].phase != Phase::Ending {
        changes.recv().await.unwrap();
    }
    let pod = house.pod("me-a", |_| true).await;
    assert!(pod["metadata"]["deletionTimestamp"].is_string(), "it is still there: {pod:#?}");
    house.node.ends.send_replace(true);
    house.no_pod("me-a").await;
    assert!(!house.node.state().contains_key("a"));

    // Taken away without a word, as `kubectl delete --force` does.
    house.node.say(bound("b", "default"));
    house.pod("me-b", is_ready).await;
    house.delete("me-b", DeleteParams::default().grace_period(0)).await;
    house.ended("b").await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_another_life_left_goes_and_what_is_a_persons_stays() {
    let house = House::furnish().await;
    let container = json!([{"name": "c", "image": "busybox"}]);
    house
        .create::<Pod>(json!({
            "metadata": {"name": "left", "labels": {labels::PROJECTED: "true"}, "annotations": {labels::SANDBOX: "gone"}},
            "spec": {"nodeName": NODE, "containers": container},
        }))
        .await;
    let theirs = [("me-a", Value::Null), ("me-b", json!(NODE)), ("other", json!(NODE))];
    for (name, node) in &theirs {
        let it = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": container}});
        house.create::<Pod>(it).await;
    }
    house.node.say(bound("a", "default"));
    house.node.say(bound("b", "default"));
    house.project();
    house.no_pod("left").await;
    let events = Api::<Told>::default_namespaced(house.client.clone());
    for (name, id) in [("me-a", "a"), ("me-b", "b")] {
        let told = until(&events, &format!("{name}.{id}"), |it| it.is_some()).await;
        assert_eq!((&told["reason"], &told["involvedObject"]["name"]), (&json!("NameTaken"), &json!(name)));
    }
    for (name, _) in theirs {
        let it = house.pod(name, |_| true).await;
        assert_eq!((&it["status"]["phase"], &it["metadata"]["labels"]), (&json!("Pending"), &Value::Null));
    }
    // Out of the way.
    house.delete("me-a", DeleteParams::default()).await;
    house.pod("me-a", is_ready).await;
    assert_eq!(house.node.state().len(), 2, "no sandbox was ended for it");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_namespace_and_a_projection_begun_anew_goes_on_with_what_is_there() {
    let mut house = House::open().await;
    house.node.say(bound("a", "later"));
    house.node.say(bound("b", "default"));
    let before = house.pod("me-b", is_ready).await;
    let namespaces = Api::<Namespace>::all(house.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "later"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let later = Api::<Pod>::namespaced(house.client.clone(), "later");
    until(&later, "me-a", |it| it.is_some_and(is_ready)).await;

    house.projection.end().await;
    house.node.set("a", Phase::Ended);
    house.projection = Tasks::new(house.tasks.shutdown().child());
    house.project();
    until(&later, "me-a", |it| it.is_none()).await;
    let after = house.pod("me-b", |_| true).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    // With its namespace go the Pod and the sandbox.
    house.node.say(bound("c", "later"));
    until(&later, "me-c", |it| it.is_some_and(is_ready)).await;
    namespaces.delete("later", &DeleteParams::default()).await.unwrap();
    house.ended("c").await;
    until(&namespaces, "later", |it| it.is_none()).await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_pods_and_sandboxes_agree_in_the_end() {
    let house = House::open().await;
    let pods = Api::<Pod>::default_namespaced(house.client.clone());
    let mut random = 7_u32;
    let mut dice = move |sides: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) as usize % sides
    };
    for i in 0..400 {
        let living: Vec<String> = house.node.state().keys().cloned().collect();
        let one = living.get(dice(living.len().max(1))).cloned().unwrap_or_default();
        match dice(9) {
            0..=3 => house.node.say(bound(&format!("{i:03}"), "default")),
            4 => drop(house.node.set(&one, Phase::Ended)),
            5 => drop(house.node.set(&one, Phase::Frozen)),
            6 => drop(pods.delete(&format!("me-{one}"), &DeleteParams::default()).await),
            7 => drop(pods.delete(&format!("me-{one}"), &DeleteParams::default().grace_period(0)).await),
            _ => {
                house.node.go_away(true);
                tokio::task::yield_now().await;
                house.node.go_away(false);
            }
        }
        house.pass(Duration::from_millis(50 * dice(4) as u64)).await;
    }
    let agree = async {
        let mut changes = std::pin::pin!(watcher(pods.clone(), Config::default()));
        while let Some(change) = changes.next().await {
            change.unwrap();
            let shown = pods.list(&ListParams::default()).await.unwrap();
            let told = shown.iter().map(|it| {
                let is = if is_ready(&json!(it)) { Phase::Running } else { Phase::Frozen };
                (it.annotations()[labels::SANDBOX].clone(), is, it.metadata.deletion_timestamp.is_some())
            });
            let told: Vec<_> = told.collect();
            if told == house.node.state().values().map(|it| (it.id.clone(), it.phase, false)).collect::<Vec<_>>() {
                return told.len();
            }
        }
        0
    };
    let left = tokio::time::timeout(10 * PATIENCE, agree).await.unwrap();
    assert!(left > 20, "{left}");
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_node_is_ready_while_it_answers() {
    let house = House::open().await;
    let nodes = Api::<Node>::all(house.client.clone());
    let node = until(&nodes, NODE, |it| it.is_some_and(is_ready)).await;
    let info = &node["status"]["nodeInfo"];
    assert_eq!(info["containerRuntimeVersion"], "insula://7.8.9");
    assert!(info["kubeletVersion"].as_str().unwrap().starts_with("v1."), "{info}");
    assert!(!info["kernelVersion"].as_str().unwrap().is_empty());
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    for what in ["cpu", "memory", "pods", "ephemeral-storage"] {
        assert!(node["status"]["allocatable"][what].is_string(), "{node:#?}");
    }
    let leases = Api::<Lease>::namespaced(house.client.clone(), "kube-node-lease");
    let renewed = |it: &Value| it["spec"]["renewTime"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let first = renewed(&until(&leases, NODE, |it| it.is_some()).await);
    until(&leases, NODE, |it| it.is_some_and(|it| renewed(it).duration_since(first).as_secs() == 10)).await;
    // What somebody else says of a node that answers does not stay.
    let unknown = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&unknown)).await.unwrap();
    until(&nodes, NODE, |it| it.is_some_and(is_ready)).await;
    // What somebody says that it has beside what it finds is there for pods, as long as that is said.
    for amount in [json!("3"), json!("2"), Value::Null] {
        let dongles = json!({"status": {"capacity": {"example.com/dongle": amount}}});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&dongles)).await.unwrap();
        let given = |it: &Value| it["status"]["allocatable"].get("example.com/dongle").cloned().unwrap_or_default();
        until(&nodes, NODE, |it| it.is_some_and(|it| given(it) == amount)).await;
    }

    house.node.say(bound("a", "default"));
    house.pod("me-a", is_ready).await;
    house.node.go_away(true);
    let lost = until(&nodes, NODE, |it| it.is_some_and(|it| !is_ready(it))).await;
    assert_eq!(condition(&lost, "Ready")["reason"], "KubeletNotReady");
    // Whoever looks after nodes says so of their Pods.
    house.pod("me-a", |it| !is_ready(it)).await;
    house.node.set("a", Phase::Ended);
    house.node.go_away(false);
    house.no_pod("me-a").await;
    until(&nodes, NODE, |it| it.is_some_and(is_ready)).await;

    // Whoever deletes it gets it again: the node is there.
    nodes.delete(NODE, &DeleteParams::default()).await.unwrap();
    let uid = &node["metadata"]["uid"];
    until(&nodes, NODE, |it| it.is_some_and(|it| is_ready(it) && it["metadata"]["uid"] != *uid)).await;
    house.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_of_somebody_else_is_not_touched() {
    let house = House::furnish().await;
    let nodes = Api::<Node>::all(house.client.clone());
    let theirs = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
    nodes.create(&PostParams::default(), &theirs).await.unwrap();
    house.project();
    // Rounds go by, of which each would write.
    house.pass(Duration::from_secs(600)).await;
    let managers = nodes.get(NODE).await.unwrap().managed_fields().to_vec();
    assert!(managers.iter().all(|it| it.manager.as_deref() != Some("insula-node")), "{managers:#?}");
    house.end().await;
}

#[tokio::test]
async fn a_real_sandbox_is_a_pod_and_ends_with_it() {
    let cell = Cell::open().await;
    let client = testkit::api_server(&Clock::system(), &cell.tasks).await;
    let node = cell.node.clone();
    let options = Options::new(client.clone(), NODE, cell.dir.path(), Clock::system(), cell.tasks.clone());
    projection::start(options, move || std::future::ready(Ok(node.connect())));
    let asked = bound("a", "default");
    cell.sandbox("a").await;
    let bind = Bind { labels: asked.labels, ..Bind::default() };
    let _: Sandbox = cell.client().post("/v1/sandboxes/a/bind", &bind).await.unwrap();
    let pods = Api::<Pod>::default_namespaced(client);
    until(&pods, "me-a", |it| it.is_some_and(is_ready)).await;
    pods.delete("me-a", &DeleteParams::default()).await.unwrap();
    until(&pods, "me-a", |it| it.is_none()).await;
    let gone = cell.client().get::<Sandbox>("/v1/sandboxes/a").await.unwrap_err();
    assert_eq!(gone.code, wire::node::Code::Gone);
    cell.end().await;
}
