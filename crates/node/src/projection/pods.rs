//! Keeps one Pod for each sandbox that is somebody's.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kit::{Backoff, Clock};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::node::{Event, Phase, Sandbox};

use super::link::{Heard, Link, within};
use super::plan::{Action, Key, Seen, State, plan};
use super::{Error, MANAGER, object, objects};

/// Pods that are written at once.
const AT_ONCE: usize = 16;
/// The longest that the API server may take for a call.
const CALL: Duration = Duration::from_secs(30);
/// A sandbox is shown when it is somebody's for so long: that of a short run costs no write, and the first calls in one do
/// not share the machine with the writing of its Pod.
const SETTLE: Duration = Duration::from_millis(250);
/// When a Pod that was made is looked for again, should the watch not show it: it may have been deleted unseen.
const UNSEEN: Duration = Duration::from_secs(30);
/// When the same is told again of a Pod of which somebody else said otherwise: two that disagree would otherwise write at
/// each other as fast as they can.
const AGAIN: Duration = Duration::from_secs(10);
/// The longest pause after a failure.
const LONGEST: Duration = Duration::from_secs(300);

/// Acts.
pub(super) struct Office<'a> {
    pub client: &'a Client,
    pub node: &'a str,
    pub clock: &'a Clock,
    pub link: &'a Link,
}

/// What is known of one Pod and its sandbox.
#[derive(Default)]
struct Entry {
    sandbox: Option<Sandbox>,
    /// When the sandbox was first heard of.
    heard: Option<Instant>,
    pod: Option<Seen>,
    /// The sandbox's Pod was seen.
    shown: bool,
    /// Something is being done about it.
    busy: bool,
    told: Option<Told>,
    failing: Option<Backoff>,
}

/// What was told last of a Pod.
struct Told {
    uid: String,
    state: State,
    at: Instant,
}

/// What is known, and what is to be looked at.
#[derive(Default)]
struct World {
    entries: BTreeMap<Key, Entry>,
    /// Whether the node has named all its sandboxes, and the API server all its Pods.
    knows_sandboxes: bool,
    knows_pods: bool,
    /// The Pods of a list that is not complete yet.
    listing: BTreeMap<Key, Seen>,
    due: BTreeSet<Key>,
    later: BTreeMap<Key, Instant>,
}

