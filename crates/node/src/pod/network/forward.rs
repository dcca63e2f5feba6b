//! Connections that the node carries from one place to another.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kit::{Backoff, Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Accepts until `stop`, and carries each connection to what `connect` makes for its client. Connections that are there
/// outlive `stop`, and end with the tasks. Those that find the limit reached wait until another ends.
pub(super) async fn serve<C, F>(listener: TcpListener, stop: Shutdown, tasks: Tasks, limit: Arc<Semaphore>, connect: C)
where
    C: Fn(SocketAddr) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send,
{
    let ended = tasks.shutdown().clone();
    let handle = move |stream, from, permit| {
        let (connect, ended) = (connect.clone(), ended.clone());
        async move {
            let _permit: OwnedSemaphorePermit = permit;
            tokio::select! {
                () = ended.begun() => {}
                () = carry(stream, connect(from)) => {}
            }
        }
    };
    accept(listener, stop, tasks, limit, handle).await;
}

/// Accepts until `stop`, and has each connection handled for itself, as many at once as the limit has permits.
pub(super) async fn accept<H, F>(listener: TcpListener, stop: Shutdown, tasks: Tasks, limit: Arc<Semaphore>, handle: H)
where
    H: Fn(TcpStream, SocketAddr, OwnedSemaphorePermit) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let end = stop.begun();
    tokio::pin!(end);
    loop {
        let accepted = async {
            let (stream, from) = listener.accept().await?;
            // Only now: there may be as many listeners as connections, and most wait for nobody.
            let permit = limit.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((stream, from, permit))
        };
        let accepted = tokio::select! {
            () = &mut end => return,
            it = accepted => it,
        };
        match accepted {
            Ok((stream, from, permit)) => {
                backoff.reset();
                tasks.tenant("connection of a pod", handle(stream, from, permit));
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_listener_that_nobody_comes_to_takes_nobodys_place() {
        let (tasks, limit) = (Tasks::new(Shutdown::new()), Arc::new(Semaphore::new(1)));
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = target.local_addr().unwrap();
        let mut places = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            places.push(listener.local_addr().unwrap());
            let connect = move |_| TcpStream::connect(to);
            tasks.tenant("forward", serve(listener, tasks.shutdown().clone(), tasks.clone(), limit.clone(), connect));
        }
        for place in places {
            let mut client = TcpStream::connect(place).await.unwrap();
            let carried = tokio::time::timeout(Duration::from_secs(30), target.accept()).await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(carried.unwrap().0.read_u8().await.unwrap(), b'x');
        }
        tasks.end().await;
    }
}
