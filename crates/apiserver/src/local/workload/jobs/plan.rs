//! What is to be done for a Job, as `pkg/controller/job` of upstream decides it.
//!
//! A pod of a Job has a finalizer until it is counted. First the pods are made or deleted ([`State::manage`]); then the uids
//! of those that have ended are written into the status ([`State::track`]), their finalizers are taken away, and only then
//! are they counted ([`Tracking::settle`]): whatever breaks off in between, each is counted once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::Indexes;
use super::policy::{self, Verdict};
use super::{IGNORED_FAILURES, INDEX, INDEX_FAILURES, TRACKED, template};
use crate::local::events::Remark;
use crate::local::reader::Kind;
use crate::local::workload::pods::{by_loss, is_active, is_over, is_ready, phase};

/// How long after a failed pod the next is made; twice as long after each further one.
const PAUSE: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_mins(10);
/// Pods that are counted, made or deleted at once.
const AT_ONCE: usize = 500;

/// How many pods have failed since one succeeded, and when the last did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    count: u32,
    last: Option<Timestamp>,
}

impl Failures {
    fn and(mut self, succeeded: &[&Arc<Pod>], failed: &[&Arc<Pod>]) -> Self {
        let success = succeeded.iter().map(|it| ended(it)).max();
        if success.is_some() {
            self = Self::default();
        }
        for at in failed.iter().map(|it| ended(it)).filter(|at| success.is_none_or(|success| *at > success)) {
            self.count = self.count.saturating_add(1);
            self.last = self.last.max(Some(at));
        }
        self
    }

    /// When the next pod may be made.
    fn over(&self) -> Option<Timestamp> {
        let factor = 1 << self.count.checked_sub(1)?.min(10);
        self.last?.saturating_add((PAUSE * factor).min(LONGEST)).ok()
    }
}

/// The Job as its pods say it is.
pub(super) struct State<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    status: JobStatus,
    pods: &'a [Arc<Pod>],
    active: Vec<&'a Arc<Pod>>,
    now: Timestamp,
    /// Counted, about to be and new.
    succeeded: i32,
    /// Of an indexed Job: those of the status, and with those that are new.
    counted_indexes: Indexes,
    indexes: Indexes,
    failed_indexes: Option<Indexes>,
    /// The failed pod of an index whose annotations the next one inherits: it stays until that is there.
    inherited: BTreeMap<i32, &'a Arc<Pod>>,
    /// `FailureTarget` or `SuccessCriteriaMet` if it is to be; `Failed` if the first is there already.
    end: Option<JobCondition>,
    pub(super) failures: Failures,
}

/// What is to be done with pods.
#[derive(Debug, Default)]
pub(super) struct Managing {
    /// It ends: these are deleted, and counted when they are gone.
    pub(super) end: Vec<Arc<Pod>>,
    /// Too many: these are deleted and not counted.
    pub(super) remove: Vec<Arc<Pod>>,
    pub(super) create: Vec<Pod>,
    /// When to look again, if nothing changes before.
    pub(super) again: Option<Timestamp>,
}

/// What was done with pods.
#[derive(Debug, Default)]
pub(super) struct Managed {
    pub(super) created: usize,
    pub(super) deleted: Vec<Arc<Pod>>,
    /// Something went wrong.
    pub(super) failed: bool,
}

/// How the ends of pods are counted.
pub(super) struct Tracking {
    /// To be written before the finalizers go.
    pub(super) status: JobStatus,
    /// The pods that lose their finalizer.
    pub(super) release: Vec<Arc<Pod>>,
    pub(super) events: Vec<Remark>,
    tracked: HashSet<String>,
    end: Option<JobCondition>,
    now: Timestamp,
}

