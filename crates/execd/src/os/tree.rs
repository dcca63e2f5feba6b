//! All processes that come from one command, wherever they have hidden, and their end.
//!
//! A process belongs to a command when it carries the command's [`Mark`], when it is in the session of a process that
//! does, or when its parent does. A daemon that made its own session, lost its parents and was given an empty
//! environment still carries the mark.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::reaper::Reaper;
use super::workers::Workers;

/// What tells a command's processes from all others: a value of RLIMIT_LOCKS.
///
/// Linux has not enforced that limit since 2.4, children inherit it over fork and exec whatever else they change, every
/// process may read it in `/proc/PID/limits`, and nobody without CAP_SYS_RESOURCE over the machine can raise it again.
/// The value is the limit that we were given less a random number of 48 bits, so that an execd inside a command
/// of another execd has marks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark(u64);

impl Mark {
    /// None on a kernel (gVisor's) that will not have this limit set: there the session alone tells a tree.
    pub(crate) fn fresh() -> Option<Self> {
        let ours = rustix::process::getrlimit(Resource::Locks);
        rustix::process::setrlimit(Resource::Locks, ours).ok()?;
        let [a, b, c, d, e, f] = super::random::<6>();
        let down = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]).max(1);
        Some(Self(ours.maximum.unwrap_or(u64::MAX).saturating_sub(down)))
    }

    /// For the child, between fork and exec.
    pub(crate) fn put_on_self(self) -> io::Result<()> {
        Ok(rustix::process::setrlimit(Resource::Locks, Rlimit { current: Some(self.0), maximum: Some(self.0) })?)
    }

    fn is_on(self, limits: &str) -> bool {
        limits
            .lines()
            .find_map(|line| line.strip_prefix("Max file locks"))
            .and_then(|rest| rest.split_ascii_whitespace().nth(1))
            .is_some_and(|hard| hard.parse() == Ok(self.0))
    }
}

/// How long after SIGTERM a tree that does not end is killed, as OpenSandbox has it.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// How long the dead may take to go. Longer only where the kernel itself is stuck (a process in state D).
const BURIAL: Duration = Duration::from_secs(2);

/// One live process of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: Pid,
    /// Since boot, in ticks: tells two lives of one number apart.
    started: u64,
}

/// A command's tree: what its processes carry, and the first of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    pub mark: Option<Mark>,
    pub root: Pid,
}

/// Asks the tree to end, kills it when it has not after `grace`, and returns when it is gone: whether there was one.
pub(crate) async fn end(tree: Tree, grace: Duration, reaper: &Reaper, workers: &Workers) -> bool {
    let members = || workers.run(move || members(tree));
    let found = members().await.unwrap_or_default();
    if found.is_empty() {
        return false;
    }
    if !grace.is_zero() {
        for process in &found {
            let _ = rustix::process::kill_process(process.pid, Signal::TERM);
            // A stopped process takes its SIGTERM only when it goes on.
            let _ = rustix::process::kill_process(process.pid, Signal::CONT);
        }
        if gone(grace, reaper, members).await {
            return true;
        }
    }
    let _ = workers.run(move || kill(tree)).await;
    gone(BURIAL, reaper, members).await;
    true
}

/// Waits until the tree is empty. Its last process is always our child, by birth or as an orphan: so its death wakes us.
async fn gone<F>(within: Duration, reaper: &Reaper, members: impl Fn() -> F) -> bool
where
    F: Future<Output = Option<HashSet<Process>>>,
{
    let empty = async {
        loop {
            let died = reaper.died.notified();
            tokio::pin!(died);
            died.as_mut().enable();
            if members().await.is_none_or(|left| left.is_empty()) {
                return;
            }
            died.await;
        }
    };
    tokio::time::timeout(within, empty).await.is_ok()
}

/// Kills all of it at once. A process that forks for ever is stopped first: what is stopped does not fork, and what
/// was born meanwhile is found in the next round.
fn kill(tree: Tree) {
    kill_found(|| members(tree));
}

fn kill_found(find: impl Fn() -> HashSet<Process>) {
    let mut stopped = HashSet::new();
    for _ in 0..64 {
        let fresh: Vec<_> = find().into_iter().filter(|process| !stopped.contains(process)).collect();
        if fresh.is_empty() {
            break;
        }
        for process in fresh {
            let _ = rustix::process::kill_process(process.pid, Signal::STOP);
            stopped.insert(process);
        }
    }
    for process in stopped {
        let _ = rustix::process::kill_process(process.pid, Signal::KILL);
    }
}

