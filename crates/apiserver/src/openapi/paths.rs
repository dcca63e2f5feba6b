//! The paths of a document: enough for clients that look up what a path takes and answers.

use serde_json::{Map, Value, json};

use super::type_name;
use crate::http::json::put;
use crate::registry::{Resource, Version};

/// Query parameters of writes. kubectl looks for `fieldValidation` at `patch`, and validates by itself without it.
const WRITE: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "force"];
const LIST: [&str; 10] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE: [&str; 4] = ["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What has a proxy, and the methods that it passes on.
const PROXIED: [&str; 3] = ["nodes", "pods", "services"];
const PASSED: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

pub(super) fn of(version: &Version, schemas: &str) -> Value {
    let mut paths = Map::new();
    for resource in version.resources.values() {
        let prefix = prefix(resource);
        let namespaced = if resource.namespaced {
            format!("{prefix}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{prefix}/{}", resource.plural)
        };
        let reference = |name: &str| json!({"$ref": format!("{schemas}{name}")});
        let (one, many) = (reference(&type_name(resource)), reference(&format!("{}List", type_name(resource))));
        let place = if resource.namespaced { vec![in_path("namespace")] } else { Vec::new() };
        if resource.review && resource.is_listed() {
            let get = operation(resource, "list", "list", &LIST, &many, None);
            paths.insert(namespaced.clone(), json!({"get": get, "parameters": place}));
            let get = operation(resource, "get", "read", &[], &one, None);
            paths.insert(format!("{namespaced}/{{name}}"), json!({"get": get, "parameters": [in_path("name")]}));
            continue;
        }
        if resource.review {
            let post = operation(resource, "post", "create", &WRITE, &one, Some(&one));
            paths.insert(namespaced, json!({"post": post, "parameters": place}));
            continue;
        }
        if resource.namespaced {
            let get = operation(resource, "list", "listForAllNamespaces", &LIST, &many, None);
            paths.insert(format!("{prefix}/{}", resource.plural), json!({"get": get}));
        }
        let collection = json!({
            "get": operation(resource, "list", "list", &LIST, &many, None),
            "post": operation(resource, "post", "create", &WRITE, &one, Some(&one)),
            "delete": operation(resource, "deletecollection", "deleteCollection", &DELETE, &many, None),
            "parameters": place,
        });
        paths.insert(namespaced.clone(), collection);
        let mut place = place;
        place.insert(0, in_path("name"));
        let item = json!({
            "get": operation(resource, "get", "read", &[], &one, None),
            "put": operation(resource, "put", "replace", &WRITE, &one, Some(&one)),
            "patch": patch(resource, "patch", &one),
            "delete": operation(resource, "delete", "delete", &DELETE, &one, None),
            "parameters": place,
        });
        paths.insert(format!("{namespaced}/{{name}}"), item);
        if resource.status {
            let item = json!({
                "get": operation(resource, "get", "readStatus", &[], &one, None),
                "put": operation(resource, "put", "replaceStatus", &WRITE, &one, Some(&one)),
                "patch": patch(resource, "patchStatus", &one),
                "parameters": place,
            });
            paths.insert(format!("{namespaced}/{{name}}/status"), item);
        }
        if PROXIED.iter().any(|plural| resource.is("", plural)) {
            for (path, id) in [("", ""), ("/{path}", "WithPath")] {
                let mut parameters = place.clone();
                if !path.is_empty() {
                    parameters.push(in_path("path"));
                }
                let schema = json!({"type": "string", "uniqueItems": true});
                parameters.push(json!({"name": "path", "in": "query", "schema": schema}));
                let mut item = connect(resource, id);
                put(&mut item, "parameters", json!(parameters));
                paths.insert(format!("{namespaced}/{{name}}/proxy{path}"), item);
            }
        }
    }
    paths.sort_keys();
    Value::Object(paths)
}

fn prefix(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    }
}

fn in_path(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
}

