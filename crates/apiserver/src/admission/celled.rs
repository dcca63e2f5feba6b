//! What expressions of admission see, and the conditions on which somebody is asked at all: upstream's
//! `pkg/admission/plugin/{cel,webhook/matchconditions}`.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use super::review;
use crate::access::roles::Decision;
use crate::access::{self, Attributes};
use crate::cel::{self, Authz, CALL_LIMIT, Decl, Failed, Program, Shape, Slot, Type};
use crate::object::schema::aside;
use crate::verbs::{Call, meta};

/// What all conditions of one webhook may cost together.
const BUDGET: u64 = 2_500_000;
/// The name of what holds a policy's variables.
pub(super) const VARIABLES: &str = "variables";
const AUTHORIZER: &str = "authorizer";
const REQUEST_RESOURCE: &str = "authorizer.requestResource";
pub(super) const BROKE: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

fn plain(shape: Shape) -> Arc<Decl> {
    Arc::new(Decl::new(shape, 0, 0))
}

fn texts() -> Arc<Decl> {
    plain(Shape::List(plain(Shape::Text), cel::Order::Atomic))
}

fn object(name: &str, fields: &[(&str, Arc<Decl>)]) -> Arc<Decl> {
    let slot = |(name, decl): &(&str, Arc<Decl>)| (Box::from(*name), Slot { json: (*name).into(), decl: decl.clone() });
    let mut decl = Decl::new(Shape::Object(fields.iter().map(slot).collect()), 0, 0);
    decl.name = name.into();
    Arc::new(decl)
}

static ANY: LazyLock<Arc<Decl>> = LazyLock::new(|| plain(Shape::Any));

static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || plain(Shape::Text);
    let kind = object("kubernetes.GroupVersionKind", &[("group", text()), ("version", text()), ("kind", text())]);
    let resource =
        object("kubernetes.GroupVersionResource", &[("group", text()), ("version", text()), ("resource", text())]);
    let user = object(
        "kubernetes.UserInfo",
        &[("username", text()), ("uid", text()), ("groups", texts()), ("extra", plain(Shape::Map(texts())))],
    );
    object(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", text()),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", plain(Shape::Bool)),
            ("options", ANY.clone()),
        ],
    )
});

static NAMESPACE: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let (text, number, time) = (|| plain(Shape::Text), || plain(Shape::Int), || plain(Shape::Timestamp));
    let map = || plain(Shape::Map(plain(Shape::Text)));
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", map()),
            ("annotations", map()),
            ("UID", text()),
            ("creationTimestamp", time()),
            ("deletionGracePeriodSeconds", number()),
            ("deletionTimestamp", time()),
            ("generation", number()),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = object("kubernetes.NamespaceSpec", &[("finalizers", texts())]);
    let condition = object(
        "kubernetes.NamespaceCondition",
        &[
            ("status", text()),
            ("type", text()),
            ("lastTransitionTime", time()),
            ("message", text()),
            ("reason", text()),
        ],
    );
    let conditions = plain(Shape::List(condition, cel::Order::Atomic));
    let status = object("kubernetes.NamespaceStatus", &[("conditions", conditions), ("phase", text())]);
    object("kubernetes.Namespace", &[("metadata", metadata), ("spec", spec), ("status", status)])
});

/// What expressions of one webhook or policy may mention.
pub(crate) struct Environment {
    object: Type,
    params: Option<Type>,
    /// Whether there is `authorizer.requestResource`.
    request_resource: bool,
    /// The variables of a policy, as `variables.<name>`: CEL finds longer names first.
    composed: Option<Vec<(String, Type)>>,
}

impl Environment {
    /// `params`: there are parameters; `composed`: there are variables of a policy's own.
    pub(crate) fn new(params: bool, composed: bool) -> Self {
        let params = params.then_some(Type::Dyn);
        Self { object: Type::Dyn, params, request_resource: true, composed: composed.then(Vec::new) }
    }

    /// What a policy may mention, for objects and parameters of these types: to say what is wrong with it by them.
    pub(super) fn typed(object: Arc<Decl>, params: Option<Arc<Decl>>) -> Self {
        let params = params.map(|it| it.type_of());
        // Upstream's type checker declares no `authorizer.requestResource`.
        Self { object: object.type_of(), params, request_resource: false, composed: Some(Vec::new()) }
    }

