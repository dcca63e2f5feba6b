use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::{CONFIG_MAPS, House, config_map};

/// The events of a watch, as they come.
pub(crate) struct Events {
    body: Body,
    rest: Vec<u8>,
}

impl Events {
    async fn of(house: &House, query: &str) -> Self {
        Self::at(house, CONFIG_MAPS, query).await
    }

    pub(crate) async fn at(house: &House, collection: &str, query: &str) -> Self {
        let request = Request::get(format!("{collection}?watch=1&{query}")).body(Body::empty()).unwrap();
        let response = house.client.send(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next event; `None` when the watch ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(60), self.body.frame()).await.expect("no event came")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// The type of the next event, and whom it is about.
    async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let name = event.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or_default();
        (event["type"].as_str().unwrap().to_owned(), name.to_owned())
    }
}

fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

fn labelled(name: &str, tier: &str) -> Value {
    let mut object = config_map(name, json!({}));
    object["metadata"]["labels"] = json!({"tier": tier});
    object
}

async fn revision(house: &House) -> String {
    house.get(CONFIG_MAPS).await.is(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_a_revision_sees_every_change_after_it_once() {
    let house = House::open().await;
    let from = revision(&house).await;
    house.post(CONFIG_MAPS, &config_map("c", json!({"k": "0"}))).await.is(201);
    let mut live = Events::of(&house, &format!("resourceVersion={from}")).await;
    assert_eq!(live.brief().await, event("ADDED", "c"));
    for at in 1..4 {
        house.patch(&format!("{CONFIG_MAPS}/c"), "merge", &json!({"data": {"k": at.to_string()}})).await.is(200);
        let seen = live.next().await.unwrap();
        assert_eq!((&seen["type"], &seen["object"]["data"]["k"]), (&json!("MODIFIED"), &json!(at.to_string())));
    }
    house.delete(&format!("{CONFIG_MAPS}/c")).await.is(200);
    let gone = live.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["data"]["k"]), (&json!("DELETED"), &json!("3")));
    let mut again = Events::of(&house, &format!("resourceVersion={from}&timeoutSeconds=1")).await;
    let mut kinds = Vec::new();
    while let Some(event) = again.next().await {
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["ADDED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED"], "and it ends with its timeout");
}

#[tokio::test]
async fn an_object_that_begins_to_match_comes_and_one_that_ceases_goes() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &labelled("c", "a")).await.is(201);
    let mut events =
        Events::of(&house, &format!("labelSelector=tier%3Db&resourceVersion={}", revision(&house).await)).await;
    let url = format!("{CONFIG_MAPS}/c");
    for (tier, data) in [("b", "1"), ("b", "2"), ("a", "3"), ("a", "4"), ("b", "5")] {
        let patch = json!({"metadata": {"labels": {"tier": tier}}, "data": {"k": data}});
        house.patch(&url, "merge", &patch).await.is(200);
    }
    assert_eq!(events.brief().await, event("ADDED", "c"));
    assert_eq!(events.brief().await, event("MODIFIED", "c"));
    let gone = events.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["data"]["k"]), (&json!("DELETED"), &json!("2")), "as it last matched");
    assert_eq!(events.brief().await, event("ADDED", "c"));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_go_on() {
    let house = House::open().await;
    house.post(CONFIG_MAPS, &labelled("a", "x")).await.is(201);
    house.post(CONFIG_MAPS, &labelled("b", "x")).await.is(201);
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=tier";
    let mut events = Events::of(&house, query).await;
    assert_eq!(events.brief().await, event("ADDED", "a"));
    assert_eq!(events.brief().await, event("ADDED", "b"));
    let mark = events.next().await.unwrap();
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    house.post(CONFIG_MAPS, &labelled("c", "x")).await.is(201);
    assert_eq!(events.brief().await, event("ADDED", "c"));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_watch_is_told_how_far_it_has_seen() {
    let house = House::open().await;
    let mut events = Events::of(
        &house,
        &format!("allowWatchBookmarks=true&labelSelector=none&resourceVersion={}", revision(&house).await),
    )
    .await;
    house.post(CONFIG_MAPS, &config_map("c", json!({}))).await.is(201);
    let now = revision(&house).await;
    let request = async { events.body.frame().await.unwrap().unwrap().into_data().unwrap() };
    let mark: Value =
        serde_json::from_slice(&tokio::time::timeout(Duration::from_secs(120), request).await.unwrap()).unwrap();
    assert_eq!((&mark["type"], &mark["object"]["metadata"]["resourceVersion"]), (&json!("BOOKMARK"), &json!(now)));
}

#[tokio::test(start_paused = true)]
async fn a_table_is_watched_row_by_row() {
    let house = House::open().await;
    let from = revision(&house).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1&resourceVersion={from}");
    house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
    house.post(CONFIG_MAPS, &config_map("b", json!({}))).await.is(201);
    let answer = house.send(http::Method::GET, &path, &[("accept", accept)], "").await;
    let events: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["object"]["rows"][0]["cells"][0], "a");
    assert!(events[0]["object"]["columnDefinitions"].is_array() && events[1]["object"]["columnDefinitions"].is_null());
}

