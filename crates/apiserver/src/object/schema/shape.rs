//! What a built-in kind's object looks like after Go has read and printed it: zero values left out or put in as the
//! struct's tags say, quantities and times in their canonical form.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Additional, Go, Kind, Node, Schema};
use crate::object::{builtin, quantity};

impl Schema {
    /// Brings an object of a built-in kind into the form that the API server stores and prints. To be called again
    /// after fields were taken out by hand. Custom resources are left alone.
    pub(crate) fn shape(&self, object: &mut Value) {
        if !self.custom {
            shape(object, self.root());
        }
    }

    /// An object of a built-in kind with nothing in it, as Go prints it; `{}` for a custom resource.
    pub(crate) fn zero(&self) -> Value {
        if self.custom { Value::Object(Map::new()) } else { zero(self.root()) }
    }
}

pub(super) fn shape(value: &mut Value, node: &Node) {
    match (node.name, &mut *value) {
        (Some(builtin::QUANTITY), Value::String(text)) => {
            if let Ok(canonical) = quantity::canonical(text) {
                *text = canonical;
            }
        }
        (Some(builtin::QUANTITY), Value::Number(number)) => {
            if let Ok(canonical) = quantity::canonical(&number.to_string()) {
                *value = canonical.into();
            }
        }
        (Some(builtin::TIME), Value::String(text)) => retime(text, "%Y-%m-%dT%H:%M:%SZ"),
        (Some(builtin::MICRO_TIME), Value::String(text)) => retime(text, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        (Some(_), Value::Object(map)) if !node.fields.is_empty() => structure(map, node),
        (_, Value::Object(map)) => {
            if let Additional::Schema(link) = &node.additional {
                for value in map.values_mut() {
                    if value.is_null() {
                        *value = zero_scalar(link.node());
                    }
                    shape(value, link.node());
                }
            }
        }
        (_, Value::Array(items)) => {
            if let Some(node) = node.items() {
                items.iter_mut().for_each(|item| shape(item, node));
            }
        }
        _ => {}
    }
}

fn retime(text: &mut String, format: &str) {
    if let Ok(time) = text.parse::<Timestamp>() {
        *text = time.strftime(format).to_string();
    }
}

fn structure(map: &mut Map<String, Value>, node: &Node) {
    let none = Go::default();
    let go = node.go.as_deref().unwrap_or(&none);
    let is = |list: &[Box<str>], key: &str| list.iter().any(|name| **name == *key);
    map.retain(|key, value| {
        let Some(field) = node.fields.get(key.as_str()) else { return true };
        let child = field.link.node();
        // What is named is a struct or a value with a zero of its own: a pointer that is set.
        let kept = is(&go.always, key) || child.name.is_some();
        match value {
            Value::Null => is(&go.always, key),
            Value::String(text) => kept || is(&go.pointers, key) || !text.is_empty(),
            Value::Bool(set) => kept || is(&go.pointers, key) || *set,
            Value::Number(n) => kept || is(&go.pointers, key) || n.as_f64() != Some(0.0),
            // An empty list of managed fields is a request to wipe them.
            Value::Array(items) => kept || !items.is_empty() || key == "managedFields",
            Value::Object(fields) => kept || !fields.is_empty(),
        }
    });
    for (key, value) in map.iter_mut() {
        if let Some(field) = node.fields.get(key.as_str()) {
            shape(value, field.link.node());
            // Storage tells an empty list or map from none no more than protobuf does.
            let child = field.link.node();
            let empty = match value {
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty() && child.name.is_none(),
                _ => false,
            };
            if empty && key != "managedFields" {
                *value = Value::Null;
            }
        }
    }
    for key in go.structs.iter().chain(&go.always).filter(|_| node.go.is_some()) {
        if let Some(field) = node.fields.get(&**key)
            && !map.contains_key(&**key)
        {
            let child = field.link.node();
            map.insert(key.to_string(), if is(&go.structs, key) { zero(child) } else { zero_scalar(child) });
        }
    }
}

/// A struct with nothing in it.
fn zero(node: &Node) -> Value {
    match node.name {
        Some(builtin::QUANTITY) => return "0".into(),
        Some(builtin::INT_OR_STRING) => return 0.into(),
        Some(builtin::TIME | builtin::MICRO_TIME | builtin::RAW_EXTENSION) => return Value::Null,
        _ => {}
    }
    if node.kind != Kind::Object {
        return zero_scalar(node);
    }
    let mut map = Map::new();
    structure(&mut map, node);
    Value::Object(map)
}

fn zero_scalar(node: &Node) -> Value {
    match (node.kind, node.name) {
        (_, Some(builtin::QUANTITY)) => "0".into(),
        (Kind::String, _) => "".into(),
        (Kind::Boolean, _) => false.into(),
        (Kind::Integer | Kind::Number, _) => 0.into(),
        (Kind::Any | Kind::Array | Kind::Object, _) => Value::Null,
    }
}
