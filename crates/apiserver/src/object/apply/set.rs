//! Sets of field paths and their form in `managedFields` (`FieldsV1`).

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::object::field;

/// One step of a path.
#[derive(Clone, Debug)]
pub(crate) enum Element {
    /// A field of an object.
    Field(Box<str>),
    /// The item of a list map with these keys, which are sorted.
    Key(Box<[(Box<str>, Value)]>),
    /// The item of a list set with this value.
    Value(Value),
    /// An item of an atomic list: in old entries and in error messages.
    Index(usize),
}

impl Element {
    pub(crate) fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// `keys` in any order.
    pub(crate) fn key(mut keys: Vec<(Box<str>, Value)>) -> Self {
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(keys.into())
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let map: Map<String, Value> = keys.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
                format!("k:{}", field::json(&Value::Object(map)))
            }
            Self::Value(value) => format!("v:{}", field::json(value)),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    /// `Ok(None)`: of a kind that a later version may know, ignored as upstream does.
    fn decode(text: &str) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = text.split_once(':') else { return Err(format!("missing colon: {text}")) };
        let json = || serde_json::from_str::<Value>(rest).map_err(|e| format!("{text}: {e}"));
        Ok(Some(match kind {
            "f" => Self::field(rest),
            "v" => Self::Value(json()?),
            "k" => match json()? {
                Value::Object(map) => Self::key(map.into_iter().map(|(k, v)| (k.into(), v)).collect()),
                _ => return Err(format!("{text}: not an object")),
            },
            "i" => Self::Index(rest.parse().map_err(|e| format!("{text}: {e}"))?),
            _ => return Ok(None),
        }))
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{}", field::key(name)),
            Self::Key(keys) => {
                let shown: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={}", field::print(v))).collect();
                write!(f, "[{}]", field::key(&shown.join(",")))
            }
            Self::Value(value) => write!(f, "[={}]", field::key(&field::print(value))),
            Self::Index(i) => write!(f, "[{i}]"),
        }
    }
}

impl Ord for Element {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => compare(a, b),
            (Self::Key(a), Self::Key(b)) => {
                let pairs = a.iter().zip(b.iter()).map(|(a, b)| a.0.cmp(&b.0).then_with(|| compare(&a.1, &b.1)));
                pairs.fold(Ordering::Equal, Ordering::then).then(a.len().cmp(&b.len()))
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Element {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Element {}

/// A total order in which 1 and 1.0 are the same and the order of an object's fields does not count.
pub(crate) fn compare(a: &Value, b: &Value) -> Ordering {
    fn rank(value: &Value) -> u8 {
        match value {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Array(_) => 3,
            Value::Object(_) => 4,
            Value::Null => 5,
        }
    }
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.as_f64().unwrap_or_default().total_cmp(&y.as_f64().unwrap_or_default()),
        },
        (Value::String(x), Value::String(y)) => x.cmp(y),
        (Value::Bool(x), Value::Bool(y)) => x.cmp(y),
        (Value::Array(x), Value::Array(y)) => {
            let pairs = x.iter().zip(y).map(|(x, y)| compare(x, y));
            pairs.fold(Ordering::Equal, Ordering::then).then(x.len().cmp(&y.len()))
        }
        (Value::Object(x), Value::Object(y)) => {
            let sorted = |map: &'_ Map<String, Value>| {
                let mut keys: Vec<String> = map.keys().cloned().collect();
                keys.sort_unstable();
                keys
            };
            let (left, right) = (sorted(x), sorted(y));
            left.cmp(&right).then_with(|| {
                let pairs = left.iter().filter_map(|k| Some(compare(x.get(k)?, y.get(k)?)));
                pairs.fold(Ordering::Equal, Ordering::then)
            })
        }
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Whether two values mean the same: 1 and 1.0 do.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, x)| y.get(k).is_some_and(|y| same(x, y)))
        }
        (Value::Number(_), Value::Number(_)) => compare(a, b) == Ordering::Equal,
        _ => a == b,
    }
}

/// A set of paths, as a tree. A path may be a member without what is below it, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set(BTreeMap<Element, Branch>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Branch {
    member: bool,
    below: Set,
}

impl Branch {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Set {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(Branch::is_empty)
    }