    /// Compiles an expression that has one of these types; the error is in upstream's words.
    pub(crate) fn compile(&self, source: &str, wanted: &[Type]) -> Result<Program, String> {
        Self::of_type(self.any(source, true)?, wanted)
    }

    /// Compiles the expression of a message, which cannot ask what somebody may do.
    pub(crate) fn message(&self, source: &str) -> Result<Program, String> {
        Self::of_type(self.any(source, false)?, &[Type::Text])
    }

    fn of_type(program: Program, wanted: &[Type]) -> Result<Program, String> {
        if wanted.iter().any(|it| program.output().is_exactly(it)) {
            return Ok(program);
        }
        let shown: Vec<String> = wanted
            .iter()
            .map(|it| match it {
                Type::Null => "null_type".to_owned(),
                other => other.to_string(),
            })
            .collect();
        Err(match shown.as_slice() {
            [one] => format!("must evaluate to {one} but got {}", program.output()),
            many => format!("must evaluate to one of [{}] but got {}", many.join(" "), program.output()),
        })
    }

    /// Compiles a variable, for those that come after it.
    pub(crate) fn declare(&mut self, name: &str, source: &str) -> Result<Program, String> {
        let program = self.any(source, true);
        self.compose(name, program.as_ref().ok().map(Program::output));
        program
    }

    /// [`Environment::declare`] where the type is all that matters.
    pub(super) fn learn(&mut self, name: &str, source: &str) {
        let of = cel::type_of(source, &self.variables(true));
        self.compose(name, of.as_ref().ok());
    }

    /// What is wrong with an expression, of whatever type it is.
    pub(super) fn issues(&self, source: &str) -> Option<String> {
        cel::type_of(source, &self.variables(true)).err()
    }

    fn compose(&mut self, name: &str, of: Option<&Type>) {
        if let Some(composed) = &mut self.composed {
            composed.push((format!("{VARIABLES}.{name}"), of.map_or(Type::Dyn, seen)));
        }
    }

    fn any(&self, source: &str, authorizer: bool) -> Result<Program, String> {
        Program::compile(source, &self.variables(authorizer)).map_err(|why| why.to_string())
    }

    fn variables(&self, authorizer: bool) -> Vec<(&str, Type)> {
        let mut variables = vec![
            ("object", self.object.clone()),
            ("oldObject", self.object.clone()),
            ("request", Type::Object(REQUEST.clone())),
            ("namespaceObject", Type::Object(NAMESPACE.clone())),
        ];
        variables.extend(self.params.iter().map(|it| ("params", it.clone())));
        if authorizer {
            variables.push((AUTHORIZER, cel::AUTHORIZER));
        }
        if authorizer && self.request_resource {
            variables.push((REQUEST_RESOURCE, cel::RESOURCE_CHECK));
        }
        if let Some(composed) = &self.composed {
            let prefix = VARIABLES.len() + 1;
            let fields: Vec<_> = composed.iter().filter_map(|it| Some((it.0.get(prefix..)?, ANY.clone()))).collect();
            variables.push((VARIABLES, Type::Object(object("kubernetes.variables", &fields))));
            variables.extend(composed.iter().map(|(name, of)| (name.as_str(), of.clone())));
        }
        variables
    }
}

/// A type as expressions see it that mention a variable of it.
fn seen(of: &Type) -> Type {
    match of {
        Type::List(item) => Type::List(Arc::new(seen(item))),
        Type::Map(types) => Type::Map(Arc::new((seen(&types.0), seen(&types.1)))),
        Type::Object(_) | Type::Library(_) | Type::Optional(_) | Type::Kind(_) => Type::Dyn,
        other => other.clone(),
    }
}

/// What an expression is evaluated on.
pub(super) struct Scene<'a> {
    gate: &'a Gate<'a>,
    object: cel::Value<'a>,
    old: cel::Value<'a>,
    request: &'a Value,
    namespace: Option<&'a Value>,
    params: Option<&'a Value>,
}

fn any<'a>(it: Option<&'a Value>) -> cel::Value<'a> {
    // What has any shape fits whatever it is.
    it.and_then(|it| cel::Value::view(it, &ANY).ok()).unwrap_or(cel::Value::Null)
}

impl<'a> Scene<'a> {
    /// `request` as [`super::review::Request::described`] and `dryRun` and `options`.
    pub(super) fn new(
        gate: &'a Gate<'a>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
        request: &'a Value,
    ) -> Self {
        Self { gate, object: any(object), old: any(old), request, namespace: None, params: None }
    }

