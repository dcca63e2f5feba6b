use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kit::{Shutdown, Tasks};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::sync::mpsc;

use super::Samples;
use super::child::{self, Up};

/// Creates at once.
const LEVELS: [usize; 3] = [1, 16, 64];
/// Watchers that each must have the object.
const WATCHERS: [usize; 2] = [1, 100];
/// Of so many objects one has the label that is asked for.
const LABELLED: usize = 100;
/// The longest that a figure waits for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// The Kubernetes API under load, beside a real Kubernetes under the same load by the same client.
///
/// Latencies are those of the client, over TLS; throughput is the median of the rounds, in which both sides take turns.
/// On the peer everything is done in a namespace of its own, which goes at the end.
#[derive(Args)]
pub(crate) struct ApiBench {
    /// The kubeconfig of a Kubernetes to compare with
    #[arg(long, value_name = "KUBECONFIG")]
    peer: Option<PathBuf>,
    /// A process of the peer's, for its resident memory; repeatable
    #[arg(long = "peer-pid", value_name = "PID", requires = "peer")]
    peer_pids: Vec<u32>,
    /// Creates of a round
    #[arg(short, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    n: u32,
    /// Rounds of each figure
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Objects that are there when they are listed by label
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    objects: u32,
}

/// One of those that are compared.
struct Side {
    name: &'static str,
    client: Client,
    /// Of the benchmark's own namespace.
    maps: Api<ConfigMap>,
    namespace: String,
    pids: Vec<u32>,
}

impl ApiBench {
    pub(crate) async fn run(self) -> Result<()> {
        let scratch = Scratch(std::env::temp_dir().join(format!("insula-bench-{}", kit::id())));
        let tasks = Tasks::new(Shutdown::new());
        let up = Up::start_in(&scratch.0, &["--warm", "0"]).await?;
        let client = up.client().await?;
        client.apiserver_version().await?;
        println!("insula: started in {:.0} ms until /version is answered over TLS", ms(up.started.elapsed()));
        let mut sides = vec![Side::new("insula", client, vec![up.pid()?]).await?];
        if let Some(peer) = &self.peer {
            let config = Kubeconfig::read_from(peer).with_context(|| format!("read {}", peer.display()))?;
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            sides.push(Side::new("peer", Client::try_from(config)?, self.peer_pids.clone()).await?);
        }
        let measured = self.measure(&sides, &tasks).await;
        for side in sides.iter().skip(1) {
            side.leave().await?;
        }
        tasks.end().await;
        measured?;

        up.stop().await?;
        let up = Up::start_in(&scratch.0, &["--warm", "0"]).await?;
        let client = up.client().await?;
        client.apiserver_version().await?;
        println!("insula: started again in {:.0} ms, with all of these objects", ms(up.started.elapsed()));
        up.stop().await?;
        Ok(())
    }

    async fn measure(&self, sides: &[Side], tasks: &Tasks) -> Result<()> {
        let mut created = vec![0; sides.len()];
        for level in LEVELS {
            let mut rounds = Rounds::new(sides);
            for round in 0..self.rounds {
                for (side, (round_of, total)) in sides.iter().zip(rounds.0.iter_mut().zip(&mut created)) {
                    let load = Load { side, tasks, prefix: format!("c{level}-{round}"), count: self.n as usize, level };
                    *total += load.run(round_of, |_| json!({})).await?;
                }
            }
            rounds.print(sides, &format!("create of 1 KiB, {level} at once"));
        }
        for (side, created) in sides.iter().zip(created) {
            side.account(created).await?;
        }
        for stuck in [false, true] {
            for watchers in WATCHERS {
                for side in sides {
                    let n = (self.n as usize / 10).max(1);
                    side.fan_out(tasks, watchers, stuck, n).await?;
                }
            }
        }
        for side in sides {
            let fill = Load { side, tasks, prefix: "o".into(), count: self.objects as usize, level: 16 };
            let label = |n: usize| if n.is_multiple_of(LABELLED) { json!({"bench": "one-of-many"}) } else { json!({}) };
            let filled = fill.run(&mut Round::default(), label).await?;
            side.list(filled).await?;
            side.memory()?;
        }
        Ok(())
    }
}

