//! What a CustomResourceDefinition is: what it serves, whether it is right, and which names it got.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::{Custom, Model, Resource, Scale, api_version};
use crate::object::meta::{dns1035_label, dns1123_subdomain};
use crate::object::{FieldError, Schema};
use crate::store::Entry;

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// Holds a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The resources that a stored definition serves, none while it is not established.
pub(crate) fn served(definition: &Arc<Entry>) -> Vec<Resource> {
    let value = definition.value();
    if !condition_is(&value, "Established", "True") {
        return Vec::new();
    }
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let texts = |path: &str| -> Vec<String> {
        let all = value.pointer(path).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let group = text("/spec/group");
    let versions = value.pointer("/spec/versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let stored = versions.iter().find(|it| flag(it, "storage")).and_then(|it| it.get("name")).and_then(Value::as_str);
    let stored_api_version = api_version(&group, stored.unwrap_or_default());
    let made = versions.iter().enumerate().filter(|(_, version)| flag(version, "served")).map(|(at, version)| {
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
        let selectable = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
        Resource {
            group: group.clone(),
            version: name.to_owned(),
            plural: text("/status/acceptedNames/plural"),
            singular: text("/status/acceptedNames/singular"),
            kind: text("/status/acceptedNames/kind"),
            list_kind: text("/status/acceptedNames/listKind"),
            short_names: texts("/status/acceptedNames/shortNames"),
            categories: texts("/status/acceptedNames/categories"),
            namespaced: text("/spec/scope") == "Namespaced",
            status: version.pointer("/subresources/status").is_some_and(Value::is_object),
            scale: version.pointer("/subresources/scale").and_then(scale),
            stored_group: group.clone(),
            stored_api_version: stored_api_version.clone(),
            review: false,
            model: Model::Custom(Custom {
                definition: definition.clone(),
                at,
                schema: OnceLock::new(),
                kept_schema: OnceLock::new(),
                selectable: selectable.filter_map(|it| it.get("jsonPath")?.as_str()).map(str::to_owned).collect(),
                terminating: value.pointer("/metadata/deletionTimestamp").is_some_and(|it| !it.is_null()),
                deprecated: deprecation(version, versions, &group, &text("/status/acceptedNames/kind")),
            }),
            printer: OnceLock::new(),
        }
    });
    made.collect()
}

/// What users of a deprecated version are told.
fn deprecation(version: &Value, all: &[Value], group: &str, kind: &str) -> Option<String> {
    if !flag(version, "deprecated") {
        return None;
    }
    if let Some(said) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(said.to_owned());
    }
    let name = |it: &Value| it.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let own = name(version);
    let better = all.iter().filter(|it| flag(it, "served") && !flag(it, "deprecated")).map(name);
    let better = better.filter(|it| priority(it) < priority(&own)).min_by_key(|it| priority(it));
    let instead = better.map(|it| format!("; use {group}/{it} {kind}")).unwrap_or_default();
    Some(format!("{group}/{own} {kind} is deprecated{instead}"))
}

fn scale(value: &Value) -> Option<Scale> {
    let path = |key: &str| Some(field_path(value.get(key)?.as_str()?));
    Some(Scale {
        spec: path("specReplicasPath")?,
        status: path("statusReplicasPath")?,
        selector: path("labelSelectorPath"),
    })
}

/// `.spec.replicas` as its fields.
pub(crate) fn field_path(path: &str) -> Vec<String> {
    path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

pub(crate) fn condition_is(value: &Value, kind: &str, status: &str) -> bool {
    let all = value.pointer("/status/conditions").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .any(|it| it.get("type").is_some_and(|t| t == kind) && it.get("status").is_some_and(|s| s == status))
}

/// What sorts versions as Kubernetes does: GA before beta before alpha, higher numbers first, other names last.
pub(crate) fn priority(version: &str) -> (u8, Reverse<u64>, Reverse<u64>, String) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, rest) = rest.split_at_checked(digits)?;
        let major: u64 = major.parse().ok()?;
        if rest.is_empty() {
            return Some((0, Reverse(major), Reverse(0)));
        }
        let (level, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(minor), _) => (1, minor),
            (_, Some(minor)) => (2, minor),
            _ => return None,
        };
        Some((level, Reverse(major), Reverse(minor.parse().ok()?)))
    };
    match parse() {
        Some((level, major, minor)) => (level, major, minor, String::new()),
        None => (3, Reverse(0), Reverse(0), version.to_owned()),
    }
}

