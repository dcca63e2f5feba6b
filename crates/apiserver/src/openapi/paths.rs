//! The paths as the two versions of OpenAPI write them.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Map, Value, json};

use super::operations::{META, Operation, Path};
use super::parameters::{Parameter, Place};
use super::{DEFINITIONS, SCHEMAS};
use crate::http::json::put;

pub(super) fn v3(path: &Path) -> Value {
    let methods = path.operations.iter().map(|it| (it.method.to_owned(), Value::Object(operation_v3(it))));
    with(methods.collect(), path.parameters.iter().map(Parameter::v3).collect())
}

/// Takes out what other paths share.
pub(super) fn v2(path: &Path, shared: &mut Shared) -> Value {
    let methods = path.operations.iter().map(|it| (it.method.to_owned(), Value::Object(operation_v2(it, shared))));
    let methods = methods.collect();
    with(methods, path.parameters.iter().map(|it| shared.parameter(it)).collect())
}

fn with(mut item: Map<String, Value>, parameters: Vec<Value>) -> Value {
    if !parameters.is_empty() {
        item.insert("parameters".into(), Value::Array(parameters));
    }
    Value::Object(item)
}

fn operation_v3(operation: &Operation) -> Map<String, Value> {
    let mut it = Map::new();
    it.insert("tags".into(), json!([operation.tag]));
    it.insert("description".into(), json!(operation.description));
    it.insert("operationId".into(), json!(operation.id));
    if !operation.parameters.is_empty() {
        it.insert("parameters".into(), operation.parameters.iter().map(Parameter::v3).collect());
    }
    if let Some(body) = &operation.body {
        let mut said = json!({"content": content(&operation.consumes, &reference(SCHEMAS, &body.of))});
        if body.required {
            put(&mut said, "required", json!(true));
        }
        it.insert("requestBody".into(), said);
    }
    let answer = content(&operation.produces, &answer(SCHEMAS, operation));
    it.insert("responses".into(), responses(operation, "content", &answer));
    about(&mut it, operation);
    it
}

/// The same in each of these encodings.
fn content(encodings: &[&str], schema: &Value) -> Value {
    encodings.iter().map(|it| ((*it).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn operation_v2(operation: &Operation, shared: &mut Shared) -> Map<String, Value> {
    let mut it = Map::new();
    it.insert("description".into(), json!(operation.description));
    if !operation.consumes.is_empty() {
        it.insert("consumes".into(), json!(operation.consumes));
    }
    it.insert("produces".into(), json!(operation.produces));
    it.insert("schemes".into(), json!(["https"]));
    it.insert("tags".into(), json!([operation.tag]));
    it.insert("operationId".into(), json!(operation.id));
    let body = operation.body.as_ref().map(|body| {
        let mut it = json!({"name": "body", "in": "body"});
        if body.required {
            put(&mut it, "required", json!(true));
        }
        put(&mut it, "schema", reference(DEFINITIONS, &body.of));
        // Those of one kind are taken by its own operations alone.
        if body.of.starts_with(META) { shared.reference("body", it) } else { it }
    });
    // A body sorts before every name that there is.
    let parameters: Vec<Value> =
        body.into_iter().chain(operation.parameters.iter().map(|it| shared.parameter(it))).collect();
    if !parameters.is_empty() {
        it.insert("parameters".into(), json!(parameters));
    }
    it.insert("responses".into(), responses(operation, "schema", &answer(DEFINITIONS, operation)));
    about(&mut it, operation);
    it
}

fn reference(place: &str, name: &str) -> Value {
    json!({"$ref": format!("{place}{name}")})
}

fn answer(place: &str, operation: &Operation) -> Value {
    operation.answer.as_ref().map_or_else(|| json!({"type": "string"}), |name| reference(place, name))
}

fn responses(operation: &Operation, key: &str, answer: &Value) -> Value {
    let mut all = Map::new();
    for code in operation.codes {
        let description = match code {
            201 => "Created",
            202 => "Accepted",
            _ => "OK",
        };
        all.insert(code.to_string(), json!({"description": description, key: answer}));
    }
    all.insert("401".into(), json!({"description": "Unauthorized"}));
    Value::Object(all)
}

fn about(it: &mut Map<String, Value>, operation: &Operation) {
    if let Some((action, named)) = &operation.action {
        it.insert("x-kubernetes-action".into(), json!(action));
        it.insert(
            "x-kubernetes-group-version-kind".into(),
            json!({"group": named.group, "version": named.version, "kind": named.kind}),
        );
    }
}

/// The parameters that a document of OpenAPI 2.0 has once, for all that refer to them.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) all: BTreeMap<String, Value>,
    /// Their names, by what they are written as.
    names: HashMap<String, String>,
}

impl Shared {
    fn parameter(&mut self, parameter: &Parameter) -> Value {
        let it = parameter.v2();
        // kubectl below 1.27 looks for the last two in the operations; a name is another one for every kind.
        match (parameter.place, parameter.name) {
            (Place::Path, "name") | (Place::Query, "dryRun" | "fieldValidation") => it,
            (_, name) => self.reference(name, it),
        }
    }

    fn reference(&mut self, name: &str, it: Value) -> Value {
        let named = self.names.entry(it.to_string()).or_insert_with_key(|text| {
            let named = format!("{name}-{}", URL_SAFE.encode(fnv(text).to_be_bytes().get(..6).unwrap_or_default()));
            self.all.insert(named.clone(), it);
            named
        });
        reference("#/parameters/", named)
    }
}

/// FNV-1, by which upstream names them too.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte))
}
