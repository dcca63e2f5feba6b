//! From the first look to the last word.

use super::*;

#[test]
fn a_plain_pod_is_started_and_shown_at_once() {
    let mut it = pod("Always", json!([with("c", json!({"resources": {"requests": {"cpu": "1"}}})), c("a")]));
    assert_eq!(it.run(), ["create", "start c 0", "start a 0"]);
    assert_eq!(it.shows(), "Running; a: running ready; c: running ready");
    let status = serde_json::to_value(&it.told).unwrap();
    let condition = |type_: &str| {
        json!({
            "type": type_, "status": "True", "lastTransitionTime": "2026-11-21T12:00:00Z", "observedGeneration": 1,
        })
    };
    assert_eq!(
        status["conditions"],
        json!(["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition))
    );
    assert_eq!(
        status["containerStatuses"][1],
        json!({
            "name": "c", "ready": true, "started": true, "restartCount": 0, "image": "image", "imageID": "sha256:1",
            "containerID": "insula://c-0", "state": {"running": {"startedAt": "2026-11-21T12:00:00Z"}}, "lastState": {},
            "resources": {"requests": {"cpu": "1"}}, "allocatedResources": {"cpu": "1"}, "user": {},
        })
    );
    assert_eq!(status["hostIP"], "10.0.0.1");
    assert_eq!(status["podIPs"], json!([{"ip": "10.1.0.2"}]));
    assert_eq!(status["startTime"], "2026-11-21T12:00:00Z");
    assert_eq!(it.again, None, "nothing is looked at without a reason");
}

#[test]
fn what_becomes_of_a_pod_whose_containers_end() {
    let table = [
        ("Never", [0, 0], vec!["stop"], "Succeeded; a: Completed 0; b: Completed 0", "False/PodCompleted"),
        ("Never", [0, 3], vec!["stop"], "Failed; a: Completed 0; b: Error 3", "False/PodFailed"),
        ("OnFailure", [0, 0], vec!["stop"], "Succeeded; a: Completed 0; b: Completed 0", "False/PodCompleted"),
        (
            "OnFailure",
            [0, 3],
            vec!["start b 1"],
            "Running; a: Completed 0; b: running x1 ready",
            "False/ContainersNotReady/containers with unready status: [a]",
        ),
        ("Always", [0, 3], vec!["start a 1", "start b 1"], "Running; a: running x1 ready; b: running x1 ready", "True"),
    ];
    for (policy, codes, does, shows, ready) in table {
        let mut it = pod(policy, json!([c("a"), c("b")]));
        it.run();
        it.exit("a", codes[0]);
        it.exit("b", codes[1]);
        assert_eq!(it.run(), does, "{policy} {codes:?}");
        assert_eq!(it.shows(), shows, "{policy} {codes:?}");
        assert_eq!(it.condition("Ready"), ready, "{policy} {codes:?}");
        if does == ["stop"] {
            assert_eq!(it.condition("PodReadyToStartContainers"), "False");
            it.restart_node();
            assert!(it.run().is_empty(), "what is over stays over");
        }
    }
}

#[test]
fn a_container_may_have_rules_of_its_own_for_starting_again() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    for (code, does) in [(42, ["start a 1"]), (1, ["stop"])] {
        let mut it = pod("Never", json!([with("a", json!({"restartPolicy": "Never", "restartPolicyRules": rules}))]));
        it.run();
        it.exit("a", code);
        assert_eq!(it.run(), does, "{code}");
    }
}

#[test]
fn the_end_of_a_container_says_why() {
    let mut it =
        pod("Never", json!([with("a", json!({"terminationMessagePolicy": "FallbackToLogsOnError"})), c("b"), c("d")]));
    it.run();
    for name in ["a", "b", "d"] {
        it.exit(name, 137);
    }
    it.memory.part("a").tails.insert(0, "the log".into());
    let all = &mut it.state.as_mut().unwrap().containers;
    all[1].exit.as_mut().unwrap().out_of_memory = true;
    all[1].exit.as_mut().unwrap().message = "its file".into();
    all[2].exit.as_mut().unwrap().unseen = true;
    it.run();
    assert_eq!(it.shows(), "Failed; a: Error 137; b: OOMKilled 137; d: ContainerStatusUnknown 137");
    let all = it.told.container_statuses.unwrap();
    let messages = all.iter().map(|it| it.state.clone().unwrap().terminated.unwrap().message.unwrap());
    let lost = "The container could not be located when the pod was terminated";
    assert_eq!(messages.collect::<Vec<_>>(), ["the log", "its file", lost]);
}

#[test]
fn a_pod_that_was_active_for_too_long_fails() {
    let mut it =
        Story::new(json!({"activeDeadlineSeconds": 5, "terminationGracePeriodSeconds": 3, "containers": [c("c")]}));
    it.deaf.insert("c".into());
    it.run();
    assert!(it.pass(4).is_empty());
    let message = "Pod was active on the node longer than the specified deadline";
    let deadline = format!("DeadlineExceeded: {message}");
    assert_eq!(it.pass(1), [deadline.as_str(), "Killing: Stopping container c", "signal 15 c"]);
    assert_eq!(it.shows(), "Running; c: running ready", "it is not over before its containers are");
    assert_eq!(it.pass(3), ["kill c", "stop"]);
    assert_eq!(it.shows(), "Failed/DeadlineExceeded; c: Error 137");
    assert_eq!(it.told.message.as_deref(), Some(message));
    assert_eq!(it.condition("Ready"), "False/PodFailed");
}

#[test]
fn a_pod_that_is_not_taken_is_failed_at_once() {
    let many: Vec<Value> = (0..501).map(|at| c(&format!("c{at}"))).collect();
    let forbidden = Refused { reason: "PrivilegedForbidden".into(), message: "no".into() };
    let table = [
        (json!({"containers": [c("c")], "nodeSelector": {"a": "b"}}), None, "NodeAffinity", "NodeAffinity"),
        (json!({"containers": many}), None, "TooManyContainers", "TooManyContainers"),
        (json!({"containers": [c("c")]}), Some(forbidden), "PrivilegedForbidden", "Forbidden"),
    ];
    for (spec, refused, reason, event) in table {
        let mut it = Story::new(spec);
        it.refused = refused;
        let said = it.run();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("{event}: ")), "{said:?}");
        assert_eq!(it.shows(), format!("Failed/{reason}; "));
        assert!(it.told.message.as_ref().unwrap().starts_with("Pod was rejected: "));
        it.restart_node();
        assert!(it.run().is_empty());
        it.delete(30);
        assert_eq!(it.run(), ["remove", "delete"]);
    }
}

