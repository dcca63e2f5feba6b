//! Whether a CRD's schema is structural and means what it says, in the words of `apiextensions-apiserver`.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{Node, Schema, compile, pattern, rulecheck, rules};
use crate::object::FieldError;
use crate::object::field::ERRORS_MAX;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// All that is wrong with `openapi`, which was compiled to `schema`; `path` is where it stands.
pub(super) fn structural(openapi: &Value, schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let Some(root) = openapi.as_object() else {
        return vec![FieldError::required(path, "schemas are required")];
    };
    if flag(root, "nullable") {
        errors.push(FieldError::forbidden(format!("{path}.nullable"), "nullable cannot be true at the root"));
    }
    let unsupported = unsupported(root);
    let mut found = Vec::new();
    if unsupported.is_none() {
        invariants(root, Level::Root, path, &mut found);
        complete(root, Some(root), path, path, &mut found);
        if found.is_empty() {
            defaults(root, schema.root(), path, Place { embedded: true, inside_meta: false }, &mut found);
        } else {
            found.sort_by_key(ToString::to_string);
        }
    }
    errors.extend(found);
    let defaults = Defaults { forbidden: None, inside_meta: false };
    standard(root, path, true, &defaults, &mut errors);
    match unsupported {
        Some(said) if errors.is_empty() => errors.push(FieldError::invalid_str(path, "", &said)),
        None if errors.is_empty() => errors.extend(rulecheck::rules(root, schema.root(), path)),
        _ => {}
    }
    let mut seen = HashSet::new();
    errors.retain(|e| seen.insert(e.to_string()));
    errors.truncate(ERRORS_MAX);
    errors
}

/// The first keyword that keeps a schema from being looked at as a structural one.
fn unsupported(schema: &Map<String, Value>) -> Option<String> {
    let set = |key: &str| match schema.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Object(map)) => !map.is_empty() || key == "additionalItems",
        Some(_) => true,
    };
    let keywords = ["id", "schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
    if let Some(key) = keywords.into_iter().find(|key| set(key)) {
        return Some(format!("OpenAPIV3Schema '{key}' is not supported"));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        return Some("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".to_owned());
    }
    let named = children(schema, "properties").map(|(_, child)| child);
    let listed = ["allOf", "anyOf", "oneOf"].into_iter().flat_map(|key| list(schema, key).map(|(_, child)| child));
    let single = ["items", "additionalProperties", "not"].into_iter().filter_map(|key| object(schema, key));
    named.chain(listed).chain(single).find_map(unsupported)
}

fn flag(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

fn text<'a>(schema: &'a Map<String, Value>, key: &str) -> &'a str {
    schema.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn object<'a>(schema: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    schema.get(key).and_then(Value::as_object)
}

fn children<'a>(
    schema: &'a Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = (&'a String, &'a Map<String, Value>)> {
    object(schema, key).into_iter().flatten().filter_map(|(name, value)| Some((name, value.as_object()?)))
}

fn list<'a>(schema: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = (usize, &'a Map<String, Value>)> {
    let items = schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().enumerate().filter_map(|(i, value)| Some((i, value.as_object()?)))
}

fn names<'a>(schema: &'a Map<String, Value>, key: &str) -> Vec<&'a str> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn given(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key).is_some_and(|v| !v.is_null())
}

