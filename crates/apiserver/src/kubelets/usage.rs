//! `metrics.k8s.io/v1beta1`: what nodes and pods use, as metrics-server has it; what `kubectl top` shows. Nothing is kept:
//! whoever asks has the kubelets asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::{Value, json};

use super::Kubelets;
use crate::core::Core;
use crate::http::reply::Reply;
use crate::http::{Query, Target};
use crate::object::selector::{Fields, Labels};
use crate::object::status::{Problem, What};
use crate::store::{Entry, Key};

pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";
/// How long a kubelet may take to tell.
const ANSWER: Duration = Duration::from_secs(10);
/// Kubelets that are asked at once, for one client.
const AT_ONCE: usize = 16;
/// What a kubelet may tell.
const SAID: usize = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Nodes,
    Pods,
}

impl Of {
    /// `None` when something else is asked for, or nothing that there is.
    pub(crate) fn asked(core: &Core, target: &Target) -> Option<Self> {
        let served = target.group == GROUP && target.version == VERSION && core.kubelets.is_some();
        match (target.resource.as_str(), target.subresource.as_str()) {
            ("nodes", "") if served && target.namespace.is_empty() => Some(Self::Nodes),
            ("pods", "") if served => Some(Self::Pods),
            _ => None,
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "NodeMetrics",
            Self::Pods => "PodMetrics",
        }
    }

    /// What is said not to be there.
    fn what(self) -> What<'static> {
        match self {
            Self::Nodes => What::new(GROUP, "nodemetrics"),
            Self::Pods => What::new(GROUP, "podmetrics"),
        }
    }

    /// As discovery lists it: its name, kind, and whether it has namespaces.
    pub(crate) fn resources() -> [(&'static str, &'static str, bool); 2] {
        [Self::Nodes, Self::Pods].map(|it| (it.plural(), it.kind(), it == Self::Pods))
    }

    /// Who asks has been authorized.
    pub(crate) async fn answer(self, core: &Arc<Core>, target: &Target, query: Query<'_>) -> Result<Reply, Problem> {
        let Some(kubelets) = &core.kubelets else { return Err(Problem::no_such_path()) };
        let Target { name, namespace, .. } = target;
        match target.verb {
            "get" => {
                let full = if self == Self::Pods { format!("{namespace}/{name}") } else { name.clone() };
                let object = core.store.get(&Key::new("", self.plural(), namespace.as_str(), name.as_str()));
                let object = object.ok_or_else(|| Problem::not_found(What::new("", self.plural()), &full))?;
                let all = self.gather(core, kubelets, vec![object]).await;
                let found = all.into_iter().next().ok_or_else(|| Problem::not_found(self.what(), &full))?;
                Ok(Reply::json(200, &found))
            }
            "list" => {
                let selector = |name| query.get(name).unwrap_or_default();
                let labels = Labels::parse(&selector("labelSelector")).map_err(Problem::bad_request)?;
                let fields = Fields::parse(&selector("fieldSelector")).map_err(Problem::bad_request)?;
                let namespace = Some(namespace.as_str()).filter(|it| !it.is_empty());
                let listed = core.store.list("", self.plural(), namespace, None, None).entries;
                let wanted = listed.into_iter().filter(|entry| {
                    let object = entry.value();
                    labels.matches(|key| object.get("metadata")?.get("labels")?.get(key)?.as_str())
                        && fields.matches(|path| {
                            let at = format!("/{}", path.replace('.', "/"));
                            object.pointer(&at)?.as_str().map(str::to_owned)
                        })
                });
                let all = self.gather(core, kubelets, wanted.collect()).await;
                let kind = format!("{}List", self.kind());
                let list = json!({"kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": all});
                Ok(Reply::json(200, &list))
            }
            verb => Err(Problem::method_not_supported(What::new(GROUP, self.plural()), verb)),
        }
    }

    /// What these objects use; those of which nothing is known are left out.
    async fn gather(self, core: &Arc<Core>, kubelets: &Kubelets, objects: Vec<Arc<Entry>>) -> Vec<Value> {
        let objects: Vec<Value> = objects.iter().map(|it| it.value()).collect();
        let text = |object: &Value, at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let node = |object: &Value| match self {
            Self::Nodes => text(object, "/metadata/name"),
            Self::Pods => text(object, "/spec/nodeName"),
        };
        let mut nodes: Vec<String> = objects.iter().map(node).filter(|it| !it.is_empty()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let asked = stream::iter(nodes).map(|node| async move {
            let summary = summary(core, kubelets, &node).await;
            (node, summary)
        });
        let mut told: HashMap<String, Value> = HashMap::new();
        let mut asked = asked.buffer_unordered(AT_ONCE);
        while let Some((node, summary)) = asked.next().await {
            match summary {
                Ok(summary) => drop(told.insert(node, summary)),
                Err(why) => tracing::debug!(node, why, "a kubelet does not tell what is used"),
            }
        }
        let mut pods: HashMap<(&str, &str, &str), &Value> = HashMap::new();
        for (node, summary) in &told {
            for pod in summary.get("pods").and_then(Value::as_array).into_iter().flatten() {
                let reference = |name: &str| pod.pointer(&format!("/podRef/{name}")).and_then(Value::as_str);
                if let (Some(namespace), Some(name)) = (reference("namespace"), reference("name")) {
                    pods.insert((node, namespace, name), pod);
                }
            }
        }
        let used = |object: &Value| {
            let (node, name, namespace) =
                (node(object), text(object, "/metadata/name"), text(object, "/metadata/namespace"));
            let mut metadata =
                json!({"name": name, "creationTimestamp": object.pointer("/metadata/creationTimestamp")});
            let mut it = json!({"kind": self.kind(), "apiVersion": API_VERSION});
            match self {
                Self::Nodes => {
                    let (usage, at) = usage(told.get(&node)?.get("node")?)?;
                    put(&mut it, [("timestamp", at), ("window", json!("0s")), ("usage", usage)]);
                }
                Self::Pods => {
                    let pod = pods.get(&(node.as_str(), namespace.as_str(), name.as_str()))?;
                    let all = pod.get("containers")?.as_array()?;
                    let mut time = Value::Null;
                    let containers: Vec<Value> = all
                        .iter()
                        .filter_map(|container| {
                            let (usage, at) = usage(container)?;
                            time = at;
                            Some(json!({"name": container.get("name")?, "usage": usage}))
                        })
                        .collect();
                    // Half of a pod would look like less than it uses.
                    if containers.is_empty() || containers.len() < all.len() {
                        return None;
                    }
                    put(&mut metadata, [("namespace", json!(namespace))]);
                    put(&mut it, [("timestamp", time), ("window", json!("0s")), ("containers", json!(containers))]);
                }
            }
            if let Some(labels) = object.pointer("/metadata/labels") {
                put(&mut metadata, [("labels", labels.clone())]);
            }
            put(&mut it, [("metadata", metadata)]);
            Some(it)
        };
        objects.iter().filter_map(used).collect()
    }
}

