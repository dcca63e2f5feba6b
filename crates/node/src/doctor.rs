//! What this machine can do, found by doing it: sandboxes are started whose first process tries things.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Access;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use crate::cgroup::{Cgroups, Limits};
use crate::engine::{Ids, is_root, open_launcher};
use crate::launcher::{Attach, Handle, Probe, Start, Status, Works, Workspace};
use crate::quota::{self, Formatter};
use crate::{Error, Guards, sys};

/// One thing that works or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// As in `insula doctor`: `userns`, `netns`, `idmap`, `overlay`, `memcg`, `pidscg`, `freezer`, `landlock`, `seccomp`,
    /// `quota`, `criu`, `runsc`, `kvm`.
    pub name: &'static str,
    pub ok: bool,
    /// How, or why not and what to do about it.
    pub why: String,
}

const PROBE: &str = "probe";
/// What the names of our control groups begin with; the number of this process follows.
const GROUP: &str = "insula-doctor-";
/// How long gVisor may take to run one program, on a machine that has other things to do.
const SENTRY: Duration = Duration::from_secs(60);
/// What the names of our directories begin with.
pub(crate) const SCRATCH: &str = "doctor-";

/// Tries everything. Leaves nothing. Takes well under a second, or one where gVisor is.
///
/// `launcher`: as [`crate::Options::launcher`]. `scratch`: a directory that may be written to, best on the file system of
/// the data directory.
pub async fn probe(launcher: &Path, scratch: &Path) -> Vec<Finding> {
    let mut found = look(launcher, scratch).await;
    found.push(sentry(launcher, scratch, runsc().as_deref()).await);
    found
}

/// The same without gVisor.
pub(crate) async fn look(launcher: &Path, scratch: &Path) -> Vec<Finding> {
    let mut found = match Tried::out(launcher, scratch).await {
        Ok(tried) => tried.findings(),
        Err(error) => {
            let why = format!(
                "{}. Sandboxes need user namespaces: allow them (sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or run as root; in a \
                 container, run it with its /proc unmasked",
                kit::chain(&error)
            );
            ["userns", "netns", "idmap", "overlay", "memcg", "pidscg", "freezer", "landlock", "seccomp", "quota"]
                .map(|name| Finding { name, ok: false, why: why.clone() })
                .to_vec()
        }
    };
    found.push(criu());
    found.push(kvm());
    found
}

/// gVisor's program, if it is in PATH.
pub(crate) fn runsc() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let executable = |it: &PathBuf| it.is_file() && rustix::fs::access(it, Access::EXEC_OK).is_ok();
    std::env::split_paths(&path).filter(|it| it.is_absolute()).map(|it| it.join("runsc")).find(executable)
}

/// Has gVisor run a program, as it would run a pod's: takes some tenths of a second.
pub(crate) async fn sentry(launcher: &Path, scratch: &Path, runsc: Option<&Path>) -> Finding {
    let Some(at) = runsc else { return no_sentry() };
    let tried = in_lab(launcher, scratch, runsc, async |lab| lab.sentry().await).await;
    let tried = tried.map_err(|error| kit::chain(&error)).and_then(|(done, ..)| done);
    let at = at.display();
    let why = match &tried {
        Ok(()) => format!("{at} ran a program: pods of the runtime class gvisor have kernels of their own"),
        Err(why) => format!("{at} cannot run a program: {why}"),
    };
    Finding { name: "runsc", ok: tried.is_ok(), why }
}

/// There is nothing to try.
pub(crate) fn no_sentry() -> Finding {
    let why = "it is not in PATH: for pods with kernels of their own install gVisor, and start `insula up` anew";
    Finding { name: "runsc", ok: false, why: why.into() }
}

/// What was seen.
struct Tried {
    works: Works,
    ids: Ids,
    cgroups: Cgroups,
    memory: Result<(), String>,
    pids: Result<(), String>,
    freezer: Result<(), String>,
    quota: Result<(), String>,
}

impl Tried {
    async fn out(program: &Path, scratch: &Path) -> Result<Self, Error> {
        let tried = in_lab(program, scratch, None, async |lab| {
            tokio::join!(lab.look(), lab.fill(), lab.fork(), lab.freeze(), lab.bound())
        });
        let ((works, memory, pids, freezer, quota), ids, cgroups) = tried.await?;
        Ok(Self { works: works?, ids, cgroups, memory, pids, freezer, quota })
    }

