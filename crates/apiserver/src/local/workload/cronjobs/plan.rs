//! What is to be done for a CronJob, as `pkg/controller/cronjob` of upstream decides it.

use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kinds::schedule::{self, Schedule};
use crate::local::events::Remark;
use crate::local::reader::Kind;
use crate::local::workload::{self, jobs};

/// More runs than these were missed: then something is wrong, and it is said.
const MANY: i64 = 100;
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// Done in this order: the deletions, the start, the status.
#[derive(Default, Debug)]
pub(super) struct Plan {
    pub(super) events: Vec<Remark>,
    /// Names and uids of Jobs.
    pub(super) delete: Vec<(String, String)>,
    pub(super) start: Option<Start>,
    /// Without what the deletions and the start change.
    pub(super) status: CronJobStatus,
    /// When to look again, if nothing changes before.
    pub(super) again: Option<Timestamp>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Start {
    pub(super) name: String,
    pub(super) scheduled: Timestamp,
    /// The annotation that tells the time, where the CronJob is.
    pub(super) told: String,
}

/// `jobs` are those that the CronJob controls; `exists` whether there is a Job of a name.
pub(super) fn plan(it: &CronJob, made: &[Arc<Job>], exists: impl Fn(&str) -> bool, now: Timestamp) -> Plan {
    let mut plan = Plan { status: it.status.clone().unwrap_or_default(), ..Plan::default() };
    let Some(spec) = &it.spec else { return plan };
    for (limit, kind) in [(spec.successful_jobs_history_limit, "Complete"), (spec.failed_jobs_history_limit, "Failed")]
    {
        let of_kind = |job: &&Arc<Job>| !job.is_deleting() && jobs::finished(job).is_some_and(|it| it.type_ == kind);
        let mut old: Vec<&Arc<Job>> = made.iter().filter(of_kind).collect();
        let kept = limit.and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX);
        let surplus = old.len().saturating_sub(kept);
        let started =
            |job: &Job| job.status.as_ref().and_then(|it| it.start_time.as_ref()).map_or(Timestamp::MAX, |it| it.0);
        old.sort_by(|a, b| (started(a), a.name()).cmp(&(started(b), b.name())));
        plan.delete.extend(old.into_iter().take(surplus).map(|job| (job.name().to_owned(), job.uid().to_owned())));
    }
    follow_jobs(&mut plan, made, exists);
    if it.is_deleting() {
        return plan;
    }
    let zone = match spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match schedule::zone(name) {
            Some(zone) => zone,
            None => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                plan.events.push(Remark::warning("UnknownTimeZone", message));
                return plan;
            }
        },
    };
    if spec.suspend == Some(true) {
        return plan;
    }
    match Schedule::parse(&spec.schedule) {
        Ok(schedule) => start(&mut plan, it, spec, &schedule, &zone, now),
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            plan.events.push(Remark::warning("UnparseableSchedule", message));
        }
    }
    plan
}

/// What has become of the Jobs that were made, into the status.
fn follow_jobs(plan: &mut Plan, made: &[Arc<Job>], exists: impl Fn(&str) -> bool) {
    let active = plan.status.active.get_or_insert_default();
    for job in made {
        let (name, uid) = (job.name(), job.uid());
        let found = active.iter().any(|it| it.uid.as_deref() == Some(uid));
        let Some(condition) = jobs::finished(job) else {
            if !found {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                plan.events.push(Remark::warning("UnexpectedJob", message));
            }
            continue;
        };
        if found {
            active.retain(|it| it.uid.as_deref() != Some(uid));
            let message = format!("Saw completed job: {name}, condition: {}", condition.type_);
            plan.events.push(Remark::normal("SawCompletedJob", message));
        }
        if condition.type_ == "Complete" {
            let at = job.status.as_ref().and_then(|it| it.completion_time.clone());
            let last = &mut plan.status.last_successful_time;
            if at.as_ref().map(|it| it.0) > last.as_ref().map(|it| it.0) {
                *last = at;
            }
        }
    }
    active.retain(|it| {
        let name = it.name.as_deref().unwrap_or_default();
        let is_there = made.iter().any(|job| it.uid.as_deref() == Some(job.uid())) || exists(name);
        if !is_there {
            plan.events.push(Remark::normal("MissingJob", format!("Active job went missing: {name}")));
        }
        is_there
    });
}

