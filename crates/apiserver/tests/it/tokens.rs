use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use apiserver::{ApiServer, Data, Options};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use kit::{Clock, Shutdown, Tasks};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::{Answer, CONFIG_MAPS, House, send};

const NAMESPACE: &str = "/api/v1/namespaces/default";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// Somebody who has nothing but a token.
struct Bearer(Client);

/// Somebody whom nothing but a token tells, if that.
pub(crate) async fn stranger(house: &House, at: SocketAddr, token: Option<&str>) -> Client {
    let mut kubeconfig = Kubeconfig::from_yaml(&house.server.kubeconfig(at)).unwrap();
    let user = kubeconfig.auth_infos[0].auth_info.as_mut().unwrap();
    (user.client_certificate_data, user.client_key_data) = (None, None);
    user.token = token.map(|token| token.to_owned().into());
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

impl Bearer {
    async fn new(house: &House, at: SocketAddr, token: &str) -> Self {
        Self(stranger(house, at, Some(token)).await)
    }

    async fn get(&self, path: &str) -> Answer {
        send(&self.0, Method::GET, path, &[], "").await
    }

    async fn post(&self, path: &str, object: &Value) -> Answer {
        send(&self.0, Method::POST, path, &[("content-type", "application/json")], object.to_string()).await
    }
}

fn request(spec: &Value) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
}

fn review(token: &str) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}})
}

pub(crate) async fn account(house: &House, name: &str) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    house.post(&format!("{NAMESPACE}/serviceaccounts"), &account).await.is(201);
}

pub(crate) async fn token(house: &House, name: &str, spec: &Value) -> String {
    let path = format!("{NAMESPACE}/serviceaccounts/{name}/token");
    house.post(&path, &request(spec)).await.is(201)["status"]["token"].as_str().unwrap().to_owned()
}

/// A new account of the namespace `default`, that has nothing but its token.
pub(crate) async fn bearer(house: &House, name: &str) -> Client {
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    account(house, name).await;
    let token = token(house, name, &json!({})).await;
    Bearer::new(house, at, &token).await.0
}