#[tokio::test]
async fn every_watch_ends_with_the_server() {
    let house = House::open().await;
    let mut events = Events::of(&house, "").await;
    let ends = async { while events.next().await.is_some() {} };
    let (tasks, deadline) = (house.tasks.clone(), Duration::from_secs(60));
    tokio::time::timeout(deadline, async { tokio::join!(ends, tasks.end()) })
        .await
        .expect("a watch outlives its server");
}

#[tokio::test]
async fn the_fields_client_follows_with_lists_and_with_streams() {
    let house = House::open().await;
    let api: Api<ConfigMap> = Api::namespaced(house.client.clone(), "default");
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let streaming = config.initial_list_strategy == watcher::InitialListStrategy::StreamingList;
        let name = if streaming { "streamed" } else { "listed" };
        let mut events = std::pin::pin!(watcher(api.clone(), config));
        let deadline = Duration::from_secs(60);
        let seen = tokio::time::timeout(deadline, async {
            loop {
                match events.next().await.unwrap().unwrap() {
                    watcher::Event::InitDone => {
                        house.post(CONFIG_MAPS, &config_map(name, json!({}))).await.is(201);
                    }
                    watcher::Event::Apply(it) if it.name_any() == name => return it,
                    _ => {}
                }
            }
        });
        assert_eq!(seen.await.unwrap().name_any(), name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_any_revision_replays_to_the_list() {
    let house = House::open().await;
    let mut random = rand::rngs::StdRng::seed_from_u64(7);
    let mut pasts = Vec::new();
    for step in 0..200 {
        if step % 20 == 0 {
            pasts.push(house.get(CONFIG_MAPS).await.is(200));
        }
        let name = format!("c{}", random.random_range(0..12));
        let url = format!("{CONFIG_MAPS}/{name}");
        match random.random_range(0..4) {
            0 => drop(house.delete(&url).await),
            1 => drop(house.post(CONFIG_MAPS, &labelled(&name, "a")).await),
            _ => drop(house.patch(&url, "merge", &json!({"data": {"k": step.to_string()}})).await),
        }
    }
    let now = by_name(&house.get(CONFIG_MAPS).await.is(200));
    for past in pasts {
        let from = past["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let mut state = by_name(&past);
        let mut last: u64 = from.parse().unwrap();
        let mut events = Events::of(&house, &format!("timeoutSeconds=1&resourceVersion={from}")).await;
        while let Some(event) = events.next().await {
            let mut object = event["object"].clone();
            let rev: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
            assert!(rev > last, "revisions go up");
            last = rev;
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let fields = object.as_object_mut().unwrap();
            fields.retain(|key, _| key != "kind" && key != "apiVersion");
            let known = match event["type"].as_str().unwrap() {
                "DELETED" => state.remove(&name),
                _ => state.insert(name, object),
            };
            assert_eq!(known.is_some(), event["type"] != "ADDED", "{event}");
        }
        assert_eq!(state, now);
    }
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|it| (it["metadata"]["name"].as_str().unwrap().to_owned(), it.clone())).collect()
}
