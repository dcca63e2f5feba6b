//! Which paths there are and what can be done there, as the registry and discovery know it, in upstream's words.

use super::parameters::{self, Fact, Parameter};
use super::{list_name, type_name};
use crate::discovery::{self, Part};
use crate::kinds::strategy;
use crate::object::builtin;
use crate::registry::{Resource, Resources, Version};

/// A path, what all its operations take, and the operations.
pub(super) struct Path {
    pub(super) url: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) operations: Vec<Operation>,
}

/// One method of a path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) description: String,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) consumes: Vec<&'static str>,
    pub(super) produces: Vec<&'static str>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    /// The type of the answer, which is text where there is none.
    pub(super) answer: Option<String>,
    /// The codes of success.
    pub(super) codes: &'static [u16],
    /// What is done with which kind, of what is done with objects.
    pub(super) action: Option<(&'static str, Named)>,
}

pub(super) struct Body {
    pub(super) of: String,
    pub(super) required: bool,
}

/// The group, version and kind of what an operation is about.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

pub(super) const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const ANY: &str = "*/*";
/// What is read and written of built-in kinds, and of definitions'.
const ENCODINGS: [&str; 3] = [JSON, YAML, "application/vnd.kubernetes.protobuf"];
const STREAMS: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// The methods that a proxy passes on.
const PASSED: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

const LIST: &[&[Fact]] = &[parameters::SELECT, parameters::RESOURCE_VERSION, parameters::WATCH, parameters::PRETTY];
const DELETE: &[&[Fact]] = &[parameters::DRY_RUN, parameters::DELETE, parameters::PRETTY];
const DELETE_ALL: &[&[Fact]] =
    &[parameters::SELECT, parameters::RESOURCE_VERSION, parameters::DRY_RUN, parameters::DELETE, parameters::PRETTY];
const WRITE: &[&[Fact]] = &[parameters::DRY_RUN, parameters::MANAGER, parameters::VALIDATION, parameters::PRETTY];
const PATCH: &[&[Fact]] = &[parameters::DRY_RUN, parameters::PATCH, parameters::VALIDATION, parameters::PRETTY];

/// What is no resource, by the name of its document: what it is, and the type that it answers.
pub(super) const ROOTS: [&str; 5] = [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"];

/// A path of [`ROOTS`].
pub(super) fn root(name: &str) -> Path {
    let (tag, id, description, answer) = match name {
        "api" => ("core", "getCoreAPIVersions", "get available API versions", Some("APIVersions")),
        "apis" => ("apis", "getAPIVersions", "get available API versions", Some("APIGroupList")),
        "version" => ("version", "getCodeVersion", "get the version information for this server", Some("")),
        "openid/v1/jwks" => (
            "openid",
            "getServiceAccountIssuerOpenIDKeyset",
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            None,
        ),
        _ => (
            "WellKnown",
            "getServiceAccountIssuerOpenIDConfiguration",
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            None,
        ),
    };
    let mut it = document(tag, id.to_owned(), description, answer.unwrap_or_default());
    match answer {
        Some("") => {
            it.answer = Some("io.k8s.apimachinery.pkg.version.Info".to_owned());
            (it.consumes, it.produces) = (vec![JSON], vec![JSON]);
        }
        Some(_) => {}
        None => {
            it.answer = None;
            it.consumes.clear();
            it.produces = vec![if tag == "openid" { "application/jwk-set+json" } else { JSON }];
        }
    }
    Path { url: format!("/{name}/"), parameters: Vec::new(), operations: vec![it] }
}

/// The document of a group.
pub(super) fn group(name: &str) -> Path {
    let id = format!("get{}APIGroup", capital(&camel(name)));
    let it = document(&camel(name), id, "get information of a group", "APIGroup");
    Path { url: format!("/apis/{name}/"), parameters: Vec::new(), operations: vec![it] }
}

/// The groups that have a document: those that not only definitions are in.
pub(super) fn groups(resources: &Resources) -> impl Iterator<Item = &str> {
    resources.order.iter().map(String::as_str).filter(|it| !resources.is_of_definitions(it))
}

/// Of a version of a group.
pub(super) fn version(group: &str, version: &Version) -> Vec<Path> {
    let prefix = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
    let prefix = format!("{prefix}/{}", version.name);
    let group = camel(group);
    let tag = format!("{group}_{}", version.name);
    let named = format!("{}{}", capital(&group), capital(&version.name));
    let mut all = Vec::new();
    if version.resources.values().any(|it| !it.is_custom()) {
        let it = document(&tag, format!("get{named}APIResources"), "get available resources", "APIResourceList");
        all.push(Path { url: format!("{prefix}/"), parameters: Vec::new(), operations: vec![it] });
    }
    for resource in version.resources.values() {
        Scene { resource, prefix: &prefix, tag: &tag, named: &named }.paths(&mut all);
    }
    all
}

fn document(tag: &str, id: String, description: &str, answer: &str) -> Operation {
    Operation {
        method: "get",
        description: description.to_owned(),
        id,
        tag: tag.to_owned(),
        consumes: ENCODINGS.to_vec(),
        produces: ENCODINGS.to_vec(),
        parameters: Vec::new(),
        body: None,
        answer: Some(format!("{META}{answer}")),
        codes: &[200],
        action: None,
    }
}

/// A resource, and what stands before and in the names of what is done with it: `/api/v1`, `core_v1`, `CoreV1`.
struct Scene<'a> {
    resource: &'a Resource,
    prefix: &'a str,
    tag: &'a str,
    named: &'a str,
}

