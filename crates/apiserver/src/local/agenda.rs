use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use kit::{Backoff, Clock};

/// What a loop has yet to look at, each thing once, however often it was asked for.
pub(super) struct Agenda<T> {
    due: BTreeSet<T>,
    /// Looked at in vain: all of it becomes due again at once, later each time.
    failed: BTreeSet<T>,
    again: Option<Timestamp>,
    backoff: Backoff,
    clock: Clock,
}

impl<T: Ord + Clone> Agenda<T> {
    pub(super) fn new(clock: Clock) -> Self {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
        Self { due: BTreeSet::new(), failed: BTreeSet::new(), again: None, backoff, clock }
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
        if self.again.is_none() {
            self.again = self.clock.now().checked_add(self.backoff.pause()).ok();
        }
    }

    /// Waits until what failed is due again, and makes it so. For ever when nothing failed. Safe to cancel.
    pub(super) async fn again(&mut self) {
        match self.again {
            Some(at) => self.clock.until(at).await,
            None => std::future::pending().await,
        }
        self.again = None;
        self.due.append(&mut self.failed);
    }
}
