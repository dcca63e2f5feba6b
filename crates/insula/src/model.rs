//! `insula model`

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kit::{Shutdown, Tasks};
use llm::scripted::{Script, Server};

use crate::signals;

/// Serve a scripted model as OpenAI's chat completions: for tests, demos and work without a key.
#[derive(Args)]
pub(crate) struct Model {
    /// The script: see examples/model.yaml for all that it can say
    #[arg(long, value_name = "FILE")]
    script: PathBuf,
    /// Where it is; port 0: any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

impl Model {
    pub(crate) async fn run(self) -> Result<()> {
        let file = self.script.display();
        let text = std::fs::read_to_string(&self.script).with_context(|| format!("read {file}"))?;
        let script = Script::parse(&text).with_context(|| format!("{file}"))?;
        let tasks = Tasks::new(Shutdown::new());
        let server =
            Server::listen(script, self.listen, &tasks).await.with_context(|| format!("listen on {}", self.listen))?;
        println!("{}", server.base_url());
        signals::end_on_signal(&tasks);
        let ended = tasks.watch().await;
        tasks.end().await;
        Ok(ended?)
    }
}
