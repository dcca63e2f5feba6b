//! What Kubernetes fills in where a client says nothing: `SetDefaults_*` of `pkg/apis/*/v1/defaults.go`, v1.34.2. What
//! depends on nothing else is in `defaults.txt`, type by type; the rest is here. Walked along the schema.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::object::schema::Node;
use crate::verbs::meta::map;

/// Where a DaemonSet counts the generations of its template, since long ago.
pub(super) const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

type Table = HashMap<&'static str, Vec<(&'static str, Value)>>;

/// A type's name, then its lines: a field and its value each.
static STATIC: LazyLock<Table> = LazyLock::new(|| {
    let mut types = Table::new();
    let mut name = "";
    for line in include_str!("defaults.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix(' ').and_then(|line| line.split_once(' ')) {
            Some((field, text)) => match serde_json::from_str(text) {
                Ok(value) => types.entry(name).or_default().push((field, value)),
                Err(error) => tracing::error!(line, %error, "a default that is no JSON"),
            },
            None => name = line,
        }
    }
    types
});

/// Fills in the defaults of an object whose schema's root this is.
pub(crate) fn fill(object: &mut Value, root: &Node) {
    walk(object, root);
}

fn walk(value: &mut Value, node: &Node) {
    match value {
        Value::Object(it) => {
            if let Some(name) = node.name.and_then(|name| name.strip_prefix("io.k8s.")) {
                for (field, default) in STATIC.get(name).into_iter().flatten() {
                    if it.get(*field).is_none_or(|it| it.is_null() || (it == "" && default.is_string())) {
                        it.insert((*field).to_owned(), default.clone());
                    }
                }
                computed(name, it);
            }
            for (key, value) in it.iter_mut().filter(|(_, value)| value.is_object() || value.is_array()) {
                if let Some(child) = node.child(key) {
                    walk(value, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(node) = node.items() {
                items.iter_mut().for_each(|item| walk(item, node));
            }
        }
        _ => {}
    }
}

/// Whether a field says nothing: absent, null, or Go's zero of a text.
fn blank(it: &Map<String, Value>, field: &str) -> bool {
    it.get(field).is_none_or(|value| value.is_null() || value == "")
}

fn is_empty(it: &Map<String, Value>, list: &str) -> bool {
    it.get(list).and_then(Value::as_array).is_none_or(Vec::is_empty)
}

fn fill_blank(it: &mut Map<String, Value>, field: &str, value: Value) {
    if blank(it, field) {
        it.insert(field.to_owned(), value);
    }
}

/// Where zero is no choice.
fn fill_zero(it: &mut Map<String, Value>, fields: &[(&str, i64)]) {
    for (field, value) in fields {
        if it.get(*field).and_then(Value::as_i64).unwrap_or_default() == 0 {
            it.insert((*field).to_owned(), json!(value));
        }
    }
}

fn text<'a>(it: &'a Map<String, Value>, field: &str) -> &'a str {
    it.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The struct under a field, made when it is not there.
fn sub<'a>(it: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    map(it.entry(field).or_insert_with(|| json!({})))
}

fn computed(name: &str, it: &mut Map<String, Value>) {
    match name {
        "api.core.v1.Container" | "api.core.v1.EphemeralContainer" => container(it),
        "api.core.v1.Volume" if it.keys().all(|key| key == "name") => {
            it.insert("emptyDir".into(), json!({}));
        }
        "api.core.v1.Pod" => pod(it),
        "api.flowcontrol.v1.FlowSchemaSpec" => fill_zero(it, &[("matchingPrecedence", 1000)]),
        "api.flowcontrol.v1.QueuingConfiguration" => {
            fill_zero(it, &[("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)]);
        }
        "api.core.v1.PodSpec" => {
            // The old name is kept equal to the new one.
            let account = if blank(it, "serviceAccountName") {
                text(it, "serviceAccount")
            } else {
                text(it, "serviceAccountName")
            };
            if !account.is_empty() {
                let account = json!(account);
                it.insert("serviceAccountName".into(), account.clone());
                it.insert("serviceAccount".into(), account);
            }
        }
        "api.core.v1.Secret" => string_data(it),
        "api.core.v1.Namespace" => {
            let name = it
                .get("metadata")
                .and_then(|meta| meta.get("name"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            if !name.is_empty() {
                sub(sub(it, "metadata"), "labels").insert("kubernetes.io/metadata.name".into(), json!(name));
            }
        }
        "api.core.v1.ReplicationController" => {
            let labels = it.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
            if let Some(labels) = labels {
                fill_blank(sub(it, "spec"), "selector", labels.clone());
                fill_blank(sub(it, "metadata"), "labels", labels);
            }
        }
        "api.core.v1.ServiceSpec" => service(it),
        "api.core.v1.LimitRangeItem" => limit(it),
        "api.core.v1.NodeStatus" => {
            if let (None, Some(capacity)) = (it.get("allocatable"), it.get("capacity").cloned()) {
                it.insert("allocatable".into(), capacity);
            }
        }
        "api.apps.v1.DeploymentStrategy" if text(it, "type") == "RollingUpdate" => {
            let rolling = sub(it, "rollingUpdate");
            fill_blank(rolling, "maxUnavailable", json!("25%"));
            fill_blank(rolling, "maxSurge", json!("25%"));
        }
        "api.apps.v1.DaemonSetUpdateStrategy" if text(it, "type") == "RollingUpdate" => {
            let rolling = sub(it, "rollingUpdate");
            fill_blank(rolling, "maxUnavailable", json!(1));
            fill_blank(rolling, "maxSurge", json!(0));
        }
        "api.apps.v1.StatefulSetUpdateStrategy" => {
            if blank(it, "type") {
                it.insert("type".into(), json!("RollingUpdate"));
                sub(it, "rollingUpdate");
            }
            if text(it, "type") == "RollingUpdate"
                && let Some(rolling) = it.get_mut("rollingUpdate")
            {
                fill_blank(map(rolling), "partition", json!(0));
            }
        }
        "api.batch.v1.Job" => {
            let labels = it.get("spec").and_then(|spec| spec.pointer("/template/metadata/labels")).cloned();
            if let Some(labels) = labels {
                fill_blank(sub(it, "metadata"), "labels", labels);
            }
            job(sub(it, "spec"));
        }
        "api.apps.v1.DaemonSet" => {
            let annotations = sub(sub(it, "metadata"), "annotations");
            annotations.entry(TEMPLATE_GENERATION).or_insert_with(|| json!("1"));
        }
        "api.apps.v1.StatefulSetSpec" => {
            for claim in it.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
                let claim = map(claim);
                claim.insert("apiVersion".into(), json!("v1"));
                claim.insert("kind".into(), json!("PersistentVolumeClaim"));
            }
        }
        "api.networking.v1.NetworkPolicySpec" if is_empty(it, "policyTypes") => {
            let both = json!(["Ingress", "Egress"]);
            it.insert("policyTypes".into(), if is_empty(it, "egress") { json!(["Ingress"]) } else { both });
        }
        "api.rbac.v1.Subject" if matches!(text(it, "kind"), "User" | "Group") => {
            fill_blank(it, "apiGroup", json!("rbac.authorization.k8s.io"));
        }
        "api.autoscaling.v2.HorizontalPodAutoscalerSpec" => autoscaler(it),
        "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionNames" => {
            let kind = text(it, "kind").to_owned();
            if !kind.is_empty() {
                fill_blank(it, "singular", json!(kind.to_lowercase()));
                fill_blank(it, "listKind", json!(format!("{kind}List")));
            }
        }
        _ => {}
    }
}

fn container(it: &mut Map<String, Value>) {
    let latest = tag(text(it, "image")) == "latest";
    fill_blank(it, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
}

/// The tag of an image's name, `latest` when it has neither tag nor digest.
fn tag(image: &str) -> &str {
    let (image, digest) = image.split_once('@').map_or((image, false), |(image, _)| (image, true));
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.rsplit_once(':') {
        Some((_, tag)) => tag,
        None if digest => "",
        None => "latest",
    }
}

/// Defaults of a pod itself that its template in a workload does not have.
fn pod(it: &mut Map<String, Value>) {
    let Some(spec) = it.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.entry("enableServiceLinks").or_insert(json!(true));
    if spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|it| it < 0) {
        spec.insert("terminationGracePeriodSeconds".into(), json!(1));
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            // Limits without requests are requested.
            if let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() {
                let requests = sub(sub(map(container), "resources"), "requests");
                for (resource, limit) in limits {
                    requests.entry(resource).or_insert(limit);
                }
            }
            if host_network {
                for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                    let number = port.get("containerPort").cloned();
                    if let (Some(number), Some(port)) = (number, port.as_object_mut()) {
                        port.entry("hostPort").or_insert(number);
                    }
                }
            }
        }
    }
}

/// `stringData` is written into `data` and forgotten.
fn string_data(it: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = it.shift_remove("stringData") else { return };
    let data = sub(it, "data");
    for (key, text) in texts {
        data.insert(key, json!(STANDARD.encode(text.as_str().unwrap_or_default())));
    }
}

fn service(it: &mut Map<String, Value>) {
    let kind = text(it, "type").to_owned();
    match text(it, "sessionAffinity") {
        "ClientIP" => {
            let config = sub(sub(it, "sessionAffinityConfig"), "clientIP");
            config.entry("timeoutSeconds").or_insert(json!(10_800));
        }
        _ => {
            it.shift_remove("sessionAffinityConfig");
        }
    }
    for port in it.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        if (blank(port, "targetPort") || port.get("targetPort") == Some(&json!(0)))
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".into(), number);
        }
    }
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && it.get("externalIPs").and_then(Value::as_array).is_some_and(|it| !it.is_empty()));
    if external {
        fill_blank(it, "externalTrafficPolicy", json!("Cluster"));
    }
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        fill_blank(it, "internalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        it.entry("allocateLoadBalancerNodePorts").or_insert(json!(true));
    }
}

