//! WebSocket (RFC 6455), the server's side: the handshake, frames in, frames out.

use std::io;

use hyper::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest message that is taken from a client.
const LONGEST: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close,
}

/// What kind of frame goes out.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// The value of Sec-WebSocket-Accept; `Err` says why these headers are no handshake.
pub(super) fn accept(headers: &HeaderMap) -> Result<String, &'static str> {
    let holds = |name: &HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    if !holds(&UPGRADE, "websocket") || !holds(&CONNECTION, "upgrade") {
        return Err("this is a WebSocket: ask with Upgrade: websocket");
    }
    if headers.get("sec-websocket-version").is_none_or(|version| version != "13") {
        return Err("the version of the WebSocket protocol must be 13");
    }
    let key = headers.get("sec-websocket-key").ok_or("there is no Sec-WebSocket-Key")?;
    Ok(base64(&sha1(&[key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat())))
}

/// One frame, whole and unmasked, as a server sends it.
pub(super) fn frame(opcode: Opcode, payload: &[&[u8]]) -> Vec<u8> {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(length + 10);
    frame.push(0x80 | opcode as u8);
    match u16::try_from(length) {
        Ok(short) if short < 126 => frame.push(short.to_le_bytes()[0]),
        Ok(middle) => {
            frame.push(126);
            frame.extend(middle.to_be_bytes());
        }
        Err(_) => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(payload.concat());
    frame
}

/// A close frame with its code and reason.
pub(super) fn close(code: u16, reason: &str) -> Vec<u8> {
    frame(Opcode::Close, &[&code.to_be_bytes(), reason.as_bytes()])
}

/// Reads messages, putting their fragments together.
pub(super) struct Reader<R> {
    from: R,
    /// A message that has begun: whether it is text, and its parts so far.
    begun: Option<(bool, Vec<u8>)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, begun: None }
    }

    /// The next message. Not to be dropped half-way: what was read would be lost.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        loop {
            let mut head = [0; 2];
            self.from.read_exact(&mut head).await?;
            let [first, second] = head;
            let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
            if first & 0x70 != 0 || second & 0x80 == 0 {
                return Err(broken("a reserved bit is set, or a frame is not masked"));
            }
            let length = match second & 0x7f {
                126 => usize::from(self.from.read_u16().await?),
                127 => usize::try_from(self.from.read_u64().await?).map_err(|_| broken("a frame is too long"))?,
                short => usize::from(short),
            };
            let before = self.begun.as_ref().map_or(0, |(_, parts)| parts.len());
            if length > LONGEST - before.min(LONGEST) || (opcode >= 8 && (length > 125 || !last)) {
                return Err(broken("a frame is too long"));
            }
            let mut mask = [0; 4];
            self.from.read_exact(&mut mask).await?;
            let mut payload = vec![0; length];
            self.from.read_exact(&mut payload).await?;
            for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
                *byte ^= mask;
            }
            match (opcode, self.begun.take()) {
                (0, Some((text, mut parts))) => {
                    parts.extend(payload);
                    self.begun = Some((text, parts));
                }
                (1 | 2, None) => self.begun = Some((opcode == 1, payload)),
                // Control frames may come between the fragments of a message.
                (8, _) => return Ok(Message::Close),
                (9, begun) => {
                    self.begun = begun;
                    return Ok(Message::Ping(payload));
                }
                (10, begun) => {
                    self.begun = begun;
                    return Ok(Message::Pong);
                }
                _ => return Err(broken("a frame is of an unknown kind, or out of order")),
            }
            if last && let Some((text, whole)) = self.begun.take() {
                return Ok(if text { Message::Text(whole) } else { Message::Binary(whole) });
            }
        }
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_handshake_is_answered_as_the_rfc_shows() {
        let mut headers = HeaderMap::new();
        assert!(accept(&headers).is_err());
        headers.insert(UPGRADE, "WebSocket".parse().unwrap());
        headers.insert(CONNECTION, "keep-alive, Upgrade".parse().unwrap());
        assert!(accept(&headers).is_err());
        headers.insert("sec-websocket-version", "13".parse().unwrap());
        headers.insert("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        assert_eq!(accept(&headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
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
        let mut frame = frame(Opcode::Text, &[payload]);
        frame[0] = first;
        let head = frame.len() - payload.len();
        frame[1] |= 0x80;
        let mask = [7, 77, 177, 200];
        for (byte, mask) in frame[head..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        frame.splice(head..head, mask);
        frame
    }

    async fn all(bytes: Vec<u8>) -> (Vec<Message>, io::ErrorKind) {
        let (mut reader, mut messages) = (Reader::new(&bytes[..]), Vec::new());
        loop {
            match reader.next().await {
                Ok(message) => messages.push(message),
                Err(error) => return (messages, error.kind()),
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn messages_come_whole_however_they_are_framed() {
        let long = vec![b'x'; 70_000];
        let bytes = [
            masked(0x81, b"hi"),
            masked(0x02, b"a"),
            masked(0x89, b"p"),
            masked(0x00, b"b"),
            masked(0x80, b"c"),
            masked(0x82, &long),
            masked(0x8a, b""),
            masked(0x88, b""),
        ]
        .concat();
        let want = vec![
            Message::Text(b"hi".to_vec()),
            Message::Ping(b"p".to_vec()),
            Message::Binary(b"abc".to_vec()),
            Message::Binary(long),
            Message::Pong,
            Message::Close,
        ];
        assert_eq!(all(bytes).await, (want, io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_breaks_the_rules_breaks_the_connection() {
        let unmasked = frame(Opcode::Text, &[b"x"]);
        let giant = [&[0x82, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
        let gathered = [masked(0x02, &vec![0; LONGEST - 1]), masked(0x80, b"xx")].concat();
        for broken in [
            unmasked,
            giant,
            gathered,
            masked(0xc1, b"x"),
            masked(0x83, b""),
            masked(0x80, b"x"),
            masked(0x09, b"x"),
            masked(0x89, &[0; 126]),
            [masked(0x01, b"a"), masked(0x81, b"b")].concat(),
        ] {
            assert_eq!(all(broken).await, (vec![], io::ErrorKind::InvalidData));
        }
    }

    proptest! {
        #[test]
        fn rubbish_ends_with_an_error(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = runtime.block_on(all(bytes));
        }
    }
}
