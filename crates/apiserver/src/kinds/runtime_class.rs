//! What a RuntimeClass asks of the pods that name it: `plugin/pkg/admission/runtimeclass` of upstream.

use serde_json::{Map, Value, json};

use crate::object::quantity::Quantity;
use crate::object::status::Problem;
use crate::store::Key;
use crate::verbs::{Call, meta};

/// Gives a new pod the overhead, the node selector and the tolerations of its class.
pub(super) fn admit(call: &Call, pod: &str, spec: &mut Map<String, Value>) -> Result<(), Problem> {
    let refused = |why: &str| Problem::forbidden(call.resource.what(), pod, why);
    let class = match spec.get("runtimeClassName").and_then(Value::as_str) {
        None => json!({}),
        Some(name) => {
            let key = Key::new("node.k8s.io", "runtimeclasses", "", name);
            let found = call.core.store.get(&key).map(|it| it.value());
            found.ok_or_else(|| refused(&format!("pod rejected: RuntimeClass {name:?} not found")))?
        }
    };
    let given = spec.get("overhead").and_then(Value::as_object).filter(|it| !it.is_empty());
    match (class.pointer("/overhead/podFixed").and_then(Value::as_object), given) {
        (None, None) => {}
        (None, Some(_)) if class.get("overhead").is_none() => {
            return Err(refused("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"));
        }
        (Some(fixed), None) => drop(spec.insert("overhead".into(), json!(fixed))),
        (Some(fixed), Some(given)) if is_same(fixed, given) => {}
        (_, Some(_)) => {
            return Err(refused("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
    }
    if let Some(wanted) = class.pointer("/scheduling/nodeSelector").and_then(Value::as_object) {
        let selector = meta::map(spec.entry("nodeSelector").or_insert_with(|| json!({})));
        for (key, value) in wanted {
            if let Some(other) = selector.get(key).filter(|it| *it != value) {
                let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
                return Err(refused(&format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(other)
                )));
            }
            selector.insert(key.clone(), value.clone());
        }
    }
    if let Some(wanted) = class.pointer("/scheduling/tolerations").and_then(Value::as_array) {
        let own = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
        spec.insert("tolerations".into(), Value::Array(merged(own, wanted)));
    }
    Ok(())
}

fn is_same(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    let size = |it: &Value| it.as_str().and_then(|it| Quantity::parse(it).ok());
    one.len() == other.len() && one.iter().all(|(key, value)| other.get(key).is_some_and(|it| size(it) == size(value)))
}

/// All of both, without those that another one covers.
fn merged(mut all: Vec<Value>, more: &[Value]) -> Vec<Value> {
    all.extend(more.iter().cloned());
    let mut kept: Vec<Value> = Vec::with_capacity(all.len());
    for (at, one) in all.iter().enumerate() {
        let later = all.iter().skip(at + 1).any(|it| it != one && covers(it, one));
        if !later && !kept.iter().any(|it| covers(it, one)) {
            kept.push(one.clone());
        }
    }
    kept
}

fn covers(whole: &Value, part: &Value) -> bool {
    fn text<'a>(of: &'a Value, field: &str) -> &'a str {
        of.get(field).and_then(Value::as_str).unwrap_or_default()
    }
    let exists = text(whole, "operator") == "Exists";
    if text(part, "key") != text(whole, "key") && !(text(whole, "key").is_empty() && exists) {
        return false;
    }
    if text(part, "effect") != text(whole, "effect") && !text(whole, "effect").is_empty() {
        return false;
    }
    let seconds = |of: &Value| of.get("tolerationSeconds").and_then(Value::as_i64);
    if text(whole, "effect") == "NoExecute"
        && let Some(bound) = seconds(whole)
        && seconds(part).is_none_or(|it| it > bound)
    {
        return false;
    }
    exists || (text(part, "operator") == text(whole, "operator") && text(part, "value") == text(whole, "value"))
}
