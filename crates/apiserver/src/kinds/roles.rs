//! The validation of roles and bindings: `pkg/apis/rbac/validation`.

use serde_json::{Value, json};

use super::validate::{is_blank, list, text};
use crate::access::roles::GROUP;
use crate::object::meta::{NameRule, label_value, qualified_name};
use crate::object::{Errors, FieldError};

pub(super) fn role(object: &Value, namespaced: bool, errors: &mut Errors) {
    for (at, rule) in list(object, "/rules").iter().enumerate() {
        self::rule(rule, namespaced, &format!("rules[{at}]"), errors);
    }
    if object.get("aggregationRule").is_none_or(Value::is_null) {
        return;
    }
    let path = "aggregationRule.clusterRoleSelectors";
    let selectors = list(object, "/aggregationRule/clusterRoleSelectors");
    if selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        errors.push(FieldError::required(path, why));
    }
    for (at, one) in selectors.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let before = errors.len();
        selector(one, &path, errors);
        if errors.len() > before {
            errors.push(FieldError::invalid(path, &Value::Null, "invalid label selector."));
        }
    }
}

fn rule(rule: &Value, namespaced: bool, path: &str, errors: &mut Errors) {
    let mut required = |field: &str, why: &str| {
        if is_blank(rule, &format!("/{field}")) {
            errors.push(FieldError::required(format!("{path}.{field}"), why));
        }
    };
    required("verbs", "verbs must contain at least one value");
    if is_blank(rule, "/nonResourceURLs") {
        required("apiGroups", "resource rules must supply at least one api group");
        required("resources", "resource rules must supply at least one resource");
        return;
    }
    let urls = rule.get("nonResourceURLs").unwrap_or(&Value::Null);
    let mut refuse = |why: &str| errors.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls, why));
    if namespaced {
        refuse("namespaced rules cannot apply to non-resource URLs");
    }
    if ["/apiGroups", "/resources", "/resourceNames"].iter().any(|it| !is_blank(rule, it)) {
        refuse("rules cannot apply to both regular resources and non-resource URLs");
    }
}

/// `metav1.LabelSelector`.
pub(crate) fn selector(selector: &Value, path: &str, errors: &mut Errors) {
    let invalid = |path: String, value: &str, whys: Vec<String>| -> Vec<FieldError> {
        whys.iter().map(|why| FieldError::invalid_str(path.as_str(), value, why)).collect()
    };
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        errors.extend(invalid(format!("{path}.matchLabels"), key, qualified_name(key)));
        errors.extend(invalid(format!("{path}.matchLabels"), value, label_value(value)));
    }
    for (at, one) in list(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let (operator, values) = (text(one, "/operator"), list(one, "/values"));
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let why = "not a valid selector operator";
                errors.push(FieldError::invalid_str(format!("{path}.operator"), other, why));
            }
        }
        errors.extend(invalid(format!("{path}.key"), text(one, "/key"), qualified_name(text(one, "/key"))));
        for (at, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(invalid(format!("{path}.values[{at}]"), value, label_value(value)));
        }
    }
}

pub(super) fn binding(object: &Value, namespaced: bool, errors: &mut Errors) {
    let not_supported = |path: String, value: &str, known: &[&str]| -> FieldError {
        FieldError::not_supported(path, &json!(value), known)
    };
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let (group, kind, name) =
        (text(object, "/roleRef/apiGroup"), text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
    if group != GROUP {
        errors.push(not_supported("roleRef.apiGroup".into(), group, &[GROUP]));
    }
    if !kinds.contains(&kind) {
        errors.push(not_supported("roleRef.kind".into(), kind, kinds));
    }
    if name.is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    } else {
        let whys = NameRule::PathSegment.check(name, false);
        errors.extend(whys.iter().map(|why| FieldError::invalid_str("roleRef.name", name, why)));
    }
    for (at, subject) in list(object, "/subjects").iter().enumerate() {
        let path = format!("subjects[{at}]");
        let (kind, name, group) = (text(subject, "/kind"), text(subject, "/name"), text(subject, "/apiGroup"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        match kind {
            "ServiceAccount" => {
                if !name.is_empty() {
                    let whys = NameRule::Subdomain.check(name, false);
                    errors.extend(whys.iter().map(|why| FieldError::invalid_str(format!("{path}.name"), name, why)));
                }
                if !group.is_empty() {
                    errors.push(not_supported(format!("{path}.apiGroup"), group, &[""]));
                }
                if !namespaced && is_blank(subject, "/namespace") {
                    errors.push(FieldError::required(format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" if group == GROUP => {}
            "User" | "Group" => errors.push(not_supported(format!("{path}.apiGroup"), group, &[GROUP])),
            other => errors.push(not_supported(format!("{path}.kind"), other, &["ServiceAccount", "User", "Group"])),
        }
    }
}
