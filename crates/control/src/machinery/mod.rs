//! What every controller needs and none should have twice.
//!
//! A [`Keeper`] keeps one kind: it says what it must look at and what it decides; the machinery does the rest:
//!
//! - one watch and one cache for each kind that anybody looks at, shared ([`Cache`]);
//! - a work queue for each keeper ([`Queue`]): an object is with one worker at a time, wakes fall together, failures
//!   come back later and later; from an event to the look at its object there is no wait;
//! - acting on a [`Plan`]: the finalizer before anything else, children, effects, status and conditions by server-side
//!   apply under our own field manager, events, and nothing at all when nothing changed;
//! - a panic, an error or a hang of one object stays its own.
//!
//! **Level-triggered.** A wake carries no meaning but "look". Wakes that get lost, come twice or come late change
//! nothing but time: every look sees the whole state, whatever woke it, and every kind is listed anew from time to
//! time. [`Faults`] shows it.

mod act;
mod cache;
mod plan;
mod queue;
mod readable;
mod recorder;
#[cfg(test)]
mod tests;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kit::{Class, Clock, Tasks};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;

pub(crate) use cache::{Cache, Cached};
pub(crate) use plan::{Child, Note, Plan, Said, Seed, cut, seconds};
use queue::{Done, Queue};
use recorder::Recorder;

/// The longest that one look at one object may take, with all that follows from it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Failures in a row after which the object's own events tell of them.
const TOLD_AFTER: u32 = 3;

/// An object's place: namespace ("" for what has none) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectName {
    pub(crate) fn of<K: Resource>(it: &K) -> Self {
        Self { namespace: it.namespace().unwrap_or_default(), name: it.name_any() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Whom an event is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: ObjectName,
    pub(crate) uid: String,
}

impl Subject {
    fn of<K: Resource<DynamicType = ()>>(it: &ObjectMeta) -> Self {
        let (namespace, name) = (it.namespace.clone().unwrap_or_default(), it.name.clone().unwrap_or_default());
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: ObjectName { namespace, name },
            uid: it.uid.clone().unwrap_or_default(),
        }
    }
}

/// Keeps the objects of one kind as their specs say.
pub(crate) trait Keeper: Send + Sync + Sized + 'static {
    type Kind: Cached + Serialize;
    /// All that the decision may look at.
    type World: Send + Sync;
    /// What it does beyond the Kubernetes API.
    type Effect: fmt::Debug + Send + Sync;

    /// Put on every object before anything is done for it, and taken off when its plan says so.
    const FINALIZER: Option<&'static str> = None;
    /// The shortest time between two looks at one object. What many others count into wants one.
    const PACE: Duration = Duration::ZERO;

    /// What wakes it besides its own objects.
    fn wakes(&self, on: &Wakes<Self>);

    /// Reads, and nothing else.
    fn look(&self, it: &Self::Kind, now: Timestamp) -> impl Future<Output = Result<Self::World, Error>> + Send;

    /// Pure and total.
    fn plan(it: &Self::Kind, world: &Self::World, now: Timestamp) -> Plan<Self::Effect>;

    /// Does one of its effects; idempotent.
    fn effect(&self, effect: &Self::Effect) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Says to a keeper's queue that something about an object may have changed.
pub(crate) struct Wakes<P: Keeper> {
    queue: Arc<Queue>,
    kept: Cache<P::Kind>,
}

impl<P: Keeper> Clone for Wakes<P> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), kept: self.kept.clone() }
    }
}

impl<P: Keeper> Wakes<P> {
    /// Whenever one of `neighbours` comes, changes or goes, wakes the objects that `whom` names; `whom` sees it as it
    /// was and as it is.
    pub(crate) fn on<N: Cached>(
        &self,
        neighbours: &Cache<N>,
        whom: impl Fn(&N) -> Vec<ObjectName> + Send + Sync + 'static,
    ) {
        let queue = self.queue.clone();
        neighbours.subscribe(move |before, after| {
            for name in before.into_iter().chain(after).flat_map(&whom) {
                queue.wake(name);
            }
        });
    }

    /// As [`Wakes::on`], but not for what only changed in its status: for those who look at what is declared.
    pub(crate) fn on_declared<N: Cached>(
        &self,
        neighbours: &Cache<N>,
        whom: impl Fn(&N) -> Vec<ObjectName> + Send + Sync + 'static,
    ) {
        let queue = self.queue.clone();
        neighbours.subscribe(move |before, after| {
            if let (Some(before), Some(after)) = (before, after)
                && declares_the_same(before.meta(), after.meta())
            {
                return;
            }
            for name in before.into_iter().chain(after).flat_map(&whom) {
                queue.wake(name);
            }
        });
    }

    pub(crate) fn wake(&self, name: ObjectName) {
        self.queue.wake(name);
    }

