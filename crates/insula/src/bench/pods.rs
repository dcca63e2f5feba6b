use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures::TryStreamExt;
use http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use wire::websocket::{self, Decoder, Message};

use super::Samples;
use super::child::Up;

/// The longest that a figure waits for anything.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pods, from a client's side: created until Ready, many at once, and what a killed `insula up` finds again.
///
/// Beside a real Kubernetes with a node, by the same client under the same load, in a namespace of its own that goes at the end.
#[derive(Args)]
pub(crate) struct Pods {
    /// The kubeconfig of a Kubernetes with a node to compare with
    #[arg(long, value_name = "KUBECONFIG")]
    peer: Option<PathBuf>,
    /// Pods that are created one after the other
    #[arg(short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    n: u32,
    /// Replicas of the Deployment
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    replicas: u32,
    /// Pods that run when `insula up` is killed and started again; 0: it is not
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=2_000))]
    restart: u32,
}

struct Side {
    name: &'static str,
    client: Client,
    namespace: String,
}

impl Pods {
    pub(crate) async fn run(self) -> Result<()> {
        let dir = std::env::temp_dir().join(format!("insula-bench-{}", kit::id()));
        let measured = self.measure(&dir).await;
        let _ = std::fs::remove_dir_all(&dir);
        measured
    }

    async fn measure(&self, dir: &std::path::Path) -> Result<()> {
        let args = ["--warm", "0"];
        let up = Up::start_in(dir, &args).await?;
        let ours = Side::new("insula", up.client().await?).await?;
        self.both(&ours).await?;
        if let Some(peer) = &self.peer {
            let config = Kubeconfig::read_from(peer).with_context(|| format!("read {}", peer.display()))?;
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            let peer = Side::new("peer", Client::try_from(config)?).await?;
            let measured = self.both(&peer).await;
            peer.leave().await?;
            measured?;
        }
        if self.restart == 0 {
            return up.stop().await.map(drop);
        }
        let took = ours.deployment("many", self.restart).await?;
        let memory = up.memory()? as f64 / 1048576.0;
        println!("insula: {} more pods ready in {took:.0?}, its resident memory {memory:.1} MiB", self.restart);
        let before = ours.running("many").await?;
        up.kill().await?;
        let up = Up::start_in(dir, &args).await?;
        let client = up.client().await?;
        let again = Side { client, ..ours };
        let after = again.settled("many", self.restart as usize).await?;
        let took = up.started.elapsed();
        let kept = before.intersection(&after).count();
        println!(
            "insula: killed and started again, all {} ready after {took:.0?}; {kept} of the same containers",
            after.len()
        );
        up.stop().await.map(drop)
    }

    async fn both(&self, side: &Side) -> Result<()> {
        let (mut stay, mut go) = (Samples::default(), Samples::default());
        for number in 0..self.n {
            stay.add(side.pod(&format!("stays-{number}")).await?);
        }
        stay.print(&format!("{}: a pod created until Ready", side.name), 0);
        let now = DeleteParams::default().grace_period(0);
        for number in 0..self.n {
            let name = format!("goes-{number}");
            go.add(side.pod(&name).await?);
            side.pods().delete(&name, &now).await?;
        }
        go.print(&format!("{}: the same while the one before it is removed", side.name), 0);
        let mut exec = Samples::default();
        for _ in 0..self.n {
            exec.add(side.exec("stays-0").await?);
        }
        exec.print(&format!("{}: true executed in a pod, until its exit code is known", side.name), 0);
        let took = side.deployment("all", self.replicas).await?;
        println!("{}: a Deployment of {} until all are available: {took:.0?}", side.name, self.replicas);
        Ok(())
    }
}

/// A pod as small as can be.
fn spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
        "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "100000"]}],
    })
}

