//! Whether a pod's containers stand still: what its annotation says, and when that can be done.

use api::labels::FROZEN;

use super::super::spec::Kind;
use super::{Action, Work};

/// What the annotation says.
enum Wish<'a> {
    Frozen,
    Thawed,
    Unclear(&'a str),
}

/// The reason of the event that says that nothing comes of a wish.
const REFUSED: &str = "FreezeRefused";

fn wish<'a>(work: &Work<'a>) -> Wish<'a> {
    match work.seen.pod.metadata.annotations.as_ref().and_then(|all| all.get(FROZEN)).map(String::as_str) {
        Some("true") => Wish::Frozen,
        Some("false") | None => Wish::Thawed,
        Some(other) => Wish::Unclear(other),
    }
}

/// No process is to be started in its containers, asked anything or told to end.
pub(super) fn still(work: &Work<'_>) -> bool {
    work.memory.freezing.step.busy || frozen(work)
}

/// They stand still.
pub(super) fn frozen(work: &Work<'_>) -> bool {
    work.seen.state.is_some_and(|it| it.alive && it.frozen)
}

/// Does as the annotation says, to a pod that goes on.
pub(super) fn keep(work: &mut Work<'_>) {
    match wish(work) {
        Wish::Unclear(value) => {
            let value: String = value.chars().take(64).collect();
            refuse(
                work,
                format!(
                    "the annotation {FROZEN} is {value:?}: \"true\" freezes the pod, \"false\" or no annotation thaws it; \
                     nothing has changed"
                ),
            );
        }
        Wish::Frozen if frozen(work) => work.memory.freezing.told = None,
        Wish::Frozen => {
            if let Some(why) = &work.seen.node.no_freezer {
                refuse(work, format!("this node cannot freeze pods, so this one runs on: {why}"));
            } else if can_freeze(work) {
                turn(work, Action::Freeze);
            }
        }
        Wish::Thawed => {
            work.memory.freezing.told = None;
            if frozen(work) {
                turn(work, Action::Thaw);
            }
        }
    }
}

/// Once for the same reason.
fn refuse(work: &mut Work<'_>, why: String) {
    if work.memory.freezing.told.as_ref() != Some(&why) {
        work.memory.freezing.told = Some(why.clone());
        work.note(true, REFUSED, why, None);
    }
}

fn turn(work: &mut Work<'_>, action: Action) {
    let step = &mut work.memory.freezing.step;
    if step.due(work.seen.now) {
        step.busy = true;
        work.actions.push(action);
    } else if let Some(again) = step.waits() {
        work.look_at(again);
    }
}

/// It has come so far that every container has run, and nothing is under way that would have to be waited for.
fn can_freeze(work: &Work<'_>) -> bool {
    let made = work.alive() && !work.memory.create.busy && work.memory.create.again.is_none();
    made && work.views.iter().all(|view| {
        let part = work.memory.parts.get(view.unit.name());
        let hooked = view.unit.spec.lifecycle.as_ref().is_some_and(|it| it.post_start.is_some());
        let starts = part.is_some_and(|it| it.starting.is_some());
        let ends = part.is_some_and(|it| it.stopping.is_some() || it.doomed.is_some());
        // What is pulled meanwhile is not started then. A hook would find nobody to talk to.
        let hook = starts && (hooked || view.running().is_some());
        let begun = match view.unit.kind {
            Kind::Regular | Kind::Sidecar => view.current().is_some(),
            // Those come before: a regular one has run.
            Kind::Init | Kind::Ephemeral => true,
        };
        begun && !ends && !hook
    })
}

/// What ends has to hear of it: whether that has to be waited for. One that cannot be thawed is killed when its time is up.
pub(super) fn thaw_first(work: &mut Work<'_>) -> bool {
    if frozen(work) && work.memory.freezing.step.due(work.seen.now) {
        turn(work, Action::Thaw);
    }
    work.memory.freezing.step.busy
}
