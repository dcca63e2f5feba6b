//! The log of one attempt of a container, as files in CRI's format: `2026-01-01T00:00:00.123456789Z stdout F text`, one
//! piece of a line each, `P` for a piece that its line goes on after.
//!
//! `logs/CONTAINER/ATTEMPT.log` is written to; at 10 MiB it becomes `ATTEMPT.log.N`, and the oldest goes. Places in a log
//! are counted from the first byte that is kept when it is opened, over all its files. Whatever is committed ends with a
//! whole piece, and nobody reads beyond it: what a full disk tore is cut off again.
//!
//! Times go up within a log whatever is done to the machine's clock: who has read up to a time reads on from there. A
//! container is never held up by its log: what cannot be written is dropped, and the log says so as soon as it can. A
//! reader holds nothing up either: what was rotated away before it came is passed over, and it is told.

mod read;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use kit::Clock;
use tokio::sync::watch;

pub(crate) use read::LogOptions;

/// A piece of a line is not longer.
const LONGEST: usize = 16 << 10;
/// A piece and what stands before it.
const LONGEST_ENTRY: u64 = LONGEST as u64 + 64;
/// So much of what a container prints is made into pieces at once.
const WINDOW: usize = 16 << 10;
/// Read at once.
const BLOCK: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// How much of a log is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// Bytes of one file.
    pub size: u64,
    /// Files, the one that is written to included.
    pub files: usize,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { size: 10 << 20, files: 5 }
    }
}

/// The log of one attempt. Cheap to clone; all clones are one. It lives as long as somebody holds it, readers included:
/// whoever writes to it [closes](Self::close) it.
///
/// Writing does file I/O at once, mostly into the page cache.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    /// The file that is written to.
    path: PathBuf,
    clock: Clock,
    limits: Rotation,
    state: Mutex<State>,
    /// Anything was appended, or it was closed.
    changed: watch::Sender<()>,
}

struct State {
    /// That which is written to. Opened when something is to be written.
    file: Option<File>,
    /// What is kept, the oldest first, the one that is written to last. Never empty.
    segments: VecDeque<Segment>,
    /// The place after the last byte that is committed.
    end: u64,
    /// The latest time in it.
    last: Option<Timestamp>,
    /// The beginning of a line that has not ended: of stdout, of stderr.
    begun: [Vec<u8>; 2],
    lost: Option<Lost>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    number: u64,
    /// Its first byte's place.
    start: u64,
}

/// What could not be written.
struct Lost {
    lines: u64,
    why: String,
}

