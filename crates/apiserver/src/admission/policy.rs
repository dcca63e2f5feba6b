//! ValidatingAdmissionPolicies and their bindings: `pkg/admission/plugin/policy/validating` of upstream.

use std::collections::BTreeSet;

use serde_json::Value;

use super::celled::{self, BROKE, Conditions, Environment, Scene, VARIABLES};
use super::forbidden;
use super::held::Held;
use super::review::{Request, namespace};
use super::rules::{Asked, Matcher, is_policy};
use super::webhooks::converted;
use crate::access::{self, Attributes, User};
use crate::cel::{self, CALL_LIMIT, Failed, Program, Type};
use crate::kinds::convert;
use crate::object::FieldError;
use crate::object::schema::aside;
use crate::object::selector::Labels;
use crate::object::status::{Problem, StatusCause};
use crate::registry::Resource;
use crate::store::{Entry, Key};
use crate::verbs::Call;
use crate::verbs::scale::selector_text;

/// What the validations of a policy may cost together.
const BUDGET: u64 = 10_000_000;
/// A message that an expression makes is at most so long.
const MESSAGE_MAX: usize = 5 * 1024;
const GROUP: &str = "admissionregistration.k8s.io";

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    of.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// An `apiVersion` and a kind.
#[derive(Clone, PartialEq, Eq)]
struct Kind {
    api_version: String,
    kind: String,
}

impl Kind {
    fn of(spec: &Value) -> Option<Self> {
        let of = spec.get("paramKind").filter(|it| it.is_object())?;
        Some(Self { api_version: text(of, "apiVersion").to_owned(), kind: text(of, "kind").to_owned() })
    }
}

pub(super) struct Policy {
    pub(super) rev: u64,
    name: String,
    fails_open: bool,
    matcher: Matcher,
    params: Option<Kind>,
    conditions: Conditions,
    variables: Vec<Variable>,
    validations: Vec<Validation>,
}

struct Variable {
    name: String,
    /// As expressions mention it.
    full: String,
    of: Result<Composed, String>,
}

struct Validation {
    source: String,
    of: Result<Composed, String>,
    message: String,
    message_expression: Option<Composed>,
    reason: String,
}

pub(super) struct Binding {
    pub(super) rev: u64,
    name: String,
    policy: String,
    matcher: Option<Matcher>,
    /// `paramRef`.
    params: Option<Value>,
    denies: bool,
    warns: bool,
}

impl Policy {
    pub(super) fn new(entry: &Entry) -> Self {
        let object = entry.value();
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let params = Kind::of(spec);
        let fails_open = text(spec, "failurePolicy") == "Ignore";
        let plain = Environment::new(params.is_some(), false);
        let mut all = Environment::new(params.is_some(), list(spec, "variables").next().is_some());
        let mut variables: Vec<Variable> = Vec::new();
        for of in list(spec, "variables") {
            let name = text(of, "name").to_owned();
            let program = all.declare(&name, text(of, "expression"));
            let of = program.map(|it| Composed::new(it, &variables));
            variables.push(Variable { full: format!("{VARIABLES}.{name}"), name, of });
        }
        let validation = |of: &Value| {
            let source = text(of, "expression").to_owned();
            let said = Some(text(of, "messageExpression")).filter(|it| !it.is_empty());
            let said = said.and_then(|it| all.compile(it, &[Type::Text]).ok());
            Validation {
                of: all.compile(&source, &[Type::Bool]).map(|it| Composed::new(it, &variables)),
                source,
                message: text(of, "message").trim().to_owned(),
                message_expression: said.map(|it| Composed::new(it, &variables)),
                reason: text(of, "reason").to_owned(),
            }
        };
        let validations = list(spec, "validations").map(validation).collect();
        Self {
            rev: entry.rev,
            name: entry.key.name.to_string(),
            matcher: Matcher::of_resources(spec.get("matchConstraints").unwrap_or(&Value::Null)),
            conditions: Conditions::new(spec, fails_open, &plain),
            validations,
            fails_open,
            params,
            variables,
        }
    }
}

impl Binding {
    pub(super) fn new(entry: &Entry) -> Self {
        let object = entry.value();
        let spec = object.get("spec").unwrap_or(&Value::Null);
        let does = |action: &str| list(spec, "validationActions").any(|it| it == action);
        Self {
            rev: entry.rev,
            name: entry.key.name.to_string(),
            policy: text(spec, "policyName").to_owned(),
            matcher: spec.get("matchResources").filter(|it| it.is_object()).map(Matcher::of_resources),
            params: spec.get("paramRef").filter(|it| it.is_object()).cloned(),
            denies: does("Deny"),
            warns: does("Warn"),
        }
    }
}