impl<'a> State<'a> {
    pub(super) fn of(
        job: &'a Job,
        spec: &'a JobSpec,
        pods: &'a [Arc<Pod>],
        failures: Failures,
        now: Timestamp,
    ) -> State<'a> {
        let mut status = job.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !is_suspended(spec) {
            status.start_time = Some(Time(now));
        }
        let mut state = State {
            job,
            spec,
            pods,
            active: pods.iter().filter(|it| is_active(it)).collect(),
            now,
            succeeded: 0,
            counted_indexes: Indexes::default(),
            indexes: Indexes::default(),
            failed_indexes: None,
            inherited: BTreeMap::new(),
            end: None,
            failures,
            status,
        };
        let uncounted = state.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (was_succeeded, was_failed) = (set(&uncounted.succeeded), set(&uncounted.failed));
        let new = |of: &HashSet<String>, fits: &dyn Fn(&Pod) -> bool| -> Vec<&'a Arc<Pod>> {
            pods.iter().filter(|it| state.is_counted_later(it) && !of.contains(it.uid()) && fits(it)).collect()
        };
        let succeeded = new(&was_succeeded, &|it| phase(it) == "Succeeded");
        let failed = new(&was_failed, &|it| state.is_failed(it));
        let counts = failed.iter().filter(|it| state.verdict(it) != Verdict::Ignore).count();
        let total = |counted: Option<i32>, new: usize, uncounted: usize| {
            counted.unwrap_or_default().saturating_add(number(new)).saturating_add(number(uncounted))
        };
        let all_failed = total(state.status.failed, counts, was_failed.len());
        state.succeeded = total(state.status.succeeded, succeeded.len(), was_succeeded.len());
        state.failures = state.failures.clone().and(&succeeded, &failed);
        state.end = state.ended_before().or_else(|| state.exhausted(all_failed));
        if state.is_indexed() {
            state.look_at_indexes();
        }
        state
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(i32::MAX)
    }

    /// Whether it has yet to be counted, and can be.
    fn is_counted_later(&self, pod: &Pod) -> bool {
        is_tracked(pod) && (!self.is_indexed() || self.index(pod).is_some())
    }

    /// The completion index, if it is one of this Job's.
    fn index(&self, pod: &Pod) -> Option<i32> {
        index(pod).filter(|it| *it < self.completions())
    }

    fn replaces_failed_only(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed") || self.spec.pod_failure_policy.is_some()
    }

    /// A pod that is deleted before it ends has failed, where it is replaced at once.
    fn is_failed(&self, pod: &Pod) -> bool {
        phase(pod) == "Failed" || (!self.replaces_failed_only() && pod.is_deleting() && phase(pod) != "Succeeded")
    }

    fn verdict(&self, pod: &Pod) -> Verdict {
        policy::failure(self.spec.pod_failure_policy.as_ref(), pod)
    }

    fn condition(&self, kind: &str, reason: &str, message: &str) -> Option<JobCondition> {
        Some(condition(kind, "True", reason, message, self.now))
    }

    fn has(&self, kind: &str) -> Option<&JobCondition> {
        self.status.conditions.iter().flatten().find(|it| it.type_ == kind && it.status == "True")
    }

    /// What was decided before, or what a policy says of one pod.
    fn ended_before(&self) -> Option<JobCondition> {
        if let Some(met) = self.has("SuccessCriteriaMet") {
            return Some(met.clone());
        }
        if let Some(target) = self.has("FailureTarget") {
            let text = |it: &Option<String>| it.clone().unwrap_or_default();
            return self.condition("Failed", &text(&target.reason), &text(&target.message));
        }
        let mut failed = self.pods.iter().filter(|it| self.is_failed(it));
        let message = failed.find_map(|it| match self.verdict(it) {
            Verdict::FailJob(message) => Some(message),
            _ => None,
        })?;
        self.condition("FailureTarget", "PodFailurePolicy", &message)
    }

    fn exhausted(&self, failed: i32) -> Option<JobCondition> {
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if failed > limit || self.restarted_too_often(limit) {
            let message = "Job has reached the specified backoff limit";
            return self.condition("FailureTarget", "BackoffLimitExceeded", message);
        }
        if self.deadline().is_some_and(|it| it <= self.now) {
            let message = "Job was active longer than specified deadline";
            return self.condition("FailureTarget", "DeadlineExceeded", message);
        }
        None
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec.active_deadline_seconds.filter(|_| !is_suspended(self.spec))?;
        self.status.start_time.as_ref()?.0.saturating_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// With `OnFailure`, containers are started again within their pods.
    fn restarted_too_often(&self, limit: i32) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|it| it.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let restarts = self.pods.iter().filter(|it| matches!(phase(it), "Running" | "Pending")).flat_map(|pod| {
            let status = pod.status.as_ref();
            let of = |list: &'a Option<Vec<ContainerStatus>>| list.iter().flatten();
            status.into_iter().flat_map(move |it| of(&it.init_container_statuses).chain(of(&it.container_statuses)))
        });
        let all = restarts.fold(0, |all: i32, it| all.saturating_add(it.restart_count));
        if limit == 0 { all > 0 } else { all >= limit }
    }

    fn look_at_indexes(&mut self) {
        let completions = self.completions();
        self.counted_indexes =
            Indexes::parse(self.status.completed_indexes.as_deref().unwrap_or_default(), completions);
        let tracked = || self.pods.iter().filter(|it| is_tracked(it));
        let succeeded = tracked().filter(|it| phase(it) == "Succeeded").filter_map(|it| self.index(it));
        self.indexes = self.counted_indexes.and(&Indexes::of(succeeded));
        self.succeeded = self.indexes.len();
        if let Some(limit) = self.spec.backoff_limit_per_index {
            let before = Indexes::parse(self.status.failed_indexes.as_deref().unwrap_or_default(), completions);
            let failed = tracked().filter(|it| self.fails_index(it, limit)).filter_map(|it| self.index(it));
            let failed = before.and(&Indexes::of(failed));
            if self.end.is_none() {
                if self.spec.max_failed_indexes.is_some_and(|most| failed.len() > most) {
                    let message = "Job has exceeded the specified maximal number of failed indexes";
                    self.end = self.condition("FailureTarget", "MaxFailedIndexesExceeded", message);
                } else if !failed.is_empty() && failed.len().saturating_add(self.indexes.len()) >= completions {
                    self.end = self.condition("FailureTarget", "FailedIndexes", "Job has failed indexes");
                }
            }
            self.failed_indexes = Some(failed);
            self.inherited = self.inherit();
        }
        if self.end.is_none()
            && let Some(message) = policy::success(self.spec.success_policy.as_ref(), completions, &self.indexes)
        {
            self.end = self.condition("SuccessCriteriaMet", "SuccessPolicy", &message);
        }
    }

    /// Whether no other pod is made for the index of this one.
    fn fails_index(&self, pod: &Pod, limit: i32) -> bool {
        if !self.is_failed(pod) {
            return false;
        }
        match self.verdict(pod) {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            Verdict::Count | Verdict::FailJob(_) => annotated(pod, INDEX_FAILURES) >= limit,
        }
    }

    fn inherit(&self) -> BTreeMap<i32, &'a Arc<Pod>> {
        let active: HashSet<i32> = self.active.iter().filter_map(|it| index(it)).collect();
        let mut last: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
        for pod in self.pods.iter().filter(|it| is_tracked(it) && self.is_failed(it)) {
            let Some(at) = self.index(pod) else { continue };
            let is_done = self.indexes.has(at) || self.failed_indexes.as_ref().is_some_and(|it| it.has(at));
            if is_done || active.contains(&at) {
                continue;
            }
            let is_later =
                |before: &&Arc<Pod>| all_failures(before) <= all_failures(pod) && ended(before) <= ended(pod);
            if last.get(&at).is_none_or(is_later) {
                last.insert(at, pod);
            }
        }
        last
    }

    /// What is to be done with pods.
    pub(super) fn manage(&self) -> Managing {
        let all = |pods: &[&Arc<Pod>]| pods.iter().map(|it| (*it).clone()).collect::<Vec<_>>();
        if self.end.is_some() {
            return Managing { end: all(&self.active), ..Managing::default() };
        }
        let again = self.deadline();
        if self.job.is_deleting() {
            return Managing::default();
        }
        if is_suspended(self.spec) {
            return Managing { remove: all(&self.active), ..Managing::default() };
        }
        let active = number(self.active.len());
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            None if self.succeeded > 0 => active,
            None => parallelism.max(0),
            Some(completions) => completions.saturating_sub(self.succeeded).min(parallelism).max(0),
        };
        let mut remove = self.surplus(usize::try_from(active - wanted).unwrap_or(0));
        if !remove.is_empty() {
            remove.truncate(AT_ONCE);
            return Managing { remove: all(&remove), again, ..Managing::default() };
        }
        let terminating = if self.replaces_failed_only() { self.terminating() } else { 0 };
        let missing = usize::try_from(wanted - terminating - active).unwrap_or(0);
        if missing == 0 {
            return Managing { again, ..Managing::default() };
        }
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let waits = |failures: &Failures| failures.over().filter(|it| *it > self.now);
        if let Some(over) = waits(&self.failures).filter(|_| !per_index) {
            return Managing { again: sooner(again, Some(over)), ..Managing::default() };
        }
        let missing = missing.min(AT_ONCE);
        if !self.is_indexed() {
            let create = (0..missing).map(|_| template::pod(self.job, self.spec, None, None)).collect();
            return Managing { create, again, ..Managing::default() };
        }
        let mut indexes = self.pending(missing);
        let mut over = None;
        if per_index {
            indexes.retain(|at| {
                let failures = self.inherited.get(at).map(|pod| Failures {
                    count: u32::try_from(all_failures(pod).saturating_add(1)).unwrap_or(1),
                    last: Some(ended(pod)),
                });
                let wait = failures.as_ref().and_then(waits);
                over = sooner(over, wait);
                wait.is_none()
            });
        }
        let create = indexes.into_iter().map(|at| {
            let inherited = self.inherited.get(&at).map(|it| (&***it, self.verdict(it)));
            template::pod(self.job, self.spec, Some(at), inherited)
        });
        Managing { create: create.collect(), again: sooner(again, over), ..Managing::default() }
    }

    /// At least so many active pods that can be done without: of an indexed Job, all that are not needed.
    fn surplus(&self, at_least: usize) -> Vec<&'a Arc<Pod>> {
        let mut left = self.active.clone();
        left.sort_by(|a, b| by_loss(a, b));
        let mut surplus = Vec::new();
        if self.is_indexed() {
            let mut last: BTreeMap<i32, &Arc<Pod>> = BTreeMap::new();
            for pod in left {
                match self.index(pod) {
                    Some(at) => surplus.extend(last.insert(at, pod)),
                    None => surplus.push(pod),
                }
            }
            left = last.into_values().collect();
            left.sort_by(|a, b| by_loss(a, b));
        }
        surplus.extend(left.into_iter().take(at_least.saturating_sub(surplus.len())));
        surplus
    }

    /// The first indexes that need a pod.
    fn pending(&self, count: usize) -> Vec<i32> {
        let waits =
            |pod: &&Arc<Pod>| is_active(pod) || (self.replaces_failed_only() && pod.is_deleting() && !is_over(pod));
        let busy = Indexes::of(self.pods.iter().filter(waits).filter_map(|it| index(it)));
        let mut done = self.indexes.and(&busy);
        if let Some(failed) = &self.failed_indexes {
            done = done.and(failed);
        }
        done.missing(count, self.completions())
    }

    fn terminating(&self) -> i32 {
        number(self.pods.iter().filter(|it| it.is_deleting() && !is_over(it)).count())
    }

    /// How the ends of pods are counted, after pods were made and deleted.
    pub(super) fn track(&self, managed: &Managed) -> Tracking {
        let mut status = self.status.clone();
        let mut events = Vec::new();
        let deleted = number(managed.deleted.len());
        let active = number(self.active.len() + managed.created) - deleted;
        let ready = |pods: &mut dyn Iterator<Item = &Arc<Pod>>| number(pods.filter(|it| is_ready(it)).count());
        status.active = Some(active).filter(|it| *it > 0);
        status.ready = Some(ready(&mut self.active.iter().copied()) - ready(&mut managed.deleted.iter()));
        status.terminating = Some(self.terminating() + deleted);
        // It has not ended while pods of it go on.
        let mut end = self.end.clone().filter(|_| !managed.failed);
        if self.end.is_none() {
            let is_complete = self.spec.completions.map_or(self.succeeded > 0, |it| self.succeeded >= it);
            if is_complete && active == 0 {
                let message = "Reached expected number of succeeded pods";
                end = self.condition("SuccessCriteriaMet", "CompletionsReached", message);
            } else if !self.job.is_deleting() {
                self.tell_suspension(&mut status, &mut events);
            }
        }
        let mut tracking = Tracking {
            tracked: self.pods.iter().filter(|it| is_tracked(it)).map(|it| it.uid().to_owned()).collect(),
            status,
            release: Vec::new(),
            events,
            end: None,
            now: self.now,
        };
        tracking.count();
        let whole = self.count_ends(&mut tracking, end.as_ref());
        if let Some(end) = end {
            let text = |it: &Option<String>| it.clone().unwrap_or_default();
            let (reason, message) = (text(&end.reason), text(&end.message));
            let last = match end.type_.as_str() {
                "SuccessCriteriaMet" => "Complete",
                _ => "Failed",
            };
            if end.type_ != "Failed" && self.has(&end.type_).is_none() {
                tracking.status.conditions.get_or_insert_default().push(end);
            }
            tracking.end = self.condition(last, &reason, &message).filter(|_| whole);
        }
        tracking
    }

    /// Writes down which pods have ended. False when there are too many to do it at once.
    fn count_ends(&self, tracking: &mut Tracking, end: Option<&JobCondition>) -> bool {
        let was = self.job.status.as_ref().and_then(|it| it.uncounted_terminated_pods.clone()).unwrap_or_default();
        let (was_succeeded, was_failed) = (set(&was.succeeded), set(&was.failed));
        let mut uncounted = tracking.status.uncounted_terminated_pods.clone().unwrap_or_default();
        let mut new = Vec::new();
        let fails_all = end.is_some_and(|it| it.type_ != "SuccessCriteriaMet");
        let mut pods: Vec<&Arc<Pod>> = self.pods.iter().filter(|it| is_tracked(it)).collect();
        if self.is_indexed() {
            pods.sort_by_key(|it| index(it));
        }
        let mut whole = true;
        for pod in pods {
            let is_failed = self.is_failed(pod);
            if !self.may_release(pod, is_failed, end.is_some()) {
                continue;
            }
            tracking.release.push(pod.clone());
            let uid = pod.uid().to_owned();
            if phase(pod) == "Succeeded" && !was_failed.contains(&uid) {
                match self.is_indexed() {
                    true => new.extend(self.index(pod).filter(|it| !self.counted_indexes.has(*it))),
                    false if was_succeeded.contains(&uid) => {}
                    false => uncounted.succeeded.get_or_insert_default().push(uid),
                }
            } else if (is_failed || fails_all)
                && !was_failed.contains(&uid)
                && self.is_counted_later(pod)
                && self.verdict(pod) != Verdict::Ignore
            {
                uncounted.failed.get_or_insert_default().push(uid);
            }
            let length = |it: &Option<Vec<String>>| it.as_ref().map_or(0, Vec::len);
            if new.len() + length(&uncounted.succeeded) + length(&uncounted.failed) >= AT_ONCE {
                whole = false;
                break;
            }
        }
        tracking.status.uncounted_terminated_pods = Some(uncounted);
        if self.is_indexed() {
            let indexes = self.indexes.and(&Indexes::of(new));
            tracking.status.succeeded = Some(indexes.len()).filter(|it| *it > 0);
            tracking.status.completed_indexes = Some(indexes.to_string()).filter(|it| !it.is_empty());
            tracking.status.failed_indexes = self.failed_indexes.as_ref().map(ToString::to_string);
        }
        whole
    }

    fn may_release(&self, pod: &Arc<Pod>, is_failed: bool, ends: bool) -> bool {
        let is_inherited = || index(pod).and_then(|it| self.inherited.get(&it)).is_some_and(|it| it.uid() == pod.uid());
        self.job.is_deleting() || ends || phase(pod) == "Succeeded" || (is_failed && !is_inherited())
    }

    fn tell_suspension(&self, status: &mut JobStatus, events: &mut Vec<Remark>) {
        let conditions = status.conditions.get_or_insert_default();
        if is_suspended(self.spec) {
            if ensure(conditions, condition("Suspended", "True", "JobSuspended", "Job suspended", self.now)) {
                events.push(Remark::normal("Suspended", "Job suspended"));
            }
        } else if conditions.iter().any(|it| it.type_ == "Suspended")
            && ensure(conditions, condition("Suspended", "False", "JobResumed", "Job resumed", self.now))
        {
            events.push(Remark::normal("Resumed", "Job resumed"));
            status.start_time = Some(Time(self.now));
        }
    }
}

