//! What all our kinds share: how a kind becomes a Kubernetes resource and a CRD.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::schema::StructuralSchemaRewriter;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

/// A printer column: name, type, path.
pub(crate) type Column = (&'static str, &'static str, &'static str);

/// A namespaced kind with `spec` and a `status` subresource, in one served and stored version.
pub trait Kind: kube::Resource<DynamicType = ()> {
    /// The kind's CRD, exactly as it is committed under `deploy/crds/`.
    fn crd() -> CustomResourceDefinition;
}

/// Builds a CRD from the schemas of `S`(pec) and `T` (status).
///
/// `spec` itself is optional, as in the original: an object without one is accepted and told what it lacks.
pub(crate) fn crd<K: kube::Resource<DynamicType = ()>, S: JsonSchema, T: JsonSchema>(
    about: &str,
    columns: &[Column],
) -> CustomResourceDefinition {
    let (group, kind, plural) = (K::group(&()).into_owned(), K::kind(&()).into_owned(), K::plural(&()).into_owned());
    let root = json!({
        "type": "object",
        "description": about,
        "properties": {
            "apiVersion": {"type": "string", "description": "The group and version of this object's schema."},
            "kind": {"type": "string", "description": "The kind of this object."},
            "metadata": {"type": "object"},
            "spec": schema::<S>(),
            "status": schema::<T>(),
        },
    });
    CustomResourceDefinition {
        metadata: ObjectMeta { name: Some(format!("{plural}.{group}")), ..ObjectMeta::default() },
        spec: CustomResourceDefinitionSpec {
            group,
            names: CustomResourceDefinitionNames {
                list_kind: Some(format!("{kind}List")),
                singular: Some(kind.to_lowercase()),
                kind,
                plural,
                ..CustomResourceDefinitionNames::default()
            },
            scope: "Namespaced".into(),
            versions: vec![CustomResourceDefinitionVersion {
                name: K::version(&()).into_owned(),
                served: true,
                storage: true,
                additional_printer_columns: Some(
                    columns
                        .iter()
                        .map(|(name, type_, path)| CustomResourceColumnDefinition {
                            name: (*name).into(),
                            type_: (*type_).into(),
                            json_path: (*path).into(),
                            ..CustomResourceColumnDefinition::default()
                        })
                        .collect(),
                ),
                // A schema that schemars made and we finished is always one of Kubernetes'; a test builds every CRD.
                schema: Some(CustomResourceValidation { open_api_v3_schema: serde_json::from_value(root).ok() }),
                subresources: Some(CustomResourceSubresources {
                    status: Some(CustomResourceSubresourceStatus(json!({}))),
                    scale: None,
                }),
                ..CustomResourceDefinitionVersion::default()
            }],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    }
}

/// The structural schema of `T`, inlined, without what only JSON Schema knows.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema = settings.with_transform(StructuralSchemaRewriter).into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    schema
}

/// Drops what is noise in a CRD: titles, `nullable` (and a null in an enum) beside optional fields (a null is dropped by the server all the
/// same), and the `format` of Go's plain `int`, which has none in the originals' CRDs.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("type").is_some_and(Value::is_string) || map.contains_key("properties") {
                map.shift_remove("title");
                map.shift_remove("nullable");
                if let Some(Value::Array(values)) = map.get_mut("enum") {
                    values.retain(|value| !value.is_null());
                }
                if map.get("format").is_some_and(|format| format == "int64") {
                    map.shift_remove("format");
                }
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The root type of a kind: metadata, spec (empty when absent) and status, as a Kubernetes resource.
macro_rules! kind {
    ($(#[$doc:meta])* $kind:ident, $plural:literal, $spec:ty, $status:ty, $about:literal, [$($column:expr),* $(,)?]) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, ::serde::Deserialize)]
        pub struct $kind {
            pub metadata: ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            #[serde(default)]
            pub spec: $spec,
            #[serde(default)]
            pub status: Option<$status>,
        }

        impl ::serde::Serialize for $kind {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use ::serde::ser::SerializeMap;
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("apiVersion", &<Self as ::kube::Resource>::api_version(&()))?;
                map.serialize_entry("kind", stringify!($kind))?;
                map.serialize_entry("metadata", &self.metadata)?;
                map.serialize_entry("spec", &self.spec)?;
                if let Some(status) = &self.status {
                    map.serialize_entry("status", status)?;
                }
                map.end()
            }
        }

        impl ::kube::Resource for $kind {
            type DynamicType = ();
            type Scope = ::kube::core::NamespaceResourceScope;
            fn kind(_: &()) -> ::std::borrow::Cow<'_, str> { stringify!($kind).into() }
            fn group(_: &()) -> ::std::borrow::Cow<'_, str> { $crate::agents::GROUP.into() }
            fn version(_: &()) -> ::std::borrow::Cow<'_, str> { $crate::agents::VERSION.into() }
            fn plural(_: &()) -> ::std::borrow::Cow<'_, str> { $plural.into() }
            fn meta(&self) -> &::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta { &self.metadata }
            fn meta_mut(&mut self) -> &mut ::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta { &mut self.metadata }
        }

        impl $crate::Kind for $kind {
            fn crd() -> $crate::CustomResourceDefinition {
                $crate::kind::crd::<Self, $spec, $status>($about, &[$($column),*])
            }
        }
    };
}
pub(crate) use kind;
