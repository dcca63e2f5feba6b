//! Server-side apply and `managedFields`, by the algorithm of `sigs.k8s.io/structured-merge-diff` and of the field
//! managers around it in `k8s.io/apimachinery/pkg/util/managedfields` (1.34).

mod managed;
mod set;
mod typed;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use self::managed::{Entry, Id, Managers, Operation, stamp};
use self::set::Set;
use self::typed::{Changes, Type};
use super::Schema;
use super::field::ERRORS_MAX;
use super::status::{Problem, StatusCause};

/// Written by client-side apply; kubectl's server-side apply takes the ownership over that it stands for.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const KUBECTL: &str = "kubectl";

/// Never owned by anybody.
const STRIPPED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Who applies.
#[derive(Clone, Debug)]
pub(crate) struct Applier<'a> {
    pub(crate) manager: &'a str,
    /// `""`, `status`, `scale`.
    pub(crate) subresource: &'a str,
    /// Of the request's version: `apps/v1`.
    pub(crate) api_version: &'a str,
    pub(crate) force: bool,
    pub(crate) now: Timestamp,
}

/// Who creates, updates or patches.
#[derive(Clone, Debug)]
pub(crate) struct Updater<'a> {
    pub(crate) manager: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) api_version: &'a str,
    pub(crate) now: Timestamp,
}

/// Merges `applied` into `live` (`None`: the object is created) and keeps the books in `metadata.managedFields`.
///
/// What the manager owned alone, applied before and does not apply any more is removed. Refuses with a 409 that names
/// the conflicts, or as Kubernetes does with a configuration that cannot be applied. Fields that the applier's
/// subresource must not set have to be taken out of `applied` before.
pub(crate) fn apply(
    live: Option<&Value>,
    applied: Value,
    schema: &Schema,
    applier: &Applier<'_>,
) -> Result<Value, Problem> {
    let (version, kind) = (text(&applied, "apiVersion"), text(&applied, "kind"));
    let live_kind = live.map_or(kind, |l| text(l, "kind"));
    if version != applier.api_version || kind != live_kind || kind.is_empty() {
        return Err(Problem::bad_request(format!("invalid object type: {}", gvk(version, kind))));
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Problem::bad_request("metadata.managedFields must be nil"));
    }
    let empty = nothing(schema, version, kind);
    let live = live.unwrap_or(&empty);
    let mut managers = Managers::decode(live.pointer("/metadata/managedFields"))
        .map_err(|why| Problem::unexplained(format!("failed to decode managed fields: {why}")))?;
    let of = Type::root(schema);
    if managers.is_empty() {
        // Somebody made the fields that are there, before anybody kept books.
        let id = Id::new("before-first-apply", Operation::Update, applier.api_version, applier.subresource);
        update(of, &empty, live, &mut managers, &id, applier.api_version, applier.now);
    }
    let wrong = |what: &str, object: &Value, errors: Vec<String>| {
        let said = match errors.as_slice() {
            [one] => one.clone(),
            many => format!("errors:\n  {}", many.join("\n  ")),
        };
        Problem::unexplained(format!("failed to create typed {what} object ({}): {said}", name_of(object)))
    };
    for (what, object, strict) in [("patch", &applied, true), ("live", live, false)] {
        let errors = typed::validate(of, object, strict);
        if !errors.is_empty() {
            return Err(wrong(what, object, errors));
        }
    }
    let mut merged = merge(of, live, &applied, managers.clone(), applier, applier.force);
    if let (Err(conflicts), KUBECTL) = (&merged, applier.manager)
        && let Some(allowed) = allowed_by_last_applied(of, live, applier.api_version)
    {
        let left =
            conflicts.iter().map(|it| Conflict { manager: it.manager.clone(), set: it.set.difference(&allowed) });
        let left: Vec<Conflict> = left.filter(|it| !it.set.is_empty()).collect();
        merged = if left.is_empty() { merge(of, live, &applied, managers, applier, true) } else { Err(left) };
    }
    let (object, managers) = merged.map_err(conflict)?;
    let mut object = object;
    schema.shape(&mut object);
    set_managers(&mut object, &managers);
    if applier.manager == KUBECTL {
        refresh_last_applied(&mut object, applied);
    }
    Ok(object)
}

