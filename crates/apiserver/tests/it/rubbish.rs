//! Whatever is sent, the answer is a result or a refusal of a bounded size, and the server goes on.
//!
//! The rubbish is made of the words that mean something in the place where it is sent: what is only random is refused by
//! the first parser that it meets.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};

use crate::House;

/// An answer is never longer: a list of what the tests leave behind included.
const MAX_ANSWER: usize = 8 << 20;

const WORDS: [&str; 58] = [
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "uid",
    "controller",
    "managedFields",
    "manager",
    "operation",
    "fieldsType",
    "fieldsV1",
    "f:metadata",
    "f:labels",
    "k:{\"name\":\"a\"}",
    "v:\"a\"",
    ".",
    "resourceVersion",
    "generateName",
    "creationTimestamp",
    "deletionTimestamp",
    "spec",
    "status",
    "replicas",
    "selector",
    "matchLabels",
    "matchExpressions",
    "template",
    "containers",
    "image",
    "env",
    "value",
    "valueFrom",
    "ports",
    "containerPort",
    "protocol",
    "volumes",
    "emptyDir",
    "resources",
    "limits",
    "cpu",
    "strategy",
    "rollingUpdate",
    "maxSurge",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "data",
    "binaryData",
    "immutable",
    "items",
    "-",
    "",
];

fn scalar() -> impl Strategy<Value = Value> {
    let texts = select(vec![
        "",
        "a",
        "delete",
        "replace",
        "merge",
        "v1",
        "apps/v1",
        "Deployment",
        "-1",
        "1e9Gi",
        "0.5",
        "100m",
        "Apply",
        "Update",
        "FieldsV1",
        "2030-01-01T00:00:00Z",
        "9999-99-99",
        "\u{0}",
        "é\u{fffd}",
        "/",
        "..",
        "%",
        "[",
        "(a+)+$",
    ]);
    let numbers = select(vec![
        json!(0),
        json!(-1),
        json!(80),
        json!(65_536),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1.5),
        json!(1e308),
    ]);
    prop_oneof![
        4 => texts.prop_map(|it| json!(it)),
        2 => numbers,
        1 => any::<bool>().prop_map(|it| json!(it)),
        1 => Just(Value::Null),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            3 => prop::collection::vec((select(WORDS.to_vec()), inner.clone()), 0..5)
                .prop_map(|all| all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

/// A value with other things in a few of its places.
fn damaged(whole: Value) -> impl Strategy<Value = Value> {
    let spots = prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4);
    spots.prop_map(move |spots| {
        let mut whole = whole.clone();
        for (at, value) in spots {
            let mut pointers = Vec::new();
            list(&whole, &mut String::new(), &mut pointers);
            let pointer = at.get(&pointers).clone();
            *whole.pointer_mut(&pointer).unwrap() = value;
        }
        whole
    })
}

fn list(value: &Value, at: &mut String, pointers: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (part, value) in parts {
        let before = at.len();
        at.push('/');
        at.push_str(&part);
        pointers.push(at.clone());
        list(value, at, pointers);
        at.truncate(before);
    }
}

fn operation() -> impl Strategy<Value = Value> {
    let pointer = || {
        prop::collection::vec(
            prop_oneof![3 => select(WORDS.to_vec()), 1 => select(vec!["0", "1", "99999999999", "~", "~2", "~1"])],
            0..6,
        )
        .prop_map(|parts| parts.iter().map(|it| format!("/{it}")).collect::<String>())
    };
    let op = select(vec!["add", "remove", "replace", "move", "copy", "test", "none"]);
    (op, pointer(), pointer(), value())
        .prop_map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
}

/// Paused: of a damaged number of replicas as many pods would be made.
fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "it", "labels": {"a": "b"}}, "spec": {
        "replicas": 1, "paused": true, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": 1}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"volumes": [{"name": "a", "emptyDir": {}}],
            "containers": [{"name": "a", "image": "a", "env": [{"name": "a", "value": "b"}], "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}}]}}}})
}

fn definition() -> Value {
    let text = r#"{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "its.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "its", "kind": "It"}, "versions": [{
            "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.name"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "x-kubernetes-validations": [{"rule": "self.replicas >= 0 && self.name.matches('^a')", "message": "no"}],
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9, "default": "a"},
                    "replicas": {"type": "integer", "minimum": 0, "default": 1},
                    "value": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "data": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "labels": {"type": "object", "maxProperties": 3, "additionalProperties": {"type": "string", "enum": ["a", "b"]}},
                    "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                        "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "value": {"type": "string"}}}}
                }}}}}}]}}"#;
    serde_json::from_str(text).unwrap()
}

