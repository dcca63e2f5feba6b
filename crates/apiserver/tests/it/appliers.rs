//! Server-side apply as a user may rely on it, on a kind with defaults, lists by key and maps.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Map, Value, json};

use crate::House;

/// Nobody acts on them.
const TEMPLATES: &str = "/api/v1/namespaces/default/podtemplates";

/// What all rely on: an object that is valid whatever the others leave out.
fn base() -> Value {
    json!({"template": {
        "metadata": {"labels": {"app": "it"}}, "spec": {"containers": [{"name": "base", "image": "base:1"}]}}})
}

fn names(max: usize) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(vec!["p", "q", "r"], 0..=max)
}

/// A part of a PodTemplate that no configuration of the other side touches.
fn part(side: &'static str) -> impl Strategy<Value = Value> {
    let image = proptest::option::of(0..2_u8);
    let ports = proptest::sample::subsequence(vec![80, 81, 82], 0..=3);
    let scalar = proptest::option::of(1..4_u8);
    (names(3), names(3), names(3), ports, image, scalar).prop_map(
        move |(labels, env, volumes, ports, image, scalar)| {
            let named = |name: &&str| format!("{side}-{name}");
            let labels: Map<_, _> = labels.iter().map(|it| (named(it), json!("v"))).collect();
            let mut part = json!({});
            // What is empty is not kept: upstream too writes anew when it is applied again, and an empty map is a field of both.
            if !labels.is_empty() {
                part = json!({"metadata": {"labels": labels}, "template": {"metadata": {"annotations": labels}}});
            }
            if let Some(number) = scalar {
                let field = if side == "l" { "terminationGracePeriodSeconds" } else { "activeDeadlineSeconds" };
                part["template"]["spec"][field] = json!(number);
            }
            if let Some(image) = image {
                let env: Vec<_> = env.iter().map(|it| json!({"name": named(it), "value": side})).collect();
                let ports: Vec<_> = ports.iter().map(|it| json!({"containerPort": it})).collect();
                let mut container = json!({"name": side, "image": format!("{side}:{image}")});
                for (field, list) in [("env", env), ("ports", ports)] {
                    if !list.is_empty() {
                        container[field] = json!(list);
                    }
                }
                part["template"]["spec"]["containers"] = json!([container]);
            }
            if !volumes.is_empty() {
                part["template"]["spec"]["volumes"] =
                    volumes.iter().map(|it| json!({"name": named(it), "emptyDir": {}})).collect();
            }
            part
        },
    )
}

async fn apply(house: &House, name: &str, manager: &str, part: &Value) -> Value {
    let mut whole = json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}});
    for (key, value) in part.as_object().unwrap() {
        match (key.as_str(), value.as_object()) {
            ("metadata", Some(more)) => whole["metadata"].as_object_mut().unwrap().extend(more.clone()),
            _ => whole[key] = value.clone(),
        }
    }
    let answer = house.patch(&format!("{TEMPLATES}/{name}?fieldManager={manager}"), "apply", &whole).await;
    assert!(answer.code == 200 || answer.code == 201, "{}", answer.text);
    answer.json()
}

/// The object without what depends on when and in which order it was made.
fn settled(object: &Value) -> Value {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(items) => {
                items.iter_mut().for_each(sort);
                items.sort_by_key(ToString::to_string);
            }
            Value::Object(map) => {
                map.values_mut().for_each(sort);
                map.sort_keys();
                map.retain(|_, it| *it != json!({}) && *it != json!([]));
            }
            _ => {}
        }
    }
    let mut object = object.clone();
    let meta = object["metadata"].as_object_mut().unwrap();
    meta.retain(|key, _| matches!(key.as_str(), "labels" | "annotations" | "managedFields"));
    for entry in meta["managedFields"].as_array_mut().unwrap() {
        entry.as_object_mut().unwrap().shift_remove("time");
    }
    sort(&mut object);
    object
}

#[test]
fn applying_twice_changes_nothing_and_managers_of_different_fields_do_not_mind_the_order() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let house = runtime.block_on(House::open());
    let config = ProptestConfig {
        cases: 40,
        max_shrink_iters: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    };
    let number = std::cell::Cell::new(0);
    let told = TestRunner::new(config).run(&(part("l"), part("l"), part("r"), part("r")), |(l1, l2, r1, r2)| {
        number.set(number.get() + 1);
        runtime.block_on(async {
            let orders =
                [[("l", &l1), ("r", &r1), ("l", &l2), ("r", &r2)], [("r", &r1), ("r", &r2), ("l", &l1), ("l", &l2)]];
            let mut ends = Vec::new();
            for (at, order) in orders.into_iter().enumerate() {
                let name = format!("d{}-{at}", number.get());
                apply(&house, &name, "base", &base()).await;
                for (manager, part) in order {
                    let once = apply(&house, &name, manager, part).await;
                    assert_eq!(apply(&house, &name, manager, part).await, once, "not a byte, nor a revision");
                }
                ends.push(settled(&house.get(&format!("{TEMPLATES}/{name}")).await.is(200)));
            }
            assert_eq!(ends[0], ends[1]);
        });
        Ok(())
    });
    told.unwrap_or_else(|why| panic!("{why}"));
}
