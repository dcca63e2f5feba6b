//! Who has which rules: every role and binding, indexed by whom it is for. Taken over from the store as it changes, so
//! that a write is in force for whoever learns that it was done; no question costs more than the bindings of who asks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::rules::{Rule, nullable};
use super::{Attributes, User};
use crate::store::{Entry, Store};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Roles before bindings: the latter refer to the former.
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Namespace (empty for the whole cluster) and name.
type Place = (Arc<str>, Arc<str>);

pub(crate) struct Roles {
    held: RwLock<Held>,
    bells: Mutex<[Bell; 4]>,
}

struct Bell {
    changed: watch::Receiver<u64>,
    /// Not looked at since the start.
    fresh: bool,
}

#[derive(Default)]
pub(crate) struct Held {
    roles: BTreeMap<Place, Kept<Vec<Rule>>>,
    bindings: BTreeMap<Place, Kept<Binding>>,
    by_subject: HashMap<Who, BTreeSet<Place>>,
}

/// What was made of an object, and the revision that it had then.
struct Kept<T> {
    rev: u64,
    it: T,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Group(String),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Role {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    role_ref: RoleRef,
    #[serde(deserialize_with = "nullable")]
    subjects: Vec<Subject>,
}

#[derive(Clone, Default, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RoleRef {
    pub(crate) api_group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

impl Subject {
    /// Whom it means in a binding of this namespace; nobody when it is of no kind that there is.
    fn who(&self, namespace: &str) -> Option<Who> {
        match self.kind.as_str() {
            "User" => Some(Who::User(self.name.clone())),
            "Group" => Some(Who::Group(self.name.clone())),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
                (!namespace.is_empty()).then(|| Who::User(super::account_name(namespace, &self.name)))
            }
            _ => None,
        }
    }

    fn described(&self, namespace: &str) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
                format!("{} {:?}", self.kind, format!("{}/{namespace}", self.name))
            }
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

/// What is to be told of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

impl Roles {
    pub(crate) fn new(store: &Store) -> Self {
        let bell = |resource| Bell { changed: store.bell(GROUP, resource), fresh: true };
        Self { held: RwLock::default(), bells: Mutex::new(RESOURCES.map(bell)) }
    }