/// Everything that is wrong with a definition: `ValidateCustomResourceDefinition`. `old` on an update.
pub(crate) fn validate(definition: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = definition.get("spec").unwrap_or(&Value::Null);
    let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (group, plural) = (text("/spec/group"), text("/spec/names/plural"));
    // Afterwards neither can change.
    if old.is_none() && text("/metadata/name") != format!("{plural}.{group}") {
        let why = r#"must be spec.names.plural+"."+spec.group"#;
        errors.push(FieldError::invalid_str("metadata.name", text("/metadata/name"), why));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if let said @ [_, ..] = dns1123_subdomain(group).as_slice() {
        errors.push(FieldError::invalid_str("spec.group", group, &said.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid_str("spec.group", group, "should be a domain with at least one dot"));
    }
    match text("/spec/scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        other => errors.push(FieldError::not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"])),
    }
    if flag(spec, "preserveUnknownFields") && old.is_none() {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), why));
    }
    let versions = spec.get("versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (at, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            errors.push(FieldError::required(format!("spec.versions[{at}].schema.openAPIV3Schema"), ""));
        }
    }
    let mut names = HashSet::new();
    for (at, version) in versions.iter().enumerate() {
        validate_version(version, &format!("spec.versions[{at}]"), &mut errors);
        names.insert(version.get("name").and_then(Value::as_str).unwrap_or_default());
    }
    let all = spec.get("versions").unwrap_or(&Value::Null);
    if names.len() != versions.len() {
        errors.push(FieldError::invalid("spec.versions", all, "must contain unique version names"));
    }
    if versions.iter().filter(|it| flag(it, "storage")).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            all,
            "must have exactly one version marked as storage version",
        ));
    }
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(&format!("/spec/names/{key}")).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{key}"), ""));
        }
    }
    validate_names(spec.get("names").unwrap_or(&Value::Null), "spec.names", &mut errors);
    match text("/spec/conversion/strategy") {
        "None" if spec.pointer("/conversion/webhook").is_some() => {
            let path = "spec.conversion.webhookClientConfig";
            errors.push(FieldError::forbidden(path, "should not be set when strategy is not set to Webhook"));
        }
        "None" => {}
        "Webhook" => {
            let why = "conversion by webhooks is not supported: use None, or serve one version alone";
            errors.push(FieldError::forbidden("spec.conversion.strategy", why));
        }
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        other => {
            errors.push(FieldError::not_supported("spec.conversion.strategy", &json!(other), &["None", "Webhook"]))
        }
    }
    validate_stored(definition, versions, &mut errors);
    if (group.ends_with(".k8s.io") || group.ends_with(".kubernetes.io") || matches!(group, "k8s.io" | "kubernetes.io"))
        && old.is_none()
        && text("/metadata/annotations/api-approved.kubernetes.io").is_empty()
    {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(FieldError::required("metadata.annotations[api-approved.kubernetes.io]", why));
    }
    if let Some(old) = old {
        let established = condition_is(old, "Established", "True");
        for (path, name, always) in [
            ("/spec/scope", "spec.scope", false),
            ("/spec/names/kind", "spec.names.kind", false),
            ("/spec/group", "spec.group", true),
            ("/spec/names/plural", "spec.names.plural", true),
        ] {
            if (always || established) && old.pointer(path) != definition.pointer(path) {
                let value = definition.pointer(path).unwrap_or(&Value::Null);
                errors.push(FieldError::invalid(name, value, "field is immutable"));
            }
        }
    }
    errors
}