/// Samples of one figure on one side.
#[derive(Default)]
struct Round {
    samples: Samples,
    per_second: Vec<f64>,
    failures: usize,
}

struct Rounds(Vec<Round>);

impl Rounds {
    fn new(sides: &[Side]) -> Self {
        Self(sides.iter().map(|_| Round::default()).collect())
    }

    fn print(mut self, sides: &[Side], what: &str) {
        let mut medians = Vec::new();
        for (side, round) in sides.iter().zip(&mut self.0) {
            round.per_second.sort_by(f64::total_cmp);
            let median = round.per_second.get(round.per_second.len() / 2).copied().unwrap_or_default();
            round.samples.print(&format!("{}: {what}", side.name), round.failures);
            println!("{:<44} {median:8.0} per s", "");
            medians.push((median, round.samples.percentile(50), round.samples.percentile(99)));
        }
        if let [(ours, our50, our99), (theirs, their50, their99)] = medians.as_slice() {
            println!(
                "{:<44} {:.1} × the peer's throughput, {:.2} × its p50, {:.2} × its p99",
                "",
                ours / theirs,
                our50.as_secs_f64() / their50.as_secs_f64(),
                our99.as_secs_f64() / their99.as_secs_f64(),
            );
        }
    }
}

/// Creates of ConfigMaps by some workers.
struct Load<'a> {
    side: &'a Side,
    tasks: &'a Tasks,
    prefix: String,
    count: usize,
    level: usize,
}

impl Load<'_> {
    /// How many were created.
    async fn run(&self, round: &mut Round, labels: impl Fn(usize) -> serde_json::Value) -> Result<usize> {
        let (told, mut results) = mpsc::channel(self.level);
        let next = Arc::new(AtomicUsize::new(0));
        let objects: Arc<Vec<ConfigMap>> = Arc::new(
            (0..self.count)
                .map(|n| map(&format!("{}-{n}", self.prefix), labels(n)))
                .collect::<Result<_, _>>()
                .context("make the objects")?,
        );
        let began = Instant::now();
        for _ in 0..self.level.min(self.count) {
            let (told, next, objects, maps) = (told.clone(), next.clone(), objects.clone(), self.side.maps.clone());
            self.tasks.tenant("bench worker", async move {
                let options = PostParams::default();
                while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let asked = Instant::now();
                    let created = maps.create(&options, object).await.map(drop);
                    if told.send((asked.elapsed(), created)).await.is_err() {
                        return;
                    }
                }
            });
        }
        drop(told);
        let (mut created, mut first_failure) = (0, None);
        while let Some((took, result)) = results.recv().await {
            match result {
                Ok(()) => {
                    created += 1;
                    round.samples.add(took);
                }
                Err(error) => {
                    round.failures += 1;
                    first_failure.get_or_insert(error);
                }
            }
        }
        round.per_second.push(created as f64 / began.elapsed().as_secs_f64());
        match first_failure {
            Some(error) if created == 0 => {
                Err(error).with_context(|| format!("{}: no create went well", self.side.name))
            }
            _ => Ok(created),
        }
    }
}

fn map(name: &str, labels: serde_json::Value) -> serde_json::Result<ConfigMap> {
    let data = json!({"data": "x".repeat(1024)});
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "data": data}))
}

