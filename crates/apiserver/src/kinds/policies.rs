//! The validation of admission policies and their bindings: `pkg/apis/admissionregistration/validation`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::hooks::{conditions, one_of, rule_with_operations};
use super::roles::selector;
use super::validate::{is_blank, list, text};
use crate::admission::Environment;
use crate::cel::{RESERVED, Type};
use crate::object::meta::{NameRule, dns1035_label, dns1123_subdomain, qualified_name};
use crate::object::schema::aside;
use crate::object::{Errors, FieldError};
use crate::verbs::meta;

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_MAX: usize = 5 * 1024;
/// What is more is refused here: each expression is compiled with all variables in sight.
const VARIABLES_MAX: usize = 256;
const VALIDATIONS_MAX: usize = 1024;

/// `old`: its conditions are not looked at again.
pub(super) fn policy(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let null = Value::Null;
    let spec = object.get("spec").unwrap_or(&null);
    if spec.get("failurePolicy").is_none() {
        errors.push(FieldError::required("spec.failurePolicy", ""));
    }
    one_of(spec, "failurePolicy", "spec", &["Fail", "Ignore"], errors);
    let kind = spec.get("paramKind").filter(|it| it.is_object());
    if let Some(kind) = kind {
        param_kind(kind, "spec.paramKind", errors);
    }
    match spec.get("matchConstraints").filter(|it| it.is_object()) {
        None => errors.push(FieldError::required("spec.matchConstraints", "")),
        Some(of) => {
            resources(of, "spec.matchConstraints", errors);
            if list(of, "/resourceRules").is_empty() {
                errors.push(FieldError::required("spec.matchConstraints.resourceRules", ""));
            }
        }
    }
    let same = |field: &str| old.is_some_and(|old| old.pointer(field) == object.pointer(field));
    if !(same("/spec/paramKind") && same("/spec/matchConditions")) {
        conditions(spec, "spec.matchConditions", &Environment::new(kind.is_some(), false), errors);
    }
    for (field, max) in [("variables", VARIABLES_MAX), ("validations", VALIDATIONS_MAX)] {
        let count = list(spec, &format!("/{field}")).len();
        if count > max {
            errors.push(FieldError::too_many(format!("spec.{field}"), count, max as u64));
            return;
        }
    }
    aside(|| expressions(meta::name(object), spec, kind.is_some(), errors));
}

fn expressions(name: &str, spec: &Value, params: bool, errors: &mut Errors) {
    let all = list(spec, "/variables");
    let mut environment = Environment::new(params, !all.is_empty());
    for (at, one) in all.iter().enumerate() {
        variable(one, &format!("spec.variables[{at}]"), &mut environment, errors);
    }
    let (validations, annotations) = (list(spec, "/validations"), list(spec, "/auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.push(FieldError::required("spec.validations", why));
        errors.push(FieldError::required("spec.auditAnnotations", why));
        return;
    }
    for (at, one) in validations.iter().enumerate() {
        validation(one, &format!("spec.validations[{at}]"), &environment, errors);
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let why = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.push(FieldError::invalid("spec.auditAnnotations", &json!(annotations), &why));
        return;
    }
    let mut keys = Vec::new();
    for (at, one) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{at}]");
        annotation(name, one, &path, &environment, errors);
        let key = text(one, "/key");
        if keys.contains(&key) {
            errors.push(FieldError::duplicate(format!("{path}.key"), &json!(key)));
        }
        keys.push(key);
    }
}

