//! LimitRanges: upstream's admission plugin `LimitRanger`.

use serde_json::{Map, Value, json};

use super::forbidden;
use super::usage::{Amounts, amounts, containers, of_pod};
use crate::object::quantity::Quantity;
use crate::object::status::Problem;
use crate::verbs::{Call, meta};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn ranges(call: &Call) -> Vec<Value> {
    let ours =
        call.subresource.is_empty() && (call.resource.is("", "pods") || call.resource.is("", "persistentvolumeclaims"));
    if !ours || call.resource.is_custom() {
        return Vec::new();
    }
    let listed = call.core.store.list("", "limitranges", Some(&call.namespace), None, None);
    listed.entries.iter().map(|it| it.value()).collect()
}

fn items(range: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let all = range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten();
    all.map(|it| (it.get("type").and_then(Value::as_str).unwrap_or_default(), it))
}

/// Gives the containers of a new pod what they do not say themselves.
pub(super) fn fill(call: &Call, pod: &mut Value) {
    if !call.resource.is("", "pods") {
        return;
    }
    for range in ranges(call) {
        let (mut limits, mut requests) = (Map::new(), Map::new());
        for (_, item) in items(&range).filter(|(kind, _)| *kind == "Container") {
            for (to, field) in [(&mut limits, "default"), (&mut requests, "defaultRequest")] {
                to.extend(item.get(field).and_then(Value::as_object).cloned().unwrap_or_default());
            }
        }
        let mut told = Vec::new();
        let Some(spec) = pod.get_mut("spec") else { continue };
        for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                for (side, given, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                    let set = complete(container, side, given);
                    if !set.is_empty() {
                        told.push(format!("{} {word} for {what} {name}", set.join(", ")));
                    }
                }
            }
        }
        if !told.is_empty() {
            let annotations = meta::of(pod).entry("annotations").or_insert_with(|| json!({}));
            let said = format!("LimitRanger plugin set: {}", told.join("; "));
            meta::map(annotations).insert(ANNOTATION.to_owned(), said.into());
        }
    }
}

/// Adds what is not there yet; the names of what was added.
fn complete(container: &mut Value, side: &str, given: &Map<String, Value>) -> Vec<String> {
    let mut set = Vec::new();
    for (name, value) in given {
        let resources = meta::map(container).entry("resources").or_insert_with(|| json!({}));
        let said = meta::map(meta::map(resources).entry(side).or_insert_with(|| json!({})));
        if !said.contains_key(name) {
            said.insert(name.clone(), value.clone());
            set.push(name.clone());
        }
    }
    set.sort();
    set
}

/// Refuses what asks for too little or too much. Pods are asked when they are created alone: what they ask for never
/// changes.
pub(super) fn check(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Problem> {
    let pod = call.resource.is("", "pods");
    if old.is_some_and(|old| pod || meta::is_being_deleted(old)) {
        return Ok(());
    }
    let null = Value::Null;
    let spec = object.get("spec").unwrap_or(&null);
    for range in ranges(call) {
        let mut errors = Vec::new();
        for (kind, item) in items(&range) {
            let bounds = Bounds::of(kind, item);
            let of = |holder: &Value, side: &str| amounts(holder.get("resources").and_then(|it| it.get(side)));
            match kind {
                "Container" if pod => {
                    for container in containers(spec, "containers").chain(containers(spec, "initContainers")) {
                        bounds.hold(&of(container, "requests"), &of(container, "limits"), &mut errors);
                    }
                }
                "Pod" if pod => bounds.hold(&of_pod(spec, "requests"), &of_pod(spec, "limits"), &mut errors),
                "PersistentVolumeClaim" if !pod => bounds.hold_claim(&of(spec, "requests"), &mut errors),
                _ => {}
            }
        }
        let told = match errors.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        return Err(forbidden(call, Some(object), &told));
    }
    Ok(())
}

struct Bounds<'a> {
    kind: &'a str,
    min: Amounts,
    max: Amounts,
    ratio: Amounts,
}

impl<'a> Bounds<'a> {
    fn of(kind: &'a str, item: &Value) -> Self {
        let of = |field| amounts(item.get(field));
        Self { kind, min: of("min"), max: of("max"), ratio: of("maxLimitRequestRatio") }
    }

    fn hold(&self, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
        for (name, least) in &self.min {
            let bound = format!("minimum {name} usage per {} is {least}", self.kind);
            let (request, limit) = (requests.get(name), limits.get(name));
            match (request, limit) {
                (None, _) => errors.push(format!("{bound}.  No request is specified")),
                (Some(request), _) if request < least => errors.push(format!("{bound}, but request is {request}")),
                (_, Some(limit)) if limit < least => errors.push(format!("{bound}, but limit is {limit}")),
                _ => {}
            }
        }
        for (name, most) in &self.max {
            let bound = format!("maximum {name} usage per {} is {most}", self.kind);
            match (requests.get(name), limits.get(name)) {
                (_, None) => errors.push(format!("{bound}.  No limit is specified")),
                (_, Some(limit)) if limit > most => errors.push(format!("{bound}, but limit is {limit}")),
                (Some(request), _) if request > most => errors.push(format!("{bound}, but request is {request}")),
                _ => {}
            }
        }
        for (name, most) in &self.ratio {
            let bound = format!("{name} max limit to request ratio per {} is {most}", self.kind);
            let of = |side: &Amounts| side.get(name).copied().filter(|it: &Quantity| it.sign() != 0);
            match (of(requests), of(limits)) {
                (None, _) => errors.push(format!("{bound}, but no request is specified or request is 0")),
                (_, None) => errors.push(format!("{bound}, but no limit is specified or limit is 0")),
                (Some(request), Some(limit)) => {
                    let ratio = limit.as_float() / request.as_float();
                    if ratio > most.as_float() {
                        errors.push(format!("{bound}, but provided ratio is {ratio:.6}"));
                    }
                }
            }
        }
    }

    fn hold_claim(&self, requests: &Amounts, errors: &mut Vec<String>) {
        for (word, bounds) in [("minimum", &self.min), ("maximum", &self.max)] {
            for (name, bound) in bounds {
                let said = format!("{word} {name} usage per {} is {bound}", self.kind);
                match requests.get(name) {
                    None => errors.push(format!("{said}.  No request is specified")),
                    Some(request)
                        if (word == "minimum" && request < bound) || (word == "maximum" && request > bound) =>
                    {
                        errors.push(format!("{said}, but request is {request}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