impl Side {
    async fn new(name: &'static str, client: Client, pids: Vec<u32>) -> Result<Self> {
        let namespace = format!("insula-bench-{}", kit::id());
        let made = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &made).await.with_context(|| format!("{name}: make a namespace"))?;
        let maps = Api::namespaced(client.clone(), &namespace);
        Ok(Self { name, client, maps, namespace, pids })
    }

    async fn leave(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Fails unless what was acknowledged is there, once.
    async fn account(&self, created: usize) -> Result<()> {
        let (mut found, mut page) = (0, None);
        loop {
            let mut params = ListParams::default().limit(500);
            params.continue_token = page.take();
            let list = self.maps.list_metadata(&params).await?;
            found += list
                .items
                .iter()
                .filter(|it| it.metadata.name.as_deref().is_some_and(|it| it.starts_with('c')))
                .count();
            page = list.metadata.continue_.filter(|it| !it.is_empty());
            if page.is_none() {
                break;
            }
        }
        println!("{}: {created} creates were acknowledged, {found} objects are there", self.name);
        if found != created {
            bail!("{}: {found} objects of {created} creates", self.name);
        }
        Ok(())
    }

    /// Creates until every watcher has the object, one after the other.
    async fn fan_out(&self, tasks: &Tasks, watchers: usize, stuck: bool, n: usize) -> Result<()> {
        let prefix = format!("w{watchers}-{}", if stuck { "s" } else { "f" });
        let from = self.maps.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
        let own = Tasks::new(tasks.shutdown().child());
        let (told, mut seen) = mpsc::channel(watchers * 4);
        for _ in 0..watchers {
            let (maps, from, told, prefix, shutdown) =
                (self.maps.clone(), from.clone(), told.clone(), prefix.clone(), own.shutdown().clone());
            own.tenant("bench watcher", async move {
                let watch = async {
                    let mut events = std::pin::pin!(maps.watch(&WatchParams::default().timeout(290), &from).await?);
                    while let Some(event) = events.try_next().await? {
                        if let WatchEvent::Added(it) = event
                            && it.metadata.name.is_some_and(|name| name.starts_with(&prefix))
                            && told.send(Instant::now()).await.is_err()
                        {
                            break;
                        }
                    }
                    Ok::<_, kube::Error>(())
                };
                tokio::select! {
                    _ = watch => {}
                    () = shutdown.begun() => {}
                }
            });
        }
        // Its answer begins, and nobody reads on.
        let unread = match stuck {
            true => Some(self.maps.watch(&WatchParams::default().timeout(290), &from).await?),
            false => None,
        };
        let mut samples = Samples::default();
        for i in 0..n {
            let asked = Instant::now();
            self.maps.create(&PostParams::default(), &map(&format!("{prefix}-{i}"), json!({}))?).await?;
            let all = async {
                for _ in 0..watchers {
                    seen.recv().await.context("a watcher ended")?;
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(PATIENCE, all).await.context("the watchers did not see an object")??;
            // Of the first, the watchers may have begun only after it was written.
            if i > 0 {
                samples.add(asked.elapsed());
            }
        }
        drop(unread);
        own.end().await;
        let beside = if stuck { ", one stuck" } else { "" };
        samples.print(&format!("{}: create until {watchers} have it{beside}", self.name), 0);
        Ok(())
    }

    /// Lists by label, as bytes: what the client makes of them is its own.
    async fn list(&self, objects: usize) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/configmaps?labelSelector=bench%3Done-of-many", self.namespace);
        let mut samples = Samples::default();
        for _ in 0..20 {
            let request = http::Request::get(&path).body(Vec::new())?;
            let asked = Instant::now();
            let text = self.client.request_text(request).await?;
            samples.add(asked.elapsed());
            if !text.contains("\"o-0\"") {
                bail!("{}: the list is not what was created", self.name);
            }
        }
        samples.print(&format!("{}: list 1 in {LABELLED} of {objects} by label", self.name), 0);
        Ok(())
    }

    fn memory(&self) -> Result<()> {
        if self.pids.is_empty() {
            return Ok(());
        }
        let all = self.pids.iter().map(|pid| child::resident(*pid)).sum::<Result<u64>>()?;
        println!("{:<44} {:8.1} MiB", format!("{}: resident memory then", self.name), all as f64 / 1_048_576.0);
        Ok(())
    }
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// A data directory that goes at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