fn param_kind(of: &Value, path: &str, errors: &mut Errors) {
    let (api_version, kind) = (text(of, "/apiVersion"), text(of, "/kind"));
    let at = format!("{path}.apiVersion");
    let mut parts = api_version.split('/');
    match (parts.next().unwrap_or_default(), parts.next(), parts.next()) {
        ("", None, _) => errors.push(FieldError::required(&at, "")),
        (_, _, Some(_)) => {
            let why = format!("unexpected GroupVersion string: {api_version}");
            errors.push(FieldError::invalid_str(&at, api_version, &why));
        }
        (first, second, None) => {
            let (group, version) = second.map_or(("", first), |version| (first, version));
            let wrong = if group.is_empty() { Vec::new() } else { dns1123_subdomain(group) };
            if !wrong.is_empty() {
                errors.push(FieldError::invalid_str(&at, group, &wrong.join(",")));
            }
            let wrong = if version.is_empty() { Vec::new() } else { dns1035_label(version) };
            if version.is_empty() {
                errors.push(FieldError::invalid_str(&at, api_version, "version must be specified"));
            } else if !wrong.is_empty() {
                errors.push(FieldError::invalid_str(&at, version, &wrong.join(",")));
            }
        }
    }
    let at = format!("{path}.kind");
    let wrong = dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(FieldError::invalid_str(at, kind, &why));
    }
}

fn resources(of: &Value, path: &str, errors: &mut Errors) {
    if of.get("matchPolicy").is_none() {
        errors.push(FieldError::required(format!("{path}.matchPolicy"), ""));
    }
    one_of(of, "matchPolicy", path, &["Equivalent", "Exact"], errors);
    for field in ["namespaceSelector", "objectSelector"] {
        match of.get(field) {
            Some(it) => selector(it, &format!("{path}.{field}"), errors),
            None => errors.push(FieldError::required(format!("{path}.{field}"), "")),
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (at, rule) in list(of, &format!("/{field}")).iter().enumerate() {
            let path = format!("{path}.{field}[{at}]");
            let mut seen = HashSet::new();
            for (at, name) in list(rule, "/resourceNames").iter().filter_map(Value::as_str).enumerate() {
                let path = format!("{path}.resourceNames[{at}]");
                let wrong = NameRule::PathSegment.check(name, false);
                errors.extend(wrong.iter().map(|why| FieldError::invalid_str(&path, name, why)));
                if !seen.insert(name) {
                    errors.push(FieldError::duplicate(path, &json!(name)));
                }
            }
            rule_with_operations(rule, &path, errors);
        }
    }
}

fn variable(of: &Value, path: &str, environment: &mut Environment, errors: &mut Errors) {
    let (name, expression) = (text(of, "/name"), text(of, "/expression"));
    let word = |name: &str| {
        name.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
            && !name.starts_with(|it: char| it.is_ascii_digit())
    };
    if name.trim().is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), "name is not specified"));
    } else if !word(name) || RESERVED.contains(&name) {
        errors.push(FieldError::invalid_str(format!("{path}.name"), name, "must be a valid CEL identifier"));
    }
    let path = format!("{path}.expression");
    if expression.trim().is_empty() {
        errors.push(FieldError::required(path, "expression is not specified"));
    } else if let Err(why) = environment.declare(name, expression) {
        errors.push(FieldError::invalid_str(path, expression, &why));
    }
}

fn validation(of: &Value, path: &str, environment: &Environment, errors: &mut Errors) {
    let (expression, said, message) = (text(of, "/expression"), text(of, "/messageExpression"), text(of, "/message"));
    let at = format!("{path}.expression");
    if expression.trim().is_empty() {
        errors.push(FieldError::required(at, "expression is not specified"));
    } else if let Err(why) = environment.compile(expression, &[Type::Bool]) {
        errors.push(FieldError::invalid_str(at, expression, &why));
    }
    let at = format!("{path}.messageExpression");
    if !said.is_empty() && said.trim().is_empty() {
        errors.push(FieldError::invalid_str(at, said, "must be non-empty if specified"));
    } else if !said.is_empty()
        && let Err(why) = environment.message(said)
    {
        errors.push(FieldError::invalid_str(at, said, &why));
    }
    let at = format!("{path}.message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(FieldError::invalid_str(at, message, "must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(FieldError::invalid_str(at, message, "must not contain line breaks"));
    }
    one_of(of, "reason", path, &["Forbidden", "Invalid", "RequestEntityTooLarge"], errors);
}

