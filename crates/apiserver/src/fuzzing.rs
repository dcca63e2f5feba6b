//! Doors for the fuzz targets in `fuzz/`: what strangers send, and what must hold of it whatever they send. Each takes
//! any bytes and panics when something does not hold. In no build but a fuzzer's and the unit tests', which run every
//! door over its seeds.

#![allow(clippy::panic, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is what a fuzzer looks for")]

#[cfg(all(fuzzing, not(debug_assertions)))]
compile_error!("a build for fuzzing is not a release");

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::http::{Query, Target, options, yaml};
use crate::kinds::{roles, strategy};
use crate::object::apply::{self, Applier, Updater};
use crate::object::field::ERRORS_MAX;
use crate::object::selector::{Fields, Labels};
use crate::object::{Errors, Schema, builtin, patch, protobuf};
use crate::registry::{Registry, Resource, Resources};
use crate::verbs::scale::selector_text;

/// A JSON patch of an object: `{"object", "patch"}`.
pub fn json_patch(input: &[u8]) {
    let Some([object, patch]) = fields(input, ["object", "patch"]) else { return };
    if let Ok(made) = patch::json(&object, &patch) {
        readable(&made);
        // All that `copy` may make, and every operation's value once.
        assert!(size(&made) <= size(&object) + size(&patch) + (8 << 20), "it explodes");
    }
}

/// A strategic merge patch and a merge patch of an object of a built-in kind: `{"object", "patch"}`.
pub fn merge_patch(input: &[u8]) {
    let Some([mut object, patch]) = fields(input, ["object", "patch"]) else { return };
    if let Ok(made) = patch::merge(&object, &patch) {
        readable(&made);
        assert_eq!(patch::merge(&made, &patch).ok().as_ref(), Some(&made), "a merge patch means the same twice");
    }
    let Some(of) = Type::of(&object) else { return };
    if !of.fit(&mut object) {
        return;
    }
    if let Ok(mut made) = patch::strategic(&object, &patch, &of.schema()) {
        readable(&made);
        if of.fit(&mut made) && !patch.to_string().contains('$') {
            let mut again = patch::strategic(&made, &patch, &of.schema()).expect("it was applied once");
            assert!(of.fit(&mut again));
            assert_eq!(again, made, "without directives a patch means the same twice");
        }
    }
}

/// Two configurations of an object, of a built-in kind or of the schema that is with them: `{"schema", "first",
/// "second"}`. One manager applies the first, another the second, a third updates.
pub fn apply(input: &[u8]) {
    let Some([openapi, first, mut second]) = fields(input, ["schema", "first", "second"]) else { return };
    // A request is refused before that is not of the kind of its URL.
    for key in ["apiVersion", "kind"] {
        let Some(of) = first.get(key).filter(|it| it.as_str().is_some_and(|it| !it.is_empty())) else { return };
        second.as_object_mut().map(|it| it.insert(key.to_owned(), of.clone()));
    }
    let of = match Type::of(&first) {
        Some(of) if openapi.is_null() => of,
        _ => match Schema::compile(&openapi, "schema") {
            Ok(schema) => Type::Custom(schema),
            Err(_) => return,
        },
    };
    let schema = of.schema();
    let api_version = first.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let run = |live: Option<&Value>, config: &Value, manager: &str| {
        let applier = Applier { manager, subresource: "", api_version, force: true, now: Timestamp::UNIX_EPOCH };
        let mut made = apply::apply(live, config.clone(), &schema, &applier).ok()?;
        (of.fit(&mut made) && of.is_valid(&made)).then_some(made)
    };
    let Some(mut live) = run(None, &first, "one") else { return };
    readable(&live);
    if let Some(made) = run(Some(&live), &second, "two") {
        live = made;
    }
    let mut updated = second.clone();
    if of.fit(&mut updated) && of.is_valid(&updated) {
        let updater = Updater { manager: "three", subresource: "", api_version, now: Timestamp::UNIX_EPOCH };
        apply::track(Some(&live), &mut updated, &schema, &updater);
        readable(&updated);
        live = updated;
    }
    let Some(once) = run(Some(&live), &first, "one") else { return };
    let twice = run(Some(&once), &first, "one").expect("it was applied once");
    assert_eq!(twice, once, "an apply means the same twice");
}