impl Tracking {
    /// Counts those whose finalizers are gone.
    fn count(&mut self) {
        let Some(uncounted) = &mut self.status.uncounted_terminated_pods else { return };
        for (uids, count) in
            [(&mut uncounted.succeeded, &mut self.status.succeeded), (&mut uncounted.failed, &mut self.status.failed)]
        {
            let all = uids.get_or_insert_default();
            let before = all.len();
            all.retain(|it| self.tracked.contains(it));
            let counted = number(before - all.len());
            if all.is_empty() {
                *uids = None;
            }
            if counted > 0 {
                *count = Some(count.unwrap_or_default().saturating_add(counted));
            }
        }
    }

    /// The status after these pods have lost their finalizers, and what is to be said when that is the end.
    pub(super) fn settle(mut self, job: &Job, released: &[Arc<Pod>]) -> (JobStatus, Vec<Remark>) {
        for pod in released {
            self.tracked.remove(pod.uid());
        }
        self.count();
        let is_counted = self
            .status
            .uncounted_terminated_pods
            .as_ref()
            .is_none_or(|it| it.succeeded.is_none() && it.failed.is_none());
        let mut events = Vec::new();
        if let Some(end) = self.end.take().filter(|_| is_counted && self.status.terminating.unwrap_or_default() == 0) {
            let completions = job.spec.as_ref().and_then(|it| it.completions);
            if end.type_ == "Complete" {
                self.status.completion_time = Some(Time(self.now));
                if completions.is_some_and(|it| self.status.succeeded.unwrap_or_default() > it) {
                    let message = "Too many succeeded pods running after completion count reached";
                    events.push(Remark::warning("TooManySucceededPods", message));
                }
                events.push(Remark::normal("Completed", "Job completed"));
            } else {
                let reason = end.reason.clone().unwrap_or_default();
                events.push(Remark::warning(reason, end.message.clone().unwrap_or_default()));
            }
            ensure(self.status.conditions.get_or_insert_default(), end);
        }
        (self.status, events)
    }
}