fn part(token: &str, at: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

fn role(name: &str, rules: &Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": rules})
}

#[tokio::test]
async fn an_account_may_what_its_bindings_say_as_soon_as_they_say_it() {
    let house = House::open().await;
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    account(&house, "bot").await;
    let token = token(&house, "bot", &json!({})).await;
    let claims = part(&token, 1);
    assert_eq!(claims["sub"], "system:serviceaccount:default:bot");
    assert_eq!(claims["aud"], json!(["https://kubernetes.default.svc"]));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    let bot = Bearer::new(&house, at, &token).await;
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = bot.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &who).await.is(201);
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(me["status"]["userInfo"]["groups"], groups);
    let refused = bot.get(CONFIG_MAPS).await;
    let said = r#"configmaps is forbidden: User "system:serviceaccount:default:bot" cannot list resource "configmaps" in API group "" in the namespace "default""#;
    assert_eq!((refused.code, refused.message().as_str()), (403, said));

    let rules = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"], "resourceNames": ["mine"]},
        {"apiGroups": [""], "resources": ["*/log"], "verbs": ["get"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["*"]},
    ]);
    house.post(&format!("{RBAC}/roles"), &role("r", &rules)).await.is(201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "bot"}]});
    house.post(&format!("{RBAC}/rolebindings"), &binding).await.is(201);
    assert_eq!(bot.get(CONFIG_MAPS).await.code, 403, "all of them");
    assert_eq!(bot.get(&format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dmine")).await.code, 200);
    assert_eq!(bot.get(&format!("{CONFIG_MAPS}/mine")).await.code, 404);
    assert_eq!(bot.get(&format!("{NAMESPACE}/pods/p/log")).await.code, 404);
    assert_eq!(bot.get(&format!("{NAMESPACE}/pods/p")).await.code, 403);
    assert_eq!(bot.get(&format!("{RBAC}/roles")).await.code, 200);
    let may = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "watch", "group": "rbac.authorization.k8s.io", "resource": "roles",
            "namespace": "default"}}});
    let told = bot.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &may).await.is(201);
    let why = r#"RBAC: allowed by RoleBinding "b/default" of Role "r" to ServiceAccount "bot/default""#;
    assert_eq!(told["status"], json!({"allowed": true, "reason": why}));
    house.put(&format!("{RBAC}/roles/r"), &role("r", &json!([]))).await.is(200);
    assert_eq!(bot.get(&format!("{RBAC}/roles")).await.code, 403, "the role has lost its rules");
    house.delete(&format!("{RBAC}/roles/r")).await.is(200);
    let refused = bot.get(CONFIG_MAPS).await.message();
    assert!(refused.ends_with(r#": RBAC: role.rbac.authorization.k8s.io "r" not found"#), "{refused}");

    house.delete(&format!("{NAMESPACE}/serviceaccounts/bot")).await.is(200);
    assert_eq!(bot.get(CONFIG_MAPS).await.code, 401);
    account(&house, "bot").await;
    assert_eq!(bot.get(CONFIG_MAPS).await.code, 401, "another account of that name");
}

#[tokio::test]
async fn a_token_that_is_not_ours_or_not_for_us_is_refused() {
    let house = House::open().await;
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    account(&house, "bot").await;
    let good = token(&house, "bot", &json!({})).await;
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let mut other = part(&good, 1);
    other["sub"] = json!("system:serviceaccount:kube-system:god");
    other["kubernetes.io"]["namespace"] = json!("kube-system");
    let none = encoded(&json!({"alg": "none"}));
    for bad in [
        format!("{head}.{}.{signature}", encoded(&other)),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{head}.{claims}."),
        format!("{head}.{claims}"),
        format!("{good}A"),
        "x".repeat(20_000),
        token(&house, "bot", &json!({"audiences": ["vault"]})).await,
    ] {
        let answer = Bearer::new(&house, at, &bad).await.get("/api").await;
        assert_eq!(answer.code, 401, "{bad}");
    }
    assert_eq!(Bearer::new(&house, at, &good).await.get("/api").await.code, 200);
    let foreign = token(&house, "bot", &json!({"audiences": ["vault", "else"]})).await;
    let mut asked = review(&foreign);
    asked["spec"]["audiences"] = json!(["vault"]);
    let told = house.post(REVIEWS, &asked).await.is(201);
    assert_eq!((&told["status"]["authenticated"], &told["status"]["audiences"]), (&json!(true), &json!(["vault"])));
    let told = house.post(REVIEWS, &review(&foreign)).await.is(201);
    let why = r#"[invalid bearer token, token audiences ["vault" "else"] is invalid for the target audiences ["https://kubernetes.default.svc"]]"#;
    assert_eq!(told["status"], json!({"user": {}, "error": why}));

    let keys = house.get("/openid/v1/jwks").await.is(200);
    assert_eq!(keys["keys"][0]["kid"], part(&good, 0)["kid"]);
    let told = house.get("/.well-known/openid-configuration").await.is(200);
    assert_eq!(told["issuer"], part(&good, 1)["iss"]);
}

#[tokio::test]
async fn a_token_is_bound_to_what_it_names() {
    let house = House::open().await;
    account(&house, "bot").await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    house.post(&format!("{NAMESPACE}/secrets"), &secret).await.is(201);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "serviceAccountName": "bot", "nodeName": "n", "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "host"}]}});
    house.post(&format!("{NAMESPACE}/pods"), &pod).await.is(201);
    let to = |kind: &str, name: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}});
    let of_pod = token(&house, "bot", &to("Pod", "p")).await;
    let of_secret = token(&house, "bot", &to("Secret", "s")).await;
    let user = house.post(REVIEWS, &review(&of_pod)).await.is(201)["status"]["user"].clone();
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["n"]));
    house.delete(&format!("{NAMESPACE}/pods/p")).await;
    house.delete(&format!("{NAMESPACE}/secrets/s")).await;
    for dead in [&of_pod, &of_secret] {
        let told = house.post(REVIEWS, &review(dead)).await.is(201);
        assert_eq!(told["status"]["error"], "[invalid bearer token, service account token has been invalidated]");
    }
    let path = format!("{NAMESPACE}/serviceaccounts/bot/token");
    let other = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ServiceAccount", "name": "default"}});
    for (spec, code, said) in [
        (
            json!({"expirationSeconds": 599}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
        ),
        (
            json!({"expirationSeconds": (1_i64 << 32) + 1}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds",
        ),
        (to("Pod", "p"), 404, "pods \"p\" not found"),
        (other, 400, "cannot bind token to object of type /v1, Kind=ServiceAccount"),
    ] {
        let answer = house.post(&path, &request(&spec)).await;
        assert_eq!((answer.code, answer.message().as_str()), (code, said));
    }
    let absent = house.post(&format!("{NAMESPACE}/serviceaccounts/nobody/token"), &request(&json!({}))).await;
    assert_eq!((absent.code, absent.message().as_str()), (404, "serviceaccounts \"nobody\" not found"));
}

#[tokio::test(start_paused = true)]
async fn a_token_ends_when_it_says() {
    let (clock, tasks) = (Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()), Tasks::new(Shutdown::new()));
    let options =
        Options { data: Data::Memory, clock, tasks: tasks.clone(), kubelets: None, audit: None, volumes: None };
    let server = ApiServer::open(options).await.unwrap();
    let house = House { client: server.client(), server, tasks };
    account(&house, "bot").await;
    let brief = token(&house, "bot", &json!({"expirationSeconds": 600})).await;
    tokio::time::advance(Duration::from_secs(599)).await;
    let told = house.post(REVIEWS, &review(&brief)).await.is(201);
    assert_eq!(told["status"]["authenticated"], true, "{told}");
    tokio::time::advance(Duration::from_secs(62)).await;
    let told = house.post(REVIEWS, &review(&brief)).await.is(201);
    assert_eq!(told["status"]["error"], "[invalid bearer token, service account token has expired]");
}

#[tokio::test]
async fn tokens_outlive_the_process() {
    let home = tempfile::tempdir().unwrap();
    let house = House::on(Data::Dir(home.path().to_owned())).await;
    account(&house, "bot").await;
    let kept = token(&house, "bot", &json!({})).await;
    house.tasks.end().await;
    drop(house);
    let key = std::fs::metadata(home.path().join("pki/sa.key")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    let house = House::on(Data::Dir(home.path().to_owned())).await;
    let told = house.post(REVIEWS, &review(&kept)).await.is(201);
    assert_eq!(told["status"]["authenticated"], true, "{told}");
    house.tasks.end().await;
}
