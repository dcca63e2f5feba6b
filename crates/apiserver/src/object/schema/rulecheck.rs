//! Whether a CRD's rules compile, what they may cost, and whether they may speak of what was before.

use serde_json::{Map, Value};

use super::Node;
use super::rules::Rules;
use crate::cel::Decl;
use crate::object::field::{self, ERRORS_MAX, FieldError};

/// What one rule may be estimated to cost, for all places where it may apply.
const RULE_MAX: u64 = 10_000_000;
/// What all of a schema's rules may.
const SCHEMA_MAX: u64 = 100_000_000;
/// So many rules are looked at; a schema with more is refused.
const RULES_MAX: usize = 5000;
/// The largest request.
const REQUEST_MAX: u64 = 3 * 1024 * 1024;

/// All that is wrong with the rules of a schema that is right otherwise.
pub(super) fn rules(openapi: &Map<String, Value>, node: &Node, path: &str) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new(), total: 0, expensive: Vec::new(), count: 0 };
    if node.ruled {
        checker.node(openapi, node, path, Place { times: Some(1), uncorrelated: None, resource: true });
    }
    if checker.count > RULES_MAX {
        checker.errors.push(FieldError::too_many(path, checker.count, RULES_MAX as u64));
    }
    if checker.total > SCHEMA_MAX {
        checker.expensive.sort_by_key(|it| std::cmp::Reverse(it.0));
        checker.expensive.truncate(4);
        for (_, path) in checker.expensive {
            let said = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            checker.errors.push(FieldError::forbidden(path, said));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        checker.errors.push(FieldError::forbidden(path, &too_much(what, checker.total, SCHEMA_MAX)));
    }
    checker.errors
}

struct Checker {
    errors: Vec<FieldError>,
    total: u64,
    expensive: Vec<(u64, String)>,
    /// Of the rules.
    count: usize,
}

#[derive(Clone, Copy)]
struct Place<'a> {
    /// How often a value of this schema can be in an object; `None`: as often as fits a request.
    times: Option<u64>,
    /// The nearest place above from where on what was before cannot be told.
    uncorrelated: Option<&'a str>,
    resource: bool,
}

impl Checker {
    fn node(&mut self, openapi: &Map<String, Value>, node: &Node, path: &str, place: Place<'_>) {
        if !node.ruled {
            return;
        }
        if let Some(rules) = &node.rules {
            self.here(openapi, rules, node, path, place);
        }
        let count =
            |key: &str| openapi.get(key).and_then(Value::as_i64).map(|it| u64::try_from(it).unwrap_or_default());
        let most = match openapi.get("type").and_then(Value::as_str) {
            Some("object") if openapi.get("additionalProperties").is_some_and(|it| !it.is_null()) => {
                count("maxProperties")
            }
            Some("array") => count("maxItems"),
            _ => Some(1),
        };
        let times = place.times.zip(most).map(|(times, most)| times.saturating_mul(most));
        let below = |node: &Node| Place { times, resource: node.embedded, ..place };
        let child = |key: &str| openapi.get(key).and_then(Value::as_object);
        if let (Some(schema), super::Additional::Schema(link)) = (child("additionalProperties"), &node.additional) {
            self.node(schema, link.node(), &format!("{path}.additionalProperties"), below(link.node()));
        }
        for (name, schema) in child("properties").into_iter().flatten() {
            if let (Some(schema), Some(field)) = (schema.as_object(), node.fields.get(name.as_str())) {
                let node = field.link.node();
                self.node(schema, node, &format!("{path}.properties[{name}]"), below(node));
            }
        }
        if let (Some(schema), Some(items)) = (child("items"), node.items()) {
            let map = openapi.get("x-kubernetes-list-type").is_some_and(|it| it == "map");
            let uncorrelated = place.uncorrelated.or(if map { None } else { Some(path) });
            self.node(schema, items, &format!("{path}.items"), Place { uncorrelated, ..below(items) });
        }
    }

    fn here(&mut self, openapi: &Map<String, Value>, rules: &Rules, node: &Node, path: &str, place: Place<'_>) {
        self.count += rules.rules.len();
        if self.count > RULES_MAX || self.errors.len() >= ERRORS_MAX {
            return;
        }
        let given = openapi.get("x-kubernetes-validations").and_then(Value::as_array);
        let given = given.map(Vec::as_slice).unwrap_or_default();
        let compiled = rules.compiled(node, place.resource);
        let Some(decl) = &compiled.decl else {
            let said = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            return self.errors.push(FieldError::internal(format!("{path}.x-kubernetes-validations"), said));
        };
        for (at, (rule, program)) in rules.rules.iter().zip(&compiled.programs).enumerate() {
            let at_rule = format!("{path}.x-kubernetes-validations[{at}]");
            let shown = || given.get(at).map(shown).unwrap_or_default();
            let compilation = match program {
                None => continue,
                Some(Err(why)) => {
                    self.errors.push(FieldError::invalid_shown(format!("{at_rule}.rule"), shown(), why));
                    if given.get(at).is_some_and(|it| it.get("optionalOldSelf").is_some()) {
                        self.unused(&at_rule, given.get(at));
                    }
                    continue;
                }
                Some(Ok(compilation)) => compilation,
            };
            let cost = self.costs(compilation.program.cost_max(decl), decl, place);
            self.observe("estimated rule cost", cost, format!("{at_rule}.rule"));
            match &compilation.message {
                Some(Err(why)) => {
                    let path = format!("{at_rule}.messageExpression");
                    self.errors.push(FieldError::invalid_shown(path, shown(), why));
                }
                Some(Ok(message)) => {
                    let cost = message.cost_max(decl);
                    self.observe("estimated messageExpression cost", cost, format!("{at_rule}.messageExpression"));
                }
                None => {}
            }
            if compilation.uses_old_self {
                if let Some(within) = place.uncorrelated {
                    let said =
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
                    self.errors.push(FieldError::invalid_str(format!("{at_rule}.rule"), &rule.rule, &said));
                }
            } else {
                self.unused(&at_rule, given.get(at));
            }
        }
    }

    fn unused(&mut self, path: &str, rule: Option<&Value>) {
        if let Some(optional) = rule.and_then(|it| it.get("optionalOldSelf")).filter(|it| !it.is_null()) {
            let said = "may not be set if oldSelf is not used in rule";
            self.errors.push(FieldError::invalid(format!("{path}.optionalOldSelf"), optional, said));
        }
    }

    fn costs(&self, cost: u64, decl: &Decl, place: Place<'_>) -> u64 {
        cost.saturating_mul(place.times.unwrap_or(REQUEST_MAX / (decl.size_min + 1)))
    }

    fn observe(&mut self, what: &str, cost: u64, path: String) {
        if cost > RULE_MAX {
            self.errors.push(FieldError::forbidden(path.clone(), &too_much(what, cost, RULE_MAX)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_MAX / 100 {
            self.expensive.push((cost, path));
        }
    }
}

fn too_much(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_owned()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// A rule as Go prints it.
fn shown(rule: &Value) -> String {
    let fields = [
        ("rule", "Rule"),
        ("message", "Message"),
        ("messageExpression", "MessageExpression"),
        ("reason", "Reason"),
        ("fieldPath", "FieldPath"),
        ("optionalOldSelf", "OptionalOldSelf"),
    ];
    let field = |(key, go): (&str, &str)| {
        let none = if matches!(key, "reason" | "optionalOldSelf") { Value::Null } else { Value::from("") };
        format!("{go:?}:{}", field::json(rule.get(key).unwrap_or(&none)))
    };
    format!("{{{}}}", fields.map(field).join(","))
}
