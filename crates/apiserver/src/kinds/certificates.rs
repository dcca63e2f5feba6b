//! CertificateSigningRequests: `pkg/registry/certificates/certificates` of upstream. They are stored, approved and filled in
//! by whoever may; nobody here signs.

use serde_json::{Map, Value, json};

use crate::access::User;
use crate::verbs::meta;

const DECISIONS: [&str; 2] = ["Approved", "Denied"];

fn conditions(object: &Value) -> &[Value] {
    object.pointer("/status/conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn kind(condition: &Value) -> &str {
    condition.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Who asks is whoever creates, and nothing is decided yet.
pub(super) fn sign_in(object: &mut Value, user: &User) {
    let spec = meta::map(meta::map(object).entry("spec").or_insert_with(|| json!({})));
    for field in ["username", "uid", "groups", "extra"] {
        spec.shift_remove(field);
    }
    spec.insert("username".into(), json!(user.name));
    if !user.uid.is_empty() {
        spec.insert("uid".into(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
    meta::map(object).insert("status".into(), json!({}));
}

/// What was asked never changes. The approver decides, the signer does all else.
pub(super) fn reset(subresource: &str, object: &mut Value, old: &Value) {
    let old_of = |field: &str| old.get(field).cloned();
    let mut status = object.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
    match subresource {
        "approval" => match old.pointer("/status/certificate") {
            Some(certificate) => drop(status.insert("certificate".into(), certificate.clone())),
            None => drop(status.shift_remove("certificate")),
        },
        "status" => {
            for decision in DECISIONS {
                let before: Vec<&Value> = conditions(old).iter().filter(|it| kind(it) == decision).collect();
                let list = status.get_mut("conditions").and_then(Value::as_array_mut);
                let now: Vec<&mut Value> = list.into_iter().flatten().filter(|it| kind(it) == decision).collect();
                if before.len() == now.len() {
                    now.into_iter().zip(before).for_each(|(new, old)| *new = old.clone());
                }
            }
        }
        _ => status = old_of("status").and_then(|it| it.as_object().cloned()).unwrap_or_default(),
    }
    let map: &mut Map<String, Value> = meta::map(object);
    map.insert("status".into(), Value::Object(status));
    if let Some(spec) = old_of("spec") {
        map.insert("spec".into(), spec);
    }
}

/// Conditions say when they came and when they were last looked at.
pub(super) fn date(object: &mut Value, old: &Value, now: &str) {
    let list = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        let same = |it: &&Value| ["type", "status"].iter().all(|field| it.get(*field) == condition.get(*field));
        let since = conditions(old).iter().find(same).and_then(|it| it.get("lastTransitionTime")).cloned();
        condition.entry("lastUpdateTime").or_insert_with(|| json!(now));
        condition.entry("lastTransitionTime").or_insert_with(|| since.unwrap_or_else(|| json!(now)));
    }
}
