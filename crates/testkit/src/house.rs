use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use control::Faults;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kit::{Clock, Shutdown, Tasks};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, Config, Resource, ResourceExt};
use ledger::{Lease, Ledger, Location, Outcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The longest that a test waits for anything. With a given clock it passes in no time.
const PATIENCE: Duration = Duration::from_secs(20);
/// When the given clock starts.
const START: &str = "2026-03-26T12:00:00Z";

/// The embedded API server, the ledger and the controllers in one process, without a socket or a file.
///
/// In a test with `start_paused` time is given: it stands still while anybody works and jumps when all wait.
///
/// With `INSULA_TWIN` set to the kubeconfig of a real Kubernetes that is for nothing else, the same stories are told
/// there, in real time, each in a namespace of its own and one after the other (`--test-threads=1`).
pub struct House {
    pub client: Client,
    namespace: String,
    twin: bool,
    pub ledger: Ledger,
    pub clock: Clock,
    pub tasks: Tasks,
    faults: Arc<Faults>,
    control: Tasks,
}

/// What a test does with objects: all of them have names, specs and JSON.
pub trait Object:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static> Object
    for K
{
}

impl House {
    pub async fn open() -> Self {
        Self::open_under(Arc::default()).await
    }

    /// With controllers that work under faults.
    pub async fn open_under(faults: Arc<Faults>) -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let (client, clock, twin) = match twin().await {
            Some(client) => (client, Clock::system(), true),
            None => {
                let clock = Clock::starting_at(START.parse::<Timestamp>().expect("a time"));
                (api_server(&clock, &tasks).await, clock, false)
            }
        };
        let ledger = Ledger::open(Location::Memory, clock.clone()).expect("a ledger");
        let control = Tasks::new(tasks.shutdown().child());
        let house = Self { client, namespace: String::new(), twin, ledger, clock, tasks, faults, control };
        house.furnish().await
    }

    /// Deletes everything that the story made, and begins another on the same API server: under other faults, with an
    /// empty ledger and controllers that know nothing.
    pub async fn start_over(mut self, faults: Arc<Faults>) -> Self {
        self.clear().await;
        self.stop_control().await;
        self.ledger = Ledger::open(Location::Memory, self.clock.clone()).expect("a ledger");
        self.control = Tasks::new(self.tasks.shutdown().child());
        self.faults = faults;
        self.furnish().await
    }

    async fn furnish(mut self) -> Self {
        self.namespace = format!("story-{}", kit::id());
        let namespace = Namespace { metadata: metadata(&self.namespace), ..Namespace::default() };
        self.create(&namespace).await;
        self.start_control();
        self
    }

    /// Deletes the story's namespace, and with it all that is in it.
    async fn clear(&self) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.expect("deleted");
        let gone =
            kube::runtime::wait::await_condition(namespaces, &self.namespace, |it: Option<&Namespace>| it.is_none());
        // A lost event may keep a finalizer until everything is listed anew.
        tokio::time::timeout(60 * PATIENCE, gone).await.expect("the namespace goes").expect("a watch");
    }

    /// Whether time jumps; stories of hours are told only then.
    pub fn time_is_given(&self) -> bool {
        !self.twin
    }

    fn start_control(&self) {
        let options = control::Options {
            client: self.client.clone(),
            ledger: self.ledger.clone(),
            sandboxes: None,
            handlers: vec!["native".to_owned()],
            clock: self.clock.clone(),
            tasks: self.control.clone(),
            instance: "test".to_owned(),
        };
        self.control.platform("control", control::run_under(options, self.faults.clone()));
    }

    /// Ends the controllers and starts new ones, which know nothing.
    pub async fn restart_control(&mut self) {
        self.stop_control().await;
        self.control = Tasks::new(self.tasks.shutdown().child());
        self.start_control();
    }

    pub async fn stop_control(&self) {
        self.control.end().await;
    }

    /// Loses the ledger, as a new machine has: the controllers start again with an empty one.
    pub async fn lose_ledger(&mut self) {
        self.stop_control().await;
        self.ledger = Ledger::open(Location::Memory, self.clock.clone()).expect("a ledger");
        self.restart_control().await;
    }

    /// Lets time pass; with a given clock, until everything that is due by then has been done.
    pub async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    pub async fn create<K: Object>(&self, it: &K) -> K {
        let mut it = it.clone();
        if let Some(namespace) = &mut it.meta_mut().namespace {
            namespace.clone_from(&self.namespace);
        }
        let scope = it.namespace();
        let request = kube::core::Request::new(K::url_path(&(), scope.as_deref()));
        let body = serde_json::to_vec(&it).expect("JSON");
        let request = request.create(&PostParams::default(), body).expect("a request");
        self.client.request(request).await.unwrap_or_else(|error| panic!("create {}: {error}", it.name_any()))
    }

    pub async fn get<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str) -> Option<K> {
        self.api::<K>().get_opt(name).await.expect("an answer")
    }

    pub async fn list<K: Object + Resource<Scope = NamespaceResourceScope>>(&self) -> Vec<K> {
        self.api::<K>().list(&Default::default()).await.expect("a list").items
    }

    /// Merges a patch into an object, as `kubectl patch --type merge` does.
    pub async fn edit<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str, patch: Value) -> K {
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("an edited object")
    }

    /// Writes into a status, as another controller does.
    pub async fn write_status<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str, status: Value) {
        let patch = Patch::Merge(serde_json::json!({"status": status}));
        let path = K::url_path(&(), Some(&self.namespace));
        let request = kube::core::Request::new(path).patch_subresource("status", name, &PatchParams::default(), &patch);
        self.client.request::<Value>(request.expect("a request")).await.expect("a written status");
    }

    pub async fn delete<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str) {
        self.api::<K>().delete(name, &DeleteParams::default()).await.expect("deleted");
    }

    /// Of a kind that is in no namespace.
    pub async fn delete_of_cluster<K: Object + Resource<Scope = ClusterResourceScope>>(&self, name: &str) {
        Api::<K>::all(self.client.clone()).delete(name, &DeleteParams::default()).await.expect("deleted");
    }

    /// As `kubectl delete --cascade=orphan`.
    pub async fn delete_orphaning<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str) {
        let orphan = Some(PropagationPolicy::Orphan);
        let params = DeleteParams { propagation_policy: orphan, ..DeleteParams::default() };
        self.api::<K>().delete(name, &params).await.expect("deleted");
    }

    /// Waits until the object is as `test` says.
    ///
    /// # Panics
    /// When it never is; with what it is.
    pub async fn until<K>(&self, name: &str, test: impl Fn(&K) -> bool) -> K
    where
        K: Object + Resource<Scope = NamespaceResourceScope>,
    {
        let found = self.look::<K>(name, |it| it.is_some_and(&test)).await;
        match found {
            Ok(it) => it.expect("an object"),
            Err(it) => panic!("{} {name} stays {}", K::kind(&()), serde_json::to_string_pretty(&it).expect("JSON")),
        }
    }

    pub async fn until_gone<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, name: &str) {
        if let Err(it) = self.look::<K>(name, |it| it.is_none()).await {
            panic!("{} {name} stays {}", K::kind(&()), serde_json::to_string_pretty(&it).expect("JSON"));
        }
    }

    async fn look<K>(&self, name: &str, test: impl Fn(Option<&K>) -> bool) -> Result<Option<K>, Option<K>>
    where
        K: Object + Resource<Scope = NamespaceResourceScope>,
    {
        let mut last = None;
        let mut seen = watch_object(self.api::<K>(), name).boxed();
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(it) = seen.try_next().await.expect("a watch") {
                last = it;
                if test(last.as_ref()) {
                    return;
                }
            }
        });
        let found = found.await.is_ok();
        drop(seen);
        if found { Ok(last) } else { Err(last) }
    }

    /// Reason and message of every event about an object, sorted.
    pub async fn events(&self, name: &str) -> Vec<(String, String)> {
        let events = self.list::<Event>().await.into_iter();
        let about = events.filter(|it| it.involved_object.name.as_deref() == Some(name));
        let mut told: Vec<_> =
            about.map(|it| (it.reason.unwrap_or_default(), it.message.unwrap_or_default())).collect();
        told.sort();
        told
    }

    pub fn api<K: Object + Resource<Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Sets a runner to work, with a scripted model on loopback; returns the model's `baseURL`. From here on time is real.
    pub async fn hire(&self, script: &str) -> String {
        if !self.twin {
            tokio::time::resume();
        }
        let script = llm::scripted::Script::parse(script).expect("a script");
        let at = (std::net::Ipv4Addr::LOCALHOST, 0).into();
        let model = llm::scripted::Server::listen(script, at, &self.tasks).await.expect("a model");
        let options = runner::Options {
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            http: kit::http::client().expect("an HTTP client"),
            concurrency: 100,
            providers: std::collections::BTreeMap::new(),
            tools: None,
        };
        self.tasks.platform("runner", runner::Runner::new(options).run(self.tasks.shutdown().clone()));
        model.base_url()
    }

    /// Takes the next run from the ledger, as a runner does.
    ///
    /// # Panics
    /// When none is due.
    pub async fn lease(&self) -> Lease {
        tokio::time::timeout(PATIENCE, self.ledger.lease("test")).await.expect("a run is due").expect("a lease")
    }

    /// Whether no run is due, now and for a while.
    pub async fn nothing_is_due(&self) -> bool {
        tokio::time::timeout(Duration::from_secs(1), self.ledger.lease("test")).await.is_err()
    }

    /// Ends a leased run with an answer.
    pub async fn answer(&self, lease: Lease, answer: &str) {
        let outcome = Outcome::succeeded(answer);
        self.ledger.finish(&lease.run, lease.epoch, outcome).await.expect("finished");
    }

    /// Ends everything, and fails when anything of it had failed.
    pub async fn end(self) {
        for tasks in [&self.control, &self.tasks] {
            let failed = tokio::time::timeout(Duration::ZERO, tasks.watch()).await;
            assert!(failed.is_err() || failed.as_ref().is_ok_and(Result::is_ok), "{failed:?}");
        }
        self.control.end().await;
        self.tasks.end().await;
    }
}

