//! Garbage collection by owner references, as Kubernetes' garbage collector decides it.

mod index;
pub(super) mod plan;
mod report;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};

use super::agenda::Agenda;
use super::{AT_ONCE, Meta, Owner, call, is_stale, merge_metadata};
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Entry, Key};
use crate::verbs::{DeleteOptions, Propagation, delete};
use index::Index;
use plan::{FOREGROUND, ORPHAN, Step, Tie};

const MANAGER: &str = "garbage-collector";
/// Looked at between two looks at the changes.
const TURN: usize = 256;

/// Looks at everything and follows what changes, until it falls behind.
pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let (entries, rev) = core.store.everything();
    let Ok(mut changes) = core.store.watch_everything(rev) else { return };
    let mut kinds = core.registry.changes();
    let mut index = Index::default();
    let mut agenda = Agenda::new(core.clock.clone());
    // What refers to a kind that is not served waits until kinds change.
    let mut unresolved = BTreeSet::new();
    for entry in &entries {
        agenda.add(index.put(entry, None));
    }
    drop(entries);
    loop {
        while let Some(change) = changes.ready() {
            agenda.add(index.observe(&change));
        }
        if agenda.is_due() {
            let visits = agenda.take(TURN).into_iter().map(|key| visit(core, &index, key));
            for (key, outcome) in stream::iter(visits).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
                match outcome {
                    Ok(Outcome::Done) => {}
                    Ok(Outcome::Again) => agenda.add([key]),
                    Ok(Outcome::Unresolved) => drop(unresolved.insert(key)),
                    Err(problem) => {
                        tracing::warn!(?key, why = problem.message, "cannot collect an object");
                        agenda.failed(key);
                    }
                }
            }
            continue;
        }
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => agenda.add(index.observe(&change)),
                None => return,
            },
            _ = kinds.changed() => agenda.add(std::mem::take(&mut unresolved)),
            () = agenda.again() => {}
        }
    }
}

enum Outcome {
    Done,
    /// It changed meanwhile.
    Again,
    Unresolved,
}

async fn visit(core: &Arc<Core>, index: &Index, key: Key) -> (Key, Result<Outcome, Problem>) {
    let outcome = match act(core, index, &key).await {
        Err(problem) if is_stale(&problem) => Ok(Outcome::Again),
        outcome => outcome,
    };
    (key, outcome)
}

async fn act(core: &Arc<Core>, index: &Index, key: &Key) -> Result<Outcome, Problem> {
    let Some(entry) = core.store.get(key) else { return Ok(Outcome::Done) };
    let Some(mut call) = call(core, key) else { return Ok(Outcome::Unresolved) };
    let it = Meta::of(&entry);
    let ties: Vec<Tie> = it.owners().iter().map(|owner| tie(core, index, key, owner)).collect();
    let dependents: Vec<(Arc<Entry>, Meta)> = index
        .dependents(&it.uid)
        .filter_map(|key| core.store.get(key))
        .map(|entry| (entry.clone(), Meta::of(&entry)))
        .filter(|(_, dependent)| dependent.owners().iter().any(|owner| owner.uid == it.uid))
        .collect();
    for owner in it.owners().iter().filter(|owner| is_elsewhere(core, index, key, owner)) {
        report::wrong_namespace(core, &entry, &it, owner).await;
    }
    let step = plan::plan(&it, &ties, dependents.iter().map(|it| &it.1));
    match step {
        Step::Nothing => {}
        Step::Unresolved => return Ok(Outcome::Unresolved),
        Step::Release(finalizer) => {
            let left: Vec<&String> = it.finalizers.iter().flatten().filter(|it| *it != finalizer).collect();
            merge_metadata(&mut call, &entry, json!({"finalizers": left}), MANAGER).await?;
        }
        Step::Orphan => {
            for (dependent, meta) in &dependents {
                detach(core, dependent, meta, &|owner| owner.uid == it.uid).await?;
            }
            // With its dependents gone from the index, the next look lets it go.
            let left: Vec<&String> = it.finalizers.iter().flatten().filter(|it| *it != ORPHAN).collect();
            merge_metadata(&mut call, &entry, json!({"finalizers": left}), MANAGER).await?;
        }
        Step::Detach(uids) => detach(core, &entry, &it, &|owner| uids.contains(&owner.uid)).await?,
        Step::Delete { propagation, unblock } => {
            if unblock {
                let owners: Vec<Value> = references(&entry, |_| true, true);
                merge_metadata(&mut call, &entry, json!({"ownerReferences": owners}), MANAGER).await?;
                return Ok(Outcome::Again);
            }
            let options = DeleteOptions {
                propagation: Some(propagation),
                uid: Some(it.uid.clone()),
                resource_version: Some(entry.rev.to_string()),
                ..DeleteOptions::default()
            };
            delete::delete(&mut call, &options).await?;
        }
    }
    Ok(Outcome::Done)
}