fn put<const N: usize>(into: &mut Value, fields: [(&str, Value); N]) {
    for (name, value) in fields {
        crate::http::json::put(into, name, value);
    }
}

/// Of a kubelet's words for a container or itself: what it uses, and when.
fn usage(told: &Value) -> Option<(Value, Value)> {
    let nanos = told.pointer("/cpu/usageNanoCores")?.as_u64()?;
    let bytes = told.pointer("/memory/workingSetBytes")?.as_u64()?;
    let usage = json!({
        "cpu": scaled(nanos, 1000, &["n", "u", "m", ""]),
        "memory": scaled(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti"]),
    });
    Some((usage, told.pointer("/cpu/time").cloned().unwrap_or_default()))
}

/// A quantity with the largest suffix that loses nothing, as Kubernetes writes it.
fn scaled(mut number: u64, step: u64, suffixes: &[&str]) -> String {
    let mut suffixes = suffixes.iter();
    let mut suffix = suffixes.next();
    while number != 0 && number.is_multiple_of(step) {
        let Some(next) = suffixes.next() else { break };
        (number, suffix) = (number / step, Some(next));
    }
    if number == 0 { "0".to_owned() } else { format!("{number}{}", suffix.unwrap_or(&"")) }
}

async fn summary(core: &Arc<Core>, kubelets: &Kubelets, node: &str) -> Result<Value, String> {
    let request = Request::builder()
        .uri(kubelets.path("/stats/summary"))
        .header(http::header::HOST, super::pods::host(node))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let asked = async {
        let response = kubelets.ask(&core.tasks, node, request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let said = Limited::new(response.into_body(), SAID).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&said.to_bytes()).map_err(|error| error.to_string())
    };
    tokio::time::timeout(ANSWER, asked).await.map_err(|_| "it does not answer in time".to_owned())?
}

#[cfg(test)]
mod tests {
    use super::scaled;

    #[test]
    fn quantities_are_written_as_kubernetes_writes_them() {
        let cpu = |nanos| scaled(nanos, 1000, &["n", "u", "m", ""]);
        assert_eq!([0, 1, 2_000, 3_000_000, 250_000_001].map(cpu), ["0", "1n", "2u", "3m", "250000001n"]);
        assert_eq!([2_000_000_000, 3_000_000_000_000].map(cpu), ["2", "3000"]);
        let memory = |bytes| scaled(bytes, 1024, &["", "Ki", "Mi", "Gi", "Ti"]);
        assert_eq!([1, 5 << 20, 1025 << 10, 1 << 60].map(memory), ["1", "5Mi", "1025Ki", "1048576Ti"]);
    }
}
