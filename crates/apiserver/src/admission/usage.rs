//! What objects count for against quotas, and ask for against limits: upstream's `pkg/quota/v1/evaluator/core`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use crate::object::quantity::Quantity;
use crate::verbs::meta;

/// Quantities by the names of resources.
pub(super) type Amounts = BTreeMap<String, Quantity>;

pub(super) fn amounts(map: Option<&Value>) -> Amounts {
    let map = map.and_then(Value::as_object).into_iter().flatten();
    let amount = |(name, value): (&String, &Value)| {
        let quantity = match value {
            Value::String(text) => Quantity::parse(text).ok()?,
            other => Quantity::whole(other.as_i64()?),
        };
        Some((name.clone(), quantity))
    };
    map.filter_map(amount).collect()
}

pub(super) fn to_value(amounts: &Amounts) -> Value {
    let fields: Map<String, Value> =
        amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    Value::Object(fields)
}

pub(super) fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        to.entry(name.clone()).and_modify(|it| *it = it.plus(*amount)).or_insert(*amount);
    }
}

fn raise(to: &mut Amounts, at_least: Amounts) {
    for (name, amount) in at_least {
        to.entry(name).and_modify(|it| *it = (*it).max(amount)).or_insert(amount);
    }
}

pub(super) fn containers<'a>(spec: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// All that a pod requests (or its limits): of its containers together, or of what comes before them if that is more;
/// what the pod says as a whole goes before that.
pub(super) fn of_pod(spec: &Value, side: &str) -> Amounts {
    let of = |container: &Value| amounts(container.get("resources").and_then(|it| it.get(side)));
    let mut all = Amounts::new();
    for container in containers(spec, "containers") {
        add(&mut all, &of(container));
    }
    let (mut beside, mut before) = (Amounts::new(), Amounts::new());
    for container in containers(spec, "initContainers") {
        let mut needs = of(container);
        if container.get("restartPolicy").is_some_and(|it| it == "Always") {
            add(&mut all, &needs);
            add(&mut beside, &needs);
            needs = beside.clone();
        } else {
            add(&mut needs, &beside);
        }
        raise(&mut before, needs);
    }
    raise(&mut all, before);
    all.extend(of_whole(spec, side));
    all
}

/// What a pod says as a whole.
fn of_whole(spec: &Value, side: &str) -> Amounts {
    let mut said = amounts(spec.get("resources").and_then(|it| it.get(side)));
    said.retain(|name, _| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-"));
    said
}

/// The resource whose objects a quota counts under this name: its group and plural.
pub(super) fn counted(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(counted.split_once('.').map_or(("", counted), |(plural, group)| (group, plural)));
    }
    Some(match name {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => ("", name),
        "services" | "services.nodeports" | "services.loadbalancers" => ("", "services"),
        "persistentvolumeclaims" | "requests.storage" => ("", "persistentvolumeclaims"),
        "pods" | "cpu" | "memory" | "ephemeral-storage" => ("", "pods"),
        name if name.contains(".storageclass.storage.k8s.io/") => ("", "persistentvolumeclaims"),
        name if ["requests.", "limits.", "hugepages-"].iter().any(|it| name.starts_with(it)) => ("", "pods"),
        _ => return None,
    })
}

/// Whether what an object counts for depends on what it says.
pub(super) fn varies(group: &str, plural: &str) -> bool {
    group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims")
}

/// What one object counts for, under every name that a quota may use for it.
pub(super) fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    let one = Quantity::whole(1);
    let mut used = Amounts::new();
    let full = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    used.insert(full, one);
    if !group.is_empty() {
        return used;
    }
    match plural {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            used.insert(plural.to_owned(), one);
        }
        "services" => service(object, &mut used),
        "persistentvolumeclaims" => claim(object, &mut used),
        "pods" if is_alive(object, now) => {
            used.insert("pods".to_owned(), one);
            pod(object, &mut used);
        }
        _ => {}
    }
    used
}

/// A pod that is over, or overdue, takes nothing from anybody.
fn is_alive(pod: &Value, now: Timestamp) -> bool {
    if pod.pointer("/status/phase").is_some_and(|it| it == "Succeeded" || it == "Failed") {
        return false;
    }
    let grace = meta::get(pod, "deletionGracePeriodSeconds").and_then(Value::as_i64);
    let (Some(grace), Ok(at)) = (grace, meta::text(pod, "deletionTimestamp").parse::<Timestamp>()) else { return true };
    at.saturating_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
}

fn pod(object: &Value, used: &mut Amounts) {
    let null = Value::Null;
    let spec = object.get("spec").unwrap_or(&null);
    let overhead = amounts(spec.get("overhead"));
    let mut requests = of_pod(spec, "requests");
    let mut limits = of_pod(spec, "limits");
    add(&mut requests, &overhead);
    limits.iter_mut().for_each(|(name, it)| *it = overhead.get(name).map_or(*it, |more| it.plus(*more)));
    used.extend(computing(&requests, &limits));
}

