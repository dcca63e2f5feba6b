//! The fields that field selectors may name, kind by kind.

use serde_json::Value;

use crate::object::status::Problem;
use crate::registry::{Model, Resource};

const EVENT: [&str; 12] = [
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
    "reportingController",
];

fn known(resource: &Resource) -> &'static [&'static str] {
    match (resource.stored_group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "events") => &EVENT,
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase", "name"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        _ => &[],
    }
}

/// Whether a field may be named in a selector on this resource.
pub(crate) fn check(resource: &Resource, field: &str) -> Result<(), Problem> {
    if matches!(field, "metadata.name" | "metadata.namespace") {
        return Ok(());
    }
    let fits = match &resource.model {
        Model::Builtin(_) => known(resource).contains(&field),
        Model::Custom(custom) => custom.selectable.iter().any(|path| path.trim_start_matches('.') == field),
    };
    if fits {
        return Ok(());
    }
    // Kinds with fields of their own have words of their own.
    Err(Problem::bad_request(if resource.is_custom() || !known(resource).is_empty() {
        format!("field label not supported: {field}")
    } else {
        format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    }))
}

/// The text of a field of a served object; an absent one is empty, or its zero where it is a number or a truth.
pub(crate) fn value(resource: &Resource, object: &Value, field: &str) -> String {
    let path = match (resource.plural.as_str(), field) {
        ("events", "source") => "source.component",
        ("events", "reportingController") => "reportingComponent",
        ("namespaces", "name") => "metadata.name",
        ("jobs", "status.successful") => "status.succeeded",
        (_, field) => field,
    };
    // Selectors keep the names of v1 also on events.k8s.io.
    let path = if resource.group == "events.k8s.io" {
        path.replacen("involvedObject.", "regarding.", 1)
            .replace("source.component", "deprecatedSource.component")
            .replace("reportingComponent", "reportingController")
    } else {
        path.to_owned()
    };
    let found = path.split('.').try_fold(object, |at, part| at.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => match field {
            "spec.hostNetwork" | "spec.unschedulable" => "false".into(),
            "status.replicas" | "status.successful" => "0".into(),
            _ => String::new(),
        },
        Some(other) => other.to_string(),
    }
}
