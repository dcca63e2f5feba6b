//! What is particular about a kind when it is created, updated or deleted: upstream's `pkg/registry/*/strategy.go`.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use rand::Rng;
use serde_json::{Map, Value, json};

use super::{certificates, defaults, ephemeral, runtime_class, service_account, validate};
use crate::local::protection;
use crate::object::FieldError;
use crate::object::meta::NameRule;
use crate::object::quantity::Quantity;
use crate::object::status::Problem;
use crate::registry::{Model, Resource, custom};
use crate::store::Entry;
use crate::verbs::{Call, DeleteOptions, meta};

/// The ports of the machine that services can have, and how many there are.
const FIRST_NODE_PORT: u64 = 30_000;
const NODE_PORTS: u64 = 2_768;

/// The stored resource that a kind's rules are filed under.
fn of(resource: &Resource) -> (&str, &str) {
    if resource.is_custom() { ("", "") } else { (resource.stored_group.as_str(), resource.plural.as_str()) }
}

/// Brings an object of a built-in kind into the form in which Kubernetes keeps it: without what is empty, with what is
/// default.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    let schema = resource.schema();
    schema.shape(object);
    defaults::fill(object, schema.root());
    schema.shape(object);
}

pub(crate) fn name_rule(resource: &Resource) -> NameRule {
    match of(resource) {
        ("", "namespaces") => NameRule::Label,
        ("", "services") => NameRule::Label1035,
        ("rbac.authorization.k8s.io", _) => NameRule::PathSegment,
        ("networking.k8s.io", "ipaddresses") => NameRule::Address,
        _ => NameRule::Subdomain,
    }
}

/// CertificateSigningRequests have an approver beside their signer.
pub(crate) fn is_request(resource: &Resource) -> bool {
    of(resource) == ("certificates.k8s.io", "certificatesigningrequests")
}

/// Whether a `PUT` may create.
pub(crate) fn may_create_on_update(resource: &Resource) -> bool {
    matches!(
        of(resource),
        ("rbac.authorization.k8s.io" | "coordination.k8s.io" | "node.k8s.io", _)
            | ("", "limitranges" | "events" | "services" | "endpoints")
    )
}

/// Whether a `PUT` without a `resourceVersion` overwrites whatever there is.
pub(crate) fn may_update_unconditionally(resource: &Resource) -> bool {
    !resource.is_custom()
        && !matches!(
            of(resource),
            ("coordination.k8s.io" | "node.k8s.io" | "admissionregistration.k8s.io" | "apiextensions.k8s.io", _)
                | ("policy", "poddisruptionbudgets")
                | ("storage.k8s.io", "csidrivers" | "csinodes" | "volumeattachments")
        )
}

/// Whether `metadata.generation` counts changes of what is wished.
fn has_generation(resource: &Resource) -> bool {
    resource.is_custom()
        || matches!(
            of(resource),
            ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
                | (
                    "batch"
                        | "admissionregistration.k8s.io"
                        | "apiextensions.k8s.io"
                        | "discovery.k8s.io"
                        | "flowcontrol.apiserver.k8s.io"
                        | "scheduling.k8s.io",
                    _
                )
                | ("networking.k8s.io", "ingresses" | "ingressclasses" | "networkpolicies")
                | ("policy", "poddisruptionbudgets")
                | ("", "replicationcontrollers" | "pods" | "podtemplates")
        )
}

/// Jobs and ReplicationControllers leave what they made, for the sake of clients older than garbage collection.
pub(crate) fn orphans_by_default(resource: &Resource) -> bool {
    matches!(of(resource), ("batch", "jobs") | ("", "replicationcontrollers"))
}

/// Whether a deletion answers with the object that was deleted instead of a `Status`.
pub(crate) fn answers_with_the_deleted(resource: &Resource) -> bool {
    matches!(
        of(resource),
        (
            "",
            "namespaces"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "services"
                | "serviceaccounts"
        ) | ("storage.k8s.io", _)
    )
}

/// The grace period of a deletion; `None` for a kind that is never deleted gracefully.
pub(crate) fn grace(resource: &Resource, object: &Value, asked: Option<i64>) -> Option<i64> {
    if of(resource) != ("", "pods") {
        return None;
    }
    let unscheduled = object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().is_empty();
    let over = object.pointer("/status/phase").is_some_and(|it| it == "Succeeded" || it == "Failed");
    if unscheduled || over {
        return Some(0);
    }
    let seconds =
        asked.or_else(|| object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64)).unwrap_or(30);
    Some(if seconds < 0 { 1 } else { seconds })
}

