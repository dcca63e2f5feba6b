//! A client that speaks SPDY/3.1, as kubectl before 1.31 does, and after it when a proxy lets no WebSocket through.
//!
//! The client makes a stream for each channel, which says in its headers which one it is. We make none. There is no flow
//! control: neither kubectl nor the kubelet has one.

use flate2::{Decompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt};
use wire::execd::channel;
use wire::websocket::Broken;

use super::channels::{ERROR, Said};
use super::exec::Asked;

pub(super) const NAME: &str = "SPDY/3.1";

/// What both sides of SPDY/3 know of headers (its specification, 2.6.10.1): older than any header, so to speak.
const DICTIONARY: &[u8] = include_bytes!("spdy.dictionary");
/// Data in one frame, and all of another frame.
const LONGEST: usize = 1 << 20;
const LONGEST_CONTROL: usize = 16 << 10;
/// Headers of one stream, unpacked.
const LONGEST_HEADERS: usize = 16 << 10;
/// The size of a terminal, as JSON.
const LONGEST_SIZE: usize = 4 << 10;
/// Streams that a client may make; it needs five.
const STREAMS: usize = 16;
/// Read at once.
const ROOM: usize = 16 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u8 = 2;
const PING: u16 = 6;
const FIN: u8 = 1;

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
        self.data(channel, 0, data)
    }

    /// The outcome, and the end of all that we write.
    pub(super) fn end(&self, outcome: &[u8]) -> Vec<u8> {
        let ends = [(ERROR, outcome), (channel::STDOUT, b"".as_slice()), (channel::STDERR, b"")];
        ends.map(|(channel, data)| self.data(channel, FIN, data)).concat()
    }

    fn data(&self, channel: u8, flags: u8, data: &[u8]) -> Vec<u8> {
        let id = match channel {
            channel::STDOUT => self.stdout,
            channel::STDERR => self.stderr,
            _ => self.error,
        };
        if id == 0 {
            return Vec::new();
        }
        let mut frame = id.to_be_bytes().to_vec();
        frame.extend(flags_and_length(flags, data.len()));
        frame.extend_from_slice(data);
        frame
    }
}

/// Asks the client whether it is there. Our numbers are even, theirs are odd.
pub(super) fn ping() -> Vec<u8> {
    control(PING.to_be_bytes(), &2_u32.to_be_bytes())
}

fn control([high, low]: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, high, low];
    frame.extend(flags_and_length(0, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, a, b, c]
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

    /// Takes the streams that were asked for; `reply` sends what the client waits for. `None` when it has gone.
    pub(super) async fn open<F>(
        &mut self,
        asked: &Asked,
        reply: impl Fn(Vec<u8>) -> F,
    ) -> Result<Option<Streams>, Broken>
    where
        F: Future<Output = ()>,
    {
        loop {
            match self.frame().await? {
                None => return Ok(None),
                Some(Frame::Stream { id, kind }) => {
                    let all = self.streams.take(&kind, id, asked);
                    reply(self.reply(id)?).await;
                    if all {
                        return Ok(Some(self.streams));
                    }
                }
                Some(Frame::Ping(id)) if id % 2 == 1 => reply(control(PING.to_be_bytes(), &id.to_be_bytes())).await,
                Some(Frame::Ping(_) | Frame::Other) => {}
                Some(Frame::Data { .. }) => return Err(broken("there is data before all streams are")),
            }
        }
    }

    /// That a stream is there, with no headers: a block of four bytes and an empty one, neither packed, and before them
    /// zlib's own head the first time.
    fn reply(&mut self, id: u32) -> Result<Vec<u8>, Broken> {
        self.replied += 1;
        if self.replied > STREAMS {
            return Err(broken("there are too many streams"));
        }
        let head: &[u8] = if self.replied == 1 { &[0x78, 0x01] } else { &[] };
        let stored = [0, 4, 0, !4, !0, 0, 0, 0, 0, 0, 0, 0, !0, !0];
        Ok(control([0, SYN_REPLY], &[&id.to_be_bytes(), head, &stored].concat()))
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
            Frame::Ping(id) if id % 2 == 1 => Said::Echo(control(PING.to_be_bytes(), &id.to_be_bytes())),
            Frame::Stream { .. } => return Err(broken("there are more streams than were asked for")),
            Frame::Data { .. } | Frame::Ping(_) | Frame::Other => Said::Nothing,
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum Frame {
    /// A new stream, and its header `streamtype`.
    Stream {
        id: u32,
        kind: Vec<u8>,
    },
    Data {
        id: u32,
        fin: bool,
        data: Vec<u8>,
    },
    Ping(u32),
    /// What says nothing to us: settings, windows, farewells.
    Other,
}

/// Turns bytes into frames.
struct Decoder {
    received: Vec<u8>,
    used: usize,
    /// Unpacks headers: one state for all of a connection's. `None` before the first.
    inflate: Option<Decompress>,
}

impl Decoder {
    fn new() -> Self {
        Self { received: Vec::new(), used: 0, inflate: None }
    }

    /// Where what is read is to be appended.
    fn received(&mut self) -> &mut Vec<u8> {
        self.received.drain(..self.used);
        self.used = 0;
        &mut self.received
    }

    fn frame(&mut self) -> Result<Option<Frame>, Broken> {
        let received = self.received.get(self.used..).unwrap_or_default();
        let Some(([a, b, c, d, flags, x, y, z], rest)) = received.split_first_chunk::<8>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, *x, *y, *z]) as usize;
        let (is_control, fin) = (a & 0x80 != 0, flags & FIN != 0);
        if length > if is_control { LONGEST_CONTROL } else { LONGEST } {
            return Err(broken("a frame is too long"));
        }
        let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.used = self.received.len() - rest.len();
        if !is_control {
            return Ok(Some(Frame::Data { id: u32::from_be_bytes([*a, *b, *c, *d]), fin, data: payload }));
        }
        if (a & 0x7f, *b) != (0, 3) {
            return Err(broken("this is not version 3 of SPDY"));
        }
        Ok(Some(match (u16::from_be_bytes([*c, *d]), payload.as_slice()) {
            (SYN_STREAM, [a, b, c, d, _, _, _, _, _, _, headers @ ..]) => {
                let id = u32::from_be_bytes([a & 0x7f, *b, *c, *d]);
                let headers = self.headers(headers)?;
                Frame::Stream { id, kind: value(&headers, b"streamtype").unwrap_or_default().to_vec() }
            }
            (PING, [a, b, c, d]) => Frame::Ping(u32::from_be_bytes([*a, *b, *c, *d])),
            (SYN_STREAM | PING, _) => return Err(broken("a frame is too short")),
            _ => Frame::Other,
        }))
    }

    /// Unpacks a stream's headers.
    fn headers(&mut self, packed: &[u8]) -> Result<Vec<u8>, Broken> {
        let (inflate, packed) = match &mut self.inflate {
            Some(inflate) => (inflate, packed),
            // zlib's own head, with or without the checksum of the dictionary.
            none => match packed {
                [0x78, flags, _, _, _, _, packed @ ..] if flags & 0x20 != 0 => (none.insert(primed()), packed),
                [0x78, _, packed @ ..] => (none.insert(primed()), packed),
                _ => return Err(broken("headers are not packed as SPDY has it")),
            },
        };
        let (mut out, before) = (Vec::with_capacity(LONGEST_HEADERS), inflate.total_in());
        let done = inflate.decompress_vec(packed, &mut out, FlushDecompress::Sync);
        if done.is_err() || inflate.total_in() - before < packed.len() as u64 {
            return Err(broken("headers cannot be unpacked, or are too long"));
        }
        Ok(out)
    }
}

