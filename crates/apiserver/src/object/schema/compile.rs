//! From OpenAPI to nodes. Lenient: what is wrong with a schema is said by `check`, before anybody uses the node.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::rules::{self, Rules};
use super::{Additional, Checks, Field, Go, Kind, Link, List, Node, Patch, Pattern, builtin};

/// `inherited`: an ancestor preserves unknown fields, which for server-side apply goes for all below it.
pub(super) fn node(openapi: &Value, inherited: bool) -> Node {
    let empty = Map::new();
    let from = openapi.as_object().unwrap_or(&empty);
    let flag = |key: &str| from.get(key) == Some(&Value::Bool(true));
    let preserve_unknown = flag("x-kubernetes-preserve-unknown-fields");
    let inherited = inherited || preserve_unknown;
    let int_or_string = flag("x-kubernetes-int-or-string") || text(from, "format") == Some("int-or-string");
    let kind = match text(from, "type") {
        _ if int_or_string => Kind::Any,
        Some("object") => Kind::Object,
        Some("array") => Kind::Array,
        Some("string") => Kind::String,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        _ => Kind::Any,
    };
    let fields: indexmap::IndexMap<Box<str>, Field> =
        object(from, "properties").map(|(name, schema)| (name.as_str().into(), field(schema, inherited))).collect();
    let additional = match from.get("additionalProperties") {
        None | Some(Value::Null) => Additional::None,
        Some(Value::Bool(true)) => Additional::Any,
        Some(Value::Bool(false)) => Additional::Forbidden,
        Some(schema) => Additional::Schema(link(schema, inherited)),
    };
    let items = from.get("items").filter(|i| i.is_object()).map(|i| link(i, inherited));
    let rules = Rules::read(from.get("x-kubernetes-validations"));
    let ruled = rules.is_some()
        || fields.values().any(|it| rules::below(&it.link))
        || items.as_ref().is_some_and(rules::below)
        || matches!(&additional, Additional::Schema(link) if rules::below(link));
    Node {
        name: None,
        kind,
        nullable: flag("nullable"),
        int_or_string,
        embedded: flag("x-kubernetes-embedded-resource"),
        preserve_unknown,
        deduce_unknown: matches!(additional, Additional::Any)
            || matches!(additional, Additional::None) && (inherited || fields.is_empty()),
        atomic: text(from, "x-kubernetes-map-type") == Some("atomic"),
        fields,
        additional,
        items,
        list: list(from),
        format: text(from, "format").filter(|f| !f.is_empty()).map(Into::into),
        default: from.get("default").filter(|d| !d.is_null()).cloned(),
        checks: checks(from),
        go: from.get("x-go").map(|go| Box::new(shape(go))),
        rules,
        ruled,
    }
}

fn shape(go: &Value) -> Go {
    let names = |key: &str| {
        go.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect()
    };
    Go { always: names("a"), structs: names("s"), pointers: names("p") }
}

fn text<'a>(from: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    from.get(key).and_then(Value::as_str)
}

fn object<'a>(from: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    from.get(key).and_then(Value::as_object).into_iter().flatten()
}

fn array<'a>(from: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    from.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn link(openapi: &Value, inherited: bool) -> Link {
    let target = openapi.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next());
    match target.and_then(builtin::id) {
        Some(id) => Link::Builtin(id),
        None => Link::Own(Arc::new(node(openapi, inherited))),
    }
}

fn field(openapi: &Value, inherited: bool) -> Field {
    let strategy = openapi.get("x-kubernetes-patch-strategy").and_then(Value::as_str);
    let patch = strategy.map(|strategy| {
        Box::new(Patch {
            merge: strategy.split(',').any(|s| s == "merge"),
            retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
            key: openapi.get("x-kubernetes-patch-merge-key").and_then(Value::as_str).map(Into::into),
        })
    });
    let default = openapi.get("default").filter(|_| openapi.get("$ref").is_some()).cloned();
    Field { link: link(openapi, inherited), default, patch }
}

/// List types of server-side apply. Built-in kinds that name none have the one that their patch strategy implies.
fn list(from: &Map<String, Value>) -> List {
    match text(from, "x-kubernetes-list-type") {
        Some("set") => List::Set,
        Some("map") => List::Map(
            array(from, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(Into::into).collect(),
        ),
        Some(_) => List::Atomic,
        None => match (text(from, "x-kubernetes-patch-strategy"), text(from, "x-kubernetes-patch-merge-key")) {
            (Some("merge" | "merge,retainKeys"), Some(key)) => List::Map(Box::new([key.into()])),
            (Some("merge" | "merge,retainKeys"), None) => List::Set,
            _ => List::Atomic,
        },
    }
}

fn checks(from: &Map<String, Value>) -> Option<Box<Checks>> {
    const KEYS: &[&str] = &[
        "required",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
    ];
    if !KEYS.iter().any(|key| from.contains_key(*key)) {
        return None;
    }
    let flag = |key: &str| from.get(key) == Some(&Value::Bool(true));
    let count = |key: &str| from.get(key).and_then(Value::as_i64);
    let number = |key: &str| from.get(key).and_then(Value::as_f64);
    let nodes = |key: &str| array(from, key).iter().map(|schema| node(schema, false)).collect();
    Some(Box::new(Checks {
        required: array(from, "required").iter().filter_map(Value::as_str).map(Into::into).collect(),
        choices: array(from, "enum").to_vec(),
        pattern: text(from, "pattern").filter(|p| !p.is_empty()).map(Pattern::new),
        minimum: number("minimum"),
        exclusive_minimum: flag("exclusiveMinimum"),
        maximum: number("maximum"),
        exclusive_maximum: flag("exclusiveMaximum"),
        multiple_of: number("multipleOf"),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        all_of: nodes("allOf"),
        any_of: nodes("anyOf"),
        one_of: nodes("oneOf"),
        not: from.get("not").filter(|n| n.is_object()).map(|n| Box::new(node(n, false))),
    }))
}