/// Requests and limits by the names that quotas know.
pub(super) fn computing(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::new();
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if plain {
            used.insert(name.clone(), *amount);
        }
        if plain || name.contains('/') {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

fn service(object: &Value, used: &mut Amounts) {
    let ports = object.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let count = |number: usize| Quantity::whole(i64::try_from(number).unwrap_or(i64::MAX));
    let kind = object.pointer("/spec/type").and_then(Value::as_str).unwrap_or_default();
    let given = |it: &&Value| it.get("nodePort").and_then(Value::as_i64).unwrap_or_default() != 0;
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if object.pointer("/spec/allocateLoadBalancerNodePorts") == Some(&Value::Bool(false)) => {
            ports.iter().filter(given).count()
        }
        "LoadBalancer" => ports.len(),
        _ => 0,
    };
    used.insert("services".to_owned(), count(1));
    used.insert("services.nodeports".to_owned(), count(node_ports));
    used.insert("services.loadbalancers".to_owned(), count(usize::from(kind == "LoadBalancer")));
}

fn claim(object: &Value, used: &mut Amounts) {
    let class = object.pointer("/spec/storageClassName").and_then(Value::as_str).unwrap_or_default();
    let mut insert = |name: &str, amount: Quantity| {
        used.insert(name.to_owned(), amount);
        if !class.is_empty() {
            used.insert(format!("{class}.storageclass.storage.k8s.io/{name}"), amount);
        }
    };
    insert("persistentvolumeclaims", Quantity::whole(1));
    if let Some(storage) = amounts(object.pointer("/spec/resources/requests")).get("storage") {
        insert("requests.storage", *storage);
    }
}

/// Whether a quota is about this object, as far as its scopes go.
pub(super) fn in_scopes(quota: &Value, pod: Option<&Value>) -> bool {
    let scopes = quota.pointer("/spec/scopes").and_then(Value::as_array).into_iter().flatten();
    let selected =
        quota.pointer("/spec/scopeSelector/matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let text = |it: &Value, field: &str| it.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let none = Vec::new();
    let mut all = scopes.map(|it| (it.as_str().unwrap_or_default().to_owned(), "Exists".to_owned(), &none)).chain(
        selected.map(|it| {
            let values = it.get("values").and_then(Value::as_array).unwrap_or(&none);
            (text(it, "scopeName"), text(it, "operator"), values)
        }),
    );
    // Pods alone have scopes.
    all.all(|(scope, operator, values)| {
        let Some(pod) = pod else { return false };
        match scope.as_str() {
            "Terminating" => terminates(pod),
            "NotTerminating" => !terminates(pod),
            "BestEffort" => is_best_effort(pod),
            "NotBestEffort" => !is_best_effort(pod),
            "PriorityClass" => {
                let class =
                    pod.pointer("/spec/priorityClassName").filter(|it| it.as_str().is_some_and(|it| !it.is_empty()));
                match operator.as_str() {
                    "Exists" => class.is_some(),
                    "DoesNotExist" => class.is_none(),
                    "In" => class.is_some_and(|it| values.contains(it)),
                    "NotIn" => class.is_none_or(|it| !values.contains(it)),
                    _ => false,
                }
            }
            "CrossNamespacePodAffinity" => crosses_namespaces(pod),
            _ => false,
        }
    })
}

fn terminates(pod: &Value) -> bool {
    pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|it| it >= 0)
}

fn is_best_effort(pod: &Value) -> bool {
    let null = Value::Null;
    let spec = pod.get("spec").unwrap_or(&null);
    let said = |container: &Value| {
        ["requests", "limits"].iter().any(|side| {
            let of = amounts(container.get("resources").and_then(|it| it.get(side)));
            ["cpu", "memory"].iter().any(|name| of.get(*name).is_some_and(|it| it.sign() > 0))
        })
    };
    !containers(spec, "containers").chain(containers(spec, "initContainers")).any(said) && !said(spec)
}

fn crosses_namespaces(pod: &Value) -> bool {
    let terms = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
        let of = pod.pointer(&format!("/spec/affinity/{kind}"));
        let list = |field: &str| of.and_then(|it| it.get(field)).and_then(Value::as_array).into_iter().flatten();
        let preferred =
            list("preferredDuringSchedulingIgnoredDuringExecution").filter_map(|it| it.get("podAffinityTerm"));
        list("requiredDuringSchedulingIgnoredDuringExecution").chain(preferred).collect::<Vec<_>>()
    });
    terms.into_iter().any(|term| {
        term.get("namespaces").and_then(Value::as_array).is_some_and(|it| !it.is_empty())
            || term.get("namespaceSelector").is_some_and(|it| !it.is_null())
    })
}

/// What each container must say for a quota on `hard` to be kept, and which do not: `limits.cpu for: a,b`.
pub(super) fn unsaid(pod: &Value, hard: &Amounts) -> Vec<String> {
    const ASKED: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let null = Value::Null;
    let spec = pod.get("spec").unwrap_or(&null);
    if !of_whole(spec, "requests").is_empty() || !of_whole(spec, "limits").is_empty() {
        return Vec::new();
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in containers(spec, "containers").chain(containers(spec, "initContainers")) {
        let of = |side| amounts(container.get("resources").and_then(|it| it.get(side)));
        let said = computing(&of("requests"), &of("limits"));
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        for asked in ASKED {
            if hard.contains_key(asked) && !said.contains_key(asked) {
                missing.entry(asked).or_default().insert(name);
            }
        }
    }
    let told = missing
        .into_iter()
        .map(|(asked, names)| format!("{asked} for: {}", names.into_iter().collect::<Vec<_>>().join(",")));
    told.collect()
}
