//! WebSocket (RFC 6455) as bytes: the handshake, frames and messages. No I/O, no extensions.

use std::fmt;

/// The longest message that is taken: 1 MiB. A longer one breaks the connection ([`Broken::close`] is 1009).
pub const LONGEST: usize = 1 << 20;
/// The version that a client names in `Sec-WebSocket-Version`.
pub const VERSION: &str = "13";

/// One message, its fragments put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close,
}

/// What kind of frame goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Which end of a connection one is. Frames of a client are masked, those of a server are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// The peer broke a rule: nothing that comes after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The code to close with: 1002 or 1009.
    pub close: u16,
    pub why: &'static str,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why)
    }
}

impl std::error::Error for Broken {}

/// The value of Sec-WebSocket-Accept for a request whose headers `values` gives by their lower-case names; `Err` says
/// why these headers are no handshake.
pub fn accept<'a, V>(values: impl Fn(&'static str) -> V) -> Result<String, &'static str>
where
    V: Iterator<Item = &'a [u8]>,
{
    let holds = |name, wanted: &str| {
        values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if !holds("upgrade", "websocket") || !holds("connection", "upgrade") {
        return Err("this is a WebSocket: ask with Upgrade: websocket");
    }
    if values("sec-websocket-version").next() != Some(VERSION.as_bytes()) {
        return Err("the version of the WebSocket protocol must be 13");
    }
    let key = values("sec-websocket-key").next().ok_or("there is no Sec-WebSocket-Key")?;
    Ok(base64(&sha1(&[key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat())))
}

/// One whole frame as `from` sends it.
///
/// A client's mask is all zeros. Masks keep a script in a browser from choosing the bytes that a proxy sees; our client
/// talks to execd over a socket of its own.
pub fn frame(from: Side, opcode: Opcode, payload: &[&[u8]]) -> Vec<u8> {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let masked = if from == Side::Client { 0x80 } else { 0 };
    let mut frame = Vec::with_capacity(length + 14);
    frame.push(0x80 | opcode as u8);
    match u16::try_from(length) {
        Ok(short) if short < 126 => frame.push(masked | short.to_le_bytes()[0]),
        Ok(middle) => {
            frame.push(masked | 126);
            frame.extend(middle.to_be_bytes());
        }
        Err(_) => {
            frame.push(masked | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    if from == Side::Client {
        frame.extend([0; 4]);
    }
    for part in payload {
        frame.extend_from_slice(part);
    }
    frame
}

/// A close frame with its code and reason, of which at most 123 bytes are said.
pub fn close(from: Side, code: u16, reason: &str) -> Vec<u8> {
    let reason = reason.get(..reason.floor_char_boundary(123)).unwrap_or_default();
    frame(from, Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()])
}

/// Turns what a peer sends, in whatever pieces it comes, into messages.
#[derive(Debug)]
pub struct Decoder {
    peer: Side,
    received: Vec<u8>,
    /// How much of it was turned into messages.
    used: usize,
    /// A message that has begun: whether it is text, and its parts so far.
    begun: Option<(bool, Vec<u8>)>,
}

impl Decoder {
    pub fn new(peer: Side) -> Self {
        Self { peer, received: Vec::new(), used: 0, begun: None }
    }

    /// Where what is read from the peer is to be appended.
    pub fn received(&mut self) -> &mut Vec<u8> {
        self.received.drain(..self.used);
        self.used = 0;
        &mut self.received
    }

    /// The next whole message; `None` until more is [received](Self::received).
    ///
    /// # Errors
    /// When the peer breaks the protocol, or a message is longer than [`LONGEST`]; that is known from its first bytes.
    pub fn message(&mut self) -> Result<Option<Message>, Broken> {
        loop {
            let Some(Frame { last, opcode, payload }) = self.frame()? else { return Ok(None) };
            match (opcode, self.begun.take()) {
                (0, Some((text, mut parts))) => {
                    parts.extend(payload);
                    self.begun = Some((text, parts));
                }
                (1 | 2, None) => self.begun = Some((opcode == 1, payload)),
                // Control frames may come between the fragments of a message.
                (8, _) => return Ok(Some(Message::Close)),
                (9, begun) => {
                    self.begun = begun;
                    return Ok(Some(Message::Ping(payload)));
                }
                (10, begun) => {
                    self.begun = begun;
                    return Ok(Some(Message::Pong));
                }
                _ => return Err(broken("a frame is of an unknown kind, or out of order")),
            }
            if last && let Some((text, whole)) = self.begun.take() {
                return Ok(Some(if text { Message::Text(whole) } else { Message::Binary(whole) }));
            }
        }
    }

    fn frame(&mut self) -> Result<Option<Frame>, Broken> {
        let received = self.received.get(self.used..).unwrap_or_default();
        let Some(([first, second], rest)) = received.split_first_chunk() else { return Ok(None) };
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        if first & 0x70 != 0 || (second & 0x80 != 0) != (self.peer == Side::Client) {
            return Err(broken("a reserved bit is set, or a frame is masked that must not be, or not masked"));
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        if opcode >= 8 && (length > 125 || !last) {
            return Err(broken("a control frame is too long or in pieces"));
        }
        let before = self.begun.as_ref().map_or(0, |(_, parts)| parts.len());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST - before.min(LONGEST) {
            return Err(Broken { close: 1009, why: "a message is over 1 MiB" });
        }
        let (mask, rest) = match self.peer {
            Side::Server => ([0; 4], rest),
            Side::Client => match rest.split_first_chunk() {
                Some((mask, rest)) => (*mask, rest),
                None => return Ok(None),
            },
        };
        let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        self.used = self.received.len() - rest.len();
        Ok(Some(Frame { last, opcode, payload }))
    }
}

struct Frame {
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

fn broken(why: &'static str) -> Broken {
    Broken { close: 1002, why }
}

/// SHA-1, which the handshake asks for and which protects nothing here.
fn sha1(data: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = data.to_vec();
    padded.push(0x80);
    // Zeros up to eight bytes before the end of a block: there the length has its place.
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((data.len() as u64 * 8).to_be_bytes());
    for block in padded.as_chunks::<64>().0 {
        let mut words: Vec<u32> = block.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        for at in 16..80 {
            let past = |back: usize| words.get(at - back).copied().unwrap_or(0);
            words.push((past(3) ^ past(8) ^ past(14) ^ past(16)).rotate_left(1));
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.into_iter().enumerate() {
            let (mix, constant) = match at {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, add) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(add);
        }
    }
    let mut digest = [0; 20];
    for (out, byte) in digest.iter_mut().zip(state.iter().flat_map(|word| word.to_be_bytes())) {
        *out = byte;
    }
    digest
}

fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in data.chunks(3) {
        let bits = three.iter().chain([0, 0].iter()).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            let sign = DIGITS.get(value as usize).filter(|_| digit <= three.len());
            text.push(char::from(sign.copied().unwrap_or(b'=')));
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn answer(headers: &[(&str, &str)]) -> Result<String, &'static str> {
        accept(|name| headers.iter().filter(move |(it, _)| *it == name).map(|(_, value)| value.as_bytes()))
    }

    #[test]
    fn a_handshake_is_answered_as_the_rfc_shows() {
        let headers = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for short in 0..headers.len() {
            assert!(answer(&headers[..short]).is_err());
        }
        assert_eq!(answer(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(hex(&sha1(b"")), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(
            hex(&sha1(&b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"[..])),
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1"
        );
        for length in [54, 55, 56, 57, 63, 64, 65, 119, 120] {
            assert_eq!(sha1(&vec![b'a'; length]).len(), 20);
        }
        assert_eq!(
            (base64(b"f"), base64(b"fo"), base64(b"foo"), base64(b"foobar")),
            ("Zg==".into(), "Zm8=".into(), "Zm9v".into(), "Zm9vYmFy".into())
        );
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = frame(Side::Client, Opcode::Text, &[payload]);
        frame[0] = first;
        let at = frame.len() - payload.len();
        let mask = [7, 77, 177, 200];
        for (byte, mask) in frame[at..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame[at - 4..at].copy_from_slice(&mask);
        frame
    }

    /// All messages, read in pieces of `piece` bytes, and how it ended.
    fn all(peer: Side, bytes: &[u8], piece: usize) -> (Vec<Message>, Option<u16>) {
        let (mut decoder, mut messages) = (Decoder::new(peer), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.received().extend_from_slice(piece);
            loop {
                match decoder.message() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(broken) => return (messages, Some(broken.close)),
                }
            }
        }
        (messages, None)
    }

    #[test]
    fn messages_come_whole_however_they_are_framed_and_read() {
        let long = vec![b'x'; 70_000];
        let bytes = [
            masked(0x81, b"hi"),
            masked(0x02, b"a"),
            masked(0x89, b"p"),
            masked(0x00, b"b"),
            masked(0x80, b"c"),
            masked(0x82, &[b'y'; 200]),
            masked(0x82, &long),
            masked(0x8a, b""),
            masked(0x88, b""),
        ]
        .concat();
        let want = vec![
            Message::Text(b"hi".to_vec()),
            Message::Ping(b"p".to_vec()),
            Message::Binary(b"abc".to_vec()),
            Message::Binary(vec![b'y'; 200]),
            Message::Binary(long),
            Message::Pong,
            Message::Close,
        ];
        for piece in [1, 3, 1000, bytes.len()] {
            assert_eq!(all(Side::Client, &bytes, piece), (want.clone(), None));
        }
        let served = [frame(Side::Server, Opcode::Binary, &[b"a", b"b"]), close(Side::Server, 1000, "done")].concat();
        assert_eq!(all(Side::Server, &served, 1), (vec![Message::Binary(b"ab".to_vec()), Message::Close], None));
    }

    #[test]
    fn what_breaks_the_rules_breaks_the_connection() {
        let unmasked = frame(Side::Server, Opcode::Text, &[b"x"]);
        let giant = [&[0x82, 0xff][..], &(1_u64 << 40).to_be_bytes()].concat();
        let gathered = [masked(0x02, &vec![0; LONGEST - 1]), masked(0x80, b"xx")].concat();
        for broken in [
            unmasked,
            masked(0xc1, b"x"),
            masked(0x83, b""),
            masked(0x80, b"x"),
            masked(0x09, b"x"),
            masked(0x89, &[0; 126]),
            [masked(0x01, b"a"), masked(0x81, b"b")].concat(),
        ] {
            assert_eq!(all(Side::Client, &broken, 4096), (vec![], Some(1002)));
        }
        for long in [giant, gathered] {
            assert_eq!(all(Side::Client, &long, 4096), (vec![], Some(1009)));
        }
        assert_eq!(all(Side::Server, &masked(0x81, b"x"), 4096), (vec![], Some(1002)));
    }

    proptest! {
        #[test]
        fn rubbish_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..100), piece in 1_usize..20) {
            let _ = all(Side::Client, &bytes, piece);
        }

        #[test]
        fn what_one_side_frames_the_other_reads(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            for side in [Side::Client, Side::Server] {
                let framed = frame(side, Opcode::Binary, &[&payload]);
                prop_assert_eq!(all(side, &framed, 7), (vec![Message::Binary(payload.clone())], None));
            }
        }
    }
}