impl Scene<'_> {
    fn paths(&self, all: &mut Vec<Path>) {
        let resource = self.resource;
        let Resource { kind, plural, namespaced, .. } = resource;
        let within = if *namespaced { "namespaces/{namespace}/" } else { "" };
        let scope = if *namespaced { "Namespaced" } else { "" };
        let of_all = |place: &str| format!("{}/{place}{plural}", self.prefix);
        let everywhere = if *namespaced { "ForAllNamespaces" } else { "" };
        let namespace: Vec<Parameter> = namespaced.then(Parameter::namespace).into_iter().collect();
        let one: Vec<Parameter> = [Parameter::name(kind)].into_iter().chain(namespace.clone()).collect();
        let verbs = discovery::verbs(resource);
        let able = |made: Vec<(&str, Operation)>| {
            made.into_iter().filter(|(verb, _)| verbs.contains(verb)).map(|(_, it)| it).collect::<Vec<_>>()
        };
        let id = format!("{scope}{kind}");

        let many = able(vec![
            ("list", self.list(&id)),
            ("create", self.create(&id)),
            ("deletecollection", self.delete_all(&format!("Collection{id}"))),
        ]);
        all.extend(path(of_all(within), many, &namespace));
        if *namespaced && verbs.contains(&"list") {
            all.extend(path(of_all(""), vec![self.list(&format!("{kind}{everywhere}"))], &[]));
        }
        let item = able(vec![
            ("get", self.read("", &id)),
            ("update", self.replace("", &id)),
            ("delete", self.delete(&id)),
            ("patch", self.patch("", &id)),
        ]);
        let url = format!("{}/{{name}}", of_all(within));
        all.extend(path(url.clone(), item, &one));
        for part in discovery::parts(resource) {
            self.part(&part, &url, &id, &namespace, all);
        }
        // The paths of old for watches, which definitions' resources are not said to have.
        if verbs.contains(&"watch") && !resource.is_custom() {
            if *namespaced {
                let it = self.watch(&format!("{kind}List{everywhere}"), true);
                all.extend(path(of_all("watch/"), vec![it], &[]));
            }
            let it = self.watch(&format!("{id}List"), true);
            all.extend(path(of_all(&format!("watch/{within}")), vec![it], &namespace));
            let url = format!("{}/{{name}}", of_all(&format!("watch/{within}")));
            all.extend(path(url, vec![self.watch(&id, false)], &one));
        }
    }

    /// A subresource.
    fn part(&self, part: &Part, url: &str, id: &str, namespace: &[Parameter], all: &mut Vec<Path>) {
        let resource = self.resource;
        let about = match part.kind {
            Some(kind) if !resource.is_custom() => {
                Named { group: part.group.to_owned(), version: part.version.to_owned(), kind: kind.to_owned() }
            }
            _ => self.about(),
        };
        let kind = part.kind.map(|kind| builtin::name_of(part.group, part.version, kind));
        let answer = match kind {
            None => Some(type_name(resource)),
            Some(known) => known.map(str::to_owned),
        };
        let id = format!("{id}{}", capital(part.name));
        let of = format!("{} of ", part.name);
        let mut place = vec![Parameter::name(&about.kind)];
        place.extend_from_slice(namespace);
        let url = format!("{url}/{}", part.name);
        if answer.is_none() {
            return self.connected(part, &url, &id, &about, &place, all);
        }
        let made = part.verbs.iter().filter_map(|verb| {
            let mut it = match *verb {
                "get" => self.read(&of, &id),
                "update" => self.replace(&of, &id),
                "patch" => self.patch(&of, &id),
                "create" => {
                    let mut it = self.create(&id);
                    it.description = format!("create {of}a {}", resource.kind);
                    it
                }
                _ => return None,
            };
            if let Some((_, named)) = &mut it.action {
                *named = about.clone();
            }
            it.answer.clone_from(&answer);
            if let Some(body) = &mut it.body
                && it.method != "patch"
            {
                body.of = answer.clone().unwrap_or_default();
            }
            if part.name == "log" {
                it.answer = None;
                it.produces.insert(0, "text/plain");
                it.parameters.extend(parameters::all(&[parameters::of_stream(part.name)]));
            }
            Some(it)
        });
        let mut made: Vec<Operation> = made.collect();
        made.sort_by_key(|it| ["get", "put", "post", "delete", "patch"].iter().position(|method| *method == it.method));
        all.extend(path(url, made, &place));
    }

    /// A subresource that passes on what it is sent; a proxy passes on every method, and the path below it.
    fn connected(&self, part: &Part, url: &str, id: &str, about: &Named, place: &[Parameter], all: &mut Vec<Path>) {
        if part.name != "proxy" {
            let made = ["get", "post"].map(|method| self.connect(method, part, id, about)).into();
            all.extend(path(url.to_owned(), made, place));
            return;
        }
        for (below, with) in [("", ""), ("/{path}", "WithPath")] {
            let id = format!("{id}{with}");
            let made = PASSED.map(|method| self.connect(method, part, &id, about)).into();
            let mut place = place.to_vec();
            if !below.is_empty() {
                place.push(Parameter::below());
            }
            all.extend(path(format!("{url}{below}"), made, &place));
        }
    }

    fn about(&self) -> Named {
        let Resource { group, version, kind, .. } = self.resource;
        Named { group: group.clone(), version: version.clone(), kind: kind.clone() }
    }

    /// `id`: what stands behind the group and version in the operation's name.
    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        (verb, id): (&str, &str),
        description: String,
        parameters: &[&[Fact]],
    ) -> Operation {
        let custom = self.resource.is_custom();
        Operation {
            method,
            description,
            id: format!("{verb}{}{id}", self.named),
            tag: self.tag.to_owned(),
            consumes: if custom { vec![JSON, YAML] } else { vec![ANY] },
            produces: if custom { vec![JSON, YAML] } else { ENCODINGS.to_vec() },
            parameters: parameters::all(parameters),
            body: None,
            answer: Some(type_name(self.resource)),
            codes: &[200],
            action: Some((action, self.about())),
        }
    }

    fn list(&self, id: &str) -> Operation {
        let custom = self.resource.is_custom();
        let watched = !custom && discovery::verbs(self.resource).contains(&"watch");
        let words = if watched { "list or watch objects" } else { "list objects" };
        let description = format!("{words} of kind {}", self.resource.kind);
        let mut it = self.operation("get", "list", ("list", id), description, LIST);
        it.answer = Some(list_name(self.resource));
        if !custom {
            it.produces.extend(STREAMS);
        }
        it
    }

    fn watch(&self, id: &str, many: bool) -> Operation {
        let kind = &self.resource.kind;
        let (action, description) = match many {
            true => (
                "watchlist",
                format!(
                    "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
                ),
            ),
            false => (
                "watch",
                format!(
                    "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
                ),
            ),
        };
        let mut it = self.operation("get", action, ("watch", id), description, LIST);
        it.answer = Some(format!("{META}WatchEvent"));
        it.produces.extend(STREAMS);
        it
    }

    fn create(&self, id: &str) -> Operation {
        let description = format!("create {}", with_article(&self.resource.kind));
        let mut it = self.operation("post", "post", ("create", id), description, WRITE);
        it.body = Some(Body { of: type_name(self.resource), required: true });
        it.codes = &[200, 201, 202];
        it
    }

    fn delete_all(&self, id: &str) -> Operation {
        let custom = self.resource.is_custom();
        let description = format!("delete collection of {}", self.resource.kind);
        let taken = if custom { LIST } else { DELETE_ALL };
        let mut it = self.operation("delete", "deletecollection", ("delete", id), description, taken);
        it.answer = Some(format!("{META}Status"));
        if !custom {
            it.body = Some(Body { of: format!("{META}DeleteOptions"), required: false });
        }
        it
    }

    fn delete(&self, id: &str) -> Operation {
        let description = format!("delete {}", with_article(&self.resource.kind));
        let mut it = self.operation("delete", "delete", ("delete", id), description, DELETE);
        if !strategy::answers_with_the_deleted(self.resource) || self.resource.is("", "namespaces") {
            it.answer = Some(format!("{META}Status"));
        }
        it.body = Some(Body { of: format!("{META}DeleteOptions"), required: false });
        it.codes = &[200, 202];
        it
    }

    /// `part`: `status of `, or nothing.
    fn read(&self, part: &str, id: &str) -> Operation {
        let description = format!("read {part}the specified {}", self.resource.kind);
        let taken: &[&[Fact]] = match self.resource.is_custom() {
            true => &[parameters::RESOURCE_VERSION, parameters::PRETTY],
            false => &[parameters::PRETTY],
        };
        self.operation("get", "get", ("read", id), description, taken)
    }

    fn replace(&self, part: &str, id: &str) -> Operation {
        let description = format!("replace {part}the specified {}", self.resource.kind);
        let mut it = self.operation("put", "put", ("replace", id), description, WRITE);
        it.body = Some(Body { of: type_name(self.resource), required: true });
        it.codes = &[200, 201];
        it
    }

    fn patch(&self, part: &str, id: &str) -> Operation {
        let custom = self.resource.is_custom();
        let description = format!("partially update {part}the specified {}", self.resource.kind);
        let mut it = self.operation("patch", "patch", ("patch", id), description, PATCH);
        it.body = Some(Body { of: format!("{META}Patch"), required: true });
        it.consumes = PATCHES.into_iter().filter(|it| !(custom && it.contains("strategic"))).collect();
        it.codes = if custom { &[200] } else { &[200, 201] };
        it
    }

    /// A connection that is passed on.
    fn connect(&self, method: &'static str, part: &Part, id: &str, about: &Named) -> Operation {
        let description =
            format!("connect {} requests to {} of {}", method.to_uppercase(), part.name, self.resource.kind);
        let id = format!("{}{id}", capital(method));
        let taken = parameters::of_stream(part.name);
        let mut it = self.operation(method, "connect", ("connect", &id), description, &[taken]);
        it.produces = vec![ANY];
        it.answer = None;
        it.action = Some(("connect", about.clone()));
        it
    }
}

