use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use futures::future::join_all;

use super::Samples;
use super::node::Node;

/// A sandbox from nothing, asked for until its execd answers; and many at once.
#[derive(Args)]
pub(crate) struct SandboxStart {
    /// Sandboxes one after the other
    #[arg(short, default_value_t = 200)]
    n: usize,
    /// Sandboxes at once
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=4_000))]
    at_once: u16,
}

impl SandboxStart {
    pub(crate) async fn run(self) -> Result<()> {
        let node = Node::start().await?;
        node.create("first").await?;
        node.remove("first").await?;

        let (mut started, mut ran, mut ended) = (Samples::default(), Samples::default(), Samples::default());
        for i in 0..self.n {
            let name = i.to_string();
            let asked = Instant::now();
            node.create(&name).await?;
            started.add(asked.elapsed());
            node.exec(&name, i % 4).await?;
            ran.add(asked.elapsed());
            let asked = Instant::now();
            node.remove(&name).await?;
            ended.add(asked.elapsed());
        }
        started.print("asked for until its execd answers (goal 5)", 0);
        ran.print("asked for until it is bound and ran `true`", 0);
        ended.print("end asked for until nothing of it is left", 0);

        let count = usize::from(self.at_once);
        let names: Vec<String> = (0..count).map(|i| format!("at-once-{i}")).collect();
        let before = node.held()?;
        let began = Instant::now();
        let start = async |name: &String| (node.create(name).await, began.elapsed());
        let (mut all, mut failures) = (Samples::default(), 0);
        for (done, after) in join_all(names.iter().map(start)).await {
            match done {
                Ok(()) => all.add(after),
                Err(error) => {
                    failures += 1;
                    tracing::warn!("{error:#}");
                }
            }
        }
        all.print(&format!("{count} at once, until each answers"), failures);
        // Until what starting needed is given back.
        tokio::time::sleep_until((Instant::now() + Duration::from_millis(500)).into()).await;
        let idle = node.held()?;
        let each = |kib: u64| kib / u64::from(self.at_once);
        println!(
            "{:<44} {:5} KiB in the sandbox, {} in node and launcher (goal 1024)",
            "idle memory of each, proportional",
            each(idle.sandbox_memory.saturating_sub(before.sandbox_memory)),
            each(idle.memory.saturating_sub(before.memory)),
        );
        let began = Instant::now();
        let end = async |name: &String| (node.remove(name).await, began.elapsed());
        let (mut all, mut failures) = (Samples::default(), 0);
        for (done, after) in join_all(names.iter().map(end)).await {
            if done.is_ok() { all.add(after) } else { failures += 1 }
        }
        all.print(&format!("{count} ended at once, until each is gone"), failures);
        node.stop().await
    }
}
