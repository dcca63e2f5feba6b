//! What is remembered of a pod between two looks at it. None of it outlives the process: what must, is in the pod's status
//! and in the state of its processes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerUser, Probe};

use super::world::Refused;

/// Crash loops and image pulls: the first wait, and the longest.
const BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// What was quiet for so long begins with the first wait again.
const FORGET: SignedDuration = SignedDuration::from_secs(600);
/// Attempts whose ends are remembered.
pub(crate) const ENDS: usize = 2;
/// How long a failure is shown as what it was, before it is shown as waiting for another try.
const SHOWN: SignedDuration = SignedDuration::from_secs(1);
/// What a container is configured with may come at any time, and nobody tells.
const RETRY: [SignedDuration; 2] = [SignedDuration::from_secs(2), SignedDuration::from_secs(15)];
/// A kubelet's, for volumes.
const RETRY_POD: [SignedDuration; 2] = [SignedDuration::from_millis(500), SignedDuration::from_secs(122)];

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    pub admitted: bool,
    /// `status.startTime`.
    pub since: Option<Timestamp>,
    pub volumes: Step,
    pub create: Step,
    pub freezing: Freezing,
    pub stop: Step,
    pub remove: Step,
    pub delete: Step,
    pub parts: BTreeMap<String, Part>,
    pub ending: Option<Ending>,
    /// Those that were being started have been told not to go on.
    pub cancelled: bool,
}

/// What is done about a pod that is to stand still, or to go on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Freezing {
    /// Never done: the pod's state says which it is.
    pub step: Step,
    /// Why nothing comes of what its annotation says, as it was told.
    pub told: Option<String>,
}

/// Something that is done once, and tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub busy: bool,
    pub done: bool,
    failures: u32,
    /// Not before.
    pub again: Option<Timestamp>,
}

impl Step {
    pub(crate) fn due(&self, now: Timestamp) -> bool {
        !self.busy && !self.done && self.again.is_none_or(|it| it <= now)
    }

    /// When to look again. While it is under way, its end says so.
    pub(crate) fn waits(&self) -> Option<Timestamp> {
        self.again.filter(|_| !self.busy)
    }

    pub(crate) fn ended(&mut self, failed: bool, now: Timestamp) {
        self.busy = false;
        self.done = !failed;
        self.again = failed.then(|| later(now, grown(RETRY_POD, self.failures)));
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
    }
}

/// Why a pod's containers are ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    /// The object is being deleted, or gone.
    Deleted,
    /// All that it had to do is done, or cannot be.
    Finished,
    /// The node does not take it.
    Rejected { reason: String, message: String },
    /// The node ends it: a deadline, an eviction.
    Failed { reason: String, message: String, grace: Option<i64>, disruption: bool },
    /// The node itself ends, and leaves it so many seconds: it is to run again with the next one.
    Closed { grace: i64 },
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Part {
    /// It is being started, as this attempt.
    pub starting: Option<u32>,
    pub failed: Option<Failed>,
    /// The image that was asked for when it was last looked at.
    pub asked: Option<String>,
    /// This attempt ends for another one, whatever becomes of it.
    pub replaced: Option<u32>,
    /// Attempts that never ran.
    pub stillborn: Vec<Stillborn>,
    pub backoff: Option<Backoff>,
    /// What that was before the last start.
    pub before: Option<Backoff>,
    /// How long what is being started has waited, after its last attempt crashed.
    pub waited: Option<SignedDuration>,
    pub pull: Option<Backoff>,
    /// The event of this wait was sent.
    pub told: Option<Timestamp>,
    pub image: Option<(String, String)>,
    pub user: Option<ContainerUser>,
    pub stopping: Option<Stopping>,
    /// It is to end, and this says why.
    pub doomed: Option<String>,
    pub probes: BTreeMap<Kind, Probing>,
    /// The end of the log of attempts that failed, where that is the message of their end.
    pub tails: BTreeMap<u32, String>,
}

/// A start that came to nothing before the command ran.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failed {
    pub reason: Cow<'static, str>,
    pub message: String,
    pub at: Timestamp,
    /// Not before; where nothing else says when.
    pub again: Option<Timestamp>,
    count: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stillborn {
    pub attempt: u32,
    pub message: String,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Backoff {
    pub wait: SignedDuration,
    /// When it was last begun.
    pub updated: Timestamp,
}

impl Backoff {
    /// Another try, after an end at `end`.
    pub(crate) fn next(before: Option<Self>, end: Timestamp, now: Timestamp) -> Self {
        let wait = before
            .filter(|it| end.duration_since(it.updated) <= FORGET)
            .map_or(BACKOFF, |it| it.wait.saturating_mul(2).min(LONGEST));
        Self { wait, updated: now }
    }

    /// Until when to wait after an end at `end`.
    pub(crate) fn until(&self, end: Timestamp) -> Option<Timestamp> {
        (end.duration_since(self.updated) <= FORGET).then(|| later(end, self.wait))
    }
}

/// The end of one container, under way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stopping {
    pub attempt: u32,
    pub began: Timestamp,
    /// Instead of the pod's.
    pub grace: Option<i64>,
    pub hook: Hook,
    pub signalled: Option<Timestamp>,
    pub killing: bool,
    /// Killing did not work: not again before.
    pub again: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Todo,
    Busy,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// One probe of one running container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probing {
    /// The container's id: another one is probed anew.
    pub id: String,
    pub busy: bool,
    pub next: Timestamp,
    last: Option<bool>,
    run: i32,
    /// What the probes so far say, by their thresholds.
    pub result: Option<bool>,
    /// It has said its last word.
    pub hold: bool,
}

