//! Reading a log, while it is written to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;

use super::{BLOCK, LONGEST_ENTRY, Log, Segment, Stream, rotated, written};

/// `PodLogOptions`, but for whose log it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Goes on until the container has ended.
    pub follow: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// The last so many lines, or pieces of one that is very long.
    pub tail: Option<u64>,
    /// Most bytes.
    pub limit: Option<u64>,
    /// Only what is not older.
    pub since: Option<Timestamp>,
    /// Only what was printed there.
    pub stream: Option<Stream>,
}

/// What a reader is to do next.
enum Step {
    Give(Vec<u8>),
    /// All was read, and more may come.
    Wait,
    End,
}

struct Reader {
    log: Log,
    /// The next byte's place.
    at: u64,
    /// Where it ends; who follows goes on.
    end: Option<u64>,
    file: Option<(u64, File)>,
    filter: Filter,
    /// What was read, without the pieces that are whole.
    block: Vec<u8>,
}

impl Log {
    /// What the log has, as it was asked for, and for who follows what will come.
    pub(crate) fn read(&self, options: LogOptions) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + use<> {
        let state = (Reading::Begin(self.clone(), options), self.shared.changed.subscribe());
        stream::try_unfold(state, |(mut reading, mut changed)| async {
            loop {
                changed.mark_unchanged();
                let (went, step) = blocking(move || reading.step()).await?;
                reading = went;
                match step? {
                    Step::Give(text) => return Ok(Some((Bytes::from(text), (reading, changed)))),
                    Step::End => return Ok(None),
                    // It cannot fail: who sends lives as long as the log, which the reader holds.
                    Step::Wait => drop(changed.changed().await),
                }
            }
        })
    }

    /// The end of what it printed: at most so many bytes of at most so many lines.
    pub(crate) fn tail(&self, bytes: usize, lines: usize) -> io::Result<String> {
        let options = LogOptions { tail: Some(lines as u64), ..LogOptions::default() };
        let (mut reader, mut text) = (Reader::open(self.clone(), options)?, Vec::new());
        while let Step::Give(more) = reader.step()? {
            text.extend(more);
            text.drain(..text.len().saturating_sub(bytes));
        }
        // A character that was cut is none.
        let whole = text.iter().take(4).position(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
        Ok(String::from_utf8_lossy(text.get(whole..).unwrap_or_default()).into_owned())
    }

    /// Where the last `count` pieces begin that are committed before `end`.
    fn last(&self, count: u64, end: u64) -> io::Result<u64> {
        let (mut left, mut at) = (count, end);
        if left == 0 {
            return Ok(end);
        }
        let mut file = None;
        loop {
            let Some((segment, upto)) = self.before(at, &mut file)? else { return Ok(at) };
            let from = segment.max(upto.saturating_sub(BLOCK as u64));
            let mut block = vec![0; usize::try_from(upto - from).unwrap_or(0)];
            if let Some((_, file)) = &file {
                file.read_exact_at(&mut block, from - segment)?;
            }
            for (place, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let after = from + place as u64 + 1;
                // The end of the last piece is where none begins.
                if after == end {
                    continue;
                }
                left -= 1;
                if left == 0 {
                    return Ok(after);
                }
            }
            at = from;
        }
    }

    /// The file that holds the byte before this place: where it begins, and the place. `None` when none is kept.
    fn before(&self, at: u64, file: &mut Option<(u64, File)>) -> io::Result<Option<(u64, u64)>> {
        let state = self.shared.lock();
        let holds = state.segments.iter().rev().find(|it| it.start < at).copied();
        let Some(segment) = holds else { return Ok(None) };
        if file.as_ref().is_none_or(|(number, _)| *number != segment.number) {
            let current = state.segments.back() == Some(&segment);
            let opened = File::open(rotated(&self.shared.path, (!current).then_some(segment.number)))?;
            *file = Some((segment.number, opened));
        }
        Ok(Some((segment.start, at)))
    }
}

/// File I/O, beside the tasks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Where to begin is looked for when the first is read.
enum Reading {
    Begin(Log, LogOptions),
    Goes(Box<Reader>),
}

impl Reading {
    fn step(self) -> (Self, io::Result<Step>) {
        let mut reader = match self {
            Self::Goes(reader) => reader,
            Self::Begin(log, options) => match Reader::open(log.clone(), options.clone()) {
                Ok(reader) => Box::new(reader),
                Err(error) => return (Self::Begin(log, options), Err(error)),
            },
        };
        let step = reader.step();
        (Self::Goes(reader), step)
    }
}

impl Reader {
    fn open(log: Log, options: LogOptions) -> io::Result<Self> {
        let (first, end) = {
            let state = log.shared.lock();
            (state.segments.front().map_or(0, |it| it.start), state.end)
        };
        let at = match options.tail {
            Some(count) => log.last(count, end)?,
            None => first,
        };
        let end = (!options.follow).then_some(end);
        let filter = Filter::new(options);
        Ok(Self { log, at, end, file: None, filter, block: Vec::new() })
    }