/// Keeps the books for a create (`old` is `None`), an update or a patch: `new` gets its `managedFields`. An object that
/// has none stays without. Through the main resource the entries may be edited: those of `new` count when there are some,
/// and an empty list wipes them.
pub(crate) fn track(old: Option<&Value>, new: &mut Value, schema: &Schema, updater: &Updater<'_>) {
    schema.shape(new);
    let empty = nothing(schema, text(new, "apiVersion"), text(new, "kind"));
    let live = old.unwrap_or(&empty);
    let of_live = || Managers::decode(live.pointer("/metadata/managedFields")).unwrap_or_default();
    let sent = new.pointer("/metadata/managedFields").filter(|_| updater.subresource.is_empty());
    let mut managers = match sent {
        Some(Value::Array(entries)) if is_reset(entries) => Managers::default(),
        sent => match Managers::decode(sent) {
            Ok(managers) if !managers.is_empty() => managers,
            _ => of_live(),
        },
    };
    let known = live.pointer("/metadata/uid").and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
    let of = Type::root(schema);
    let bookless = managers.is_empty() && known;
    if bookless || !typed::validate(of, live, false).is_empty() || !typed::validate(of, new, false).is_empty() {
        set_managers(new, if bookless { &managers } else { const { &Managers(std::collections::BTreeMap::new()) } });
        return;
    }
    set_managers(new, &Managers::default());
    let id = Id::new(updater.manager, Operation::Update, updater.api_version, updater.subresource);
    update(of, live, new, &mut managers, &id, updater.api_version, updater.now);
    managers.cap_updaters();
    set_managers(new, &managers);
}

/// When `new` differs from `old` in nothing but the times of `managedFields`, gives it the old times: then they are
/// equal and nothing needs to be written. To be called last, after defaulting and validation.
pub(crate) fn keep_times(old: &Value, new: &mut Value) {
    let fields = |object: &Value| object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned();
    let (Some(before), Some(after)) = (fields(old), fields(new)) else { return };
    let timeless = |entries: &[Value]| -> Vec<Value> {
        let strip = |entry: &Value| {
            let mut entry = entry.clone();
            entry.as_object_mut().map(|e| e.shift_remove("time"));
            entry
        };
        entries.iter().map(strip).collect()
    };
    if before == after || timeless(&before) != timeless(&after) {
        return;
    }
    let slot = |object: &mut Value, fields: Vec<Value>| {
        if let Some(at) = object.pointer_mut("/metadata/managedFields") {
            *at = Value::Array(fields);
        }
    };
    slot(new, before);
    if new != old {
        slot(new, after);
    }
}

/// An object of a kind before anything was set.
fn nothing(schema: &Schema, api_version: &str, kind: &str) -> Value {
    let mut object = schema.zero();
    if let Value::Object(map) = &mut object {
        map.insert("apiVersion".into(), json!(api_version));
        map.insert("kind".into(), json!(kind));
    }
    object
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
fn gvk(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}

fn name_of(object: &Value) -> String {
    let part = |key: &str| object.get("metadata").map(|m| text(m, key)).unwrap_or_default();
    format!("{}/{}; {}", part("namespace"), part("name"), gvk(text(object, "apiVersion"), text(object, "kind")))
}

/// `[]` and `[{}]` wipe the books.
fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [one] => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

fn set_managers(object: &mut Value, managers: &Managers) {
    let Some(object) = object.as_object_mut() else { return };
    match managers.encode() {
        Some(encoded) => {
            let metadata = object.entry("metadata").or_insert_with(|| json!({}));
            if let Value::Object(metadata) = metadata {
                metadata.insert("managedFields".into(), encoded);
            }
        }
        None => {
            object.get_mut("metadata").and_then(Value::as_object_mut).map(|m| m.shift_remove("managedFields"));
        }
    }
}

/// What a manager owns and another one would change.
struct Conflict {
    manager: Id,
    set: Set,
}

/// Counts all, and names as many as of other mistakes: what two managers disagree on may be a whole object.
fn conflict(conflicts: Vec<Conflict>) -> Problem {
    let count: usize = conflicts.iter().map(|it| it.set.count()).sum();
    let (mut causes, mut lines) = (Vec::new(), Vec::new());
    for Conflict { manager, set } in &conflicts {
        let manager = manager.show();
        let paths = set.shown(ERRORS_MAX - causes.len());
        if count == 1 {
            lines.extend(paths.iter().map(|path| format!("conflict with {manager}: {path}")));
        } else if !paths.is_empty() {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(paths.iter().map(|path| format!("- {path}")));
        }
        causes.extend(paths.into_iter().map(|field| StatusCause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {manager}"),
            field,
        }));
    }
    let s = if count == 1 { "" } else { "s" };
    Problem::apply_conflict(format!("Apply failed with {count} conflict{s}: {}", lines.join("\n")), causes)
}

/// Brings entries that were written under an earlier schema up to date.
fn reconcile(of: Type<'_>, managers: &mut Managers) {
    for entry in managers.0.values_mut() {
        if let Some(set) = typed::reconcile(of, &entry.set) {
            entry.set = set;
        }
    }
}

/// What others than `own` have of what changed.
fn conflicts(changes: &Changes, managers: &Managers, own: &Id) -> Vec<Conflict> {
    let changed = changes.modified.union(&changes.added);
    let others = managers.0.iter().filter(|(id, _)| *id != own);
    let of = others.map(|(id, entry)| Conflict { manager: id.clone(), set: entry.set.intersection(&changed) });
    of.filter(|it| !it.set.is_empty()).collect()
}