/// Has unpacked the dictionary already, as a block of data that was not packed: what comes may refer to it.
fn primed() -> Decompress {
    let mut inflate = Decompress::new(false);
    let length = u16::try_from(DICTIONARY.len()).unwrap_or_default();
    let block = [&[0], length.to_le_bytes().as_slice(), &(!length).to_le_bytes(), DICTIONARY].concat();
    // It cannot fail; if it did, no header would be understood.
    let _ = inflate.decompress_vec(&block, &mut Vec::with_capacity(2 * DICTIONARY.len()), FlushDecompress::Sync);
    inflate
}

/// The value of one of these headers.
fn value<'a>(headers: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    fn text(from: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = from.split_first_chunk()?;
        rest.split_at_checked(u32::from_be_bytes(*length) as usize)
    }
    let (count, mut rest) = headers.split_first_chunk()?;
    for _ in 0..u32::from_be_bytes(*count) {
        let (name, after) = text(rest)?;
        let (value, after) = text(after)?;
        if name == wanted {
            return Some(value);
        }
        rest = after;
    }
    None
}

fn broken(why: &'static str) -> Broken {
    Broken { close: 1002, why }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// Streams 1 `error`, 3 `stdin` and 5 `stdout`, as Go's spdystream writes them.
    const STREAMS: &str = "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000\
        ffff800300010000001700000003000000000000c22e555c92929907000000ffff80030001000000190000000500000000\
        0000c22ac5565c92925f5a02000000ffff";

    fn streams() -> Vec<u8> {
        STREAMS
            .as_bytes()
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
            .collect()
    }

    fn all(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<u16>) {
        let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.received().extend_from_slice(piece);
            loop {
                match decoder.frame() {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(broken) => return (frames, Some(broken.close)),
                }
            }
        }
        (frames, None)
    }

    #[test]
    fn frames_are_read_as_kubectl_writes_them() {
        let settings = control([0, 4], &[0; 4]);
        let bytes = [&streams()[..], &settings, &ping(), &[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i']].concat();
        let stream = |id, kind: &[u8]| Frame::Stream { id, kind: kind.to_vec() };
        let want = vec![
            stream(1, b"error"),
            stream(3, b"stdin"),
            stream(5, b"stdout"),
            Frame::Other,
            Frame::Ping(2),
            Frame::Data { id: 3, fin: true, data: b"hi".to_vec() },
        ];
        for piece in [1, 7, bytes.len()] {
            assert_eq!(all(&bytes, piece), (want.clone(), None));
        }
    }

    #[test]
    fn what_breaks_the_rules_breaks_the_connection() {
        let bomb = {
            let mut packer = flate2::Compress::new(flate2::Compression::best(), true);
            let mut packed = Vec::with_capacity(LONGEST_CONTROL);
            packer.compress_vec(&vec![0; 1 << 20], &mut packed, flate2::FlushCompress::Sync).unwrap();
            control([0, 1], &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &packed].concat())
        };
        for rubbish in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0x80, 2, 0, 1, 0, 0, 0, 0],
            vec![0x80, 3, 0, 1, 0, 0, 0, 0],
            vec![0x80, 3, 0, 6, 0, 0, 0, 0],
            vec![0x80, 3, 0, 4, 0, 0xff, 0xff, 0xff],
            vec![0, 0, 0, 1, 0, 0x10, 0, 1],
            control([0, 1], &[0; 20]),
            bomb,
        ] {
            assert_eq!(all(&rubbish, 100), (vec![], Some(1002)), "{rubbish:?}");
        }
        for headers in [&b""[..], &[0, 0, 0, 1], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], &[0xff; 30]] {
            assert_eq!(value(headers, b"x"), None);
        }
    }
}
