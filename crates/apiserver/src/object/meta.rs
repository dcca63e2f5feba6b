//! `ObjectMeta` as every kind shares it: names, labels, annotations, owners, finalizers, in the words of
//! `k8s.io/apimachinery/pkg/api/validation`.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::field::{ERRORS_MAX, FieldError};

/// Labels and their values, and the name part of a qualified name, are at most this long.
const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
const ANNOTATIONS_MAX: u64 = 256 << 10;
const MANAGER_MAX: u64 = 128;
const SUBRESOURCE_MAX: u64 = 256;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// The rule that a kind's names follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain: most kinds, and every custom resource.
    Subdomain,
    /// RFC 1123 label: namespaces.
    Label,
    /// RFC 1035 label: services.
    Label1035,
    /// Anything that fits in one segment of a path: the RBAC kinds.
    PathSegment,
    /// An IP address: what is named after the one it stands for.
    Address,
}

impl NameRule {
    /// What is wrong with `name`; `prefix` when something will be appended to it (`generateName`).
    pub(crate) fn check(self, name: &str, prefix: bool) -> Vec<String> {
        match self {
            Self::PathSegment => return path_segment(name, prefix),
            Self::Address => return address(name),
            Self::Subdomain | Self::Label | Self::Label1035 => {}
        }
        let masked;
        let mut name = name;
        if prefix && name.len() > 1 && name.ends_with('-') {
            // Upstream drops the last two bytes and puts an "a": so "a--" is as good as "a".
            let mut end = name.len() - 2;
            while !name.is_char_boundary(end) {
                end -= 1;
            }
            masked = format!("{}a", name.get(..end).unwrap_or_default());
            name = &masked;
        }
        match self {
            Self::Subdomain | Self::PathSegment | Self::Address => dns1123_subdomain(name),
            Self::Label => dns1123_label(name),
            Self::Label1035 => dns1035_label(name),
        }
    }
}

/// What is wrong with a text that shall be an address in its one canonical form.
fn address(name: &str) -> Vec<String> {
    let leading = |part: &str| part.len() > 1 && part.starts_with('0') && part.bytes().all(|it| it.is_ascii_digit());
    if !name.contains(':') && name.split('.').count() == 4 && name.split('.').any(leading) {
        return vec!["must not have leading 0s".into()];
    }
    match name.parse::<IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        Ok(address) if address.to_string() != name => {
            vec![format!("must be in canonical form (\"{address}\")")]
        }
        Ok(_) => Vec::new(),
    }
}

fn path_segment(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].into_iter().filter(|c| name.contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn regex_error(message: &str, format: &str, examples: &[&str]) -> String {
    let shown: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{format}')", shown.join(" or "))
}

/// `[first][inner]*[last]` over ASCII, at least one character.
fn shaped(text: &str, ends: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => ends(*one),
        [first, middle @ .., last] => ends(*first) && ends(*last) && middle.iter().all(|c| inner(*c)),
    }
}

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    shaped(text, lower_alnum, |c| lower_alnum(c) || c == b'-')
}

fn is_qualified(text: &str) -> bool {
    shaped(text, |c| c.is_ascii_alphanumeric(), |c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// What is wrong with an RFC 1123 subdomain.
pub(crate) fn dns1123_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > SUBDOMAIN_MAX {
        errors.push(too_long(SUBDOMAIN_MAX));
    }
    if !value.split('.').all(is_label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    errors
}

/// What is wrong with an RFC 1123 label.
pub(crate) fn dns1123_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !is_label(value) {
        if value.split('.').all(is_label) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL_FORMAT,
                &["my-name", "123-abc"],
            ));
        }
    }
    errors
}

