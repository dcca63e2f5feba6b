//! What pods share with sandboxes: ids of the host, control groups, and a launcher that ends them when no node is left.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::{Engine, Sandbox};
use crate::Error;

/// What the names of pods' control groups begin with, and no id of a sandbox has in it.
pub(crate) const GROUP: &str = "pod_";

/// A pod's place on this machine.
#[derive(Clone, Default)]
pub(crate) struct Seat {
    /// Its range of ids.
    pub slot: Option<u32>,
    /// Its first process, once there is one.
    pub pidfd: Option<Arc<OwnedFd>>,
}

/// The name of a pod's control groups.
pub(crate) fn group(uid: &str) -> String {
    format!("{GROUP}{uid}")
}

impl Engine {
    pub(super) fn seats(&self) -> MutexGuard<'_, BTreeMap<String, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a pod, with ids that nobody else has; the one that it has already.
    pub(crate) fn seat(&self, uid: &str) -> Result<Seat, Error> {
        let map = self.map();
        let mut seats = self.seats();
        if let Some(seat) = seats.get(uid) {
            return Ok(seat.clone());
        }
        let seat = Seat { slot: self.free(&map, &seats)?, pidfd: None };
        seats.insert(uid.to_owned(), seat.clone());
        Ok(seat)
    }

    /// Whether one more sandbox or pod may be here, and the range of ids that it has for itself where each has one.
    pub(super) fn free(
        &self,
        map: &BTreeMap<String, Arc<Sandbox>>,
        seats: &BTreeMap<String, Seat>,
    ) -> Result<Option<u32>, Error> {
        let used = map.values().filter_map(|it| it.slot()).chain(seats.values().filter_map(|it| it.slot)).collect();
        let (slot, there) = (self.ids.slot(&used), map.len() + seats.len());
        if there >= self.most || (slot.is_none() && self.ids.needs_slot()) {
            return Err(Error::Full(there));
        }
        Ok(slot)
    }

    /// A pod that an earlier node has left keeps what it has.
    pub(crate) fn keep_seat(&self, uid: &str, seat: Seat) {
        self.seats().insert(uid.to_owned(), seat);
    }

    pub(crate) fn leave_seat(&self, uid: &str) {
        self.seats().remove(uid);
    }

    pub(super) fn living_pods(&self) -> Vec<(Arc<OwnedFd>, Vec<PathBuf>)> {
        let seats = self.seats();
        let living = seats.iter().filter_map(|(uid, it)| Some((it.pidfd.clone()?, self.cgroups.dirs(&group(uid)))));
        living.collect()
    }

    /// From the moment on in which pods begin to be ended.
    pub(crate) fn is_ending(&self) -> bool {
        self.tasks.shutdown().has_begun()
    }
}
