use serde_json::{Value, json};

use super::{Call, WriteOptions, meta, read, update};
use crate::http::json::put;
use crate::http::resource::Asked;
use crate::http::{json as body, media};
use crate::object::apply::{self, Updater};
use crate::object::status::Problem;
use crate::object::{FieldError, patch};
use crate::registry::Scale;
use crate::verbs::patch::Language;

/// Replicas that nobody can have written.
const UNSAID: i64 = i32::MIN as i64;

/// `GET`, `PUT` and `PATCH` of `/scale`: an `autoscaling/v1` Scale as a face of the object.
pub(crate) async fn answer(call: &mut Call, verb: &str, asked: &Asked<'_>) -> Result<Value, Problem> {
    let Some(scale) = call.resource.scale.clone() else { return Err(Problem::no_such_path()) };
    if verb == "get" {
        let object = read::get(call, None).await?;
        let object = object.served(&call.resource);
        if call.resource.is_custom() && find(&object, &scale.spec).and_then(Value::as_i64).is_none() {
            let path = scale.spec.join(".");
            return Err(Problem::internal(&format!("the spec replicas field \".{path}\" does not exist")));
        }
        return Ok(face(call, &scale, &object, 0));
    }
    let kind = if verb == "update" { "UpdateOptions" } else { "PatchOptions" };
    let options = WriteOptions::of(asked.query, asked.user_agent(), kind, false)?;
    let wanted = match verb {
        "update" => match media::decode(&asked.body, asked.media_type()) {
            Ok(decoded) => Wanted::Whole(decoded.value),
            Err(media::Undecodable::Unknown(problem)) => return Err(problem),
            Err(media::Undecodable::Syntax(why)) => return Err(Problem::bad_request(why)),
        },
        _ => {
            let language = Language::of(asked.media_type(), call.resource.is_custom())?;
            if language == Language::Apply {
                return Err(Problem::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]));
            }
            let decoded =
                body::parse(&asked.body).map_err(|why| Problem::bad_request(format!("error decoding patch: {why}")))?;
            Wanted::Patch(language, decoded.value)
        }
    };
    let schema = call.resource.schema();
    let written = update::guaranteed(call, &options, false, |call, current| {
        let current = current.ok_or_else(|| call.not_found(&call.name))?;
        let before = face(call, &scale, current, UNSAID);
        let after = match &wanted {
            Wanted::Whole(value) => value.clone(),
            Wanted::Patch(Language::Json, operations) => patch::json(&before, operations)?,
            // A Scale has no lists: a strategic merge is a merge.
            Wanted::Patch(_, changes) => patch::merge(&before, changes)?,
        };
        let replicas = after.pointer("/spec/replicas").cloned().unwrap_or_else(|| json!(0));
        if replicas == UNSAID {
            let path = scale.spec.join(".");
            return Err(Problem::bad_request(format!("the spec replicas field \".{path}\" cannot be empty")));
        }
        check(call, &after, &replicas)?;
        let mut object = current.clone();
        put_at(&mut object, &scale.spec, replicas);
        let revision = meta::text(&after, "resourceVersion").to_owned();
        meta::put(
            &mut object,
            "resourceVersion",
            Some(json!(if revision.is_empty() { meta::text(current, "resourceVersion") } else { &revision })),
        );
        // Upstream notes nobody for the scale of a custom resource.
        if !call.resource.is_custom() {
            let updater = Updater {
                manager: &options.manager,
                subresource: "scale",
                api_version: &call.resource.api_version(),
                now: call.core.clock.now(),
            };
            apply::track(Some(current), &mut object, &schema, &updater);
        }
        Ok(object)
    })
    .await?;
    Ok(face(call, &scale, &written.object.served(&call.resource), 0))
}

enum Wanted {
    Whole(Value),
    Patch(Language, Value),
}

fn check(call: &Call, after: &Value, replicas: &Value) -> Result<(), Problem> {
    let what = crate::object::status::What::new("autoscaling", "Scale");
    let named = meta::name(after);
    if !named.is_empty() && named != call.name {
        return Err(Problem::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            call.name
        )));
    }
    match replicas.as_i64() {
        Some(number) if number >= 0 => Ok(()),
        Some(_) => {
            let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            Err(Problem::invalid(what, &call.name, &[error]))
        }
        None => Err(Problem::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {replicas} into Go struct field ScaleSpec.spec.replicas of type int32"
        ))),
    }
}

/// The Scale of an object; `unsaid`: the replicas of a custom one that does not say them.
fn face(call: &Call, scale: &Scale, object: &Value, unsaid: i64) -> Value {
    let number = |path: &[String]| find(object, path).and_then(Value::as_i64);
    let unsaid = if call.resource.is_custom() { unsaid } else { 0 };
    let replicas = number(&scale.spec).unwrap_or(unsaid);
    let mut metadata = json!({"name": meta::name(object), "namespace": meta::namespace(object), "uid": meta::uid(object),
        "resourceVersion": meta::text(object, "resourceVersion")});
    if let Some(at) = meta::get(object, "creationTimestamp") {
        put(&mut metadata, "creationTimestamp", at.clone());
    }
    let mut status = json!({"replicas": number(&scale.status).unwrap_or_default()});
    let selector = match &scale.selector {
        Some(path) => find(object, path).and_then(Value::as_str).map(str::to_owned),
        None if call.resource.is_custom() => None,
        None => object.pointer("/spec/selector").map(selector_text),
    };
    if let Some(selector) = selector.filter(|it| !it.is_empty()) {
        put(&mut status, "selector", json!(selector));
    }
    let mut spec = json!({});
    if replicas != 0 {
        put(&mut spec, "replicas", json!(replicas));
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

fn find<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |at, part| at.get(part))
}

fn put_at(object: &mut Value, path: &[String], value: Value) {
    let mut at = object;
    for part in path {
        at = meta::map(at).entry(part.clone()).or_insert_with(|| json!({}));
    }
    *at = value;
}

/// A label selector (or the plain map of a ReplicationController) in the notation of queries.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut parts = Vec::new();
    let labels = selector.get("matchLabels").or_else(|| selector.get("matchExpressions").is_none().then_some(selector));
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for one in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = one.get("key").and_then(Value::as_str).unwrap_or_default();
        let mut values: Vec<&str> =
            one.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        parts.push(match one.get("operator").and_then(Value::as_str).unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.sort();
    parts.join(",")
}