/// A schema and an object of it: `{"schema", "object"}`.
pub fn schema(input: &[u8]) {
    let Some([openapi, mut object]) = fields(input, ["schema", "object"]) else { return };
    let schema = match Schema::compile(&openapi, "schema") {
        Ok(schema) => schema,
        Err(errors) => return assert!((1..=ERRORS_MAX).contains(&errors.len())),
    };
    if schema.check_types(&object).is_err() {
        return;
    }
    assert!(schema.prune(&mut object).len() <= ERRORS_MAX);
    let pruned = object.clone();
    assert_eq!(schema.prune(&mut object), Vec::<String>::new());
    assert_eq!(object, pruned, "what was pruned is left alone");
    schema.default(&mut object);
    let defaulted = object.clone();
    schema.default(&mut object);
    assert_eq!(object, defaulted, "what has its defaults is left alone");
    readable(&object);
    let (errors, _) = schema.validate(&object, None);
    assert!(errors.len() <= ERRORS_MAX);
    schema.validate(&object, Some(&pruned));
}

/// A selector: as a text, and as a `metav1.LabelSelector` with the `labels` that it is asked about.
pub fn selectors(input: &[u8]) {
    if let Some([selector, labels]) = fields(input, ["selector", "labels"]) {
        return label_selectors(&selector, &labels);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(selector) = Labels::parse(text) {
        selector.matches(|key| (key.len() % 2 == 0).then_some("x"));
    }
    if let Ok(selector) = Fields::parse(text) {
        // In the notation that was read: what is said of each field means the same when it is read again.
        let escape = |text: &str| text.replace('\\', r"\\").replace(',', r"\,").replace('=', r"\=");
        let print = |it: &crate::object::selector::Field| {
            format!("{}{}{}", it.field, if it.equal { "=" } else { "!=" }, escape(&it.value))
        };
        let printed: Vec<String> = selector.requirements().iter().map(print).collect();
        let again = Fields::parse(&printed.join(",")).expect("it was read once");
        assert!(again.requirements().iter().all(|it| selector.requirements().contains(it)), "{printed:?}");
    }
}

fn label_selectors(selector: &Value, labels: &Value) {
    let definition = builtin::schema("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").expect("it is built in");
    let mut errors = Errors::default();
    roles::selector(selector, "selector", &mut errors);
    if definition.check_types(selector).is_err() || !errors.is_empty() || !selector.is_object() {
        return;
    }
    // A plain map is no LabelSelector.
    let mut selector = selector.clone();
    definition.prune(&mut selector);
    selector.as_object_mut().map(|it| it.entry("matchLabels").or_insert_with(|| json!({})));
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let text = |it: &Value, key: &str| it.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let pairs = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut wanted = pairs.map(|(key, value)| label(key) == value.as_str()).collect::<Vec<_>>();
    for one in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = text(one, "key");
        let value = label(&key);
        let listed =
            one.get("values").and_then(Value::as_array).is_some_and(|all| all.iter().any(|it| it.as_str() == value));
        wanted.push(match text(one, "operator").as_str() {
            "In" => value.is_some() && listed,
            "NotIn" => value.is_none() || !listed,
            "Exists" => value.is_some(),
            _ => value.is_none(),
        });
    }
    let printed = selector_text(&selector);
    let read = Labels::parse(&printed).unwrap_or_else(|why| panic!("{printed}: {why}"));
    assert_eq!(read.matches(label), wanted.iter().all(|it| *it), "{printed}");
}

/// A body in protobuf.
pub fn protobuf(input: &[u8]) {
    let Ok(mut object) = protobuf::decode(input) else { return };
    readable(&object);
    if let Some(of) = Type::of(&object) {
        if of.fit(&mut object) {
            of.is_valid(&object);
        }
        readable(&object);
    }
}

/// A body in YAML.
pub fn yaml(input: &[u8]) {
    if let Ok(decoded) = yaml::parse(&Bytes::copy_from_slice(input)) {
        readable(&decoded.value);
        assert!(decoded.duplicates.warnings().len() <= 1000);
    }
}

