//! `insula node`

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kit::{Clock, Shutdown, Tasks};
use node::ImageMap;

use crate::hands;
use crate::home::Home;
use crate::house::GRACE;
use crate::signals;

/// Run the sandboxes of an `insula up --node SOCKET` in a process of their own.
#[derive(Args)]
pub(crate) struct Apart {
    /// Keep what is known of sandboxes here; no directory of an `insula up`
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The Unix socket at which it answers, to this user alone
    #[arg(long, value_name = "SOCKET")]
    listen: PathBuf,
}

impl Apart {
    /// Killed and started again over the same directory, it goes on with the sandboxes that live. Asked to end, it ends them.
    pub(crate) async fn run(self) -> Result<()> {
        let home = Home::open(&self.data_dir)?;
        let tasks = Tasks::new(Shutdown::new());
        let started = async {
            let node = hands::node(&home, ImageMap::default(), &Clock::system(), &tasks).await?;
            node.listen(&self.listen).context("start the node")
        };
        let ended = match started.await {
            Ok(()) => {
                signals::end_on_signal(&tasks);
                eprintln!("The node answers at {}", self.listen.display());
                let ended = tasks.watch().await;
                let _ = std::fs::remove_file(&self.listen);
                ended.map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        if tokio::time::timeout(GRACE, tasks.end()).await.is_err() {
            tracing::warn!("some sandboxes did not end in {GRACE:?}; the next node ends them");
        }
        ended
    }
}
