//! The cells of Kubernetes' own kinds: `pkg/printers/internalversion/printers.go` (1.34), wide columns included.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::human;
use super::pod;
use super::show::{NONE, Of, UNSET, access_modes, containers, int_or_string, labels, selector, selector_text, some_of};

/// A kind that is printed with its name and the time of its creation.
pub(super) const PLAIN: &str = "/LimitRange";

/// One row of an object of `kind` (`apps/Deployment`).
pub(super) fn of(kind: &str, object: &Value, now: Timestamp) -> Vec<Value> {
    let o = Of(object);
    let age = || o.age(now);
    // What stands between the name and the age, for most kinds.
    let between = |middle: Vec<Value>| std::iter::once(o.name()).chain(middle).chain([age()]).collect();
    let count = |path: &str| json!(o.list(path).len());
    match kind {
        "/ConfigMap" => between(vec![json!(o.map("data").count() + o.map("binaryData").count())]),
        "/Endpoints" => between(vec![endpoints(o).into()]),
        "/Event" | "events.k8s.io/Event" => event(o, now),
        "/Namespace" => between(vec![o.text("status.phase").into()]),
        "/Node" => node(o, now),
        "/PersistentVolume" => persistent_volume(o, now),
        "/PersistentVolumeClaim" => claim(o, now),
        "/Pod" => pod::cells(o, now),
        "/PodTemplate" => {
            let [names, images] = containers(o, "template.spec.containers");
            vec![o.name(), names, images, labels(o.get("template.metadata.labels")).into()]
        }
        "/ReplicationController" => replicas(o, now, labels(o.get("spec.selector")).into()),
        "apps/ReplicaSet" => replicas(o, now, selector(o.get("spec.selector"))),
        "/ResourceQuota" => quota(o, now),
        "/Secret" => between(vec![o.text("type").into(), json!(o.map("data").count())]),
        "/Service" => service(o, now),
        "/ServiceAccount" => between(vec![count("secrets")]),
        "admissionregistration.k8s.io/MutatingWebhookConfiguration"
        | "admissionregistration.k8s.io/ValidatingWebhookConfiguration" => between(vec![count("webhooks")]),
        "admissionregistration.k8s.io/ValidatingAdmissionPolicy" => {
            let param = o.get("spec.paramKind").map(Of);
            let param =
                param.map_or_else(|| UNSET.to_owned(), |p| format!("{}/{}", p.text("apiVersion"), p.text("kind")));
            between(vec![count("spec.validations"), param.into()])
        }
        "admissionregistration.k8s.io/ValidatingAdmissionPolicyBinding" => {
            between(vec![o.text("spec.policyName").into(), param_ref(o).into()])
        }
        "apps/ControllerRevision" => between(vec![controller(o).into(), o.int("revision").into()]),
        "apps/DaemonSet" => daemon_set(o, now),
        "apps/Deployment" => {
            let ready = format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas"));
            let [names, images] = containers(o, "spec.template.spec.containers");
            vec![
                o.name(),
                ready.into(),
                o.int("status.updatedReplicas").into(),
                o.int("status.availableReplicas").into(),
                age(),
                names,
                images,
                selector_text(o.get("spec.selector")).into(),
            ]
        }
        "apps/StatefulSet" => {
            let ready = format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas"));
            let [names, images] = containers(o, "spec.template.spec.containers");
            vec![o.name(), ready.into(), age(), names, images]
        }
        "autoscaling/HorizontalPodAutoscaler" => autoscaler(o, now),
        "apiregistration.k8s.io/APIService" => {
            let service = match o.text("spec.service.name") {
                "" => "Local".to_owned(),
                name => format!("{}/{name}", o.text("spec.service.namespace")),
            };
            let available = o.items("status.conditions").find(|it| it.text("type") == "Available");
            let told = available.map(|it| match it.text("status") {
                "True" => "True".to_owned(),
                status => format!("{status} ({})", it.text("reason")),
            });
            between(vec![service.into(), told.unwrap_or_else(|| "Unknown".to_owned()).into()])
        }
        "batch/CronJob" => cron_job(o, now),
        "batch/Job" => job(o, now),
        "certificates.k8s.io/CertificateSigningRequest" => signing_request(o, now),
        "coordination.k8s.io/Lease" => between(vec![o.text("spec.holderIdentity").into()]),
        "discovery.k8s.io/EndpointSlice" => {
            let port = |p: Of<'_>| p.get("port").map_or_else(|| p.text_or("name", "*").to_owned(), ToString::to_string);
            let ports: Vec<String> = o.items("ports").map(port).collect();
            let addresses = o.items("endpoints").flat_map(|e| e.list("addresses")).filter_map(Value::as_str);
            let addresses: Vec<String> = addresses.map(str::to_owned).collect();
            let shown = |list: &[String]| some_of(list, 3, ",", UNSET).into();
            between(vec![o.text("addressType").into(), shown(&ports), shown(&addresses)])
        }
        "networking.k8s.io/Ingress" => {
            let class = o.get("spec.ingressClassName").and_then(Value::as_str).unwrap_or(NONE);
            let ports = if o.list("spec.tls").is_empty() { "80" } else { "80, 443" };
            between(vec![class.into(), hosts(o).into(), balancer(o).into(), ports.into()])
        }
        "networking.k8s.io/IngressClass" => {
            let parameters = o.get("spec.parameters").map(Of).map_or_else(
                || NONE.to_owned(),
                |p| {
                    let group = p.get("apiGroup").and_then(Value::as_str).map(|g| format!(".{g}")).unwrap_or_default();
                    format!("{}{group}/{}", p.text("kind"), p.text("name"))
                },
            );
            between(vec![o.text("spec.controller").into(), parameters.into()])
        }
        // The original's row has a cell more than its table has columns.
        "networking.k8s.io/IPAddress" => between(vec![parent_ref(o).into()]),
        "networking.k8s.io/NetworkPolicy" => between(vec![selector(o.get("spec.podSelector"))]),
        "networking.k8s.io/ServiceCIDR" => {
            let cidrs: Vec<&str> = o.list("spec.cidrs").iter().filter_map(Value::as_str).collect();
            between(vec![cidrs.join(",").into()])
        }
        "node.k8s.io/RuntimeClass" => between(vec![o.text("handler").into()]),
        "policy/PodDisruptionBudget" => between(vec![
            int_or_string(o.get("spec.minAvailable")).into(),
            int_or_string(o.get("spec.maxUnavailable")).into(),
            o.int("status.disruptionsAllowed").into(),
        ]),
        "rbac.authorization.k8s.io/ClusterRoleBinding" | "rbac.authorization.k8s.io/RoleBinding" => binding(o, now),
        "scheduling.k8s.io/PriorityClass" => vec![
            o.name(),
            o.int("value").into(),
            o.flag("globalDefault").into(),
            age(),
            o.text("preemptionPolicy").into(),
        ],
        "storage.k8s.io/CSIDriver" => csi_driver(o, now),
        "storage.k8s.io/CSINode" => between(vec![count("spec.drivers")]),
        "flowcontrol.apiserver.k8s.io/FlowSchema" => {
            let dangling = o.items("status.conditions").find(|it| it.text("type") == "Dangling");
            vec![
                o.name(),
                o.text("spec.priorityLevelConfiguration.name").into(),
                o.int("spec.matchingPrecedence").into(),
                o.text_or("spec.distinguisherMethod.type", NONE).into(),
                age(),
                dangling.map_or("?", |it| it.text("status")).into(),
            ]
        }
        "flowcontrol.apiserver.k8s.io/PriorityLevelConfiguration" => {
            let number = |path: &str| o.get(path).cloned().unwrap_or_else(|| NONE.into());
            let queuing = |field: &str| number(&format!("spec.limited.limitResponse.queuing.{field}"));
            let middle = vec![
                o.text("spec.type").into(),
                number("spec.limited.nominalConcurrencyShares"),
                queuing("queues"),
                queuing("handSize"),
                queuing("queueLengthLimit"),
            ];
            between(middle)
        }
        "storage.k8s.io/StorageClass" => storage_class(o, now),
        "storage.k8s.io/VolumeAttachment" => between(vec![
            o.text("spec.attacher").into(),
            o.text("spec.source.persistentVolumeName").into(),
            o.text("spec.nodeName").into(),
            o.flag("status.attached").into(),
        ]),
        "storage.k8s.io/VolumeAttributesClass" => between(vec![o.text("driverName").into()]),
        _ => vec![o.name(), o.text("metadata.creationTimestamp").into()],
    }
}

