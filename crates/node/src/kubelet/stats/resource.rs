//! `metrics/resource`: what is used, in Prometheus' text, in a kubelet's words.

use std::fmt::Write;

use super::{Kubelet, Used};

impl Kubelet {
    pub(in super::super) fn resources(&self) -> String {
        let seen = self.seen();
        let at = seen.at.as_millisecond();
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, String)>| {
            if !lines.is_empty() {
                let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
            }
            for (labels, value) in lines {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let containers = |value: &dyn Fn(&Used) -> Option<String>| -> Vec<(String, String)> {
            let all = seen.pods.iter().flat_map(|pod| pod.containers.iter().map(move |(name, it)| (pod, name, it)));
            all.filter_map(|(pod, name, it)| {
                let labels = format!("{{container={name:?},namespace={:?},pod={:?}}}", pod.namespace, pod.name);
                Some((labels, value(it)?))
            })
            .collect()
        };
        let pods = |value: &dyn Fn(&Used) -> Option<String>| -> Vec<(String, String)> {
            let labels = |namespace, name| format!("{{namespace={namespace:?},pod={name:?}}}");
            seen.pods.iter().filter_map(|it| Some((labels(&it.namespace, &it.name), value(&it.pod)?))).collect()
        };
        let node = |value: Option<String>| value.map(|it| (String::new(), it)).into_iter().collect::<Vec<_>>();
        let cpu = |(total, _): (u64, u64)| format!("{} {at}", total as f64 / 1e9);
        let of_cpu = |it: &Used| it.cpu.map(cpu);
        let of_memory = |it: &Used| it.memory.map(|bytes| format!("{bytes} {at}"));
        let started = |it: &Used| it.started.map(|it| (it.as_millisecond() as f64 / 1e3).to_string());

        let (counter, gauge) = ("counter", "gauge");
        let time = |whose: &str| format!("Cumulative cpu time consumed by the {whose} in core-seconds");
        let memory = |whose: &str| format!("Current working set of the {whose} in bytes");
        family("container_cpu_usage_seconds_total", counter, &time("container"), containers(&of_cpu));
        family("container_memory_working_set_bytes", gauge, &memory("container"), containers(&of_memory));
        let help = "Start time of the container since unix epoch in seconds";
        family("container_start_time_seconds", gauge, help, containers(&started));
        family("node_cpu_usage_seconds_total", counter, &time("node"), node(seen.cpu.map(cpu)));
        let working_set = seen.machine.memory.as_ref().map(|it| format!("{} {at}", it.working_set));
        family("node_memory_working_set_bytes", gauge, &memory("node"), node(working_set));
        family("pod_cpu_usage_seconds_total", counter, &time("pod"), pods(&of_cpu));
        family("pod_memory_working_set_bytes", gauge, &memory("pod"), pods(&of_memory));
        let help = "1 if there was an error while getting container metrics, 0 otherwise";
        family("resource_scrape_error", gauge, help, node(Some("0".to_owned())));
        out
    }
}
