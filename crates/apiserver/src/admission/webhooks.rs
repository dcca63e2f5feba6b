//! Webhooks: those that change an object are asked one after the other, those that judge it at the same time
//! (`pkg/admission/plugin/webhook/{mutating,validating}` of upstream).

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;
use serde_json::{Value, json};

use super::celled::{self, Gate, Scene};
use super::held::Configuration;
use super::hook::Hook;
use super::review::{self, Request, Response};
use super::rules::{Asked, is_exempt};
use crate::core::Core;
use crate::http::FieldValidation;
use crate::http::media::Duplicates;
use crate::kinds::convert;
use crate::object::patch;
use crate::object::status::{Details, Problem, StatusCause};
use crate::registry::Resource;
use crate::verbs::{Call, admit};

/// What the audit log is told of them: whether one changed something, and who was passed over.
const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
const VALIDATION: &str = "validating.webhook.admission.k8s.io/";
const FAILED_OPEN: &str = "failed-open.";

/// What is remembered from one round of changes to the next.
#[derive(Default)]
pub(super) struct Round {
    /// Only those are asked that want to see what others changed after them.
    second: bool,
    /// Who was asked and wants to be asked again if something changes.
    asked: BTreeSet<String>,
    /// Of them, after whom something has changed.
    again: BTreeSet<String>,
    /// The object as the last round left it.
    left: Value,
}

impl Round {
    fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }
}

/// Why a webhook ends a request.
enum Failure {
    /// It cannot be asked or understood; whether that matters is the webhook's to say.
    Calling(String),
    /// It has refused, or nobody can go on.
    Refused(Problem),
}

impl Failure {
    /// The refusal that it means, if it means one.
    fn refusal(self, hook: &Hook, passed_over: impl FnOnce()) -> Option<Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Calling(why) => {
                let why = format!("failed calling webhook {:?}: {why}", hook.name);
                if hook.fails_open {
                    tracing::warn!(hook = hook.name, why, "a webhook is passed over");
                    passed_over();
                    return None;
                }
                Some(Problem::internal(&why))
            }
        }
    }
}

/// An object as one webhook is shown it.
struct Shown {
    resource: Arc<Resource>,
    object: Option<Value>,
    old: Option<Value>,
}

/// The object in another version of its resource.
pub(super) fn converted(from: &Resource, to: &Resource, object: &Value) -> Value {
    if from.api_version() == to.api_version() {
        return object.clone();
    }
    convert::serve(to, convert::store(from, object.clone()))
}

/// The object as the webhook wants it; none when it is not to be asked.
fn shown(
    call: &Call,
    hook: &Hook,
    request: &Request,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Option<Shown>, Problem> {
    let asked = Asked::new(call, request.operation, object, old);
    let name = asked.name;
    let Some(resource) = hook.matcher.find(&asked)? else { return Ok(None) };
    let other = |it: &Value| converted(&call.resource, &resource, it);
    let (object, old) = (object.map(other), old.map(other));
    if !hook.conditions.is_empty() {
        let described = request.described(call, &resource, object.as_ref());
        let said = celled::request(described, request.dry_run, request.options());
        let gate = Gate::new(call, object.as_ref());
        let scene = Scene::new(&gate, object.as_ref(), old.as_ref(), &said);
        match hook.conditions.hold(&scene) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(why) => return Err(Problem::forbidden(call.resource.what(), name, &why)),
        }
    }
    Ok(Some(Shown { resource, object, old }))
}

async fn ask(
    core: &Core,
    hook: &Hook,
    request: &Request,
    question: Question,
    mutates: bool,
) -> Result<Response, Failure> {
    if request.dry_run && !hook.may_run_dry {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(Problem::bad_request(why)));
    }
    if !hook.speaks {
        let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1)";
        return Err(Failure::Calling(why.to_owned()));
    }
    let answer = hook.target.post(core, &question.review, hook.patience).await.map_err(Failure::Calling)?;
    review::response(&answer, &question.uid, mutates).map_err(Failure::Calling)
}

/// Passes on what a webhook has to tell besides whether it agrees.
fn heard(call: &mut Call, hook: &Hook, mut response: Response) -> Result<Response, Failure> {
    for (key, value) in std::mem::take(&mut response.annotations) {
        call.annotations.add(format!("{}/{key}", hook.name), value);
    }
    response.warnings.drain(..).for_each(|it| call.warn(it));
    if response.allowed { Ok(response) } else { Err(Failure::Refused(refusal(hook, response))) }
}

struct Question {
    uid: String,
    review: Value,
}

fn question(call: &Call, request: &Request, shown: &Shown) -> Question {
    let uid = uuid::Uuid::new_v4().to_string();
    let described = request.described(call, &shown.resource, shown.object.as_ref());
    let review = request.review(&uid, described, shown.object.as_ref(), shown.old.as_ref());
    Question { uid, review }
}

