//! What can be said beside the body of a request.

use std::borrow::Cow;
use std::sync::LazyLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// A parameter of a path or an operation.
#[derive(Clone, PartialEq)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    kind: &'static str,
    pub(super) description: Cow<'static, str>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    Path,
    Query,
}

impl Parameter {
    /// The name of an object of this kind.
    pub(super) fn name(kind: &str) -> Self {
        Self { description: format!("name of the {kind}").into(), ..Self::path("name") }
    }

    pub(super) fn namespace() -> Self {
        Self { description: "name of the namespace that the object is in".into(), ..Self::path("namespace") }
    }

    /// The path that a proxy asks for.
    pub(super) fn below() -> Self {
        Self { description: "path that is asked for behind the proxy".into(), ..Self::path("path") }
    }

    fn path(name: &'static str) -> Self {
        Self { name, place: Place::Path, kind: "string", description: Cow::Borrowed("") }
    }

    fn query((name, kind, description): (&'static str, &'static str, &'static str)) -> Self {
        let description = match description {
            "" => DELETE_OPTIONS.pointer(&format!("/properties/{name}/description")).and_then(Value::as_str),
            said => Some(said),
        };
        Self { name, place: Place::Query, kind, description: description.unwrap_or_default().into() }
    }

    /// As OpenAPI 3.0 has it.
    pub(super) fn v3(&self) -> Value {
        let mut it = Map::new();
        it.insert("name".into(), json!(self.name));
        it.insert("in".into(), json!(self.within()));
        it.insert("description".into(), json!(self.description));
        if self.place == Place::Path {
            it.insert("required".into(), json!(true));
        }
        it.insert("schema".into(), json!({"type": self.kind, "uniqueItems": true}));
        Value::Object(it)
    }

    /// As OpenAPI 2.0 has it.
    pub(super) fn v2(&self) -> Value {
        let mut it = Map::new();
        it.insert("uniqueItems".into(), json!(true));
        it.insert("type".into(), json!(self.kind));
        it.insert("description".into(), json!(self.description));
        it.insert("name".into(), json!(self.name));
        it.insert("in".into(), json!(self.within()));
        if self.place == Place::Path {
            it.insert("required".into(), json!(true));
        }
        Value::Object(it)
    }

    fn within(&self) -> &'static str {
        match self.place {
            Place::Path => "path",
            Place::Query => "query",
        }
    }
}

/// These parameters, in the order of their names.
pub(super) fn all(facts: &[&[Fact]]) -> Vec<Parameter> {
    let mut all: Vec<Parameter> = facts.iter().flat_map(|it| it.iter().copied().map(Parameter::query)).collect();
    all.sort_by_key(|it| it.name);
    all
}

/// Name, type and description. Without one it is that of the same field of `DeleteOptions`.
pub(super) type Fact = (&'static str, &'static str, &'static str);

static DELETE_OPTIONS: LazyLock<Value> = LazyLock::new(|| {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let _ = generator.subschema_for::<DeleteOptions>();
    generator
        .take_definitions(false)
        .into_iter()
        .map(|(_, it)| it)
        .find(|it| it.pointer("/properties/dryRun").is_some())
        .unwrap_or_default()
});

pub(super) const PRETTY: &[Fact] =
    &[("pretty", "string", "Whether JSON is written with line breaks: 'true' or 'false'.")];
pub(super) const RESOURCE_VERSION: &[Fact] = &[(
    "resourceVersion",
    "string",
    "How new the answer must be at least; for a watch, after which revision it begins. See https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions.",
)];
/// Of lists, and of what is done with all objects of a list.
pub(super) const SELECT: &[Fact] = &[
    (
        "continue",
        "string",
        "Where the list goes on: `metadata.continue` of its part before this one. All else is asked as before.",
    ),
    (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    (
        "limit",
        "integer",
        "How many objects one answer has at most. When there are more, its `metadata.continue` is set.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How a list takes `resourceVersion`: `Exact` or `NotOlderThan`. See https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begins a watch with an event for each object that there is, and a bookmark at their end. Needs `resourceVersionMatch=NotOlderThan`.",
    ),
    ("timeoutSeconds", "integer", "The seconds after which a list or a watch ends, whatever happens in it."),
];
pub(super) const WATCH: &[Fact] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "Takes events of the type BOOKMARK in a watch, which say the revision that it has come to.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications. Specify resourceVersion.",
    ),
];
pub(super) const DRY_RUN: &[Fact] = &[("dryRun", "string", "")];
pub(super) const DELETE: &[Fact] = &[
    ("gracePeriodSeconds", "integer", ""),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", ""),
    ("orphanDependents", "boolean", ""),
    ("propagationPolicy", "string", ""),
];
pub(super) const MANAGER: &[Fact] =
    &[("fieldManager", "string", "The name that owns what is changed: at most 128 printable characters.")];
pub(super) const VALIDATION: &[Fact] = &[(
    "fieldValidation",
    "string",
    "What becomes of a request with fields that its kind does not have, or has twice. `Ignore` drops them, `Warn` also tells them in warnings and is the default, `Strict` refuses the request.",
)];
pub(super) const PATCH: &[Fact] = &[
    (
        "fieldManager",
        "string",
        "The name that owns what is changed: at most 128 printable characters. Apply (application/apply-patch) does not go without.",
    ),
    ("force", "boolean", "Takes fields from others that own them, with other values. For apply alone."),
];

/// What a subresource of pods takes.
pub(super) fn of_stream(subresource: &str) -> &'static [Fact] {
    match subresource {
        "attach" => &[
            ("container", "string", "The container to attach to. Not needed where the pod has one alone."),
            ("stderr", "boolean", "Whether its standard error is sent, which is so unless said."),
            ("stdin", "boolean", "Whether it is sent a standard input, which is not so unless said."),
            ("stdout", "boolean", "Whether its standard output is sent, which is so unless said."),
            ("tty", "boolean", "Whether the streams are those of a terminal, which is not so unless said."),
        ],
        "exec" => &[
            ("command", "string", "The program to run and its arguments, one parameter each. No shell reads them."),
            ("container", "string", "The container to run it in. Not needed where the pod has one alone."),
            ("stderr", "boolean", "Whether its standard error is sent."),
            ("stdin", "boolean", "Whether it is sent a standard input, which is not so unless said."),
            ("stdout", "boolean", "Whether its standard output is sent."),
            ("tty", "boolean", "Whether it gets a terminal, which is not so unless said."),
        ],
        "log" => &[
            ("container", "string", "The container whose log is read. Not needed where the pod has one alone."),
            ("follow", "boolean", "Whether what is logged from now on is sent too."),
            (
                "insecureSkipTLSVerifyBackend",
                "boolean",
                "Whether the node is asked without proof that it is the one: then nobody vouches for the log.",
            ),
            ("limitBytes", "integer", "The bytes after which the log ends, be it within a line."),
            ("previous", "boolean", "Whether the log is that of the container before it was started again."),
            ("sinceSeconds", "integer", "How many seconds ago the log begins. Not together with `sinceTime`."),
            (
                "stream",
                "string",
                "Which streams are read: `All`, `Stdout` or `Stderr`. Unless said, all; with `tailLines`, always.",
            ),
            ("tailLines", "integer", "How many lines from its end the log begins. Unless said, at its beginning."),
            ("timestamps", "boolean", "Whether every line begins with its time, as RFC 3339 writes it."),
        ],
        "proxy" => &[("path", "string", "The path that is asked for behind the proxy.")],
        "portforward" => &[("ports", "integer", "The ports to forward. Needed with WebSockets.")],
        _ => &[],
    }
}
