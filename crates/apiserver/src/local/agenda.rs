use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use kit::{Backoff, Clock};

/// The longest pause after a failure.
const LONGEST: Duration = Duration::from_secs(30);

/// What a loop has yet to look at, each thing once, however often it was asked for.
pub(super) struct Agenda<T> {
    due: BTreeSet<T>,
    /// Looked at in vain: all of it becomes due again at once, later each time.
    failed: BTreeSet<T>,
    /// Due at a time that is known.
    later: BTreeMap<T, Timestamp>,
    again: Option<Timestamp>,
    /// When something failed last.
    failed_at: Option<Timestamp>,
    backoff: Backoff,
    clock: Clock,
}

impl<T: Ord + Clone> Agenda<T> {
    pub(super) fn new(clock: Clock) -> Self {
        let backoff = Backoff::new(Duration::from_millis(50), LONGEST);
        Self {
            due: BTreeSet::new(),
            failed: BTreeSet::new(),
            later: BTreeMap::new(),
            again: None,
            failed_at: None,
            backoff,
            clock,
        }
    }

    pub(super) fn add(&mut self, things: impl IntoIterator<Item = T>) {
        self.due.extend(things);
    }

    /// At most `max` of what is due.
    pub(super) fn take(&mut self, max: usize) -> Vec<T> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some(thing) = self.due.pop_first()
        {
            self.failed.remove(&thing);
            taken.push(thing);
        }
        if self.failed.is_empty() && self.again.take().is_some() {
            self.backoff.reset();
        }
        taken
    }

    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// It could not be done; some time later it is due again.
    pub(super) fn failed(&mut self, thing: T) {
        self.failed.insert(thing);
        let now = self.clock.now();
        // What fails over and over does so within the longest pause: this is another story.
        if self.failed_at.is_some_and(|at| at.checked_add(2 * LONGEST).is_ok_and(|it| it < now)) {
            self.backoff.reset();
        }
        self.failed_at = Some(now);
        if self.again.is_none() {
            self.again = now.checked_add(self.backoff.pause()).ok();
        }
    }

    /// It is due at that time and no other (but for what makes it due before).
    pub(super) fn at(&mut self, thing: T, at: Option<Timestamp>) {
        match at {
            Some(at) => drop(self.later.insert(thing, at)),
            None => drop(self.later.remove(&thing)),
        }
    }

    /// Waits until what failed, or what has its time, is due, and makes it so. For ever when nothing is. Safe to cancel.
    pub(super) async fn again(&mut self) {
        match self.later.values().copied().chain(self.again).min() {
            Some(at) => self.clock.until(at).await,
            None => std::future::pending().await,
        }
        let now = self.clock.now();
        if self.again.is_some_and(|at| at <= now) {
            self.again = None;
            self.due.append(&mut self.failed);
        }
        let due: Vec<T> = self.later.iter().filter(|it| *it.1 <= now).map(|it| it.0.clone()).collect();
        self.later.retain(|_, at| *at > now);
        self.due.extend(due);
    }
}