fn validate_version(version: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
    if let said @ [_, ..] = dns1035_label(name).as_slice() {
        errors.push(FieldError::invalid_str(format!("{path}.name"), name, &said.join(",")));
    }
    match version.get("deprecationWarning").and_then(Value::as_str) {
        Some(said) if !flag(version, "deprecated") => {
            errors.push(FieldError::invalid_str(
                format!("{path}.deprecationWarning"),
                said,
                "can only be set for deprecated versions",
            ));
        }
        Some(said) if said.is_empty() => {
            errors.push(FieldError::invalid_str(
                format!("{path}.deprecationWarning"),
                said,
                "must not be an empty string",
            ));
        }
        Some(said) if said.len() > 256 => {
            errors.push(FieldError::invalid_str(
                format!("{path}.deprecationWarning"),
                said,
                "must be <= 256 characters long",
            ));
        }
        _ => {}
    }
    if let Some(openapi) = version.pointer("/schema/openAPIV3Schema")
        && let Err(wrong) = Schema::compile(openapi, &format!("{path}.schema.openAPIV3Schema"))
    {
        errors.extend(wrong);
    }
    if version.get("selectableFields").is_some() && version.pointer("/schema/openAPIV3Schema").is_none() {
        let why = "may only be set when `version.schema.openAPIV3Schema` is not included";
        errors.push(FieldError::invalid_str(format!("{path}.selectableFields"), "", why));
    }
    if let Some(scale) = version.pointer("/subresources/scale") {
        for (key, under, required) in [
            ("specReplicasPath", ".spec.", true),
            ("statusReplicasPath", ".status.", true),
            ("labelSelectorPath", "", false),
        ] {
            let at = format!("{path}.subresources.scale.{key}");
            match scale.get(key).and_then(Value::as_str).unwrap_or_default() {
                "" if required => errors.push(FieldError::required(at, "")),
                "" => {}
                said if said.contains(['[', ']', '*', '\'', '"']) => {
                    errors.push(FieldError::invalid_str(at, said, "should be a json path without array notation"));
                }
                said if !under.is_empty() && !said.starts_with(under) => {
                    errors.push(FieldError::invalid_str(
                        at,
                        said,
                        &format!("should be a json path under {}", under.trim_end_matches('.')),
                    ));
                }
                said if under.is_empty() && !said.starts_with(".spec.") && !said.starts_with(".status.") => {
                    errors.push(FieldError::invalid_str(
                        at,
                        said,
                        "should be a json path under either .status or .spec",
                    ));
                }
                _ => {}
            }
        }
    }
    let columns = version.get("additionalPrinterColumns").and_then(Value::as_array);
    for (at, column) in columns.into_iter().flatten().enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{at}]");
        let text = |key: &str| column.get(key).and_then(Value::as_str).unwrap_or_default();
        for key in ["name", "type"] {
            if text(key).is_empty() {
                errors.push(FieldError::required(format!("{path}.{key}"), ""));
            }
        }
        const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
        if !text("type").is_empty() && !TYPES.contains(&text("type")) {
            let why = format!("must be one of {}", TYPES.join(","));
            errors.push(FieldError::invalid_str(format!("{path}.type"), text("type"), &why));
        }
        if text("jsonPath").is_empty() {
            errors.push(FieldError::required(format!("{path}.jsonPath"), ""));
        }
    }
}

fn validate_names(names: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let text = |key: &str| names.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut check = |at: String, value: &str, lower: &str| {
        if let said @ [_, ..] = dns1035_label(lower).as_slice() {
            let why = if lower == value {
                said.join(",")
            } else {
                format!("may have mixed case, but should otherwise match: {}", said.join(","))
            };
            errors.push(FieldError::invalid_str(at, value, &why));
        }
    };
    for key in ["plural", "singular"] {
        if !text(key).is_empty() {
            check(format!("{path}.{key}"), text(key), text(key));
        }
    }
    for key in ["kind", "listKind"] {
        if !text(key).is_empty() {
            check(format!("{path}.{key}"), text(key), &text(key).to_lowercase());
        }
    }
    for key in ["shortNames", "categories"] {
        let all = names.get(key).and_then(Value::as_array);
        for (at, name) in all.into_iter().flatten().filter_map(Value::as_str).enumerate() {
            check(format!("{path}.{key}[{at}]"), name, name);
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid_str(format!("{path}.listKind"), text("listKind"), why));
    }
}

fn validate_stored(definition: &Value, versions: &[Value], errors: &mut Vec<FieldError>) {
    let stored = definition.pointer("/status/storedVersions").cloned().unwrap_or_else(|| json!([]));
    let all: Vec<&str> = stored.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if all.is_empty() {
        errors.push(FieldError::invalid(
            "status.storedVersions",
            &Value::Null,
            "must have at least one stored version",
        ));
        return;
    }
    for version in versions.iter().filter(|it| flag(it, "storage")) {
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
        if !all.contains(&name) {
            let why = format!("must have the storage version {name}");
            errors.push(FieldError::invalid("status.storedVersions", &stored, &why));
        }
    }
    let named = |name: &str| versions.iter().any(|it| it.get("name").is_some_and(|it| it == name));
    for (at, name) in all.iter().enumerate().filter(|(_, name)| !named(name)) {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a \
             storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.push(FieldError::invalid_str(format!("status.storedVersions[{at}]"), name, &why));
    }
}

/// Adds the storage version to `status.storedVersions`.
pub(crate) fn note_stored_version(definition: &mut Value) {
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array);
    let Some(name) =
        versions.into_iter().flatten().find(|it| flag(it, "storage")).and_then(|it| it.get("name")).cloned()
    else {
        return;
    };
    let Some(root) = definition.as_object_mut() else { return };
    let status = root.entry("status").or_insert_with(|| json!({}));
    if let Some(status) = status.as_object_mut() {
        let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
        if let Some(stored) = stored.as_array_mut()
            && !stored.contains(&name)
        {
            stored.push(name);
        }
    }
}

