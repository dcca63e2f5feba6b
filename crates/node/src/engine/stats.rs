use wire::node::Stats;

use super::Engine;
use crate::Error;

impl Engine {
    /// What a sandbox uses now.
    pub(crate) async fn stats(&self, id: &str) -> Result<Stats, Error> {
        let sandbox = self.find(id)?;
        let usage = self.cgroups.usage(&sandbox.id);
        Ok(Stats {
            memory: usage.memory,
            cpu_usec: usage.cpu_usec,
            pids: usage.pids,
            oom_kills: usage.oom_kills,
            workspace: None,
        })
    }
}
