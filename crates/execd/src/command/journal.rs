//! The newest of what all commands printed, line by line, for whoever asks what happened here.
//!
//! Kept in memory, which is taken as it fills. A reader holds nothing up: what was dropped before it came is passed over,
//! and it is told.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::daemon::Daemon;
use crate::os;
use crate::reply::{Body, Problem, Reply, Result};
use crate::scan;

use super::encode::{Stream, whole_characters};

/// How much is kept: text, and what each piece of it costs besides.
const KEPT: usize = 256 << 10;
const PIECE: usize = size_of::<Piece>();
/// A piece, and with it a line, is not longer. So long are the pieces of container runtimes, too.
const LONGEST: usize = 16 << 10;
/// A reader is given about so much at once.
const FRAME: usize = 64 << 10;
/// Followers at once.
const FOLLOWERS: usize = 32;

#[derive(Default)]
pub(crate) struct Journal {
    lines: RefCell<Lines>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
    followers: Cell<usize>,
    readers: Cell<u64>,
}

#[derive(Default)]
struct Lines {
    pieces: VecDeque<Piece>,
    cost: usize,
    /// How many bytes were ever logged.
    end: u64,
}

/// Whole lines of one stream that were read at one moment.
struct Piece {
    /// How many bytes were logged before it.
    from: u64,
    at: Timespec,
    stream: Stream,
    text: Box<[u8]>,
}

/// Cuts what one stream carries into lines.
pub(crate) struct Writer {
    stream: Stream,
    /// The line that has not ended yet.
    pending: Vec<u8>,
}

impl Journal {
    fn push(&self, stream: Stream, text: &[&[u8]]) {
        let text = text.concat().into_boxed_slice();
        {
            let mut lines = self.lines.borrow_mut();
            lines.cost += text.len() + PIECE;
            while lines.cost > KEPT
                && let Some(oldest) = lines.pieces.pop_front()
            {
                lines.cost -= oldest.text.len() + PIECE;
            }
            let from = lines.end;
            lines.end += text.len() as u64;
            let at = after(lines.pieces.back().map(|it| it.at));
            lines.pieces.push_back(Piece { from, at, stream, text });
        }
        for waker in std::mem::take(&mut *self.waiting.borrow_mut()).into_values() {
            waker.wake();
        }
    }
}

impl Lines {
    /// Where the last `count` lines begin.
    fn tail(&self, count: u64) -> u64 {
        let mut left = count;
        let mut at = self.end;
        for piece in self.pieces.iter().rev() {
            // Every line ends with LF: where one begins, another one has ended, or the piece begins.
            let ends = piece.text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
            for begins in ends.skip(1).chain([0]) {
                if left == 0 {
                    return at;
                }
                left -= 1;
                at = piece.from + begins as u64;
            }
        }
        at
    }

    fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.from)
    }
}

/// Now, and after the `last` time, which the machine's clock may have been set back behind: who has read up to a time reads
/// on from there.
fn after(last: Option<Timespec>) -> Timespec {
    let now = clock_gettime(ClockId::Realtime);
    match last {
        Some(last) if (last.tv_sec, last.tv_nsec) >= (now.tv_sec, now.tv_nsec) => match last.tv_nsec {
            999_999_999 => Timespec { tv_sec: last.tv_sec + 1, tv_nsec: 0 },
            nanos => Timespec { tv_nsec: nanos + 1, ..last },
        },
        _ => now,
    }
}

impl Piece {
    /// What each of its lines begins with for a reader.
    fn head(&self) -> String {
        let stream = match self.stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        format!("{} {stream} ", os::rfc3339_nanos(self.at))
    }
}

impl Writer {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    pub(crate) fn write(&mut self, journal: &Journal, mut data: &[u8]) {
        while !data.is_empty() {
            let (window, rest) = data.split_at(data.len().min(LONGEST - self.pending.len().min(LONGEST)));
            if let Some(end) = scan::last(window, b'\n') {
                let (whole, _) = window.split_at(end + 1);
                journal.push(self.stream, &[&self.pending, whole]);
                self.pending = Vec::new();
                data = data.get(end + 1..).unwrap_or_default();
                continue;
            }
            self.pending.extend_from_slice(window);
            data = rest;
            if self.pending.len() >= LONGEST {
                let begun = self.pending.split_off(whole_characters(&self.pending));
                journal.push(self.stream, &[&self.pending, b"\n"]);
                self.pending = begun;
            }
        }
    }

    /// The rest, when the stream has ended in the middle of a line.
    pub(crate) fn finish(&mut self, journal: &Journal) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            journal.push(self.stream, &[&rest, b"\n"]);
        }
    }
}

/// The journal as a body.
pub(crate) struct Reading {
    daemon: Rc<Daemon>,
    number: u64,
    at: u64,
    /// Where it ends; a follower's never does.
    end: Option<u64>,
}

