//! What probes do to a container.

use super::*;

fn probe(more: Value) -> Value {
    let mut it = json!({"exec": {"command": ["x"]}, "periodSeconds": 5, "failureThreshold": 2});
    for (key, value) in more.as_object().unwrap() {
        it[key] = value.clone();
    }
    it
}

#[test]
fn a_container_is_not_ready_before_its_probe_has_passed_and_not_after_it_has_failed() {
    let spec = probe(json!({"initialDelaySeconds": 3, "successThreshold": 2}));
    let mut it = pod("Always", json!([with("c", json!({"readinessProbe": spec}))]));
    assert_eq!(it.run(), ["create", "start c 0"]);
    assert_eq!(it.shows(), "Running; c: running");
    assert_eq!(it.pass(3), ["Readiness probe of c"]);
    assert_eq!(it.shows(), "Running; c: running");
    assert_eq!(it.pass(5), ["Readiness probe of c"]);
    assert_eq!(it.shows(), "Running; c: running ready");
    it.probes.insert(("c".into(), Probe::Readiness), Some(false));
    it.pass(5);
    assert_eq!(it.shows(), "Running; c: running ready", "once is not enough");
    it.pass(5);
    assert_eq!(it.shows(), "Running; c: running");
    // What nobody knows changes nothing.
    it.probes.insert(("c".into(), Probe::Readiness), None);
    assert_eq!(it.pass(10), ["Readiness probe of c"; 2]);
    assert_eq!(it.shows(), "Running; c: running");
}

#[test]
fn who_does_not_live_is_ended_and_started_again() {
    let spec = probe(json!({"terminationGracePeriodSeconds": 4}));
    for (policy, said, then) in [
        (
            "Always",
            "Killing: Container c failed liveness probe, will be restarted",
            vec!["kill c", "start c 1", "Liveness probe of c"],
        ),
        ("Never", "Killing: Container c failed liveness probe", vec!["kill c", "stop"]),
    ] {
        let mut it = pod(policy, json!([with("c", json!({"livenessProbe": spec}))]));
        it.deaf.insert("c".into());
        it.probes.insert(("c".into(), Probe::Liveness), Some(false));
        it.run();
        assert_eq!(it.pass(5), ["Liveness probe of c", said, "signal 15 c"]);
        assert_eq!(it.pass(4), then, "the probe's own grace, and no probe meanwhile");
    }
}

#[test]
fn other_probes_wait_for_the_startup_probe() {
    let all = json!({"startupProbe": probe(json!({})), "livenessProbe": probe(json!({})), "readinessProbe": probe(json!({}))});
    let mut it = pod("Always", json!([with("c", all.clone())]));
    it.probes.insert(("c".into(), Probe::Startup), Some(false));
    assert_eq!(it.run(), ["create", "start c 0", "Startup probe of c"]);
    it.probes.clear();
    assert_eq!(it.pass(5), ["Startup probe of c", "Liveness probe of c", "Readiness probe of c"]);
    assert_eq!(it.shows(), "Running; c: running ready");
    assert_eq!(it.pass(5), ["Liveness probe of c", "Readiness probe of c"], "it has said its last word");

    let mut it = pod("Always", json!([with("c", all)]));
    it.probes.insert(("c".into(), Probe::Startup), Some(false));
    it.run();
    let killing = "Killing: Container c failed startup probe, will be restarted";
    assert_eq!(it.pass(5), ["Startup probe of c", killing, "signal 15 c", "start c 1", "Startup probe of c"]);
}

#[test]
fn while_a_pod_ends_only_its_readiness_is_asked() {
    let all = json!({"livenessProbe": probe(json!({})), "readinessProbe": probe(json!({}))});
    let mut it = pod("Always", json!([with("c", all)]));
    it.deaf.insert("c".into());
    it.run();
    it.delete(30);
    it.run();
    it.probes.insert(("c".into(), Probe::Readiness), Some(false));
    assert_eq!(it.pass(10), ["Readiness probe of c"; 2]);
    assert_eq!(it.shows(), "Running; c: running");
}

#[test]
fn a_clock_that_jumps_neither_silences_probes_nor_makes_them_many() {
    let mut it = pod("Always", json!([with("c", json!({"livenessProbe": probe(json!({}))}))]));
    it.run();
    it.now += SignedDuration::from_hours(5);
    assert_eq!(it.run(), ["Liveness probe of c"]);
    it.now -= SignedDuration::from_hours(4);
    assert!(it.run().is_empty());
    assert_eq!(it.pass(5), ["Liveness probe of c"]);
}

#[test]
fn a_hook_that_fails_after_the_start_ends_the_container() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    let part = it.memory.part("c");
    part.fail(Refused { reason: "PostStartHookError".into(), message: "said no".into() }, it.now);
    part.doomed = Some("FailedPostStartHook".into());
    it.deaf.insert("c".into());
    assert_eq!(it.run(), ["Killing: FailedPostStartHook", "signal 15 c"]);
    // It runs still, and is nobody's.
    assert_eq!(it.shows(), "Pending; c: PostStartHookError");
    it.exit("c", 137);
    it.broken.insert("c".into(), Refused { reason: "PostStartHookError".into(), message: "said no".into() });
    assert_eq!(it.run()[0], "start c 1");
    assert_eq!(it.shows(), "Running; c: PostStartHookError");
}