fn custom() -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "It", "metadata": {"name": "it", "finalizers": ["example.com/a"]},
        "spec": {"name": "a", "replicas": 2, "value": "a", "data": {"x": [1]}, "labels": {"a": "b"}, "items": [{"name": "a", "value": "b"}]}})
}

/// Sends it, and looks at no more than whether the answer is one.
async fn send(house: &House, request: http::request::Builder, body: impl Into<Bytes>) -> Option<u16> {
    let body: Bytes = body.into();
    // What is no URL is nobody's request.
    let request = request.body(Body::from(body.to_vec())).ok()?;
    let said = format!("{} {} {:?}", request.method(), request.uri(), String::from_utf8_lossy(&body));
    let answer = house.client.send(request).await.unwrap();
    let code = answer.status().as_u16();
    // A watch that was granted has no end that is worth waiting for.
    if code == 200 && answer.headers().get("content-length").is_none() && said.contains("watch") {
        return Some(code);
    }
    let bytes = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let bytes = bytes.unwrap_or_else(|why| panic!("{why}: {said}")).to_bytes();
    let text = String::from_utf8_lossy(&bytes);
    // Upstream passes some refusals on as they are: 500 without a reason. A panic has one.
    let reason = serde_json::from_slice::<Value>(&bytes).ok().and_then(|it| it.get("reason").cloned());
    assert!(code < 500 || reason.is_none_or(|it| it == "Timeout"), "{code} {text} for {said}");
    Some(code)
}

fn try_all<T: std::fmt::Debug>(cases: u32, strategy: impl Strategy<Value = T>, test: impl AsyncFn(&House, T)) {
    // Time stands still but for those who wait: nobody waits for long.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let house = runtime.block_on(House::open());
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 400,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    };
    let told = TestRunner::new(config).run(&strategy, |it| {
        runtime.block_on(test(&house, it));
        Ok(())
    });
    told.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(runtime.block_on(house.get("/readyz")).code, 200);
}

const LANGUAGES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

#[test]
fn no_patch_in_any_language_harms_the_server() {
    let bodies = prop_oneof![
        prop::collection::vec(operation(), 0..6).prop_map(Value::Array),
        value(),
        damaged(deployment()),
        damaged(custom()),
    ];
    try_all(200, (bodies, select(LANGUAGES.to_vec()), any::<bool>()), async |house, (body, language, native)| {
        let (collection, whole) = match native {
            true => ("/apis/apps/v1/namespaces/default/deployments", deployment()),
            false => {
                // There from the first time on.
                house.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition()).await;
                ("/apis/example.com/v1/namespaces/default/its", custom())
            }
        };
        house.post(collection, &whole).await;
        let url = format!("{collection}/it?fieldManager=a&force=true");
        let url = if language.contains("apply") { url } else { format!("{collection}/it") };
        send(house, Request::patch(url).header("content-type", language), body.to_string()).await;
    });
}

