//! What stands between a request and the store: from a body to an object of the kind, and the rules of namespaces.

use bytes::Bytes;
use serde_json::Value;

use super::{Call, FieldValidation, meta};
use crate::http::media::{self, Decoded, Duplicates, Undecodable};
use crate::kinds::{convert, strategy};
use crate::object::FieldError;
use crate::object::status::{Problem, StatusCause, What};
use crate::registry::{Model, Resource};

/// An object as it comes from outside, in the version of the request.
pub(crate) fn decode(
    call: &mut Call,
    body: &Bytes,
    media_type: &str,
    validation: FieldValidation,
) -> Result<Value, Problem> {
    let resource = call.resource.clone();
    decode_as(call, &resource, body, media_type, validation)
}

/// [`decode`] of an object of another kind than the call is about.
pub(crate) fn decode_as(
    call: &mut Call,
    resource: &Resource,
    body: &Bytes,
    media_type: &str,
    validation: FieldValidation,
) -> Result<Value, Problem> {
    let kind = &resource.kind;
    let decoded = match media::decode(body, media_type) {
        Ok(decoded) => decoded,
        Err(Undecodable::Unknown(problem)) => return Err(problem),
        Err(Undecodable::Syntax(why)) => {
            let parser = if media_type.ends_with("json") || media_type.is_empty() {
                "couldn't get version/kind; json parse error: "
            } else {
                ""
            };
            return Err(Problem::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): {parser}{why} ({})",
                summary(body)
            )));
        }
    };
    take(call, resource, body, decoded, validation)
}

/// The first bytes of a body: as they are when it is JSON, in hex otherwise.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let Some(first) = body.first() else { return "<empty>".to_owned() };
    let (start, more) = body
        .split_at_checked(SHOWN)
        .map_or((body, ""), |(start, rest)| (start, if rest.is_empty() { "" } else { " ..." }));
    if *first == b'{' {
        format!("{}{more}", String::from_utf8_lossy(start))
    } else {
        let hex: String = start.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}{more}")
    }
}

/// Checks that a decoded body is of the resource's kind, drops or refuses what the type does not know, and fills in
/// the defaults.
pub(crate) fn take(
    call: &mut Call,
    resource: &Resource,
    raw: &[u8],
    decoded: Decoded,
    validation: FieldValidation,
) -> Result<Value, Problem> {
    let Decoded { mut value, duplicates } = decoded;
    let expected = resource.api_version();
    let Some(root) = value.as_object_mut() else {
        let why = format!(
            "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go_kind(&value)
        );
        return Err(Problem::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why} ({})",
            resource.kind,
            summary(raw)
        )));
    };
    let said = |key: &str| root.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (said("apiVersion"), said("kind"));
    if kind.is_empty() && resource.is_custom() {
        let shown = String::from_utf8_lossy(raw);
        return Err(Problem::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): Object 'Kind' is missing in '{shown}' ({})",
            resource.kind,
            summary(raw)
        )));
    }
    if (!api_version.is_empty() && api_version != expected) || (!kind.is_empty() && kind != resource.kind) {
        let said = if api_version.is_empty() { expected.as_str() } else { api_version.as_str() };
        let kind = if kind.is_empty() { resource.kind.as_str() } else { kind.as_str() };
        if resource.is_custom() && said == expected {
            let error = FieldError::invalid_str("kind", kind, &format!("must be {}", resource.kind));
            let name = meta::name(&value).to_owned();
            return Err(Problem::invalid(What::new(&resource.group, kind), &name, &[error]));
        }
        return Err(Problem::bad_request(another_kind(call, resource, said, kind)));
    }
    root.insert("apiVersion".into(), expected.into());
    root.insert("kind".into(), resource.kind.clone().into());
    fit(resource, &mut value, duplicates, validation, call, |why| {
        Problem::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    Ok(value)
}

/// What is said of an object of another kind than the resource's.
fn another_kind(call: &Call, resource: &Resource, api_version: &str, kind: &str) -> String {
    let expected = resource.api_version();
    let version = api_version.rsplit('/').next().unwrap_or_default();
    let known = call.core.registry.now().of_kind(api_version, kind).is_some_and(|it| !it.is_custom());
    if resource.is_custom() || (known && kind == resource.kind) {
        return format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        );
    }
    let why = if known {
        // The package of the internal type.
        let package = resource.group.split('.').next().filter(|it| !it.is_empty()).unwrap_or("core");
        format!("converting ({version}.{kind}) to ({package}.{}): unknown conversion", resource.kind)
    } else {
        format!("no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/runtime/scheme.go:110\"")
    };
    format!("{kind} in version {version:?} cannot be handled as a {}: {why}", resource.kind)
}

