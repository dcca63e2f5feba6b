//! SIGINT and SIGTERM begin a clean end; a second one ends at once.

use kit::Tasks;
use tokio::signal::unix::{SignalKind, signal};

/// From its return on, signals are taken.
pub(crate) fn end_on_signal(tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be received: only SIGKILL will end this process");
        return;
    };
    tasks.tenant("signals", async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = shutdown.begun() => return,
        }
        shutdown.begin();
    });
}
