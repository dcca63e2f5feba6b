//! What a client's channels are connected to: a command of a sandbox, over execd's WebSocket; one in a pod; a container's
//! own streams.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::timeout;
use wire::execd::{FromTerminal, ToTerminal, channel};
use wire::websocket::{Message, Opcode, Side, frame};

use super::door::{Attach, Exec, Reader, Resize, Writer};
use super::websocket::Messages;
use crate::pod::{StartError, Stream};

/// What waits to be taken, in each direction. Then the other side waits.
const WAITING: usize = 16;
/// execd asks twice as often whether we are there.
const SILENCE: Duration = Duration::from_secs(75);
/// How long a command may take to be started.
const START: Duration = Duration::from_secs(60);
/// How long a process that has ended is listened to when nothing comes: another one may have its outputs, and keep them.
const QUIET: Duration = Duration::from_secs(1);
/// Read at once.
const ROOM: usize = 16 << 10;

/// What a process is told.
pub(super) enum Tell {
    Input(Vec<u8>),
    InputEnds,
    Size { rows: u16, columns: u16 },
}

/// What a process says.
pub(super) enum Says {
    /// On stdout or stderr.
    Output(u8, Vec<u8>),
    End(End),
}

/// How it ended.
pub(super) enum End {
    /// With this code.
    Exit(i32),
    /// Whatever its code was: nobody asked for it.
    Done,
    /// There is no exit code, for this reason.
    Failed(String),
}

pub(super) struct Process {
    pub(super) tell: mpsc::Sender<Tell>,
    pub(super) says: mpsc::Receiver<Says>,
    /// What moves it: everything is over when this is dropped.
    pub(super) drive: BoxFuture<'static, ()>,
}

impl Process {
    fn new<F>(drive: impl FnOnce(mpsc::Receiver<Tell>, mpsc::Sender<Says>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ((tell, told), (say, says)) = (mpsc::channel(WAITING), mpsc::channel(WAITING));
        Self { tell, says, drive: drive(told, say).boxed() }
    }

    /// One that comes to nothing.
    pub(super) fn failed(why: String) -> Self {
        Self::new(|_told, say| async move {
            let _ = say.send(Says::End(End::Failed(why))).await;
        })
    }

    /// A command of a sandbox. The end of the connection ends it.
    pub(super) fn of_execd(execd: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (from, to) = tokio::io::split(execd);
        let (pong, pongs) = mpsc::channel(WAITING);
        Self::new(|told, say| async move {
            tokio::select! {
                end = from_execd(Messages::new(from, Side::Server), &say, pong) => drop(say.send(Says::End(end)).await),
                // What the process does not take any more is not missed; how it ended is still to be read.
                () = lasting(to_execd(to, told, pongs)) => {}
            }
        })
    }

    /// A command in a pod, once it is started.
    pub(super) fn of_exec(start: BoxFuture<'static, Result<Exec, StartError>>) -> Self {
        Self::new(|told, say| async move {
            let failed = |why: &str| End::Failed(format!("error executing command in container: {why}"));
            let end = match timeout(START, start).await {
                Ok(Ok(exec)) => match run(exec, told, &say).await {
                    Some(code) => End::Exit(code),
                    None => failed("the container has ended"),
                },
                Ok(Err(error)) => failed(&kit::chain(&error)),
                Err(_) => failed("it does not start"),
            };
            let _ = say.send(Says::End(end)).await;
        })
    }

    /// The streams of a container, until it ends.
    pub(super) fn of_container(attach: Attach) -> Self {
        Self::new(|told, say| async move {
            let end = follow(attach, told, &say).await;
            let _ = say.send(Says::End(end)).await;
        })
    }
}

/// Does something, and is never done.
async fn lasting<T>(work: impl Future<Output = T>) {
    work.await;
    std::future::pending::<()>().await;
}

/// Takes what execd says, until it says how the command ended.
async fn from_execd<R: AsyncRead + Unpin>(
    mut messages: Messages<R>,
    say: &mpsc::Sender<Says>,
    pong: mpsc::Sender<Vec<u8>>,
) -> End {
    let failed = |why: &str| End::Failed(format!("error executing command in container: {why}"));
    loop {
        let message = match timeout(SILENCE, messages.next()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None) | Err(_)) => return failed("the sandbox has ended"),
            Err(_) => return failed("the sandbox does not answer"),
        };
        match message {
            Message::Close => return failed("the sandbox has broken off"),
            Message::Ping(data) => drop(pong.try_send(frame(Side::Client, Opcode::Pong, &[&data]))),
            Message::Pong => {}
            Message::Binary(mut data) => {
                if let Some(channel @ (channel::STDOUT | channel::STDERR)) = data.first().copied() {
                    data.drain(..1);
                    // A client that has gone shows elsewhere.
                    let _ = say.send(Says::Output(channel, data)).await;
                }
            }
            Message::Text(said) => match serde_json::from_slice(&said) {
                Ok(FromTerminal::Exit { exit_code }) => return End::Exit(exit_code),
                Ok(FromTerminal::Error { code, error }) if code == wire::execd::code::START_FAILED => {
                    return failed(&error);
                }
                // Input that the command does not take is not the end of it.
                _ => {}
            },
        }
    }
}

