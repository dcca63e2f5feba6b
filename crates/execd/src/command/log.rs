//! What a background command printed: its last bytes, in a file that nobody else can name.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags};

/// How much of a command's output is kept.
pub(crate) const KEPT: u64 = 8 << 20;
/// How much where no directory takes a file, so that memory must do.
const KEPT_IN_MEMORY: u64 = 256 << 10;

/// A ring of the last [`Log::kept`] bytes; offsets count from the command's first byte and never go back.
pub(crate) struct Log {
    file: OwnedFd,
    kept: u64,
    total: Cell<u64>,
    /// Nothing before this can be read: it could not be written (no space).
    floor: Cell<u64>,
}

impl Log {
    /// Opens an unlinked file: it goes with the descriptor, also when this process is killed.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let on_disk = ["/tmp", "/var/tmp", "/"]
            .iter()
            .find_map(|at| rustix::fs::openat(CWD, *at, flags, Mode::RUSR | Mode::WUSR).ok());
        let (file, kept) = match on_disk {
            Some(file) => (file, KEPT),
            None => (rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC)?, KEPT_IN_MEMORY),
        };
        Ok(Self { file, kept, total: Cell::new(0), floor: Cell::new(0) })
    }

    /// Never fails: what cannot be written counts as dropped.
    pub(crate) fn append(&self, data: &[u8]) {
        let mut at = self.total.get();
        let end = at + data.len() as u64;
        self.total.set(end);
        let skip = usize::try_from(data.len() as u64 - (data.len() as u64).min(self.kept)).unwrap_or(0);
        let mut rest = data.get(skip..).unwrap_or_default();
        at += skip as u64;
        while !rest.is_empty() {
            let place = at % self.kept;
            let room = usize::try_from(self.kept - place).unwrap_or(usize::MAX).min(rest.len());
            let (now, _) = rest.split_at(room);
            match rustix::io::pwrite(&self.file, now, place) {
                Ok(0) | Err(_) => {
                    self.floor.set(end);
                    return;
                }
                Ok(written) => {
                    at += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
            }
        }
    }

    /// The offset after the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.total.get()
    }

    /// The first offset that can still be read.
    pub(crate) fn start(&self) -> u64 {
        self.total.get().saturating_sub(self.kept).max(self.floor.get())
    }

    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// At most `most` bytes from offset `from` (which must not be before [`Log::start`]) up to `to`.
    pub(crate) fn read(&self, from: u64, to: u64, most: usize) -> io::Result<Vec<u8>> {
        let place = from % self.kept;
        let length = (to.min(self.end()).saturating_sub(from)).min(self.kept - place).min(most as u64);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let got = rustix::io::pread(&self.file, &mut bytes, place)?;
        bytes.truncate(got);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(log: &Log) -> Vec<u8> {
        let (mut at, mut bytes) = (log.start(), Vec::new());
        while at < log.end() {
            let piece = log.read(at, log.end(), 1000).unwrap();
            at += piece.len() as u64;
            bytes.extend(piece);
        }
        bytes
    }

    #[test]
    fn the_tail_is_kept_however_much_was_printed() {
        let log = Log { kept: 10_000, ..Log::open().unwrap() };
        let data: Vec<u8> = (0..54_321_u32).map(|i| (i % 251) as u8).collect();
        for piece in data.chunks(777) {
            log.append(piece);
        }
        assert_eq!((log.start(), log.end()), (44_321, 54_321));
        assert_eq!(all(&log), data[44_321..]);
        log.append(&data);
        assert_eq!((log.end(), all(&log).as_slice()), (2 * 54_321, &data[44_321..]));
    }

    #[test]
    fn what_the_disk_does_not_take_counts_as_dropped() {
        let full = rustix::fs::open("/dev/full", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let log = Log { file: full, ..Log::open().unwrap() };
        log.append(b"lost");
        assert_eq!((log.start(), log.end()), (4, 4));
    }
}