/// Has the webhooks change the object. Whether one did: then those that want to are asked again, with the same `round`.
pub(super) async fn mutate(
    call: &mut Call,
    hooks: &[Arc<Configuration>],
    request: &Request,
    mut object: Option<&mut Value>,
    old: Option<&Value>,
    round: &mut Round,
) -> Result<bool, Problem> {
    if is_exempt(&call.resource) {
        return Ok(false);
    }
    if round.second && object.as_deref().is_some_and(|it| *it != round.left) {
        round.changed();
    }
    let mut changed = false;
    for (at, hook) in hooks.iter().flat_map(|it| &it.hooks).enumerate() {
        let Some(shown) = shown(call, hook, request, object.as_deref(), old)? else { continue };
        if round.second && !round.again.contains(&hook.id) {
            continue;
        }
        let asked = ask(&call.core, hook, request, question(call, request, &shown), true).await;
        let done = asked.and_then(|it| heard(call, hook, it)).and_then(|it| changes(call, hook, &shown, &it));
        let key = format!("{MUTATION}round_{}_index_{at}", u8::from(round.second));
        let mutated = matches!(done, Ok(Some(_)));
        let said = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": mutated});
        call.annotations.add(key.clone(), said.to_string());
        match done {
            Ok(Some(next)) => {
                if let Some(object) = object.as_deref_mut() {
                    *object = converted(&shown.resource, &call.resource, &next);
                }
                changed = true;
                round.changed();
            }
            Ok(None) => {}
            Err(failure) => {
                let passed_over = || call.annotations.add(format!("{FAILED_OPEN}{key}"), hook.name.clone());
                if let Some(problem) = failure.refusal(hook, passed_over) {
                    return Err(problem);
                }
            }
        }
        if hook.again {
            round.asked.insert(hook.id.clone());
        }
    }
    round.second = true;
    round.left = object.as_deref().cloned().unwrap_or_default();
    Ok(changed)
}

/// What a patch makes of the object; none when it is nothing else.
fn changes(call: &mut Call, hook: &Hook, shown: &Shown, response: &Response) -> Result<Option<Value>, Failure> {
    if response.patch.is_empty() {
        return Ok(None);
    }
    let operations: Value = serde_json::from_slice(&response.patch)
        .map_err(|why| Failure::Calling(format!("received undecodable patch in webhook response: {why}")))?;
    if operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    let Some(object) = &shown.object else {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Failure::Refused(Problem::internal(&why)));
    };
    let kind = response.patch_type.as_deref().unwrap_or_default();
    if kind != "JSONPatch" {
        return Err(Failure::Calling(format!("unsupported patch type {kind:?}")));
    }
    let broken = |why: String| Problem::internal(&why);
    let applied = patch::json(object, &operations);
    let mut next = applied.map_err(|it| {
        Failure::Refused(broken(format!("the patch of webhook {:?} does not apply: {}", hook.name, it.message)))
    })?;
    admit::fit(&shown.resource, &mut next, Duplicates::NONE, FieldValidation::Ignore, call, broken)
        .map_err(Failure::Refused)?;
    Ok((next != *object).then_some(next))
}

/// Has the webhooks judge the object.
pub(super) async fn judge(
    call: &mut Call,
    hooks: &[Arc<Configuration>],
    request: &Request,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Problem> {
    if is_exempt(&call.resource) {
        return Ok(());
    }
    let mut asked = Vec::new();
    for hook in hooks.iter().flat_map(|it| &it.hooks) {
        if let Some(shown) = shown(call, hook, request, object, old)? {
            asked.push((hook, question(call, request, &shown)));
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    let core = call.core.clone();
    let answers =
        join_all(asked.into_iter().map(async |(hook, it)| (hook, ask(&core, hook, request, it, false).await)));
    let mut first = None;
    for (at, (hook, answer)) in answers.await.into_iter().enumerate() {
        if let Err(failure) = answer.and_then(|it| heard(call, hook, it)) {
            let key = format!("{FAILED_OPEN}{VALIDATION}round_0_index_{at}");
            let refused = failure.refusal(hook, || call.annotations.add(key, hook.name.clone()));
            first = first.or(refused);
        }
    }
    first.map_or(Ok(()), Err)
}

/// The answer to a request that a webhook has refused: with its own code, reason and words.
fn refusal(hook: &Hook, response: Response) -> Problem {
    let status = response.status;
    let text = |of: &Value, field: &str| of.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = status.get("code").and_then(Value::as_u64).and_then(|it| it.try_into().ok()).unwrap_or_default();
    let (message, reason) = (text(&status, "message"), text(&status, "reason"));
    let denied = format!("admission webhook {:?} denied the request", hook.name);
    let message = match (message.as_str(), reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let details = status.get("details").filter(|it| it.is_object()).map(|it| {
        let causes = it.get("causes").and_then(Value::as_array).into_iter().flatten();
        let seconds = it.get("retryAfterSeconds").and_then(Value::as_u64).unwrap_or_default();
        Box::new(Details {
            name: text(it, "name"),
            group: text(it, "group"),
            kind: text(it, "kind"),
            uid: text(it, "uid"),
            causes: causes
                .map(|it| StatusCause {
                    reason: text(it, "reason"),
                    message: text(it, "message"),
                    field: text(it, "field"),
                })
                .collect(),
            retry_after_seconds: seconds.try_into().unwrap_or(u32::MAX),
        })
    });
    Problem { code: if code < 400 { 400 } else { code }, reason: reason.into(), message, details }
}