/// Asks every process below us to end.
pub(crate) fn terminate_all() {
    for process in descendants() {
        let _ = rustix::process::kill_process(process.pid, Signal::TERM);
        let _ = rustix::process::kill_process(process.pid, Signal::CONT);
    }
}

/// Kills every process below us.
pub(crate) fn kill_all() {
    kill_found(descendants);
}

/// Every live process below us: orphans are our children.
fn descendants() -> HashSet<Process> {
    let all = everything();
    let mut found = HashSet::from([rustix::process::getpid()]);
    grow(&all, &mut found, |seen, found| pid(seen.parent).is_some_and(|at| found.contains(&at)));
    found.remove(&rustix::process::getpid());
    alive(&all, found)
}

/// Every live process of the tree; what is dead and not yet reaped does not count.
fn members(tree: Tree) -> HashSet<Process> {
    let all = everything();
    let carries = |pid: &Pid| match tree.mark {
        Some(mark) => fs::read_to_string(format!("/proc/{pid}/limits")).is_ok_and(|limits| mark.is_on(&limits)),
        None => *pid == tree.root,
    };
    let mut found: HashSet<Pid> = all.keys().copied().filter(carries).collect();
    // Sessions and children of those, until nothing new is found: for processes that lost the mark.
    let mut sessions: HashSet<i32> = found.iter().filter_map(|pid| all.get(pid).map(|seen| seen.session)).collect();
    if tree.mark.is_none() {
        sessions.insert(tree.root.as_raw_nonzero().get());
    }
    sessions.remove(&own_session());
    grow(&all, &mut found, |seen, found| {
        let theirs = sessions.contains(&seen.session) || pid(seen.parent).is_some_and(|at| found.contains(&at));
        if theirs {
            sessions.insert(seen.session);
        }
        theirs
    });
    alive(&all, found)
}

/// All processes but ourselves.
fn everything() -> HashMap<Pid, Seen> {
    let ourselves = rustix::process::getpid();
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let numbers = entries.flatten().filter_map(|entry| pid(entry.file_name().to_str()?.parse().ok()?));
    numbers
        .filter(|pid| *pid != ourselves)
        .filter_map(|pid| Some((pid, stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

/// Adds what `belongs` to what was found, until nothing new does.
fn grow(all: &HashMap<Pid, Seen>, found: &mut HashSet<Pid>, mut belongs: impl FnMut(&Seen, &HashSet<Pid>) -> bool) {
    loop {
        let before = found.len();
        for (pid, seen) in all {
            if !found.contains(pid) && belongs(seen, found) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return;
        }
    }
}

fn alive(all: &HashMap<Pid, Seen>, found: HashSet<Pid>) -> HashSet<Process> {
    let live = |pid: Pid| all.get(&pid).filter(|seen| seen.alive).map(|seen| Process { pid, started: seen.started });
    found.into_iter().filter_map(live).collect()
}

/// A number as a pid. A parent or a session outside of our pid namespace is 0.
fn pid(number: i32) -> Option<Pid> {
    if number > 0 { Pid::from_raw(number) } else { None }
}

/// Our own session, which is no command's.
fn own_session() -> i32 {
    fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(stat).map_or(0, |seen| seen.session)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    alive: bool,
    parent: i32,
    session: i32,
    started: u64,
}

/// Reads `/proc/PID/stat`. The second field is the program's name in brackets and may hold anything, brackets included.
fn stat(text: &str) -> Option<Seen> {
    let rest = text.rsplit_once(')')?.1;
    let mut fields = rest.split_ascii_whitespace();
    let alive = !matches!(fields.next()?, "Z" | "X" | "x");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Seen { alive, parent, session, started })
}

/// Sends `signal` to the group of a command's first process.
pub(crate) fn forward(root: Pid, signal: Signal) {
    let _ = rustix::process::kill_process_group(root, signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let line = "42 (a) (b\n) S 7 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99887 1 2";
        assert_eq!(stat(line), Some(Seen { alive: true, parent: 7, session: 43, started: 99_887 }));
        assert_eq!(stat("42 (z) Z 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0").map(|seen| seen.alive), Some(false));
        assert_eq!(stat("rubbish"), None);
    }

    #[test]
    fn a_mark_is_found_among_the_limits() {
        let limits = "Limit     Soft Limit   Hard Limit   Units\nMax open files            1024                 4096    \
                      files\nMax file locks            77                   78                   locks\n";
        assert!(Mark(78).is_on(limits));
        assert!(!Mark(77).is_on(limits));
        assert!(!Mark(78).is_on("Max file locks            unlimited            unlimited            locks\n"));
        assert_ne!(Mark::fresh(), Mark::fresh());
    }
}
