use http::Method;
use serde_json::{Value, json};

use crate::{CONFIG_MAPS, House, config_map};

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let house = House::open().await;
    let made = house.post(CONFIG_MAPS, &config_map("c", json!({"k": "v"}))).await.is(201);
    let meta = &made["metadata"];
    assert!(meta["uid"].is_string() && meta["creationTimestamp"].is_string() && meta["resourceVersion"].is_string());
    assert_eq!(meta["managedFields"][0]["manager"], "tests");
    let url = format!("{CONFIG_MAPS}/c");
    assert_eq!(house.get(&url).await.is(200), made);

    let twice = house.post(CONFIG_MAPS, &config_map("c", json!({}))).await;
    assert_eq!((twice.code, twice.message().as_str()), (409, r#"configmaps "c" already exists"#));

    let changed = house.put(&url, &config_map("c", json!({"k": "w"}))).await.is(200);
    assert_eq!((&changed["data"], &changed["metadata"]["uid"]), (&json!({"k": "w"}), &meta["uid"]));
    let again = house.put(&url, &changed).await.is(200);
    assert_eq!(
        again["metadata"]["resourceVersion"], changed["metadata"]["resourceVersion"],
        "nothing changed, nothing written"
    );

    let mut stale = made.clone();
    stale["data"] = json!({"k": "x"});
    let refused = house.put(&url, &stale).await;
    let said = "Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to \
                the latest version and try again";
    assert_eq!((refused.code, refused.message().as_str()), (409, said));

    let gone = house.delete(&url).await.is(200);
    assert_eq!((&gone["status"], &gone["details"]["uid"]), (&json!("Success"), &meta["uid"]));
    let missing = house.get(&url).await;
    assert_eq!((missing.code, missing.message().as_str()), (404, r#"configmaps "c" not found"#));
}

#[tokio::test]
async fn uids_sort_by_the_order_of_creation() {
    let house = House::open().await;
    let mut uids = Vec::new();
    for at in 0..50 {
        let made = house.post(CONFIG_MAPS, &config_map(&format!("c{at}"), json!({}))).await.is(201);
        uids.push(made["metadata"]["uid"].as_str().unwrap().to_owned());
    }
    assert!(uids.is_sorted());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_with_upstreams_words() {
    let house = House::open().await;
    let (json_type, yaml) = (("content-type", "application/json"), ("content-type", "application/yaml"));
    for (body, header, code, said) in [
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"k":1}}"#,
            json_type,
            400,
            r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field ConfigMap.data of type string"#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"Up_Per"}}"#,
            json_type,
            422,
            r#"ConfigMap "Up_Per" is invalid: metadata.name: Invalid value: "Up_Per": a lowercase RFC 1123 subdomain"#,
        ),
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap"}"#,
            json_type,
            422,
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"other"}}"#,
            json_type,
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"c"}}"#,
            json_type,
            400,
            "converting (v1.Deployment) to (core.ConfigMap): unknown conversion",
        ),
        ("{", json_type, 400, "unexpected end of JSON input"),
        ("{}", ("content-type", "text/plain"), 415, "the body of the request was in an unknown format"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: [1]}\n",
            yaml,
            400,
            "cannot unmarshal array into Go",
        ),
    ] {
        let answer = house.send(Method::POST, CONFIG_MAPS, &[header], body).await;
        assert!(answer.code == code && answer.message().contains(said), "{body}: {} {}", answer.code, answer.text);
    }
    let absent = house.post("/api/v1/namespaces/absent/configmaps", &config_map("c", json!({}))).await;
    assert_eq!((absent.code, absent.message().as_str()), (404, r#"namespaces "absent" not found"#));
    let made = house
        .send(Method::POST, CONFIG_MAPS, &[yaml], "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\n")
        .await;
    assert_eq!(made.code, 201, "YAML is taken");
}

#[tokio::test]
async fn unknown_and_doubled_fields_are_refused_told_or_ignored() {
    let house = House::open().await;
    let body = |name: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"a":"1","a":"2"}},"dtaa":{{}}}}"#
        )
    };
    let send = async |name: &str, mode: &str| {
        let path = format!("{CONFIG_MAPS}?fieldValidation={mode}");
        house.send(Method::POST, &path, &[("content-type", "application/json")], body(name)).await
    };
    let strict = send("s", "Strict").await;
    let said = r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "data.a", unknown field "dtaa""#;
    assert_eq!((strict.code, strict.message().as_str()), (400, said));
    let warned = send("w", "Warn").await;
    assert_eq!(warned.warnings(), [r#"duplicate field "data.a""#, r#"unknown field "dtaa""#]);
    assert_eq!(warned.is(201).get("dtaa"), None);
    let ignored = send("i", "Ignore").await;
    assert_eq!((ignored.code, ignored.warnings().len()), (201, 0));
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_write_nothing() {
    let house = House::open().await;
    let mut object = config_map("", json!({}));
    object["metadata"] = json!({"generateName": "g-"});
    let made = house.post(CONFIG_MAPS, &object).await.is(201);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");

    let dry = house.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("dry", json!({}))).await.is(201);
    assert!(dry["metadata"]["uid"].is_string());
    assert_eq!(house.get(&format!("{CONFIG_MAPS}/dry")).await.code, 404);
    let bad = house.post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("dry", json!({}))).await;
    assert_eq!(bad.code, 422);
    assert!(bad.message().contains(r#"dryRun: Unsupported value: ["Some"]: supported values: "All""#));
}

#[tokio::test]
async fn patches_of_every_language_change_what_they_say() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &config_map("c", json!({"k": "v"}))).await.is(201);
    let url = format!("{CONFIG_MAPS}/c");
    let data = |answer: Value| answer["data"].clone();
    let merged = house.patch(&url, "merge", &json!({"data": {"k": null, "n": "1"}})).await.is(200);
    assert_eq!(data(merged), json!({"n": "1"}));
    let operations =
        json!([{"op": "test", "path": "/data/n", "value": "1"}, {"op": "add", "path": "/data/x", "value": "y"}]);
    assert_eq!(data(house.patch(&url, "json", &operations).await.is(200)), json!({"n": "1", "x": "y"}));
    let strategic = house.patch(&url, "strategic-merge", &json!({"data": {"z": "1"}})).await.is(200);
    assert_eq!(data(strategic), json!({"n": "1", "x": "y", "z": "1"}));
    let untested = house.patch(&url, "json", &json!([{"op": "test", "path": "/data/n", "value": "2"}])).await;
    assert_eq!(untested.code, 422);
    let wrong = house.patch(&url, "merge", &json!({"data": {"n": 1}})).await;
    assert!(wrong.code == 422 && wrong.message().contains("json: cannot unmarshal number"), "{}", wrong.text);
    let unchanged = house.get(&url).await.is(200);
    assert_eq!(data(unchanged), json!({"n": "1", "x": "y", "z": "1"}));
    let elsewhere = house.send(Method::PATCH, &url, &[("content-type", "application/json")], "{}").await;
    assert_eq!(elsewhere.code, 415);
}

