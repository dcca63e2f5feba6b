//! Which resources there are: the built-in kinds, and those that CustomResourceDefinitions define.

pub(crate) mod cleanup;
pub(crate) mod custom;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, RwLock};

use serde_json::Value;

use crate::kinds::{KINDS, Kind, TOKEN_REQUEST};
use crate::object::status::What;
use crate::object::table::Printer;
use crate::object::{Schema, builtin};
use crate::store::{Entry, Key};

/// One resource in one version: what a URL names.
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Has `/status`: then the status is not written through the resource itself.
    pub(crate) status: bool,
    pub(crate) scale: Option<Scale>,
    /// The group under which the objects are stored, with `plural` as the resource.
    pub(crate) stored_group: String,
    /// The `apiVersion` that stored objects carry.
    pub(crate) stored_api_version: String,
    /// Answers at once and stores nothing: a review.
    pub(crate) review: bool,
    pub(crate) model: Model,
    printer: OnceLock<Printer>,
}

/// Where `/scale` finds its numbers, as paths of field names.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) spec: Vec<String>,
    pub(crate) status: Vec<String>,
    pub(crate) selector: Option<Vec<String>>,
}

/// What the objects look like.
pub(crate) enum Model {
    Builtin(&'static Kind),
    Custom(Custom),
}

/// One version of a CustomResourceDefinition, its schema compiled when first needed.
#[derive(Debug)]
pub(crate) struct Custom {
    pub(crate) definition: Arc<Entry>,
    /// The index into `spec.versions`.
    pub(crate) at: usize,
    schema: OnceLock<Schema>,
    /// Of the version that is kept.
    kept_schema: OnceLock<Schema>,
    /// JSON paths that may be used in field selectors.
    pub(crate) selectable: Vec<String>,
    pub(crate) deprecated: Option<String>,
    /// The definition is going: nothing new is taken.
    pub(crate) terminating: bool,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// Of the bodies of `serviceaccounts/token`.
    pub(crate) fn token_request() -> Arc<Self> {
        static IT: LazyLock<Arc<Resource>> = LazyLock::new(|| Arc::new(of_builtin(&TOKEN_REQUEST)));
        IT.clone()
    }

    /// For errors about an object.
    pub(crate) fn what(&self) -> What<'_> {
        What::new(&self.group, &self.plural)
    }

    /// For errors about fields.
    pub(crate) fn what_kind(&self) -> What<'_> {
        What::new(&self.group, &self.kind)
    }

    pub(crate) fn key(&self, namespace: &str, name: &str) -> Key {
        let namespace = if self.namespaced { namespace } else { "" };
        Key::new(self.stored_group.as_str(), self.plural.as_str(), namespace, name)
    }

    pub(crate) fn is_listed(&self) -> bool {
        match &self.model {
            Model::Builtin(kind) => kind.verbs.contains(&"list"),
            Model::Custom(_) => true,
        }
    }

    pub(crate) fn is_custom(&self) -> bool {
        matches!(self.model, Model::Custom(_))
    }

    /// Whether what is stored is what this version answers, but for nothing.
    pub(crate) fn is_stored_version(&self) -> bool {
        self.group == self.stored_group && self.stored_api_version == self.api_version()
    }

    /// Whether a kept object is answered byte by byte. One that is older than its definition may lack a default of it, or have
    /// a field that it has no more.
    pub(crate) fn shows_as_kept(&self, entry: &Entry) -> bool {
        self.is_stored_version() && !self.is_outdated(entry)
    }

    pub(crate) fn is_outdated(&self, entry: &Entry) -> bool {
        matches!(&self.model, Model::Custom(custom) if entry.rev < custom.definition.rev)
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.stored_group == group && self.plural == plural
    }

    pub(crate) fn schema(&self) -> Schema {
        match &self.model {
            Model::Builtin(kind) => kind.schema(),
            Model::Custom(custom) => custom.schema(),
        }
    }

    pub(crate) fn printer(&self) -> &Printer {
        self.printer.get_or_init(|| match &self.model {
            Model::Builtin(kind) => Printer::builtin(kind.group, kind.kind),
            Model::Custom(custom) => Printer::custom(custom.version().get("additionalPrinterColumns")),
        })
    }
}

impl Custom {
    /// This version's part of the definition.
    pub(crate) fn version(&self) -> Value {
        let mut definition = self.definition.value();
        definition.pointer_mut(&format!("/spec/versions/{}", self.at)).map(Value::take).unwrap_or_default()
    }

    pub(crate) fn schema(&self) -> Schema {
        self.schema
            .get_or_init(|| {
                let version = self.version();
                let openapi = version.pointer("/schema/openAPIV3Schema").unwrap_or(&Value::Null);
                Schema::trusted(openapi)
            })
            .clone()
    }
}

impl Custom {
    /// The schema of the version in which objects are kept.
    pub(crate) fn kept_schema(&self) -> &Schema {
        self.kept_schema.get_or_init(|| {
            let definition = self.definition.value();
            let all = definition.pointer("/spec/versions").and_then(Value::as_array);
            let kept = all.into_iter().flatten().find(|it| it.get("storage") == Some(&Value::Bool(true)));
            Schema::trusted(kept.and_then(|it| it.pointer("/schema/openAPIV3Schema")).unwrap_or(&Value::Null))
        })
    }
}

impl Kind {
    /// The name of its type in Kubernetes' OpenAPI: `io.k8s.api.core.v1.Pod`.
    pub(crate) fn definition(&'static self) -> String {
        (self.name)()
    }

