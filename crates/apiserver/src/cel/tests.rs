use std::sync::Arc;

use indexmap::IndexMap;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::object::Schema;

fn lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a real API server (1.34.2) said of each rule, recorded: when the definition came, and when an object did.
#[test]
fn rules_are_refused_and_broken_in_the_words_of_a_real_api_server() {
    let records = lines(include_str!("../../testdata/cel.jsonl"));
    for record in &records[1..] {
        let mut openapi = json!({"type": "object", "properties": {"spec": records[0]["schema"]}});
        openapi["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": record["rule"]}]);
        let refused = match Schema::compile(&openapi, "spec.validation.openAPIV3Schema") {
            Ok(schema) => {
                let object = json!({"spec": records[0]["object"]});
                let said: Vec<Json> = schema.validate(&object, None).0.iter().map(|it| json!(it.body)).collect();
                assert_eq!(said.first().unwrap_or(&Json::Null), &record["broken"], "{}", record["rule"]);
                Json::Null
            }
            Err(errors) => json!(errors[0].body),
        };
        assert_eq!(refused, record["refused"], "{}", record["rule"]);
    }
}

/// `self` with a text `s`, texts `l`, numbers `n` and a map `m` of texts.
fn decl() -> Arc<Decl> {
    let text = || Arc::new(Decl::new(Shape::Text, 1000, 2));
    let slot = |name: &str, decl: Decl| (Box::from(name), Slot { json: name.into(), decl: Arc::new(decl) });
    let fields = IndexMap::from([
        slot("s", Decl::new(Shape::Text, 1000, 2)),
        slot("i", Decl::new(Shape::Int, 0, 1)),
        slot("x", Decl::new(Shape::Dyn, 1000, 1)),
        slot("l", Decl::new(Shape::List(text(), Order::Atomic), 1000, 2)),
        slot("n", Decl::new(Shape::List(Arc::new(Decl::new(Shape::Int, 0, 1)), Order::Set), 1000, 2)),
        slot("m", Decl::new(Shape::Map(text()), 1000, 2)),
    ]);
    Arc::new(Decl { name: "selfType".into(), ..Decl::new(Shape::Object(fields), 0, 2) })
}

fn compiled(source: &str, decl: &Arc<Decl>) -> Result<Program, Refused> {
    Program::compile(source, &[("self", decl.type_of()), ("oldSelf", decl.type_of())])
}

fn run(source: &str, object: &Json, limit: u64) -> (Result<String, Failed>, u64) {
    let decl = decl();
    let program = compiled(source, &decl).unwrap();
    let (value, cost) = program.evaluate(&[("self", Value::view(object, &decl).unwrap())], limit);
    (value.map(|it| format!("{it:?}")), cost)
}

#[test]
fn what_costs_too_much_is_stopped_whatever_it_is_made_of() {
    let many: Vec<String> = (0..2000).map(|it| format!("item {it}")).collect();
    let object =
        json!({"s": "a".repeat(100_000), "i": 3, "l": many, "n": (0..2000).collect::<Vec<_>>(), "m": {"k": "v"}});
    for source in [
        "self.l.all(a, self.l.all(b, self.l.all(c, a + b + c != 'x')))",
        "self.s.replace('', self.s) == ''",
        "self.l.map(a, self.s).join(self.s) == ''",
        "'%s%s'.format([self.l.map(a, self.s), self.s]) == ''",
        "self.l.map(a, self.l.map(b, self.s)) == self.l.map(a, self.l.map(b, self.s))",
        "sets.equivalent(self.l.map(a, a + 'x'), self.l.map(b, b + 'x'))",
        "self.l.all(a, self.l + self.l != self.l)",
        "self.l.all(a, self.n + self.n == self.n)",
        "self.l.all(a, self.s.matches(self.s))",
        "self.l.all(a, self.s.contains(self.s + 'b') || self.s.contains(self.s))",
        "self.l.all(a, self.s.charAt(99999) == 'a' && self.s.size() > 3 && self.s + a != self.s)",
        "self.s.split('').map(a, self.s.split('')).size() > 0",
        "self.l.transformMap(i, v, self.l.transformMap(j, w, w)).size() > 0",
    ] {
        let (outcome, cost) = run(source, &object, CALL_LIMIT);
        assert_eq!(outcome, Err(Failed::Cost), "{source}");
        assert!(cost > CALL_LIMIT, "{source}: {cost}");
    }
    let ends = "((a{100}){100}){100}";
    let (outcome, _) =
        run(&format!("self.l.all(a, a.matches(self.s + '{ends}'))"), &json!({"l": ["a"], "s": ""}), CALL_LIMIT);
    assert!(matches!(outcome, Err(Failed::Error(why)) if why.contains("too large")));
}