impl Side {
    async fn new(name: &'static str, client: Client) -> Result<Self> {
        let namespace = format!("bench-{}", kit::id());
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        Api::all(client.clone()).create(&PostParams::default(), &object).await?;
        let side = Self { name, client, namespace };
        // Without its account no pod is admitted.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(side.client.clone(), &side.namespace);
        side.until(accounts, "metadata.name=default", |_| true).await?;
        Ok(side)
    }

    async fn leave(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.map(drop)?;
        Ok(())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Watches until an object is as wanted; the watch begins with what is there.
    async fn until<K>(&self, api: Api<K>, fields: &str, is: impl Fn(&K) -> bool) -> Result<()>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let waiting = async {
            loop {
                let mut events = Box::pin(api.watch(&WatchParams::default().fields(fields), "0").await?);
                while let Some(event) = events.try_next().await? {
                    if let WatchEvent::Added(it) | WatchEvent::Modified(it) = event
                        && is(&it)
                    {
                        return Ok(());
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.context("waited in vain")?
    }

    /// How long a pod takes from its creation until the watcher sees it Ready.
    async fn pod(&self, name: &str) -> Result<Duration> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec()}))?;
        let began = Instant::now();
        self.pods().create(&PostParams::default(), &pod).await?;
        self.until(self.pods(), &format!("metadata.name={name}"), is_ready).await?;
        Ok(began.elapsed())
    }

    /// How long `kubectl exec POD -- true` takes, but for kubectl's own start: a connection of its own and all.
    async fn exec(&self, pod: &str) -> Result<Duration> {
        let path =
            format!("/api/v1/namespaces/{}/pods/{pod}/exec?command=true&stdout=true&stderr=true", self.namespace);
        let request = Request::get(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, websocket::VERSION)
            .header(header::SEC_WEBSOCKET_KEY, "aW5zdWxhIG1lYXN1cmVzIQ==")
            .header(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io")
            .body(kube::client::Body::empty())?;
        let began = Instant::now();
        let answer = self.client.send(request).await?;
        ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "exec: {}", answer.status());
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await?);
        let mut decoder = Decoder::new(websocket::Side::Server);
        loop {
            match decoder.message().map_err(|broken| anyhow::anyhow!("exec: {broken}"))? {
                // The channel of how it ended.
                Some(Message::Binary(message)) if message.first() == Some(&3) => {
                    let status: Value = serde_json::from_slice(message.get(1..).unwrap_or_default())?;
                    ensure!(status.get("status") == Some(&json!("Success")), "exec: {status}");
                    return Ok(began.elapsed());
                }
                Some(_) => {}
                None => ensure!(stream.read_buf(decoder.received()).await? > 0, "exec: the connection ended"),
            }
        }
    }

    async fn deployment(&self, name: &str, replicas: u32) -> Result<Duration> {
        let labels = json!({"app": name});
        let object: Deployment = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec()},
            },
        }))?;
        let all: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let began = Instant::now();
        all.create(&PostParams::default(), &object).await?;
        let available =
            |it: &Deployment| it.status.as_ref().and_then(|it| it.available_replicas) == i32::try_from(replicas).ok();
        self.until(all, &format!("metadata.name={name}"), available).await?;
        Ok(began.elapsed())
    }

    /// The containers of a Deployment's pods that are ready.
    async fn running(&self, app: &str) -> Result<BTreeSet<String>> {
        let all = self.pods().list(&ListParams::default().labels(&format!("app={app}"))).await?;
        let ready = all.items.iter().filter(|it| is_ready(it)).filter_map(|it| it.status.as_ref());
        let ids = ready.flat_map(|it| it.container_statuses.iter().flatten());
        Ok(ids.filter_map(|it| it.container_id.clone()).collect())
    }

    /// The same, as soon as there are so many that answer.
    async fn settled(&self, app: &str, count: usize) -> Result<BTreeSet<String>> {
        let began = Instant::now();
        loop {
            let all = self.running(app).await?;
            if all.len() == count {
                return Ok(all);
            }
            if began.elapsed() > PATIENCE {
                bail!("{} of {count} pods are ready again", all.len());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
}
