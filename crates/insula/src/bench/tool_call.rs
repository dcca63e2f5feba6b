use std::time::{Duration, Instant};

use anyhow::Result;
use api::agents::{AgentRun, RunPhase};
use clap::Args;
use kit::{Shutdown, Tasks};
use kube::api::{Api, PostParams};

use super::Samples;
use super::child::Up;
use super::model::Model;
use super::run_overhead::{prepare, run, wait};

/// What Insula adds to each tool call: the model's call sent until the model is asked with its result, the tool being `true`.
#[derive(Args)]
pub(crate) struct ToolCall {
    /// Runs one after the other, each in a sandbox of its own
    #[arg(short, default_value_t = 50)]
    n: usize,
    /// Calls of each run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..50))]
    calls: u32,
}

impl ToolCall {
    pub(crate) async fn run(self) -> Result<()> {
        let tasks = Tasks::new(Shutdown::new());
        let model = Model::start(&tasks, Duration::ZERO, self.calls as usize).await?;
        let up = Up::start(&[]).await?;
        let client = up.client().await?;
        prepare(&client, 10).await?;
        let runs: Api<AgentRun> = Api::default_namespaced(client);

        let (mut first, mut next, mut known) = (Samples::default(), Samples::default(), Samples::default());
        let (mut whole, mut failures) = (Samples::default(), 0);
        for i in 0..self.n {
            let name = format!("calls-{i}");
            let created = Instant::now();
            let made = runs.create(&PostParams::default(), &run(&name, &model.url)).await?;
            let ended = wait(&runs, &name, made.metadata.resource_version.as_deref().unwrap_or("0")).await?;
            match model.of(&name).filter(|_| ended.phase == RunPhase::Succeeded) {
                Some(it) if it.tools_acted && it.between.len() == self.calls as usize => {
                    let mut between = it.between.iter();
                    between.by_ref().take(1).for_each(|took| first.add(*took));
                    between.for_each(|took| next.add(*took));
                    known.add(ended.at.saturating_duration_since(it.answered));
                    whole.add(ended.at - created);
                }
                _ => failures += 1,
            }
        }
        first.print("first call of a run, which takes a sandbox", failures);
        next.print("further calls", failures);
        known.print("model answered until a watcher sees Succeeded", failures);
        whole.print("created until Succeeded, model's time 0", failures);
        up.stop().await?;
        tasks.end().await;
        Ok(())
    }
}