/// What every structural schema keeps to, wherever it stands.
fn invariants(schema: &Map<String, Value>, level: Level, path: &str, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    if kind == "array" && !given(schema, "items") {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    }
    if let Some(items) = object(schema, "items") {
        invariants(items, Level::Item, &format!("{path}.items"), errors);
    }
    for (name, child) in children(schema, "properties") {
        invariants(child, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    let additional = schema.get("additionalProperties").filter(|a| !a.is_null());
    let at = format!("{path}.additionalProperties");
    if additional.is_some() && level == Level::Root {
        errors.push(FieldError::forbidden(&at, "must not be used at the root"));
    }
    if let Some(child) = additional.and_then(Value::as_object) {
        invariants(child, Level::Field, &at, errors);
    }
    let (free, choice, embedded) = (
        flag(schema, "x-kubernetes-preserve-unknown-fields"),
        flag(schema, "x-kubernetes-int-or-string"),
        flag(schema, "x-kubernetes-embedded-resource"),
    );
    for (key, set) in [("x-kubernetes-preserve-unknown-fields", free), ("x-kubernetes-embedded-resource", embedded)] {
        if choice && set {
            let said = "must be false if x-kubernetes-int-or-string is true";
            errors.push(FieldError::invalid(format!("{path}.{key}"), &Value::Bool(true), said));
        }
    }
    values(schema, is_int_or_string(schema.get("anyOf")), is_int_or_string_all_of(schema), path, errors);
    let at = format!("{path}.type");
    if embedded && kind != "object" {
        let said = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match kind {
            "" => FieldError::required(at, said),
            kind => FieldError::invalid_str(at, kind, said),
        });
    } else if kind.is_empty() && !choice && !free {
        let said = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(FieldError::required(at, said));
    } else if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(FieldError::invalid_str(at, kind, "must be object at the root"));
    }
    if embedded && additional.is_some() {
        let said = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(FieldError::forbidden(format!("{path}.additionalProperties"), said));
    }
    resource(schema, level, embedded, path, errors);
    if embedded && !free && object(schema, "properties").is_none_or(Map::is_empty) {
        let said =
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.push(FieldError::required(format!("{path}.properties"), said));
    }
}

/// `apiVersion`, `kind` and `metadata` are Kubernetes' own.
fn resource(schema: &Map<String, Value>, level: Level, embedded: bool, path: &str, errors: &mut Vec<FieldError>) {
    let root = level == Level::Root;
    for (name, child) in children(schema, "properties") {
        let kind = text(child, "type");
        let at = format!("{path}.properties[{name}]");
        match name.as_str() {
            "kind" | "apiVersion" if (root || embedded) && kind != "string" => {
                errors.push(FieldError::invalid_str(format!("{at}.type"), kind, "must be string"));
            }
            "metadata" if root || embedded => {
                if kind != "object" {
                    errors.push(FieldError::invalid_str(format!("{at}.type"), kind, "must be object"));
                }
                let allowed = |key: &str| matches!(key, "type" | "default" | "properties" | "description" | "title");
                let only = object(child, "properties")
                    .is_none_or(|p| p.keys().all(|k| matches!(k.as_str(), "name" | "generateName")));
                let described = given(child, "description") || given(child, "title");
                if root && (!only || described || child.iter().any(|(k, v)| !allowed(k) && !v.is_null())) {
                    let said = "must not specify anything other than name and generateName, but metadata is implicitly specified";
                    errors.push(FieldError::forbidden(at, said));
                }
            }
            _ => {}
        }
    }
}

fn is_int_or_string(any_of: Option<&Value>) -> bool {
    any_of == Some(&json!([{"type": "integer"}, {"type": "string"}]))
}

fn is_int_or_string_all_of(schema: &Map<String, Value>) -> bool {
    list(schema, "allOf").next().is_some_and(|(i, first)| i == 0 && is_int_or_string(first.get("anyOf")))
}

fn values(schema: &Map<String, Value>, skip_any: bool, skip_all: bool, path: &str, errors: &mut Vec<FieldError>) {
    if !skip_any {
        list(schema, "anyOf").for_each(|(i, s)| nested(s, false, &format!("{path}.anyOf[{i}]"), errors));
    }
    list(schema, "allOf").for_each(|(i, s)| nested(s, skip_all && i == 0, &format!("{path}.allOf[{i}]"), errors));
    list(schema, "oneOf").for_each(|(i, s)| nested(s, false, &format!("{path}.oneOf[{i}]"), errors));
    if let Some(not) = object(schema, "not") {
        nested(not, false, &format!("{path}.not"), errors);
    }
    let expression = text(schema, "pattern");
    if let Err(why) = if expression.is_empty() { Ok(()) } else { pattern::compile(expression).map(|_| ()) } {
        let said = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(FieldError::invalid_str(format!("{path}.pattern"), expression, &said));
    }
}

