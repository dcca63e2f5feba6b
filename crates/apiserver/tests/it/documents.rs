use http::Method;
use serde_json::{Value, json};

use crate::House;

#[tokio::test]
async fn discovery_names_what_is_served_in_both_its_forms() {
    let house = House::open().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = house.send(Method::GET, "/apis", &[("accept", accept)], "").await;
    assert_eq!(answer.headers["content-type"], "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
    let all = answer.is(200);
    let apps = all["items"].as_array().unwrap().iter().find(|it| it["metadata"]["name"] == "apps").unwrap();
    let deployments =
        apps["versions"][0]["resources"].as_array().unwrap().iter().find(|it| it["resource"] == "deployments").unwrap();
    assert_eq!((&deployments["shortNames"], &deployments["scope"]), (&json!(["deploy"]), &json!("Namespaced")));
    assert_eq!(deployments["subresources"][0]["responseKind"]["kind"], "Scale");
    let classic = house.get("/apis/apps/v1").await.is(200);
    let names: Vec<&str> =
        classic["resources"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(
        ["deployments", "deployments/status", "deployments/scale", "statefulsets"].iter().all(|it| names.contains(it)),
        "{names:?}"
    );
    assert_eq!(house.get("/apis/autoscaling").await.is(200)["preferredVersion"]["version"], "v2");
    assert!(house.get("/version").await.is(200)["gitVersion"].as_str().unwrap().starts_with("v1.34."));
    assert_eq!((house.get("/apis/nope").await.code, house.get("/readyz").await.text.as_str()), (404, "ok"));
}

#[tokio::test]
async fn the_fields_client_discovers_everything() {
    let house = House::open().await;
    let discovery = kube::Discovery::new(house.client.clone()).run_aggregated().await.unwrap();
    assert!(discovery.has_group("apps") && discovery.has_group("rbac.authorization.k8s.io"));
    let classic = kube::Discovery::new(house.client.clone()).run().await.unwrap();
    assert_eq!(classic.groups().count(), discovery.groups().count());
}

#[tokio::test]
async fn openapi_documents_describe_their_kinds_and_are_tagged() {
    let house = House::open().await;
    let index = house.get("/openapi/v3").await.is(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let answer = house.get(&url).await;
    let tag = answer.headers["etag"].to_str().unwrap().to_owned();
    assert!(url.contains(tag.trim_matches('"')));
    let document = answer.is(200);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let spec = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        (&spec["x-kubernetes-patch-merge-key"], &spec["x-kubernetes-list-type"]),
        (&json!("name"), &json!("map"))
    );
    assert!(spec["description"].as_str().unwrap().contains("containers belonging to the pod"));
    let container = &schemas["io.k8s.api.core.v1.Container"];
    let pull_policy = &container["properties"]["imagePullPolicy"];
    assert_eq!(
        (&pull_policy["enum"], &container["required"]),
        (&json!(["Always", "IfNotPresent", "Never"]), &json!(["name"])),
        "enums and what is required, as Kubernetes has them"
    );
    assert_eq!(schemas["io.k8s.api.core.v1.ConfigMapEnvSource"].get("required"), None);
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert!(patch["parameters"].as_array().unwrap().iter().any(|it| it["name"] == "fieldValidation"));
    references_resolve(&document, &document);
    let known = house.send(Method::GET, &url, &[("if-none-match", &tag)], "").await;
    assert_eq!((known.code, known.text.as_str()), (304, ""));
}

#[tokio::test]
async fn every_reference_of_every_document_resolves() {
    let house = House::open().await;
    let index = house.get("/openapi/v3").await.is(200);
    for path in index["paths"].as_object().unwrap().values() {
        let document = house.get(path["serverRelativeURL"].as_str().unwrap()).await.is(200);
        references_resolve(&document, &document);
    }
    let old = house.get("/openapi/v2").await.is(200);
    references_resolve(&old, &old);
}

#[track_caller]
fn references_resolve(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str) {
                let found = target.strip_prefix('#').and_then(|it| document.pointer(it));
                assert!(found.is_some(), "{target}");
            }
            map.values().for_each(|it| references_resolve(it, document));
        }
        Value::Array(items) => items.iter().for_each(|it| references_resolve(it, document)),
        _ => {}
    }
}

/// What generators of clients need, in both versions alike.
#[tokio::test]
async fn operations_have_names_of_their_own_and_say_all_that_they_take_and_answer() {
    let house = House::open().await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gears.x-y.example.com"},
        "spec": {
            "group": "x-y.example.com", "scope": "Namespaced", "names": {"plural": "gears", "kind": "Gear"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    house.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.is(201);
    let old = house.get("/openapi/v2").await;
    // Kubernetes' own tests of the document look for these.
    for text in ["list of returned", "List of services", "Watch for changes to the described resources"] {
        assert!(old.text.contains(text), "{text}");
    }
    let old = old.is(200);
    let index = house.get("/openapi/v3").await.is(200);
    let mut new = serde_json::Map::new();
    for path in index["paths"].as_object().unwrap().values() {
        let mut document = house.get(path["serverRelativeURL"].as_str().unwrap()).await.is(200);
        new.append(document["paths"].as_object_mut().unwrap());
    }
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in old["paths"].as_object().unwrap() {
        let shared = |it: &Value| match it["$ref"].as_str() {
            Some(target) => old.pointer(target.strip_prefix('#').unwrap()).unwrap().clone(),
            None => it.clone(),
        };
        let parameters =
            |of: &Value| -> Vec<Value> { of["parameters"].as_array().into_iter().flatten().map(shared).collect() };
        let of_all = parameters(item);
        for (method, operation) in item.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
            let said = &new[path][method];
            for key in ["operationId", "description", "tags", "x-kubernetes-action"] {
                assert_eq!(operation[key], said[key], "{method} {path}");
            }
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{method} {path}");
            let (mut taken, body): (Vec<_>, Vec<_>) =
                of_all.iter().cloned().chain(parameters(operation)).partition(|it| it["in"] != "body");
            assert_eq!(!body.is_empty(), said["requestBody"].is_object(), "{method} {path}");
            for parameter in &taken {
                assert!(parameter["description"].as_str().is_some_and(|it| !it.is_empty()), "{path} {parameter}");
            }
            let of_path: Vec<&str> = path.split('{').skip(1).map(|it| it.split('}').next().unwrap()).collect();
            taken.retain(|it| it["in"] == "path");
            assert_eq!(taken.len(), of_path.len(), "{method} {path}");
            assert!(taken.iter().all(|it| of_path.contains(&it["name"].as_str().unwrap())), "{method} {path}");
            let answers = |of: &Value| of["responses"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(answers(operation), answers(said), "{method} {path}");
            assert_eq!(operation["responses"]["401"]["description"], "Unauthorized");
        }
    }
    assert_eq!(new.len(), old["paths"].as_object().unwrap().len());
    for id in [
        "listCoreV1NamespacedPod",
        "listCoreV1PodForAllNamespaces",
        "replaceCoreV1NamespacedPodStatus",
        "connectCoreV1GetNamespacedPodExec",
        "createCoreV1NamespacedServiceAccountToken",
        "deleteRbacAuthorizationV1CollectionClusterRole",
        "watchAppsV1NamespacedDeploymentList",
        "getAppsAPIGroup",
        "patchXYExampleComV1beta1NamespacedGear",
    ] {
        assert!(ids.contains(id), "{id}");
    }
}
