//! What expressions of admission may ask an authorizer: Kubernetes' `authz.go`.

use std::fmt;
use std::sync::Arc;

use super::types::{self, Type};
use super::value::{Result, Value, error, no_overload};
use crate::access::Attributes;
use crate::access::roles::Decision;
use crate::object::meta::NameRule;

/// Decides about the user of a request, or about a service account by its namespace and name.
pub(crate) trait Authorizer: Sync {
    fn decide(&self, account: Option<(&str, &str)>, wanted: &Attributes) -> Decision;
}

/// A question on its way from `authorizer` to a decision.
#[derive(Clone)]
pub(crate) struct Authz<'a> {
    by: &'a dyn Authorizer,
    account: Option<Arc<(String, String)>>,
    step: Step,
}

#[derive(Clone)]
enum Step {
    Authorizer,
    Path(Arc<str>),
    Group(Arc<str>),
    Resource(Arc<Resource>),
    Decision(Arc<Decision>),
}

/// A resource, or an object of it, with no verb yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Debug for Authz<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.type_of())
    }
}

impl<'a> Authz<'a> {
    /// `authorizer`.
    pub(crate) fn new(by: &'a dyn Authorizer) -> Self {
        Self { by, account: None, step: Step::Authorizer }
    }

    /// `authorizer.requestResource`.
    pub(crate) fn of_resource(by: &'a dyn Authorizer, resource: Resource) -> Self {
        Self { by, account: None, step: Step::Resource(Arc::new(resource)) }
    }

    pub(super) fn type_of(&self) -> Type {
        match self.step {
            Step::Authorizer => types::AUTHORIZER,
            Step::Path(_) => types::PATH_CHECK,
            Step::Group(_) => types::GROUP_CHECK,
            Step::Resource(_) => types::RESOURCE_CHECK,
            Step::Decision(_) => types::DECISION,
        }
    }

    pub(super) fn method(&self, function: &str, args: &[Value<'a>]) -> Result<Value<'a>> {
        let text = |at: usize| match args.get(at) {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let step = match (&self.step, function, text(1)) {
            (Step::Authorizer, "path", Some(path)) if path.trim().is_empty() => return error("path must not be empty"),
            (Step::Authorizer, "path", Some(path)) => Step::Path(path.into()),
            (Step::Authorizer, "group", Some(group)) => Step::Group(group.into()),
            (Step::Authorizer, "serviceAccount", Some(namespace)) => {
                let Some(name) = text(2) else { return no_overload() };
                return self.service_account(namespace, name);
            }
            (Step::Group(_), "resource", Some(resource)) if resource.trim().is_empty() => {
                return error("resource must not be empty");
            }
            (Step::Group(group), "resource", Some(resource)) => {
                let (group, resource) = (group.to_string(), resource.to_owned());
                Step::Resource(Arc::new(Resource { group, resource, ..Resource::default() }))
            }
            (Step::Resource(of), "check", Some(verb)) => self.decision(of.wanted(verb)),
            (Step::Path(path), "check", Some(verb)) => {
                self.decision(Attributes::Path { verb: verb.to_owned(), path: path.to_string() })
            }
            // RBAC, which is the authorizer, looks at no selectors.
            (Step::Resource(_), "fieldSelector" | "labelSelector", Some(_)) => self.step.clone(),
            (Step::Resource(of), part, Some(value)) => {
                let mut of = Resource::clone(of);
                match part {
                    "subresource" => of.subresource = value.to_owned(),
                    "namespace" => of.namespace = value.to_owned(),
                    "name" => of.name = value.to_owned(),
                    _ => return no_overload(),
                }
                Step::Resource(Arc::new(of))
            }
            (Step::Decision(decision), function, None) => {
                return match function {
                    "allowed" => Ok(Value::Bool(decision.allowed)),
                    "reason" => Ok(Value::text(decision.reason.as_str())),
                    // RBAC has a reason for what it cannot find out, not an error.
                    "errored" => Ok(Value::Bool(false)),
                    "error" => Ok(Value::text("")),
                    _ => no_overload(),
                };
            }
            _ => return no_overload(),
        };
        Ok(Value::Authz(Self { step, ..self.clone() }))
    }

    fn service_account(&self, namespace: &str, name: &str) -> Result<Value<'a>> {
        if !NameRule::Subdomain.check(name, false).is_empty() {
            return error("Invalid service account name");
        }
        if !NameRule::Label.check(namespace, false).is_empty() {
            return error("Invalid service account namespace");
        }
        let account = Some(Arc::new((namespace.to_owned(), name.to_owned())));
        Ok(Value::Authz(Self { account, ..self.clone() }))
    }

    fn decision(&self, wanted: Attributes) -> Step {
        let account = self.account.as_deref().map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        Step::Decision(Arc::new(self.by.decide(account, &wanted)))
    }
}

impl Resource {
    fn wanted(&self, verb: &str) -> Attributes {
        let Self { group, resource, subresource, namespace, name } = self.clone();
        Attributes::Resource { verb: verb.to_owned(), group, namespace, resource, subresource, name }
    }
}