/// What an owner reference is worth now.
fn tie(core: &Core, index: &Index, dependent: &Key, owner: &Owner) -> Tie {
    if index.is_gone(&owner.uid) {
        return Tie::Absent;
    }
    let resources = core.registry.now();
    let Some(resource) = resources.of_kind(&owner.api_version, &owner.kind) else { return Tie::Unresolved };
    if resource.namespaced && dependent.namespace.is_empty() {
        // Never to be collected: upstream's rule since 1.20.
        return Tie::Unresolved;
    }
    match core.store.get(&resource.key(&dependent.namespace, &owner.name)) {
        None => Tie::Absent,
        Some(entry) => match Meta::of(&entry) {
            found if found.uid != owner.uid => Tie::Absent,
            found if found.is_deleting() && found.has_finalizer(FOREGROUND) => Tie::Waiting,
            _ => Tie::Solid,
        },
    }
}

/// Whether the owner is there, but in a namespace where it cannot own this.
fn is_elsewhere(core: &Core, index: &Index, dependent: &Key, owner: &Owner) -> bool {
    if index.is_gone(&owner.uid) {
        return false;
    }
    let resources = core.registry.now();
    let Some(resource) = resources.of_kind(&owner.api_version, &owner.kind).filter(|it| it.namespaced) else {
        return false;
    };
    if dependent.namespace.is_empty() {
        return true;
    }
    let lives_in = |namespace: &str| {
        let found = core.store.get(&resource.key(namespace, &owner.name));
        found.is_some_and(|it| Meta::of(&it).uid == owner.uid)
    };
    let namespaces = || core.store.list("", "namespaces", None, None, None).entries;
    !lives_in(&dependent.namespace) && namespaces().iter().any(|it| lives_in(&it.key.name))
}

/// Takes some of its owner references away from an object.
async fn detach(
    core: &Arc<Core>,
    entry: &Arc<Entry>,
    meta: &Meta,
    from: &(dyn Fn(&Owner) -> bool + Sync),
) -> Result<(), Problem> {
    if !meta.owners().iter().any(from) {
        return Ok(());
    }
    let Some(mut call) = call(core, &entry.key) else { return Ok(()) };
    let left = references(entry, |owner| !from(owner), false);
    let change = json!({"ownerReferences": if left.is_empty() { Value::Null } else { json!(left) }});
    match merge_metadata(&mut call, entry, change, MANAGER).await {
        Err(problem) if problem.code == 404 => Ok(()),
        done => done,
    }
}

/// The object's owner references as they are written, those that are kept.
fn references(entry: &Entry, kept: impl Fn(&Owner) -> bool, unblock: bool) -> Vec<Value> {
    let object = entry.value();
    let all = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut all: Vec<Value> = all
        .into_iter()
        .filter(|it| serde_json::from_value(it.clone()).is_ok_and(|owner: Owner| kept(&owner)))
        .collect();
    if unblock {
        for owner in all.iter_mut().filter_map(Value::as_object_mut) {
            owner.insert("blockOwnerDeletion".into(), false.into());
        }
    }
    all
}

pub(super) fn propagation(meta: &Meta) -> Propagation {
    if meta.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if meta.has_finalizer(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    }
}
