//! Nobody grants more than they have: `pkg/registry/rbac/*/policybased` of upstream.

use serde::Deserialize;
use serde_json::Value;

use super::roles::{GROUP, RoleRef};
use super::rules::{self, Rule, nullable};
use super::{Attributes, User};
use crate::core::Core;
use crate::object::schema::aside;
use crate::object::status::Problem;
use crate::verbs::{Call, meta};

/// A short role can stand for very many rules, each of which is compared with all that its author has.
const PARTS_MAX: usize = 50_000;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Written {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<Rule>,
    role_ref: RoleRef,
}

/// Whether the user may write this role or binding: the object as it would be, and as it was.
pub(crate) fn check(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Problem> {
    let resource = &call.resource;
    if resource.is_custom() || resource.group != GROUP || call.user.is_master() {
        return Ok(());
    }
    if old.is_some_and(|old| differs_in_nothing_that_grants(object, old)) {
        return Ok(());
    }
    let (core, user, namespace) = (&*call.core, &call.user, call.namespace.as_str());
    let refused = |why: &str| Err(Problem::forbidden(resource.what(), meta::name(object), why));
    let Ok(written) = Written::deserialize(object) else { return refused("what it grants cannot be read") };
    let may = |verb: &str, group: &str, resource: &str, name: &str| {
        let wanted = Attributes::Resource {
            verb: verb.into(),
            group: group.into(),
            namespace: namespace.into(),
            resource: resource.into(),
            subresource: String::new(),
            name: name.into(),
        };
        super::authorize(core, user, &wanted).is_ok()
    };
    if resource.plural.ends_with("roles") {
        if may("escalate", GROUP, &resource.plural, &call.name) {
            return Ok(());
        }
        if let Err(why) = covered(core, user, namespace, &written.rules) {
            return refused(&why);
        }
        let aggregates = |object: &Value| {
            let selectors = object.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
            selectors.is_some_and(|it| !it.is_empty())
        };
        // It can gather anything.
        if (aggregates(object) || old.is_some_and(aggregates))
            && covered(core, user, namespace, &Rule::everything()).is_err()
        {
            return refused("must have cluster-admin privileges to use the aggregationRule");
        }
        return Ok(());
    }
    let to = &written.role_ref;
    let bound = match to.kind.as_str() {
        "ClusterRole" => may("bind", &to.api_group, "clusterroles", &to.name),
        "Role" => may("bind", &to.api_group, "roles", &to.name),
        _ => false,
    };
    if bound {
        return Ok(());
    }
    let granted = core.roles.now(&core.store).role(to, namespace).map(<[Rule]>::to_vec);
    // Upstream speaks of a binding where it misses the role.
    let Ok(granted) = granted else { return Err(call.not_found(&to.name)) };
    match covered(core, user, namespace, &granted) {
        Ok(()) => Ok(()),
        Err(why) => refused(&why),
    }
}

/// Whether the user has these rules, there.
fn covered(core: &Core, user: &User, namespace: &str, wanted: &[Rule]) -> Result<(), String> {
    let (held, missing) = super::rules_for(core, user, namespace);
    if rules::parts(wanted) > PARTS_MAX {
        return Err(format!(
            "rules with more than {PARTS_MAX} combinations of verbs, resources, groups and names are not compared with what the user may: make several roles of it"
        ));
    }
    let lacking = aside(|| rules::uncovered(&held, wanted));
    if lacking.is_empty() {
        return Ok(());
    }
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        rules::quoted(&user.groups),
        rules::described(lacking)
    );
    if let Some(missing) = missing {
        why.push_str(&format!("; resolution errors: [{missing}]"));
    }
    Err(why)
}

/// What the garbage collector changes: owners and finalizers.
fn differs_in_nothing_that_grants(new: &Value, old: &Value) -> bool {
    let mut new = new.clone();
    for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
        meta::put(&mut new, field, meta::get(old, field).cloned());
    }
    new == *old
}
