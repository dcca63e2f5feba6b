//! What the kernel counts of this process, where it says so (Linux).

use std::fs;

use super::text::Page;

/// What `/proc` counts time in: the kernel's unit towards programs, the same on every machine.
const TICKS: f64 = 100.0;

pub(super) fn write(page: &mut Page) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    // Behind the program's name, which may have anything in it: the state, which is the third.
    let stat = read("self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|it| it.parse::<f64>().ok());
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        page.family(
            "process_cpu_seconds_total",
            "counter",
            "Time of processors that this process has used, in seconds.",
        );
        page.sample(&[], (user + system) / TICKS);
    }
    let limits = read("self/limits");
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    if let Some(files) = files.and_then(|it| it.parse::<u64>().ok()) {
        page.family("process_max_fds", "gauge", "File descriptors that this process may have open.");
        page.sample(&[], files);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", "gauge", "File descriptors that this process has open.");
        page.sample(&[], open.count());
    }
    let status = read("self/status");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    if let Some(resident) = kib("VmRSS:") {
        page.family("process_resident_memory_bytes", "gauge", "Memory of this process that is in RAM, in bytes.");
        page.sample(&[], resident * 1024);
    }
    let machine = read("stat");
    let booted = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    if let (Some(booted), Some(after)) = (booted, field(22)) {
        page.family("process_start_time_seconds", "gauge", "When this process began, in seconds since 1970.");
        page.sample(&[], booted + after / TICKS);
    }
    if let Some(virtual_memory) = kib("VmSize:") {
        page.family("process_virtual_memory_bytes", "gauge", "Addresses that this process has taken, in bytes.");
        page.sample(&[], virtual_memory * 1024);
    }
}
