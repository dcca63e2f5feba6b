//! Between a client's WebSocket of Kubernetes and execd's of a terminal.
//!
//! Kubernetes' messages are binary; their first byte is a channel: 0 stdin, 1 stdout, 2 stderr, 3 the outcome (a
//! `metav1.Status`), 4 the terminal's size. In `v5` channel 255 says that the channel in its second byte is closed. As the
//! kubelet, we pass over channels that we do not know, and say at once that we are there by an empty message.

use std::io;
use std::pin::pin;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::execd::{FromTerminal, ToTerminal, channel};
use wire::websocket::{Broken, Decoder, Message, Opcode, Side, close, frame};

use super::exec::Asked;

const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Frames that wait to be written, in each direction. Then the other side waits.
const WAITING: usize = 16;
/// How often a client is written to when nothing else is: when it has gone unseen, that fails.
const PING: Duration = Duration::from_secs(30);
/// execd asks twice as often whether we are there.
const SILENCE: Duration = Duration::from_secs(75);
/// How long a peer may take to take one frame.
const SLOWEST: Duration = Duration::from_secs(60);
/// How long a client may take to close its side when all was said.
const FAREWELL: Duration = Duration::from_secs(5);
/// Read at once.
const ROOM: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    V5,
    V4,
}

impl Protocol {
    pub(super) const ALL: [Self; 2] = [Self::V5, Self::V4];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }
}

/// How it ended.
enum End {
    /// The command, with this code.
    Exit(i32),
    /// There is no exit code, for this reason.
    Failed(String),
    /// The client has gone.
    Left,
    /// The client closed, or broke a rule: it is told this code.
    Closed(Broken),
}

/// A frame to be written; after the last one there is none.
struct Out {
    frame: Vec<u8>,
    last: bool,
}

impl From<Vec<u8>> for Out {
    fn from(frame: Vec<u8>) -> Self {
        Self { frame, last: false }
    }
}

/// Carries everything both ways until the command ends or the client goes. Dropping the connection to execd ends the
/// command.
pub(super) async fn carry<C, E>(client: C, execd: E, asked: &Asked, protocol: Protocol)
where
    C: AsyncRead + AsyncWrite + Send,
    E: AsyncRead + AsyncWrite + Send,
{
    let ((from_client, client), (from_execd, execd)) = (tokio::io::split(client), tokio::io::split(execd));
    let ((to_client, frames), (to_execd, input)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
    let first = match asked {
        Asked { stdout: true, .. } => channel::STDOUT,
        Asked { stderr: true, .. } => channel::STDERR,
        _ => ERROR,
    };
    let _ = to_client.try_send(binary(first, b""));
    if !asked.stdin && !asked.tty {
        let _ = to_execd.try_send(text(&ToTerminal::Eof));
    }

    let mut up = pin!(up(Messages::new(from_client, Side::Client), asked, protocol, &to_execd, &to_client));
    let mut down = pin!(down(Messages::new(from_execd, Side::Server), asked, &to_execd, &to_client));
    let mut out = pin!(write(client, frames, Some(PING)));
    let mut into = pin!(async {
        let ended = write(execd, input, None).await;
        // What the process does not take any more is not missed; how it ended is still to be read.
        drop(ended);
        std::future::pending::<()>().await;
    });
    let end = tokio::select! {
        end = &mut up => end,
        end = &mut down => end,
        _ = &mut out => End::Left,
        () = &mut into => End::Left,
    };
    let (outcome, broken) = match end {
        End::Left => return,
        End::Closed(broken) => (None, Some(broken)),
        End::Exit(code) => (Some(exited(&asked.command, code)), None),
        End::Failed(why) => (Some(failed(&why)), None),
    };
    let listens = broken.is_none();
    let Broken { close: code, why } = broken.unwrap_or(Broken { close: 1000, why: "" });
    let finish = async {
        if let Some(outcome) = outcome {
            let _ = to_client.send(binary(ERROR, outcome.to_string().as_bytes())).await;
        }
        let _ = to_client.send(Out { frame: close(Side::Server, code, why), last: true }).await;
    };
    // Each frame has its own deadline.
    let (_, written) = tokio::join!(finish, out);
    if written.is_ok() && listens {
        // Closed with something unread, a connection may lose what it was just sent.
        let _ = timeout(FAREWELL, up).await;
    }
}

/// Takes what the client says. Ends when it closes, goes, or breaks the rules.
async fn up<R: AsyncRead + Unpin>(
    mut messages: Messages<R>,
    asked: &Asked,
    protocol: Protocol,
    to_execd: &mpsc::Sender<Out>,
    to_client: &mpsc::Sender<Out>,
) -> End {
    let mut open = asked.stdin;
    loop {
        let message = match messages.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return End::Left,
            Err(broken) => return End::Closed(broken),
        };
        let tell = match message {
            Message::Close => return End::Closed(Broken { close: 1000, why: "" }),
            Message::Text(_) => return End::Closed(Broken { close: 1003, why: "messages are binary" }),
            Message::Ping(data) => {
                // One who has not taken what waits for him knows that we are there.
                let _ = to_client.try_send(frame(Side::Server, Opcode::Pong, &[&data]).into());
                continue;
            }
            Message::Pong => continue,
            Message::Binary(data) => match data.split_first() {
                Some((&channel::STDIN, input)) if open && !input.is_empty() => {
                    frame(Side::Client, Opcode::Binary, &[&[channel::STDIN], input]).into()
                }
                Some((&CLOSE, &[channel::STDIN])) if open && protocol == Protocol::V5 => {
                    open = false;
                    text(&ToTerminal::Eof)
                }
                Some((&RESIZE, size)) if asked.tty => match serde_json::from_slice(size) {
                    Ok(Size { width: cols, height: rows }) => text(&ToTerminal::Resize { cols, rows }),
                    Err(_) => continue,
                },
                _ => continue,
            },
        };
        // When execd takes no more, how the command ended is on its way.
        let _ = to_execd.send(tell).await;
    }
}