fn remove(object: &mut Value, field: &str) {
    meta::map(object).shift_remove(field);
}

/// The status with which a node registers itself. It is kept, and nobody owns its fields.
pub(crate) fn registered(resource: &Resource, object: &Value) -> Option<Value> {
    resource.is("", "nodes").then(|| object.get("status").cloned()).flatten()
}

/// What a client may not say of a new object: its status.
pub(crate) fn reset_for_create(resource: &Resource, object: &mut Value) {
    if resource.status && object.get("status").is_some() {
        remove(object, "status");
        resource.schema().shape(object);
    }
}

/// What a client may not say through this door stays as it was: the status through the resource itself, all else
/// through `/status`.
pub(crate) fn reset_for_update(resource: &Resource, subresource: &str, object: &mut Value, old: &Value) {
    match subresource {
        _ if is_request(resource) => certificates::reset(subresource, object, old),
        "status" => {
            let status = object.get("status").cloned();
            let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
            let mut kept = old.clone();
            put(&mut kept, "status", status);
            if resource.is_custom() {
                for field in ["resourceVersion", "managedFields"] {
                    meta::put(&mut kept, field, metadata.get(field).cloned());
                }
            } else {
                let old_meta = old.get("metadata").cloned().unwrap_or_default();
                put(&mut kept, "metadata", Some(metadata));
                let keeps_labels = of(resource) == ("apps", "deployments");
                let fields: &[&str] = if keeps_labels { &["ownerReferences", "labels"] } else { &["ownerReferences"] };
                for field in fields {
                    meta::put(&mut kept, field, old_meta.get(*field).cloned());
                }
            }
            *object = kept;
        }
        "ephemeralcontainers" => {
            let mut kept = old.clone();
            let wanted = object.pointer("/spec/ephemeralContainers").cloned();
            if let Some(spec) = kept.get_mut("spec") {
                put(spec, "ephemeralContainers", wanted);
            }
            for field in ["resourceVersion", "managedFields"] {
                meta::put(&mut kept, field, meta::get(object, field).cloned());
            }
            *object = kept;
        }
        _ if resource.status => put(object, "status", old.get("status").cloned()),
        _ => {}
    }
}

fn put(object: &mut Value, field: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            meta::map(object).insert(field.to_owned(), value);
        }
        None => remove(object, field),
    }
}

/// What an applier may not own through this door.
pub(crate) fn reset_applied(resource: &Resource, subresource: &str, applied: &mut Value) {
    match subresource {
        "status" => {
            meta::map(applied).retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        }
        _ if resource.status => remove(applied, "status"),
        _ => {}
    }
}

