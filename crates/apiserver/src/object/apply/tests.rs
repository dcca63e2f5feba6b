use serde_json::{Value, json};

use super::*;
use crate::object::builtin;

const NOW: &str = "2030-01-01T00:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// The entries, with times that are not those of before told as now.
fn entries(object: &Value, before: Option<&Value>) -> Vec<Value> {
    let of = |object: &Value| {
        object.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let old = before.map(of).unwrap_or_default();
    let mut new = of(object);
    for entry in &mut new {
        let same = |was: &&Value| ["manager", "operation", "subresource"].iter().all(|k| was.get(k) == entry.get(k));
        let time = old.iter().find(same).and_then(|was| was.get("time"));
        if entry.get("time").is_some() && entry.get("time") != time {
            entry["time"] = json!(NOW);
        }
    }
    // Controllers were at work beside.
    new.retain(|e| e["manager"] != "kube-controller-manager");
    // Entries of one second are ordered by name; the times here are not those of the record.
    new.sort_by_key(|e| format!("{}{}{}", e["operation"], e["manager"], e["subresource"]));
    new
}

fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for key in ["managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "namespace"] {
            metadata.shift_remove(key);
        }
    }
    object
}

/// Every request of a few dozen scenarios, and what a real API server (1.34.2) made of it, recorded.
#[test]
fn applies_updates_and_patches_leave_the_books_that_a_real_api_server_leaves() {
    let mut lines =
        include_str!("../../../testdata/apply.jsonl").lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let custom = Schema::trusted(&lines.next().unwrap()["schema"]);
    for (i, record) in lines.enumerate() {
        let text = |key: &str| record[key].as_str().unwrap_or_default();
        let before = Some(&record["before"]).filter(|b| !b.is_null());
        let object = [before, record.get("after"), record.get("config")].into_iter().flatten().next().unwrap();
        let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let schema = builtin::schema_of(group, version, kind).unwrap_or_else(|| custom.clone());
        let said = || format!("line {}: {} {} {}", i + 2, text("scenario"), text("do"), text("manager"));
        let mut made = if text("do") == "apply" {
            let applier = Applier {
                manager: text("manager"),
                subresource: text("subresource"),
                api_version,
                force: record["force"] == json!(true),
                now: now(),
            };
            match apply(before, record["config"].clone(), &schema, &applier) {
                Ok(object) => object,
                Err(problem) => {
                    let refused = &record["refused"];
                    assert_eq!(
                        (json!(problem.code), json!(problem.message)),
                        (refused["code"].clone(), refused["message"].clone()),
                        "{}",
                        said()
                    );
                    continue;
                }
            }
        } else {
            let Some(after) = record.get("after") else { continue };
            let mut new = after.clone();
            let sent = &record["sent"];
            let sent = if sent == "same" {
                before.and_then(|b| b.pointer("/metadata/managedFields")).unwrap_or(sent)
            } else {
                sent
            };
            new["metadata"]["managedFields"] = sent.clone();
            schema.prune(&mut new);
            let updater =
                Updater { manager: text("manager"), subresource: text("subresource"), api_version, now: now() };
            track(before, &mut new, &schema, &updater);
            new
        };
        // What validation refuses is not our business here.
        let Some(after) = record.get("after") else { continue };
        if schema.is_custom() {
            schema.prune(&mut made);
            schema.default(&mut made);
            assert_eq!(bare(&made), bare(after), "{}", said());
        }
        if let Some(before) = before {
            keep_times(before, &mut made);
        }
        assert_eq!(json!(entries(&made, before)), json!(entries(after, before)), "{}", said());
    }
}

mod properties {
    use proptest::prelude::*;
    use serde_json::Map;

    use super::*;

    fn schema() -> Schema {
        let first = include_str!("../../../testdata/apply.jsonl").lines().next().unwrap();
        Schema::trusted(&serde_json::from_str::<Value>(first).unwrap()["schema"])
    }

    /// A configuration that sets each field with a few values or not; `side` keeps two of them apart.
    fn config(side: &'static str) -> impl Strategy<Value = Value> {
        let scalar = || proptest::option::of(prop_oneof![Just("1"), Just("2")]);
        let names = move || proptest::collection::btree_set(prop_oneof![Just("p"), Just("q"), Just("r")], 0..3);
        (scalar(), scalar(), names(), names(), names()).prop_map(move |(own, other, map, set, items)| {
            let mut spec = Map::new();
            let (first, second) = if side == "l" { ("a", "x") } else { ("b", "y") };
            spec.extend(own.map(|v| (first.to_owned(), json!(v))));
            spec.extend(other.map(|v| ("obj".to_owned(), json!({second: v}))));
            let named = |name: &str| format!("{side}{name}");
            if !map.is_empty() {
                spec.insert("map".into(), map.iter().map(|n| (named(n), json!("v"))).collect::<Map<_, _>>().into());
            }
            if !set.is_empty() {
                spec.insert("set".into(), set.iter().map(|n| json!(named(n))).collect());
            }
            if !items.is_empty() {
                spec.insert("items".into(), items.iter().map(|n| json!({"name": named(n), "value": side})).collect());
            }
            json!({"apiVersion": "aps.example.com/v1", "kind": "Ap", "metadata": {"name": "x"}, "spec": spec})
        })
    }

