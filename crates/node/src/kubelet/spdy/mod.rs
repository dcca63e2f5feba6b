//! A client that speaks SPDY/3.1, as kubectl before 1.31 does, and after it when a proxy lets no WebSocket through.
//!
//! The client makes a stream for each channel, which says in its headers which one it is. We make none. There is no flow
//! control: neither kubectl nor the kubelet has one.

mod frames;

use tokio::io::{AsyncRead, AsyncReadExt};
use wire::execd::channel;
use wire::websocket::Broken;

use super::channels::{ERROR, Said};
use super::exec::Asked;
use frames::broken;
pub(super) use frames::{Decoder, Frame, Headers, data, ping, pong, reply, reset};

pub(super) const NAME: &str = "SPDY/3.1";

/// The size of a terminal, as JSON.
const LONGEST_SIZE: usize = 4 << 10;
/// Streams that a client may make; it needs five.
const STREAMS: usize = 16;
/// Read at once.
const ROOM: usize = 16 << 10;

/// Which stream is which channel. A stream's number is never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Streams {
    stdin: u32,
    stdout: u32,
    stderr: u32,
    error: u32,
    resize: u32,
}

impl Streams {
    /// Takes the next one. Whether all are there that were asked for.
    fn take(&mut self, kind: &[u8], id: u32, asked: &Asked) -> bool {
        match kind {
            b"stdin" => self.stdin = id,
            b"stdout" => self.stdout = id,
            b"stderr" => self.stderr = id,
            b"error" => self.error = id,
            b"resize" => self.resize = id,
            _ => {}
        }
        let wanted = [
            (true, self.error),
            (asked.stdin, self.stdin),
            (asked.stdout, self.stdout),
            (asked.stderr, self.stderr),
            (asked.tty, self.resize),
        ];
        wanted.into_iter().all(|(wanted, id)| !wanted || id != 0)
    }

    /// A piece of output; on a stream that there is not, nothing.
    pub(super) fn output(&self, channel: u8, data: &[u8]) -> Vec<u8> {
        self.data(channel, false, data)
    }

    /// The outcome, and the end of all that we write.
    pub(super) fn end(&self, outcome: &[u8]) -> Vec<u8> {
        let ends = [(ERROR, outcome), (channel::STDOUT, b"".as_slice()), (channel::STDERR, b"")];
        ends.map(|(channel, data)| self.data(channel, true, data)).concat()
    }

    fn data(&self, channel: u8, last: bool, bytes: &[u8]) -> Vec<u8> {
        let id = match channel {
            channel::STDOUT => self.stdout,
            channel::STDERR => self.stderr,
            _ => self.error,
        };
        if id == 0 { Vec::new() } else { data(id, last, bytes) }
    }
}

pub(super) struct Client<R> {
    from: R,
    decoder: Decoder,
    streams: Streams,
    replied: usize,
    /// The frame that carried the last input was the last one.
    input_ends: bool,
    /// Of the terminal's size what has come so far.
    size: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Client<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            decoder: Decoder::new(),
            streams: Streams::default(),
            replied: 0,
            input_ends: false,
            size: Vec::new(),
        }
    }

    /// Takes the streams that were asked for; `send` sends what the client waits for. `None` when it has gone.
    pub(super) async fn open<F>(
        &mut self,
        asked: &Asked,
        send: impl Fn(Vec<u8>) -> F,
    ) -> Result<Option<Streams>, Broken>
    where
        F: Future<Output = ()>,
    {
        loop {
            match self.frame().await? {
                None => return Ok(None),
                Some(Frame::Stream { id, headers }) => {
                    let all = self.streams.take(headers.get("streamtype").unwrap_or_default(), id, asked);
                    send(self.reply(id)?).await;
                    if all {
                        return Ok(Some(self.streams));
                    }
                }
                Some(Frame::Ping(id)) if id % 2 == 1 => send(pong(id)).await,
                Some(Frame::Ping(_) | Frame::Reset(_) | Frame::Other) => {}
                Some(Frame::Data { .. }) => return Err(broken("there is data before all streams are")),
            }
        }
    }

    fn reply(&mut self, id: u32) -> Result<Vec<u8>, Broken> {
        self.replied += 1;
        if self.replied > STREAMS {
            return Err(broken("there are too many streams"));
        }
        Ok(reply(id, self.replied == 1))
    }

    /// What it says next; `None` when it has gone.
    pub(super) async fn next(&mut self) -> Result<Option<Said>, Broken> {
        if std::mem::take(&mut self.input_ends) {
            return Ok(Some(Said::InputEnds));
        }
        let Some(frame) = self.frame().await? else { return Ok(None) };
        Ok(Some(match frame {
            Frame::Data { id, fin, data } if id == self.streams.stdin => {
                self.input_ends = fin;
                Said::Input(data)
            }
            Frame::Data { id, data, .. } if id == self.streams.resize => self.sized(&data)?,
            Frame::Ping(id) if id % 2 == 1 => Said::Echo(pong(id)),
            Frame::Stream { .. } => return Err(broken("there are more streams than were asked for")),
            Frame::Data { .. } | Frame::Reset(_) | Frame::Ping(_) | Frame::Other => Said::Nothing,
        }))
    }

    /// Sizes come as lines, in whatever pieces; the last one counts.
    fn sized(&mut self, data: &[u8]) -> Result<Said, Broken> {
        self.size.extend_from_slice(data);
        if self.size.len() > LONGEST_SIZE {
            return Err(broken("a size is too long"));
        }
        let Some(end) = self.size.iter().rposition(|byte| *byte == b'\n') else { return Ok(Said::Nothing) };
        let rest = self.size.split_off(end + 1);
        let lines = std::mem::replace(&mut self.size, rest);
        let last = lines.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
        Ok(last.map_or(Said::Nothing, |line| Said::Size(line.to_vec())))
    }

    async fn frame(&mut self) -> Result<Option<Frame>, Broken> {
        loop {
            if let Some(frame) = self.decoder.frame()? {
                return Ok(Some(frame));
            }
            let received = self.decoder.received();
            received.reserve(ROOM);
            if !self.from.read_buf(received).await.is_ok_and(|length| length > 0) {
                return Ok(None);
            }
        }
    }
}
