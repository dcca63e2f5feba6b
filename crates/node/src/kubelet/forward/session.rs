//! One client's forwarded connections.
//!
//! Each is two streams of the client's with one `requestid`: `error`, on which we say what went wrong, and `data`. As
//! there is no flow control, a connection that does not take what comes holds up the others, for a while; then it is
//! given up.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use wire::websocket::{Broken, Message, Opcode, Side, close, frame};

use super::super::channels::{Out, write};
use super::super::door::{Connection, Pods};
use super::super::spdy::{self, Frame, Headers};
use super::super::websocket::{self, Messages};

/// Frames that wait to be written. Then whoever has more waits.
pub(super) const WAITING: usize = 16;
/// Connections at once.
const MOST: usize = 256;
/// Streams that wait for their other one.
const MOST_HALVES: usize = 64;
/// Bytes on their way to one connection, and in how many pieces.
const ROOM: usize = 1 << 20;
const PIECES: usize = 256;
/// Read at once.
const BLOCK: usize = 32 << 10;
/// How long a stream may wait for its other one, as the kubelet has it.
const PAIRED: Duration = Duration::from_secs(30);
/// How long a connection may take nothing, while others wait for it.
const STUCK: Duration = Duration::from_secs(30);
/// How long a connection into the pod may take to come to something.
const DIAL: Duration = Duration::from_secs(30);
/// How long a client may take nothing: whoever reads from a forwarded connection may pause.
pub(super) const SLOWEST: Duration = Duration::from_secs(600);
/// How long it may take to take our farewell.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where connections go.
#[derive(Clone)]
pub(super) struct To {
    pub(super) pods: Arc<dyn Pods>,
    pub(super) name: String,
    pub(super) uid: String,
}

impl To {
    /// Connects to a port, or says in Go's words why not.
    pub(super) async fn dial(&self, port: u16) -> Result<Connection, String> {
        let dialled = timeout(DIAL, self.pods.dial(&self.uid, port)).await;
        dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            io::ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
            _ => error.to_string(),
        })
    }
}

/// Serves a client until it goes.
pub(super) async fn serve<C: AsyncRead + AsyncWrite + Send>(client: C, tunnel: bool, to: To) {
    let (from, client) = tokio::io::split(client);
    let ((say, frames), (begin, mut begun)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
    let say = Say { to: say, way: if tunnel { Way::Tunnel } else { Way::Spdy } };
    let from = if tunnel { Source::Tunnel(Messages::new(from, Side::Client)) } else { Source::Plain(from) };
    let ping = if tunnel { frame(Side::Server, Opcode::Ping, &[]) } else { spdy::ping() };
    let listener = Listener {
        from,
        decoder: spdy::Decoder::new(),
        say: say.clone(),
        begin,
        to,
        replied: false,
        halves: HashMap::new(),
        inputs: HashMap::new(),
    };
    let mut out = std::pin::pin!(write(client, frames, ping, SLOWEST));
    let connections = async {
        let mut all = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(connection) = begun.recv() => all.push(connection),
                Some(()) = all.next(), if !all.is_empty() => {}
                else => return,
            }
        }
    };
    let over = tokio::select! {
        over = listener.listen() => over,
        _ = &mut out => return,
        () = connections => None,
    };
    if tunnel {
        say.farewell(over, out).await;
    }
}

/// How a client is told something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Spdy,
    Tunnel,
    Channels,
}

/// To tell the client something.
#[derive(Clone)]
pub(super) struct Say {
    to: mpsc::Sender<Out>,
    way: Way,
}

impl Say {
    pub(super) fn over_channels(to: mpsc::Sender<Out>) -> Self {
        Self { to, way: Way::Channels }
    }

    /// Data of a stream, or of a channel, whose end says nothing.
    pub(super) async fn data(&self, id: u32, last: bool, data: &[u8]) {
        match (self.way, u8::try_from(id)) {
            (Way::Channels, Ok(channel)) if !data.is_empty() => {
                let _ = self.to.send(websocket::output(channel, data).into()).await;
            }
            (Way::Channels, _) => {}
            _ => self.say(spdy::data(id, last, data)).await,
        }
    }

    /// To one who asks whether we are there, and knows it when he has not taken what waits for him.
    pub(super) fn pong(&self, data: &[u8]) {
        let _ = self.to.try_send(frame(Side::Server, Opcode::Pong, &[data]).into());
    }

    /// The end of a WebSocket.
    pub(super) async fn farewell(&self, over: Option<Broken>, out: impl Future<Output = io::Result<()>>) {
        let Broken { close: code, why } = over.unwrap_or(Broken { close: 1000, why: "" });
        let last = Out { frame: close(Side::Server, code, why), last: true };
        let _ = timeout(FAREWELL, async { tokio::join!(self.to.send(last), out) }).await;
    }

    /// A client that has gone shows elsewhere.
    async fn say(&self, spdy: Vec<u8>) {
        let _ = self.to.send(self.packed(spdy)).await;
    }

