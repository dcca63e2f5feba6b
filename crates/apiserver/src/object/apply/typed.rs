//! Walks over typed values: validate, merge, compare, take apart. A port of structured-merge-diff's `typed` package on
//! our schema nodes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, Set, same};
use crate::object::builtin;
use crate::object::field;
use crate::object::schema::{Additional, Kind, List, Node, Schema};

/// The type of a value.
#[derive(Clone, Copy)]
pub(crate) enum Type<'a> {
    Of(&'a Node),
    /// The resource itself, or one embedded in it: `metadata` is `ObjectMeta` whatever the schema says.
    Resource(&'a Node),
    /// Not declared: objects are granular, lists atomic.
    Deduced,
    /// All below is one leaf.
    Opaque,
    Text,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Map,
    List,
    Scalar,
}

impl<'a> Type<'a> {
    pub(crate) fn root(schema: &'a Schema) -> Self {
        if schema.is_custom() { Self::Resource(schema.root()) } else { Self::of(schema.root()) }
    }

    fn of(node: &'a Node) -> Self {
        match node.name {
            Some(builtin::RAW_EXTENSION) => Self::Opaque,
            _ if node.embedded => Self::Resource(node),
            _ => Self::Of(node),
        }
    }

    fn node(self) -> Option<&'a Node> {
        match self {
            Self::Of(node) | Self::Resource(node) => Some(node),
            Self::Deduced | Self::Opaque | Self::Text => None,
        }
    }

    /// How a value is handled: by its type, or by what it is where the type leaves that open.
    fn shape(self, value: Option<&Value>) -> Shape {
        let kind = match self {
            Self::Text => Kind::String,
            _ => self.node().map_or(Kind::Any, |n| n.kind),
        };
        match (kind, value) {
            (Kind::Object, _) | (Kind::Any, Some(Value::Object(_) | Value::Null) | None) => Shape::Map,
            (Kind::Array, _) | (Kind::Any, Some(Value::Array(_))) => Shape::List,
            _ => Shape::Scalar,
        }
    }

    /// A field's type, and whether the field is declared (and not just one of a map).
    fn field(self, name: &str) -> Option<(Self, bool)> {
        match self {
            Self::Resource(_) if matches!(name, "apiVersion" | "kind") => Some((Self::Text, true)),
            Self::Resource(_) if name == "metadata" => Some((Self::of(builtin::object_meta()?), true)),
            Self::Of(node) | Self::Resource(node) => match (node.fields.get(name), &node.additional) {
                (Some(field), _) => Some((Self::of(field.link.node()), true)),
                (None, Additional::Schema(link)) => Some((Self::of(link.node()), false)),
                (None, _) => node.deduce_unknown.then_some((Self::Deduced, false)),
            },
            Self::Deduced => Some((Self::Deduced, false)),
            Self::Opaque => Some((Self::Opaque, false)),
            Self::Text => None,
        }
    }

    fn items(self) -> Self {
        self.node().and_then(Node::items).map_or(Self::Opaque, Self::of)
    }

    fn is_atomic(self, shape: Shape) -> bool {
        match shape {
            Shape::Scalar => true,
            Shape::Map => matches!(self, Self::Opaque) || self.node().is_some_and(|n| n.atomic),
            Shape::List => self.node().is_none_or(|n| n.list == List::Atomic),
        }
    }

    /// Nothing is known of the fields of such a map, and so nothing can have changed in their schema.
    fn is_deduced_map(self) -> bool {
        match self {
            Self::Deduced => true,
            _ => self.node().is_some_and(|n| n.fields.is_empty() && n.deduce_unknown),
        }
    }

    /// The path element of a list's item, or why it has none.
    fn element(self, item: &Value) -> Result<Element, String> {
        let keys = match self.node().map(|n| &n.list) {
            Some(List::Map(keys)) => keys,
            Some(List::Set) => {
                return match item {
                    Value::Object(_) => {
                        Err("associative list without keys has an element that's a map type".to_owned())
                    }
                    Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                    Value::Null => {
                        Err("associative list without keys has an element that's an explicit null".to_owned())
                    }
                    scalar => Ok(Element::Value(scalar.clone())),
                };
            }
            _ => return Err("invalid indexing of non-associative list".to_owned()),
        };
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let default = |key: &str| {
            let field = self.node()?.items()?.fields.get(key)?;
            field.default.as_ref().or_else(|| field.link.node().default.as_ref())
        };
        let found = keys.iter().filter_map(|key| {
            let value = map.get(&**key).or_else(|| default(key))?;
            Some((key.clone(), value.clone()))
        });
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            let shown: Vec<String> = keys.iter().map(|k| field::quote(k)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                shown.join(" ")
            ));
        }
        Ok(Element::key(found))
    }
}

