//! The OpenAPI documents: for `kubectl explain`, for clients that check what they send, and for apply. Each is made when
//! it is asked for and kept by nobody here: clients keep them, and come back with the tag.

mod gnostic;
mod operations;
mod parameters;
mod paths;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, IF_NONE_MATCH};
use http::request::Parts;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::core::Core;
use crate::discovery::VERSION;
use crate::http::body::Body;
use crate::http::json::put;
use crate::http::reply::{JSON, Reply};
use crate::kinds::types;
use crate::object::status::Problem;
use crate::registry::{Model, Resource, Resources, Version};
use operations::Path;

const SCHEMAS: &str = "#/components/schemas/";
const DEFINITIONS: &str = "#/definitions/";

/// `/openapi/v3`: where the documents are, and the tag of the content of each.
pub(crate) fn index(core: &Arc<Core>, request: &Parts) -> Result<Reply, Problem> {
    let resources = core.fresh();
    let mut paths = Map::new();
    for (path, document) in documents(&resources) {
        let url = format!("/openapi/v3/{path}?hash={}", tag(&path, document));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    paths.sort_keys();
    let value = json!({"paths": paths});
    let tag = hash(&[value.to_string().as_bytes()]);
    tagged(request, tag, || Bytes::from(value.to_string()))
}

/// `/openapi/v3/apis/apps/v1`.
pub(crate) fn v3(core: &Arc<Core>, request: &Parts, path: &[&str]) -> Result<Reply, Problem> {
    let resources = core.fresh();
    let path = path.join("/");
    let (_, document) = documents(&resources).find(|(it, _)| *it == path).ok_or_else(Problem::no_such_path)?;
    tagged(request, tag(&path, document), || Bytes::from(document.v3().to_string()))
}

/// What a document of OpenAPI 3.0 is about.
#[derive(Clone, Copy)]
enum Document<'a> {
    Root(&'static str),
    Group(&'a str),
    Version(&'a str, &'a Version),
}

/// The documents, by their places.
fn documents(resources: &Resources) -> impl Iterator<Item = (String, Document<'_>)> {
    let roots = operations::ROOTS.iter().map(|it| ((*it).to_owned(), Document::Root(it)));
    let groups = operations::groups(resources).map(|it| (format!("apis/{it}"), Document::Group(it)));
    let versions = resources.groups.iter().flat_map(|(name, group)| {
        let path = move |version: &str| {
            if name.is_empty() { format!("api/{version}") } else { format!("apis/{name}/{version}") }
        };
        group.versions.iter().map(move |version| (path(&version.name), Document::Version(name, version)))
    });
    roots.chain(groups).chain(versions)
}

impl<'a> Document<'a> {
    fn paths(self) -> Vec<Path> {
        match self {
            Self::Root(name) => vec![operations::root(name)],
            Self::Group(name) => vec![operations::group(name)],
            Self::Version(group, version) => operations::version(group, version),
        }
    }

    fn resources(self) -> impl Iterator<Item = &'a Arc<Resource>> {
        let version = if let Self::Version(_, version) = self { Some(version) } else { None };
        version.into_iter().flat_map(|version| version.resources.values())
    }

    fn v3(self) -> Value {
        let mut paths: Map<String, Value> =
            self.paths().iter().map(|path| (path.url.clone(), paths::v3(path))).collect();
        paths.sort_keys();
        let mut wanted = Vec::new();
        paths.values().for_each(|it| references(it, SCHEMAS, &mut wanted));
        let (mut all, mut schemas) = (schemas(self.resources()), Map::new());
        while let Some(name) = wanted.pop() {
            if let Some(it) = all.swap_remove(&name) {
                references(&it, SCHEMAS, &mut wanted);
                schemas.insert(name, it);
            }
        }
        schemas.sort_keys();
        let mut components = if schemas.is_empty() { json!({}) } else { json!({"schemas": schemas}) };
        let mut info = info();
        // Upstream's documents of definitions are made elsewhere, and do not say how a client proves who it is.
        if self.resources().any(|it| it.is_custom()) {
            info = json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"});
        } else {
            put(&mut components, "securitySchemes", security());
        }
        json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": components})
    }
}

/// The names that a part of a document refers to.
fn references(value: &Value, place: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let target = map.get("$ref").and_then(Value::as_str).and_then(|it| it.strip_prefix(place));
            found.extend(target.map(str::to_owned));
            map.values().for_each(|it| references(it, place, found));
        }
        Value::Array(items) => items.iter().for_each(|it| references(it, place, found)),
        _ => {}
    }
}

