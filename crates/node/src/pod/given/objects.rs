//! The objects that pods are given: read when they are needed, and one watch of their metadata for each kind and namespace
//! in use, however many pods use it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use kit::{Shutdown, Tasks};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// The longest that one request may take.
const REQUEST: Duration = Duration::from_secs(30);
/// How many objects are asked for at once for one pod.
const AT_ONCE: usize = 8;
/// The services of one namespace that are told to its pods. More have no place in an environment.
const SERVICES: u32 = 5000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ObjectKind {
    ConfigMap,
    Secret,
    Claim,
}

/// What Kubernetes says of an object that is not there.
pub(super) fn not_found(kind: ObjectKind, name: &str) -> String {
    let kind = match kind {
        ObjectKind::ConfigMap => "configmap",
        ObjectKind::Secret => "secret",
        ObjectKind::Claim => "persistentvolumeclaims",
    };
    format!("{kind} \"{name}\" not found")
}

/// The API server's words, or what kept them away.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        error => kit::chain(error),
    }
}

/// Not longer than a request may take.
pub(super) async fn bounded<T>(asking: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST, asking).await {
        Ok(answer) => answer.map_err(|error| words(&error)),
        Err(_) => Err(format!("the API server did not answer in {} s", REQUEST.as_secs())),
    }
}

/// An object by its kind and name, in a namespace known from elsewhere.
pub(super) type Name = (ObjectKind, String);
/// The versions that were seen; `None` of what was not there.
pub(super) type Seen = BTreeMap<Name, Option<String>>;

#[derive(Clone)]
pub(super) struct Objects {
    client: Client,
    tasks: Tasks,
    watches: Arc<Mutex<Watches>>,
}

/// By kind and namespace.
type Watches = HashMap<(ObjectKind, String), Weak<Watched>>;

impl Objects {
    pub(super) fn new(client: Client, tasks: Tasks) -> Self {
        Self { client, tasks, watches: Arc::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Those of the names that are there, and what was seen of all.
    ///
    /// # Errors
    /// Why they cannot be read.
    pub(super) async fn get<K>(
        &self,
        kind: ObjectKind,
        namespace: &str,
        names: &BTreeSet<String>,
        seen: &mut Seen,
    ) -> Result<BTreeMap<String, K>, String>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let ask = |name: String| {
            let api = api.clone();
            async move { (bounded(api.get_opt(&name)).await, name) }
        };
        let mut answers = stream::iter(names.clone()).map(ask).buffer_unordered(AT_ONCE);
        let mut found = BTreeMap::new();
        while let Some((answer, name)) = answers.next().await {
            let object = answer?;
            seen.insert((kind, name.clone()), object.as_ref().and_then(|it| it.meta().resource_version.clone()));
            found.extend(object.map(|it| (name, it)));
        }
        Ok(found)
    }

    /// The services that pods of the namespace are told of.
    pub(super) async fn services(&self, namespace: &str, links: bool) -> Result<Vec<Service>, String> {
        let mut all = Vec::new();
        if links {
            let api = Api::<Service>::namespaced(self.client.clone(), namespace);
            all = bounded(api.list(&ListParams::default().limit(SERVICES))).await?.items;
        }
        if namespace != "default" || !links {
            let api = Api::<Service>::namespaced(self.client.clone(), "default");
            all.extend(bounded(api.get_opt("kubernetes")).await?);
        }
        Ok(all)
    }

    /// The watch of a kind in a namespace. It ends when nobody holds it.
    pub(super) fn watch(&self, kind: ObjectKind, namespace: &str) -> Arc<Watched> {
        let mut watches = locked(&self.watches);
        let key = (kind, namespace.to_owned());
        if let Some(it) = watches.get(&key).and_then(Weak::upgrade) {
            return it;
        }
        watches.retain(|_, it| it.strong_count() > 0);
        let watched = Arc::new(Watched {
            state: Arc::default(),
            changed: watch::Sender::new(()),
            end: self.tasks.shutdown().child(),
        });
        watches.insert(key, Arc::downgrade(&watched));
        drop(watches);
        let (state, changed) = (Arc::clone(&watched.state), watched.changed.clone());
        let (client, namespace, end) = (self.client.clone(), namespace.to_owned(), watched.end.clone());
        self.tasks.tenant("watch of what pods are given", async move {
            let follow = async {
                match kind {
                    ObjectKind::ConfigMap => follow::<ConfigMap>(client, &namespace, &state, &changed).await,
                    ObjectKind::Secret => follow::<Secret>(client, &namespace, &state, &changed).await,
                    ObjectKind::Claim => follow::<PersistentVolumeClaim>(client, &namespace, &state, &changed).await,
                }
            };
            tokio::select! {
                () = end.begun() => {}
                () = follow => {}
            }
        });
        watched
    }
}

pub(super) fn locked<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happens to the objects of one kind in one namespace.
pub(super) struct Watched {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    end: Shutdown,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end.begin();
    }
}

