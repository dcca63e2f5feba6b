//! The TLS door: HTTP/1.1 and HTTP/2 for kubectl and every other client.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use kit::{Backoff, Tasks};
use tokio::io;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::access::User;
use crate::core::Core;
use crate::http::Service;
use crate::subject;

/// Connections at once; those that come then wait until one ends.
const CONNECTIONS: usize = 2_000;
/// How long a client may take to say hello.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long it may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(30);
/// How long answers may take that are being sent when the server ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// HTTP/2 streams of one connection: a client library watches dozens of resources over one.
const STREAMS: u32 = 250;

/// Serves until the shutdown. Returns the address as soon as connections are taken.
pub(crate) async fn listen(core: Arc<Core>, tls: Arc<rustls::ServerConfig>, at: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await?;
    let bound = listener.local_addr()?;
    let tasks = core.tasks.clone();
    tasks.platform("kubernetes listener", accept(core, TlsAcceptor::from(tls), listener));
    Ok(bound)
}

async fn accept(core: Arc<Core>, tls: TlsAcceptor, listener: TcpListener) -> io::Result<()> {
    let shutdown = core.tasks.shutdown().clone();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut failures = Backoff::new(Duration::from_millis(5), Duration::from_secs(1));
    loop {
        let taken = tokio::select! {
            () = shutdown.begun() => return Ok(()),
            taken = async {
                let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, from)| (stream, from.ip(), permit))
            } => taken,
        };
        match taken {
            Ok((stream, from, permit)) => {
                failures.reset();
                let (core, tls) = (core.clone(), tls.clone());
                let tasks = core.tasks.clone();
                tasks.tenant("kubernetes connection", async move {
                    serve(core, tls, stream, from).await;
                    drop(permit);
                });
            }
            // Out of descriptors, mostly: it passes when connections end.
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(failures.pause()).await;
            }
        }
    }
}

async fn serve(core: Arc<Core>, tls: TlsAcceptor, stream: TcpStream, from: IpAddr) {
    let _ = stream.set_nodelay(true);
    let shutdown = core.tasks.shutdown().clone();
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => greeted,
        () = shutdown.begun() => return,
    };
    let stream = match greeted {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let user = certificate.and_then(|it| subject::of(it)).map(|it| User::new(it.name, it.groups));
    let mut builder = auto::Builder::new(OnTasks(core.tasks.clone()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30));
    let service = TowerToHyperService::new(Service::new(core, user, Some(from)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.begun() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(FAREWELL, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

/// HTTP/2 streams as supervised tasks.
#[derive(Clone)]
struct OnTasks(Tasks);

impl<F> hyper::rt::Executor<F> for OnTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.tenant("kubernetes stream", async move {
            future.await;
        });
    }
}
