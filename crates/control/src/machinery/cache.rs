//! What the API server stores, as this process knows it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kit::{Backoff, Clock, Shutdown};
use kube::api::GetParams;
use kube::core::Request;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::readable::Readable;
use super::recorder::Recorder;
use super::{Error, Faults, Note, ObjectName, Subject};

/// Every kind is listed anew this often, whatever the watch says, and everything is looked at again: nothing that got
/// lost stays lost for longer.
const RELIST: Duration = Duration::from_secs(600);
/// How long a server may take to list a kind as a stream before it is asked for plain pages.
const STREAM_PATIENCE: Duration = Duration::from_secs(10);

/// A kind that can be kept in a [`Cache`].
pub(crate) trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Under which words the object is found, besides its name and its uid.
    fn tags(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Sees an object as it was and as it is; both are `None` never, one is when it came or went or was listed anew.
type Subscriber<K> = Arc<dyn Fn(Option<&K>, Option<&K>) + Send + Sync>;

/// All objects of a kind, kept up to date by one watch. Cheap to clone; clones share it.
///
/// Reads are synchronous and see whole objects. What this process wrote itself is seen at once ([`Cache::observe`]).
pub(crate) struct Cache<K>(Arc<Inner<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<K> {
    client: Client,
    clock: Clock,
    recorder: Arc<Recorder>,
    state: RwLock<State<K>>,
    subscribers: Mutex<Vec<Subscriber<K>>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: HashMap<ObjectName, Arc<K>>,
    tags: HashMap<String, BTreeSet<ObjectName>>,
}

impl<K: Cached> Cache<K> {
    pub(super) fn new(client: Client, clock: Clock, recorder: Arc<Recorder>) -> Self {
        let state = State { objects: HashMap::new(), tags: HashMap::new() };
        Self(Arc::new(Inner {
            client,
            clock,
            recorder,
            state: RwLock::new(state),
            subscribers: Mutex::default(),
            synced: watch::Sender::new(false),
        }))
    }

    pub(crate) fn get(&self, name: &ObjectName) -> Option<Arc<K>> {
        self.read(|state| state.objects.get(name).cloned())
    }

    /// The object, asked from the API server when it is not here: the watches of two kinds are not in step, and
    /// nobody shall be told that something is missing because it is a moment old.
    pub(crate) async fn find(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, Error> {
        let at = ObjectName { namespace: namespace.to_owned(), name: name.to_owned() };
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(it) = self.get(&at) {
            return Ok(Some(it));
        }
        let scope = (!namespace.is_empty()).then_some(namespace);
        let request = Request::new(K::url_path(&(), scope));
        let params = GetParams::default();
        let request = if K::metadata_api() { request.get_metadata(name, &params) } else { request.get(name, &params) };
        let doing = || format!("get {} {at}", K::kind(&()));
        let request = request.map_err(|error| Error::api(doing(), kube::Error::BuildRequest(error)))?;
        match self.0.client.request::<K>(request).await {
            Ok(it) => Ok(Some(Arc::new(it))),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(Error::api(doing(), error)),
        }
    }

    /// Every object with this tag, by name.
    pub(crate) fn tagged(&self, tag: &str) -> Vec<Arc<K>> {
        self.read(|state| {
            let names = state.tags.get(tag).into_iter().flatten();
            names.filter_map(|name| state.objects.get(name).cloned()).collect()
        })
    }

    /// How many objects have this tag.
    pub(crate) fn count(&self, tag: &str) -> usize {
        self.read(|state| state.tags.get(tag).map_or(0, BTreeSet::len))
    }

    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// Calls `it` for every object that came, changed or went, and for every object of a new list.
    pub(super) fn subscribe(&self, it: impl Fn(Option<&K>, Option<&K>) + Send + Sync + 'static) {
        self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(it));
    }

    /// Takes over an object that this process got back from a write, if it is newer. Never brings back a deleted one.
    pub(super) fn observe(&self, it: K) {
        let name = ObjectName::of(&it);
        self.write(|state| {
            if let Some(known) = state.objects.get(&name)
                && known.uid() == it.uid()
                && is_newer(&it, known.as_ref())
            {
                state.put(name, Arc::new(it));
            }
        });
    }

    /// Resolves when the kind has been listed once.
    pub(super) async fn synced(&self) {
        let mut synced = self.0.synced.subscribe();
        // The sender lives as long as self.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// The object, or an event about it: what cannot be read stays as it was read last, and stops no other.
    async fn read_or_tell(&self, it: Readable<K>) -> Option<K> {
        let why = match it.it {
            Ok(it) => return Some(it),
            Err(why) => why,
        };
        let subject = Subject::of::<K>(&it.metadata);
        tracing::warn!(kind = %K::kind(&()), name = %subject.name, why, "an object cannot be read");
        let note = Note::warning("Unreadable", format!("cannot be read, and is left alone: {why}"));
        if let Err(error) = self.0.recorder.tell(&subject, &note, self.0.clock.now()).await {
            tracing::debug!(error = %kit::chain(&error), "an event is lost");
        }
        None
    }

    fn read<T>(&self, look: impl FnOnce(&State<K>) -> T) -> T {
        look(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut State<K>) -> T) -> T {
        change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the cache up to date until shutdown.
    pub(super) async fn run(self, shutdown: Shutdown, faults: Arc<Faults>) {
        let subscribers = self.0.subscribers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tell = |before: Option<&K>, after: Option<&K>| {
            subscribers.iter().for_each(|subscriber| subscriber(before, after));
        };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let mut streaming = true;
        while !shutdown.has_begun() {
            tokio::select! {
                () = shutdown.begun() => return,
                () = self.follow(&mut streaming, &mut backoff, &tell, &faults) => {}
            }
        }
    }

    /// One list and the watch from there on; returns when it is time for a new list.
    async fn follow(
        &self,
        streaming: &mut bool,
        backoff: &mut Backoff,
        tell: &impl Fn(Option<&K>, Option<&K>),
        faults: &Faults,
    ) {
        let mut config = watcher::Config::default();
        if *streaming {
            config = config.streaming_lists();
        }
        let kind = K::kind(&());
        let mut stream = pin!(watcher(Api::<Readable<K>>::all(self.0.client.clone()), config));
        let relist = Instant::now() + RELIST.mul_f64(0.75 + 0.5 * jitter());
        let patience = Instant::now() + STREAM_PATIENCE;
        let mut listing: Option<HashMap<ObjectName, Arc<K>>> = None;
        let mut listed = false;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = tokio::time::sleep_until(relist), if listed => return,
                () = tokio::time::sleep_until(patience), if *streaming && !listed => {
                    *streaming = false;
                    return;
                }
            };
            match event {
                Some(Ok(Event::Init)) => listing = Some(HashMap::new()),
                Some(Ok(Event::InitApply(it))) => {
                    let name = ObjectName::of(&it);
                    let known = self.get(&name).filter(|known| known.uid() == it.uid());
                    if let Some(it) = self.read_or_tell(it).await.map(Arc::new).or(known) {
                        listing.get_or_insert_default().insert(name, it);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    listed = true;
                    backoff.reset();
                    let touched = self.write(|state| state.replace(listing.take().unwrap_or_default()));
                    self.0.synced.send_replace(true);
                    touched.iter().for_each(|it| tell(None, Some(it)));
                }
                Some(Ok(Event::Apply(it))) if !faults.lost() => {
                    backoff.reset();
                    let Some(it) = self.read_or_tell(it).await.map(Arc::new) else { continue };
                    let before = self.write(|state| state.apply(it.clone()));
                    tell(before.as_deref(), Some(&it));
                }
                Some(Ok(Event::Delete(it))) if !faults.lost() => {
                    let before = self.write(|state| state.delete(&it));
                    if let Some(it) = before.or_else(|| it.it.ok().map(Arc::new)) {
                        tell(Some(&it), None);
                    }
                }
                Some(Ok(Event::Apply(_) | Event::Delete(_))) => {}
                Some(Err(error)) => {
                    if is_not_served(&error) {
                        // Nothing of a kind that the server does not know exists.
                        self.0.synced.send_replace(true);
                    } else if is_refused(&error) && *streaming && !listed {
                        *streaming = false;
                        return;
                    }
                    let wait = backoff.pause();
                    tracing::warn!(%kind, error = %kit::chain(&error), ?wait, "watching failed");
                    tokio::time::sleep(wait).await;
                }
                None => return,
            }
        }
    }
}

impl<K: Cached> State<K> {
    fn put(&mut self, name: ObjectName, it: Arc<K>) {
        self.remove(&name);
        for tag in it.tags() {
            self.tags.entry(tag).or_default().insert(name.clone());
        }
        self.objects.insert(name, it);
    }

    fn remove(&mut self, name: &ObjectName) -> Option<Arc<K>> {
        let it = self.objects.remove(name)?;
        for tag in it.tags() {
            if let Entry::Occupied(mut names) = self.tags.entry(tag) {
                names.get_mut().remove(name);
                if names.get().is_empty() {
                    names.remove();
                }
            }
        }
        Some(it)
    }

    /// Returns what was there before.
    fn apply(&mut self, it: Arc<K>) -> Option<Arc<K>> {
        let name = ObjectName::of(it.as_ref());
        let known = self.objects.get(&name).cloned();
        if known.as_ref().is_none_or(|known| known.uid() != it.uid() || is_newer(it.as_ref(), known.as_ref())) {
            self.put(name, it);
        }
        known
    }

    fn delete(&mut self, it: &Readable<K>) -> Option<Arc<K>> {
        let name = ObjectName::of(it);
        let known = self.objects.get(&name)?;
        // One of the same name may have been made since.
        if known.uid() == it.uid() { self.remove(&name) } else { None }
    }

    /// Puts a whole list in the place of what is known. Returns everything that is or was there.
    fn replace(&mut self, listed: HashMap<ObjectName, Arc<K>>) -> Vec<Arc<K>> {
        let mut touched = Vec::new();
        let gone: Vec<ObjectName> = self.objects.keys().filter(|name| !listed.contains_key(name)).cloned().collect();
        touched.extend(gone.iter().filter_map(|name| self.remove(name)));
        for (_, it) in listed {
            touched.extend(self.apply(it.clone()));
            touched.push(it);
        }
        touched
    }
}

/// Resource versions are opaque by contract and growing numbers in every Kubernetes; where they are not, later wins.
fn is_newer<K: Resource>(it: &K, than: &K) -> bool {
    let number = |it: &K| it.meta().resource_version.as_ref().and_then(|text| text.parse::<u64>().ok());
    match (number(it), number(than)) {
        (Some(it), Some(than)) => it > than,
        _ => true,
    }
}

fn is_not_served(error: &watcher::Error) -> bool {
    status(error).is_some_and(|code| code == 404)
}

fn is_refused(error: &watcher::Error) -> bool {
    status(error).is_some_and(|code| (400..500).contains(&code) && code != 429 && code != 410)
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// Between 0 and 1, different for each call: so that relists of the kinds do not fall together.
fn jitter() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}
