//! The subresources that only one kind has: `namespaces/finalize`, `pods/eviction`, `pods/binding`,
//! `serviceaccounts/token`.

use serde_json::{Value, json};

use super::eviction;
use crate::access::token_request;
use crate::http::json::put;
use crate::http::reply::Reply;
use crate::http::resource::{Asked, encoded, written_reply};
use crate::http::{Accept, media};
use crate::object::status::Problem;
use crate::verbs::{Call, WriteOptions, admit, meta, update};

pub(crate) async fn answer(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let plural = call.resource.plural.clone();
    match (call.resource.group.as_str(), plural.as_str(), call.subresource.as_str(), asked.target.verb) {
        ("", "namespaces", "finalize", "update") => {
            let options = WriteOptions::of(asked.query, asked.user_agent(), "UpdateOptions", false)?;
            let object = admit::decode(call, &asked.body, asked.media_type(), options.validation)?;
            let written = update::update(call, object, &options).await?;
            written_reply(call, asked, accept, &written)
        }
        ("", "pods", "eviction", "create") => {
            Box::pin(eviction::evict(call, asked)).await?;
            encoded(
                accept,
                201,
                &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
            )
        }
        ("", "pods", "binding", "create") => {
            let body = binding(call, asked)?;
            if meta::name(&body) != call.name {
                return Err(Problem::bad_request("name in URL does not match name in Binding object"));
            }
            bound(call, asked, accept, &body).await
        }
        ("", "serviceaccounts", "token", "create") => token_request::answer(call, asked, accept).await,
        ("", "serviceaccounts", "token", _) => Err(Problem::not_allowed()),
        ("", "pods", "log" | "exec" | "attach" | "portforward", _) if asked.target.rest.is_empty() => {
            Err(Problem::not_allowed())
        }
        _ if call.resource.is_custom() => Err(call.not_found(&call.name)),
        _ => Err(Problem::no_such_path()),
    }
}

/// A Binding that is not sent to its pod: it names it.
pub(crate) async fn bind_named(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let body = binding(call, asked)?;
    let pods = call.core.registry.now().find("", "v1", "pods").cloned().ok_or_else(Problem::no_such_path)?;
    call.resource = pods;
    call.name = meta::name(&body).to_owned();
    call.subresource = "binding".to_owned();
    bound(call, asked, accept, &body).await
}

fn binding(call: &mut Call, asked: &Asked<'_>) -> Result<Value, Problem> {
    let options = WriteOptions::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let resource = call.core.registry.now().find("", "v1", "bindings").cloned().ok_or_else(Problem::no_such_path)?;
    admit::decode_as(call, &resource, &asked.body, asked.media_type(), options.validation)
}

async fn bound(call: &mut Call, asked: &Asked<'_>, accept: &Accept, body: &Value) -> Result<Reply, Problem> {
    bind(call, asked, body).await?;
    encoded(
        accept,
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}

pub(super) fn body(asked: &Asked<'_>, kind: &str) -> Result<Value, Problem> {
    match media::decode(&asked.body, asked.media_type()) {
        Ok(decoded) if decoded.value.is_object() => Ok(decoded.value),
        Ok(_) => Err(Problem::bad_request(format!("the object provided is unrecognized (must be of type {kind})"))),
        Err(media::Undecodable::Unknown(problem)) => Err(problem),
        Err(media::Undecodable::Syntax(why)) => {
            Err(Problem::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {why}")))
        }
    }
}

/// Adds a condition, or brings it up to date.
pub(super) fn set_condition(pod: &mut Value, mut condition: Value, now: &str) {
    let status = meta::map(pod).entry("status").or_insert_with(|| json!({}));
    let conditions = meta::map(status).entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else { return };
    let before = conditions.iter_mut().find(|it| it.get("type") == condition.get("type"));
    let same = before.as_ref().filter(|it| it.get("status") == condition.get("status"));
    let since = same.and_then(|it| it.get("lastTransitionTime")).cloned().unwrap_or_else(|| json!(now));
    put(&mut condition, "lastProbeTime", Value::Null);
    put(&mut condition, "lastTransitionTime", since);
    match before {
        Some(before) => *before = condition,
        None => conditions.push(condition),
    }
}

/// Gives a pod its node, once.
async fn bind(call: &mut Call, asked: &Asked<'_>, binding: &Value) -> Result<(), Problem> {
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if node.is_empty() {
        return Err(Problem::unexplained(crate::object::FieldError::required("target.name", "").to_string()));
    }
    let options = WriteOptions::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    assign(call, &node, meta::uid(binding), &options).await
}

/// Gives a pod its node, once. The call is one of its `binding`; a uid that is given must be the pod's.
pub(crate) async fn assign(call: &mut Call, node: &str, uid: &str, options: &WriteOptions) -> Result<(), Problem> {
    let now = call.core.now();
    update::guaranteed(call, options, false, |call, current| {
        let mut pod = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
        if !uid.is_empty() && uid != meta::uid(&pod) {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(&pod));
            return Err(Problem::conflict(call.resource.what(), &call.name, &why));
        }
        if let Some(bound) = pod.pointer("/spec/nodeName").and_then(Value::as_str).filter(|it| !it.is_empty()) {
            let why = format!("pod {} is already assigned to node {bound:?}", call.name);
            let mut what = call.resource.what();
            what.resource = "pods/binding";
            return Err(Problem::conflict(what, &call.name, &why));
        }
        if meta::is_being_deleted(&pod) {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", call.name);
            return Err(Problem::conflict(call.resource.what(), &call.name, &why));
        }
        let spec = meta::map(&mut pod).entry("spec").or_insert_with(|| json!({}));
        meta::map(spec).insert("nodeName".into(), json!(node));
        // It waits for nobody any more.
        if let Some(status) = pod.get_mut("status") {
            meta::map(status).shift_remove("nominatedNodeName");
        }
        set_condition(&mut pod, json!({"type": "PodScheduled", "status": "True"}), &now);
        Ok(pod)
    })
    .await
    .map(|_| ())
}