impl Probing {
    pub(crate) fn new(id: &str, next: Timestamp, result: Option<bool>) -> Self {
        Self { id: id.to_owned(), busy: false, next, last: None, run: 0, result, hold: false }
    }
}

impl Memory {
    pub(crate) fn part(&mut self, container: &str) -> &mut Part {
        self.parts.entry(container.to_owned()).or_default()
    }

    pub(crate) fn started(&mut self, container: &str, image: (String, String), user: ContainerUser) {
        let part = self.part(container);
        part.starting = None;
        part.failed = None;
        part.pull = None;
        part.image = Some(image);
        part.user = Some(user);
    }

    pub(crate) fn not_started(&mut self, container: &str, attempt: u32, refused: Refused, now: Timestamp) {
        let part = self.part(container);
        part.starting = None;
        if refused.reason == "RunContainerError" {
            part.stillborn.push(Stillborn { attempt, message: refused.message.clone(), at: now });
            let many = part.stillborn.len().saturating_sub(ENDS);
            part.stillborn.drain(..many);
        }
        part.fail(refused, now);
    }

    pub(crate) fn turned(&mut self, done: bool, now: Timestamp) {
        self.freezing.step.ended(!done, now);
        self.freezing.step.done = false;
    }

    pub(crate) fn pre_stopped(&mut self, container: &str) {
        if let Some(it) = &mut self.part(container).stopping {
            it.hook = Hook::Done;
        }
    }

    /// When it did not work, the container may be killed again in a while.
    pub(crate) fn killed(&mut self, container: &str, done: bool, now: Timestamp) {
        if let Some(it) = &mut self.part(container).stopping
            && !done
        {
            it.killing = false;
            it.again = Some(later(now, RETRY[0]));
        }
    }

    /// What the pod is made of has changed.
    pub(crate) fn changed(&mut self, now: Timestamp) {
        self.volumes = Step::default();
        let waiting = self.parts.values_mut().filter_map(|it| it.failed.as_mut());
        // What it waits for may be there now. Not at once after a try: the news may be older than that.
        let waiting = waiting.filter(|it| it.reason == "CreateContainerConfigError");
        waiting.for_each(|it| it.again = Some(it.shown_until().clamp(now, later(now, SHOWN))));
    }

    /// A probe came back; `None`: nobody knows what it means.
    pub(crate) fn probed(
        &mut self,
        container: &str,
        kind: Kind,
        id: &str,
        spec: &Probe,
        passed: Option<bool>,
        now: Timestamp,
    ) {
        let Some(it) = self.parts.get_mut(container).and_then(|part| part.probes.get_mut(&kind)) else { return };
        if it.id != id {
            return;
        }
        it.busy = false;
        let period = SignedDuration::from_secs(spec.period_seconds.unwrap_or(10).max(1).into());
        let next = later(it.next, period);
        // Late by more than a period (a slow probe, a clock that was set): from now on.
        it.next = if next <= now || next > later(now, period) { later(now, period) } else { next };
        let Some(passed) = passed else { return };
        it.run = if it.last == Some(passed) { it.run.saturating_add(1) } else { 1 };
        it.last = Some(passed);
        let threshold = if passed { spec.success_threshold.unwrap_or(1) } else { spec.failure_threshold.unwrap_or(3) };
        if it.run >= threshold {
            it.result = Some(passed);
            it.hold = match kind {
                Kind::Readiness => false,
                Kind::Liveness => !passed,
                Kind::Startup => true,
            };
        }
    }
}

impl Part {
    /// It was not started, which is nobody's fault: it does not wait for longer the next time.
    pub(crate) fn turned_away(&mut self) {
        self.starting = None;
        self.backoff = self.before;
    }

    /// A start came to nothing.
    pub(crate) fn fail(&mut self, refused: Refused, now: Timestamp) {
        let count = self.failed.as_ref().filter(|it| it.reason == refused.reason).map_or(0, |it| it.count + 1);
        let again = match refused.reason.as_ref() {
            "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed" => {
                let next = Backoff::next(self.pull, now, now);
                self.pull = Some(next);
                next.until(now)
            }
            // These ran, or as good as: they wait as those do that crash.
            "RunContainerError" | "PostStartHookError" => None,
            _ => Some(later(now, grown(RETRY, count))),
        };
        self.failed = Some(Failed { reason: refused.reason, message: refused.message, at: now, again, count });
    }
}

impl Failed {
    /// Whether it is shown as waiting for another pull by now.
    pub(crate) fn is_pull(&self) -> bool {
        matches!(self.reason.as_ref(), "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
    }

    pub(crate) fn shown_until(&self) -> Timestamp {
        shown_until(self.at)
    }
}

/// Until when what happened then is shown as what it was.
pub(crate) fn shown_until(at: Timestamp) -> Timestamp {
    later(at, SHOWN)
}

pub(crate) fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn grown([first, longest]: [SignedDuration; 2], failures: u32) -> SignedDuration {
    first.saturating_mul(1 << failures.min(12)).min(longest)
}
