//! Values: those of the object are looked at where they lie, by what the schema says of them.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indexmap::IndexMap;
use jiff::Timestamp;
use serde_json::Value as Json;

use super::Failed;
use super::authz::Authz;
use super::decl::{Decl, Order, Shape};
use super::semver::Version;
use super::types::{self, Type};
use super::{formats, net, time};
use crate::object::quantity::Quantity;

#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Object(&'a serde_json::Map<String, Json>, &'a Arc<Decl>),
    Optional(Option<Arc<Value<'a>>>),
    Kind(Type),
    Url(Arc<net::Url>),
    Ip(IpAddr),
    Cidr(net::Cidr),
    Quantity(Quantity),
    Semver(Arc<Version>),
    Format(&'static formats::Format),
    Authz(Authz<'a>),
}

#[derive(Clone, Debug)]
pub(crate) enum Text<'a> {
    Here(&'a str),
    Made(Arc<str>),
}

impl Text<'_> {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Here(text) => text,
            Self::Made(text) => text,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum List<'a> {
    View(&'a [Json], &'a Arc<Decl>, &'a Order),
    Made(Arc<Vec<Value<'a>>>),
}

#[derive(Clone, Debug)]
pub(crate) enum Map<'a> {
    View(&'a serde_json::Map<String, Json>, &'a Arc<Decl>),
    Made(Arc<IndexMap<Key, (Value<'a>, Value<'a>)>>),
}

/// A key of a map; whole numbers are the same in either type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Bool(bool),
    Int(i128),
    /// A fraction, by its bits.
    Double(u64),
    Text(Arc<str>),
}

/// How much a comparison may look at.
pub(super) struct Meter {
    pub(super) looked: u64,
    pub(super) max: u64,
}

impl Meter {
    fn look(&mut self, count: u64) -> Result<()> {
        self.looked = self.looked.saturating_add(count);
        if self.looked > self.max { Err(Failed::Cost) } else { Ok(()) }
    }
}

pub(super) type Result<T> = std::result::Result<T, Failed>;

pub(super) fn error<T>(said: impl Into<String>) -> Result<T> {
    Err(Failed::Error(said.into()))
}

pub(super) fn no_overload<T>() -> Result<T> {
    error("no such overload")
}

impl<'a> Value<'a> {
    /// A value of the object as its schema has it.
    pub(crate) fn view(json: &'a Json, decl: &'a Arc<Decl>) -> Result<Self> {
        Ok(match (&decl.shape, json) {
            (_, Json::Null) => Self::Null,
            (Shape::Text, Json::String(text)) => Self::Text(Text::Here(text)),
            (Shape::Bytes, Json::String(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Self::Bytes(bytes.into()),
                Err(_) => return error(format!("could not decode base64 string {text}")),
            },
            (Shape::Duration, Json::String(text)) => Self::Duration(time::duration(text).map_err(Failed::Error)?),
            (Shape::Timestamp, Json::String(text)) => Self::Timestamp(time::timestamp(text).map_err(Failed::Error)?),
            (Shape::Date, Json::String(text)) => Self::Timestamp(time::date(text).map_err(Failed::Error)?),
            (Shape::Double, Json::Number(number)) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Shape::List(item, order), Json::Array(items)) => Self::List(List::View(items, item, order)),
            (Shape::Map(value), Json::Object(map)) => Self::Map(Map::View(map, value)),
            (Shape::Object(_), Json::Object(map)) => Self::Object(map, decl),
            (Shape::Any, Json::Array(items)) => Self::List(List::View(items, decl, &Order::Atomic)),
            (Shape::Any, Json::Object(map)) => Self::Map(Map::View(map, decl)),
            (Shape::Bool | Shape::Dyn | Shape::Any, Json::Bool(value)) => Self::Bool(*value),
            (Shape::Int | Shape::Dyn | Shape::Any, Json::Number(number)) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Self::Int(whole),
                (None, Some(float)) if matches!(decl.shape, Shape::Int) && float.fract() == 0.0 => {
                    Self::Int(float as i64)
                }
                (None, float) => Self::Double(float.unwrap_or(f64::NAN)),
            },
            (Shape::Dyn | Shape::Any, Json::String(text)) => Self::Text(Text::Here(text)),
            (shape, _) => {
                let wanted = match shape {
                    Shape::Object(_) => "object",
                    Shape::Map(_) => "map",
                    Shape::List(..) => "array",
                    _ => "scalar",
                };
                return error(format!("invalid data, expected {wanted} to match the schema type"));
            }
        })
    }

    pub(crate) fn text(text: impl Into<Arc<str>>) -> Self {
        Self::Text(Text::Made(text.into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(Arc::new(items)))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    pub(super) fn optional(value: Option<Self>) -> Self {
        Self::Optional(value.map(Arc::new))
    }

    pub(super) fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::Text(_) => Type::Text,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Object(_, decl) => Type::Object((*decl).clone()),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Kind(_) => Type::Kind(None),
            Self::Url(_) => types::URL,
            Self::Ip(_) => types::IP,
            Self::Cidr(_) => types::CIDR,
            Self::Quantity(_) => types::QUANTITY,
            Self::Semver(_) => types::SEMVER,
            Self::Format(_) => types::FORMAT,
            Self::Authz(it) => it.type_of(),
        }
    }

    /// What `size()` would say, and 1 of what has no size.
    pub(super) fn size(&self) -> u64 {
        let size = match self {
            Self::Text(text) => text.as_str().chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            Self::Object(map, _) => map.len(),
            Self::Ip(IpAddr::V4(_)) | Self::Cidr(net::Cidr { address: IpAddr::V4(_), .. }) => 4,
            Self::Ip(_) | Self::Cidr(_) => 16,
            _ => 1,
        };
        size as u64
    }

    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Bool(value) => !value,
            Self::Int(value) | Self::Duration(value) => *value == 0,
            Self::Uint(value) => *value == 0,
            Self::Double(value) => *value == 0.0,
            Self::Text(text) => text.as_str().is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.len() == 0,
            Self::Map(map) => map.len() == 0,
            Self::Object(map, _) => map.is_empty(),
            Self::Optional(inner) => inner.as_ref().is_none_or(|it| it.is_zero()),
            _ => false,
        }
    }

    /// The field of an object, the entry of a map.
    pub(super) fn field(&self, name: &str) -> Result<Option<Self>> {
        match self {
            Self::Object(map, decl) => match decl.slot(name) {
                Some(slot) => map.get(&*slot.json).map(|json| Self::slot_view(json, decl, name)).transpose(),
                None => Ok(None),
            },
            Self::Map(Map::View(map, decl)) => map.get(name).map(|json| Self::view(json, decl)).transpose(),
            Self::Map(Map::Made(map)) => Ok(map.get(&Key::Text(name.into())).map(|it| it.1.clone())),
            _ => no_overload(),
        }
    }

    fn slot_view(json: &'a Json, decl: &'a Arc<Decl>, name: &str) -> Result<Self> {
        decl.slot(name).map_or_else(no_overload, |slot| Self::view(json, &slot.decl))
    }

    pub(super) fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(value) => Key::Int(i128::from(*value)),
            Self::Uint(value) => Key::Int(i128::from(*value)),
            Self::Double(value) if value.fract() == 0.0 => Key::Int(*value as i128),
            Self::Double(value) => Key::Double(value.to_bits()),
            Self::Text(text) => Key::Text(text.as_str().into()),
            _ => return None,
        })
    }

    /// The order of two values of the same type or of two numbers; `None` of all else and of what is no number.
    pub(super) fn compare(&self, other: &Self) -> Result<Option<Ordering>> {
        Ok(Some(match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.as_str().cmp(b.as_str()),
            (Self::Bytes(a), Self::Bytes(b)) => a.cmp(b),
            (Self::Timestamp(a), Self::Timestamp(b)) => a.cmp(b),
            (Self::Duration(a), Self::Duration(b)) => a.cmp(b),
            (a, b) => match (a.whole(), b.whole()) {
                (Some(a), Some(b)) => a.cmp(&b),
                _ => match (a.float(), b.float()) {
                    (Some(a), Some(b)) => return Ok(a.partial_cmp(&b)),
                    _ => return no_overload(),
                },
            },
        }))
    }

    fn whole(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(i128::from(*value)),
            Self::Uint(value) => Some(i128::from(*value)),
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Uint(value) => Some(*value as f64),
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }

    /// Whether they are the same. `meter` counts what is looked at.
    pub(super) fn equals(&self, other: &Self, meter: &mut Meter) -> Result<bool> {
        meter.look(1)?;
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Text(a), Self::Text(b)) => {
                let (a, b) = (a.as_str(), b.as_str());
                meter.look(a.len().min(b.len()) as u64 / 64)?;
                a == b
            }
            (Self::List(a), Self::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                match a.order() {
                    Some(Order::Set) => a.within(b, meter)?,
                    Some(Order::Map(keys)) => a.same_by(b, keys, meter)?,
                    _ => {
                        for at in 0..a.len() {
                            if let (Some(a), Some(b)) = (a.get(at)?, b.get(at)?)
                                && !a.equals(&b, meter)?
                            {
                                return Ok(false);
                            }
                        }
                        true
                    }
                }
            }
            (Self::Object(a, left), Self::Object(b, right)) if Arc::ptr_eq(left, right) => {
                meter.look(weight(a) + weight(b))?;
                a == b
            }
            (Self::Map(_) | Self::Object(..), Self::Map(_) | Self::Object(..)) => {
                let (a, b) = (self.entries()?, other.entries()?);
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (key, value) in a {
                    let Some(there) = other.at(&key)? else { return Ok(false) };
                    if !value.equals(&there, meter)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Optional(a), Self::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b, meter)?,
                (None, None) => true,
                _ => false,
            },
            (Self::Kind(a), Self::Kind(b)) => match (a, b) {
                (Type::List(_), Type::List(_)) | (Type::Map(_), Type::Map(_) | Type::Object(_)) => true,
                (Type::Optional(_), Type::Optional(_)) | (Type::Kind(_), Type::Kind(_)) => true,
                (a, b) => a.is_exactly(b),
            },
            (Self::Url(a), Self::Url(b)) => a.text() == b.text(),
            (Self::Ip(a), Self::Ip(b)) => a == b,
            (Self::Cidr(a), Self::Cidr(b)) => a == b,
            (Self::Quantity(a), Self::Quantity(b)) => a.cmp(b) == Ordering::Equal,
            (Self::Semver(a), Self::Semver(b)) => a.cmp(b) == Ordering::Equal,
            (Self::Authz(_), _) => return no_overload(),
            (Self::Format(a), Self::Format(b)) => std::ptr::eq(*a, *b),
            (a, b) => match a.compare(b) {
                Ok(order) => order == Some(Ordering::Equal),
                Err(Failed::Cost) => return Err(Failed::Cost),
                Err(Failed::Error(_)) => false,
            },
        })
    }

    /// The value at a key.
    pub(super) fn at(&self, key: &Self) -> Result<Option<Self>> {
        match (self, key) {
            (Self::Map(Map::View(..)) | Self::Object(..), Self::Text(name)) => self.field(name.as_str()),
            (Self::Map(Map::Made(map)), key) => match key.key() {
                Some(key) => Ok(map.get(&key).map(|it| it.1.clone())),
                None => error("unsupported key type"),
            },
            (Self::Map(Map::View(..)), _) => Ok(None),
            _ => no_overload(),
        }
    }

    /// Keys and values of a map.
    pub(super) fn entries(&self) -> Result<Vec<(Self, Self)>> {
        match self {
            Self::Map(Map::View(map, decl)) => {
                let entry =
                    |(key, json): (&'a String, &'a Json)| Ok((Self::Text(Text::Here(key)), Self::view(json, decl)?));
                map.iter().map(entry).collect()
            }
            Self::Map(Map::Made(map)) => Ok(map.values().cloned().collect()),
            Self::Object(map, decl) => {
                let Shape::Object(fields) = &decl.shape else { return no_overload() };
                let there = fields.iter().filter_map(|(name, slot)| Some((name, slot, map.get(&*slot.json)?)));
                there
                    .map(|(name, slot, json)| Ok((Self::Text(Text::Here(name)), Self::view(json, &slot.decl)?)))
                    .collect()
            }
            _ => no_overload(),
        }
    }
}

