//! What the machine itself uses.

use std::fs;
use std::path::Path;

use jiff::Timestamp;

use crate::projection::{meminfo, process_count};

/// What cannot be read is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) booted: Option<Timestamp>,
    /// Nanoseconds of processor time since then.
    pub(super) cpu: Option<u64>,
    pub(super) memory: Option<Memory>,
    pub(super) disk: Option<Disk>,
    pub(super) processes: Option<u64>,
    pub(super) most_processes: Option<u64>,
}

/// Bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) working_set: u64,
    pub(super) rss: u64,
}

/// A file system: bytes, and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) available: u64,
    pub(super) capacity: u64,
    pub(super) used: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

impl Machine {
    /// The file system is that of this directory.
    pub(super) fn read(dir: Option<&Path>) -> Self {
        let file = |path| fs::read_to_string(path).unwrap_or_default();
        let (stat, load) = (file("/proc/stat"), file("/proc/loadavg"));
        Self {
            booted: booted(&stat),
            cpu: cpu(&stat),
            memory: Memory::of(&file("/proc/meminfo")),
            disk: dir.and_then(Disk::of),
            processes: process_count(&load),
            most_processes: file("/proc/sys/kernel/pid_max").trim().parse().ok(),
        }
    }
}

impl Memory {
    /// Of /proc/meminfo.
    fn of(file: &str) -> Option<Self> {
        let field = |name: &str| meminfo(file, name);
        let (total, free, available) = (field("MemTotal:")?, field("MemFree:")?, field("MemAvailable:")?);
        Some(Self {
            available,
            used: total.saturating_sub(free),
            working_set: total.saturating_sub(available),
            rss: field("AnonPages:").unwrap_or_default(),
        })
    }
}

impl Disk {
    fn of(dir: &Path) -> Option<Self> {
        let it = rustix::fs::statvfs(dir).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(it.f_frsize);
        Some(Self {
            available: bytes(it.f_bavail),
            capacity: bytes(it.f_blocks),
            used: bytes(it.f_blocks.saturating_sub(it.f_bfree)),
            inodes: it.f_files,
            inodes_free: it.f_ffree,
        })
    }
}

/// All that was not idle, of /proc/stat. It counts in hundredths of seconds.
fn cpu(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map(|it| it.parse().unwrap_or(0)).collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal; guests are in the first two already.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    Some(busy.saturating_mul(10_000_000))
}

fn booted(stat: &str) -> Option<Timestamp> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_as_it_writes_itself() {
        let stat = "cpu  10 2 3 1000 50 4 5 6 7 0\ncpu0 1 1 1 1\nbtime 1700000000\n";
        assert_eq!((cpu(stat), booted(stat)), (Some(300_000_000), Timestamp::from_second(1_700_000_000).ok()));
        assert_eq!((cpu("nothing"), booted("")), (None, None));
        let file = "MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 40 kB\nAnonPages: 20 kB\n";
        let want = Memory { available: 40 << 10, used: 90 << 10, working_set: 60 << 10, rss: 20 << 10 };
        assert_eq!((Memory::of(file), Memory::of("")), (Some(want), None));
    }
}