    pub(crate) fn schema(&'static self) -> Schema {
        builtin::schema(&self.definition()).unwrap_or_else(|| {
            tracing::error!(kind = self.kind, "a built-in kind without a schema");
            Schema::trusted(&Value::Null)
        })
    }
}

pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// A group's versions, the preferred one first.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) versions: Vec<Version>,
}

pub(crate) struct Version {
    pub(crate) name: String,
    /// In the order of their plurals.
    pub(crate) resources: BTreeMap<String, Arc<Resource>>,
}

/// All resources at one time.
#[derive(Default)]
pub(crate) struct Resources {
    /// Groups in the order in which aggregated discovery lists them: upstream's own, then those of definitions by name. The
    /// core group is not among them. Clients take the first one where a short name means several.
    pub(crate) order: Vec<String>,
    pub(crate) groups: HashMap<String, Group>,
    /// The definitions among them, by their revisions, and what each serves.
    definitions: Vec<(u64, Vec<Arc<Resource>>)>,
}

impl Resources {
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.version(group, version)?.resources.get(plural)
    }

    pub(crate) fn version(&self, group: &str, version: &str) -> Option<&Version> {
        self.groups.get(group)?.versions.iter().find(|it| it.name == version)
    }

    /// The resource of an `apiVersion` and kind.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.version(group, version)?.resources.values().find(|it| it.kind == kind)
    }

    /// Each stored resource once, in its preferred version.
    pub(crate) fn preferred(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.values().flat_map(|group| {
            let mut seen = std::collections::BTreeSet::new();
            let all = group.versions.iter().flat_map(|version| version.resources.values());
            all.filter(move |it| it.group == it.stored_group && !it.review && seen.insert(it.plural.clone()))
        })
    }

    /// Whether all that the group serves comes from definitions.
    pub(crate) fn is_of_definitions(&self, group: &str) -> bool {
        let versions = self.groups.get(group).map(|it| it.versions.as_slice()).unwrap_or_default();
        versions.iter().all(|version| version.resources.values().all(|it| it.is_custom()))
    }

    fn add(&mut self, resource: Arc<Resource>) {
        if !self.groups.contains_key(&resource.group) && !resource.group.is_empty() {
            self.order.push(resource.group.clone());
        }
        let group = self.groups.entry(resource.group.clone()).or_default();
        let at = match group.versions.iter().position(|it| it.name == resource.version) {
            Some(at) => at,
            None => {
                group.versions.push(Version { name: resource.version.clone(), resources: BTreeMap::new() });
                group.versions.len() - 1
            }
        };
        if let Some(version) = group.versions.get_mut(at) {
            version.resources.insert(resource.plural.clone(), resource);
        }
    }
}

fn of_builtin(kind: &'static Kind) -> Resource {
    Resource {
        group: kind.group.into(),
        version: kind.version.into(),
        plural: kind.plural.into(),
        singular: kind.kind.to_lowercase(),
        kind: kind.kind.into(),
        list_kind: format!("{}List", kind.kind),
        short_names: kind.short_names.iter().map(|it| (*it).to_owned()).collect(),
        categories: kind.categories.iter().map(|it| (*it).to_owned()).collect(),
        namespaced: kind.namespaced,
        status: kind.status,
        scale: kind.scale.then(|| Scale {
            spec: vec!["spec".into(), "replicas".into()],
            status: vec!["status".into(), "replicas".into()],
            selector: None,
        }),
        stored_group: kind.stored_group.into(),
        stored_api_version: kind.stored_api_version(),
        review: kind.review,
        model: Model::Builtin(kind),
        printer: OnceLock::new(),
    }
}

/// The resources, changed as a whole whenever a definition is.
pub(crate) struct Registry {
    builtin: Vec<Arc<Resource>>,
    now: RwLock<Arc<Resources>>,
    /// Held while the definitions are read and taken over: later reads are taken over later.
    turn: Mutex<()>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self {
            builtin: KINDS.iter().map(|kind| Arc::new(of_builtin(kind))).collect(),
            now: RwLock::default(),
            turn: Mutex::new(()),
            changed: tokio::sync::watch::Sender::new(0),
        }
    }

    pub(crate) fn now(&self) -> Arc<Resources> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rings whenever resources come or go.
    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over the definitions as they are now: [`custom::served`] of each is what is served. What has not changed
    /// stays as it is, with all that was made of it.
    pub(crate) fn update(&self, definitions: impl FnOnce() -> Vec<Arc<Entry>>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let definitions = definitions();
        let before = self.now();
        if !before.groups.is_empty() && before.definitions.iter().map(|it| it.0).eq(definitions.iter().map(|it| it.rev))
        {
            return;
        }
        let mut next = Resources::default();
        for resource in &self.builtin {
            next.add(resource.clone());
        }
        for definition in &definitions {
            let known = before.definitions.iter().find(|it| it.0 == definition.rev).map(|it| it.1.clone());
            let served = known.unwrap_or_else(|| custom::served(definition).into_iter().map(Arc::new).collect());
            served.iter().for_each(|resource| next.add(resource.clone()));
            next.definitions.push((definition.rev, served));
        }
        let place = |group: &str| ORDER.iter().position(|it| *it == group).unwrap_or(ORDER.len());
        next.order.sort_by(|a, b| (place(a), a).cmp(&(place(b), b)));
        for group in next.groups.values_mut() {
            if group.versions.iter().all(|version| version.resources.values().all(|it| it.is_custom())) {
                group.versions.sort_by_cached_key(|version| custom::priority(&version.name));
            }
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.changed.send_modify(|stamp| *stamp += 1);
    }
}

/// Groups in the order of upstream's discovery.
const ORDER: [&str; 19] = [
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
];
