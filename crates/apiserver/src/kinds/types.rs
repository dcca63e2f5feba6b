//! The types of the built-in kinds as OpenAPI publishes them: shapes and descriptions from k8s-openapi, list types and
//! patch strategies from the server's own schemas. Made when somebody asks for a document, never before.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{KINDS, Kind};
use crate::object::builtin;
use crate::object::schema::{List, Node, Patch};

/// The definitions of these kinds and of all they refer to.
pub(crate) fn published<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for kind in kinds {
        (kind.describe)(&mut generator);
    }
    // Every list and every custom resource refers to these.
    let _ = generator.subschema_for::<ObjectMeta>();
    let _ = generator.subschema_for::<ListMeta>();
    let mut definitions = generator.take_definitions(false);
    for (name, schema) in &mut definitions {
        publish(name, schema);
    }
    for kind in KINDS {
        if let Some(it) = definitions.get_mut(&kind.definition()).and_then(Value::as_object_mut) {
            let gvk = json!([{"group": kind.group, "kind": kind.kind, "version": kind.version}]);
            it.insert("x-kubernetes-group-version-kind".into(), gvk);
        }
    }
    definitions
}

fn publish(name: &str, schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    match name {
        builtin::INT_OR_STRING => {
            it.remove("x-kubernetes-int-or-string");
            it.insert("format".into(), json!("int-or-string"));
            it.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        builtin::QUANTITY => {
            it.remove("x-kubernetes-int-or-string");
            it.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
        }
        // Whatever JSON there is.
        _ if name.rsplit('.').next().is_some_and(|it| it == "JSON" || it.starts_with("JSONSchemaPropsOr")) => {
            it.remove("type");
            it.remove("oneOf");
        }
        _ => {}
    }
    let known = builtin::schema(name);
    let node = known.as_ref().map(|schema| schema.root());
    if let Some(properties) = it.get_mut("properties").and_then(Value::as_object_mut) {
        for (field, schema) in properties.iter_mut() {
            wrap_ref(schema);
            if let (Some(known), Some(schema)) =
                (node.and_then(|node| node.fields.get(field.as_str())), schema.as_object_mut())
            {
                let below = known.link.node();
                lists(schema, below);
                choices(schema, below);
                for (key, below) in [("items", below.items()), ("additionalProperties", below.child(""))] {
                    if let (Some(below), Some(schema)) = (below, schema.get_mut(key).and_then(Value::as_object_mut)) {
                        choices(schema, below);
                    }
                }
                if let Some(patch) = &known.patch {
                    strategy(schema, patch);
                }
            }
        }
    }
    // k8s-openapi makes mandatory what Rust always has; Kubernetes does not.
    if let Some(node) = node {
        match node.checks.as_ref().map(|checks| checks.required.as_slice()) {
            Some(required @ [_, ..]) => it.insert("required".into(), json!(required)),
            _ => it.remove("required"),
        };
    }
    if node.is_some_and(|node| node.atomic) {
        it.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
}

/// The values that a field may have, which `kubectl explain` lists.
fn choices(schema: &mut Map<String, Value>, node: &Node) {
    if let Some(checks) = &node.checks
        && node.name.is_none()
        && !checks.choices.is_empty()
    {
        schema.insert("enum".into(), json!(checks.choices));
    }
}

/// OpenAPI v3.0 ignores what stands beside a `$ref`, so a reference with a description becomes `allOf`.
fn wrap_ref(schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    if it.len() > 1
        && let Some(target) = it.remove("$ref")
    {
        it.insert("allOf".into(), json!([{"$ref": target}]));
    }
}

fn lists(schema: &mut Map<String, Value>, node: &Node) {
    match &node.list {
        _ if node.items.is_none() => {}
        List::Atomic => {
            schema.insert("x-kubernetes-list-type".into(), json!("atomic"));
        }
        List::Set => {
            schema.insert("x-kubernetes-list-type".into(), json!("set"));
        }
        List::Map(keys) => {
            schema.insert("x-kubernetes-list-type".into(), json!("map"));
            schema.insert("x-kubernetes-list-map-keys".into(), keys.iter().map(|key| json!(key)).collect());
        }
    }
    // A type that is atomic says so itself; only a plain map says it at the field.
    if node.atomic && node.name.is_none() {
        schema.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
}

fn strategy(schema: &mut Map<String, Value>, patch: &Patch) {
    let words: Vec<&str> =
        patch.merge.then_some("merge").into_iter().chain(patch.retain_keys.then_some("retainKeys")).collect();
    if !words.is_empty() {
        schema.insert("x-kubernetes-patch-strategy".into(), json!(words.join(",")));
    }
    if let Some(key) = &patch.key {
        schema.insert("x-kubernetes-patch-merge-key".into(), json!(key));
    }
}