fn annotation(name: &str, of: &Value, path: &str, environment: &Environment, errors: &mut Errors) {
    let (key, source) = (text(of, "/key"), text(of, "/valueExpression"));
    let at = format!("{path}.key");
    if name.is_empty() {
        errors.push(FieldError::invalid_str(at, key, "requires metadata.name be non-empty"));
    } else {
        let full = format!("{name}/{key}");
        errors.extend(qualified_name(&full).iter().map(|why| FieldError::invalid_str(&at, &full, why)));
    }
    let at = format!("{path}.valueExpression");
    let trimmed = source.trim();
    if trimmed.is_empty() {
        errors.push(FieldError::required(at, "valueExpression is not specified"));
    } else if trimmed.len() > ANNOTATION_MAX {
        errors.push(FieldError::required(at, &format!("must not exceed {ANNOTATION_MAX} bytes in length")));
    } else if let Err(why) = environment.compile(trimmed, &[Type::Text, Type::Null]) {
        errors.push(FieldError::invalid_str(at, source, &why));
    }
}

pub(super) fn binding(object: &Value, errors: &mut Errors) {
    let null = Value::Null;
    let spec = object.get("spec").unwrap_or(&null);
    let name = text(spec, "/policyName");
    if name.is_empty() {
        errors.push(FieldError::required("spec.policyName", ""));
    } else {
        let wrong = dns1123_subdomain(name);
        errors.extend(wrong.iter().map(|why| FieldError::invalid_str("spec.policyName", name, why)));
    }
    if let Some(of) = spec.get("paramRef").filter(|it| it.is_object()) {
        param_ref(of, "spec.paramRef", errors);
    }
    if let Some(of) = spec.get("matchResources").filter(|it| it.is_object()) {
        resources(of, "spec.matchResources", errors);
    }
    actions(list(spec, "/validationActions"), "spec.validationActions", errors);
}

fn param_ref(of: &Value, path: &str, errors: &mut Errors) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, chosen) = (text(of, "/name"), of.get("selector").filter(|it| it.is_object()));
    if !name.is_empty() {
        let at = format!("{path}.name");
        let wrong = NameRule::PathSegment.check(name, false);
        errors.extend(wrong.iter().map(|why| FieldError::invalid_str(&at, name, why)));
        if chosen.is_some() {
            errors.push(FieldError::forbidden(at, BOTH));
        }
    }
    if let Some(chosen) = chosen {
        let at = format!("{path}.selector");
        selector(chosen, &at, errors);
        if !name.is_empty() {
            errors.push(FieldError::forbidden(at, BOTH));
        }
    }
    if name.is_empty() && chosen.is_none() {
        errors.push(FieldError::required(path, "one of name or selector must be specified"));
    }
    if is_blank(of, "/parameterNotFoundAction") {
        errors.push(FieldError::required(format!("{path}.parameterNotFoundAction"), ""));
    } else {
        one_of(of, "parameterNotFoundAction", path, &["Deny", "Allow"], errors);
    }
}

fn actions(all: &[Value], path: &str, errors: &mut Errors) {
    const KNOWN: [&str; 3] = ["Audit", "Deny", "Warn"];
    let mut seen = HashSet::new();
    for (at, action) in all.iter().enumerate() {
        let at_path = format!("{path}[{at}]");
        if !KNOWN.iter().any(|it| action == it) {
            errors.push(FieldError::not_supported(&at_path, action, &KNOWN));
        }
        if !seen.insert(action.as_str()) {
            errors.push(FieldError::duplicate(at_path, action));
        }
    }
    let has = |action: &str| all.iter().any(|it| it == action);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(FieldError::invalid(path, &json!(all), why));
    }
    if all.is_empty() {
        errors.push(FieldError::required(path, "at least one validation action is required"));
    }
}
