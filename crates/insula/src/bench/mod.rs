//! `insula bench`: the figures we promise, measured on the user's own machine, from outside, at the client.

mod api;
mod boot;
mod child;
mod model;
mod node;
mod pods;
mod run_overhead;
mod sandbox_start;
mod soak;
mod tool_call;

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;

/// Measure this machine's figures, from outside, as a client sees them.
#[derive(Subcommand)]
pub(crate) enum Bench {
    Api(api::ApiBench),
    Boot(boot::Boot),
    Pods(pods::Pods),
    RunOverhead(run_overhead::RunOverhead),
    SandboxStart(sandbox_start::SandboxStart),
    Soak(soak::Soak),
    ToolCall(tool_call::ToolCall),
}

impl Bench {
    pub(crate) async fn run(self) -> Result<()> {
        match self {
            Self::Api(it) => it.run().await,
            Self::Boot(it) => it.run().await,
            Self::Pods(it) => it.run().await,
            Self::RunOverhead(it) => it.run().await,
            Self::SandboxStart(it) => it.run().await,
            Self::Soak(it) => it.run().await,
            Self::ToolCall(it) => it.run().await,
        }
    }
}

/// Samples of one figure.
#[derive(Default)]
struct Samples(Vec<Duration>);

impl Samples {
    fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// The value below which `percent` of the samples are.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or_default()
    }

    fn print(&self, what: &str, failures: usize) {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1e3;
        println!(
            "{what:<44} p50 {:8.2} ms   p95 {:8.2} ms   p99 {:8.2} ms   n {:5}   failures {failures}",
            ms(50),
            ms(95),
            ms(99),
            self.0.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let samples = Samples((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!([50, 95, 99].map(|p| samples.percentile(p).as_millis()), [100, 190, 198]);
        assert_eq!(Samples::default().percentile(50), Duration::ZERO);
    }
}
