//! SPDY/3.1 as bytes: frames, and the headers of streams. No I/O.

use flate2::{Decompress, FlushDecompress};
use wire::websocket::Broken;

/// What both sides of SPDY/3 know of headers (its specification, 2.6.10.1): older than any header, so to speak.
const DICTIONARY: &[u8] = include_bytes!("spdy.dictionary");
/// Data in one frame, and all of another frame.
const LONGEST: usize = 1 << 20;
const LONGEST_CONTROL: usize = 16 << 10;
/// Headers of one stream, unpacked.
const LONGEST_HEADERS: usize = 16 << 10;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u8 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const FIN: u8 = 1;

/// Asks the client whether it is there. Our numbers are even, theirs are odd.
pub(in super::super) fn ping() -> Vec<u8> {
    control(PING.to_be_bytes(), &2_u32.to_be_bytes())
}

pub(super) fn control([high, low]: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, high, low];
    frame.extend(flags_and_length(0, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, a, b, c]
}

/// The answer to a ping of the client's.
pub(in super::super) fn pong(id: u32) -> Vec<u8> {
    control(PING.to_be_bytes(), &id.to_be_bytes())
}

/// That a stream is there, with no headers: a block of four bytes and an empty one, neither packed, and before them zlib's
/// own head the first time.
pub(in super::super) fn reply(id: u32, first: bool) -> Vec<u8> {
    let head: &[u8] = if first { &[0x78, 0x01] } else { &[] };
    let stored = [0, 4, 0, !4, !0, 0, 0, 0, 0, 0, 0, 0, !0, !0];
    control([0, SYN_REPLY], &[&id.to_be_bytes(), head, &stored].concat())
}

/// That a stream is refused, or given up.
pub(in super::super) fn reset(id: u32) -> Vec<u8> {
    const CANCEL: u32 = 5;
    control(RST_STREAM.to_be_bytes(), &[id.to_be_bytes(), CANCEL.to_be_bytes()].concat())
}

/// A piece of a stream, the last one or not.
pub(in super::super) fn data(id: u32, last: bool, data: &[u8]) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.extend(flags_and_length(u8::from(last) * FIN, data.len()));
    frame.extend_from_slice(data);
    frame
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Frame {
    /// A new stream.
    Stream {
        id: u32,
        headers: Headers,
    },
    Data {
        id: u32,
        fin: bool,
        data: Vec<u8>,
    },
    /// This stream is over, whatever was still to come.
    Reset(u32),
    Ping(u32),
    /// What says nothing to us: settings, windows, farewells.
    Other,
}

/// Headers of a stream, unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Headers(pub(super) Vec<u8>);

impl Headers {
    pub(in super::super) fn get(&self, name: &str) -> Option<&[u8]> {
        value(&self.0, name.as_bytes())
    }
}

/// Turns bytes into frames.
pub(in super::super) struct Decoder {
    received: Vec<u8>,
    used: usize,
    /// Unpacks headers: one state for all of a connection's. `None` before the first.
    inflate: Option<Decompress>,
}

impl Decoder {
    pub(in super::super) fn new() -> Self {
        Self { received: Vec::new(), used: 0, inflate: None }
    }

    /// Where what is read is to be appended.
    pub(in super::super) fn received(&mut self) -> &mut Vec<u8> {
        self.received.drain(..self.used);
        self.used = 0;
        &mut self.received
    }

    pub(in super::super) fn frame(&mut self) -> Result<Option<Frame>, Broken> {
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
                Frame::Stream { id, headers: Headers(self.headers(headers)?) }
            }
            (RST_STREAM, [a, b, c, d, _, _, _, _]) => Frame::Reset(u32::from_be_bytes([*a, *b, *c, *d])),
            (PING, [a, b, c, d]) => Frame::Ping(u32::from_be_bytes([*a, *b, *c, *d])),
            (SYN_STREAM | RST_STREAM | PING, _) => return Err(broken("a frame is too short")),
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

pub(super) fn broken(why: &'static str) -> Broken {
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
        let bytes = [&streams()[..], &settings, &ping(), &[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i'], &reset(3)].concat();
        let stream = |id, kind: &[u8]| {
            let length = |text: &[u8]| (text.len() as u32).to_be_bytes();
            let headers = [&[0, 0, 0, 1][..], &length(b"streamtype"), b"streamtype", &length(kind), kind].concat();
            assert_eq!(Headers(headers.clone()).get("streamtype"), Some(kind));
            Frame::Stream { id, headers: Headers(headers) }
        };
        let want = vec![
            stream(1, b"error"),
            stream(3, b"stdin"),
            stream(5, b"stdout"),
            Frame::Other,
            Frame::Ping(2),
            Frame::Data { id: 3, fin: true, data: b"hi".to_vec() },
            Frame::Reset(3),
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