    fn findings(&self) -> Vec<Finding> {
        let bit = |name, bit, yes: &str, no: &str| {
            let ok = self.works.has(bit);
            Finding { name, ok, why: if ok { yes } else { no }.to_owned() }
        };
        let limit = |name, of: &str, tried: &Result<(), String>| {
            let (there, how) = self.cgroups.can(of);
            match (there, tried) {
                (true, Ok(())) => Finding { name, ok: true, why: how },
                (true, Err(why)) => Finding { name, ok: false, why: format!("{how}: {why}") },
                (false, _) => Finding { name, ok: false, why: how },
            }
        };
        let whose = match self.ids {
            Ids::Slots => "a range of its own for every sandbox, files shifted",
            Ids::OneSlot => "one range for all sandboxes: this file system cannot shift ids",
            Ids::Own { .. } => {
                "the subordinate ids of this user; sandboxes and Insula share what the kernel counts by user, such as \
                 epoll watches (fs.epoll.max_user_watches)"
            }
        };
        vec![
            Finding { name: "userns", ok: true, why: "a sandbox was started in one".into() },
            bit("netns", Works::NETWORK, "loopback alone, and up", "the network of a sandbox is not as it should be"),
            bit(
                "idmap",
                Works::MANY_IDS,
                whose,
                "one user id in each sandbox; sandboxes and Insula share what the kernel counts by user, such as epoll \
                 watches (fs.epoll.max_user_watches). For more: run as root, or install newuidmap (package uidmap) and add \
                 this user to /etc/subuid and /etc/subgid",
            ),
            bit(
                "overlay",
                Works::OVERLAY,
                if self.works.has(Works::PROGRAMS) {
                    "the image can be written to, above"
                } else {
                    "what a sandbox adds is above the image; it cannot add below /usr, whose directories belong to nobody \
                     there: install into /workspace or /root, or run as root"
                },
                "no overlay mounts in user namespaces (Linux 5.11): the image is read-only",
            ),
            limit("memcg", "memory", &self.memory),
            limit("pidscg", "pids", &self.pids),
            limit("freezer", "freezer", &self.freezer),
            bit("landlock", Works::LANDLOCK, "a domain held", "no Landlock: boot with lsm=landlock,… (Linux 5.13)"),
            match &self.quota {
                Ok(()) => {
                    let why = "hard: a workspace, or the volume of a claim, is a file system in a file".into();
                    Finding { name: "quota", ok: true, why }
                }
                Err(why) => {
                    let why = format!("a workspace's size is only counted, that of a claim only said: {why}");
                    Finding { name: "quota", ok: false, why }
                }
            },
            bit("seccomp", Works::SECCOMP, "the filter refused", "no system call filter: CONFIG_SECCOMP_FILTER"),
        ]
    }
}

/// Gives `work` a launcher of its own, and what that has found out too.
async fn in_lab<T>(
    program: &Path,
    scratch: &Path,
    runsc: Option<&Path>,
    work: impl AsyncFnOnce(&Lab) -> T,
) -> Result<(T, Ids, Cgroups), Error> {
    let id = kit::id();
    let dir = scratch.join(format!("{SCRATCH}{id}"));
    let made = fs::create_dir_all(dir.join("stage"));
    made.map_err(Error::disk(format!("make {}", dir.display())))?;
    let dir = Scratch(dir);
    let (ids, handle, listen, _) = open_launcher(program, &dir.0, None, runsc, Guards::all()).await?;
    let cgroups = Cgroups::find(&format!("{GROUP}{}-{id}", std::process::id()));
    cgroups.sweep(GROUP);
    let lab = Lab { handle, ids, cgroups, program: dir.0.clone() };
    let tried = async {
        let done = work(&lab).await;
        lab.cgroups.close();
        let Lab { ids, cgroups, .. } = lab;
        (done, ids, cgroups)
    };
    // The launcher ends with the lab, and only then is it no longer listened to.
    let (done, ()) = tokio::join!(tried, listen);
    Ok(done)
}

/// A directory that goes with its user.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Lab {
    handle: Handle,
    ids: Ids,
    cgroups: Cgroups,
    program: PathBuf,
}

impl Lab {
    /// Starts a sandbox that tries `probe`, and hands it to `meanwhile`; how it ended, and what its groups counted.
    async fn run<T>(
        &self,
        id: &str,
        probe: Probe,
        limits: Limits,
        meanwhile: impl AsyncFnOnce(i32, &OwnedFd) -> T,
    ) -> Result<(T, Option<Status>, u64), Error> {
        self.run_with(id, probe, limits, &[], meanwhile).await
    }