    /// The objects that the keeper keeps.
    pub(crate) fn kept(&self) -> &Cache<P::Kind> {
        &self.kept
    }

    pub(crate) fn wake_all(&self) {
        for it in self.kept.all() {
            self.queue.wake(ObjectName::of(it.as_ref()));
        }
    }
}

fn declares_the_same(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.uid == other.uid
        && one.generation == other.generation
        && one.deletion_timestamp == other.deletion_timestamp
        && one.labels == other.labels
}

/// What went wrong with one object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {doing}")]
    Api { doing: String, source: Box<kube::Error> },
    #[error("cannot {doing}")]
    Ledger { doing: &'static str, source: ledger::Error },
    #[error("cannot {doing}")]
    Sandboxes { doing: &'static str, source: sandbox::Error },
    #[error("cannot write {what} as JSON")]
    Json { what: String, source: serde_json::Error },
    #[error("the controller panicked: {0}")]
    Panicked(String),
    #[error("no end after {0:?}")]
    TooLong(Duration),
}

impl Error {
    pub(crate) fn api(doing: String, error: kube::Error) -> Self {
        Self::Api { doing, source: Box::new(error) }
    }

    pub(crate) fn class(&self) -> Class {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    409 => Class::Conflict,
                    404 | 410 => Class::Gone,
                    429 | 500.. => {
                        let after = status.details.as_ref().map(|details| details.retry_after_seconds);
                        Class::Retry(after.filter(|it| *it > 0).map(|it| Duration::from_secs(it.into())))
                    }
                    _ => Class::Rejected,
                },
                kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Class::Bug,
                _ => Class::Retry(None),
            },
            Self::Ledger { source, .. } => source.class(),
            Self::Sandboxes { source, .. } => source.class(),
            Self::Json { .. } | Self::Panicked(_) => Class::Bug,
            Self::TooLong(_) => Class::Retry(None),
        }
    }
}

/// Faults to run under, to show that they change nothing but time. None by default.
#[derive(Debug, Default)]
pub struct Faults {
    /// Every object is looked at, decided on and acted on twice in a row.
    pub twice: bool,
    /// The n-th event from outside, counted from 1 over all sources, is lost: neither cached nor woken for. 0: none.
    pub lose: u64,
    events: AtomicU64,
}

impl Faults {
    pub fn twice() -> Self {
        Self { twice: true, ..Self::default() }
    }

    /// The `n`th event is lost.
    pub fn losing(n: u64) -> Self {
        Self { lose: n, ..Self::default() }
    }

    /// How many events have come.
    pub fn seen(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Counts one more event, and says whether it is the one to lose.
    pub(crate) fn lost(&self) -> bool {
        self.events.fetch_add(1, Ordering::Relaxed) + 1 == self.lose
    }
}

/// What everything in here shares.
pub(crate) struct Machinery {
    pub(crate) client: Client,
    clock: Clock,
    tasks: Tasks,
    /// The field manager and the events' component.
    manager: String,
    /// Objects that one keeper looks at at once.
    workers: usize,
    faults: Arc<Faults>,
    recorder: Arc<Recorder>,
    caches: HashMap<TypeId, Box<dyn Any + Send>>,
    starts: Vec<Start>,
    synced: Vec<futures::future::BoxFuture<'static, ()>>,
    keepers: Vec<Box<dyn FnOnce() + Send>>,
}

type Start = Box<dyn FnOnce(&Tasks, Arc<Faults>) + Send>;

impl Machinery {
    pub(crate) fn new(
        client: Client,
        clock: Clock,
        tasks: Tasks,
        manager: String,
        workers: usize,
        faults: Arc<Faults>,
    ) -> Self {
        let recorder = Arc::new(Recorder::new(client.clone(), manager.clone()));
        Self {
            client,
            clock,
            tasks,
            manager,
            workers,
            faults,
            recorder,
            caches: HashMap::new(),
            starts: Vec::new(),
            synced: Vec::new(),
            keepers: Vec::new(),
        }
    }

    /// The one cache of a kind; the first call makes it.
    pub(crate) fn cache<K: Cached>(&mut self) -> Cache<K> {
        if let Some(cache) = self.caches.get(&TypeId::of::<K>()).and_then(|it| it.downcast_ref::<Cache<K>>()) {
            return cache.clone();
        }
        let cache = Cache::<K>::new(self.client.clone(), self.clock.clone(), self.recorder.clone());
        self.caches.insert(TypeId::of::<K>(), Box::new(cache.clone()));
        let watched = cache.clone();
        self.starts.push(Box::new(move |tasks, faults| {
            let shutdown = tasks.shutdown().clone();
            tasks.platform("watch", async move {
                watched.run(shutdown, faults).await;
                Ok::<_, std::convert::Infallible>(())
            });
        }));
        let listed = cache.clone();
        self.synced.push(async move { listed.synced().await }.boxed());
        cache
    }

