//! Where a command's output goes: to its follower, to its log, or nowhere.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior};

use crate::daemon::Daemon;
use crate::os::now_ms;

use super::encode::{Lines, Stream, Tail, escape};
use super::journal::Writer;
use super::log::Log;
use super::{Command, End, Followed, Started};

/// Events are gathered until they are about this long.
const FRAME: usize = 256 << 10;
/// What is read at once: at least, at first, at most. Tiny lines make frames many times as long as what was read.
const READ: (usize, usize, usize) = (4 << 10, 16 << 10, 128 << 10);
/// How often a silent stream shows that it lives, as OpenSandbox has it.
const PING: Duration = Duration::from_secs(3);

/// The events of a foreground command. Pulled by its connection: while the client does not take what there is, the
/// pipe is not read, and the command waits.
pub(crate) struct Output {
    daemon: Rc<Daemon>,
    command: Rc<Command>,
    first: Option<Bytes>,
    sources: [Option<Source>; 2],
    ended: oneshot::Receiver<End>,
    end: Option<End>,
    ping: Interval,
    read: usize,
    /// Dropped with us, which ends the command.
    _alive: oneshot::Sender<()>,
}

struct Source {
    fd: Receiver,
    lines: Lines,
    journal: Writer,
    /// After the command's end: what it had written by then, and is still to be read.
    left: Option<usize>,
}

impl Output {
    /// `name` is what the client learns as the id.
    pub(crate) fn new(daemon: Rc<Daemon>, followed: Followed, name: String) -> Self {
        let Followed { started: Started { command, ended, alive }, stdout, stderr } = followed;
        let source = |fd, stream| Source { fd, lines: Lines::new(stream), journal: Writer::new(stream), left: None };
        let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            first: Some(init(&name, command.started())),
            sources: [Some(source(stdout, Stream::Stdout)), stderr.map(|fd| source(fd, Stream::Stderr))],
            daemon,
            command,
            ended,
            end: None,
            ping,
            read: READ.1,
            _alive: alive,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        loop {
            let mut out = Vec::new();
            let mut moved = false;
            for at in 0..self.sources.len() {
                moved |= self.pull(at, &mut out, cx);
            }
            if !out.is_empty() {
                return Poll::Ready(Some(out.into()));
            }
            if moved {
                // Part of a line, of which nothing is to be told yet. Nobody would wake us for what is behind it.
                continue;
            }
            if let Some(end) = &self.end {
                if self.sources.iter().any(Option::is_some) {
                    // Only when tokio's budget for this turn is used up; it has woken us already.
                    return Poll::Pending;
                }
                let Some(end) = self.command.last_event(end) else { return Poll::Ready(None) };
                return Poll::Ready(Some(end));
            }
            if let Poll::Ready(end) = Pin::new(&mut self.ended).poll(cx) {
                self.end = Some(end.unwrap_or_else(|_| End {
                    code: 255,
                    why: "its end was not seen".into(),
                    at: self.command.now(),
                }));
                for source in self.sources.iter_mut().flatten() {
                    source.left = Some(available(&source.fd));
                }
                continue;
            }
            if self.ping.poll_tick(cx).is_ready() {
                let ping = format!("{{\"type\":\"ping\",\"text\":\"pong\",\"timestamp\":{}}}\n\n", self.command.now());
                return Poll::Ready(Some(ping.into()));
            }
            return Poll::Pending;
        }
    }

    /// Reads once from one source and appends the events to `out`: whether there was anything, the end included.
    fn pull(&mut self, at: usize, out: &mut Vec<u8>, cx: &mut Context<'_>) -> bool {
        let Some(slot) = self.sources.get_mut(at) else { return false };
        let Some(source) = slot else { return false };
        let before = out.len();
        let most = self.read.min(source.left.unwrap_or(usize::MAX));
        let mut scratch = self.daemon.scratch(READ.2);
        let room = scratch.get_mut(..most).unwrap_or_default();
        // Nothing is left: the same as the pipe's end.
        let got = if room.is_empty() { Poll::Ready(Ok(0)) } else { read(&source.fd, room, source.left.is_some(), cx) };
        match got {
            Poll::Pending => return false,
            Poll::Ready(Ok(length)) if length > 0 => {
                source.left = source.left.map(|left| left - length.min(left));
                let data = scratch.get(..length).unwrap_or_default();
                source.journal.write(&self.daemon.journal, data);
                source.lines.push(data, &Tail::at(self.command.now()), out);
                let told = out.len() - before;
                if told > FRAME {
                    self.read = (self.read / 2).max(READ.0);
                } else if length == most && told < FRAME / 2 {
                    self.read = (self.read * 2).min(READ.2);
                }
            }
            Poll::Ready(end) => {
                source.journal.finish(&self.daemon.journal);
                source.lines.finish(&Tail::at(self.command.now()), out);
                // A child that the command left behind may hold the pipe: it must not die of writing to it.
                let held =
                    end.is_ok() && self.end.is_some() && !matches!(rustix::io::read(&source.fd, &mut **scratch), Ok(0));
                drop(scratch);
                if let Some(source) = slot.take().filter(|_| held) {
                    self.daemon.discard(source.fd);
                }
            }
        }
        true
    }
}

impl Drop for Output {
    /// A client that leaves takes the command with it, but not what it had begun to say.
    fn drop(&mut self) {
        for source in self.sources.iter_mut().flatten() {
            source.journal.finish(&self.daemon.journal);
        }
    }
}

