//! Webhooks, asked over TLS on loopback.

use serde_json::{Value, json};

use crate::hook::Hook;
use crate::{CONFIG_MAPS, House, config_map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

pub(crate) fn url(hook: &Hook, path: &str) -> Value {
    json!({"url": format!("https://{}/{path}", hook.at), "caBundle": hook.authority})
}

/// A configuration of one webhook for all that happens to ConfigMaps in `default`.
pub(crate) fn configuration(kind: &str, name: &str, client: &Value, more: &Value) -> Value {
    let mut webhook = json!({
        "name": format!("{name}.example.com"), "clientConfig": client, "admissionReviewVersions": ["v1"],
        "sideEffects": "None", "objectSelector": {"matchExpressions": [{"key": "unasked", "operator": "DoesNotExist"}]},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}],
    });
    let more = more.as_object().unwrap().clone();
    webhook.as_object_mut().unwrap().extend(more);
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": [webhook]})
}

impl House {
    pub(crate) async fn judge(&self, name: &str, client: &Value, more: &Value) {
        let it = configuration("ValidatingWebhookConfiguration", name, client, more);
        self.post(&format!("{GROUP}/validatingwebhookconfigurations"), &it).await.is(201);
    }

    async fn unjudge(&self, name: &str) {
        self.delete(&format!("{GROUP}/validatingwebhookconfigurations/{name}")).await.is(200);
    }
}

#[tokio::test]
async fn what_webhooks_make_of_an_object_is_judged_and_written() {
    let house = House::open().await;
    let hook = Hook::serve(&house.tasks).await;
    let created = json!({"rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]});
    let change = configuration("MutatingWebhookConfiguration", "change", &url(&hook, "label/seen"), &created);
    house.post(&format!("{GROUP}/mutatingwebhookconfigurations"), &change).await.is(201);
    let made = house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
    assert_eq!(made["metadata"]["labels"], json!({"seen": ""}));
    assert_eq!(house.get(&format!("{CONFIG_MAPS}/a")).await.json(), made);

    // Who judges sees it as it would be written.
    let marked = json!({"objectSelector": {"matchLabels": {"seen": ""}}});
    house.judge("deny", &url(&hook, "deny"), &marked).await;
    let refused = house.post(CONFIG_MAPS, &config_map("b", json!({}))).await;
    assert_eq!(refused.message(), "admission webhook \"deny.example.com\" denied the request without explanation");
    assert_eq!(refused.code, 400);
    house.delete(&format!("{CONFIG_MAPS}/a")).await.is(400);
    house.get(&format!("{CONFIG_MAPS}/b")).await.is(404);
    let dry = house.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("b", json!({}))).await;
    dry.is(400);

    // A configuration that is gone asks nobody any more.
    house.unjudge("deny").await;
    house.delete(&format!("{CONFIG_MAPS}/a")).await.is(200);
}

#[tokio::test]
async fn a_webhook_that_cannot_be_asked_refuses_unless_it_says_otherwise() {
    let house = House::open().await;
    let (hook, another) = (Hook::serve(&house.tasks).await, Hook::serve(&house.tasks).await);
    let untrusted = json!({"url": format!("https://{}/allow", hook.at), "caBundle": another.authority});
    let cases = [
        (untrusted, "tls: failed to verify certificate: x509: certificate signed by unknown authority"),
        (url(&hook, "large"), "the response has more than 3145728 bytes"),
        (url(&hook, "foreign"), "got \"another\""),
        (url(&hook, "nothing"), "received invalid webhook response: webhook response was absent"),
    ];
    for (client, why) in cases {
        house.judge("closed", &client, &json!({})).await;
        let refused = house.post(CONFIG_MAPS, &config_map("a", json!({}))).await;
        let said = refused.message();
        assert!(said.starts_with("Internal error occurred: failed calling webhook \"closed.example.com\": "), "{said}");
        assert!(said.ends_with(why), "{said}");
        assert_eq!(refused.code, 500);
        house.unjudge("closed").await;
        house.judge("open", &client, &json!({"failurePolicy": "Ignore"})).await;
        house.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a", json!({}))).await.is(201);
        house.unjudge("open").await;
    }
}

#[tokio::test]
async fn a_webhook_behind_a_service_is_asked_at_an_endpoint_of_it() {
    let house = House::open().await;
    let hook = Hook::serve(&house.tasks).await;
    let client = json!({"service": {"namespace": "default", "name": "hook", "path": "/deny", "port": 8443},
        "caBundle": hook.authority});
    house.judge("service", &client, &json!({})).await;
    let asked = async || house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.message();
    let called = "Internal error occurred: failed calling webhook \"service.example.com\": failed to call webhook: Post \"https://hook.default.svc:8443/deny?timeout=10s\": ";
    assert_eq!(asked().await, format!("{called}service \"hook\" not found"));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook"},
        "spec": {"ports": [{"name": "https", "port": 8443}]}});
    house.post("/api/v1/namespaces/default/services", &service).await.is(201);
    assert_eq!(asked().await, format!("{called}no endpoints available for service \"hook\""));
    let endpoints = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
        "endpoints": [{"addresses": ["127.0.0.9"], "conditions": {"ready": false}}, {"addresses": ["127.0.0.1"]}],
        "ports": [{"name": "https", "port": hook.at.port()}]});
    house.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &endpoints).await.is(201);
    assert_eq!(asked().await, "admission webhook \"service.example.com\" denied the request without explanation");
}
