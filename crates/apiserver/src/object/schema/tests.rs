use serde_json::{Value, json};

use super::*;
use crate::object::builtin;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a real API server (1.34.2) said to each of these, recorded.
#[test]
fn custom_resources_are_decoded_defaulted_and_refused_as_a_real_api_server_does() {
    let records = lines(include_str!("../../../testdata/validation.jsonl"));
    let schema = Schema::compile(&records[0]["schema"], "spec.validation.openAPIV3Schema").unwrap();
    for record in &records[1..] {
        let mut object = json!({"apiVersion": "val.example.com/v1", "kind": "Val", "metadata": {"name": "x"}});
        object["spec"] = record["spec"].clone();
        let said = || format!("{}", record["spec"]);
        if let Some(problem) = record.get("problem") {
            assert!(problem[1].as_str().unwrap().ends_with(&schema.check_types(&object).unwrap_err()), "{}", said());
            continue;
        }
        schema.check_types(&object).unwrap();
        let unknown = schema.prune(&mut object);
        let strict: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
        let want = record.get("strict").and_then(Value::as_str).unwrap_or_default();
        assert_eq!(strict.join(", "), want.rsplit("decoding error: ").next().unwrap(), "{}", said());
        schema.default(&mut object);
        let mut causes: Vec<Value> =
            schema.validate(&object, None).0.iter().map(|e| json!([e.path, e.reason.reason(), e.body])).collect();
        let mut expected = record.get("causes").and_then(Value::as_array).cloned().unwrap_or_default();
        for list in [&mut causes, &mut expected] {
            list.sort_by_key(ToString::to_string);
        }
        assert_eq!(causes, expected, "{}", said());
        if let Some(becomes) = record.get("becomes") {
            assert_eq!(object.get("spec").unwrap_or(&Value::Null), becomes, "{}", said());
        }
    }
}

#[test]
fn wrong_types_in_built_in_kinds_are_refused_in_the_words_of_gos_decoder() {
    for record in lines(include_str!("../../../testdata/decoding.jsonl")) {
        let kind = record[0].as_str().unwrap();
        let (group, version) = if kind == "Deployment" { ("apps", "apps/v1") } else { ("", "v1") };
        let mut object = json!({"apiVersion": version, "kind": kind});
        object.as_object_mut().unwrap().extend(record[1].as_object().unwrap().clone());
        let schema = builtin::schema_of(group, "v1", kind).unwrap();
        let said = schema.check_types(&object).unwrap_err();
        assert_eq!(
            format!("{kind} in version \"v1\" cannot be handled as a {kind}: {said}"),
            record[2].as_str().unwrap()
        );
    }
}

#[test]
fn what_was_wrong_before_and_is_unchanged_is_let_through_on_update() {
    let openapi = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "a": {"type": "integer", "maximum": 3}, "b": {"type": "integer"},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items":
                {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}}}},
        }},
    }});
    let schema = Schema::trusted(&openapi);
    let old = json!({"spec": {"a": 9, "b": 1, "l": [{"k": "x", "v": "long"}, {"k": "y"}]}});
    let new = json!({"spec": {"a": 9, "b": 2, "l": [{"k": "y"}, {"k": "x", "v": "long"}]}});
    assert_eq!(schema.validate(&new, Some(&old)).0, vec![]);
    assert_eq!(schema.validate(&new, None).0.len(), 2);
    let worse = json!({"spec": {"a": 8, "l": [{"k": "x", "v": "longer"}]}});
    assert_eq!(schema.validate(&worse, Some(&old)).0.len(), 2);
}

#[test]
fn the_schema_of_a_custom_resource_cannot_unteach_metadata() {
    let schema = Schema::trusted(&json!({"type": "object", "properties": {"metadata": {"type": "object"}}}));
    let mut object =
        json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x", "labels": {"a": "b"}, "foo": 1}, "bar": 2});
    assert_eq!(schema.prune(&mut object), ["bar", "metadata.foo"]);
    assert_eq!(object["metadata"], json!({"name": "x", "labels": {"a": "b"}}));
    object["metadata"]["labels"] = json!({"a": 1});
    assert_eq!(
        schema.check_types(&object).unwrap_err(),
        "json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"
    );
}

