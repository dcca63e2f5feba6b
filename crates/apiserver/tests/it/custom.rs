use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};

use crate::House;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "singular": "widget", "listKind": "WidgetList", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true,
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "selectableFields": [{"jsonPath": ".spec.size"}],
                    "additionalPrinterColumns": [{"name": "Size", "type": "string", "jsonPath": ".spec.size"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "required": ["size"], "properties": {
                            "size": {"type": "string", "enum": ["small", "large"], "description": "How big it is."},
                            "replicas": {"type": "integer", "default": 1}}},
                        "status": {"type": "object", "properties": {"note": {"type": "string"}, "replicas": {"type": "integer"}}}}}}},
                {"name": "v1alpha1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn installed() -> House {
    let house = House::open().await;
    let definition: CustomResourceDefinition = serde_json::from_value(definition()).unwrap();
    house.server.install(vec![definition]).await.unwrap();
    house
}

#[tokio::test]
async fn groups_of_definitions_are_listed_by_name_and_not_as_they_came() {
    let house = House::open().await;
    for (group, versions) in
        [("z.example", &["v1"][..]), ("m.example", &["v2", "v1beta1"]), ("a.example", &["v1beta2"])]
    {
        let of = |(at, name): (usize, &&str)| json!({"name": name, "served": true, "storage": at == 0, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let versions: Vec<_> = versions.iter().enumerate().map(of).collect();
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": format!("things.{group}")},
            "spec": {"group": group, "scope": "Cluster", "names": {"plural": "things", "kind": "Thing"}, "versions": versions}});
        house.post(DEFINITIONS, &definition).await.is(201);
    }
    let names = |list: &Value, at: &str| -> Vec<String> {
        let names = list.as_array().unwrap().iter().map(|it| it.pointer(at).unwrap().as_str().unwrap().to_owned());
        names.filter(|it| it.ends_with("example")).collect()
    };
    // By the first of the names of all their versions: `v1.z.example`, `v1beta1.m.example`, `v1beta2.a.example`.
    let plain = house.get("/apis").await.is(200);
    assert_eq!(names(&plain["groups"], "/name"), ["z.example", "m.example", "a.example"]);
    let accept = [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")];
    let aggregated = house.send(http::Method::GET, "/apis", &accept, "").await.is(200);
    assert_eq!(names(&aggregated["items"], "/metadata/name"), ["a.example", "m.example", "z.example"]);
}

#[tokio::test]
async fn installing_twice_writes_once_and_serves_at_once() {
    let house = installed().await;
    let stored = house.get(&format!("{DEFINITIONS}/widgets.example.com")).await.is(200);
    let status: Vec<_> = stored["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["type"].as_str().unwrap(), it["status"].as_str().unwrap()))
        .collect();
    assert_eq!(status, [("NamesAccepted", "True"), ("Established", "True")]);
    house.server.install(vec![serde_json::from_value(definition()).unwrap()]).await.unwrap();
    assert_eq!(house.get(&format!("{DEFINITIONS}/widgets.example.com")).await.is(200), stored);
    let mut broken = definition();
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] = json!("nonsense");
    let error = house.server.install(vec![serde_json::from_value(broken).unwrap()]).await.unwrap_err();
    assert!(error.to_string().contains("openAPIV3Schema"), "{error}");
}

#[tokio::test]
async fn objects_are_checked_completed_and_pruned() {
    let house = installed().await;
    let made = house.post(WIDGETS, &widget("w", json!({"size": "small", "typo": 1}))).await;
    assert_eq!(made.warnings(), [r#"unknown field "spec.typo""#]);
    assert_eq!(made.is(201)["spec"], json!({"size": "small", "replicas": 1}));
    let strict = house
        .post(&format!("{WIDGETS}?fieldValidation=Strict"), &widget("x", json!({"size": "small", "typo": 1})))
        .await;
    assert!(
        strict.code == 400 && strict.message().contains(r#"strict decoding error: unknown field "spec.typo""#),
        "{}",
        strict.text
    );
    let wrong = house.post(WIDGETS, &widget("x", json!({"size": "huge"}))).await;
    let said = r#"Widget.example.com "x" is invalid: spec.size: Unsupported value: "huge": supported values: "small", "large""#;
    assert_eq!((wrong.code, wrong.message().as_str()), (422, said));
    let found = house.get(&format!("{WIDGETS}?fieldSelector=spec.size%3Dsmall")).await.is(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(house.get(&format!("{WIDGETS}?fieldSelector=spec.replicas%3D1")).await.code, 400);
    let unsupported = house.patch(&format!("{WIDGETS}/w"), "strategic-merge", &json!({})).await;
    assert_eq!(unsupported.code, 415);
}

#[tokio::test]
async fn status_and_scale_are_doors_of_their_own() {
    let house = installed().await;
    let mut object = widget("w", json!({"size": "small"}));
    object["status"] = json!({"note": "ignored"});
    let made = house.post(WIDGETS, &object).await.is(201);
    assert_eq!((made.get("status"), &made["metadata"]["generation"]), (None, &json!(1)));
    let url = format!("{WIDGETS}/w");
    let changed =
        house.patch(&url, "merge", &json!({"status": {"note": "ignored"}, "spec": {"replicas": 3}})).await.is(200);
    assert_eq!((changed.get("status"), &changed["metadata"]["generation"]), (None, &json!(2)));
    let patch = json!({"status": {"note": "seen"}, "spec": {"replicas": 9}, "metadata": {"labels": {"a": "b"}}});
    let status = house.patch(&format!("{url}/status"), "merge", &patch).await.is(200);
    assert_eq!(
        (&status["status"]["note"], &status["spec"]["replicas"], &status["metadata"]["generation"]),
        (&json!("seen"), &json!(3), &json!(2))
    );
    assert_eq!(status["metadata"].get("labels"), None);
    house.patch(&format!("{url}/scale"), "merge", &json!({"spec": {"replicas": 5}})).await.is(200);
    assert_eq!(house.get(&url).await.is(200)["spec"]["replicas"], 5);
    let unversioned = house.put(&url, &widget("w", json!({"size": "large"}))).await;
    assert!(
        unversioned.message().contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{}",
        unversioned.text
    );
}

#[tokio::test]
async fn one_object_is_served_in_every_version() {
    let house = installed().await;
    house.post(WIDGETS, &widget("w", json!({"size": "small"}))).await.is(201);
    let old = house.get("/apis/example.com/v1alpha1/namespaces/default/widgets/w").await;
    assert_eq!(old.warnings(), ["example.com/v1alpha1 Widget is deprecated; use example.com/v1 Widget"]);
    let old = old.is(200);
    assert_eq!((&old["apiVersion"], &old["spec"]["size"]), (&json!("example.com/v1alpha1"), &json!("small")));
    let mut free = old.clone();
    free["metadata"] = json!({"name": "v"});
    free["spec"]["extra"] = json!(1);
    house.post("/apis/example.com/v1alpha1/namespaces/default/widgets", &free).await.is(201);
    let new = house.get(&format!("{WIDGETS}/v")).await.is(200);
    assert_eq!(
        (&new["apiVersion"], new["spec"].get("extra")),
        (&json!("example.com/v1"), None),
        "what is kept is what v1 knows"
    );
}

#[tokio::test]
async fn definitions_that_are_wrong_are_refused_by_their_fields() {
    let house = House::open().await;
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 6] = [
        (|it| it["metadata"]["name"] = json!("x"), r#"must be spec.names.plural+"."+spec.group"#),
        (|it| it["spec"]["scope"] = json!("Galaxy"), r#"spec.scope: Unsupported value: "Galaxy""#),
        (
            |it| it["spec"]["versions"][1]["storage"] = json!(true),
            "must have exactly one version marked as storage version",
        ),
        (
            |it| drop(it["spec"]["versions"][0].as_object_mut().unwrap().remove("schema")),
            "spec.versions[0].schema.openAPIV3Schema: Required value",
        ),
        (|it| it["spec"]["names"]["kind"] = json!("Bad_Kind"), "spec.names.kind: Invalid value"),
        (|it| it["spec"]["conversion"] = json!({"strategy": "Webhook"}), "spec.conversion.strategy: Forbidden"),
    ];
    for (change, said) in changes {
        let mut it = definition();
        change(&mut it);
        let answer = house.post(DEFINITIONS, &it).await;
        assert!(answer.code == 422 && answer.message().contains(said), "{said}: {}", answer.text);
    }
}

/// What a real API server (1.34.2) said to each of these, recorded.
#[tokio::test]
async fn definitions_that_are_wrong_are_refused_in_the_words_of_a_real_api_server() {
    let house = House::open().await;
    for line in include_str!("../../testdata/definitions.jsonl").lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let answer = house.post(&format!("{DEFINITIONS}?dryRun=All"), &record["definition"]).await;
        assert_eq!(json!(answer.code), record["code"], "{}: {}", record["name"], answer.text);
        assert_eq!(json!(answer.warnings()), record["warnings"], "{}", record["name"]);
        if answer.code == 400 {
            assert_eq!(answer.message(), record["message"], "{}", record["name"]);
        }
        let causes = answer.json().pointer("/details/causes").cloned().unwrap_or_else(|| json!([]));
        let text = |cause: &Value, key: &str| cause.get(key).cloned().unwrap_or_else(|| json!(""));
        let mut said: Vec<Value> = causes
            .as_array()
            .unwrap()
            .iter()
            .map(|it| json!([text(it, "field"), text(it, "reason"), text(it, "message")]))
            .collect();
        let mut wanted = record["causes"].as_array().unwrap().clone();
        for list in [&mut said, &mut wanted] {
            list.sort_by_key(ToString::to_string);
        }
        assert_eq!(said, wanted, "{}", record["name"]);
    }
}

#[tokio::test]
async fn rules_that_cost_too_much_are_stopped_and_others_go_on() {
    let house = House::open().await;
    let mut definition = definition();
    definition["metadata"]["name"] = json!("heavies.example.com");
    definition["spec"]["names"] = json!({"plural": "heavies", "kind": "Heavy"});
    // Cheap by the estimate, whose worst case is ten parts; what they hold is looked at as a whole.
    let part = json!({"type": "array", "maxItems": 3000, "items": {"type": "string", "maxLength": 20}});
    definition["spec"]["versions"] = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
        {"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.l.all(a, self.k.all(b, a != b))", "message": "apart"}],
            "properties": {"l": part, "k": part}}}}}}]);
    let refused = house.post(DEFINITIONS, &definition).await;
    assert!(refused.message().contains("estimated rule cost exceeds budget by factor of"), "{}", refused.text);
    for list in ["l", "k"] {
        let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{list}/maxItems");
        *definition.pointer_mut(&path).unwrap() = json!(600);
    }
    house.post(DEFINITIONS, &definition).await.is(201);
    let items = |name: &str| (0..600).map(|it| format!("{name}{it}")).collect::<Vec<_>>();
    let object = json!({"apiVersion": "example.com/v1", "kind": "Heavy", "metadata": {"name": "h"},
        "spec": {"l": items("l"), "k": items("k")}});
    let url = "/apis/example.com/v1/namespaces/default/heavies";
    let (stopped, ready) = tokio::join!(house.post(url, &object), house.get("/readyz"));
    assert_eq!(ready.code, 200);
    let said = "spec: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: apart";
    assert!(stopped.code == 422 && stopped.message().ends_with(said), "{}", stopped.text);
}