/// A schema within `anyOf` and its like: value validations and nothing else.
fn nested(schema: &Map<String, Value>, skip_any: bool, path: &str, errors: &mut Vec<FieldError>) {
    values(schema, skip_any, false, path, errors);
    if let Some(items) = object(schema, "items") {
        nested(items, false, &format!("{path}.items"), errors);
    }
    for (name, child) in children(schema, "properties") {
        let at = format!("{path}.properties[{name}]");
        nested(child, false, &at, errors);
        if name == "metadata" {
            errors.push(FieldError::forbidden(at, "must not be specified in a nested context"));
        }
    }
    let nonempty = |key: &str| match schema.get(key) {
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Bool(set)) => *set,
        _ => false,
    };
    for key in ["type", "title", "description", "x-kubernetes-list-map-keys", "x-kubernetes-validations"] {
        if nonempty(key) {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), "must be empty to be structural"));
        }
    }
    for key in [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ] {
        if nonempty(key) {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), "must be false to be structural"));
        }
    }
    let additional = schema.get("additionalProperties").is_some_and(|a| !a.is_null() && *a != Value::Bool(false));
    for (key, set) in [
        ("additionalProperties", additional),
        ("default", given(schema, "default")),
        ("x-kubernetes-list-type", given(schema, "x-kubernetes-list-type")),
        ("x-kubernetes-map-type", given(schema, "x-kubernetes-map-type")),
    ] {
        if set {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), "must be undefined to be structural"));
        }
    }
}

/// Every field that a nested validation speaks of is declared outside of it too.
fn complete(
    checks: &Map<String, Value>,
    schema: Option<&Map<String, Value>>,
    at: &str,
    from: &str,
    errors: &mut Vec<FieldError>,
) {
    let Some(schema) = schema else {
        errors.push(FieldError::required(at, &format!("because it is defined in {from}")));
        return;
    };
    let mut parts: Vec<(String, &Map<String, Value>)> = Vec::new();
    parts.extend(object(checks, "not").map(|not| (format!("{from}.not"), not)));
    for key in ["allOf", "anyOf", "oneOf"] {
        parts.extend(list(checks, key).map(|(i, part)| (format!("{from}.{key}[{i}]"), part)));
    }
    for (from, part) in parts {
        complete(part, Some(schema), at, &from, errors);
        if let Some(items) = object(part, "items") {
            complete_nested(items, object(schema, "items"), &format!("{at}.items"), &format!("{from}.items"), errors);
        }
        for (name, child) in children(part, "properties") {
            let below = object(schema, "properties").and_then(|p| p.get(name)).and_then(Value::as_object);
            let (at, from) = (format!("{at}.properties[{name}]"), format!("{from}.properties[{name}]"));
            complete_nested(child, below, &at, &from, errors);
        }
    }
}

fn complete_nested(
    checks: &Map<String, Value>,
    schema: Option<&Map<String, Value>>,
    at: &str,
    from: &str,
    errors: &mut Vec<FieldError>,
) {
    // A nested validation is walked like a part of its own field.
    let wrapped = json!({"allOf": [checks]});
    let before = errors.len();
    complete(wrapped.as_object().unwrap_or(checks), schema, at, from, errors);
    for error in errors.iter_mut().skip(before) {
        error.body = error.body.replace(&format!("{from}.allOf[0]"), from);
    }
}

#[derive(Clone, Copy)]
struct Place {
    embedded: bool,
    inside_meta: bool,
}

