//! The types of the built-in kinds as OpenAPI publishes them: shapes and descriptions from k8s-openapi, and what these lack
//! from the server's own schemas: list types, patch strategies, choices, defaults. Made when somebody asks for a document,
//! never before.

use k8s_openapi::api::{authentication::v1::TokenRequest, autoscaling::v1::Scale, policy::v1::Eviction};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, ListMeta, ObjectMeta, Patch as AnyPatch,
    Status, WatchEvent,
};
use k8s_openapi::apimachinery::pkg::version::Info;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Kind;
use crate::http::json::put;
use crate::object::builtin;

/// The definitions of these kinds and of all they refer to, and of what no resource is: what lists, custom resources,
/// subresources and other paths refer to.
pub(crate) fn published<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for kind in kinds {
        (kind.describe)(&mut generator);
    }
    macro_rules! describe {
        ($($kind:ty),*) => { $(let _ = generator.subschema_for::<$kind>();)* };
    }
    describe!(ObjectMeta, ListMeta, DeleteOptions, AnyPatch, Status, WatchEvent<Value>);
    describe!(Scale, Eviction, TokenRequest, APIResourceList, APIVersions, APIGroup, APIGroupList, Info);
    let mut definitions = generator.take_definitions(false);
    for (name, schema) in &mut definitions {
        publish(name, schema);
        let kinds: Vec<Value> = match name.strip_prefix(META) {
            Some(kind @ ("DeleteOptions" | "WatchEvent")) => {
                let all = EVERYWHERE.split_ascii_whitespace().filter_map(|it| it.split_once('/'));
                all.map(|(group, version)| json!({"group": group, "kind": kind, "version": version})).collect()
            }
            _ => {
                let known = builtin::kind_of(name).into_iter();
                known.map(|(group, version, kind)| json!({"group": group, "kind": kind, "version": version})).collect()
            }
        };
        if let Some(it) = schema.as_object_mut()
            && !kinds.is_empty()
        {
            it.insert("x-kubernetes-group-version-kind".into(), json!(kinds));
        }
    }
    definitions
}

const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// The groups and versions that Kubernetes has types of, served or not: each has these of its own.
const EVERYWHERE: &str = "/v1 admission.k8s.io/v1 admission.k8s.io/v1beta1 admissionregistration.k8s.io/v1 \
    admissionregistration.k8s.io/v1alpha1 admissionregistration.k8s.io/v1beta1 apiextensions.k8s.io/v1 \
    apiextensions.k8s.io/v1beta1 apiregistration.k8s.io/v1 apiregistration.k8s.io/v1beta1 apps/v1 apps/v1beta1 \
    apps/v1beta2 authentication.k8s.io/v1 authentication.k8s.io/v1alpha1 authentication.k8s.io/v1beta1 \
    authorization.k8s.io/v1 authorization.k8s.io/v1beta1 autoscaling/v1 autoscaling/v2 autoscaling/v2beta1 \
    autoscaling/v2beta2 batch/v1 batch/v1beta1 certificates.k8s.io/v1 certificates.k8s.io/v1alpha1 \
    certificates.k8s.io/v1beta1 coordination.k8s.io/v1 coordination.k8s.io/v1alpha2 coordination.k8s.io/v1beta1 \
    discovery.k8s.io/v1 discovery.k8s.io/v1beta1 events.k8s.io/v1 events.k8s.io/v1beta1 extensions/v1beta1 \
    flowcontrol.apiserver.k8s.io/v1 flowcontrol.apiserver.k8s.io/v1beta1 flowcontrol.apiserver.k8s.io/v1beta2 \
    flowcontrol.apiserver.k8s.io/v1beta3 imagepolicy.k8s.io/v1alpha1 internal.apiserver.k8s.io/v1alpha1 \
    networking.k8s.io/v1 networking.k8s.io/v1beta1 node.k8s.io/v1 node.k8s.io/v1alpha1 node.k8s.io/v1beta1 policy/v1 \
    policy/v1beta1 rbac.authorization.k8s.io/v1 rbac.authorization.k8s.io/v1alpha1 \
    rbac.authorization.k8s.io/v1beta1 resource.k8s.io/v1 resource.k8s.io/v1alpha3 resource.k8s.io/v1beta1 \
    resource.k8s.io/v1beta2 scheduling.k8s.io/v1 scheduling.k8s.io/v1alpha1 scheduling.k8s.io/v1beta1 \
    storage.k8s.io/v1 storage.k8s.io/v1alpha1 storage.k8s.io/v1beta1 storagemigration.k8s.io/v1alpha1";

/// Completes a definition by what the server's own schema of that name knows.
pub(crate) fn publish(name: &str, schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    match name {
        builtin::INT_OR_STRING => {
            it.remove("x-kubernetes-int-or-string");
            it.insert("format".into(), json!("int-or-string"));
            it.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
        }
        builtin::QUANTITY => {
            it.remove("x-kubernetes-int-or-string");
            it.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
        }
        // k8s-openapi says of the type what its field is.
        WATCH_EVENT => {
            let said = it.get("description").and_then(Value::as_str).unwrap_or_default();
            if let Some((event, object)) = said.split_once("\n\n") {
                let (event, object) = (json!(event), json!(object.trim_end()));
                it.insert("description".into(), event);
                if let Some(field) = it.get_mut("properties").and_then(|it| it.get_mut("object")) {
                    put(field, "description", object);
                }
            }
        }
        // Whatever JSON there is.
        _ if name.rsplit('.').next().is_some_and(|it| it == "JSON" || it.starts_with("JSONSchemaPropsOr")) => {
            it.remove("type");
            it.remove("oneOf");
        }
        _ => {}
    }
    let known = builtin::openapi(name);
    if let Some(properties) = it.get_mut("properties").and_then(Value::as_object_mut) {
        for (field, schema) in properties.iter_mut() {
            if let (Some(known), Some(schema)) = (&known, schema.as_object_mut()) {
                property(name, field, schema, known);
            }
            wrap_ref(schema);
        }
    }
    let Some(known) = known else { return };
    extensions(it, &known);
    // k8s-openapi makes mandatory what Rust always has; Kubernetes does not.
    match known.get("required") {
        Some(required) => it.insert("required".into(), required.clone()),
        None => it.remove("required"),
    };
}

