//! What is wrong with the expressions of a policy by the schemas of what it is about: upstream's
//! `pkg/admission/plugin/policy/validating/typechecking.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::celled::Environment;
use super::policy::{Kind, list, text};
use crate::cel::Decl;
use crate::object::schema::aside;
use crate::registry::{Resource, Resources};

/// How many kinds one rule is checked with.
const KINDS_MAX: usize = 10;
/// What is told of a policy together, which has to fit into it: no more is looked at after that.
const WARNINGS_MAX: usize = 256 * 1024;

/// `status.typeChecking.expressionWarnings` of a policy. Others have their turn after each kind.
pub(crate) async fn warnings(resources: &Resources, policy: &Value) -> Vec<Value> {
    let spec = policy.get("spec").unwrap_or(&Value::Null);
    let params = Kind::of(spec).and_then(|it| declared(resources.of_kind(&it.api_version, &it.kind)?));
    let mut found = Found::default();
    for resource in kinds(resources, spec).into_values() {
        aside(|| found.look(resource, params.clone(), spec));
        tokio::task::yield_now().await;
    }
    let warning = |((at, field), said): ((usize, &str), Vec<String>)| json!({"fieldRef": format!("spec.validations[{at}].{field}"), "warning": said.join("\n")});
    found.said.into_iter().map(warning).collect()
}

#[derive(Default)]
struct Found {
    /// By the validation and which of its expressions it is.
    said: BTreeMap<(usize, &'static str), Vec<String>>,
    size: usize,
}

impl Found {
    /// What is wrong where objects are of this kind.
    fn look(&mut self, resource: &Arc<Resource>, params: Option<Arc<Decl>>, spec: &Value) {
        let Some(object) = declared(resource) else { return };
        let mut environment = Environment::typed(object, params);
        for of in list(spec, "variables") {
            environment.learn(text(of, "name"), text(of, "expression"));
        }
        for (at, of) in list(spec, "validations").enumerate() {
            for field in ["expression", "messageExpression"] {
                let source = text(of, field);
                if (field == "messageExpression" && source.is_empty()) || self.size > WARNINGS_MAX {
                    continue;
                }
                if let Some(issues) = environment.issues(source) {
                    let Resource { group, version, kind, .. } = &**resource;
                    let said = format!("{group}/{version}, Kind={kind}: {issues}\n");
                    self.size += said.len();
                    self.said.entry((at, field)).or_default().push(said);
                }
            }
        }
    }
}

fn declared(resource: &Arc<Resource>) -> Option<Arc<Decl>> {
    resource.schema().declared(&resource.kind)
}

/// What the rules of a policy name, by group, version and kind. A rule with a `*` names nothing.
fn kinds<'a>(resources: &'a Resources, spec: &Value) -> BTreeMap<(&'a str, &'a str, &'a str), &'a Arc<Resource>> {
    let mut kinds = BTreeMap::new();
    let rules = spec.pointer("/matchConstraints/resourceRules").and_then(Value::as_array);
    for rule in rules.into_iter().flatten() {
        let names = |field: &str| -> BTreeSet<String> {
            list(rule, field).filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (groups, versions, plurals) = (names("apiGroups"), names("apiVersions"), names("resources"));
        if groups.iter().chain(&versions).any(|it| it.contains('*')) {
            continue;
        }
        let plurals: Vec<String> =
            plurals.iter().filter(|it| !it.contains(['*', '/'])).map(|it| it.to_lowercase()).collect();
        let mut count = 0;
        for group in &groups {
            for version in &versions {
                for plural in &plurals {
                    for resource in named(resources, group, version, plural) {
                        kinds.insert(
                            (resource.group.as_str(), resource.version.as_str(), resource.kind.as_str()),
                            resource,
                        );
                        count += 1;
                        // As upstream: not even the next rule is looked at.
                        if count == KINDS_MAX {
                            return kinds;
                        }
                    }
                }
            }
        }
    }
    kinds
}

/// The resources of a name. Who names no group means any that has the version, as upstream.
fn named<'a>(resources: &'a Resources, group: &str, version: &str, name: &str) -> Vec<&'a Arc<Resource>> {
    let groups = resources.groups.iter().filter(|(it, _)| group.is_empty() || *it == group);
    let versions = groups.flat_map(|(_, it)| &it.versions).filter(|it| it.name == version);
    versions.flat_map(|it| it.resources.values()).filter(|it| it.plural == name || it.singular == name).collect()
}
