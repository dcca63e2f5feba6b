//! Between the version that is asked for and the one that is kept. Almost always nothing but `apiVersion` differs.

use serde_json::{Map, Value, json};

use crate::object::{Schema, builtin};
use crate::registry::{Model, Resource};
use crate::store::Entry;
use crate::verbs::meta::map;

/// A kept object in the version that the resource serves, with what its definition says by now.
pub(crate) fn show(resource: &Resource, entry: &Entry) -> Value {
    let mut object = entry.value();
    if resource.is_stored_version() && resource.is_outdated(entry) {
        fit(&resource.schema(), &mut object);
        return object;
    }
    serve(resource, object)
}

/// A value in the version that the resource serves.
pub(crate) fn serve(resource: &Resource, mut stored: Value) -> Value {
    if resource.is_stored_version() {
        return stored;
    }
    match (resource.group.as_str(), resource.kind.as_str(), resource.version.as_str()) {
        ("events.k8s.io", "Event", _) => rename(&mut stored, &EVENT, false),
        ("autoscaling", "HorizontalPodAutoscaler", "v1") => hpa_to_v1(&mut stored),
        _ => {}
    }
    map(&mut stored).insert("apiVersion".into(), json!(resource.api_version()));
    if resource.is_custom() {
        fit(&resource.schema(), &mut stored);
        return stored;
    }
    // What is printed although empty differs between the two.
    resource.schema().shape(&mut stored);
    stored
}

/// An object of the served version as it is kept.
pub(crate) fn store(resource: &Resource, mut served: Value) -> Value {
    if resource.is_stored_version() {
        return served;
    }
    match (resource.group.as_str(), resource.kind.as_str(), resource.version.as_str()) {
        ("events.k8s.io", "Event", _) => rename(&mut served, &EVENT, true),
        ("autoscaling", "HorizontalPodAutoscaler", "v1") => hpa_to_v2(&mut served),
        _ => {}
    }
    map(&mut served).insert("apiVersion".into(), json!(resource.stored_api_version));
    if let Model::Custom(custom) = &resource.model {
        fit(custom.kept_schema(), &mut served);
        return served;
    }
    let (group, version) = resource.stored_api_version.split_once('/').unwrap_or(("", &resource.stored_api_version));
    if let Some(schema) = builtin::schema_of(group, version, &resource.kind) {
        schema.shape(&mut served);
    }
    served
}

/// Conversion `None`: each version shows what it knows, with its own defaults.
fn fit(schema: &Schema, object: &mut Value) {
    schema.prune(object);
    schema.default(object);
}

/// `events.k8s.io/v1` and `v1`: the same fields by other names.
const EVENT: [(&str, &str); 8] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("eventTime", "eventTime"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], forward: bool) {
    let root = map(object);
    let renamed = std::mem::take(root).into_iter().map(|(key, value)| {
        let other = names.iter().find_map(|(served, kept)| {
            let (from, to) = if forward { (served, kept) } else { (kept, served) };
            (key == *from).then_some(*to)
        });
        (other.map_or(key, str::to_owned), value)
    });
    *root = renamed.collect::<Map<String, Value>>();
}

const CPU_TARGET: &str = "/resource/target/averageUtilization";

/// The CPU goal of `v1` is one of the metrics of `v2`. The others have no place in `v1` and are not shown there.
fn hpa_to_v1(object: &mut Value) {
    let cpu = |metric: &&Value| metric.pointer("/resource/name").is_some_and(|it| it == "cpu");
    let all = object.pointer("/spec/metrics").and_then(Value::as_array);
    let goal = all.into_iter().flatten().find(cpu).and_then(|metric| metric.pointer(CPU_TARGET)).cloned();
    let current = object.pointer("/status/currentMetrics").and_then(Value::as_array);
    let current = current
        .into_iter()
        .flatten()
        .find(cpu)
        .and_then(|it| it.pointer("/resource/current/averageUtilization"))
        .cloned();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.shift_remove("metrics");
        spec.shift_remove("behavior");
        if let Some(goal) = goal {
            spec.insert("targetCPUUtilizationPercentage".into(), goal);
        }
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        for field in ["currentMetrics", "conditions"] {
            status.shift_remove(field);
        }
        if let Some(current) = current {
            status.insert("currentCPUUtilizationPercentage".into(), current);
        }
        for field in ["currentReplicas", "desiredReplicas"] {
            status.entry(field).or_insert(json!(0));
        }
    }
}

fn hpa_to_v2(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(goal) = spec.shift_remove("targetCPUUtilizationPercentage")
    {
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": goal}}}]);
        spec.insert("metrics".into(), metric);
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("currentCPUUtilizationPercentage");
        if status.get("currentReplicas") == Some(&json!(0)) {
            status.shift_remove("currentReplicas");
        }
    }
}
