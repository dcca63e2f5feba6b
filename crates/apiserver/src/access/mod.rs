//! Who asks, and what they may.

pub(crate) mod defaults;
pub(crate) mod escalation;
mod impersonation;
pub(crate) mod roles;
pub(crate) mod rules;
pub(crate) mod token_request;
pub(crate) mod tokens;

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

use crate::core::Core;
use crate::http::{Query, Target};
use crate::object::selector::Fields;
use crate::object::status::{Problem, What};
pub(crate) use impersonation::impersonated;
use roles::Decision;
use rules::Rule;

/// Somebody who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

/// Members may do everything, whatever any rule says.
pub(crate) const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";

impl User {
    /// Somebody with these groups, and so authenticated.
    pub(crate) fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The owner of the process: what the in-process client is.
    pub(crate) fn admin() -> Self {
        Self::new("system:admin", [MASTERS.to_owned()])
    }

    fn anonymous() -> Self {
        Self { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Self::default() }
    }

    pub(crate) fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// The user name of a service account.
pub(crate) fn account_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// A service account as nobody has authenticated it.
pub(crate) fn account(namespace: &str, name: &str) -> User {
    let groups = account_groups(namespace).to_vec();
    User { name: account_name(namespace, name), groups, ..User::default() }
}

fn account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// In front of a token, in base64, where a browser can set no header but this.
const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// Who asks, where the connection does not say. A token that nobody knows is refused.
pub(crate) fn authenticate(core: &Core, headers: &HeaderMap) -> Result<User, Problem> {
    let bearer = headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok()).and_then(|said| {
        let (scheme, token) = said.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    let protocols = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|it| it.to_str().ok());
    let upgrade = headers.get(UPGRADE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let hidden = || {
        if !upgrade.eq_ignore_ascii_case("websocket") {
            return None;
        }
        let encoded = protocols.flat_map(|it| it.split(',')).find_map(|it| it.trim().strip_prefix(WEBSOCKET_TOKEN))?;
        String::from_utf8(tokens::decode(encoded)?).ok()
    };
    match bearer.filter(|it| !it.is_empty()).or_else(hidden) {
        Some(token) => match core.tokens()?.verify(core, &token, &[tokens::AUDIENCE.to_owned()]) {
            Ok(known) => Ok(known.user),
            Err(refused) => {
                tracing::debug!(%refused, "a token was refused");
                Err(Problem::unauthorized("Unauthorized"))
            }
        },
        None => Ok(User::anonymous()),
    }
}

/// The protocols that a client of a WebSocket offers, without the token that may be among them.
pub(crate) fn without_token(protocols: &str) -> String {
    let offered = protocols.split(',').map(str::trim).filter(|it| !it.starts_with(WEBSOCKET_TOKEN));
    offered.collect::<Vec<_>>().join(", ")
}

/// What is asked for, as an authorizer sees it.
#[derive(Clone, Debug)]
pub(crate) enum Attributes {
    Resource { verb: String, group: String, namespace: String, resource: String, subresource: String, name: String },
    Path { verb: String, path: String },
}

impl Attributes {
    /// Of a request. A collection of which one object is selected by its name is as good as that object.
    pub(crate) fn of(target: &Target, query: Query<'_>) -> Self {
        let mut name = target.name.clone();
        if name.is_empty()
            && matches!(target.verb, "list" | "watch" | "deletecollection")
            && let Some(fields) = query.get("fieldSelector")
            && let Ok(fields) = Fields::parse(&fields)
        {
            name = fields.exact("metadata.name").unwrap_or_default().to_owned();
        }
        Self::Resource {
            verb: target.verb.to_owned(),
            group: target.group.clone(),
            namespace: target.namespace.clone(),
            resource: target.resource.clone(),
            subresource: target.subresource.clone(),
            name,
        }
    }
}

/// `Ok` when the user may.
pub(crate) fn authorize(core: &Core, user: &User, wanted: &Attributes) -> Result<(), Problem> {
    if user.is_master() {
        return Ok(());
    }
    core.roles.now(&core.store).allow(user, wanted).map_err(|why| forbidden(user, wanted, &why))
}

/// Whether the user may, and why.
pub(crate) fn decide(core: &Core, user: &User, wanted: &Attributes) -> Decision {
    if user.is_master() {
        return Decision { allowed: true, reason: String::new() };
    }
    core.roles.now(&core.store).decide(user, wanted)
}

/// `Ok` when that was decided.
pub(crate) fn told(user: &User, wanted: &Attributes, decision: &Decision) -> Result<(), Problem> {
    if decision.allowed { Ok(()) } else { Err(forbidden(user, wanted, &decision.reason)) }
}

/// Every rule that is for this user in this namespace, and what could not be found out about them.
pub(crate) fn rules_for(core: &Core, user: &User, namespace: &str) -> (Vec<Rule>, Option<String>) {
    core.roles.now(&core.store).rules(user, namespace)
}

/// `pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default"`.
fn forbidden(user: &User, wanted: &Attributes, reason: &str) -> Problem {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    match wanted {
        Attributes::Path { verb, path } => {
            let why = format!("User {:?} cannot {verb} path {path:?}{reason}", user.name);
            Problem::forbidden(What::new("", ""), "", &why)
        }
        Attributes::Resource { verb, group, namespace, resource, subresource, name, .. } => {
            let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {namespace:?}")
            };
            let why =
                format!("User {:?} cannot {verb} resource {full:?} in API group {group:?} {scope}{reason}", user.name);
            Problem::forbidden(What::new(group, resource), name, &why)
        }
    }
}
