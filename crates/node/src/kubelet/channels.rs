//! Between a client of Kubernetes, over WebSocket or SPDY, and a process.
//!
//! Kubernetes' channels are 0 stdin, 1 stdout, 2 stderr, 3 the outcome (a `metav1.Status`) and 4 the terminal's size.

use std::io;
use std::pin::pin;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::execd::channel;
use wire::websocket::{Broken, Opcode, Side, close, frame};

use super::exec::Asked;
use super::process::{End, Process, Says, Tell};
use super::spdy::{self, Streams};
use super::websocket;

pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;

/// Frames that wait to be written, in each direction. Then the other side waits.
const WAITING: usize = 16;
/// How often a client is written to when nothing else is: when it has gone unseen, that fails.
const PING: Duration = Duration::from_secs(30);
/// How long a client may take to take one frame.
const SLOWEST: Duration = Duration::from_secs(60);
/// How long a client may take to close its side when all was said.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a client may take to make its streams, as the kubelet has it.
const STREAMS: Duration = Duration::from_secs(30);

/// The protocol of the channels. Over SPDY the latter two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    V5,
    V4,
    /// Of old clients of WebSocket: the outcome is what went wrong, in words.
    V1,
}

impl Protocol {
    pub(super) const OVER_SPDY: [Self; 2] = [Self::V5, Self::V4];
    pub(super) const OVER_WEBSOCKET: [Self; 3] = [Self::V5, Self::V4, Self::V1];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V1 => "channel.k8s.io",
        }
    }

    /// What the channel of outcomes says of one; nothing of a success in the oldest.
    fn outcome(self, outcome: &Value) -> Option<String> {
        match self {
            Self::V5 | Self::V4 => Some(outcome.to_string()),
            Self::V1 => outcome.get("message").and_then(Value::as_str).map(str::to_owned),
        }
    }
}

/// What carries the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    WebSocket,
    Spdy,
}

/// What a client says.
pub(super) enum Said {
    Input(Vec<u8>),
    InputEnds,
    /// JSON.
    Size(Vec<u8>),
    /// It wants to see this frame.
    Echo(Vec<u8>),
    Nothing,
}

enum Client<R> {
    WebSocket(websocket::Client<R>),
    Spdy(spdy::Client<R>),
}

impl<R: AsyncRead + Unpin> Client<R> {
    /// What it says next; `None` when it has gone.
    async fn next(&mut self) -> Result<Option<Said>, Broken> {
        match self {
            Self::WebSocket(client) => client.next().await,
            Self::Spdy(client) => client.next().await,
        }
    }

    /// Waits until output can be sent: how. `None` when it comes to nothing.
    async fn open(&mut self, asked: &Asked, to_client: &mpsc::Sender<Out>) -> Option<Way> {
        let send = async |frame: Vec<u8>| drop(to_client.send(frame.into()).await);
        match self {
            Self::WebSocket(_) => {
                send(websocket::greeting(asked)).await;
                Some(Way::WebSocket)
            }
            Self::Spdy(client) => {
                let streams = timeout(STREAMS, client.open(asked, send)).await;
                Some(Way::Spdy(streams.ok()?.ok()??))
            }
        }
    }
}

/// How a client is told something.
#[derive(Clone, Copy)]
enum Way {
    WebSocket,
    Spdy(Streams),
}

impl Way {
    fn output(self, channel: u8, data: &[u8]) -> Vec<u8> {
        match self {
            Self::WebSocket => websocket::output(channel, data),
            Self::Spdy(streams) => streams.output(channel, data),
        }
    }

    /// The end of it all.
    fn end(self, outcome: Option<String>, broken: Option<Broken>) -> Vec<u8> {
        match self {
            Self::WebSocket => {
                let Broken { close: code, why } = broken.unwrap_or(Broken { close: 1000, why: "" });
                let told = outcome.map(|it| websocket::output(ERROR, it.as_bytes())).unwrap_or_default();
                [told, close(Side::Server, code, why)].concat()
            }
            Self::Spdy(streams) => streams.end(outcome.unwrap_or_default().as_bytes()),
        }
    }
}