fn limit(it: &mut Map<String, Value>) {
    if text(it, "type") != "Container" {
        return;
    }
    let given =
        |it: &Map<String, Value>, field: &str| it.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let (max, min) = (given(it, "max"), given(it, "min"));
    let mut default = given(it, "default");
    for (resource, value) in max {
        default.entry(resource).or_insert(value);
    }
    let mut request = given(it, "defaultRequest");
    for (resource, value) in default.iter().chain(&min) {
        request.entry(resource.clone()).or_insert_with(|| value.clone());
    }
    for (field, map) in [("default", default), ("defaultRequest", request)] {
        if !map.is_empty() {
            it.insert(field.into(), Value::Object(map));
        }
    }
}

fn job(it: &mut Map<String, Value>) {
    if blank(it, "completions") && blank(it, "parallelism") {
        it.insert("completions".into(), json!(1));
    }
    fill_blank(it, "parallelism", json!(1));
    let per_index = !blank(it, "backoffLimitPerIndex");
    fill_blank(it, "backoffLimit", json!(if per_index { i32::MAX } else { 6 }));
    fill_blank(it, "completionMode", json!("NonIndexed"));
    fill_blank(it, "suspend", json!(false));
    let policy = if blank(it, "podFailurePolicy") { "TerminatingOrFailed" } else { "Failed" };
    fill_blank(it, "podReplacementPolicy", json!(policy));
    fill_blank(it, "manualSelector", json!(false));
}

fn autoscaler(it: &mut Map<String, Value>) {
    if is_empty(it, "metrics") {
        it.insert(
            "metrics".into(),
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    let Some(behavior) = it.get_mut("behavior").and_then(Value::as_object_mut) else { return };
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (field, window, policies) in [("scaleUp", Some(0), up), ("scaleDown", None, down)] {
        let rules = sub(behavior, field);
        if let Some(window) = window {
            fill_blank(rules, "stabilizationWindowSeconds", json!(window));
        }
        fill_blank(rules, "selectPolicy", json!("Max"));
        fill_blank(rules, "policies", policies);
    }
}
