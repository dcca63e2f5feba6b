//! Who has which rules: every role and binding, indexed by whom it is for. Follows the store change by change whenever
//! somebody asks, so that a write is in force for whoever learns that it was done; no question costs more than the changes
//! since the last one and the bindings of who asks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde::Deserialize;
use tokio::sync::watch;

use super::rules::{Rule, nullable};
use super::{Attributes, User};
use crate::store::{Entry, Store, Watch};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
/// Roles before bindings: the latter refer to the former.
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Namespace (empty for the whole cluster) and name.
type Place = (Arc<str>, Arc<str>);

pub(crate) struct Roles {
    held: RwLock<Held>,
    followed: Mutex<[Followed; 4]>,
}

/// One of the resources.
struct Followed {
    resource: &'static str,
    bell: watch::Receiver<u64>,
    /// None before it has been looked at for the first time.
    changes: Option<Watch>,
}

#[derive(Default)]
pub(crate) struct Held {
    roles: BTreeMap<Place, Vec<Rule>>,
    bindings: BTreeMap<Place, Binding>,
    by_subject: HashMap<Who, BTreeSet<Place>>,
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
        let follow = |resource| Followed { resource, bell: store.bell(GROUP, resource), changes: None };
        Self { held: RwLock::default(), followed: Mutex::new(RESOURCES.map(follow)) }
    }

    /// As they are in the store now.
    pub(crate) fn now(&self, store: &Store) -> RwLockReadGuard<'_, Held> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        for one in followed.iter_mut() {
            if one.changes.is_none() || one.bell.has_changed().unwrap_or(true) {
                let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                one.catch_up(store, &mut held);
            }
        }
        drop(followed);
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Followed {
    fn catch_up(&mut self, store: &Store, held: &mut Held) {
        // Marked before it is looked at: what rings meanwhile is looked at again.
        let rang = *self.bell.borrow_and_update();
        if let Some(changes) = &mut self.changes {
            while let Some(change) = changes.ready() {
                held.put(self.resource, &change.entry, change.deleted);
            }
            if changes.progress() >= rang {
                return;
            }
        }
        // The first time, or so much has happened since the last that the store has dropped some of it.
        let listed = store.list(GROUP, self.resource, None, None, None);
        held.clear(self.resource);
        for entry in &listed.entries {
            held.put(self.resource, entry, false);
        }
        self.changes = store.watch(GROUP, self.resource, None, listed.rev).ok();
    }
}

impl Held {
    /// Forgets the objects of a resource. A ClusterRole has no namespace and a Role has one, so the two share a map.
    fn clear(&mut self, resource: &str) {
        let mine = |place: &Place| place.0.is_empty() == resource.starts_with("cluster");
        if resource.ends_with("roles") {
            self.roles.retain(|place, _| !mine(place));
            return;
        }
        self.bindings.retain(|place, _| !mine(place));
        self.by_subject.retain(|_, places| {
            places.retain(|place| !mine(place));
            !places.is_empty()
        });
    }

    /// Takes an object over, or forgets it.
    fn put(&mut self, resource: &str, entry: &Entry, gone: bool) {
        let place = (entry.key.namespace.clone(), entry.key.name.clone());
        // What does not parse grants nothing.
        if resource.ends_with("roles") {
            if gone {
                self.roles.remove(&place);
            } else {
                let role: Role = serde_json::from_slice(&entry.json).unwrap_or_default();
                self.roles.insert(place, role.rules);
            }
            return;
        }
        let old = self.bindings.remove(&place);
        for who in old.iter().flat_map(|it| &it.subjects).filter_map(|it| it.who(&place.0)) {
            if let Some(places) = self.by_subject.get_mut(&who) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_subject.remove(&who);
                }
            }
        }
        if gone {
            return;
        }
        let new: Binding = serde_json::from_slice(&entry.json).unwrap_or_default();
        for who in new.subjects.iter().filter_map(|it| it.who(&place.0)) {
            self.by_subject.entry(who).or_default().insert(place.clone());
        }
        self.bindings.insert(place, new);
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
        found.map(Vec::as_slice).ok_or_else(|| format!("{kind}.{GROUP} {:?} not found", to.name))
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
            let Some((place, binding)) = self.bindings.get_key_value(place) else { continue };
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