impl Log {
    /// Opens the log of this attempt for writing: appends to what is there. Makes the directory, and removes the logs of all
    /// attempts before the last one.
    ///
    /// # Errors
    /// When what is there cannot be read, or nothing can be made there.
    pub(crate) fn open(dir: &Path, attempt: u32, clock: Clock, limits: Rotation) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for (at, name) in files(dir)? {
            if at.attempt.saturating_add(1) < attempt {
                std::fs::remove_file(dir.join(name))?;
            }
        }
        let path = dir.join(format!("{attempt}.log"));
        let file = append(&path)?;
        mend(&file)?;
        let mut log = Self::found(dir, attempt, clock)?;
        if let Some(shared) = Arc::get_mut(&mut log.shared) {
            shared.limits = limits;
            let state = shared.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            state.file = Some(file);
            state.closed = false;
        }
        Ok(log)
    }

    /// The log of an attempt that has ended: for reading alone.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub(crate) fn ended(dir: &Path, attempt: u32, clock: Clock) -> io::Result<Self> {
        Self::found(dir, attempt, clock)
    }

    fn found(dir: &Path, attempt: u32, clock: Clock) -> io::Result<Self> {
        let mut numbers: Vec<Option<u64>> =
            files(dir)?.into_iter().filter(|(at, _)| at.attempt == attempt).map(|(at, _)| at.rotated).collect();
        if numbers.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        // The one that is written to has no number yet: it comes last.
        numbers.sort_unstable_by_key(|it| it.unwrap_or(u64::MAX));
        if numbers.last() != Some(&None) {
            numbers.push(None);
        }
        let path = dir.join(format!("{attempt}.log"));
        let (mut segments, mut end, mut last) = (VecDeque::new(), 0, None);
        for number in numbers {
            let next = segments.back().map_or(0, |it: &Segment| it.number + 1);
            let file = match File::open(rotated(&path, number)) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound && number.is_none() => None,
                Err(error) => return Err(error),
            };
            segments.push_back(Segment { number: number.unwrap_or(next), start: end });
            if let Some(file) = file {
                end += file.metadata()?.len();
                last = last_time(&file)?.max(last);
            }
        }
        let state = State { file: None, segments, end, last, begun: Default::default(), lost: None, closed: true };
        let shared = Shared {
            path,
            clock,
            limits: Rotation::default(),
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Bytes of all logs in a directory. What cannot be read is not counted.
    pub(crate) fn size(dir: &Path) -> u64 {
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        files.filter_map(|it| it.metadata().ok()).map(|it| it.len()).fold(0, u64::saturating_add)
    }

    /// Takes what a container printed, in whatever pieces it comes, and writes the lines that are whole.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        let shared = &self.shared;
        let mut state = shared.lock();
        if state.closed {
            return;
        }
        let before = state.end;
        let at = state.time(&shared.clock);
        for window in bytes.chunks(WINDOW) {
            state.take(shared, at, stream, window);
        }
        if state.end > before {
            drop(state);
            shared.changed.send_replace(());
        }
    }

    /// Its container has ended: writes what lines have begun, and readers that follow end. Idempotent.
    pub(crate) fn close(&self) {
        let shared = &self.shared;
        let mut state = shared.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        let at = state.time(&shared.clock);
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let begun = std::mem::take(state.begun(stream));
            if !begun.is_empty() {
                state.entry(shared, &mut out, at, stream, "P", &[&begun]);
            }
        }
        state.commit(shared, at, &mut out);
        state.file = None;
        drop(state);
        shared.changed.send_replace(());
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begun(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [stdout, stderr] = &mut self.begun;
        match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }

    /// Now, and after the latest time, which the machine's clock may have been set back behind.
    fn time(&mut self, clock: &Clock) -> Timestamp {
        let now = clock.now();
        let after = self.last.and_then(|last| last.checked_add(SignedDuration::from_nanos(1)).ok());
        let at = after.map_or(now, |after| now.max(after));
        self.last = Some(at);
        at
    }

    /// Cuts lines where they end, and where they are too long.
    fn take(&mut self, shared: &Shared, at: Timestamp, stream: Stream, mut rest: &[u8]) {
        let mut out = Vec::new();
        while !rest.is_empty() {
            let begun = self.begun(stream);
            let room = LONGEST - begun.len().min(LONGEST);
            let (window, after) = rest.split_at(rest.len().min(room));
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                let (line, begun) = (window.get(..end).unwrap_or_default(), std::mem::take(begun));
                self.entry(shared, &mut out, at, stream, "F", &[&begun, line]);
                rest = rest.get(end + 1..).unwrap_or_default();
            } else if let Some((next, following)) = after.split_first() {
                // It is full, and it matters what comes next.
                let begun = std::mem::take(begun);
                let (tag, left) = if *next == b'\n' { ("F", following) } else { ("P", after) };
                self.entry(shared, &mut out, at, stream, tag, &[&begun, window]);
                rest = left;
            } else {
                begun.extend_from_slice(window);
                rest = after;
            }
        }
        self.flush(shared, at, &mut out);
    }

    /// Appends a piece to `out`, in a new file when it has no room in this one.
    fn entry(&mut self, shared: &Shared, out: &mut Vec<u8>, at: Timestamp, stream: Stream, tag: &str, text: &[&[u8]]) {
        let head = format!("{} {} {tag} ", written(at), stream.name());
        let length = head.len() + text.iter().map(|it| it.len()).sum::<usize>() + 1;
        let used = self.end - self.start() + out.len() as u64;
        if used > 0 && used + length as u64 > shared.limits.size {
            self.flush(shared, at, out);
            if self.end > self.start()
                && let Err(error) = self.rotate(shared)
            {
                self.lose(1, &error);
                return;
            }
        }
        out.extend_from_slice(head.as_bytes());
        text.iter().for_each(|it| out.extend_from_slice(it));
        out.push(b'\n');
    }

    /// What was lost is told with what comes after it: nothing is written for its sake alone.
    fn flush(&mut self, shared: &Shared, at: Timestamp, out: &mut Vec<u8>) {
        if !out.is_empty() {
            self.commit(shared, at, out);
        }
    }

    /// Commits `out`, or drops it.
    fn commit(&mut self, shared: &Shared, at: Timestamp, out: &mut Vec<u8>) {
        let lines = out.iter().filter(|byte| **byte == b'\n').count() as u64;
        if let Some(Lost { lines, why }) = &self.lost {
            let told = format!("{} stderr F {lines} lines of this log could not be written: {why}\n", written(at));
            out.splice(0..0, told.into_bytes());
        }
        if out.is_empty() {
            return;
        }
        match self.append(shared, out) {
            Ok(()) => {
                self.end += out.len() as u64;
                self.lost = None;
            }
            Err(error) => self.lose(lines, &error),
        }
        out.clear();
    }

    fn append(&mut self, shared: &Shared, out: &[u8]) -> io::Result<()> {
        let size = self.end - self.start();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(append(&shared.path)?),
        };
        file.write_all(out).inspect_err(|_| {
            // What went in of it is no whole piece.
            let _ = file.set_len(size);
        })
    }

    fn lose(&mut self, lines: u64, error: &io::Error) {
        match &mut self.lost {
            Some(lost) => lost.lines += lines,
            None => {
                tracing::warn!(%error, "a container's log cannot be written");
                self.lost = Some(Lost { lines, why: error.to_string() });
            }
        }
    }

    /// Begins a new file.
    fn rotate(&mut self, shared: &Shared) -> io::Result<()> {
        let number = self.segments.back().map_or(0, |it| it.number);
        std::fs::rename(&shared.path, rotated(&shared.path, Some(number)))?;
        self.file = None;
        self.segments.push_back(Segment { number: number + 1, start: self.end });
        while self.segments.len() > shared.limits.files.max(1) {
            let Some(oldest) = self.segments.pop_front() else { break };
            if let Err(error) = std::fs::remove_file(rotated(&shared.path, Some(oldest.number))) {
                tracing::warn!(%error, "an old part of a container's log cannot be removed");
            }
        }
        Ok(())
    }

    /// Where the file begins that is written to.
    fn start(&self) -> u64 {
        self.segments.back().map_or(0, |it| it.start)
    }
}

