//! `x-kubernetes-validations`: rules in CEL, compiled once for a schema and evaluated within Kubernetes' budget, in its
//! words.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::before::Before;
use super::decl::decl;
use super::{Additional, Link, Node, Schema};
use crate::cel::{self, CALL_LIMIT, Decl, Failed, Program, Refused, Type};
use crate::object::field::{self, ERRORS_MAX, FieldError};

/// What all rules together may cost for one object.
const BUDGET: u64 = 10_000_000;
/// What is evaluated before anybody else is let on this thread: some milliseconds.
const INLINE: u64 = 100_000;
/// A message that an expression makes is at most so long.
const MESSAGE_MAX: usize = 5 * 1024;

/// The rules of one place.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(super) rules: Vec<Rule>,
    compiled: OnceLock<Compiled>,
}

/// A rule as it was written.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) rule: String,
    pub(super) message: String,
    pub(super) message_expression: String,
    reason: Option<String>,
    field_path: String,
    optional_old_self: bool,
}

#[derive(Debug)]
pub(super) struct Compiled {
    /// `None`: rules cannot see values of this schema.
    pub(super) decl: Option<Arc<Decl>>,
    /// In the order of the rules; `None` of an empty one.
    pub(super) programs: Vec<Option<Result<Compilation, String>>>,
}

#[derive(Debug)]
pub(super) struct Compilation {
    pub(super) program: Program,
    pub(super) uses_old_self: bool,
    /// What makes the message, or why nothing does.
    pub(super) message: Option<Result<Program, String>>,
    /// From the rule's place to what it speaks of, as it is shown.
    path: Option<String>,
}

impl Rules {
    pub(super) fn read(value: Option<&Value>) -> Option<Box<Self>> {
        let rules: Vec<Rule> = value?.as_array()?.iter().map(rule).collect();
        (!rules.is_empty()).then(|| Box::new(Self { rules, compiled: OnceLock::new() }))
    }

    /// The rules of `node`, whose these are. `root`: it is a resource.
    pub(super) fn compiled(&self, node: &Node, root: bool) -> &Compiled {
        self.compiled.get_or_init(|| {
            let Some(decl) = decl(node, root, "selfType") else { return Compiled { decl: None, programs: Vec::new() } };
            let programs = self.rules.iter().map(|it| compile(it, node, &decl)).collect();
            Compiled { decl: Some(decl), programs }
        })
    }
}

fn rule(value: &Value) -> Rule {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Rule {
        rule: text("rule"),
        message: text("message"),
        message_expression: text("messageExpression"),
        reason: value.get("reason").and_then(Value::as_str).map(str::to_owned),
        field_path: text("fieldPath"),
        optional_old_self: value.get("optionalOldSelf") == Some(&Value::Bool(true)),
    }
}

impl Rule {
    /// What it is called in errors.
    fn name(&self) -> &str {
        if self.message.is_empty() { self.rule.trim() } else { self.message.trim() }
    }
}

fn compile(rule: &Rule, node: &Node, decl: &Arc<Decl>) -> Option<Result<Compilation, String>> {
    if rule.rule.trim().is_empty() {
        return None;
    }
    let of = decl.type_of();
    let old = if rule.optional_old_self { Type::Optional(Arc::new(of.clone())) } else { of.clone() };
    let variables = [("self", of), ("oldSelf", old)];
    let program = match Program::compile(&rule.rule, &variables) {
        Ok(program) => program,
        Err(why) => return Some(Err(why.to_string())),
    };
    if !matches!(program.output(), Type::Bool) {
        return Some(Err("cel expression must evaluate to a bool".to_owned()));
    }
    let message = (!rule.message_expression.is_empty()).then(|| {
        let message = Program::compile(&rule.message_expression, &variables);
        let message = message.map_err(|why| match why {
            Refused::Wrong(why) => format!("messageExpression compilation failed: {why}"),
            Refused::Fails(why) => format!("messageExpression instantiation failed: {why}"),
        })?;
        match message.output() {
            Type::Text => Ok(message),
            _ => Err("messageExpression must evaluate to a string".to_owned()),
        }
    });
    let path =
        if rule.field_path.is_empty() { None } else { field_path(&rule.field_path, node, true).ok().map(|it| it.0) };
    Some(Ok(Compilation { uses_old_self: program.mentions("oldSelf"), program, message, path }))
}