    /// The same, with these for its standard error.
    async fn run_with<T>(
        &self,
        id: &str,
        probe: Probe,
        limits: Limits,
        errors: &[BorrowedFd<'_>],
        meanwhile: impl AsyncFnOnce(i32, &OwnedFd) -> T,
    ) -> Result<(T, Option<Status>, u64), Error> {
        let start = Start {
            hostname: PROBE.into(),
            ids: self.ids.map(Some(0)),
            shift: self.ids.shift(),
            cgroups: self.cgroups.plan(id, &limits),
            layer: 16 << 20,
            tmp: 16 << 20,
            rlimits: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            inherits: errors.iter().map(|_| 2).collect(),
            probe: Some(probe),
            pod: None,
        };
        let started = async {
            let mut made = self.handle.start(start, errors).await?;
            made.go().await.map(|()| made)
        };
        let done = match started.await {
            Ok(made) => {
                let value = meanwhile(made.pid, &made.pidfd).await;
                if let Ok(pidfd) = sys::watch(made.pidfd) {
                    let _ = pidfd.readable().await;
                }
                let status = made.exit.await.ok();
                Ok((value, status, self.cgroups.usage(id).oom_kills.unwrap_or(0)))
            }
            Err(error) => Err(Error::machine("start a sandbox")(error)),
        };
        let removed = self.cgroups.remove(id).await;
        removed.map_err(Error::disk("remove a control group"))?;
        done
    }

    /// What gVisor says when it fails is its own.
    async fn sentry(&self) -> Result<(), String> {
        let (said, says) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| error.to_string())?;
        let late = async |_: i32, pidfd: &OwnedFd| {
            let ended = async {
                let pidfd = sys::watch(pidfd.try_clone()?)?;
                pidfd.readable().await.map(drop)
            };
            let ended: Result<io::Result<()>, _> = tokio::time::timeout(SENTRY, ended).await;
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            ended.is_err()
        };
        let done = self.run_with("sentry", Probe::Sentry, Limits::default(), &[says.as_fd()], late).await;
        drop(says);
        // Nobody is left who could write more.
        let mut words = vec![0; 64 << 10];
        rustix::io::ioctl_fionbio(&said, true).map_err(|error| error.to_string())?;
        let count = rustix::io::read(&said, &mut words[..]).unwrap_or(0);
        words.truncate(count);
        let words = String::from_utf8_lossy(&words);
        match done {
            Ok((false, Some(Status::Code(0)), _)) => Ok(()),
            Ok((true, ..)) => Err(format!("it has not done so after {} s", SENTRY.as_secs())),
            Ok((false, status, _)) => Err(reason(&words).unwrap_or_else(|| format!("it ended with {status:?}"))),
            Err(error) => Err(kit::chain(&error)),
        }
    }

    async fn look(&self) -> Result<Works, Error> {
        match self.run("look", Probe::Look, Limits::default(), async |_, _| ()).await? {
            (_, Some(Status::Code(works)), _) => Ok(Works(works)),
            (_, other, _) => Err(Error::machine("try things in a sandbox")(format!("it ended with {other:?}"))),
        }
    }

    async fn fill(&self) -> Result<(), String> {
        if !self.cgroups.limits_memory() {
            return Err("not tried".into());
        }
        let limits = Limits { memory: Some(24 << 20), ..Limits::default() };
        match self.run("fill", Probe::Fill(96 << 20), limits, async |_, _| ()).await {
            Ok((_, Some(Status::Signal(9)), kills)) if kills > 0 => Ok(()),
            Ok((_, status, _)) => Err(format!("a process used four times its limit and ended with {status:?}")),
            Err(error) => Err(kit::chain(&error)),
        }
    }

    async fn fork(&self) -> Result<(), String> {
        if !self.cgroups.limits_pids() {
            return Err("not tried".into());
        }
        let limits = Limits { pids: Some(8), ..Limits::default() };
        match self.run("fork", Probe::Fork(16), limits, async |_, _| ()).await {
            Ok((_, Some(Status::Code(1)), _)) => Ok(()),
            Ok((_, status, _)) => Err(format!("16 processes came into a limit of 8: {status:?}")),
            Err(error) => Err(kit::chain(&error)),
        }
    }

