//! The bodies of answers: whole, a long list piece by piece, a stream of events, or somebody else's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;

use super::pretty::Indenter;
use crate::store::Entry;

/// An answer's body.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Items(Items),
    Stream(BoxStream<'static, Bytes>),
    /// What another server sends; where it breaks off, so does the answer.
    Passed(UnsyncBoxBody<Bytes, io::Error>),
}

/// A list that is written while it is sent: the objects stay shared with the store until then.
pub(crate) struct Items {
    head: Option<Bytes>,
    entries: std::vec::IntoIter<Arc<Entry>>,
    first: bool,
    /// What every object begins with and an item of a list does not (`"apiVersion":..,"kind":..,`), or nothing.
    prefix: String,
    tail: Option<Bytes>,
}

const PIECE: usize = 64 << 10;

impl Items {
    /// `head` ends before the first item, `tail` begins after the last.
    pub(crate) fn new(head: Bytes, entries: Vec<Arc<Entry>>, prefix: String, tail: Bytes) -> Self {
        Self { head: Some(head), entries: entries.into_iter(), first: true, prefix, tail: Some(tail) }
    }

    /// All of it at once.
    pub(crate) fn whole(self) -> Bytes {
        let mut all = BytesMut::new();
        self.for_each(|piece| all.put(piece));
        all.freeze()
    }

    /// About how long it will be.
    pub(crate) fn size(&self) -> usize {
        self.entries.as_slice().iter().map(|entry| entry.json.len() + 1).sum()
    }
}

/// Its text, in pieces.
impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::new();
        if let Some(head) = self.head.take() {
            piece.put(head);
        }
        for entry in self.entries.by_ref() {
            if !self.first {
                piece.put_u8(b',');
            }
            self.first = false;
            match entry.json.strip_prefix(self.prefix.as_bytes()) {
                Some(rest) if !self.prefix.is_empty() => {
                    piece.put_u8(b'{');
                    piece.put(rest);
                }
                _ => piece.put(&entry.json[..]),
            }
            if piece.len() >= PIECE {
                return Some(piece.freeze());
            }
        }
        if let Some(tail) = self.tail.take() {
            piece.put(tail);
        }
        if piece.is_empty() { None } else { Some(piece.freeze()) }
    }
}

impl Body {
    /// A document in lines. A stream stays as it is: its lines are its events.
    pub(crate) fn indented(self) -> Self {
        let mut indenter = Indenter::default();
        match self {
            Self::Whole(whole) => Self::Whole(whole.map(|it| indenter.indent(&it))),
            Self::Items(items) => {
                Self::Stream(futures::stream::iter(items).map(move |piece| indenter.indent(&piece)).boxed())
            }
            it @ (Self::Stream(_) | Self::Passed(_)) => it,
        }
    }

    /// Keeps something as long as a stream is read; lets go of it at once where the body is none.
    pub(crate) fn with<T: Send + 'static>(self, kept: T) -> Self {
        match self {
            Self::Stream(stream) => Self::Stream(
                stream
                    .inspect(move |_| {
                        let _ = &kept;
                    })
                    .boxed(),
            ),
            Self::Passed(body) => Self::Passed(
                body.map_frame(move |frame| {
                    let _ = &kept;
                    frame
                })
                .boxed_unsync(),
            ),
            other => other,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().filter(|it| !it.is_empty())),
            Self::Items(items) => Poll::Ready(items.next()),
            Self::Stream(stream) => Pin::new(stream).poll_next(cx),
            Self::Passed(body) => return Pin::new(body).poll_frame(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Passed(body) => body.is_end_stream(),
            Self::Items(_) | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64)),
            Self::Passed(body) => body.size_hint(),
            Self::Items(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}
