use serde_json::{Value, json};

use super::*;

/// Objects and their rows as a real API server (1.34.2) printed them, recorded; ages are masked.
#[test]
fn built_in_kinds_are_printed_as_a_real_api_server_prints_them() {
    for line in include_str!("../../../testdata/tables.jsonl").lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let (group, kind) = (record["group"].as_str().unwrap(), record["kind"].as_str().unwrap());
        let now = record["now"].as_str().unwrap().parse().unwrap();
        let printer = Printer::builtin(group, kind);
        let columns = printer.columns();
        let facts =
            columns.as_array().unwrap().iter().map(|c| json!([c["name"], c["type"], c["format"], c["priority"]]));
        assert_eq!(facts.collect::<Value>(), record["columns"], "{group}/{kind}");
        let cells = printer.cells(&record["object"], now);
        let name = &record["object"]["metadata"]["name"];
        // Ages differ by the time the request took.
        let mask = |cells: &Value| -> Vec<String> {
            let age = |text: &str| {
                text.len() < 8
                    && text.starts_with(|c: char| c.is_ascii_digit())
                    && text.ends_with(['s', 'm', 'h', 'd', 'y'])
            };
            cells
                .as_array()
                .unwrap()
                .iter()
                .map(|c| if c.as_str().is_some_and(age) { "AGE".into() } else { c.to_string() })
                .collect()
        };
        assert_eq!(mask(&cells), mask(&record["cells"]), "{group}/{kind} {name}");
    }
}

#[test]
fn custom_resources_are_printed_by_their_columns() {
    let columns = json!([
        {"name": "Size", "type": "string", "jsonPath": ".spec.size"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status", "description": "d"},
        {"name": "Ratio", "type": "number", "jsonPath": ".spec.ratio"},
        {"name": "On", "type": "boolean", "jsonPath": ".spec.on"},
        {"name": "Wrong", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Map", "type": "string", "jsonPath": ".spec.map"},
        {"name": "Number", "type": "string", "jsonPath": ".spec.replicas"},
        {"name": "Absent", "type": "string", "jsonPath": ".spec.absent.below"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Bad", "type": "date", "jsonPath": ".spec.size"},
    ]);
    let printer = Printer::custom(Some(&columns));
    let object = json!({
        "metadata": {"name": "w", "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {"size": "large", "replicas": 3, "ratio": 0.5, "on": true, "map": {"b": 1, "a": [2]}},
        "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]},
    });
    let now = "2024-01-01T00:01:30Z".parse().unwrap();
    assert_eq!(
        printer.cells(&object, now),
        json!(["w", "large", 3, "True", 0.5, true, null, "{\"a\":[2],\"b\":1}", "3", null, "90s", "<invalid>"])
    );
    let columns = printer.columns();
    assert_eq!(
        (&columns[0]["format"], &columns[2]["priority"], &columns[3]["description"]),
        (&json!("name"), &json!(1), &json!("d"))
    );
    assert_eq!(columns[1]["description"], "Custom resource definition column (in JSONPath format): .spec.size");
    assert_eq!(Printer::custom(None).cells(&object, now), json!(["w", "90s"]));
}

#[test]
fn json_paths_are_read_as_kubectl_reads_them() {
    let object = json!({
        "a": {"b.c": "dotted", "list": [1, 2, 3, 4], "objects": [{"n": "x", "v": 1}, {"n": "y", "v": 2, "w": {"v": 9}}]},
        "kind": "K",
    });
    for (path, want) in [
        (".kind", Some(json!("K"))),
        ("$.kind", Some(json!("K"))),
        (".a['b\\.c']", Some(json!("dotted"))),
        (".a.b\\.c", Some(json!("dotted"))),
        (".a.list[0]", Some(json!(1))),
        (".a.list[-1]", Some(json!(4))),
        (".a.list[1:3]", Some(json!(2))),
        (".a.list[-2:]", Some(json!(3))),
        (".a.list[::2]", Some(json!(1))),
        (".a.list[9]", None),
        (".a.list[*]", Some(json!(1))),
        (".a.objects[*].n", Some(json!("x"))),
        (".a.objects[?(@.v>1)].n", Some(json!("y"))),
        (".a.objects[?(@.n=='y')].v", Some(json!(2))),
        (".a.objects[?(@.n != \"x\")].n", Some(json!("y"))),
        (".a.objects[?(@.w)].n", Some(json!("y"))),
        (".a.objects[?(@.n==\"z\")].n", None),
        ("..w.v", Some(json!(9))),
        (".a.list[2,0]", Some(json!(3))),
        (".a.nothing.there", None),
        (".kind.below", None),
        (".kind[0]", None),
    ] {
        assert_eq!(JsonPath::parse(path).unwrap().first(&object), want, "{path}");
    }
    for path in [".a[", ".a[x]", ".a[?(@.x==1]", "....a", ".a[?(@.x===1)]"] {
        assert!(JsonPath::parse(path).is_err(), "{path}");
    }
    let mut deep = json!([1]);
    for _ in 0..60 {
        deep = json!([deep.clone(), 1]);
    }
    let greedy = JsonPath::parse("..[*]..[*]..[*]..[*]").unwrap();
    assert_eq!(greedy.first(&deep), None, "given up, not exploded");
}
