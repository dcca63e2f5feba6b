//! RFC 6902 as `evanphx/json-patch` understands it: negative indices count from the end, `replace` may create a field,
//! `copy` of nothing is null, and nothing equals null.

use serde_json::Value;

use super::go_kind;
use crate::object::status::Problem;

const OPERATIONS_MAX: usize = 10_000;
/// What all `copy` operations of a patch may make together, in bytes of JSON.
const COPIED_MAX: usize = 3 << 20;
/// Steps that all operations may take together, in values that are moved or looked through: some tenths of a second.
const EFFORT_MAX: usize = 100_000_000;
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
    let mut spent = Spent::default();
    for operation in operations {
        spent.step(&mut out, operation).map_err(|Refused| {
            Problem::unprocessable("the server rejected our request due to an error in our request")
        })?;
    }
    Ok(out)
}

/// What the operations of a patch have cost so far.
#[derive(Default)]
struct Spent {
    copied: usize,
    effort: usize,
}

impl Spent {
    fn step(&mut self, object: &mut Value, operation: &Value) -> Result<(), Refused> {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let path = text("path").ok_or(Refused)?;
        let value = operation.get("value").unwrap_or(&Value::Null);
        match text("op").ok_or(Refused)? {
            "add" => self.add(object, path, value.clone()),
            "remove" => self.remove(object, path).map(|_| ()),
            "replace" => {
                self.fits(path, value)?;
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
                let value = self.remove(object, text("from").ok_or(Refused)?)?;
                self.add(object, path, value)
            }
            "copy" => {
                let value = get(object, text("from").ok_or(Refused)?)?.cloned().unwrap_or(Value::Null);
                self.copied += size(&value);
                if self.copied > COPIED_MAX {
                    return Err(Refused);
                }
                self.add(object, path, value)
            }
            "test" => {
                let found = get(object, path)?.unwrap_or(&Value::Null);
                if found == value { Ok(()) } else { Err(Refused) }
            }
            _ => Err(Refused),
        }
    }

    fn add(&mut self, object: &mut Value, path: &str, value: Value) -> Result<(), Refused> {
        self.fits(path, &value)?;
        let (parent, key) = parent(object, path)?;
        match parent {
            Value::Object(map) => {
                map.insert(key, value);
            }
            Value::Array(items) if key == "-" => items.push(value),
            Value::Array(items) => {
                self.effort(items.len())?;
                items.insert(place(&key, items.len() + 1)?, value);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn remove(&mut self, object: &mut Value, path: &str) -> Result<Value, Refused> {
        let (parent, key) = parent(object, path)?;
        match parent {
            Value::Object(map) => {
                self.effort(map.len())?;
                map.shift_remove(&key).ok_or(Refused)
            }
            Value::Array(items) => {
                self.effort(items.len())?;
                Ok(items.remove(place(&key, items.len())?))
            }
            _ => Err(Refused),
        }
    }

    /// Whether a value can stand at a path without the object getting too deep.
    fn fits(&mut self, path: &str, value: &Value) -> Result<(), Refused> {
        let mut count = 0;
        let deep = path.matches('/').count() + depth(value, &mut count) > DEPTH_MAX;
        self.effort(count)?;
        if deep { Err(Refused) } else { Ok(()) }
    }

    fn effort(&mut self, more: usize) -> Result<(), Refused> {
        self.effort += more;
        if self.effort > EFFORT_MAX { Err(Refused) } else { Ok(()) }
    }
}

/// `count` grows by the values that were looked at.
fn depth(value: &Value, count: &mut usize) -> usize {
    *count += 1;
    match value {
        Value::Array(items) => 1 + items.iter().map(|it| depth(it, count)).max().unwrap_or_default(),
        Value::Object(map) => 1 + map.values().map(|it| depth(it, count)).max().unwrap_or_default(),
        _ => 0,
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

/// About the bytes of its JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>(),
        _ => 8,
    }
}