#[tokio::test]
async fn names_are_given_once_and_again_when_they_are_free() {
    let house = installed().await;
    let mut rival = definition();
    rival["metadata"]["name"] = json!("gadgets.example.com");
    rival["spec"]["names"] = json!({"plural": "gadgets", "kind": "Widget"});
    let made = house.post(DEFINITIONS, &rival).await.is(201);
    assert_eq!(made["status"]["conditions"][0]["message"], r#""WidgetList" is already in use"#);
    assert_eq!(house.get("/apis/example.com/v1/namespaces/default/gadgets").await.code, 404);
    house.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.is(200);
    let api: Api<CustomResourceDefinition> = Api::all(house.client.clone());
    let established = await_condition(api, "gadgets.example.com", conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(60), established).await.unwrap().unwrap();
    assert_eq!(house.get("/apis/example.com/v1/namespaces/default/gadgets").await.code, 200);
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_with_it() {
    let house = installed().await;
    let mut held = widget("held", json!({"size": "small"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    house.post(WIDGETS, &held).await.is(201);
    house.post(WIDGETS, &widget("free", json!({"size": "small"}))).await.is(201);
    let going = house.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.is(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    let late = house.post(WIDGETS, &widget("late", json!({"size": "small"}))).await;
    assert_eq!(
        (late.code, late.message().as_str()),
        (405, "create not allowed while custom resource definition is terminating")
    );
    house.gone(WIDGETS, "free").await;
    assert_eq!(house.get(&format!("{WIDGETS}/held")).await.code, 200);
    house.patch(&format!("{WIDGETS}/held"), "merge", &json!({"metadata": {"finalizers": null}})).await.is(200);
    house.gone(DEFINITIONS, "widgets.example.com").await;
    assert_eq!(house.get(WIDGETS).await.code, 404);
    assert_eq!(house.get(&format!("{DEFINITIONS}/widgets.example.com")).await.code, 404);
}

/// A definition of a kind whose objects hold anything.
fn anything(plural: &str, kind: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.example.com")},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

#[tokio::test]
async fn definitions_that_go_together_wait_each_for_its_own_objects_however_many() {
    let house = House::open().await;
    let free = json!({"metadata": {"finalizers": null}});
    // More than the history of what happened holds: a megabyte each.
    for (plural, kind, count) in [("ables", "Able", 1), ("blobs", "Blob", 17)] {
        house.server.install(vec![serde_json::from_value(anything(plural, kind)).unwrap()]).await.unwrap();
        for n in 0..count {
            let object = json!({"apiVersion": "example.com/v1", "kind": kind, "text": "x".repeat(1 << 20),
                "metadata": {"name": format!("o{n}"), "finalizers": ["example.com/hold"]}});
            house.post(&format!("/apis/example.com/v1/namespaces/default/{plural}"), &object).await.is(201);
        }
    }
    for plural in ["ables", "blobs"] {
        house.delete(&format!("{DEFINITIONS}/{plural}.example.com")).await.is(200);
    }
    let ables = "/apis/example.com/v1/namespaces/default/ables";
    house.patch(&format!("{ables}/o0"), "merge", &free).await.is(200);
    house.gone(DEFINITIONS, "ables.example.com").await;
    let blobs = "/apis/example.com/v1/namespaces/default/blobs";
    for n in 0..17 {
        house.patch(&format!("{blobs}/o{n}"), "merge", &free).await.is(200);
    }
    house.gone(DEFINITIONS, "blobs.example.com").await;
}
