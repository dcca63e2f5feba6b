//! Pieces of cells: reading fields, and the texts that several kinds share.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::human;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";

/// An object's fields by path, absent ones as their zero value: as Go's structs read.
#[derive(Clone, Copy)]
pub(super) struct Of<'a>(pub(super) &'a Value);

impl<'a> Of<'a> {
    /// `spec.replicas`.
    pub(super) fn get(self, path: &str) -> Option<&'a Value> {
        path.split('.').try_fold(self.0, |at, key| at.get(key)).filter(|v| !v.is_null())
    }

    pub(super) fn text(self, path: &str) -> &'a str {
        self.get(path).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn text_or(self, path: &str, otherwise: &'a str) -> &'a str {
        Some(self.text(path)).filter(|t| !t.is_empty()).unwrap_or(otherwise)
    }

    pub(super) fn int(self, path: &str) -> i64 {
        self.get(path).and_then(Value::as_i64).unwrap_or_default()
    }

    pub(super) fn flag(self, path: &str) -> bool {
        self.get(path).and_then(Value::as_bool).unwrap_or_default()
    }

    pub(super) fn list(self, path: &str) -> &'a [Value] {
        self.get(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn items(self, path: &str) -> impl DoubleEndedIterator<Item = Of<'a>> + ExactSizeIterator {
        self.list(path).iter().map(Of)
    }

    pub(super) fn map(self, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.get(path).and_then(Value::as_object).into_iter().flatten()
    }

    pub(super) fn time(self, path: &str) -> Option<Timestamp> {
        self.text(path).parse().ok()
    }

    pub(super) fn since(self, path: &str, now: Timestamp) -> String {
        self.time(path).map_or_else(|| "<unknown>".to_owned(), |then| human(then, now))
    }

    pub(super) fn age(self, now: Timestamp) -> Value {
        self.since("metadata.creationTimestamp", now).into()
    }

    pub(super) fn name(self) -> Value {
        self.text("metadata.name").into()
    }

    pub(super) fn is_deleted(self) -> bool {
        self.get("metadata.deletionTimestamp").is_some()
    }

    /// Whether a condition of a type is true.
    pub(super) fn condition(self, kind: &str) -> bool {
        let found = self.items("status.conditions").find(|c| c.text("type") == kind);
        found.is_some_and(|c| c.text("status") == "True")
    }
}

/// `a=b,c=d`
pub(super) fn labels(map: Option<&Value>) -> String {
    let mut pairs: Vec<String> = map
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    pairs.sort_unstable();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// A `LabelSelector` in the syntax of `kubectl -l`; empty for one that selects everything or nothing.
pub(super) fn selector_text(selector: Option<&Value>) -> String {
    let empty = Map::new();
    let fields = selector.and_then(Value::as_object).unwrap_or(&empty);
    let mut requirements: Vec<(String, String)> = Vec::new();
    for (key, value) in fields.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        requirements.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in fields.get("matchExpressions").and_then(Value::as_array).into_iter().flatten().map(Of) {
        let key = expression.text("key");
        let mut values: Vec<&str> = expression.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        requirements.push((key.to_owned(), text));
    }
    requirements.sort_by(|a, b| a.0.cmp(&b.0));
    requirements.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

pub(super) fn selector(selector: Option<&Value>) -> Value {
    let text = selector_text(selector);
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// Names and images of a template's containers.
pub(super) fn containers(of: Of<'_>, path: &str) -> [Value; 2] {
    let join = |key: &str| of.items(path).map(|c| c.text(key)).collect::<Vec<_>>().join(",").into();
    [join("name"), join("image")]
}

/// The first `max` of a list, and how many more there are.
pub(super) fn some_of(list: &[String], max: usize, separator: &str, empty: &str) -> String {
    match list.len() {
        0 => empty.to_owned(),
        n if n > max => {
            let shown: Vec<&str> = list.iter().take(max).map(String::as_str).collect();
            format!("{} + {} more...", shown.join(separator), n - max)
        }
        _ => list.join(separator),
    }
}

/// `RWO,ROX`
pub(super) fn access_modes(modes: &[Value]) -> String {
    let has = |mode: &&(&str, &str)| modes.iter().any(|m| m.as_str() == Some(mode.0));
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")]
        .iter()
        .filter(has)
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
}

/// IntOrString.
pub(super) fn int_or_string(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "N/A".to_owned(),
    }
}