/// Fits a value to the resource's type: wrong types are refused, unknown fields dropped (and told, or refused), defaults
/// filled in. `wrong` words the refusal.
pub(crate) fn fit(
    resource: &Resource,
    value: &mut Value,
    duplicates: Duplicates,
    validation: FieldValidation,
    call: &mut Call,
    wrong: impl Fn(String) -> Problem,
) -> Result<(), Problem> {
    let schema = resource.schema();
    schema.check_types(value).map_err(&wrong)?;
    // A typed decoder complains as it reads; an untyped one of duplicates first.
    let whole = (!resource.is_custom() && !duplicates.is_empty()).then(|| value.clone());
    let unknown = schema.prune(value);
    let told = |wording: Vec<String>| match (&duplicates, &whole) {
        (Duplicates::Json(paths), Some(whole)) => as_read(paths, &unknown, whole),
        _ => wording.into_iter().chain(unknown.iter().map(|path| self::unknown(path))).collect::<Vec<_>>(),
    };
    match validation {
        FieldValidation::Strict => {
            let told = told(duplicates.errors());
            if !told.is_empty() {
                return Err(wrong(format!("strict decoding error: {}", told.join(", "))));
            }
        }
        FieldValidation::Warn => told(duplicates.warnings()).into_iter().for_each(|text| call.warn(text)),
        FieldValidation::Ignore => {}
    }
    default(resource, value);
    Ok(())
}

fn unknown(path: &str) -> String {
    format!("unknown field {path:?}")
}

/// What stands twice and what is not known, in the order of the body.
fn as_read(duplicates: &[(usize, String)], unknown: &[String], whole: &Value) -> Vec<String> {
    fn number<'a>(
        value: &Value,
        path: &mut String,
        fields: &mut usize,
        unknown: &'a [String],
        found: &mut Vec<(usize, &'a str)>,
    ) {
        let before = path.len();
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if before > 0 {
                        path.push('.');
                    }
                    path.push_str(key);
                    *fields += 1;
                    found.extend(unknown.iter().find(|it| *it == path).map(|it| (*fields, it.as_str())));
                    number(value, path, fields, unknown, found);
                    path.truncate(before);
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{at}]"));
                    number(item, path, fields, unknown, found);
                    path.truncate(before);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    number(whole, &mut String::new(), &mut 0, unknown, &mut found);
    let unknown = found.into_iter().map(|(at, path)| (at, 0, self::unknown(path)));
    let mut all: Vec<_> = duplicates.iter().map(|(at, path)| (*at, 1, media::duplicate(path))).chain(unknown).collect();
    all.sort_by_key(|it| (it.0, it.1));
    all.into_iter().map(|it| it.2).collect()
}

/// Fills in the defaults of the resource's type.
pub(crate) fn default(resource: &Resource, value: &mut Value) {
    match &resource.model {
        Model::Builtin(_) => strategy::complete(resource, value),
        Model::Custom(custom) => custom.schema().default(value),
    }
}

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

/// The object's namespace must be the request's, or nothing.
pub(crate) fn settle_namespace(call: &Call, object: &mut Value) -> Result<(), Problem> {
    let wanted = if call.resource.namespaced { call.namespace.as_str() } else { "" };
    let said = meta::namespace(object);
    if said == wanted {
        if wanted.is_empty() && meta::get(object, "namespace").is_some() {
            meta::remove(object, "namespace");
        }
        return Ok(());
    }
    if said.is_empty() {
        meta::set(object, "namespace", wanted);
    } else if wanted.is_empty() {
        meta::remove(object, "namespace");
    } else {
        return Err(Problem::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The object's name must be that of the URL.
pub(crate) fn check_name(call: &Call, object: &Value) -> Result<(), Problem> {
    match meta::name(object) {
        "" => Err(Problem::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.name
        ))),
        name if name != call.name => Err(Problem::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        ))),
        _ => Ok(()),
    }
}

/// Owner references that stand there twice are dropped, and told.
pub(crate) fn dedup_owners(call: &mut Call, object: &mut Value) {
    let dropped = meta::dedup_owners(object);
    if !dropped.is_empty() {
        call.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            dropped.join(", ")
        ));
    }
}

/// Nothing is created in a namespace that is not there or is going.
pub(crate) fn namespace_takes(call: &Call, object: &Value) -> Result<(), Problem> {
    if !call.resource.namespaced || call.resource.review {
        return Ok(());
    }
    let name = call.namespace.as_str();
    let key = crate::store::Key::new("", "namespaces", "", name);
    let Some(namespace) = call.core.store.get(&key) else {
        return Err(Problem::not_found(What::new("", "namespaces"), name));
    };
    // Asked of every creation, so the bytes are looked at before they are parsed.
    if !contains(&namespace.json, b"\"Terminating\"")
        || namespace.value().pointer("/status/phase").is_none_or(|it| it != "Terminating")
    {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let mut problem = Problem::forbidden(call.resource.what(), meta::name(object), &why);
    if let Some(details) = &mut problem.details {
        details.causes.push(StatusCause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {name} is being terminated"),
            field: "metadata.namespace".into(),
        });
    }
    Err(problem)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// From the request's version to the one that is kept.
pub(crate) fn to_stored(resource: &Resource, object: Value) -> Value {
    convert::store(resource, object)
}
