//! What is served: `/api`, `/apis` and below, `/version`, health, and the doors to the OpenAPI documents.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http::header::ACCEPT;
use http::request::Parts;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::access::tokens::Tokens;
use crate::core::Core;
use crate::http::json::put;
use crate::http::reply::Reply;
use crate::http::{Accept, Query};
use crate::kinds::strategy;
use crate::kubelets::usage;
use crate::metrics;
use crate::object::status::{Problem, What};
use crate::openapi;
use crate::registry::{Model, Resource, Resources, Version, api_version, custom};

/// The Kubernetes whose API this is.
pub(crate) const VERSION: &str = "v1.34.2";
const PROXY_VERBS: [&str; 5] = ["create", "delete", "get", "patch", "update"];
const USED_VERBS: [&str; 2] = ["get", "list"];
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Answers what is no resource.
pub(crate) async fn answer(core: &Arc<Core>, request: &Parts, path: &str) -> Result<Reply, Problem> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let ["healthz" | "livez" | "readyz", ..] = parts.as_slice() {
        return health(core, &parts, Query::new(request.uri.query().unwrap_or_default()));
    }
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let mut problem = Problem::method_not_supported(What::new("", ""), "");
        problem.message = "the server does not allow this method on the requested resource".into();
        return Err(problem);
    }
    let resources = core.fresh();
    let value = match parts.as_slice() {
        [""] => paths(&resources),
        ["version"] => version(),
        ["metrics"] => return Ok(metrics::answer(core)),
        ["api"] | ["apis"] => {
            if let Some(version) = aggregated(request) {
                return Ok(aggregate(core, &resources, path.contains("apis"), version));
            }
            if parts == ["api"] { versions(request) } else { groups(core, &resources) }
        }
        ["api", version] => list(&resources, "", version)?,
        ["apis", group] if resources.order.iter().any(|it| it == group) => group_of(&resources, group, true),
        ["apis", usage::GROUP] if core.kubelets.is_some() => used_group(true),
        ["apis", usage::GROUP, usage::VERSION] if core.kubelets.is_some() => used_list(),
        ["apis", group, _] if !resources.groups.contains_key(*group) => return Ok(Reply::nothing_here()),
        ["apis", group, version] => list(&resources, group, version)?,
        [".well-known", "openid-configuration"] => Tokens::configuration(&host(request)),
        ["openid", "v1", "jwks"] => {
            let keys = core.tokens()?.keys();
            return Ok(Reply { content_type: "application/jwk-set+json", ..Reply::json(200, &keys) });
        }
        ["openapi", "v2"] => return openapi::v2(core, request),
        ["openapi", "v3"] => return openapi::index(core, request),
        ["openapi", "v3", rest @ ..] => return openapi::v3(core, request, rest),
        _ => return Ok(Reply::nothing_here()),
    };
    crate::http::resource::encoded(&Accept::of(&request.headers).unwrap_or(Accept::JSON), 200, &value)
}

fn paths(resources: &Resources) -> Value {
    let mut paths = vec![
        "/.well-known/openid-configuration".to_owned(),
        "/api".to_owned(),
        "/api/v1".into(),
        "/apis".into(),
        "/apis/".into(),
    ];
    for group in &resources.order {
        paths.push(format!("/apis/{group}"));
        let versions = resources.groups.get(group).into_iter().flat_map(|it| &it.versions);
        paths.extend(versions.map(|version| format!("/apis/{group}/{}", version.name)));
    }
    paths.sort();
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/",
            "/openid/v1/jwks",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    json!({"paths": paths})
}

/// Answers once the store can be asked, which is whenever anything is answered.
fn health(core: &Core, parts: &[&str], query: Query<'_>) -> Result<Reply, Problem> {
    const CHECKS: [&str; 2] = ["ping", "store"];
    if core.tasks.shutdown().has_begun() && parts.first() == Some(&"readyz") {
        return Ok(Reply::text(500, "[-]shutdown failed: process is shutting down\nreadyz check failed\n"));
    }
    match parts {
        [name] if query.has("verbose") => {
            let lines: String = CHECKS.iter().map(|check| format!("[+]{check} ok\n")).collect();
            Ok(Reply::text(200, format!("{lines}{name} check passed\n")))
        }
        [_] => Ok(Reply::text(200, "ok")),
        [_, check] if CHECKS.contains(check) => Ok(Reply::text(200, "ok")),
        _ => Err(Problem::no_such_path()),
    }
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "34",
        "emulationMajor": "1",
        "emulationMinor": "34",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "33",
        "gitVersion": VERSION,
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, if cfg!(target_arch = "x86_64") { "amd64" } else if cfg!(target_arch = "aarch64") { "arm64" } else { std::env::consts::ARCH }),
    })
}

