//! What a client says, message by message.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};
use wire::websocket::{Decoder, Message, Side};

/// Read at once.
const ROOM: usize = 4 << 10;

pub(super) struct Reader<R> {
    from: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, decoder: Decoder::new(Side::Client) }
    }

    /// The next message. Nothing is lost when this is dropped half-way.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        loop {
            let next = self.decoder.message().map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken))?;
            if let Some(message) = next {
                return Ok(message);
            }
            let room = self.decoder.received();
            room.reserve(ROOM);
            if self.from.read_buf(room).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
