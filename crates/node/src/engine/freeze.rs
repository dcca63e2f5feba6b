//! Freezing without a control group: every process is stopped by a signal.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::process::{Pid, Signal};

use super::sandbox::Sandbox;

/// Looks until nobody new is found: a process may fork while its parent is being stopped.
const ROUNDS: usize = 64;

/// Sends SIGSTOP or SIGCONT to all of a sandbox.
///
/// Everything in a pid namespace descends from its first process, orphans included.
pub(super) fn signal(sandbox: &Sandbox, stop: bool) -> io::Result<()> {
    let process = sandbox.live().state.process.ok_or(io::ErrorKind::NotFound)?;
    let signal = if stop { Signal::STOP } else { Signal::CONT };
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        let all = descendants(process.pid);
        let fresh: Vec<_> = all.iter().filter(|it| !done.contains(*it)).copied().collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for pid in fresh {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, signal);
            }
            done.insert(pid);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn descendants(first: i32) -> BTreeSet<i32> {
    let (mut all, mut look) = (BTreeSet::new(), vec![first]);
    while let Some(pid) = look.pop() {
        if !all.insert(pid) {
            continue;
        }
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            look.extend(children.split_whitespace().filter_map(|it| it.parse::<i32>().ok()));
        }
    }
    all
}