fn signing_request(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| o.items("status.conditions").any(|it| it.text("type") == kind);
    let mut condition = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        condition.push_str(",Failed");
    }
    if !o.text("status.certificate").is_empty() {
        condition.push_str(",Issued");
    }
    let lasts = o.get("spec.expirationSeconds").and_then(Value::as_i64);
    let lasts = lasts.and_then(|it| now.checked_add(jiff::SignedDuration::from_secs(it)).ok());
    vec![
        o.name(),
        o.age(now),
        o.text_or("spec.signerName", NONE).into(),
        o.text("spec.username").into(),
        lasts.map_or_else(|| NONE.to_owned(), |end| human(now, end)).into(),
        condition.into(),
    ]
}

fn endpoints(o: Of<'_>) -> String {
    let mut list = Vec::new();
    for subset in o.items("subsets") {
        let addresses: Vec<&str> = subset.items("addresses").map(|a| a.text("ip")).collect();
        if subset.list("ports").is_empty() {
            list.extend(addresses.iter().map(|ip| (*ip).to_owned()));
        }
        for port in subset.items("ports") {
            let join = |ip: &&str| match ip.contains(':') {
                true => format!("[{ip}]:{}", port.int("port")),
                false => format!("{ip}:{}", port.int("port")),
            };
            list.extend(addresses.iter().map(join));
        }
    }
    if o.list("subsets").is_empty() { NONE.to_owned() } else { some_of(&list, 3, ",", "") }
}

