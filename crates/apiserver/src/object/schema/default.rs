//! Defaulting, in Kubernetes' order: a missing (or wrongly null) field gets its default, then the walk goes on inside it.

use serde_json::Value;

use super::{Additional, Node, Schema};

impl Schema {
    /// Sets defaults, also inside defaults; a null where none is allowed gets the default, or goes when there is none.
    /// For custom resources; built-in kinds have their defaults in `builtin`.
    pub(crate) fn default(&self, object: &mut Value) {
        prune_nulls(object, Some(self.root()));
        set(object, self.root());
    }
}

fn is_stray_null(value: &Value, node: &Node) -> bool {
    value.is_null() && !node.nullable
}

fn set(value: &mut Value, node: &Node) {
    match value {
        Value::Object(map) => {
            for (name, field) in &node.fields {
                let child = field.link.node();
                let Some(default) = &child.default else { continue };
                match map.get_mut(&**name) {
                    Some(value) if is_stray_null(value, child) => *value = default.clone(),
                    Some(_) => {}
                    None => {
                        map.insert(name.to_string(), default.clone());
                    }
                }
            }
            for (key, value) in map.iter_mut() {
                match (node.fields.get(key.as_str()), &node.additional) {
                    (Some(field), _) => set(value, field.link.node()),
                    (None, Additional::Schema(link)) => set_item(value, link.node()),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = node.items() {
                items.iter_mut().for_each(|item| set_item(item, node));
            }
        }
        _ => {}
    }
}

fn set_item(value: &mut Value, node: &Node) {
    if is_stray_null(value, node)
        && let Some(default) = &node.default
    {
        *value = default.clone();
    }
    set(value, node);
}

fn prune_nulls(value: &mut Value, node: Option<&Node>) {
    match value {
        Value::Object(map) => {
            let stray = |key: &str, value: &Value| {
                node.and_then(|n| n.child(key)).is_some_and(|n| is_stray_null(value, n) && n.default.is_none())
            };
            if map.iter().any(|(key, value)| stray(key, value)) {
                map.retain(|key, value| !stray(key, value));
            }
            for (key, value) in map.iter_mut() {
                prune_nulls(value, node.and_then(|n| n.child(key)));
            }
        }
        Value::Array(items) => {
            let node = node.and_then(Node::items);
            items.iter_mut().for_each(|item| prune_nulls(item, node));
        }
        _ => {}
    }
}
