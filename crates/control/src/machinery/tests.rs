//! The machinery with a keeper of its own, against a whole API server.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kit::{Clock, Shutdown, Tasks};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Cache, Cached, Error, Faults, Keeper, Machinery, ObjectName, Plan, Wakes};

impl Cached for ConfigMap {}

/// A kind whose Rust type is stricter than what the API server takes: a ConfigMap with data.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Strict {
    metadata: ObjectMeta,
    data: BTreeMap<String, String>,
}

impl Resource for Strict {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        ConfigMap::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ConfigMap::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ConfigMap::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ConfigMap::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Cached for Strict {}

/// Does what the objects say.
struct Actor {
    peers: Cache<ConfigMap>,
    looked: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Keeper for Actor {
    type Kind = ConfigMap;
    type World = ();
    type Effect = Infallible;

    fn wakes(&self, on: &Wakes<Self>) {
        // Whoever is named by another is woken by it.
        on.on(&self.peers, |it| {
            let named = it.data.as_ref().and_then(|data| data.get("names"));
            named.map(|name| ObjectName { namespace: "default".into(), name: name.clone() }).into_iter().collect()
        });
    }

    async fn look(&self, it: &ConfigMap, _: Timestamp) -> Result<(), Error> {
        *self.looked.lock().unwrap().entry(it.name_any()).or_default() += 1;
        match it.data.as_ref().and_then(|data| data.get("do")).map(String::as_str) {
            Some("hang") => std::future::pending().await,
            _ => Ok(()),
        }
    }

    fn plan(it: &ConfigMap, (): &(), _: Timestamp) -> Plan<Infallible> {
        match it.data.as_ref().and_then(|data| data.get("do")).map(String::as_str) {
            Some("panic") => panic!("on purpose"),
            Some("return") => Plan { wake_in: Some(Duration::from_secs(60)), ..Plan::default() },
            _ => Plan::default(),
        }
    }

    async fn effect(&self, effect: &Infallible) -> Result<(), Error> {
        match *effect {}
    }
}

struct Stage {
    client: Client,
    tasks: Tasks,
    looked: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Stage {
    async fn open(workers: usize) -> Self {
        Self::open_with(workers, |_| ()).await.0
    }

    async fn open_with<T>(workers: usize, more: impl FnOnce(&mut Machinery) -> T) -> (Self, T) {
        let tasks = Tasks::new(Shutdown::new());
        let clock = Clock::starting_at("2026-03-26T12:00:00Z".parse().unwrap());
        let client = testkit::api_server(&clock, &tasks).await;
        let looked = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let faults = Arc::new(Faults::default());
        let mut machinery = Machinery::new(client.clone(), clock, tasks.clone(), "stage".into(), workers, faults);
        let actor = Actor { peers: machinery.cache(), looked: looked.clone() };
        machinery.keep(actor);
        let more = more(&mut machinery);
        machinery.start().await;
        (Self { client, tasks, looked }, more)
    }

    fn objects(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn put(&self, name: &str, data: serde_json::Value) {
        let it = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
        self.objects().create(&PostParams::default(), &it).await.unwrap();
    }

    /// How often an object was looked at, once nothing is left to do now.
    async fn looked(&self, name: &str) -> u32 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.looked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_one_object_stays_its_own_and_is_told_and_heals() {
    let stage = Stage::open(1).await;
    stage.put("bad", json!({"do": "panic"})).await;
    stage.put("good", json!({})).await;
    assert_eq!((stage.looked("bad").await, stage.looked("good").await), (1, 1));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let tries = stage.looked("bad").await;
    assert!((4..=8).contains(&tries), "it comes back later and later: {tries}");
    let events: Api<Event> = Api::namespaced(stage.client.clone(), "default");
    let told = events.list(&ListParams::default()).await.unwrap().items;
    let [told] = told.as_slice() else { panic!("one event: {told:?}") };
    assert_eq!(told.reason.as_deref(), Some("ReconcileFailed"));
    assert_eq!(told.message.as_deref(), Some("the controller panicked: on purpose"));
    assert_eq!(told.count, Some(i32::try_from(tries - 2).unwrap()), "from the third failure on");
    let healed = Patch::Merge(json!({"data": {"do": null}}));
    stage.objects().patch("bad", &PatchParams::default(), &healed).await.unwrap();
    assert_eq!(stage.looked("bad").await, tries + 1, "a change brings it back at once");
    stage.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_hangs_holds_one_worker_and_not_for_ever() {
    let stage = Stage::open(2).await;
    stage.put("hangs", json!({"do": "hang"})).await;
    stage.put("good", json!({})).await;
    assert_eq!(stage.looked("good").await, 1);
    tokio::time::sleep(Duration::from_secs(32)).await;
    assert_eq!(stage.looked("hangs").await, 2, "given up, and tried again");
    stage.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_neighbour_wakes_whom_it_names_before_and_after() {
    let stage = Stage::open(2).await;
    stage.put("a", json!({})).await;
    stage.put("b", json!({})).await;
    assert_eq!((stage.looked("a").await, stage.looked("b").await), (1, 1));
    stage.put("names", json!({"names": "a"})).await;
    assert_eq!((stage.looked("a").await, stage.looked("b").await), (2, 1));
    let other = Patch::Merge(json!({"data": {"names": "b"}}));
    stage.objects().patch("names", &PatchParams::default(), &other).await.unwrap();
    assert_eq!((stage.looked("a").await, stage.looked("b").await), (3, 2));
    stage.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_is_looked_at_when_it_asked_to_and_whenever_all_are_listed_anew() {
    let stage = Stage::open(2).await;
    stage.put("returns", json!({"do": "return"})).await;
    stage.put("quiet", json!({})).await;
    tokio::time::sleep(Duration::from_secs(330)).await;
    assert_eq!((stage.looked("returns").await, stage.looked("quiet").await), (6, 1));
    tokio::time::sleep(Duration::from_secs(460)).await;
    assert_eq!(stage.looked("quiet").await, 2);
    stage.tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_told_and_hides_no_other() {
    let (stage, cache) = Stage::open_with(1, Machinery::cache::<Strict>).await;
    stage.put("odd", serde_json::Value::Null).await;
    stage.put("plain", json!({"a": "b"})).await;
    stage.looked("plain").await;
    let known = || {
        let names = cache.all().into_iter().map(|it| it.name_any());
        names.filter(|name| !name.starts_with("kube-")).collect::<BTreeSet<_>>()
    };
    assert_eq!(known(), BTreeSet::from(["plain".into()]));
    // Listed anew, with the odd one in the list.
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(known(), BTreeSet::from(["plain".into()]));
    let events: Api<Event> = Api::namespaced(stage.client.clone(), "default");
    let told = events.list(&ListParams::default()).await.unwrap().items;
    let told: Vec<_> = told.iter().filter(|it| it.involved_object.name.as_deref() == Some("odd")).collect();
    assert_eq!((told.len(), told[0].reason.as_deref(), told[0].count), (1, Some("Unreadable"), Some(2)));
    let healed = Patch::Merge(json!({"data": {"c": "d"}}));
    stage.objects().patch("odd", &PatchParams::default(), &healed).await.unwrap();
    stage.looked("odd").await;
    assert_eq!(known(), BTreeSet::from(["odd".into(), "plain".into()]));
    // What was readable once stays known as it was.
    let broken = Patch::Merge(json!({"data": null}));
    stage.objects().patch("odd", &PatchParams::default(), &broken).await.unwrap();
    tokio::time::sleep(Duration::from_secs(900)).await;
    assert_eq!(known(), BTreeSet::from(["odd".into(), "plain".into()]));
    stage.tasks.end().await;
}
