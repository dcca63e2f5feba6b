//! One client of a terminal, from its handshake to its close.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval_at, timeout};
use wire::execd::{FromTerminal, TAKEN_OVER, ToTerminal, channel, code};
use wire::websocket::{self, Message, Opcode, Side};

use crate::daemon::Daemon;
use crate::os::{pty, tree};

use super::reader::Reader;
use super::{Attachment, Process, Terminal};

/// How often a client is asked whether it is there, and how long it may be silent.
const PING: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client may take to take what it is sent.
const SLOWEST: Duration = Duration::from_secs(60);

/// How long one whose place was taken may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

type Stream = TokioIo<Upgraded>;

struct Writer {
    to: WriteHalf<Stream>,
    /// Whether the last frame went out whole: after half a frame no other one may follow.
    whole: bool,
}

impl Writer {
    async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        self.whole = false;
        timeout(SLOWEST, async {
            self.to.write_all(frame).await?;
            self.to.flush().await
        })
        .await
        .map_err(late)??;
        self.whole = true;
        Ok(())
    }

    async fn tell(&mut self, message: &FromTerminal) -> io::Result<()> {
        self.send(&text(message)).await
    }
}

fn frame(opcode: Opcode, payload: &[&[u8]]) -> Vec<u8> {
    websocket::frame(Side::Server, opcode, payload)
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    websocket::close(Side::Server, code, reason)
}

fn text(message: &FromTerminal) -> Vec<u8> {
    frame(Opcode::Text, &[&serde_json::to_vec(message).unwrap_or_default()])
}

fn failure(code: &str, error: impl Into<String>) -> FromTerminal {
    FromTerminal::Error { code: code.to_owned(), error: error.into() }
}

/// Ends a task when whoever started it is done.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn serve(
    daemon: Rc<Daemon>,
    terminal: Rc<Terminal>,
    upgrade: OnUpgrade,
    since: u64,
    pipes: bool,
    takeover: bool,
) {
    let Ok(Ok(stream)) = timeout(SILENCE, upgrade).await else { return };
    let (read, write) = tokio::io::split(TokioIo::new(stream));
    let mut writer = Writer { to: write, whole: true };
    let Some((attachment, displaced)) = terminal.attach(since, takeover) else {
        let _ = writer.tell(&failure(code::ALREADY_CONNECTED, "another client was faster")).await;
        return;
    };
    let number = attachment.number;
    let taken_over = tokio::select! {
        biased;
        // Its sender is never used, only dropped. A client that is stuck does not hold its successor up.
        _ = displaced => true,
        // Whatever goes wrong is that the client is gone.
        _ = talk(&daemon, &terminal, attachment, read, &mut writer, pipes) => false,
    };
    if taken_over && writer.whole {
        let _ = timeout(FAREWELL, writer.send(&close(TAKEN_OVER, "TAKEN_OVER"))).await;
    }
    terminal.detach(number);
}

async fn talk(
    daemon: &Rc<Daemon>,
    terminal: &Rc<Terminal>,
    mut attachment: Attachment,
    read: ReadHalf<Stream>,
    writer: &mut Writer,
    pipes: bool,
) -> io::Result<()> {
    let process = match terminal.start(daemon, pipes) {
        Ok(process) => process,
        Err(why) => {
            writer.tell(&failure(code::START_FAILED, why)).await?;
            return writer.send(&close(1011, "not started")).await;
        }
    };
    let (from, past) = std::mem::take(&mut attachment.replay);
    if !past.is_empty() {
        writer.send(&frame(Opcode::Binary, &[&[channel::REPLAY], &from.to_be_bytes(), &past])).await?;
    }
    let mode = if process.master.is_some() { "pty" } else { "pipe" };
    writer.tell(&FromTerminal::Connected { session_id: terminal.id.clone(), mode: mode.to_owned() }).await?;

    let (answer, mut answers) = mpsc::channel(8);
    let _listening = Ended(daemon.spawn(listen(process, read, answer)));
    let mut ping = interval_at(Instant::now() + PING, PING);
    loop {
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(frame) => writer.send(&frame).await?,
                None => return Ok(()),
            },
            chunk = attachment.output.recv() => match chunk {
                Some((channel, data)) => writer.send(&frame(Opcode::Binary, &[&[channel], &data])).await?,
                None => {
                    let exit = terminal.state.borrow().exit;
                    if let Some(exit_code) = exit {
                        writer.tell(&FromTerminal::Exit { exit_code }).await?;
                    }
                    return writer.send(&close(1000, "process exited")).await;
                }
            },
            _ = ping.tick() => writer.send(&frame(Opcode::Ping, &[])).await?,
        }
    }
}

/// Takes what the client says. Ends, and with it the client, when that breaks the rules or stops.
async fn listen(process: Rc<Process>, read: ReadHalf<Stream>, answer: mpsc::Sender<Vec<u8>>) {
    let mut reader = Reader::new(read);
    while let Ok(Ok(message)) = timeout(SILENCE, reader.next()).await {
        let done = match message {
            Message::Close => {
                let _ = answer.send(close(1000, "")).await;
                return;
            }
            Message::Ping(data) => answer.send(frame(Opcode::Pong, &[&data])).await.is_ok(),
            Message::Pong => true,
            Message::Binary(data) => match data.split_first() {
                Some((&channel::STDIN, input)) => give(&process, input, &answer).await,
                _ => true,
            },
            Message::Text(text) => match serde_json::from_slice(&text) {
                Ok(ToTerminal::Stdin { data }) => give(&process, data.as_bytes(), &answer).await,
                Ok(ToTerminal::Ping) => answer.send(self::text(&FromTerminal::Pong)).await.is_ok(),
                Ok(asked) => {
                    process.asked(asked);
                    true
                }
                Err(error) => answer.send(self::text(&failure(code::INVALID_FRAME, error.to_string()))).await.is_ok(),
            },
        };
        if !done {
            return;
        }
    }
}

/// Writes all of it, waiting while the process does not read: then nothing more is taken from the client either.
async fn give(process: &Process, mut input: &[u8], answer: &mpsc::Sender<Vec<u8>>) -> bool {
    let Some(pipe) = process.input.borrow().clone() else { return true };
    while !input.is_empty() {
        let written = match pipe.writable().await {
            Ok(()) => pipe.try_write(input),
            Err(error) => Err(error),
        };
        match written {
            Ok(length) => input = input.get(length..).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Nobody reads any more: the process has ended, or has closed its input. Its output goes on.
            Err(error) => {
                process.input.borrow_mut().take();
                return answer.send(text(&failure(code::STDIN_WRITE_FAILED, error.to_string()))).await.is_ok();
            }
        }
    }
    true
}

impl Process {
    fn asked(&self, message: ToTerminal) {
        match (message, &self.master) {
            (ToTerminal::Resize { cols, rows }, Some(master)) if cols > 0 && rows > 0 => {
                let _ = pty::resize(master, cols, rows);
            }
            (ToTerminal::Signal { signal }, master) => {
                let group = master.as_ref().and_then(pty::foreground).unwrap_or_else(|| self.command.root());
                if let Some(signal) = pty::signal(&signal)
                    && self.command.is_running()
                {
                    tree::forward(group, signal);
                }
            }
            // A pipe ends when it is closed, a terminal's input with its sign for that.
            (ToTerminal::Eof, None) => drop(self.input.borrow_mut().take()),
            (ToTerminal::Eof, Some(master)) => drop(rustix::io::write(master, b"\x04")),
            (ToTerminal::Stdin { .. } | ToTerminal::Ping | ToTerminal::Resize { .. }, _) => {}
        }
    }
}
