//! What namespaces allow: LimitRanges and ResourceQuotas.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::House;

const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}})
}

fn quota(name: &str, hard: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}})
}

impl House {
    /// Waits until a quota says that so much is used.
    async fn uses(&self, quota: &str, what: &str, much: &str) {
        self.becomes(QUOTAS, quota, |it| it["status"]["used"][what] == much).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creations_at_the_same_time_take_together_no_more_than_a_quota_has() {
    let house = House::open().await;
    // One was there before the quota, counted by whoever comes first.
    house.post(SECRETS, &secret("old")).await.is(201);
    house.post(QUOTAS, &quota("few", json!({"secrets": "6"}))).await.is(201);
    let names: Vec<String> = (0..24).map(|at| format!("s{at}")).collect();
    let made = join_all(names.iter().map(async |name| house.post(SECRETS, &secret(name)).await)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(|it| it.code == 201);
    assert_eq!(taken.len(), 5);
    for answer in refused {
        assert_eq!(answer.code, 403, "{}", answer.text);
        let said = "is forbidden: exceeded quota: few, requested: secrets=1, used: secrets=6, limited: secrets=6";
        assert!(answer.message().ends_with(said), "{}", answer.text);
    }
    house.uses("few", "secrets", "6").await;

    let gone = taken[0].json()["metadata"]["name"].as_str().unwrap().to_owned();
    house.delete(&format!("{SECRETS}/{gone}")).await.is(200);
    house.uses("few", "secrets", "5").await;
    house.post(SECRETS, &secret("another")).await.is(201);
    house.uses("few", "secrets", "6").await;
}

#[tokio::test]
async fn what_was_not_created_after_all_is_given_back_to_the_quota() {
    let house = House::open().await;
    house.post(QUOTAS, &quota("q", json!({"secrets": "2"}))).await.is(201);
    house.post(SECRETS, &secret("s")).await.is(201);
    house.post(SECRETS, &secret("s")).await.is(409);
    house.uses("q", "secrets", "1").await;
    house.post(&format!("{SECRETS}?dryRun=All"), &secret("t")).await.is(201);
    house.post(SECRETS, &secret("t")).await.is(201);
    house.post(SECRETS, &secret("u")).await.is(403);
}

#[tokio::test]
async fn a_pod_is_given_and_held_to_the_limits_of_its_namespace() {
    let house = House::open().await;
    house
        .post(
            "/api/v1/namespaces/default/limitranges",
            &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [
                {"type": "Container", "default": {"memory": "64Mi"}, "max": {"memory": "128Mi"}},
            ]}}),
        )
        .await
        .is(201);
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, resources: Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"serviceAccountName": "bot", "containers": [{"name": "c", "image": "i", "resources": resources}]}})
    };
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
    house.post("/api/v1/namespaces/default/serviceaccounts", &account).await.is(201);
    let filled = house.post(pods, &pod("filled", json!({}))).await.is(201);
    let resources = &filled["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}}));
    let refused = house.post(pods, &pod("much", json!({"limits": {"memory": "1Gi"}}))).await;
    assert_eq!(
        refused.message(),
        "pods \"much\" is forbidden: maximum memory usage per Container is 128Mi, but limit is 1Gi"
    );
    assert_eq!(refused.code, 403);
}

#[tokio::test]
async fn a_quota_with_too_many_scopes_or_mistakes_is_refused_with_few_words() {
    let house = House::open().await;
    let mut many = quota("many", json!({"pods": "1"}));
    many["spec"]["scopes"] = (0..65).map(|at| format!("s{at}")).collect();
    let refused = house.post(QUOTAS, &many).await;
    assert!(refused.message().ends_with("spec.scopes: Too many: 65: must have at most 64 items"), "{}", refused.text);
    let wrong: serde_json::Map<String, Value> = (0..1000).map(|at| (format!("odd{at}"), json!("1"))).collect();
    let refused = house.post(QUOTAS, &quota("wrong", Value::Object(wrong))).await.is(422);
    assert_eq!(refused["details"]["causes"].as_array().unwrap().len(), 100);
}
