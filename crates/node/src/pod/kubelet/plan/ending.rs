//! How containers and pods are ended.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;

use super::super::memory::{Ending, Hook, Stopping, later};
use super::super::spec::{self, Kind};
use super::view::due;
use super::{Action, View, Work, freezing};
use crate::pod::signals;

/// What a container has at least between being asked and being killed, when it has anything at all.
const LEAST: SignedDuration = SignedDuration::from_secs(2);
const TERM: i32 = 15;

/// Everything that is done about a pod that ends, up to what is left when nothing of it runs.
pub(super) fn end(work: &mut Work<'_>, ending: &Ending) {
    if work.starts() && !work.memory.cancelled {
        work.memory.cancelled = true;
        work.actions.push(Action::Cancel);
    }
    if freezing::thaw_first(work) {
        return;
    }
    let grace = match ending {
        Ending::Failed { grace, .. } => *grace,
        Ending::Closed { grace } => Some(spec::grace(work.seen.pod).min(*grace)),
        _ => None,
    };
    let views = work.views.clone();
    for (at, view) in views.iter().enumerate() {
        if view.running().is_none() {
            continue;
        }
        if work.memory.part(view.unit.name()).stopping.is_none() {
            begin(work, view, format!("Stopping container {}", view.unit.name()), grace);
        }
        // Who serves the others ends after them, the last one that was started first.
        let after = |it: &View<'_>| matches!(it.unit.kind, Kind::Regular | Kind::Sidecar) && it.running().is_some();
        let turn = view.unit.kind != Kind::Sidecar || !views.iter().skip(at + 1).any(after);
        drive(work, view, turn);
    }
    let over = views.iter().all(|it| it.running().is_none()) && !work.starts();
    let step = &mut work.memory.stop;
    if *ending != Ending::Deleted && over && work.seen.state.is_some_and(|it| it.alive) {
        if step.due(work.seen.now) {
            step.busy = true;
            work.actions.push(Action::Stop);
        } else if let Some(again) = step.waits() {
            work.look_at(again);
        }
    }
}

/// A pod that is deleted leaves when what became of it is written.
pub(super) fn leave(work: &mut Work<'_>, status: &PodStatus) {
    let now = work.seen.now;
    let runs = work.views.iter().any(|it| it.running().is_some()) || work.starts();
    let memory = &work.memory;
    let busy = memory.volumes.busy || memory.create.busy || memory.stop.busy || memory.freezing.step.busy;
    if runs || busy {
        return;
    }
    let removed = work.memory.remove.done;
    if !removed && !work.seen.gone && work.seen.told != status {
        return;
    }
    let step = if removed { &mut work.memory.delete } else { &mut work.memory.remove };
    if removed && work.seen.gone {
        return;
    }
    if step.due(now) {
        step.busy = true;
        work.actions.push(if removed { Action::Delete } else { Action::Remove });
    } else if let Some(again) = step.waits() {
        work.look_at(again);
    }
}

/// Notes that a container is to end, and why.
pub(super) fn begin(work: &mut Work<'_>, view: &View<'_>, message: String, grace: Option<i64>) {
    let Some(attempt) = view.running() else { return };
    let hooked = view.unit.spec.lifecycle.as_ref().is_some_and(|it| it.pre_stop.is_some());
    let stopping = Stopping {
        attempt: attempt.number,
        began: work.seen.now,
        grace,
        hook: if hooked { Hook::Todo } else { Hook::Done },
        signalled: None,
        killing: false,
        again: None,
    };
    work.note(false, "Killing", message, Some(view.unit.field_path()));
    work.memory.part(view.unit.name()).stopping = Some(stopping);
}

/// The next step of a container's end: its hook, its signal, its death. `turn`: nobody has to end before it.
pub(super) fn drive(work: &mut Work<'_>, view: &View<'_>, turn: bool) {
    let name = view.unit.name().to_owned();
    let now = work.seen.now;
    let own = work.seen.pod.metadata.deletion_grace_period_seconds;
    let gone = work.seen.gone;
    let pods = spec::grace(work.seen.pod);
    let Some(it) = work.memory.part(&name).stopping.as_mut() else { return };
    // Who deletes a pod may hurry what had begun to end before.
    let grace = match (it.grace, own) {
        _ if gone => 0,
        (Some(given), Some(own)) => given.min(own),
        (given, _) => given.unwrap_or(pods),
    };
    let end = due(it.began, grace);
    let mut again: Option<Timestamp> = None;
    let mut action = None;
    let kill = match it.signalled {
        _ if grace == 0 => Some(now),
        // A hook that took all the time leaves a little for the container.
        Some(at) => Some(end.max(later(at, LEAST))),
        None => None,
    };
    if it.killing {
        // It is on its way.
    } else if let Some(at) = kill {
        let at = at.max(it.again.unwrap_or(at));
        if at <= now {
            it.killing = true;
            action = Some(Action::Kill { container: name.clone() });
        } else {
            again = Some(at);
        }
    } else if it.hook == Hook::Todo {
        it.hook = Hook::Busy;
        action = Some(Action::PreStop { container: name.clone(), seconds: grace });
        again = Some(end);
    } else if (it.hook == Hook::Done && turn) || end <= now {
        it.signalled = Some(now);
        again = Some(end.max(later(now, LEAST)));
        let named = view.unit.spec.lifecycle.as_ref().and_then(|it| it.stop_signal.as_deref());
        let signal =
            named.and_then(signals::number).or_else(|| view.running().and_then(|it| it.stop_signal)).unwrap_or(TERM);
        action = Some(Action::Signal { container: name.clone(), signal });
    } else {
        again = Some(end);
    }
    work.actions.extend(action);
    if let Some(again) = again {
        work.look_at(again);
    }
}
