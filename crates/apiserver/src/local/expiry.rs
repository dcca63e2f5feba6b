//! Events are kept for an hour after they were last written.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use jiff::Timestamp;
use serde_json::Value;

use super::{AT_ONCE, call, is_stale};
use crate::core::Core;
use crate::store::{Entry, Key};
use crate::verbs::{DeleteOptions, delete};

const KEPT: Duration = Duration::from_secs(3600);
/// How much later one is tried again that could not be deleted.
const AGAIN: Duration = Duration::from_secs(30);

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let listed = core.store.list("", "events", None, None, None);
    let Ok(mut changes) = core.store.watch("", "events", None, listed.rev) else { return };
    let mut queue = Queue::default();
    for entry in &listed.entries {
        queue.set(&entry.key, later(written(entry).min(core.clock.now()), KEPT));
    }
    drop(listed);
    loop {
        while let Some(change) = changes.ready() {
            match change.deleted {
                true => queue.remove(&change.entry.key),
                false => queue.set(&change.entry.key, later(core.clock.now(), KEPT)),
            }
        }
        let now = core.clock.now();
        let due = queue.take(now);
        if !due.is_empty() {
            let deletions = due.into_iter().map(|key| expire(core, key));
            for key in stream::iter(deletions)
                .buffer_unordered(AT_ONCE)
                .filter_map(std::future::ready)
                .collect::<Vec<_>>()
                .await
            {
                queue.set(&key, later(now, AGAIN));
            }
            continue;
        }
        let first = queue.first();
        tokio::select! {
            change = changes.next() => match change {
                Some(change) if change.deleted => queue.remove(&change.entry.key),
                Some(change) => queue.set(&change.entry.key, later(core.clock.now(), KEPT)),
                None => return,
            },
            () = core.clock.until(first.unwrap_or(Timestamp::MAX)), if first.is_some() => {}
        }
    }
}

/// Deletes one, if nobody wrote it meanwhile. Returns it when it has to be tried again.
async fn expire(core: &Arc<Core>, key: Key) -> Option<Key> {
    let entry = core.store.get(&key)?;
    let mut call = call(core, &key)?;
    let options = DeleteOptions { resource_version: Some(entry.rev.to_string()), ..DeleteOptions::default() };
    match delete::delete(&mut call, &options).await {
        Ok(_) => None,
        Err(problem) if is_stale(&problem) => None,
        Err(problem) => {
            tracing::warn!(?key, why = problem.message, "an old event stays");
            Some(key)
        }
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// When the event was written last, as far as it says so itself.
fn written(entry: &Entry) -> Timestamp {
    let event = entry.value();
    let paths = ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"];
    let times = paths.iter().filter_map(|path| event.pointer(path)?.as_str()?.parse().ok());
    let fields = event.pointer("/metadata/managedFields").and_then(Value::as_array);
    let managed = fields.into_iter().flatten().filter_map(|it| it.get("time")?.as_str()?.parse().ok());
    times.chain(managed).max().unwrap_or(Timestamp::MIN)
}

/// Keys by the time they are due.
#[derive(Default)]
struct Queue {
    due: HashMap<Key, Timestamp>,
    order: BTreeSet<(Timestamp, Key)>,
}

impl Queue {
    fn set(&mut self, key: &Key, at: Timestamp) {
        self.remove(key);
        self.due.insert(key.clone(), at);
        self.order.insert((at, key.clone()));
    }

    fn remove(&mut self, key: &Key) {
        if let Some(at) = self.due.remove(key) {
            self.order.remove(&(at, key.clone()));
        }
    }

    fn first(&self) -> Option<Timestamp> {
        self.order.first().map(|it| it.0)
    }

    fn take(&mut self, now: Timestamp) -> Vec<Key> {
        let mut taken = Vec::new();
        while let Some((at, key)) = self.order.pop_first() {
            if at > now {
                self.order.insert((at, key));
                break;
            }
            self.due.remove(&key);
            taken.push(key);
        }
        taken
    }
}
