use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use super::Samples;
use super::child::Up;

/// `insula up` on an empty directory, until its Kubernetes API answers over TLS.
#[derive(Args)]
pub(crate) struct Boot {
    /// How many times it is started
    #[arg(short, default_value_t = 20)]
    n: usize,
}

impl Boot {
    pub(crate) async fn run(self) -> Result<()> {
        let (mut ready, mut answered, mut ended) = (Samples::default(), Samples::default(), Samples::default());
        let mut memory = Vec::new();
        for _ in 0..self.n {
            let up = Up::start(&[]).await?;
            ready.add(up.started.elapsed());
            let client = up.client().await?;
            client.apiserver_version().await?;
            answered.add(up.started.elapsed());
            // What start-up needed and idling does not is given back by now.
            let settle = Instant::now();
            tokio::time::sleep_until((settle + Duration::from_millis(300)).into()).await;
            memory.push(up.memory()?);
            ended.add(up.stop().await?);
        }
        memory.sort_unstable();
        ready.print("started until the ready file is there", 0);
        answered.print("started until /version is answered over TLS", 0);
        ended.print("SIGTERM until it has ended", 0);
        let median = memory.get(memory.len() / 2).copied().unwrap_or_default();
        println!("{:<44} p50 {:8.1} MiB", "resident memory, idle", median as f64 / 1048576.0);
        Ok(())
    }
}
