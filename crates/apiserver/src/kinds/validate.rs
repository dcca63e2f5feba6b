//! The validation of built-in kinds that users meet: what is required, what may not change, and in which words
//! (`pkg/apis/*/validation`). Types, unknown fields and metadata are checked elsewhere.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{addresses, difference, hooks, limits, policies, roles, schedule};
use crate::object::field::quote;
use crate::object::meta::{dns1123_label, validate_kube_finalizers};
use crate::object::quantity::Quantity;
use crate::object::{Errors, FieldError};
use crate::registry::{Resource, custom};
use crate::verbs::meta;

/// All of a Secret's or ConfigMap's values together.
const MAX_DATA: usize = 1 << 20;

pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn is_blank(object: &Value, path: &str) -> bool {
    match object.pointer(path) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

pub(super) fn create(resource: &Resource, object: &Value) -> Errors {
    // Definitions come from another program's code, which knows no standard names.
    let mut errors = if resource.stored_group == custom::GROUP { Errors::default() } else { finalizers(object) };
    let template = "spec.template";
    match (resource.stored_group.as_str(), resource.plural.as_str()) {
        ("", "configmaps") => config_map(object, &mut errors),
        ("", "secrets") => secret(object, &mut errors),
        ("", "pods") => {
            pod_spec(object.pointer("/spec").unwrap_or(&Value::Null), HashSet::new(), "spec", &mut errors);
        }
        ("", "services") => service(object, &mut errors),
        ("", "persistentvolumeclaims") => claim(object, &mut errors),
        ("", "replicationcontrollers") => {
            non_negative(object, "/spec/replicas", "spec.replicas", &mut errors);
            if is_blank(object, "/spec/selector") {
                errors.push(FieldError::required("spec.selector", ""));
            }
            pod_template(object, template, &["Always"], &mut errors);
        }
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            selector(object, &mut errors);
            non_negative(object, "/spec/replicas", "spec.replicas", &mut errors);
            pod_template(object, template, &["Always"], &mut errors);
        }
        ("batch", "jobs") => {
            for field in
                ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
            {
                non_negative(object, &format!("/spec/{field}"), &format!("spec.{field}"), &mut errors);
            }
            pod_template(object, template, &["OnFailure", "Never"], &mut errors);
        }
        ("batch", "cronjobs") => {
            if is_blank(object, "/spec/schedule") {
                errors.push(FieldError::required("spec.schedule", ""));
            }
            if let Err(why) = schedule::check(text(object, "/spec/schedule")) {
                errors.push(FieldError::invalid_str("spec.schedule", text(object, "/spec/schedule"), &why));
            }
            time_zone(object, &mut errors);
            let policies = ["Allow", "Forbid", "Replace"];
            one_of(object, "/spec/concurrencyPolicy", "spec.concurrencyPolicy", &policies, &mut errors);
            pod_template(object, "spec.jobTemplate.spec.template", &["OnFailure", "Never"], &mut errors);
            if meta::name(object).len() > 52 {
                errors.push(FieldError::invalid_str(
                    "metadata.name",
                    meta::name(object),
                    "must be no more than 52 characters",
                ));
            }
        }
        ("rbac.authorization.k8s.io", "roles" | "clusterroles") => {
            roles::role(object, resource.namespaced, &mut errors)
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            roles::binding(object, resource.namespaced, &mut errors)
        }
        ("coordination.k8s.io", "leases") => {
            for field in ["leaseDurationSeconds", "leaseTransitions"] {
                let path = format!("/spec/{field}");
                let lowest = if field == "leaseDurationSeconds" { 1 } else { 0 };
                if let Some(value) = object.pointer(&path).filter(|it| it.as_i64().is_some_and(|it| it < lowest)) {
                    let why = if lowest == 1 { "must be greater than 0" } else { "must be greater than or equal to 0" };
                    errors.push(FieldError::invalid(format!("spec.{field}"), value, why));
                }
            }
        }
        ("", "events") => event(object, &mut errors),
        ("", "limitranges") => limits::range(object, &mut errors),
        ("", "resourcequotas") => limits::quota(object, None, &mut errors),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            hooks::configuration(object, None, &mut errors);
        }
        ("networking.k8s.io", "ipaddresses") => addresses::address(object, &mut errors),
        ("networking.k8s.io", "servicecidrs") => addresses::ranges(object, &mut errors),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => policies::policy(object, None, &mut errors),
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings") => policies::binding(object, &mut errors),
        ("apiextensions.k8s.io", "customresourcedefinitions") => return custom::validate(object, None),
        _ => {}
    }
    errors
}

