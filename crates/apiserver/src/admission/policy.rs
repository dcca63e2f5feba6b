//! ValidatingAdmissionPolicies and their bindings: `pkg/admission/plugin/policy/validating` of upstream.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};
use serde_json::{Value, json};

use super::celled::{self, BROKE, Conditions, Environment, Gate, Scene, VARIABLES};
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
/// What an annotation of the audit log holds at most, and those of all parameters together.
const ANNOTATION_MAX: usize = 10 * 1024;
const TOLD_MAX: usize = 256 * 1024;
const VALIDATION_FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";
const GROUP: &str = "admissionregistration.k8s.io";

pub(super) fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    of.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// An `apiVersion` and a kind.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) api_version: String,
    pub(super) kind: String,
}

impl Kind {
    /// `paramKind`.
    pub(super) fn of(spec: &Value) -> Option<Self> {
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
    annotations: Vec<Annotation>,
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

/// Something for the audit log.
struct Annotation {
    key: String,
    source: String,
    of: Result<Composed, String>,
}

pub(super) struct Binding {
    pub(super) rev: u64,
    name: String,
    policy: String,
    matcher: Option<Matcher>,
    /// `paramRef`.
    params: Option<Value>,
    actions: Vec<String>,
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
            let said = said.and_then(|it| all.message(it).ok());
            Validation {
                of: all.compile(&source, &[Type::Bool]).map(|it| Composed::new(it, &variables)),
                source,
                message: text(of, "message").trim().to_owned(),
                message_expression: said.map(|it| Composed::new(it, &variables)),
                reason: text(of, "reason").to_owned(),
            }
        };
        let validations = list(spec, "validations").map(validation).collect();
        let annotation = |of: &Value| {
            let source = text(of, "valueExpression").to_owned();
            let program = all.compile(&source, &[Type::Text, Type::Null]);
            let of_it = program.map(|it| Composed::new(it, &variables));
            Annotation { key: text(of, "key").to_owned(), of: of_it, source }
        };
        let annotations = list(spec, "auditAnnotations").map(annotation).collect();
        Self {
            rev: entry.rev,
            name: entry.key.name.to_string(),
            matcher: Matcher::of_resources(spec.get("matchConstraints").unwrap_or(&Value::Null)),
            conditions: Conditions::new(spec, fails_open, &plain),
            validations,
            annotations,
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
        Self {
            rev: entry.rev,
            name: entry.key.name.to_string(),
            policy: text(spec, "policyName").to_owned(),
            matcher: spec.get("matchResources").filter(|it| it.is_object()).map(Matcher::of_resources),
            params: spec.get("paramRef").filter(|it| it.is_object()).cloned(),
            actions: list(spec, "validationActions").filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    fn does(&self, action: &str) -> bool {
        self.actions.iter().any(|it| it == action)
    }
}

/// What is wrong with an object by one policy.
struct Complaint {
    /// Which of the policy's validations says so.
    at: usize,
    message: String,
    reason: String,
}

impl Complaint {
    fn new(message: impl Into<String>) -> Self {
        Self { at: 0, message: message.into(), reason: String::new() }
    }
}

/// What a policy finds.
#[derive(Default)]
struct Findings {
    complaints: Vec<Complaint>,
    /// For the audit log.
    told: Vec<(String, String)>,
    /// What was to be told and could not be evaluated, which refuses whatever the actions are.
    untold: Vec<Complaint>,
}

/// What a policy has for the audit log, from all its bindings and parameters.
#[derive(Default)]
struct Told {
    all: IndexMap<String, IndexSet<String>>,
    size: usize,
}

impl Told {
    fn add(&mut self, key: String, value: String) {
        let size = self.size + value.len();
        if size <= TOLD_MAX && self.all.entry(key).or_default().insert(value) {
            self.size = size;
        }
    }

    /// The annotations, each with all its values.
    fn of(self, policy: &str) -> impl Iterator<Item = (String, String)> {
        self.all.into_iter().map(move |(key, values)| (format!("{policy}/{key}"), Vec::from_iter(values).join(", ")))
    }
}

/// The annotation of a request that is let through although something is wrong with it.
fn failure(policy: &Policy, binding: &Binding, complaint: &Complaint) -> String {
    json!([{
        "message": complaint.message, "policy": policy.name, "binding": binding.name, "expressionIndex": complaint.at,
        "validationActions": binding.actions,
    }])
    .to_string()
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
    let (mut denied, mut warnings, mut annotations) = (Vec::new(), Vec::new(), Vec::new());
    let asked = Asked::new(call, request.operation, object, old);
    for policy in &held.policies {
        let bindings: Vec<_> = held.bindings.iter().filter(|it| it.policy == policy.name).collect();
        if bindings.is_empty() {
            continue;
        }
        let deny = |binding: Option<&Binding>, it: Complaint| {
            let with = binding.map(|it| format!(" with binding '{}'", it.name)).unwrap_or_default();
            let said = format!("ValidatingAdmissionPolicy '{}'{with} denied request: {}", policy.name, it.message);
            Complaint { message: said, ..it }
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
        let gate = Gate::new(call, object);
        let mut told = Told::default();
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
                let scene = Scene::new(&gate, shown.0.as_ref(), shown.1.as_ref(), &said);
                let findings = aside(|| policy.findings(scene, here.as_ref(), params.as_ref()));
                for complaint in findings.complaints {
                    if binding.does("Audit") {
                        annotations.push((VALIDATION_FAILURE.to_owned(), failure(policy, binding, &complaint)));
                    }
                    if binding.does("Warn") {
                        warnings.push(format!(
                            "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                            policy.name, binding.name, complaint.message
                        ));
                    }
                    if binding.does("Deny") {
                        denied.push(deny(Some(binding), complaint));
                    }
                }
                findings.told.into_iter().for_each(|(key, value)| told.add(key, value));
                denied.extend(findings.untold.into_iter().map(|it| deny(Some(binding), it)));
            }
        }
        annotations.extend(told.of(&policy.name));
    }
    let refused = denied.into_iter().next().map(|it| refusal(call, object, it));
    warnings.into_iter().for_each(|it| call.warn(it));
    annotations.into_iter().for_each(|(key, value)| call.annotations.add(key, value));
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

/// There is nothing left to pay with.
struct Spent;

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

    fn run(&mut self, of: &'a Composed) -> Result<Result<cel::Value<'a>, Failed>, Spent> {
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
    fn evaluate(&mut self, of: &'a Composed) -> Result<Result<cel::Value<'a>, Failed>, Spent> {
        let base = self.base.iter().map(|(name, value)| (*name, Ok(value.clone())));
        let needed = of.needs.iter().filter_map(|at| {
            let name: &'a str = &self.policy.variables.get(*at)?.full;
            Some((name, self.known.get(*at)?.clone()?))
        });
        let (outcome, cost) = of.program.evaluate_in(base.chain(needed).collect(), CALL_LIMIT.min(self.left));
        self.left = self.left.checked_sub(cost).ok_or(Spent)?;
        Ok(outcome)
    }
}

impl Policy {
    /// What this policy finds in what is about to happen.
    fn findings<'a>(&'a self, scene: Scene<'a>, namespace: Option<&'a Value>, params: Option<&'a Value>) -> Findings {
        let only =
            |why: String| Findings { complaints: self.failed(0, why).into_iter().collect(), ..Default::default() };
        // The conditions know no namespace, as upstream.
        let scene = scene.with(None, params);
        match self.conditions.hold(&scene) {
            Ok(true) => {}
            Ok(false) => return Findings::default(),
            Err(why) => return only(why),
        }
        let scene = scene.with(namespace, params);
        let base = match scene.variables() {
            Ok(base) => base,
            Err(why) => return only(why.to_string()),
        };
        // What a request may is asked by what judges it alone.
        let judging = base.iter().cloned().chain(scene.gate().variables()).collect();
        let mut evaluator = Evaluator::new(self, judging, BUDGET);
        let mut wrong = Vec::new();
        for (at, validation) in self.validations.iter().enumerate() {
            match validation.of.as_ref().map(|of| evaluator.run(of)) {
                Ok(Err(Spent)) => return only(BROKE.to_owned()),
                Ok(Ok(Ok(cel::Value::Bool(true)))) => {}
                Ok(Ok(Ok(_))) => wrong.push((at, validation, None)),
                Ok(Ok(Err(why))) => wrong.push((at, validation, Some(in_error(&validation.source, &why)))),
                Err(why) => wrong.push((at, validation, Some(format!("compilation error: {why}")))),
            }
        }
        let mut findings = Findings::default();
        let mut evaluator = Evaluator::new(self, base.clone(), evaluator.left);
        let mut messages = Vec::new();
        for (_, validation, _) in wrong.iter().filter(|it| it.2.is_none()) {
            messages.push(validation.said(&mut evaluator));
        }
        let spent = messages.iter().any(Result::is_err);
        let mut messages = messages.into_iter().flatten();
        for (at, validation, why) in wrong {
            let why = why.or_else(|| spent.then(|| format!("failed messageExpression: {BROKE}")));
            findings.complaints.extend(match why {
                Some(why) => self.failed(at, why),
                None => messages.next().map(|message| Complaint { at, message, reason: validation.reason.clone() }),
            });
        }
        let mut evaluator = Evaluator::new(self, base, BUDGET);
        for annotation in &self.annotations {
            let outcome = match &annotation.of {
                Ok(of) => match evaluator.run(of) {
                    Err(Spent) => return only(BROKE.to_owned()),
                    Ok(outcome) => outcome.map_err(|why| in_error(&annotation.source, &why)),
                },
                Err(why) => Err(format!("compilation error: {why}")),
            };
            match outcome {
                Ok(cel::Value::Text(text)) => {
                    let text = text.as_str().trim();
                    let text = text.get(..text.floor_char_boundary(ANNOTATION_MAX)).unwrap_or_default();
                    if !text.is_empty() {
                        findings.told.push((annotation.key.clone(), text.to_owned()));
                    }
                }
                Ok(_) => {}
                Err(why) => findings.untold.extend(self.failed(0, why)),
            }
        }
        findings
    }

    /// What cannot be evaluated is wrong, unless the policy says otherwise.
    fn failed(&self, at: usize, message: String) -> Option<Complaint> {
        (!self.fails_open).then(|| Complaint { at, message, reason: String::new() })
    }
}

fn in_error(source: &str, why: &Failed) -> String {
    format!("expression '{source}' resulted in error: {why}")
}

impl Validation {
    /// What is told when it is broken.
    fn said<'a>(&'a self, evaluator: &mut Evaluator<'a>) -> Result<String, Spent> {
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
