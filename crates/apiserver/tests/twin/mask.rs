//! What of an answer is compared.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::side::Answer;

/// The names that one server gave in one case, in the order in which they came.
pub(crate) struct Mask {
    namespace: String,
    seen: HashMap<&'static str, Vec<String>>,
    uid: Regex,
    time: Regex,
    generated: Regex,
    shared: Regex,
}

/// How a body is written down.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    /// Causes in any order.
    pub(crate) unordered: bool,
    /// One line a value, with its place.
    pub(crate) flat: bool,
}

impl Mask {
    pub(crate) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            seen: HashMap::new(),
            uid: Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap(),
            time: Regex::new(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").unwrap(),
            // What documents share is named by its text.
            shared: Regex::new("^#/parameters/([a-zA-Z]+)-.{8}$").unwrap(),
            generated: Regex::new("-[bcdfghjklmnpqrstvwxz2456789]{5}(\"|$)").unwrap(),
        }
    }

    /// The answer as text, one value a line.
    pub(crate) fn answer(&mut self, answer: &Answer, ignore: &[String], form: Form) -> String {
        let mut said = format!("{} {}\n", answer.code, answer.content);
        for warning in &answer.warnings {
            said += &format!("warning: {}\n", self.text(warning));
        }
        if let Some(location) = &answer.location {
            said += &format!("location: {}\n", self.text(location));
        }
        if answer.text.trim().is_empty() {
            return said;
        }
        let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&answer.text).into_iter().collect();
        let Ok(documents) = documents else { return said + &self.text(&answer.text) };
        for mut document in documents {
            for pointer in ignore {
                let path: Vec<&str> = pointer.split('/').skip(1).collect();
                remove(&mut document, &path);
            }
            if form.unordered {
                remove(&mut document, &["message"]);
                if let Some(causes) = document.pointer_mut("/details/causes").and_then(Value::as_array_mut) {
                    causes.sort_by_key(Value::to_string);
                }
            }
            self.value("", &mut document);
            if form.flat {
                flat("", &document, &mut said);
                continue;
            }
            said += &serde_json::to_string_pretty(&document).unwrap();
            said.push('\n');
        }
        said
    }

    fn value(&mut self, name: &str, value: &mut Value) {
        match value {
            Value::Object(fields) => self.object(fields),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(name, item)),
            Value::String(text) => {
                *text = match name {
                    "uid" => self.numbered("uid", text),
                    "resourceVersion" if text.starts_with('<') => return,
                    "resourceVersion" => self.numbered("revision", text),
                    "continue" if !text.is_empty() => "<continue>".to_owned(),
                    "ca.crt" => "<certificate>".to_owned(),
                    _ => self.text(text),
                };
            }
            _ => {}
        }
    }

    fn object(&mut self, fields: &mut Map<String, Value>) {
        // Both say the same whatever the order in which they write it.
        fields.sort_keys();
        // The revision of a list, and of a bookmark, is that of everything.
        let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
        let listed = kind == "Table" || kind.ends_with("List");
        let bookmark = fields.get("type").is_some_and(|it| it == "BOOKMARK");
        for (name, value) in fields.iter_mut() {
            if (listed && name == "metadata" || bookmark && name == "object")
                && let Some(revision) =
                    value.pointer_mut(if bookmark { "/metadata/resourceVersion" } else { "/resourceVersion" })
            {
                *revision = Value::from("<revision of all>");
            }
            if name == "rows" {
                // The columns that say an age.
                for cell in value.as_array_mut().into_iter().flatten().filter_map(|row| row.get_mut("cells")) {
                    for cell in cell.as_array_mut().into_iter().flatten() {
                        let age = cell.as_str().is_some_and(|it| {
                            it.strip_suffix('s')
                                .is_some_and(|it| !it.is_empty() && it.bytes().all(|it| it.is_ascii_digit()))
                        });
                        if age {
                            *cell = Value::from("<age>");
                        }
                    }
                }
            }
            if fields_are_times(name) && value.is_string() {
                *value = Value::from("<time>");
            }
            self.value(name, value);
        }
    }

    fn text(&mut self, text: &str) -> String {
        let text = text.replace(&self.namespace, "$ns");
        let text = self.time.replace_all(&text, "<time>").into_owned();
        let uids: Vec<String> = self.uid.find_iter(&text).map(|it| it.as_str().to_owned()).collect();
        let mut text = text;
        for uid in uids {
            let number = self.numbered("uid", &uid);
            text = text.replace(&uid, &number);
        }
        let text = self.shared.replace(&text, "#/parameters/$1");
        self.generated.replace_all(&text, "-<generated>$1").into_owned()
    }

    fn numbered(&mut self, kind: &'static str, text: &str) -> String {
        if text.is_empty() || text == "0" {
            return text.to_owned();
        }
        let seen = self.seen.entry(kind).or_default();
        let at = seen.iter().position(|it| it == text).unwrap_or_else(|| {
            seen.push(text.to_owned());
            seen.len() - 1
        });
        format!("<{kind} {}>", at + 1)
    }
}

fn fields_are_times(name: &str) -> bool {
    matches!(name, "time" | "creationTimestamp" | "deletionTimestamp" | "lastTransitionTime")
}

fn remove(value: &mut Value, path: &[&str]) {
    let [first, rest @ ..] = path else { return };
    match value {
        Value::Object(fields) if rest.is_empty() => fields.retain(|name, _| !fits(first, name)),
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| fits(first, name)).for_each(|(_, field)| remove(field, rest));
        }
        Value::Array(items) => {
            let chosen = items.iter_mut().enumerate().filter(|(at, _)| *first == "*" || *first == at.to_string());
            for (_, item) in chosen {
                if rest.is_empty() { *item = Value::Null } else { remove(item, rest) }
            }
        }
        _ => {}
    }
}

/// `*` is any text, `~1` a slash.
fn fits(pattern: &str, name: &str) -> bool {
    let pattern = pattern.replace("~1", "/");
    let Some((first, more)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let (between, last) = more.rsplit_once('*').unwrap_or(("", more));
    for part in between.split('*') {
        let Some((_, after)) = left.split_once(part) else { return false };
        left = after;
    }
    left.ends_with(last)
}

/// A line for each value, with its place before it.
fn flat(place: &str, value: &Value, lines: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, it)| flat(&format!("{place} {name}"), it, lines));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(at, it)| flat(&format!("{place} {at}"), it, lines));
        }
        _ => *lines += &format!("{place}: {value}\n"),
    }
}
