//! SIGINT and SIGTERM begin a clean end; a second one hurries it.

use kit::Tasks;
use tokio::signal::unix::{SignalKind, signal};

/// From its return on, signals are taken.
pub(crate) fn end_on_signal(tasks: &Tasks) {
    end_on_signal_after(tasks, std::future::ready(()));
}

/// The same; `first` is done before the end begins, and given up at a second signal.
pub(crate) fn end_on_signal_after(tasks: &Tasks, first: impl Future<Output = ()> + Send + 'static) {
    let shutdown = tasks.shutdown().clone();
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be received: only SIGKILL will end this process");
        return;
    };
    tasks.tenant("signals", async move {
        let mut one = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            () = one() => {}
            () = shutdown.begun() => return,
        }
        tokio::select! {
            () = first => {}
            () = one() => {}
            () = shutdown.begun() => return,
        }
        shutdown.begin();
    });
}
