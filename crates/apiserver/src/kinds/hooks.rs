//! The validation of webhooks' configurations: `pkg/apis/admissionregistration/validation`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::roles::selector;
use super::validate::{is_blank, list, text};
use crate::admission::Environment;
use crate::cel::Type;
use crate::object::meta::{dns1035_label, dns1123_subdomain, qualified_name};
use crate::object::schema::aside;
use crate::object::{Errors, FieldError};

const CONDITIONS_MAX: usize = 64;
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// `old`: what was so before may stay.
pub(super) fn configuration(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let conditions = |of: &Value| -> Vec<Value> {
        list(of, "/webhooks").iter().map(|it| it.get("matchConditions").cloned().unwrap_or_default()).collect()
    };
    let same_conditions = old.is_some_and(|old| conditions(old) == conditions(object));
    if same_conditions {
        webhooks(object, None, errors);
    } else {
        aside(|| webhooks(object, Some(&Environment::new(false, false)), errors));
    }
}

/// `environment`: of the conditions, where they are to be looked at.
fn webhooks(object: &Value, environment: Option<&Environment>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (at, hook) in list(object, "/webhooks").iter().enumerate() {
        let path = format!("webhooks[{at}]");
        webhook(hook, &path, environment, errors);
        versions(hook, &format!("{path}.admissionReviewVersions"), errors);
        let name = text(hook, "/name");
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &json!(name)));
        }
    }
}

fn webhook(hook: &Value, path: &str, environment: Option<&Environment>, errors: &mut Errors) {
    qualified(text(hook, "/name"), &format!("{path}.name"), errors);
    for (at, rule) in list(hook, "/rules").iter().enumerate() {
        rule_with_operations(rule, &format!("{path}.rules[{at}]"), errors);
    }
    one_of(hook, "failurePolicy", path, &["Fail", "Ignore"], errors);
    one_of(hook, "matchPolicy", path, &["Equivalent", "Exact"], errors);
    if hook.get("sideEffects").is_none() {
        let why = "must specify one of None, NoneOnDryRun";
        errors.push(FieldError::required(format!("{path}.sideEffects"), why));
    }
    one_of(hook, "sideEffects", path, &["None", "NoneOnDryRun"], errors);
    if let Some(seconds) = hook.get("timeoutSeconds").filter(|it| !it.as_i64().is_some_and(|it| (1..=30).contains(&it)))
    {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(format!("{path}.timeoutSeconds"), seconds, why));
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if let Some(of) = hook.get(field) {
            selector(of, &format!("{path}.{field}"), errors);
        }
    }
    one_of(hook, "reinvocationPolicy", path, &["IfNeeded", "Never"], errors);
    client(hook.get("clientConfig").unwrap_or(&Value::Null), &format!("{path}.clientConfig"), errors);
    if let Some(environment) = environment {
        conditions(hook, &format!("{path}.matchConditions"), environment, errors);
    }
}

pub(super) fn one_of(of: &Value, field: &str, path: &str, known: &[&str], errors: &mut Errors) {
    if let Some(value) = of.get(field)
        && !known.iter().any(|it| value == it)
    {
        errors.push(FieldError::not_supported(format!("{path}.{field}"), value, known));
    }
}

fn qualified(name: &str, path: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let mistakes = dns1123_subdomain(name);
    errors.extend(mistakes.iter().map(|why| FieldError::invalid_str(path, name, why)));
    if mistakes.is_empty() && name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        errors.push(FieldError::invalid_str(path, name, why));
    }
}

fn versions(hook: &Value, path: &str, errors: &mut Errors) {
    let all = list(hook, "/admissionReviewVersions");
    if all.is_empty() {
        errors.push(FieldError::required(path, "must specify one of v1, v1beta1"));
        return;
    }
    let mut seen = HashSet::new();
    for (at, version) in all.iter().enumerate() {
        let said = version.as_str().unwrap_or_default();
        if !seen.insert(said) {
            errors.push(FieldError::invalid(format!("{path}[{at}]"), version, "duplicate version"));
            continue;
        }
        let wrong = dns1035_label(said);
        errors.extend(wrong.iter().map(|why| FieldError::invalid_str(format!("{path}[{at}]"), said, why)));
    }
    if !all.iter().any(|it| it == "v1" || it == "v1beta1") {
        errors.push(FieldError::invalid(path, &json!(all), "must include at least one of v1, v1beta1"));
    }
}

/// A rule of a webhook or a policy.
pub(super) fn rule_with_operations(rule: &Value, path: &str, errors: &mut Errors) {
    let operations = list(rule, "/operations");
    let wild = |all: &[Value]| all.len() > 1 && all.iter().any(|it| it == "*");
    let at = format!("{path}.operations");
    if operations.is_empty() {
        errors.push(FieldError::required(&at, ""));
    }
    if wild(operations) {
        let why = "if '*' is present, must not specify other operations";
        errors.push(FieldError::invalid(&at, &json!(operations), why));
    }
    for (index, operation) in operations.iter().enumerate() {
        if !OPERATIONS.iter().any(|it| operation == it) {
            errors.push(FieldError::not_supported(format!("{at}[{index}]"), operation, &OPERATIONS));
        }
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let all = list(rule, &format!("/{field}"));
        let at = format!("{path}.{field}");
        if all.is_empty() {
            errors.push(FieldError::required(&at, ""));
        }
        if wild(all) {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(FieldError::invalid(&at, &json!(all), &why));
        }
        for (index, _) in all.iter().enumerate().filter(|it| field == "apiVersions" && it.1 == "") {
            errors.push(FieldError::required(format!("{at}[{index}]"), ""));
        }
    }
    resources(list(rule, "/resources"), &format!("{path}.resources"), errors);
    one_of(rule, "scope", path, &["*", "Cluster", "Namespaced"], errors);
}

