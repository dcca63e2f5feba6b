//! Keeps the Node and its Lease.

use std::time::Duration;

use api::labels;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kit::Backoff;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::node::Node as Described;

use super::link::{Link, within};
use super::machine::{self, Machine};
use super::object::{quantity, time};
use super::{Error, MANAGER, Options, objects};

/// As a kubelet: the Lease every ten seconds; the status when it is not what the Node says, and every five minutes.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
const TELL: Duration = Duration::from_secs(300);
/// The longest that one round may take.
const ROUND: Duration = Duration::from_secs(60);
const LEASES: &str = "kube-node-lease";
/// Keeps away who is no sandbox, where nothing runs other Pods.
const TAINT: &str = "insula.dev/sandboxes";

/// The ability, and the handler.
const SENTRY: &str = "runsc";

pub(super) struct Attend<'a> {
    options: &'a Options,
    link: &'a Link,
    answers: watch::Receiver<bool>,
    machine: Machine,
    told: Option<Told>,
    /// Whether this process has written the Node's labels.
    labelled: bool,
}

/// The status that was written last.
struct Told {
    uid: String,
    ready: bool,
    handlers: Vec<&'static str>,
    extended: Map<String, Value>,
    at: Instant,
}

/// The types of the Node's conditions, and a kubelet's reasons for being so and not.
const CONDITIONS: [(&str, &str, &str); 4] = [
    ("MemoryPressure", "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
    ("DiskPressure", "KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
    ("PIDPressure", "KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
    ("Ready", "KubeletReady", "KubeletNotReady"),
];

impl<'a> Attend<'a> {
    pub(super) fn new(options: &'a Options, link: &'a Link, answers: watch::Receiver<bool>) -> Self {
        Self { options, link, answers, machine: Machine::read(&options.disk), told: None, labelled: false }
    }

    /// For ever.
    pub(super) async fn keep(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(60));
        // A Node that is not Ready yet is nothing to show; one whose node stays away is.
        let _ = tokio::time::timeout(RENEW, self.answers.wait_for(|it| *it)).await;
        loop {
            let ready = *self.answers.borrow_and_update();
            let wait = match within(ROUND, self.round(ready)).await {
                Ok(()) => {
                    backoff.reset();
                    RENEW
                }
                Err(error) => {
                    if backoff.failures() == 0 {
                        tracing::warn!(error = kit::chain(&error), "cannot keep the Node; trying again");
                    }
                    backoff.pause()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.answers.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn round(&mut self, ready: bool) -> Result<(), Error> {
        let node = self.node().await?;
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let now = self.options.clock.now();
        let [memory, disk, pids] = machine::pressure(&self.options.disk);
        let mut said = [memory, disk, pids, ready].map(|is| (is, now));
        let mut differs = false;
        for (it, (type_, ..)) in said.iter_mut().zip(CONDITIONS) {
            match since(&node, type_, it.0) {
                Some(since) => it.1 = since,
                None => differs = true,
            }
        }
        // Of a node that does not answer nobody knows them.
        let described = if ready { Some(self.link.describe().await?) } else { None };
        let handlers = described.as_ref().map(|it| self.handlers(it)).unwrap_or_default();
        let extended = extended(&node);
        let told = |told: &Told| {
            let same = told.uid == uid && told.ready == ready && told.handlers == handlers;
            same && told.extended == extended && told.at.elapsed() < TELL
        };
        let told = self.told.as_ref().is_some_and(told);
        // Of a node that does not answer, others may say what they like: nobody knows better.
        if !told || (ready && differs) {
            let version = described.map(|it| it.version);
            self.tell(&said, version, &handlers, &extended, now).await?;
            self.told = Some(Told { uid: uid.clone(), ready, handlers, extended, at: Instant::now() });
        }
        if ready {
            self.renew(&uid, now).await?;
        }
        Ok(())
    }

    /// Makes the Node if it is not there.
    async fn node(&mut self) -> Result<DynamicObject, Error> {
        const DOING: &str = "write the Node";
        let name = &self.options.name;
        let nodes = objects::<Node>(&self.options.client, None);
        let mut labels = self.machine.labels(name);
        labels.insert(labels::PROJECTED.to_owned(), "true".to_owned());
        let metadata = json!({"name": name, "labels": labels});
        let found = match nodes.get_opt(name).await.map_err(Error::api(DOING))? {
            None => {
                // Of a Node that is there already, others may have changed them.
                let taint = json!({"key": TAINT, "value": "only", "effect": "NoSchedule"});
                let taints = if self.options.runs_pods { json!([]) } else { json!([taint]) };
                let it = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}});
                let it = serde_json::from_value(it).map_err(Error::unreachable(DOING))?;
                let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
                nodes.create(&params, &it).await.map_err(Error::api(DOING))?
            }
            Some(there) if !there.metadata.labels.as_ref().is_some_and(|all| all.contains_key(labels::PROJECTED)) => {
                return Err(Error::Taken { kind: "Node", name: name.clone(), lost: "nobody renews it" });
            }
            Some(there) if self.labelled => there,
            Some(_) => {
                let it = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
                let params = PatchParams::apply(MANAGER).force();
                let found = nodes.patch(name, &params, &Patch::Apply(&it)).await.map_err(Error::api(DOING))?;
                self.admit(&found).await?;
                found
            }
        };
        self.labelled = true;
        Ok(found)
    }

    /// Takes our taint off a Node that was made when nothing ran Pods here.
    async fn admit(&self, there: &DynamicObject) -> Result<(), Error> {
        const DOING: &str = "let Pods onto the Node";
        let taints = there.data.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
        let kept: Vec<_> = taints.iter().filter(|it| it.get("key").is_none_or(|key| key != TAINT)).cloned().collect();
        if !self.options.runs_pods || kept.len() == taints.len() {
            return Ok(());
        }
        // Only as long as nobody else has changed it.
        let version = there.metadata.resource_version.clone();
        let change = json!({"spec": {"taints": kept}, "metadata": {"resourceVersion": version}});
        let nodes = objects::<Node>(&self.options.client, None);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        nodes.patch(&self.options.name, &params, &Patch::Merge(&change)).await.map(drop).map_err(Error::api(DOING))
    }

    /// What RuntimeClasses of pods may ask for here, and what those get that name none.
    fn handlers(&self, node: &Described) -> Vec<&'static str> {
        let sentry = self.options.runs_pods && node.can.get(SENTRY).is_some_and(|it| it.ok);
        if sentry { vec!["", SENTRY] } else { vec![""] }
    }

    async fn tell(
        &self,
        said: &[(bool, Timestamp); 4],
        version: Option<String>,
        handlers: &[&str],
        extended: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<(), Error> {
        const DOING: &str = "tell how the Node is";
        let Options { client, name, most, .. } = self.options;
        let runtime = version.map(|it| format!("insula://{it}")).unwrap_or_default();
        let served = client.apiserver_version().await.map_err(Error::api(DOING))?.git_version;
        let room = Map::from_iter([
            ("cpu".to_owned(), json!(self.machine.cpus.to_string())),
            ("memory".to_owned(), json!(quantity(self.machine.memory))),
            ("pods".to_owned(), json!(most.to_string())),
            ("ephemeral-storage".to_owned(), json!(quantity(self.machine.disk))),
        ]);
        let allocatable: Map<_, _> = room.clone().into_iter().chain(extended.clone()).collect();
        let conditions = CONDITIONS.iter().zip(said).map(|((type_, so, not), (is, since))| {
            let message = match (*type_, is) {
                ("Ready", true) => "the node answers",
                ("Ready", false) => "the node does not answer",
                (_, true) => "little is left",
                (_, false) => "enough is left",
            };
            json!({
                "type": type_, "status": word(*is), "reason": if *is { so } else { not },
                "message": message, "lastTransitionTime": time(*since), "lastHeartbeatTime": time(now),
            })
        });
        let conditions: Vec<Value> = conditions.collect();
        let info = json!({
            "machineID": self.machine.id,
            "systemUUID": "",
            "bootID": self.machine.boot,
            "kernelVersion": self.machine.kernel,
            "osImage": self.machine.os,
            "operatingSystem": "linux",
            "architecture": self.machine.arch,
            "kubeletVersion": served,
            "kubeProxyVersion": "",
            "containerRuntimeVersion": runtime,
        });
        let status = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "status": {
                "capacity": room,
                "allocatable": allocatable,
                "conditions": conditions,
                "addresses": [
                    {"type": "InternalIP", "address": "127.0.0.1"},
                    {"type": "Hostname", "address": name},
                ],
                "nodeInfo": info,
                "runtimeHandlers": handlers.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
            },
        });
        let nodes = objects::<Node>(client, None);
        let params = PatchParams::apply(MANAGER).force();
        nodes.patch_status(name, &params, &Patch::Apply(&status)).await.map(drop).map_err(Error::api(DOING))
    }

    async fn renew(&self, uid: &str, now: Timestamp) -> Result<(), Error> {
        const DOING: &str = "renew the Node's Lease";
        let Options { client, name, .. } = self.options;
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid,
            }]},
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        });
        let leases = objects::<Lease>(client, Some(LEASES));
        let params = PatchParams::apply(MANAGER).force();
        match leases.patch(name, &params, &Patch::Apply(&lease)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop).map_err(Error::api(DOING)),
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASES}});
        let namespaces = objects::<Namespace>(client, None);
        namespaces.patch(LEASES, &params, &Patch::Apply(&namespace)).await.map_err(Error::api(DOING))?;
        leases.patch(name, &params, &Patch::Apply(&lease)).await.map(drop).map_err(Error::api(DOING))
    }
}

fn word(is: bool) -> &'static str {
    if is { "True" } else { "False" }
}

/// What somebody else says the Node has (`example.com/dongle`, by a patch of its status): it is pods' to use, as a kubelet
/// has it.
fn extended(node: &DynamicObject) -> Map<String, Value> {
    let all = node.data.pointer("/status/capacity").and_then(Value::as_object);
    let theirs = all.into_iter().flatten().filter(|(name, _)| name.contains('/'));
    theirs.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// Since when the Node says that it is so, or not; `None` when it says something else. Others write here too: who looks
/// after nodes and has not heard of this one for a while.
fn since(node: &DynamicObject, type_: &str, is: bool) -> Option<Timestamp> {
    let all = node.data.pointer("/status/conditions").and_then(Value::as_array)?;
    let text = |it: &Value, name: &str| it.get(name).and_then(Value::as_str).map(str::to_owned);
    let condition = all.iter().find(|it| text(it, "type").as_deref() == Some(type_))?;
    if text(condition, "status").as_deref() != Some(word(is)) {
        return None;
    }
    text(condition, "lastTransitionTime")?.parse().ok()
}
