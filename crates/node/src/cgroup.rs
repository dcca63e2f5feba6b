//! Control groups, version 1, version 2 or both at once, as far as they are there and writable.
//!
//! Each node has one group in every hierarchy it uses, named after its directory, and each sandbox one below it with its
//! id. Where memory, processor and processes are limited by version 1 and the unified hierarchy is mounted beside it
//! ("hybrid"), the unified one still freezes, kills and counts: these need no controller.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::launcher::{Cgroup, Join, Shown};

/// What a hierarchy is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Memory,
    Cpu,
    Pids,
    Freeze,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

#[derive(Clone, Debug)]
struct Hierarchy {
    version: Version,
    /// The node's own group in it.
    base: PathBuf,
    uses: Vec<Use>,
}

/// What a sandbox may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u32>,
    pub pids: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    pub memory: Option<u64>,
    pub cpu_usec: Option<u64>,
    pub pids: Option<u32>,
    pub oom_kills: Option<u64>,
}

/// The hierarchies that work here. What is missing has its reason in `why`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// Why memory, cpu, pids and freezing, as far as they are not there, are not.
    why: Vec<(&'static str, String)>,
}

const PERIOD: u64 = 100_000;
/// The group of a pod's shim, below the pod's where a group with others in it may hold no process.
pub(crate) const SHIM: &str = "shim";

impl Cgroups {
    /// Looks for hierarchies and makes the group `name` in each that can be used.
    pub(crate) fn find(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut found = Self::default();
        for (what, controller) in [(Use::Memory, "memory"), (Use::Cpu, "cpu"), (Use::Pids, "pids")] {
            found.add(what, controller, find_controller(&mounts, &own, controller, name));
        }
        let freezer = match unified(&mounts, &own, name, None) {
            Ok(base) => Ok((Version::Two, base)),
            Err(_) => find_controller(&mounts, &own, "freezer", name),
        };
        found.add(Use::Freeze, "freezer", freezer);
        found
    }

    fn add(&mut self, what: Use, name: &'static str, found: Result<(Version, PathBuf), String>) {
        match found {
            Ok((version, base)) => match self.hierarchies.iter_mut().find(|it| it.base == base) {
                Some(there) => there.uses.push(what),
                None => self.hierarchies.push(Hierarchy { version, base, uses: vec![what] }),
            },
            Err(why) => self.why.push((name, why)),
        }
    }