/// Rules on a creation that look at more than the object: upstream's admission plugins that are always on.
pub(crate) fn admit_create(call: &Call, object: &mut Value) -> Result<(), Problem> {
    match of(&call.resource) {
        ("", "pods") => {
            let name = meta::name(object).to_owned();
            let Some(spec) = object.get_mut("spec") else { return Ok(()) };
            let spec = meta::map(spec);
            service_account::admit(call, &name, spec)?;
            service_account::tolerate(spec);
            priority(call, &name, spec)?;
            runtime_class::admit(call, &name, spec)
        }
        ("", "persistentvolumeclaims" | "persistentvolumes") => {
            if call.resource.plural == "persistentvolumeclaims" {
                default_class(call, object);
            }
            let mut finalizers = meta::finalizers(object);
            if let Some(finalizer) = protection::finalizer(&call.resource.plural)
                && !finalizers.iter().any(|it| it == finalizer)
            {
                finalizers.push(finalizer.to_owned());
                meta::set_finalizers(object, &finalizers);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Rules on an update that look at more than the object.
pub(crate) fn admit_update(call: &Call, object: &Value, old: &Value) -> Result<(), Problem> {
    if of(&call.resource) != ("", "persistentvolumeclaims") || !call.subresource.is_empty() {
        return Ok(());
    }
    let size = |object: &Value| {
        let text = object.pointer("/spec/resources/requests/storage").and_then(Value::as_str);
        text.and_then(|it| Quantity::parse(it).ok())
    };
    if size(object) <= size(old) {
        return Ok(());
    }
    let refused = |why| Err(Problem::forbidden(call.resource.what(), meta::name(object), why));
    if old.pointer("/status/phase").is_none_or(|it| it != "Bound") {
        return refused("Only bound persistent volume claims can be expanded");
    }
    let old_name = meta::keyed(object, "annotations", "volume.beta.kubernetes.io/storage-class");
    let name = old_name.or_else(|| object.pointer("/spec/storageClassName").and_then(Value::as_str));
    let key = crate::store::Key::new("storage.k8s.io", "storageclasses", "", name.unwrap_or_default());
    let class = call.core.store.get(&key).map(|it| it.value());
    if class.is_some_and(|it| it.get("allowVolumeExpansion") == Some(&json!(true))) {
        return Ok(());
    }
    refused(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}

/// The classes that are always there: name, value, and what they say of themselves.
pub(crate) const SYSTEM_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

/// A pod's priority is that of its class.
fn priority(call: &Call, pod: &str, spec: &mut Map<String, Value>) -> Result<(), Problem> {
    let name = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let store = &call.core.store;
    let class = match name.as_str() {
        "" => {
            let all = store.list("scheduling.k8s.io", "priorityclasses", None, None, None).entries;
            let defaults = all.iter().map(|it| it.value()).filter(|it| it.get("globalDefault") == Some(&json!(true)));
            defaults.min_by_key(|it| it.get("value").and_then(Value::as_i64))
        }
        name => {
            let key = crate::store::Key::new("scheduling.k8s.io", "priorityclasses", "", name);
            let Some(found) = store.get(&key) else {
                let why = format!("no PriorityClass with name {name} was found");
                return Err(Problem::forbidden(call.resource.what(), pod, &why));
            };
            Some(found.value())
        }
    };
    let class = class.unwrap_or_else(|| json!({}));
    if let Some(name) = class.pointer("/metadata/name") {
        spec.insert("priorityClassName".into(), name.clone());
    }
    let of_class = "priority admission controller computed";
    let value = class.get("value").cloned().unwrap_or_else(|| json!(0));
    if let Some(given) = spec.get("priority").filter(|it| !it.is_null() && **it != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; {of_class} {value} from the given PriorityClass name"
        );
        return Err(Problem::forbidden(call.resource.what(), pod, &why));
    }
    spec.insert("priority".into(), value);
    let policy = class.get("preemptionPolicy").and_then(Value::as_str).unwrap_or("PreemptLowerPriority").to_owned();
    if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|it| *it != policy) {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; {of_class} {policy} from the given PriorityClass name"
        );
        return Err(Problem::forbidden(call.resource.what(), pod, &why));
    }
    spec.insert("preemptionPolicy".into(), json!(policy));
    Ok(())
}

/// A claim that names no class gets the default one.
fn default_class(call: &Call, object: &mut Value) {
    let Some(spec) = object.get_mut("spec").map(meta::map) else { return };
    if spec.get("storageClassName").is_some_and(|it| !it.is_null()) {
        return;
    }
    let classes = call.core.store.list("storage.k8s.io", "storageclasses", None, None, None).entries;
    let default = classes
        .iter()
        .map(|it| it.value())
        .find(|it| meta::keyed(it, "annotations", "storageclass.kubernetes.io/is-default-class") == Some("true"));
    if let Some(default) = default {
        spec.insert("storageClassName".into(), json!(meta::name(&default)));
    }
}

/// What the server adds to a new object; nobody owns it.
pub(crate) fn prepare_create(call: &Call, object: &mut Value) -> Result<(), Problem> {
    let resource = &call.resource;
    if has_generation(resource) {
        meta::set(object, "generation", 1);
    }
    if resource.status && !resource.is_custom() {
        complete(resource, object);
    }
    match of(resource) {
        ("", "namespaces") => {
            let spec = meta::map(object).entry("spec").or_insert_with(|| json!({}));
            let finalizers = meta::map(spec).entry("finalizers").or_insert_with(|| json!([]));
            if let Some(finalizers) = finalizers.as_array_mut()
                && !finalizers.contains(&json!("kubernetes"))
            {
                finalizers.push(json!("kubernetes"));
            }
        }
        ("", "pods") => {
            let mut status = json!({"phase": "Pending", "qosClass": qos(object)});
            if !validate::list(object, "/spec/schedulingGates").is_empty() {
                meta::map(&mut status).insert(
                    "conditions".into(),
                    json!([{
                        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                        "message": "Scheduling is blocked due to non-empty scheduling gates",
                        "lastProbeTime": null, "lastTransitionTime": call.core.now(),
                    }]),
                );
            }
            put(object, "status", Some(status));
        }
        ("", "services") => allocate(call, object, None)?,
        ("certificates.k8s.io", _) => certificates::sign_in(object, &call.user),
        ("batch", "jobs") => {
            job_selector(object);
            // Its labels are those of its pods when it has none, also when those are the server's.
            complete(resource, object);
        }
        ("", "persistentvolumes") => {
            if let Some(status) = object.get_mut("status") {
                meta::map(status).insert("lastPhaseTransitionTime".into(), json!(call.core.now()));
            }
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            remove(object, "status");
            custom::note_stored_version(object);
            settle(call, object);
        }
        _ => {}
    }
    Ok(())
}

fn settle(call: &Call, definition: &mut Value) {
    let others = call.core.store.list(custom::GROUP, custom::PLURAL, None, None, None).entries;
    custom::settle(definition, &others, &call.core.now());
}

/// Guaranteed, Burstable or BestEffort, by what the containers ask for.
fn qos(pod: &Value) -> &'static str {
    let containers =
        ["/spec/containers", "/spec/initContainers"].iter().filter_map(|path| pod.pointer(path)?.as_array()).flatten();
    let (mut any, mut all) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let of = |what: &str| container.pointer(&format!("/resources/{what}/{resource}"));
            any |= of("limits").is_some() || of("requests").is_some();
            all &= of("limits").is_some() && of("requests").is_none_or(|it| Some(it) == of("limits"));
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A job's pods are told apart by the job's uid, unless the user does that himself.
fn job_selector(object: &mut Value) {
    if object.pointer("/spec/manualSelector") == Some(&json!(true)) {
        return;
    }
    let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
    let Some(spec) = object.get_mut("spec").map(meta::map) else { return };
    let template = meta::map(spec.entry("template").or_insert_with(|| json!({})));
    let labels = meta::map(
        meta::map(template.entry("metadata").or_insert_with(|| json!({}))).entry("labels").or_insert_with(|| json!({})),
    );
    for (key, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        labels.insert(key.to_owned(), json!(value));
    }
    let selector = meta::map(spec.entry("selector").or_insert_with(|| json!({})));
    meta::map(selector.entry("matchLabels").or_insert_with(|| json!({})))
        .insert("batch.kubernetes.io/controller-uid".into(), json!(uid));
}

/// The cluster address of the API server itself: the first one of the range.
pub(crate) const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// What a service had by its type goes with the type, when whoever changes that left it as it was
/// (`dropTypeDependentFields` of upstream).
fn drop_dependent(object: &mut Value, old: &Value) {
    let kind = |object: &Value| object.pointer("/spec/type").and_then(Value::as_str).unwrap_or("ClusterIP").to_owned();
    let (now, before) = (kind(object), kind(old));
    let left = |had: &dyn Fn(&str) -> bool| had(&before) && !had(&now);
    let balanced = |it: &str| it == "LoadBalancer";
    let reached = |it: &str| matches!(it, "NodePort" | "LoadBalancer");
    let (address, ports) = (left(&|it| it != "ExternalName"), left(&reached));
    let table: [(bool, &[&str]); 8] = [
        (address, &["clusterIP", "clusterIPs"]),
        (address, &["ipFamilies"]),
        (address, &["ipFamilyPolicy"]),
        (address, &["internalTrafficPolicy"]),
        (left(&balanced), &["healthCheckNodePort"]),
        (left(&balanced), &["allocateLoadBalancerNodePorts"]),
        (left(&balanced), &["loadBalancerClass"]),
        (ports, &["externalTrafficPolicy"]),
    ];
    let Some(was) = old.get("spec") else { return };
    let numbers = |spec: &Value| -> Vec<Value> {
        let all = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
        all.map(|it| it.get("nodePort").cloned().unwrap_or_else(|| json!(0))).collect()
    };
    let Some(spec) = object.get_mut("spec") else { return };
    let same_numbers = numbers(spec) == numbers(was);
    let spec = meta::map(spec);
    for (_, fields) in table.iter().filter(|it| it.0) {
        if fields.iter().all(|it| spec.get(*it) == was.get(*it)) {
            fields.iter().for_each(|it| drop(spec.shift_remove(*it)));
        }
    }
    if ports && same_numbers {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            meta::map(port).shift_remove("nodePort");
        }
    }
}

/// A service's cluster address and node ports: its own from before, or free ones.
fn allocate(call: &Call, object: &mut Value, old: Option<&Value>) -> Result<(), Problem> {
    let spec = |object: &Value, field: &str| {
        object.pointer(&format!("/spec/{field}")).cloned().filter(|it| !it.is_null() && it != "")
    };
    if let Some(old) = old {
        drop_dependent(object, old);
    }
    let kind = spec(object, "type").and_then(|it| it.as_str().map(str::to_owned)).unwrap_or_default();
    if kind == "ExternalName" {
        return Ok(());
    }
    let old_kind = old.and_then(|old| spec(old, "type"));
    if let Some(old) = old.filter(|_| old_kind.is_none_or(|it| it != "ExternalName")) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"] {
            if spec(object, field).is_none()
                && let Some(value) = spec(old, field)
                && let Some(spec) = object.get_mut("spec")
            {
                meta::map(spec).insert(field.to_owned(), value);
            }
        }
    }
    let wants_address = spec(object, "clusterIP").is_none();
    let wants_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let (mut addresses, mut ports) = (HashSet::new(), HashSet::new());
    if wants_address || wants_ports {
        for entry in call.core.store.list("", "services", None, None, None).entries {
            let other = entry.value();
            if meta::uid(&other) == meta::uid(object) {
                continue;
            }
            addresses.extend(spec(&other, "clusterIP").and_then(|it| it.as_str().map(str::to_owned)));
            for port in other.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
                ports.extend(port.get("nodePort").and_then(Value::as_u64));
            }
        }
    }
    let old_ports: Vec<Value> =
        old.and_then(|old| spec(old, "ports")).and_then(|it| it.as_array().cloned()).unwrap_or_default();
    let Some(spec) = object.get_mut("spec").map(meta::map) else { return Ok(()) };
    if wants_address {
        let free = (1..=u32::from(u16::MAX)).map(|_| {
            let host: u16 = rand::random();
            format!("10.96.{}.{}", host >> 8, host & 0xff)
        });
        let own = OWN_ADDRESS.to_string();
        let Some(address) = free
            .into_iter()
            .find(|it| *it != own && !addresses.contains(it) && !it.ends_with(".0") && !it.ends_with(".255"))
        else {
            return Err(Problem::internal("failed to allocate IP: range is full"));
        };
        spec.insert("clusterIP".into(), json!(address));
    }
    let address = spec.get("clusterIP").cloned().unwrap_or_default();
    spec.entry("clusterIPs").or_insert_with(|| json!([&address]));
    // Headless and without a selector, it says nothing about where its endpoints are.
    let anywhere = address == "None" && spec.get("selector").is_none();
    let (families, policy) =
        if anywhere { (json!(["IPv4", "IPv6"]), "RequireDualStack") } else { (json!(["IPv4"]), "SingleStack") };
    spec.entry("ipFamilies").or_insert(families);
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!(policy));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let given = port.get("nodePort").and_then(Value::as_u64).unwrap_or_default();
        if !wants_ports || given > 0 {
            continue;
        }
        let same =
            |other: &&Value| other.get("port") == port.get("port") && other.get("protocol") == port.get("protocol");
        let kept = old_ports.iter().find(same).and_then(|it| it.get("nodePort")).and_then(Value::as_u64);
        // Two clusters of one machine seldom ask for the same one.
        let from = rand::rng().random_range(0..NODE_PORTS);
        let mut all = (0..NODE_PORTS).map(|it| FIRST_NODE_PORT + (from + it) % NODE_PORTS);
        let Some(number) = kept.or_else(|| all.find(|it| !ports.contains(it))) else {
            return Err(Problem::internal("failed to allocate a nodePort: range is full"));
        };
        ports.insert(number);
        meta::map(port).insert("nodePort".into(), json!(number));
    }
    Ok(())
}

