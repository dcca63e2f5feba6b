//! Whether a definition is right: upstream's `ValidateCustomResourceDefinition`, with its paths. Inside Kubernetes what all
//! versions have alike (their schema, their subresources, their columns) stands once, above them, and errors say so.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{condition_is, flag};
use crate::object::field::json as print;
use crate::object::meta::{dns1035_label, dns1123_subdomain};
use crate::object::schema::format::is_known;
use crate::object::schema::{Kind, aside, field_path};
use crate::object::{Errors, FieldError, Schema};

const SELECTABLE_MAX: usize = 8;

/// Everything that is wrong with a definition. `old` on an update.
pub(crate) fn validate(definition: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::default();
    let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default();
    // Afterwards neither can change.
    let name = text("/metadata/name");
    if old.is_none() && !name.is_empty() && name != format!("{}.{}", text("/spec/names/plural"), text("/spec/group")) {
        let why = r#"must be spec.names.plural+"."+spec.group"#;
        errors.push(FieldError::invalid_str("metadata.name", name, why));
    }
    spec(definition.get("spec").unwrap_or(&Value::Null), &mut errors);
    if let Some(old) = old {
        let established = condition_is(old, "Established", "True");
        for (path, name, always) in [
            ("/spec/scope", "spec.scope", false),
            ("/spec/names/kind", "spec.names.kind", false),
            ("/spec/group", "spec.group", true),
            ("/spec/names/plural", "spec.names.plural", true),
        ] {
            if (always || established) && old.pointer(path) != definition.pointer(path) {
                let value = definition.pointer(path).unwrap_or(&Value::Null);
                errors.push(FieldError::invalid(name, value, "field is immutable"));
            }
        }
    }
    stored(definition, &mut errors);
    let group = text("/spec/group");
    let protected = |suffix: &str| group == suffix || group.ends_with(&format!(".{suffix}"));
    if old.is_none() && (protected("k8s.io") || protected("kubernetes.io")) {
        let key = "api-approved.kubernetes.io";
        let approval = definition.pointer("/metadata/annotations").and_then(|it| it.get(key)).and_then(Value::as_str);
        let link = "https://github.com/kubernetes/enhancements/pull/1111";
        let at = format!("metadata.annotations[{key}]");
        match approval.unwrap_or_default() {
            "" => {
                let why = format!("protected groups must have approval annotation {key:?}, see {link}");
                errors.push(FieldError::required(at, &why));
            }
            said if said.starts_with("unapproved") || said.starts_with("https://") || said.starts_with("http://") => {}
            said => {
                let why = format!(
                    "protected groups must have approval annotation {key:?} with either a URL or a reason starting with \"unapproved\", see {link}"
                );
                errors.push(FieldError::invalid_str(at, said, &why));
            }
        }
    }
    if flag(definition.get("spec").unwrap_or(&Value::Null), "preserveUnknownFields") && old.is_none() {
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), why));
    }
    errors
}

/// What a definition's author should know although it is taken: formats that nothing checks, those alone that are new.
pub(crate) fn warnings(definition: &Value, old: Option<&Value>) -> Vec<String> {
    let all = |definition: &Value| {
        let mut found = Vec::new();
        let versions = definition.pointer("/spec/versions").and_then(Value::as_array);
        let schemas: Vec<&Value> =
            versions.into_iter().flatten().filter_map(|it| it.pointer("/schema/openAPIV3Schema")).collect();
        let same = schemas.iter().skip(1).all(|it| schemas.first() == Some(it));
        schemas.iter().take(if same { 1 } else { usize::MAX }).for_each(|it| formats(it, &mut found));
        found
    };
    let before = old.map(all).unwrap_or_default();
    let new = all(definition).into_iter().filter(|it| !before.contains(it));
    new.map(|it| format!("unrecognized format {it:?}")).collect()
}

fn formats(schema: &Value, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else { return };
    if let Some(format) = schema.get("format").and_then(Value::as_str)
        && schema.get("type").is_some_and(|it| it == "string")
        && !format.is_empty()
        && !is_known(format)
    {
        found.push(format.to_owned());
    }
    for (key, below) in schema {
        match (key.as_str(), below) {
            ("properties", Value::Object(all)) => all.values().for_each(|it| formats(it, found)),
            ("items" | "additionalProperties" | "not", below) => formats(below, found),
            ("allOf" | "anyOf" | "oneOf", Value::Array(all)) => all.iter().for_each(|it| formats(it, found)),
            _ => {}
        }
    }
}

