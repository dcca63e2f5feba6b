//! `GET /files/download`: a file or a part of it, read as the client takes it.

use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use wire::execd::code;

use crate::daemon::Daemon;
use crate::reply::{Body, Problem, Reply, Result, header, length};
use crate::scan;

use super::{bad, problem, readable};

/// Read at once.
const CHUNK: usize = 256 << 10;

/// A file that is about to be sent, read up to the first chunk.
pub(super) struct Start {
    file: File,
    first: Vec<u8>,
    /// What is to be sent; None when only the end will tell (`/proc`).
    length: Option<u64>,
    part: Option<(u64, u64)>,
    size: u64,
    unsatisfiable: bool,
}

/// Opens it, and reads the first chunk on the same way.
pub(super) fn start(path: &Path, range: Option<&[u8]>) -> Result<Start> {
    let mut file = readable(path)?;
    let io = |error: io::Error| problem(path, &error);
    let size = file.metadata().map_err(io)?.len();
    // A file of /proc says that it is empty whatever is in it: only reading tells, and a part of it has no meaning.
    let range = match range.filter(|_| size > 0) {
        None => Ok(None),
        Some(range) => part(range, size),
    };
    let Ok(range) = range else {
        return Ok(Start { file, first: Vec::new(), length: Some(0), part: None, size, unsatisfiable: true });
    };
    let (from, wanted) = range.unwrap_or((0, size));
    if from > 0 {
        file.seek(SeekFrom::Start(from)).map_err(io)?;
    }
    let most = if size == 0 { CHUNK as u64 } else { wanted.min(CHUNK as u64) };
    let first = read(&mut file, usize::try_from(most).unwrap_or(CHUNK)).map_err(io)?;
    let known = size > 0 || first.is_empty();
    let length = known.then_some(wanted);
    Ok(Start { file, first, length, part: range, size, unsatisfiable: false })
}

/// One range of a `Range` header: where it begins and how long it is. Of several the first is taken. `Err` when there is
/// none such in a file of this `size`, or when it cannot be read as one.
fn part(range: &[u8], size: u64) -> std::result::Result<Option<(u64, u64)>, ()> {
    let text = std::str::from_utf8(range).map_err(drop)?;
    let first = text.trim().strip_prefix("bytes=").ok_or(())?.split(',').map(str::trim).find(|part| !part.is_empty());
    let (from, to) = first.ok_or(())?.split_once('-').ok_or(())?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(drop);
    let (from, end) = match (from.trim().is_empty(), to.trim().is_empty()) {
        (true, true) => return Err(()),
        (true, false) => (size.saturating_sub(number(to)?), size),
        (false, true) => (number(from)?, size),
        (false, false) => {
            let (from, to) = (number(from)?, number(to)?);
            if to < from {
                return Err(());
            }
            (from, to.saturating_add(1).min(size))
        }
    };
    if from >= end { Err(()) } else { Ok(Some((from, end - from))) }
}

fn read(file: &mut File, most: usize) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(most);
    file.by_ref().take(most as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

pub(super) fn reply(daemon: Rc<Daemon>, start: Start, name: &OsStr) -> Reply {
    let Start { file, first, length: known, part, size, unsatisfiable } = start;
    if unsatisfiable {
        let why = format!("the file has {size} bytes: there is no such range");
        let mut reply = bad(Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, code::UNKNOWN, why));
        header(&mut reply, CONTENT_RANGE, &format!("bytes */{size}"));
        return reply;
    }
    let left = known.map(|known| known.saturating_sub(first.len() as u64));
    let content = Content { daemon, first: Some(first.into()), left, state: State::Idle(Some(file)) };
    let mut reply = Reply::new(Body::Content(Box::new(content)));
    if let Some(known) = known {
        length(&mut reply, known);
    }
    if let Some((from, length)) = part {
        *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
        header(&mut reply, CONTENT_RANGE, &format!("bytes {from}-{}/{size}", from + length - 1));
    }
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    header(&mut reply, CONTENT_DISPOSITION, &disposition(name));
    reply
}

