use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll};
use jiff::Timestamp;
use kit::Backoff;

use super::AT_ONCE;
use super::agenda::Agenda;
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Event, Key};

/// So often an object that has changed meanwhile is looked at again at once. Who hears of a conflict more often has it from
/// a webhook.
const CONFLICTS: u32 = 8;
/// The pauses after failures.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(30);

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
    let Some(mut changes) = changes(core, watched) else { return };
    let mut agenda = Agenda::new(core.clock.clone());
    agenda.add(first());
    let mut running = FuturesUnordered::new();
    let (mut busy, mut meanwhile) = (HashSet::new(), HashSet::new());
    let mut conflicts: HashMap<Key, u32> = HashMap::new();
    // Each has pauses of its own: what one tenant's object cannot get holds up no other's.
    let mut failing: HashMap<Key, Backoff> = HashMap::new();
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
                let before = conflicts.remove(&key).unwrap_or_default();
                match done {
                    Ok(at) => {
                        failing.remove(&key);
                        agenda.at(key, at);
                    }
                    // It is looked at as it is now.
                    Err(problem) if problem.reason == "Conflict" && before < CONFLICTS => {
                        conflicts.insert(key.clone(), before + 1);
                        agenda.add([key]);
                    }
                    Err(problem) => {
                        tracing::info!(?key, why = problem.message, "something is not done yet; trying again");
                        let pauses = failing.entry(key.clone()).or_insert_with(|| Backoff::new(SHORTEST, LONGEST));
                        agenda.at(key, core.clock.now().checked_add(pauses.pause()).ok());
                    }
                }
            }
            () = agenda.again() => {}
        }
    }
}

/// What changes of some resources (group and plural) from now on. None in it, once, says that it has fallen behind.
pub(super) fn changes(
    core: &Core,
    watched: &[(&str, &str)],
) -> Option<SelectAll<BoxStream<'static, Option<Arc<Event>>>>> {
    let rev = core.store.revision();
    let mut all = SelectAll::new();
    for (group, resource) in watched {
        let watch = core.store.watch(group, resource, None, rev).ok()?;
        let one = stream::unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            Some(match watch.next().await {
                Some(change) => (Some(change), Some(watch)),
                None => (None, None),
            })
        });
        all.push(one.boxed());
    }
    Some(all)
}
