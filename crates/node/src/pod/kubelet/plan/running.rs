//! What a pod that should run needs next.

use super::super::memory::{Backoff, Ending, Kind as Probe, Probing, later};
use super::super::spec::{self, Kind};
use super::super::status::SCHEME;
use super::view::due;
use super::{Action, View, Work, ending, freezing};

pub(super) fn run(work: &mut Work<'_>) {
    let now = work.seen.now;
    let dead = work.seen.state.is_some() && !work.alive();
    if dead && !wants_life(work) {
        work.memory.ending = Some(Ending::Finished);
        return;
    }
    if work.memory.volumes.due(now) {
        work.memory.volumes.busy = true;
        work.actions.push(Action::Volumes);
    } else if let Some(again) = work.memory.volumes.waits() {
        work.look_at(again);
    }
    // One whose making is under way, or failed half way, lacks something yet: its address.
    let whole = !work.memory.create.busy && work.memory.create.again.is_none();
    if work.alive() && whole {
        containers(work);
        return;
    }
    if work.memory.create.done {
        // It was there, and has gone.
        work.memory.create = super::super::memory::Step::default();
    }
    if !work.memory.volumes.done {
        return;
    }
    if work.memory.create.due(now) {
        if dead && work.views.iter().any(|it| it.last.is_some()) {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            work.note(false, "SandboxChanged", message.to_owned(), None);
        }
        work.memory.create.busy = true;
        work.actions.push(Action::Create);
    } else if let Some(again) = work.memory.create.waits() {
        work.look_at(again);
    }
}

/// Whether there is anything left to run for a pod whose processes have all gone with its first one.
fn wants_life(work: &Work<'_>) -> bool {
    let pod = work.seen.pod;
    let ran = work.views.iter().any(|it| it.last.is_some());
    if ran && spec::policy(pod) == "Never" {
        return false;
    }
    let again = |view: &View<'_>| view.end().is_none_or(|end| view.unit.restarts(pod, end.code));
    let regular = |it: &&View<'_>| it.unit.kind == Kind::Regular;
    work.views.iter().filter(regular).any(again)
}

fn containers(work: &mut Work<'_>) {
    let pod = work.seen.pod;
    let views = work.views.clone();
    let of = |kind: Kind| views.iter().filter(move |it| it.unit.kind == kind);
    let inits: Vec<&View<'_>> = views.iter().filter(|it| matches!(it.unit.kind, Kind::Init | Kind::Sidecar)).collect();
    let begun = of(Kind::Regular).any(|it| it.current().is_some());
    let mut wanted: Vec<&View<'_>> = of(Kind::Ephemeral).filter(|it| it.last.is_none()).collect();
    let mut initialized = true;
    for (at, view) in inits.iter().enumerate() {
        let later_ones = inits.iter().skip(at + 1).any(|it| it.current().is_some());
        let part = work.memory.parts.get(view.unit.name());
        let waits = match (view.unit.kind, view.current().map(|it| it.end.as_ref())) {
            (Kind::Sidecar, Some(None)) => !(view.started(part) || later_ones || begun),
            (Kind::Sidecar, _) => {
                wanted.push(view);
                !(later_ones || begun)
            }
            _ if begun || later_ones => false,
            (_, Some(None)) => true,
            (_, Some(Some(end))) if end.code == 0 => false,
            (_, Some(Some(end))) if !view.unit.restarts(pod, end.code) => {
                work.memory.ending = Some(Ending::Finished);
                return;
            }
            _ => {
                wanted.push(view);
                true
            }
        };
        if waits {
            initialized = false;
            break;
        }
    }
    if initialized {
        let again = |it: &&View<'_>| match it.last.as_ref().map(|it| it.end.as_ref()) {
            None => true,
            Some(None) => false,
            Some(Some(end)) => {
                let part = work.memory.parts.get(it.unit.name());
                let replaced = part.and_then(|part| part.replaced);
                it.unit.restarts(pod, end.code) || replaced == it.last.as_ref().map(|it| it.number)
            }
        };
        let regular: Vec<&View<'_>> = of(Kind::Regular).filter(again).collect();
        let some_run = of(Kind::Regular).any(|it| it.running().is_some());
        let starting = of(Kind::Regular).any(|it| work.memory.part(it.unit.name()).starting.is_some());
        if regular.is_empty() && !some_run && !starting {
            work.memory.ending = Some(Ending::Finished);
            return;
        }
        wanted.extend(regular);
    }
    if freezing::still(work) {
        // What is asked for by now is what it runs: another image is seen when it goes on.
        for view in &views {
            let part = work.memory.part(view.unit.name());
            part.asked = part.asked.take().or_else(|| view.unit.spec.image.clone());
        }
        return;
    }
    for view in &views {
        redefined(work, view);
        if view.running().is_some() {
            unhealthy(work, view);
        }
    }
    // One after the other, as a kubelet does: a postStart hook holds up who comes after.
    let mut free = !work.starts();
    for view in wanted {
        let may = may_start(work, view);
        if may && free {
            start(work, view);
            free = false;
        }
    }
}