/// What is wrong with an RFC 1035 label.
pub(crate) fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !(is_label(value) && value.starts_with(|c: char| c.is_ascii_lowercase())) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            LABEL_1035_FORMAT,
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// What is wrong with `[prefix/]name`: label keys, annotation keys, finalizers.
pub(crate) fn qualified_name(value: &str) -> Vec<String> {
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: &[&str] = &["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let name = match value.split_once('/') {
        None => value,
        Some((_, rest)) if rest.contains('/') => {
            let said = regex_error(MESSAGE, QUALIFIED_FORMAT, EXAMPLES);
            return vec![format!(
                "a qualified name {said} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified(name) {
        errors.push(format!("name part {}", regex_error(MESSAGE, QUALIFIED_FORMAT, EXAMPLES)));
    }
    errors
}

/// What is wrong with a label's value.
pub(crate) fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_MAX {
        errors.push(too_long(LABEL_MAX));
    }
    if !value.is_empty() && !is_qualified(value) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn strings(value: Option<&Value>) -> impl Iterator<Item = (&str, &str)> {
    value.and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Checks `meta` (the object's `metadata`) when it is created; `path` is `metadata`, or longer for embedded objects.
/// A name must have been generated before.
pub(crate) fn validate_object_meta(meta: &Value, namespaced: bool, rule: NameRule, path: &str) -> Vec<FieldError> {
    let empty = Map::new();
    let meta = meta.as_object().unwrap_or(&empty);
    let mut errors = Vec::new();
    let (name, generate, namespace) = (text(meta, "name"), text(meta, "generateName"), text(meta, "namespace"));
    if !generate.is_empty() {
        let at = format!("{path}.generateName");
        errors.extend(rule.check(generate, true).iter().map(|m| FieldError::invalid_str(&at, generate, m)));
    }
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), "name or generateName is required"));
    } else {
        let at = format!("{path}.name");
        errors.extend(rule.check(name, false).iter().map(|m| FieldError::invalid_str(&at, name, m)));
    }
    let at = format!("{path}.namespace");
    match (namespaced, namespace) {
        (true, "") => errors.push(FieldError::required(at, "")),
        (true, ns) => errors.extend(dns1123_label(ns).iter().map(|m| FieldError::invalid_str(&at, ns, m))),
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(at, "not allowed on this type")),
    }
    if let Some(generation) = meta.get("generation").filter(|g| g.as_i64().is_some_and(|g| g < 0)) {
        errors.push(FieldError::invalid(
            format!("{path}.generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    validate_common(meta, path, &mut errors);
    validate_finalizers(items(meta.get("finalizers")), &format!("{path}.finalizers"), &mut errors);
    validate_managed(items(meta.get("managedFields")), path, &mut errors);
    errors
}

/// Checks `new` against `old` when an object is updated.
pub(crate) fn validate_object_meta_update(new: &Value, old: &Value, path: &str) -> Vec<FieldError> {
    let empty = Map::new();
    let (new, old) = (new.as_object().unwrap_or(&empty), old.as_object().unwrap_or(&empty));
    let mut errors = Vec::new();
    if old.get("deletionTimestamp").is_some_and(|t| !t.is_null()) {
        let had = items(old.get("finalizers"));
        let mut extra: Vec<&str> =
            items(new.get("finalizers")).iter().filter(|f| !had.contains(f)).filter_map(Value::as_str).collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|f| super::field::quote(f)).collect();
            errors.push(FieldError::forbidden(
                format!("{path}.finalizers"),
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        errors.push(FieldError::invalid_str(format!("{path}.resourceVersion"), "", "must be specified for an update"));
    }
    let generation = |m: &Map<String, Value>| m.get("generation").and_then(Value::as_i64).unwrap_or_default();
    if generation(new) < generation(old) {
        let value = Value::from(generation(new));
        errors.push(FieldError::invalid(format!("{path}.generation"), &value, "must not be decremented"));
    }
    for key in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (is, was) = (new.get(key).unwrap_or(&Value::Null), old.get(key).unwrap_or(&Value::Null));
        let absent = |v: &Value| v.is_null() || v.as_str() == Some("");
        if is != was && !(absent(is) && absent(was)) {
            let shown = if is.is_null() && matches!(key, "name" | "namespace" | "uid") { &Value::from("") } else { is };
            errors.push(FieldError::invalid(format!("{path}.{key}"), shown, "field is immutable"));
        }
    }
    validate_common(new, path, &mut errors);
    validate_managed(items(new.get("managedFields")), path, &mut errors);
    errors
}

fn validate_common(meta: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let at = format!("{path}.labels");
    for (key, value) in strings(meta.get("labels")) {
        if errors.len() >= ERRORS_MAX {
            return;
        }
        errors.extend(qualified_name(key).iter().map(|m| FieldError::invalid_str(&at, key, m)));
        errors.extend(label_value(value).iter().map(|m| FieldError::invalid_str(&at, value, m)));
    }
    let at = format!("{path}.annotations");
    let mut size = 0;
    for (key, value) in strings(meta.get("annotations")) {
        size += (key.len() + value.len()) as u64;
        if errors.len() >= ERRORS_MAX {
            continue;
        }
        let lower = key.to_lowercase();
        errors.extend(qualified_name(&lower).iter().map(|m| FieldError::invalid_str(&at, key, m)));
    }
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(at, ANNOTATIONS_MAX));
    }
    validate_owners(meta.get("ownerReferences"), &format!("{path}.ownerReferences"), errors);
}

fn validate_owners(owners: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let mut controller: Option<String> = None;
    for owner in items(owners) {
        if errors.len() >= ERRORS_MAX {
            return;
        }
        let empty = Map::new();
        let fields = owner.as_object().unwrap_or(&empty);
        let version = text(fields, "apiVersion");
        let parsed = version.rsplit_once('/').map_or(version, |(_, v)| v);
        if parsed.is_empty() {
            errors.push(FieldError::invalid_str(format!("{path}.apiVersion"), version, "version must not be empty"));
        }
        for key in ["kind", "name", "uid"] {
            if text(fields, key).is_empty() {
                errors.push(FieldError::invalid_str(format!("{path}.{key}"), "", "must not be empty"));
            }
        }
        if (version, text(fields, "kind")) == ("v1", "Event") {
            let said = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid_shown(path, owner_text(owner), said));
        }
        if fields.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{}/{}", text(fields, "kind"), text(fields, "name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let shown: Vec<String> = items(owners).iter().map(owner_text).collect();
                    let said = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    errors.push(FieldError::invalid_shown(path, format!("[{}]", shown.join(",")), &said));
                }
            }
        }
    }
}

