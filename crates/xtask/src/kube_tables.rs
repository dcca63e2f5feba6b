//! The tables of Kubernetes' own kinds that `apiserver` carries, made from a real API server and Kubernetes' sources.
//!
//! `KUBECONFIG=... cargo xtask kube-tables` needs `kubectl` that reaches an API server of the wanted version, and Go
//! whose module cache holds `k8s.io/api` and `k8s.io/apimachinery` of that version. It writes
//!
//! - `crates/apiserver/src/object/builtin.tsv`: a definition a line: name, `group/version/Kind` or nothing, its schema
//!   without descriptions. `x-go` in it says how Go prints the struct where that does not follow from the types.
//! - `crates/apiserver/src/object/protobuf.tsv`: a message a line: name, then its fields as `number:type:json`, where a
//!   type is a scalar or a message after `*` (repeated), `%` (map), `@` (inlined) and `?` (left out when zero).
//! - `crates/apiserver/src/object/table/columns.tsv`: `group/Kind` and the column definitions of its tables. This part
//!   also needs `curl`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// The API versions whose kinds the server stores, and what else answers with types.
const VERSIONS: &[&str] = &[
    "api",
    "apis",
    "version",
    "api/v1",
    "apis/admissionregistration.k8s.io/v1",
    "apis/apiextensions.k8s.io/v1",
    "apis/apiregistration.k8s.io/v1",
    "apis/apps/v1",
    "apis/authentication.k8s.io/v1",
    "apis/authorization.k8s.io/v1",
    "apis/autoscaling/v1",
    "apis/autoscaling/v2",
    "apis/batch/v1",
    "apis/certificates.k8s.io/v1",
    "apis/coordination.k8s.io/v1",
    "apis/discovery.k8s.io/v1",
    "apis/events.k8s.io/v1",
    "apis/flowcontrol.apiserver.k8s.io/v1",
    "apis/networking.k8s.io/v1",
    "apis/node.k8s.io/v1",
    "apis/policy/v1",
    "apis/rbac.authorization.k8s.io/v1",
    "apis/scheduling.k8s.io/v1",
    "apis/storage.k8s.io/v1",
];

/// Go packages: directory in its module, and the prefix of their definitions.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("k8s.io/api", "core/v1", "io.k8s.api.core.v1"),
    ("k8s.io/api", "admissionregistration/v1", "io.k8s.api.admissionregistration.v1"),
    ("k8s.io/api", "apps/v1", "io.k8s.api.apps.v1"),
    ("k8s.io/api", "authentication/v1", "io.k8s.api.authentication.v1"),
    ("k8s.io/api", "authorization/v1", "io.k8s.api.authorization.v1"),
    ("k8s.io/api", "autoscaling/v1", "io.k8s.api.autoscaling.v1"),
    ("k8s.io/api", "autoscaling/v2", "io.k8s.api.autoscaling.v2"),
    ("k8s.io/api", "batch/v1", "io.k8s.api.batch.v1"),
    ("k8s.io/api", "certificates/v1", "io.k8s.api.certificates.v1"),
    ("k8s.io/api", "coordination/v1", "io.k8s.api.coordination.v1"),
    ("k8s.io/api", "discovery/v1", "io.k8s.api.discovery.v1"),
    ("k8s.io/api", "events/v1", "io.k8s.api.events.v1"),
    ("k8s.io/api", "flowcontrol/v1", "io.k8s.api.flowcontrol.v1"),
    ("k8s.io/api", "networking/v1", "io.k8s.api.networking.v1"),
    ("k8s.io/api", "node/v1", "io.k8s.api.node.v1"),
    ("k8s.io/api", "policy/v1", "io.k8s.api.policy.v1"),
    ("k8s.io/api", "rbac/v1", "io.k8s.api.rbac.v1"),
    ("k8s.io/api", "scheduling/v1", "io.k8s.api.scheduling.v1"),
    ("k8s.io/api", "storage/v1", "io.k8s.api.storage.v1"),
    ("k8s.io/apimachinery", "pkg/apis/meta/v1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
    ("k8s.io/apimachinery", "pkg/api/resource", "io.k8s.apimachinery.pkg.api.resource"),
    ("k8s.io/apimachinery", "pkg/runtime", "io.k8s.apimachinery.pkg.runtime"),
    ("k8s.io/apimachinery", "pkg/version", "io.k8s.apimachinery.pkg.version"),
    ("k8s.io/apimachinery", "pkg/util/intstr", "io.k8s.apimachinery.pkg.util.intstr"),
    (
        "k8s.io/apiextensions-apiserver",
        "pkg/apis/apiextensions/v1",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    ),
    ("k8s.io/kube-aggregator", "pkg/apis/apiregistration/v1", "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1"),
];

