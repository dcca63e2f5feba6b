//! What may still be said about a write once its user may do it: the defaults and limits of namespaces, and their
//! quotas. The order is upstream's: what changes the object, then what only judges it, quotas last.
//!
//! Everything is decided from memory: where there is no limit and no quota, a write costs a look into an empty list.

mod limits;
pub(crate) mod quota;
mod usage;

use serde_json::Value;

use crate::kinds::strategy;
use crate::object::status::Problem;
use crate::verbs::{Call, meta};
use quota::Quotas;

/// What admission keeps between requests. One per server.
pub(crate) struct Admission {
    pub(crate) quotas: Quotas,
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self { quotas: Quotas::new() }
    }
}

/// What a new object is given.
pub(crate) fn mutate_new(call: &Call, object: &mut Value) -> Result<(), Problem> {
    limits::fill(call, object);
    strategy::admit_create(call, object)
}

/// Judges what is about to be written: `old` is none for a creation.
pub(crate) fn validate(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Problem> {
    limits::check(call, object, old)
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
