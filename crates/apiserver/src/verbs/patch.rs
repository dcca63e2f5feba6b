use bytes::Bytes;
use serde_json::Value;

use super::{Call, WriteOptions, Written, admit, update};
use crate::http::media::{Decoded, Duplicates};
use crate::http::{FieldValidation, json, yaml};
use crate::kinds::strategy;
use crate::object::apply::{self, Applier, Updater};
use crate::object::status::{Problem, What};
use crate::object::{FieldError, field, patch};

/// The four languages of `PATCH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Language {
    /// By media type; custom resources know no strategic merge.
    pub(crate) fn of(media_type: &str, custom: bool) -> Result<Self, Problem> {
        match media_type {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ if custom => Err(Problem::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ])),
            // Built-in kinds are refused by upstream's router already.
            _ => Err(Problem {
                message: "415: Unsupported Media Type".into(),
                details: Some(Box::default()),
                ..Problem::unsupported_media_type(&[])
            }),
        }
    }
}

/// `PATCH` on a resource or its status.
pub(crate) async fn patch(
    call: &mut Call,
    language: Language,
    body: &Bytes,
    options: &WriteOptions,
) -> Result<Written, Problem> {
    if language == Language::Apply {
        return apply(call, body, options).await;
    }
    let Decoded { value: wanted, duplicates } = json::parse(body).map_err(|why| match language {
        Language::Strategic => Problem::bad_request(why),
        _ => Problem::bad_request(format!("error decoding patch: {why}")),
    })?;
    let schema = call.resource.schema();
    let resource = call.resource.clone();
    update::guaranteed(call, options, false, |call, current| {
        let current = current.ok_or_else(|| call.not_found(&call.name))?;
        let mut object = run(language, current, &wanted, &schema)?;
        let shown = match language {
            Language::Strategic => go_map(&wanted),
            _ => field::json(&object),
        };
        let invalid =
            |why: String| Problem::invalid(What::new("", ""), "", &[FieldError::invalid_str("patch", &shown, &why)]);
        check_type(call, &object, &invalid)?;
        if let Err(problem) = admit::fit(&resource, &mut object, duplicates.clone(), options.validation, call, invalid)
        {
            let converted = if language == Language::Strategic { schema.check_converted(&object) } else { Ok(()) };
            return Err(converted.map_or_else(invalid, |()| problem));
        }
        admit::dedup_owners(call, &mut object);
        strategy::reset_for_update(&resource, &call.subresource, &mut object, current);
        let updater = Updater {
            manager: &options.manager,
            subresource: &call.subresource,
            api_version: &resource.api_version(),
            now: call.core.clock.now(),
        };
        apply::track(Some(current), &mut object, &schema, &updater);
        Ok(object)
    })
    .await
}

/// Go's `%+v` of decoded JSON.
fn go_map(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_map).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut fields: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_map(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

fn run(language: Language, current: &Value, wanted: &Value, schema: &crate::object::Schema) -> Result<Value, Problem> {
    match language {
        Language::Json => patch::json(current, wanted),
        Language::Merge => patch::merge(current, wanted),
        Language::Strategic | Language::Apply => patch::strategic(current, wanted, schema),
    }
}

/// A patch may not make another kind of an object.
fn check_type(call: &Call, object: &Value, invalid: &impl Fn(String) -> Problem) -> Result<(), Problem> {
    let said = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    if said("kind") != call.resource.kind || said("apiVersion") != call.resource.api_version() {
        let (version, kind) = (said("apiVersion"), said("kind"));
        return Err(invalid(format!("no kind {kind:?} is registered for version {version:?} in this resource")));
    }
    Ok(())
}

async fn apply(call: &mut Call, body: &Bytes, options: &WriteOptions) -> Result<Written, Problem> {
    let Decoded { value: applied, duplicates } = yaml::parse(body)
        .map_err(|why| Problem::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}")))?;
    if !applied.is_object() {
        return Err(Problem::bad_request("error decoding YAML: an object is needed"));
    }
    if options.validation == FieldValidation::Warn {
        duplicates.warnings().into_iter().for_each(|text| call.warn(text));
    }
    let schema = call.resource.schema();
    let resource = call.resource.clone();
    let may_create = call.subresource.is_empty();
    update::guaranteed(call, options, may_create, |call, current| {
        let applier = Applier {
            manager: &options.manager,
            subresource: &call.subresource,
            api_version: &resource.api_version(),
            force: options.force,
            now: call.core.clock.now(),
        };
        let mut wanted = applied.clone();
        strategy::reset_applied(&resource, &call.subresource, &mut wanted);
        let mut object = apply::apply(current, wanted, &schema, &applier)?;
        if options.validation == FieldValidation::Strict && !duplicates.is_empty() {
            let told = duplicates.errors().join(", ");
            let why = format!("error strict decoding YAML: error converting YAML to JSON: {told}");
            return Err(Problem::bad_request(why));
        }
        admit::fit(&resource, &mut object, Duplicates::NONE, FieldValidation::Ignore, call, Problem::bad_request)?;
        match current {
            Some(current) => strategy::reset_for_update(&resource, &call.subresource, &mut object, current),
            None => strategy::reset_for_create(&resource, &mut object),
        }
        Ok(object)
    })
    .await
}
