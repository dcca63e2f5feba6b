//! Who is next: a pure decision over what is queued and what runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::RunId;

/// Namespace and instance.
pub(crate) type Tenant = (Arc<str>, Arc<str>);

/// Older first; the id decides between runs of one moment.
type Place = (i64, RunId);

#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) run: RunId,
    pub(crate) tenant: Tenant,
    /// "": none.
    pub(crate) session: Arc<str>,
    /// In microseconds.
    pub(crate) created: i64,
}

/// Every queued and every running run; each operation takes logarithmic time.
///
/// - Never more running runs of a tenant than its limit (a limit that shrinks stops nobody).
/// - Never two of one session, and those in the order of their places; else the oldest run of a tenant first.
/// - Tenants that could run stand in a ring, and each served one goes to its end: nobody waits for more than one run of
///   every other tenant.
#[derive(Default)]
pub(crate) struct Queue {
    runs: HashMap<RunId, Slot>,
    tenants: HashMap<Tenant, Lane>,
    /// Tenants that could run now, by their number in the ring.
    ring: BTreeMap<u64, Tenant>,
    numbers: u64,
}

struct Slot {
    item: Item,
    running: bool,
}

#[derive(Default)]
struct Lane {
    limit: u32,
    runs: usize,
    running: u32,
    /// What could run as far as sessions go.
    heads: BTreeSet<Place>,
    sessions: HashMap<Arc<str>, Session>,
    number: Option<u64>,
}

#[derive(Default)]
struct Session {
    queued: BTreeSet<Place>,
    running: bool,
}

impl Queue {
    /// Queues a run that is not here yet, and sets its tenant's limit.
    pub(crate) fn submit(&mut self, item: Item, limit: u32) {
        let lane = self.tenants.entry(item.tenant.clone()).or_default();
        lane.limit = limit;
        lane.runs += 1;
        lane.enter(&item);
        let tenant = item.tenant.clone();
        self.runs.insert(item.run.clone(), Slot { item, running: false });
        self.settle(&tenant);
    }

    /// The limit that holds for a tenant with runs here.
    pub(crate) fn limit(&self, tenant: &Tenant) -> Option<u32> {
        self.tenants.get(tenant).map(|lane| lane.limit)
    }

    pub(crate) fn set_limit(&mut self, tenant: &Tenant, limit: u32) {
        if let Some(lane) = self.tenants.get_mut(tenant) {
            lane.limit = limit;
            self.settle(tenant);
        }
    }

    /// The decision: the run to start now.
    pub(crate) fn next(&self) -> Option<&RunId> {
        let (_, tenant) = self.ring.first_key_value()?;
        self.tenants.get(tenant)?.heads.first().map(|(_, run)| run)
    }

    /// A queued run runs from now on.
    pub(crate) fn start(&mut self, run: &RunId) {
        let Some(slot) = self.runs.get_mut(run).filter(|slot| !slot.running) else { return };
        slot.running = true;
        let item = slot.item.clone();
        if let Some(lane) = self.tenants.get_mut(&item.tenant) {
            lane.leave(&item);
            lane.running += 1;
            lane.session_runs(&item.session, true);
            if let Some(number) = lane.number.take() {
                self.ring.remove(&number);
            }
        }
        self.settle(&item.tenant);
    }

    /// A running run waits again, at its old place.
    pub(crate) fn requeue(&mut self, run: &RunId) {
        let Some(slot) = self.runs.get_mut(run).filter(|slot| slot.running) else { return };
        slot.running = false;
        let item = slot.item.clone();
        if let Some(lane) = self.tenants.get_mut(&item.tenant) {
            lane.running -= 1;
            lane.session_runs(&item.session, false);
            lane.enter(&item);
        }
        self.settle(&item.tenant);
    }

    /// A run is over, running or not.
    pub(crate) fn remove(&mut self, run: &RunId) {
        let Some(Slot { item, running }) = self.runs.remove(run) else { return };
        if let Some(lane) = self.tenants.get_mut(&item.tenant) {
            lane.runs -= 1;
            if running {
                lane.running -= 1;
                lane.session_runs(&item.session, false);
            } else {
                lane.leave(&item);
            }
        }
        self.settle(&item.tenant);
    }

    /// Puts a tenant into the ring or takes it out, and forgets one without runs.
    fn settle(&mut self, tenant: &Tenant) {
        let Some(lane) = self.tenants.get_mut(tenant) else { return };
        let ready = lane.running < lane.limit && !lane.heads.is_empty();
        match (ready, lane.number) {
            (true, None) => {
                self.numbers += 1;
                lane.number = Some(self.numbers);
                self.ring.insert(self.numbers, tenant.clone());
            }
            (false, Some(number)) => {
                lane.number = None;
                self.ring.remove(&number);
            }
            (true, Some(_)) | (false, None) => {}
        }
        if lane.runs == 0 {
            self.tenants.remove(tenant);
        }
    }
}

impl Lane {
    fn enter(&mut self, item: &Item) {
        let place = (item.created, item.run.clone());
        if item.session.is_empty() {
            self.heads.insert(place);
            return;
        }
        let session = self.sessions.entry(item.session.clone()).or_default();
        let head = session.queued.first().cloned();
        session.queued.insert(place.clone());
        if !session.running && head.as_ref().is_none_or(|head| place < *head) {
            head.map(|head| self.heads.remove(&head));
            self.heads.insert(place);
        }
    }

    fn leave(&mut self, item: &Item) {
        let place = (item.created, item.run.clone());
        let was_head = self.heads.remove(&place);
        let Some(session) = self.sessions.get_mut(&item.session) else { return };
        session.queued.remove(&place);
        if was_head && let Some(head) = session.queued.first() {
            self.heads.insert(head.clone());
        }
        if session.queued.is_empty() && !session.running {
            self.sessions.remove(&item.session);
        }
    }

    fn session_runs(&mut self, name: &Arc<str>, running: bool) {
        if name.is_empty() {
            return;
        }
        let session = self.sessions.entry(name.clone()).or_default();
        session.running = running;
        if let Some(head) = session.queued.first() {
            if running {
                self.heads.remove(head);
            } else {
                self.heads.insert(head.clone());
            }
        } else if !running {
            self.sessions.remove(name);
        }
    }
}

#[cfg(test)]
mod tests;