fn entries(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn list(value: Option<&Value>) -> Option<&[Value]> {
    value.and_then(Value::as_array).map(Vec::as_slice)
}

// Validate

/// Go's `%#v` of a value.
fn syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().map(|(k, v)| format!("{}:{}", field::quote(k), syntax(v))).collect();
            fields.sort_unstable();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
        other => field::print(other),
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
    }
}

/// What keeps a value from being of a type, with paths; in an object only the first unknown field is told. `strict`
/// also refuses two items of the same key.
pub(crate) fn validate(of: Type<'_>, value: &Value, strict: bool) -> Vec<String> {
    let mut errors = Vec::new();
    check(of, value, strict, &mut String::new(), &mut errors);
    errors
}

fn check(of: Type<'_>, value: &Value, strict: bool, path: &mut String, errors: &mut Vec<String>) {
    if errors.len() >= field::ERRORS_MAX {
        return;
    }
    let mut fail = |path: &str, said: String| {
        errors.push(if path.is_empty() { said } else { format!("{path}: {said}") });
    };
    let length = path.len();
    match (of.shape(Some(value)), value) {
        (_, Value::Null) => {}
        (Shape::Scalar, _) => {
            let untyped = |value: &Value| !(value.is_object() || value.is_array());
            let node = of.node();
            let kind = if matches!(of, Type::Text) { Kind::String } else { node.map_or(Kind::Any, |n| n.kind) };
            let formatted = node.is_some_and(|n| {
                n.name == Some(builtin::QUANTITY)
                    || n.format.as_deref().is_some_and(|f| f != "byte") && kind == Kind::String
            });
            match kind {
                Kind::Integer | Kind::Number if !value.is_number() => {
                    fail(path, format!("expected numeric (int or float), got {}", go_type(value)));
                }
                Kind::String if !formatted && !value.is_string() => {
                    fail(path, format!("expected string, got &value.valueUnstructured{{Value:{}}}", syntax(value)));
                }
                Kind::Boolean if !value.is_boolean() => {
                    fail(path, format!("expected boolean, got &{{{}}}", field::plain(value)))
                }
                _ if !untyped(value) => fail(path, format!("expected any scalar, got &{{{}}}", field::plain(value))),
                _ => {}
            }
        }
        (Shape::Map, Value::Object(map)) => {
            for (key, value) in map {
                path.extend([".", field::key(key)]);
                match of.field(key) {
                    Some((field, _)) => check(field, value, strict, path, errors),
                    None => {
                        errors.push(format!("{path}: field not declared in schema"));
                        path.truncate(length);
                        break;
                    }
                }
                path.truncate(length);
            }
        }
        (Shape::List, Value::Array(items)) => {
            let mut seen: BTreeMap<Element, ()> = BTreeMap::new();
            for (i, item) in items.iter().enumerate() {
                let element = if of.is_atomic(Shape::List) {
                    Element::Index(i)
                } else {
                    match of.element(item) {
                        Ok(element) => element,
                        Err(why) => {
                            errors.push(format!("{path}: element {i}: {why}"));
                            break;
                        }
                    }
                };
                if strict && seen.insert(element.clone(), ()).is_some() {
                    errors.push(format!("{path}: duplicate entries for key {element}"));
                }
                path.push_str(&element.to_string());
                check(of.items(), item, strict, path, errors);
                path.truncate(length);
            }
        }
        (Shape::Map, other) => fail(path, format!("expected map, got &{{{}}}", field::plain(other))),
        (Shape::List, other) => fail(path, format!("expected list, got &{{{}}}", field::plain(other))),
    }
}

// Field sets

/// The paths that a value sets.
pub(crate) fn to_set(of: Type<'_>, value: &Value) -> Set {
    let mut set = Set::default();
    collect(of, value, &mut Vec::new(), &mut set);
    set
}

