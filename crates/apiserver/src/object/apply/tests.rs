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
