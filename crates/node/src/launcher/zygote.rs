//! The launcher's own life: set up once, then fork for whoever asks, and tell who has ended.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use rustix::thread::UnshareFlags;

use super::stage::Stage;
use super::{Answer, Ask, Failure, Rootless, Setup, Status, Step, Tell, builder, disk, message};
use crate::cgroup::SHIM;
use crate::guard::Guards;
use crate::sys::{self, Fork};

/// Is the launcher, if this program was started as one, and then never returns.
///
/// Must be the first thing that `main` does: the launcher must have one thread only.
pub(crate) fn main() {
    let mut args = std::env::args_os();
    if args.next().is_none_or(|name| name != super::NAME) {
        return;
    }
    let code = match args.next().and_then(|it| serde_json::from_slice::<Setup>(it.as_encoded_bytes()).ok()) {
        None => 2,
        Some(setup) => {
            let node = sys::inherited(0);
            match run(&setup, node.as_fd()) {
                Ok(()) => 0,
                Err(failure) => {
                    let _ = message::send(node.as_fd(), &Tell::Failed(failure), &[]);
                    1
                }
            }
        }
    };
    sys::exit_now(code)
}

/// Serves until the node closes its end.
fn run(setup: &Setup, node: BorrowedFd<'_>) -> Result<(), Failure> {
    rustix::thread::set_name(c"insula-launcher").step(|| "name the launcher".into())?;
    if setup.guards.has(Guards::DESCRIPTORS) {
        sys::close_from(3).step(|| "close what the node left open".into())?;
    }
    let ended = sys::child_signals().step(|| "watch for children".into())?;
    own_namespaces(setup, node)?;
    let stage = Stage::build(setup)?;
    message::send(node, &Tell::Ready(stage.found), &[]).step(|| "answer the node".into())?;

    let parent = rustix::process::getppid().and_then(|it| rustix::process::pidfd_open(it, PidfdFlags::empty()).ok());
    let (births, newborn) = message::pair().step(|| "make a socket".into())?;
    rustix::io::ioctl_fionbio(&births, true).step(|| "make a socket".into())?;
    let mut family = Family { newborn, builders: HashSet::new(), sandboxes: Vec::new(), bases: BTreeSet::new() };
    loop {
        let mut ready = [node, ended.as_fd(), births.as_fd()].map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN));
        match rustix::event::poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.step(|| "wait for requests".into())?,
        };
        let [asked, died, born] = ready.map(|it| !it.revents().is_empty());
        if born {
            while let Ok(Some((cgroups, fds))) = message::receive::<Vec<PathBuf>>(births.as_fd()) {
                family.take_over(cgroups, fds.into_iter().next());
            }
        }
        if died {
            let mut info = [0u8; 128];
            while rustix::io::read(&ended, &mut info).is_ok() {}
            family.reap(node);
        }
        if asked {
            match message::receive::<Ask>(node) {
                Ok(Some((ask, fds))) => family.serve(&stage, ask, fds),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // The node is gone (a reset tells that it had not heard all): what runs, runs on for a while; the next node
                // finds it.
                Ok(None) | Err(_) => {
                    family.await_heir(&setup.lock, parent);
                    return Ok(());
                }
            }
        }
    }
}

/// Own mounts always; own ids where we are not root, and then every capability over them.
fn own_namespaces(setup: &Setup, node: BorrowedFd<'_>) -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut flags = UnshareFlags::NEWNS;
    if setup.rootless.is_some() {
        flags |= UnshareFlags::NEWUSER;
    }
    sys::unshare(flags).step(|| "make namespaces for the launcher".into())?;
    match setup.rootless {
        None => {}
        Some(Rootless::One) => {
            for (file, text) in
                [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
            {
                std::fs::write(Path::new("/proc/self").join(file), text).step(|| format!("write /proc/self/{file}"))?;
            }
        }
        Some(Rootless::Range) => {
            message::send(node, &Tell::MapMe, &[]).step(|| "ask for ids".into())?;
            // Any message means: mapped.
            message::receive::<serde_json::Value>(node)
                .and_then(|it| it.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into()))
                .step(|| "wait for ids".into())?;
            rustix::thread::set_thread_groups(&[]).step(|| "leave the user's groups".into())?;
        }
    }
    Ok(())
}

/// What came from this launcher, and what it has taken over.
struct Family {
    /// Where builders tell of the sandboxes they made.
    newborn: OwnedFd,
    builders: HashSet<Pid>,
    sandboxes: Vec<Member>,
    /// The node's own control groups, in which those of its sandboxes are.
    bases: BTreeSet<PathBuf>,
}

/// A sandbox to be ended when no node comes back.
struct Member {
    pidfd: OwnedFd,
}

impl Family {
    fn serve(&mut self, stage: &Stage, ask: Ask, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let Some(answer) = fds.next() else { return };
        if let Ask::Adopt { cgroups } = ask {
            self.take_over(cgroups, fds.next());
            return;
        }
        match sys::fork() {
            Ok(Fork::Parent { child, .. }) => {
                self.builders.insert(child);
            }
            Ok(Fork::Child) => {
                let done = match ask {
                    Ask::Start(start) => builder::start(stage, &start, &answer, &self.newborn, fds.collect()),
                    Ask::Attach(attach) => builder::attach(stage, &attach, &answer, fds.next()),
                    Ask::Trees(asked) => builder::trees(stage, &asked, &answer),
                    Ask::Disk(asked) => builder::disk(stage, &asked, &answer),
                    Ask::Release { id } => {
                        disk::release(&id);
                        Ok(())
                    }
                    Ask::Adopt { .. } => Ok(()),
                };
                if let Err(failure) = done {
                    let _ = message::send(answer.as_fd(), &Answer::Failed(failure), &[]);
                }
                sys::exit_now(0)
            }
            Err(error) => {
                let failure = Failure { step: "fork".into(), errno: error.raw_os_error().unwrap_or(libc::EAGAIN) };
                let _ = message::send(answer.as_fd(), &Answer::Failed(failure), &[]);
            }
        }
    }

