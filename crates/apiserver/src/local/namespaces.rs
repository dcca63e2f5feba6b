//! A namespace that is deleted takes its content with it, and goes when the last of it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};

use super::agenda::Agenda;
use super::{AT_ONCE, Meta, call, is_stale, options};
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Entry, Event, Key};
use crate::verbs::{DeleteOptions, Propagation, delete, meta, update};

/// What holds a namespace until its content is gone.
const FINALIZER: &str = "kubernetes";
const MANAGER: &str = "namespace-controller";

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let listed = core.store.list("", "namespaces", None, None, None);
    let Ok(mut namespaces) = core.store.watch("", "namespaces", None, listed.rev) else { return };
    let mut agenda = Agenda::new(core.clock.clone());
    agenda.add(listed.entries.iter().filter(|it| is_going(it)).map(|it| it.key.name.clone()));
    // Those whose content resists, and the changes among which its end will be.
    let mut waiting: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut content = None;
    loop {
        for name in agenda.take(usize::MAX) {
            if waiting.is_empty() {
                let Ok(all) = core.store.watch_everything(core.store.revision()) else { return };
                content = Some(all);
            }
            waiting.remove(&name);
            match empty(core, &name).await {
                Ok(true) => {}
                Ok(false) => drop(waiting.insert(name)),
                Err(problem) if is_stale(&problem) => agenda.add([name]),
                Err(problem) => {
                    tracing::warn!(namespace = &*name, why = problem.message, "a namespace cannot be emptied");
                    agenda.failed(name);
                }
            }
        }
        if agenda.is_due() {
            continue;
        }
        tokio::select! {
            change = namespaces.next() => match change {
                Some(change) if !change.deleted && is_going(&change.entry) => agenda.add([change.entry.key.name.clone()]),
                Some(_) => {}
                None => return,
            },
            change = async {
                match &mut content {
                    Some(content) if !waiting.is_empty() => content.next().await,
                    _ => std::future::pending().await,
                }
            } => match change {
                Some(change) => agenda.add(waiting.get(&change.entry.key.namespace).filter(|_| matters(&change)).cloned()),
                None => return,
            },
            () = agenda.again() => {}
        }
    }
}

fn is_going(entry: &Entry) -> bool {
    Meta::of(entry).is_deleting()
}

/// Whether the change of an object may be what its namespace waits for.
fn matters(change: &Event) -> bool {
    change.deleted || change.prev.is_none() || change.prev.as_deref().map(Meta::of) != Some(Meta::of(&change.entry))
}

/// Deletes what is in a namespace. True when nothing was left and the namespace is released.
async fn empty(core: &Arc<Core>, name: &Arc<str>) -> Result<bool, Problem> {
    let key = Key::new("", "namespaces", "", name.clone());
    let Some(entry) = core.store.get(&key) else { return Ok(true) };
    let held = entry
        .value()
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|it| it.contains(&json!(FINALIZER)));
    if !held || !is_going(&entry) {
        return Ok(true);
    }
    let deletions = core.store.in_namespace(name).into_iter().map(|it| remove(core, it));
    let failed: Vec<Problem> =
        stream::iter(deletions).buffer_unordered(AT_ONCE).filter_map(|it| std::future::ready(it.err())).collect().await;
    let left = core.store.in_namespace(name);
    settle(core, &key, &conditions(&left, &failed)).await?;
    if let Some(problem) = failed.into_iter().next() {
        return Err(problem);
    }
    if !left.is_empty() {
        return Ok(false);
    }
    release(core, &key).await?;
    Ok(true)
}

async fn remove(core: &Arc<Core>, entry: Arc<Entry>) -> Result<(), Problem> {
    let Some(mut call) = call(core, &entry.key) else {
        return Err(Problem::internal(&format!("the kind of {:?} is not served", entry.key)));
    };
    let background = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    match delete::delete(&mut call, &background).await {
        Err(problem) if !is_stale(&problem) => Err(problem),
        _ => Ok(()),
    }
}

