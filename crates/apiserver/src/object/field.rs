//! Field errors in the words of `k8s.io/apimachinery/pkg/util/validation/field`, and the way Go prints values in them.

use std::fmt::{self, Write};

use serde_json::{Number, Value};

/// More errors than this are not told: a body full of mistakes must not become an answer many times its size.
pub(crate) const ERRORS_MAX: usize = 100;
/// So many bytes are shown of a path, of a value and of what is wrong with it.
const SHOWN_MAX: usize = 10 << 10;
/// So many of a key in a path: what is below a long one names it again and again.
const KEY_MAX: usize = 1 << 10;

/// Why a field was refused: the `reason` of a `metav1.StatusCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    TypeInvalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
}

impl Cause {
    /// The machine-readable reason, as it stands in `Status.details.causes[].reason`.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One refused field. `Display` is the whole line that kubectl prints, `body` is what a status cause carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) path: String,
    pub(crate) reason: Cause,
    pub(crate) body: String,
}

/// What was found wrong, as much of it as is told.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn push(&mut self, error: FieldError) {
        if !self.is_full() {
            self.0.push(error);
        }
    }

    /// Nothing more is told.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= ERRORS_MAX
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

impl Extend<FieldError> for Errors {
    fn extend<T: IntoIterator<Item = FieldError>>(&mut self, errors: T) {
        self.0.extend(errors.into_iter().take(ERRORS_MAX - self.0.len()));
    }
}

impl std::ops::Deref for Errors {
    type Target = [FieldError];

    fn deref(&self) -> &[FieldError] {
        &self.0
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body)
    }
}

impl FieldError {
    /// `path` empty means the object itself, which Kubernetes prints as `<nil>`.
    fn new(path: impl Into<String>, reason: Cause, value: Option<String>, detail: &str) -> Self {
        let mut path = path.into();
        if path.is_empty() {
            path.push_str("<nil>");
        }
        path.truncate(start(&path, SHOWN_MAX).len());
        let mut body = reason.words().to_owned();
        for part in value.as_deref().into_iter().chain((!detail.is_empty()).then_some(detail)) {
            body.push_str(": ");
            body.push_str(start(part, SHOWN_MAX));
            if part.len() > SHOWN_MAX {
                body.push_str("...");
            }
        }
        Self { path, reason, body }
    }

    pub(crate) fn required(path: impl Into<String>, detail: &str) -> Self {
        Self::new(path, Cause::Required, None, detail)
    }

    pub(crate) fn forbidden(path: impl Into<String>, detail: &str) -> Self {
        Self::new(path, Cause::Forbidden, None, detail)
    }

    pub(crate) fn internal(path: impl Into<String>, detail: &str) -> Self {
        Self::new(path, Cause::Internal, None, detail)
    }

    pub(crate) fn invalid(path: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::new(path, Cause::Invalid, Some(print(value)), detail)
    }

    pub(crate) fn invalid_str(path: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::new(path, Cause::Invalid, Some(quote(value)), detail)
    }

    /// With the value as it is to be shown.
    pub(crate) fn invalid_shown(path: impl Into<String>, shown: String, detail: &str) -> Self {
        Self::new(path, Cause::Invalid, Some(shown), detail)
    }

    pub(crate) fn type_invalid(path: impl Into<String>, value: &str, detail: &str) -> Self {
        Self::new(path, Cause::TypeInvalid, Some(quote(value)), detail)
    }

    pub(crate) fn not_found(path: impl Into<String>, value: &Value) -> Self {
        Self::new(path, Cause::NotFound, Some(print(value)), "")
    }

    pub(crate) fn duplicate(path: impl Into<String>, value: &Value) -> Self {
        Self::new(path, Cause::Duplicate, Some(print(value)), "")
    }

    pub(crate) fn not_supported<S: AsRef<str>>(path: impl Into<String>, value: &Value, supported: &[S]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| quote(s.as_ref())).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new(path, Cause::NotSupported, Some(print(value)), &detail)
    }

    pub(crate) fn too_long(path: impl Into<String>, max: u64) -> Self {
        let unit = if max == 1 { "byte" } else { "bytes" };
        Self::new(path, Cause::TooLong, None, &format!("may not be more than {max} {unit}"))
    }

    pub(crate) fn too_many(path: impl Into<String>, actual: usize, max: u64) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(path, Cause::TooMany, Some(actual.to_string()), &format!("must have at most {max} {unit}"))
    }
}

