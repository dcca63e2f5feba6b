//! What a terminal showed last.

use std::collections::VecDeque;

/// How much is kept for a client that comes back.
const KEPT: usize = 256 << 10;

/// The last bytes, by their offset since the first.
#[derive(Default)]
pub(super) struct Past {
    last: VecDeque<u8>,
    end: u64,
}

impl Past {
    pub(super) fn push(&mut self, data: &[u8]) {
        self.end += data.len() as u64;
        let data = data.get(data.len().saturating_sub(KEPT)..).unwrap_or_default();
        let over = (self.last.len() + data.len()).saturating_sub(KEPT);
        self.last.drain(..over);
        self.last.extend(data);
    }

    /// The offset after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// What was written from `offset` on, as far as it is kept, and the offset where that begins.
    pub(super) fn since(&self, offset: u64) -> (u64, Vec<u8>) {
        let first = self.end - self.last.len() as u64;
        let from = offset.clamp(first, self.end);
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        (from, self.last.iter().skip(skip).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_found_by_their_offset() {
        let mut past = Past::default();
        assert_eq!(past.since(7), (0, vec![]));
        past.push(b"hello ");
        past.push(b"world");
        assert_eq!(past.since(0), (0, b"hello world".to_vec()));
        assert_eq!(past.since(6), (6, b"world".to_vec()));
        assert_eq!(past.since(99), (11, vec![]));
        past.push(&vec![b'x'; KEPT - 3]);
        assert_eq!(
            (past.since(0).0, past.since(0).1.len(), past.since(8).1[..4].to_vec()),
            (8, KEPT, b"rldx".to_vec())
        );
        past.push(&vec![b'y'; 3 * KEPT]);
        assert_eq!((past.end(), past.since(0).1), (11 + (4 * KEPT) as u64 - 3, vec![b'y'; KEPT]));
    }
}