fn collect(of: Type<'_>, value: &Value, path: &mut Vec<Element>, set: &mut Set) {
    let shape = of.shape(Some(value));
    if of.is_atomic(shape) {
        set.insert(path);
        return;
    }
    match value {
        Value::Object(map) if shape == Shape::Map => {
            for (key, value) in map {
                let Some((field, declared)) = of.field(key) else { continue };
                path.push(Element::field(key));
                collect(field, value, path, set);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if empty || !declared {
                    set.insert(path);
                }
                path.pop();
            }
        }
        Value::Array(items) if shape == Shape::List => {
            for (element, places) in indexed(of, Some(items)) {
                path.push(element);
                if let [item] = places.as_slice() {
                    collect(of.items(), item, path, set);
                }
                set.insert(path);
                path.pop();
            }
        }
        _ => {}
    }
}

/// A list's items by path element, in the order of their first appearance; items that have none are left out.
fn indexed<'a>(of: Type<'_>, items: Option<&'a [Value]>) -> Vec<(Element, Vec<&'a Value>)> {
    let mut at: BTreeMap<Element, usize> = BTreeMap::new();
    let mut out: Vec<(Element, Vec<&Value>)> = Vec::new();
    for item in items.unwrap_or_default() {
        let Ok(element) = of.element(item) else { continue };
        let place = *at.entry(element.clone()).or_insert(out.len());
        match out.get_mut(place) {
            Some((_, places)) => places.push(item),
            None => out.push((element, vec![item])),
        }
    }
    out
}

/// Makes members of the declared fields above members, so that they go when all below them goes.
pub(crate) fn with_parents(of: Option<Type<'_>>, set: &Set) -> Set {
    let declared = |element: &Element| match (of, element) {
        (Some(of), Element::Field(name)) => of.field(name).is_some_and(|(_, declared)| declared),
        _ => false,
    };
    let below = |element: &Element, set: &Set| {
        let of = match (of, element) {
            (Some(of), Element::Field(name)) => of.field(name).map(|(field, _)| field),
            (Some(of), Element::Key(_)) => Some(of.items()),
            _ => None,
        };
        with_parents(of, set)
    };
    set.map(declared, below)
}

/// A set that was made under an earlier schema, under this one: where something has become atomic, only its root is
/// owned. `None`: nothing has changed.
pub(crate) fn reconcile(of: Type<'_>, set: &Set) -> Option<Set> {
    let mut atoms = Set::default();
    find_atoms(of, set, false, &mut Vec::new(), &mut atoms);
    (!atoms.is_empty()).then(|| set.recursive_difference(&atoms).union(&atoms))
}

fn find_atoms(of: Type<'_>, set: &Set, owned_whole: bool, path: &mut Vec<Element>, atoms: &mut Set) {
    let shape = of.shape(None);
    if shape == Shape::Scalar || shape == Shape::Map && of.is_deduced_map() {
        return;
    }
    if !owned_whole && of.is_atomic(shape) {
        if shape == Shape::List || !set.is_empty() {
            atoms.insert(path);
        }
        return;
    }
    for (element, member, below) in set.entries() {
        let field = match (shape, element) {
            (Shape::Map, Element::Field(name)) => of.field(name).map(|(field, _)| field),
            (Shape::List, _) => Some(of.items()),
            _ => None,
        };
        let Some(field) = field else { continue };
        path.push(element.clone());
        find_atoms(field, below, member && below.is_empty(), path, atoms);
        path.pop();
    }
}

// Merge