#[test]
fn no_object_of_any_schema_harms_the_server() {
    let bodies = prop_oneof![damaged(deployment()), damaged(custom()), damaged(definition())];
    try_all(60, (bodies, any::<bool>()), async |house, (body, yaml)| {
        house.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition()).await;
        let text = if yaml { serde_saphyr::to_string(&body).unwrap() } else { body.to_string() };
        let kind = if yaml { "application/yaml" } else { "application/json" };
        for url in [
            "/apis/apps/v1/namespaces/default/deployments",
            "/apis/example.com/v1/namespaces/default/its",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        ] {
            send(house, Request::post(url).header("content-type", kind), text.clone()).await;
            send(house, Request::put(format!("{url}/it")).header("content-type", kind), text.clone()).await;
        }
        // What a damaged definition serves is looked at too.
        for url in ["/openapi/v3/apis/example.com/v1", "/apis/example.com/v1/its"] {
            let table = "application/json;as=Table;v=v1;g=meta.k8s.io, application/json";
            send(house, Request::get(url).header("accept", table), "").await;
        }
        let all = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        send(house, Request::delete(all), "").await;
    });
}

#[test]
fn no_url_and_no_bytes_harm_the_server() {
    let part = || {
        select(vec![
            "api",
            "apis",
            "v1",
            "apps",
            "watch",
            "proxy",
            "namespaces",
            "default",
            "configmaps",
            "pods",
            "deployments",
            "it",
            "kube-root-ca.crt",
            "status",
            "scale",
            "log",
            "exec",
            "binding",
            "eviction",
            "finalize",
            "token",
            "openapi",
            "v2",
            "v3",
            "%2F",
            "%00",
            "%",
            "%zz",
            "%ff%fe",
            "..",
            ".",
            "",
            "a%20b",
            ":",
            "@",
            "*",
        ])
    };
    let path = prop_oneof![
        prop::collection::vec(part(), 0..9).prop_map(|parts| format!("/{}", parts.join("/"))),
        (part(), part(), part()).prop_map(|(a, b, c)| format!("/api/v1/namespaces/{a}/{b}/{c}")),
        Just("/api/v1/namespaces/default/configmaps".to_owned()),
        Just("/api/v1/pods".to_owned()),
    ];
    let parameter = select(vec![
        "labelSelector",
        "fieldSelector",
        "limit",
        "continue",
        "resourceVersion",
        "resourceVersionMatch",
        "watch",
        "dryRun",
        "timeoutSeconds",
        "sendInitialEvents",
        "allowWatchBookmarks",
        "fieldManager",
        "force",
        "fieldValidation",
        "propagationPolicy",
        "gracePeriodSeconds",
        "includeObject",
        "pretty",
        "tailLines",
    ]);
    let argument = prop_oneof![
        select(vec![
            "",
            "0",
            "1",
            "-1",
            "true",
            "false",
            "All",
            "99999999999999999999",
            "Exact",
            "NotOlderThan",
            "a%3Db",
            "a+in+(b,c)",
            "!a",
            "a%3D%3Db,c!%3Dd",
            "metadata.name%3Dit",
            "status.phase%21%3Da",
            "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTF9",
            "Orphan",
            "a%00",
            "%ff",
            "((((",
            "Strict",
        ])
        .prop_map(str::to_owned),
        "[a-z0-9=!(),.+%/-]{0,30}",
    ];
    let query = prop::collection::vec((parameter, argument), 0..4)
        .prop_map(|all| all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&"));
    let method = select(vec![Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]);
    let types = select(vec![
        "application/json",
        "application/yaml",
        "application/vnd.kubernetes.protobuf",
        "text/plain",
        LANGUAGES[3],
    ]);
    let accept = select(vec![
        "*/*",
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        "application/yaml",
        "a;b=c;;=,q=x",
        "application/json;q=nan",
    ]);
    let bytes = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..60),
        prop::collection::vec(any::<u8>(), 0..60).prop_map(|rest| [b"k8s\0".to_vec(), rest].concat()),
        "[a-z:{}\\[\\]\",&*!|>%@` \n-]{0,60}".prop_map(String::into_bytes),
        value().prop_map(|it| it.to_string().into_bytes()),
    ];
    try_all(
        1500,
        (method, path, query, types, accept, bytes),
        async |house, (method, path, query, kind, accept, bytes)| {
            let request = Request::builder().method(method).uri(format!("{path}?{query}"));
            send(house, request.header("content-type", kind).header("accept", accept), bytes).await;
        },
    );
}