    fn by(manager: &str) -> Applier<'_> {
        Applier { manager, subresource: "", api_version: "aps.example.com/v1", force: false, now: now() }
    }

    /// Lists of items and the books, without the order that depends on who came first.
    fn unordered(object: &Value) -> Value {
        let mut object = object.clone();
        for path in ["/spec/set", "/spec/items", "/metadata/managedFields"] {
            if let Some(Value::Array(items)) = object.pointer_mut(path) {
                items.sort_by_key(ToString::to_string);
            }
        }
        // Who changes nothing (an empty spec that is there) is given no time.
        for entry in object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            entry.as_object_mut().map(|e| e.shift_remove("time"));
        }
        let spec = object.get_mut("spec").and_then(Value::as_object_mut);
        spec.into_iter().for_each(|spec| spec.retain(|_, v| !v.is_null()));
        object
    }

    #[test]
    fn what_is_emptied_and_owned_by_another_stays_empty() {
        let spec = |spec: Value| json!({"apiVersion": "aps.example.com/v1", "kind": "Ap", "metadata": {"name": "x"}, "spec": spec});
        let schema = schema();
        let object = apply(None, spec(json!({"a": "1"})), &schema, &by("one")).unwrap();
        let mut object = apply(Some(&object), spec(json!({})), &schema, &by("two")).unwrap();
        for manager in ["one", "one", "two", "one"] {
            object = apply(Some(&object), spec(json!({})), &schema, &by(manager)).unwrap();
            assert_eq!(object["spec"], json!({}));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn applying_twice_changes_nothing(first in config("l"), second in config("l"), third in config("r")) {
            let schema = schema();
            let object = apply(None, first, &schema, &by("one")).unwrap();
            let object = apply(Some(&object), third, &schema, &by("two")).unwrap();
            let once = apply(Some(&object), second.clone(), &schema, &by("one")).unwrap();
            let later = Applier { now: "2031-01-01T00:00:00Z".parse().unwrap(), ..by("one") };
            let mut twice = apply(Some(&once), second, &schema, &later).unwrap();
            keep_times(&once, &mut twice);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn managers_of_disjoint_fields_commute(left in config("l"), right in config("r")) {
            let schema = schema();
            let made = |order: [(&Value, &str); 2]| {
                order.into_iter().fold(None::<Value>, |live, (config, manager)| {
                    Some(apply(live.as_ref(), config.clone(), &schema, &by(manager)).unwrap())
                })
            };
            let one = made([(&left, "one"), (&right, "two")]).unwrap();
            let two = made([(&right, "two"), (&left, "one")]).unwrap();
            prop_assert_eq!(unordered(&one), unordered(&two));
        }

        #[test]
        fn what_a_manager_no_longer_applies_is_gone_and_what_others_apply_stays(left in config("l"), right in config("r")) {
            let schema = schema();
            let object = apply(None, left, &schema, &by("one")).unwrap();
            let object = apply(Some(&object), right.clone(), &schema, &by("two")).unwrap();
            let nothing = json!({"apiVersion": "aps.example.com/v1", "kind": "Ap", "metadata": {"name": "x"}});
            let mut object = apply(Some(&object), nothing, &schema, &by("one")).unwrap();
            schema.default(&mut object);
            let mut want = apply(None, right, &schema, &by("two")).unwrap();
            schema.default(&mut want);
            let spec = |object: &Value| object.get("spec").cloned().unwrap_or_else(|| json!({}));
            let defaulted = |mut spec: Value| { spec.as_object_mut().map(|s| s.shift_remove("d")); spec };
            prop_assert_eq!(defaulted(spec(&object)), defaulted(spec(&want)));
        }
    }
}

#[test]
fn of_many_conflicts_all_are_counted_and_some_are_named() {
    let schema = builtin::schema("io.k8s.api.core.v1.ConfigMap").unwrap();
    let config = |value: &str, count: usize| {
        let data: Map<String, Value> = (0..count).map(|n| (format!("k{n:03}"), json!(value))).collect();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})
    };
    let by = |manager| Applier { manager, subresource: "", api_version: "v1", force: false, now: now() };
    let live = apply(None, config("x", 150), &schema, &by("one")).unwrap();
    let problem = apply(Some(&live), config("y", 150), &schema, &by("two")).unwrap_err();
    assert!(problem.message.starts_with("Apply failed with 150 conflicts: conflicts with \"one\":\n- .data.k000\n"));
    assert!(problem.message.ends_with("\n- .data.k099"), "{}", problem.message);
    assert_eq!(problem.details.unwrap().causes.len(), 100);
    let problem = apply(Some(&live), config("y", 1), &schema, &by("two")).unwrap_err();
    assert_eq!(problem.message, "Apply failed with 1 conflict: conflict with \"one\": .data.k000");
}
