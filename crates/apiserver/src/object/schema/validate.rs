//! Validation with the paths, reasons and messages of `kube-openapi`'s validator as the API server prints them.

use std::collections::HashSet;
use std::fmt::Write;

use serde_json::{Map, Value};

use super::before::Before;
use super::{Additional, Checks, Kind, List, Node, Schema, format};
use crate::object::field::{self, Cause, ERRORS_MAX, Errors, FieldError};
use crate::object::meta;

const UNCHECKED: &str = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";

impl Schema {
    /// Checks an object against types, value validations, embedded resources, list keys and, when it is good enough for
    /// them, the rules in CEL. With `old`, what was wrong before and is unchanged is let through (Kubernetes'
    /// ratcheting); of rules that is told, in the second list.
    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>) -> (Vec<FieldError>, Vec<String>) {
        let mut errors = self.check(object, old);
        let blocking = |e: &FieldError| {
            use Cause::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
            matches!(e.reason, NotSupported | Required | TooLong | TooMany | TypeInvalid)
        };
        if errors.iter().any(blocking) && self.root().ruled {
            errors.truncate(ERRORS_MAX - 1);
            errors.push(FieldError::invalid("", &Value::Null, UNCHECKED));
            return (errors, Vec::new());
        }
        let verdict = self.verdict(object, old);
        errors.extend(verdict.errors);
        errors.truncate(ERRORS_MAX);
        (errors, verdict.warnings)
    }

    /// All but the rules.
    pub(super) fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut validator = Validator { path: String::new() };
        let mut errors = Errors::default();
        errors.extend(validator.value(self.root(), object, old).errors);
        let path = &mut String::new();
        embedded(self.root(), object, path, false, &mut errors);
        // Lists that had an item twice before may go on so.
        let mut before = Errors::default();
        if let Some(old) = old {
            lists(self.root(), old, path, &mut before);
        }
        if before.is_empty() {
            lists(self.root(), object, path, &mut errors);
        }
        errors.into_vec()
    }
}

/// Errors, and how many checks matched: the branch of an `anyOf` that matched most is the one whose errors are told.
#[derive(Default)]
struct Outcome {
    errors: Vec<FieldError>,
    matched: usize,
}

impl Outcome {
    fn add(&mut self, error: FieldError) {
        if self.errors.len() < ERRORS_MAX && !self.errors.iter().any(|e| e.body == error.body && e.path == error.path) {
            self.errors.push(error);
        }
    }

    fn merge(&mut self, other: Self) {
        other.errors.into_iter().for_each(|e| self.add(e));
        self.matched += other.matched;
    }
}

struct Validator {
    path: String,
}

/// A number as Go's decoder leaves it.
#[derive(Clone, Copy)]
enum Num {
    Int(i64),
    Float(f64),
}

impl Num {
    fn of(value: &Value) -> Option<Self> {
        let number = value.as_number()?;
        number.as_i64().map(Self::Int).or_else(|| number.as_f64().map(Self::Float))
    }

    fn float(self) -> f64 {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "Go compares as float64 too")]
            Self::Int(i) => i as f64,
            Self::Float(f) => f,
        }
    }

    /// Integers are compared with the bound's integer part, as upstream does.
    fn against(self, bound: f64) -> (std::cmp::Ordering, String) {
        #[allow(clippy::cast_possible_truncation, reason = "Go's int64(max)")]
        match self {
            Self::Int(i) => (i.cmp(&(bound as i64)), (bound as i64).to_string()),
            Self::Float(f) => (f.partial_cmp(&bound).unwrap_or(std::cmp::Ordering::Equal), field::float(bound)),
        }
    }
}

impl Validator {
    /// The path as `field.Path` prints it.
    fn at(&self) -> String {
        self.path.trim_start_matches('.').to_owned()
    }

    fn invalid(&self, value: &Value, said: impl std::fmt::Display) -> FieldError {
        FieldError::invalid(self.at(), value, &format!("{} in body {said}", self.path))
    }

    fn mistyped(&self, want: &str, got: &str) -> FieldError {
        let said = format!("{} in body must be of type {want}: {}", self.path, field::quote(got));
        FieldError::type_invalid(self.at(), got, &said)
    }

    /// An error of a whole schema (`anyOf` and so on), which Kubernetes reports without a path.
    fn whole(&self, said: &str) -> FieldError {
        FieldError::invalid_str("", "", &format!("{} {said}", field::quote(&self.path)))
    }

