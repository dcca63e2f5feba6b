//! `stats/summary`, as a kubelet gives it to whoever shows what is used.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::machine::Disk;
use super::{Kubelet, Used};

impl Kubelet {
    pub(in super::super) fn summary(&self) -> Value {
        let seen = self.seen();
        let (at, machine) = (seconds(seen.at), &seen.machine);
        let mut node = object(json!({"nodeName": self.pods.get().map(|it| it.node()).unwrap_or_default()}));
        put(&mut node, "startTime", machine.booted.map(|it| json!(seconds(it))));
        put(&mut node, "cpu", seen.cpu.map(|cpu| processor(&at, cpu)));
        put(&mut node, "memory", machine.memory.as_ref().map(|it| {
            json!({
                "time": at, "availableBytes": it.available, "usageBytes": it.used, "workingSetBytes": it.working_set,
                "rssBytes": it.rss,
            })
        }));
        put(&mut node, "fs", machine.disk.map(|it| disk(&at, it, it.used)));
        put(&mut node, "runtime", machine.disk.map(|it| json!({"imageFs": disk(&at, it, it.used)})));
        put(
            &mut node,
            "rlimit",
            machine
                .processes
                .zip(machine.most_processes)
                .map(|(now, most)| json!({"time": at, "maxpid": most, "curproc": now})),
        );
        let pods = seen.pods.iter().map(|it| {
            let mut pod = object(json!({"podRef": {"name": it.name, "namespace": it.namespace, "uid": it.uid}}));
            used(&mut pod, &at, &it.pod);
            let containers = it.containers.iter().map(|(name, one)| {
                let mut container = object(json!({"name": name}));
                used(&mut container, &at, one);
                container.remove("process_stats");
                container
            });
            pod.insert("containers".into(), containers.map(Value::Object).collect());
            let storage = it.pod.disk.zip(machine.disk).map(|(bytes, fs)| disk(&at, fs, bytes));
            put(&mut pod, "ephemeral-storage", storage);
            Value::Object(pod)
        });
        json!({"node": node, "pods": pods.collect::<Vec<_>>()})
    }
}

fn used(into: &mut Map<String, Value>, at: &str, it: &Used) {
    put(into, "startTime", it.started.map(|it| json!(seconds(it))));
    put(into, "cpu", it.cpu.map(|cpu| processor(at, cpu)));
    // The cache that can be dropped is not counted in either.
    put(into, "memory", it.memory.map(|bytes| json!({"time": at, "usageBytes": bytes, "workingSetBytes": bytes})));
    put(into, "process_stats", it.processes.map(|count| json!({"process_count": count})));
}

fn processor(at: &str, (total, now): (u64, u64)) -> Value {
    json!({"time": at, "usageNanoCores": now, "usageCoreNanoSeconds": total})
}

fn disk(at: &str, it: Disk, used: u64) -> Value {
    json!({
        "time": at, "availableBytes": it.available, "capacityBytes": it.capacity, "usedBytes": used,
        "inodesFree": it.inodes_free, "inodes": it.inodes, "inodesUsed": it.inodes.saturating_sub(it.inodes_free),
    })
}

fn put(into: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        into.insert(name.to_owned(), value);
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// As `metav1.Time`.
fn seconds(at: Timestamp) -> String {
    format!("{at:.0}")
}
