use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, FuturesUnordered};
use jiff::Timestamp;

use super::agenda::Agenda;
use super::{AT_ONCE, is_stale};
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Event, Key};

/// Has `sync` look at each object that `wakes` names because of a change of one of the `watched` resources (group and
/// plural), at the `first` ones to begin with, and again at the time that it returned. Several are looked at at once, none
/// twice at the same time; what changed meanwhile is looked at again. Returns when it has fallen behind.
pub(super) async fn drive<F>(
    core: &Arc<Core>,
    watched: &[(&str, &str)],
    first: impl FnOnce() -> Vec<Key>,
    wakes: impl Fn(&Event) -> Vec<Key>,
    sync: impl Fn(Key) -> F,
) where
    F: Future<Output = Result<Option<Timestamp>, Problem>>,
{
    let rev = core.store.revision();
    let mut changes = stream::SelectAll::new();
    for (group, resource) in watched {
        let Ok(watch) = core.store.watch(group, resource, None, rev) else { return };
        // A watch that ends says so once.
        changes.push(Box::pin(stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            Some(match watch.next().await {
                Some(change) => (Some(change), Some(watch)),
                None => (None, None),
            })
        })));
    }
    let mut agenda = Agenda::new(core.clock.clone());
    agenda.add(first());
    let mut running = FuturesUnordered::new();
    let (mut busy, mut meanwhile) = (HashSet::new(), HashSet::new());
    loop {
        while running.len() < AT_ONCE
            && let Some(key) = agenda.take(1).pop()
        {
            if busy.contains(&key) {
                meanwhile.insert(key);
                continue;
            }
            busy.insert(key.clone());
            let work = sync(key.clone());
            running.push(async move { (key, work.await) });
        }
        tokio::select! {
            biased;
            change = changes.next() => match change {
                Some(Some(change)) => agenda.add(wakes(&change)),
                _ => return,
            },
            Some((key, done)) = running.next() => {
                busy.remove(&key);
                if meanwhile.remove(&key) {
                    agenda.add([key.clone()]);
                }
                match done {
                    Ok(at) => agenda.at(key, at),
                    Err(problem) if is_stale(&problem) => agenda.add([key]),
                    Err(problem) => {
                        tracing::info!(?key, why = problem.message, "something is not done yet; trying again");
                        agenda.failed(key);
                    }
                }
            }
            () = agenda.again() => {}
        }
    }
}
