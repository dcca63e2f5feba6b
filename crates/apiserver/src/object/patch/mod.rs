//! JSON patch, merge patch and strategic merge patch.

use serde_json::Value;

use super::Schema;
use super::status::Problem;

/// RFC 6902. At most 10,000 operations, and a bound on what `copy` may make.
pub(crate) fn json(_object: &Value, _patch: &Value) -> Result<Value, Problem> {
    todo!()
}

/// RFC 7386.
pub(crate) fn merge(_object: &Value, _patch: &Value) -> Result<Value, Problem> {
    todo!()
}

/// Kubernetes' strategic merge patch, for built-in kinds (a custom resource's caller answers 415).
pub(crate) fn strategic(_object: &Value, _patch: &Value, _schema: &Schema) -> Result<Value, Problem> {
    todo!()
}