/// How much there is to compare.
fn weight(map: &serde_json::Map<String, Json>) -> u64 {
    fn of(json: &Json) -> u64 {
        1 + match json {
            Json::Array(items) => items.iter().map(of).sum(),
            Json::Object(map) => weight(map),
            _ => 0,
        }
    }
    map.values().map(of).sum()
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::View(items, ..) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    pub(super) fn get(&self, at: usize) -> Result<Option<Value<'a>>> {
        match self {
            Self::View(items, decl, _) => items.get(at).map(|json| Value::view(json, decl)).transpose(),
            Self::Made(items) => Ok(items.get(at).cloned()),
        }
    }

    pub(super) fn all(&self) -> Result<Vec<Value<'a>>> {
        match self {
            Self::View(items, decl, _) => items.iter().map(|json| Value::view(json, decl)).collect(),
            Self::Made(items) => Ok(items.to_vec()),
        }
    }

    pub(super) fn order(&self) -> Option<&'a Order> {
        match self {
            Self::View(_, _, order) if !matches!(order, Order::Atomic) => Some(order),
            _ => None,
        }
    }

    pub(super) fn contains(&self, value: &Value<'a>, meter: &mut Meter) -> Result<bool> {
        for at in 0..self.len() {
            if let Some(item) = self.get(at)?
                && item.equals(value, meter)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the other has all that this has.
    pub(super) fn within(&self, other: &Self, meter: &mut Meter) -> Result<bool> {
        for at in 0..self.len() {
            if let Some(item) = self.get(at)?
                && !other.contains(&item, meter)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn same_by(&self, other: &Self, keys: &[Box<str>], meter: &mut Meter) -> Result<bool> {
        let mut there: IndexMap<Vec<Option<Key>>, Value<'a>> = IndexMap::new();
        for at in 0..other.len() {
            if let Some(item) = other.get(at)? {
                there.insert(keys_of(&item, keys), item);
            }
        }
        for at in 0..self.len() {
            let Some(item) = self.get(at)? else { continue };
            let Some(found) = there.get(&keys_of(&item, keys)) else { return Ok(false) };
            if !item.equals(found, meter)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// This and that; a set has each once, and what has the same keys is that.
    pub(super) fn plus(&self, other: &Self, meter: &mut Meter) -> Result<Value<'a>> {
        let mut all = self.all()?;
        match self.order() {
            Some(Order::Set) => {
                let before = Self::Made(Arc::new(all.clone()));
                for item in other.all()? {
                    if !before.contains(&item, meter)? {
                        all.push(item);
                    }
                }
            }
            Some(Order::Map(keys)) => {
                let mut places: IndexMap<Vec<Option<Key>>, usize> =
                    all.iter().enumerate().map(|(at, item)| (keys_of(item, keys), at)).collect();
                for item in other.all()? {
                    let key = keys_of(&item, keys);
                    match places.get(&key).and_then(|at| all.get_mut(*at)) {
                        Some(place) => *place = item,
                        None => {
                            places.insert(key, all.len());
                            all.push(item);
                        }
                    }
                }
            }
            _ => all.extend(other.all()?),
        }
        Ok(Value::list(all))
    }
}

/// What an item of a list map is known by.
fn keys_of(item: &Value<'_>, keys: &[Box<str>]) -> Vec<Option<Key>> {
    let Value::Object(map, _) = item else { return Vec::new() };
    let key = |name: &str| match map.get(name)? {
        Json::String(text) => Some(Key::Text(text.as_str().into())),
        Json::Number(number) => Some(Key::Int(i128::from(number.as_i64()?))),
        Json::Bool(value) => Some(Key::Bool(*value)),
        _ => None,
    };
    keys.iter().map(|name| key(name)).collect()
}

impl Map<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::View(map, _) => map.len(),
            Self::Made(map) => map.len(),
        }
    }
}
