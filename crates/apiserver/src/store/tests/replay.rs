//! Random operations against a model: a map, and the map as it was at every revision.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type State = BTreeMap<Key, u64>;

#[derive(Clone, Debug)]
enum Op {
    Put(Key),
    Delete(Key),
    Compact(u64),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || {
        (0..2u8, 0..2u8, 0..4u8).prop_map(|(r, ns, n)| Key::new("", format!("r{r}"), format!("n{ns}"), format!("o{n}")))
    };
    prop_oneof![
        12 => key().prop_map(Op::Put),
        6 => key().prop_map(Op::Delete),
        1 => (0..40u64).prop_map(Op::Compact),
        1 => Just(Op::Reopen),
    ]
}

fn state(entries: &[Arc<Entry>]) -> State {
    entries.iter().map(|it| (it.key.clone(), it.rev)).collect()
}

fn of(state: &State, resource: &str, namespace: Option<&str>) -> State {
    let wanted = |key: &Key| *key.resource == *resource && namespace.is_none_or(|it| *key.namespace == *it);
    state.iter().filter(|it| wanted(it.0)).map(|(key, rev)| (key.clone(), *rev)).collect()
}

/// Every kept revision can be listed, and a watch from there replays to the state now.
async fn check(store: &Store, history: &[State], wrote: &[Key], kept: u64) {
    let now = history.last().unwrap();
    assert_eq!(&state(&store.everything().0), now);
    for resource in ["r0", "r1"] {
        for namespace in [None, Some("n1")] {
            let want = of(now, resource, namespace);
            for (rev, then) in history.iter().enumerate() {
                let rev = rev as u64;
                let Ok(listed) = store.list_at(rev, "", resource, namespace, None, None).await else {
                    assert!(rev < kept, "revision {rev} of {kept} is gone");
                    continue;
                };
                assert_eq!(listed.rev, rev);
                let mut replayed = state(&listed.entries);
                assert_eq!(replayed, of(then, resource, namespace), "at {rev}");
                let mut watch = store.watch("", resource, namespace, rev).unwrap();
                let mut seen = rev;
                let wanted =
                    |key: &&Key| *key.resource == *resource && namespace.is_none_or(|it| *key.namespace == *it);
                for _ in wrote[rev as usize..].iter().filter(wanted) {
                    let event = watch.next().await.unwrap();
                    assert!(event.rev > seen, "{} after {seen}", event.rev);
                    seen = event.rev;
                    assert_eq!(event.prev.as_ref().map(|it| it.rev), replayed.get(&event.entry.key).copied());
                    if event.deleted {
                        replayed.remove(&event.entry.key);
                    } else {
                        replayed.insert(event.entry.key.clone(), event.rev);
                    }
                }
                assert_eq!(replayed, want, "from {rev}");
            }
        }
    }
}

async fn run(data: &Data, window: Window, ops: Vec<Op>) {
    let mut store = open_window(data, window);
    let mut history = vec![State::new()];
    let mut wrote = Vec::new();
    let mut kept = 0;
    for op in ops {
        let mut state = history.last().unwrap().clone();
        match op {
            Op::Put(key) => {
                let rev = put(&store, &key, "").await.rev;
                assert_eq!(rev, history.len() as u64);
                wrote.push(key.clone());
                state.insert(key, rev);
            }
            Op::Delete(key) if state.contains_key(&key) => {
                delete(&store, &key).await;
                state.remove(&key);
                wrote.push(key);
            }
            Op::Compact(rev) if matches!(data, Data::Dir(_)) => {
                store.compact(rev).await.unwrap();
                kept = kept.max(rev.min(store.revision().saturating_sub(1)));
                continue;
            }
            Op::Reopen if matches!(data, Data::Dir(_)) => {
                close(store).await;
                store = open_window(data, window);
                continue;
            }
            Op::Delete(_) | Op::Compact(_) | Op::Reopen => continue,
        }
        history.push(state);
    }
    if matches!(data, Data::Memory) {
        kept = (history.len() as u64).saturating_sub(window.events as u64);
    }
    check(&store, &history, &wrote, kept).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_watch_from_any_revision_replays_to_the_list(ops in prop::collection::vec(op(), 1..40), events in 1..50usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let window = Window { events, bytes: usize::MAX };
        runtime.block_on(async {
            run(&Data::Memory, window, ops.clone()).await;
            let (_dir, data) = dir();
            run(&data, window, ops).await;
        });
    }
}