/// `right` over `left`; `None` where nothing is left of either.
pub(crate) fn merge(of: Type<'_>, left: Option<&Value>, right: Option<&Value>) -> Option<Value> {
    let shape = of.shape(right.or(left));
    let empty = |value: Option<&Value>| match shape {
        Shape::Map => entries(value).is_none_or(Map::is_empty),
        Shape::List => list(value).is_none_or(<[Value]>::is_empty),
        Shape::Scalar => true,
    };
    if of.is_atomic(shape) || empty(left) && empty(right) {
        return right.or(left).cloned();
    }
    match shape {
        Shape::Map => {
            let (left, right) = (entries(left), entries(right));
            let mut out = Map::new();
            for (key, value) in left.into_iter().flatten() {
                let other = right.and_then(|r| r.get(key));
                let merged = match of.field(key) {
                    Some((field, _)) => merge(field, Some(value), other),
                    None => other.or(Some(value)).cloned(),
                };
                out.extend(merged.map(|merged| (key.clone(), merged)));
            }
            for (key, value) in right.into_iter().flatten() {
                if left.is_none_or(|l| !l.contains_key(key)) {
                    let merged =
                        of.field(key).map_or_else(|| Some(value.clone()), |(field, _)| merge(field, None, Some(value)));
                    out.extend(merged.map(|merged| (key.clone(), merged)));
                }
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        _ => {
            let out = merge_lists(of, list(left).unwrap_or_default(), list(right).unwrap_or_default());
            (!out.is_empty()).then_some(Value::Array(out))
        }
    }
}

/// Items of the right in their order, with the left's own items where they stood relative to the shared ones.
fn merge_lists(of: Type<'_>, left: &[Value], right: &[Value]) -> Vec<Value> {
    let elements = |items: &[Value]| -> Vec<Element> { items.iter().filter_map(|i| of.element(i).ok()).collect() };
    let (lefts, rights) = (elements(left), elements(right));
    // Of duplicates (in the live object only) none is merged.
    let by_element = |items| -> BTreeMap<Element, Option<&Value>> {
        indexed(of, Some(items))
            .into_iter()
            .map(|(e, v)| (e, if v.len() == 1 { v.first().copied() } else { None }))
            .collect()
    };
    let (in_left, in_right) = (by_element(left), by_element(right));
    let mut shared = rights.iter().filter(|e| in_left.contains_key(e));
    let mut next_shared = shared.next();
    let mut merged: BTreeMap<&Element, ()> = BTreeMap::new();
    let mut out = Vec::with_capacity(lefts.len().max(rights.len()));
    let take = |element: &Element, l: Option<&Value>, out: &mut Vec<Value>| {
        let r = in_right.get(element).copied().flatten();
        out.extend(merge(of.items(), l, r));
    };
    let (mut li, mut ri) = (0, 0);
    loop {
        let (l, r) = (lefts.get(li), rights.get(ri));
        if let (Some(l), Some(r)) = (l, r) {
            if l == r {
                merged.insert(l, ());
                take(l, in_left.get(l).copied().flatten(), &mut out);
                li += 1;
                ri += 1;
                next_shared = shared.next();
                continue;
            }
            if in_right.contains_key(l) && next_shared.is_some_and(|next| next != l) {
                li += 1;
                continue;
            }
        }
        if let Some(l) = l {
            if !in_right.contains_key(l) {
                out.extend(merge(of.items(), left.get(li), None));
                li += 1;
                continue;
            }
            if merged.contains_key(l) {
                li += 1;
            }
        }
        if let Some(r) = r {
            merged.insert(r, ());
            take(r, in_left.get(r).copied().flatten(), &mut out);
            ri += 1;
            if next_shared == Some(r) {
                next_shared = shared.next();
            }
        }
        if li >= lefts.len() && ri >= rights.len() {
            return out;
        }
    }
}

// Compare

/// What a change did.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) removed: Set,
    pub(crate) modified: Set,
    pub(crate) added: Set,
}

pub(crate) fn compare(of: Type<'_>, left: &Value, right: &Value) -> Changes {
    let mut changes = Changes::default();
    diff(of, Some(left), Some(right), &mut Vec::new(), &mut changes);
    changes
}

fn diff(of: Type<'_>, left: Option<&Value>, right: Option<&Value>, path: &mut Vec<Element>, changes: &mut Changes) {
    let (ls, rs) = (of.shape(left), of.shape(right));
    let leaf = match (left, right) {
        (Some(_), None) => walk(of, ls, left, right, path, changes),
        (None, _) => walk(of, rs, left, right, path, changes),
        (Some(_), Some(_)) if ls == rs => walk(of, rs, left, right, path, changes),
        _ => {
            walk(of, ls, left, right, path, changes);
            walk(of, rs, left, right, path, changes)
        }
    };
    if !leaf {
        match (left, right) {
            (None, _) => changes.added.insert(path),
            (_, None) => changes.removed.insert(path),
            _ => {}
        }
    }
}

/// Returns whether it was a leaf.
fn walk(
    of: Type<'_>,
    shape: Shape,
    left: Option<&Value>,
    right: Option<&Value>,
    path: &mut Vec<Element>,
    changes: &mut Changes,
) -> bool {
    let empty = |value: Option<&Value>| match shape {
        Shape::Map => entries(value).is_none_or(Map::is_empty),
        Shape::List => list(value).is_none_or(<[Value]>::is_empty),
        Shape::Scalar => true,
    };
    if of.is_atomic(shape) || empty(left) && empty(right) {
        match (left, right) {
            (None, _) => changes.added.insert(path),
            (_, None) => changes.removed.insert(path),
            (Some(l), Some(r)) if !same(l, r) => changes.modified.insert(path),
            _ => {}
        }
        return true;
    }
    if shape == Shape::Map {
        let (left, right) = (entries(left), entries(right));
        let extra = right.into_iter().flatten().filter(|(key, _)| left.is_none_or(|l| !l.contains_key(*key)));
        let keys = left.into_iter().flatten().chain(extra).map(|(key, _)| key);
        for key in keys {
            let Some((field, _)) = of.field(key) else { continue };
            path.push(Element::field(key));
            diff(field, left.and_then(|l| l.get(key)), right.and_then(|r| r.get(key)), path, changes);
            path.pop();
        }
        return false;
    }
    let (left, right) = (indexed(of, list(left)), indexed(of, list(right)));
    let other: BTreeMap<&Element, &Vec<&Value>> = right.iter().map(|(e, v)| (e, v)).collect();
    let known: BTreeMap<&Element, ()> = left.iter().map(|(e, _)| (e, ())).collect();
    let none = Vec::new();
    let pairs = left.iter().map(|(e, l)| (e, l, other.get(e).copied().unwrap_or(&none)));
    let pairs = pairs.chain(right.iter().filter(|(e, _)| !known.contains_key(e)).map(|(e, r)| (e, &none, r)));
    for (element, l, r) in pairs {
        path.push(element.clone());
        match (l.as_slice(), r.as_slice()) {
            ([] | [_], [] | [_]) => diff(of.items(), l.first().copied(), r.first().copied(), path, changes),
            ([_, _, ..], [_, _, ..]) => {
                if l.len() != r.len() || !l.iter().zip(r).all(|(l, r)| same(l, r)) {
                    changes.modified.insert(path);
                }
            }
            // Duplicates are owned as one leaf.
            ([_, _, ..], _) => {
                if !r.is_empty() {
                    diff(of.items(), None, r.first().copied(), path, changes);
                }
                changes.removed.insert(path);
            }
            (_, _) => {
                if !l.is_empty() {
                    diff(of.items(), l.first().copied(), None, path, changes);
                }
                changes.added.insert(path);
            }
        }
        path.pop();
    }
    false
}

// Remove

/// A value without the members of a set; `None` when nothing is left.
pub(crate) fn remove(of: Type<'_>, value: &Value, set: &Set) -> Option<Value> {
    let shape = of.shape(Some(value));
    match (shape, value) {
        (Shape::Scalar, _) => Some(value.clone()),
        _ if of.is_atomic(shape) => None,
        (Shape::Map, Value::Object(map)) => {
            let mut out = Map::new();
            for (key, value) in map {
                let element = Element::field(key);
                if set.has(&element) {
                    continue;
                }
                let kept = match (set.below(&element), of.field(key)) {
                    (Some(below), Some((field, _))) => remove(field, value, below).unwrap_or(Value::Null),
                    _ => value.clone(),
                };
                out.insert(key.clone(), kept);
            }
            (!out.is_empty()).then_some(Value::Object(out))
        }
        (Shape::List, Value::Array(items)) => {
            let mut out = Vec::new();
            for item in items {
                let Ok(element) = of.element(item) else {
                    out.push(item.clone());
                    continue;
                };
                if set.has(&element) {
                    continue;
                }
                match set.below(&element) {
                    Some(below) => out.push(remove(of.items(), item, below).unwrap_or(Value::Null)),
                    None => out.push(item.clone()),
                }
            }
            (!out.is_empty()).then_some(Value::Array(out))
        }
        _ => None,
    }
}