fn operation(
    resource: &Resource,
    action: &str,
    id: &str,
    query: &[&str],
    answer: &Value,
    body: Option<&Value>,
) -> Value {
    let parameters: Vec<Value> = query
        .iter()
        .map(|name| {
            let kind = match *name {
                "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
                "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "force" | "orphanDependents" => "boolean",
                _ => "string",
            };
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
        })
        .collect();
    let mut it = json!({
        "description": format!("{id} {}", resource.kind),
        "operationId": format!("{id}{}{}", camel(&resource.group, &resource.version), resource.kind),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": resource.group, "kind": resource.kind, "version": resource.version},
    });
    if let Some(body) = body {
        put(&mut it, "requestBody", json!({"required": true, "content": {"*/*": {"schema": body}}}));
    }
    it
}

/// What is passed on, of every method. `id` ends the names of the operations.
fn connect(resource: &Resource, id: &str) -> Value {
    let kind = &resource.kind;
    let scope = if resource.namespaced { "Namespaced" } else { "" };
    let operation = |method: &&str| {
        let mut letters = method.chars();
        let named: String = letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect();
        let operation = json!({
            "description": format!("connect {} requests to proxy of {kind}", method.to_uppercase()),
            "operationId": format!("connectCoreV1{named}{scope}{kind}Proxy{id}"),
            "responses": {"200": {"description": "OK", "content": {"*/*": {"schema": {"type": "string"}}}}},
            "x-kubernetes-action": "connect",
            "x-kubernetes-group-version-kind":
                {"group": "", "kind": format!("{kind}ProxyOptions"), "version": resource.version},
        });
        ((*method).to_owned(), operation)
    };
    Value::Object(PASSED.iter().map(operation).collect())
}

fn patch(resource: &Resource, id: &str, answer: &Value) -> Value {
    let mut it = operation(resource, "patch", id, &WRITE, answer, None);
    let content: Map<String, Value> = PATCHES
        .iter()
        .filter(|media_type| !resource.is_custom() || !media_type.contains("strategic"))
        .map(|media_type| ((*media_type).to_owned(), json!({"schema": {"type": "object"}})))
        .collect();
    put(&mut it, "requestBody", json!({"required": true, "content": content}));
    it
}

/// `apps`, `v1` as `AppsV1`.
fn camel(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() };
    [group, version]
        .iter()
        .flat_map(|word| {
            let mut letters = word.chars();
            letters.next().into_iter().flat_map(char::to_uppercase).chain(letters)
        })
        .collect()
}

/// The same in OpenAPI 2.0.
pub(super) fn v2(version: &Version) -> Value {
    let mut paths = of(version, "#/definitions/");
    for item in paths.as_object_mut().into_iter().flat_map(|it| it.values_mut()) {
        let Some(item) = item.as_object_mut() else { continue };
        for (key, operation) in item.iter_mut() {
            if key == "parameters" {
                flatten(operation);
                continue;
            }
            let Some(it) = operation.as_object_mut() else { continue };
            let body = it.remove("requestBody");
            let parameters = it.entry("parameters").or_insert_with(|| json!([]));
            flatten(parameters);
            if let (Some(body), Some(parameters)) = (body, parameters.as_array_mut()) {
                let schema = body.pointer("/content/*~1*/schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
                parameters.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": schema}));
                let types = body.get("content").and_then(Value::as_object).into_iter().flat_map(Map::keys);
                it.insert("consumes".into(), types.map(String::as_str).collect());
            }
            let answer = it.get("responses").and_then(|it| {
                let schema = |media| it.pointer(&format!("/200/content/{media}/schema"));
                schema("application~1json").or_else(|| schema("*~1*")).cloned()
            });
            if let Some(answer) = answer {
                it.insert("responses".into(), json!({"200": {"description": "OK", "schema": answer}}));
            }
        }
    }
    paths
}

/// A parameter's schema stands in it, in OpenAPI 2.0.
fn flatten(parameters: &mut Value) {
    for parameter in parameters.as_array_mut().into_iter().flatten() {
        let Some(it) = parameter.as_object_mut() else { continue };
        if let Some(Value::Object(schema)) = it.remove("schema") {
            it.extend(schema);
        }
    }
}