/// Both groups' events; the newer names fields anew.
fn event(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let either = |new: &str, old: &str| o.get(old).map_or_else(|| o.text(new), |_| o.text(old)).to_owned();
    let about = o.get("involvedObject").or_else(|| o.get("regarding")).map_or(Of(&Value::Null), Of);
    let source = o.get("source").or_else(|| o.get("deprecatedSource")).map_or(Of(&Value::Null), Of);
    let time = |new: &str, old: &str| o.time(old).or_else(|| o.time(new));
    let told = |then: Option<Timestamp>| then.map_or_else(|| "<unknown>".to_owned(), |then| human(then, now));
    let first = time("deprecatedFirstTimestamp", "firstTimestamp").or_else(|| o.time("eventTime"));
    let last = time("deprecatedLastTimestamp", "lastTimestamp").or(first);
    let counted = o.int("count") + o.int("deprecatedCount");
    let (last, count) = match o.get("series").map(Of) {
        Some(series) => (series.time("lastObservedTime"), series.int("count")),
        None => (last, counted.max(1)),
    };
    let kind = about.text("kind").to_lowercase();
    let target = match about.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = source.text_or("component", o.text_or("reportingController", o.text("reportingComponent")));
    let instance = source.text_or("host", o.text("reportingInstance"));
    let source = if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
    vec![
        told(last).into(),
        o.text("type").into(),
        o.text("reason").into(),
        target.into(),
        about.text("fieldPath").into(),
        source.into(),
        either("note", "message").trim().into(),
        told(first).into(),
        count.into(),
        o.name(),
    ]
}