pub(super) fn is_suspended(spec: &JobSpec) -> bool {
    spec.suspend == Some(true)
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|it| it == TRACKED)
}

pub(super) fn sooner(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts the condition among the others, unless one says the same.
fn ensure(all: &mut Vec<JobCondition>, it: JobCondition) -> bool {
    let same = |a: &JobCondition| a.status == it.status && a.reason == it.reason && a.message == it.message;
    match all.iter_mut().find(|before| before.type_ == it.type_) {
        Some(before) if same(before) => return false,
        Some(before) => *before = it,
        None => all.push(it),
    }
    true
}

fn set(of: &Option<Vec<String>>) -> HashSet<String> {
    of.iter().flatten().cloned().collect()
}

fn number(of: usize) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

fn index(pod: &Pod) -> Option<i32> {
    pod.annotation(INDEX)?.parse().ok().filter(|it| *it >= 0)
}

pub(super) fn annotated(pod: &Pod, name: &str) -> i32 {
    pod.annotation(name).and_then(|it| it.parse().ok()).filter(|it| *it >= 0).unwrap_or_default()
}

fn all_failures(pod: &Pod) -> i32 {
    annotated(pod, INDEX_FAILURES).saturating_add(annotated(pod, IGNORED_FAILURES))
}

/// When the pod ended: when its last container did; when it ceased to be ready; when it was deleted; when it was made.
fn ended(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let finished = |it: &ContainerStatus| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|it| it.0);
    let always = |name: &str| {
        let all = pod.spec.iter().flat_map(|it| it.init_containers.iter().flatten());
        all.into_iter().any(|it| it.name == name && it.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars =
        status.into_iter().flat_map(|it| it.init_container_statuses.iter().flatten()).filter(|it| always(&it.name));
    let containers = status.into_iter().flat_map(|it| it.container_statuses.iter().flatten()).chain(sidecars);
    let last: Option<Vec<Timestamp>> = containers.map(finished).collect();
    if let Some(last) = last.and_then(|it| it.into_iter().max()) {
        return last;
    }
    let unready = status.and_then(|it| it.conditions.iter().flatten().find(|it| it.type_ == "Ready"));
    if let Some(at) = unready.filter(|it| it.status == "False").and_then(|it| it.last_transition_time.as_ref()) {
        return at.0;
    }
    if let Some(at) = &pod.metadata.deletion_timestamp {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        return at.0.saturating_sub(SignedDuration::from_secs(grace)).unwrap_or(at.0);
    }
    pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |it| it.0)
}
