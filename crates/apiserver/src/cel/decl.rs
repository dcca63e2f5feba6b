//! What a schema says of values, for CEL: the types of fields, and how large values can be.

use std::sync::Arc;

use indexmap::IndexMap;

use super::types::Type;

/// A type with bounds. Cheap to share.
#[derive(Debug)]
pub(crate) struct Decl {
    /// Of an object: what errors call it.
    pub(crate) name: Box<str>,
    pub(crate) shape: Shape,
    /// Characters of a string, items of a list or a map; 0 of all else.
    pub(crate) elements_max: u64,
    /// The fewest bytes that a value takes in JSON.
    pub(crate) size_min: u64,
}

#[derive(Debug)]
pub(crate) enum Shape {
    /// Checked when it is evaluated: int-or-string.
    Dyn,
    /// Whatever JSON it is, down to its leaves.
    Any,
    Bool,
    Int,
    Double,
    Text,
    Bytes,
    Duration,
    /// RFC 3339 with a time of day.
    Timestamp,
    /// A day.
    Date,
    List(Arc<Decl>, Order),
    Map(Arc<Decl>),
    Object(IndexMap<Box<str>, Slot>),
}

/// How lists are compared and added.
#[derive(Debug)]
pub(crate) enum Order {
    Atomic,
    /// The order does not count, and adding is a union.
    Set,
    /// The same by these keys, which name the JSON fields.
    Map(Box<[Box<str>]>),
}

/// A field, found by its name as CEL writes it.
#[derive(Debug)]
pub(crate) struct Slot {
    /// As JSON writes it.
    pub(crate) json: Box<str>,
    pub(crate) decl: Arc<Decl>,
}

impl Decl {
    pub(crate) fn new(shape: Shape, elements_max: u64, size_min: u64) -> Self {
        Self { name: "".into(), shape, elements_max, size_min }
    }

    /// What CEL's checker knows of it.
    pub(crate) fn type_of(self: &Arc<Self>) -> Type {
        match &self.shape {
            Shape::Dyn | Shape::Any => Type::Dyn,
            Shape::Bool => Type::Bool,
            Shape::Int => Type::Int,
            Shape::Double => Type::Double,
            Shape::Text => Type::Text,
            Shape::Bytes => Type::Bytes,
            Shape::Duration => Type::Duration,
            Shape::Timestamp | Shape::Date => Type::Timestamp,
            Shape::List(item, _) => Type::List(Arc::new(item.type_of())),
            Shape::Map(value) => Type::Map(Arc::new((Type::Text, value.type_of()))),
            Shape::Object(_) => Type::Object(self.clone()),
        }
    }

    pub(super) fn item(&self) -> Option<&Arc<Self>> {
        match &self.shape {
            Shape::List(item, _) => Some(item),
            Shape::Map(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn slot(&self, field: &str) -> Option<&Slot> {
        match &self.shape {
            Shape::Object(fields) => fields.get(field),
            _ => None,
        }
    }
}