/// A path in a schema (`.spec.ports['http']`) as errors show it and what is there, or why it is none. `brackets`: they
/// are allowed.
pub(crate) fn field_path<'a>(path: &str, node: &'a Node, brackets: bool) -> Result<(String, &'a Node), String> {
    let mut shown = String::new();
    let mut node = node;
    let mut rest = path;
    while !rest.is_empty() {
        let name = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            let (name, next) = after.split_at(end);
            if name.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            rest = next;
            name.to_owned()
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let (name, next) = quoted(after)?;
            rest = next;
            name
        } else {
            let end = rest.find(['.', '[', ']']).filter(|at| *at > 0).unwrap_or(rest.len());
            return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or_default()));
        };
        let known = "does not refer to a valid field";
        if !node.fields.is_empty() {
            let field = node.fields.get(name.as_str()).ok_or(known)?;
            if !shown.is_empty() {
                shown.push('.');
            }
            shown.push_str(&name);
            node = field.link.node();
        } else if let Additional::Schema(link) = &node.additional {
            let _ = write!(shown, "[{name}]");
            node = link.node();
        } else {
            return Err(known.to_owned());
        }
    }
    Ok((shown, node))
}

/// `'a\'b']...`: the text, and what follows the bracket.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let inside = text.strip_prefix('\'').ok_or_else(|| format!("expected single quoted string but got {text}"))?;
    let mut out = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.push(match chars.next().map(|(_, c)| c) {
                Some('a') => '\u{7}',
                Some('b') => '\u{8}',
                Some('f') => '\u{c}',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\u{b}',
                Some(c @ ('\'' | '\\')) => c,
                _ => return Err("invalid string literal: invalid escape char".to_owned()),
            }),
            '\'' => {
                let rest = inside.get(at + 1..).unwrap_or_default();
                let rest = rest.strip_prefix(']').ok_or_else(|| format!("expected ] but got {rest}"))?;
                return Ok((out, rest));
            }
            c => out.push(c),
        }
    }
    Err("unexpected end of JSON path".to_owned())
}

/// What rules say of an object.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) errors: Vec<FieldError>,
    /// Of what was wrong before and has not changed.
    pub(super) warnings: Vec<String>,
}

impl Schema {
    /// Evaluates the rules. A little is done at once; what costs more makes room for others on this thread first.
    pub(super) fn verdict(&self, object: &Value, old: Option<&Value>) -> Verdict {
        if !self.root().ruled {
            return Verdict::default();
        }
        if let Some(verdict) = judge(self.root(), object, old, INLINE) {
            return verdict;
        }
        aside(|| judge(self.root(), object, old, BUDGET).unwrap_or_default())
    }
}

/// Does what may take long without holding up what else this thread has to do.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|it| it.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// `None` when the first part of the budget is not enough to say.
fn judge(root: &Node, object: &Value, old: Option<&Value>, budget: u64) -> Option<Verdict> {
    let mut judge = Judge {
        path: String::new(),
        unchanged: HashMap::new(),
        left: budget,
        first: budget < BUDGET,
        over: false,
        verdict: Verdict::default(),
    };
    let ratchet = Ratchet { current: old.map(|old| (root, object, old)), parent: None, top: true };
    judge.node(root, object, old, ratchet, true);
    (!(judge.over && judge.first)).then_some(judge.verdict)
}

/// What a value was before, for letting through what was wrong already.
#[derive(Clone, Copy)]
struct Ratchet<'a> {
    current: Option<Pair<'a>>,
    /// The nearest place above of which it is known.
    parent: Option<Pair<'a>>,
    /// The resource itself.
    top: bool,
}

type Pair<'a> = (&'a Node, &'a Value, &'a Value);

impl<'a> Ratchet<'a> {
    /// The place whose being unchanged lets what is wrong here through.
    fn pair(&self) -> Option<Pair<'a>> {
        self.current.or(self.parent)
    }

    fn key(self, key: &str) -> Self {
        let Some((node, new, old)) = self.current else { return Self { top: false, ..self } };
        if self.top && matches!(key, "apiVersion" | "kind") {
            return Self { current: None, parent: None, top: false };
        }
        let below = node.child(key).zip(new.get(key).zip(old.get(key)));
        Self { current: below.map(|(node, (new, old))| (node, new, old)), parent: self.current, top: false }
    }

    /// An item of a list, and what it was.
    fn item(self, node: &'a Node, item: &'a Value, was: Option<&'a Value>) -> Self {
        if self.current.is_none() {
            return Self { top: false, ..self };
        }
        Self { current: was.map(|was| (node, item, was)), parent: self.current, top: false }
    }
}

