//! What pods, containers and the machine use: `stats/summary`, and Prometheus' text of `metrics/resource`.
//!
//! Control groups count processor time since the beginning. How much is used now takes two looks: the earlier one is that
//! of an earlier question, or the container's start.

mod machine;
mod resource;
mod summary;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;
use wire::node::Stats;

use super::{CONTAINER, Kubelet};
use machine::Machine;

/// Two looks are at least so far apart.
const APART: Duration = Duration::from_secs(1);

/// What was seen when somebody last asked.
#[derive(Default)]
pub(super) struct Samples(Mutex<HashMap<Key, Sample>>);

/// A pod's uid and a container of it; the machine has neither.
type Key = (String, String);

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    nanos: u64,
    /// Nanoseconds in a second, as of then.
    rate: u64,
}

impl Samples {
    /// How much is used now, in nanoseconds a second, by what has used `nanos` since it began `age` ago.
    fn rate(&self, key: Key, nanos: u64, age: Duration) -> u64 {
        let now = Instant::now();
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = samples.get(&key).copied().filter(|last| last.nanos <= nanos);
        let (since, used) = match last {
            Some(last) if now - last.at < APART => return last.rate,
            Some(last) => (now - last.at, nanos - last.nanos),
            None => (age.max(APART), nanos),
        };
        let rate = u128::from(used) * 1_000_000_000 / since.as_nanos().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        samples.insert(key, Sample { at: now, nanos, rate });
        rate
    }

    fn keep(&self, uids: &[&str]) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|(uid, _), _| uid.is_empty() || uids.contains(&uid.as_str()));
    }
}

/// What one of them uses.
struct Used {
    started: Option<Timestamp>,
    /// Nanoseconds since the beginning, and in a second.
    cpu: Option<(u64, u64)>,
    /// Bytes.
    memory: Option<u64>,
    processes: Option<u32>,
    disk: Option<u64>,
}

struct Usage {
    namespace: String,
    name: String,
    uid: String,
    pod: Used,
    containers: Vec<(String, Used)>,
}

struct Seen {
    at: Timestamp,
    machine: Machine,
    cpu: Option<(u64, u64)>,
    pods: Vec<Usage>,
}

impl Kubelet {
    fn seen(&self) -> Seen {
        let at = self.clock.now();
        let mut pods = self.sandboxes(at);
        if let Some(door) = self.pods.get() {
            for pod in door.list() {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                let Some(state) = door.state(&uid) else { continue };
                let running = state.containers.iter().filter(|it| it.exit.is_none());
                let containers: Vec<_> = running
                    .filter_map(|it| {
                        let stats = door.usage(&uid, Some(&it.name))?;
                        Some((it.name.clone(), self.used(at, (&uid, &it.name), &stats, Some(it.started))))
                    })
                    .collect();
                if containers.is_empty() {
                    continue;
                }
                let stats = door.usage(&uid, None).unwrap_or_default();
                let started = started(&pod).or(Some(state.created));
                let used = self.used(at, (&uid, ""), &stats, started);
                pods.push(named(&pod, uid, used, containers));
            }
        }
        let machine = Machine::read(self.engine.as_ref().map(|it| it.directory()));
        let age = machine.booted.and_then(|it| Duration::try_from(at.duration_since(it)).ok()).unwrap_or_default();
        let cpu = machine.cpu.map(|nanos| (nanos, self.samples.rate(Key::default(), nanos, age)));
        self.samples.keep(&pods.iter().map(|it| it.uid.as_str()).collect::<Vec<_>>());
        Seen { at, machine, cpu, pods }
    }

    /// The sandboxes that are somebody's. What a Pod is called, its uid, the node does not know: it is the sandbox's.
    fn sandboxes(&self, at: Timestamp) -> Vec<Usage> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let bound = engine.list().into_iter().filter(|it| it.bound && it.exit.is_none());
        let usage = bound.filter_map(|it| {
            let label = |name: &str| it.labels.get(name).cloned();
            let (namespace, name) = (label(api::labels::POD_NAMESPACE)?, label(api::labels::POD)?);
            let usage = engine.cgroups.usage(&it.id);
            let stats = Stats { memory: usage.memory, cpu_usec: usage.cpu_usec, pids: usage.pids, ..Stats::default() };
            let started = it.created.parse().ok();
            let used = |container| self.used(at, (&it.id, container), &stats, started);
            let containers = vec![(CONTAINER.to_owned(), used(CONTAINER))];
            Some(Usage { namespace, name, pod: used(""), containers, uid: it.id.clone() })
        });
        usage.collect()
    }

    fn used(&self, at: Timestamp, (uid, container): (&str, &str), stats: &Stats, started: Option<Timestamp>) -> Used {
        let age = started.and_then(|it| Duration::try_from(at.duration_since(it)).ok()).unwrap_or_default();
        let cpu = stats.cpu_usec.map(|micros| {
            let nanos = micros.saturating_mul(1000);
            (nanos, self.samples.rate((uid.to_owned(), container.to_owned()), nanos, age))
        });
        Used { started, cpu, memory: stats.memory, processes: stats.pids, disk: stats.workspace }
    }
}

fn named(pod: &Arc<Pod>, uid: String, used: Used, containers: Vec<(String, Used)>) -> Usage {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Usage { namespace: text(&pod.metadata.namespace), name: text(&pod.metadata.name), uid, pod: used, containers }
}

fn started(pod: &Pod) -> Option<Timestamp> {
    pod.status.as_ref()?.start_time.as_ref().map(|it| it.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_used_now_takes_two_looks() {
        let (samples, key) = (Samples::default(), ("uid".to_owned(), String::new()));
        let look = |nanos, age| samples.rate(key.clone(), nanos, Duration::from_secs(age));
        assert_eq!(look(10_000_000_000, 20), 500_000_000, "since its start");
        assert_eq!(look(10_900_000_000, 20), 500_000_000, "at the same time nothing else is known");
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(look(11_000_000_000, 24), 250_000_000);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(look(1_000_000, 0), 1_000_000, "it was started again");
        samples.keep(&["another"]);
        assert!(samples.0.lock().unwrap().is_empty());
    }
}
