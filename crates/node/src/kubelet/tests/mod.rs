#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
//! The API over pods that a test plays: whatever runs them is behind [`Pods`].

mod forward;
mod scripted;
mod streams;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use wire::node::Stats;

use super::spec;
use crate::pod::{Log, Rotation, Stream};
use scripted::{Scripted, UID, ask, get, pod};

fn status(state: Value, last: Value) -> Value {
    json!({"containerStatuses": [{
        "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "containerID": "insula://now",
        "state": state, "lastState": last,
    }]})
}

#[test]
fn why_there_is_no_log_is_said_as_a_kubelet_says_it() {
    let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let no = |why: &str| Err::<String, _>(format!("container \"c\" in pod \"p\" {why}"));
    for (state, last, now, earlier) in [
        (json!({"running": {}}), json!({}), Ok("insula://now".into()), None),
        (json!({"running": {}}), ended("insula://a"), Ok("insula://now".into()), Some("insula://a")),
        (ended("insula://b"), ended("insula://a"), Ok("insula://b".into()), Some("insula://a")),
        (ended(""), ended("insula://a"), Ok("insula://a".into()), Some("insula://a")),
        (ended(""), json!({}), no("is terminated"), None),
        (waiting("CrashLoopBackOff"), ended("insula://a"), Ok("insula://a".into()), Some("insula://a")),
        (waiting("CrashLoopBackOff"), ended(""), no("is terminated"), None),
        (waiting("ContainerCreating"), json!({}), no("is waiting to start: ContainerCreating"), None),
        (waiting("PodInitializing"), json!({}), no("is waiting to start: PodInitializing"), None),
        (waiting("ErrImagePull"), json!({}), no("is waiting to start: image can't be pulled"), None),
        (waiting("ImagePullBackOff"), json!({}), no("is waiting to start: trying and failing to pull image"), None),
        (json!({}), json!({}), no("is waiting to start - no logs yet"), None),
    ] {
        let pod = pod(status(state.clone(), last));
        assert_eq!(spec::logged(&pod, "c", false), now, "{state}");
        let earlier = earlier.map(str::to_owned);
        let earlier = earlier.ok_or_else(|| "previous terminated container \"c\" in pod \"p\" not found".to_owned());
        assert_eq!(spec::logged(&pod, "c", true), earlier, "{state}");
    }
    assert_eq!(spec::logged(&pod(json!({})), "i", false), Err("container \"i\" in pod \"p\" is not available".into()));
}

#[tokio::test]
async fn every_attempt_of_every_container_has_its_log() {
    let pods = Scripted::new(status(
        json!({"running": {}}),
        json!({"terminated": {"exitCode": 1, "containerID": "insula://a"}}),
    ));
    let log = |container: &str, attempt, text: &[u8]| {
        let log = Log::open(&pods.logs(container), attempt, kit::Clock::system(), Rotation::default()).unwrap();
        log.write(Stream::Stdout, text);
        log
    };
    log("c", 0, b"earlier\n").close();
    let now = log("c", 1, b"one\ntwo\n");
    pods.attempt("c", 0, "a", true);
    pods.attempt("c", 1, "now", false);
    pods.keep(now.clone());
    let kubelet = pods.kubelet();
    let logs = async |query: &str| get(&kubelet, &format!("containerLogs/n/p/c{query}")).await;
    assert_eq!(logs("").await, (200, "one\ntwo\n".into()));
    assert_eq!(logs("?tailLines=1").await, (200, "two\n".into()));
    assert_eq!(logs("?previous=true").await, (200, "earlier\n".into()));
    assert_eq!(logs("?tailLines=-1").await.0, 422);
    let followed = tokio::join!(logs("?follow=true&limitBytes=10"), async {
        now.write(Stream::Stderr, b"three\n");
        now.close();
    });
    assert_eq!(followed.0, (200, "one\ntwo\nth".into()));
    // Over a WebSocket: a greeting, the log, and the end.
    for (offers, text, greeting) in [
        ("", "\u{8}earlier\n", "\u{2}"),
        ("Sec-WebSocket-Protocol: x, binary.k8s.io\r\n", "\u{8}earlier\n", "\u{2}"),
        ("Sec-WebSocket-Protocol: base64.binary.k8s.io\r\n", "\u{c}ZWFybGllcgo=", "\u{1}"),
    ] {
        let headers = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offers}"
        );
        let (mut stream, (status, said)) = ask(&kubelet, "GET", "containerLogs/n/p/c?previous=true", &headers).await;
        assert_eq!(status, 101, "{said}");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        // The first byte of a frame says that it is a whole message, and of which kind.
        let kind = 0x80 | greeting.as_bytes()[0];
        let wanted = [&[kind, 0, kind], text.as_bytes(), &[0x88, 2, 3, 232]].concat();
        assert_eq!(all, wanted, "{offers}");
    }
    let (_, refused) =
        ask(&kubelet, "GET", "containerLogs/n/p/d", "Upgrade: websocket\r\nConnection: Upgrade\r\n").await;
    assert_eq!(refused, (404, "container \"d\" not found in pod \"p\"".into()));
    assert_eq!(get(&kubelet, "containerLogs/n/p/d").await, (404, "container \"d\" not found in pod \"p\"".into()));
    assert_eq!(
        get(&kubelet, "containerLogs/n/p/i").await,
        (400, "container \"i\" in pod \"p\" is not available".into())
    );
    assert_eq!(get(&kubelet, "containerLogs/n/q/c").await, (404, "pod \"q\" does not exist".into()));
    // Its files have gone.
    std::fs::remove_dir_all(pods.logs("c")).unwrap();
    assert_eq!(logs("?previous=true").await, (200, "unable to retrieve container logs for insula://a".into()));
}