    fn of(&self, what: Use) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|it| it.uses.contains(&what))
    }

    /// Whether `memory`, `cpu`, `pids` or `freezer` works, and where, or why not.
    pub(crate) fn can(&self, name: &str) -> (bool, String) {
        if let Some((_, why)) = self.why.iter().find(|(it, _)| *it == name) {
            return (false, why.clone());
        }
        let what = match name {
            "memory" => Use::Memory,
            "cpu" => Use::Cpu,
            "pids" => Use::Pids,
            _ => Use::Freeze,
        };
        match self.of(what) {
            Some(it) => (true, format!("control group {}", it.base.display())),
            None => (false, "no control groups".into()),
        }
    }

    pub(crate) fn limits_memory(&self) -> bool {
        self.of(Use::Memory).is_some()
    }

    pub(crate) fn limits_pids(&self) -> bool {
        self.of(Use::Pids).is_some()
    }

    /// There are groups at all.
    pub(crate) fn holds(&self) -> bool {
        !self.hierarchies.is_empty()
    }

    pub(crate) fn freezes(&self) -> bool {
        self.of(Use::Freeze).is_some()
    }

    /// The groups that a sandbox is started in.
    pub(crate) fn plan(&self, id: &str, limits: &Limits) -> Vec<Cgroup> {
        self.hierarchies
            .iter()
            .map(|it| Cgroup {
                dir: it.base.join(id),
                writes: it.uses.iter().flat_map(|&what| writes(it.version, what, limits)).collect(),
                join: if it.version == Version::One { Join::Thread } else { Join::Birth },
            })
            .collect()
    }

    /// The groups of a pod: one that holds all of it, and where a group with others in it may hold no process (version 2)
    /// one below it for the shim. `owner` is the pod's root as the host knows it: it may start processes anywhere below.
    pub(crate) fn pod(&self, id: &str, owner: Option<u32>) -> io::Result<Vec<Cgroup>> {
        let mut groups = Vec::new();
        for it in &self.hierarchies {
            let dir = it.base.join(id);
            make(&dir)?;
            let (dir, join) = match it.version {
                Version::One => (dir, Join::Thread),
                Version::Two => {
                    let controllers = it.uses.iter().filter_map(|it| match it {
                        Use::Memory => Some("+memory"),
                        Use::Cpu => Some("+cpu"),
                        Use::Pids => Some("+pids"),
                        Use::Freeze => None,
                    });
                    for controller in controllers {
                        fs::write(dir.join("cgroup.subtree_control"), controller)?;
                    }
                    give(&dir, owner)?;
                    (dir.join(SHIM), Join::Birth)
                }
            };
            groups.push(Cgroup { dir, writes: Vec::new(), join });
        }
        Ok(groups)
    }

    /// The groups of a container, made below those of its pod, and what its first process joins them by.
    pub(crate) fn container(&self, id: &str, limits: &Limits, owner: Option<u32>) -> io::Result<Vec<(Join, OwnedFd)>> {
        let mut groups = Vec::new();
        for it in &self.hierarchies {
            let dir = it.base.join(id);
            make(&dir)?;
            for (file, value) in it.uses.iter().flat_map(|&what| writes(it.version, what, limits)) {
                fs::write(dir.join(file), value)?;
            }
            groups.push(match it.version {
                // Who opened it counts, not who writes to it.
                Version::One => (Join::Thread, fs::OpenOptions::new().write(true).open(dir.join("tasks"))?.into()),
                Version::Two => {
                    give(&dir, owner)?;
                    (Join::Birth, fs::File::open(&dir)?.into())
                }
            });
        }
        Ok(groups)
    }

    /// The groups of a pod, below which its containers see theirs, in the places that programs look for them.
    pub(crate) fn shown(&self, id: &str) -> Vec<Shown> {
        let mixed = self.hierarchies.iter().any(|it| it.version == Version::One);
        let shown = self.hierarchies.iter().flat_map(|it| {
            let names: &[&str] = match (it.version, mixed) {
                (Version::Two, false) => &[""],
                (Version::Two, true) => &["unified"],
                (Version::One, _) => &[],
            };
            let uses = it.uses.iter().filter(|_| it.version == Version::One).map(|it| match it {
                Use::Memory => "memory",
                Use::Cpu => "cpu",
                Use::Pids => "pids",
                Use::Freeze => "freezer",
            });
            uses.chain(names.iter().copied()).map(|name| Shown { name: name.to_owned(), dir: it.base.join(id) })
        });
        shown.collect()
    }

    /// What a further process of a container joins its groups by.
    pub(crate) fn join(&self, id: &str) -> io::Result<Vec<(Join, OwnedFd)>> {
        let joins = self.hierarchies.iter().map(|it| {
            let dir = it.base.join(id);
            Ok(match it.version {
                Version::One => (Join::Thread, fs::OpenOptions::new().write(true).open(dir.join("tasks"))?.into()),
                Version::Two => (Join::Birth, fs::File::open(&dir)?.into()),
            })
        });
        joins.collect()
    }

    /// Kills whatever is in a pod's groups and in those below them.
    pub(crate) fn kill_pod(&self, id: &str) {
        for below in self.below(id) {
            self.kill(&format!("{id}/{below}"));
        }
        self.kill(id);
    }

    /// Removes a pod's groups with all below them.
    pub(crate) async fn remove_pod(&self, id: &str) -> io::Result<()> {
        for below in self.below(id) {
            self.remove(&format!("{id}/{below}")).await?;
        }
        self.remove(id).await
    }

    /// The names of the groups right below one.
    pub(crate) fn below(&self, id: &str) -> BTreeSet<String> {
        self.hierarchies.iter().flat_map(|it| names(&it.base.join(id))).collect()
    }

    /// Changes the limits of a sandbox that runs; what `limits` does not name stays.
    ///
    /// Memory can fall below what is used already: then the kernel makes room or kills.
    pub(crate) fn limit(&self, id: &str, limits: &Limits) -> io::Result<()> {
        for it in &self.hierarchies {
            for (file, value) in it.uses.iter().flat_map(|&what| writes(it.version, what, limits)) {
                fs::write(it.base.join(id).join(file), value)?;
            }
        }
        Ok(())
    }

    pub(crate) fn usage(&self, id: &str) -> Usage {
        let number = |what: Use, one: &str, two: &str| {
            let it = self.of(what)?;
            let file = if it.version == Version::One { one } else { two };
            fs::read_to_string(it.base.join(id).join(file)).ok()?.trim().parse::<u64>().ok()
        };
        let field = |what: Use, one: (&str, &str), two: (&str, &str)| {
            let it = self.of(what)?;
            let (file, key) = if it.version == Version::One { one } else { two };
            keyed(&fs::read_to_string(it.base.join(id).join(file)).ok()?, key)
        };
        let cache = field(Use::Memory, ("memory.stat", "total_inactive_file"), ("memory.stat", "inactive_file"));
        Usage {
            memory: number(Use::Memory, "memory.usage_in_bytes", "memory.current")
                .map(|all| all.saturating_sub(cache.unwrap_or(0))),
            // The unified hierarchy counts processor time without a controller.
            cpu_usec: field(Use::Freeze, ("", ""), ("cpu.stat", "usage_usec"))
                .or_else(|| field(Use::Cpu, ("", ""), ("cpu.stat", "usage_usec")))
                .or_else(|| number(Use::Cpu, "cpuacct.usage", "").map(|nanos| nanos / 1000)),
            pids: number(Use::Pids, "pids.current", "pids.current").and_then(|it| u32::try_from(it).ok()),
            oom_kills: field(Use::Memory, ("memory.oom_control", "oom_kill"), ("memory.events", "oom_kill")),
        }
    }

    /// Stops or continues everything in a sandbox; returns when the kernel says that it is so, or fails after `tries`
    /// looks (each of which `pause` separates).
    pub(crate) async fn freeze(&self, id: &str, frozen: bool) -> io::Result<()> {
        let it = self.of(Use::Freeze).ok_or(io::ErrorKind::Unsupported)?;
        let dir = it.base.join(id);
        let (file, value, look, wanted) = match (it.version, frozen) {
            (Version::One, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            (Version::One, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
            (Version::Two, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
            (Version::Two, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
        };
        // Almost always done at the first look; a process in an uninterruptible call takes longer.
        let mut pause = std::time::Duration::from_micros(50);
        for _ in 0..16 {
            fs::write(dir.join(file), value)?;
            if fs::read_to_string(dir.join(look))?.contains(wanted) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Whether what is in a group stands still, or is about to.
    pub(crate) fn is_frozen(&self, id: &str) -> bool {
        let Some(it) = self.of(Use::Freeze) else { return false };
        let (file, thawed) = match it.version {
            Version::One => ("freezer.state", "THAWED"),
            Version::Two => ("cgroup.freeze", "0"),
        };
        fs::read_to_string(it.base.join(id).join(file)).is_ok_and(|it| it.trim() != thawed)
    }

    /// Kills whatever is in a sandbox's groups, its first process or not, frozen or not.
    pub(crate) fn kill(&self, id: &str) {
        for it in &self.hierarchies {
            let dir = it.base.join(id);
            if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                continue;
            }
            for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        // Version 1 keeps even the killed frozen.
        if let Some(it) = self.of(Use::Freeze).filter(|it| it.version == Version::One) {
            let _ = fs::write(it.base.join(id).join("freezer.state"), "THAWED");
        }
    }

    /// Kills whatever is in a pod's groups until nothing is: one that forks meanwhile is found the next time.
    pub(crate) async fn end_pod(&self, id: &str) -> io::Result<()> {
        let mut pause = std::time::Duration::from_micros(200);
        for _ in 0..14 {
            self.kill_pod(id);
            let groups: Vec<String> = self.below(id).iter().map(|it| format!("{id}/{it}")).chain([id.into()]).collect();
            let empty = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().is_empty();
            if self.hierarchies.iter().all(|it| groups.iter().all(|group| empty(it.base.join(group)))) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// Removes a sandbox's groups. They can be busy for a moment after their last process has ended.
    pub(crate) async fn remove(&self, id: &str) -> io::Result<()> {
        let mut pause = std::time::Duration::from_micros(200);
        let mut left: Vec<PathBuf> = self.hierarchies.iter().map(|it| it.base.join(id)).collect();
        for _ in 0..14 {
            let mut last = None;
            left.retain(|dir| match fs::remove_dir(dir) {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => {
                    last = Some(error);
                    true
                }
            });
            match last {
                None => return Ok(()),
                Some(error) if error.raw_os_error() != Some(libc::EBUSY) => return Err(error),
                Some(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    /// The ids of all groups that are there, whoever made them.
    pub(crate) fn present(&self) -> BTreeSet<String> {
        self.hierarchies.iter().flat_map(|it| names(&it.base)).collect()
    }

    /// Removes groups beside ours whose names are `prefix` and the number of a process that is gone: killed, it left them.
    pub(crate) fn sweep(&self, prefix: &str) {
        for beside in self.hierarchies.iter().filter_map(|it| it.base.parent()) {
            for group in fs::read_dir(beside).into_iter().flatten().flatten() {
                let name = group.file_name();
                let number = name.to_str().and_then(|it| it.strip_prefix(prefix)?.split('-').next());
                let gone = |it: &str| it.parse::<u32>().is_ok_and(|it| !Path::new(&format!("/proc/{it}")).exists());
                if number.is_some_and(gone) {
                    for below in fs::read_dir(group.path()).into_iter().flatten().flatten() {
                        let _ = fs::remove_dir(below.path());
                    }
                    let _ = fs::remove_dir(group.path());
                }
            }
        }
    }

    /// Where a sandbox's groups are.
    pub(crate) fn dirs(&self, id: &str) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|it| it.base.join(id)).collect()
    }

    /// Removes the node's own groups; those that still hold sandboxes stay.
    pub(crate) fn close(&self) {
        for it in &self.hierarchies {
            let _ = fs::remove_dir(&it.base);
        }
    }
}

fn writes(version: Version, what: Use, limits: &Limits) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut write = |file: &str, value: String| out.push((file.to_owned(), value));
    match (version, what) {
        (_, Use::Pids) => {
            if let Some(pids) = limits.pids {
                write("pids.max", pids.to_string());
            }
        }
        (Version::One, Use::Memory) => {
            if let Some(bytes) = limits.memory {
                write("memory.limit_in_bytes", bytes.to_string());
            }
        }
        (Version::Two, Use::Memory) => {
            if let Some(bytes) = limits.memory {
                write("memory.max", bytes.to_string());
            }
        }
        (Version::One, Use::Cpu) => {
            if let Some(cpu) = limits.cpu {
                write("cpu.cfs_period_us", PERIOD.to_string());
                write("cpu.cfs_quota_us", quota(cpu).to_string());
            }
        }
        (Version::Two, Use::Cpu) => {
            if let Some(cpu) = limits.cpu {
                write("cpu.max", format!("{} {PERIOD}", quota(cpu)));
            }
        }
        (_, Use::Freeze) => {}
    }
    out
}

/// The directories in one.
fn names(dir: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let groups = entries.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.filter_map(|it| it.file_name().into_string().ok())
}

/// Lets a pod's root put processes into a group: the kernel asks for a right to this file.
fn give(dir: &Path, owner: Option<u32>) -> io::Result<()> {
    match owner {
        Some(_) => std::os::unix::fs::chown(dir.join("cgroup.procs"), owner, None),
        None => Ok(()),
    }
}

/// The kernel takes nothing below a millisecond.
fn quota(cpu: u32) -> u64 {
    (u64::from(cpu) * PERIOD / 1000).max(1000)
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

fn find_controller(mounts: &str, own: &str, controller: &str, name: &str) -> Result<(Version, PathBuf), String> {
    let Some(at) = v1_mount(mounts, controller) else {
        return unified(mounts, own, name, Some(controller)).map(|base| (Version::Two, base));
    };
    let base = at.join(name);
    make(&base).map(|()| (Version::One, base.clone())).map_err(|error| {
        format!("cannot make {}: {error}. Run as root, or delegate a control group to this user", base.display())
    })
}

/// Where a version 1 hierarchy with this controller is mounted.
fn v1_mount(mounts: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (fs, options) = (kind.next()?, kind.nth(1)?);
        (fs == "cgroup" && options.split(',').any(|it| it == controller)).then_some(())?;
        Some(PathBuf::from(place.split(' ').nth(4)?))
    })
}

/// The node's group in the unified hierarchy, with `controller` enabled in it.
///
/// Root takes the top of what is mounted. Anybody else needs a group of his own that he may write to (systemd's
/// `Delegate=yes`): there, a group with processes in it cannot hand controllers down, so we step aside into `node`.
fn unified(mounts: &str, own: &str, name: &str, controller: Option<&str>) -> Result<PathBuf, String> {
    let at = mounts
        .lines()
        .find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ").then(|| place.split(' ').nth(4).map(PathBuf::from))?
        })
        .ok_or("no control groups are mounted")?;
    let ours = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let mut why = String::new();
    for parent in [at.clone(), at.join(ours)] {
        match try_unified(&parent, name, controller) {
            Ok(base) => return Ok(base),
            Err(error) => why = error,
        }
    }
    Err(format!("{why}. Run as root, or delegate a control group to this user (systemd: Delegate=yes)"))
}

fn try_unified(parent: &Path, name: &str, controller: Option<&str>) -> Result<PathBuf, String> {
    let base = parent.join(name);
    make(&base).map_err(|error| format!("cannot make {}: {error}", base.display()))?;
    let Some(controller) = controller else { return Ok(base) };
    let there = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    if !there.split_whitespace().any(|it| it == controller) {
        let _ = fs::remove_dir(&base);
        return Err(format!("the controller {controller} is not handed down to {}", parent.display()));
    }
    let enable = |dir: &Path| fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    let done = enable(parent).or_else(|error| {
        // Busy: processes live in it. If they are only we, we can live one deeper.
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
        let aside = parent.join("node");
        make(&aside)?;
        fs::write(aside.join("cgroup.procs"), "0")?;
        enable(parent)
    });
    done.and_then(|()| enable(&base))
        .map(|()| base)
        .map_err(|error| format!("cannot enable {controller} in {}: {error}", parent.display()))
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
32 31 0:29 / /sys/fs/cgroup/cpu,cpuset rw,relatime - cgroup cgroup rw,cpu,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_controller_is_found_by_its_whole_name() {
        assert_eq!(v1_mount(HYBRID, "cpu"), Some("/sys/fs/cgroup/cpu,cpuset".into()));
        assert_eq!(v1_mount(HYBRID, "memory"), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(v1_mount(HYBRID, "pids"), None);
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        let limits = Limits { memory: Some(1 << 20), cpu: Some(1500), pids: Some(7) };
        let words = |version, what| {
            writes(version, what, &limits).iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(words(Version::One, Use::Memory), ["memory.limit_in_bytes=1048576"]);
        assert_eq!(words(Version::Two, Use::Memory), ["memory.max=1048576"]);
        assert_eq!(words(Version::One, Use::Cpu), ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=150000"]);
        assert_eq!(words(Version::Two, Use::Cpu), ["cpu.max=150000 100000"]);
        assert_eq!(words(Version::Two, Use::Pids), ["pids.max=7"]);
        assert_eq!(quota(1), 1000);
        assert_eq!(keyed("low 0\noom_kill 3\n", "oom_kill"), Some(3));
    }
}