/// Gives a definition the names that nobody else in its group has, and says so in its conditions. `others` are all
/// stored definitions. True when something changed.
///
/// Kubernetes' controllers do this in three writes after the creation; here it is done in the same one.
pub(crate) fn settle(definition: &mut Value, others: &[Arc<Entry>], now: &str) -> bool {
    let before = definition.get("status").cloned();
    let own = definition.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let group = definition.pointer("/spec/group").cloned().unwrap_or_default();
    let mut taken_resources = HashSet::new();
    let mut taken_kinds = HashSet::new();
    for other in others.iter().filter(|other| *other.key.name != *own) {
        let other = other.value();
        if other.pointer("/spec/group") == Some(&group)
            && let Some(names) = other.pointer("/status/acceptedNames")
        {
            let text = |key: &str| names.get(key).and_then(Value::as_str).map(str::to_owned);
            taken_resources.extend(text("plural").into_iter().chain(text("singular")));
            let short = names.get("shortNames").and_then(Value::as_array).into_iter().flatten();
            taken_resources.extend(short.filter_map(Value::as_str).map(str::to_owned));
            taken_kinds.extend(text("kind").into_iter().chain(text("listKind")));
        }
    }
    let wanted = definition.pointer("/spec/names").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut accepted =
        definition.pointer("/status/acceptedNames").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut conflict = None;
    for (key, reason, taken) in [
        ("plural", "PluralConflict", &taken_resources),
        ("singular", "SingularConflict", &taken_resources),
        ("shortNames", "ShortNamesConflict", &taken_resources),
        ("kind", "KindConflict", &taken_kinds),
        ("listKind", "ListKindConflict", &taken_kinds),
    ] {
        let Some(name) = wanted.get(key) else {
            accepted.remove(key);
            continue;
        };
        let used = match name {
            Value::String(name) => taken.contains(name).then_some(name),
            Value::Array(names) => names.iter().find_map(|it| match it {
                Value::String(name) => taken.contains(name).then_some(name),
                _ => None,
            }),
            _ => None,
        };
        match used {
            Some(used) => conflict = Some((reason, format!("{used:?} is already in use"))),
            None => {
                accepted.insert(key.to_owned(), name.clone());
            }
        }
    }
    match wanted.get("categories") {
        Some(categories) => accepted.insert("categories".into(), categories.clone()),
        None => accepted.remove("categories"),
    };
    let (names_ok, reason, message) = match &conflict {
        None => ("True", "NoConflicts", "no conflicts found"),
        Some((reason, message)) => ("False", *reason, message.as_str()),
    };
    set_condition(definition, "NamesAccepted", names_ok, reason, message, now);
    if !condition_is(definition, "Established", "True") {
        match names_ok {
            "True" => set_condition(
                definition,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            ),
            _ => set_condition(definition, "Established", "False", "NotAccepted", "not all names are accepted", now),
        }
    }
    if let Some(status) = definition.get_mut("status").and_then(Value::as_object_mut) {
        status.insert("acceptedNames".into(), Value::Object(accepted));
    }
    definition.get("status") != before.as_ref()
}

pub(crate) fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: &str) {
    let Some(root) = object.as_object_mut() else { return };
    let Some(root) = root.entry("status").or_insert_with(|| json!({})).as_object_mut() else { return };
    let Some(all) = root.entry("conditions").or_insert_with(|| json!([])).as_array_mut() else { return };
    let old = all.iter_mut().find(|it| it.get("type").is_some_and(|it| it == kind));
    let same_status = old.as_ref().is_some_and(|old| old.get("status").is_some_and(|it| it == status));
    let since = old.as_ref().filter(|_| same_status).and_then(|old| old.get("lastTransitionTime")).cloned();
    let made = json!({
        "lastTransitionTime": since.unwrap_or_else(|| json!(now)),
        "message": message,
        "reason": reason,
        "status": status,
        "type": kind,
    });
    match old {
        Some(old) => *old = made,
        None => all.push(made),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_orders_them() {
        let mut all = ["foo1", "v1alpha1", "v2beta1", "v10", "v2", "v1beta2", "foo10", "v1", "v11alpha2"];
        all.sort_by_cached_key(|version| priority(version));
        assert_eq!(all, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v11alpha2", "v1alpha1", "foo1", "foo10"]);
    }

    #[test]
    fn a_definition_gets_the_names_nobody_has_and_says_which_is_taken() {
        let mut it = json!({"metadata": {"name": "as.x.io"}, "spec": {"group": "x.io",
            "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList", "categories": ["all"]}}});
        assert!(settle(&mut it, &[], "2026-01-01T00:00:00Z"));
        assert!(condition_is(&it, "Established", "True") && condition_is(&it, "NamesAccepted", "True"));
        assert_eq!(it.pointer("/status/acceptedNames"), it.pointer("/spec/names"));
        assert!(!settle(&mut it, &[], "2027-01-01T00:00:00Z"), "nothing new, nothing written");
    }
}
