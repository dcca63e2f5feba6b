//! Connections that the node carries from one place to another.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kit::{Backoff, Shutdown, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long nothing need come of a connection before it is asked whether somebody is still there; how often, and how many
/// times in vain. A pod whose network goes before its processes says nothing more.
const SILENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(15);
const TIMES: u32 = 4;

/// Bytes of one pod that wait to be carried, where they are not the kernel's to keep.
const QUEUE: usize = 256 << 10;

/// How many connections are carried at once: of all pods, and of one.
pub(super) struct Limit {
    all: Arc<Semaphore>,
    of_one: usize,
    /// Connections by whose they are.
    busy: Mutex<BTreeMap<IpAddr, Busy>>,
    /// The queue of those that are nobody's in particular.
    queue: Arc<Semaphore>,
}

struct Busy {
    count: usize,
    queue: Arc<Semaphore>,
}

/// One of these connections, until it is dropped.
pub(super) struct Seat {
    _counted: Option<Counted>,
    _permit: OwnedSemaphorePermit,
    queue: Arc<Semaphore>,
}

impl Seat {
    /// Bytes that may wait for all connections of the one whose it is.
    pub(super) fn queue(&self) -> Arc<Semaphore> {
        self.queue.clone()
    }
}

struct Counted {
    limit: Arc<Limit>,
    of: IpAddr,
}

impl Limit {
    pub(super) fn new(all: usize, of_one: usize) -> Arc<Self> {
        let queue = Arc::new(Semaphore::new(QUEUE));
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), of_one, busy: Mutex::default(), queue })
    }

    /// The same places, and one may have all of them.
    pub(super) fn undivided(&self) -> Arc<Self> {
        let queue = self.queue.clone();
        Arc::new(Self { all: self.all.clone(), of_one: usize::MAX, busy: Mutex::default(), queue })
    }

    /// Waits for a place among all; `None` for who has as many as one may have. `of`: whose it is; nobody's in particular
    /// are those of this machine itself.
    async fn seat(self: &Arc<Self>, of: Option<IpAddr>) -> Option<Seat> {
        let (counted, queue) = self.count(of)?;
        let permit = self.all.clone().acquire_owned().await.ok()?;
        Some(Seat { _counted: counted, _permit: permit, queue })
    }

    /// A place, if there is one right now.
    pub(super) fn try_seat(self: &Arc<Self>, of: Option<IpAddr>) -> Option<Seat> {
        let (counted, queue) = self.count(of)?;
        let permit = self.all.clone().try_acquire_owned().ok()?;
        Some(Seat { _counted: counted, _permit: permit, queue })
    }

    fn count(self: &Arc<Self>, of: Option<IpAddr>) -> Option<(Option<Counted>, Arc<Semaphore>)> {
        let Some(of) = of else { return Some((None, self.queue.clone())) };
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Busy { count: 0, queue: Arc::new(Semaphore::new(QUEUE)) };
        let busy = busy.entry(of).or_insert_with(fresh);
        if busy.count >= self.of_one {
            return None;
        }
        busy.count += 1;
        Some((Some(Counted { limit: self.clone(), of }), busy.queue.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut busy = self.limit.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(its) = busy.get_mut(&self.of) {
            its.count = its.count.saturating_sub(1);
            if its.count == 0 {
                busy.remove(&self.of);
            }
        }
    }
}

/// Accepts until `stop`, and carries each connection to what `connect` makes for its client. Connections that are there
/// outlive `stop`, and end with the tasks. Those that find the limit reached wait until another ends.
pub(super) async fn serve<C, F>(listener: TcpListener, stop: Shutdown, tasks: Tasks, limit: Arc<Limit>, connect: C)
where
    C: Fn(SocketAddr) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send,
{
    let ended = tasks.shutdown().clone();
    let handle = move |stream, from, seat| {
        let (connect, ended) = (connect.clone(), ended.clone());
        async move {
            let _seat: Seat = seat;
            tokio::select! {
                () = ended.begun() => {}
                () = carry(stream, connect(from)) => {}
            }
        }
    };
    accept(listener, stop, tasks, limit, handle).await;
}

/// Accepts until `stop`, and has each connection handled for itself, as many at once as the limit lets. Who has too many
/// himself is refused.
pub(super) async fn accept<H, F>(listener: TcpListener, stop: Shutdown, tasks: Tasks, limit: Arc<Limit>, handle: H)
where
    H: Fn(TcpStream, SocketAddr, Seat) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let end = stop.begun();
    tokio::pin!(end);
    loop {
        let accepted = async {
            let (stream, from) = listener.accept().await?;
            // The host by its loopback, and the proxy, which counts for itself whom it connects for.
            let is_ours = from.ip().is_loopback() || stream.local_addr().is_ok_and(|it| it.ip() == from.ip());
            // Only now: there may be as many listeners as connections, and most wait for nobody.
            let seat = limit.seat((!is_ours).then(|| from.ip())).await;
            Ok::<_, io::Error>((stream, from, seat))
        };
        let accepted = tokio::select! {
            () = &mut end => return,
            it = accepted => it,
        };
        match accepted {
            Ok((stream, from, Some(seat))) => {
                backoff.reset();
                tasks.tenant("connection of a pod", handle(stream, from, seat));
            }
            Ok((stream, from, None)) => {
                backoff.reset();
                tracing::debug!(%from, "a pod has too many connections");
                break_off(&stream);
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
        attend(&from)?;
        attend(&to)?;
        tokio::io::copy_bidirectional(&mut from, &mut to).await
    };
    if done.await.is_err() {
        break_off(&from);
    }
}

/// Sends what there is at once, and ends when nobody is on the other side any more.
pub(super) fn attend(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, AGAIN)?;
    Ok(sockopt::set_tcp_keepcnt(stream, TIMES)?)
}

/// When it is dropped, its client hears that something went wrong, not that this was all.
fn break_off(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_listener_that_nobody_comes_to_takes_nobodys_place() {
        let (tasks, limit) = (Tasks::new(Shutdown::new()), Limit::new(1, 1));
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

    #[tokio::test]
    async fn one_pod_has_not_the_places_of_all() {
        let limit = Limit::new(4, 2);
        let [one, two] = ["10.70.0.5", "10.70.0.6"].map(|it| Some(it.parse::<IpAddr>().unwrap()));
        let first = limit.seat(one).await.unwrap();
        let _second = limit.seat(one).await.unwrap();
        assert!(limit.seat(one).await.is_none());
        let _another = limit.seat(two).await.unwrap();
        drop(first);
        let _again = limit.seat(one).await.unwrap();
        let _own = limit.seat(None).await.unwrap();
        // Now all are taken: who comes waits, and whoever goes away meanwhile had none.
        assert!(futures::FutureExt::now_or_never(limit.seat(two)).is_none());
        assert!(limit.try_seat(None).is_none());
        assert_eq!(limit.busy.lock().unwrap().get(&two.unwrap()).map(|it| it.count), Some(1));
    }
}
