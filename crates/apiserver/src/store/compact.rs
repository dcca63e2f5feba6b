//! How long history is kept: what happened in the last five to ten minutes, as Kubernetes does, and never much more
//! than [`ROWS`] revisions.

use std::time::Duration;

use super::{Store, WriteError};

const INTERVAL: Duration = Duration::from_secs(300);
const ROWS: u64 = 100_000;

/// Compacts for ever.
pub(super) async fn run(store: Store) -> Result<(), WriteError> {
    // All before this revision is older than one interval.
    let mut old = 0;
    loop {
        let now = store.revision();
        // Asleep until there is something that a compaction would find.
        store.reached(now.max(old) + 1).await;
        let due = store.clock().now() + INTERVAL;
        tokio::select! {
            () = store.clock().until(due) => {}
            () = store.reached(now + ROWS) => {}
        }
        match store.compact(through(old, store.revision())).await {
            Ok(()) => {}
            Err(error @ WriteError::Stopped) => return Err(error),
            // History grows until there is room again; nothing is lost by that.
            Err(error) => tracing::warn!(error = kit::chain(&error), "cannot compact the store"),
        }
        old = store.revision();
    }
}

/// How far to compact, when everything through `old` is older than an interval.
pub(super) fn through(old: u64, revision: u64) -> u64 {
    old.max(revision.saturating_sub(ROWS)).min(revision.saturating_sub(1))
}
