//! What a CustomResourceDefinition is: what it serves, whether it is right, and which names it got.

mod validate;

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::{Custom, Model, Resource, Scale, api_version};
use crate::store::Entry;

pub(crate) use validate::{validate, warnings};

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
