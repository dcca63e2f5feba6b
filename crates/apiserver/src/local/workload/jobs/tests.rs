use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PropagationPolicy};
use serde_json::{Value, json};
use std::sync::Arc;

use super::plan::{Failures, Managed, State};
use crate::local::tests::{House, all, create, gone, house, report, said, until};

const NOW: &str = "2026-01-01T01:00:00Z";
const TRACKED: &str = "batch.kubernetes.io/job-tracking";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut all = json!({"parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
        "podReplacementPolicy": "TerminatingOrFailed",
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "j", "namespace": "n", "uid": "job"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

/// `what` is the phase, the index, and marks: `-` without its finalizer, `x` deleted, `r` ready, `!N` with an exit code.
fn pod(uid: &str, what: &str) -> Arc<Pod> {
    let mut metadata = json!({"name": uid, "namespace": "n", "uid": uid, "annotations": {},
        "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": [TRACKED]});
    let mut status = json!({"conditions": []});
    for word in what.split(' ') {
        match word.split_at(1) {
            ("-", _) => drop(metadata.as_object_mut().unwrap().remove("finalizers")),
            ("x", _) => metadata["deletionTimestamp"] = json!("2026-01-01T00:50:00Z"),
            ("r", _) => status["conditions"] = json!([{"type": "Ready", "status": "True"}]),
            ("f", failures) => metadata["annotations"]["batch.kubernetes.io/job-index-failure-count"] = json!(failures),
            ("!", code) => {
                let ended = json!({"exitCode": code.parse::<i32>().unwrap(), "finishedAt": "2026-01-01T00:59:55Z"});
                let one = json!({"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"terminated": ended}});
                status["containerStatuses"] = json!([one]);
            }
            (digit, _) if digit.parse::<u8>().is_ok() => {
                metadata["annotations"]["batch.kubernetes.io/job-completion-index"] = json!(word);
            }
            _ => status["phase"] = json!(word),
        }
    }
    let spec = json!({"nodeName": "m", "containers": [{"name": "c"}]});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
}

fn pods(of: &[&str]) -> Vec<Arc<Pod>> {
    of.iter().enumerate().map(|(at, what)| pod(&format!("p{at}"), what)).collect()
}

fn names(of: &[Arc<Pod>]) -> String {
    of.iter().map(|it| it.name_any()).collect::<Vec<_>>().join(" ")
}

#[test]
fn pods_are_made_and_deleted_as_the_spec_and_the_ends_of_others_ask() {
    let indexed = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let ignore = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let since = |at: &str| json!({"startTime": at});
    for (why, spec, status, of, made, removed, again) in [
        ("all at once", json!({"completions": 3, "parallelism": 2}), json!({}), &[][..], 2, "", ""),
        (
            "not more than are missing",
            json!({"completions": 3, "parallelism": 3}),
            json!({"succeeded": 1}),
            &["Running"],
            1,
            "",
            "",
        ),
        (
            "new successes count",
            json!({"completions": 2, "parallelism": 2}),
            json!({}),
            &["Succeeded", "Running"],
            0,
            "",
            "",
        ),
        ("a counted one does not", json!({"completions": 2}), json!({"succeeded": 1}), &["Succeeded -"], 1, "", ""),
        (
            "too many",
            json!({"completions": 5, "parallelism": 1}),
            json!({}),
            &["Running r", "Pending", "Running"],
            0,
            "p1 p2",
            "",
        ),
        ("a queue is filled", json!({"parallelism": 2}), json!({}), &["Running"], 1, "", ""),
        ("and runs empty after a success", json!({"parallelism": 2}), json!({}), &["Running", "Succeeded"], 0, "", ""),
        ("suspended", json!({"suspend": true}), json!({}), &["Running"], 0, "p0", ""),
        (
            "ten seconds after a failure",
            json!({"completions": 1}),
            json!({}),
            &["Failed !1"],
            0,
            "",
            "2026-01-01T01:00:05Z",
        ),
        (
            "twenty after two",
            json!({"completions": 1}),
            json!({}),
            &["Failed !1", "Failed !1"],
            0,
            "",
            "2026-01-01T01:00:15Z",
        ),
        ("none after a success", json!({"completions": 2}), json!({}), &["Failed", "Succeeded !0"], 1, "", ""),
        ("a deleted one is replaced", json!({"completions": 1}), json!({"failed": 1}), &["Running x -"], 1, "", ""),
        (
            "or waited for",
            json!({"completions": 1, "podReplacementPolicy": "Failed"}),
            json!({}),
            &["Running x"],
            0,
            "",
            "",
        ),
        (
            "until the deadline",
            json!({"completions": 1, "activeDeadlineSeconds": 600}),
            since("2026-01-01T00:55:00Z"),
            &["Running"],
            0,
            "",
            "2026-01-01T01:05:00Z",
        ),
        ("first indexes first", indexed(json!({})), json!({"completedIndexes": "0"}), &["Running 2"], 2, "", ""),
        ("one for an index", indexed(json!({})), json!({}), &["Running 1", "Running 1 r", "Pending 7"], 0, "p2 p0", ""),
        (
            "indexes wait for themselves",
            indexed(json!({"backoffLimitPerIndex": 2})),
            json!({}),
            &["Failed 0 f0 !1"],
            2,
            "",
            "2026-01-01T01:00:05Z",
        ),
        (
            "policies come with it",
            json!({"completions": 1, "podFailurePolicy": ignore}),
            json!({}),
            &["Running x"],
            0,
            "",
            "",
        ),
    ] {
        let (job, of) = (job(spec, status), pods(of));
        let state = State::of(&job, job.spec.as_ref().unwrap(), &of, Failures::default(), now());
        let managing = state.manage();
        assert_eq!(
            (managing.create.len(), names(&managing.remove).as_str(), names(&managing.end).as_str()),
            (made, removed, ""),
            "{why}"
        );
        assert_eq!(managing.again.map_or(String::new(), |it| it.to_string()), again, "{why}");
    }
}

/// The status before and after the finalizers went, and the reason of the last condition.
fn counted(spec: Value, status: Value, of: &[&str]) -> (JobStatus, JobStatus, String, Vec<Arc<Pod>>) {
    let (job, of) = (job(spec, status), pods(of));
    let state = State::of(&job, job.spec.as_ref().unwrap(), &of, Failures::default(), now());
    let managing = state.manage();
    let tracking = state.track(&Managed { deleted: managing.end, ..Managed::default() });
    let (before, release) = (tracking.status.clone(), tracking.release.clone());
    let (after, _) = tracking.settle(&job, &release);
    let conditions = after.conditions.iter().flatten().map(|it| format!("{} {}", it.type_, it.reason.clone().unwrap()));
    let conditions = conditions.collect::<Vec<_>>().join(", ");
    (before, after, conditions, release)
}

#[test]
fn each_end_is_counted_once_and_in_the_end_the_job_says_why() {
    let policy = json!({"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
    ]});
    let indexed = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let uncounted = |succeeded: &[&str]| json!({"uncountedTerminatedPods": {"succeeded": succeeded}});
    let complete = "SuccessCriteriaMet CompletionsReached, Complete CompletionsReached";
    let failed = |reason: &str| format!("FailureTarget {reason}, Failed {reason}");
    let succeed = json!({"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]});
    for (why, spec, status, of, succeeded_failed, released, conditions) in [
        ("success", json!({"completions": 1}), json!({}), &["Succeeded"][..], (1, 0), "p0", complete.to_owned()),
        (
            "written down, not yet counted",
            json!({"completions": 1}),
            uncounted(&["p0"]),
            &["Succeeded"],
            (1, 0),
            "p0",
            complete.to_owned(),
        ),
        (
            "written down, released, not counted",
            json!({"completions": 1}),
            uncounted(&["p0"]),
            &["Succeeded -"],
            (1, 0),
            "",
            complete.to_owned(),
        ),
        (
            "counted, and gone",
            json!({"completions": 2}),
            json!({"succeeded": 1}),
            &["Succeeded -"],
            (1, 0),
            "",
            String::new(),
        ),
        (
            "others go on",
            json!({"completions": 2, "parallelism": 2}),
            json!({}),
            &["Succeeded", "Running"],
            (1, 0),
            "p0",
            String::new(),
        ),
        ("a failure", json!({"completions": 1}), json!({}), &["Failed"], (0, 1), "p0", String::new()),
        (
            "one too many",
            json!({"completions": 2, "backoffLimit": 0, "parallelism": 2}),
            json!({}),
            &["Failed", "Succeeded"],
            (1, 1),
            "p0 p1",
            failed("BackoffLimitExceeded"),
        ),
        (
            "over time, not while pods go on",
            json!({"completions": 1, "activeDeadlineSeconds": 60}),
            json!({"startTime": "2026-01-01T00:59:00Z"}),
            &["Running"],
            (0, 1),
            "p0",
            "FailureTarget DeadlineExceeded".to_owned(),
        ),
        (
            "over time",
            json!({"completions": 1, "activeDeadlineSeconds": 60}),
            json!({"startTime": "2026-01-01T00:59:00Z"}),
            &[],
            (0, 0),
            "",
            failed("DeadlineExceeded"),
        ),
        (
            "ignored by policy",
            json!({"completions": 1, "podFailurePolicy": policy}),
            json!({}),
            &["Failed !3"],
            (0, 0),
            "p0",
            String::new(),
        ),
        (
            "counted by policy",
            json!({"completions": 1, "podFailurePolicy": policy}),
            json!({}),
            &["Failed !1"],
            (0, 1),
            "p0",
            String::new(),
        ),
        (
            "the end by policy",
            json!({"completions": 1, "podFailurePolicy": policy}),
            json!({}),
            &["Failed !42"],
            (0, 1),
            "p0",
            failed("PodFailurePolicy"),
        ),
        (
            "all indexes",
            indexed(json!({})),
            json!({"completedIndexes": "0,1", "succeeded": 2}),
            &["Succeeded 2"],
            (3, 0),
            "p0",
            complete.to_owned(),
        ),
        (
            "an index counts once",
            indexed(json!({})),
            json!({}),
            &["Succeeded 1", "Succeeded 1", "Succeeded 9"],
            (1, 0),
            "p0 p1 p2",
            String::new(),
        ),
        (
            "indexes fail alone",
            indexed(json!({"backoffLimitPerIndex": 1})),
            json!({"completedIndexes": "1,2", "succeeded": 2}),
            &["Failed 0 f1"],
            (2, 1),
            "p0",
            failed("FailedIndexes"),
        ),
        (
            "too many indexes",
            indexed(json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})),
            json!({}),
            &["Failed 0 f0"],
            (0, 1),
            "p0",
            failed("MaxFailedIndexesExceeded"),
        ),
        (
            "a failed one stays for its heir",
            indexed(json!({"backoffLimitPerIndex": 1})),
            json!({}),
            &["Failed 0 f0"],
            (0, 0),
            "",
            String::new(),
        ),
        (
            "enough by policy, others are not failures",
            indexed(json!({"successPolicy": succeed})),
            json!({}),
            &["Succeeded 2", "Running 0"],
            (1, 0),
            "p1 p0",
            "SuccessCriteriaMet SuccessPolicy".to_owned(),
        ),
        ("suspended", json!({"suspend": true}), json!({}), &[], (0, 0), "", "Suspended JobSuspended".to_owned()),
        (
            "resumed",
            json!({}),
            json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
            &["Running"],
            (0, 0),
            "",
            "Suspended JobResumed".to_owned(),
        ),
    ] {
        let (before, after, said, release) = counted(spec, status, of);
        let number = |it: Option<i32>| it.unwrap_or_default();
        assert_eq!((number(after.succeeded), number(after.failed)), succeeded_failed, "{why}");
        assert_eq!((names(&release).as_str(), said), (released, conditions), "{why}");
        // Whoever is released is written down before.
        let is_indexed = before.completed_indexes.is_some();
        let written = before.uncounted_terminated_pods.unwrap_or_default();
        let written = written.succeeded.unwrap_or_default().len() + written.failed.unwrap_or_default().len();
        assert!(is_indexed || written <= release.len(), "{why}");
        assert_eq!(after.uncounted_terminated_pods, Some(Default::default()), "{why}");
    }
}

fn spec(more: Value) -> Value {
    let mut spec =
        json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": "j"}, "spec": spec})
}

fn doors(house: &House) -> (Api<Job>, Api<Pod>) {
    (house.of("default"), house.of("default"))
}

fn unfinished(pods: &[Pod]) -> Vec<String> {
    let is_over = |it: &&Pod| it.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Pending");
    pods.iter().filter(is_over).map(|it| it.name_any()).collect()
}

#[tokio::test]
async fn a_job_makes_pods_until_enough_have_succeeded() {
    let house = house().await;
    let (jobs, pods) = doors(&house);
    create(&jobs, spec(json!({"completions": 3, "parallelism": 2}))).await;
    for made in [2, 3, 3] {
        let now = all(&pods, |all| all.len() == made && !unfinished(all).is_empty()).await;
        assert_eq!(now[0].owner_references()[0].kind, "Job");
        report(&pods, &unfinished(&now)[0], json!({"phase": "Succeeded"})).await;
    }
    until(&jobs, "j", |it| super::finished(it.unwrap()).is_some()).await;
    let status = jobs.get("j").await.unwrap().status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active, status.ready), (Some(3), None, None, Some(0)));
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    let ended = all(&pods, |all| all.iter().all(|it| it.finalizers().is_empty())).await;
    assert_eq!(ended.len(), 3);
    let said = said(&house, "default", "j", "Completed").await;
    let reasons: Vec<&str> = said.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(reasons, ["SuccessfulCreate", "SuccessfulCreate", "SuccessfulCreate", "Completed"]);
    assert!(said[0].1.starts_with("Created pod: j-") && said[3].1 == "Job completed");
}

#[tokio::test(start_paused = true)]
async fn a_failed_pod_is_replaced_later_each_time_until_the_limit() {
    let house = house().await;
    let (jobs, pods) = doors(&house);
    create(&jobs, spec(json!({"backoffLimit": 1, "ttlSecondsAfterFinished": 30}))).await;
    let first = all(&pods, |all| all.len() == 1).await;
    report(&pods, &first[0].name_any(), json!({"phase": "Failed"})).await;
    let began = house.clock.now();
    let second = all(&pods, |all| all.len() == 2).await;
    assert!(house.clock.now().duration_since(began).as_secs() >= 9, "it was made at once");
    report(&pods, &unfinished(&second)[0], json!({"phase": "Failed"})).await;
    until(&jobs, "j", |it| it.is_some_and(|it| super::finished(it).is_some())).await;
    let job = jobs.get("j").await.unwrap();
    let end = super::finished(&job).unwrap();
    let reason = end.reason.as_deref();
    assert_eq!((end.type_.as_str(), reason), ("Failed", Some("BackoffLimitExceeded")));
    assert_eq!(job.status.unwrap().failed, Some(2));
    let said = said(&house, "default", "j", "BackoffLimitExceeded").await;
    assert_eq!(said.last().unwrap().1, "Job has reached the specified backoff limit");
    // And after its time it goes, with its pods.
    gone(&jobs, "j").await;
    all(&pods, |all| all.is_empty()).await;
}

#[tokio::test]
async fn indexes_are_told_and_a_suspended_job_has_no_pods() {
    let house = house().await;
    let (jobs, pods) = doors(&house);
    create(&jobs, spec(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "suspend": true})))
        .await;
    until(&jobs, "j", |it| it.unwrap().status.as_ref().is_some_and(|it| it.conditions.is_some())).await;
    assert!(pods.list(&Default::default()).await.unwrap().items.is_empty());
    let suspend = async |it: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": it}}));
        jobs.patch("j", &PatchParams::default(), &patch).await.unwrap();
    };
    suspend(false).await;
    let made = all(&pods, |all| all.len() == 2).await;
    let mut hosts: Vec<_> = made.iter().map(|it| it.spec.as_ref().unwrap().hostname.clone().unwrap()).collect();
    hosts.sort();
    assert_eq!(hosts, ["j-0", "j-1"]);
    let first = made.iter().find(|it| it.name_any().starts_with("j-0-")).unwrap();
    assert_eq!(first.labels()["batch.kubernetes.io/job-completion-index"], "0");
    assert_eq!(first.spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    report(&pods, &first.name_any(), json!({"phase": "Succeeded"})).await;
    let indexes = |it: Option<&Job>| it.unwrap().status.as_ref().and_then(|it| it.completed_indexes.clone());
    until(&jobs, "j", |it| indexes(it).as_deref() == Some("0")).await;
    suspend(true).await;
    all(&pods, |all| all.len() == 1).await;
    let said = said(&house, "default", "j", "Resumed").await;
    assert!(said.iter().any(|it| it.0 == "Suspended"));
}

#[tokio::test]
async fn pods_without_a_job_are_let_go() {
    let house = house().await;
    let (jobs, pods) = doors(&house);
    create(&jobs, spec(json!({"completions": 1}))).await;
    all(&pods, |all| all.len() == 1).await;
    let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    jobs.delete("j", &orphan).await.unwrap();
    gone(&jobs, "j").await;
    let left = all(&pods, |all| all.iter().all(|it| it.finalizers().is_empty())).await;
    assert!(left.len() == 1 && left[0].owner_references().is_empty());
}