/// The embedded API server with our kinds, in memory.
pub async fn api_server(clock: &Clock, tasks: &Tasks) -> Client {
    let data = apiserver::Data::Memory;
    let options = apiserver::Options {
        data,
        clock: clock.clone(),
        tasks: tasks.clone(),
        kubelets: None,
        audit: None,
        volumes: None,
    };
    let server = apiserver::ApiServer::open(options).await.expect("an API server");
    server.install(api::crds()).await.expect("our kinds");
    server.client()
}

/// The twin that the environment names, with our kinds and none of their objects.
async fn twin() -> Option<Client> {
    #[allow(clippy::disallowed_methods, reason = "which server tests use is said in their environment")]
    let path = std::env::var("INSULA_TWIN").ok()?;
    tokio::time::resume();
    let kubeconfig = Kubeconfig::read_from(path).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    let client = Client::try_from(config).expect("a client");
    let crds: Api<api::CustomResourceDefinition> = Api::all(client.clone());
    for crd in api::crds() {
        let name = crd.name_any();
        let params = PatchParams::apply("testkit").force();
        crds.patch(&name, &params, &Patch::Apply(&crd)).await.expect("our kinds");
        let established = kube::runtime::conditions::is_crd_established();
        kube::runtime::wait::await_condition(crds.clone(), &name, established).await.expect("our kinds");
    }
    empty::<api::agents::AgentRun>(&client).await;
    empty::<api::agents::SympoziumInstance>(&client).await;
    empty::<api::agents::SympoziumPolicy>(&client).await;
    for cluster_wide in ["gvisor", "gpu-1"] {
        let classes = Api::<k8s_openapi::api::node::v1::RuntimeClass>::all(client.clone());
        let _ = classes.delete(cluster_wide, &DeleteParams::default()).await;
        let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
        let _ = nodes.delete(cluster_wide, &DeleteParams::default()).await;
    }
    Some(client)
}

async fn empty<K: Object + Resource<Scope = NamespaceResourceScope>>(client: &Client) {
    let left = Api::<K>::all(client.clone()).list(&Default::default()).await.expect("a list");
    for it in left {
        let here = Api::<K>::namespaced(client.clone(), &it.namespace().unwrap_or_default());
        let free = Patch::Merge(serde_json::json!({"metadata": {"finalizers": null}}));
        let _ = here.patch(&it.name_any(), &PatchParams::default(), &free).await;
        let _ = here.delete(&it.name_any(), &DeleteParams::default()).await;
    }
}

fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}
