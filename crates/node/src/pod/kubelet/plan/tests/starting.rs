//! Init containers, sidecars, crash loops, and everything that keeps a container from starting.

use super::*;

fn always(name: &str) -> Value {
    with(name, json!({"restartPolicy": "Always"}))
}

fn inits(policy: &str, init: Value) -> Story {
    Story::new(json!({"restartPolicy": policy, "initContainers": init, "containers": [c("c")]}))
}

#[test]
fn another_image_is_started_at_once_whatever_the_policy_and_the_waits() {
    let change = |it: &mut Story, image: &str| {
        it.pod.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    };
    for policy in ["Always", "Never"] {
        let mut it = pod(policy, json!([c("c")]));
        it.run();
        change(&mut it, "other");
        let killing = "Killing: Container c definition changed, will be restarted";
        assert_eq!(it.run(), [killing, "signal 15 c", "start c 1"], "{policy}");
        assert_eq!(it.shows(), "Running; c: running x1 ready");
    }
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    for _ in 0..3 {
        it.exit("c", 1);
        it.pass(300);
    }
    it.exit("c", 1);
    assert_eq!(it.run(), [""; 0]);
    change(&mut it, "other");
    assert_eq!(it.run(), ["start c 4"]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let mut it = inits("Always", json!([c("i"), c("j")]));
    assert_eq!(it.run(), ["create", "start i 0"]);
    assert_eq!(it.shows(), "Pending; i: running; j: PodInitializing; c: PodInitializing");
    let incomplete = "False/ContainersNotInitialized/containers with incomplete status: [i j]";
    assert_eq!(it.condition("Initialized"), incomplete);
    it.exit("i", 0);
    assert_eq!(it.run(), ["start j 0"]);
    it.exit("j", 0);
    assert_eq!(it.run(), ["start c 0"]);
    assert_eq!(it.shows(), "Running; i: Completed 0 ready; j: Completed 0 ready; c: running ready");
    assert_eq!(it.condition("Initialized"), "True");
}

#[test]
fn an_init_container_that_fails_is_tried_again_or_fails_its_pod() {
    let mut it = inits("OnFailure", json!([c("i"), c("j")]));
    it.run();
    it.exit("i", 2);
    assert_eq!(it.run(), ["start i 1"]);
    assert_eq!(it.shows(), "Pending; i: running x1; j: PodInitializing; c: PodInitializing");

    let mut it = inits("Never", json!([always("s"), c("i"), c("j")]));
    it.run();
    it.exit("i", 2);
    assert_eq!(it.run(), ["Killing: Stopping container s", "signal 15 s", "stop"]);
    assert_eq!(it.shows(), "Failed; s: Completed 0; i: Error 2; j: PodInitializing; c: PodInitializing");
    assert_eq!(
        it.condition("Initialized"),
        "False/ContainersNotInitialized/containers with incomplete status: [s i j]"
    );
    assert_eq!(it.condition("Ready"), "False/PodFailed");
}

#[test]
fn sidecars_come_first_stay_and_do_not_count() {
    let probe = json!({"exec": {"command": ["x"]}, "periodSeconds": 1});
    let slow = with("s", json!({"restartPolicy": "Always", "startupProbe": probe}));
    let mut it = inits("Never", json!([slow, always("t"), c("i")]));
    it.probes.insert(("s".into(), Probe::Startup), Some(false));
    assert_eq!(it.run(), ["create", "start s 0", "Startup probe of s"]);
    assert_eq!(it.shows(), "Pending; s: running; t: PodInitializing; i: PodInitializing; c: PodInitializing");
    it.probes.clear();
    assert_eq!(it.pass(1), ["Startup probe of s", "start t 0", "start i 0"]);
    // One that ends early comes back, and holds nobody up.
    it.exit("s", 1);
    it.exit("i", 0);
    assert_eq!(it.run(), ["start s 1", "start c 0", "Startup probe of s"]);
    assert_eq!(it.shows(), "Running; s: running x1 ready; t: running ready; i: Completed 0 ready; c: running ready");
    it.exit("c", 0);
    let end = ["Killing: Stopping container s", "Killing: Stopping container t", "signal 15 t", "signal 15 s", "stop"];
    assert_eq!(it.run(), end, "the last one first");
    assert_eq!(it.shows(), "Succeeded; s: Completed 0 x1; t: Completed 0; i: Completed 0 ready; c: Completed 0");
    assert_eq!(it.condition("Initialized"), "True/PodCompleted");
}

#[test]
fn who_crashes_waits_longer_and_longer_and_a_long_life_is_forgiven() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    it.exit("c", 3);
    assert_eq!(it.run(), ["start c 1"], "the first time at once");
    let event = "BackOff: Back-off restarting failed container c in pod p_n(u)";
    for (attempt, wait, says) in [
        (2, 10, "10s"),
        (3, 20, "20s"),
        (4, 40, "40s"),
        (5, 80, "1m20s"),
        (6, 160, "2m40s"),
        (7, 300, "5m0s"),
        (8, 300, "5m0s"),
    ] {
        it.exit("c", 3);
        assert!(it.run().is_empty());
        assert_eq!(it.shows(), format!("Running; c: Error 3 x{}", attempt - 1).replace(" x0", ""));
        assert_eq!(it.pass(wait - 1), [event]);
        assert_eq!(it.shows(), format!("Running; c: CrashLoopBackOff x{}", attempt - 1));
        let waiting = it.told.container_statuses.clone().unwrap()[0].clone();
        let message = waiting.state.unwrap().waiting.unwrap().message.unwrap();
        assert_eq!(message, format!("back-off {says} restarting failed container=c pod=p_n(u)"));
        assert_eq!(waiting.last_state.unwrap().terminated.unwrap().exit_code, 3);
        let start = format!("start c {attempt}");
        assert_eq!(it.pass(1), [start]);
    }
    it.pass(601);
    it.exit("c", 3);
    assert_eq!(it.run(), ["start c 9"]);
    it.exit("c", 3);
    it.run();
    assert_eq!(it.pass(10), [event, "start c 10"]);
}

