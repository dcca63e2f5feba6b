//! JSON patch, merge patch and strategic merge patch.

mod json_patch;
mod strategic;

use serde_json::{Map, Value};

use super::Schema;
use super::status::Problem;

/// RFC 6902, with the leniencies of the Go library that Kubernetes uses. At most 10,000 operations, 3 MiB of copies,
/// and no result that is too deep to be read again.
pub(crate) fn json(object: &Value, patch: &Value) -> Result<Value, Problem> {
    json_patch::run(object, patch)
}

/// RFC 7386.
pub(crate) fn merge(object: &Value, patch: &Value) -> Result<Value, Problem> {
    let Value::Object(fields) = patch else {
        return Err(match patch {
            Value::Null => Problem::bad_request("Invalid JSON Patch"),
            other => not_a_map("error decoding patch: ", other),
        });
    };
    let mut out = object.clone();
    merge_into(&mut out, fields);
    Ok(out)
}

fn merge_into(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        match (value, target.get_mut(key)) {
            (Value::Null, _) => {
                target.shift_remove(key);
            }
            (Value::Object(fields), Some(below)) => merge_into(below, fields),
            (Value::Object(fields), None) => {
                let mut below = Value::Null;
                merge_into(&mut below, fields);
                target.insert(key.clone(), below);
            }
            (other, _) => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

/// Kubernetes' strategic merge patch with all its directives, for built-in kinds (a custom resource's caller answers 415).
pub(crate) fn strategic(object: &Value, patch: &Value, schema: &Schema) -> Result<Value, Problem> {
    match patch {
        Value::Object(fields) => strategic::run(object, fields, schema),
        Value::Null => Ok(object.clone()),
        other => Err(not_a_map("", other)),
    }
}

fn not_a_map(before: &str, got: &Value) -> Problem {
    let got = go_kind(got);
    Problem::bad_request(format!(
        "{before}json: cannot unmarshal {got} into Go value of type map[string]interface {{}}"
    ))
}

/// A JSON value's kind as Go's decoder names it.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests;
