//! What Go's decoder does to a built-in kind: refuses wrong types in its own words, and normalises nulls.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{Additional, Kind, Node, Schema};
use crate::object::{builtin, quantity};

impl Schema {
    /// Checks an object's types the way the API server's decoder does, before pruning. The error is what stands in the
    /// 400 after `ConfigMap in version "v1" cannot be handled as a ConfigMap: `, for example `json: cannot unmarshal
    /// number into Go struct field ConfigMap.data of type string`. Of a custom resource only metadata and embedded
    /// resources are checked; the rest is validated.
    pub(crate) fn check_types(&self, object: &Value) -> Result<(), String> {
        let mut decoder = Decoder::default();
        if self.custom {
            let metadata = object.get("metadata").filter(|m| !m.is_null());
            if let Some((metadata, node)) = metadata.zip(builtin::object_meta()) {
                decoder.value(metadata, node, "ObjectMeta")?;
            }
            return embedded(object, self.root(), &mut String::new());
        }
        let name = self.root().name.and_then(|n| n.rsplit('.').next()).unwrap_or_default();
        decoder.value(object, self.root(), name)
    }

    /// The same in the words of the converter that reads what a strategic merge patch has made of an object, for example
    /// `cannot restore map from string` (`runtime/converter.go` of upstream).
    pub(crate) fn check_converted(&self, object: &Value) -> Result<(), String> {
        Decoder { converts: true, ..Decoder::default() }.value(object, self.root(), "")
    }
}

/// The objects within a custom resource have a string for `apiVersion` and `kind`, and proper metadata. `path` is as it was
/// when all is well.
fn embedded(value: &Value, node: &Node, path: &mut String) -> Result<(), String> {
    let length = path.len();
    let wrong =
        |path: &str, value: &Value, said: &str| Err(crate::object::FieldError::invalid(path, value, said).to_string());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                if node.embedded && matches!(key.as_str(), "apiVersion" | "kind") && !value.is_string() {
                    return wrong(path, value, "must be a string");
                }
                if let (true, "metadata", Some(known)) = (node.embedded, key.as_str(), builtin::object_meta()) {
                    let outcome = Decoder::default().value(value, known, "ObjectMeta");
                    outcome.or_else(|why| wrong(path, value, &why))?;
                }
                if let Some(child) = node.child(key) {
                    embedded(value, child, path)?;
                }
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                let Some(node) = node.items() else { break };
                let _ = write!(path, "[{at}]");
                embedded(item, node, path)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Ok(())
}

#[derive(Default)]
struct Decoder {
    /// Field names from the root, with dots before each; list indices and map keys are not named.
    path: String,
    /// Errors are the converter's, which names no paths.
    converts: bool,
}

impl Decoder {
    fn mistyped(&self, value: &Value, owner: &str, want: &str) -> String {
        if self.converts {
            return unconverted(value, want);
        }
        self.undecoded(value, owner, want)
    }

    fn undecoded(&self, value: &Value, owner: &str, want: &str) -> String {
        let got = match value {
            Value::Bool(_) => "bool".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
            // The number itself where it is one that does not fit.
            Value::Number(n) if want.starts_with("int") => format!("number {n}"),
            Value::Number(_) | Value::Null => "number".to_owned(),
        };
        if self.path.is_empty() || self.converts {
            return format!("json: cannot unmarshal {got} into Go value of type {want}");
        }
        format!("json: cannot unmarshal {got} into Go struct field {owner}{} of type {want}", self.path)
    }

