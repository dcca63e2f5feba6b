use std::sync::Arc;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{Call, DeleteOptions, ListOptions, Object, Propagation, meta, read, refused};
use crate::admission;
use crate::core::time;
use crate::http::json::put;
use crate::kinds::strategy;
use crate::object::status::Problem;
use crate::registry::custom;
use crate::store::{Change, Entry, Expect, WriteError};

const ATTEMPTS: usize = 64;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What became of an object that was to be deleted.
pub(crate) struct Deleted {
    /// The last state, or the one that now waits for its finalizers or its grace period.
    pub(crate) object: Object,
    pub(crate) gone: bool,
}

/// `DELETE` of one object.
pub(crate) async fn delete(call: &mut Call, options: &DeleteOptions) -> Result<Deleted, Problem> {
    let resource = call.resource.clone();
    let key = resource.key(&call.namespace, &call.name);
    for _ in 0..ATTEMPTS {
        let current = call.core.store.get(&key).ok_or_else(|| call.not_found(&call.name))?;
        let before = current.value();
        preconditions(call, &before, options)?;
        strategy::admit_delete(call, &before, options)?;
        let step = decide(call, &before, options);
        if !matches!(step, Step::Wait) {
            admission::delete(call, &before, options).await?;
        }
        let (object, told) = match step {
            Step::Wait => return Ok(Deleted { object: Object::Stored(current), gone: false }),
            Step::Mark(object) => (object, None),
            Step::Remove(told) => (before, Some(told)),
        };
        let goes = told.is_some();
        if options.dry_run {
            return Ok(Deleted { object: Object::Made(told.flatten().unwrap_or(object)), gone: goes });
        }
        let change = if goes { Change::Delete(object) } else { Change::Put(object) };
        match call.core.store.write(key.clone(), Expect::Rev(current.rev), change).await {
            Ok(entry) => {
                strategy::after_write(call, &entry);
                let object = match told.flatten() {
                    Some(mut told) => {
                        meta::set(&mut told, "resourceVersion", entry.rev.to_string());
                        Object::Made(told)
                    }
                    None => Object::Stored(entry),
                };
                return Ok(Deleted { object, gone: goes });
            }
            Err(WriteError::Conflict { .. }) => {}
            Err(error) => return Err(refused(&error, &resource, &call.name)),
        }
    }
    Err(Problem::modified(resource.what(), &call.name))
}

fn preconditions(call: &Call, object: &Value, options: &DeleteOptions) -> Result<(), Problem> {
    let what = call.resource.what_kind();
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != meta::uid(object)) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            meta::uid(object)
        );
        return Err(Problem::conflict(what, &call.name, &why));
    }
    let current = meta::text(object, "resourceVersion");
    if let Some(revision) = options.resource_version.as_deref().filter(|it| *it != current) {
        let why = format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({current}). The object might have been modified"
        );
        return Err(Problem::conflict(what, &call.name, &why));
    }
    Ok(())
}

enum Step {
    /// It is being deleted already, and no sooner.
    Wait,
    /// It stays, marked.
    Mark(Value),
    /// It goes; whoever asked is told that it looked like this at the end, if not as it is kept.
    Remove(Option<Value>),
}

