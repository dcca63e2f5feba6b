//! What is to be done about one pod, and what is to be said of it. Pure.

mod ending;
mod freezing;
mod running;
#[cfg(test)]
mod tests;
mod view;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::memory::{Ending, Kind as Probe, Memory, later};
use super::world::{Node, Refused};
use super::{admission, spec, status};
use crate::pod::PodState;
pub(super) use view::{Attempt, View, views};

/// More than anybody means.
const CONTAINERS: usize = 500;

/// Everything that is known.
pub(super) struct Seen<'a> {
    pub pod: &'a Pod,
    /// The API server has no such pod any more.
    pub gone: bool,
    pub state: Option<&'a PodState>,
    pub node: &'a Node,
    /// What other pods here have been promised; asked when the pod is new.
    pub others: admission::Promised,
    /// Why this node cannot have it, whatever room there is.
    pub refused: Option<Refused>,
    /// The node wants it to end.
    pub order: Option<&'a Ending>,
    /// What was last written as its status.
    pub told: &'a PodStatus,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Prepares volumes; creates the pod when that has not been done.
    Volumes,
    Create,
    /// Gets the image, starts the container and runs its postStart hook.
    Start {
        container: String,
        attempt: u32,
    },
    /// Gives up what waits in a start: a pull, a hook.
    Cancel,
    PreStop {
        container: String,
        seconds: i64,
    },
    Signal {
        container: String,
        signal: i32,
    },
    Kill {
        container: String,
    },
    /// Has all containers stand still, and gives up the probes that are under way; has them go on.
    Freeze,
    Thaw,
    Probe {
        container: String,
        kind: Probe,
        id: String,
    },
    /// Ends what is left of the pod; its logs stay.
    Stop,
    Remove,
    /// Removes the object.
    Delete,
}

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Note {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
    pub path: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub memory: Memory,
    pub actions: Vec<Action>,
    pub notes: Vec<Note>,
    /// `None`: nobody is left to be told.
    pub status: Option<PodStatus>,
    /// Look again at this time.
    pub again: Option<Timestamp>,
    /// More will be known in a moment.
    pub unsettled: bool,
    /// There is nothing to be done any more, ever.
    pub done: bool,
}

/// What the parts of a plan work on.
struct Work<'a> {
    seen: &'a Seen<'a>,
    views: Vec<View<'a>>,
    memory: Memory,
    actions: Vec<Action>,
    notes: Vec<Note>,
    again: Option<Timestamp>,
}

impl Work<'_> {
    fn look_at(&mut self, at: Timestamp) {
        self.again = Some(self.again.map_or(at, |it| it.min(at)));
    }

    fn note(&mut self, warning: bool, reason: &'static str, message: String, path: Option<String>) {
        self.notes.push(Note { warning, reason, message, path });
    }

    fn starts(&self) -> bool {
        self.memory.parts.values().any(|it| it.starting.is_some())
    }

    fn alive(&self) -> bool {
        self.seen.state.is_some_and(|it| it.alive)
    }
}

pub(super) fn plan(seen: &Seen<'_>, memory: Memory) -> Plan {
    let views = views(seen, &memory);
    let mut work = Work { seen, views, memory, actions: Vec::new(), notes: Vec::new(), again: None };
    begin(&mut work);
    why_end(&mut work);
    for view in work.views.clone() {
        forget(&mut work, &view);
    }
    if work.memory.ending.is_none() {
        freezing::keep(&mut work);
        running::run(&mut work);
    }
    if let Some(ending) = work.memory.ending.clone() {
        ending::end(&mut work, &ending);
    }
    running::probe(&mut work);
    let status = status::status(seen, &work.views, &work.memory);
    let gone = seen.gone || work.memory.delete.done;
    let deleted = work.memory.ending == Some(Ending::Deleted);
    if deleted {
        ending::leave(&mut work, &status);
    }
    let memory = work.memory;
    let unsettled = memory.volumes.busy || memory.create.busy || memory.stop.busy || memory.freezing.step.busy;
    let starts = memory.parts.values().any(|it| it.starting.is_some());
    Plan {
        done: seen.gone && memory.remove.done,
        // Nothing is known of it any more once it is removed.
        status: (!gone && !memory.remove.done && !memory.remove.busy).then_some(status),
        unsettled: unsettled || starts,
        actions: work.actions,
        notes: work.notes,
        again: work.again,
        memory,
    }
}