    /// Fills a workspace that is a small file system.
    async fn bound(&self) -> Result<(), String> {
        if !is_root() {
            return Err("only root can mount one. Run as root for a hard bound".into());
        }
        let formatter = Formatter::find(self.program.join("templates"), 0o755, None);
        let formatter = formatter.ok_or("there is no mkfs.ext4: install e2fsprogs")?;
        let source = self.program.join("workspace");
        fs::create_dir_all(&source).map_err(|error| error.to_string())?;
        formatter.prepare(&source, quota::LEAST).await.map_err(|error| kit::chain(&error))?;
        let attach = async |pid: i32, pidfd: &OwnedFd| {
            let workspace = Some(Workspace { source, read_only: false, disk: true });
            let attach = Attach { id: PROBE.into(), pid, workspace, shift: self.ids.shift(), hostname: None };
            let done = self.handle.attach(attach, pidfd.as_fd()).await;
            let word = if done.is_ok() { Signal::USR1 } else { Signal::KILL };
            let _ = rustix::process::pidfd_send_signal(pidfd, word);
            done.map_err(|error| kit::chain(&error))
        };
        let done = self.run("quota", Probe::FillWorkspace(2 * quota::LEAST), Limits::default(), attach).await;
        let _ = self.handle.release(PROBE).await;
        match done {
            Ok((Ok(()), Some(Status::Code(0)), _)) => Ok(()),
            Ok((Ok(()), status, _)) => Err(format!("a full one did not stop a writer: {status:?}")),
            Ok((Err(why), _, _)) => Err(why),
            Err(error) => Err(kit::chain(&error)),
        }
    }

    async fn freeze(&self) -> Result<(), String> {
        if !self.cgroups.freezes() {
            return Err("not tried".into());
        }
        let frozen = async |_: i32, pidfd: &OwnedFd| {
            let done = self.cgroups.freeze("freeze", true).await;
            let thawed = self.cgroups.freeze("freeze", false).await;
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
            done.and(thawed).map_err(|error| error.to_string())
        };
        match self.run("freeze", Probe::Wait, Limits::default(), frozen).await {
            Ok((done, _, _)) => done,
            Err(error) => Err(kit::chain(&error)),
        }
    }
}

/// Of what `runsc` printed, that by which it ended, and what to do about it.
fn reason(words: &str) -> Option<String> {
    let last = words.lines().map(str::trim).rfind(|it| !it.is_empty())?;
    let last: String = last.chars().take(400).collect();
    let old = last.contains("unknown platform") || last.contains("flag provided but not defined");
    Some(if old { format!("{last} (it is too old: install a newer release)") } else { last })
}

/// What is not used yet is never `ok`; why, and what to do meanwhile.
fn criu() -> Finding {
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let there = match places.iter().map(|it| Path::new(it).join("criu")).find(|it| it.exists()) {
        Some(at) => format!("{} is there", at.display()),
        None => "criu is not installed".to_owned(),
    };
    let what = "sandboxes end when they are not used, and only workspaces stay. Keep there what is to stay";
    Finding { name: "criu", ok: false, why: format!("{there}, and this version does not use it: {what}") }
}

fn kvm() -> Finding {
    let there = match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => "/dev/kvm opens".to_owned(),
        Err(error) => {
            let what = match error.kind() {
                io::ErrorKind::NotFound => "load kvm_intel or kvm_amd; in a virtual machine, have it nest others",
                io::ErrorKind::PermissionDenied => "add this user to the group that owns it, or run as root",
                _ => "look into the kernel's log",
            };
            format!("/dev/kvm: {error} ({what})")
        }
    };
    let what = "runs in the runtime class kata stay Pending. Name no class, or `native`";
    Finding { name: "kvm", ok: false, why: format!("{there}, and this version boots no virtual machines: {what}") }
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn what_runsc_ended_by_is_its_last_word() {
        let long = "x".repeat(500);
        let table = [
            ("", None),
            ("\n \n", None),
            ("a warning\nthe reason\n\n", Some("the reason".to_owned())),
            (
                "unknown platform: systrap\n",
                Some("unknown platform: systrap (it is too old: install a newer release)".to_owned()),
            ),
            (long.as_str(), Some("x".repeat(400))),
        ];
        for (words, is) in table {
            assert_eq!(reason(words), is, "{words}");
        }
    }
}