    pub(super) fn gate(&self) -> &'a Gate<'a> {
        self.gate
    }

    /// With what policies see besides.
    pub(super) fn with(self, namespace: Option<&'a Value>, params: Option<&'a Value>) -> Self {
        Self { namespace, params, ..self }
    }

    /// What there is but for the authorizer.
    pub(super) fn variables(&self) -> Result<Vec<(&'static str, cel::Value<'a>)>, Failed> {
        let namespace = self.namespace.map(|it| cel::Value::view(it, &NAMESPACE)).transpose()?;
        Ok(vec![
            ("object", self.object.clone()),
            ("oldObject", self.old.clone()),
            ("request", cel::Value::view(self.request, &REQUEST)?),
            ("namespaceObject", namespace.unwrap_or(cel::Value::Null)),
            ("params", any(self.params)),
        ])
    }
}

/// Who is asked what the user of a request, or a service account, may do.
pub(super) struct Gate<'a> {
    call: &'a Call,
    /// What the request is about.
    resource: cel::Resource,
}

impl<'a> Gate<'a> {
    pub(super) fn new(call: &'a Call, object: Option<&Value>) -> Self {
        let name = match call.name.as_str() {
            "" => object.map(meta::name).unwrap_or_default(),
            name => name,
        };
        let resource = cel::Resource {
            group: call.resource.group.clone(),
            resource: call.resource.plural.clone(),
            subresource: call.subresource.clone(),
            namespace: review::namespace(call, name).to_owned(),
            name: name.to_owned(),
        };
        Self { call, resource }
    }

    pub(super) fn variables(&self) -> [(&'static str, cel::Value<'_>); 2] {
        [
            (AUTHORIZER, cel::Value::Authz(Authz::new(self))),
            (REQUEST_RESOURCE, cel::Value::Authz(Authz::of_resource(self, self.resource.clone()))),
        ]
    }
}

impl cel::Authorizer for Gate<'_> {
    fn decide(&self, account: Option<(&str, &str)>, wanted: &Attributes) -> Decision {
        match account {
            None => access::decide(&self.call.core, &self.call.user, wanted),
            Some((namespace, name)) => access::decide(&self.call.core, &access::account(namespace, name), wanted),
        }
    }
}

/// `request` for expressions.
pub(super) fn request(mut described: Map<String, Value>, dry_run: bool, options: &Value) -> Value {
    described.insert("dryRun".into(), dry_run.into());
    described.insert("options".into(), options.clone());
    Value::Object(described)
}

/// All must be true for somebody to be asked.
pub(super) struct Conditions {
    list: Vec<(String, Result<Program, String>)>,
    /// What cannot be evaluated means no, instead of a refusal.
    fails_open: bool,
}

impl Conditions {
    pub(super) fn new(of: &Value, fails_open: bool, environment: &Environment) -> Self {
        let all = of.get("matchConditions").and_then(Value::as_array).into_iter().flatten();
        let sources = all.filter_map(|it| it.get("expression").and_then(Value::as_str));
        let list = sources.map(|it| (it.to_owned(), environment.compile(it.trim(), &[Type::Bool]))).collect();
        Self { list, fails_open }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether they hold, or why nobody can say. One that does not hold counts more than any that cannot be evaluated.
    pub(super) fn hold(&self, scene: &Scene<'_>) -> Result<bool, String> {
        aside(|| self.judge(scene)).or_else(|why| if self.fails_open { Ok(false) } else { Err(why) })
    }

    fn judge(&self, scene: &Scene<'_>) -> Result<bool, String> {
        let mut variables = scene.variables().map_err(|why| why.to_string())?;
        variables.extend(scene.gate.variables());
        let mut left = BUDGET;
        let mut errors: Vec<String> = Vec::new();
        for (source, program) in &self.list {
            let failed =
                |why: &dyn std::fmt::Display| format!("expression '{}' resulted in error: {why}", source.trim());
            let program = match program {
                Ok(program) => program,
                Err(why) => {
                    errors.push(why.clone());
                    continue;
                }
            };
            let (outcome, cost) = program.evaluate(&variables, CALL_LIMIT.min(left));
            if cost > left {
                return Err(BROKE.to_owned());
            }
            left -= cost;
            match outcome {
                Ok(cel::Value::Bool(false)) => return Ok(false),
                Ok(_) => {}
                Err(why) => errors.push(failed(&why)),
            }
        }
        errors.dedup();
        match errors.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
