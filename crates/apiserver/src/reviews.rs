//! Questions about access that are answered and not stored: who am I, may I, may he, whose token is this.

use serde_json::{Value, json};

use crate::access::{self, Attributes, User};
use crate::http::json::put;
use crate::http::media::{self, Accept};
use crate::http::options::Write;
use crate::http::reply::Reply;
use crate::http::resource::{Asked, encoded};
use crate::object::FieldError;
use crate::object::apply::{self, Updater};
use crate::object::status::{Problem, What};
use crate::verbs::{Call, admit, in_order, meta};

pub(crate) async fn answer(call: &mut Call, asked: &Asked<'_>) -> Result<Reply, Problem> {
    let options = Write::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let mut review = admit::decode(call, &asked.body, asked.media_type(), options.validation)?;
    let user = asked.user.clone();
    if call.resource.kind == "SelfSubjectReview" {
        meta::set(&mut review, "creationTimestamp", call.core.now());
    } else {
        let updater = Updater {
            manager: &options.manager,
            subresource: "",
            api_version: &call.served_api_version(),
            now: call.core.clock.now(),
        };
        apply::track(None, &mut review, &call.resource.schema(), &updater);
    }
    let status = match call.resource.kind.as_str() {
        "SelfSubjectReview" => json!({"userInfo": info(&user)}),
        "SelfSubjectAccessReview" => verdict(call, &user, &review)?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let who = subject(call, &review)?;
            verdict(call, &who, &review)?
        }
        "SelfSubjectRulesReview" => rules(&user, &review)?,
        "TokenReview" => {
            if review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default().is_empty() {
                return Err(Problem::bad_request("token is required for TokenReview in authentication"));
            }
            // No token has been handed out that could be told.
            json!({"user": {}, "error": "invalid bearer token"})
        }
        _ => return Err(Problem::no_such_path()),
    };
    let Some(root) = review.as_object_mut() else { return Err(Problem::bad_request("an object is needed")) };
    root.insert("status".into(), status);
    let value = in_order(std::mem::take(root), &call.resource.api_version(), &call.resource.kind);
    let accept = Accept::of(asked.headers)?;
    encoded(&Accept { shape: media::Shape::Plain, yaml: accept.yaml }, 201, &value)
}

/// Upstream names the group alone.
fn nameless(call: &Call) -> What<'_> {
    What::new(&call.resource.group, "")
}

fn info(user: &User) -> Value {
    let mut it = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        put(&mut it, "uid", json!(user.uid));
    }
    it
}

/// Whom a review is about.
fn subject(call: &Call, review: &Value) -> Result<User, Problem> {
    let spec = review.get("spec").unwrap_or(&Value::Null);
    let text = |key: &str| spec.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let groups: Vec<String> = spec
        .get("groups")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if text("user").is_empty() && groups.is_empty() {
        let error = FieldError::invalid_str("spec.user", "", "at least one of user or group must be specified");
        return Err(Problem::invalid(nameless(call), "", &[error]));
    }
    if call.resource.kind == "LocalSubjectAccessReview"
        && spec.pointer("/resourceAttributes/namespace").and_then(Value::as_str).unwrap_or_default() != call.namespace
    {
        let why = "must match metadata.namespace";
        let at = spec.pointer("/resourceAttributes/namespace").cloned().unwrap_or_else(|| json!(""));
        let error = FieldError::invalid("spec.resourceAttributes.namespace", &at, why);
        return Err(Problem::invalid(nameless(call), "", &[error]));
    }
    Ok(User { name: text("user"), uid: text("uid"), groups })
}

fn verdict(call: &Call, user: &User, review: &Value) -> Result<Value, Problem> {
    let spec = review.get("spec").unwrap_or(&Value::Null);
    let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let wanted = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(of), None) => Attributes::Resource {
            verb: text(of, "verb"),
            group: text(of, "group"),
            namespace: text(of, "namespace"),
            resource: text(of, "resource"),
            subresource: text(of, "subresource"),
            name: text(of, "name"),
        },
        (None, Some(of)) => Attributes::Path { verb: text(of, "verb"), path: text(of, "path") },
        (Some(_), Some(_)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            let error = FieldError::invalid("spec.nonResourceAttributes", &json!({}), why);
            return Err(Problem::invalid(nameless(call), "", &[error]));
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            let error = FieldError::invalid("spec.resourceAttributes", &Value::Null, why);
            return Err(Problem::invalid(nameless(call), "", &[error]));
        }
    };
    Ok(json!({"allowed": access::allowed(user, &wanted)}))
}

fn rules(user: &User, review: &Value) -> Result<Value, Problem> {
    if review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(Problem::bad_request("no namespace on request"));
    }
    let everything = access::allowed(user, &Attributes::Path { verb: "*".into(), path: "*".into() });
    let (mut resources, mut paths) = (
        vec![
            json!({"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]}),
        ],
        vec![json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version"]})],
    );
    if everything {
        resources.insert(0, json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.insert(0, json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