    fn packed(&self, spdy: Vec<u8>) -> Out {
        if self.way == Way::Tunnel { frame(Side::Server, Opcode::Binary, &[&spdy]) } else { spdy }.into()
    }
}

enum Source<R> {
    Plain(R),
    Tunnel(Messages<R>),
}

/// What a connection into the pod is given.
enum Piece {
    Data(Vec<u8>, OwnedSemaphorePermit),
    /// There is no more.
    End,
}

/// Of a connection into the pod, which is closed when this is dropped.
pub(super) struct Input {
    pieces: mpsc::Sender<Piece>,
    room: Arc<Semaphore>,
    _wanted: oneshot::Sender<()>,
}

/// What became of data for a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fed {
    Taken,
    /// It is over.
    Gone,
    /// It has taken nothing for too long.
    Stuck,
}

impl Input {
    pub(super) fn new() -> (Self, Output) {
        let ((pieces, taken), (wanted, unwanted)) = (mpsc::channel(PIECES), oneshot::channel());
        let input = Self { pieces, room: Arc::new(Semaphore::new(ROOM)), _wanted: wanted };
        (input, Output { pieces: taken, unwanted })
    }

    pub(super) async fn feed(&self, last: bool, data: Vec<u8>) -> Fed {
        let fed = timeout(STUCK, async {
            if !data.is_empty() {
                let length = u32::try_from(data.len().min(ROOM)).unwrap_or(u32::MAX);
                let room = self.room.clone().acquire_many_owned(length).await.ok()?;
                self.pieces.send(Piece::Data(data, room)).await.ok()?;
            }
            if last {
                self.pieces.send(Piece::End).await.ok()?;
            }
            Some(())
        });
        match fed.await {
            Ok(Some(())) => Fed::Taken,
            Ok(None) => Fed::Gone,
            Err(_) => Fed::Stuck,
        }
    }
}

pub(super) struct Output {
    pieces: mpsc::Receiver<Piece>,
    /// Ends when nothing is wanted any more.
    unwanted: oneshot::Receiver<()>,
}

/// One or both streams of a connection.
struct Half {
    port: u16,
    error: Option<u32>,
    data: Option<(u32, Output)>,
    until: Instant,
}

struct Listener<C> {
    from: Source<ReadHalf<C>>,
    decoder: spdy::Decoder,
    say: Say,
    begin: mpsc::Sender<BoxFuture<'static, ()>>,
    to: To,
    /// A stream was answered: zlib's head was sent.
    replied: bool,
    /// By `requestid`.
    halves: HashMap<Vec<u8>, Half>,
    /// By the number of the stream that carries data.
    inputs: HashMap<u32, Input>,
}

impl<C: AsyncRead + AsyncWrite + Send> Listener<C> {
    /// Does what the client says, until it goes or breaks the rules.
    async fn listen(mut self) -> Option<Broken> {
        loop {
            let frame = match self.halves.values().map(|it| it.until).min() {
                Some(until) => match timeout_at(until, self.frame()).await {
                    Ok(frame) => frame,
                    Err(_) => {
                        self.give_up_halves().await;
                        continue;
                    }
                },
                None => self.frame().await,
            };
            match frame {
                Err(broken) => return Some(broken),
                Ok(None) => return None,
                Ok(Some(Frame::Stream { id, headers })) => self.stream(id, &headers).await,
                Ok(Some(Frame::Data { id, fin, data })) => self.feed(id, fin, data).await,
                Ok(Some(Frame::Reset(id))) => drop(self.inputs.remove(&id)),
                // One who has not taken what waits for him knows that we are there.
                Ok(Some(Frame::Ping(id))) if id % 2 == 1 => drop(self.say.to.try_send(self.say.packed(spdy::pong(id)))),
                Ok(Some(Frame::Ping(_) | Frame::Other)) => {}
            }
        }
    }