/// The version of `apidiscovery.k8s.io` that the client reads all groups in, when it does.
fn aggregated(request: &Parts) -> Option<&'static str> {
    let said = request.headers.get(ACCEPT)?.to_str().ok()?;
    said.split(',').find_map(|clause| {
        let has = |part: &str| clause.split(';').any(|it| it.trim() == part);
        (has("g=apidiscovery.k8s.io") && has("as=APIGroupDiscoveryList"))
            .then(|| ["v2", "v2beta1"].into_iter().find(|version| has(&format!("v={version}"))))
            .flatten()
    })
}

fn aggregate(core: &Core, resources: &Resources, named: bool, version: &'static str) -> Reply {
    let groups: Vec<&str> = if named { resources.order.iter().map(String::as_str).collect() } else { vec![""] };
    let mut items: Vec<Value> = groups
        .into_iter()
        .filter_map(|name| {
            let group = resources.groups.get(name)?;
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let all: Vec<Value> = version.resources.values().map(|it| discovered(it)).collect();
                    json!({"version": version.name, "resources": all, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            Some(json!({"metadata": metadata, "versions": versions}))
        })
        .collect();
    if named && core.kubelets.is_some() {
        let all = usage::Of::resources().map(|(plural, kind, namespaced)| {
            json!({
                "resource": plural,
                "responseKind": {"group": usage::GROUP, "version": usage::VERSION, "kind": kind},
                "scope": if namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": "",
                "verbs": USED_VERBS,
            })
        });
        let versions = json!([{"version": usage::VERSION, "resources": all, "freshness": "Current"}]);
        items.push(json!({"metadata": {"name": usage::GROUP}, "versions": versions}));
    }
    let value = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    Reply { content_type, ..Reply::json(200, &value) }
}

/// A subresource: its name, group, version and kind, and what can be done with it.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    /// Where it is not that of the resource.
    pub(crate) kind: Option<&'static str>,
    pub(crate) verbs: &'static [&'static str],
}

pub(crate) fn parts(resource: &Resource) -> Vec<Part> {
    let own = |name, verbs| Part { name, group: "", version: "", kind: None, verbs };
    let proxy = |kind| Part { name: "proxy", group: "", version: "v1", kind: Some(kind), verbs: &PROXY_VERBS };
    let mut all = Vec::new();
    match resource.plural.as_str() {
        "nodes" if resource.is("", "nodes") => all.push(proxy("NodeProxyOptions")),
        "services" if resource.is("", "services") => all.push(proxy("ServiceProxyOptions")),
        _ => {}
    }
    if resource.is("", "pods") && !resource.is_custom() {
        let stream = |name, kind| Part { name, group: "", version: "v1", kind: Some(kind), verbs: &["create", "get"] };
        all.push(stream("attach", "PodAttachOptions"));
        all.push(Part { name: "binding", group: "", version: "v1", kind: Some("Binding"), verbs: &["create"] });
        all.push(own("ephemeralcontainers", &PART_VERBS));
        all.push(Part { name: "eviction", group: "policy", version: "v1", kind: Some("Eviction"), verbs: &["create"] });
        all.push(stream("exec", "PodExecOptions"));
        all.push(own("log", &["get"]));
        all.push(stream("portforward", "PodPortForwardOptions"));
        all.push(proxy("PodProxyOptions"));
    }
    if resource.is("", "serviceaccounts") && !resource.is_custom() {
        let (group, kind) = ("authentication.k8s.io", Some("TokenRequest"));
        all.push(Part { name: "token", group, version: "v1", kind, verbs: &["create"] });
    }
    if strategy::is_request(resource) {
        all.push(own("approval", &PART_VERBS));
    }
    if resource.is("", "namespaces") {
        all.push(own("finalize", &["update"]));
    }
    if resource.is_custom() && resource.status {
        all.push(own("status", &PART_VERBS));
    }
    if resource.scale.is_some() {
        all.push(Part { name: "scale", group: "autoscaling", version: "v1", kind: Some("Scale"), verbs: &PART_VERBS });
    }
    if resource.status && !resource.is_custom() {
        all.push(own("status", &PART_VERBS));
    }
    all
}

pub(crate) fn verbs(resource: &Resource) -> Vec<&'static str> {
    let Model::Builtin(kind) = &resource.model else {
        return vec!["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    };
    // Namespaces are deleted one by one.
    kind.verbs.iter().copied().filter(|verb| !(resource.is("", "namespaces") && *verb == "deletecollection")).collect()
}

fn discovered(resource: &Resource) -> Value {
    // Built-in kinds are of the group and version they stand under; a custom resource says so again.
    let (group, version) =
        if resource.is_custom() { (resource.group.as_str(), resource.version.as_str()) } else { ("", "") };
    let mut it = json!({
        "resource": resource.plural,
        "responseKind": {"group": group, "version": version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    if !resource.short_names.is_empty() {
        put(&mut it, "shortNames", json!(resource.short_names));
    }
    if !resource.categories.is_empty() {
        put(&mut it, "categories", json!(resource.categories));
    }
    let parts: Vec<Value> = parts(resource)
        .into_iter()
        .map(|part| {
            let kind = match part.kind {
                Some(kind) => json!({"group": part.group, "version": part.version, "kind": kind}),
                None => json!({"group": group, "version": version, "kind": resource.kind}),
            };
            json!({"subresource": part.name, "responseKind": kind, "verbs": part.verbs})
        })
        .collect();
    if !parts.is_empty() {
        put(&mut it, "subresources", json!(parts));
    }
    it
}

/// What the client calls this server.
fn host(request: &Parts) -> String {
    let said = request.headers.get(http::header::HOST).and_then(|it| it.to_str().ok()).unwrap_or_default();
    request.uri.authority().map_or(said, |it| it.as_str()).to_owned()
}

fn versions(request: &Parts) -> Value {
    let host = host(request);
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}]})
}