/// Whether nothing has changed but the order of list maps.
fn unchanged(node: &Node, new: &Value, old: &Value) -> bool {
    if new == old {
        return true;
    }
    match (new, old) {
        (Value::Array(new), Value::Array(before)) => {
            let Some((items, keyed)) = node.items().zip(Before::of(node, Some(old))) else { return false };
            new.len() == before.len()
                && new.iter().all(|item| keyed.item(item).is_some_and(|was| unchanged(items, item, was)))
        }
        (Value::Object(new), Value::Object(old)) => {
            new.len() == old.len()
                && new.iter().all(|(key, value)| match (old.get(key), node.child(key)) {
                    (Some(was), Some(node)) => unchanged(node, value, was),
                    (Some(was), None) => value == was,
                    (None, _) => false,
                })
        }
        _ => false,
    }
}

struct Judge {
    path: String,
    /// What was found out of places: many items may have one list above them.
    unchanged: HashMap<*const Value, bool>,
    left: u64,
    /// Only the first part of the budget is there.
    first: bool,
    /// Nothing more is evaluated.
    over: bool,
    verdict: Verdict,
}

impl Judge {
    fn below<'a>(&mut self, step: &str, then: impl FnOnce(&mut Self) + 'a) {
        let length = self.path.len();
        if !step.starts_with('[') && length > 0 {
            self.path.push('.');
        }
        self.path.push_str(step);
        then(self);
        self.path.truncate(length);
    }

    fn node(&mut self, node: &Node, value: &Value, old: Option<&Value>, ratchet: Ratchet<'_>, resource: bool) {
        if value.is_null() || !node.ruled || self.over {
            return;
        }
        if let Some(rules) = &node.rules {
            self.rules(rules, node, value, old.filter(|old| !old.is_null()), ratchet, resource);
        }
        match value {
            Value::Array(items) => {
                let Some(below) = node.items().filter(|it| it.ruled) else { return };
                let before = Before::of(node, old);
                for (at, item) in items.iter().enumerate() {
                    let was = before.as_ref().and_then(|it| it.item(item));
                    self.below(&format!("[{at}]"), |this| {
                        this.node(below, item, was, ratchet.item(below, item, was), below.embedded);
                    });
                }
            }
            Value::Object(map) => {
                for (key, value) in map {
                    let Some(below) = node.child(key).filter(|it| it.ruled) else { continue };
                    let was = old.and_then(|old| old.get(key));
                    let step = match node.fields.contains_key(key.as_str()) {
                        true => key.clone(),
                        false => format!("[{}]", field::key(key)),
                    };
                    self.below(&step, |this| this.node(below, value, was, ratchet.key(key), below.embedded));
                }
            }
            _ => {}
        }
    }

    fn refuse(&mut self, error: FieldError) {
        if self.verdict.errors.len() < ERRORS_MAX {
            self.verdict.errors.push(error);
        }
    }

    fn end(&mut self, kind: &str, said: &str) {
        self.over = true;
        self.refuse(FieldError::invalid_str(self.path.clone(), kind, said));
    }

    fn rules(
        &mut self,
        rules: &Rules,
        node: &Node,
        value: &Value,
        old: Option<&Value>,
        ratchet: Ratchet<'_>,
        resource: bool,
    ) {
        const BROKE: &str =
            "validation failed due to running out of cost budget, no further validation rules will be run";
        let kind = if node.int_or_string { "" } else { node.kind.name() };
        let compiled = rules.compiled(node, resource);
        let Some(decl) = &compiled.decl else {
            let said = "rule compiler initialization error: failed to convert to declType for CEL validation rules";
            return self.refuse(FieldError::invalid_str(self.path.clone(), kind, said));
        };
        if self.left == 0 {
            return self.end(kind, BROKE);
        }
        for (rule, program) in rules.rules.iter().zip(&compiled.programs) {
            let compilation = match program {
                None => continue,
                Some(Err(why)) => {
                    let said = format!("rule compile error: {why}");
                    self.refuse(FieldError::invalid_str(self.path.clone(), kind, &said));
                    continue;
                }
                Some(Ok(compilation)) => compilation,
            };
            if compilation.uses_old_self && old.is_none() && !rule.optional_old_self {
                continue;
            }
            let variables = match bound(rule, value, old, decl) {
                Ok(variables) => variables,
                Err(why) => {
                    let said = format!("{why} evaluating rule: {}", rule.name());
                    self.refuse(FieldError::invalid_str(self.path.clone(), kind, &said));
                    continue;
                }
            };
            let (outcome, cost) = compilation.program.evaluate(&variables, CALL_LIMIT.min(self.left));
            if cost > self.left {
                return self.end(kind, BROKE);
            }
            self.left -= cost;
            match outcome {
                Ok(cel::Value::Bool(true)) => {}
                Ok(_) => self.failed(rule, compilation, &variables, kind, ratchet),
                Err(Failed::Cost) => {
                    let said = format!(
                        "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.name()
                    );
                    return self.end(kind, &said);
                }
                Err(Failed::Error(why)) => {
                    let said = if why.starts_with("no such overload") {
                        format!(
                            "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                            rule.name()
                        )
                    } else {
                        format!("{why} evaluating rule: {}", rule.name())
                    };
                    self.refuse(FieldError::invalid_str(self.path.clone(), kind, &said));
                }
            }
            if self.over {
                return;
            }
        }
    }

    fn lets_through(&mut self, ratchet: Ratchet<'_>) -> bool {
        ratchet.pair().is_some_and(|(node, new, old)| {
            *self.unchanged.entry(std::ptr::from_ref(new)).or_insert_with(|| unchanged(node, new, old))
        })
    }

    /// A rule is broken.
    fn failed(
        &mut self,
        rule: &Rule,
        compilation: &Compilation,
        variables: &[(&'static str, cel::Value<'_>)],
        kind: &str,
        ratchet: Ratchet<'_>,
    ) {
        let mut path = self.path.clone();
        if let Some(inner) = &compilation.path {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(inner);
        }
        let plain = || match rule.message.is_empty() {
            true => format!("failed rule: {}", rule.name()),
            false => rule.message.trim().to_owned(),
        };
        let mut reason = rule.reason.as_deref();
        let message = match &compilation.message {
            Some(Ok(program)) => {
                let (outcome, cost) = program.evaluate(variables, CALL_LIMIT.min(self.left));
                let broke = cost > self.left;
                self.left = self.left.saturating_sub(cost);
                match outcome {
                    _ if broke => {
                        (self.over, reason) = (true, None);
                        "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned()
                    }
                    Err(Failed::Cost) => {
                        (self.over, reason) = (true, None);
                        format!(
                            "no further validation rules will be run due to call cost exceeds limit for messageExpression: {}",
                            field::quote(&rule.message_expression)
                        )
                    }
                    Ok(cel::Value::Text(text)) => {
                        let text = text.as_str().trim();
                        let usable = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                        if usable { text.to_owned() } else { plain() }
                    }
                    _ => plain(),
                }
            }
            _ => plain(),
        };
        let error = match reason {
            Some("FieldValueForbidden") => FieldError::forbidden(path, &message),
            Some("FieldValueRequired") => FieldError::required(path, &message),
            Some("FieldValueDuplicate") => FieldError::duplicate(path, &Value::from(kind)),
            _ => FieldError::invalid_str(path, kind, &message),
        };
        if !compilation.uses_old_self && self.lets_through(ratchet) {
            if self.verdict.warnings.len() < ERRORS_MAX {
                self.verdict.warnings.push(error.to_string());
            }
        } else {
            self.refuse(error);
        }
    }
}

/// `self` and, where there is one, `oldSelf`.
fn bound<'a>(
    rule: &Rule,
    value: &'a Value,
    old: Option<&'a Value>,
    decl: &'a Arc<Decl>,
) -> Result<Vec<(&'static str, cel::Value<'a>)>, Failed> {
    let mut variables = vec![("self", cel::Value::view(value, decl)?)];
    let before = old.map(|old| cel::Value::view(old, decl)).transpose()?;
    if rule.optional_old_self {
        variables.push(("oldSelf", cel::Value::Optional(before.map(Arc::new))));
    } else if let Some(before) = before {
        variables.push(("oldSelf", before));
    }
    Ok(variables)
}

/// Whether there are rules at a place or below it. What is built in has none.
pub(super) fn below(link: &Link) -> bool {
    matches!(link, Link::Own(node) if node.ruled)
}