fn decide(call: &Call, before: &Value, options: &DeleteOptions) -> Step {
    let resource = &call.resource;
    let now = call.core.clock.now();
    if resource.is("", "namespaces") {
        return namespace(call, before, options);
    }
    if resource.is(custom::GROUP, custom::PLURAL) && !resource.is_custom() {
        return definition(call, before);
    }
    let mut object = before.clone();
    let mut graceful = false;
    if let Some(default) = strategy::grace(resource, before, options.grace) {
        // Graceful kinds: the deletion timestamp lies in the future, and may only come nearer.
        let pending = meta::get(before, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
        if meta::is_being_deleted(before) {
            if pending > 0 {
                let Some(wanted) = options.grace.map(|it| if it < 0 { 1 } else { it }).filter(|it| *it < pending)
                else {
                    return Step::Wait;
                };
                let at = meta::text(before, "deletionTimestamp").parse::<jiff::Timestamp>().unwrap_or(now);
                let at = at.saturating_add(SignedDuration::from_secs(wanted - pending)).unwrap_or(now);
                let (at, wanted) = if at < now { (now, if wanted == 0 { 0 } else { 1 }) } else { (at, wanted) };
                meta::set(&mut object, "deletionTimestamp", time(at));
                meta::set(&mut object, "deletionGracePeriodSeconds", wanted);
                graceful = true;
            }
        } else {
            let at = now.saturating_add(SignedDuration::from_secs(default)).unwrap_or(now);
            meta::set(&mut object, "deletionTimestamp", time(at));
            meta::set(&mut object, "deletionGracePeriodSeconds", default);
            bump(&mut object, before);
            graceful = true;
        }
    }
    let finalizers = collectable(call, before, options);
    meta::set_finalizers(&mut object, &finalizers);
    if finalizers.is_empty() {
        let left = meta::get(&object, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default();
        return match (graceful, left > 0) {
            (true, true) => Step::Mark(object),
            (true, false) => Step::Remove(Some(object)),
            (false, _) => Step::Remove(None),
        };
    }
    if !graceful {
        if !meta::is_being_deleted(before) {
            bump(&mut object, before);
        }
        let planned = meta::text(before, "deletionTimestamp").parse::<jiff::Timestamp>().ok();
        if planned.is_none_or(|at| at > now) {
            meta::set(&mut object, "deletionTimestamp", time(now));
        }
        meta::set(&mut object, "deletionGracePeriodSeconds", 0);
    }
    if object == *before { Step::Wait } else { Step::Mark(object) }
}

fn bump(object: &mut Value, before: &Value) {
    if meta::generation(before) > 0 {
        meta::set(object, "generation", meta::generation(before) + 1);
    }
}

/// A namespace first says that it terminates; it goes when both kinds of its finalizers are gone.
fn namespace(call: &Call, before: &Value, options: &DeleteOptions) -> Step {
    let holds =
        |object: &Value| object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    if meta::is_being_deleted(before) {
        return if holds(before) || !meta::finalizers(before).is_empty() { Step::Wait } else { Step::Remove(None) };
    }
    let mut object = before.clone();
    meta::set(&mut object, "deletionTimestamp", call.core.now());
    let status = meta::map(&mut object).entry("status").or_insert_with(|| json!({}));
    meta::map(status).insert("phase".into(), json!("Terminating"));
    let mut finalizers = meta::finalizers(before);
    finalizers.retain(|it| it != ORPHAN && it != FOREGROUND);
    match (options.orphan, options.propagation) {
        (Some(true), _) | (None, Some(Propagation::Orphan)) => finalizers.push(ORPHAN.into()),
        (Some(false), _) | (None, Some(Propagation::Foreground)) => finalizers.push(FOREGROUND.into()),
        _ => {}
    }
    meta::set_finalizers(&mut object, &finalizers);
    if holds(&object) || !finalizers.is_empty() { Step::Mark(object) } else { Step::Remove(None) }
}

/// A definition says that it terminates; its objects go first.
fn definition(call: &Call, before: &Value) -> Step {
    match (meta::is_being_deleted(before), meta::finalizers(before)) {
        (true, finalizers) if finalizers.is_empty() => Step::Remove(None),
        (true, _) => Step::Wait,
        (false, mut finalizers) => {
            if !finalizers.iter().any(|it| it == custom::CLEANUP) {
                finalizers.push(custom::CLEANUP.into());
            }
            let mut object = before.clone();
            let now = call.core.now();
            meta::set(&mut object, "deletionTimestamp", now.as_str());
            meta::set_finalizers(&mut object, &finalizers);
            let said = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
            custom::set_condition(&mut object, "Terminating", "True", "InstanceDeletionPending", said, &now);
            Step::Mark(object)
        }
    }
}

/// The finalizers that the object has once the garbage collector's are as the options ask.
fn collectable(call: &Call, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let had = meta::finalizers(object);
    let has = |name: &str| had.iter().any(|it| it == name);
    let orphan = match (options.orphan, options.propagation) {
        (Some(orphan), _) => orphan,
        (None, Some(policy)) => policy == Propagation::Orphan,
        (None, None) if has(ORPHAN) => true,
        (None, None) if has(FOREGROUND) => false,
        (None, None) => strategy::orphans_by_default(&call.resource),
    };
    let foreground = match (options.orphan, options.propagation) {
        (Some(_), _) => false,
        (None, Some(policy)) => policy == Propagation::Foreground,
        (None, None) => has(FOREGROUND) && !has(ORPHAN),
    };
    // While it is being deleted, only a new wish changes what was wished before.
    let mut finalizers: Vec<String> = had.iter().filter(|it| *it != ORPHAN && *it != FOREGROUND).cloned().collect();
    if orphan {
        finalizers.push(ORPHAN.into());
    }
    if foreground {
        finalizers.push(FOREGROUND.into());
    }
    let same = finalizers.len() == had.len() && finalizers.iter().all(|it| had.contains(it));
    if same { had } else { finalizers }
}

/// `DELETE` of a collection. Returns the revision and the objects that were told to go.
pub(crate) async fn delete_collection(
    call: &mut Call,
    list: &ListOptions,
    options: &DeleteOptions,
) -> Result<(u64, Vec<Arc<Entry>>), Problem> {
    let found = read::list(call, list).await?;
    for entry in &found.entries {
        call.namespace = entry.key.namespace.to_string();
        call.name = entry.key.name.to_string();
        match delete(call, options).await {
            Ok(_) => {}
            Err(problem) if problem.code == 404 => {}
            Err(problem) => return Err(problem),
        }
    }
    Ok((found.rev, found.entries))
}

/// `metav1.Status` of an object that is gone.
pub(crate) fn success(call: &Call, object: &Value) -> Value {
    let mut details = json!({"name": meta::name(object)});
    if !call.resource.group.is_empty() {
        put(&mut details, "group", json!(call.resource.group));
    }
    put(&mut details, "kind", json!(call.resource.plural));
    put(&mut details, "uid", json!(meta::uid(object)));
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