/// `GET /insula/v1/log?follow=1&tail=N`.
pub(crate) fn read(daemon: Rc<Daemon>, follow: bool, tail: Option<u64>) -> Result {
    let journal = &daemon.journal;
    if follow {
        if journal.followers.get() >= FOLLOWERS {
            return Err(Problem::too_many(format!("{FOLLOWERS} readers follow the log: that is all")));
        }
        journal.followers.set(journal.followers.get() + 1);
    }
    journal.readers.set(journal.readers.get() + 1);
    let (at, end) = {
        let lines = journal.lines.borrow();
        (tail.map_or_else(|| lines.start(), |count| lines.tail(count)), (!follow).then_some(lines.end))
    };
    let number = journal.readers.get();
    let mut reply = Reply::new(Body::Journal(Box::new(Reading { number, at, end, daemon })));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(reply)
}

impl Reading {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let journal = &self.daemon.journal;
        let lines = journal.lines.borrow();
        let mut out = Vec::new();
        let start = lines.start();
        if self.at < start {
            let lost = start - self.at;
            let now = os::rfc3339_nanos(clock_gettime(ClockId::Realtime));
            let _ = writeln!(out, "{now} lost {lost} bytes of this log were dropped before they were read");
            self.at = start;
        }
        let end = self.end.unwrap_or(lines.end);
        let first = lines.pieces.partition_point(|piece| piece.from + piece.text.len() as u64 <= self.at);
        for piece in lines.pieces.iter().skip(first).take_while(|piece| piece.from < end) {
            let head = piece.head();
            let skip = usize::try_from(self.at - piece.from).unwrap_or(usize::MAX);
            for line in piece.text.get(skip..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
                out.extend_from_slice(head.as_bytes());
                out.extend_from_slice(line);
            }
            self.at = piece.from + piece.text.len() as u64;
            if out.len() >= FRAME {
                break;
            }
        }
        if !out.is_empty() {
            return Poll::Ready(Some(out.into()));
        }
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        journal.waiting.borrow_mut().insert(self.number, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let journal = &self.daemon.journal;
        journal.waiting.borrow_mut().remove(&self.number);
        if self.end.is_none() {
            journal.followers.set(journal.followers.get().saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(journal: &Journal, from: u64) -> Vec<u8> {
        let lines = journal.lines.borrow();
        let all = lines.pieces.iter().flat_map(|piece| piece.text.iter().copied().zip(piece.from..));
        all.filter(|(_, at)| *at >= from).map(|(byte, _)| byte).collect()
    }

    #[test]
    fn lines_are_kept_whole_and_the_last_ones_are_found() {
        let journal = Journal::default();
        let (mut out, mut err) = (Writer::new(Stream::Stdout), Writer::new(Stream::Stderr));
        out.write(&journal, b"one\ntw");
        err.write(&journal, b"oops\n\n");
        out.write(&journal, b"o\nthree");
        assert_eq!(text(&journal, 0), b"one\noops\n\ntwo\n");
        out.finish(&journal);
        let tail = |count| String::from_utf8(text(&journal, journal.lines.borrow().tail(count))).unwrap();
        assert_eq!((tail(0), tail(1), tail(2)), (String::new(), "three\n".into(), "two\nthree\n".into()));
        assert_eq!((tail(3), tail(4)), ("\ntwo\nthree\n".into(), "oops\n\ntwo\nthree\n".into()));
        assert_eq!((tail(5), tail(9)), ("one\noops\n\ntwo\nthree\n".into(), "one\noops\n\ntwo\nthree\n".into()));
    }

    #[test]
    fn a_line_without_end_comes_in_pieces_of_whole_characters() {
        let journal = Journal::default();
        let mut out = Writer::new(Stream::Stdout);
        let long = "x".to_owned() + &"ä".repeat(LONGEST);
        for piece in long.as_bytes().chunks(777) {
            out.write(&journal, piece);
            assert!(out.pending.len() < LONGEST);
        }
        out.finish(&journal);
        let kept = String::from_utf8(text(&journal, 0)).unwrap();
        assert!(kept.lines().all(|line| line.len() <= LONGEST));
        assert_eq!((kept.lines().count(), kept.replace('\n', "")), (3, long));
    }

    #[test]
    fn the_oldest_go_first_and_the_size_is_bounded_however_small_the_lines_are() {
        let journal = Journal::default();
        let mut out = Writer::new(Stream::Stdout);
        for at in 0..100_000 {
            out.write(&journal, format!("{at}\n").as_bytes());
        }
        let lines = journal.lines.borrow();
        assert!(lines.cost <= KEPT && lines.pieces.len() <= KEPT / PIECE, "{}", lines.pieces.len());
        let kept = text(&journal, 0);
        assert!(kept.ends_with(b"\n99998\n99999\n") && kept.len() as u64 == lines.end - lines.start());
    }

    #[test]
    fn times_go_up_whatever_is_done_to_the_clock() {
        let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        // Nobody's clock is there yet.
        let far = 1 << 40;
        for (last, next) in [(at(far, 5), at(far, 6)), (at(far, 999_999_999), at(far + 1, 0))] {
            assert_eq!(after(Some(last)), next);
        }
        let now = after(None);
        assert!(now.tv_sec < far && after(Some(at(1, 0))).tv_sec >= now.tv_sec - 3600);
    }
}
