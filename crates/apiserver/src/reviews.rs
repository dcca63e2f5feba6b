//! Questions about access that are answered and not stored: who am I, may I, may he, whose token is this.

use serde_json::{Value, json};

use crate::access::rules::Rule;
use crate::access::tokens::AUDIENCE;
use crate::access::{self, Attributes, User};
use crate::http::json::put;
use crate::http::media::{Accept, Shape};
use crate::http::options::Write;
use crate::http::present;
use crate::http::reply::Reply;
use crate::http::resource::{Asked, encoded};
use crate::object::FieldError;
use crate::object::apply::{self, Updater};
use crate::object::status::{Problem, What};
use crate::verbs::{Call, admit, in_order, meta};

pub(crate) async fn answer(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let options = Write::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let mut review = admit::decode(call, &asked.body, asked.media_type(), options.validation)?;
    admit::settle_namespace(call, &mut review)?;
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
        "SelfSubjectRulesReview" => rules(call, &user, &mut review)?,
        "TokenReview" => {
            if review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default().is_empty() {
                return Err(Problem::bad_request("token is required for TokenReview in authentication"));
            }
            token(call, &review)?
        }
        _ => return Err(Problem::no_such_path()),
    };
    let Some(root) = review.as_object_mut() else { return Err(Problem::bad_request("an object is needed")) };
    root.insert("status".into(), status);
    let value = in_order(std::mem::take(root), &call.resource.api_version(), &call.resource.kind);
    match accept.shape {
        Shape::Metadata { version } => encoded(accept, 201, &present::metadata(&value, version)),
        _ => encoded(accept, 201, &value),
    }
}

/// Upstream names the group alone.
fn nameless(call: &Call) -> What<'_> {
    What::new(&call.resource.group, "")
}

fn info(user: &User) -> Value {
    let mut it = json!({"username": user.name});
    if !user.uid.is_empty() {
        put(&mut it, "uid", json!(user.uid));
    }
    put(&mut it, "groups", json!(user.groups));
    if !user.extra.is_empty() {
        put(&mut it, "extra", json!(user.extra));
    }
    it
}

/// Whose token it is, or that it is nobody's.
fn token(call: &Call, review: &Value) -> Result<Value, Problem> {
    let text = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
    let asked = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    let mut audiences: Vec<String> = asked.filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(AUDIENCE.to_owned());
    }
    Ok(match call.core.tokens()?.verify(&call.core, text, &audiences) {
        Ok(known) => json!({"authenticated": true, "user": info(&known.user), "audiences": known.audiences}),
        Err(refused) => json!({"user": {}, "error": refused.to_string()}),
    })
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
    Ok(User { name: text("user"), uid: text("uid"), groups, ..User::default() })
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
    let decision = access::decide(&call.core, user, &wanted);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        put(&mut status, "reason", json!(decision.reason));
    }
    Ok(status)
}

/// Upstream tells neither what was asked for nor who wrote it.
fn rules(call: &Call, user: &User, review: &mut Value) -> Result<Value, Problem> {
    let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(Problem::bad_request("no namespace on request"));
    }
    put(review, "spec", json!({}));
    meta::remove(review, "managedFields");
    let (rules, missing) = access::rules_for(&call.core, user, &namespace);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            let Rule { verbs, api_groups, resources: of, resource_names: names, .. } = &rule;
            let mut told = json!({"verbs": verbs, "apiGroups": api_groups, "resources": of});
            if !names.is_empty() {
                put(&mut told, "resourceNames", json!(names));
            }
            resources.push(told);
        }
        if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    if let Some(missing) = missing {
        put(&mut status, "evaluationError", json!(missing));
    }
    Ok(status)
}