/// An owner reference in Go's JSON: fields in the struct's order.
fn owner_text(owner: &Value) -> String {
    let field = |key: &str| {
        let zero = if matches!(key, "controller" | "blockOwnerDeletion") { None } else { Some(Value::from("")) };
        let value = owner.get(key).cloned().or(zero)?;
        Some(format!("\"{key}\":{}", super::field::json(&value)))
    };
    let keys = ["apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion"];
    format!("{{{}}}", keys.into_iter().filter_map(field).collect::<Vec<_>>().join(","))
}

/// Kubernetes' own kinds only: a finalizer is one that Kubernetes knows, or has a domain.
pub(crate) fn validate_kube_finalizers(meta: &Value, path: &str) -> Vec<FieldError> {
    let stray = |(i, name): (usize, &str)| {
        let known = name.contains('/') || matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
        let said = "name is neither a standard finalizer name nor is it fully qualified";
        (!known).then(|| FieldError::invalid_str(format!("{path}.finalizers[{i}]"), name, said))
    };
    items(meta.get("finalizers"))
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
        .filter_map(stray)
        .take(ERRORS_MAX)
        .collect()
}

fn validate_finalizers(finalizers: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    for name in finalizers.iter().filter_map(Value::as_str) {
        if errors.len() >= ERRORS_MAX {
            return;
        }
        errors.extend(qualified_name(name).iter().map(|m| FieldError::invalid_str(path, name, m)));
    }
    let has = |name: &str| finalizers.iter().any(|f| f.as_str() == Some(name));
    if has("orphan") && has("foregroundDeletion") {
        let list = Value::Array(finalizers.to_vec());
        errors.push(FieldError::invalid(path, &list, "finalizer orphan and foregroundDeletion cannot be both set"));
    }
}

