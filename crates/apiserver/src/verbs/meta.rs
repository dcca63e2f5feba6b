//! The few fields of `metadata` that the server itself looks at or sets.

use serde_json::{Map, Value, json};

pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|meta| meta.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

pub(crate) fn uid(object: &Value) -> &str {
    text(object, "uid")
}

pub(crate) fn generation(object: &Value) -> i64 {
    get(object, "generation").and_then(Value::as_i64).unwrap_or_default()
}

pub(crate) fn get<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(field).filter(|value| !value.is_null())
}

pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let all = get(object, "finalizers").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `metadata`, made when it is not there or no object.
pub(crate) fn of(object: &mut Value) -> &mut Map<String, Value> {
    let root = map(object);
    let meta = root.entry("metadata").or_insert_with(|| json!({}));
    map(meta)
}

/// The value as an object, made one whatever it was.
pub(crate) fn map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().unwrap_or_else(|| unreachable!("made an object just above"))
}

pub(crate) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    of(object).insert(field.to_owned(), value.into());
}

pub(crate) fn remove(object: &mut Value, field: &str) {
    of(object).shift_remove(field);
}

/// Sets a field, or removes it.
pub(crate) fn put(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => set(object, field, value),
        None => remove(object, field),
    }
}

pub(crate) fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    put(object, "finalizers", (!finalizers.is_empty()).then(|| json!(finalizers)));
}

pub(crate) fn is_being_deleted(object: &Value) -> bool {
    get(object, "deletionTimestamp").is_some()
}

/// What a client must not set on a new object.
pub(crate) fn wipe_system_fields(object: &mut Value) {
    for field in ["creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        remove(object, field);
    }
}

/// Drops owner references that stand there twice; the uids of what was dropped.
pub(crate) fn dedup_owners(object: &mut Value) -> Vec<String> {
    let Some(all) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else {
        return Vec::new();
    };
    let mut dropped = Vec::new();
    let mut kept: Vec<Value> = Vec::with_capacity(all.len());
    for owner in std::mem::take(all) {
        if kept.contains(&owner) {
            dropped.push(owner.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *all = kept;
    dropped
}

/// A text under `metadata.labels` or `metadata.annotations`.
pub(crate) fn keyed<'a>(object: &'a Value, of: &str, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get(of)?.get(key)?.as_str()
}