#[test]
fn who_waited_is_shown_waiting_until_it_runs_again() {
    for (crashes, shows) in [(1, "Running; c: Error 3"), (2, "Running; c: CrashLoopBackOff x1")] {
        let mut it = pod("Always", json!([c("c")]));
        it.run();
        for crash in 1..=crashes {
            it.exit("c", 3);
            if crash == crashes {
                it.slow.insert("c".into());
            }
            it.run();
        }
        it.pass(10);
        assert_eq!(it.memory.part("c").starting, Some(crashes));
        assert_eq!(it.shows(), shows);
    }
}

#[test]
fn what_keeps_a_container_from_starting_is_told_and_tried_again() {
    let pull = Refused { reason: "ErrImagePull".into(), message: "not found".into() };
    let mut it = pod("Always", json!([c("a"), c("b")]));
    it.broken.insert("a".into(), pull);
    assert_eq!(it.run(), ["create", "start a 0", "start b 0"], "the others do not wait");
    assert_eq!(it.shows(), "Pending; a: ErrImagePull; b: running ready");
    let backoff = ["BackOff: Back-off pulling image \"busybox\"", "Failed: Error: ImagePullBackOff"];
    assert_eq!(it.pass(9), backoff);
    assert_eq!(it.shows(), "Pending; a: ImagePullBackOff; b: running ready");
    let waiting = it.told.container_statuses.clone().unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.message.unwrap(), "Back-off pulling image \"busybox\": ErrImagePull: not found");
    assert_eq!(it.pass(1), ["start a 0"]);
    assert_eq!(it.shows(), "Pending; a: ErrImagePull; b: running ready");
    assert_eq!(it.pass(19), backoff);
    it.broken.clear();
    assert_eq!(it.pass(1), ["start a 0"]);
    assert_eq!(it.shows(), "Running; a: running ready; b: running ready");
}

#[test]
fn a_secret_that_is_missing_is_waited_for_and_heals() {
    let missing = Refused { reason: "CreateContainerConfigError".into(), message: "secret \"late\" not found".into() };
    let mut it = pod("Always", json!([c("c")]));
    it.broken.insert("c".into(), missing);
    assert_eq!(it.run(), ["create", "start c 0"]);
    assert_eq!(it.shows(), "Pending; c: CreateContainerConfigError");
    let tries = it.pass(60);
    assert_eq!(tries, ["start c 0"; 6], "after 2, 4, 8, 15, 15, 15 seconds");
    it.broken.clear();
    it.memory.changed(it.now);
    assert_eq!(it.run(), ["start c 0"]);
    assert_eq!(it.shows(), "Running; c: running ready");
}

