use serde_json::json;

use crate::{CONFIG_MAPS, House, config_map};

#[tokio::test]
async fn the_administrator_may_everything_and_is_told_who_he_is() {
    let house = House::open().await;
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "delete", "resource": "namespaces"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(house.post(path, &review).await.is(201)["status"]["allowed"], true);
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let me = house.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &who).await.is(201);
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "system:admin", "groups": ["system:masters", "system:authenticated"]})
    );
    let other = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "nobody", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(house.post(path, &other).await.is(201)["status"]["allowed"], false);
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    let answer = house.post("/apis/authentication.k8s.io/v1/tokenreviews", &token).await.is(201);
    assert!(answer["status"].get("authenticated").is_none() && answer["status"]["error"].is_string());
}

#[tokio::test]
async fn who_is_impersonated_may_what_he_may() {
    let house = House::open().await;
    let ask = async |path: &str, headers: &[(&str, &str)]| house.send(http::Method::GET, path, headers, "").await;
    let nobody = [("impersonate-user", "nobody"), ("impersonate-group", "readers")];
    let refused = ask(CONFIG_MAPS, &nobody).await;
    let said = r#"configmaps is forbidden: User "nobody" cannot list resource "configmaps" in API group "" in the namespace "default""#;
    assert_eq!((refused.code, refused.message().as_str()), (403, said));
    assert_eq!(ask("/apis", &nobody).await.code, 200, "who is authenticated may discover");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
    let headers = [nobody.as_slice(), &[("content-type", "application/json")]].concat();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = house.send(http::Method::POST, path, &headers, review).await.is(201);
    assert_eq!(who["status"]["userInfo"], json!({"username": "nobody", "groups": ["readers", "system:authenticated"]}));
    let masters = [("impersonate-user", "system:admin"), ("impersonate-group", "system:masters")];
    assert_eq!(ask(CONFIG_MAPS, &masters).await.code, 200);
    assert_eq!(ask(CONFIG_MAPS, &[("impersonate-group", "readers")]).await.code, 500, "nobody to be");
}

#[tokio::test]
async fn what_is_too_large_or_too_deep_is_refused() {
    let house = House::open().await;
    let body = config_map("c", json!({"k": "x".repeat(4 << 20)}));
    let large = house.post(CONFIG_MAPS, &body).await;
    assert_eq!((large.code, large.json()["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
    let data = house.post(CONFIG_MAPS, &config_map("c", json!({"k": "x".repeat(2 << 20)}))).await;
    assert!(data.code == 422 && data.message().contains("[]: Too long"), "{}", data.code);
    let bomb = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = house.send(http::Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], bomb).await;
    assert_eq!(deep.code, 400);
    let yaml = format!("a: {}", "[".repeat(100_000));
    let deep = house.send(http::Method::POST, CONFIG_MAPS, &[("content-type", "application/yaml")], yaml).await;
    assert_eq!(deep.code, 400);
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for at in 1..12 {
        let again = vec![format!("*a{}", at - 1); 9].join(",");
        bomb += &format!("a{at}: &a{at} [{again}]\n");
    }
    let folded = house.send(http::Method::POST, CONFIG_MAPS, &[("content-type", "application/yaml")], bomb).await;
    assert!(folded.code == 400 && folded.message().contains("yaml: line "), "{}", folded.text);
    let long = house.get(&format!("/api/v1/{}", "x/".repeat(10_000))).await;
    assert_eq!(long.code, 404);
    assert_eq!(house.get("/readyz").await.code, 200);
}
