//! Datagrams that the node carries from one place to another. Who sends from one port to one place is a flow, as the kernel's
//! connection tracking has it: it has an endpoint and a socket to it, until nothing comes any more or the endpoint goes.
//!
//! The listener only takes what comes and gives it to its flow, each of which has a task: one that gets more than it can
//! send loses its own. What cannot be taken right now is dropped, as a network would.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kit::{Backoff, Clock, Shutdown, Tasks};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::To;
use super::forward::{Limit, Seat};
use super::plan::Target;

/// How long a flow stays of which nothing comes; and how long one that goes to and fro. The kernel's figures.
const IDLE: Duration = Duration::from_secs(30);
const STREAM: Duration = Duration::from_secs(120);
/// A question and its answer are no stream: there must be more after so long.
const YOUNG: Duration = Duration::from_secs(2);
/// How long nothing must have come of a flow that makes room for another one of the same client.
const RESTS: Duration = Duration::from_secs(1);
/// Flows that are looked at for one to make room.
const LOOKED_AT: usize = 16;
/// Datagrams that wait for one flow. How many bytes of one client may wait, says the limit.
const WAITING: usize = 64;
/// What a datagram that waits takes beside its bytes.
const OVERHEAD: usize = 64;
/// Datagrams that are taken before others have their turn.
const BATCH: usize = 32;
/// The longest datagram.
const LONGEST: usize = 1 << 16;

thread_local! {
    /// What is being read: never across a wait, so one is enough for all flows of a thread.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST]);
}

/// A client's way to its endpoint.
struct Flow {
    send: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

/// A datagram, and its place among those of its client.
struct Waiting(Vec<u8>, OwnedSemaphorePermit);

/// What the listener knows of a flow while that goes on.
struct Shared {
    life: Mutex<Life>,
    seat: Mutex<Option<Seat>>,
    /// Once it is connected.
    to: OnceLock<To>,
}

impl Shared {
    fn new(now: Timestamp, seat: Option<Seat>) -> Self {
        Self { life: Mutex::new(Life::new(now)), seat: Mutex::new(seat), to: OnceLock::new() }
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seat(&self) -> MutexGuard<'_, Option<Seat>> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the place of a flow back, however it ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        drop(self.0.seat().take());
    }
}

/// How long a flow stays.
#[derive(Clone, Copy, Debug)]
struct Life {
    began: Timestamp,
    last: Timestamp,
    answered: bool,
    is_stream: bool,
}

impl Life {
    fn new(now: Timestamp) -> Self {
        Self { began: now, last: now, answered: false, is_stream: false }
    }

    fn came(&mut self, now: Timestamp, is_answer: bool) {
        self.last = now;
        self.answered |= is_answer;
        self.is_stream |= self.answered && elapsed(self.began, now) >= YOUNG;
    }