/// What is wrong with an object by one policy.
struct Complaint {
    message: String,
    reason: String,
}

impl Complaint {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), reason: String::new() }
    }
}

/// Holds what is about to happen to all policies that are bound.
pub(super) fn judge(
    call: &mut Call,
    held: &Held,
    request: &Request,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Problem> {
    if is_policy(&call.resource) {
        return Ok(());
    }
    let (mut denied, mut warnings) = (Vec::new(), Vec::new());
    let asked = Asked::new(call, request.operation, object, old);
    for policy in &held.policies {
        let bindings: Vec<_> = held.bindings.iter().filter(|it| it.policy == policy.name).collect();
        if bindings.is_empty() {
            continue;
        }
        let deny = |binding: Option<&Binding>, it: Complaint| {
            let with = binding.map(|it| format!(" with binding '{}'", it.name)).unwrap_or_default();
            let said = format!("ValidatingAdmissionPolicy '{}'{with} denied request: {}", policy.name, it.message);
            Complaint { message: said, reason: it.reason }
        };
        let misconfigured = |binding: Option<&Binding>, why: &str| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            (!policy.fails_open).then(|| deny(binding, Complaint::new(format!("failed to configure {what}: {why}"))))
        };
        let resource = match policy.matcher.find(&asked) {
            Ok(Some(resource)) => resource,
            Ok(None) => continue,
            Err(problem) => {
                denied.extend(misconfigured(None, &problem.message));
                continue;
            }
        };
        let kind = match &policy.params {
            None => None,
            Some(kind) => match call.core.registry.now().of_kind(&kind.api_version, &kind.kind) {
                Some(found) => Some(found.clone()),
                None => {
                    let why = format!(
                        "failed to find resource referenced by paramKind: '{}, Kind={}'",
                        kind.api_version, kind.kind
                    );
                    denied.extend(misconfigured(None, &why));
                    continue;
                }
            },
        };
        let other = |it: &Value| converted(&call.resource, &resource, it);
        let shown = (object.map(other), old.map(other));
        let described = request.described(call, &resource, shown.0.as_ref());
        let said = celled::request(described, request.dry_run, request.options());
        let here = own_namespace(call);
        for binding in bindings {
            match binding.matcher.as_ref().map(|it| it.find(&asked)) {
                None | Some(Ok(Some(_))) => {}
                Some(Ok(None)) => continue,
                Some(Err(problem)) => {
                    denied.extend(misconfigured(Some(binding), &problem.message));
                    continue;
                }
            }
            let params = match params(&asked, kind.as_deref(), binding) {
                Ok(params) => params,
                Err(why) => {
                    denied.extend(misconfigured(Some(binding), &why));
                    continue;
                }
            };
            for params in &params {
                let scene = Scene::new(shown.0.as_ref(), shown.1.as_ref(), &said).with(here.as_ref(), params.as_ref());
                for complaint in aside(|| policy.complaints(&scene)) {
                    if binding.warns {
                        warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            policy.name, binding.name, complaint.message
                        ));
                    }
                    if binding.denies {
                        denied.push(deny(Some(binding), complaint));
                    }
                }
            }
        }
    }
    let refused = denied.into_iter().next().map(|it| refusal(call, object, it));
    warnings.into_iter().for_each(|it| call.warn(it));
    refused.map_or(Ok(()), Err)
}