/// A method, a space, and a URL's path and query.
pub fn url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Some((Ok(method), url)) = text.split_once(' ').map(|(method, url)| (method.parse::<Method>(), url)) else {
        return;
    };
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let query = Query::new(query);
    if let Some(target) = Target::parse(&method, path, &query) {
        let named =
            [&target.group, &target.version, &target.namespace, &target.resource, &target.name, &target.subresource];
        assert!(named.into_iter().chain(&target.rest).all(|part| !part.contains('/')));
    }
    for watch in [false, true] {
        if let Ok(list) = options::List::of(query, watch) {
            selectors(list.labels.as_bytes());
            selectors(list.fields.as_bytes());
        }
    }
    if let Ok(write) = options::Write::of(query, text, "PatchOptions", url.len() % 2 == 0) {
        assert!(!write.manager.is_empty() && write.manager.chars().count() <= 128);
    }
    let _ = options::Delete::of(query, None).map(|it| it.dry_run);
}

/// `input` with a few of its values changed, for a mutator that knows JSON; `None` when it is none.
pub fn mutated(input: &[u8], seed: u64) -> Option<Vec<u8>> {
    let mut whole: Value = serde_json::from_slice(input).ok()?;
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..random.random_range(1..4) {
        let mut places = Vec::new();
        list(&whole, &mut String::new(), &mut places);
        let place = &places[random.random_range(0..places.len())];
        let other = whole.pointer(&places[random.random_range(0..places.len())]).cloned()?;
        let word = WORDS[random.random_range(0..WORDS.len())];
        match (random.random_range(0..6), whole.pointer_mut(place)?) {
            (0, at) => *at = other,
            (1, at) => *at = serde_json::from_str(word).unwrap_or_else(|_| json!(word)),
            (2, Value::Object(map)) => drop(map.insert(word.to_owned(), other)),
            (2, Value::Array(items)) => items.push(other),
            (3, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(random.random_range(0..map.len())).cloned()?;
                map.shift_remove(&key);
            }
            (3, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.random_range(0..items.len()))),
            (4, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(random.random_range(0..map.len())).cloned()?;
                let value = map.shift_remove(&key)?;
                map.insert(word.to_owned(), value);
            }
            (4, Value::String(text)) => text.push_str(word),
            (5, Value::Array(items)) => items.reverse(),
            (_, at) => *at = json!(random.random_range(-2..70_000)),
        }
    }
    serde_json::to_vec(&whole).ok()
}

/// What means something somewhere: fields, values, and what is easily taken for another thing.
const WORDS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "managedFields",
    "spec",
    "status",
    "kind",
    "apiVersion",
    "data",
    "items",
    "a",
    "/a/b",
    "/metadata/labels/a",
    "/spec/-",
    "-1",
    "0",
    "-",
    "~1",
    "",
    "null",
    "true",
    "{}",
    "[]",
    "1.5",
    "1e308",
    "18446744073709551615",
    "add",
    "remove",
    "replace",
    "move",
    "copy",
    "test",
    "op",
    "path",
    "from",
    "value",
    "$patch",
    "delete",
    "merge",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "containers",
    "ports",
    "containerPort",
    "protocol",
    "env",
    "volumes",
    "emptyDir",
    "1Gi",
    "100m",
    "2030-01-01T00:00:00Z",
    "FieldsV1",
    "type",
    "object",
    "array",
    "string",
    "integer",
    "number",
    "boolean",
    "properties",
    "additionalProperties",
    "required",
    "default",
    "nullable",
    "enum",
    "pattern",
    "^a*$",
    "format",
    "date-time",
    "maxLength",
    "minimum",
    "multipleOf",
    "maxItems",
    "uniqueItems",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "atomic",
    "granular",
    "set",
    "map",
    "x-kubernetes-validations",
    "rule",
    "self.a == oldSelf.a",
    "message",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "In",
    "NotIn",
    "Exists",
    "DoesNotExist",
    "é\u{0}",
];

/// The pointers to all values.
fn list(value: &Value, at: &mut String, places: &mut Vec<String>) {
    places.push(at.clone());
    let mut below = |part: &str, value: &Value| {
        let before = at.len();
        at.extend(["/", part]);
        list(value, at, places);
        at.truncate(before);
    };
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| below(&key.replace('~', "~0").replace('/', "~1"), value));
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(at, value)| below(&at.to_string(), value)),
        _ => {}
    }
}