/// Structs without tagged fields of their own, which Go prints even when they are zero.
const VALUES: &[&str] = &[
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Duration",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
];

pub fn run() -> Result<()> {
    let to = crate::root().join("crates/apiserver/src/object");
    let structs = structs()?;
    let definitions = definitions()?;
    std::fs::write(to.join("builtin.tsv"), builtin(&definitions, &structs))?;
    std::fs::write(to.join("protobuf.tsv"), protobuf(&structs)?)?;
    std::fs::write(to.join("table/columns.tsv"), columns()?)?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("run {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(String::from_utf8(done.stdout)?)
}

// Schemas

fn definitions() -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for version in VERSIONS {
        let page = output(Command::new("kubectl").args(["get", "--raw", &format!("/openapi/v3/{version}")]))?;
        let page: Value = serde_json::from_str(&page)?;
        let schemas = page.pointer("/components/schemas").and_then(Value::as_object).context("no schemas")?;
        all.extend(schemas.iter().map(|(name, schema)| (name.clone(), schema.clone())));
    }
    Ok(all)
}

fn builtin(definitions: &BTreeMap<String, Value>, structs: &BTreeMap<String, Struct>) -> String {
    // The one kind of default that the schemas are asked for: of the keys of list maps.
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for schema in definitions.values() {
        for property in properties(schema) {
            let Some(target) = property.1.get("items").and_then(reference) else { continue };
            let names = property.1.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            keys.entry(target)
                .or_default()
                .extend(names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    let mut out = String::new();
    for (name, schema) in definitions {
        let kinds = schema.get("x-kubernetes-group-version-kind").and_then(Value::as_array);
        let kind = match kinds.map(Vec::as_slice) {
            Some([one]) => {
                let part = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
                format!("{}/{}/{}", part("group"), part("version"), part("kind"))
            }
            _ => String::new(),
        };
        let none = BTreeSet::new();
        let mut compact = strip(schema, keys.get(name).unwrap_or(&none), definitions);
        if let (Some(map), Some(shape)) = (compact.as_object_mut(), structs.get(name).and_then(|s| shape(s, structs))) {
            map.insert("x-go".into(), shape);
        }
        out.push_str(&format!("{name}\t{kind}\t{compact}\n"));
    }
    out
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// The definition that a schema refers to; version 3 wraps references in an `allOf` of one.
fn reference(schema: &Value) -> Option<String> {
    let direct = schema.get("$ref");
    let wrapped =
        schema.get("allOf").and_then(Value::as_array).filter(|a| a.len() == 1).and_then(|a| a.first()?.get("$ref"));
    Some(direct.or(wrapped)?.as_str()?.rsplit('/').next()?.to_owned())
}

fn strip(schema: &Value, keys: &BTreeSet<String>, definitions: &BTreeMap<String, Value>) -> Value {
    let Some(from) = schema.as_object() else { return schema.clone() };
    let mut to = Map::new();
    if let Some(target) = reference(schema) {
        let map_type = from.get("x-kubernetes-map-type");
        if let (Some(map_type), Some(definition)) = (map_type, definitions.get(&target)) {
            let mut inlined = strip(definition, &BTreeSet::new(), definitions);
            if let Some(map) = inlined.as_object_mut() {
                map.insert("x-kubernetes-map-type".into(), map_type.clone());
            }
            return inlined;
        }
        to.insert("$ref".into(), json!(target));
    }
    for (key, value) in from {
        match key.as_str() {
            "description"
            | "x-kubernetes-group-version-kind"
            | "x-kubernetes-unions"
            | "default"
            | "allOf"
            | "$ref" => {}
            "oneOf" if from.get("format").is_some_and(|f| f == "int-or-string") => {}
            "properties" => {
                let stripped = value.as_object().into_iter().flatten().map(|(name, property)| {
                    let mut stripped = strip(property, &BTreeSet::new(), definitions);
                    let default = property.get("default").filter(|_| keys.contains(name));
                    if let (Some(default), Some(map)) = (default, stripped.as_object_mut()) {
                        map.insert("default".into(), default.clone());
                    }
                    (name.clone(), stripped)
                });
                to.insert(key.clone(), Value::Object(stripped.collect()));
            }
            "items" | "additionalProperties" => {
                to.insert(key.clone(), strip(value, &BTreeSet::new(), definitions));
            }
            _ => {
                to.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(to)
}

/// How Go prints a struct: `a`: always, zero or not; `s`: a struct that is always there (a list or map is not); `p`: a pointer to a scalar, so
/// that zero is not nothing.
fn shape(it: &Struct, structs: &BTreeMap<String, Struct>) -> Option<Value> {
    let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for field in flat(it, structs) {
        let pointer = field.go.starts_with('*');
        let known = structs.get(&field.target).is_some_and(|t| !t.fields.is_empty());
        let is_struct = (known || VALUES.contains(&field.target.as_str())) && !field.go.contains('[');
        let key = match () {
            () if field.json.is_empty() || field.omit_zero => continue,
            () if pointer && !is_struct => "p",
            () if pointer => continue,
            () if is_struct => "s",
            () if !field.omit_empty => "a",
            () => continue,
        };
        by.entry(key).or_default().push(field.json.clone());
    }
    (!by.is_empty()).then(|| json!(by))
}

/// A struct's fields with those of inlined structs in their place.
fn flat(it: &Struct, structs: &BTreeMap<String, Struct>) -> Vec<Field> {
    let mut out = Vec::new();
    for field in &it.fields {
        match structs.get(&field.target).filter(|_| field.inline) {
            Some(inner) => out.extend(flat(inner, structs)),
            None => out.push(field.clone()),
        }
    }
    out
}

// Columns

fn columns() -> Result<String> {
    // kubectl can't ask for a table as it is, its proxy can.
    let mut proxy = Command::new("kubectl").args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn()?;
    let said = proxy.stdout.take().map(|out| BufReader::new(out).lines().next());
    let port = said.flatten().transpose()?.and_then(|line| Some(line.rsplit(':').next()?.trim().to_owned()));
    let out = port.context("kubectl proxy").and_then(|port| tables(&format!("http://127.0.0.1:{port}")));
    proxy.kill()?;
    proxy.wait()?;
    out
}

fn tables(server: &str) -> Result<String> {
    let mut out = BTreeMap::new();
    let get = |path: &str, accept: &str| -> Result<Value> {
        let accept = format!("Accept: {accept}");
        Ok(serde_json::from_str(&output(Command::new("curl").args([
            "-sS",
            "-H",
            &accept,
            &format!("{server}/{path}"),
        ]))?)?)
    };
    for version in VERSIONS {
        let group = version.strip_prefix("apis/").and_then(|v| v.split('/').next()).unwrap_or_default();
        let page = get(version, "application/json")?;
        for resource in page.get("resources").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| resource.get(key).and_then(Value::as_str).unwrap_or_default();
            let verbs = resource.get("verbs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            if text("name").contains('/') || !verbs.contains(&json!("list")) {
                continue;
            }
            let table = get(&format!("{version}/{}", text("name")), "application/json;as=Table;v=v1;g=meta.k8s.io")?;
            let columns = table.get("columnDefinitions").cloned().context("no columns")?;
            out.insert(format!("{group}/{}", text("kind")), columns);
        }
    }
    Ok(out.iter().map(|(kind, columns)| format!("{kind}\t{columns}\n")).collect())
}

// Go structs and protobuf messages

#[derive(Default)]
struct Struct {
    fields: Vec<Field>,
}

#[derive(Clone)]
struct Field {
    /// As in Go: `*int32`, `[]Container`, `map[string]string`.
    go: String,
    /// The definition of the type, or of what it is a list, map or pointer of.
    target: String,
    json: String,
    number: Option<u32>,
    inline: bool,
    omit_empty: bool,
    omit_zero: bool,
}

fn module(name: &str) -> Result<PathBuf> {
    let cache = output(Command::new("go").args(["env", "GOMODCACHE"]))?;
    let (parent, last) = name.split_once('/').context("module name")?;
    let mut found: Vec<PathBuf> = std::fs::read_dir(Path::new(cache.trim()).join(parent))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{last}@"))))
        .collect();
    found.sort();
    found.pop().with_context(|| format!("{name} is not in Go's module cache"))
}

fn structs() -> Result<BTreeMap<String, Struct>> {
    let mut all = BTreeMap::new();
    for (name, directory, prefix) in PACKAGES {
        let directory = module(name)?.join(directory);
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            let file = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let skip = file.ends_with("_test.go") || file.starts_with("zz_") || file.starts_with("generated");
            if file.ends_with(".go") && !skip {
                read_structs(&std::fs::read_to_string(&path)?, prefix, &mut all);
            }
        }
    }
    Ok(all)
}

fn read_structs(source: &str, prefix: &str, all: &mut BTreeMap<String, Struct>) {
    let imports: BTreeMap<&str, &str> = BTreeMap::from([
        ("metav1", "io.k8s.apimachinery.pkg.apis.meta.v1"),
        ("v1", if prefix.contains("api.core") { "io.k8s.apimachinery.pkg.apis.meta.v1" } else { "io.k8s.api.core.v1" }),
        ("corev1", "io.k8s.api.core.v1"),
        ("authenticationv1", "io.k8s.api.authentication.v1"),
        ("resource", "io.k8s.apimachinery.pkg.api.resource"),
        ("runtime", "io.k8s.apimachinery.pkg.runtime"),
        ("intstr", "io.k8s.apimachinery.pkg.util.intstr"),
    ]);
    let mut current: Option<String> = None;
    for line in source.lines().map(str::trim).filter(|l| !l.starts_with("//")) {
        if let Some(name) = line.strip_prefix("type ").and_then(|l| l.strip_suffix(" struct {")) {
            current = Some(format!("{prefix}.{name}"));
            all.entry(format!("{prefix}.{name}")).or_default();
        } else if line == "}" {
            current = None;
        } else if let (Some(name), Some((left, tags))) = (&current, line.split_once('`')) {
            let tag = |key: &str| tags.split_once(&format!("{key}:\"")).and_then(|(_, rest)| rest.split('"').next());
            let mut words = left.split_whitespace();
            let (first, second) = (words.next().unwrap_or_default(), words.next());
            let go = second.unwrap_or(first);
            let base = go.rsplit(['*', ']']).next().unwrap_or_default();
            let target = match base.split_once('.') {
                Some((package, kind)) => format!("{}.{kind}", imports.get(package).copied().unwrap_or(package)),
                None => format!("{prefix}.{base}"),
            };
            let mut json = tag("json").unwrap_or_default().split(',');
            let name_in_json = json.next().unwrap_or_default().to_owned();
            let options: Vec<&str> = json.collect();
            let number = tag("protobuf").and_then(|t| t.split(',').nth(1)?.parse().ok());
            all.entry(name.clone()).or_default().fields.push(Field {
                go: go.to_owned(),
                target,
                inline: options.contains(&"inline"),
                omit_empty: options.contains(&"omitempty"),
                omit_zero: options.contains(&"omitzero"),
                json: name_in_json,
                number,
            });
        }
    }
}

fn protobuf(structs: &BTreeMap<String, Struct>) -> Result<String> {
    let mut out = String::new();
    let mut messages = BTreeMap::new();
    for (name, directory, prefix) in PACKAGES {
        let file = module(name)?.join(directory).join("generated.proto");
        if !file.is_file() {
            continue;
        }
        read_messages(&std::fs::read_to_string(file)?, prefix, &mut messages);
    }
    for (name, fields) in &messages {
        out.push_str(name);
        let go = structs.get(name);
        for (number, kind, proto_name) in fields {
            let field = go.and_then(|s| s.fields.iter().find(|f| f.number == Some(*number)));
            let json = field.map_or(proto_name.as_str(), |f| f.json.as_str());
            let json = if json.is_empty() { proto_name } else { json };
            let inline = field.is_some_and(|f| f.inline);
            let zero = field.is_some_and(|f| f.omit_empty && !f.go.starts_with('*'));
            let (inline, zero) = (if inline { "@" } else { "" }, if zero { "?" } else { "" });
            out.push_str(&format!("\t{number}:{inline}{zero}{kind}:{json}"));
        }
        out.push('\n');
    }
    Ok(out)
}

type Messages = BTreeMap<String, Vec<(u32, String, String)>>;

fn read_messages(source: &str, prefix: &str, messages: &mut Messages) {
    let mut current: Option<String> = None;
    for line in source.lines().map(str::trim).filter(|l| !l.starts_with("//")) {
        if let Some(name) = line.strip_prefix("message ").and_then(|l| l.strip_suffix(" {")) {
            current = Some(format!("{prefix}.{name}"));
            messages.insert(format!("{prefix}.{name}"), Vec::new());
        } else if line == "}" {
            current = None;
        } else if let (Some(name), Some((left, number))) = (&current, line.split_once(" = ")) {
            let Ok(number) = number.trim_end_matches(';').parse() else { continue };
            let Some((kind, field)) = left.rsplit_once(' ') else { continue };
            let kind = match kind.strip_prefix("map<string, ").and_then(|k| k.strip_suffix('>')) {
                Some(value) => format!("%{}", scalar(value, prefix)),
                None => match kind.split_once(' ') {
                    Some(("repeated", kind)) => format!("*{}", scalar(kind, prefix)),
                    Some((_, kind)) => scalar(kind, prefix),
                    None => continue,
                },
            };
            messages.entry(name.clone()).or_default().push((number, kind, field.to_owned()));
        }
    }
}

/// `.k8s.io.api.core.v1.Pod` as the definition's name; scalars as they are.
fn scalar(kind: &str, prefix: &str) -> String {
    match kind {
        "string" | "bytes" | "bool" | "int32" | "int64" | "uint32" | "uint64" | "double" => kind.to_owned(),
        local if !local.contains('.') => format!("{prefix}.{local}"),
        full => full.trim_start_matches('.').replacen("k8s.io.", "io.k8s.", 1),
    }
}
