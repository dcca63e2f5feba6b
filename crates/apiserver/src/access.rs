//! Who asks, and what they may.

use crate::http::Target;
use http::HeaderMap;

use crate::object::status::{Problem, What};

/// Somebody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
}

/// Members may do everything, whatever any rule says.
pub(crate) const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";

impl User {
    /// Somebody with these groups, and so authenticated.
    pub(crate) fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), uid: String::new(), groups }
    }

    /// The owner of the process: what the in-process client is.
    pub(crate) fn admin() -> Self {
        Self::new("system:admin", [MASTERS.to_owned()])
    }

    pub(crate) fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), uid: String::new(), groups: vec![UNAUTHENTICATED.into()] }
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.groups.iter().any(|group| group == UNAUTHENTICATED)
    }
}

/// The user whom the `Impersonate-*` headers name, if this one may be him; this one when they name nobody.
pub(crate) fn impersonated(user: User, headers: &HeaderMap) -> Result<User, Problem> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|it| it.to_str().ok()).map(str::to_owned).collect()
    };
    let names = all("impersonate-user");
    let (groups, uids) = (all("impersonate-group"), all("impersonate-uid"));
    let Some(name) = names.first().filter(|name| !name.is_empty()) else {
        if groups.is_empty()
            && uids.is_empty()
            && !headers.keys().any(|it| it.as_str().starts_with("impersonate-extra-"))
        {
            return Ok(user);
        }
        let why = "requested impersonation without impersonating a user";
        return Err(Problem::internal(why));
    };
    let may = |resource: &str, name: &str| {
        let wanted = Attributes::Resource {
            verb: "impersonate".into(),
            group: String::new(),
            namespace: String::new(),
            resource: resource.into(),
            subresource: String::new(),
            name: name.into(),
        };
        authorize(&user, &wanted)
    };
    may("users", name)?;
    groups.iter().try_for_each(|group| may("groups", group))?;
    uids.iter().try_for_each(|uid| may("uids", uid))?;
    let mut groups = groups;
    if let Some((namespace, _)) = name.strip_prefix("system:serviceaccount:").and_then(|it| it.split_once(':'))
        && groups.is_empty()
    {
        groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    if name == "system:anonymous" {
        return Ok(User::anonymous());
    }
    Ok(User { uid: uids.into_iter().next().unwrap_or_default(), ..User::new(name.clone(), groups) })
}

/// What is asked for, as an authorizer sees it.
#[derive(Clone, Debug)]
pub(crate) enum Attributes {
    Resource { verb: String, group: String, namespace: String, resource: String, subresource: String, name: String },
    Path { verb: String, path: String },
}

impl From<&Target> for Attributes {
    fn from(target: &Target) -> Self {
        Self::Resource {
            verb: target.verb.to_owned(),
            group: target.group.clone(),
            namespace: target.namespace.clone(),
            resource: target.resource.clone(),
            subresource: target.subresource.clone(),
            name: target.name.clone(),
        }
    }
}

/// `Ok` when the user may.
pub(crate) fn authorize(user: &User, wanted: &Attributes) -> Result<(), Problem> {
    if allowed(user, wanted) { Ok(()) } else { Err(forbidden(user, wanted)) }
}

pub(crate) fn allowed(user: &User, wanted: &Attributes) -> bool {
    if user.groups.iter().any(|group| group == MASTERS) {
        return true;
    }
    match wanted {
        // ClusterRoles system:public-info-viewer, which everybody has, and system:discovery for who is authenticated.
        Attributes::Path { verb, path } => {
            let root = path.split('/').nth(1).unwrap_or_default();
            let public = matches!(root, "healthz" | "livez" | "readyz" | "version");
            let discovery = matches!(root, "api" | "apis" | "openapi") && !user.is_anonymous();
            matches!(verb.as_str(), "get" | "head") && (public || discovery)
        }
        // ClusterRole system:basic-user, which everybody who is authenticated has.
        Attributes::Resource { verb, group, resource, .. } => {
            !user.is_anonymous()
                && verb == "create"
                && matches!(
                    (group.as_str(), resource.as_str()),
                    ("authorization.k8s.io", "selfsubjectaccessreviews" | "selfsubjectrulesreviews")
                        | ("authentication.k8s.io", "selfsubjectreviews")
                )
        }
    }
}

/// `pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default"`.
fn forbidden(user: &User, wanted: &Attributes) -> Problem {
    match wanted {
        Attributes::Path { verb, path } => {
            let why = format!("User {:?} cannot {verb} path {path:?}", user.name);
            Problem::forbidden(What::new("", ""), "", &why)
        }
        Attributes::Resource { verb, group, namespace, resource, subresource, name, .. } => {
            let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {namespace:?}")
            };
            let why = format!("User {:?} cannot {verb} resource {full:?} in API group {group:?} {scope}", user.name);
            Problem::forbidden(What::new(group, resource), name, &why)
        }
    }
}