fn spec(spec: &Value, errors: &mut Errors) {
    let text = |path: &str| spec.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let group = text("/group");
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if let said @ [_, ..] = dns1123_subdomain(group).as_slice() {
        errors.push(FieldError::invalid_str("spec.group", group, &said.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid_str("spec.group", group, "should be a domain with at least one dot"));
    }
    match text("/scope") {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(FieldError::required("spec.scope", "")),
        other => errors.push(FieldError::not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"])),
    }
    let versions = spec.get("versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (at, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none_or(Value::is_null) {
            errors.push(FieldError::required(format!("spec.versions[{at}].schema.openAPIV3Schema"), ""));
        }
    }
    let common = Common::of(versions);
    let mut names = HashSet::new();
    for (at, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{at}]");
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
        names.insert(name);
        if let said @ [_, ..] = dns1035_label(name).as_slice() {
            errors.push(FieldError::invalid_str(format!("{path}.name"), name, &said.join(",")));
        }
        deprecation(version, &path, errors);
        if !common.schema {
            schema(version, &format!("{path}.schema"), errors);
        }
        if !common.subresources {
            subresources(version, &format!("{path}.subresources"), errors);
        }
        if !common.columns {
            columns(version, &format!("{path}.additionalPrinterColumns"), errors);
        }
        if !common.selectable {
            selectable(version, &format!("{path}.selectableFields"), errors);
        }
    }
    if names.len() != versions.len() {
        let shown = common.shown(versions);
        errors.push(FieldError::invalid_shown("spec.versions", shown, "must contain unique version names"));
    }
    if versions.iter().filter(|it| flag(it, "storage")).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        let shown = if spec.get("versions").is_none() { "null".to_owned() } else { common.shown(versions) };
        errors.push(FieldError::invalid_shown("spec.versions", shown, why));
    }
    // The first one's name stands above them too.
    let first = versions.first().and_then(|it| it.get("name")).and_then(Value::as_str).unwrap_or_default();
    if let said @ [_, ..] = dns1035_label(first).as_slice()
        && !first.is_empty()
    {
        errors.push(FieldError::invalid_str("spec.version", first, &said.join(",")));
    }
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(&format!("/names/{key}")).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{key}"), ""));
        }
    }
    self::names(spec.get("names").unwrap_or(&Value::Null), "spec.names", errors);
    if let Some(first) = versions.first() {
        if common.schema {
            schema(first, "spec.validation", errors);
        }
        if common.subresources {
            subresources(first, "spec.subresources", errors);
        }
        if common.columns {
            columns(first, "spec.additionalPrinterColumns", errors);
        }
        if common.selectable {
            selectable(first, "spec.selectableFields", errors);
        }
    }
    conversion(spec, errors);
}

/// What all versions have alike.
struct Common {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Common {
    fn of(versions: &[Value]) -> Self {
        let alike = |key: &str| {
            let value = |it: &Value| it.get(key).filter(|it| !it.is_null()).cloned();
            versions.iter().skip(1).all(|it| Some(value(it)) == versions.first().map(value))
        };
        Self {
            schema: alike("schema"),
            subresources: alike("subresources"),
            columns: alike("additionalPrinterColumns"),
            selectable: alike("selectableFields"),
        }
    }