    /// As they are in the store now.
    pub(crate) fn now(&self, store: &Store) -> RwLockReadGuard<'_, Held> {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        for (resource, bell) in RESOURCES.iter().zip(bells.iter_mut()) {
            if bell.fresh || bell.changed.has_changed().unwrap_or(true) {
                // Marked before it is looked at: what rings meanwhile is looked at again.
                bell.changed.borrow_and_update();
                bell.fresh = false;
                let entries = store.list(GROUP, resource, None, None, None).entries;
                let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                held.take(resource, &entries);
            }
        }
        drop(bells);
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take(&mut self, resource: &str, entries: &[Arc<Entry>]) {
        // A ClusterRole has no namespace and a Role has one, so the two share a map, each in its part of it.
        let cluster = resource.starts_with("cluster");
        let mine = move |place: &Place| place.0.is_empty() == cluster;
        if resource.ends_with("roles") {
            for_each_change(&mut self.roles, mine, entries, |_, _: Option<&Vec<Rule>>, role: Option<Role>| {
                role.map(|it| it.rules)
            });
            return;
        }
        let by_subject = &mut self.by_subject;
        for_each_change(&mut self.bindings, mine, entries, |place, old: Option<&Binding>, new: Option<Binding>| {
            for who in old.iter().flat_map(|it| &it.subjects).filter_map(|it| it.who(&place.0)) {
                if let Some(places) = by_subject.get_mut(&who) {
                    places.remove(place);
                    if places.is_empty() {
                        by_subject.remove(&who);
                    }
                }
            }
            for who in new.iter().flat_map(|it| &it.subjects).filter_map(|it| it.who(&place.0)) {
                by_subject.entry(who).or_default().insert(place.clone());
            }
            new
        });
    }

    /// The bindings that are for this user: those of the cluster, then those of the namespace, each by name.
    fn bindings(&self, user: &User, namespace: &str) -> BTreeSet<&Place> {
        let whos = std::iter::once(Who::User(user.name.clone())).chain(user.groups.iter().cloned().map(Who::Group));
        let mut found = BTreeSet::new();
        for places in whos.filter_map(|who| self.by_subject.get(&who)) {
            let within = |namespace: &str| {
                let first: Place = (namespace.into(), "".into());
                let of = first.0.clone();
                places.range(first..).take_while(move |it| it.0 == of)
            };
            found.extend(within(""));
            if !namespace.is_empty() {
                found.extend(within(namespace));
            }
        }
        found
    }

    /// The rules of a role; an error in upstream's words when it is not there.
    pub(crate) fn role(&self, to: &RoleRef, namespace: &str) -> Result<&[Rule], String> {
        let (namespace, kind) = match to.kind.as_str() {
            "Role" => (namespace, "role"),
            "ClusterRole" => ("", "clusterrole"),
            other => return Err(format!("unsupported role reference kind: {other:?}")),
        };
        let found = self.roles.get(&(namespace.into(), to.name.as_str().into()));
        found.map(|it| it.it.as_slice()).ok_or_else(|| format!("{kind}.{GROUP} {:?} not found", to.name))
    }

    /// Shows each rule that is for this user until `seen` has seen enough. What of the roles could not be found is
    /// returned.
    fn visit<'a>(
        &'a self,
        user: &User,
        namespace: &str,
        mut seen: impl FnMut(&'a Place, &'a Binding, &'a Rule) -> bool,
    ) -> Vec<String> {
        let mut missing = Vec::new();
        for place in self.bindings(user, namespace) {
            let Some((place, Kept { it: binding, .. })) = self.bindings.get_key_value(place) else { continue };
            match self.role(&binding.role_ref, &place.0) {
                Ok(rules) => {
                    if rules.iter().any(|rule| seen(place, binding, rule)) {
                        return missing;
                    }
                }
                Err(why) if missing.contains(&why) => {}
                Err(why) => missing.push(why),
            }
        }
        missing
    }

    /// Every rule that is for this user in this namespace, and what of the roles could not be found.
    pub(crate) fn rules(&self, user: &User, namespace: &str) -> (Vec<Rule>, Option<String>) {
        let mut rules = Vec::new();
        let missing = self.visit(user, namespace, |_, _, rule| {
            rules.push(rule.clone());
            false
        });
        (rules, aggregate(&missing))
    }

    /// The binding that allows it, or why there is none: nothing is said where no role is missing.
    fn find(&self, user: &User, wanted: &Attributes) -> Result<(&Place, &Binding), String> {
        let namespace = match wanted {
            Attributes::Resource { namespace, .. } => namespace.as_str(),
            Attributes::Path { .. } => "",
        };
        let mut by = None;
        let missing = self.visit(user, namespace, |place, binding, rule| {
            let allows = rule.allows(wanted);
            if allows {
                by = Some((place, binding));
            }
            allows
        });
        by.ok_or_else(|| aggregate(&missing).map(|why| format!("RBAC: {why}")).unwrap_or_default())
    }

    /// An error says why, if there is anything to say.
    pub(crate) fn allow(&self, user: &User, wanted: &Attributes) -> Result<(), String> {
        self.find(user, wanted).map(drop)
    }

    /// [`Held::allow`] with the reason of both.
    pub(crate) fn decide(&self, user: &User, wanted: &Attributes) -> Decision {
        match self.find(user, wanted) {
            Ok((place, binding)) => {
                Decision { allowed: true, reason: format!("RBAC: allowed by {}", granted(user, place, binding)) }
            }
            Err(reason) => Decision { allowed: false, reason },
        }
    }
}

/// `ClusterRoleBinding "b" of ClusterRole "r" to Group "g"`.
fn granted(user: &User, place: &Place, binding: &Binding) -> String {
    let (namespace, name) = place;
    let is_user = |who: &Who| match who {
        Who::User(name) => *name == user.name,
        Who::Group(name) => user.groups.contains(name),
    };
    let subject = binding.subjects.iter().find(|it| it.who(namespace).is_some_and(|who| is_user(&who)));
    let to = subject.map(|it| it.described(namespace)).unwrap_or_default();
    let RoleRef { kind, name: role, .. } = &binding.role_ref;
    match &**namespace {
        "" => format!("ClusterRoleBinding {name:?} of {kind} {role:?} to {to}"),
        namespace => format!("RoleBinding {:?} of {kind} {role:?} to {to}", format!("{name}/{namespace}")),
    }
}

/// Go's aggregate of errors.
fn aggregate(all: &[String]) -> Option<String> {
    match all {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

/// Brings the part of a map that is `mine` to what the entries are. `change` is shown what there was and what there is,
/// and says what is to be kept.
fn for_each_change<T, O: DeserializeOwned + Default>(
    map: &mut BTreeMap<Place, Kept<T>>,
    mine: impl Fn(&Place) -> bool,
    entries: &[Arc<Entry>],
    mut change: impl FnMut(&Place, Option<&T>, Option<O>) -> Option<T>,
) {
    let mut gone: BTreeSet<Place> = map.keys().filter(|it| mine(it)).cloned().collect();
    for entry in entries {
        let place = (entry.key.namespace.clone(), entry.key.name.clone());
        gone.remove(&place);
        let known = map.get(&place);
        if known.is_some_and(|it| it.rev == entry.rev) {
            continue;
        }
        // What does not parse grants nothing.
        let new: O = serde_json::from_slice(&entry.json).unwrap_or_default();
        if let Some(it) = change(&place, known.map(|it| &it.it), Some(new)) {
            map.insert(place, Kept { rev: entry.rev, it });
        }
    }
    for place in gone {
        if let Some(old) = map.remove(&place) {
            change(&place, Some(&old.it), None);
        }
    }
}