/// The fields of an input that is a JSON object; one that is not there is null.
fn fields<const N: usize>(input: &[u8], names: [&str; N]) -> Option<[Value; N]> {
    let mut whole: Map<String, Value> = serde_json::from_slice(input).ok()?;
    Some(names.map(|name| whole.shift_remove(name).unwrap_or_default()))
}

/// What an object is one of.
enum Type {
    Builtin(Arc<Resource>),
    Custom(Schema),
}

impl Type {
    /// The built-in kind that an object says it is of.
    fn of(object: &Value) -> Option<Self> {
        static ALL: LazyLock<Arc<Resources>> = LazyLock::new(|| {
            let registry = Registry::new();
            registry.update(Vec::new);
            registry.now()
        });
        let text = |key: &str| object.get(key)?.as_str();
        ALL.of_kind(text("apiVersion")?, text("kind")?).cloned().map(Self::Builtin)
    }

    fn schema(&self) -> Schema {
        match self {
            Self::Builtin(resource) => resource.schema(),
            Self::Custom(schema) => schema.clone(),
        }
    }

    /// As a request's object is made one of its kind; `false` when it cannot be.
    fn fit(&self, object: &mut Value) -> bool {
        let schema = self.schema();
        if schema.check_types(object).is_err() {
            return false;
        }
        schema.prune(object);
        let pruned = object.clone();
        assert_eq!(schema.prune(object), Vec::<String>::new());
        assert_eq!(*object, pruned, "what was pruned is left alone");
        match self {
            Self::Builtin(resource) => strategy::complete(resource, object),
            Self::Custom(schema) => schema.default(object),
        }
        true
    }

    fn is_valid(&self, object: &Value) -> bool {
        let errors = match self {
            Self::Builtin(resource) => strategy::validate_create(resource, object),
            Self::Custom(schema) => schema.validate(object, None).0,
        };
        assert!(errors.len() <= ERRORS_MAX);
        errors.is_empty()
    }
}

/// What is stored can be read again.
fn readable(value: &Value) {
    let text = value.to_string();
    serde_json::from_str::<Value>(&text).unwrap_or_else(|why| panic!("{why}: {text}"));
}

fn size(value: &Value) -> usize {
    value.to_string().len()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The seeds that `cargo fuzz` starts from, as they are and with some places changed.
    #[test]
    fn what_the_fuzz_targets_assert_holds_for_their_seeds() {
        type Door = fn(&[u8]);
        let doors: [(&str, Door); 8] = [
            ("apply", apply),
            ("json_patch", json_patch),
            ("merge_patch", merge_patch),
            ("protobuf", protobuf),
            ("schema", schema),
            ("selectors", selectors),
            ("url", url),
            ("yaml", yaml),
        ];
        let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
        for (name, door) in doors {
            let target = fs::read_to_string(format!("{fuzz}/targets/{name}.rs")).unwrap();
            assert!(target.contains(&format!("fuzzing::{name}(")), "{name} has a target");
            let seeds =
                fs::read_dir(format!("{fuzz}/seeds/{name}")).unwrap().map(|it| fs::read(it.unwrap().path()).unwrap());
            let seeds: Vec<_> = seeds.collect();
            assert!(!seeds.is_empty(), "{name} has seeds");
            for (at, seed) in seeds.iter().enumerate() {
                door(seed);
                for change in 0..12 {
                    let mut random = StdRng::seed_from_u64(change);
                    let changed = mutated(seed, change).unwrap_or_else(|| {
                        let mut bytes = seed.clone();
                        let at = random.random_range(0..bytes.len());
                        bytes[at] ^= 1 << random.random_range(0..8);
                        bytes
                    });
                    let told = std::panic::catch_unwind(|| door(&changed));
                    assert!(told.is_ok(), "{name}, seed {at}: {}", String::from_utf8_lossy(&changed));
                }
            }
        }
        let targets = fs::read_dir(format!("{fuzz}/targets")).unwrap().map(|it| fs::read_to_string(it.unwrap().path()));
        let ours = targets.filter(|it| it.as_ref().unwrap().contains("apiserver::")).count();
        assert_eq!(ours, doors.len(), "every target has its door here");
    }
}