fn refusal(call: &Call, object: Option<&Value>, complaint: Complaint) -> Problem {
    let mut problem = forbidden(call, object, &complaint.message);
    let reason = if complaint.reason.is_empty() { "Invalid".to_owned() } else { complaint.reason };
    problem.code = match reason.as_str() {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    problem.reason = reason.into();
    let cause = StatusCause { reason: String::new(), message: complaint.message, field: String::new() };
    problem.details.get_or_insert_default().causes.push(cause);
    problem
}

/// The namespace in which something happens; none of what is in none.
fn own_namespace(call: &Call) -> Option<Value> {
    if !call.resource.namespaced {
        return None;
    }
    call.core.store.get(&Key::new("", "namespaces", "", call.namespace.as_str())).map(|it| it.value())
}

/// The parameters with which a binding has its policy evaluated, once for each; none where there are none.
fn params(asked: &Asked<'_>, kind: Option<&Resource>, binding: &Binding) -> Result<Vec<Option<Value>>, String> {
    let (Some(kind), Some(wanted)) = (kind, &binding.params) else { return Ok(vec![None]) };
    let said = text(wanted, "namespace");
    let here = match (kind.namespaced, said, namespace(asked.call, asked.name)) {
        (false, "", _) => "",
        (false, _, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (true, "", "") => {
            let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, "", here) | (true, here, _) => here,
    };
    let store = &asked.call.core.store;
    let found = match text(wanted, "name") {
        "" => {
            let selector = Labels::parse(&selector_text(wanted.get("selector").unwrap_or(&Value::Null)))?;
            let scope = kind.namespaced.then_some(here);
            let all = store.list(&kind.stored_group, &kind.plural, scope, None, None).entries;
            all.into_iter().filter(|it| selector.matches(|label| it.labels().get(label).map(String::as_str))).collect()
        }
        name => store.get(&kind.key(here, name)).into_iter().collect::<Vec<_>>(),
    };
    if found.is_empty() && text(wanted, "parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.iter().map(|it| Some(convert::show(kind, it))).collect())
}

/// An expression, and the variables that it mentions, by their places.
struct Composed {
    program: Program,
    needs: Vec<usize>,
}

impl Composed {
    /// `before`: the variables that it may mention; of a name that is given twice, the last.
    fn new(program: Program, before: &[Variable]) -> Self {
        let mut needs: Vec<usize> = Vec::new();
        for (at, variable) in before.iter().enumerate().rev() {
            let again = needs.iter().any(|it| before.get(*it).is_some_and(|it| it.name == variable.name));
            if program.mentions(&variable.full) && !again {
                needs.push(at);
            }
        }
        Self { program, needs }
    }
}

/// Evaluates expressions that share their variables, each of which is evaluated once, when it is first mentioned.
struct Evaluator<'a> {
    policy: &'a Policy,
    base: Vec<(&'static str, cel::Value<'a>)>,
    /// In the order of the policy's variables, as far as they have been needed.
    known: Vec<Option<Result<cel::Value<'a>, Failed>>>,
    left: u64,
}

impl<'a> Evaluator<'a> {
    fn new(policy: &'a Policy, base: Vec<(&'static str, cel::Value<'a>)>, left: u64) -> Self {
        Self { policy, base, known: vec![None; policy.variables.len()], left }
    }

    /// `Err`: there is nothing left to pay with.
    fn run(&mut self, of: &'a Composed) -> Result<Result<cel::Value<'a>, Failed>, ()> {
        let (mut needed, mut open) = (BTreeSet::new(), of.needs.clone());
        while let Some(at) = open.pop() {
            if self.known.get(at).is_some_and(Option::is_none)
                && needed.insert(at)
                && let Some(Ok(of)) = self.policy.variables.get(at).map(|it| &it.of)
            {
                open.extend(&of.needs);
            }
        }
        // A variable mentions only those before it.
        for at in needed {
            let Some(variable) = self.policy.variables.get(at) else { continue };
            let name = &variable.name;
            let outcome = match &variable.of {
                Err(why) => Err(Failed::Error(format!("composited variable {name:?} fails to compile: {why}"))),
                Ok(of) => self
                    .evaluate(of)?
                    .map_err(|why| Failed::Error(format!("composited variable {name:?} fails to evaluate: {why}"))),
            };
            if let Some(place) = self.known.get_mut(at) {
                *place = Some(outcome);
            }
        }
        self.evaluate(of)
    }

    /// With the variables that are known.
    fn evaluate(&mut self, of: &'a Composed) -> Result<Result<cel::Value<'a>, Failed>, ()> {
        let base = self.base.iter().map(|(name, value)| (*name, Ok(value.clone())));
        let needed = of.needs.iter().filter_map(|at| {
            let name: &'a str = &self.policy.variables.get(*at)?.full;
            Some((name, self.known.get(*at)?.clone()?))
        });
        let (outcome, cost) = of.program.evaluate_in(base.chain(needed).collect(), CALL_LIMIT.min(self.left));
        self.left = self.left.checked_sub(cost).ok_or(())?;
        Ok(outcome)
    }
}

impl Policy {
    /// What is wrong by this policy.
    fn complaints(&self, scene: &Scene<'_>) -> Vec<Complaint> {
        let failed = |why: String| if self.fails_open { None } else { Some(Complaint::new(why)) };
        match self.conditions.hold(scene) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(why) => return failed(why).into_iter().collect(),
        }
        let base = match scene.variables() {
            Ok(base) => base,
            Err(why) => return failed(why.to_string()).into_iter().collect(),
        };
        let mut evaluator = Evaluator::new(self, base.clone(), BUDGET);
        let mut broken = Vec::new();
        let mut complaints = Vec::new();
        for validation in &self.validations {
            let of = match &validation.of {
                Ok(of) => of,
                Err(why) => {
                    complaints.extend(failed(format!("compilation error: {why}")));
                    continue;
                }
            };
            match evaluator.run(of) {
                Err(()) => return failed(BROKE.to_owned()).into_iter().collect(),
                Ok(Ok(cel::Value::Bool(true))) => {}
                Ok(Ok(_)) => broken.push((complaints.len(), validation)),
                Ok(Err(why)) => {
                    let said = format!("expression '{}' resulted in error: {why}", validation.source);
                    complaints.extend(failed(said));
                }
            }
        }
        // In the order of the validations: what is broken is put between what failed.
        let mut messages = Evaluator::new(self, base, evaluator.left);
        for (before, (at, validation)) in broken.into_iter().enumerate() {
            match validation.said(&mut messages) {
                Ok(message) => complaints.insert(at + before, Complaint { message, reason: validation.reason.clone() }),
                Err(()) => {
                    let why = format!("failed messageExpression: {BROKE}");
                    failed(why).into_iter().for_each(|it| complaints.insert(at + before, it));
                    break;
                }
            }
        }
        complaints
    }
}

impl Validation {
    /// What is told when it is broken.
    fn said<'a>(&'a self, evaluator: &mut Evaluator<'a>) -> Result<String, ()> {
        if let Some(of) = &self.message_expression
            && let Ok(cel::Value::Text(text)) = evaluator.run(of)?
        {
            let text = text.as_str().trim();
            if !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n') {
                return Ok(text.to_owned());
            }
        }
        Ok(if self.message.is_empty() {
            format!("failed expression: {}", self.source.trim())
        } else {
            self.message.clone()
        })
    }
}

/// Who makes a policy or a binding that refers to parameters must be able to read them.
pub(crate) fn unreadable(call: &Call, object: &Value, old: Option<&Value>) -> Option<FieldError> {
    let resource = &call.resource;
    if resource.is_custom() || resource.group != GROUP || !call.subresource.is_empty() {
        return None;
    }
    let field = match resource.plural.as_str() {
        "validatingadmissionpolicies" => "paramKind",
        "validatingadmissionpolicybindings" => "paramRef",
        _ => return None,
    };
    let of = |object: &Value| object.pointer(&format!("/spec/{field}")).filter(|it| it.is_object()).cloned();
    let referred = of(object)?;
    let moved = |field: &str| old.is_none_or(|old| old.pointer(field) != object.pointer(field));
    if !moved(&format!("/spec/{field}")) && !moved("/spec/policyName") {
        return None;
    }
    let user = shown(&call.user);
    let refuse = |why: String| Some(FieldError::forbidden(format!("spec.{field}"), &why));
    let of_policy = |name: &str| {
        let policy = call.core.store.get(&Key::new(GROUP, "validatingadmissionpolicies", "", name))?;
        Kind::of(policy.value().get("spec")?)
    };
    let name = object.pointer("/spec/policyName").and_then(Value::as_str).unwrap_or_default();
    let known = if field == "paramKind" { Kind::of(object.get("spec")?) } else { of_policy(name) };
    let found = known.as_ref().and_then(|it| call.core.registry.now().of_kind(&it.api_version, &it.kind).cloned());
    // Where nobody knows what is referred to, everything must be readable.
    let group = known.as_ref().map_or("*", |it| it.api_version.split_once('/').map_or("", |it| it.0)).to_owned();
    let plural = found.as_ref().map_or("*", |it| it.plural.as_str()).to_owned();
    let (verb, namespace, wanted) = match field {
        "paramKind" => ("get", "*", "*"),
        _ => match (text(&referred, "namespace"), text(&referred, "name")) {
            ("", "") => ("list", "*", ""),
            (namespace, "") => ("list", namespace, ""),
            ("", name) => ("get", "*", name),
            (namespace, name) => ("get", namespace, name),
        },
    };
    let wanted = Attributes::Resource {
        verb: verb.to_owned(),
        group,
        namespace: namespace.to_owned(),
        resource: plural,
        subresource: String::new(),
        name: wanted.to_owned(),
    };
    if access::decide(&call.core, &call.user, &wanted).allowed {
        return None;
    }
    refuse(match (field, known) {
        ("paramKind", Some(it)) => format!(
            "user {user} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
            it.kind, it.api_version
        ),
        (_, Some(_)) => format!("user {user} does not have {verb:?} permission on the object referenced by paramRef"),
        (_, None) => format!(
            "unable to get policy {name} to determine minimum required permissions and user {user} does not have {verb:?} permission for all groups, versions and resources"
        ),
    })
}

/// A user as Go prints one.
fn shown(user: &User) -> String {
    let extra: Vec<String> = user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" "))).collect();
    format!("&{{{} {} [{}] map[{}]}}", user.name, user.uid, user.groups.join(" "), extra.join(" "))
}