fn groups(core: &Core, resources: &Resources) -> Value {
    // Here those of definitions are in the order of the first of their versions' names, as upstream's APIServices are.
    let key = |group: &String| {
        let versions = resources.groups.get(group).into_iter().flat_map(|it| &it.versions);
        resources.is_of_definitions(group).then(|| versions.map(|it| format!("{}.{group}", it.name)).min())
    };
    let mut order: Vec<&String> = resources.order.iter().collect();
    order.sort_by_cached_key(|group| key(group));
    let mut all: Vec<Value> = order.into_iter().map(|group| group_of(resources, group, false)).collect();
    all.extend(core.kubelets.is_some().then(|| used_group(false)));
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})
}

fn group_of(resources: &Resources, name: &str, alone: bool) -> Value {
    let empty = Vec::new();
    let versions = resources.groups.get(name).map_or(&empty, |group| &group.versions);
    let one = |version: &Version| json!({"groupVersion": api_version(name, &version.name), "version": version.name});
    let mut it = if alone { json!({"kind": "APIGroup", "apiVersion": "v1"}) } else { json!({}) };
    put(&mut it, "name", json!(name));
    put(&mut it, "versions", versions.iter().map(one).collect());
    put(&mut it, "preferredVersion", versions.first().map(one).unwrap_or_default());
    it
}

/// The group of what nodes and pods use: last of all, as an APIService's, so that `pods` means pods.
fn used_group(alone: bool) -> Value {
    let version = json!({"groupVersion": api_version(usage::GROUP, usage::VERSION), "version": usage::VERSION});
    let mut it = if alone { json!({"kind": "APIGroup", "apiVersion": "v1"}) } else { json!({}) };
    put(&mut it, "name", json!(usage::GROUP));
    put(&mut it, "versions", json!([version]));
    put(&mut it, "preferredVersion", version);
    it
}

fn used_list() -> Value {
    let all = usage::Of::resources().map(|(plural, kind, namespaced)| {
        json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": USED_VERBS})
    });
    let version = api_version(usage::GROUP, usage::VERSION);
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": all})
}

/// Changes when objects are kept in another version: for tools that migrate.
fn storage_hash(resource: &Resource) -> String {
    // Upstream keeps definitions as v1beta1; they are the same.
    let version = match resource.is(custom::GROUP, custom::PLURAL) && !resource.is_custom() {
        true => "apiextensions.k8s.io/v1beta1",
        false => &resource.stored_api_version,
    };
    let kept = format!("{version}/{}", resource.kind);
    let kept = if resource.stored_group.is_empty() { format!("/{kept}") } else { kept };
    let digest = Sha256::digest(kept.as_bytes());
    STANDARD.encode(digest.get(..8).unwrap_or_default())
}

fn list(resources: &Resources, group: &str, version: &str) -> Result<Value, Problem> {
    let found = resources.version(group, version).ok_or_else(Problem::no_such_path)?;
    let mut all = Vec::new();
    for resource in found.resources.values() {
        let mut it = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": verbs(resource),
        });
        if !resource.short_names.is_empty() {
            put(&mut it, "shortNames", json!(resource.short_names));
        }
        if !resource.categories.is_empty() {
            put(&mut it, "categories", json!(resource.categories));
        }
        if !resource.review {
            put(&mut it, "storageVersionHash", json!(storage_hash(resource)));
        }
        all.push(it);
        for part in parts(resource) {
            let mut it = json!({
                "name": format!("{}/{}", resource.plural, part.name),
                "singularName": "",
                "namespaced": resource.namespaced,
            });
            if !part.group.is_empty() {
                put(&mut it, "group", json!(part.group));
                put(&mut it, "version", json!(part.version));
            }
            put(&mut it, "kind", json!(part.kind.unwrap_or(&resource.kind)));
            put(&mut it, "verbs", json!(part.verbs));
            all.push(it);
        }
    }
    let mut value = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        put(&mut value, "apiVersion", json!("v1"));
    }
    put(&mut value, "groupVersion", json!(api_version(group, version)));
    put(&mut value, "resources", json!(all));
    Ok(value)
}