    /// The versions as Go prints them, without what stands above them.
    fn shown(&self, versions: &[Value]) -> String {
        let shown = |it: &Value| {
            let own = |key: &str, above: bool| match it.get(key) {
                Some(value) if !above => print(value),
                _ => "null".to_owned(),
            };
            format!(
                r#"{{"Name":{},"Served":{},"Storage":{},"Deprecated":{},"DeprecationWarning":{},"Schema":{},"Subresources":{},"AdditionalPrinterColumns":{},"SelectableFields":{}}}"#,
                print(it.get("name").unwrap_or(&Value::Null)),
                flag(it, "served"),
                flag(it, "storage"),
                flag(it, "deprecated"),
                own("deprecationWarning", false),
                own("schema", self.schema),
                own("subresources", self.subresources),
                own("additionalPrinterColumns", self.columns),
                own("selectableFields", self.selectable),
            )
        };
        format!("[{}]", versions.iter().map(shown).collect::<Vec<_>>().join(","))
    }
}

fn conversion(spec: &Value, errors: &mut Errors) {
    let Some(conversion) = spec.get("conversion") else { return };
    let text = |key: &str| conversion.get(key).and_then(Value::as_str).unwrap_or_default();
    match text("strategy") {
        "Webhook" => {
            let why = "conversion by webhooks is not supported: use None, or serve one version alone";
            return errors.push(FieldError::forbidden("spec.conversion.strategy", why));
        }
        "None" => {}
        "" => errors.push(FieldError::required("spec.conversion.strategy", "")),
        other => {
            errors.push(FieldError::not_supported("spec.conversion.strategy", &json!(other), &["None", "Webhook"]));
        }
    }
    let why = "should not be set when strategy is not set to Webhook";
    if conversion.pointer("/webhook/clientConfig").is_some_and(|it| !it.is_null()) {
        errors.push(FieldError::forbidden("spec.conversion.webhookClientConfig", why));
    }
    let reviews = conversion.pointer("/webhook/conversionReviewVersions").and_then(Value::as_array);
    if reviews.is_some_and(|it| !it.is_empty()) {
        errors.push(FieldError::forbidden("spec.conversion.conversionReviewVersions", why));
    }
}

fn deprecation(version: &Value, path: &str, errors: &mut Errors) {
    let Some(said) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut wrong = |why: &str| errors.push(FieldError::invalid_str(format!("{path}.deprecationWarning"), said, why));
    if !flag(version, "deprecated") {
        return wrong("can only be set for deprecated versions");
    }
    if said.len() > 256 {
        wrong("must be <= 256 characters long");
    }
    if said.is_empty() {
        wrong("must not be an empty string");
    }
    if let Some((at, _)) = said.char_indices().find(|(_, c)| c.is_control()) {
        wrong(&format!("must only contain printable UTF-8 characters; non-printable character found at index {at}"));
    }
}

fn schema(version: &Value, path: &str, errors: &mut Errors) {
    const ALONE: [&str; 22] = [
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    const SAID: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
    let Some(openapi) = version.pointer("/schema/openAPIV3Schema").filter(|it| !it.is_null()) else { return };
    let path = format!("{path}.openAPIV3Schema");
    if version.pointer("/subresources/status").is_some_and(|it| !it.is_null()) {
        let kind = openapi.get("type").and_then(Value::as_str).unwrap_or_default();
        let mut given = openapi.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        if !matches!(kind, "" | "object") {
            let why = r#"only "object" is allowed as the type at the root of the schema if the status subresource is enabled"#;
            errors.push(FieldError::invalid_str(format!("{path}.type"), kind, why));
        } else if given.any(|(key, value)| *value != json!(false) && !ALONE.contains(&key.as_str())) {
            errors.push(FieldError::invalid(path.clone(), openapi, SAID));
        }
    }
    if let Err(wrong) = aside(|| Schema::compile(openapi, &path)) {
        errors.extend(wrong);
    }
}

fn subresources(version: &Value, path: &str, errors: &mut Errors) {
    let Some(scale) = version.pointer("/subresources/scale").filter(|it| !it.is_null()) else { return };
    for (key, under, required) in [
        ("specReplicasPath", [".spec."].as_slice(), true),
        ("statusReplicasPath", &[".status."], true),
        ("labelSelectorPath", &[".spec.", ".status."], false),
    ] {
        let at = format!("{path}.scale.{key}");
        let said = scale.get(key).and_then(Value::as_str).unwrap_or_default();
        if said.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
        } else if !said.starts_with('.') {
            errors.push(FieldError::invalid_str(at, said, NO_PATH));
        } else if !under.iter().any(|it| said.starts_with(it)) {
            let roots: Vec<&str> = under.iter().map(|it| it.trim_end_matches('.')).collect();
            let either = if roots.len() > 1 { "either " } else { "" };
            let why = format!("should be a json path under {either}{}", roots.join(" or "));
            errors.push(FieldError::invalid_str(at, said, &why));
        }
    }
}

const NO_PATH: &str = "must be a simple json path starting with .";

fn columns(version: &Value, path: &str, errors: &mut Errors) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    let columns = version.get("additionalPrinterColumns").and_then(Value::as_array);
    for (at, column) in columns.into_iter().flatten().enumerate() {
        let path = format!("{path}[{at}]");
        let text = |key: &str| column.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("name").is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let why = format!("must be one of {}", TYPES.join(","));
        match text("type") {
            "" => errors.push(FieldError::required(format!("{path}.type"), &why)),
            kind if TYPES.contains(&kind) => {}
            kind => errors.push(FieldError::invalid_str(format!("{path}.type"), kind, &why)),
        }
        let format = text("format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            let why = format!("must be one of {}", FORMATS.join(","));
            errors.push(FieldError::invalid_str(format!("{path}.format"), format, &why));
        }
        match text("jsonPath") {
            "" => errors.push(FieldError::required(format!("{path}.JSONPath"), "")),
            said if !said.starts_with('.') => {
                errors.push(FieldError::invalid_str(format!("{path}.JSONPath"), said, NO_PATH));
            }
            _ => {}
        }
    }
}

