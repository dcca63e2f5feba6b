//! RFC 6902 as `evanphx/json-patch` understands it: negative indices count from the end, `replace` may create a field,
//! `copy` of nothing is null, and nothing equals null.

use serde_json::Value;

use super::go_kind;
use crate::object::status::Problem;

const OPERATIONS_MAX: usize = 10_000;
/// What all `copy` operations of a patch may make together, in bytes of JSON.
const COPIED_MAX: usize = 3 << 20;
/// Well below what the JSON reader accepts, so that whatever is written can be read again.
const DEPTH_MAX: usize = 100;

/// Why an operation does not apply is not told by Kubernetes either.
struct Refused;

pub(super) fn run(object: &Value, patch: &Value) -> Result<Value, Problem> {
    let undecodable = |got: &Value, of: &str| {
        let got = go_kind(got);
        Problem::bad_request(format!("error decoding patch: json: cannot unmarshal {got} into Go value of type {of}"))
    };
    let operations = match patch {
        Value::Array(operations) => operations.as_slice(),
        Value::Null => &[],
        other => return Err(undecodable(other, "[]handlers.jsonPatchOp")),
    };
    if let Some(other) = operations.iter().find(|o| !o.is_object() && !o.is_null()) {
        return Err(undecodable(other, "handlers.jsonPatchOp"));
    }
    if operations.len() > OPERATIONS_MAX {
        let count = operations.len();
        return Err(Problem::too_large(&format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    let mut out = object.clone();
    let mut copied = 0;
    for operation in operations {
        step(&mut out, operation, &mut copied).map_err(|Refused| {
            Problem::unprocessable("the server rejected our request due to an error in our request")
        })?;
    }
    Ok(out)
}

fn step(object: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), Refused> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let path = text("path").ok_or(Refused)?;
    let value = operation.get("value").unwrap_or(&Value::Null);
    match text("op").ok_or(Refused)? {
        "add" => add(object, path, value.clone()),
        "remove" => remove(object, path).map(|_| ()),
        "replace" => {
            fits(path, value)?;
            let (parent, key) = parent(object, path)?;
            match parent {
                Value::Object(map) => {
                    map.insert(key, value.clone());
                }
                Value::Array(items) => {
                    let at = place(&key, items.len())?;
                    *items.get_mut(at).ok_or(Refused)? = value.clone();
                }
                _ => return Err(Refused),
            }
            Ok(())
        }
        "move" => {
            let value = remove(object, text("from").ok_or(Refused)?)?;
            add(object, path, value)
        }
        "copy" => {
            let value = get(object, text("from").ok_or(Refused)?)?.cloned().unwrap_or(Value::Null);
            *copied += size(&value);
            if *copied > COPIED_MAX {
                return Err(Refused);
            }
            add(object, path, value)
        }
        "test" => {
            let found = get(object, path)?.unwrap_or(&Value::Null);
            if found == value { Ok(()) } else { Err(Refused) }
        }
        _ => Err(Refused),
    }
}

/// The steps of a pointer; what stands before the first `/` is ignored, the empty pointer names nothing.
fn steps(path: &str) -> Result<(Vec<String>, String), Refused> {
    let mut steps: Vec<String> =
        path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let last = steps.pop().ok_or(Refused)?;
    Ok((steps, last))
}

fn parent<'a>(object: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Refused> {
    let (above, last) = steps(path)?;
    let mut at = object;
    for step in &above {
        at = match at {
            Value::Object(map) => map.get_mut(step).ok_or(Refused)?,
            Value::Array(items) => {
                let place = place(step, items.len())?;
                items.get_mut(place).ok_or(Refused)?
            }
            _ => return Err(Refused),
        };
    }
    Ok((at, last))
}

/// `None`: the place is there, but nothing is in it.
fn get<'a>(object: &'a Value, path: &str) -> Result<Option<&'a Value>, Refused> {
    let (above, last) = steps(path)?;
    let child = |at: &'a Value, step: &str| match at {
        Value::Object(map) => Ok(map.get(step)),
        Value::Array(items) => items.get(place(step, items.len())?).ok_or(Refused).map(Some),
        _ => Err(Refused),
    };
    let mut at = object;
    for step in &above {
        at = child(at, step)?.ok_or(Refused)?;
    }
    child(at, &last)
}

/// An index of a list of this length; negative ones count from the end.
fn place(step: &str, length: usize) -> Result<usize, Refused> {
    let index: isize = step.parse().map_err(|_| Refused)?;
    let place = if index < 0 { length.checked_add_signed(index) } else { usize::try_from(index).ok() };
    place.filter(|place| *place < length).ok_or(Refused)
}

fn add(object: &mut Value, path: &str, value: Value) -> Result<(), Refused> {
    fits(path, &value)?;
    let (parent, key) = parent(object, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(key, value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => items.insert(place(&key, items.len() + 1)?, value),
        _ => return Err(Refused),
    }
    Ok(())
}

fn remove(object: &mut Value, path: &str) -> Result<Value, Refused> {
    let (parent, key) = parent(object, path)?;
    match parent {
        Value::Object(map) => map.shift_remove(&key).ok_or(Refused),
        Value::Array(items) => Ok(items.remove(place(&key, items.len())?)),
        _ => Err(Refused),
    }
}

/// Whether a value can stand at a path without the object getting too deep.
fn fits(path: &str, value: &Value) -> Result<(), Refused> {
    if path.matches('/').count() + depth(value) > DEPTH_MAX { Err(Refused) } else { Ok(()) }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// About the bytes of its JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>(),
        _ => 8,
    }
}