impl World {
    fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Lost => self.knows_sandboxes = false,
            Heard::Said(Event::All { sandboxes }) => {
                self.knows_sandboxes = true;
                let there: BTreeSet<&str> = sandboxes.iter().map(|it| it.id.as_str()).collect();
                for entry in self.entries.values_mut() {
                    entry.sandbox.take_if(|it| !there.contains(it.id.as_str()));
                }
                self.due.extend(self.entries.keys().cloned());
                sandboxes.into_iter().for_each(|it| self.place(it, now));
            }
            Heard::Said(Event::Changed { sandbox }) => self.place(sandbox, now),
        }
    }

    fn place(&mut self, sandbox: Sandbox, now: Instant) {
        let Some(key) = Key::of_sandbox(&sandbox) else { return };
        self.due.insert(key.clone());
        if sandbox.phase == Phase::Ended {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.sandbox.take_if(|it| it.id == sandbox.id);
                self.forget_if_empty(&key);
            }
            return;
        }
        let entry = self.entries.entry(key).or_default();
        if entry.sandbox.as_ref().is_none_or(|it| it.id != sandbox.id) {
            entry.shown = entry.pod.as_ref().is_some_and(|pod| pod.sandbox.as_ref() == Some(&sandbox.id));
            entry.heard = Some(now);
        }
        entry.sandbox = Some(sandbox);
    }

    fn forget_if_empty(&mut self, key: &Key) -> bool {
        let empty = self.entries.get(key).is_some_and(|it| it.sandbox.is_none() && it.pod.is_none() && !it.busy);
        if empty {
            self.entries.remove(key);
            self.later.remove(key);
        }
        empty
    }

    fn see(&mut self, event: watcher::Event<DynamicObject>) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(pod) => {
                if let Some(key) = Key::of_pod(&pod) {
                    self.listing.insert(key, Seen::of(&pod));
                }
            }
            watcher::Event::InitDone => {
                self.knows_pods = true;
                let listing = std::mem::take(&mut self.listing);
                for (key, entry) in &mut self.entries {
                    entry.pod.take_if(|_| !listing.contains_key(key));
                }
                listing.into_iter().for_each(|(key, seen)| self.put(key, Some(seen)));
                self.due.extend(self.entries.keys().cloned());
            }
            watcher::Event::Apply(pod) => {
                if let Some(key) = Key::of_pod(&pod) {
                    self.put(key, Some(Seen::of(&pod)));
                }
            }
            watcher::Event::Delete(pod) => {
                if let Some(key) = Key::of_pod(&pod) {
                    self.put(key, None);
                }
            }
        }
    }

    fn put(&mut self, key: Key, seen: Option<Seen>) {
        self.due.insert(key.clone());
        let entry = self.entries.entry(key).or_default();
        let its = seen.as_ref().and_then(|pod| pod.sandbox.as_ref());
        entry.shown |= its.is_some() && its == entry.sandbox.as_ref().map(|it| &it.id);
        entry.pod = seen;
    }

    /// The next thing to do, for which there is time now.
    fn next(&mut self, now: Instant) -> Option<(Key, Action)> {
        while let Some((key, _)) = self.later.iter().find(|(_, at)| **at <= now) {
            let key = key.clone();
            self.later.remove(&key);
            self.due.insert(key);
        }
        if !(self.knows_sandboxes && self.knows_pods) {
            return None;
        }
        // What is being done is looked at again when it is done.
        let mut due = std::mem::take(&mut self.due).into_iter();
        let found = due.find_map(|key| {
            if self.forget_if_empty(&key) {
                return None;
            }
            let entry = self.entries.get_mut(&key)?;
            if entry.busy {
                self.due.insert(key);
                return None;
            }
            let action = plan(entry.sandbox.as_ref(), entry.pod.as_ref(), entry.shown)?;
            let settled = entry.heard.map_or(now, |heard| heard + SETTLE);
            if action == Action::Create && settled > now {
                self.later.insert(key, settled);
                return None;
            }
            if action == Action::Tell
                && let (Some(pod), Some(sandbox)) = (&entry.pod, &entry.sandbox)
            {
                let state = State::of(sandbox);
                let before = entry.told.as_ref().filter(|it| it.uid == pod.uid && it.state == state);
                if let Some(again) = before.map(|it| it.at + AGAIN).filter(|it| *it > now) {
                    self.later.insert(key, again);
                    return None;
                }
                entry.told = Some(Told { uid: pod.uid.clone(), state, at: now });
            }
            entry.busy = true;
            Some((key, action))
        });
        self.due.extend(due);
        found
    }

    fn done(&mut self, key: Key, action: &Action, done: Result<(), Error>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.busy = false;
        let wait = match done {
            Ok(()) => {
                entry.failing = None;
                self.later.remove(&key);
                (*action == Action::Create).then_some(UNSEEN)
            }
            Err(error) => {
                entry.told = None;
                let failing = entry.failing.get_or_insert_with(|| Backoff::new(Duration::from_millis(200), LONGEST));
                let (pod, namespace, why) = (&key.name, &key.namespace, kit::chain(&error));
                if failing.failures() == 0 {
                    tracing::warn!(pod, namespace, why, "a sandbox's Pod is not as it should be; trying again");
                } else {
                    tracing::debug!(pod, namespace, why, "a sandbox's Pod is still not as it should be");
                }
                Some(failing.pause())
            }
        };
        if let Some(wait) = wait {
            self.later.insert(key, now + wait);
        }
    }
}

