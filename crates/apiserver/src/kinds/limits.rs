//! The validation of LimitRanges and ResourceQuotas: `pkg/apis/core/validation`.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Value, json};

use super::validate::{list, text};
use crate::object::field;
use crate::object::meta::qualified_name;
use crate::object::quantity::Quantity;
use crate::object::{Errors, FieldError};

/// What quotas may name, and what counts for them in whole numbers.
const COUNTED: [&str; 9] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const COMPUTED: [&str; 9] = [
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const OF_CONTAINERS: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];

fn is_huge(name: &str) -> bool {
    name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

fn is_for_quotas(name: &str) -> bool {
    COUNTED.contains(&name) || COMPUTED.contains(&name) || name == "requests.storage" || is_huge(name)
}

fn resource_name(name: &str, path: &str, errors: &mut Errors) {
    errors.extend(qualified_name(name).iter().map(|why| FieldError::invalid_str(path, name, why)));
    if !name.contains('/') && !is_for_quotas(name) && name != "storage" {
        errors.push(FieldError::invalid_str(path, name, "must be a standard resource type or fully qualified"));
    }
}

/// The quantities under a field, by the names of resources.
type Amounts<'a> = BTreeMap<&'a str, (Quantity, &'a str)>;

fn amounts<'a>(of: &'a Value, field: &str) -> Amounts<'a> {
    let all = of.get(field).and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, value)| {
        let said = value.as_str()?;
        Some((name.as_str(), (Quantity::parse(said).ok()?, said)))
    })
    .collect()
}

pub(super) fn range(object: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (at, limit) in list(object, "/spec/limits").iter().enumerate() {
        let path = format!("spec.limits[{at}]");
        let kind = text(limit, "/type");
        let at_type = format!("{path}.type");
        errors.extend(qualified_name(kind).iter().map(|why| FieldError::invalid_str(&at_type, kind, why)));
        if !kind.contains('/') && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") {
            let why = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid_str(&at_type, kind, why));
        }
        if !seen.insert(kind) {
            errors.push(FieldError::duplicate(at_type, &json!(kind)));
        }
        item(limit, kind, &path, errors);
    }
}

fn item(limit: &Value, kind: &str, path: &str, errors: &mut Errors) {
    let defaults = ["default", "defaultRequest"];
    for field in ["max", "min"].into_iter().chain(defaults).chain(["maxLimitRequestRatio"]) {
        let all = amounts(limit, field);
        if kind == "Pod" && defaults.contains(&field) {
            if !all.is_empty() {
                let why = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
            }
            continue;
        }
        if field == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
            let bounded = ["min", "max"].iter().any(|it| amounts(limit, it).contains_key("storage"));
            if !bounded {
                let why = "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(format!("{path}.limits"), why));
            }
        }
        for name in all.keys() {
            let at = format!("{path}.{field}[{name}]");
            resource_name(name, &at, errors);
            let contained = OF_CONTAINERS.contains(name) || name.starts_with("hugepages-") || name.contains('/');
            if matches!(kind, "Pod" | "Container") && !contained {
                errors.push(FieldError::invalid_str(at, name, "must be a standard resource for containers"));
            }
        }
    }
    let none = |field: &str| if kind == "Pod" { Amounts::new() } else { amounts(limit, field) };
    let bounds = Bounds {
        path,
        min: amounts(limit, "min"),
        max: amounts(limit, "max"),
        default: none("default"),
        request: none("defaultRequest"),
        ratio: amounts(limit, "maxLimitRequestRatio"),
    };
    let of = [&bounds.min, &bounds.max, &bounds.default, &bounds.request, &bounds.ratio];
    let names: BTreeSet<&str> = of.into_iter().flat_map(|it| it.keys().copied()).collect();
    names.into_iter().for_each(|name| bounds.check(name, errors));
}

struct Bounds<'a> {
    path: &'a str,
    min: Amounts<'a>,
    max: Amounts<'a>,
    default: Amounts<'a>,
    request: Amounts<'a>,
    ratio: Amounts<'a>,
}

impl Bounds<'_> {
    fn check(&self, name: &str, errors: &mut Errors) {
        let of = |all: &Amounts<'_>| all.get(name).map(|it| it.0);
        let (min, max, default, request) = (of(&self.min), of(&self.max), of(&self.default), of(&self.request));
        let at = |field: &str| format!("{}.{field}[{name}]", self.path);
        let mut refuse = |field: &str, shown: Quantity, why: String| {
            errors.push(FieldError::invalid_str(at(field), &shown.to_string(), &why));
        };
        // Which field is wrong, what is shown of it, and the two that are in the wrong order.
        let orders = [
            ("min", min, ("min", min), ("max", max)),
            ("defaultRequest", request, ("min", min), ("default request", request)),
            ("defaultRequest", request, ("default request", request), ("max", max)),
            ("defaultRequest", request, ("default request", request), ("default limit", default)),
            ("default", min, ("min", min), ("default", default)),
            ("default", max, ("default", default), ("max", max)),
        ];
        for (field, shown, (low, less), (high, more)) in orders {
            if let (Some(shown), Some(less), Some(more)) = (shown, less, more)
                && less > more
            {
                refuse(field, shown, format!("{low} value {less} is greater than {high} value {more}"));
            }
        }
        let field = "maxLimitRequestRatio";
        let Some(ratio) = of(&self.ratio) else { return };
        if ratio < Quantity::whole(1) {
            refuse(field, ratio, format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let most = max.as_float() / min.as_float();
            if ratio.as_float() > most {
                refuse(field, ratio, format!("ratio {ratio} is greater than max/min = {most:.6}"));
            }
        }
    }
}

