//! What may still be said about a write once its user may do it: the defaults and limits of namespaces, webhooks,
//! policies, and quotas. The order is upstream's: what changes the object, then what only judges it, quotas last.
//!
//! Everything but the webhooks' own answers is decided from memory: without any of them a write costs a look at
//! a few counters and into an empty list.

mod celled;
mod endpoint;
mod held;
mod hook;
mod limits;
mod policy;
mod post;
pub(crate) mod quota;
mod review;
mod rules;
pub(crate) mod typecheck;
mod usage;
mod webhooks;

use serde_json::Value;

use crate::kinds::strategy;
use crate::object::status::Problem;
use crate::verbs::{Call, DeleteOptions, WriteOptions, meta};
pub(crate) use celled::Environment;
pub(crate) use held::Admission;
pub(crate) use policy::unreadable;
use review::{Operation, Request};
use webhooks::Round;

/// What a new object is given, and by webhooks changed to.
pub(crate) async fn mutate_new(call: &mut Call, object: &mut Value, options: &WriteOptions) -> Result<(), Problem> {
    builtin(call, object)?;
    let held = call.core.admission.now(&call.core.store);
    if held.mutating.is_empty() || is_unasked(call) {
        return Ok(());
    }
    let request = Request::write(Operation::Create, options);
    let mut round = Round::default();
    if Box::pin(webhooks::mutate(call, &held.mutating, &request, Some(object), None, &mut round)).await? {
        builtin(call, object)?;
        Box::pin(webhooks::mutate(call, &held.mutating, &request, Some(object), None, &mut round)).await?;
    }
    Ok(())
}

/// Upstream's plugins that are always on.
fn builtin(call: &Call, object: &mut Value) -> Result<(), Problem> {
    limits::fill(call, object);
    strategy::admit_create(call, object)
}

/// What webhooks change an update to.
pub(crate) async fn mutate_update(
    call: &mut Call,
    object: &mut Value,
    old: &Value,
    options: &WriteOptions,
) -> Result<(), Problem> {
    let held = call.core.admission.now(&call.core.store);
    if held.mutating.is_empty() || is_unasked(call) {
        return Ok(());
    }
    let request = Request::write(Operation::Update, options);
    let mut round = Round::default();
    if Box::pin(webhooks::mutate(call, &held.mutating, &request, Some(object), Some(old), &mut round)).await? {
        Box::pin(webhooks::mutate(call, &held.mutating, &request, Some(object), Some(old), &mut round)).await?;
    }
    Ok(())
}

/// Judges what is about to be written: `old` is none for a creation.
pub(crate) async fn validate(
    call: &mut Call,
    object: &Value,
    old: Option<&Value>,
    options: &WriteOptions,
) -> Result<(), Problem> {
    limits::check(call, object, old)?;
    if let Some(old) = old {
        strategy::admit_update(call, object, old)?;
    }
    let held = call.core.admission.now(&call.core.store);
    if held.judges_nothing() || is_unasked(call) {
        return Ok(());
    }
    let operation = if old.is_some() { Operation::Update } else { Operation::Create };
    let request = Request::write(operation, options);
    policy::judge(call, &held, &request, Some(object), old)?;
    Box::pin(webhooks::judge(call, &held.validating, &request, Some(object), old)).await
}

/// Judges a deletion. Webhooks that change objects are asked too, and may refuse.
pub(crate) async fn delete(call: &mut Call, old: &Value, options: &DeleteOptions) -> Result<(), Problem> {
    let held = call.core.admission.now(&call.core.store);
    if (held.mutating.is_empty() && held.judges_nothing()) || is_unasked(call) {
        return Ok(());
    }
    let request = Request::delete(options);
    let mut round = Round::default();
    Box::pin(webhooks::mutate(call, &held.mutating, &request, None, Some(old), &mut round)).await?;
    policy::judge(call, &held, &request, None, Some(old))?;
    Box::pin(webhooks::judge(call, &held.validating, &request, None, Some(old))).await
}

/// Of these subresources another kind is what the client sends, and nobody is asked.
fn is_unasked(call: &Call) -> bool {
    matches!(call.subresource.as_str(), "scale" | "binding" | "eviction")
}

/// `pods "x" is forbidden: why`, with the name that the object will have as far as it is known.
fn forbidden(call: &Call, object: Option<&Value>, why: &str) -> Problem {
    let said = |field| object.map(|it| meta::text(it, field)).filter(|it| !it.is_empty());
    let name = match call.name.as_str() {
        "" => said("name").or_else(|| said("generateName")).unwrap_or("Unknown"),
        name => name,
    };
    Problem::forbidden(call.resource.what(), name, why)
}