/// What the server adds to an update, and whether it counts as a new generation.
pub(crate) fn prepare_update(call: &Call, object: &mut Value, old: &Value) -> Result<(), Problem> {
    let resource = &call.resource;
    match of(resource) {
        ("", "services") if call.subresource.is_empty() => allocate(call, object, Some(old))?,
        ("", "persistentvolumes") => {
            let phase = |object: &Value| object.pointer("/status/phase").cloned();
            let now = json!(call.core.now());
            if phase(object) != phase(old)
                && let Some(status) = object.get_mut("status")
            {
                meta::map(status).insert("lastPhaseTransitionTime".into(), now);
            }
        }
        ("certificates.k8s.io", _) => certificates::date(object, old, &call.core.now()),
        ("apps", "daemonsets") if object.pointer("/spec/template") != old.pointer("/spec/template") => {
            let key = defaults::TEMPLATE_GENERATION;
            let before: i64 = meta::keyed(old, "annotations", key).and_then(|it| it.parse().ok()).unwrap_or(1);
            let annotations = meta::of(object).entry("annotations").or_insert_with(|| json!({}));
            meta::map(annotations).insert(key.to_owned(), json!((before + 1).to_string()));
        }
        ("apiextensions.k8s.io", "customresourcedefinitions") if call.subresource.is_empty() => {
            custom::note_stored_version(object);
            settle(call, object);
        }
        _ => {}
    }
    let counts = !matches!(call.subresource.as_str(), "status" | "binding");
    if has_generation(resource) && counts && wishes_differ(resource, object, old) {
        meta::set(object, "generation", meta::generation(old) + 1);
    }
    Ok(())
}

