//! What rules in CEL know of a schema: Kubernetes' `SchemaDeclType`.

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::{Additional, Kind, Link, List, Node, Schema};
use crate::cel::{Decl, Order, RESERVED, Shape, Slot};
use crate::object::builtin;

/// The largest request, for what has no bounds of its own.
const REQUEST_MAX: u64 = 3 * 1024 * 1024;

/// The name of a field in CEL; `None` when it cannot be written there.
pub(super) fn escape(name: &str) -> Option<String> {
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (step, written) = match c {
            '_' if rest.starts_with("__") => (2, "__underscores__"),
            '.' => (1, "__dot__"),
            '-' => (1, "__dash__"),
            '/' => (1, "__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => (1, ""),
            _ => return None,
        };
        if written.is_empty() {
            out.push(c)
        } else {
            out.push_str(written)
        }
        rest = rest.get(step..).unwrap_or_default();
    }
    Some(out)
}

/// A schema's declaration; `None` when rules cannot see values of it. `root`: it is the schema of a resource, which has
/// a type and metadata anyway. `path` names the object in errors.
pub(super) fn decl(node: &Node, root: bool, path: &str) -> Option<Arc<Decl>> {
    Maker { published: false, open: Vec::new() }.node(node, root, path)
}

impl Schema {
    /// The declaration of a kind's objects by the schema that is published of it, with all of their metadata.
    pub(crate) fn declared(&self, kind: &str) -> Option<Arc<Decl>> {
        Maker { published: true, open: Vec::new() }.node(self.root(), true, kind)
    }
}

struct Maker {
    /// Objects have all of Kubernetes' metadata, not their names alone.
    published: bool,
    /// The built-in definitions that are being looked at, which may refer to each other in circles.
    open: Vec<builtin::Id>,
}

impl Maker {
    fn below(&mut self, link: &Link, path: &str) -> Option<Arc<Decl>> {
        let node = link.node();
        let Link::Builtin(id) = link else { return self.node(node, node.embedded, path) };
        if self.open.contains(id) {
            return Some(Arc::new(Decl { name: path.into(), ..Decl::new(Shape::Object(IndexMap::new()), 0, 2) }));
        }
        self.open.push(*id);
        let made = self.node(node, node.embedded, path);
        self.open.pop();
        made
    }

    fn node(&mut self, node: &Node, root: bool, path: &str) -> Option<Arc<Decl>> {
        let checks = node.checks.as_deref();
        let length = checks.and_then(|it| it.max_length).map(|it| u64::try_from(it).unwrap_or_default());
        if node.int_or_string {
            return Some(Arc::new(Decl::new(Shape::Dyn, length.map_or(REQUEST_MAX - 2, |it| it.saturating_mul(4)), 1)));
        }
        let made = match node.kind {
            Kind::Any => return None,
            Kind::Boolean => Decl::new(Shape::Bool, 0, 4),
            Kind::Number => Decl::new(Shape::Double, 0, 1),
            Kind::Integer => Decl::new(Shape::Int, 0, 1),
            Kind::String => match node.format.as_deref() {
                Some("byte") => Decl::new(Shape::Bytes, length.unwrap_or(REQUEST_MAX - 2), 2),
                Some("duration") => Decl::new(Shape::Duration, 32, 3),
                Some("date") => Decl::new(Shape::Date, 12, 12),
                Some("date-time") => Decl::new(Shape::Timestamp, 32, 21),
                _ => {
                    let choices = checks.map(|it| it.choices.as_slice()).unwrap_or_default();
                    let longest = choices.iter().filter_map(Value::as_str).map(|it| it.len() as u64).max();
                    Decl::new(
                        Shape::Text,
                        length.map(|it| it.saturating_mul(4)).or(longest).unwrap_or(REQUEST_MAX - 2),
                        2,
                    )
                }
            },
            Kind::Array => {
                let item = self.below(node.items.as_ref()?, &format!("{path}.@idx"))?;
                let most = checks.and_then(|it| it.max_items).map(|it| u64::try_from(it).unwrap_or_default());
                let most = most.unwrap_or((REQUEST_MAX - 2) / (item.size_min + 1));
                let order = match &node.list {
                    List::Atomic => Order::Atomic,
                    List::Set => Order::Set,
                    List::Map(keys) => Order::Map(keys.clone()),
                };
                Decl::new(Shape::List(item, order), most, 2)
            }
            Kind::Object => match &node.additional {
                Additional::Schema(link) if !root => {
                    let value = self.below(link, &format!("{path}.@elem"))?;
                    let most = checks.and_then(|it| it.max_properties).map(|it| u64::try_from(it).unwrap_or_default());
                    let most = most.unwrap_or((REQUEST_MAX - 2) / (value.size_min + 6));
                    Decl::new(Shape::Map(value), most, 2)
                }
                _ => self.object(node, root, path),
            },
        };
        Some(Arc::new(made))
    }

    fn object(&mut self, node: &Node, root: bool, path: &str) -> Decl {
        let required = node.checks.as_ref().map(|it| it.required.as_slice()).unwrap_or_default();
        let mut fields: IndexMap<Box<str>, Slot> = IndexMap::new();
        let mut size_min = 2;
        for (name, field) in &node.fields {
            if root && matches!(&**name, "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let escaped = escape(name);
            let path = format!("{path}.{}", escaped.as_deref().unwrap_or_default());
            let Some(of) = self.below(&field.link, &path) else { continue };
            if required.iter().any(|it| it == name) && field.link.node().default.is_none() {
                size_min += name.len() as u64 + of.size_min + 4;
            }
            if let Some(escaped) = escaped {
                fields.insert(escaped.into(), Slot { json: name.clone(), decl: of });
            }
        }
        if root {
            let text = || Arc::new(Decl::new(Shape::Text, REQUEST_MAX - 2, 2));
            let slot = |name: &str, decl| (Box::from(name), Slot { json: name.into(), decl });
            let path = format!("{path}.metadata");
            let metadata = match builtin::object_meta().filter(|_| self.published) {
                Some(whole) => self.object(whole, false, &path),
                None => {
                    let inner = IndexMap::from([slot("name", text()), slot("generateName", text())]);
                    Decl { name: path.into(), ..Decl::new(Shape::Object(inner), 0, 2) }
                }
            };
            fields.extend([slot("apiVersion", text()), slot("kind", text()), slot("metadata", Arc::new(metadata))]);
        }
        Decl { name: path.into(), ..Decl::new(Shape::Object(fields), 0, size_min) }
    }
}