pub(super) fn quota(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let null = Value::Null;
    let spec = object.get("spec").unwrap_or(&null);
    let hard = amounts(spec, "hard");
    for (name, (amount, _)) in &hard {
        let path = format!("spec.hard[{name}]");
        resource_name(name, &path, errors);
        if !name.contains('/') && !is_for_quotas(name) {
            errors.push(FieldError::invalid_str(&path, name, "must be a standard resource for quota"));
        }
        if amount.sign() < 0 {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid_str(&path, &amount.to_string(), why));
        }
        if COUNTED.contains(name) && amount.as_whole().is_none() {
            errors.push(FieldError::invalid_str(path, &amount.to_string(), "must be an integer"));
        }
    }
    let names: Vec<&str> = hard.keys().copied().collect();
    let scopes = list(spec, "/scopes");
    for (path, count) in [
        ("scopes", scopes.len()),
        ("scopeSelector.matchExpressions", list(spec, "/scopeSelector/matchExpressions").len()),
    ] {
        if count > SCOPES_MAX {
            errors.push(FieldError::too_many(format!("spec.{path}"), count, SCOPES_MAX as u64));
            return;
        }
    }
    of_scopes(scopes, &names, errors);
    selected(spec, &names, errors);
    let set =
        |all: &[Value]| -> BTreeSet<String> { all.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect() };
    if old.is_some_and(|old| set(list(old, "/spec/scopes")) != set(scopes)) {
        errors.push(FieldError::invalid("spec.scopes", &json!(scopes), "field is immutable"));
    }
}

/// What is more is refused here: each is held against all that is limited.
const SCOPES_MAX: usize = 64;
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Whether a scope says something about a resource.
fn fits(scope: &str, resource: &str) -> bool {
    const ASKED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    match scope {
        _ if !is_for_quotas(resource) => true,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ if SCOPES.contains(&scope) => resource == "pods" || ASKED.contains(&resource),
        _ => true,
    }
}

fn of_scopes(scopes: &[Value], names: &[&str], errors: &mut Errors) {
    let shown = field::json(&json!(scopes));
    let mut refuse = |why: &str| {
        if !errors.is_full() {
            errors.push(FieldError::invalid_shown("spec.scopes", shown.clone(), why));
        }
    };
    for scope in scopes.iter().filter_map(Value::as_str) {
        if !SCOPES.contains(&scope) {
            refuse("unsupported scope");
        }
        for _ in names.iter().filter(|it| !fits(scope, it)) {
            refuse("unsupported scope applied to resource");
        }
    }
    let has = |name: &str| scopes.iter().any(|it| it == name);
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            refuse("conflicting scopes");
        }
    }
}

fn selected(spec: &Value, names: &[&str], errors: &mut Errors) {
    let path = "spec.scopeSelector.matchExpressions";
    let shown = shown(spec);
    for one in list(spec, "/scopeSelector/matchExpressions") {
        let (scope, operator, values) = (text(one, "/scopeName"), text(one, "/operator"), list(one, "/values"));
        if !SCOPES.contains(&scope) {
            errors.push(FieldError::invalid_str(format!("{path}.scopeName"), scope, "unsupported scope"));
        }
        for _ in names.iter().filter(|it| !fits(scope, it)) {
            if errors.is_full() {
                return;
            }
            errors.push(FieldError::invalid_shown(path, shown.clone(), "unsupported scope applied to resource"));
        }
        if matches!(
            scope,
            "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
        ) && operator != "Exists"
        {
            let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid_str(format!("{path}.operator"), operator, why));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(FieldError::required(format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                errors.push(FieldError::invalid(format!("{path}.values"), &json!(values), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid_str(format!("{path}.operator"), other, "not a valid selector operator"))
            }
        }
    }
}

/// A scope selector as Go writes the internal type, which has no names for JSON.
fn shown(spec: &Value) -> String {
    let all = list(spec, "/scopeSelector/matchExpressions").iter().map(|it| {
        let of = |field: &str| field::json(it.get(field).unwrap_or(&Value::Null));
        format!("{{\"ScopeName\":{},\"Operator\":{},\"Values\":{}}}", of("scopeName"), of("operator"), of("values"))
    });
    format!("{{\"MatchExpressions\":[{}]}}", all.collect::<Vec<_>>().join(","))
}
