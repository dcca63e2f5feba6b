//! Connections that the node carries from one place to another.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kit::{Backoff, Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Accepts until `stop`, and carries each connection to what `connect` makes for its client. Connections that are there
/// outlive `stop`, and end with the tasks. Those that find the limit reached wait to be accepted.
pub(super) async fn serve<C, F>(listener: TcpListener, stop: Shutdown, tasks: Tasks, limit: Arc<Semaphore>, connect: C)
where
    C: Fn(SocketAddr) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send,
{
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let end = stop.begun();
    tokio::pin!(end);
    loop {
        let accepted = async {
            let permit = limit.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, from)| (stream, from, permit))
        };
        let accepted = tokio::select! {
            () = &mut end => return,
            it = accepted => it,
        };
        match accepted {
            Ok((stream, from, permit)) => {
                backoff.reset();
                let (connect, ended) = (connect.clone(), tasks.shutdown().clone());
                tasks.tenant("forwarded connection", async move {
                    let _permit = permit;
                    tokio::select! {
                        () = ended.begun() => {}
                        () = carry(stream, connect(from)) => {}
                    }
                });
            }
            Err(error) => {
                // No descriptors are left, say: those that there are have to end first.
                if backoff.failures() == 0 {
                    tracing::warn!(%error, "cannot accept a connection for a pod; trying again");
                }
                let pause = backoff.pause();
                tokio::select! {
                    () = &mut end => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// Both directions, each ended when its own source ends.
async fn carry(mut from: TcpStream, connect: impl Future<Output = io::Result<TcpStream>>) {
    let done = async {
        let mut to = connect.await?;
        from.set_nodelay(true)?;
        to.set_nodelay(true)?;
        tokio::io::copy_bidirectional(&mut from, &mut to).await
    };
    if done.await.is_err() {
        // The client hears that something went wrong, not that this was all.
        let _ = rustix::net::sockopt::set_socket_linger(&from, Some(Duration::ZERO));
    }
}
