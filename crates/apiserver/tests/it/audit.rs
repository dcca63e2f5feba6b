//! The audit log, as somebody reads it afterwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use apiserver::{ApiServer, AuditLog, Data, Error, Options};
use futures::StreamExt;
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kit::{Clock, Shutdown, Tasks};
use kube::Api;
use kube::api::WatchParams;
use serde_json::{Value, json};

use crate::hook::Hook;
use crate::tokens::stranger;
use crate::webhooks::{configuration, url};
use crate::{CONFIG_MAPS, House, config_map, send};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn options(path: &Path, tasks: &Tasks) -> Options {
    let audit = AuditLog { path: path.to_owned(), max_bytes: 1 << 30, max_backups: 1 };
    // The machine's may be set back between the two times of an event.
    let (clock, tasks) = (Clock::starting_at(Clock::system().now()), tasks.clone());
    Options { data: Data::Memory, clock, tasks, kubelets: None, audit: Some(audit), volumes: None }
}

async fn open(path: &Path) -> House {
    let tasks = Tasks::new(Shutdown::new());
    let server = ApiServer::open(options(path, &tasks)).await.unwrap();
    House { client: server.client(), server, tasks }
}

/// Ends the server and reads what it has written.
async fn read(house: House, path: &Path) -> Vec<Value> {
    house.tasks.end().await;
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The only event of such a path.
fn one(all: &[Value], is: impl Fn(&str) -> bool) -> Value {
    let mut found = all.iter().filter(|event| is(event["requestURI"].as_str().unwrap()));
    let event = found.next().unwrap().clone();
    assert_eq!(found.next(), None);
    event
}

#[tokio::test]
async fn it_says_who_asked_for_what_and_what_became_of_it_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let house = open(&path).await;
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();

    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "hunter2"}});
    house.post(SECRETS, &secret).await.is(201);
    let broken =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hunter2/"}, "stringData": {"k": "v"}});
    house.post(&format!("{SECRETS}?dryRun=All"), &broken).await.is(422);
    let jane = [("impersonate-user", "jane"), ("impersonate-group", "readers")];
    house.send(Method::GET, &format!("{SECRETS}/s"), &jane, "").await.is(403);
    let nobody = stranger(&house, at, Some("my-own-token")).await;
    assert_eq!(send(&nobody, Method::GET, CONFIG_MAPS, &[], "").await.code, 401);
    let anonymous = stranger(&house, at, None).await;
    assert_eq!(send(&anonymous, Method::GET, "/healthz", &[], "").await.code, 200);
    let long = format!("/version?x={}", "y".repeat(20_000));
    assert_eq!(house.get(&long).await.code, 200);
    drop((nobody, anonymous));

    let events = read(house, &path).await;
    let read = |uri: &str| one(&events, |it| it == uri);
    let all = std::fs::read_to_string(&path).unwrap();
    assert!(!all.contains("hunter2") && !all.contains("my-own-token"), "{all}");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

    let mut made = read(SECRETS);
    let (id, times) =
        (made["auditID"].take(), ["requestReceivedTimestamp", "stageTimestamp"].map(|name| made[name].take()));
    assert!(
        id.as_str().unwrap().len() == 36 && times.iter().all(|it| it.as_str().unwrap().len() == 27),
        "{id} {times:?}"
    );
    assert!(times[0].as_str() <= times[1].as_str());
    let admin = json!({"username": "system:admin", "groups": ["system:masters", "system:authenticated"]});
    assert_eq!(
        made,
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": null,
            "stage": "ResponseComplete", "requestURI": SECRETS, "verb": "create", "user": admin,
            "userAgent": "tests/1",
            "objectRef": {"resource": "secrets", "namespace": "default", "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 201},
            "requestReceivedTimestamp": null, "stageTimestamp": null,
            "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""},
        })
    );
    let refused = read(&format!("{SECRETS}?dryRun=All"));
    let status = json!({"metadata": {}, "status": "Failure", "reason": "Invalid", "code": 422});
    assert_eq!(refused["responseStatus"], status, "its message would have the body's words in it");
    let forbidden = read(&format!("{SECRETS}/s"));
    let readers = json!({"username": "jane", "groups": ["readers", "system:authenticated"]});
    assert_eq!((&forbidden["user"], &forbidden["impersonatedUser"]), (&admin, &readers));
    assert_eq!((&forbidden["verb"], &forbidden["objectRef"]["name"]), (&json!("get"), &json!("s")));
    assert_eq!(forbidden["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(forbidden["responseStatus"]["reason"], "Forbidden");
    let unknown = read(CONFIG_MAPS);
    assert_eq!((&unknown["user"], &unknown["sourceIPs"]), (&json!({}), &json!(["127.0.0.1"])));
    assert!(unknown["responseStatus"]["code"] == 401 && unknown["annotations"].is_null(), "{unknown}");
    let health = read("/healthz");
    assert_eq!((&health["user"]["username"], &health["verb"]), (&json!("system:anonymous"), &json!("get")));
    let reason = health["annotations"]["authorization.k8s.io/reason"].as_str().unwrap();
    assert!(reason.starts_with(r#"RBAC: allowed by ClusterRoleBinding "system:public-info-viewer""#), "{reason}");
    assert!(health["objectRef"].is_null());
    assert_eq!(read(&long[..8 << 10])["responseStatus"]["code"], 200, "bounded");
}

#[tokio::test]
async fn it_has_what_policies_and_webhooks_say_of_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let house = open(&path).await;
    let spec = json!({
        "validations": [{"expression": "true"}, {"expression": "object.metadata.name != 'a'", "message": "no a"}],
        "auditAnnotations": [
            {"key": "name", "valueExpression": "' ' + object.metadata.name + ' '"},
            {"key": "none", "valueExpression": "null"},
            {"key": "empty", "valueExpression": "'  '"},
            {"key": "long", "valueExpression": "'x'.replace('', object.data.long)"},
        ],
    });
    house.bound("told", &spec, &json!({"validationActions": ["Warn", "Audit"]})).await;
    // Who cannot be told of is refused, whatever is done about what is wrong.
    let untold = json!({"objectSelector": {"matchLabels": {"untold": ""}}});
    let of = json!({"auditAnnotations": [{"key": "k", "valueExpression": "string(object.none)"}]});
    house.bound("untold", &of, &json!({"validationActions": ["Audit"], "matchResources": untold})).await;
    let hook = Hook::serve(&house.tasks).await;
    house.judge("tell", &url(&hook, "tell"), &json!({"objectSelector": {"matchLabels": {"ask": ""}}})).await;
    let change = configuration(
        "MutatingWebhookConfiguration",
        "change",
        &url(&hook, "label/seen"),
        &json!({"rules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}),
    );
    house.post("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", &change).await.is(201);
    let away = json!({"objectSelector": {"matchLabels": {"ask": ""}}, "failurePolicy": "Ignore"});
    house.judge("away", &url(&hook, "broken"), &away).await;

    let map = |name: &str, labels: Value| {
        let mut map = config_map(name, json!({"long": "y".repeat(6000)}));
        map["metadata"]["labels"] = labels;
        map
    };
    house.post(CONFIG_MAPS, &map("a", json!({}))).await.is(201);
    let refused = house.post(&format!("{CONFIG_MAPS}?dryRun=All"), &map("b", json!({"ask": ""}))).await;
    assert_eq!(refused.message(), "admission webhook \"tell.example.com\" denied the request without explanation");
    assert_eq!(refused.warnings(), ["no"]);
    let refused = house.post(&format!("{CONFIG_MAPS}?pretty=true"), &map("c", json!({"untold": ""}))).await;
    let said = "ValidatingAdmissionPolicy 'untold' with binding 'untold' denied request: expression 'string(object.none)' resulted in error: no such key: none";
    assert!(refused.message().ends_with(said), "{}", refused.text);

    let events = read(house, &path).await;
    let mut annotations = one(&events, |it| it == CONFIG_MAPS)["annotations"].take();
    let long = annotations["told/long"].take();
    assert_eq!(long.as_str().unwrap().len(), 10 * 1024);
    let mutated = r#"{"configuration":"change","webhook":"change.example.com","mutated":true}"#;
    assert_eq!(
        annotations,
        json!({
            "authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "",
            "mutation.webhook.admission.k8s.io/round_0_index_0": mutated,
            "told/long": null, "told/name": "a",
            "validation.policy.admission.k8s.io/validation_failure":
                r#"[{"message":"no a","policy":"told","binding":"told","expressionIndex":1,"validationActions":["Warn","Audit"]}]"#,
        })
    );
    let annotations = one(&events, |it| it.ends_with("dryRun=All"))["annotations"].clone();
    assert_eq!(annotations["tell.example.com/why"], "because");
    assert_eq!(annotations["failed-open.validating.webhook.admission.k8s.io/round_0_index_0"], "away.example.com");
    assert_eq!(annotations.as_object().unwrap().keys().filter(|it| it.contains("not/so")).count(), 0);
}

#[tokio::test]
async fn a_watch_is_written_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let house = open(&path).await;
    house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
    let maps: Api<ConfigMap> = Api::default_namespaced(house.client.clone());
    let watching = async |seconds: u32| {
        let mut events = maps.watch(&WatchParams::default().timeout(seconds), "0").await.unwrap().boxed();
        events.next().await.unwrap().unwrap();
        events
    };
    drop(watching(100).await);
    let open = watching(101).await;
    let page = house.get("/metrics").await.text;
    assert!(
        page.contains("\napiserver_audit_event_total ") && page.contains("\ninsula_audit_lost_total 0\n"),
        "{page}"
    );
    // It ends with the server, and is there.
    let (events, ()) = tokio::join!(read(house, &path), open.for_each(|_| async {}));
    for seconds in [100, 101] {
        let event = one(&events, |uri| uri.contains(&format!("timeoutSeconds={seconds}")));
        assert_eq!((&event["verb"], &event["responseStatus"]["code"]), (&json!("watch"), &json!(200)));
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_written_is_named_at_the_start() {
    let tasks = Tasks::new(Shutdown::new());
    let refused = ApiServer::open(options(Path::new("/proc/nowhere/audit.log"), &tasks)).await.err().unwrap();
    assert!(matches!(refused, Error::Audit { .. }), "{}", kit::chain(&refused));
}
