//! How containers end.

use super::*;

fn hooked(name: &str) -> Value {
    with(name, json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}))
}

#[test]
fn a_deleted_pod_ends_is_told_of_removed_and_deleted_in_this_order() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    it.delete(10);
    let said = it.run();
    assert_eq!(said, ["Killing: Stopping container c", "signal 15 c", "remove", "delete"]);
    assert_eq!(it.shows(), "Succeeded; c: Completed 0");
    assert_eq!(it.condition("PodReadyToStartContainers"), "False");

    let mut it = pod("Always", json!([c("c")]));
    it.deaf.insert("c".into());
    it.run();
    it.delete(10);
    assert_eq!(it.run(), ["Killing: Stopping container c", "signal 15 c"]);
    assert_eq!(it.shows(), "Running; c: running ready");
    assert!(it.pass(9).is_empty());
    assert_eq!(it.pass(1), ["kill c", "remove", "delete"]);
    assert_eq!(it.shows(), "Failed; c: Error 137");
}

#[test]
fn the_signal_is_the_specs_the_images_or_sigterm() {
    for (spec, image, is) in [(None, None, 15), (None, Some(3), 3), (Some("SIGUSR1"), Some(3), 10)] {
        let mut it = pod("Always", json!([with("c", json!({"lifecycle": {"stopSignal": spec}}))]));
        it.stop_signals.extend(image.map(|image| ("c".to_owned(), image)));
        it.run();
        it.delete(10);
        assert_eq!(it.run()[1], format!("signal {is} c"));
    }
}

#[test]
fn what_never_ran_is_failed_when_it_is_deleted() {
    let mut it = pod("Always", json!([c("c")]));
    it.broken.insert("c".into(), Refused { reason: "ErrImageNeverPull".into(), message: "x".into() });
    it.run();
    it.delete(10);
    assert_eq!(it.run(), ["remove", "delete"]);
    assert_eq!(it.shows(), "Failed; c: ContainerStatusUnknown 137");
    assert_eq!(it.condition("Ready"), "False/ContainersNotReady/containers with unready status: [c]");
}

#[test]
fn a_second_delete_shortens_the_grace_and_a_forced_one_leaves_none() {
    let mut it = pod("Always", json!([c("c")]));
    it.deaf.insert("c".into());
    it.run();
    it.delete(100);
    it.run();
    assert!(it.pass(5).is_empty());
    it.delete(7);
    it.run();
    assert_eq!(it.pass(2), ["kill c", "remove", "delete"]);

    let mut it = pod("Always", json!([hooked("c")]));
    it.run();
    it.gone = true;
    assert_eq!(it.run(), ["Killing: Stopping container c", "kill c", "remove"]);
}

#[test]
fn a_hook_runs_first_within_the_grace_and_one_that_hangs_leaves_two_seconds() {
    let mut it = pod("Always", json!([hooked("c")]));
    it.run();
    it.delete(10);
    assert_eq!(it.run(), ["Killing: Stopping container c", "hook of c, 10 s", "signal 15 c", "remove", "delete"]);

    let mut it = pod("Always", json!([hooked("c")]));
    it.hanging.insert("c".into());
    it.deaf.insert("c".into());
    it.run();
    it.delete(10);
    assert_eq!(it.run(), ["Killing: Stopping container c", "hook of c, 10 s"]);
    assert!(it.pass(9).is_empty());
    assert_eq!(it.pass(1), ["signal 15 c"]);
    assert_eq!(it.pass(2), ["kill c", "remove", "delete"]);
}

#[test]
fn one_that_ends_by_itself_is_neither_signalled_nor_started_again() {
    let mut it = pod("Always", json!([hooked("c"), c("d")]));
    it.hanging.insert("c".into());
    it.run();
    it.delete(30);
    let said = ["Killing: Stopping container c", "Killing: Stopping container d", "hook of c, 30 s", "signal 15 d"];
    assert_eq!(it.run(), said);
    it.exit("c", 5);
    assert_eq!(it.run(), ["remove", "delete"]);
    assert_eq!(it.shows(), "Failed; c: Error 5; d: Completed 0");
}

#[test]
fn sidecars_wait_for_who_they_serve_but_not_for_ever() {
    let sidecar = with("s", json!({"restartPolicy": "Always"}));
    let mut it = Story::new(json!({"initContainers": [sidecar], "containers": [c("c")]}));
    it.deaf.insert("c".into());
    it.run();
    it.delete(10);
    let said = ["Killing: Stopping container s", "Killing: Stopping container c", "signal 15 c"];
    assert_eq!(it.run(), said);
    assert!(it.pass(9).is_empty());
    assert_eq!(it.pass(1), ["signal 15 s", "kill c", "remove", "delete"]);
}

#[test]
fn a_signal_of_ones_own_is_sent() {
    let mut it = pod("Always", json!([with("c", json!({"lifecycle": {"stopSignal": "SIGUSR1"}}))]));
    it.run();
    it.delete(10);
    assert_eq!(it.run()[1], "signal 10 c");
}

#[test]
fn what_is_being_started_is_given_up_and_ended_when_it_runs_anyway() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    it.memory.part("c").starting = Some(0);
    it.delete(10);
    assert_eq!(it.run(), ["Killing: Stopping container c", "cancel", "signal 15 c"]);
    it.memory.part("c").starting = None;
    assert_eq!(it.run(), ["remove", "delete"]);
}

#[test]
fn a_kill_that_does_not_work_is_tried_again() {
    let mut it = pod("Always", json!([c("c")]));
    it.deaf.insert("c".into());
    it.run();
    it.delete(10);
    it.run();
    it.now = it.again.unwrap();
    it.memory.part("c").stopping.as_mut().unwrap().killing = true;
    let now = it.now;
    it.memory.killed("c", false, now);
    assert!(it.run().is_empty());
    assert_eq!(it.pass(2), ["kill c", "remove", "delete"]);
}
