//! Connections: accepted, bounded, served.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use crate::daemon::Daemon;
use crate::reply::{Body, settle};
use crate::route;

/// Connections at once. When one more comes, the one that has been idle longest makes room; when none is idle, the new
/// one is closed.
const MOST: usize = 256;
/// A request's line and headers; what is buffered for a connection.
const BUFFER: usize = 128 << 10;
/// How long a connection may be silent between requests, and in the middle of one's headers.
const SILENCE: Duration = Duration::from_secs(300);

/// Where connections come from.
pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Accepts for ever.
pub(crate) async fn run(daemon: Rc<Daemon>, listener: Listener) {
    let connections = Rc::new(Connections::default());
    let mut spare = daemon.null.try_clone().ok();
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => {
                listener.accept().await.map(|(stream, _)| connections.clone().serve(&daemon, stream))
            }
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let _ = stream.set_nodelay(true);
                connections.clone().serve(&daemon, stream);
            }),
        };
        let Err(error) = accepted else { continue };
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
            // No descriptor for the connection that waits. The spare one's place takes it, so that it can be closed and
            // does not wake us for ever.
            connections.drop_idle();
            spare = refuse(&daemon, &listener, spare).await;
        }
        // Anything else is about that one connection: it is gone already.
        tokio::task::yield_now().await;
    }
}

async fn refuse(daemon: &Daemon, listener: &Listener, spare: Option<OwnedFd>) -> Option<OwnedFd> {
    drop(spare);
    let accept = async {
        match listener {
            Listener::Unix(listener) => listener.accept().await.map(drop),
            Listener::Tcp(listener) => listener.accept().await.map(drop),
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(100), accept).await;
    daemon.null.try_clone().ok()
}

#[derive(Default)]
struct Connections {
    all: RefCell<HashMap<u64, Connection>>,
    next: Cell<u64>,
}

struct Connection {
    task: AbortHandle,
    activity: Rc<Activity>,
}

/// What a connection is doing.
#[derive(Default)]
struct Activity {
    /// Requests whose answers are not sent yet.
    requests: Cell<u32>,
    /// When it last began to be idle, in the order of all such moments.
    idle_since: Cell<u64>,
}

impl Connections {
    fn serve(self: Rc<Self>, daemon: &Rc<Daemon>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        if self.all.borrow().len() >= MOST && !self.drop_idle() {
            return;
        }
        let id = self.tick();
        let activity = Rc::new(Activity::default());
        activity.idle_since.set(id);
        let (service_daemon, connections, active) = (daemon.clone(), self.clone(), activity.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let busy = Busy::new(connections.clone(), active.clone());
            let answer = route::answer(service_daemon.clone(), request);
            async move { settle(answer.await).map(|reply| reply.map(|body| Held { body, _busy: busy })) }
        });
        let connections = self.clone();
        let task = daemon.spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(SILENCE).max_buf_size(BUFFER);
            // An error here is the client's: it is gone, or has been told.
            let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            connections.all.borrow_mut().remove(&id);
        });
        self.all.borrow_mut().insert(id, Connection { task, activity });
    }

    /// Closes the connection that has been idle longest, if one is.
    fn drop_idle(&self) -> bool {
        let mut all = self.all.borrow_mut();
        let idle = all.iter().filter(|(_, connection)| connection.activity.requests.get() == 0);
        let Some((&id, _)) = idle.min_by_key(|(_, connection)| connection.activity.idle_since.get()) else {
            return false;
        };
        if let Some(connection) = all.remove(&id) {
            connection.task.abort();
        }
        true
    }

    fn tick(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }
}

/// A request that is being answered.
struct Busy(Rc<Connections>, Rc<Activity>);

impl Busy {
    fn new(connections: Rc<Connections>, activity: Rc<Activity>) -> Self {
        activity.requests.set(activity.requests.get() + 1);
        Self(connections, activity)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.1.requests.set(self.1.requests.get().saturating_sub(1));
        self.1.idle_since.set(self.0.tick());
    }
}

/// A body that keeps its connection from counting as idle.
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