#[test]
fn an_eviction_is_told_and_marked() {
    let mut it = pod("Always", json!([c("c")]));
    it.run();
    let message = "The node was low on resource: memory. ".to_owned();
    let order = Ending::Failed { reason: "Evicted".into(), message: message.clone(), grace: Some(1), disruption: true };
    it.order = Some(order);
    it.deaf.insert("c".into());
    let event = format!("Evicted: {message}");
    assert_eq!(it.run(), [event.as_str(), "Killing: Stopping container c", "signal 15 c"]);
    assert_eq!(it.pass(2), ["kill c", "stop"]);
    assert_eq!(it.shows(), "Failed/Evicted; c: Error 137");
    assert_eq!(it.condition("DisruptionTarget"), format!("True/TerminationByKubelet/{message}"));
}

#[test]
fn readiness_gates_are_others_words() {
    let mut it = Story::new(json!({"containers": [c("c")], "readinessGates": [{"conditionType": "x/y"}]}));
    it.run();
    let says = |why: &str| format!("False/ReadinessGatesNotReady/{why}");
    assert_eq!(it.condition("Ready"), says("corresponding condition of pod readiness gate \"x/y\" does not exist."));
    assert_eq!(it.condition("ContainersReady"), "True");
    for (status, ready) in [
        ("False", says("the status of pod readiness gate \"x/y\" is not \"True\", but False")),
        ("True", "True".to_owned()),
    ] {
        let gate = json!({"type": "x/y", "status": status});
        it.pod.status.as_mut().unwrap().conditions = Some(vec![serde_json::from_value(gate).unwrap()]);
        it.run();
        assert_eq!(it.condition("Ready"), ready);
    }
}

#[test]
fn after_the_machine_was_restarted_what_should_run_runs_again_from_the_beginning() {
    let spec = |policy: &str| {
        let (init, all) = (json!([c("i")]), json!([c("c")]));
        Story::new(json!({"restartPolicy": policy, "initContainers": init, "containers": all}))
    };
    for (policy, does) in [("Always", vec!["create", "start i 1"]), ("Never", vec![])] {
        let mut it = spec(policy);
        it.run();
        it.exit("i", 0);
        assert_eq!(it.run(), ["start c 0"]);
        it.exit("c", 137);
        it.state.as_mut().unwrap().alive = false;
        it.state.as_mut().unwrap().containers[1].exit.as_mut().unwrap().unseen = true;
        it.now += SignedDuration::from_secs(60);
        it.restart_node();
        let mut wanted = does.clone();
        if policy == "Always" {
            wanted.insert(0, "SandboxChanged: Pod sandbox changed, it will be killed and re-created.");
        }
        assert_eq!(it.run(), wanted, "{policy}");
        if policy == "Always" {
            it.exit("i", 0);
            assert_eq!(it.run(), ["start c 1"]);
            assert_eq!(it.shows(), "Running; i: Completed 0 x1 ready; c: running x1 ready");
        } else {
            assert_eq!(it.shows(), "Failed; i: Completed 0 ready; c: ContainerStatusUnknown 137");
        }
    }
}

#[test]
fn what_lives_is_adopted_as_it_is() {
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 10});
    let mut it = pod("Always", json!([with("c", json!({"readinessProbe": probe, "startupProbe": probe}))]));
    it.run();
    assert_eq!(it.shows(), "Running; c: running ready");
    let before = it.told.clone();
    it.now += SignedDuration::from_secs(5);
    it.probes.insert(("c".into(), Probe::Readiness), Some(false));
    it.restart_node();
    assert_eq!(it.run(), ["Readiness probe of c"]);
    assert_eq!(it.told, before, "one word against it is not enough");
}