#[tokio::test]
async fn appliers_own_their_fields_and_an_apply_twice_writes_once() {
    let house = House::open().await;
    let url = format!("{CONFIG_MAPS}/c");
    let applied = |who: &str| format!("{url}?fieldManager={who}");
    let made = house.patch(&applied("one"), "apply", &config_map("c", json!({"k": "v"}))).await.is(201);
    let again = house.patch(&applied("one"), "apply", &config_map("c", json!({"k": "v"}))).await.is(200);
    assert_eq!(again, made);
    let conflict = house.patch(&applied("two"), "apply", &config_map("c", json!({"k": "w"}))).await;
    assert!(conflict.code == 409 && conflict.message().contains(r#"conflict with "one""#), "{}", conflict.text);
    let forced = house
        .patch(&format!("{}&force=true", applied("two")), "apply", &config_map("c", json!({"k": "w"})))
        .await
        .is(200);
    assert_eq!(forced["data"], json!({"k": "w"}));
    let nameless = house.patch(&url, "apply", &config_map("c", json!({}))).await;
    assert!(nameless.code == 422 && nameless.message().contains("fieldManager: Required value"), "{}", nameless.text);
}

#[tokio::test]
async fn writers_who_race_lose_nothing() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &config_map("c", json!({}))).await.is(201);
    let url = format!("{CONFIG_MAPS}/c");
    let patches = (0..32).map(|at| {
        let (house, url) = (&house, &url);
        async move { house.patch(url, "merge", &json!({"data": {format!("k{at}"): "v"}})).await.is(200) }
    });
    futures::future::join_all(patches).await;
    assert_eq!(house.get(&url).await.is(200)["data"].as_object().unwrap().len(), 32);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let house = House::open().await;
    let mut object = config_map("c", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    house.post(CONFIG_MAPS, &object).await.is(201);
    let url = format!("{CONFIG_MAPS}/c");
    let marked = house.delete(&url).await.is(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let again = house.post(CONFIG_MAPS, &object).await;
    assert_eq!(again.message(), r#"object is being deleted: configmaps "c" already exists"#);
    let more = house
        .patch(&url, "merge", &json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}))
        .await;
    assert!(more.message().contains("no new finalizers can be added if the object is being deleted"), "{}", more.text);
    house.patch(&url, "merge", &json!({"metadata": {"finalizers": null}})).await.is(200);
    assert_eq!(house.get(&url).await.code, 404);
}

#[tokio::test]
async fn deletions_respect_preconditions_and_policies() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &config_map("c", json!({}))).await.is(201);
    let url = format!("{CONFIG_MAPS}/c");
    let delete = async |body: Value| {
        house.send(Method::DELETE, &url, &[("content-type", "application/json")], body.to_string()).await
    };
    let other = delete(json!({"preconditions": {"uid": "nope"}})).await;
    assert!(other.code == 409 && other.message().contains("the UID in the precondition (nope)"), "{}", other.text);
    assert_eq!(delete(json!({"preconditions": {"resourceVersion": "1"}})).await.code, 409);
    assert_eq!(delete(json!({"propagationPolicy": "Sideways"})).await.code, 422);
    assert_eq!(delete(json!({"dryRun": ["All"]})).await.code, 200);
    let marked = delete(json!({"propagationPolicy": "Orphan"})).await;
    assert_eq!(marked.json()["metadata"]["finalizers"], json!(["orphan"]));
    house.gone(CONFIG_MAPS, "c").await;
}