/// As times stand in a log. They can be compared as text.
fn written(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// What a file of a log is called.
fn rotated(path: &Path, number: Option<u64>) -> PathBuf {
    match number {
        Some(number) => path.with_extension(format!("log.{number}")),
        None => path.to_owned(),
    }
}

/// What a name in a directory of logs says.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    attempt: u32,
    rotated: Option<u64>,
}

fn files(dir: &Path) -> io::Result<Vec<(Named, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let mut parts = name.splitn(3, '.');
        if let (Some(attempt), Some("log"), number) = (parts.next(), parts.next(), parts.next())
            && let Ok(attempt) = attempt.parse()
            && let Ok(rotated) = number.map(str::parse).transpose()
        {
            found.push((Named { attempt, rotated }, name));
        }
    }
    Ok(found)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Cuts off what a writer that was killed left of a piece.
fn mend(file: &File) -> io::Result<()> {
    let (length, end) = (file.metadata()?.len(), ending(file)?);
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    match end.len() - whole {
        0 => Ok(()),
        torn => file.set_len(length - torn as u64),
    }
}

/// The time of the last piece.
fn last_time(file: &File) -> io::Result<Option<Timestamp>> {
    let end = ending(file)?;
    let last = end.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let time = last.split(|byte| *byte == b' ').next().unwrap_or_default();
    Ok(std::str::from_utf8(time).ok().and_then(|it| it.parse().ok()))
}

/// The end of a file, which holds a whole piece if there is one, and a torn one after it.
fn ending(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let kept = length.min(2 * LONGEST_ENTRY);
    let mut end = vec![0; usize::try_from(kept).unwrap_or(0)];
    file.read_exact_at(&mut end, length - kept)?;
    Ok(end)
}
