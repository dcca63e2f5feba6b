use rand::Rng;
use serde_json::Value;

use super::{Call, Object, WriteOptions, Written, admit, in_order, meta, refused};
use crate::access::escalation;
use crate::admission;
use crate::kinds::strategy;
use crate::object::apply::{self, Updater};
use crate::object::meta::validate_object_meta;
use crate::object::status::Problem;
use crate::registry::Model;
use crate::store::{Change, Expect, WriteError};

/// How often another name is tried for a `generateName` whose first was taken.
const ATTEMPTS: usize = 8;
/// Generated names are at most this long.
const NAME_MAX: usize = 63;
const SUFFIX: usize = 5;

/// `POST`: `object` is in the request's version, its fields already known to fit.
pub(crate) async fn create(call: &mut Call, mut object: Value, options: &WriteOptions) -> Result<Written, Problem> {
    meta::wipe_system_fields(&mut object);
    if !meta::text(&object, "resourceVersion").is_empty() {
        let message = "resourceVersion should not be set on objects to be created".to_owned();
        return Err(Problem::unexplained(message));
    }
    admit::settle_namespace(call, &mut object)?;
    admit::dedup_owners(call, &mut object);
    let registered = strategy::registered(&call.resource, &object);
    strategy::reset_for_create(&call.resource, &mut object);
    let schema = call.resource.schema();
    let updater = Updater {
        manager: &options.manager,
        subresource: "",
        api_version: &call.served_api_version(),
        now: call.core.clock.now(),
    };
    apply::track(None, &mut object, &schema, &updater);
    if let Some(status) = registered {
        meta::map(&mut object).insert("status".into(), status);
    }
    finish(call, object, options).await
}

/// From an object with its managed fields to a stored one. Also where an apply ends that finds nothing.
pub(crate) async fn finish(call: &mut Call, object: Value, options: &WriteOptions) -> Result<Written, Problem> {
    let resource = call.resource.clone();
    let mut object = object;
    if let Model::Custom(custom) = &resource.model
        && custom.terminating
    {
        let message = "create not allowed while custom resource definition is terminating".to_owned();
        return Err(Problem { message, ..Problem::method_not_supported(resource.what(), "create") });
    }
    admit::namespace_takes(call, &object)?;
    admission::mutate_new(call, &mut object, options).await?;
    admit::settle_namespace(call, &mut object)?;
    escalation::check(call, &object, None)?;
    meta::set(&mut object, "uid", uuid::Uuid::now_v7().to_string());
    meta::set(&mut object, "creationTimestamp", call.core.now());
    let generate = meta::text(&object, "generateName").to_owned();
    let generated = meta::name(&object).is_empty() && !generate.is_empty();
    let mut attempts = 0;
    loop {
        attempts += 1;
        if generated {
            meta::set(&mut object, "name", generate_name(&generate));
        }
        let mut ready = object.clone();
        strategy::prepare_create(call, &mut ready)?;
        let metadata = ready.get("metadata").unwrap_or(&Value::Null);
        let rule = strategy::name_rule(&resource);
        let mut errors = validate_object_meta(metadata, resource.namespaced, rule, "metadata");
        errors.extend(strategy::validate_create(&resource, &ready));
        errors.extend(admission::unreadable(call, &ready, None));
        if !errors.is_empty() {
            return Err(Problem::invalid(resource.what_kind(), meta::name(&ready), &errors));
        }
        for text in strategy::warnings(&resource, &ready, None) {
            call.warn(text);
        }
        admission::validate(call, &ready, None, options).await?;
        let reserved = admission::quota::reserve(call, &ready, None, options.dry_run).await?;
        let stored = store_form(call, ready);
        let name = meta::name(&stored).to_owned();
        let key = resource.key(meta::namespace(&stored), &name);
        if options.dry_run {
            return match call.core.store.get(&key) {
                Some(current) => Err(exists(call, &current.value(), &name)),
                None => Ok(Written { object: Object::Made(stored), created: true }),
            };
        }
        match call.core.store.write(key, Expect::Absent, Change::Put(stored)).await {
            Ok(entry) => {
                admission::quota::used(reserved);
                strategy::after_write(call, &entry);
                return Ok(Written { object: Object::Stored(entry), created: true });
            }
            Err(WriteError::Exists { .. }) if generated && attempts < ATTEMPTS => {}
            Err(WriteError::Exists { .. }) if generated => {
                return Err(Problem::generated_name_exists(resource.what(), &name));
            }
            Err(WriteError::Exists { current }) => return Err(exists(call, &current.value(), &name)),
            Err(error) => return Err(refused(&error, &resource, &name)),
        }
    }
}

/// The object in the version and the order of fields in which it is kept.
pub(crate) fn store_form(call: &Call, object: Value) -> Value {
    let resource = &call.resource;
    let stored = admit::to_stored(resource, object);
    match stored {
        Value::Object(map) => in_order(map, &resource.stored_api_version, &resource.kind),
        other => other,
    }
}

fn exists(call: &Call, current: &Value, name: &str) -> Problem {
    let mut problem = Problem::already_exists(call.resource.what(), name);
    if meta::is_being_deleted(current) {
        problem.message = format!("object is being deleted: {}", problem.message);
    }
    problem
}

/// The base, shortened where it must be, and five random characters that spell nothing.
pub(crate) fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut name: String = base.chars().take(NAME_MAX - SUFFIX).collect();
    let mut random = rand::rng();
    for _ in 0..SUFFIX {
        let at = random.random_range(0..ALPHABET.len());
        name.extend(ALPHABET.get(at).map(|byte| char::from(*byte)));
    }
    name
}
