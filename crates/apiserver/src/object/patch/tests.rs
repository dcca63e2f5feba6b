use serde_json::{Value, json};

use super::*;
use crate::object::builtin;

/// What a real API server (1.34.2) made of each patch of one object, recorded.
#[test]
fn json_patches_do_what_they_do_on_a_real_api_server() {
    let mut lines =
        include_str!("../../../testdata/json_patch.jsonl").lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let object = lines.next().unwrap();
    let schema = builtin::schema("io.k8s.api.core.v1.ConfigMap").unwrap();
    for record in lines {
        let (patch, want) = (&record[0], &record[1]);
        match json(&object, patch) {
            Ok(mut made) => {
                if schema.check_types(&made).is_err() {
                    // What is no config map any more is told by the decoder, not by the patch.
                    assert_eq!(want[0], 422, "{patch}");
                    continue;
                }
                schema.prune(&mut made);
                for key in ["labels", "finalizers", "annotations"] {
                    assert_eq!(made["metadata"].get(key).unwrap_or(&Value::Null), &want[key], "{patch}");
                }
                assert_eq!(made["data"], want["data"], "{patch}");
            }
            Err(problem) => assert_eq!(json!([problem.code, problem.reason, problem.message]), *want, "{patch}"),
        }
    }
}

#[test]
fn a_json_patch_that_explodes_is_refused() {
    let many: Vec<Value> = (0..10_001).map(|_| json!({"op": "test", "path": "/a", "value": 1})).collect();
    assert_eq!(json(&json!({"a": 1}), &json!(many)).unwrap_err().code, 413);
    let doubling: Vec<Value> = (0..64).map(|i| json!({"op": "copy", "from": "", "path": format!("/c{i}")})).collect();
    assert!(json(&json!({"a": "x"}), &json!(doubling)).is_err());
    let wider: Vec<Value> = (0..64)
        .flat_map(|_| {
            [json!({"op": "copy", "from": "/a", "path": "/a/-"}), json!({"op": "copy", "from": "/a", "path": "/a/-"})]
        })
        .collect();
    assert_eq!(json(&json!({"a": ["x"]}), &json!(wider)).unwrap_err().code, 422);
    let deeper: Vec<Value> = (0..500).map(|_| json!({"op": "add", "path": "/a", "value": {}})).collect();
    assert!(json(&json!({}), &json!(deeper)).is_ok());
    let deeper: Vec<Value> = (1..500).map(|i| json!({"op": "add", "path": "/a".repeat(i), "value": {}})).collect();
    assert_eq!(json(&json!({}), &json!(deeper)).unwrap_err().code, 422);
}

#[test]
fn a_json_patch_that_moves_too_much_about_is_refused() {
    let object = json!({"a": [], "l": vec![0; 100_000]});
    let moves = |count: usize, from: &str, path: &str| {
        let all: Vec<Value> = (0..count).map(|_| json!({"op": "move", "from": from, "path": path})).collect();
        json(&object, &json!(all)).map_err(|it| it.code)
    };
    assert!(moves(100, "/l/0", "/l/0").is_ok());
    assert_eq!(moves(9_999, "/l/0", "/l/0"), Err(422));
    assert_eq!(moves(9_999, "/l", "/l"), Err(422));
}

#[test]
fn lists_that_would_take_for_ever_to_merge_are_refused() {
    let schema = builtin::schema("io.k8s.api.core.v1.ConfigMap").unwrap();
    let many = |prefix: &str| json!({"metadata": {"finalizers": (0..6_000).map(|i| format!("{prefix}/{i}")).collect::<Vec<_>>()}});
    assert_eq!(strategic(&many("a"), &many("b"), &schema).unwrap_err().code, 413);
}

#[test]
fn merge_patches_are_those_of_the_rfc() {
    for (object, patch, want) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        (json!({"a": "x"}), json!({"a": {"b": {"c": null, "d": 1}}}), json!({"a": {"b": {"d": 1}}})),
    ] {
        assert_eq!(merge(&object, &patch).unwrap(), want, "{object} {patch}");
    }
    assert_eq!(merge(&json!({}), &json!([])).unwrap_err().code, 400);
}

/// The fields of `part` are in `whole`, and lists are as long: a real server filled in defaults.
fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(k, v)| whole.get(k).is_some_and(|w| is_part(v, w)))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(p, w)| is_part(p, w))
        }
        _ => part == whole,
    }
}

#[test]
fn strategic_merge_patches_do_what_they_do_on_a_real_api_server() {
    let mut objects: Vec<Value> = Vec::new();
    for line in include_str!("../../../testdata/strategic.jsonl").lines() {
        let mut record: Value = serde_json::from_str(line).unwrap();
        if let Some(object) = record.get_mut("object") {
            objects.push(object.take());
            continue;
        }
        let object = &objects[usize::try_from(record["of"].as_u64().unwrap()).unwrap()];
        let api_version = object["apiVersion"].as_str().unwrap();
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let schema = builtin::schema_of(group, version, object["kind"].as_str().unwrap()).unwrap();
        let patch = &record["patch"];
        match strategic(object, patch, &schema) {
            Ok(mut made) => {
                schema.prune(&mut made);
                let Some(want) = record.get("becomes") else {
                    // Refused later: by validation, or for want of a name.
                    let said = record["refused"][1].as_str().unwrap();
                    assert!(
                        said.contains("is invalid") || said.contains("undeterminable"),
                        "{patch} is refused: {said}"
                    );
                    continue;
                };
                for key in ["spec", "data", "secrets", "imagePullSecrets", "rules", "metadata"] {
                    let (got, want) = (made.get(key).unwrap_or(&Value::Null), want.get(key).unwrap_or(&Value::Null));
                    assert!(is_part(got, want), "{patch}\n got {got}\nwant {want}");
                }
                for gone in record["gone"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    assert!(made.pointer(gone).is_none(), "{patch} leaves {gone}");
                }
            }
            Err(problem) => assert_eq!(json!([problem.code, problem.message]), record["refused"], "{patch}"),
        }
    }
}