/// Takes what changed away from all but `own`.
fn take_over(changes: &Changes, managers: &mut Managers, own: Option<&Id>) {
    let changed = changes.modified.union(&changes.added);
    for (id, entry) in &mut managers.0 {
        if Some(id) != own {
            entry.set = entry.set.difference(&changed).difference(&changes.removed);
        }
    }
    managers.0.retain(|_, entry| !entry.set.is_empty());
}

/// The books after `id` made `new` of `old`.
fn update(of: Type<'_>, old: &Value, new: &Value, managers: &mut Managers, id: &Id, api_version: &str, now: Timestamp) {
    reconcile(of, managers);
    let changes = typed::compare(of, old, new);
    take_over(&changes, managers, None);
    let set = changes.modified.union(&changes.added).difference(&Set::of_fields(STRIPPED));
    if set.is_empty() {
        return;
    }
    let before = managers.0.remove(id).map(|entry| entry.set).unwrap_or_default();
    let entry = Entry { api_version: api_version.to_owned(), set: set.union(&before), time: Some(stamp(now)) };
    managers.0.insert(id.clone(), entry);
}

/// The new object and its books.
fn merge(
    of: Type<'_>,
    live: &Value,
    applied: &Value,
    mut managers: Managers,
    applier: &Applier<'_>,
    force: bool,
) -> Result<(Value, Managers), Vec<Conflict>> {
    reconcile(of, &mut managers);
    let id = Id::new(applier.manager, Operation::Apply, applier.api_version, applier.subresource);
    let merged = typed::merge(of, Some(live), Some(applied)).unwrap_or_else(|| live.clone());
    let last = managers.0.remove(&id);
    let time = last.as_ref().and_then(|entry| entry.time.clone());
    let set = typed::to_set(of, applied);
    managers.0.insert(id.clone(), Entry { api_version: applier.api_version.to_owned(), set, time });
    let merged = match last.filter(|entry| !entry.set.is_empty()) {
        Some(last) => drop_unapplied(of, merged, &managers, &last.set),
        None => merged,
    };
    let changes = typed::compare(of, live, &merged);
    let conflicts = if force { Vec::new() } else { conflicts(&changes, &managers, &id) };
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    take_over(&changes, &mut managers, Some(&id));
    if let Some(entry) = managers.0.get_mut(&id) {
        entry.set = entry.set.difference(&Set::of_fields(STRIPPED));
        if !set::same(live, &merged) {
            entry.time = Some(stamp(applier.now));
        }
        if entry.set.is_empty() {
            managers.0.remove(&id);
        }
    }
    Ok((merged, managers))
}

/// Takes out what the applier set the last time (`last`), does not set now, and nobody else owns.
fn drop_unapplied(of: Type<'_>, merged: Value, managers: &Managers, last: &Set) -> Value {
    let members = |set: &Set| typed::with_parents(Some(of), set);
    let without = |set: &Set| typed::remove(of, &merged, set).unwrap_or_else(|| json!({}));
    let last = members(last);
    let all = members(&typed::to_set(of, &merged));
    let pruned = members(&typed::to_set(of, &without(&last)));
    let owned = managers.0.values().fold(Set::default(), |set, entry| set.union(&entry.set));
    let kept = without(&all.difference(&pruned.union(&members(&owned))));
    let kept = members(&typed::to_set(of, &kept));
    let mut left = without(&all.difference(&kept).intersection(&last));
    if matches!(of, Type::Resource(_)) {
        refill(&mut left, &merged);
    }
    left
}

/// What was emptied and is still owned stays, empty. Upstream leaves null there, which built-in types read as empty and
/// the schemas of custom ones refuse, so that such an apply fails there for ever.
fn refill(left: &mut Value, before: &Value) {
    match (left, before) {
        (Value::Object(left), Value::Object(before)) => {
            for (key, value) in left {
                if let Some(before) = before.get(key) {
                    refill(value, before);
                }
            }
        }
        (left @ Value::Null, Value::Object(_)) => *left = json!({}),
        (left @ Value::Null, Value::Array(_)) => *left = json!([]),
        _ => {}
    }
}

/// The fields that client-side apply stands for: in its annotation, and unchanged since.
fn allowed_by_last_applied(of: Type<'_>, live: &Value, api_version: &str) -> Option<Set> {
    let annotation = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str().filter(|a| !a.is_empty())?;
    let last: Value = serde_json::from_str(annotation).ok()?;
    if text(&last, "apiVersion") != api_version || !typed::validate(of, &last, true).is_empty() {
        return None;
    }
    let changes = typed::compare(of, &last, live);
    let set = typed::to_set(of, &last);
    Some(set.difference(&changes.modified).difference(&changes.added).difference(&changes.removed))
}

/// Keeps the annotation of client-side apply true, where there is one.
fn refresh_last_applied(object: &mut Value, mut applied: Value) {
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).is_none_or(str::is_empty) {
        return;
    }
    if let Some(own) = applied.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.shift_remove(LAST_APPLIED);
    }
    annotations.insert(LAST_APPLIED.into(), Value::String(format!("{}\n", super::field::json(&applied))));
}

#[cfg(test)]
mod tests;