#[test]
fn expressions_that_are_too_deep_or_too_long_are_refused() {
    let decl = decl();
    for source in [
        format!("{}true{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("{}true", "!(".repeat(5000)),
        format!("1{} > 0", " + 1".repeat(5000)),
        format!("self{}", ".a".repeat(5000)),
        format!("self{}", "[0]".repeat(5000)),
        format!("{}1{}", "[".repeat(5000), "]".repeat(5000)),
        format!("true{}", " ? true : false".repeat(5000)),
        format!("self.l{}.size() > 0", ".map(x, x)".repeat(500)),
        format!("optional.of(1){}.hasValue()", ".optMap(x, x)".repeat(60)),
        "x".repeat(100_001),
    ] {
        assert!(compiled(&source, &decl).is_err(), "{}", source.get(..40).unwrap());
    }
    let wide = format!("true{}", " && self.i > 0 || true".repeat(2000));
    assert!(compiled(&wide, &decl).is_ok(), "a long chain of alternatives is not deep");
    let wide = format!("true{}", " || [[]] == [] && {}.size() == 0".repeat(3000));
    assert!(compiled(&wide, &decl).is_ok(), "what is learnt of a type is not copied for each that is tried");
    let deep = format!("{}self.i > 0{}", "!!(".repeat(90), ")".repeat(90));
    assert_eq!(run(&deep, &json!({"i": 3}), CALL_LIMIT).0, Ok("Bool(true)".to_owned()));
}

/// Expressions that are mostly of the right types, out of everything that there is.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("self.s"),
        Just("self.i"),
        Just("self.x"),
        Just("self.l"),
        Just("self.n"),
        Just("self.m"),
        Just("self"),
        Just("oldSelf.s"),
        Just("'a'"),
        Just("''"),
        Just("-1"),
        Just("0"),
        Just("9223372036854775807"),
        Just("1.5"),
        Just("true"),
        Just("null"),
        Just("[]"),
        Just("{}"),
        Just("2u"),
        Just("b'x'"),
        Just("v"),
        Just("duration('1s')"),
        Just("timestamp('2024-01-01T00:00:00Z')"),
        Just("optional.none()"),
        Just("quantity('1')"),
        Just("int"),
        Just("ip('::1')"),
        Just("cidr('10.0.0.0/8')"),
        Just("url('http://a/b?c=d')"),
        Just("semver('1.2.3-a')"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(6, 48, 4, |inner| {
        let operator =
            prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "!=", "<", "<=", ">", ">=", "in", "&&", "||"]);
        let fold = prop::sample::select(vec!["all", "exists", "exists_one", "map", "filter", "optMap", "optFlatMap"]);
        let two = prop::sample::select(vec!["all", "exists", "transformList", "transformMap", "transformMapEntry"]);
        let method = prop::sample::select(vec![
            "size",
            "first",
            "last",
            "sum",
            "min",
            "max",
            "isSorted",
            "trim",
            "upperAscii",
            "value",
            "hasValue",
            "family",
            "getHours",
            "getFullYear",
            "masked",
            "major",
            "getQuery",
            "join",
            "asInteger",
            "unwrapOpt",
        ]);
        let one = prop::sample::select(vec![
            "contains",
            "startsWith",
            "matches",
            "find",
            "findAll",
            "split",
            "charAt",
            "substring",
            "indexOf",
            "lastIndexOf",
            "orValue",
            "or",
            "format",
            "join",
            "getHours",
            "add",
            "compareTo",
            "containsIP",
        ]);
        let global = prop::sample::select(vec![
            "size",
            "type",
            "dyn",
            "int",
            "uint",
            "double",
            "string",
            "bytes",
            "bool",
            "duration",
            "timestamp",
            "ip",
            "cidr",
            "url",
            "isURL",
            "quantity",
            "semver",
            "optional.of",
            "optional.ofNonZeroValue",
            "strings.quote",
            "has",
        ]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            (inner.clone(), fold, inner.clone()).prop_map(|(a, f, b)| format!("{a}.{f}(v, {b})")),
            (inner.clone(), two, inner.clone()).prop_map(|(a, f, b)| format!("{a}.{f}(k, v, {b})")),
            (inner.clone(), method).prop_map(|(a, m)| format!("{a}.{m}()")),
            (inner.clone(), one, inner.clone()).prop_map(|(a, m, b)| format!("{a}.{m}({b})")),
            (global, inner.clone()).prop_map(|(g, a)| format!("{g}({a})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[?{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, ?{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("{a}.replace({b}, {c})")),
            inner.clone().prop_map(|a| format!("!{a}")),
            inner.prop_map(|a| format!("{a}.?s")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn evaluation_ends_within_its_budget_and_never_panics(source in expression(), limit in 0_u64..5000) {
        let object = json!({"s": "aé\u{1f600}b", "i": -3, "x": "50%", "l": ["a", "", "é", "a"], "n": [3, 1, 2], "m": {"k": "v", "a": ""}});
        let decl = decl();
        for source in [source.clone(), format!("[1, 'a', self.s].map(v, {source})"), format!("{source} == {source}")] {
            let Ok(program) = compiled(&source, &decl) else { continue };
            let self_ = Value::view(&object, &decl).unwrap();
            let variables = [("self", self_.clone()), ("oldSelf", self_)];
            let (outcome, cost) = program.evaluate(&variables, limit);
            prop_assert!(cost <= limit || outcome.is_err());
            let (again, same) = program.evaluate(&variables, limit);
            prop_assert_eq!((format!("{outcome:?}"), cost), (format!("{again:?}"), same));
            program.cost_max(&decl);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(source in "[\\PC]{0,40}|[a-z0-9_.()\\[\\]{}?:!=<>&|+*/%'\"\\\\ -]{0,60}") {
        let _ = compiled(&source, &decl());
    }
}

#[test]
fn a_duration_that_no_number_holds_is_none() {
    // Of hours, all but the fraction fit into what they are counted in.
    let hours = i128::MAX / 3_600_000_000_000;
    for text in [format!("{hours}.999999h"), format!("-{hours}.999999h"), format!("{}h", u64::MAX)] {
        assert!(time::duration(&text).is_err(), "{text}");
    }
    assert_eq!(time::duration("-1h0.5s"), Ok(-3_600_500_000_000));
}
