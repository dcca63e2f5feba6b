//! The decision, without I/O: `attemptToDeleteItem` of Kubernetes' garbage collector.

use super::propagation;
use crate::local::Meta;
use crate::verbs::Propagation;

pub(crate) const ORPHAN: &str = "orphan";
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// What an owner reference is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tie {
    /// The owner is there.
    Solid,
    /// The owner is being deleted and waits for its dependents.
    Waiting,
    /// There is no such owner (any more).
    Absent,
    /// It cannot be known whether there is: the kind is not served, or may not own this.
    Unresolved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    /// Nothing, until kinds come or go.
    Unresolved,
    /// Take the finalizer away.
    Release(&'static str),
    /// Take the dependents' references away, and then the finalizer.
    Orphan,
    /// Take these references (uids) away: others hold the object.
    Detach(Vec<String>),
    Delete {
        propagation: Propagation,
        /// Let its own owners no longer wait for it, first: it and they wait for each other.
        unblock: bool,
    },
}

/// What to do with an object, given its owner references' worth (in their order) and its dependents.
pub(crate) fn plan<'a>(it: &Meta, ties: &[Tie], mut dependents: impl Iterator<Item = &'a Meta> + Clone) -> Step {
    if it.is_deleting() {
        if it.has_finalizer(ORPHAN) {
            return Step::Orphan;
        }
        if !it.has_finalizer(FOREGROUND) {
            return Step::Nothing;
        }
        let blocks = |dependent: &Meta| {
            dependent.owners().iter().any(|owner| owner.uid == it.uid && owner.block_owner_deletion == Some(true))
        };
        return if dependents.any(blocks) { Step::Nothing } else { Step::Release(FOREGROUND) };
    }
    if it.owners().is_empty() {
        return Step::Nothing;
    }
    if ties.contains(&Tie::Unresolved) {
        return Step::Unresolved;
    }
    if ties.contains(&Tie::Solid) {
        let loose = it.owners().iter().zip(ties).filter(|(_, tie)| **tie != Tie::Solid);
        let uids: Vec<String> = loose.map(|(owner, _)| owner.uid.clone()).collect();
        return if uids.is_empty() { Step::Nothing } else { Step::Detach(uids) };
    }
    if ties.contains(&Tie::Waiting) && dependents.clone().next().is_some() {
        let circle = dependents.any(|it| it.is_deleting() && it.has_finalizer(FOREGROUND));
        let blocking = it.owners().iter().any(|owner| owner.block_owner_deletion == Some(true));
        return Step::Delete { propagation: Propagation::Foreground, unblock: circle && blocking };
    }
    Step::Delete { propagation: propagation(it), unblock: false }
}
