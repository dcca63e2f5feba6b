//! What stands still, from when to when, and what is said of it.

use super::*;

const THAW: &str = "the pod is frozen; kubectl annotate -n n pod p insula.dev/frozen- thaws it";

fn wish(it: &mut Story, value: Option<&str>) {
    let all = it.pod.metadata.annotations.get_or_insert_default();
    all.clear();
    all.extend(value.map(|value| (api::labels::FROZEN.to_owned(), value.to_owned())));
}

fn probe() -> Value {
    json!({"exec": {"command": ["x"]}, "periodSeconds": 5, "failureThreshold": 1})
}

#[test]
fn a_pod_stands_still_while_its_annotation_says_so_and_says_how_it_goes_on() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    wish(&mut it, Some("true"));
    assert_eq!(it.run(), ["freeze"]);
    assert_eq!(it.shows(), "Running; c: running");
    for type_ in ["Ready", "ContainersReady"] {
        assert_eq!(it.condition(type_), format!("False/Frozen/{THAW}"));
    }
    assert!(it.pass(1000).is_empty(), "it is not looked at");
    // Whatever else changes.
    it.pod.metadata.labels = Some(BTreeMap::from([("a".into(), "b".into())]));
    assert!(it.run().is_empty());
    wish(&mut it, Some("false"));
    assert_eq!(it.run(), ["thaw"]);
    assert_eq!((it.shows(), it.condition("Ready")), ("Running; c: running ready".into(), "True".into()));
}

#[test]
fn what_an_annotation_says_is_done_or_told_once() {
    let nothing = "nothing has changed";
    for (value, no_freezer, says) in [
        ("false", None, None),
        ("", None, Some(nothing)),
        ("True", None, Some("the annotation insula.dev/frozen is \"True\": \"true\" freezes the pod")),
        ("true", Some("no control groups are mounted"), Some("runs on: no control groups are mounted")),
    ] {
        let mut it = pod("Always", json!([c("c")]));
        it.node.no_freezer = no_freezer.map(str::to_owned);
        it.run();
        wish(&mut it, Some(value));
        let said = it.run();
        assert_eq!(said.len(), usize::from(says.is_some()), "{value}: {said:?}");
        assert!(says.is_none_or(|it| said[0].starts_with("FreezeRefused: ") && said[0].contains(it)), "{said:?}");
        assert_eq!(it.condition("Ready"), "True", "{value}");
        assert!(it.pass(1000).is_empty(), "{value}");
    }
    let mut it = pod("Always", json!([c("c")]));
    wish(&mut it, Some("true"));
    it.run();
    wish(&mut it, Some(&"x".repeat(1000)));
    let said = it.run();
    assert!(said[0].contains(nothing) && said[0].len() < 300, "{said:?}");
    assert_eq!(it.condition("Ready"), format!("False/Frozen/{THAW}"), "not even from frozen");
}

#[test]
fn a_pod_that_begins_frozen_comes_up_first() {
    let inits = json!([c("i"), with("s", json!({"restartPolicy": "Always"}))]);
    let mut it = Story::new(json!({"initContainers": inits, "containers": [c("a"), c("b")]}));
    wish(&mut it, Some("true"));
    let missing = Refused { reason: "ErrImageNeverPull".into(), message: "x".into() };
    it.broken.insert("b".into(), missing);
    assert_eq!(it.run(), ["create", "start i 0"]);
    it.exit("i", 0);
    assert_eq!(it.run(), ["start s 0", "start a 0", "start b 0"]);
    it.broken.clear();
    assert_eq!(it.pass(3), ["start b 0", "freeze"]);
    assert_eq!(it.shows(), "Running; i: Completed 0 ready; s: running; a: running; b: running");
}

#[test]
fn it_waits_for_hooks_and_ends_that_are_under_way() {
    let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}});
    let mut it = pod("Always", json!([with("c", hook)]));
    it.run();
    // Whether it runs by now or not: what follows is the hook.
    for running in [true, false] {
        if !running {
            it.exit("c", 1);
        }
        it.memory.part("c").starting = Some(1);
        wish(&mut it, Some("true"));
        assert!(it.run().is_empty(), "{running}");
    }

    let mut it = pod("Always", json!([with("c", json!({"livenessProbe": probe()})), c("d")]));
    it.deaf.insert("c".into());
    it.probes.insert(("c".into(), Probe::Liveness), Some(false));
    it.run();
    wish(&mut it, Some("true"));
    assert!(it.run().is_empty(), "it is being ended");
    it.exit("c", 137);
    assert_eq!(it.run(), ["freeze"]);
    assert_eq!(it.shows(), "Running; c: Frozen; d: running");
    it.probes.clear();
    wish(&mut it, None);
    assert_eq!(it.run(), ["thaw", "start c 1", "Liveness probe of c"]);
}

#[test]
fn nothing_is_started_or_replaced_in_what_stands_still() {
    let mut it = pod("Always", json!([c("c"), c("d")]));
    it.run();
    it.slow.insert("c".into());
    it.exit("c", 1);
    assert_eq!(it.run(), ["start c 1"]);
    // Its image is being pulled. The runtime refuses to start it then.
    wish(&mut it, Some("true"));
    assert_eq!(it.run(), ["freeze"]);
    let part = it.memory.part("c");
    part.turned_away();
    assert_eq!((part.starting, part.backoff), (None, None), "it has not crashed");
    let containers = &mut it.pod.spec.as_mut().unwrap().containers;
    containers[1].image = Some("another".into());
    let debug = json!([{"name": "e", "image": "busybox"}]);
    it.pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(debug).unwrap();
    it.exit("d", 137);
    assert!(it.pass(1000).is_empty());
    assert_eq!(it.shows(), "Running; c: Frozen; d: Frozen; e: Frozen");
    it.slow.clear();
    wish(&mut it, None);
    let mut said = it.run();
    said.extend(it.pass(20));
    said.sort();
    assert_eq!(said, ["start c 1", "start d 1", "start e 0", "thaw"]);

    let mut it = pod("Never", json!([c("c")]));
    wish(&mut it, Some("true"));
    it.run();
    it.exit("c", 137);
    assert_eq!(it.run(), ["thaw", "stop"], "who has nothing left to run is over");
    assert_eq!(it.shows(), "Failed; c: Error 137");
}

