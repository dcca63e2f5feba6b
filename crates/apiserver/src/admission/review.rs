//! What is asked of webhooks and told to expressions: `admission.k8s.io/v1` AdmissionReview.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::access::User;
use crate::http::json as text;
use crate::registry::Resource;
use crate::verbs::{Call, DeleteOptions, Propagation, WriteOptions, meta};

const API_VERSION: &str = "admission.k8s.io/v1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// What is the same of a request for everybody who is asked.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) dry_run: bool,
    options: Value,
}

fn options(kind: &str) -> Map<String, Value> {
    Map::from_iter([("kind".to_owned(), json!(kind)), ("apiVersion".to_owned(), json!("meta.k8s.io/v1"))])
}

impl Request {
    pub(super) fn write(operation: Operation, of: &WriteOptions) -> Self {
        let mut said = options(if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" });
        if of.dry_run {
            said.insert("dryRun".into(), json!(["All"]));
        }
        said.extend(of.said.clone());
        Self { operation, dry_run: of.dry_run, options: Value::Object(said) }
    }

    pub(super) fn delete(of: &DeleteOptions) -> Self {
        let mut said = options("DeleteOptions");
        if let Some(grace) = of.grace {
            said.insert("gracePeriodSeconds".into(), json!(grace));
        }
        let mut preconditions = Map::new();
        for (field, value) in [("uid", &of.uid), ("resourceVersion", &of.resource_version)] {
            preconditions.extend(value.as_ref().map(|it| (field.to_owned(), json!(it))));
        }
        if !preconditions.is_empty() {
            said.insert("preconditions".into(), Value::Object(preconditions));
        }
        if let Some(orphan) = of.orphan {
            said.insert("orphanDependents".into(), json!(orphan));
        }
        if let Some(policy) = of.propagation {
            let policy = match policy {
                Propagation::Orphan => "Orphan",
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
            };
            said.insert("propagationPolicy".into(), json!(policy));
        }
        if of.dry_run {
            said.insert("dryRun".into(), json!(["All"]));
        }
        Self { operation: Operation::Delete, dry_run: of.dry_run, options: Value::Object(said) }
    }

    /// The request as a webhook and CEL's `request` see it, but for its id and the objects. `seen` is the resource in the
    /// version in which the objects are shown.
    pub(super) fn described(&self, call: &Call, seen: &Resource, object: Option<&Value>) -> Map<String, Value> {
        let asked = &call.resource;
        let kind = |it: &Resource| json!({"group": it.group, "version": it.version, "kind": it.kind});
        let resource = |it: &Resource| json!({"group": it.group, "version": it.version, "resource": it.plural});
        let mut said = Map::new();
        said.insert("kind".into(), kind(seen));
        said.insert("resource".into(), resource(seen));
        let sub = Some(&call.subresource).filter(|it| !it.is_empty());
        said.extend(sub.map(|it| ("subResource".to_owned(), json!(it))));
        said.insert("requestKind".into(), kind(asked));
        said.insert("requestResource".into(), resource(asked));
        said.extend(sub.map(|it| ("requestSubResource".to_owned(), json!(it))));
        let name = match call.name.as_str() {
            "" => object.map(meta::name).unwrap_or_default(),
            name => name,
        };
        for (field, text) in [("name", name), ("namespace", namespace(call, name))] {
            if !text.is_empty() {
                said.insert(field.into(), json!(text));
            }
        }
        said.insert("operation".into(), json!(self.operation.name()));
        said.insert("userInfo".into(), user_info(&call.user));
        said
    }

    pub(super) fn options(&self) -> &Value {
        &self.options
    }

    /// The whole question of a webhook.
    pub(super) fn review(
        &self,
        uid: &str,
        described: Map<String, Value>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Value {
        let mut request = Map::from_iter([("uid".to_owned(), json!(uid))]);
        request.extend(described);
        request.insert("object".into(), object.cloned().unwrap_or_default());
        request.insert("oldObject".into(), old.cloned().unwrap_or_default());
        request.insert("dryRun".into(), json!(self.dry_run));
        request.insert("options".into(), self.options.clone());
        json!({"kind": "AdmissionReview", "apiVersion": API_VERSION, "request": request})
    }
}

/// The namespace that a request is about: a Namespace is in itself.
pub(super) fn namespace<'a>(call: &'a Call, name: &'a str) -> &'a str {
    if call.resource.is("", "namespaces") { name } else { &call.namespace }
}

fn user_info(user: &User) -> Value {
    let mut said = Map::from_iter([("username".to_owned(), json!(user.name))]);
    if !user.uid.is_empty() {
        said.insert("uid".into(), json!(user.uid));
    }
    said.insert("groups".into(), json!(user.groups));
    if !user.extra.is_empty() {
        said.insert("extra".into(), json!(user.extra));
    }
    Value::Object(said)
}

/// A webhook's answer that is one.
pub(super) struct Response {
    pub(super) allowed: bool,
    pub(super) warnings: Vec<String>,
    /// For the audit log, without the webhook's name.
    pub(super) annotations: Vec<(String, String)>,
    /// `metav1.Status` of a refusal.
    pub(super) status: Value,
    /// Operations of a JSON patch, in JSON.
    pub(super) patch: Vec<u8>,
    pub(super) patch_type: Option<String>,
}

/// Reads an answer, or says what is wrong with it in upstream's words.
pub(super) fn response(body: &[u8], uid: &str, mutates: bool) -> Result<Response, String> {
    let undecodable = |why: String| format!("failed to call webhook: {why}");
    let body = text::parse(body)
        .map_err(|why| undecodable(format!("couldn't get version/kind; json parse error: {why}")))?
        .value;
    let said = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
    if (said("apiVersion"), said("kind")) != (API_VERSION, "AdmissionReview") {
        return Err(undecodable(format!(
            "expected an AdmissionReview of {API_VERSION}, got kind {:?} of {:?}",
            said("kind"),
            said("apiVersion")
        )));
    }
    verified(&body, uid, mutates).map_err(|why| format!("received invalid webhook response: {why}"))
}

fn verified(body: &Value, uid: &str, mutates: bool) -> Result<Response, String> {
    let Some(response) = body.get("response").filter(|it| it.is_object()) else {
        return Err("webhook response was absent".to_owned());
    };
    let text = |field: &str| response.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text("uid")));
    }
    let patch =
        STANDARD.decode(text("patch")).map_err(|why| format!("illegal base64 data in response.patch: {why}"))?;
    let patch_type = response.get("patchType").and_then(Value::as_str).map(str::to_owned);
    match (&patch_type, patch.is_empty(), mutates) {
        (None, false, true) => return Err("webhook returned response.patch but not response.patchType".to_owned()),
        (Some(_), true, true) => return Err("webhook returned response.patchType but not response.patch".to_owned()),
        (_, false, false) => return Err("validating webhook may not return response.patch".to_owned()),
        (Some(_), _, false) => return Err("validating webhook may not return response.patchType".to_owned()),
        _ => {}
    }
    let warnings = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let annotations = response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten();
    Ok(Response {
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or_default(),
        warnings: warnings.filter_map(|it| it.as_str().map(str::to_owned)).collect(),
        annotations: annotations.filter_map(|(key, it)| Some((key.clone(), it.as_str()?.to_owned()))).collect(),
        status: response.get("status").cloned().unwrap_or_default(),
        patch,
        patch_type,
    })
}
