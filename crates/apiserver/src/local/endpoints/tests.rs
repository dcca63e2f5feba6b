//! Endpoints through the server's door.

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::local::tests::{House, all, create, gone, house_with, until};

/// A pod on a node, with an address.
async fn runs(house: &House, name: &str, address: &str, ready: bool) {
    let pods = house.of::<Pod>("default");
    let pod = json!({"metadata": {"name": name, "labels": {"app": "a"}}, "spec": {
        "nodeName": "n", "hostname": name, "subdomain": "head",
        "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]}]}});
    create(&pods, pod).await;
    turns(house, name, address, ready).await;
}

async fn turns(house: &House, name: &str, address: &str, ready: bool) {
    let ready = if ready { "True" } else { "False" };
    let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition]}});
    let pods = house.of::<Pod>("default");
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn service(house: &House, name: &str, spec: Value) {
    create::<Service>(&house.of("default"), json!({"metadata": {"name": name, "labels": {"l": "m"}}, "spec": spec}))
        .await;
}

/// `ready/not ready:ports`, subset by subset.
fn shown(of: &Endpoints) -> Vec<String> {
    let ips = |of: &Option<Vec<k8s_openapi::api::core::v1::EndpointAddress>>| {
        of.iter().flatten().map(|it| it.ip.clone()).collect::<Vec<_>>().join(",")
    };
    let subsets = of.subsets.iter().flatten().map(|it| {
        let ports: Vec<String> = it.ports.iter().flatten().map(|it| it.port.to_string()).collect();
        format!("{}/{}:{}", ips(&it.addresses), ips(&it.not_ready_addresses), ports.join(","))
    });
    subsets.collect()
}

async fn leads_to(house: &House, name: &str, want: &[&str]) {
    until(&house.of::<Endpoints>("default"), name, |it| it.is_some_and(|it| shown(it) == want)).await;
}

/// Waits until the slices of a service have so many endpoints each; they are.
async fn slices(house: &House, name: &str, want: &[usize]) -> Vec<EndpointSlice> {
    let api: Api<EndpointSlice> = house.of("default");
    let of = |all: &[EndpointSlice]| -> Vec<EndpointSlice> {
        let is = |it: &&EndpointSlice| it.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"] == name;
        all.iter().filter(is).cloned().collect()
    };
    let sizes = |all: &[EndpointSlice]| {
        let mut sizes: Vec<usize> = of(all).iter().map(|it| it.endpoints.len()).collect();
        sizes.sort_unstable();
        sizes
    };
    all(&api, |all| sizes(all) == want).await;
    of(&api.list(&Default::default()).await.unwrap().items)
}

#[tokio::test(start_paused = true)]
async fn a_service_leads_to_its_pods_as_they_become_ready_and_go() {
    let house = house_with(None).await;
    create::<Node>(&house.all(), json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}))
        .await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}, {"name": "other", "port": 81}]);
    service(&house, "s", json!({"selector": {"app": "a"}, "ports": ports})).await;
    service(&house, "head", json!({"selector": {"app": "a"}, "clusterIP": "None", "publishNotReadyAddresses": true}))
        .await;
    service(&house, "hands-off", json!({"ports": [{"port": 80}]})).await;
    leads_to(&house, "s", &[]).await;
    let placeholder = slices(&house, "s", &[0]).await;
    runs(&house, "p", "10.0.0.2", true).await;
    runs(&house, "q", "10.0.0.10", false).await;
    leads_to(&house, "s", &["10.0.0.2/10.0.0.10:8080,81"]).await;
    leads_to(&house, "head", &["10.0.0.2,10.0.0.10/:"]).await;
    let of_service = house.of::<Endpoints>("default").get("s").await.unwrap();
    let labels = of_service.metadata.labels.unwrap();
    assert_eq!(
        (labels["l"].as_str(), labels["endpoints.kubernetes.io/managed-by"].as_str()),
        ("m", "endpoint-controller")
    );
    let slice = &slices(&house, "s", &[2]).await[0];
    assert_eq!(slice.metadata.name, placeholder[0].metadata.name, "it is the same slice, written again");
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
    assert_eq!(slice.metadata.owner_references.as_ref().unwrap()[0].kind, "Service");
    let ports: Vec<_> = slice.ports.iter().flatten().map(|it| (it.name.clone().unwrap(), it.port.unwrap())).collect();
    assert_eq!(ports, [("http".to_owned(), 8080), ("other".to_owned(), 81)]);
    let conditions = |name: &str| {
        let it =
            slice.endpoints.iter().find(|it| it.target_ref.as_ref().unwrap().name.as_deref() == Some(name)).unwrap();
        assert_eq!((it.node_name.as_deref(), it.zone.as_deref()), (Some("n"), Some("z")));
        let is = it.conditions.clone().unwrap();
        (is.ready.unwrap(), is.serving.unwrap(), is.terminating.unwrap())
    };
    assert_eq!((conditions("p"), conditions("q")), ((true, true, false), (false, false, false)));
    let head = &slices(&house, "head", &[2]).await[0];
    assert!(head.endpoints.iter().all(|it| it.conditions.as_ref().unwrap().ready == Some(true)));
    assert!(head.endpoints.iter().any(|it| it.hostname.as_deref() == Some("p")));
    assert_eq!(head.metadata.labels.as_ref().unwrap()["service.kubernetes.io/headless"], "");
    turns(&house, "q", "10.0.0.10", true).await;
    leads_to(&house, "s", &["10.0.0.2,10.0.0.10/:8080,81"]).await;
    // On its way out it serves nobody new; then it is gone.
    let pods = house.of::<Pod>("default");
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    leads_to(&house, "s", &["10.0.0.10/:8080,81"]).await;
    all(&house.of::<EndpointSlice>("default"), |all| {
        all.iter().filter(|it| it.metadata.generate_name.as_deref() == Some("s-")).flat_map(|it| &it.endpoints).any(
            |it| {
                let is = it.conditions.clone().unwrap();
                is.terminating == Some(true) && is.ready == Some(false) && is.serving == Some(true)
            },
        )
    })
    .await;
    pods.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
    slices(&house, "s", &[1]).await;
    let services: Api<Service> = house.of("default");
    services.delete("s", &DeleteParams::default()).await.unwrap();
    gone(&house.of::<Endpoints>("default"), "s").await;
    slices(&house, "s", &[]).await;
    assert!(house.of::<Endpoints>("default").get_opt("hands-off").await.unwrap().is_none());
}

