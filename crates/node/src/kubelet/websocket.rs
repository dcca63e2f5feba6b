//! A client that speaks WebSocket.
//!
//! A message's first byte is the channel. In `v5` channel 255 says that the channel in its second byte is
//! closed. As the kubelet, we pass over what says nothing to us, and say at once that we are there by an empty message.

use tokio::io::{AsyncRead, AsyncReadExt};
use wire::execd::channel;
use wire::websocket::{Broken, Decoder, Message, Opcode, Side, frame};

use super::channels::{ERROR, RESIZE, Said};
use super::exec::Asked;

const CLOSE: u8 = 255;
/// Read at once.
const ROOM: usize = 16 << 10;

pub(super) struct Client<R> {
    messages: Messages<R>,
    /// Whether it can close its input.
    v5: bool,
}

impl<R: AsyncRead + Unpin> Client<R> {
    pub(super) fn new(from: R, v5: bool) -> Self {
        Self { messages: Messages::new(from, Side::Client), v5 }
    }

    /// What it says next; `None` when it has gone.
    pub(super) async fn next(&mut self) -> Result<Option<Said>, Broken> {
        let Some(message) = self.messages.next().await? else { return Ok(None) };
        let mut data = match message {
            Message::Close => return Err(Broken { close: 1000, why: "" }),
            Message::Ping(data) => return Ok(Some(Said::Echo(frame(Side::Server, Opcode::Pong, &[&data])))),
            Message::Pong => return Ok(Some(Said::Nothing)),
            // Upstream tells them not apart, and clients count on it: Python's sends what is text as text.
            Message::Binary(data) | Message::Text(data) => data,
        };
        Ok(Some(match data.as_slice() {
            [channel::STDIN, ..] => Said::Input(data.split_off(1)),
            [RESIZE, ..] => Said::Size(data.split_off(1)),
            [CLOSE, channel::STDIN] if self.v5 => Said::InputEnds,
            _ => Said::Nothing,
        }))
    }
}

/// That we are there, on the first channel that the client has.
pub(super) fn greeting(asked: &Asked) -> Vec<u8> {
    let first = match asked {
        Asked { stdout: true, .. } => channel::STDOUT,
        Asked { stderr: true, .. } => channel::STDERR,
        _ => ERROR,
    };
    output(first, b"")
}

pub(super) fn output(channel: u8, data: &[u8]) -> Vec<u8> {
    frame(Side::Server, Opcode::Binary, &[&[channel], data])
}

/// What a peer says, message by message.
pub(super) struct Messages<R> {
    from: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(super) fn new(from: R, peer: Side) -> Self {
        Self { from, decoder: Decoder::new(peer) }
    }

    /// The next one; `None` when the peer has gone.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, Broken> {
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