fn selectable(version: &Value, path: &str, errors: &mut Errors) {
    let fields = version.get("selectableFields").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if fields.is_empty() {
        return;
    }
    let Some(openapi) = version.pointer("/schema/openAPIV3Schema").filter(|it| !it.is_null()) else {
        let why = "may only be set when `version.schema.openAPIV3Schema` is not included";
        return errors.push(FieldError::invalid_str(path, "", why));
    };
    let schema = Schema::trusted(openapi);
    let mut seen = HashSet::new();
    for (at, field) in fields.iter().enumerate() {
        let at = format!("{path}[{at}].jsonPath");
        let said = field.get("jsonPath").and_then(Value::as_str).unwrap_or_default();
        if said.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let (shown, node) = match field_path(said, schema.root(), false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(FieldError::invalid_str(at, said, &format!("is an invalid path: {why}")));
                continue;
            }
        };
        if shown == "metadata" || shown.starts_with("metadata.") {
            errors.push(FieldError::invalid_str(at.clone(), said, "must not point to fields in metadata"));
        }
        if node.int_or_string || !matches!(node.kind, Kind::String | Kind::Boolean | Kind::Integer) {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid_str(at.clone(), said, why));
        }
        if !seen.insert(shown) {
            errors.push(FieldError::duplicate(at, &json!(said)));
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.push(FieldError::too_many(path, seen.len(), SELECTABLE_MAX as u64));
    }
}

/// Names are labels, of mixed case where they name kinds.
fn names(names: &Value, path: &str, errors: &mut Errors) {
    let text = |key: &str| names.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut check = |at: String, value: &str, lower: &str| {
        if let said @ [_, ..] = dns1035_label(lower).as_slice() {
            let why = if lower == value {
                said.join(",")
            } else {
                format!("may have mixed case, but should otherwise match: {}", said.join(","))
            };
            errors.push(FieldError::invalid_str(at, value, &why));
        }
    };
    for key in ["plural", "singular"] {
        if !text(key).is_empty() {
            check(format!("{path}.{key}"), text(key), text(key));
        }
    }
    for key in ["kind", "listKind"] {
        if !text(key).is_empty() {
            check(format!("{path}.{key}"), text(key), &text(key).to_lowercase());
        }
    }
    for key in ["shortNames", "categories"] {
        let all = names.get(key).and_then(Value::as_array);
        for (at, name) in all.into_iter().flatten().filter_map(Value::as_str).enumerate() {
            check(format!("{path}.{key}[{at}]"), name, name);
        }
    }
    if !text("kind").is_empty() && text("kind") == text("listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid_str(format!("{path}.listKind"), text("listKind"), why));
    }
}

fn stored(definition: &Value, errors: &mut Errors) {
    let versions =
        definition.pointer("/spec/versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let stored = definition.pointer("/status/storedVersions").cloned().unwrap_or_else(|| json!([]));
    let all: Vec<&str> = stored.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if all.is_empty() {
        errors.push(FieldError::invalid(
            "status.storedVersions",
            &Value::Null,
            "must have at least one stored version",
        ));
        return;
    }
    for version in versions.iter().filter(|it| flag(it, "storage")) {
        let name = version.get("name").and_then(Value::as_str).unwrap_or_default();
        if !all.contains(&name) {
            let why = format!("must have the storage version {name}");
            errors.push(FieldError::invalid("status.storedVersions", &stored, &why));
        }
    }
    let named = |name: &str| versions.iter().any(|it| it.get("name").is_some_and(|it| it == name));
    for (at, name) in all.iter().enumerate().filter(|(_, name)| !named(name)) {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a \
             storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.push(FieldError::invalid_str(format!("status.storedVersions[{at}]"), name, &why));
    }
}
