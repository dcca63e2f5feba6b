//! Who has which sandbox: claimed, used again, ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::{Backoff, Class, Clock, Tasks};
use ledger::{Claimant, Ledger, RunId};
use tokio::sync::{OwnedMutexGuard, Semaphore, oneshot};
use wire::node::{Bind, Code, Create, Workspace};

use crate::link::Link;
use crate::live::{Held, Key, Live, Owner, Place, Stopped, Whose};
use crate::shape::Shape;
use crate::warm::Warm;
use crate::workspace::Workspaces;
use crate::{Error, Hand, Options, Want};

/// The sandboxes that are somebody's, by their keys: whose, and what is known of them.
type Everybody = HashMap<String, (Arc<Place>, Arc<Live>)>;

/// Sandboxes started at once for those who wait for one.
const STARTS: usize = 8;
/// How many sandboxes are tried for one claim: a warm one may have died in this moment, or be of an older version.
const TRIES: usize = 3;

/// Labels of the sandboxes that are kept here, in the node's words.
pub mod labels {
    /// On every one of ours, with the value [`SESSIONS`].
    pub const USE: &str = "insula.dev/use";
    pub const SESSIONS: &str = "sessions";
    /// Of the Pod that people see, from the bind on.
    pub const NAMESPACE: &str = api::labels::POD_NAMESPACE;
    pub const POD: &str = api::labels::POD;
}

/// The sandboxes of sessions. Cheap to clone.
#[derive(Clone)]
pub struct Sandboxes(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub link: Arc<Link>,
    pub ledger: Ledger,
    pub clock: Clock,
    pub tasks: Tasks,
    pub idle: Duration,
    pub quota: u64,
    pub counted: Duration,
    pub counting: Semaphore,
    pub workspaces: Workspaces,
    pub warm: Warm,
    cold: Semaphore,
    places: Mutex<HashMap<Key, Arc<Place>>>,
    /// By the node's id.
    live: Mutex<Everybody>,
    /// What sessions whose sandbox was ended are told when they get the next one.
    unsaid: Mutex<HashMap<Key, Stopped>>,
}

impl Sandboxes {
    /// Takes up what the ledger's claims and the node agree on, and ends the rest of ours. From then on keeps sandboxes
    /// ready, ends those that nobody uses, and those of runs without a session when the run is over.
    ///
    /// # Errors
    /// When the node does not answer, or ledger or workspaces cannot be read.
    pub async fn open(options: Options) -> Result<Self, Error> {
        let Options { node, ledger, clock, tasks, workspaces, warm, idle, quota, counted } = options;
        let inner = Arc::new(Inner {
            link: Arc::new(Link::new(node, tasks.clone())),
            ledger,
            clock,
            tasks: tasks.clone(),
            idle,
            quota,
            counted,
            counting: Semaphore::new(1),
            workspaces: Workspaces::open(workspaces)?,
            warm: Warm::new(warm),
            cold: Semaphore::new(STARTS),
            places: Mutex::default(),
            live: Mutex::default(),
            unsaid: Mutex::default(),
        });
        let changes = inner.ledger.changes();
        inner.adopt().await?;
        for left in inner.workspaces.removed() {
            inner.clone().remove_directory(left);
        }
        let it = inner.clone();
        tasks.platform("sandboxes of finished runs", async move { it.follow_runs(changes).await });
        let it = inner.clone();
        tasks.platform("sandbox watch", async move { it.follow_node().await });
        let it = inner.clone();
        tasks.platform("warm sandboxes", async move { it.fill().await });
        Ok(Self(inner))
    }

    /// The sandbox of the owner's session (of the run, without one): the one it has while that lives and is as wanted,
    /// else a warm one, else a new one, over the same workspace.
    ///
    /// Images: `host` is this machine's own programs; so are, under any tag, `busybox`, `ubuntu`, `debian`, `python`, `node`, `nginx`
    /// and Sympozium's own sandbox image. There are no others yet.
    ///
    /// # Errors
    /// [`Error::Unfit`] when what is wanted cannot be had here; [`Error::Ledger`] with the class `Gone` when the run is
    /// over.
    pub async fn claim(&self, owner: &Owner, want: &Want) -> Result<Hand, Error> {
        let shape = Shape::of(want)?;
        loop {
            let place = self.0.place(owner.key());
            let held = place.held.clone().lock_owned().await;
            if held.given_up {
                continue;
            }
            if let Some(live) = held.live.as_ref().filter(|live| !live.is_over() && live.shape == shape)
                && self.0.reuse(live, &owner.run).await?
            {
                return Ok(Hand { all: self.0.clone(), live: live.clone() });
            }
            // Whoever asked may go away in the middle: what was begun comes to an end all the same.
            let (tell, told) = oneshot::channel();
            let (inner, owner) = (self.0.clone(), owner.clone());
            self.0.tasks.tenant("sandbox claim", async move {
                let _ = tell.send(inner.replace(&place, held, &owner, shape).await);
            });
            let live = told.await.map_err(Error::unreachable("finish a claim"))??;
            return Ok(Hand { all: self.0.clone(), live });
        }
    }

