//! Server-side apply and `managedFields`, by the algorithm of `sigs.k8s.io/structured-merge-diff`.

use jiff::Timestamp;
use serde_json::Value;

use super::Schema;
use super::status::Problem;

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
/// Refuses with a 409 that names the conflicts, or a 4xx for a configuration that cannot be applied.
pub(crate) fn apply(
    _live: Option<&Value>,
    _applied: Value,
    _schema: &Schema,
    _applier: &Applier<'_>,
) -> Result<Value, Problem> {
    todo!()
}

/// Keeps the books for a create (`old` is `None`), an update or a patch: `new` gets its `managedFields`.
pub(crate) fn track(_old: Option<&Value>, _new: &mut Value, _schema: &Schema, _updater: &Updater<'_>) {
    todo!()
}
