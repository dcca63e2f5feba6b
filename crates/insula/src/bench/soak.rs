use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};

use super::node::{Held, Node};

/// Rounds before the first look: until caches and pools have the size that they keep.
const WARM_UP: usize = 500;
/// What the memory of node and launcher may differ by, in KiB: less than half a kilobyte for each of 10,000 rounds.
const SLACK: u64 = 4096;

/// Sandboxes started, used and ended again and again; fails when anything is left of them.
#[derive(Args)]
pub(crate) struct Soak {
    /// How many
    #[arg(long, default_value_t = 10_000)]
    rounds: usize,
    /// How many at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    at_once: u16,
}

impl Soak {
    pub(crate) async fn run(self) -> Result<()> {
        let node = Node::start().await?;
        self.rounds(&node, "warm-up", WARM_UP).await?;
        let before = settled(&node, None).await?;
        println!("before  {before}");
        let began = Instant::now();
        self.rounds(&node, "soak", self.rounds).await?;
        let took = began.elapsed();
        let after = settled(&node, Some(&before)).await?;
        println!("after   {after}");
        println!(
            "{} sandboxes started, used and ended in {:.1} s, {:.2} ms each",
            self.rounds,
            took.as_secs_f64(),
            took.as_secs_f64() * 1e3 / self.rounds.max(1) as f64
        );
        node.stop().await?;
        if !is_as(&after, &before) {
            bail!("something is left of {} sandboxes: see above", self.rounds);
        }
        Ok(())
    }

    async fn rounds(&self, node: &Node, name: &str, count: usize) -> Result<()> {
        let rounds = (0..count).map(|i| async move {
            let name = format!("{name}-{i}");
            node.create(&name).await?;
            node.exec(&name, i % usize::from(self.at_once)).await?;
            node.remove(&name).await
        });
        stream::iter(rounds).buffer_unordered(usize::from(self.at_once)).try_collect().await
    }
}

/// What the node holds when it is as it was, or after some seconds: connections close a moment after their last use.
async fn settled(node: &Node, before: Option<&Held>) -> Result<Held> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        tokio::time::sleep_until((Instant::now() + Duration::from_millis(500)).into()).await;
        let now = node.held()?;
        if before.is_none_or(|it| is_as(&now, it)) || Instant::now() > deadline {
            return Ok(now);
        }
    }
}

fn is_as(after: &Held, before: &Held) -> bool {
    let counts = |it: &Held| [it.processes, it.descriptors, it.mounts, it.disks, it.cgroups, it.files];
    after.memory <= before.memory + SLACK && counts(after).iter().zip(counts(before)).all(|(now, then)| *now <= then)
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6} KiB, {} descriptors, {} mounts, {} loop devices, {} control groups, {} files and directories, {} processes",
            self.memory, self.descriptors, self.mounts, self.disks, self.cgroups, self.files, self.processes
        )
    }
}