/// Whether anything differs but metadata and, where it has a door of its own, status.
fn wishes_differ(resource: &Resource, new: &Value, old: &Value) -> bool {
    let beside = |key: &str| {
        matches!(key, "apiVersion" | "kind" | "metadata")
            || (key == "status" && (resource.status || !resource.is_custom()))
    };
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return new != old };
    new.iter().any(|(key, value)| !beside(key) && old.get(key) != Some(value))
        || old.keys().any(|key| !beside(key) && !new.contains_key(key))
}

pub(crate) fn validate_create(resource: &Resource, object: &Value) -> Vec<FieldError> {
    match &resource.model {
        Model::Custom(custom) => custom.schema().validate(object, None).0,
        Model::Builtin(_) => validate::create(resource, object).into_vec(),
    }
}

/// What is wrong with an update, and what was wrong before and is let through.
pub(crate) fn validate_update(
    resource: &Resource,
    subresource: &str,
    new: &Value,
    old: &Value,
) -> (Vec<FieldError>, Vec<String>) {
    match &resource.model {
        Model::Custom(custom) => custom.schema().validate(new, Some(old)),
        Model::Builtin(_) if subresource == "status" => Default::default(),
        Model::Builtin(_) if subresource == "ephemeralcontainers" => {
            (ephemeral::update(new, old).into_vec(), Vec::new())
        }
        Model::Builtin(_) => (validate::update(resource, new, old).into_vec(), Vec::new()),
    }
}