impl Office<'_> {
    /// For ever.
    pub(super) async fn keep(&self, mut hear: mpsc::Receiver<Heard>) {
        let pods = objects::<Pod>(self.client, None);
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let mut pods = pin!(watcher(pods, config).default_backoff());
        let mut world = World::default();
        let mut working: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        loop {
            while working.len() < AT_ONCE
                && let Some((key, action)) = world.next(Instant::now())
            {
                let sandbox = world.entries.get(&key).and_then(|it| it.sandbox.clone());
                let seen = world.entries.get(&key).and_then(|it| it.pod.clone());
                working.push(
                    async move {
                        let done = self.act(&key, &action, sandbox, seen).await;
                        (key, action, done)
                    }
                    .boxed(),
                );
            }
            let again = world.later.values().min().copied();
            tokio::select! {
                heard = hear.recv() => match heard {
                    Some(heard) => world.hear(heard, Instant::now()),
                    None => return,
                },
                event = pods.next() => match event {
                    Some(Ok(event)) => world.see(event),
                    Some(Err(error)) => tracing::debug!(error = kit::chain(&error), "watching Pods failed; trying again"),
                    None => return,
                },
                Some((key, action, done)) = working.next() => world.done(key, &action, done, Instant::now()),
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
    }

    async fn act(&self, key: &Key, action: &Action, sandbox: Option<Sandbox>, seen: Option<Seen>) -> Result<(), Error> {
        match (action, sandbox, seen) {
            (Action::Create, Some(sandbox), _) => within(CALL, self.create(key, &sandbox)).await,
            (Action::Tell, Some(sandbox), Some(seen)) => within(CALL, self.tell(key, &sandbox, &seen)).await,
            (Action::End, Some(sandbox), _) => {
                tracing::info!(sandbox = sandbox.id, pod = key.name, "its Pod was deleted: ending it");
                self.link.end(&sandbox.id).await
            }
            (Action::Remove { uid }, ..) => within(CALL, self.remove(key, uid)).await,
            _ => Ok(()),
        }
    }

    fn pods(&self, key: &Key) -> Api<DynamicObject> {
        objects::<Pod>(self.client, Some(&key.namespace))
    }

    async fn create(&self, key: &Key, sandbox: &Sandbox) -> Result<(), Error> {
        let pods = self.pods(key);
        let it = object::pod(key, self.node, sandbox);
        let it = serde_json::from_value(it).map_err(Error::unreachable("write a Pod"))?;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        // Not applied: what is there already may be a person's.
        match pods.create(&params, &it).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => return other.map(drop).map_err(Error::api("show a sandbox as a Pod")),
        }
        let Some(there) = pods.get_opt(&key.name).await.map_err(Error::api("look at a Pod"))? else { return Ok(()) };
        if Seen::of(&there).sandbox.is_some() {
            return Ok(()); // It is ours, and the watch will show it.
        }
        let events = objects::<k8s_openapi::api::core::v1::Event>(self.client, Some(&key.namespace));
        let event = object::in_the_way(&there, self.node, &sandbox.id, self.clock.now());
        let event = serde_json::from_value(event).map_err(Error::unreachable("write an event"))?;
        match events.create(&params, &event).await {
            // Told before.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            told => drop(told.map_err(Error::api("tell that a Pod is in the way"))?),
        }
        Err(Error::Taken { kind: "Pod", name: key.name.clone(), lost: "the sandbox is not shown" })
    }

    async fn tell(&self, key: &Key, sandbox: &Sandbox, seen: &Seen) -> Result<(), Error> {
        let status: Value = object::pod_status(sandbox, seen, self.clock.now());
        let params = PatchParams::apply(MANAGER).force();
        match self.pods(key).patch_status(&key.name, &params, &Patch::Apply(&status)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(Error::api("tell how a sandbox is")),
        }
    }

    async fn remove(&self, key: &Key, uid: &str) -> Result<(), Error> {
        let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only), ..DeleteParams::default() };
        match self.pods(key).delete(&key.name, &now).await {
            // Gone, and the name may be another's by now.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            other => other.map(drop).map_err(Error::api("remove the Pod of a sandbox that has ended")),
        }
    }
}
