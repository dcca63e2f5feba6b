use std::sync::Arc;

use serde_json::{Value, json};

use super::{Call, Object, WriteOptions, Written, admit, create, meta, refused};
use crate::access::escalation;
use crate::admission;
use crate::kinds::{convert, strategy};
use crate::object::FieldError;
use crate::object::apply::{self, Updater};
use crate::object::meta::{validate_object_meta, validate_object_meta_update};
use crate::object::status::Problem;
use crate::registry::Resource;
use crate::store::{Change, Entry, Expect, WriteError};

/// How often a write that lost against another is decided again.
const ATTEMPTS: usize = 64;

/// `PUT`: `object` is in the request's version, its fields already known to fit.
pub(crate) async fn update(call: &mut Call, mut object: Value, options: &WriteOptions) -> Result<Written, Problem> {
    admit::settle_namespace(call, &mut object)?;
    admit::check_name(call, &object)?;
    admit::dedup_owners(call, &mut object);
    let created = call.subresource.is_empty() && strategy::may_create_on_update(&call.resource);
    let schema = call.resource.schema();
    guaranteed(call, options, created, |call, current| {
        let mut object = object.clone();
        let (uid, current_uid) = (meta::uid(&object), current.map(meta::uid).unwrap_or_default());
        if current.is_some() && !uid.is_empty() && uid != current_uid {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /registry/{}/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {uid}, UID in object meta: {current_uid}",
                call.resource.plural, call.namespace, call.name
            );
            return Err(Problem::conflict(call.resource.what(), &call.name, &why));
        }
        if current.is_none() {
            strategy::reset_for_create(&call.resource, &mut object);
        } else if let Some(current) = current {
            strategy::reset_for_update(&call.resource, &call.subresource, &mut object, current);
        }
        let updater = Updater {
            manager: &options.manager,
            subresource: &call.subresource,
            api_version: &call.served_api_version(),
            now: call.core.clock.now(),
        };
        apply::track(current, &mut object, &schema, &updater);
        Ok(object)
    })
    .await
}

/// Decides what shall be from what is, until it is written before anybody else changed it. `make` gets the current
/// object in the request's version (`None`: there is none) and returns the new one with its managed fields.
pub(crate) async fn guaranteed(
    call: &mut Call,
    options: &WriteOptions,
    may_create: bool,
    mut make: impl FnMut(&mut Call, Option<&Value>) -> Result<Value, Problem>,
) -> Result<Written, Problem> {
    let resource = call.resource.clone();
    let key = resource.key(&call.namespace, &call.name);
    let told = call.warnings.len();
    for _ in 0..ATTEMPTS {
        call.warnings.truncate(told);
        let Some(current) = call.core.store.get(&key) else {
            if !may_create {
                return Err(call.not_found(&call.name));
            }
            let mut object = make(call, None)?;
            admit::settle_namespace(call, &mut object)?;
            admit::check_name(call, &object)?;
            if !meta::uid(&object).is_empty() {
                let why = format!(
                    "uid mismatch: the provided object specified uid {}, and no existing object was found",
                    meta::uid(&object)
                );
                return Err(Problem::conflict(resource.what(), &call.name, &why));
            }
            meta::wipe_system_fields(&mut object);
            match create::finish(call, object, options).await {
                // Somebody created it meanwhile: then it is there to be updated.
                Err(problem) if problem.reason == "AlreadyExists" => continue,
                done => return done,
            }
        };
        let old = convert::show(&resource, &current);
        let mut object = make(call, Some(&old))?;
        admission::mutate_update(call, &mut object, &old, options).await?;
        admit::settle_namespace(call, &mut object)?;
        admit::check_name(call, &object)?;
        check_revision(call, &mut object, &current)?;
        // Somebody else was first: the next round decides anew, and an update that names its revision is refused there.
        if let Some(written) = commit(call, &current, &old, object, options).await? {
            return Ok(written);
        }
    }
    Err(Problem::modified(resource.what(), &call.name))
}

/// The revision that the object names must be the current one, or none where that is allowed.
fn check_revision(call: &Call, object: &mut Value, current: &Entry) -> Result<(), Problem> {
    let said = meta::text(object, "resourceVersion");
    if said.is_empty() || said == "0" {
        if strategy::may_update_unconditionally(&call.resource) {
            meta::set(object, "resourceVersion", current.rev.to_string());
            return Ok(());
        }
        let error = FieldError::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        let mut what = call.resource.what_kind();
        what.resource = &call.resource.plural;
        return Err(Problem::invalid(what, &call.name, &[error]));
    }
    if said != current.rev.to_string() {
        return Err(Problem::modified(call.resource.what(), &call.name));
    }
    Ok(())
}