    fn below<T>(&mut self, step: impl FnOnce(&mut String), then: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        step(&mut self.path);
        let out = then(self);
        self.path.truncate(length);
        out
    }

    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let out = self.checks(node, value, old);
        if !out.errors.is_empty() && old == Some(value) {
            return Outcome { errors: Vec::new(), matched: out.matched };
        }
        out
    }

    fn checks(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        let known_format = node.format.as_deref().filter(|f| format::is_known(f));
        let typed = node.kind != Kind::Any || node.int_or_string;
        if value.is_null() {
            if typed {
                if node.nullable { out.matched += 1 } else { out.add(self.mistyped(&type_names(node), "null")) }
            }
            if let Some(checks) = &node.checks {
                self.choice(checks, value, &mut out);
            }
            return out;
        }
        if typed || known_format.is_some() {
            match self.kind(node, known_format, value) {
                Some(error) => out.add(error),
                None => out.matched += 1,
            }
            out.matched += 1;
        }
        let empty = Checks::default();
        let checks = node.checks.as_deref().unwrap_or(&empty);
        out.merge(self.combined(checks, value));
        match value {
            Value::String(text) => {
                if let Some(error) = self.text(checks, text, value) {
                    out.add(error);
                }
                if let Some(name) = known_format {
                    if !format::matches(name, text) {
                        out.add(self.mistyped(name, text));
                    }
                    out.matched += 1;
                }
                out.matched += 1;
            }
            Value::Number(_) => {
                self.number(checks, value, &mut out);
                out.matched += 2;
            }
            Value::Array(items) => {
                self.items(node, checks, items, old, &mut out);
                out.matched += 2;
            }
            Value::Object(_) => out.matched += 1,
            Value::Bool(_) | Value::Null => {}
        }
        self.choice(checks, value, &mut out);
        out.matched += 1;
        if let Value::Object(map) = value {
            self.object(node, checks, map, old, &mut out);
        }
        out.matched += 1;
        out
    }

    fn kind(&self, node: &Node, known_format: Option<&str>, value: &Value) -> Option<FieldError> {
        let (got, got_format) = match (value, Num::of(value)) {
            (Value::Bool(_), _) => ("boolean", ""),
            (Value::String(_), _) => ("string", ""),
            (Value::Array(_), _) => ("array", ""),
            (Value::Object(_), _) => ("object", ""),
            (_, Some(Num::Int(_))) => ("integer", "int64"),
            _ => ("number", "float"),
        };
        let integral =
            matches!(Num::of(value), Some(Num::Float(f)) if f.fract() == 0.0 && f.abs() < 9_007_199_254_740_992.0);
        let wants = |kind: &str| node.kind.name() == kind || node.int_or_string && matches!(kind, "integer" | "string");
        let fits = wants(got) || integral && wants("integer") || got == "integer" && wants("number");
        let numeric = wants("number") || wants("integer");
        if let Some(name) = known_format {
            let listed = matches!(value, Value::String(_) | Value::Array(_));
            if !listed && !fits {
                return Some(self.mistyped(name, got_format));
            }
            if listed && !numeric {
                return None;
            }
        }
        (!fits).then(|| self.mistyped(&type_names(node), got))
    }

    fn text(&self, checks: &Checks, text: &str, value: &Value) -> Option<FieldError> {
        let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = checks.max_length.filter(|max| length() > *max) {
            return Some(FieldError::too_long(self.at(), max.unsigned_abs()));
        }
        if let Some(min) = checks.min_length.filter(|min| length() < *min) {
            return Some(self.invalid(value, format_args!("should be at least {min} chars long")));
        }
        let pattern = checks.pattern.as_ref()?;
        match pattern.is_match(text) {
            Ok(true) => None,
            Ok(false) => Some(self.invalid(value, format_args!("should match '{}'", pattern.text()))),
            Err(why) => {
                let said = format!("should match '{}, but pattern is invalid: {why}'", pattern.text());
                Some(self.invalid(value, said))
            }
        }
    }

    fn number(&self, checks: &Checks, value: &Value, out: &mut Outcome) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let Some(number) = Num::of(value) else { return };
        if let Some(factor) = checks.multiple_of.filter(|f| *f > 0.0) {
            let times = if factor < 1.0 { 1.0 / factor * number.float() } else { number.float() / factor };
            if (times - times.round()).abs() > 1e-9 * times.abs().max(1.0) {
                out.add(self.invalid(value, format_args!("should be a multiple of {}", field::float(factor))));
            }
        }
        if let Some(min) = checks.minimum {
            match (number.against(min), checks.exclusive_minimum) {
                ((Less, bound), false) => {
                    out.add(self.invalid(value, format_args!("should be greater than or equal to {bound}")))
                }
                ((Less | Equal, bound), true) => {
                    out.add(self.invalid(value, format_args!("should be greater than {bound}")))
                }
                _ => {}
            }
        }
        if let Some(max) = checks.maximum {
            match (number.against(max), checks.exclusive_maximum) {
                ((Greater, bound), false) => {
                    out.add(self.invalid(value, format_args!("should be less than or equal to {bound}")))
                }
                ((Greater | Equal, bound), true) => {
                    out.add(self.invalid(value, format_args!("should be less than {bound}")))
                }
                _ => {}
            }
        }
    }

    fn choice(&self, checks: &Checks, value: &Value, out: &mut Outcome) {
        let same = |choice: &Value| match (Num::of(choice), Num::of(value)) {
            (Some(a), Some(b)) => a.float() == b.float(),
            _ => choice == value,
        };
        if !checks.choices.is_empty() && !checks.choices.iter().any(same) {
            let supported: Vec<String> = checks
                .choices
                .iter()
                .map(|choice| choice.as_str().map_or_else(|| field::json(choice), str::to_owned))
                .collect();
            out.add(FieldError::not_supported(self.at(), value, &supported));
        }
    }

    fn items(&mut self, node: &Node, checks: &Checks, items: &[Value], old: Option<&Value>, out: &mut Outcome) {
        if let Some(below) = node.items() {
            let keyed = Before::of(node, old);
            let placed = old.and_then(Value::as_array).filter(|_| node.list == List::Atomic);
            for (i, item) in items.iter().enumerate() {
                let before = keyed.as_ref().and_then(|it| it.item(item)).or_else(|| placed?.get(i));
                let step = |path: &mut String| {
                    let _ = write!(path, "[{i}]");
                };
                let result = self.below(step, |this| this.value(below, item, before));
                out.merge(result);
            }
        }
        let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_items.filter(|min| size < *min) {
            out.add(self.invalid(&Value::from(size), format_args!("should have at least {min} items")));
        }
        if let Some(max) = checks.max_items.filter(|max| size > *max) {
            out.add(FieldError::too_many(self.at(), items.len(), max.unsigned_abs()));
        }
    }

    fn object(
        &mut self,
        node: &Node,
        checks: &Checks,
        map: &Map<String, Value>,
        old: Option<&Value>,
        out: &mut Outcome,
    ) {
        let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_properties.filter(|min| size < *min) {
            out.add(self.invalid(&Value::from(size), format_args!("should have at least {min} properties")));
        }
        if let Some(max) = checks.max_properties.filter(|max| size > *max) {
            out.add(FieldError::too_many(self.at(), map.len(), max.unsigned_abs()));
        }
        let before = |key: &str| old.and_then(|old| old.get(key));
        if matches!(node.additional, Additional::Forbidden) {
            for key in map.keys().filter(|key| !node.fields.contains_key(key.as_str())) {
                let said = format!("{}.{key} in body is a forbidden property", self.path);
                out.add(FieldError::invalid_str(self.at(), key, &said));
            }
        }
        if let Additional::Schema(link) = &node.additional {
            for (key, value) in map.iter().filter(|(key, _)| !node.fields.contains_key(key.as_str())) {
                let step = |path: &mut String| path.extend([".", field::key(key)]);
                let result = self.below(step, |this| this.value(link.node(), value, before(key)));
                out.merge(result);
            }
        }
        for (name, field) in &node.fields {
            let Some(value) = map.get(&**name) else { continue };
            let step = |path: &mut String| {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            };
            let result = self.below(step, |this| this.value(field.link.node(), value, before(name)));
            out.merge(result);
        }
        for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
            let step = |path: &mut String| path.extend([".", name]);
            let error = self.below(step, |this| FieldError::required(this.at(), ""));
            out.add(error);
        }
    }

    fn combined(&mut self, checks: &Checks, value: &Value) -> Outcome {
        let mut out = Outcome { errors: Vec::new(), matched: 1 };
        if !checks.any_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut good = false;
            for node in &checks.any_of {
                let result = self.value(node, value, None);
                good = result.errors.is_empty();
                if good || best.as_ref().is_none_or(|best| result.matched > best.matched) {
                    best = Some(result);
                }
                if good {
                    break;
                }
            }
            if !good {
                out.add(self.whole("must validate at least one schema (anyOf)"));
            }
            best.into_iter().for_each(|best| out.merge(best));
        }
        if !checks.one_of.is_empty() {
            let mut best: Option<Outcome> = None;
            let mut good = 0;
            for node in &checks.one_of {
                let result = self.value(node, value, None);
                if result.errors.is_empty() {
                    if good == 0 {
                        best = Some(result);
                    }
                    good += 1;
                } else if good == 0 && best.as_ref().is_none_or(|best| result.matched > best.matched) {
                    best = Some(result);
                }
            }
            match good {
                1 => {}
                0 => out.add(self.whole("must validate one and only one schema (oneOf). Found none valid")),
                n => {
                    best = None;
                    out.add(self.whole(&format!(
                        "must validate one and only one schema (oneOf). Found {n} valid alternatives"
                    )));
                }
            }
            best.into_iter().for_each(|best| out.merge(best));
        }
        if !checks.all_of.is_empty() {
            let mut good = 0;
            for node in &checks.all_of {
                let result = self.value(node, value, None);
                good += usize::from(result.errors.is_empty());
                out.merge(result);
            }
            if good < checks.all_of.len() {
                let none = if good == 0 { ". None validated" } else { "" };
                out.add(self.whole(&format!("must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(node) = &checks.not
            && self.value(node, value, None).errors.is_empty()
        {
            out.add(self.whole("must not validate the schema (not)"));
        }
        out
    }
}

fn type_names(node: &Node) -> String {
    if node.int_or_string { "integer,string".to_owned() } else { node.kind.name().to_owned() }
}

/// `x-kubernetes-embedded-resource`: type and metadata of objects within objects.
fn embedded(node: &Node, value: &Value, path: &mut String, check: bool, errors: &mut Errors) {
    if errors.is_full() {
        return;
    }
    if let (true, Value::Object(map)) = (check && node.embedded, value) {
        resource(map, path, errors);
    }
    each_below(node, value, path, &mut |node, value, path| embedded(node, value, path, true, errors));
}

/// What is declared below a value, with its path.
fn each_below(node: &Node, value: &Value, path: &mut String, step: &mut dyn FnMut(&Node, &Value, &mut String)) {
    let length = path.len();
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let Some(child) = node.child(key) else { continue };
                let _ = match node.fields.contains_key(key.as_str()) {
                    true if length == 0 => write!(path, "{}", field::key(key)),
                    true => write!(path, ".{}", field::key(key)),
                    false => write!(path, "[{}]", field::key(key)),
                };
                step(child, value, path);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let Some(node) = node.items() else { return };
                let _ = write!(path, "[{i}]");
                step(node, item, path);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn resource(map: &Map<String, Value>, path: &str, errors: &mut Errors) {
    for key in ["apiVersion", "kind"] {
        let path = format!("{path}.{key}");
        match map.get(key) {
            None => errors.push(FieldError::required(path, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid_str(path, "", "must not be empty"));
            }
            Some(Value::String(text)) if key == "apiVersion" => {
                if text.matches('/').count() > 1 {
                    let said = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid_str(path, text, &said));
                }
            }
            Some(Value::String(text)) => {
                let wrong = meta::dns1035_label(&text.to_lowercase());
                if !wrong.is_empty() {
                    let said = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    errors.push(FieldError::invalid_str(path, text, &said));
                }
            }
            Some(other) => errors.push(FieldError::invalid(path, other, "must be a string")),
        }
    }
    if let Some(metadata) = map.get("metadata") {
        let mut metadata = metadata.clone();
        let nameless = metadata.get("name").and_then(Value::as_str).is_none_or(str::is_empty);
        if let (true, Some(map)) = (nameless, metadata.as_object_mut()) {
            map.insert("name".into(), "fakename".into());
        }
        let namespaced = metadata.get("namespace").and_then(Value::as_str).is_some_and(|ns| !ns.is_empty());
        let path = format!("{path}.metadata");
        errors.extend(meta::validate_object_meta(&metadata, namespaced, meta::NameRule::PathSegment, &path));
    }
}

/// List sets have no item twice, list maps no key twice.
fn lists(node: &Node, value: &Value, path: &mut String, errors: &mut Errors) {
    if errors.is_full() {
        return;
    }
    if let Value::Array(items) = value {
        match &node.list {
            List::Atomic => {}
            List::Set => duplicates(items.iter().map(|item| (field::json(item), item.clone())), path, errors),
            List::Map(keys) => list_map(items, keys, path, errors),
        }
    }
    each_below(node, value, path, &mut |node, value, path| lists(node, value, path, errors));
}

fn list_map(items: &[Value], keys: &[Box<str>], path: &str, errors: &mut Errors) {
    if let Some((i, item)) = items.iter().enumerate().find(|(_, item)| !item.is_null() && !item.is_object()) {
        let said = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(format!("{path}[{i}]"), item, said));
        return;
    }
    let key_of = |item: &Value| -> Value {
        let values = keys.iter().filter_map(|key| Some((key.to_string(), item.get(&**key)?.clone())));
        Value::Object(values.collect())
    };
    duplicates(items.iter().map(key_of).map(|key| (field::json(&key), key)), path, errors);
}

/// Names the second of each that is there more than once.
fn duplicates(items: impl Iterator<Item = (String, Value)>, path: &str, errors: &mut Errors) {
    let (mut seen, mut told) = (HashSet::new(), HashSet::new());
    for (i, (key, shown)) in items.enumerate() {
        if errors.is_full() {
            return;
        }
        if seen.contains(&key) {
            if told.insert(key) {
                errors.push(FieldError::duplicate(format!("{path}[{i}]"), &shown));
            }
        } else {
            seen.insert(key);
        }
    }
}