/// `known`: what is known of the type that the property is of.
fn property(name: &str, field: &str, schema: &mut Map<String, Value>, known: &Value) {
    let Some(property) = known.get("properties").and_then(|it| it.get(field)) else { return };
    let listed = |key: &str| {
        let fields = known.get("x-go").and_then(|it| it.get(key)).and_then(Value::as_array);
        fields.is_some_and(|fields| fields.iter().any(|it| it == field))
    };
    extensions(schema, property);
    choices(schema, property);
    elements(schema, property);
    let explicit = DEFAULTS.iter().find(|it| it.1 == field && name.ends_with(it.0));
    let default = match (explicit, property.get("default")) {
        (Some((.., default)), _) => serde_json::from_str(default).ok(),
        (_, Some(default)) => Some(default.clone()),
        // What Go prints whatever it is.
        _ if listed("s") || listed("a") && !listed("p") => zero(property),
        _ => None,
    };
    schema.extend(default.map(|it| ("default".to_owned(), it)));
}

/// What a list or a map is of.
fn elements(schema: &mut Map<String, Value>, known: &Value) {
    for key in ["items", "additionalProperties"] {
        if let (Some(known), Some(schema)) = (known.get(key), schema.get_mut(key)) {
            if let Some(schema) = schema.as_object_mut() {
                choices(schema, known);
                elements(schema, known);
                schema.extend(zero(known).map(|it| ("default".to_owned(), it)));
            }
            wrap_ref(schema);
        }
    }
}

/// Defaults that upstream's documents tell, beside those that the types' shapes have.
const DEFAULTS: &[(&str, &str, &str)] = &[
    ("v1.AzureDiskVolumeSource", "cachingMode", r#""ReadWrite""#),
    ("v1.AzureDiskVolumeSource", "fsType", r#""ext4""#),
    ("v1.AzureDiskVolumeSource", "kind", r#""Shared""#),
    ("v1.AzureDiskVolumeSource", "readOnly", "false"),
    ("v1.ConfigMapEnvSource", "name", r#""""#),
    ("v1.ConfigMapKeySelector", "name", r#""""#),
    ("v1.ConfigMapProjection", "name", r#""""#),
    ("v1.ConfigMapVolumeSource", "name", r#""""#),
    ("v1.FileKeySelector", "optional", "false"),
    ("v1.GRPCAction", "service", r#""""#),
    ("v1.ISCSIPersistentVolumeSource", "iscsiInterface", r#""default""#),
    ("v1.ISCSIVolumeSource", "iscsiInterface", r#""default""#),
    ("v1.RBDPersistentVolumeSource", "keyring", r#""/etc/ceph/keyring""#),
    ("v1.RBDPersistentVolumeSource", "pool", r#""rbd""#),
    ("v1.RBDPersistentVolumeSource", "user", r#""admin""#),
    ("v1.RBDVolumeSource", "keyring", r#""/etc/ceph/keyring""#),
    ("v1.RBDVolumeSource", "pool", r#""rbd""#),
    ("v1.RBDVolumeSource", "user", r#""admin""#),
    ("v1.ReplicationControllerSpec", "minReadySeconds", "0"),
    ("v1.ReplicationControllerSpec", "replicas", "1"),
    ("v1.ScaleIOPersistentVolumeSource", "fsType", r#""xfs""#),
    ("v1.ScaleIOPersistentVolumeSource", "storageMode", r#""ThinProvisioned""#),
    ("v1.ScaleIOVolumeSource", "fsType", r#""xfs""#),
    ("v1.ScaleIOVolumeSource", "storageMode", r#""ThinProvisioned""#),
    ("v1.ScaleSpec", "replicas", "0"),
    ("v1.SecretEnvSource", "name", r#""""#),
    ("v1.SecretKeySelector", "name", r#""""#),
    ("v1.SecretProjection", "name", r#""""#),
];

/// What Go has for a value of which nothing is known; nothing for what writes itself.
fn zero(schema: &Value) -> Option<Value> {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let fields = target == builtin::FIELDS || builtin::openapi(target)?.get("properties").is_some();
        return fields.then(|| json!({}));
    }
    match schema.get("type")?.as_str()? {
        "string" if schema.get("format").is_none_or(|it| it != "byte") => Some(json!("")),
        "integer" | "number" => Some(json!(0)),
        "boolean" => Some(json!(false)),
        _ => None,
    }
}

/// The values that a field may have, which `kubectl explain` lists.
fn choices(schema: &mut Map<String, Value>, known: &Value) {
    schema.extend(known.get("enum").map(|it| ("enum".to_owned(), it.clone())));
}

/// How server-side apply and strategic patches take it.
fn extensions(schema: &mut Map<String, Value>, known: &Value) {
    let known = known.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-kubernetes-"));
    schema.extend(known.map(|(key, it)| (key.clone(), it.clone())));
}

/// OpenAPI v3.0 ignores what stands beside a `$ref`, so a reference with a description becomes `allOf`.
fn wrap_ref(schema: &mut Value) {
    let Some(it) = schema.as_object_mut() else { return };
    if it.len() > 1
        && let Some(target) = it.remove("$ref")
    {
        it.insert("allOf".into(), json!([{"$ref": target}]));
    }
}
