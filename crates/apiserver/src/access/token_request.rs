//! `serviceaccounts/token`: `pkg/registry/core/serviceaccount/storage/token.go` of upstream.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::tokens::{AUDIENCE, Private, Ref};
use crate::core::time;
use crate::http::Accept;
use crate::http::options::Write;
use crate::http::reply::Reply;
use crate::http::resource::{Asked, encoded};
use crate::object::FieldError;
use crate::object::apply::{self, Updater};
use crate::object::status::{Problem, What};
use crate::registry::Resource;
use crate::store::Key;
use crate::verbs::{Call, admit, in_order, meta};

const WHAT: What<'static> = What { group: "authentication.k8s.io", resource: "TokenRequest" };
/// Seconds.
const DEFAULT_LIFE: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
/// What pods are given asks for this life, and gets a year: clients that read their token once go on for so long.
const POD_LIFE: i64 = 3607;
const YEAR: i64 = 365 * 24 * 3600;

pub(crate) async fn answer(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let options = Write::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let resource = Resource::token_request();
    let mut request = admit::decode_as(call, &resource, &asked.body, asked.media_type(), options.validation)?;
    let invalid = |name: &str, error: FieldError| Problem::invalid(WHAT, name, &[error]);
    let namespaces = meta::namespace(&request);
    if !namespaces.is_empty() && namespaces != call.namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Problem::bad_request(why));
    }
    if call.core.store.get(&Key::new("", "namespaces", "", call.namespace.as_str())).is_none() {
        return Err(Problem::not_found(What::new("", "namespaces"), &call.namespace));
    }
    let name = meta::name(&request);
    if !name.is_empty() && name != call.name {
        let why = "must match the service account name if specified";
        return Err(invalid(&call.name, FieldError::invalid_str("metadata.name", name, why)));
    }
    let account = object(call, "serviceaccounts", &call.namespace, &call.name)?;
    let (uid, said) = (meta::uid(&account).to_owned(), meta::uid(&request));
    if !said.is_empty() && said != uid {
        let why =
            format!("the UID in the token request ({said}) does not match the UID of the service account ({uid})");
        return Err(Problem::conflict(WHAT, &call.name, &why));
    }
    let spec = meta::map(meta::map(&mut request).entry("spec").or_insert_with(|| json!({})));
    spec.entry("expirationSeconds").or_insert_with(|| json!(DEFAULT_LIFE));
    let updater = Updater {
        manager: &options.manager,
        subresource: "token",
        api_version: &resource.api_version(),
        now: call.core.clock.now(),
    };
    apply::track(None, &mut request, &resource.schema(), &updater);
    let now = call.core.clock.now();
    let mut books = meta::get(&request, "managedFields").cloned();
    // Upstream has a null there before anybody says anything.
    if let Some(fields) = books.as_mut().and_then(|it| it.pointer_mut("/0/fieldsV1/f:spec/f:boundObjectRef")) {
        meta::map(fields).shift_remove(".");
    }
    let metadata = json!({"name": call.name, "namespace": call.namespace, "uid": uid, "creationTimestamp": time(now)});
    meta::map(&mut request).insert("metadata".into(), metadata);
    meta::put(&mut request, "managedFields", books);
    let spec = meta::map(meta::map(&mut request).entry("spec").or_insert_with(|| json!({})));
    let audiences = spec.get("audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(AUDIENCE.to_owned());
    }
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_LIFE);
    let bound = spec.get("boundObjectRef").filter(|it| !it.is_null()).cloned();
    *spec = meta::map(&mut json!({
        "audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": bound.clone().unwrap_or_default(),
    }))
    .clone();
    let lasts = |why: &str| invalid("", FieldError::invalid("spec.expirationSeconds", &json!(seconds), why));
    if seconds < SHORTEST {
        return Err(lasts("may not specify a duration less than 10 minutes"));
    }
    if seconds > LONGEST {
        return Err(lasts("may not specify a duration larger than 2^32 seconds"));
    }
    let account = Ref { name: call.name.clone(), uid };
    let (namespace, mut lasting) = (call.namespace.clone(), seconds);
    let mut private = Private { namespace, node: None, pod: None, secret: None, account, warn_after: None };
    if let Some(bound) = &bound {
        bind(call, bound, &mut private)?;
    }
    if private.pod.is_some() && seconds == POD_LIFE && audiences.iter().all(|it| it == AUDIENCE) {
        private.warn_after = Some(now.as_second().saturating_add(seconds));
        lasting = YEAR;
    }
    let token = call.core.tokens()?.issue(private, &audiences, now, lasting);
    let token = token.ok_or_else(|| Problem::internal("failed to generate token"))?;
    let ends = now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
    let root = meta::map(&mut request);
    root.insert("status".into(), json!({"token": token, "expirationTimestamp": time(ends)}));
    let value = in_order(std::mem::take(root), &resource.api_version(), &resource.kind);
    encoded(accept, 201, &value)
}

fn object(call: &Call, plural: &str, namespace: &str, name: &str) -> Result<Value, Problem> {
    let found = call.core.store.get(&Key::new("", plural, namespace, name));
    found.map(|it| it.value()).ok_or_else(|| Problem::not_found(What::new("", plural), name))
}

/// Notes what the token shall not outlive.
fn bind(call: &Call, bound: &Value, private: &mut Private) -> Result<(), Problem> {
    let text = |key: &str| bound.get(key).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind, name) = (text("apiVersion"), text("kind"), text("name"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let named = |object: &Value| Ref { name: name.to_owned(), uid: meta::uid(object).to_owned() };
    let uid = match (group, kind) {
        ("", "Pod") => {
            let pod = object(call, "pods", &call.namespace, name)?;
            let says = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
            if says("/spec/serviceAccountName") != call.name {
                return Err(Problem::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                )));
            }
            let node = says("/spec/nodeName");
            if !node.is_empty() {
                let found = object(call, "nodes", "", node).unwrap_or_default();
                private.node = Some(Ref { name: node.to_owned(), uid: meta::uid(&found).to_owned() });
            }
            private.pod.insert(named(&pod)).uid.clone()
        }
        ("", "Node") => private.node.insert(named(&object(call, "nodes", "", name)?)).uid.clone(),
        ("", "Secret") => private.secret.insert(named(&object(call, "secrets", &call.namespace, name)?)).uid.clone(),
        _ => {
            let of = format!("{group}/{version}, Kind={kind}");
            return Err(Problem::bad_request(format!("cannot bind token to object of type {of}")));
        }
    };
    let said = text("uid");
    if !said.is_empty() && said != uid {
        let why = format!(
            "the UID in the bound object reference ({said}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Problem::conflict(What::new("", kind), name, &why));
    }
    Ok(())
}
