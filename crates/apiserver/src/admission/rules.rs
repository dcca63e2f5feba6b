//! Which requests a webhook or a policy is about: `pkg/admission/plugin/webhook/predicates` of upstream.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::review::{Operation, namespace};
use crate::object::selector::Labels;
use crate::object::status::{Problem, What};
use crate::registry::{Resource, custom};
use crate::store::Key;
use crate::verbs::scale::selector_text;
use crate::verbs::{Call, meta};

const GROUP: &str = "admissionregistration.k8s.io";

#[derive(Clone, Default, Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    operations: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: Option<String>,
}

impl Rule {
    fn matches(&self, asked: &Asked<'_>, resource: &Resource) -> bool {
        let any = |all: &[String], one: &str| all.iter().any(|it| it == "*" || it == one);
        let scoped = match self.scope.as_deref() {
            Some("Namespaced") => resource.namespaced,
            Some("Cluster") => !resource.namespaced,
            _ => true,
        };
        scoped
            && any(&self.operations, asked.operation.name())
            && any(&self.api_groups, &resource.group)
            && any(&self.api_versions, &resource.version)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|it| it == asked.name))
            && self.resources.iter().any(|it| {
                let (plural, sub) = it.split_once('/').unwrap_or((it, ""));
                (plural == "*" || plural == resource.plural) && (sub == "*" || sub == asked.call.subresource)
            })
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) call: &'a Call,
    pub(super) operation: Operation,
    pub(super) name: &'a str,
    pub(super) object: Option<&'a Value>,
    pub(super) old: Option<&'a Value>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(call: &'a Call, operation: Operation, object: Option<&'a Value>, old: Option<&'a Value>) -> Self {
        let name = match call.name.as_str() {
            "" => object.map(meta::name).unwrap_or_default(),
            name => name,
        };
        Self { call, operation, name, object, old }
    }
}

/// Rules and selectors, parsed once.
pub(super) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    /// Without rules everything is meant.
    open: bool,
    /// A request for another version of the same objects is meant too.
    equivalent: bool,
    of_namespace: Result<Labels, String>,
    of_object: Result<Labels, String>,
}

impl Matcher {
    /// Of a webhook.
    pub(super) fn new(of: &Value) -> Self {
        Self { rules: rules(of, "rules"), excluded: Vec::new(), open: false, ..Self::selecting(of) }
    }

    /// Of a policy or a binding of one: its `MatchResources`.
    pub(super) fn of_resources(of: &Value) -> Self {
        let (rules, excluded) = (rules(of, "resourceRules"), rules(of, "excludeResourceRules"));
        Self { rules, excluded, open: true, ..Self::selecting(of) }
    }

    fn selecting(of: &Value) -> Self {
        let selector = |field: &str| match of.get(field).filter(|it| it.as_object().is_some_and(|it| !it.is_empty())) {
            Some(selector) => Labels::parse(&selector_text(selector)),
            None => Ok(Labels::default()),
        };
        Self {
            rules: Vec::new(),
            excluded: Vec::new(),
            open: false,
            equivalent: of.get("matchPolicy").is_none_or(|it| it != "Exact"),
            of_namespace: selector("namespaceSelector"),
            of_object: selector("objectSelector"),
        }
    }

    /// The resource in the version in which the objects are to be shown; none when the request is not meant. What goes
    /// wrong with a selector matters only where the rules mean the request.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Result<Option<Arc<Resource>>, Problem> {
        let (here, it) = (self.selects_namespace(asked), self.selects_object(asked));
        if matches!(here, Ok(false)) || matches!(it, Ok(false)) {
            return Ok(None);
        }
        if self.version(&self.excluded, asked).is_some() {
            return Ok(None);
        }
        let everything = self.open && self.rules.is_empty();
        let found = if everything { Some(asked.call.resource.clone()) } else { self.version(&self.rules, asked) };
        if found.is_some() {
            here?;
            it?;
        }
        Ok(found)
    }

    /// The resource in the version that rules name.
    fn version(&self, rules: &[Rule], asked: &Asked<'_>) -> Option<Arc<Resource>> {
        let wanted = &asked.call.resource;
        if rules.iter().any(|it| it.matches(asked, wanted)) {
            return Some(wanted.clone());
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let all = asked.call.core.registry.now();
        let same = all.groups.values().flat_map(|it| &it.versions).filter_map(|it| it.resources.get(&wanted.plural));
        let mut same: Vec<&Arc<Resource>> =
            same.filter(|it| it.stored_group == wanted.stored_group && it.kind == wanted.kind).collect();
        same.sort_by_key(|it| (it.group != wanted.group, custom::priority(&it.version)));
        rules.iter().find_map(|rule| same.iter().find(|it| rule.matches(asked, it))).map(|it| (*it).clone())
    }

    fn selects_namespace(&self, asked: &Asked<'_>) -> Result<bool, Problem> {
        let selector = self.of_namespace.as_ref().map_err(|why| Problem::internal(why))?;
        let call = asked.call;
        let is_namespace = call.resource.is("", "namespaces");
        if selector.is_empty() || (!call.resource.namespaced && !is_namespace) {
            return Ok(true);
        }
        if is_namespace && asked.operation != Operation::Delete && call.subresource.is_empty() {
            return Ok(asked.object.is_some_and(|it| selects(selector, it)));
        }
        let namespace = namespace(call, asked.name);
        let Some(entry) = call.core.store.get(&Key::new("", "namespaces", "", namespace)) else {
            return Err(Problem::not_found(What::new("", "namespaces"), namespace));
        };
        Ok(selector.matches(|label| entry.labels().get(label).map(String::as_str)))
    }

    fn selects_object(&self, asked: &Asked<'_>) -> Result<bool, Problem> {
        let selector = self.of_object.as_ref().map_err(|why| Problem::internal(why))?;
        Ok(selector.is_empty() || [asked.object, asked.old].into_iter().flatten().any(|it| selects(selector, it)))
    }
}

fn rules(of: &Value, field: &str) -> Vec<Rule> {
    let all = of.get(field).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|it| Rule::deserialize(it).ok()).collect()
}

fn selects(selector: &Labels, object: &Value) -> bool {
    selector.matches(|label| meta::keyed(object, "labels", label))
}

/// No webhook is asked about the objects that say who is asked.
pub(super) fn is_exempt(resource: &Resource) -> bool {
    resource.group == GROUP && !resource.is_custom()
}

/// No policy judges policies.
pub(super) fn is_policy(resource: &Resource) -> bool {
    is_exempt(resource) && resource.plural.starts_with("validatingadmissionpolic")
}
