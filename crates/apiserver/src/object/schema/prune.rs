//! Pruning: what the schema does not declare is dropped, and named for `fieldValidation`.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::shape::shape;
use super::{Additional, Node, Schema};
use crate::object::builtin;
use crate::object::field::{self, ERRORS_MAX};

impl Schema {
    /// Drops what the schema does not know and returns the paths (`spec.foo`, `spec.list[0].bar`), sorted, as they stand
    /// in `unknown field "spec.foo"`; of very many only some. Objects of built-in kinds get the form that Go prints too.
    pub(crate) fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut pruner = Pruner { path: String::new(), unknown: Vec::new() };
        if self.custom {
            pruner.resource(object, self.root(), self.root().preserve_unknown);
        } else {
            pruner.value(object, Some(self.root()));
            self.shape(object);
        }
        let mut unknown = pruner.unknown;
        if self.custom {
            unknown.sort_unstable();
        }
        unknown
    }
}

/// Integers up to here are exact in a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

struct Pruner {
    path: String,
    unknown: Vec<String>,
}

impl Pruner {
    fn at(&mut self, key: &str, step: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(field::key(key));
        step(self);
        self.path.truncate(length);
    }

    fn note(&mut self, key: &str) {
        if self.unknown.len() < ERRORS_MAX {
            self.at(key, |this| this.unknown.push(this.path.clone()));
        }
    }

    /// `None`: nothing below is known. A list of scalars stays, its objects are emptied.
    fn value(&mut self, value: &mut Value, node: Option<&Node>) {
        self.value_in(value, node, node.is_some_and(|n| n.preserve_unknown));
    }

    /// `free`: what is not declared stays here, and in lists directly below.
    fn value_in(&mut self, value: &mut Value, node: Option<&Node>, free: bool) {
        match (value, node) {
            (value @ Value::Object(_), Some(node)) if node.embedded => self.resource(value, node, free),
            (Value::Object(map), Some(node)) => self.map(map, node, free, false),
            (Value::Object(_), None) if free => {}
            (Value::Object(map), None) => {
                for (key, _) in std::mem::take(map) {
                    self.note(&key);
                }
            }
            (Value::Array(items), node) => {
                let below = node.and_then(Node::items);
                let free = free || below.is_some_and(|n| n.preserve_unknown);
                for (i, item) in items.iter_mut().enumerate() {
                    let length = self.path.len();
                    let _ = write!(self.path, "[{i}]");
                    self.value_in(item, below, free);
                    self.path.truncate(length);
                }
            }
            (value @ Value::Number(_), _) => {
                // Go prints 2.0 as 2.
                if let Some(f) = value.as_f64().filter(|f| value.is_f64() && f.fract() == 0.0 && f.abs() < EXACT) {
                    #[allow(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
                    let whole = f as i64;
                    *value = whole.into();
                }
            }
            _ => {}
        }
    }

    /// An object with `apiVersion`, `kind` and `metadata` of its own: the custom resource, or one embedded in it.
    fn resource(&mut self, value: &mut Value, node: &Node, free: bool) {
        let Value::Object(map) = value else { return };
        if let (Some(metadata), Some(known)) = (map.get_mut("metadata"), builtin::object_meta()) {
            self.at("metadata", |this| this.value(metadata, Some(known)));
            shape(metadata, known);
            if metadata.get("managedFields").and_then(Value::as_array).is_some_and(Vec::is_empty) {
                metadata.as_object_mut().map(|m| m.shift_remove("managedFields"));
            }
        }
        self.map(map, node, free, true);
    }

    fn map(&mut self, map: &mut Map<String, Value>, node: &Node, free: bool, resource: bool) {
        let typeless = |key: &str| resource && matches!(key, "apiVersion" | "kind" | "metadata");
        let declared = |key: &str| node.child(key).is_some() || matches!(node.additional, Additional::Any);
        let mut any_unknown = false;
        for (key, value) in map.iter_mut().filter(|(key, _)| !typeless(key)) {
            match (node.child(key), &node.additional) {
                (Some(child), _) => self.at(key, |this| this.value(value, Some(child))),
                // `additionalProperties: true` says nothing about what is below, and so nothing below is known.
                (None, Additional::Any) => self.at(key, |this| this.value(value, None)),
                _ if !free && !declared(key) => {
                    any_unknown = true;
                    self.note(key);
                }
                _ => {}
            }
        }
        if any_unknown {
            map.retain(|key, _| typeless(key) || declared(key));
        }
    }
}
