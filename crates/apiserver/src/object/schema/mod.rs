//! Structural schemas: one compact tree from a CRD's `openAPIV3Schema` or from a built-in definition.

use serde_json::Value;

use super::field::FieldError;

/// A compiled schema. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Schema;

impl Schema {
    /// Compiles a CRD's `openAPIV3Schema`; `path` is where it stands (`spec.validation.openAPIV3Schema`), for the errors.
    pub(crate) fn compile(_openapi: &Value, _path: &str) -> Result<Self, Vec<FieldError>> {
        todo!()
    }

    /// Drops what the schema does not know; returns the paths (`spec.foo`, `spec.list[0].bar`), sorted.
    pub(crate) fn prune(&self, _object: &mut Value) -> Vec<String> {
        todo!()
    }

    /// Sets defaults, also inside defaults, and drops nulls that are not allowed.
    pub(crate) fn default(&self, _object: &mut Value) {
        todo!()
    }

    /// Checks an object; with `old`, unchanged values that were wrong before are let through (ratcheting).
    pub(crate) fn validate(&self, _object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        todo!()
    }

    /// Checks a built-in kind's types the way Go's decoder does: `json: cannot unmarshal number into Go struct field
    /// ConfigMap.data of type string`.
    pub(crate) fn check_types(&self, _object: &Value) -> Result<(), String> {
        todo!()
    }
}