/// `attachment` with the file's name, in the form of RFC 6266 where it is not plain ASCII.
fn disposition(name: &OsStr) -> String {
    let plain = |byte: &u8| (b' '..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\' | b'%');
    if name.as_bytes().iter().all(plain) {
        return format!("attachment; filename=\"{}\"", name.to_string_lossy());
    }
    let encoded = wire::query::encode(name.as_bytes());
    format!("attachment; filename=\"{encoded}\"; filename*=UTF-8''{encoded}")
}

/// Lines `offset` (from 1) and on, at most `limit` of them, as plain text.
pub(super) fn lines(daemon: Rc<Daemon>, file: File, offset: u64, limit: Option<u64>) -> Reply {
    let lines = Lines { file, skip: offset - 1, limit: limit.unwrap_or(u64::MAX) };
    let content = Content { daemon, first: None, left: None, state: State::Lines(Some(lines)) };
    let mut reply = Reply::new(Body::Content(Box::new(content)));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// A file's content as a body. A chunk is read when the one before it has been taken.
pub(crate) struct Content {
    daemon: Rc<Daemon>,
    first: Option<Bytes>,
    /// What is still to be sent; None: up to the end.
    left: Option<u64>,
    state: State,
}

type Reading<T> = Pin<Box<dyn Future<Output = Option<(T, io::Result<Vec<u8>>)>>>>;

enum State {
    Idle(Option<File>),
    Reading(Reading<File>),
    Lines(Option<Lines>),
    ReadingLines(Reading<Lines>),
    Done,
}

impl Content {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Idle(file) => {
                    let most = self.left.map_or(CHUNK, |left| usize::try_from(left).unwrap_or(CHUNK).min(CHUNK));
                    let Some(mut file) = file.take().filter(|_| most > 0) else {
                        self.state = State::Done;
                        continue;
                    };
                    let workers = self.daemon.workers.clone();
                    self.state = State::Reading(Box::pin(async move {
                        let read = workers.run(move || {
                            let chunk = read(&mut file, most);
                            (file, chunk)
                        });
                        read.await
                    }));
                }
                State::Reading(reading) => {
                    let (file, chunk) = match ready!(reading.as_mut().poll(cx)) {
                        Some((file, Ok(chunk))) => (file, chunk),
                        Some((_, Err(error))) => return self.fail(error),
                        None => return self.fail(io::Error::other("the read failed inside execd")),
                    };
                    if chunk.is_empty() {
                        if self.left.is_some_and(|left| left > 0) {
                            return self.fail(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
                        }
                        self.state = State::Done;
                        continue;
                    }
                    self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                    self.state = State::Idle(Some(file));
                    return Poll::Ready(Some(Ok(chunk.into())));
                }
                State::Lines(lines) => {
                    let Some(mut lines) = lines.take().filter(|lines| lines.limit > 0) else {
                        self.state = State::Done;
                        continue;
                    };
                    let workers = self.daemon.workers.clone();
                    self.state = State::ReadingLines(Box::pin(async move {
                        let read = workers.run(move || {
                            let chunk = lines.next();
                            (lines, chunk)
                        });
                        read.await
                    }));
                }
                State::ReadingLines(reading) => match ready!(reading.as_mut().poll(cx)) {
                    Some((_, Ok(chunk))) if chunk.is_empty() => self.state = State::Done,
                    Some((lines, Ok(chunk))) => {
                        self.state = State::Lines(Some(lines));
                        return Poll::Ready(Some(Ok(chunk.into())));
                    }
                    Some((_, Err(error))) => return self.fail(error),
                    None => return self.fail(io::Error::other("the read failed inside execd")),
                },
            }
        }
    }

    /// Cuts the body off: its length is promised already, or its end would pass for the file's.
    fn fail(&mut self, error: io::Error) -> Poll<Option<io::Result<Bytes>>> {
        self.state = State::Done;
        Poll::Ready(Some(Err(error)))
    }
}

struct Lines {
    file: File,
    /// Line ends still to be passed over.
    skip: u64,
    /// Line ends still to be sent.
    limit: u64,
}

impl Lines {
    /// The next lines or parts of lines; empty at the end.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut chunk = read(&mut self.file, CHUNK)?;
            if chunk.is_empty() {
                return Ok(chunk);
            }
            let mut from = 0;
            while self.skip > 0
                && let Some(at) = chunk.get(from..).and_then(|rest| scan::byte(rest, b'\n'))
            {
                from += at + 1;
                self.skip -= 1;
            }
            if self.skip > 0 {
                continue;
            }
            chunk.drain(..from);
            let mut to = 0;
            while self.limit > 0
                && let Some(at) = chunk.get(to..).and_then(|rest| scan::byte(rest, b'\n'))
            {
                to += at + 1;
                self.limit -= 1;
            }
            if self.limit == 0 {
                chunk.truncate(to);
            }
            if !chunk.is_empty() {
                return Ok(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_http_has_them() {
        let yes = [
            ("bytes=0-0", (0, 1)),
            ("bytes=2-", (2, 8)),
            ("bytes=-3", (7, 3)),
            ("bytes=-99", (0, 10)),
            ("bytes=5-99", (5, 5)),
            (" bytes= 1 - 2 , 4-5", (1, 2)),
        ];
        for (text, want) in yes {
            assert_eq!(part(text.as_bytes(), 10), Ok(Some(want)), "{text}");
        }
        for text in [
            "bytes=10-",
            "bytes=5-4",
            "bytes=-0",
            "bytes=-",
            "bytes=",
            "lines=1-2",
            "bytes=a-b",
            "bytes=1",
            "bytes=99999999999999999999-",
            "\u{0}",
        ] {
            assert_eq!(part(text.as_bytes(), 10), Err(()), "{text}");
        }
    }

    #[test]
    fn names_that_no_header_can_hold_are_encoded() {
        assert_eq!(disposition(OsStr::new("a b.txt")), "attachment; filename=\"a b.txt\"");
        assert_eq!(
            disposition(OsStr::from_bytes(b"\n\"\xff")),
            "attachment; filename=\"%0A%22%FF\"; filename*=UTF-8''%0A%22%FF"
        );
    }

    proptest! {
        #[test]
        fn a_range_is_within_the_file(text in "(bytes=)?[0-9 ,-]{0,12}", size in 1..1000_u64) {
            if let Ok(Some((from, length))) = part(text.as_bytes(), size) {
                prop_assert!(length > 0 && from + length <= size);
            }
        }

        #[test]
        fn lines_are_cut_where_they_end(content in "[ab\n]{0,60}", offset in 1..8_u64, limit in 1..8_u64) {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
            file.rewind().unwrap();
            let mut lines = Lines { file, skip: offset - 1, limit };
            let mut got = Vec::new();
            while lines.limit > 0 {
                let chunk = lines.next().unwrap();
                if chunk.is_empty() { break; }
                got.extend(chunk);
            }
            let want: String = content.split_inclusive('\n').skip(offset as usize - 1).take(limit as usize).collect();
            prop_assert_eq!(String::from_utf8(got).unwrap(), want);
        }
    }
}