/// A path with operations. What all of them take stands at the path itself.
fn path(url: String, mut operations: Vec<Operation>, place: &[Parameter]) -> Option<Path> {
    let mut shared = operations.first()?.parameters.clone();
    shared.retain(|it| operations.iter().all(|operation| operation.parameters.contains(it)));
    for operation in &mut operations {
        operation.parameters.retain(|it| !shared.contains(it));
    }
    let mut parameters = [place, &shared].concat();
    parameters.sort_by_key(|it| it.name);
    Some(Path { url, parameters, operations })
}

/// `a Pod`, `an Ingress`; `Endpoints` as it is.
fn with_article(noun: &str) -> String {
    if noun.ends_with('s') && !noun.ends_with("ss") {
        return noun.to_owned();
    }
    let vowel = noun.starts_with(|first: char| "aeiou".contains(first.to_ascii_lowercase()));
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// `apps`, `rbacAuthorization`, `core`.
fn camel(group: &str) -> String {
    if group.is_empty() {
        return "core".to_owned();
    }
    let mut words = group.strip_suffix(".k8s.io").unwrap_or(group).split(|it: char| !it.is_ascii_alphanumeric());
    let first = words.next().unwrap_or_default();
    words.fold(first.to_owned(), |text, word| text + &capital(word))
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}