fn start(plan: &mut Plan, it: &CronJob, spec: &CronJobSpec, schedule: &Schedule, zone: &TimeZone, now: Timestamp) {
    let due = match due(it, spec, schedule, zone, now, true) {
        Ok(due) => due,
        Err(why) => {
            let message = format!("invalid schedule: {} : {why}", spec.schedule);
            plan.events.push(Remark::warning("InvalidSchedule", message));
            return;
        }
    };
    plan.again = next(it, spec, schedule, zone, now);
    let Some(scheduled) = due.at else { return };
    if due.missed > MANY {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push(Remark::warning("TooManyMissedTimes", message));
    }
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if deadline.is_some_and(|it| scheduled.saturating_add(it).is_ok_and(|latest| latest < now)) {
        let message =
            format!("Missed scheduled time to start a job: {}", scheduled.strftime("%a, %d %b %Y %H:%M:%S +0000"));
        plan.events.push(Remark::warning("MissSchedule", message));
        return;
    }
    let name = format!("{}-{}", it.name(), scheduled.as_second().div_euclid(60));
    let active = plan.status.active.as_deref().unwrap_or_default();
    let last = plan.status.last_schedule_time.as_ref().map(|it| it.0);
    if active.iter().any(|it| it.name.as_ref() == Some(&name)) || last == Some(scheduled) {
        return;
    }
    if spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
        plan.events.push(Remark::normal("JobAlreadyActive", message));
        return;
    }
    if spec.concurrency_policy.as_deref() == Some("Replace") {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        plan.delete.extend(active.iter().map(|it| (text(&it.name), text(&it.uid))));
    }
    let local = scheduled.to_zoned(zone.clone());
    let told = if local.offset().is_zero() {
        local.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    } else {
        local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    plan.start = Some(Start { name, scheduled, told });
}

struct Due {
    /// The time from which was looked.
    from: Timestamp,
    /// The latest time that has come.
    at: Option<Timestamp>,
    /// How many times have come, roughly, when it was more than one.
    missed: i64,
}

fn due(
    it: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    now: Timestamp,
    with_deadline: bool,
) -> Result<Due, &'static str> {
    let created = it.metadata.creation_timestamp.as_ref().map(|it| it.0);
    let last = it.status.as_ref().and_then(|it| it.last_schedule_time.as_ref()).map(|it| it.0);
    let mut from = last.or(created).unwrap_or(now);
    if let Some(deadline) = spec.starting_deadline_seconds.filter(|_| with_deadline) {
        from = from.max(now.saturating_sub(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN));
    }
    let impossible = "time difference between two schedules is less than 1 second";
    let Some(first) = schedule.next(from, zone) else { return Err(impossible) };
    if now < first {
        return Ok(Due { from, at: None, missed: 0 });
    }
    let second = schedule.next(first, zone).ok_or(impossible)?;
    if now < second {
        return Ok(Due { from, at: Some(first), missed: 0 });
    }
    // Counted by the first pause, which is right for most schedules and near enough for the others.
    let pause = second.as_second() - first.as_second();
    let missed = (now.as_second() - first.as_second()) / pause.max(1) + 1;
    let early = first.saturating_add(SignedDuration::from_secs((missed - 2).saturating_mul(pause))).unwrap_or(first);
    let mut at = None;
    let mut candidate = schedule.next(early, zone);
    while let Some(time) = candidate.filter(|it| *it <= now) {
        at = Some(time);
        candidate = schedule.next(time, zone);
    }
    Ok(Due { from, at, missed })
}

/// The first time that is yet to come.
fn next(it: &CronJob, spec: &CronJobSpec, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Option<Timestamp> {
    let from = match due(it, spec, schedule, zone, now, false) {
        Ok(Due { at: Some(at), .. }) => at,
        Ok(Due { from, missed: 0, .. }) => from,
        _ => now,
    };
    schedule.next(from, zone).map(|it| it.max(now))
}

/// The Job that is made of the template.
pub(super) fn made(it: &CronJob, start: &Start) -> Job {
    let template = it.spec.as_ref().map(|it| &it.job_template);
    let metadata = template.and_then(|it| it.metadata.clone()).unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), start.told.clone());
    Job {
        metadata: ObjectMeta {
            name: Some(start.name.clone()),
            namespace: Some(it.namespace().to_owned()),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![workload::reference(it)]),
            ..ObjectMeta::default()
        },
        spec: template.and_then(|it| it.spec.clone()),
        status: None,
    }
}