fn resources(all: &[Value], path: &str, errors: &mut Errors) {
    if all.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    let (mut every_sub, mut every_resource) = (HashSet::new(), HashSet::new());
    for (at, one) in all.iter().enumerate() {
        let (said, path) = (one.as_str().unwrap_or_default(), format!("{path}[{at}]"));
        if said.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        let Some((resource, sub)) = said.split_once('/') else { continue };
        if every_sub.contains(&resource) {
            let why = format!("if '{resource}/*' is present, must not specify {said}");
            errors.push(FieldError::invalid_str(&path, said, &why));
        }
        if every_resource.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {said}");
            errors.push(FieldError::invalid_str(&path, said, &why));
        }
        if sub == "*" {
            every_sub.insert(resource);
        }
        if resource == "*" {
            every_resource.insert(sub);
        }
    }
    let has = |name: &str| all.iter().any(|it| it == name);
    if all.len() > 1 && has("*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(FieldError::invalid(path, &json!(all), why));
    }
    let last_plain = all.iter().filter_map(Value::as_str).rfind(|it| !it.is_empty() && !it.contains('/'));
    if has("*") && last_plain.is_some_and(|it| it != "*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(FieldError::invalid(path, &json!(all), why));
    }
}

fn client(of: &Value, path: &str, errors: &mut Errors) {
    match (of.get("url").and_then(Value::as_str), of.get("service").filter(|it| it.is_object())) {
        (Some(url), None) => address(url, &format!("{path}.url"), errors),
        (None, Some(it)) => service(it, &format!("{path}.service"), errors),
        _ => errors.push(FieldError::required(path, "exactly one of url or service is required")),
    }
}

fn address(url: &str, path: &str, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once(':').unwrap_or(("", rest));
    let authority = rest.strip_prefix("//").map_or("", |it| it.split('/').next().unwrap_or_default());
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if scheme != "https" {
        let why = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(FieldError::invalid_str(path, scheme, &why));
    }
    if host.is_empty() {
        errors.push(FieldError::invalid_str(path, "", &format!("host must be specified{FORM}")));
    }
    if !user.is_empty() {
        errors.push(FieldError::invalid_str(path, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid_str(path, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(FieldError::invalid_str(path, query, "query parameters are not permitted in the URL"));
    }
}

fn service(of: &Value, path: &str, errors: &mut Errors) {
    for field in ["name", "namespace"] {
        if text(of, &format!("/{field}")).is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    }
    let port = of.get("port").cloned().unwrap_or_else(|| json!(0));
    if !port.as_i64().is_some_and(|it| (1..=65_535).contains(&it)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(format!("{path}.port"), &port, why));
    }
    let (whole, at) = (text(of, "/path"), format!("{path}.path"));
    if matches!(whole, "" | "/") {
        return;
    }
    if whole == "//" {
        errors.push(FieldError::invalid_str(at, whole, "segment[0] may not be empty"));
        return;
    }
    if !whole.starts_with('/') {
        errors.push(FieldError::invalid_str(&at, whole, "must start with a '/'"));
    }
    let mut chars = whole.chars();
    chars.next();
    let steps = chars.as_str();
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.push(FieldError::invalid_str(&at, whole, &format!("segment[{index}] may not be empty")));
            continue;
        }
        let wrong = dns1123_subdomain(step);
        errors.extend(wrong.iter().map(|why| FieldError::invalid_str(&at, whole, &format!("segment[{index}]: {why}"))));
    }
}

/// The conditions on which a webhook or a policy is asked.
pub(super) fn conditions(of: &Value, path: &str, environment: &Environment, errors: &mut Errors) {
    let all = list(of, "/matchConditions");
    if all.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, all.len(), CONDITIONS_MAX as u64));
        return;
    }
    let mut names = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let (name, expression) = (text(one, "/name"), text(one, "/expression").trim());
        if expression.is_empty() {
            errors.push(FieldError::required(format!("{path}.expression"), ""));
        } else if let Err(why) = environment.compile(expression, &[Type::Bool]) {
            errors.push(FieldError::invalid_str(format!("{path}.expression"), expression, &why));
        }
        if is_blank(one, "/name") {
            errors.push(FieldError::required(format!("{path}.name"), ""));
            continue;
        }
        let wrong = qualified_name(name);
        errors.extend(wrong.iter().map(|why| FieldError::invalid_str(format!("{path}.name"), name, why)));
        if names.contains(&name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &json!(name)));
        }
        names.push(name);
    }
}
