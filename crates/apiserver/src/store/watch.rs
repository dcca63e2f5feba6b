use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::log::Reader;
use super::memory::{Event, Found, Memory, Scope};

/// Events taken from memory under one lock, at most.
const TAKE: usize = 256;

/// One resource's events in order, without gap, from a revision on.
///
/// Nothing is queued for a watcher: it reads the shared history at its own pace. One that falls behind what is kept in
/// memory is cut off, and has cost the writers nothing.
pub(crate) struct Watch {
    scope: Scope,
    memory: Arc<RwLock<Memory>>,
    /// Where older events come from.
    log: Option<Arc<Reader>>,
    bell: watch::Receiver<u64>,
    taken: VecDeque<Arc<Event>>,
    /// The feed has been looked at through here.
    looked: u64,
    /// Still reading what happened before it began; the log holds that.
    behind: bool,
}

impl Watch {
    pub(super) fn new(
        scope: Scope,
        after: u64,
        behind: bool,
        memory: Arc<RwLock<Memory>>,
        log: Option<Arc<Reader>>,
        bell: watch::Receiver<u64>,
    ) -> Self {
        Self { scope, memory, log, bell, taken: VecDeque::new(), looked: after, behind }
    }

    /// The next event; none when the watcher was too slow (begin again after the last revision seen) or the store is
    /// gone. Safe to cancel: no event is lost.
    pub(crate) async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            if let Some(event) = self.taken.pop_front() {
                return Some(event);
            }
            if !self.refill() {
                self.read_log().await?;
            } else if self.taken.is_empty() {
                self.bell.changed().await.ok()?;
            }
        }
    }

    /// The next event if it is in memory already.
    pub(crate) fn ready(&mut self) -> Option<Arc<Event>> {
        if self.taken.is_empty() {
            self.refill();
        }
        self.taken.pop_front()
    }

    /// The revision through which [`Watch::next`] has given all there was: a bookmark's.
    pub(crate) fn progress(&mut self) -> u64 {
        if self.taken.is_empty() {
            self.refill();
        }
        match self.taken.front() {
            Some(event) => event.rev - 1,
            None => self.looked,
        }
    }

    /// Takes from memory what there is. False when the next event is not there (any more).
    fn refill(&mut self) -> bool {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        match memory.events(&self.scope, self.looked, TAKE) {
            Found::Behind => false,
            Found::Events(events, looked) => {
                self.behind = false;
                self.taken = events;
                self.looked = looked;
                true
            }
        }
    }

    /// Takes a page of the log. None when this is no watcher of old events, or the log has forgotten them meanwhile.
    async fn read_log(&mut self) -> Option<()> {
        let log = self.log.clone().filter(|_| self.behind)?;
        let (scope, looked) = (self.scope.clone(), self.looked);
        let page = tokio::task::spawn_blocking(move || log.events(&scope, looked)).await.ok()?;
        let page = page.inspect_err(|error| tracing::info!(error = kit::chain(error), "a watch ends")).ok()?;
        self.taken = page.events.into();
        self.looked = page.through;
        Some(())
    }
}