/// How it ended.
enum Over {
    Process(End),
    /// The client has gone.
    Left,
    /// The client closed, or broke a rule: it is told this code.
    Closed(Broken),
}

/// A frame to be written; after the last one there is none.
pub(super) struct Out {
    pub(super) frame: Vec<u8>,
    pub(super) last: bool,
}

impl From<Vec<u8>> for Out {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, last: false }
    }
}

/// Carries everything both ways until the process ends or the client goes.
pub(super) async fn carry<C>(client: C, process: Process, asked: &Asked, carrier: Carrier, protocol: Protocol)
where
    C: AsyncRead + AsyncWrite + Send,
{
    let Process { tell, mut says, drive } = process;
    let (from_client, client) = tokio::io::split(client);
    let (to_client, frames) = mpsc::channel(WAITING);
    let (mut from_client, ping) = match carrier {
        Carrier::WebSocket => {
            let client = websocket::Client::new(from_client, protocol == Protocol::V5);
            (Client::WebSocket(client), frame(Side::Server, Opcode::Ping, &[]))
        }
        Carrier::Spdy => (Client::Spdy(spdy::Client::new(from_client)), spdy::ping()),
    };
    if !asked.stdin && !asked.tty {
        let _ = tell.try_send(Tell::InputEnds);
    }

    let mut out = pin!(write(client, frames, ping, SLOWEST));
    let mut drive = pin!(async {
        drive.await;
        // What it said last is still to be read.
        std::future::pending::<()>().await;
    });
    let way = tokio::select! {
        way = from_client.open(asked, &to_client) => way,
        _ = &mut out => None,
        () = &mut drive => None,
    };
    let Some(way) = way else { return };
    let mut up = pin!(up(from_client, asked, &tell, &to_client));
    let over = {
        let mut down = pin!(down(&mut says, asked, way, &to_client));
        tokio::select! {
            over = &mut up => over,
            over = &mut down => over,
            _ = &mut out => Over::Left,
            () = &mut drive => Over::Left,
        }
    };
    let (outcome, broken) = match over {
        Over::Left => return,
        Over::Closed(broken) => (None, Some(broken)),
        Over::Process(End::Exit(code)) => (Some(exited(&asked.command, code)), None),
        Over::Process(End::Done) => (Some(exited(&[], 0)), None),
        Over::Process(End::Failed(why)) => (Some(failed(&why)), None),
    };
    let last = Out { frame: way.end(outcome.and_then(|it| protocol.outcome(&it)), broken), last: true };
    // Each frame has its own deadline.
    let (_, written) = tokio::join!(to_client.send(last), out);
    if written.is_ok() && broken.is_none() {
        // It closes when it has read all. Closed by us before, a connection may lose what was just sent.
        let _ = timeout(FAREWELL, up).await;
    }
}

/// Takes what the client says. Ends when it closes, goes, or breaks the rules.
async fn up<R: AsyncRead + Unpin>(
    mut client: Client<R>,
    asked: &Asked,
    tell: &mpsc::Sender<Tell>,
    to_client: &mpsc::Sender<Out>,
) -> Over {
    let mut open = asked.stdin;
    loop {
        let told = match client.next().await {
            Ok(None) => return Over::Left,
            Err(broken) => return Over::Closed(broken),
            Ok(Some(Said::Input(input))) if open && !input.is_empty() => Tell::Input(input),
            Ok(Some(Said::InputEnds)) if open => {
                open = false;
                Tell::InputEnds
            }
            Ok(Some(Said::Size(size))) if asked.tty => match serde_json::from_slice(&size) {
                Ok(Size { width: columns, height: rows }) => Tell::Size { rows, columns },
                Err(_) => continue,
            },
            Ok(Some(Said::Echo(frame))) => {
                // One who has not taken what waits for him knows that we are there.
                let _ = to_client.try_send(frame.into());
                continue;
            }
            Ok(Some(_)) => continue,
        };
        // When the process takes no more, how it ended is on its way.
        let _ = tell.send(told).await;
    }
}