/// Reads what is there. With `now`, does not wait for readiness to be told: the data is known to be in the pipe.
fn read(fd: &Receiver, into: &mut [u8], now: bool, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    if now {
        return match rustix::io::read(fd, &mut *into) {
            Err(rustix::io::Errno::INTR) => Poll::Ready(rustix::io::read(fd, into).map_err(io::Error::from)),
            other => Poll::Ready(other.map_err(io::Error::from)),
        };
    }
    loop {
        std::task::ready!(fd.poll_read_ready(cx))?;
        match fd.try_read(into) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            result => return Poll::Ready(result),
        }
    }
}

/// How many bytes are in the pipe.
pub(crate) fn available(fd: &Receiver) -> usize {
    rustix::io::ioctl_fionread(fd).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

impl Command {
    /// The event that ends the stream, once.
    fn last_event(&self, end: &End) -> Option<Bytes> {
        (!self.told.replace(true)).then(|| last(end.code, &end.why, self.started, end.at))
    }
}

fn init(id: &str, at: u64) -> Bytes {
    format!("{{\"type\":\"init\",\"text\":\"{id}\",\"timestamp\":{at}}}\n\n").into()
}

fn last(code: i32, why: &str, started: u64, at: u64) -> Bytes {
    if code == 0 {
        let took = at.saturating_sub(started);
        return format!("{{\"type\":\"execution_complete\",\"execution_time\":{took},\"timestamp\":{at}}}\n\n").into();
    }
    let mut event = format!(
        "{{\"type\":\"error\",\"error\":{{\"ename\":\"CommandExecError\",\"evalue\":\"{code}\",\"traceback\":[\""
    )
    .into_bytes();
    escape(why.as_bytes(), &mut event);
    event.extend_from_slice(format!("\"]}},\"timestamp\":{at}}}\n\n").as_bytes());
    event.into()
}

/// The whole stream of a command that could not be started.
pub(crate) fn not_started(id: &str, code: i32, why: &str) -> Bytes {
    let now = now_ms();
    [init(id, now), last(code, why, now, now)].concat().into()
}

/// The whole stream of a background command.
pub(crate) fn started_in_background(command: &Command) -> Bytes {
    [init(&command.id, command.started), last(0, "", command.started, command.now())].concat().into()
}

/// Where the output of a background command goes.
pub(crate) struct Kept {
    log: Rc<Log>,
    /// Both its outputs are one pipe.
    journal: RefCell<Writer>,
}

impl Kept {
    pub(crate) fn new(log: Rc<Log>) -> Self {
        Self { log, journal: RefCell::new(Writer::new(Stream::Stdout)) }
    }

    fn append(&self, daemon: &Daemon, data: &[u8]) {
        self.log.append(data);
        self.journal.borrow_mut().write(&daemon.journal, data);
    }
}

/// Appends to the log what is written until nobody holds the pipe any more.
pub(crate) async fn keep(daemon: Rc<Daemon>, pipe: Rc<Receiver>, kept: Rc<Kept>) {
    read_all(&daemon, &pipe, |data| kept.append(&daemon, data)).await;
}

/// Reads and forgets until nobody holds the pipe any more.
pub(crate) async fn forget(daemon: Rc<Daemon>, pipe: Receiver) {
    read_all(&daemon, &pipe, |_| ()).await;
}

async fn read_all(daemon: &Daemon, pipe: &Receiver, take: impl Fn(&[u8])) {
    while pipe.readable().await.is_ok() {
        let mut scratch = daemon.scratch(READ.2);
        match pipe.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(length) => take(scratch.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
    }
}

/// Appends to the log what is in the pipe now, when the command has ended.
pub(crate) fn keep_available(daemon: &Daemon, fd: &Receiver, kept: &Kept) {
    let mut left = available(fd);
    while left > 0 {
        let mut scratch = daemon.scratch(READ.2);
        let most = left.min(scratch.len());
        match rustix::io::read(fd, scratch.get_mut(..most).unwrap_or_default()) {
            Ok(length) if length > 0 => {
                kept.append(daemon, scratch.get(..length).unwrap_or_default());
                left -= length;
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
    kept.journal.borrow_mut().finish(&daemon.journal);
}

/// A background command's log as a body.
pub(crate) struct LogText {
    log: Rc<Log>,
    notice: Option<Bytes>,
    at: u64,
    end: u64,
}

impl LogText {
    /// From `cursor` to the log's end; of a `running` command only whole characters, because more will come.
    pub(crate) fn new(log: Rc<Log>, cursor: u64, running: bool) -> io::Result<Self> {
        let mut end = log.end();
        let at = cursor.max(log.start()).min(end);
        if running {
            let last = log.read(end - (end - at).min(3), end, 3)?;
            let cut = last.utf8_chunks().last().map_or(0, |chunk| {
                let open = chunk.invalid();
                if std::str::from_utf8(open).is_err_and(|error| error.error_len().is_none()) { open.len() } else { 0 }
            });
            end -= cut as u64;
        }
        let notice = (cursor < at).then(|| {
            let (dropped, kept) = (at - cursor, log.kept());
            Bytes::from(format!("[{dropped} earlier bytes were dropped: the last {kept} are kept]\n"))
        });
        Ok(Self { log, notice, at, end })
    }

    /// The cursor for the next call.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn next(&mut self) -> Option<io::Result<Bytes>> {
        if let Some(notice) = self.notice.take() {
            return Some(Ok(notice));
        }
        // What was overwritten since is passed over.
        self.at = self.at.max(self.log.start());
        if self.at >= self.end {
            return None;
        }
        match self.log.read(self.at, self.end, 64 << 10) {
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                Some(Ok(bytes.into()))
            }
            Err(error) => Some(Err(error)),
        }
    }
}