/// Another image begins from the beginning: without the waits of the one before, and at once.
fn redefined(work: &mut Work<'_>, view: &View<'_>) {
    let name = view.unit.name();
    let part = work.memory.part(name);
    if part.starting.is_some() || part.asked.as_ref() == view.unit.spec.image.as_ref() {
        return;
    }
    let known = std::mem::replace(&mut part.asked, view.unit.spec.image.clone()).is_some();
    if !known {
        return;
    }
    (part.backoff, part.pull, part.failed) = (None, None, None);
    let stays = matches!(view.unit.kind, Kind::Init | Kind::Ephemeral);
    if let Some(attempt) = view.running().filter(|_| !stays) {
        part.replaced = Some(attempt.number);
        if part.stopping.is_none() {
            ending::begin(work, view, format!("Container {name} definition changed, will be restarted"), None);
        }
    }
}

/// Whether it need not wait, after it crashed or could not be started.
fn may_start(work: &mut Work<'_>, view: &View<'_>) -> bool {
    let now = work.seen.now;
    let name = view.unit.name();
    let part = work.memory.part(name).clone();
    if part.starting.is_some() {
        return false;
    }
    let path = Some(view.unit.field_path());
    if let Some(until) = view.waits_until(Some(&part)).filter(|until| *until > now) {
        work.look_at(until);
        let shown = view.shows_wait().unwrap_or(now).min(until);
        if shown > now {
            work.look_at(shown);
        } else if part.told != Some(until) {
            work.memory.part(name).told = Some(until);
            let pod = spec::full_name(work.seen.pod);
            work.note(true, "BackOff", format!("Back-off restarting failed container {name} in pod {pod}"), path);
        }
        return false;
    }
    let Some((failed, until)) = part.failed.as_ref().and_then(|it| Some((it, it.again?))) else { return true };
    if until <= now {
        return true;
    }
    work.look_at(until);
    if failed.is_pull() {
        if failed.shown_until() > now {
            work.look_at(failed.shown_until());
        } else if part.told != Some(until) {
            work.memory.part(name).told = Some(until);
            let image = view.unit.spec.image.as_deref().unwrap_or_default();
            work.note(false, "BackOff", format!("Back-off pulling image \"{image}\""), path.clone());
            work.note(true, "Failed", "Error: ImagePullBackOff".to_owned(), path);
        }
    }
    false
}

fn start(work: &mut Work<'_>, view: &View<'_>) {
    let now = work.seen.now;
    let name = view.unit.name();
    let part = work.memory.part(name);
    part.before = part.backoff;
    if let Some(end) = view.end() {
        part.waited = part.backoff.filter(|it| it.until(end.finished).is_some()).map(|it| it.wait);
        part.backoff = Some(Backoff::next(part.backoff, end.finished, now));
    }
    part.starting = Some(view.next);
    work.memory.cancelled = false;
    work.actions.push(Action::Start { container: name.to_owned(), attempt: view.next });
}