fn finalizers(object: &Value) -> Errors {
    let mut errors = Errors::default();
    errors.extend(validate_kube_finalizers(object.get("metadata").unwrap_or(&Value::Null), "metadata"));
    errors
}

pub(super) fn update(resource: &Resource, new: &Value, old: &Value) -> Errors {
    let place = (resource.stored_group.as_str(), resource.plural.as_str());
    // Deletion must go on with what was valid once: what finalizers leave is not checked again.
    let mut errors = match place {
        ("apiextensions.k8s.io", "customresourcedefinitions") => custom::validate(new, Some(old)),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            let mut errors = finalizers(new);
            hooks::configuration(new, Some(old), &mut errors);
            errors
        }
        ("networking.k8s.io", "ipaddresses" | "servicecidrs") => Errors::default(),
        ("", "resourcequotas") => {
            let mut errors = finalizers(new);
            limits::quota(new, Some(old), &mut errors);
            errors
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => {
            let mut errors = finalizers(new);
            policies::policy(new, Some(old), &mut errors);
            errors
        }
        _ => create(resource, new),
    };
    let immutable = |path: &str, name: &str, errors: &mut Errors| {
        if new.pointer(path) != old.pointer(path) {
            errors.push(FieldError::invalid(name, new.pointer(path).unwrap_or(&Value::Null), "field is immutable"));
        }
    };
    match place {
        ("", "configmaps" | "secrets") => {
            if old.get("immutable") == Some(&json!(true)) {
                if new.get("immutable") != old.get("immutable") {
                    errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
                }
                for field in ["data", "binaryData"] {
                    if new.get(field) != old.get(field) {
                        errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
                    }
                }
            }
            if place.1 == "secrets" {
                immutable("/type", "type", &mut errors);
            }
        }
        ("apps", "deployments" | "replicasets" | "daemonsets") => {
            immutable("/spec/selector", "spec.selector", &mut errors)
        }
        ("apps", "statefulsets") => stateful(new, old, &mut errors),
        ("batch", "jobs") => {
            immutable("/spec/selector", "spec.selector", &mut errors);
            let suspended =
                old.pointer("/spec/suspend") == Some(&json!(true)) && old.pointer("/status/startTime").is_none();
            if !suspended {
                immutable("/spec/template", "spec.template", &mut errors);
            }
            if old.pointer("/spec/completionMode").is_some_and(|it| it != "Indexed") {
                immutable("/spec/completions", "spec.completions", &mut errors);
            }
            immutable("/spec/completionMode", "spec.completionMode", &mut errors);
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings")
            if new.get("roleRef") != old.get("roleRef") =>
        {
            // As Go writes the internal type, which has no names for JSON.
            let said = |field| new.get("roleRef").and_then(|it| it.get(field)).cloned().unwrap_or_else(|| json!(""));
            let shown = json!({"APIGroup": said("apiGroup"), "Kind": said("kind"), "Name": said("name")});
            errors.push(FieldError::invalid("roleRef", &shown, "cannot change roleRef"));
        }
        ("", "pods") => pod_update(new, old, &mut errors),
        ("", "services") => {
            let external = |object: &Value| text(object, "/spec/type") == "ExternalName";
            if !external(new) && !external(old) && !is_blank(old, "/spec/clusterIP") {
                let (now, was) = (new.pointer("/spec/clusterIP"), old.pointer("/spec/clusterIP"));
                if now != was {
                    errors.push(FieldError::invalid("spec.clusterIPs[0]", &json!([now]), "may not change once set"));
                }
            }
        }
        ("", "persistentvolumeclaims") => claim_update(new, old, &mut errors),
        ("storage.k8s.io", "storageclasses") => {
            for field in ["parameters", "provisioner", "reclaimPolicy"] {
                if new.get(field) != old.get(field) {
                    errors.push(FieldError::forbidden(field, "updates to parameters are forbidden.").clone());
                }
            }
        }
        ("scheduling.k8s.io", "priorityclasses") => {
            for field in ["value", "preemptionPolicy"] {
                if new.get(field) != old.get(field) {
                    errors.push(FieldError::forbidden(field, "may not be changed in an update."));
                }
            }
        }
        ("node.k8s.io", "runtimeclasses") => immutable("/handler", "handler", &mut errors),
        ("networking.k8s.io", "ipaddresses") => addresses::address_update(new, old, &mut errors),
        ("networking.k8s.io", "servicecidrs") => addresses::ranges_update(new, old, &mut errors),
        ("apps", "controllerrevisions") => immutable("/data", "data", &mut errors),
        ("discovery.k8s.io", "endpointslices") => immutable("/addressType", "addressType", &mut errors),
        _ => {}
    }
    errors
}

/// An event stands in the namespace of what it is about.
fn event(object: &Value, errors: &mut Errors) {
    let path = if is_blank(object, "/regarding") { "/involvedObject/namespace" } else { "/regarding/namespace" };
    let about = text(object, path);
    if !about.is_empty() && !meta::namespace(object).is_empty() && about != meta::namespace(object) {
        errors.push(FieldError::invalid_str("involvedObject.namespace", about, "does not match event.namespace"));
    }
}

fn non_negative(object: &Value, path: &str, name: &str, errors: &mut Errors) {
    if let Some(value) = object.pointer(path).filter(|it| it.as_i64().is_some_and(|it| it < 0)) {
        errors.push(FieldError::invalid(name, value, "must be greater than or equal to 0"));
    }
}

fn one_of(object: &Value, path: &str, name: &str, known: &[&str], errors: &mut Errors) {
    if let Some(value) = object.pointer(path)
        && !known.iter().any(|it| value == it)
    {
        errors.push(FieldError::not_supported(name, value, known));
    }
}

/// A key under `data`: a file's name.
fn data_key(key: &str, path: &str, errors: &mut Errors) {
    let at = format!("{path}[{key}]");
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.len() > 253 {
        errors.push(FieldError::invalid_str(at, key, "must be no more than 253 characters"));
    } else if key.is_empty() || !key.chars().all(good) {
        let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
        errors.push(FieldError::invalid_str(at, key, why));
    } else if matches!(key, "." | "..") {
        errors.push(FieldError::invalid_str(at, key, &format!("must not be '{key}'")));
    } else if key.starts_with("..") {
        errors.push(FieldError::invalid_str(at, key, "must not start with '..'"));
    }
}

/// The bytes that base64 stands for.
fn decoded(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

fn config_map(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in object.get("data").and_then(Value::as_object).into_iter().flatten() {
        data_key(key, "data", errors);
        if object.get("binaryData").is_some_and(|it| it.get(key).is_some()) {
            errors.push(FieldError::invalid_str(format!("data[{key}]"), key, "duplicate of key present in binaryData"));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in object.get("binaryData").and_then(Value::as_object).into_iter().flatten() {
        data_key(key, "binaryData", errors);
        size += value.as_str().map_or(0, decoded);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("[]", MAX_DATA as u64));
    }
}

fn secret(object: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in object.get("data").and_then(Value::as_object).into_iter().flatten() {
        data_key(key, "data", errors);
        size += value.as_str().map_or(0, decoded);
    }
    if size > MAX_DATA {
        errors.push(FieldError::too_long("data", MAX_DATA as u64));
    }
    let has = |key: &str| object.get("data").and_then(|it| it.get(key)).is_some();
    let required: &[&str] = match text(object, "/type") {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => &["username", "password"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required {
        if !has(key) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
    if text(object, "/type") == "kubernetes.io/service-account-token" {
        let key = "kubernetes.io/service-account.name";
        if meta::keyed(object, "annotations", key).unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("metadata.annotations[{key}]"), ""));
        }
    }
}

fn service(object: &Value, errors: &mut Errors) {
    let ports = list(object, "/spec/ports");
    let kind = text(object, "/spec/type");
    if ports.is_empty() && text(object, "/spec/clusterIP") != "None" && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && is_blank(object, "/spec/externalName") {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        if ports.len() > 1 && text(port, "/name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        port_number(port, "/port", &format!("{path}.port"), errors);
        one_of(port, "/protocol", &format!("{path}.protocol"), &["SCTP", "TCP", "UDP"], errors);
        if port.get("targetPort").is_some_and(Value::is_number) {
            port_number(port, "/targetPort", &format!("{path}.targetPort"), errors);
        }
    }
    one_of(object, "/spec/type", "spec.type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], errors);
}

fn port_number(object: &Value, path: &str, name: &str, errors: &mut Errors) {
    let value = object.pointer(path).cloned().unwrap_or_else(|| json!(0));
    if !value.as_i64().is_some_and(|it| (1..=65_535).contains(&it)) {
        errors.push(FieldError::invalid(name, &value, "must be between 1 and 65535, inclusive"));
    }
}

fn claim(object: &Value, errors: &mut Errors) {
    if is_blank(object, "/spec/accessModes") {
        errors.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for (at, mode) in list(object, "/spec/accessModes").iter().enumerate() {
        let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
        if !known.iter().any(|it| mode == it) {
            errors.push(FieldError::not_supported(format!("spec.accessModes[{at}]"), mode, &known));
        }
    }
    if object.pointer("/spec/resources/requests/storage").is_none() {
        errors.push(FieldError::required("spec.resources[storage]", ""));
    }
}

/// Nothing of a claim changes, but that it gets a volume or a class that it had none of, and what it asks for when it is bound.
fn claim_update(new: &Value, old: &Value, errors: &mut Errors) {
    let bound = text(new, "/status/phase") == "Bound";
    let had = |field: &str| old.get("spec").is_some_and(|it| it.get(field).is_some());
    let frozen = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if is_blank(old, "/spec/volumeName") {
            meta::map(&mut spec).shift_remove("volumeName");
        }
        if !had("storageClassName") {
            meta::map(&mut spec).shift_remove("storageClassName");
        }
        if bound {
            meta::map(&mut spec).shift_remove("volumeAttributesClassName");
            if let Some(requests) = spec.pointer_mut("/resources/requests") {
                meta::map(requests).shift_remove("storage");
            }
        }
        spec
    };
    if frozen(new) != frozen(old) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
    let size = |object: &Value, path: &str| Quantity::parse(text(object, path)).ok();
    let asked = |object: &Value| size(object, "/spec/resources/requests/storage");
    let has = size(old, "/status/capacity/storage").unwrap_or_else(|| Quantity::whole(0));
    if asked(new) < asked(old) && asked(new).is_some_and(|it| it <= has) {
        let path = "spec.resources.requests.storage";
        errors.push(FieldError::forbidden(path, "field can not be less than status.capacity"));
    }
}

fn selector(object: &Value, errors: &mut Errors) {
    let given = object.pointer("/spec/selector");
    let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default();
    let mismatch = || {
        let why = "`selector` does not match template `labels`";
        FieldError::invalid("spec.template.metadata.labels", &labels, why)
    };
    if given.is_none_or(Value::is_null) {
        errors.push(FieldError::required("spec.selector", ""));
        errors.push(mismatch());
        return;
    }
    if is_blank(object, "/spec/selector/matchLabels") && is_blank(object, "/spec/selector/matchExpressions") {
        let kind = text(object, "/kind").to_lowercase();
        let why = format!("empty selector is invalid for {kind}");
        errors.push(FieldError::invalid("spec.selector", given.unwrap_or(&Value::Null), &why));
        return;
    }
    let wanted = object.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    if wanted.into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        errors.push(mismatch());
    }
}

/// The time zone of a CronJob must be known where its times are reckoned.
fn time_zone(object: &Value, errors: &mut Errors) {
    let Some(name) = object.pointer("/spec/timeZone").and_then(Value::as_str) else { return };
    let why = match name {
        "" => "timeZone must be nil or non-empty string".to_owned(),
        _ if name.eq_ignore_ascii_case("local") => {
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
        }
        _ if schedule::zone(name).is_none() => format!("unknown time zone {name}"),
        _ => return,
    };
    errors.push(FieldError::invalid_str("spec.timeZone", name, &why));
}

fn pod_template(object: &Value, path: &str, policies: &[&str], errors: &mut Errors) {
    let at = format!("/{}", path.replace('.', "/"));
    let Some(template) = object.pointer(&at).filter(|it| !it.is_null()) else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let spec = template.get("spec").unwrap_or(&Value::Null);
    // A StatefulSet's claims are volumes of its pods, whatever the template has under their names.
    let claims = list(object, "/spec/volumeClaimTemplates").iter().map(|it| text(it, "/metadata/name"));
    pod_spec(spec, claims.collect(), &format!("{path}.spec"), errors);
    let at = format!("{path}.spec.restartPolicy");
    match spec.get("restartPolicy") {
        Some(policy) if policies.iter().any(|it| policy == it) => {}
        // The default of a pod is no policy for a job, so nothing was said.
        Some(policy) if policy == "Always" => {
            let known: Vec<String> = policies.iter().map(|it| quote(it)).collect();
            errors.push(FieldError::required(at, &format!("valid values: {}", known.join(", "))));
        }
        Some(policy) => errors.push(FieldError::not_supported(at, policy, policies)),
        None => {}
    }
}

/// `claims`: volumes that its pods have besides those that it names.
fn pod_spec<'a>(spec: &'a Value, claims: HashSet<&'a str>, path: &str, errors: &mut Errors) {
    let mut volumes = HashSet::new();
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let name = text(volume, "/name");
        let place = format!("{path}.volumes[{at}].name");
        name_is_label(name, &place, errors);
        if !volumes.insert(name) {
            errors.push(FieldError::duplicate(place, &json!(name)));
        }
    }
    if is_blank(spec, "/containers") {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for field in ["containers", "initContainers"] {
        for (at, container) in list(spec, &format!("/{field}")).iter().enumerate() {
            let place = format!("{path}.{field}[{at}]");
            let name = text(container, "/name");
            name_is_label(name, &format!("{place}.name"), errors);
            if !names.insert(name) && !name.is_empty() {
                errors.push(FieldError::duplicate(format!("{place}.name"), &json!(name)));
            }
            if text(container, "/image").is_empty() {
                errors.push(FieldError::required(format!("{place}.image"), ""));
            }
            for (at, port) in list(container, "/ports").iter().enumerate() {
                port_number(port, "/containerPort", &format!("{place}.ports[{at}].containerPort"), errors);
            }
            let mounts = format!("{place}.volumeMounts");
            for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
                let place = format!("{mounts}[{at}]");
                let name = text(mount, "/name");
                if name.is_empty() {
                    errors.push(FieldError::required(format!("{place}.name"), ""));
                } else if !volumes.contains(&name) && !claims.contains(name) {
                    errors.push(FieldError::not_found(format!("{place}.name"), &json!(name)));
                }
                if text(mount, "/mountPath").is_empty() {
                    errors.push(FieldError::required(format!("{place}.mountPath"), ""));
                }
                sub_paths(mount, &mounts, at, errors);
            }
            for (at, env) in list(container, "/env").iter().enumerate() {
                let place = format!("{place}.env[{at}]");
                if text(env, "/name").is_empty() {
                    errors.push(FieldError::required(format!("{place}.name"), ""));
                }
                if !text(env, "/value").is_empty() && env.get("valueFrom").is_some() {
                    let why = "may not be specified when `value` is not empty";
                    errors.push(FieldError::invalid_str(format!("{place}.valueFrom"), "", why));
                }
            }
        }
    }
    one_of(spec, "/restartPolicy", &format!("{path}.restartPolicy"), &["Always", "OnFailure", "Never"], errors);
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(spec, "/dnsPolicy", &format!("{path}.dnsPolicy"), &dns, errors);
    sysctls(spec, path, errors);
}

/// Which of them a node knows and may set, it says itself.
fn sysctls(spec: &Value, path: &str, errors: &mut Errors) {
    let part = |it: &str| {
        let edge = |it: Option<char>| it.is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
        let inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || matches!(it, '-' | '_');
        edge(it.chars().next()) && edge(it.chars().last()) && it.chars().all(inner)
    };
    let host = |field: &str| spec.get(field).and_then(Value::as_bool) == Some(true);
    let mut names = HashSet::new();
    for (at, sysctl) in list(spec, "/securityContext/sysctls").iter().enumerate() {
        let place = format!("{path}.securityContext.sysctls[{at}].name");
        let name = text(sysctl, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(place, ""));
            continue;
        }
        if name.len() > 253 || !name.split(['.', '/']).all(part) {
            let why = r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(FieldError::invalid_str(&place, name, why));
        } else if !names.insert(name) {
            errors.push(FieldError::duplicate(&place, &json!(name)));
        }
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|it| dotted.starts_with(it));
        for (shared, field) in [(dotted.starts_with("net."), "hostNetwork"), (ipc || dotted == "kernel.sem", "hostIPC")]
        {
            if shared && host(field) {
                let why = format!("may not be specified when '{field}' is true");
                errors.push(FieldError::invalid_str(&place, name, &why));
            }
        }
    }
}

