//! The columns and cells that `kubectl get` prints: those of Kubernetes' own kinds as its printers make them, and those
//! of custom resources from `additionalPrinterColumns`.

mod age;
mod cells;
mod jsonpath;
mod pod;
mod show;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) use self::age::human;
pub(crate) use self::jsonpath::JsonPath;
use super::field;

/// How the objects of one kind are printed. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Printer(Arc<Print>);

#[derive(Debug)]
struct Print {
    columns: Value,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    /// `group/Kind`.
    Builtin(String),
    /// Type and path of each column after the name; `None` for a path that cannot be read.
    Custom(Vec<(String, Option<JsonPath>)>),
}

impl Printer {
    /// A built-in kind's printer (`apps`, `Deployment`); name and creation time for one that has none of its own.
    pub(crate) fn builtin(group: &str, kind: &str) -> Self {
        let wanted = format!("{group}/{kind}");
        let lines = include_str!("columns.tsv").lines().filter_map(|line| line.split_once('\t'));
        let columns =
            lines.clone().find(|(of, _)| *of == wanted).or_else(|| lines.clone().find(|(of, _)| *of == cells::PLAIN));
        let columns = columns.and_then(|(_, json)| serde_json::from_str(json).ok()).unwrap_or(Value::Null);
        Self(Arc::new(Print { columns, rows: Rows::Builtin(wanted) }))
    }

    /// A custom resource's: `additionalPrinterColumns` of its version; the age alone when it has none.
    pub(crate) fn custom(columns: Option<&Value>) -> Self {
        let age = json!([{
            "name": "Age",
            "type": "date",
            "description": describe("creationTimestamp"),
            "jsonPath": ".metadata.creationTimestamp",
        }]);
        let listed = columns.filter(|c| c.as_array().is_some_and(|c| !c.is_empty())).unwrap_or(&age);
        let name = json!({
            "name": "Name", "type": "string", "format": "name", "description": describe("name"), "priority": 0,
        });
        let (mut definitions, mut paths) = (vec![name], Vec::new());
        for column in listed.as_array().into_iter().flatten() {
            let text = |key: &str| column.get(key).and_then(Value::as_str).unwrap_or_default();
            let path = text("jsonPath");
            let described = match text("description") {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                described => described.to_owned(),
            };
            definitions.push(json!({
                "name": text("name"),
                "type": text("type"),
                "format": text("format"),
                "description": described,
                "priority": column.get("priority").and_then(Value::as_i64).unwrap_or_default(),
            }));
            paths.push((text("type").to_owned(), JsonPath::parse(path).ok()));
        }
        Self(Arc::new(Print { columns: Value::Array(definitions), rows: Rows::Custom(paths) }))
    }

    /// `columnDefinitions`.
    pub(crate) fn columns(&self) -> Value {
        self.0.columns.clone()
    }

    /// One row's `cells`; ages are told as of `now`.
    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Value {
        match &self.0.rows {
            Rows::Builtin(kind) => Value::Array(cells::of(kind, object, now)),
            Rows::Custom(columns) => {
                let name = object.pointer("/metadata/name").cloned().unwrap_or_else(|| "".into());
                let cell = |(kind, path): &(String, Option<JsonPath>)| match path {
                    Some(path) => path.first(object).map_or(Value::Null, |value| custom_cell(kind, &value, now)),
                    None => Value::Null,
                };
                std::iter::once(name).chain(columns.iter().map(cell)).collect()
            }
        }
    }
}

/// Kubernetes' own words about a field of `metadata`.
fn describe(field: &str) -> &'static str {
    match field {
        "name" => {
            "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"
        }
        _ => {
            "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
        }
    }
}

/// A custom column's value as its type asks; null where it is of another type.
fn custom_cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match (kind, value) {
        ("string", Value::Null) => "<nil>".into(),
        ("string", Value::Array(_) | Value::Object(_)) => field::json(value).into(),
        ("string", other) => field::plain(other).into(),
        #[allow(clippy::cast_possible_truncation, reason = "Go's int64(f)")]
        ("integer", Value::Number(n)) => {
            n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from)
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) if text.is_empty() => "<unknown>".into(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(then) => human(then, now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests;