/// Ends a container whose probes say that it does not live.
fn unhealthy(work: &mut Work<'_>, view: &View<'_>) {
    let name = view.unit.name();
    let part = work.memory.part(name);
    if part.stopping.is_some() {
        ending::drive(work, view, true);
        return;
    }
    if let Some(message) = part.doomed.take() {
        ending::begin(work, view, message, None);
        ending::drive(work, view, true);
        return;
    }
    let failed = |kind: Probe| part.probes.get(&kind).is_some_and(|it| it.result == Some(false));
    let (what, probe) = if failed(Probe::Liveness) {
        ("liveness", &view.unit.spec.liveness_probe)
    } else if failed(Probe::Startup) {
        ("startup", &view.unit.spec.startup_probe)
    } else {
        return;
    };
    let grace = probe.as_ref().and_then(|it| it.termination_grace_period_seconds);
    let again = view.unit.restarts(work.seen.pod, 137);
    let message = format!("Container {name} failed {what} probe{}", if again { ", will be restarted" } else { "" });
    ending::begin(work, view, message, grace);
    ending::drive(work, view, true);
}

/// Probes what is due.
pub(super) fn probe(work: &mut Work<'_>) {
    let now = work.seen.now;
    let ends = work.memory.ending.is_some();
    let (still, frozen) = (freezing::still(work), freezing::frozen(work));
    for view in work.views.clone() {
        let Some(attempt) = view.running() else { continue };
        let part = work.memory.part(view.unit.name()).clone();
        if part.starting.is_some() {
            continue;
        }
        let began = attempt.started.unwrap_or(now);
        // What was found before this process began to look still holds.
        let shown = view.shown.filter(|it| {
            it.container_id.as_ref().is_some_and(|id| id.strip_prefix(SCHEME) == Some(attempt.id.as_str()))
        });
        for kind in Probe::ALL {
            let Some(spec) = probe_of(&view, kind) else { continue };
            let quiet = part.stopping.is_some() || ends;
            if quiet && kind != Probe::Readiness {
                continue;
            }
            let first = due(began, spec.initial_delay_seconds.unwrap_or(0).into());
            let name = view.unit.name();
            let entry = work.memory.part(name).probes.entry(kind);
            let it = entry.or_insert_with(|| {
                let known = match kind {
                    Probe::Startup => shown.and_then(|it| it.started).filter(|it| *it),
                    Probe::Readiness => shown.map(|it| it.ready).filter(|it| *it && !frozen),
                    Probe::Liveness => None,
                };
                Probing::new(&attempt.id, first, known)
            });
            // Who stood still is probed anew. That he has started once stays true.
            let starts_over = frozen && !(kind == Probe::Startup && it.result == Some(true));
            if it.id != attempt.id || starts_over {
                *it = Probing::new(&attempt.id, first, None);
            }
            it.hold |= kind == Probe::Startup && it.result == Some(true);
            if still {
                continue;
            }
            let started = view.started(work.memory.parts.get(name));
            let it = work.memory.part(name).probes.get_mut(&kind);
            let Some(it) = it.filter(|it| !it.hold && !it.busy && (started || kind == Probe::Startup)) else {
                continue;
            };
            if it.next <= now {
                it.busy = true;
                let (container, id) = (name.to_owned(), attempt.id.clone());
                work.actions.push(Action::Probe { container, kind, id });
            } else {
                // A clock that was set back must not silence it.
                it.next = it.next.min(later(now.max(began), longest(spec)));
                let next = it.next;
                work.look_at(next);
            }
        }
    }
}

fn longest(spec: &k8s_openapi::api::core::v1::Probe) -> jiff::SignedDuration {
    let seconds = spec.initial_delay_seconds.unwrap_or(0).max(spec.period_seconds.unwrap_or(10)).max(1);
    jiff::SignedDuration::from_secs(seconds.into())
}

pub(crate) fn probe_of<'a>(view: &'a View<'_>, kind: Probe) -> Option<&'a k8s_openapi::api::core::v1::Probe> {
    match kind {
        Probe::Startup => view.unit.spec.startup_probe.as_ref(),
        Probe::Liveness => view.unit.spec.liveness_probe.as_ref(),
        Probe::Readiness => view.unit.spec.readiness_probe.as_ref(),
    }
}