    /// The next frame; `None` when the client has gone. Nothing is lost when this is dropped.
    async fn frame(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            let received = self.decoder.received();
            match &mut self.from {
                Source::Plain(from) => {
                    received.reserve(BLOCK);
                    if !from.read_buf(received).await.is_ok_and(|length| length > 0) {
                        return Ok(None);
                    }
                }
                Source::Tunnel(messages) => match messages.next().await? {
                    Some(Message::Binary(data)) => received.extend(data),
                    Some(Message::Text(_)) => return Err(Broken { close: 1003, why: "SPDY is no text" }),
                    Some(Message::Ping(data)) => self.say.pong(&data),
                    Some(Message::Pong) => {}
                    Some(Message::Close) | None => return Ok(None),
                },
            }
        }
    }

    /// A stream of the client's. What is wrong with it is its own affair.
    async fn stream(&mut self, id: u32, headers: &Headers) {
        match self.pair(id, headers) {
            Ok(whole) => {
                self.say.say(spdy::reply(id, !std::mem::replace(&mut self.replied, true))).await;
                if let Some(connection) = whole {
                    let _ = self.begin.send(connection).await;
                }
            }
            Err(why) => {
                tracing::debug!(why, "a stream of a port-forward is refused");
                self.inputs.remove(&id);
                self.say.say(spdy::reset(id)).await;
            }
        }
    }

    /// Puts a stream to its other one; the connection when both are there.
    fn pair(&mut self, id: u32, headers: &Headers) -> Result<Option<BoxFuture<'static, ()>>, &'static str> {
        let text = |name| headers.get(name).and_then(|it| std::str::from_utf8(it).ok());
        let port = text("port").and_then(|it| it.parse().ok()).filter(|port| *port > 0u16);
        let port = port.ok_or("the header port names none")?;
        let kind = text("streamtype").unwrap_or_default();
        // Clients that name no request make the stream of data right after the other one.
        let request = match (headers.get("requestid"), kind) {
            (Some(request), _) => request.to_vec(),
            (None, "data") => id.saturating_sub(2).to_string().into_bytes(),
            (None, _) => id.to_string().into_bytes(),
        };
        self.inputs.retain(|_, input| !input.pieces.is_closed());
        let first = !self.halves.contains_key(&request);
        if self.inputs.len() >= MOST || (first && self.halves.len() >= MOST_HALVES) {
            return Err("there are too many connections");
        }
        let new = || Half { port, error: None, data: None, until: Instant::now() + PAIRED };
        let half = self.halves.entry(request.clone()).or_insert_with(new);
        match kind {
            "error" if half.error.is_none() => half.error = Some(id),
            "data" if half.data.is_none() => {
                let (input, output) = Input::new();
                half.data = Some((id, output));
                self.inputs.insert(id, input);
            }
            "error" | "data" => return Err("the request has this stream"),
            _ => {
                if half.error.is_none() && half.data.is_none() {
                    self.halves.remove(&request);
                }
                return Err("streams are of type error or data");
            }
        }
        if half.error.is_none() || half.data.is_none() {
            return Ok(None);
        }
        let Some(Half { port, error: Some(error), data: Some((data, output)), .. }) = self.halves.remove(&request)
        else {
            return Ok(None);
        };
        let (to, say) = (self.to.clone(), self.say.clone());
        Ok(Some(Box::pin(forward(to, port, Streams { error, data }, output, say))))
    }

    async fn give_up_halves(&mut self) {
        let now = Instant::now();
        let late: Vec<Half> = self.halves.extract_if(|_, half| half.until <= now).map(|(_, half)| half).collect();
        for half in late {
            if let Some(id) = half.error {
                self.say.say(spdy::data(id, true, b"timed out waiting for streams")).await;
            }
            if let Some((id, _)) = half.data {
                self.inputs.remove(&id);
                self.say.say(spdy::reset(id)).await;
            }
        }
    }

    /// Hands data to its connection.
    async fn feed(&mut self, id: u32, last: bool, data: Vec<u8>) {
        let Some(input) = self.inputs.get(&id) else { return };
        match input.feed(last, data).await {
            Fed::Taken => {}
            Fed::Gone => drop(self.inputs.remove(&id)),
            Fed::Stuck => {
                self.inputs.remove(&id);
                self.say.say(spdy::reset(id)).await;
            }
        }
    }
}

/// Which streams are a connection's.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    pub(super) error: u32,
    pub(super) data: u32,
}

/// Connects, and carries bytes both ways until the pod's side has no more, or the client wants none.
pub(super) async fn forward(to: To, port: u16, streams: Streams, output: Output, say: Say) {
    let said = match to.dial(port).await {
        Ok(connection) => {
            let (from, into) = tokio::io::split(connection);
            tokio::select! {
                () = down(from, streams.data, &say) => {}
                () = up(into, output.pieces) => {}
                _ = output.unwanted => {}
            }
            String::new()
        }
        Err(why) => {
            let To { name, uid, .. } = &to;
            format!(
                "error forwarding port {port} to pod {name}, uid {uid}: failed to connect to localhost:{port} inside the pod: {why}"
            )
        }
    };
    // The client waits for the end of both.
    say.data(streams.error, true, said.as_bytes()).await;
    say.data(streams.data, true, b"").await;
}

async fn down(mut from: impl AsyncRead + Unpin, id: u32, say: &Say) {
    let mut block = vec![0; BLOCK];
    while let Ok(length @ 1..) = from.read(&mut block).await {
        say.data(id, false, block.get(..length).unwrap_or_default()).await;
    }
}

/// Returns when nothing is wanted any more. After the end of what comes, the answer still is.
async fn up(mut to: impl AsyncWrite + Unpin, mut pieces: mpsc::Receiver<Piece>) {
    let mut takes = true;
    while let Some(piece) = pieces.recv().await {
        match piece {
            // What the other side does not take any more is not missed: it may still have to say something.
            Piece::Data(data, _room) => takes = takes && to.write_all(&data).await.is_ok() && to.flush().await.is_ok(),
            Piece::End => {
                let _ = to.shutdown().await;
                return std::future::pending().await;
            }
        }
    }
}
