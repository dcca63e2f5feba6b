//! What expressions of admission see, and the conditions on which somebody is asked at all: upstream's
//! `pkg/admission/plugin/{cel,webhook/matchconditions}`. There is no `authorizer`.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

use crate::cel::{self, CALL_LIMIT, Decl, Failed, Program, Shape, Slot, Type};
use crate::object::schema::aside;

/// What all conditions of one webhook may cost together.
const BUDGET: u64 = 2_500_000;
const BROKE: &str = "validation failed due to running out of cost budget, no further validation rules will be run";

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
    let status = object("kubernetes.NamespaceStatus", &[("phase", text())]);
    object("kubernetes.Namespace", &[("metadata", metadata), ("spec", spec), ("status", status)])
});

/// Compiles an expression of admission; the error is in upstream's words.
pub(crate) fn compile(source: &str, wanted: &Type) -> Result<Program, String> {
    let variables = [
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("request", Type::Object(REQUEST.clone())),
        ("namespaceObject", Type::Object(NAMESPACE.clone())),
    ];
    let program = Program::compile(source, &variables).map_err(|why| why.to_string())?;
    if program.output().is_exactly(wanted) { Ok(program) } else { Err(format!("must evaluate to {wanted}")) }
}

/// What an expression is evaluated on.
pub(super) struct Scene<'a> {
    object: cel::Value<'a>,
    old: cel::Value<'a>,
    request: &'a Value,
}

impl<'a> Scene<'a> {
    /// `request` as [`super::review::Request::described`] and `dryRun` and `options`.
    pub(super) fn new(object: Option<&'a Value>, old: Option<&'a Value>, request: &'a Value) -> Self {
        // What has any shape fits whatever it is.
        let any = |it: Option<&'a Value>| it.and_then(|it| cel::Value::view(it, &ANY).ok()).unwrap_or(cel::Value::Null);
        Self { object: any(object), old: any(old), request }
    }

    fn variables(&self) -> Result<Vec<(&'static str, cel::Value<'a>)>, Failed> {
        Ok(vec![
            ("object", self.object.clone()),
            ("oldObject", self.old.clone()),
            ("request", cel::Value::view(self.request, &REQUEST)?),
            ("namespaceObject", cel::Value::Null),
        ])
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
    pub(super) fn new(of: &Value, fails_open: bool) -> Self {
        let all = of.get("matchConditions").and_then(Value::as_array).into_iter().flatten();
        let sources = all.filter_map(|it| it.get("expression").and_then(Value::as_str));
        let list = sources.map(|it| (it.to_owned(), compile(it.trim(), &Type::Bool))).collect();
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
        let variables = scene.variables().map_err(|why| why.to_string())?;
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
