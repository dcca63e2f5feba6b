//! `/metrics`: what the sandbox uses of what it was given.
//!
//! Counted over the processes that we see, which are the sandbox's: what `/proc/meminfo` and `/proc/stat` say is the
//! machine's, and so are the cgroup files where any are visible.

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use wire::execd::{Limits, Metrics};

use crate::daemon::Daemon;
use crate::os::now_ms;

const MIB: f64 = 1024.0 * 1024.0;

/// The last reading, for the rate since.
#[derive(Default)]
pub(crate) struct Meter(Cell<Option<(Instant, Usage)>>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    /// Seconds of CPU, of all processes and of the children that they have seen end.
    cpu: f64,
    /// Bytes that are a process's own or shared memory, not pages of files.
    memory: f64,
}

/// One reading. The CPU's part is that since the last reading, and since the sandbox's start at the first.
pub(crate) async fn read(daemon: &Daemon) -> Metrics {
    let usage = daemon.workers.run(usage).await.unwrap_or_default();
    let now = Instant::now();
    let last = daemon.meter.0.replace(Some((now, usage)));
    let (since, before) = last.unwrap_or_else(|| (daemon.started, Usage::default()));
    let Limits { memory_bytes, cpus } = daemon.limits();
    let cpu_count =
        cpus.unwrap_or_else(|| rustix::thread::sched_getaffinity(None).map_or(1.0, |set| f64::from(set.count())));
    let seconds = now.duration_since(since).as_secs_f64().max(0.001);
    let part = (usage.cpu - before.cpu).max(0.0) / seconds / cpu_count.max(0.001) * 100.0;
    let total = memory_bytes.map_or_else(machine_memory, |bytes| bytes as f64);
    Metrics {
        cpu_count,
        cpu_used_pct: part.min(100.0),
        mem_total_mib: total / MIB,
        mem_used_mib: usage.memory.min(total) / MIB,
        timestamp: now_ms(),
    }
}

fn machine_memory() -> f64 {
    let about = rustix::system::sysinfo();
    about.totalram as f64 * f64::from(about.mem_unit.max(1))
}

fn usage() -> Usage {
    let (page, tick) = (rustix::param::page_size() as f64, rustix::param::clock_ticks_per_second() as f64);
    let mut sum = Usage::default();
    let Ok(entries) = fs::read_dir("/proc") else { return sum };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(ticks) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(ticks) {
            sum.cpu += ticks as f64 / tick;
        }
        if let Some(pages) = fs::read_to_string(format!("/proc/{pid}/statm")).ok().as_deref().and_then(own_pages) {
            sum.memory += pages as f64 * page;
        }
    }
    sum
}

/// utime, stime and those of the children that were waited for, out of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).take(4);
    fields.map(|field| field.parse::<u64>().ok()).sum()
}

/// Resident pages that are no file's, out of `/proc/PID/statm`.
fn own_pages(statm: &str) -> Option<u64> {
    let mut fields = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    let (resident, shared) = (fields.nth(1)??, fields.next()??);
    Some(resident.saturating_sub(shared))
}

/// `/metrics/watch`: a reading a second, each on a line.
pub(crate) struct Watch {
    daemon: Rc<Daemon>,
    tick: Interval,
    reading: Option<Pin<Box<dyn Future<Output = Metrics>>>>,
}

impl Watch {
    pub(crate) fn new(daemon: Rc<Daemon>) -> Self {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { daemon, tick, reading: None }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let metrics = ready!(reading.as_mut().poll(cx));
                self.reading = None;
                let mut line = serde_json::to_vec(&metrics).unwrap_or_default();
                line.push(b'\n');
                return Poll::Ready(Some(line.into()));
            }
            ready!(self.tick.poll_tick(cx));
            let daemon = self.daemon.clone();
            self.reading = Some(Box::pin(async move { read(&daemon).await }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_counted_by_what_is_its_own() {
        assert_eq!(ticks("1 (a b) c) S 0 1 1 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0 5"), Some(37));
        assert_eq!(ticks("rubbish"), None);
        assert_eq!(own_pages("1000 300 120 1 0 90 0"), Some(180));
        let all = usage();
        assert!(all.memory > 0.0 && all.cpu > 0.0);
    }
}