    /// A run was deleted: its sandbox goes, where no other run of the session has used it since, and its workspace, where
    /// that is its alone. The ledger must have forgotten the run before.
    ///
    /// # Errors
    /// When the workspace cannot be moved away. Idempotent.
    pub async fn end_run(&self, namespace: &str, instance: &str, run: &RunId) -> Result<(), Error> {
        let own = Key { namespace: namespace.into(), instance: instance.into(), whose: Whose::Run(run.clone()) };
        let mut used = self.0.places_where(|_, live| *live.run() == *run);
        used.extend(self.0.places().get(&own).cloned());
        for place in used {
            self.0.end_place(&place, "its run was deleted", |live| *live.run() == *run).await;
        }
        self.0.unsaid().remove(&own);
        // What no object can be named has no workspace.
        self.0.workspaces.of(&own).map_or(Ok(()), |path| self.0.discard(&path))
    }

    /// An instance was deleted: all its sandboxes and workspaces go. The ledger must have forgotten it before.
    ///
    /// # Errors
    /// When the workspaces cannot be moved away. Idempotent.
    pub async fn end_instance(&self, namespace: &str, instance: &str) -> Result<(), Error> {
        let places: Vec<_> = self.0.places().values().cloned().collect();
        let its = places.iter().filter(|it| it.key.namespace == namespace && it.key.instance == instance);
        let ends = its.map(|place| self.0.end_place(place, "its instance was deleted", |_| true));
        futures::future::join_all(ends).await;
        self.0.unsaid().retain(|key, _| key.namespace != namespace || key.instance != instance);
        self.0.workspaces.of_instance(namespace, instance).map_or(Ok(()), |path| self.0.discard(&path))
    }

    /// How many are ready for whoever comes next.
    pub fn warm(&self) -> usize {
        self.0.warm.count()
    }
}

impl Inner {
    pub(crate) fn places(&self) -> MutexGuard<'_, HashMap<Key, Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Everybody> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn unsaid(&self) -> MutexGuard<'_, HashMap<Key, Stopped>> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn place(&self, key: Key) -> Arc<Place> {
        let mut places = self.places();
        let place = places.entry(key.clone()).or_insert_with(|| Arc::new(Place { key, held: Arc::default() }));
        place.clone()
    }

    fn places_where(&self, test: impl Fn(&Place, &Live) -> bool) -> Vec<Arc<Place>> {
        self.live().values().filter(|(place, live)| test(place, live)).map(|(place, _)| place.clone()).collect()
    }

    /// Whether the claim still holds, for this run too.
    async fn reuse(&self, live: &Arc<Live>, run: &RunId) -> Result<bool, Error> {
        if *live.run() == *run {
            return Ok(true);
        }
        match self.ledger.reuse(live.epoch, run).await {
            Ok(()) => {
                live.run().clone_from(run);
                Ok(true)
            }
            Err(ledger::Error::Unclaimed { .. }) => Ok(false),
            Err(error) => Err(Error::ledger("note who uses a sandbox")(error)),
        }
    }

    /// Puts a fresh sandbox into a place, after the end of the one that is there.
    async fn replace(
        self: &Arc<Self>,
        place: &Arc<Place>,
        mut held: OwnedMutexGuard<Held>,
        owner: &Owner,
        shape: Shape,
    ) -> Result<Arc<Live>, Error> {
        if let Some(old) = held.live.take() {
            self.end(&old, "another one takes its place").await;
        }
        let bound = self.bind_one(&place.key, owner, &shape).await;
        match bound {
            Ok(live) => {
                if let Some(stopped) = self.unsaid().remove(&place.key) {
                    live.follows(stopped);
                }
                self.settle(place, &mut held, live.clone());
                Ok(live)
            }
            Err(error) => {
                self.give_up(place, &mut held);
                Err(error)
            }
        }
    }