    /// The empty path is ignored: nobody owns the whole object.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        if let Some((last, above)) = path.split_last() {
            let mut set = self;
            for element in above {
                set = &mut set.0.entry(element.clone()).or_default().below;
            }
            set.0.entry(last.clone()).or_default().member = true;
        }
    }

    pub(crate) fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    pub(crate) fn has(&self, element: &Element) -> bool {
        self.0.get(element).is_some_and(|b| b.member)
    }

    /// What is below an element, if anything is.
    pub(crate) fn below(&self, element: &Element) -> Option<&Self> {
        self.0.get(element).map(|b| &b.below).filter(|set| !set.0.is_empty())
    }

    fn retained(entries: impl Iterator<Item = (Element, Branch)>) -> Self {
        Self(entries.filter(|(_, branch)| !branch.is_empty()).collect())
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        for (element, branch) in &other.0 {
            let mine = out.0.entry(element.clone()).or_default();
            mine.member |= branch.member;
            mine.below = mine.below.union(&branch.below);
        }
        out
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self::retained(self.0.iter().filter_map(|(element, mine)| {
            let theirs = other.0.get(element)?;
            let below = mine.below.intersection(&theirs.below);
            Some((element.clone(), Branch { member: mine.member && theirs.member, below }))
        }))
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        Self::retained(self.0.iter().map(|(element, mine)| match other.0.get(element) {
            None => (element.clone(), mine.clone()),
            Some(theirs) => {
                let below = mine.below.difference(&theirs.below);
                (element.clone(), Branch { member: mine.member && !theirs.member, below })
            }
        }))
    }

    /// Like `difference`, but a member of `other` takes all that is below it along.
    pub(crate) fn recursive_difference(&self, other: &Self) -> Self {
        Self::retained(self.0.iter().filter_map(|(element, mine)| match other.0.get(element) {
            None => Some((element.clone(), mine.clone())),
            Some(theirs) if theirs.member => None,
            Some(theirs) => {
                let below = mine.below.recursive_difference(&theirs.below);
                Some((element.clone(), Branch { member: mine.member, below }))
            }
        }))
    }

    /// Makes a set of the same shape: what is below each element comes from `below`, and elements that have something
    /// below them become members where `member` says so.
    pub(crate) fn map(&self, member: impl Fn(&Element) -> bool, below: impl Fn(&Element, &Self) -> Self) -> Self {
        let made = |(element, branch): (&Element, &Branch)| {
            let owned = branch.member || !branch.below.0.is_empty() && member(element);
            (element.clone(), Branch { member: owned, below: below(element, &branch.below) })
        };
        Self(self.0.iter().map(made).collect())
    }

    /// Elements, whether each is a member, and what is below.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Element, bool, &Self)> {
        self.0.iter().map(|(element, branch)| (element, branch.member, &branch.below))
    }

    /// The first `most` paths as they are shown (`.spec.ports[containerPort=80,protocol="TCP"].name`), in upstream's
    /// order: the members of a level, then what is below them.
    pub(crate) fn shown(&self, most: usize) -> Vec<String> {
        fn walk(set: &Set, at: &mut String, most: usize, out: &mut Vec<String>) {
            let left = most - out.len();
            let members = set.0.iter().filter(|(_, branch)| branch.member);
            out.extend(members.take(left).map(|(element, _)| format!("{at}{element}")));
            for (element, branch) in set.0.iter().filter(|(_, branch)| !branch.below.is_empty()) {
                if out.len() >= most {
                    return;
                }
                let length = at.len();
                at.push_str(&element.to_string());
                walk(&branch.below, at, most, out);
                at.truncate(length);
            }
        }
        let mut out = Vec::new();
        walk(self, &mut String::new(), most, &mut out);
        out
    }

    /// How many members there are.
    pub(crate) fn count(&self) -> usize {
        self.0.values().map(|branch| usize::from(branch.member) + branch.below.count()).sum()
    }

    /// `FieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        fn walk(branch: &Branch) -> Value {
            let mut map = Map::new();
            if branch.member && !branch.below.0.is_empty() {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            map.extend(branch.below.0.iter().map(|(element, branch)| (element.encode(), walk(branch))));
            Value::Object(map)
        }
        Value::Object(self.0.iter().map(|(element, branch)| (element.encode(), walk(branch))).collect())
    }

    pub(crate) fn decode(fields: &Value) -> Result<Self, String> {
        let Value::Object(map) = fields else { return Err("FieldsV1 is not an object".to_owned()) };
        let mut set = Self::default();
        for (key, value) in map.iter().filter(|(key, _)| *key != ".") {
            let Some(element) = Element::decode(key)? else { continue };
            let below = Self::decode(value)?;
            let member = below.0.is_empty() || value.get(".").is_some();
            set.0.insert(element, Branch { member, below });
        }
        Ok(set)
    }
}