/// Checks and writes one decided update. `None` when somebody else wrote first.
async fn commit(
    call: &mut Call,
    current: &Arc<Entry>,
    old: &Value,
    object: Value,
    options: &WriteOptions,
) -> Result<Option<Written>, Problem> {
    let resource = call.resource.clone();
    let mut object = object;
    before_update(call, &mut object, old)?;
    admission::validate(call, &object, Some(old), options).await?;
    let reserved = admission::quota::reserve(call, &object, Some(old), options.dry_run).await?;
    let mut stored = create::store_form(call, object);
    let before = current.value();
    apply::keep_times(&before, &mut stored);
    // What changes nothing is not written.
    if stored == before {
        return Ok(Some(Written { object: Object::Stored(current.clone()), created: false }));
    }
    let goes = goes_with_update(&resource, &stored, &before);
    if options.dry_run {
        meta::set(&mut stored, "resourceVersion", current.rev.to_string());
        return Ok(Some(Written { object: Object::Made(stored), created: false }));
    }
    // Watchers see a deleted object as it last was, and the caller what it asked for.
    let answer = goes.then(|| stored.clone());
    let change = if goes { Change::Delete(before) } else { Change::Put(stored) };
    match call.core.store.write(current.key.clone(), Expect::Rev(current.rev), change).await {
        Ok(entry) => {
            admission::quota::used(reserved);
            strategy::after_write(call, &entry);
            let object = answer.map_or_else(|| Object::Stored(entry), Object::Made);
            Ok(Some(Written { object, created: false }))
        }
        Err(WriteError::Conflict { .. } | WriteError::Absent) => Ok(None),
        Err(error) => Err(refused(&error, &resource, &call.name)),
    }
}

/// `rest.BeforeUpdate`: what no update may change stays, and what is new must be valid.
fn before_update(call: &mut Call, object: &mut Value, old: &Value) -> Result<(), Problem> {
    let resource = call.resource.clone();
    escalation::check(call, object, Some(old))?;
    meta::put(object, "generation", meta::get(old, "generation").cloned());
    strategy::prepare_update(call, object, old)?;
    if meta::uid(object).is_empty() {
        meta::set(object, "uid", meta::uid(old));
    }
    meta::put(object, "creationTimestamp", meta::get(old, "creationTimestamp").cloned());
    if let Some(at) = meta::get(old, "deletionTimestamp") {
        meta::set(object, "deletionTimestamp", at.clone());
    }
    if let Some(grace) = meta::get(old, "deletionGracePeriodSeconds")
        && meta::get(object, "deletionGracePeriodSeconds").is_none()
    {
        meta::set(object, "deletionGracePeriodSeconds", grace.clone());
    }
    meta::remove(object, "selfLink");
    let null = Value::Null;
    let (new_meta, old_meta) = (object.get("metadata").unwrap_or(&null), old.get("metadata").unwrap_or(&null));
    let mut errors = validate_object_meta(new_meta, resource.namespaced, strategy::name_rule(&resource), "metadata");
    // Names are older than the rules for them: only what changes is held to them.
    errors.retain(|error| error.path != "metadata.name");
    errors.extend(validate_object_meta_update(new_meta, old_meta, "metadata"));
    let (wrong, let_through) = strategy::validate_update(&resource, &call.subresource, object, old);
    errors.extend(wrong);
    errors.extend(admission::unreadable(call, object, Some(old)));
    let_through.into_iter().for_each(|text| call.warn(text));
    if !errors.is_empty() {
        return Err(Problem::invalid(resource.what_kind(), &call.name, &errors));
    }
    for text in strategy::warnings(&resource, object, Some(old)) {
        call.warn(text);
    }
    Ok(())
}

/// Whether an update took away the last finalizer of an object that is to be deleted.
fn goes_with_update(resource: &Resource, new: &Value, old: &Value) -> bool {
    if !meta::finalizers(new).is_empty() || !meta::is_being_deleted(old) {
        return false;
    }
    if resource.is("", "namespaces")
        && new.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|it| !it.is_empty())
    {
        return false;
    }
    meta::get(old, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default() == 0
}