/// What a client should know although its object is taken.
pub(crate) fn warnings(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<String> {
    let finalizers = |object: &Value| meta::finalizers(object);
    let before = old.map(finalizers).unwrap_or_default();
    let bare = finalizers(object).into_iter().filter(|it| !it.contains('/') && !before.contains(it));
    let standard = ["orphan", "foregroundDeletion", "kubernetes"];
    if of(resource) == ("", "endpoints") {
        return vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned()];
    }
    if of(resource) == (custom::GROUP, custom::PLURAL) {
        return custom::warnings(object, old);
    }
    bare.filter(|it| !standard.contains(&it.as_str()) && resource.is_custom())
        .map(|it| format!("metadata.finalizers: {it:?}: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers"))
        .collect()
}

/// Some objects are never deleted.
pub(crate) fn admit_delete(call: &Call, object: &Value, _options: &DeleteOptions) -> Result<(), Problem> {
    let name = meta::name(object);
    if of(&call.resource) == ("", "namespaces") && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Problem::forbidden(call.resource.what(), name, "this namespace may not be deleted"));
    }
    if of(&call.resource) == ("scheduling.k8s.io", "priorityclasses") && SYSTEM_CLASSES.iter().any(|it| it.0 == name) {
        let why = "this is a system priority class and cannot be deleted";
        return Err(Problem::forbidden(call.resource.what(), name, why));
    }
    Ok(())
}

/// What a write changes beyond the store.
pub(crate) fn after_write(call: &Call, entry: &Arc<Entry>) {
    tracing::debug!(user = call.user.name, object = ?entry.key, rev = entry.rev, "written");
    if *entry.key.group == *custom::GROUP && *entry.key.resource == *custom::PLURAL {
        call.core.reload();
    }
}
