use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::plan::{made, plan};
use crate::local::events::Remark;
use crate::local::tests::{all, create, house, report, said, until};

fn cron_job(spec: Value, status: Value) -> CronJob {
    let mut all = json!({"schedule": "*/10 * * * *", "concurrencyPolicy": "Allow",
        "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:05Z"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

fn job(name: &str, ended: &str, started: &str) -> Arc<Job> {
    let mut status = json!({"startTime": started});
    if !ended.is_empty() {
        status["conditions"] = json!([{"type": ended, "status": "True"}]);
        status["completionTime"] = json!("2026-01-01T00:30:00Z");
    }
    let metadata = json!({"name": name, "namespace": "n", "uid": format!("uid-{name}")});
    Arc::new(serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap())
}

#[test]
fn a_job_is_due_at_the_last_time_that_has_come_unless_it_is_too_late() {
    let last = |at: &str| json!({"lastScheduleTime": at});
    let busy = || json!({"active": [{"name": "old", "uid": "uid-old"}]});
    let scheduled = |spec: Value| spec;
    for (why, spec, status, now, start, again, says) in [
        ("not yet", json!({}), json!({}), "2026-01-01T00:09:59Z", "", "00:10:00", ""),
        ("on time", json!({}), json!({}), "2026-01-01T00:10:00Z", "00:10:00", "00:20:00", ""),
        ("late", json!({}), json!({}), "2026-01-01T00:19:00Z", "00:10:00", "00:20:00", ""),
        ("only the last of those missed", json!({}), json!({}), "2026-01-01T05:01:00Z", "05:00:00", "05:10:00", ""),
        ("many missed", json!({}), json!({}), "2026-01-02T00:01:00Z", "00:00:00", "00:10:00", "TooManyMissedTimes"),
        ("done already", json!({}), last("2026-01-01T00:10:00Z"), "2026-01-01T00:11:00Z", "", "00:20:00", ""),
        ("the clock was put back", json!({}), last("2026-01-01T02:00:00Z"), "2026-01-01T01:00:00Z", "", "02:10:00", ""),
        ("too late", json!({"startingDeadlineSeconds": 60}), json!({}), "2026-01-01T00:12:00Z", "", "00:20:00", ""),
        (
            "just in time",
            json!({"startingDeadlineSeconds": 60}),
            json!({}),
            "2026-01-01T00:10:59Z",
            "00:10:00",
            "00:20:00",
            "",
        ),
        ("suspended", json!({"suspend": true}), json!({}), "2026-01-01T00:12:00Z", "", "", ""),
        ("no such zone", json!({"timeZone": "No/Where"}), json!({}), "2026-01-01T00:12:00Z", "", "", "UnknownTimeZone"),
        (
            "never",
            scheduled(json!({"schedule": "0 0 31 2 *"})),
            json!({}),
            "2026-01-01T00:12:00Z",
            "",
            "",
            "InvalidSchedule",
        ),
        (
            "one at a time",
            json!({"concurrencyPolicy": "Forbid"}),
            busy(),
            "2026-01-01T00:12:00Z",
            "",
            "00:20:00",
            "JobAlreadyActive",
        ),
        ("side by side", json!({}), busy(), "2026-01-01T00:12:00Z", "00:10:00", "00:20:00", ""),
    ] {
        let it = cron_job(spec, status);
        let running = [job("old", "", "2026-01-01T00:00:00Z")];
        let jobs = if it.status.as_ref().unwrap().active.is_some() { &running[..] } else { &[] };
        let plan = plan(&it, jobs, |_| false, now.parse().unwrap());
        let clock = |it: Option<Timestamp>| it.map_or(String::new(), |it| it.strftime("%H:%M:%S").to_string());
        let reasons: Vec<String> = plan.events.iter().map(|it| format!("{it:?}")).collect();
        assert_eq!(clock(plan.start.as_ref().map(|it| it.scheduled)), start, "{why}");
        assert_eq!(clock(plan.again), again, "{why}");
        assert_eq!(says.is_empty(), reasons.is_empty(), "{why}: {reasons:?}");
        assert!(says.is_empty() || reasons[0].contains(says), "{why}: {reasons:?}");
        assert!(plan.delete.is_empty(), "{why}");
    }
}

#[test]
fn what_is_made_has_the_name_and_the_time_of_its_schedule() {
    let it = cron_job(json!({"timeZone": "UTC"}), json!({}));
    let plan = plan(&it, &[], |_| false, "2026-01-01T00:10:07Z".parse().unwrap());
    let job = made(&it, &plan.start.unwrap());
    assert_eq!(job.name_any(), "c-29453770");
    assert_eq!(job.annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"], "2026-01-01T00:10:00Z");
    assert_eq!((job.labels()["a"].as_str(), job.owner_references()[0].uid.as_str()), ("b", "u"));
}

#[test]
fn the_ends_of_jobs_are_noted_and_old_ones_go() {
    let active =
        json!([{"name": "a", "uid": "uid-a"}, {"name": "lost", "uid": "uid-lost"}, {"name": "new", "uid": "uid-new"}]);
    let spec = json!({"suspend": true, "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    let it = cron_job(spec, json!({"active": active}));
    let jobs = [
        job("a", "Complete", "2026-01-01T00:20:00Z"),
        job("b", "Complete", "2026-01-01T00:10:00Z"),
        job("f", "Failed", "2026-01-01T00:10:00Z"),
        job("by-hand", "", "2026-01-01T00:10:00Z"),
    ];
    let plan = plan(&it, &jobs, |name| name == "new", "2026-01-01T00:40:00Z".parse().unwrap());
    assert_eq!(plan.delete.iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["b", "f"]);
    let left: Vec<String> = plan.status.active.unwrap().into_iter().filter_map(|it| it.name).collect();
    assert_eq!(left, ["new"]);
    assert_eq!(plan.status.last_successful_time.unwrap().0, "2026-01-01T00:30:00Z".parse().unwrap());
    assert_eq!(
        plan.events,
        [
            Remark::normal("SawCompletedJob", "Saw completed job: a, condition: Complete"),
            Remark::warning("UnexpectedJob", "Saw a job that the controller did not create or forgot: by-hand"),
            Remark::normal("MissingJob", "Active job went missing: lost"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn jobs_are_made_when_their_time_has_come_and_replace_each_other() {
    let house = house().await;
    let (cron_jobs, jobs): (Api<CronJob>, Api<Job>) = (house.of("default"), house.of("default"));
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
    let spec = json!({"schedule": "* * * * *", "concurrencyPolicy": "Replace", "jobTemplate": {"spec": {"template": {"spec": pod}}}});
    create(&cron_jobs, json!({"metadata": {"name": "c"}, "spec": spec})).await;
    // The house began at midnight.
    let first = all(&jobs, |all| all.len() == 1).await;
    assert_eq!(first[0].name_any(), "c-29453761");
    assert!(house.clock.now() >= "2026-01-01T00:01:00Z".parse().unwrap());
    all(&jobs, |all| all.len() == 1 && all[0].name_any() == "c-29453762").await;
    let active = |it: Option<&CronJob>| it.unwrap().status.clone().unwrap_or_default().active.unwrap_or_default();
    until(&cron_jobs, "c", |it| active(it).iter().any(|it| it.name.as_deref() == Some("c-29453762"))).await;
    let suspend = Patch::Merge(json!({"spec": {"suspend": true}}));
    cron_jobs.patch("c", &PatchParams::default(), &suspend).await.unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = house.of("default");
    let made = all(&pods, |all| all.len() == 1 && all[0].name_any().starts_with("c-29453762")).await;
    report(&pods, &made[0].name_any(), json!({"phase": "Succeeded"})).await;
    until(&cron_jobs, "c", |it| active(it).is_empty()).await;
    let status = cron_jobs.get("c").await.unwrap().status.unwrap();
    assert!(status.last_successful_time.is_some());
    let said = said(&house, "default", "c", "SawCompletedJob").await;
    let reasons: Vec<&str> = said.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(reasons, ["SuccessfulCreate", "SuccessfulDelete", "SuccessfulCreate", "SawCompletedJob"]);
}