#[test]
fn what_was_taken_is_shown_in_every_shape() {
    try_all(30, damaged(deployment()), async |house, mut body| {
        let collection = "/apis/apps/v1/namespaces/default/deployments";
        body["metadata"] = json!({"generateName": "it-", "labels": {"a": "b"}});
        body["status"] = json!({});
        send(house, Request::post(collection).header("content-type", "application/json"), body.to_string()).await;
        for accept in [
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            "application/yaml",
        ] {
            let code = send(house, Request::get(collection).header("accept", accept), "").await;
            assert_eq!(code, Some(200));
        }
    });
}

#[test]
fn what_is_wrong_in_many_places_with_long_names_is_told_briefly() {
    let long = "k".repeat(300_000);
    let many = |value: Value| Value::Object((0..500).map(|n| (format!("f{n}"), value.clone())).collect());
    let it =
        |spec: Value| json!({"apiVersion": "example.com/v1", "kind": "It", "metadata": {"name": "it"}, "spec": spec});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "its.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "its", "kind": "It"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "additionalProperties": {"type": "object", "additionalProperties":
                    {"type": "object", "properties": {"a": {"type": "string"}}}}}}}}}]}});
    let scopes: Vec<String> = std::iter::once(long.clone()).chain((0..60).map(|_| "BestEffort".to_owned())).collect();
    let hard: serde_json::Map<_, _> = (0..200).map(|n| (format!("hugepages-{n}Mi"), json!("1"))).collect();
    let rules: Vec<Value> = (0..500).map(|_| json!({"verbs": [], "nonResourceURLs": [long.get(..1000)]})).collect();
    let (its, apis) = ("/apis/example.com/v1/namespaces/default/its", "/apis/rbac.authorization.k8s.io/v1");
    let apply = |manager: &str| format!("{its}/it?fieldManager={manager}");
    let below = |value: Value| it(json!({long.clone(): many(json!({"a": value}))}));
    let yaml = LANGUAGES[3];
    let all = [
        (Method::POST, its.to_owned(), "application/json", below(json!(1)), 422),
        (
            Method::POST,
            format!("{its}?fieldValidation=Strict"),
            "application/json",
            it(json!({long.clone(): many(json!({"b": 1}))})),
            400,
        ),
        (Method::PATCH, apply("one"), yaml, below(json!("x")), 201),
        (Method::PATCH, apply("two"), yaml, below(json!("y")), 409),
        (Method::PATCH, apply("two"), yaml, it(json!({long.clone(): many(json!([]))})), 500),
        (
            Method::POST,
            "/api/v1/namespaces/default/resourcequotas".to_owned(),
            "application/json",
            json!({"metadata": {"name": "it"}, "spec": {"scopes": scopes, "hard": hard}}),
            422,
        ),
        (
            Method::POST,
            format!("{apis}/clusterroles"),
            "application/json",
            json!({"metadata": {"name": "it"}, "rules": rules}),
            422,
        ),
    ];
    // No `Value` has a field twice.
    let twice = r#""a":1,"a":1,"#.repeat(500);
    let twice = format!(r#"{{"metadata":{{"name":"it"}},"data":{{"{long}":{{{twice}"b":1}}}}}}"#);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let house = House::open().await;
        let strict = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
        let request = Request::post(strict).header("content-type", "application/json");
        assert_eq!(send(&house, request, twice).await, Some(400));
        house.server.install(vec![serde_json::from_value(definition).unwrap()]).await.unwrap();
        for (method, path, kind, body, code) in all {
            let request = Request::builder().method(method).uri(&path).header("content-type", kind);
            assert_eq!(send(&house, request, body.to_string()).await, Some(code), "{path}");
        }
    });
}