/// Defaults are pruned and valid; those below `additionalProperties` are not looked at upstream either.
fn defaults(schema: &Map<String, Value>, node: &Node, path: &str, place: Place, errors: &mut Vec<FieldError>) {
    let embedded = place.embedded || flag(schema, "x-kubernetes-embedded-resource");
    if let Some(default) = schema.get("default").filter(|d| !d.is_null() && !place.inside_meta) {
        let at = format!("{path}.default");
        let own = Schema {
            root: super::Link::Own(std::sync::Arc::new(compile::node(&Value::Object(schema.clone()), false))),
            custom: false,
        };
        let mut pruned = default.clone();
        own.prune(&mut pruned);
        if pruned != *default {
            errors.push(FieldError::invalid(&at, default, "must not have unknown fields"));
        }
        errors.extend(own.validate(default, None).0.into_iter().map(|mut e| {
            let inside = if e.path == "<nil>" { String::new() } else { format!(".{}", e.path) };
            e.path = format!("{at}{inside}");
            e
        }));
    }
    if let (Some(items), Some(below)) = (object(schema, "items"), node.items()) {
        defaults(items, below, &format!("{path}.items"), Place { embedded: false, ..place }, errors);
    }
    for (name, child) in children(schema, "properties") {
        let inside_meta = place.inside_meta || embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        let Some(below) = node.child(name) else { continue };
        defaults(child, below, &format!("{path}.properties[{name}]"), Place { embedded: false, inside_meta }, errors);
    }
}

#[derive(Clone)]
struct Defaults {
    /// Why none may be here.
    forbidden: Option<String>,
    inside_meta: bool,
}

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// What `ValidateCustomResourceDefinitionOpenAPISchema` checks: keywords that are not supported, and how those of
/// Kubernetes go together.
fn standard(schema: &Map<String, Value>, path: &str, root: bool, rules: &Defaults, errors: &mut Vec<FieldError>) {
    keywords(schema, path, rules, errors);
    if flag(schema, "uniqueItems") {
        let said = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(FieldError::forbidden(format!("{path}.uniqueItems"), said));
    }
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let has_properties = object(schema, "properties").is_some_and(|p| !p.is_empty());
    let at = format!("{path}.additionalProperties");
    match schema.get("additionalProperties") {
        Some(Value::Object(_) | Value::Bool(false)) if has_properties => {
            errors.push(FieldError::forbidden(&at, "additionalProperties and properties are mutual exclusive"));
        }
        _ => {}
    }
    if let Some(child) = object(schema, "additionalProperties") {
        let mut below = rules.clone();
        if rules.inside_meta {
            below.forbidden = Some("inside additionalProperties applying to object metadata".into());
        }
        standard(child, &at, false, &below, errors);
    }
    for (name, child) in children(schema, "properties") {
        let mut below = rules.clone();
        if (root || embedded) && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
            below.inside_meta = true;
            if root {
                below.forbidden = Some(format!("in top-level {name}"));
            }
        }
        standard(child, &format!("{path}.properties[{name}]"), false, &below, errors);
    }
    if let Some(not) = object(schema, "not") {
        standard(not, &format!("{path}.not"), false, rules, errors);
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        list(schema, key).for_each(|(i, s)| standard(s, &format!("{path}.{key}[{i}]"), false, rules, errors));
    }
    if let Some(items) = object(schema, "items") {
        standard(items, &format!("{path}.items"), false, rules, errors);
    }
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if schema.get(preserve) == Some(&Value::Bool(false)) {
        let said = "must be true or undefined";
        errors.push(FieldError::invalid(format!("{path}.{preserve}"), &Value::Bool(false), said));
    }
    map_type(schema, path, errors);
    list_type(schema, path, errors);
    validations(schema, path, errors);
}

