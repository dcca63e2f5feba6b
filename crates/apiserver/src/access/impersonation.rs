//! Who speaks for another: `k8s.io/apiserver/pkg/endpoints/filters/impersonation.go`.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::{ANONYMOUS, AUTHENTICATED, Attributes, UNAUTHENTICATED, User, account_groups, authorize};
use crate::core::Core;
use crate::object::meta::NameRule;
use crate::object::status::Problem;

const EXTRA: &str = "impersonate-extra-";

/// The user whom the `Impersonate-*` headers name, if this one may be him; this one when they name nobody.
pub(crate) fn impersonated(core: &Core, user: User, headers: &HeaderMap) -> Result<User, Problem> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|it| it.to_str().ok()).map(str::to_owned).collect()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let (name, mut groups, uid) = (first("impersonate-user"), all("impersonate-group"), first("impersonate-uid"));
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            extra.entry(crate::http::unescaped(key)).or_default().extend(all(header.as_str()));
        }
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        let all = asked_for(&groups, &extra, &uid);
        return Err(Problem::internal(&format!("requested [{all}] without impersonating a user")));
    }
    let may = |group: &str, namespace: &str, resource: &str, subresource: &str, name: &str| {
        let wanted = Attributes::Resource {
            verb: "impersonate".into(),
            group: group.into(),
            namespace: namespace.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
        };
        authorize(core, &user, &wanted)
    };
    let account = account(&name);
    match account {
        Some((namespace, name)) => may("", namespace, "serviceaccounts", "", name)?,
        None => may("", "", "users", "", &name)?,
    }
    groups.iter().try_for_each(|group| may("", "", "groups", "", group))?;
    for (key, values) in &extra {
        values.iter().try_for_each(|value| may("authentication.k8s.io", "", "userextras", key, value))?;
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "", "uids", "", &uid)?;
    }
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups.extend(account_groups(namespace));
    }
    let has = |groups: &[String], group: &str| groups.iter().any(|it| it == group);
    if name == ANONYMOUS {
        if !has(&groups, UNAUTHENTICATED) {
            groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !has(&groups, AUTHENTICATED) && !has(&groups, UNAUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    Ok(User { name, uid, groups, extra })
}

/// Namespace and name of the service account that this is the user name of.
fn account(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let fits = |rule: NameRule, name: &str| rule.check(name, false).is_empty();
    (fits(NameRule::Label, namespace) && fits(NameRule::Subdomain, name)).then_some((namespace, name))
}

/// Go's `%v` of the object references that upstream makes of the headers.
fn asked_for(groups: &[String], extra: &BTreeMap<String, Vec<String>>, uid: &str) -> String {
    const VERSION: &str = "authentication.k8s.io/v1";
    let mut all: Vec<String> = groups.iter().map(|group| format!("{{Group  {group}    }}")).collect();
    for (key, values) in extra {
        all.extend(values.iter().map(|value| format!("{{UserExtra  {value}  {VERSION}  {key}}}")));
    }
    if !uid.is_empty() {
        all.push(format!("{{UID  {uid}  {VERSION}  }}"));
    }
    all.join(" ")
}