#[tokio::test]
async fn secrets_fold_their_texts_and_immutable_ones_stay() {
    let house = House::open().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"q": "z"}, "immutable": true});
    let made = house.post(secrets, &object).await.is(201);
    assert_eq!((&made["data"], &made["type"], made.get("stringData")), (&json!({"q": "eg=="}), &json!("Opaque"), None));
    let url = format!("{secrets}/s");
    let changed = house.patch(&url, "merge", &json!({"data": {"q": "aGk="}})).await;
    assert!(
        changed.message().contains("data: Forbidden: field is immutable when `immutable` is set"),
        "{}",
        changed.text
    );
    let retyped = house.patch(&url, "merge", &json!({"type": "other"})).await;
    assert!(retyped.message().contains("type: Invalid value: \"other\": field is immutable"), "{}", retyped.text);
}

#[tokio::test]
async fn workloads_get_their_defaults_generation_and_scale() {
    let house = House::open().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "one", "image": "x"}, {"name": "two", "image": "y"}]}}}});
    let made = house.post(deployments, &object).await.is(201);
    let spec = &made["spec"];
    assert_eq!((&spec["replicas"], &spec["strategy"]["rollingUpdate"]["maxSurge"]), (&json!(1), &json!("25%")));
    assert_eq!(spec["template"]["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!((&made["metadata"]["generation"], &made["status"]), (&json!(1), &json!({})));
    let url = format!("{deployments}/d");
    let labelled = house
        .patch(&url, "merge", &json!({"metadata": {"labels": {"x": "y"}}, "status": {"replicas": 9}}))
        .await
        .is(200);
    assert_eq!(labelled["metadata"]["generation"], 1);
    assert_ne!(labelled["status"]["replicas"], 9);
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "z"}]}}}});
    let changed = house.patch(&url, "strategic-merge", &image).await.is(200);
    assert_eq!(
        (
            &changed["metadata"]["generation"],
            changed["spec"]["template"]["spec"]["containers"].as_array().unwrap().len()
        ),
        (&json!(2), 2)
    );
    let status = house
        .patch(&format!("{url}/status"), "merge", &json!({"status": {"replicas": 1}, "spec": {"replicas": 7}}))
        .await
        .is(200);
    assert_eq!(
        (&status["status"]["replicas"], &status["spec"]["replicas"], &status["metadata"]["generation"]),
        (&json!(1), &json!(1), &json!(2))
    );
    let scaled = house.patch(&format!("{url}/scale"), "merge", &json!({"spec": {"replicas": 4}})).await.is(200);
    assert_eq!(
        (&scaled["kind"], &scaled["spec"]["replicas"], &scaled["status"]["selector"]),
        (&json!("Scale"), &json!(4), &json!("a=b"))
    );
    assert_eq!(house.get(&url).await.is(200)["spec"]["replicas"], 4);
    let fixed = house.patch(&url, "merge", &json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}})).await;
    assert!(
        fixed.message().contains("spec.selector: Invalid value:") && fixed.message().contains("field is immutable"),
        "{}",
        fixed.text
    );
}

#[tokio::test]
async fn one_event_is_read_in_both_groups() {
    let house = House::open().await;
    let object = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "Because", "message": "said so",
        "involvedObject": {"kind": "ConfigMap", "name": "c", "namespace": "default"}});
    house.post("/api/v1/namespaces/default/events", &object).await.is(201);
    let other = house.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.is(200);
    assert_eq!(
        (&other["note"], &other["regarding"]["name"], other.get("message")),
        (&json!("said so"), &json!("c"), None)
    );
    let found = house.get("/api/v1/events?fieldSelector=involvedObject.name=c,reason=Because").await.is(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_namespace_that_goes_takes_nothing_new_and_leaves_nothing() {
    let house = House::open().await;
    let made = house
        .post("/api/v1/namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))
        .await
        .is(201);
    assert_eq!((&made["spec"]["finalizers"], &made["status"]["phase"]), (&json!(["kubernetes"]), &json!("Active")));
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    let mut held = config_map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    house.post("/api/v1/namespaces/n/configmaps", &held).await.is(201);
    let going = house.delete("/api/v1/namespaces/n").await.is(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = house.post("/api/v1/namespaces/n/configmaps", &config_map("late", json!({}))).await;
    assert!(late.code == 403 && late.message().contains("because it is being terminated"), "{}", late.text);
    assert_eq!(late.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    house.patch("/api/v1/namespaces/n/configmaps/held", "merge", &json!({"metadata": {"finalizers": null}})).await;
    house.gone("/api/v1/namespaces", "n").await;
    assert_eq!(house.delete("/api/v1/namespaces/default").await.code, 403);
}