    /// From now on it is what the place holds.
    pub(crate) fn settle(self: &Arc<Self>, place: &Arc<Place>, held: &mut Held, live: Arc<Live>) {
        self.live().insert(live.id.clone(), (place.clone(), live.clone()));
        held.live = Some(live.clone());
        let (inner, key, counted) = (self.clone(), place.key.clone(), live.clone());
        self.tasks.tenant("workspace quota", async move { inner.hold_quota(&key, &counted).await });
        let (inner, place) = (self.clone(), place.clone());
        self.tasks.tenant("idle sandbox", async move { inner.end_when_idle(&place, &live).await });
    }

    /// Nobody looks for the place any more; who waits for it looks again.
    fn give_up(&self, place: &Arc<Place>, held: &mut Held) {
        held.given_up = true;
        let mut places = self.places();
        if places.get(&place.key).is_some_and(|it| Arc::ptr_eq(it, place)) {
            places.remove(&place.key);
        }
    }

    async fn bind_one(&self, key: &Key, owner: &Owner, shape: &Shape) -> Result<Arc<Live>, Error> {
        let workspace = self.workspaces.of(key)?;
        let mut tries = 0;
        loop {
            tries += 1;
            // The last try is with a new one: all warm ones may be of an older version.
            let warm = if tries < TRIES { self.warm.take() } else { None };
            let id = match warm {
                Some(id) => id,
                None => {
                    let _turn = self.cold.acquire().await.map_err(Error::unreachable("start a sandbox"))?;
                    self.start().await?
                }
            };
            let error = match self.bind(&id, key, owner, shape, &workspace).await {
                Ok(live) => return Ok(Arc::new(live)),
                Err(error) => error,
            };
            self.remove_sandbox(&id).await;
            if !is_its_own(&error) || tries >= TRIES {
                return Err(error);
            }
            tracing::info!(
                sandbox = id,
                error = kit::chain(&error),
                "a sandbox could not be bound; taking another one"
            );
        }
    }

    /// Makes a sandbox the owner's: in the ledger, then on the machine.
    async fn bind(
        &self,
        id: &str,
        key: &Key,
        owner: &Owner,
        shape: &Shape,
        workspace: &std::path::Path,
    ) -> Result<Live, Error> {
        let base = if owner.session.is_empty() { &owner.run_name } else { &owner.instance };
        let pod = pod_name(base, id);
        let by = Claimant {
            namespace: owner.namespace.clone(),
            instance: owner.instance.clone(),
            session: owner.session.clone(),
            run: owner.run.clone(),
            pod: pod.clone(),
            shape: serde_json::to_string(shape).map_err(Error::unreachable("note what is wanted"))?,
        };
        let epoch = self.ledger.claim(id, by).await.map_err(Error::ledger("claim a sandbox"))?;
        let bind = async {
            self.workspaces.make(workspace)?;
            let path =
                workspace.to_str().ok_or_else(|| Error::Unfit("the data directory's path is no UTF-8".into()))?;
            let asked = Bind {
                workspace: Some(Workspace { path: path.to_owned(), read_only: false, quota: Some(self.quota) }),
                env: shape.env.clone(),
                hostname: Some(pod.clone()),
                labels: BTreeMap::from([
                    (labels::NAMESPACE.to_owned(), key.namespace.clone()),
                    (labels::POD.to_owned(), pod.clone()),
                    (api::labels::INSTANCE.to_owned(), key.instance.clone()),
                    (api::labels::AGENT_RUN.to_owned(), owner.run_name.clone()),
                ]),
                limits: shape.limits,
                ..Bind::default()
            };
            self.link.bind(id, &asked).await
        };
        match bind.await {
            Ok(_) => {
                let (shape, workspace) = (shape.clone(), workspace.to_owned());
                Ok(Live::new(id.to_owned(), pod, epoch, shape, workspace, owner.run.clone(), self.clock.clone()))
            }
            Err(error) => {
                self.unclaim(epoch).await;
                Err(error)
            }
        }
    }

    /// A new one, nobody's yet.
    pub(crate) async fn start(&self) -> Result<String, Error> {
        let id = crate::short_id();
        let labels = BTreeMap::from([(labels::USE.to_owned(), labels::SESSIONS.to_owned())]);
        let asked = Create { id: Some(id.clone()), labels, ..Create::default() };
        match self.link.create(&asked).await {
            Ok(sandbox) => Ok(sandbox.id),
            Err(error) => {
                // It may be there all the same, when only the answer was lost.
                if matches!(error, Error::Unreachable { .. }) {
                    self.remove_sandbox(&id).await;
                }
                Err(error)
            }
        }
    }

