//! Pods that have ended stay to be looked at, but not for ever: beyond so many, the oldest are deleted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::local::World;
use crate::local::agenda::Agenda;
use crate::local::reader::Kind;
use crate::local::workload::pods;
use crate::store::Key;

const KEPT: usize = 12_500;

pub(crate) async fn follow(world: Arc<World>) {
    let listed = world.core.store.list("", "pods", None, None, None);
    let Ok(mut changes) = world.core.store.watch("", "pods", None, listed.rev) else { return };
    let mut ended = Ended::default();
    for entry in &listed.entries {
        if let Some(pod) = world.pods.of(entry) {
            ended.see(&entry.key, &pod);
        }
    }
    let mut failed = Agenda::new(world.core.clock.clone());
    loop {
        while let Some(key) = ended.too_many(KEPT) {
            let Some(pod) = world.pods.get(&key.namespace, &key.name) else { continue };
            if let Err(problem) = world.delete(&*pod).await {
                tracing::info!(?key, why = problem.message, "an old pod stays");
                failed.failed(key);
            }
        }
        for key in failed.take(usize::MAX) {
            if let Some(pod) = world.pods.get(&key.namespace, &key.name) {
                ended.see(&key, &pod);
            }
        }
        tokio::select! {
            change = changes.next() => match change {
                Some(change) if change.deleted => ended.forget(&change.entry.key),
                Some(change) => {
                    if let Some(pod) = world.pods.of(&change.entry) {
                        ended.see(&change.entry.key, &pod);
                    }
                }
                None => return,
            },
            () = failed.again() => {}
        }
    }
}

/// The pods that have ended, the oldest first.
#[derive(Default)]
struct Ended {
    in_order: BTreeSet<(Timestamp, Key)>,
    all: HashMap<Key, Timestamp>,
}

impl Ended {
    fn see(&mut self, key: &Key, pod: &Pod) {
        if pods::is_over(pod) && !pod.is_deleting() {
            let at = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |it| it.0);
            self.forget(key);
            self.in_order.insert((at, key.clone()));
            self.all.insert(key.clone(), at);
        } else {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        if let Some(at) = self.all.remove(key) {
            self.in_order.remove(&(at, key.clone()));
        }
    }

    /// The oldest, when there are more than `kept`. It is forgotten.
    fn too_many(&mut self, kept: usize) -> Option<Key> {
        if self.all.len() <= kept {
            return None;
        }
        let (_, key) = self.in_order.pop_first()?;
        self.all.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_of_too_many_goes_first() {
        let mut ended = Ended::default();
        let mut see = |name: &str, at: &str, phase: &str| {
            let it = json!({"metadata": {"name": name, "namespace": "n", "creationTimestamp": at}, "status": {"phase": phase}});
            let pod: Pod = serde_json::from_value(it).unwrap();
            ended.see(&pod.key(), &pod);
        };
        see("new", "2026-01-01T00:00:03Z", "Failed");
        see("runs", "2026-01-01T00:00:00Z", "Running");
        see("old", "2026-01-01T00:00:01Z", "Succeeded");
        see("middle", "2026-01-01T00:00:02Z", "Succeeded");
        see("middle", "2026-01-01T00:00:02Z", "Succeeded");
        let names: Vec<String> = std::iter::from_fn(|| ended.too_many(1)).map(|it| it.name.to_string()).collect();
        assert_eq!(names, ["old", "middle"]);
        assert_eq!(ended.too_many(1), None);
    }
}