fn security() -> Value {
    json!({"BearerToken": {
        "type": "apiKey",
        "description": "Bearer Token authentication",
        "name": "authorization",
        "in": "header",
    }})
}

/// Changes when the document may: with this program and with the definitions in it.
fn tag(path: &str, document: Document<'_>) -> String {
    let mut parts: Vec<Vec<u8>> = vec![env!("CARGO_PKG_VERSION").into(), VERSION.into(), path.into()];
    for resource in document.resources() {
        if let Model::Custom(custom) = &resource.model {
            parts.push(custom.definition.key.name.as_bytes().to_vec());
            parts.push(custom.definition.rev.to_be_bytes().to_vec());
        }
    }
    hash(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha512::new();
    for part in parts {
        hash.update(part);
        hash.update(b"\0");
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// The document, or that the client has it already.
fn tagged(request: &Parts, tag: String, make: impl FnOnce() -> Bytes) -> Result<Reply, Problem> {
    let quoted = format!("\"{tag}\"");
    let known =
        request.headers.get(IF_NONE_MATCH).and_then(|it| it.to_str().ok()).is_some_and(|it| it.contains(&quoted));
    let mut reply = if known { Reply::new(304, JSON, Body::Whole(None)) } else { Reply::new(200, JSON, make()) };
    reply.etag = Some(quoted);
    Ok(reply)
}

fn info() -> Value {
    // 1.34 of v1.34.2.
    let version = VERSION.trim_start_matches('v');
    json!({"title": "Kubernetes", "version": version.rsplit_once('.').map_or(version, |it| it.0)})
}

/// The name of a resource's type in a document.
fn type_name(resource: &Resource) -> String {
    match &resource.model {
        Model::Builtin(kind) => kind.definition(),
        Model::Custom(_) => {
            let reversed: Vec<&str> = resource.group.rsplit('.').collect();
            format!("{}.{}.{}", reversed.join("."), resource.version, resource.kind)
        }
    }
}

/// The name of the type of its lists.
fn list_name(resource: &Resource) -> String {
    let one = type_name(resource);
    format!("{}{}", one.strip_suffix(&resource.kind).unwrap_or(&one), resource.list_kind)
}

fn schemas<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> Map<String, Value> {
    let (mut builtin, mut lists) = (Vec::new(), Vec::new());
    let mut custom = Map::new();
    for resource in resources {
        match &resource.model {
            Model::Builtin(kind) => builtin.push(*kind),
            Model::Custom(it) => {
                let openapi = it.version().pointer("/schema/openAPIV3Schema").cloned();
                let mut schema = openapi.unwrap_or_else(|| json!({"type": "object"}));
                embedded(&mut schema);
                custom.insert(type_name(resource), custom_schema(resource, schema));
            }
        }
        if resource.is_listed() {
            lists.push((list_name(resource), list_schema(resource)));
        }
    }
    let mut all = types::published(builtin.into_iter());
    all.extend(custom);
    all.extend(lists);
    all
}

fn gvk(resource: &Resource, kind: &str) -> Value {
    json!([{"group": resource.group, "kind": kind, "version": resource.version}])
}

/// A definition's schema with what every object has.
fn custom_schema(resource: &Resource, mut schema: Value) -> Value {
    if let Some(it) = schema.as_object_mut() {
        common(it, API_VERSION, KIND);
        it.insert("x-kubernetes-group-version-kind".into(), gvk(resource, &resource.kind));
    }
    schema
}

/// Within a definition's schema: what every object has in those that are objects, and what int-or-string means.
fn embedded(schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    if it.get("x-kubernetes-int-or-string") == Some(&json!(true)) && !it.contains_key("anyOf") {
        let both = json!([{"type": "integer"}, {"type": "string"}]);
        match it.get_mut("allOf").and_then(Value::as_array_mut) {
            Some(all) => all.insert(0, json!({"anyOf": both})),
            None => drop(it.insert("anyOf".into(), both)),
        }
    }
    for key in ["properties", "items", "additionalProperties"] {
        match (key, it.get_mut(key)) {
            ("properties", Some(Value::Object(all))) => all.values_mut().for_each(embedded),
            (_, Some(below)) => embedded(below),
            (_, None) => {}
        }
    }
    if it.get("x-kubernetes-embedded-resource") == Some(&json!(true)) {
        common(it, EMBEDDED_API_VERSION, EMBEDDED_KIND);
        let required = it.entry("required").or_insert_with(|| json!([]));
        for field in ["kind", "apiVersion"] {
            if let Some(required) = required.as_array_mut()
                && !required.iter().any(|it| it == field)
            {
                required.push(json!(field));
            }
        }
    }
}

/// The fields of every object.
fn common(schema: &mut Map<String, Value>, api_version: &str, kind: &str) {
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else { return };
    properties.insert("apiVersion".into(), json!({"type": "string", "description": api_version}));
    properties.insert("kind".into(), json!({"type": "string", "description": kind}));
    properties.insert(
        "metadata".into(),
        json!({
            "description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
            "allOf": [{"$ref": format!("{SCHEMAS}{}", crate::object::builtin::OBJECT_META)}],
        }),
    );
}

fn list_schema(resource: &Resource) -> Value {
    let more = match resource.is_custom() {
        true => " More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md",
        false => "",
    };
    let mut list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION},
            "items": {"description": format!("List of {}.{more}", resource.plural), "type": "array",
                "items": {"$ref": format!("{SCHEMAS}{}", type_name(resource))}},
            "kind": {"type": "string", "description": KIND},
            "metadata": {
                "description": "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
                "allOf": [{"$ref": format!("{SCHEMAS}io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta")}],
            },
        },
        "x-kubernetes-group-version-kind": gvk(resource, &resource.list_kind),
    });
    if !resource.is_custom() {
        types::publish(&list_name(resource), &mut list);
    }
    list
}

