//! Structural schemas: one compact tree from a CRD's `openAPIV3Schema` or from a built-in definition, and what is done
//! with it: check types, prune, default, validate. `apply` and `patch` read their list and map rules from it too.

mod before;
mod check;
mod compile;
mod decl;
mod decode;
mod default;
pub(crate) mod format;
pub(crate) mod pattern;
mod prune;
mod rulecheck;
mod rules;
mod shape;
mod validate;

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::builtin;
use super::field::FieldError;

pub(crate) use pattern::Pattern;
pub(crate) use rules::{aside, field_path};

/// A compiled schema. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    root: Link,
    /// Whether the root is a custom resource, whose `metadata` is Kubernetes' own whatever the CRD says of it.
    custom: bool,
}

/// A node, shared or looked up among the built-in definitions (which may refer to each other in circles).
#[derive(Clone, Debug)]
pub(crate) enum Link {
    Own(Arc<Node>),
    Builtin(builtin::Id),
}

impl Link {
    pub(crate) fn node(&self) -> &Node {
        match self {
            Self::Own(node) => node,
            Self::Builtin(id) => builtin::node(*id),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No `type`: anything goes, or int-or-string.
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// One schema: what `pruning`, `defaulting`, `validation`, server-side apply and strategic merge need of it.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// The definition's name if it is a built-in one.
    pub(crate) name: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    pub(crate) embedded: bool,
    pub(crate) preserve_unknown: bool,
    /// For apply: fields that are not declared are allowed and their types deduced from the values.
    pub(crate) deduce_unknown: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub(crate) atomic: bool,
    pub(crate) fields: IndexMap<Box<str>, Field>,
    pub(crate) additional: Additional,
    pub(crate) items: Option<Link>,
    pub(crate) list: List,
    pub(crate) format: Option<Box<str>>,
    pub(crate) default: Option<Value>,
    pub(crate) checks: Option<Box<Checks>>,
    /// Of a built-in definition.
    pub(crate) go: Option<Box<Go>>,
    /// `x-kubernetes-validations`.
    pub(crate) rules: Option<Box<rules::Rules>>,
    /// Whether there are rules here or below.
    pub(crate) ruled: bool,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) link: Link,
    /// Of a built-in definition's field (a CRD's default belongs to the node).
    pub(crate) default: Option<Value>,
    pub(crate) patch: Option<Box<Patch>>,
}

/// How strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patch {
    pub(crate) merge: bool,
    pub(crate) retain_keys: bool,
    /// `x-kubernetes-patch-merge-key`.
    pub(crate) key: Option<Box<str>>,
}

/// How Go prints a struct: what does not follow from the types. Fields in no list are left out when they are zero.
#[derive(Debug, Default)]
pub(crate) struct Go {
    /// Printed even when they are zero.
    pub(crate) always: Vec<Box<str>>,
    /// Structs by value, always printed.
    pub(crate) structs: Vec<Box<str>>,
    /// Pointers to scalars: left out when they are nil, not when they are zero.
    pub(crate) pointers: Vec<Box<str>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum Additional {
    #[default]
    None,
    Any,
    Forbidden,
    Schema(Link),
}

/// `x-kubernetes-list-type`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum List {
    #[default]
    Atomic,
    Set,
    Map(Box<[Box<str>]>),
}

/// Value validations. Those in `any_of` and so on are nodes with nothing but a type and checks.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    pub(crate) required: Vec<Box<str>>,
    pub(crate) choices: Vec<Value>,
    pub(crate) pattern: Option<Pattern>,
    pub(crate) minimum: Option<f64>,
    pub(crate) exclusive_minimum: bool,
    pub(crate) maximum: Option<f64>,
    pub(crate) exclusive_maximum: bool,
    pub(crate) multiple_of: Option<f64>,
    pub(crate) min_length: Option<i64>,
    pub(crate) max_length: Option<i64>,
    pub(crate) min_items: Option<i64>,
    pub(crate) max_items: Option<i64>,
    pub(crate) min_properties: Option<i64>,
    pub(crate) max_properties: Option<i64>,
    pub(crate) all_of: Vec<Node>,
    pub(crate) any_of: Vec<Node>,
    pub(crate) one_of: Vec<Node>,
    pub(crate) not: Option<Box<Node>>,
}

impl Schema {
    /// Compiles a CRD's `openAPIV3Schema`, or refuses one that is not structural. `path` is where it stands
    /// (`spec.validation.openAPIV3Schema` when all versions have the same one, `spec.versions[0].schema.openAPIV3Schema`
    /// otherwise), for the errors.
    pub(crate) fn compile(openapi: &Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let schema = Self { root: Link::Own(Arc::new(compile::node(openapi, false))), custom: true };
        let errors = check::structural(openapi, &schema, path);
        if errors.is_empty() { Ok(schema) } else { Err(errors) }
    }

    /// The schema of a CRD version that is in the store already: it was checked when it came.
    pub(crate) fn trusted(openapi: &Value) -> Self {
        Self { root: Link::Own(Arc::new(compile::node(openapi, false))), custom: true }
    }

    pub(super) fn builtin(id: builtin::Id) -> Self {
        Self { root: Link::Builtin(id), custom: false }
    }

    /// A built-in definition's node; only `builtin` asks for it.
    pub(super) fn definition(openapi: &Value, name: &'static str) -> Node {
        let mut node = Node { name: Some(name), ..compile::node(openapi, false) };
        // `RawExtension`, `JSON` and their like.
        let opaque = matches!(node.kind, Kind::Any | Kind::Object) && node.fields.is_empty();
        node.preserve_unknown = opaque && matches!(node.additional, Additional::None);
        node.atomic |= name == builtin::RAW_EXTENSION;
        node
    }

    pub(crate) fn root(&self) -> &Node {
        self.root.node()
    }

    /// Whether objects come from a CRD: they have no strategic merge patch.
    pub(crate) fn is_custom(&self) -> bool {
        self.custom
    }

    /// The definition's name if it is a built-in one.
    pub(crate) fn name(&self) -> Option<&'static str> {
        self.root().name
    }
}

impl Node {
    /// The schema of a field or of a map's value: a declared field, else `additionalProperties`.
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        match (self.fields.get(name), &self.additional) {
            (Some(field), _) => Some(field.link.node()),
            (None, Additional::Schema(link)) => Some(link.node()),
            (None, _) => None,
        }
    }

    pub(crate) fn items(&self) -> Option<&Node> {
        self.items.as_ref().map(Link::node)
    }
}

#[cfg(test)]
mod tests;