/// What a mount takes of its volume is below it. Upstream does not say which of the mounts is wrong.
fn sub_paths(mount: &Value, mounts: &str, at: usize, errors: &mut Errors) {
    let (plain, expanded) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
    if !plain.is_empty() && !expanded.is_empty() {
        let why = "subPathExpr and subPath are mutually exclusive";
        errors.push(FieldError::invalid_str(format!("{mounts}[{at}].subPathExpr"), expanded, why));
    }
    for (field, path) in [("subPath", plain), ("subPathExpr", expanded)] {
        let place = format!("{mounts}.{field}");
        if path.starts_with('/') {
            errors.push(FieldError::invalid_str(&*place, path, "must be a relative path"));
        }
        if path.split('/').any(|it| it == "..") {
            errors.push(FieldError::invalid_str(place, path, "must not contain '..'"));
        }
    }
}

pub(super) fn name_is_label(name: &str, place: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(place, ""));
    } else {
        errors.extend(dns1123_label(name).iter().map(|why| FieldError::invalid_str(place, name, why)));
    }
}

fn stateful(new: &Value, old: &Value, errors: &mut Errors) {
    const FREE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
        "revisionHistoryLimit",
    ];
    let frozen = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        meta::map(&mut spec).retain(|key, _| !FREE.contains(&key.as_str()));
        spec
    };
    if frozen(new) != frozen(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                   'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden("spec", why));
    }
}

/// Little of a pod may change once it is there.
fn pod_update(new: &Value, old: &Value, errors: &mut Errors) {
    let frozen = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        let spec = meta::map(&mut spec);
        for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"] {
            spec.shift_remove(field);
        }
        for field in ["containers", "initContainers"] {
            for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                meta::map(container).shift_remove("image");
            }
        }
        spec.clone()
    };
    let bound_meanwhile = is_blank(old, "/spec/nodeName") && !is_blank(new, "/spec/nodeName");
    let (mut new, mut old) = (frozen(new), frozen(old));
    if bound_meanwhile {
        // A binding gives the node, and its subresource alone may: it comes through here.
        new.shift_remove("nodeName");
        old.shift_remove("nodeName");
    }
    if new != old {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                   `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                   `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        let shown = difference::between(&Value::Object(old), &Value::Object(new));
        errors.push(FieldError::forbidden("spec", &format!("{why}\n{shown}")));
    }
}
