//! Places at which a test kills the node, as a machine may at any instruction.

/// The steps of a sandbox's life, in order, between which the node can die.
#[cfg(feature = "holes")]
pub const STEPS: &[&str] = &[
    "create: noted",
    "create: listening",
    "create: made",
    "create: written down",
    "create: started",
    "bind: written down",
    "bind: attached",
    "bind: bound",
    "end: noted",
    "end: killed",
    "end: ended",
    "end: groups removed",
];

/// The same of a pod's life.
#[cfg(test)]
pub(crate) const POD_STEPS: &[&str] = &[
    "pod: listening",
    "pod: made",
    "pod: written down",
    "pod: started",
    "pod: given its volumes",
    "pod: alive",
    "container: groups made",
    "container: executed",
    "container: written down",
    "container: stands still",
    "container: goes on",
    "container: ended",
    "container: forgotten",
    "pod: killed",
    "pod: settled",
    "pod: groups removed",
    "pod: directory removed",
];

#[cfg(feature = "holes")]
static DIES_AT: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Makes this process kill itself when it comes to `step`, one of [`STEPS`] or a pod's.
#[cfg(feature = "holes")]
pub fn die_at(step: &str) {
    let _ = DIES_AT.set(step.to_owned());
}

/// Dies here, if a test asked for it.
#[cfg(feature = "holes")]
pub(crate) fn point(step: &str) {
    if DIES_AT.get().is_some_and(|it| it == step) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(feature = "holes"))]
pub(crate) fn point(_step: &str) {}