/// What the namespace's status says about how far its end is, in Kubernetes' words and order.
fn conditions(left: &[Arc<Entry>], failed: &[Problem]) -> Vec<Condition> {
    let mut resources: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for entry in left {
        *resources.entry(format!("{}.{}", entry.key.resource, entry.key.group)).or_default() += 1;
        for finalizer in Meta::of(entry).finalizers.into_iter().flatten() {
            *finalizers.entry(finalizer).or_default() += 1;
        }
    }
    let told = |counts: &BTreeMap<String, usize>, verb: &str| -> String {
        let all: Vec<String> =
            counts.iter().map(|(what, count)| format!("{what} {verb} {count} resource instances")).collect();
        all.join(", ")
    };
    let messages: BTreeSet<&str> = failed.iter().map(|it| it.message.as_str()).collect();
    let fine = |kind, reason, message: &str| Condition { kind, status: "False", reason, message: message.to_owned() };
    let bad = |kind, reason, message| Condition { kind, status: "True", reason, message };
    let content = "NamespaceDeletionContentFailure";
    vec![
        fine("NamespaceDeletionDiscoveryFailure", "ResourcesDiscovered", "All resources successfully discovered"),
        fine(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        match failed {
            [] => fine(content, "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            _ => {
                let all = messages.into_iter().collect::<Vec<_>>().join(", ");
                bad(
                    content,
                    "ContentDeletionFailed",
                    format!("Failed to delete all resource types, {} remaining: {all}", failed.len()),
                )
            }
        },
        match resources.len() {
            0 => fine("NamespaceContentRemaining", "ContentRemoved", "All content successfully removed"),
            _ => {
                let all = format!("Some resources are remaining: {}", told(&resources, "has"));
                bad("NamespaceContentRemaining", "SomeResourcesRemain", all)
            }
        },
        match finalizers.len() {
            0 => fine(
                "NamespaceFinalizersRemaining",
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
            _ => {
                let all =
                    format!("Some content in the namespace has finalizers remaining: {}", told(&finalizers, "in"));
                bad("NamespaceFinalizersRemaining", "SomeFinalizersRemain", all)
            }
        },
    ]
}

struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

/// Writes the conditions, if they say anything new.
async fn settle(core: &Arc<Core>, key: &Key, conditions: &[Condition]) -> Result<(), Problem> {
    let Some(mut call) = call(core, key) else { return Ok(()) };
    call.subresource = "status".into();
    update::guaranteed(&mut call, &options(MANAGER), false, |call, current| {
        let mut object = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
        let now = call.core.now();
        let status = meta::map(meta::map(&mut object).entry("status").or_insert_with(|| json!({})));
        let list = status.entry("conditions").or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        for it in conditions {
            let new = json!({"type": it.kind, "status": it.status, "lastTransitionTime": now, "reason": it.reason, "message": it.message});
            let old = list.as_array_mut().into_iter().flatten().find(|old| old.get("type").is_some_and(|kind| kind == it.kind));
            match old {
                Some(old) if ["status", "reason", "message"].iter().all(|field| old.get(field) == new.get(field)) => {}
                Some(old) => {
                    let since = old.get("lastTransitionTime").cloned().filter(|_| old.get("status") == new.get("status"));
                    *old = new;
                    if let (Some(since), Some(old)) = (since, old.as_object_mut()) {
                        old.insert("lastTransitionTime".into(), since);
                    }
                }
                None => list.as_array_mut().into_iter().for_each(|list| list.push(new.clone())),
            }
        }
        Ok(object)
    })
    .await
    .map(drop)
}

/// Takes our finalizer from an empty namespace; with it goes the namespace, unless others hold it.
async fn release(core: &Arc<Core>, key: &Key) -> Result<(), Problem> {
    let Some(mut call) = call(core, key) else { return Ok(()) };
    call.subresource = "finalize".into();
    update::guaranteed(&mut call, &options(MANAGER), false, |call, current| {
        let mut object = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
        if let Some(finalizers) = object.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
            finalizers.retain(|it| it != FINALIZER);
        }
        Ok(object)
    })
    .await
    .map(drop)
}