fn keywords(schema: &Map<String, Value>, path: &str, rules: &Defaults, errors: &mut Vec<FieldError>) {
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{path}.type"), &Value::from(kind), TYPES));
    }
    if let (Some(why), true) = (&rules.forbidden, given(schema, "default")) {
        errors.push(FieldError::forbidden(format!("{path}.default"), &format!("must not be set {why}")));
    }
    for key in ["id", "additionalItems", "patternProperties", "definitions", "dependencies", "$ref"] {
        let set = schema.get(key).is_some_and(|v| match v {
            Value::Null => false,
            Value::String(s) => key == "$ref" || !s.is_empty(),
            Value::Object(map) => !map.is_empty() || matches!(key, "additionalItems" | "dependencies"),
            _ => true,
        });
        if set {
            errors.push(FieldError::forbidden(format!("{path}.{key}"), &format!("{key} is not supported")));
        }
    }
    if kind == "null" {
        let said = "type cannot be set to null, use nullable as an alternative";
        errors.push(FieldError::forbidden(format!("{path}.type"), said));
    }
    if schema.get("items").is_some_and(Value::is_array) {
        let said = "items must be a schema object and not an array";
        errors.push(FieldError::forbidden(format!("{path}.items"), said));
    }
    if rules.inside_meta && flag(schema, "x-kubernetes-embedded-resource") {
        let said = "must not be used inside of resource meta";
        errors.push(FieldError::forbidden(format!("{path}.x-kubernetes-embedded-resource"), said));
    }
}

/// A type that another keyword asks for.
fn needs_type(
    schema: &Map<String, Value>,
    want: &str,
    keyword: &str,
    path: &str,
    errors: &mut Vec<FieldError>,
) -> bool {
    let kind = text(schema, "type");
    if kind == want {
        return true;
    }
    let said = format!("must be {want} if {keyword} is specified");
    let at = format!("{path}.type");
    errors.push(if kind.is_empty() {
        FieldError::required(at, &said)
    } else {
        FieldError::invalid_str(at, kind, &said)
    });
    false
}

fn map_type(schema: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    const KEY: &str = "x-kubernetes-map-type";
    let Some(map) = schema.get(KEY).filter(|v| !v.is_null()) else { return };
    needs_type(schema, "object", KEY, path, errors);
    if !matches!(map.as_str(), Some("atomic" | "granular")) {
        errors.push(FieldError::not_supported(format!("{path}.{KEY}"), map, &["atomic", "granular"]));
    }
}

fn list_type(schema: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    const KEY: &str = "x-kubernetes-list-type";
    const KEYS: &str = "x-kubernetes-list-map-keys";
    let given_type = schema.get(KEY).filter(|v| !v.is_null());
    let list = given_type.and_then(Value::as_str).unwrap_or_default();
    let items = object(schema, "items");
    let keys = names(schema, KEYS);
    if given_type.is_some() && needs_type(schema, "array", KEY, path, errors) && list == "set" {
        let said = "must be atomic as item of a list with x-kubernetes-list-type=set";
        match items.map(|items| (text(items, "type"), items)) {
            Some(("array", items)) if !matches!(text(items, KEY), "" | "atomic") => {
                errors.push(FieldError::invalid_str(format!("{path}.items.{KEY}"), text(items, KEY), said));
            }
            Some(("object", items)) if text(items, "x-kubernetes-map-type") != "atomic" => {
                let shown = items.get(KEY).unwrap_or(&Value::Null);
                errors.push(FieldError::invalid(format!("{path}.items.x-kubernetes-map-type"), shown, said));
            }
            _ => {}
        }
    }
    if let Some(value) = given_type.filter(|_| !matches!(list, "atomic" | "set" | "map")) {
        errors.push(FieldError::not_supported(format!("{path}.{KEY}"), value, &["atomic", "set", "map"]));
    }
    if !keys.is_empty() && list != "map" {
        let said = "must be map if x-kubernetes-list-map-keys is non-empty";
        errors.push(match given_type {
            None => FieldError::required(format!("{path}.{KEY}"), said),
            Some(value) => FieldError::invalid(format!("{path}.{KEY}"), value, said),
        });
    }
    if list == "map" {
        list_map(schema, items, &keys, path, errors);
    }
    if let (Some(items), "set" | "map") = (items, list) {
        if flag(items, "nullable") {
            let said = format!("cannot be nullable when x-kubernetes-list-type is {list}");
            errors.push(FieldError::forbidden(format!("{path}.items.nullable"), &said));
        }
        for key in keys.iter().filter(|_| list == "map") {
            let Some(property) = object(items, "properties").and_then(|p| p.get(*key)).and_then(Value::as_object)
            else {
                continue;
            };
            let at = format!("{path}.items.properties[{key}]");
            if !names(items, "required").contains(key) && !given(property, "default") {
                let said = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                errors.push(FieldError::required(format!("{at}.default"), said));
            }
            if flag(property, "nullable") {
                let said = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                errors.push(FieldError::forbidden(format!("{at}.nullable"), said));
            }
        }
    }
}