    fn end(&self) -> Timestamp {
        self.last.checked_add(if self.is_stream { STREAM } else { IDLE }).unwrap_or(Timestamp::MAX)
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// What [`serve`] is given.
pub(super) struct Listener<C> {
    pub socket: UdpSocket,
    pub stop: Shutdown,
    pub tasks: Tasks,
    pub clock: Clock,
    pub limit: Arc<Limit>,
    /// A flow ends when its endpoint is none any more.
    pub target: watch::Receiver<Arc<Target>>,
    /// A socket for a client that sends to its endpoint and receives from nobody else.
    pub connect: C,
}

/// Carries what comes until `stop`, which ends all flows.
pub(super) async fn serve<C, F>(listener: Listener<C>)
where
    C: Fn(SocketAddr) -> F + Send + Sync + Clone + 'static,
    F: Future<Output = io::Result<(To, UdpSocket)>> + Send,
{
    let Listener { socket, stop, tasks, clock, limit, target, connect } = listener;
    let socket = Arc::new(socket);
    let (back, ends, time, mut known) = (socket.clone(), stop.clone(), clock.clone(), target.clone());
    let begin = move |from: SocketAddr, waiting: mpsc::Receiver<Waiting>, shared: Arc<Shared>| {
        let (back, ends, clock) = (back.clone(), ends.clone(), time.clone());
        let (mut target, connect) = (target.clone(), connect.clone());
        tasks.tenant("flow of a pod", async move {
            let ending = Ending(shared);
            let flow = async {
                let (to, socket) = connect(from).await?;
                let _ = ending.0.to.set(to);
                tokio::select! {
                    () = without(&mut target, to) => Ok(()),
                    done = carry(&socket, &back, from, waiting, &ending.0, &clock) => done,
                }
            };
            let done = tokio::select! {
                () = ends.begun() => Ok(()),
                () = over(&ending.0, &clock) => Ok(()),
                done = flow => done,
            };
            if let Err(error) = done {
                tracing::debug!(%from, %error, "datagrams of a pod are not taken");
            }
        });
    };
    let mut flows = Flows { all: BTreeMap::new(), sweep: WAITING, limit, clock, begin };
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let end = stop.begun();
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            _ = socket.readable() => {}
        }
        if known.has_changed().unwrap_or_default() {
            flows.keep(&known.borrow_and_update());
        }
        let taken = READ.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                let (length, from) = socket.try_recv_from(buffer)?;
                flows.take(from, buffer.get(..length).unwrap_or_default());
            }
            Ok::<_, io::Error>(())
        });
        match taken {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) if error.kind() == ErrorKind::WouldBlock => backoff.reset(),
            Err(error) => {
                tracing::debug!(%error, "cannot take datagrams of pods; trying again");
                let pause = backoff.pause();
                tokio::select! {
                    () = &mut end => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// The flows of one listener.
struct Flows<B> {
    /// Those that have ended, too, until they are looked for.
    all: BTreeMap<SocketAddr, Flow>,
    /// With so many it is time to.
    sweep: usize,
    limit: Arc<Limit>,
    clock: Clock,
    begin: B,
}

impl<B: Fn(SocketAddr, mpsc::Receiver<Waiting>, Arc<Shared>)> Flows<B> {
    fn take(&mut self, from: SocketAddr, data: &[u8]) {
        if let Some(flow) = self.all.get(&from)
            && !flow.send.is_closed()
        {
            return flow.give(data);
        }
        self.all.remove(&from);
        let now = self.clock.now();
        // The host, by its loopback, is nobody's in particular.
        let of = (!from.ip().is_loopback()).then(|| from.ip());
        let Some(seat) = self.limit.try_seat(of).or_else(|| self.make_room(from, now)) else {
            return tracing::debug!(%from, "a pod has too many flows of datagrams");
        };
        if self.all.len() >= self.sweep {
            self.all.retain(|_, it| !it.send.is_closed());
            self.sweep = 2 * self.all.len() + WAITING;
        }
        let shared = Arc::new(Shared::new(now, Some(seat)));
        let (send, waiting) = mpsc::channel(WAITING);
        let flow = Flow { send, shared: shared.clone() };
        flow.give(data);
        self.all.insert(from, flow);
        (self.begin)(from, waiting, shared);
    }

    /// Those to other endpoints take nothing any more: they end by themselves, but not at once.
    fn keep(&mut self, target: &Target) {
        self.all.retain(|_, it| it.shared.to.get().is_none_or(|to| target.endpoints.contains(to)));
    }

    /// Ends a flow of the same client of which nothing has come for a while, and has its place.
    fn make_room(&mut self, of: SocketAddr, now: Timestamp) -> Option<Seat> {
        let [first, last] = [0, u16::MAX].map(|port| SocketAddr::new(of.ip(), port));
        let all = self.all.range(of..=last).chain(self.all.range(first..of)).take(LOOKED_AT);
        let rests = all.filter_map(|(from, flow)| {
            let last = flow.shared.life().last;
            (elapsed(last, now) >= RESTS && flow.shared.seat().is_some()).then_some((last, *from))
        });
        let (_, from) = rests.min()?;
        let flow = self.all.remove(&from)?;
        flow.shared.seat().take()
    }
}

impl Flow {
    fn give(&self, data: &[u8]) {
        let room = self.shared.seat().as_ref().map(Seat::queue);
        let Some(room) = room.and_then(|it| it.try_acquire_many_owned(u32::try_from(data.len() + OVERHEAD).ok()?).ok())
        else {
            return;
        };
        let _ = self.send.try_send(Waiting(data.to_vec(), room));
    }
}

/// Returns when an endpoint is none any more.
async fn without(target: &mut watch::Receiver<Arc<Target>>, to: To) {
    let _ = target.wait_for(|it| !it.endpoints.contains(&to)).await;
}

/// Returns when nothing has come for long enough.
async fn over(shared: &Shared, clock: &Clock) {
    loop {
        let end = shared.life().end();
        if clock.now() >= end {
            return;
        }
        clock.until(end).await;
    }
}

/// Both ways, until one of them fails: an endpoint that refuses what comes is no way any more.
async fn carry(
    socket: &UdpSocket,
    back: &UdpSocket,
    from: SocketAddr,
    mut waiting: mpsc::Receiver<Waiting>,
    shared: &Shared,
    clock: &Clock,
) -> io::Result<()> {
    let dropped = |sent: io::Result<usize>| match sent {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    };
    loop {
        tokio::select! {
            datagram = waiting.recv() => {
                // Another flow has the place.
                let Some(Waiting(data, _room)) = datagram else { return Ok(()) };
                shared.life().came(clock.now(), false);
                socket.writable().await?;
                dropped(socket.try_send(&data))?;
            }
            readable = socket.readable() => {
                readable?;
                let answered = READ.with_borrow_mut(|buffer| {
                    for _ in 0..BATCH {
                        let length = socket.try_recv(buffer)?;
                        shared.life().came(clock.now(), true);
                        let _ = back.try_send_to(buffer.get(..length).unwrap_or_default(), from);
                    }
                    Ok::<_, io::Error>(0)
                });
                dropped(answered)?;
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_flow_that_goes_to_and_fro_stays_longer() {
        for (came, end) in [
            // Seconds, and whether it is an answer.
            (&[][..], 30),
            (&[(9, false)], 39),
            (&[(0, false), (1, true)], 31),
            (&[(0, false), (1, true), (1, false)], 31),
            (&[(0, false), (2, true)], 122),
            (&[(0, false), (1, true), (5, false)], 125),
            (&[(5, false), (50, false)], 80),
        ] {
            let mut life = Life::new(at(0));
            came.iter().for_each(|(seconds, is_answer)| life.came(at(*seconds), *is_answer));
            assert_eq!(life.end(), at(end), "{came:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_is_over_when_nothing_has_come_for_long_enough() {
        let clock = Clock::starting_at(at(0));
        let shared = Shared::new(at(0), None);
        let more = async {
            clock.until(at(29)).await;
            shared.life().came(clock.now(), false);
        };
        tokio::join!(over(&shared, &clock), more);
        assert_eq!(clock.now(), at(59));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_many_flows_loses_his_own_and_who_floods_fills_his_own_queue() {
        let clock = Clock::starting_at(at(0));
        let (begun, mut flows) = mpsc::unbounded_channel();
        let begin = move |from: SocketAddr, waiting: mpsc::Receiver<Waiting>, shared: Arc<Shared>| {
            let _ = begun.send((from, waiting, Ending(shared)));
        };
        let limit = Limit::new(3, 2);
        let mut listener = Flows { all: BTreeMap::new(), sweep: 1, limit, clock: clock.clone(), begin };
        let [one, two, three, other] =
            ["10.70.0.5:1", "10.70.0.5:2", "10.70.0.5:3", "10.70.0.6:1"].map(|it| it.parse::<SocketAddr>().unwrap());
        listener.take(one, b"a");
        listener.take(one, b"b");
        clock.until(at(1)).await;
        listener.take(two, b"");
        // The idlest makes room, and only one that rests.
        listener.take(three, b"c");
        listener.take(two, b"d");
        listener.take(one, b"too many");
        listener.take(other, b"e");
        let mut next = || flows.try_recv().ok();
        let mut said = Vec::new();
        let mut kept = Vec::new();
        while let Some((from, mut waiting, ending)) = next() {
            let mut all = String::new();
            while let Ok(Waiting(data, _)) = waiting.try_recv() {
                all.push_str(std::str::from_utf8(&data).unwrap());
                all.push(';');
            }
            said.push((from, all, waiting.is_closed()));
            kept.push((waiting, ending));
        }
        let wanted = [(one, "a;b;", true), (two, ";d;", false), (three, "c;", false), (other, "e;", false)];
        assert_eq!(said, wanted.map(|(from, all, closed)| (from, all.to_owned(), closed)));

        // Of what nobody takes, a part is kept, in all of one client, and there is room for another one.
        let large = vec![0; 60_000];
        for from in [two, three, other].into_iter().cycle().take(300) {
            listener.take(from, &large);
        }
        let waiting: Vec<usize> = kept.iter().map(|(it, _)| it.len()).collect();
        assert_eq!(waiting, [0, 2, 2, 4]);
        for _ in 0..300 {
            listener.take(other, b"");
        }
        assert!(kept.last().unwrap().0.len() <= WAITING);

        // A flow that has ended is begun anew with the next datagram.
        kept.truncate(2);
        listener.take(three, b"f");
        assert_eq!(flows.try_recv().unwrap().0, three);
        assert!(listener.all.len() <= 3);
    }
}