#[tokio::test(start_paused = true)]
async fn what_pods_use_is_told_as_a_kubelet_tells_it() {
    let pods = Scripted::new(status(json!({"running": {}}), json!({})));
    pods.attempt("c", 0, "now", false);
    pods.attempt("i", 0, "init", true);
    let used = |micros| Stats { memory: Some(5 << 20), cpu_usec: Some(micros), pids: Some(3), ..Stats::default() };
    pods.uses(used(2_000_000));
    let kubelet = pods.kubelet();
    let summary = async || serde_json::from_str::<Value>(&get(&kubelet, "stats/summary").await.1).unwrap();
    let first = summary().await;
    assert_eq!(first["node"]["nodeName"], "node");
    assert!(first["node"]["memory"]["workingSetBytes"].as_u64() > Some(0));
    let pod = &first["pods"][0];
    assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "n", "uid": UID}));
    assert_eq!(pod["process_stats"], json!({"process_count": 3}));
    assert_eq!(pod["memory"]["workingSetBytes"], 5 << 20);
    let cpu = |of: &Value| (of["cpu"]["usageCoreNanoSeconds"].as_u64(), of["cpu"]["usageNanoCores"].as_u64());
    // In the ten seconds since it was started.
    assert_eq!(cpu(&pod["containers"][0]), (Some(2_000_000_000), Some(200_000_000)));
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1, "what has ended uses nothing");
    assert_eq!(pod["containers"][0]["startTime"], "2026-11-21T10:00:00Z");
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    pods.uses(used(3_000_000));
    assert_eq!(cpu(&summary().await["pods"][0]["containers"][0]), (Some(3_000_000_000), Some(500_000_000)));

    let (code, text) = get(&kubelet, "metrics/resource").await;
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
    let at = "2026-11-21T10:00:12Z".parse::<Timestamp>().unwrap().as_millisecond();
    assert_eq!(code, 200);
    assert_eq!(
        line("container_cpu_usage_seconds_total{"),
        format!("container_cpu_usage_seconds_total{{container=\"c\",namespace=\"n\",pod=\"p\"}} 3 {at}")
    );
    assert_eq!(
        line("pod_memory_working_set_bytes{"),
        format!("pod_memory_working_set_bytes{{namespace=\"n\",pod=\"p\"}} 5242880 {at}")
    );
    assert!(line("container_start_time_seconds{").ends_with("} 1795255200"));
    assert_eq!(line("# TYPE node_cpu_usage_seconds_total"), "# TYPE node_cpu_usage_seconds_total counter");
    assert_eq!(line("resource_scrape_error"), "resource_scrape_error 0");

    let list: Value = serde_json::from_str(&get(&kubelet, "pods").await.1).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["metadata"]["name"]), (&json!("PodList"), &json!("p")));
    assert_eq!(get(&kubelet, "healthz").await, (200, "ok".into()));
    assert_eq!(ask(&kubelet, "DELETE", "pods", "").await.1.0, 404);
}