#[test]
fn probes_begin_anew_after_a_thaw() {
    let all = json!({"startupProbe": probe(), "livenessProbe": probe(), "readinessProbe": probe()});
    let mut it = pod("Always", json!([with("c", all), c("d")]));
    it.run();
    assert_eq!(it.shows(), "Running; c: running ready; d: running ready");
    // One is under way: what it finds says nothing.
    it.memory.part("c").probes.get_mut(&Probe::Liveness).unwrap().busy = true;
    wish(&mut it, Some("true"));
    assert_eq!(it.run(), ["freeze"]);
    let spec = serde_json::from_value(probe()).unwrap();
    it.memory.probed("c", Probe::Liveness, "c-0", &spec, Some(false), it.now);
    assert!(it.pass(100).is_empty());
    it.probes.insert(("c".into(), Probe::Readiness), None);
    wish(&mut it, None);
    assert_eq!(it.run(), ["thaw", "Liveness probe of c", "Readiness probe of c"]);
    assert_eq!(it.shows(), "Running; c: running; d: running ready");
    it.probes.clear();
    it.pass(5);
    assert_eq!(it.shows(), "Running; c: running ready; d: running ready");
}

#[test]
fn what_ends_is_thawed_first_and_ended_all_the_same_when_it_cannot_be() {
    let hook = json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}});
    let evicted = Ending::Failed { reason: "Evicted".into(), message: "x".into(), grace: Some(5), disruption: true };
    let closed = Ending::Closed { grace: 3 };
    for (why, order) in [("deleted", None), ("forced", None), ("evicted", Some(evicted)), ("closed", Some(closed))] {
        for stuck in [false, true] {
            let mut it = pod("Always", json!([with("c", hook.clone())]));
            wish(&mut it, Some("true"));
            it.run();
            (it.order, it.stuck) = (order.clone(), stuck);
            if stuck {
                // Nobody hears anything.
                it.deaf.insert("c".into());
                it.hanging.insert("c".into());
            }
            match why {
                "deleted" => it.delete(10),
                "forced" => it.gone = true,
                _ => {}
            }
            let mut said = it.run();
            said.extend(it.pass(20));
            let does: Vec<&str> = said.iter().map(|it| it.split(' ').next().unwrap()).collect();
            let at = |what: &str| does.iter().position(|it| *it == what);
            assert!(at("thaw") < at("Killing:") && at("thaw").is_some(), "{why} {stuck}: {said:?}");
            if !stuck && why != "forced" {
                assert!(at("Killing:") < at("hook") && at("hook") < at("signal"), "{why}: {said:?}");
            }
            assert_eq!(at("kill").is_some(), stuck || why == "forced", "{why} {stuck}: {said:?}");
            assert!(at("stop").or_else(|| at("remove")).is_some(), "{why} {stuck}: {said:?}");
        }
    }
}

#[test]
fn time_goes_on_for_what_stands_still() {
    let mut it = Story::new(json!({"activeDeadlineSeconds": 5, "containers": [c("c")]}));
    wish(&mut it, Some("true"));
    it.run();
    let said = it.pass(5);
    assert!(said[0].starts_with("DeadlineExceeded: "), "{said:?}");
    assert_eq!(said[1..], ["thaw", "Killing: Stopping container c", "signal 15 c", "stop"]);
}

#[test]
fn another_node_goes_by_what_stands_still_and_by_what_is_said_now() {
    for (value, does) in [(Some("true"), vec![]), (None, vec!["thaw", "Readiness probe of c"])] {
        let mut it = pod("Always", json!([with("c", json!({"readinessProbe": probe()}))]));
        it.run();
        wish(&mut it, Some("true"));
        // Nobody had time to say that it is frozen.
        let written = it.pod.status.clone();
        it.run();
        it.pod.status = written;
        it.restart_node();
        wish(&mut it, value);
        it.probes.insert(("c".into(), Probe::Readiness), Some(false));
        assert_eq!(it.run(), does);
        assert_eq!(it.shows(), "Running; c: running");
    }
    // Another shim has other containers.
    let mut it = pod("Always", json!([c("c")]));
    wish(&mut it, Some("true"));
    it.run();
    let state = it.state.as_mut().unwrap();
    (state.alive, state.frozen) = (false, false);
    it.exit("c", 137);
    it.now += SignedDuration::from_secs(60);
    assert_eq!(it.run()[1..], ["create", "start c 1", "freeze"]);
}

#[test]
fn what_does_not_freeze_runs_on_and_is_tried_again() {
    let mut it = pod("Always", json!([with("c", json!({"readinessProbe": probe()}))]));
    it.run();
    it.stuck = true;
    wish(&mut it, Some("true"));
    assert_eq!(it.run(), ["freeze"]);
    assert_eq!(it.shows(), "Running; c: running ready");
    it.stuck = false;
    let said = it.pass(2);
    assert_eq!(said, ["freeze"]);
    assert_eq!(it.condition("Ready"), format!("False/Frozen/{THAW}"));
}
