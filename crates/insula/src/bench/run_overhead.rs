use std::collections::HashMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::agents::{AgentRun, RunPhase};
use clap::Args;
use futures::{StreamExt, TryStreamExt};
use kit::{Shutdown, Tasks};
use kube::api::{Api, DynamicObject, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use super::Samples;
use super::child::Up;
use super::model::Model;

/// What Insula adds to the model's own time: a run created until its model is asked, and answered until a watcher knows.
#[derive(Args)]
pub(crate) struct RunOverhead {
    /// Runs one after the other
    #[arg(short, default_value_t = 200)]
    n: usize,
    /// Runs at once, with a model that thinks for 2 s
    #[arg(long, default_value_t = 2_000)]
    at_once: usize,
}

impl RunOverhead {
    pub(crate) async fn run(self) -> Result<()> {
        let tasks = Tasks::new(Shutdown::new());
        let quick = Model::start(&tasks, Duration::ZERO, 0).await?;
        let slow = Model::start(&tasks, Duration::from_secs(2), 0).await?;
        let up = Up::start(&[]).await?;
        let client = up.client().await?;
        prepare(&client, self.at_once).await?;
        let runs: Api<AgentRun> = Api::default_namespaced(client);

        let (mut asked, mut known, mut whole) = (Samples::default(), Samples::default(), Samples::default());
        let mut failures = 0;
        for i in 0..self.n {
            let name = format!("one-{i}");
            let created = Instant::now();
            let made = runs.create(&PostParams::default(), &run(&name, &quick.url)).await?;
            let ended = wait(&runs, &name, made.metadata.resource_version.as_deref().unwrap_or("0")).await?;
            match quick.of(&name) {
                Some(it) if ended.phase == RunPhase::Succeeded && it.times() == 1 => {
                    asked.add(it.at - created);
                    known.add(ended.at.saturating_duration_since(it.answered));
                    whole.add(ended.at - created);
                }
                _ => failures += 1,
            }
        }
        asked.print("run created until the model is asked", failures);
        known.print("model answered until a watcher sees Succeeded", failures);
        whole.print("created until Succeeded, model's time 0", failures);

        if self.at_once > 0 {
            at_once(&up, &runs, &slow, self.at_once).await?;
        }
        up.stop().await?;
        tasks.end().await;
        Ok(())
    }
}

async fn at_once(up: &Up, runs: &Api<AgentRun>, model: &Model, count: usize) -> Result<()> {
    let before = up.memory()?;
    let began = Instant::now();
    let names: Vec<String> = (0..count).map(|i| format!("many-{i}")).collect();
    let from =
        runs.list(&kube::api::ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
    let created: Vec<()> = futures::stream::iter(&names)
        .map(|name| async move { runs.create(&PostParams::default(), &run(name, &model.url)).await.map(drop) })
        .buffer_unordered(16)
        .try_collect()
        .await?;
    let all_created = began.elapsed();
    let (mut most, mut ended) = (0, HashMap::new());
    let mut from = from;
    while ended.len() < created.len() {
        if began.elapsed() > Duration::from_secs(300) {
            bail!("{} of {count} runs had ended after 300 s", ended.len());
        }
        let mut events = pin!(runs.watch(&WatchParams::default().timeout(200), &from).await?);
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(it) | WatchEvent::Modified(it) = event {
                from = it.metadata.resource_version.clone().unwrap_or_default();
                let phase = it.status.and_then(|status| status.phase);
                if let (Some(name), Some(phase)) = (it.metadata.name, phase.filter(|phase| phase.is_final()))
                    && name.starts_with("many-")
                {
                    ended.insert(name, phase);
                }
            }
            if ended.len() % 50 == 0 {
                most = most.max(up.memory()?);
            }
            if ended.len() == created.len() {
                break;
            }
        }
    }
    let took = began.elapsed();
    let failed = ended.values().filter(|phase| **phase != RunPhase::Succeeded).count();
    let doubled = names.iter().filter(|name| model.of(name).is_some_and(|it| it.times() > 1)).count();
    println!(
        "{count} runs at once, model thinking 2 s: created in {:.2} s, all ended after {:.2} s, {} KiB each at the most, failures {failed}, doubled {doubled}",
        all_created.as_secs_f64(),
        took.as_secs_f64(),
        most.saturating_sub(before) / 1024 / count as u64,
    );
    Ok(())
}

pub(super) struct Ended {
    pub(super) phase: RunPhase,
    pub(super) at: Instant,
}

/// Watches one run as `kubectl wait` does.
pub(super) async fn wait(runs: &Api<AgentRun>, name: &str, from: &str) -> Result<Ended> {
    let params = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(60);
    let mut events = pin!(runs.watch(&params, from).await?);
    while let Some(event) = events.try_next().await? {
        if let WatchEvent::Added(it) | WatchEvent::Modified(it) = event
            && let Some(phase) = it.status.and_then(|status| status.phase)
            && phase.is_final()
        {
            return Ok(Ended { phase, at: Instant::now() });
        }
    }
    bail!("the run {name} had not ended after 60 s")
}

pub(super) async fn prepare(client: &kube::Client, limit: usize) -> Result<()> {
    let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::default_namespaced(client.clone());
    let secret = serde_json::from_value(json!({"metadata": {"name": "key"}, "stringData": {"API_KEY": "bench"}}))?;
    secrets.create(&PostParams::default(), &secret).await.context("create the Secret")?;
    let kind = kube::api::ApiResource::erase::<api::agents::SympoziumInstance>(&());
    let instances: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
    let instance = serde_json::from_value(json!({
        "apiVersion": "sympozium.ai/v1alpha1", "kind": "SympoziumInstance", "metadata": {"name": "bench"},
        "spec": {"agents": {"default": {"model": "bench", "subagents": {"maxConcurrent": limit.max(10)}}},
                 "authRefs": [{"provider": "openai", "secret": "key"}]},
    }))?;
    instances.create(&PostParams::default(), &instance).await.context("create the instance")?;
    Ok(())
}

pub(super) fn run(name: &str, url: &str) -> AgentRun {
    let mut run = AgentRun::default();
    run.metadata.name = Some(name.into());
    run.spec.instance_ref = "bench".into();
    run.spec.agent_id = "primary".into();
    run.spec.task = name.into();
    run.spec.model.provider = "openai".into();
    run.spec.model.model = "bench".into();
    run.spec.model.auth_secret_ref = "key".into();
    run.spec.model.base_url = Some(url.into());
    run
}