    fn take_over(&mut self, cgroups: Vec<PathBuf>, pidfd: Option<OwnedFd>) {
        // Of a pod the shim's is named, if it has one of its own.
        let own = |it: &PathBuf| it.ancestors().find(|it| !it.ends_with(SHIM))?.parent().map(Path::to_owned);
        self.bases.extend(cgroups.iter().filter_map(own));
        self.sandboxes.extend(pidfd.map(|pidfd| Member { pidfd }));
    }

    /// Reaps every child that has ended and tells about those that are not builders.
    fn reap(&mut self, node: BorrowedFd<'_>) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if self.builders.remove(&pid) {
                continue;
            }
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (None, signal) => Status::Signal(signal.unwrap_or_default()),
            };
            let _ = message::send(node, &Tell::Exited { pid: pid.as_raw_nonzero().get(), status }, &[]);
        }
        self.sandboxes.retain(|it| !has_ended(&it.pidfd));
    }

    /// The node died. Another one that starts over the same directory takes its lock, and the sandboxes are its own; when
    /// nobody does in time, they end here.
    fn await_heir(mut self, lock: &Path, parent: Option<OwnedFd>) {
        if self.has_nothing() {
            return;
        }
        // Its sockets close a moment before it lets go of the lock; once it is dead, it has.
        if let Some(parent) = parent {
            wait(&parent, Timespec { tv_sec: 1, tv_nsec: 0 });
        }
        for _ in 0..HEIR_TRIES {
            self.sandboxes.retain(|it| !has_ended(&it.pidfd));
            if self.has_nothing() {
                return;
            }
            match fs::File::open(lock).and_then(|file| sys::is_locked(file.as_fd())) {
                Ok(true) => return,
                Ok(false) => {}
                // The whole directory is gone: nobody can come.
                Err(_) => break,
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
            let _ = rustix::thread::nanosleep(&pause);
        }
        for it in &self.sandboxes {
            let _ = rustix::process::pidfd_send_signal(&it.pidfd, Signal::KILL);
        }
        self.bases.iter().for_each(|it| thaw_below(it));
        for it in &self.sandboxes {
            wait(&it.pidfd, Timespec { tv_sec: 5, tv_nsec: 0 });
            while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        }
        for base in &self.bases {
            // A pod that sees the host's processes leaves its own behind.
            for _ in 0..KILL_TRIES {
                if !kill_below(base) {
                    break;
                }
                let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 });
            }
            // Those too whose sandboxes had ended before.
            for group in fs::read_dir(base).into_iter().flatten().flatten() {
                // Those of pods have some below them.
                for below in fs::read_dir(group.path()).into_iter().flatten().flatten() {
                    let _ = fs::remove_dir(below.path());
                }
                let _ = fs::remove_dir(group.path());
            }
            let _ = fs::remove_dir(base);
        }
    }

    fn has_nothing(&self) -> bool {
        self.sandboxes.is_empty() && !self.bases.iter().any(|it| it.exists())
    }
}

/// A quarter of a second each: one minute.
const HEIR_TRIES: u32 = 240;

const KILL_TRIES: u32 = 100;

/// The control groups below a node's own, those of pods with what is below them.
fn groups_below(base: &Path) -> impl Iterator<Item = PathBuf> {
    let dirs = |at: &Path| fs::read_dir(at).into_iter().flatten().flatten().map(|it| it.path()).collect::<Vec<_>>();
    dirs(base).into_iter().flat_map(move |group| dirs(&group).into_iter().chain([group]))
}

/// Has what stands still go on: a freezer of version 1 keeps even the killed.
fn thaw_below(base: &Path) {
    for group in groups_below(base) {
        let _ = fs::write(group.join("freezer.state"), "THAWED");
    }
}

/// Kills what is in the control groups of pods below a node's own; whether there was something.
fn kill_below(base: &Path) -> bool {
    let mut found = false;
    for group in groups_below(base) {
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                found = true;
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
    found
}

pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    wait(pidfd, Timespec { tv_sec: 0, tv_nsec: 0 })
}

/// Waits for a process's end for so long; whether it has ended.
fn wait(pidfd: &OwnedFd, most: Timespec) -> bool {
    let mut end = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(rustix::event::poll(&mut end, Some(&most)), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_groups_are_known_by_those_of_its_sandboxes_and_pods() {
        let (_births, newborn) = message::pair().unwrap();
        let mut family = Family { newborn, builders: HashSet::new(), sandboxes: Vec::new(), bases: BTreeSet::new() };
        let groups = ["/memory/insula-a/s1", "/memory/insula-a/pod_b", "/unified/insula-a/pod_b/shim"];
        family.take_over(groups.map(PathBuf::from).to_vec(), None);
        assert_eq!(family.bases, ["/memory/insula-a", "/unified/insula-a"].map(PathBuf::from).into());
    }
}