/// Takes what execd says, until it says how the command ended.
async fn down<R: AsyncRead + Unpin>(
    mut messages: Messages<R>,
    asked: &Asked,
    to_execd: &mpsc::Sender<Out>,
    to_client: &mpsc::Sender<Out>,
) -> End {
    loop {
        let message = match timeout(SILENCE, messages.next()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None) | Err(_)) => return End::Failed("the sandbox has ended".to_owned()),
            Err(_) => return End::Failed("the sandbox does not answer".to_owned()),
        };
        match message {
            Message::Close => return End::Failed("the sandbox has broken off".to_owned()),
            Message::Ping(data) => drop(to_execd.try_send(frame(Side::Client, Opcode::Pong, &[&data]).into())),
            Message::Pong => {}
            Message::Binary(data) => {
                let wanted = match data.first() {
                    Some(&channel::STDOUT) => asked.stdout,
                    Some(&channel::STDERR) => asked.stderr,
                    _ => false,
                };
                // A client that has gone shows elsewhere.
                if wanted {
                    let _ = to_client.send(frame(Side::Server, Opcode::Binary, &[&data]).into()).await;
                }
            }
            Message::Text(said) => match serde_json::from_slice(&said) {
                Ok(FromTerminal::Exit { exit_code }) => return End::Exit(exit_code),
                Ok(FromTerminal::Error { code, error }) if code == wire::execd::code::START_FAILED => {
                    return End::Failed(error);
                }
                // Input that the command does not take is not the end of it.
                _ => {}
            },
        }
    }
}

/// Writes frames as they come.
async fn write<W>(mut to: W, mut frames: mpsc::Receiver<Out>, ping: Option<Duration>) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    loop {
        let next = match ping {
            None => frames.recv().await,
            Some(ping) => match timeout(ping, frames.recv()).await {
                Ok(next) => next,
                Err(_) => Some(frame(Side::Server, Opcode::Ping, &[]).into()),
            },
        };
        let Some(Out { frame, last }) = next else { return Ok(()) };
        let written = timeout(SLOWEST, async {
            to.write_all(&frame).await?;
            if last { to.shutdown().await } else { to.flush().await }
        });
        written.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if last {
            return Ok(());
        }
    }
}

/// What a peer says, message by message.
struct Messages<R> {
    from: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    fn new(from: R, peer: Side) -> Self {
        Self { from, decoder: Decoder::new(peer) }
    }

    /// The next one; `None` when the peer has gone.
    async fn next(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            if let Some(message) = self.decoder.message()? {
                return Ok(Some(message));
            }
            let received = self.decoder.received();
            received.reserve(ROOM);
            if !self.from.read_buf(received).await.is_ok_and(|length| length > 0) {
                return Ok(None);
            }
        }
    }
}

/// `TerminalSize`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

fn binary(channel: u8, data: &[u8]) -> Out {
    frame(Side::Server, Opcode::Binary, &[&[channel], data]).into()
}

fn text(message: &ToTerminal) -> Out {
    frame(Side::Client, Opcode::Text, &[&serde_json::to_vec(message).unwrap_or_default()]).into()
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
    let why = format!("error executing command in container: {why}");
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {why}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": why}]},
        "code": 500,
    })
}
