//! The machine, as a Node tells of it.

use std::fs;
use std::path::Path;

/// What does not change about it.
pub(crate) struct Machine {
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// The same, of the file system that it works on.
    pub disk: u64,
    pub kernel: String,
    pub os: String,
    /// In Go's words, as everybody's.
    pub arch: &'static str,
    pub id: String,
    pub boot: String,
}

/// Bytes of which less is little, if it is less than a tenth too.
const ROOM: u64 = 4 << 30;

impl Machine {
    /// What cannot be read is empty. `disk` is a path of the file system that it works on.
    pub(crate) fn read(disk: &Path) -> Self {
        let line = |path| file(path).trim().to_owned();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory: meminfo(&file("/proc/meminfo"), "MemTotal:").unwrap_or_default(),
            disk: rustix::fs::statvfs(disk).map_or(0, |it| it.f_blocks.saturating_mul(it.f_frsize)),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            os: os(&file("/etc/os-release")),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            id: line("/etc/machine-id"),
            boot: line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

impl Machine {
    /// The labels of its Node, which everybody selects nodes by.
    pub(crate) fn labels(&self, name: &str) -> std::collections::BTreeMap<String, String> {
        [("kubernetes.io/hostname", name), ("kubernetes.io/os", "linux"), ("kubernetes.io/arch", self.arch)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }
}

/// Whether the machine is short of memory, of room on the file system of `disk`, of process ids: by the thresholds that
/// kubelets have, save that much room is never too little. What cannot be read is not short.
pub(super) fn pressure(disk: &Path) -> [bool; 3] {
    let memory = available_memory().is_some_and(|free| free < 100 << 20);
    let disk = rustix::fs::statvfs(disk).is_ok_and(|it| {
        let free = it.f_bavail.saturating_mul(it.f_frsize);
        // A tenth of a large disk is much: a kubelet's machine has nothing else to do, a laptop has.
        free < ROOM && it.f_bavail.saturating_mul(10) < it.f_blocks || it.f_favail.saturating_mul(20) < it.f_files
    });
    let pids = process_count(&file("/proc/loadavg"));
    let most = file("/proc/sys/kernel/pid_max").trim().parse::<u64>().ok();
    let pids = pids.zip(most).is_some_and(|(pids, most)| pids.saturating_mul(10) > most.saturating_mul(9));
    [memory, disk, pids]
}

/// Bytes of memory that programs could still have.
pub(crate) fn available_memory() -> Option<u64> {
    meminfo(&file("/proc/meminfo"), "MemAvailable:")
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo(file: &str, name: &str) -> Option<u64> {
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

/// How many processes and threads there are, from /proc/loadavg.
pub(crate) fn process_count(file: &str) -> Option<u64> {
    file.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

/// What the system calls itself, from /etc/os-release.
fn os(file: &str) -> String {
    let line = file.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.map_or("Linux", |it| it.trim_matches(['"', '\''])).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_as_it_writes_itself() {
        let file = "MemTotal:       24661152 kB\nMemFree: 1 kB\nMemAvailable:    2 kB\n";
        assert_eq!(meminfo(file, "MemTotal:"), Some(24_661_152 << 10));
        assert_eq!(meminfo(file, "MemAvailable:"), Some(2 << 10));
        assert_eq!(meminfo("nothing", "MemTotal:"), None);
        assert_eq!(process_count("0.65 2.64 2.80 3/412 20257\n"), Some(412));
        assert_eq!(process_count(""), None);
        assert_eq!(os("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n"), "Debian GNU/Linux 13");
        assert_eq!(os(""), "Linux");
    }
}
