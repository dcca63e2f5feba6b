//! `/metrics`, as a scraper sees it.

use futures::StreamExt;
use http::Method;
use kube::api::WatchParams;
use serde_json::json;

use crate::{CONFIG_MAPS, House, config_map};

/// The value of the only sample of this name that has all of these labels.
fn value(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = page.lines().filter(|line| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']));
        rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?}");
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[tokio::test]
async fn requests_objects_and_watches_are_counted_as_what_they_are() {
    let house = House::open().await;
    let page = async || house.get("/metrics").await.text;
    let of_maps = |more: &'static str| [r#"resource="configmaps""#, r#"group="""#, r#"version="v1""#, more];
    let objects = value(&page().await, "apiserver_resource_objects", &of_maps("")[..2]).unwrap_or_default();
    for name in ["a", "b", "b"] {
        house.post(CONFIG_MAPS, &config_map(name, json!({}))).await;
    }
    house.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("c", json!({}))).await.is(201);
    for path in ["/api/v1/namespaces/default/configmaps/a/made-up", "/made-up", "/apis/made.up/v1/things"] {
        assert_eq!(house.get(path).await.code, 404);
    }
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::default_namespaced(house.client.clone());
    let mut events = maps.watch(&WatchParams::default().fields("metadata.name=a"), "0").await.unwrap().boxed();
    events.next().await.unwrap().unwrap();

    let now = page().await;
    let posts = |code: &'static str, dry_run: &'static str| {
        let labels = of_maps(r#"verb="POST""#).into_iter().chain([code, dry_run, r#"scope="resource""#]);
        value(&now, "apiserver_request_total", &labels.collect::<Vec<_>>())
    };
    assert_eq!(posts(r#"code="201""#, r#"dry_run="""#), Some(2.0));
    assert_eq!(posts(r#"code="409""#, r#"dry_run="""#), Some(1.0));
    assert_eq!(posts(r#"code="201""#, r#"dry_run="All""#), Some(1.0));
    let took = [&of_maps(r#"verb="POST""#)[..], &[r#"dry_run="""#]].concat();
    assert_eq!(value(&now, "apiserver_request_duration_seconds_count", &took), Some(3.0));
    assert_eq!(value(&now, "apiserver_resource_objects", &of_maps("")[..2]), Some(objects + 2.0));
    assert_eq!(value(&now, "apiserver_storage_objects", &of_maps("")[..1]), Some(objects + 2.0));
    let watch = [&of_maps(r#"verb="WATCH""#)[..], &[r#"scope="namespace""#]].concat();
    let others = value(&now, "apiserver_longrunning_requests", &watch).unwrap();
    assert!(others >= 1.0);
    assert_eq!(value(&now, "apiserver_request_total", &watch), None, "a watch is counted when it ends");
    assert!(value(&now, "apiserver_watch_events_total", &of_maps("")).unwrap() >= 1.0);
    assert_eq!(
        value(&now, "apiserver_current_inflight_requests", &[r#"request_kind="readOnly""#]),
        Some(1.0),
        "this one"
    );
    assert!(!now.contains("made-up") && !now.contains("made.up"), "a client's word is no label");
    assert!(now.contains(r#"code="404""#) && now.contains(r#"subresource="other""#));
    assert!(value(&now, "insula_store_written_total", &[]).unwrap() >= objects + 2.0);
    assert!(value(&now, "process_resident_memory_bytes", &[]).unwrap() > 1e6);

    drop(events);
    let now = page().await;
    assert_eq!(value(&now, "apiserver_longrunning_requests", &watch), Some(others - 1.0));
    assert_eq!(value(&now, "apiserver_request_total", &watch), Some(1.0));
}

#[tokio::test]
async fn who_may_not_get_the_path_gets_no_metrics() {
    let house = House::open().await;
    let nobody = [("impersonate-user", "nobody")];
    let refused = house.send(Method::GET, "/metrics", &nobody, "").await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (403, r#"forbidden: User "nobody" cannot get path "/metrics""#)
    );
    let monitors = [("impersonate-user", "nobody"), ("impersonate-group", "system:monitoring")];
    let page = house.send(Method::GET, "/metrics", &monitors, "").await;
    assert_eq!(page.code, 200);
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
}