/// Takes what the process says, until it says how it ended.
async fn down(says: &mut mpsc::Receiver<Says>, asked: &Asked, way: Way, to_client: &mpsc::Sender<Out>) -> Over {
    while let Some(said) = says.recv().await {
        match said {
            Says::Output(channel, data) => {
                let wanted = if channel == channel::STDOUT { asked.stdout } else { asked.stderr };
                if wanted {
                    // A client that has gone shows elsewhere.
                    let _ = to_client.send(way.output(channel, &data).into()).await;
                }
            }
            Says::End(end) => return Over::Process(end),
        }
    }
    Over::Left
}

/// Writes frames to the client as they come, and `ping` when none do for a while.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    mut to: W,
    mut frames: mpsc::Receiver<Out>,
    ping: Vec<u8>,
    slowest: Duration,
) -> io::Result<()> {
    loop {
        let next = match timeout(PING, frames.recv()).await {
            Ok(next) => next,
            Err(_) => Some(ping.clone().into()),
        };
        let Some(Out { frame, last }) = next else { return Ok(()) };
        let written = timeout(slowest, put(&mut to, &frame));
        written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if last {
            return Ok(());
        }
    }
}

async fn put<W: AsyncWrite + Unpin>(to: &mut W, frame: &[u8]) -> io::Result<()> {
    to.write_all(frame).await?;
    to.flush().await
}

/// `TerminalSize`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// The outcome of a command that ended, as the kubelet over containerd words it.
fn exited(command: &[String], code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    let why = format!("error executing command [{}], exit code {code}", command.join(" "));
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: {why}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The outcome of one that did not start, or whose end nobody saw.
fn failed(why: &str) -> Value {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {why}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": why}]},
        "code": 500,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use tokio::io::AsyncReadExt;
    use wire::execd::FromTerminal;
    use wire::websocket::Message;

    use super::super::websocket::Messages;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn input_waits_for_a_process_that_reads_late() {
        let (client, mut kubectl) = tokio::io::duplex(1 << 10);
        let (ours, execd) = tokio::io::duplex(1 << 10);
        let asked = Asked { command: vec!["late".into()], stdin: true, stdout: true, ..Asked::default() };
        let carried = carry(client, Process::of_execd(ours), &asked, Carrier::WebSocket, Protocol::V5);
        let says = async {
            let block = [&[channel::STDIN], [b'x'; 1 << 10].as_slice()];
            for _ in 0..64 {
                kubectl.write_all(&frame(Side::Client, Opcode::Binary, &block)).await.unwrap();
            }
            kubectl.write_all(&frame(Side::Client, Opcode::Binary, &[&[255, channel::STDIN]])).await.unwrap();
            // To the close, which it does not answer.
            let mut told = Vec::new();
            kubectl.read_to_end(&mut told).await.unwrap();
            String::from_utf8_lossy(&told).into_owned()
        };
        let reads = async {
            let (from, mut to) = tokio::io::split(execd);
            for _ in 0..20 {
                tokio::time::sleep(PING).await;
                to.write_all(&frame(Side::Server, Opcode::Ping, &[])).await.unwrap();
            }
            let (mut messages, mut input) = (Messages::new(from, Side::Client), 0);
            loop {
                match messages.next().await.unwrap().unwrap() {
                    Message::Binary(data) => input += data.len() - 1,
                    Message::Text(_) => break,
                    _ => {}
                }
            }
            let exit = serde_json::to_vec(&FromTerminal::Exit { exit_code: 0 }).unwrap();
            to.write_all(&frame(Side::Server, Opcode::Text, &[&exit])).await.unwrap();
            input
        };
        let ((), told, input) = tokio::join!(carried, says, reads);
        assert_eq!(input, 64 << 10);
        assert!(told.contains(r#""status":"Success""#), "{told}");
    }
}