    /// Ends what a place holds, if `test` wants it.
    pub(crate) async fn end_place(&self, place: &Arc<Place>, why: &str, test: impl Fn(&Live) -> bool) {
        let mut held = place.held.lock().await;
        let Some(live) = held.live.take_if(|live| test(live)) else { return };
        self.end(&live, why).await;
        self.give_up(place, &mut held);
    }

    /// Ends a sandbox of a place that nobody has locked, behind whoever noticed that it must end.
    pub(crate) fn end_live(self: Arc<Self>, live: &Arc<Live>, why: &str) {
        live.end(why);
        let Some((place, _)) = self.live().get(&live.id).cloned() else { return };
        let (inner, live, why) = (self.clone(), live.clone(), why.to_owned());
        self.tasks.tenant("sandbox end", async move {
            inner.end_place(&place, &why, |it| it.id == live.id).await;
        });
    }

    async fn end(&self, live: &Live, why: &str) {
        live.end(why);
        self.live().remove(&live.id);
        self.remove_sandbox(&live.id).await;
        self.unclaim(live.epoch).await;
    }

    /// Ends a sandbox on the node; where that does not work now, it is tried until it does or the node goes.
    pub(crate) async fn remove_sandbox(&self, id: &str) {
        let Err(error) = self.link.remove(id).await else { return };
        if self.tasks.shutdown().has_begun() {
            return; // The node ends them all.
        }
        tracing::warn!(sandbox = id, error = kit::chain(&error), "cannot end a sandbox; trying again");
        let (link, id, shutdown) = (self.link.clone(), id.to_owned(), self.tasks.shutdown().clone());
        self.tasks.tenant("sandbox end", async move {
            let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(60));
            loop {
                tokio::select! {
                    () = tokio::time::sleep(backoff.pause()) => {}
                    () = shutdown.begun() => return,
                }
                match link.remove(&id).await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(sandbox = id, error = kit::chain(&error), "cannot end a sandbox"),
                }
            }
        });
    }

    /// A claim that stays by accident is cleared at the next start: its sandbox is gone by then.
    pub(crate) async fn unclaim(&self, epoch: ledger::ClaimEpoch) {
        if let Err(error) = self.ledger.unclaim(epoch).await
            && !matches!(error.class(), Class::Gone)
        {
            tracing::warn!(error = kit::chain(&error), "cannot end a claim");
        }
    }
}

/// Whether what went wrong in a bind may be this sandbox's own fault, so that another one may do. Nothing was done in it
/// yet.
fn is_its_own(error: &Error) -> bool {
    match error {
        Error::Ended { begun, .. } => !begun,
        Error::Node { code, .. } => matches!(code, Code::Execd | Code::Machine),
        Error::Ledger { source, .. } => matches!(source, ledger::Error::Claimed { .. }),
        _ => false,
    }
}

/// A name for people: whose it is, and which. Fits a host name, as a Pod's name should.
fn pod_name(base: &str, id: &str) -> String {
    let room = 63_usize.saturating_sub(id.len() + 1);
    let base: String = base.chars().map(|it| if it == '.' { '-' } else { it }).take(room).collect();
    format!("{}-{id}", base.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_that_failed_is_tried_with_another_sandbox_where_that_may_help() {
        let node = |code| Error::Node { doing: "bind a sandbox", code, said: String::new() };
        let ended = |begun| Error::Ended { why: String::new(), begun };
        for error in [node(Code::Machine), node(Code::Execd), ended(false)] {
            assert!(is_its_own(&error), "{error:?}");
        }
        for error in [node(Code::Rejected), node(Code::Unavailable), ended(true), Error::Unfit(String::new())] {
            assert!(!is_its_own(&error), "{error:?}");
        }
    }

    #[test]
    fn a_pods_name_is_a_host_name_and_ends_with_the_sandboxes_id() {
        assert_eq!(pod_name("me", "abc"), "me-abc");
        assert_eq!(pod_name("my.agent", "abc"), "my-agent-abc");
        let long = pod_name(&"x-".repeat(200), "0123456789");
        assert!(long.len() <= 63 && long.ends_with("x-0123456789"), "{long}");
    }
}