fn list_map(
    schema: &Map<String, Value>,
    items: Option<&Map<String, Value>>,
    keys: &[&str],
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    const KEYS: &str = "x-kubernetes-list-map-keys";
    if keys.is_empty() {
        let said = "must not be empty if x-kubernetes-list-type is map";
        errors.push(FieldError::required(format!("{path}.{KEYS}"), said));
    }
    let Some(items) = items else {
        if !given(schema, "items") {
            errors.push(FieldError::required(
                format!("{path}.items"),
                "must have a schema if x-kubernetes-list-type is map",
            ));
        }
        return;
    };
    if text(items, "type") != "object" {
        let said = "must be object if parent array's x-kubernetes-list-type is map";
        errors.push(FieldError::invalid_str(format!("{path}.items.type"), text(items, "type"), said));
        return;
    }
    let mut seen = HashSet::new();
    for key in keys {
        let shown = json!(keys);
        match object(items, "properties").and_then(|p| p.get(*key)).and_then(Value::as_object) {
            Some(property) if matches!(text(property, "type"), "array" | "object") => {
                let said = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.push(FieldError::invalid_str(format!("{path}.items.properties[{key}].type"), "object", said));
            }
            Some(_) => {}
            None => errors.push(FieldError::invalid(
                format!("{path}.{KEYS}"),
                &shown,
                "entries must all be names of item properties",
            )),
        }
        if !seen.insert(*key) {
            errors.push(FieldError::invalid(format!("{path}.{KEYS}"), &shown, "must not contain duplicate entries"));
        }
    }
}

/// The form of `x-kubernetes-validations`; whether they compile is checked when all else is right.
fn validations(schema: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
    let mut node = None;
    for (i, rule) in list(schema, "x-kubernetes-validations") {
        let at = format!("{path}.x-kubernetes-validations[{i}]");
        let (source, message) = (text(rule, "rule").trim(), text(rule, "message"));
        let newline = |s: &str| s.contains(['\n', '\r']);
        if source.is_empty() {
            errors.push(FieldError::required(format!("{at}.rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(FieldError::invalid_str(format!("{at}.message"), message, "must be non-empty if specified"));
        } else if newline(message.trim()) {
            errors.push(FieldError::invalid_str(format!("{at}.message"), message, "must not contain line breaks"));
        } else if newline(source) && message.trim().is_empty() {
            errors.push(FieldError::required(
                format!("{at}.message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        let expression = text(rule, "messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let said = "messageExpression must be non-empty if specified";
            errors.push(FieldError::required(format!("{at}.messageExpression"), said));
        }
        if let Some(reason) = rule.get("reason").filter(|r| !r.as_str().is_none_or(|r| REASONS.contains(&r))) {
            errors.push(FieldError::not_supported(format!("{at}.reason"), reason, REASONS));
        }
        let field = text(rule, "fieldPath");
        if !field.is_empty() {
            let mut wrong = |said: &str| errors.push(FieldError::invalid_str(format!("{at}.fieldPath"), field, said));
            if field.trim().is_empty() {
                wrong("must be non-empty if specified");
            }
            if newline(field) {
                wrong("must not contain line breaks");
            }
            let node = node.get_or_insert_with(|| compile::node(&Value::Object(schema.clone()), false));
            if rules::field_path(field, node, true).is_err() {
                wrong("must be a valid path");
            }
        }
    }
}