/// Its start time, and whether this node takes it.
fn begin(work: &mut Work<'_>) {
    let Seen { pod, state, now, .. } = work.seen;
    let written = pod.status.as_ref().and_then(|it| it.start_time.as_ref());
    work.memory.since.get_or_insert_with(|| written.map_or(*now, |it| it.0));
    if work.memory.admitted {
        return;
    }
    work.memory.admitted = true;
    // What this node has begun is not asked again.
    let known = written.is_some() || state.is_some() || spec::is_terminal(spec::phase(pod));
    if known || work.seen.gone || pod.metadata.deletion_timestamp.is_some() {
        return;
    }
    let many = work.views.len();
    let refused = if many > CONTAINERS {
        let message = format!("a pod of {many} containers: at most {CONTAINERS} run here");
        Some(Refused { reason: "TooManyContainers".into(), message })
    } else {
        admission::admit(pod, work.seen.node, &work.seen.others).err().or_else(|| work.seen.refused.clone())
    };
    if let Some(Refused { reason, message }) = refused {
        work.note(true, known_reason(&reason), message.clone(), None);
        work.memory.ending = Some(Ending::Rejected { reason: reason.into_owned(), message });
    }
}

fn why_end(work: &mut Work<'_>) {
    let Seen { pod, gone, order, now, .. } = work.seen;
    let was = work.memory.ending.clone();
    let deleted = *gone || pod.metadata.deletion_timestamp.is_some();
    if deleted {
        work.memory.ending = Some(Ending::Deleted);
    } else if was.is_none() {
        let seconds = pod.spec.as_ref().and_then(|it| it.active_deadline_seconds);
        let deadline =
            seconds.zip(work.memory.since).map(|(seconds, since)| later(since, SignedDuration::from_secs(seconds)));
        if spec::is_terminal(spec::phase(pod)) {
            work.memory.ending = Some(Ending::Finished);
        } else if let Some(order) = order {
            work.memory.ending = Some((*order).clone());
            if let Ending::Failed { reason, message, .. } = order
                && reason == "Evicted"
            {
                work.note(true, "Evicted", message.clone(), None);
            }
        } else if let Some(deadline) = deadline {
            if deadline <= *now {
                let message = "Pod was active on the node longer than the specified deadline";
                work.note(false, "DeadlineExceeded", message.to_owned(), None);
                let (reason, message) = ("DeadlineExceeded".to_owned(), message.to_owned());
                work.memory.ending = Some(Ending::Failed { reason, message, grace: None, disruption: false });
            } else {
                work.look_at(deadline);
            }
        }
    }
}

/// Reasons of events are few.
fn known_reason(reason: &str) -> &'static str {
    const ALL: [&str; 7] = [
        "OutOfpods",
        "OutOfcpu",
        "OutOfmemory",
        "NodeAffinity",
        "PodOSNotSupported",
        "TooManyContainers",
        "UnexpectedAdmissionError",
    ];
    ALL.into_iter().find(|it| *it == reason).unwrap_or("Forbidden")
}

/// What concerned an attempt that has ended.
fn forget(work: &mut Work<'_>, view: &View<'_>) {
    let running = view.running().map(|it| it.number);
    let part = work.memory.part(view.unit.name());
    part.stopping.take_if(|it| Some(it.attempt) != running);
    if running.is_none() {
        part.doomed = None;
        part.probes.clear();
    }
}
