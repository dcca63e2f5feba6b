//! The schemas of Kubernetes' own kinds, from `builtin.tsv` (made by `cargo xtask kube-tables`). Nothing is parsed until
//! it is asked for, and then one definition at a time, once.

use std::sync::{LazyLock, OnceLock};

use serde_json::Value;

use super::schema::{Node, Schema};

pub(crate) const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
pub(crate) const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
pub(crate) const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
pub(crate) const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
pub(crate) const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
pub(crate) const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";

/// A definition's line in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(usize);

struct Definition {
    name: &'static str,
    /// `apps/v1/Deployment`, empty for what is no kind.
    kind: &'static str,
    json: &'static str,
    node: OnceLock<Node>,
}

/// Sorted by name.
static TABLE: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    let lines = include_str!("builtin.tsv").lines();
    let split = |line: &'static str| {
        let mut columns = line.splitn(3, '\t');
        Some(Definition { name: columns.next()?, kind: columns.next()?, json: columns.next()?, node: OnceLock::new() })
    };
    lines.filter_map(split).collect()
});

pub(crate) fn id(name: &str) -> Option<Id> {
    TABLE.binary_search_by(|d| d.name.cmp(name)).ok().map(Id)
}

pub(crate) fn node(id: Id) -> &'static Node {
    static NOTHING: LazyLock<Node> = LazyLock::new(Node::default);
    let Some(definition) = TABLE.get(id.0) else { return &NOTHING };
    definition.node.get_or_init(|| {
        let openapi = serde_json::from_str(definition.json).unwrap_or(Value::Null);
        Schema::definition(&openapi, definition.name)
    })
}

/// A definition as the table has it.
pub(crate) fn openapi(definition: &str) -> Option<Value> {
    serde_json::from_str(TABLE.get(id(definition)?.0)?.json).ok()
}

/// The schema of a definition: `io.k8s.api.core.v1.ConfigMap`.
pub(crate) fn schema(definition: &str) -> Option<Schema> {
    id(definition).map(Schema::builtin)
}

/// The schema of a kind: `("apps", "v1", "Deployment")`.
pub(crate) fn schema_of(group: &str, version: &str, kind: &str) -> Option<Schema> {
    at(group, version, kind).map(|at| Schema::builtin(Id(at)))
}

/// The name of a kind's definition.
pub(crate) fn name_of(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    at(group, version, kind).and_then(|at| TABLE.get(at)).map(|it| it.name)
}

fn at(group: &str, version: &str, kind: &str) -> Option<usize> {
    let wanted = |d: &Definition| {
        let mut parts = d.kind.split('/');
        (parts.next(), parts.next(), parts.next()) == (Some(group), Some(version), Some(kind))
    };
    TABLE.iter().position(wanted)
}

/// The group, version and kind of a definition that is a kind.
pub(crate) fn kind_of(definition: &str) -> Option<(&'static str, &'static str, &'static str)> {
    let mut parts = TABLE.get(id(definition)?.0)?.kind.split('/');
    Some((parts.next()?, parts.next()?, parts.next()?))
}

/// The schema of `metadata`, the same for every kind.
pub(crate) fn object_meta() -> Option<&'static Node> {
    static ID: LazyLock<Option<Id>> = LazyLock::new(|| id(OBJECT_META));
    ID.map(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::schema::List;

    #[test]
    fn the_table_is_sorted_and_every_line_and_every_reference_in_it_is_good() {
        assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
        for definition in TABLE.iter() {
            let openapi: Value = serde_json::from_str(definition.json).unwrap();
            let mut open = vec![&openapi];
            while let Some(value) = open.pop() {
                match value {
                    Value::Object(map) => {
                        if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                            assert!(id(target).is_some(), "{} refers to {target}", definition.name);
                        }
                        open.extend(map.values());
                    }
                    Value::Array(items) => open.extend(items),
                    _ => {}
                }
            }
        }
        assert!(include_str!("builtin.tsv").len() < 600 << 10);
    }

    #[test]
    fn a_kind_is_found_by_its_group_version_and_kind() {
        let deployment = schema_of("apps", "v1", "Deployment").unwrap();
        assert_eq!(deployment.name(), Some("io.k8s.api.apps.v1.Deployment"));
        let template = deployment.root().child("spec").and_then(|s| s.child("template")).unwrap();
        let containers = template.child("spec").and_then(|s| s.child("containers")).unwrap();
        assert_eq!(containers.list, List::Map(Box::new(["name".into()])));
        assert!(schema_of("apps", "v1", "Nonesuch").is_none());
    }
}