fn node(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let ready = o.items("status.conditions").rfind(|c| c.text("type") == "Ready");
    let mut status = match ready.map(|c| c.text("status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o.flag("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => Some(role.to_owned()),
        None => value.as_str().filter(|_| key == "kubernetes.io/role").map(str::to_owned),
    };
    let mut roles: Vec<String> = o.map("metadata.labels").filter_map(role).filter(|r| !r.is_empty()).collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { NONE.to_owned() } else { roles.join(",") };
    let address = |kind: &str| {
        let found = o.items("status.addresses").find(|a| a.text("type") == kind);
        found.map_or(NONE, |a| a.text("address")).into()
    };
    let info = |key: &str| Of(o.get("status.nodeInfo").unwrap_or(&Value::Null)).text_or(key, "<unknown>").into();
    vec![
        o.name(),
        status.into(),
        roles.into(),
        o.age(now),
        o.text("status.nodeInfo.kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn storage_class_of<'a>(o: Of<'a>) -> &'a str {
    let annotation = o.get("metadata.annotations").and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    annotation.and_then(Value::as_str).unwrap_or_else(|| o.text("spec.storageClassName"))
}

fn persistent_volume(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let claim = o.get("spec.claimRef").map(Of);
    let claim = claim.map_or_else(String::new, |c| format!("{}/{}", c.text("namespace"), c.text("name")));
    vec![
        o.name(),
        o.text_or("spec.capacity.storage", "0").into(),
        access_modes(o.list("spec.accessModes")).into(),
        o.text("spec.persistentVolumeReclaimPolicy").into(),
        if o.is_deleted() { "Terminating" } else { o.text("status.phase") }.into(),
        claim.into(),
        storage_class_of(o).into(),
        o.text_or("spec.volumeAttributesClassName", UNSET).into(),
        o.text("status.reason").into(),
        o.age(now),
        o.text_or("spec.volumeMode", UNSET).into(),
    ]
}

fn claim(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let bound = !o.text("spec.volumeName").is_empty();
    let (capacity, modes) = match bound {
        true => (o.text_or("status.capacity.storage", "0"), access_modes(o.list("status.accessModes"))),
        false => ("", String::new()),
    };
    vec![
        o.name(),
        if o.is_deleted() { "Terminating" } else { o.text("status.phase") }.into(),
        o.text("spec.volumeName").into(),
        capacity.into(),
        modes.into(),
        storage_class_of(o).into(),
        o.text_or("spec.volumeAttributesClassName", UNSET).into(),
        o.age(now),
        o.text_or("spec.volumeMode", UNSET).into(),
    ]
}

fn replicas(o: Of<'_>, now: Timestamp, selector: Value) -> Vec<Value> {
    let [names, images] = containers(o, "spec.template.spec.containers");
    let counts = ["spec.replicas", "status.replicas", "status.readyReplicas"].map(|path| o.int(path).into());
    std::iter::once(o.name()).chain(counts).chain([o.age(now), names, images, selector]).collect()
}

fn quota(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let mut resources: Vec<&String> = o.map("status.hard").map(|(name, _)| name).collect();
    resources.sort_unstable();
    let used = |name: &str| o.get("status.used").and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
    let hard = |name: &str| o.get("status.hard").and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
    let (limits, requests): (Vec<&String>, Vec<&String>) =
        resources.into_iter().partition(|r| r.starts_with("limits."));
    let told = |names: Vec<&String>| {
        let each = names.into_iter().map(|name| format!("{name}: {}/{}", used(name), hard(name)));
        Value::from(each.collect::<Vec<_>>().join(", "))
    };
    vec![o.name(), told(requests), told(limits), o.age(now)]
}

fn balancer(o: Of<'_>) -> String {
    let mut addresses: Vec<&str> = o
        .items("status.loadBalancer.ingress")
        .map(|i| i.text_or("ip", i.text("hostname")))
        .filter(|a| !a.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.join(",")
}

fn service(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let kind = o.text("spec.type");
    let given: Vec<&str> = o.list("spec.externalIPs").iter().filter_map(Value::as_str).collect();
    let external = match kind {
        "ClusterIP" | "NodePort" if given.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => given.join(","),
        "LoadBalancer" => {
            let balanced = balancer(o);
            let all: Vec<&str> = Some(balanced.as_str()).filter(|b| !b.is_empty()).into_iter().chain(given).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => o.text("spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    };
    let port = |p: Of<'_>| match p.int("nodePort") {
        0 => format!("{}/{}", p.int("port"), p.text("protocol")),
        node => format!("{}:{node}/{}", p.int("port"), p.text("protocol")),
    };
    let ports: Vec<String> = o.items("spec.ports").map(port).collect();
    let address = o.list("spec.clusterIPs").first().and_then(Value::as_str).unwrap_or(NONE);
    vec![
        o.name(),
        kind.into(),
        address.into(),
        external.into(),
        if ports.is_empty() { NONE.into() } else { ports.join(",").into() },
        o.age(now),
        labels(o.get("spec.selector")).into(),
    ]
}

fn param_ref(o: Of<'_>) -> String {
    let Some(param) = o.get("spec.paramRef").map(Of) else { return UNSET.to_owned() };
    match (param.text("name"), param.text("namespace")) {
        ("", _) => UNSET.to_owned(),
        (name, "") => format!("*/{name}"),
        (name, namespace) => format!("{namespace}/{name}"),
    }
}

fn controller(o: Of<'_>) -> String {
    let Some(owner) = o.items("metadata.ownerReferences").find(|r| r.flag("controller")) else {
        return NONE.to_owned();
    };
    let group = owner.text("apiVersion").rsplit_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", owner.text("kind").to_lowercase(), owner.text("name"))
}

fn daemon_set(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let counts = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ];
    let [names, images] = containers(o, "spec.template.spec.containers");
    let counts = counts.map(|key| o.int(&format!("status.{key}")).into());
    let nodes = labels(o.get("spec.template.spec.nodeSelector")).into();
    let rest = [nodes, o.age(now), names, images, selector(o.get("spec.selector"))];
    std::iter::once(o.name()).chain(counts).chain(rest).collect()
}

fn autoscaler(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let target = o.get("spec.scaleTargetRef").map_or(Of(&Value::Null), Of);
    let current: Vec<Of<'_>> = o.items("status.currentMetrics").collect();
    let metrics: Vec<String> =
        o.items("spec.metrics").enumerate().map(|(i, spec)| metric(spec, current.get(i).copied())).collect();
    let min = o.get("spec.minReplicas").map_or_else(|| UNSET.to_owned(), ToString::to_string);
    vec![
        o.name(),
        format!("{}/{}", target.text("kind"), target.text("name")).into(),
        some_of(&metrics, 2, ", ", NONE).into(),
        min.into(),
        o.int("spec.maxReplicas").into(),
        o.int("status.currentReplicas").into(),
        o.age(now),
    ]
}

fn metric(spec: Of<'_>, status: Option<Of<'_>>) -> String {
    const UNKNOWN: &str = "<unknown>";
    let (key, named) = match spec.text("type") {
        "External" => ("external", false),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        _ => return "<unknown type>".to_owned(),
    };
    let at = |name: &str| format!("{key}.{name}");
    let current = |name: &str| status.and_then(|s| s.get(&at(&format!("current.{name}"))));
    let quantity = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or(UNKNOWN).to_owned();
    let prefix = if named { format!("{}: ", spec.text(&at("name"))) } else { String::new() };
    if let Some(average) = spec.get(&at("target.averageValue")) {
        let suffix = if matches!(key, "external" | "object") { " (avg)" } else { "" };
        let average = average.as_str().unwrap_or_default();
        return format!("{prefix}{}/{average}{suffix}", quantity(current("averageValue")));
    }
    if named {
        let percent = |value: Option<&Value>, or: &str| value.map_or_else(|| or.to_owned(), |v| format!("{v}%"));
        let target = percent(spec.get(&at("target.averageUtilization")), "<auto>");
        return format!("{prefix}{}/{target}", percent(current("averageUtilization"), UNKNOWN));
    }
    format!("{}/{}", quantity(current("value")), spec.text(&at("target.value")))
}

fn cron_job(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o, "spec.jobTemplate.spec.template.spec.containers");
    let suspend = o.get("spec.suspend").map_or(UNSET, |s| if s == &Value::Bool(true) { "True" } else { "False" });
    let last =
        o.get("status.lastScheduleTime").map_or_else(|| NONE.to_owned(), |_| o.since("status.lastScheduleTime", now));
    vec![
        o.name(),
        o.text("spec.schedule").into(),
        o.text_or("spec.timeZone", NONE).into(),
        suspend.into(),
        json!(o.list("status.active").len()),
        last.into(),
        o.age(now),
        names,
        images,
        selector(o.get("spec.jobTemplate.spec.selector")),
    ]
}

fn job(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let done = o.int("status.succeeded");
    let completions = match (o.get("spec.completions"), o.int("spec.parallelism")) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    };
    let ended = o.time("status.completionTime").unwrap_or(now);
    let took = o.time("status.startTime").map_or_else(String::new, |started| human(started, ended));
    let status = match () {
        () if o.condition("Complete") => "Complete",
        () if o.condition("Failed") => "Failed",
        () if o.is_deleted() => "Terminating",
        () if o.condition("Suspended") => "Suspended",
        () if o.condition("FailureTarget") => "FailureTarget",
        () if o.condition("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let [names, images] = containers(o, "spec.template.spec.containers");
    vec![
        o.name(),
        status.into(),
        completions.into(),
        took.into(),
        o.age(now),
        names,
        images,
        selector(o.get("spec.selector")),
    ]
}

fn hosts(o: Of<'_>) -> String {
    let rules = o.list("spec.rules").len();
    let hosts: Vec<&str> = o.items("spec.rules").map(|r| r.text("host")).filter(|h| !h.is_empty()).collect();
    let shown = hosts.iter().take(3).copied().collect::<Vec<_>>().join(",");
    match hosts.len() {
        0 => "*".to_owned(),
        n if n >= 3 && rules > 3 => format!("{shown} + {} more...", rules - 3),
        _ => shown,
    }
}

fn parent_ref(o: Of<'_>) -> String {
    let Some(parent) = o.get("spec.parentRef").map(Of) else { return NONE.to_owned() };
    let group = Some(parent.text("group")).filter(|g| !g.is_empty()).map(|g| format!(".{g}")).unwrap_or_default();
    let namespace =
        Some(parent.text("namespace")).filter(|n| !n.is_empty()).map(|n| format!("/{n}")).unwrap_or_default();
    format!("{}{namespace}/{}", format!("{}{group}", parent.text("resource")).to_lowercase(), parent.text("name"))
}

fn binding(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let each = o.items("subjects").filter(|s| s.text("kind") == kind).map(|s| match s.text("namespace") {
            namespace if kind == "ServiceAccount" => format!("{namespace}/{}", s.text("name")),
            _ => s.text("name").to_owned(),
        });
        Value::from(each.collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", o.text("roleRef.kind"), o.text("roleRef.name"));
    vec![o.name(), role.into(), o.age(now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn csi_driver(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let modes: Vec<&str> = o.list("spec.volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    let audiences = o.items("spec.tokenRequests").map(|t| t.text("audience")).collect::<Vec<_>>().join(",");
    let tokens = if o.get("spec.tokenRequests").is_some() { audiences.as_str() } else { UNSET };
    vec![
        o.name(),
        o.get("spec.attachRequired").and_then(Value::as_bool).unwrap_or(true).into(),
        o.flag("spec.podInfoOnMount").into(),
        o.flag("spec.storageCapacity").into(),
        tokens.into(),
        o.flag("spec.requiresRepublish").into(),
        if modes.is_empty() { NONE.into() } else { modes.join(",").into() },
        o.age(now),
    ]
}

fn storage_class(o: Of<'_>, now: Timestamp) -> Vec<Value> {
    let annotation = |key: &str| o.get("metadata.annotations").and_then(|a| a.get(key)) == Some(&Value::from("true"));
    let is_default = annotation("storageclass.kubernetes.io/is-default-class")
        || annotation("storageclass.beta.kubernetes.io/is-default-class");
    let name = o.text("metadata.name");
    vec![
        if is_default { format!("{name} (default)").into() } else { name.into() },
        o.text("provisioner").into(),
        o.text_or("reclaimPolicy", "Delete").into(),
        o.text_or("volumeBindingMode", "Immediate").into(),
        o.flag("allowVolumeExpansion").into(),
        o.age(now),
    ]
}