#[test]
fn go_patterns_mean_what_they_mean_in_go_and_a_monstrous_one_is_refused() {
    for (pattern, text, matches) in [
        (r"^\d+$", "12", true),
        (r"^\d+$", "١", false),
        (r"^[\w.]+$", "a_1.b", true),
        (r"^[\w.]+$", "é", false),
        (r"^[[:alpha:]-]+$", "a-b", true),
        (r"^[[]a$", "[a", true),
        (r"^[]a]+$", "]a", true),
        (r"^a{,2}$", "a{,2}", true),
        (r"^a{2}$", "aa", true),
        (r"^\Qa.b\E+$", "a.bb", true),
        (r"^\<a\>$", "<a>", true),
        (r"^[a&&b]+$", "&", true),
        (r"^(?P<n>a|b)\z", "b", true),
    ] {
        assert_eq!(Pattern::new(pattern).is_match(text), Ok(matches), "{pattern}");
    }
    assert!(Pattern::new("((a{100}){100}){100}").is_match("a").unwrap_err().contains("too large"));
    assert!(Pattern::new("a**(").is_match("a").is_err());
}

/// What a real API server (1.34.2) said to a CRD with each of these schemas, recorded.
#[test]
fn schemas_that_are_not_structural_are_refused_in_the_words_of_a_real_api_server() {
    for record in lines(include_str!("../../../testdata/structural.jsonl")) {
        let errors = Schema::compile(&record[0], "spec.validation.openAPIV3Schema").err().unwrap_or_default();
        let mut said: Vec<Value> = errors.iter().map(|e| json!([e.path, e.reason.reason(), e.body])).collect();
        let mut want = record[1].as_array().unwrap().clone();
        for list in [&mut said, &mut want] {
            // How a broken expression is broken is told in the words of the library at hand.
            list.iter_mut().filter(|e| e[0].as_str().unwrap().ends_with(".pattern")).for_each(|e| {
                let text = e[2].as_str().unwrap();
                e[2] = json!(text.split("error parsing regexp").next());
            });
            list.sort_by_key(ToString::to_string);
        }
        assert_eq!(json!(said), json!(want), "{}", record[0]);
    }
}

#[test]
fn an_object_full_of_mistakes_is_answered_with_some_of_them() {
    let openapi = json!({"type": "object", "properties": {"spec": {"type": "array", "items": {"type": "string"}}}});
    let schema = Schema::trusted(&openapi);
    let wrong = json!({"spec": (0..100_000).collect::<Vec<_>>()});
    assert_eq!(schema.validate(&wrong, None).0.len(), crate::object::field::ERRORS_MAX);
    let mut unknown = json!({"spec": []});
    unknown.as_object_mut().unwrap().extend((0..100_000).map(|i| (format!("x{i}"), json!(1))));
    assert_eq!(schema.prune(&mut unknown).len(), crate::object::field::ERRORS_MAX);
    assert_eq!(unknown, json!({"spec": []}));
}

#[test]
fn items_of_a_long_list_are_held_against_what_they_were_by_their_keys() {
    let item = json!({"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "string",
        "maxLength": 1, "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "it never changes"}]}},
        "x-kubernetes-validations": [{"rule": "self.k != 'k7'", "message": "not this one"}]});
    let list = json!({"type": "array", "maxItems": 5000, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": item});
    let schema = Schema::trusted(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"l": list}}}}),
    );
    let items: Vec<Value> =
        (0..5000).map(|n| json!({"k": format!("k{n}"), "v": if n == 9 { "long" } else { "x" }})).collect();
    let with = |items: &[Value]| json!({"spec": {"l": items}});
    let mut turned: Vec<Value> = items.iter().rev().cloned().collect();
    let (errors, warnings) = schema.validate(&with(&turned), Some(&with(&items)));
    assert_eq!((errors, warnings.len()), (vec![], 1), "what was wrong and is unchanged is let through");
    turned[3]["v"] = json!("y");
    let (errors, _) = schema.validate(&with(&turned), Some(&with(&items)));
    assert_eq!(errors.iter().map(|it| it.path.as_str()).collect::<Vec<_>>(), ["spec.l[3].v"]);
}

#[test]
fn that_rules_were_not_looked_at_is_told_however_much_else_is_wrong() {
    let openapi = json!({"type": "object", "properties": {"spec": {"type": "array", "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "true"}]}}});
    let (errors, _) = Schema::trusted(&openapi).validate(&json!({"spec": (0..1000).collect::<Vec<_>>()}), None);
    assert_eq!(errors.len(), crate::object::field::ERRORS_MAX);
    assert!(errors.last().unwrap().body.contains("some validation rules were not checked"));
}