impl Watched {
    /// How much has happened.
    pub(super) fn mark(&self) -> u64 {
        locked(&self.state).happened
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether, since the mark, it became something else than what was seen.
    pub(super) fn is_news(&self, mark: u64, name: &str, seen: Option<&str>) -> bool {
        locked(&self.state).is_news(mark, name, seen)
    }
}

/// Versions by name, and when they became so: counted in things that happened, not in time.
#[derive(Default)]
struct State {
    happened: u64,
    objects: HashMap<String, (u64, String)>,
    /// When one was last seen to be gone. Nothing was listed yet: 0.
    gone: u64,
    listing: HashMap<String, String>,
}

impl State {
    fn is_news(&self, mark: u64, name: &str, seen: Option<&str>) -> bool {
        match self.objects.get(name) {
            Some((at, version)) => *at > mark && Some(version.as_str()) != seen,
            None => self.gone > mark && seen.is_some(),
        }
    }

    fn take<K: Resource<DynamicType = ()>>(&mut self, event: Event<PartialObjectMeta<K>>) {
        self.happened += 1;
        let now = self.happened;
        let key = |it: PartialObjectMeta<K>| {
            (it.metadata.name.unwrap_or_default(), it.metadata.resource_version.unwrap_or_default())
        };
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(it) => {
                let (name, version) = key(it);
                self.listing.insert(name, version);
            }
            Event::InitDone => {
                let before = std::mem::take(&mut self.objects);
                let listed = std::mem::take(&mut self.listing).into_iter();
                let same = |name: &str, version: &str| before.get(name).filter(|it| it.1 == version).map(|it| it.0);
                self.objects = listed.map(|(name, it)| (name.clone(), (same(&name, &it).unwrap_or(now), it))).collect();
                self.gone = now;
            }
            Event::Apply(it) => {
                let (name, version) = key(it);
                self.objects.insert(name, (now, version));
            }
            Event::Delete(it) => {
                self.objects.remove(&key(it).0);
                self.gone = now;
            }
        }
    }
}

async fn follow<K>(client: Client, namespace: &str, state: &Mutex<State>, changed: &watch::Sender<()>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api = Api::<PartialObjectMeta<K>>::namespaced(client, namespace);
    let mut events = std::pin::pin!(watcher(api, Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                locked(state).take(event);
                changed.send_replace(());
            }
            Err(error) => tracing::debug!(error = kit::chain(&error), "lost sight of objects; looking again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: &str) -> PartialObjectMeta<Secret> {
        let mut it = PartialObjectMeta::<Secret>::default();
        it.metadata.name = Some(name.to_owned());
        it.metadata.resource_version = Some(version.to_owned());
        it
    }

    #[test]
    fn news_is_what_happened_after_one_looked_and_was_not_seen() {
        let mut state = State::default();
        assert!(!state.is_news(0, "a", Some("1")), "nothing was listed yet");
        for event in [Event::Init, Event::InitApply(object("a", "1")), Event::InitDone] {
            state.take(event);
        }
        assert!(!state.is_news(0, "a", Some("1")), "it is what was seen");
        assert!(state.is_news(0, "a", Some("0")) && state.is_news(0, "a", None), "it was changed, or came");
        assert!(state.is_news(0, "b", Some("1")) && !state.is_news(0, "b", None), "one went, one never was");

        // One who saw what is newer than what the watch has: told once at most, and not again and again.
        let mark = state.happened;
        assert!(!state.is_news(mark, "a", Some("2")));
        state.take(Event::Apply(object("a", "2")));
        assert!(!state.is_news(mark, "a", Some("2")) && state.is_news(mark, "a", Some("1")));

        // A new list says only what differs.
        let mark = state.happened;
        for event in [Event::Init, Event::InitApply(object("a", "2")), Event::InitDone] {
            state.take(event);
        }
        assert!(!state.is_news(mark, "a", Some("1")) && state.is_news(mark, "b", Some("1")));
        let mark = state.happened;
        state.take(Event::Delete(object("a", "3")));
        assert!(state.is_news(mark, "a", Some("2")) && !state.is_news(mark, "a", None));
    }
}