fn validate_managed(entries: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let empty = Map::new();
    for (i, entry) in entries.iter().enumerate() {
        if errors.len() >= ERRORS_MAX {
            return;
        }
        let at = format!("{path}.managedFields[{i}]");
        let entry = entry.as_object().unwrap_or(&empty);
        let operation = text(entry, "operation");
        if !matches!(operation, "Apply" | "Update") {
            errors.push(FieldError::invalid_str(format!("{at}.operation"), operation, "must be `Apply` or `Update`"));
        }
        let kind = text(entry, "fieldsType");
        if !matches!(kind, "" | "FieldsV1") {
            errors.push(FieldError::invalid_str(format!("{at}.fieldsType"), kind, "must be `FieldsV1`"));
        }
        errors.extend(validate_field_manager(text(entry, "manager"), &format!("{at}.manager")));
        if text(entry, "subresource").len() as u64 > SUBRESOURCE_MAX {
            errors.push(FieldError::too_long(format!("{at}.subresource"), SUBRESOURCE_MAX));
        }
    }
}

/// Checks the name of a field manager (also the query parameter `fieldManager`, whose path is `fieldManager`).
pub(crate) fn validate_field_manager(manager: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if manager.len() as u64 > MANAGER_MAX {
        errors.push(FieldError::too_long(path, MANAGER_MAX));
    }
    for (i, c) in manager.char_indices().filter(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' ')) {
        let detail = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
        errors.push(FieldError::invalid_str(path, manager, &detail));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a real API server (1.34.2) said to each metadata, recorded.
    #[test]
    fn metadata_is_refused_in_the_words_of_a_real_api_server() {
        for line in include_str!("../../testdata/metadata.jsonl").lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            let (rule, namespaced) = match record[0].as_str().unwrap() {
                "Subdomain" => (NameRule::Subdomain, true),
                "Label" => (NameRule::Label, false),
                "Label1035" => (NameRule::Label1035, true),
                _ => (NameRule::PathSegment, true),
            };
            let mut meta = record[1].clone();
            if namespaced {
                meta["namespace"] = json!("default");
            }
            let mut errors = validate_object_meta(&meta, namespaced, rule, "metadata");
            errors.extend(validate_kube_finalizers(&meta, "metadata"));
            // Names are generated, and broken managed fields replaced, before anybody looks.
            let said = errors.iter().map(|e| json!([e.path, e.reason.reason(), e.body]));
            let said: Vec<Value> = said.filter(|e| !e[2].as_str().unwrap().contains("name or generateName")).collect();
            let count = |e: &&Value| meta.get("generateName").is_none() || e[0] == "metadata.generateName";
            let want: Vec<&Value> = record[2].as_array().unwrap().iter().filter(count).collect();
            // A namespace is labelled with its name.
            let want = want.into_iter().filter(|e| !(e[0] == "metadata.labels" && rule == NameRule::Label));
            let want: Vec<&Value> = want.filter(|e| !e[2].as_str().unwrap().contains("name or generateName")).collect();
            if meta.get("managedFields").is_none() {
                assert_eq!(json!(said), json!(want), "{meta}");
            }
        }
    }

    #[test]
    fn annotations_may_be_large_but_not_larger_than_256_kib() {
        let meta = |size: usize| json!({"name": "x", "annotations": {"a": "x".repeat(size - 1)}});
        assert_eq!(validate_object_meta(&meta(256 << 10), false, NameRule::Subdomain, "metadata"), []);
        let errors = validate_object_meta(&meta((256 << 10) + 1), false, NameRule::Subdomain, "metadata");
        assert_eq!(errors[0].to_string(), "metadata.annotations: Too long: may not be more than 262144 bytes");
    }

    #[test]
    fn what_an_update_may_not_change_is_named() {
        let old = json!({"name": "x", "uid": "u", "generation": 3, "finalizers": ["a.b/c"], "deletionTimestamp": "2024-01-01T00:00:00Z"});
        let mut new = old.clone();
        new["resourceVersion"] = json!("5");
        assert_eq!(validate_object_meta_update(&new, &old, "metadata"), []);
        new["uid"] = json!("v");
        new["generation"] = json!(2);
        new["finalizers"] = json!(["a.b/c", "a.b/d"]);
        new.as_object_mut().unwrap().shift_remove("resourceVersion");
        let said: Vec<String> =
            validate_object_meta_update(&new, &old, "metadata").iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"a.b/d\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 2: must not be decremented",
                "metadata.uid: Invalid value: \"v\": field is immutable",
            ]
        );
    }
}