#[tokio::test]
async fn endpoints_that_somebody_made_are_mirrored_in_slices() {
    let house = house_with(None).await;
    service(&house, "s", json!({"ports": [{"name": "p", "port": 80}]})).await;
    let endpoints = json!({"metadata": {"name": "s", "labels": {"a": "b"}, "annotations": {"k": "v"}}, "subsets": [
        {"addresses": [{"ip": "1.2.3.4", "hostname": "h"}, {"ip": "fd00::1"}], "notReadyAddresses": [{"ip": "1.2.3.5"}],
            "ports": [{"name": "p", "port": 80}]}]});
    create::<Endpoints>(&house.of("default"), endpoints).await;
    let all = slices(&house, "s", &[1, 2]).await;
    let v4 = all.iter().find(|it| it.address_type == "IPv4").unwrap();
    let metadata = &v4.metadata;
    assert_eq!(metadata.owner_references.as_ref().unwrap()[0].kind, "Endpoints");
    assert_eq!(metadata.annotations.as_ref().unwrap()["k"], "v");
    let labels = metadata.labels.as_ref().unwrap();
    let manager = labels["endpointslice.kubernetes.io/managed-by"].as_str();
    assert_eq!((labels["a"].as_str(), manager), ("b", "endpointslicemirroring-controller.k8s.io"));
    let ready: Vec<_> = v4.endpoints.iter().map(|it| it.conditions.as_ref().unwrap().ready.unwrap()).collect();
    assert_eq!(ready, [true, false]);
    // A service that finds its pods itself needs none.
    let patch = json!({"spec": {"selector": {"app": "a"}}});
    house.of::<Service>("default").patch("s", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    slices(&house, "s", &[0]).await;
    // Whoever made them, they go with the service.
    service(&house, "own", json!({"ports": [{"port": 80}]})).await;
    let subsets = json!([{"addresses": [{"ip": "1.2.3.4"}], "ports": [{"port": 80}]}]);
    create::<Endpoints>(&house.of("default"), json!({"metadata": {"name": "own"}, "subsets": subsets})).await;
    slices(&house, "own", &[1]).await;
    house.of::<Service>("default").delete("own", &DeleteParams::default()).await.unwrap();
    gone(&house.of::<Endpoints>("default"), "own").await;
    slices(&house, "own", &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_endpoints_are_in_a_slice() {
    let house = house_with(None).await;
    create::<Node>(&house.all(), json!({"metadata": {"name": "n"}})).await;
    service(&house, "s", json!({"selector": {"app": "a"}, "ports": [{"port": 80}]})).await;
    let made = (0..105).map(|at| (format!("p{at}"), format!("10.0.{}.{}", at / 100, at % 100 + 1)));
    let house = &house;
    futures::future::join_all(made.map(|(name, address)| async move { runs(house, &name, &address, true).await }))
        .await;
    let ours = |it: &&EndpointSlice| it.name_any().starts_with("s-");
    let total = |all: &[EndpointSlice]| all.iter().filter(ours).map(|it| it.endpoints.len()).sum::<usize>();
    let all = all(&house.of::<EndpointSlice>("default"), |all| total(all) == 105).await;
    assert!(
        all.iter().all(|it| it.endpoints.len() <= 100),
        "{:?}",
        all.iter().map(|it| it.endpoints.len()).collect::<Vec<_>>()
    );
    until(&house.of::<Endpoints>("default"), "s", |it| {
        it.is_some_and(|it| it.subsets.iter().flatten().flat_map(|it| it.addresses.iter().flatten()).count() == 105)
    })
    .await;
}