    /// Takes a keeper in. It works once everything that anybody looks at has been listed.
    pub(crate) fn keep<P: Keeper>(&mut self, keeper: P) -> Wakes<P> {
        let kept = self.cache::<P::Kind>();
        let queue = Arc::new(Queue::new(P::PACE));
        let wakes = Wakes { queue: queue.clone(), kept: kept.clone() };
        wakes.on(&kept, |it| vec![ObjectName::of(it)]);
        keeper.wakes(&wakes);
        let office = Arc::new(Office {
            keeper,
            queue,
            kept,
            client: self.client.clone(),
            clock: self.clock.clone(),
            manager: self.manager.clone(),
            recorder: self.recorder.clone(),
            faults: self.faults.clone(),
        });
        let (tasks, workers) = (self.tasks.clone(), self.workers);
        self.keepers.push(Box::new(move || {
            for _ in 0..workers {
                let (office, shutdown) = (office.clone(), tasks.shutdown().clone());
                tasks.platform("reconcile", async move {
                    tokio::select! {
                        () = shutdown.begun() => {}
                        () = office.work() => {}
                    }
                    Ok::<_, std::convert::Infallible>(())
                });
            }
        }));
        wakes
    }

    /// Starts the watches, waits until every kind has been listed once, and starts the keepers.
    pub(crate) async fn start(self) {
        let Self { tasks, faults, starts, synced, keepers, .. } = self;
        for start in starts {
            start(&tasks, faults.clone());
        }
        tokio::select! {
            () = tasks.shutdown().begun() => {}
            _ = futures::future::join_all(synced) => keepers.into_iter().for_each(|start| start()),
        }
    }
}

/// One keeper at work.
pub(super) struct Office<P: Keeper> {
    keeper: P,
    queue: Arc<Queue>,
    kept: Cache<P::Kind>,
    client: Client,
    clock: Clock,
    manager: String,
    recorder: Arc<Recorder>,
    faults: Arc<Faults>,
}

impl<P: Keeper> Office<P> {
    async fn work(&self) {
        loop {
            let name = self.queue.next().await;
            self.serve(name).await;
        }
    }

    /// One turn of one object, whatever happens in it.
    async fn serve(&self, name: ObjectName) {
        let Some(it) = self.kept.get(&name) else {
            self.queue.done(name, Done::Gone);
            return;
        };
        let turn = AssertUnwindSafe(self.turn(&it)).catch_unwind();
        let result = match tokio::time::timeout(PATIENCE, turn).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Error::Panicked(said(panic.as_ref()))),
            Err(_) => Err(Error::TooLong(PATIENCE)),
        };
        match result {
            Ok(wake_in) => {
                self.queue.done(name, Done::Well(wake_in));
            }
            Err(error) => {
                let class = error.class();
                let why = kit::chain(&error);
                let kind = P::Kind::kind(&());
                let failures = self.queue.done(name.clone(), Done::Failed(class));
                if matches!(class, Class::Conflict | Class::Gone) && failures < TOLD_AFTER {
                    tracing::debug!(%kind, ns = name.namespace, name = name.name, error = why, "looking again");
                    return;
                }
                tracing::warn!(%kind, ns = name.namespace, name = name.name, error = why, failures, "reconciling failed");
                if failures >= TOLD_AFTER {
                    let note = Note::warning("ReconcileFailed", why);
                    if let Err(error) =
                        self.recorder.tell(&Subject::of::<P::Kind>(it.meta()), &note, self.clock.now()).await
                    {
                        tracing::debug!(error = %kit::chain(&error), "an event is lost");
                    }
                }
            }
        }
    }

    async fn turn(&self, it: &Arc<P::Kind>) -> Result<Option<Duration>, Error> {
        if !self.faults.twice {
            return self.reconcile(it).await;
        }
        self.reconcile(it).await?;
        match self.kept.get(&ObjectName::of(it.as_ref())) {
            Some(it) => self.reconcile(&it).await,
            None => Ok(None),
        }
    }

    async fn reconcile(&self, it: &Arc<P::Kind>) -> Result<Option<Duration>, Error> {
        let deleting = it.meta().deletion_timestamp.is_some();
        if deleting && P::FINALIZER.is_some_and(|ours| !it.finalizers().iter().any(|held| held == ours)) {
            // Done with it; somebody else's finalizer still holds it.
            return Ok(None);
        }
        let now = self.clock.now();
        // Nothing is decided on the finalizer, and nothing is done before it is there.
        let (world, held) = futures::join!(self.keeper.look(it, now), self.hold(it));
        held?;
        let world = world?;
        let plan = P::plan(it, &world, now);
        self.act(it, plan, now).await
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        panic.downcast_ref::<&str>().map_or("(no message)", |text| text).to_owned()
    }
}