/// A key as it stands in a path.
pub(crate) fn key(key: &str) -> &str {
    start(key, KEY_MAX)
}

/// At most so many of the first bytes.
fn start(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

/// A value as `field.Error` prints it: strings quoted, simple values plain, all else as Go's JSON.
pub(crate) fn print(value: &Value) -> String {
    match value {
        Value::String(s) => quote(s),
        Value::Number(n) => number(n),
        other => json(other),
    }
}

/// Go's `%v` of a value, keys sorted.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", plain(v))).collect();
            fields.sort_unstable();
            format!("map[{}]", fields.join(" "))
        }
        other => print(other),
    }
}

/// What Go writes for a character that it has a letter for, and for those that quotes need.
pub(crate) fn escape(c: char) -> Option<&'static str> {
    Some(match c {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\u{7}' => "\\a",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{b}' => "\\v",
        _ => return None,
    })
}

/// Go's `%q`.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            c if let Some(escape) = escape(c) => out.push_str(escape),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || matches!(c as u32, 0xa0 | 0xad | 0x2028 | 0x2029 | 0xfeff) => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's `encoding/json`: keys sorted, `<`, `>` and `&` escaped.
pub(crate) fn json(value: &Value) -> String {
    let mut out = String::new();
    write_json(&mut out, value);
    out
}

fn write_json(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (None, Some(f)) => out.push_str(&scientific(f, 1e-6..1e21, 1)),
            _ => out.push_str(&n.to_string()),
        },
        Value::String(s) => write_json_string(out, s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json(out, item);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by(|a, b| a.0.cmp(b.0));
            out.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_json_string(out, key);
                out.push(':');
                write_json(out, item);
            }
            out.push('}');
        }
    }
}

fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Go's `%v` of an `int64` or `float64`.
pub(crate) fn number(n: &Number) -> String {
    match (n.as_i64(), n.as_f64()) {
        (Some(i), _) => i.to_string(),
        (None, Some(f)) => float(f),
        (None, None) => n.to_string(),
    }
}

/// Go's `%v` of a `float64`: shortest digits, with an exponent below 1e-4 and from 1e6 on.
pub(crate) fn float(f: f64) -> String {
    scientific(f, 1e-4..1e6, 2)
}

/// Rust's shortest digits in Go's layout: `width` digits of an exponent at least.
fn scientific(f: f64, plain: std::ops::Range<f64>, width: usize) -> String {
    if f == 0.0 || plain.contains(&f.abs()) {
        return format!("{f}");
    }
    let text = format!("{f:e}");
    let Some((digits, exp)) = text.split_once('e') else { return text };
    let (sign, exp) = exp.strip_prefix('-').map_or(('+', exp), |e| ('-', e));
    format!("{digits}e{sign}{exp:0>width$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_printed_as_go_prints_them() {
        for (value, want) in [
            (json!("a\"b\n\u{1}é"), r#""a\"b\n\x01é""#),
            (json!(3), "3"),
            (json!(3.0), "3"),
            (json!(1.5e-7), "1.5e-07"),
            (json!(1e21), "1e+21"),
            (json!(123456789.25), "1.2345678925e+08"),
            (json!([123456789.25, 1e-7]), "[123456789.25,1e-7]"),
            (json!(true), "true"),
            (json!(null), "null"),
            (json!({"b": "<x>", "a": [1, "q"]}), r#"{"a":[1,"q"],"b":"\u003cx\u003e"}"#),
        ] {
            assert_eq!(print(&value), want);
        }
    }

    #[test]
    fn errors_read_like_those_of_kubernetes() {
        assert_eq!(FieldError::required("spec.size", "").to_string(), "spec.size: Required value");
        assert_eq!(
            FieldError::not_supported("spec.size", &json!("huge"), &["small", "large"]).to_string(),
            r#"spec.size: Unsupported value: "huge": supported values: "small", "large""#
        );
        assert_eq!(FieldError::too_long("a", 5).to_string(), "a: Too long: may not be more than 5 bytes");
        assert_eq!(FieldError::too_many("a", 4, 1).to_string(), "a: Too many: 4: must have at most 1 item");
        assert_eq!(FieldError::invalid("", &json!(null), "no").to_string(), "<nil>: Invalid value: null: no");
    }
}