const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// `/openapi/v2`: everything in one document, as JSON or protobuf. kubectl reads it for lists of mixed kinds.
pub(crate) fn v2(core: &Arc<Core>, request: &Parts) -> Result<Reply, Problem> {
    let said = request.headers.get(ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let said = said.to_ascii_lowercase();
    let protobuf = gnostic::MEDIA_TYPES.iter().any(|it| said.contains(it));
    if !protobuf && !said.is_empty() && !["application/json", "*/*", "application/*"].iter().any(|it| said.contains(it))
    {
        return Err(Problem::not_acceptable(&["application/json", gnostic::MEDIA_TYPES[1]]));
    }
    let resources = core.fresh();
    let mut tags: Vec<String> = documents(&resources).map(|(path, it)| tag(&path, it)).collect();
    tags.sort();
    tags.push(format!("protobuf: {protobuf}"));
    let whole = hash(&tags.iter().map(String::as_bytes).collect::<Vec<_>>());
    let mut reply = tagged(request, whole, || {
        // One path and one definition after the other: as values they take ten times as much as written.
        let mut paths = BTreeMap::new();
        let (mut shared, mut wanted) = (paths::Shared::default(), Vec::new());
        for path in documents(&resources).flat_map(|(_, it)| it.paths()) {
            let item = paths::v2(&path, &mut shared);
            references(&item, DEFINITIONS, &mut wanted);
            let written = if protobuf { gnostic::path(&path.url, &item) } else { entry(&path.url, &item) };
            paths.insert(path.url, written);
        }
        shared.all.values().for_each(|it| references(it, DEFINITIONS, &mut wanted));
        let mut all = schemas(documents(&resources).flat_map(|(_, it)| it.resources()));
        let mut definitions = BTreeMap::new();
        while let Some(name) = wanted.pop() {
            let Some(mut it) = all.swap_remove(&name) else { continue };
            open(&mut it);
            to_v2(&mut it);
            references(&it, DEFINITIONS, &mut wanted);
            let written = if protobuf { gnostic::definition(&name, &it) } else { entry(&name, &it) };
            definitions.insert(name, written);
        }
        let head = json!({
            "swagger": "2.0",
            "info": info(),
            "parameters": shared.all,
            "securityDefinitions": security(),
            "security": [{"BearerToken": []}],
        });
        let between: &[u8] = if protobuf { b"" } else { b"," };
        let join = |parts: BTreeMap<String, Vec<u8>>| parts.into_values().collect::<Vec<_>>().join(between);
        let (paths, definitions) = (join(paths), join(definitions));
        if protobuf {
            return Bytes::from(gnostic::document(&head, &paths, &definitions));
        }
        let head = head.to_string();
        let head = head.strip_suffix('}').unwrap_or_default().as_bytes();
        Bytes::from([head, b",\"paths\":{", &paths, b"},\"definitions\":{", &definitions, b"}}"].concat())
    })?;
    if protobuf {
        reply.content_type = gnostic::MEDIA_TYPES[1];
    }
    Ok(reply)
}

/// An entry of an object.
fn entry(name: &str, value: &Value) -> Vec<u8> {
    format!("{}:{value}", json!(name)).into_bytes()
}

/// From OpenAPI 3.0 to 2.0, for what stands in our schemas.
fn to_v2(schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    if let Some(Value::Array(all)) = it.get("allOf")
        && let [one] = all.as_slice()
        && let Some(target) = one.get("$ref").cloned()
    {
        it.remove("allOf");
        it.insert("$ref".into(), target);
    }
    if let Some(target) = it.get_mut("$ref")
        && let Some(name) = target.as_str().and_then(|it| it.strip_prefix(SCHEMAS))
    {
        *target = json!(format!("{DEFINITIONS}{name}"));
    }
    // A choice cannot be said; what the type prints as is text.
    let choice = it.remove("oneOf").is_some() && !it.contains_key("x-kubernetes-int-or-string");
    ["anyOf", "not", "default"].into_iter().for_each(|key| drop(it.remove(key)));
    if choice && !it.contains_key("type") {
        it.insert("type".into(), json!("string"));
    }
    for key in ["properties", "items", "additionalProperties", "allOf"] {
        match (key, it.get_mut(key)) {
            ("properties", Some(Value::Object(all))) => {
                for below in all.values_mut() {
                    untyped(below);
                    to_v2(below);
                }
            }
            ("allOf", Some(Value::Array(all))) => all.iter_mut().for_each(to_v2),
            (_, Some(below)) => {
                untyped(below);
                to_v2(below);
            }
            (_, None) => {}
        }
    }
}

/// Of a kind whose objects may hold anything, nothing more can be said: clients take what is named for all there is.
fn open(kind: &mut Value) {
    if let Some(it) = kind.as_object_mut()
        && it.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true))
    {
        it.retain(|key, _| matches!(key.as_str(), "type" | "x-kubernetes-group-version-kind"));
    }
}

/// What may be null or hold anything has no type that OpenAPI 2.0 could say.
fn untyped(schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    let null = it.remove("nullable") == Some(json!(true));
    if null || it.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true)) {
        let keys = ["type", "properties", "items", "additionalProperties", "required"];
        keys.into_iter().for_each(|key| drop(it.remove(key)));
    }
}
