//! The body of an answer that is HTML: read, with its links led through the proxy, and written again in the encoding that it
//! came in, piece by piece.

use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzEncoder, MultiGzDecoder};
use http_body::{Body, Frame};
use hyper::body::Incoming;

use super::html::Page;
use super::links::Links;

/// So much is unpacked at once: a bomb becomes some thousand times that.
const STEP: usize = 1 << 10;

type Gunzip = MultiGzDecoder<Vec<u8>>;
type Gzip = GzEncoder<Vec<u8>>;
type Inflate = DeflateDecoder<Vec<u8>>;
type Deflate = DeflateEncoder<Vec<u8>>;

/// How the page is packed.
enum Packed {
    Plain,
    Gzip(Box<(Gunzip, Gzip)>),
    Deflate(Box<(Inflate, Deflate)>),
}

pub(super) struct Led {
    body: Incoming,
    packed: Packed,
    page: Page,
    /// Of the body, what has come.
    come: Bytes,
    over: bool,
}

impl Led {
    /// Gives the body back where the encoding is none that upstream reads either.
    pub(super) fn new(body: Incoming, encoding: &str, links: Links) -> Result<Self, Incoming> {
        let packed = match encoding {
            "" => Packed::Plain,
            "gzip" => Packed::Gzip(Box::new((
                MultiGzDecoder::new(Vec::new()),
                GzEncoder::new(Vec::new(), Compression::default()),
            ))),
            "deflate" => Packed::Deflate(Box::new((
                DeflateDecoder::new(Vec::new()),
                DeflateEncoder::new(Vec::new(), Compression::best()),
            ))),
            _ => return Err(body),
        };
        Ok(Self { body, packed, page: Page::new(links), come: Bytes::new(), over: false })
    }

    /// What comes of the next piece; after the last one, what is left.
    fn step(&mut self, piece: &[u8]) -> io::Result<Vec<u8>> {
        let (over, whole) = (self.over, self.come.is_empty());
        let (page, mut out) = (&mut self.page, Vec::new());
        let mut lead = |plain: &[u8]| {
            let mut led = Vec::with_capacity(plain.len());
            page.take(plain, &mut led);
            if over {
                page.end(&mut led);
            }
            led
        };
        match &mut self.packed {
            Packed::Plain => out = lead(piece),
            Packed::Gzip(both) => repack(&mut both.0, &mut both.1, piece, (over, whole), lead, &mut out)?,
            Packed::Deflate(both) => repack(&mut both.0, &mut both.1, piece, (over, whole), lead, &mut out)?,
        }
        Ok(out)
    }
}

/// One side of an encoding, which writes into memory.
trait Coder: Write {
    fn end(&mut self) -> io::Result<()>;
    fn made(&mut self) -> &mut Vec<u8>;
}

macro_rules! coders {
    ($($coder:ty),*) => {
        $(impl Coder for $coder {
            fn end(&mut self) -> io::Result<()> {
                self.try_finish()
            }

            fn made(&mut self) -> &mut Vec<u8> {
                self.get_mut()
            }
        })*
    };
}

coders!(Gunzip, Gzip, Inflate, Deflate);

/// Unpacks a piece, and packs what is `lead` from it. `over`: it is the last one; `whole`: no more of it waits here.
fn repack(
    from: &mut impl Coder,
    to: &mut impl Coder,
    piece: &[u8],
    (over, whole): (bool, bool),
    lead: impl FnOnce(&[u8]) -> Vec<u8>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    from.write_all(piece)?;
    if over {
        from.end()?
    } else {
        from.flush()?
    }
    to.write_all(&lead(&std::mem::take(from.made())))?;
    match (over, whole) {
        (true, _) => to.end()?,
        // Who reads along sees what there is.
        (false, true) => to.flush()?,
        (false, false) => {}
    }
    out.append(to.made());
    Ok(())
}

impl Body for Led {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        loop {
            let out = if !this.come.is_empty() {
                let piece = this.come.split_to(STEP.min(this.come.len()));
                this.step(&piece)
            } else if this.over {
                return Poll::Ready(None);
            } else {
                match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        this.come = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => Err(io::Error::other(error)),
                    None => {
                        this.over = true;
                        this.step(&[])
                    }
                }
            };
            match out {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                Err(error) => {
                    this.over = true;
                    this.come = Bytes::new();
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}