    /// `owner` is the Go type whose field is being read.
    fn value(&mut self, value: &Value, node: &Node, owner: &str) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        match node.name {
            Some(builtin::QUANTITY) => return quantity(value),
            Some(builtin::INT_OR_STRING) => return self.int_or_string(value, owner),
            Some(builtin::TIME | builtin::MICRO_TIME) => return self.time(value, owner),
            _ => {}
        }
        match (node.kind, value) {
            (Kind::Any, _) => Ok(()),
            (Kind::Object, Value::Object(map)) => self.object(map, node, owner),
            (Kind::Array, Value::Array(items)) => match node.items() {
                Some(node) => items.iter().try_for_each(|item| self.value(item, node, owner)),
                None => Ok(()),
            },
            (Kind::String, Value::String(text)) if node.format.as_deref() == Some("byte") => {
                match STANDARD.decode(text) {
                    Ok(_) => Ok(()),
                    Err(e) => {
                        let before = if self.converts { "error decoding from json: " } else { "" };
                        Err(format!("{before}illegal base64 data at input byte {}", offset(&e, text)))
                    }
                }
            }
            (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) | (Kind::Number, Value::Number(_)) => {
                Ok(())
            }
            (Kind::Integer, Value::Number(n)) => {
                let narrow = node.format.as_deref() == Some("int32");
                match n.as_i64() {
                    Some(i) if !narrow || i32::try_from(i).is_ok() => Ok(()),
                    _ => Err(self.mistyped(value, owner, &go_type(node))),
                }
            }
            _ => Err(self.mistyped(value, owner, &go_type(node))),
        }
    }

    fn object(&mut self, map: &Map<String, Value>, node: &Node, owner: &str) -> Result<(), String> {
        let owner = node.name.and_then(|n| n.rsplit('.').next()).unwrap_or(owner);
        for (key, value) in map {
            match (node.fields.get(key.as_str()), &node.additional) {
                (Some(field), _) => {
                    let length = self.path.len();
                    let _ = write!(self.path, ".{key}");
                    self.value(value, field.link.node(), owner)?;
                    self.path.truncate(length);
                }
                (None, Additional::Schema(link)) => self.value(value, link.node(), owner)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn int_or_string(&self, value: &Value, owner: &str) -> Result<(), String> {
        match value {
            Value::String(_) => Ok(()),
            Value::Number(n) if n.as_i64().is_some_and(|i| i32::try_from(i).is_ok()) => Ok(()),
            // It reads itself from JSON, and a time does.
            other => Err(self.undecoded(other, owner, "int32")),
        }
    }

    fn time(&self, value: &Value, owner: &str) -> Result<(), String> {
        let Value::String(text) = value else { return Err(self.undecoded(value, owner, "string")) };
        if text.parse::<jiff::Timestamp>().is_ok() {
            return Ok(());
        }
        let said = crate::object::field::quote(text);
        Err(format!("parsing time {said} as \"2006-01-02T15:04:05Z07:00\": cannot parse {said} as \"2006\""))
    }
}

/// What the converter says of a value that is no `want`, a Go type.
fn unconverted(value: &Value, want: &str) -> String {
    let got = match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    };
    match (got, want) {
        // Go has such conversions, which JSON has not.
        ("int64", "string" | "int32") | ("float64", "int32" | "int64") => format!("cannot convert {got} to {want}"),
        (_, "string" | "bool" | "int32" | "int64" | "float64") => format!("unrecognized type: {want}"),
        _ if want.starts_with("map[") => format!("cannot restore map from {got}"),
        _ if want.starts_with("[]") => format!("cannot restore slice from {got}"),
        _ => format!("cannot restore struct from: {got}"),
    }
}

fn quantity(value: &Value) -> Result<(), String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(n) => n.to_string(),
        _ => return Err(quantity::MISTAKE.to_owned()),
    };
    quantity::Quantity::parse(&text).map(|_| ()).map_err(str::to_owned)
}

fn offset(error: &base64::DecodeError, text: &str) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
    }
}

/// The Go type behind a schema: `string`, `[]v1.Container`, `map[string]string`.
fn go_type(node: &Node) -> String {
    if let Some(name) = node.name {
        let mut parts = name.rsplit('.');
        let (kind, package) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match name {
            builtin::QUANTITY => return "resource.Quantity".to_owned(),
            builtin::INT_OR_STRING => return "intstr.IntOrString".to_owned(),
            _ if node.kind == Kind::Object => return format!("{package}.{kind}"),
            _ => {}
        }
    }
    match (node.kind, node.format.as_deref()) {
        (Kind::String, Some("byte")) => "[]uint8".to_owned(),
        (Kind::String, _) => "string".to_owned(),
        (Kind::Boolean, _) => "bool".to_owned(),
        (Kind::Number, _) => "float64".to_owned(),
        (Kind::Integer, Some("int32")) => "int32".to_owned(),
        (Kind::Integer, _) => "int64".to_owned(),
        (Kind::Array, _) => format!("[]{}", node.items().map_or_else(|| "interface {}".to_owned(), go_type)),
        (Kind::Object, _) => match &node.additional {
            Additional::Schema(link) => format!("map[string]{}", go_type(link.node())),
            _ => "map[string]interface {}".to_owned(),
        },
        (Kind::Any, _) => "interface {}".to_owned(),
    }
}