#[test]
fn a_command_that_cannot_be_executed_counts_as_an_attempt() {
    let refused = Refused { reason: "RunContainerError".into(), message: "no such file".into() };
    let mut it = pod("Always", json!([c("c")]));
    it.broken.insert("c".into(), refused.clone());
    assert_eq!(it.run(), ["create", "start c 0", "start c 1"]);
    assert_eq!(it.shows(), "Running; c: RunContainerError x1");
    let status = it.told.container_statuses.clone().unwrap()[0].clone();
    let last = status.last_state.unwrap().terminated.unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (128, Some("StartError")));
    assert_eq!(last.started_at, Some(crate::pod::kubelet::status::time(Timestamp::UNIX_EPOCH)));
    assert_eq!(it.pass(10), ["BackOff: Back-off restarting failed container c in pod p_n(u)", "start c 2"]);

    let mut it = pod("Never", json!([c("c")]));
    it.broken.insert("c".into(), refused);
    assert_eq!(it.run(), ["create", "start c 0", "stop"]);
    assert_eq!(it.shows(), "Failed; c: StartError 128");
}

#[test]
fn ephemeral_containers_are_started_once_beside_what_runs() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    let spec = it.pod.spec.as_mut().unwrap();
    let debug = json!({"name": "debug", "image": "busybox", "targetContainerName": "c"});
    spec.ephemeral_containers = Some(vec![serde_json::from_value(debug).unwrap()]);
    assert_eq!(it.run(), ["start debug 0"]);
    it.exit("debug", 1);
    assert!(it.run().is_empty());
    assert_eq!(it.shows(), "Running; c: running ready; debug: Error 1");
    let refused = Refused { reason: "RunContainerError".into(), message: "exec: \"x\"".into() };
    it.broken.insert("absent".into(), refused);
    let absent = json!({"name": "absent", "image": "busybox", "command": ["x"]});
    let spec = it.pod.spec.as_mut().unwrap();
    spec.ephemeral_containers.as_mut().unwrap().push(serde_json::from_value(absent).unwrap());
    assert_eq!(it.run(), ["start absent 0"]);
    assert!(it.pass(600).is_empty());
    assert_eq!(it.shows(), "Running; c: running ready; absent: RunContainerError; debug: Error 1");
    assert!(it.told.ephemeral_container_statuses.iter().flatten().all(|it| it.started.is_none()));
}

#[test]
fn nothing_is_started_before_its_pod_is_whole() {
    let mut it = pod("Always", json!([c("c")]));
    let config = PodConfig::default();
    it.state =
        Some(PodState { config, alive: true, frozen: false, address: None, created: it.now, containers: Vec::new() });
    it.memory.admitted = true;
    it.memory.volumes.ended(false, it.now);
    it.memory.create.busy = true;
    assert!(it.run().is_empty(), "its address is on its way");
    it.memory.create.ended(true, it.now);
    assert!(it.run().is_empty(), "it has none yet");
    assert_eq!(it.pass(1), ["create", "start c 0"]);
}

#[test]
fn volumes_that_cannot_be_had_are_tried_again_less_and_less_often() {
    let mut it = pod("Always", json!([c("c")]));
    let mut tries = Vec::new();
    let began = it.now;
    for _ in 0..5 {
        let seen = Seen {
            pod: &it.pod,
            gone: false,
            state: None,
            node: &it.node,
            others: admission::Promised::default(),
            refused: None,
            order: None,
            told: &it.told,
            now: it.now,
        };
        let plan = plan(&seen, it.memory.clone());
        assert_eq!(plan.actions, [Action::Volumes]);
        it.memory = plan.memory;
        let meanwhile = crate::pod::kubelet::plan::plan(&seen, it.memory.clone());
        assert_eq!((meanwhile.actions, meanwhile.again), (vec![], None));
        tries.push((it.now - began).get_milliseconds() + (it.now - began).get_seconds() * 1000);
        it.memory.volumes.ended(true, it.now);
        it.now = it.memory.volumes.again.unwrap();
    }
    assert_eq!(tries, [0, 500, 1500, 3500, 7500]);
    assert!(it.memory.parts.values().all(|it| it.starting.is_none()));
}
