//! `metadata.managedFields`: who owns what, decoded, encoded and kept in order.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::Set;
use crate::object::field;

/// More updaters than this are merged into one, oldest first.
const UPDATERS_MAX: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

/// What makes an entry the same entry. An applier's version is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    /// Empty for appliers.
    pub(crate) api_version: String,
    pub(crate) subresource: String,
}

impl Id {
    pub(crate) fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        Self {
            manager: if manager.is_empty() { "unknown" } else { manager }.to_owned(),
            operation,
            api_version: if operation == Operation::Apply { "" } else { api_version }.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// As conflicts name it: `"kubectl" using apps/v1`.
    pub(crate) fn show(&self) -> String {
        let mut out = field::quote(&self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {}", field::quote(&self.subresource)));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) api_version: String,
    pub(crate) set: Set,
    /// As it stands in the object: an entry that changed nothing has none.
    pub(crate) time: Option<Value>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Managers(pub(crate) BTreeMap<Id, Entry>);

impl Managers {
    pub(crate) fn decode(fields: Option<&Value>) -> Result<Self, String> {
        let mut out = BTreeMap::new();
        for (i, entry) in fields.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return Err("operation must be `Apply` or `Update`".to_owned()),
            };
            if text("apiVersion").is_empty() {
                return Err("apiVersion must not be empty".to_owned());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
                other => return Err(format!("invalid fieldsType {} in managed fields entry {i}", field::quote(other))),
            }
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(fields) => Set::decode(fields)?,
            };
            let id = Id::new(text("manager"), operation, text("apiVersion"), text("subresource"));
            let time = entry.get("time").filter(|t| !t.is_null()).cloned();
            out.insert(id, Entry { api_version: text("apiVersion").to_owned(), set, time });
        }
        Ok(Self(out))
    }

    /// `None` when nobody owns anything.
    pub(crate) fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&Id, &Entry)> = self.0.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            let key = |id: &Id, entry: &Entry| (id.operation, seconds(entry.time.as_ref()));
            key(a, x)
                .cmp(&key(b, y))
                .then_with(|| a.manager.cmp(&b.manager))
                .then_with(|| x.api_version.cmp(&y.api_version))
                .then_with(|| a.subresource.cmp(&b.subresource))
        });
        let encode = |(id, entry): (&Id, &Entry)| {
            let mut out = Map::new();
            out.insert("manager".into(), json!(id.manager));
            let operation = if id.operation == Operation::Apply { "Apply" } else { "Update" };
            out.insert("operation".into(), json!(operation));
            out.insert("apiVersion".into(), json!(entry.api_version));
            out.extend(entry.time.clone().map(|time| ("time".to_owned(), time)));
            out.insert("fieldsType".into(), json!("FieldsV1"));
            out.insert("fieldsV1".into(), entry.set.encode());
            if !id.subresource.is_empty() {
                out.insert("subresource".into(), json!(id.subresource));
            }
            Value::Object(out)
        };
        (!entries.is_empty()).then(|| entries.into_iter().map(encode).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Merges the oldest updaters of a version into `ancient-changes` until there are few enough.
    pub(crate) fn cap_updaters(&mut self) {
        let mut updaters: Vec<(i64, Id)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, entry)| (seconds(entry.time.as_ref()), id.clone()))
            .collect();
        let mut left = updaters.len();
        if left <= UPDATERS_MAX {
            return;
        }
        updaters.sort();
        let mut first_of: BTreeMap<String, Id> = BTreeMap::new();
        for (_, id) in updaters {
            if left <= UPDATERS_MAX {
                return;
            }
            let Some(first) = first_of.get(&id.api_version) else {
                first_of.insert(id.api_version.clone(), id);
                continue;
            };
            let bucket = Id::new("ancient-changes", Operation::Update, &id.api_version, "");
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(first)
            {
                self.0.insert(bucket.clone(), entry);
            }
            if let (Some(entry), Some(into)) = (self.0.remove(&id), self.0.get_mut(&bucket)) {
                into.set = into.set.union(&entry.set);
                into.time = entry.time;
            }
            left -= 1;
        }
    }
}

fn seconds(time: Option<&Value>) -> i64 {
    time.and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_second)
}

/// `metav1.Time`: whole seconds, UTC.
pub(crate) fn stamp(now: Timestamp) -> Value {
    Value::String(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