    fn step(&mut self) -> io::Result<Step> {
        loop {
            if self.filter.left == Some(0) {
                return Ok(Step::End);
            }
            let mut out = Vec::new();
            let (segment, upto) = {
                let shared = &self.log.shared;
                let state = shared.lock();
                let upto = self.end.unwrap_or(state.end);
                if self.at >= upto {
                    return Ok(if self.end.is_some() || state.closed { Step::End } else { Step::Wait });
                }
                let oldest = state.segments.front().map_or(0, |it| it.start);
                let holds = |it: &&Segment| it.start <= self.at.max(oldest);
                let Some(segment) = state.segments.iter().rev().find(holds).copied() else { return Ok(Step::End) };
                let next = state.segments.iter().find(|it| it.start > segment.start).map(|it| it.start);
                let open = match &self.file {
                    Some((start, file)) => Some((*start, start + file.metadata()?.len())),
                    None => None,
                };
                match open {
                    // A file that is open is read to its end although it has gone meanwhile.
                    Some((start, end)) if self.at < oldest && self.at < end => (start, end.min(upto)),
                    _ => {
                        if self.at < oldest {
                            self.filter.lost(oldest - self.at, &mut out);
                            self.at = oldest;
                            self.block.clear();
                            return Ok(Step::Give(out));
                        }
                        if self.file.as_ref().is_none_or(|(start, _)| *start != segment.start) {
                            let path = rotated(&shared.path, next.is_some().then_some(segment.number));
                            self.file = Some((segment.start, File::open(path)?));
                        }
                        (segment.start, next.unwrap_or(upto).min(upto))
                    }
                }
            };
            self.fill(segment, upto)?;
            let whole = self.block.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for piece in self.block.get(..whole).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
                self.filter.write(piece, &mut out);
            }
            self.block.drain(..whole);
            if self.block.len() as u64 > LONGEST_ENTRY {
                // Nobody of ours wrote that.
                self.block.clear();
            }
            if !out.is_empty() {
                return Ok(Step::Give(out));
            }
        }
    }

    /// Reads the next block of the file.
    fn fill(&mut self, start: u64, upto: u64) -> io::Result<()> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        let begun = self.block.len();
        let length = usize::try_from(upto.saturating_sub(self.at)).unwrap_or(BLOCK).min(BLOCK);
        self.block.resize(begun + length, 0);
        let read = file.read_at(self.block.get_mut(begun..).unwrap_or_default(), self.at - start)?;
        self.block.truncate(begun + read);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(())
    }
}

/// Makes of pieces what was asked for.
struct Filter {
    timestamps: bool,
    since: Option<String>,
    stream: Option<&'static str>,
    left: Option<u64>,
    /// The next piece begins a line.
    begins: bool,
}

impl Filter {
    fn new(options: LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            since: options.since.map(written),
            stream: options.stream.map(Stream::name),
            left: options.limit,
            begins: true,
        }
    }

    fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut parts = piece.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if self.since.as_ref().is_some_and(|since| time < since.as_bytes())
            || self.stream.is_some_and(|wanted| stream != wanted.as_bytes())
        {
            return;
        }
        let head: &[&[u8]] = if self.timestamps && self.begins { &[time, b" "] } else { &[] };
        self.begins = tag != b"P";
        let text = if self.begins { text } else { text.strip_suffix(b"\n").unwrap_or(text) };
        self.put(&[head, &[text]].concat(), out);
    }

    /// Says that it was too slow.
    fn lost(&mut self, bytes: u64, out: &mut Vec<u8>) {
        let ends: &[u8] = if self.begins { b"" } else { b"\n" };
        let told = format!("{bytes} bytes of this log were rotated away before they were read\n");
        self.begins = true;
        self.put(&[ends, told.as_bytes()], out);
    }

    fn put(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) {
        let before = out.len();
        parts.iter().for_each(|it| out.extend_from_slice(it));
        if let Some(left) = &mut self.left {
            let kept = (out.len() - before).min(usize::try_from(*left).unwrap_or(usize::MAX));
            out.truncate(before + kept);
            *left -= kept as u64;
        }
    }
}