/// Writes to execd, which waits while the process reads nothing: it may do so for ever. That execd itself is stuck shows
/// by its silence.
async fn to_execd<W: AsyncWrite + Unpin>(
    mut to: W,
    mut told: mpsc::Receiver<Tell>,
    mut pongs: mpsc::Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    let text =
        |message: &ToTerminal| frame(Side::Client, Opcode::Text, &[&serde_json::to_vec(message).unwrap_or_default()]);
    loop {
        let next = tokio::select! {
            Some(told) = told.recv() => match told {
                Tell::Input(input) => frame(Side::Client, Opcode::Binary, &[&[channel::STDIN], &input]),
                Tell::InputEnds => text(&ToTerminal::Eof),
                Tell::Size { rows, columns } => text(&ToTerminal::Resize { cols: columns, rows }),
            },
            Some(pong) = pongs.recv() => pong,
            else => return Ok(()),
        };
        to.write_all(&next).await?;
        to.flush().await?;
    }
}

/// Hands on what a process is told, and says when its input has ended. What it does not take any more is not missed.
async fn hand_on(
    mut told: mpsc::Receiver<Tell>,
    mut stdin: Option<Writer>,
    mut resize: Option<Resize>,
    mut gave: Option<oneshot::Sender<()>>,
) {
    while let Some(tell) = told.recv().await {
        match tell {
            Tell::Input(input) => {
                if let Some(to) = &mut stdin
                    && (to.write_all(&input).await.is_err() || to.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Tell::InputEnds => {
                if let Some(mut to) = stdin.take() {
                    let _ = to.shutdown().await;
                }
                let _ = gave.take().map(|it| it.send(()));
            }
            Tell::Size { rows, columns } => {
                if let Some(resize) = &mut resize {
                    resize(rows, columns);
                }
            }
        }
    }
}

/// A command in a pod: its exit code.
async fn run(exec: Exec, told: mpsc::Receiver<Tell>, say: &mpsc::Sender<Says>) -> Option<i32> {
    let Exec { stdin, stdout, stderr, resize, exit } = exec;
    let (read, handed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let output = async |channel, from: Option<Reader>| {
        let Some(mut from) = from else { return };
        let mut block = vec![0; ROOM];
        while let Ok(length @ 1..) = from.read(&mut block).await {
            read.store(true, Ordering::Relaxed);
            handed.fetch_add(1, Ordering::Relaxed);
            let text = block.get(..length).unwrap_or_default().to_vec();
            let _ = say.send(Says::Output(channel, text)).await;
            handed.fetch_sub(1, Ordering::Relaxed);
        }
    };
    let mut outputs = std::pin::pin!(async {
        tokio::join!(output(channel::STDOUT, stdout), output(channel::STDERR, stderr));
    });
    let ended = async {
        let mut exit = exit;
        let code = tokio::select! {
            code = &mut exit => code,
            () = &mut outputs => return exit.await,
        };
        while timeout(QUIET, &mut outputs).await.is_err() {
            if !read.swap(false, Ordering::Relaxed) && handed.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        code
    };
    tokio::select! {
        code = ended => code,
        () = lasting(hand_on(told, stdin, resize, None)) => None,
    }
}

/// What a container prints until it ends, or until the client has given it all of its input.
async fn follow(attach: Attach, told: mpsc::Receiver<Tell>, say: &mpsc::Sender<Says>) -> End {
    let Attach { stdin, mut output, resize, exit, outlasts_input } = attach;
    let leaves = stdin.is_some() && !outlasts_input;
    let (gave, given) = oneshot::channel();
    let exit = async {
        tokio::select! {
            () = exit => {}
            Ok(()) = given, if leaves => {}
        }
    };
    let print = async |stream: Stream, bytes: bytes::Bytes| {
        let channel = match stream {
            Stream::Stdout => channel::STDOUT,
            Stream::Stderr => channel::STDERR,
        };
        let _ = say.send(Says::Output(channel, bytes.to_vec())).await;
    };
    let prints = async {
        let mut exit = std::pin::pin!(exit);
        let ended = loop {
            tokio::select! {
                biased;
                printed = output.recv() => match printed {
                    Ok((stream, bytes)) => print(stream, bytes).await,
                    Err(error) => break Some(error),
                },
                () = &mut exit => break None,
            }
        };
        match ended {
            Some(broadcast::error::RecvError::Lagged(_)) => {
                End::Failed("error attaching to container: the container prints faster than its client reads".into())
            }
            Some(broadcast::error::RecvError::Closed) => End::Done,
            None => {
                // What it said last is there.
                while let Ok((stream, bytes)) = output.try_recv() {
                    print(stream, bytes).await;
                }
                End::Done
            }
        }
    };
    tokio::select! {
        end = prints => end,
        () = lasting(hand_on(told, stdin, resize, Some(gave))) => End::Done,
    }
}
