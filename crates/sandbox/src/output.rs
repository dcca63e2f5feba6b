//! A command's output, bounded: the tail in memory, the whole in a file of the workspace.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::files::Form;
use crate::link::Link;

/// Bytes of one command's output that are kept in a file.
const FULL: u64 = 64 << 20;
/// Bytes sent at once, and how many such may wait.
const CHUNK: usize = 64 << 10;
const WAITING: usize = 4;
/// How long the file may take to be closed once all is sent.
const CLOSE: Duration = Duration::from_secs(30);

/// The end of what was said, at least `keep` bytes of it.
pub(crate) struct Tail {
    keep: usize,
    bytes: Vec<u8>,
    pub total: u64,
}

impl Tail {
    pub(crate) fn new(keep: usize) -> Self {
        Self { keep, bytes: Vec::new(), total: 0 }
    }

    pub(crate) fn push(&mut self, text: &str) {
        // Before: whoever is told that it is over finds all of it here, once.
        if self.bytes.len() > self.keep.saturating_mul(2) {
            self.bytes.drain(..self.bytes.len() - self.keep);
        }
        self.bytes.extend_from_slice(text.as_bytes());
        self.total += text.len() as u64;
    }

    /// All that was said, while it is all there.
    pub(crate) fn all(&self) -> Option<&[u8]> {
        (self.bytes.len() as u64 == self.total).then_some(self.bytes.as_slice())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.total > self.keep as u64
    }

    /// The last `keep` bytes, from the beginning of a line where there is one.
    pub(crate) fn text(self) -> String {
        let from = self.bytes.len().saturating_sub(self.keep);
        let mut tail = self.bytes.get(from..).unwrap_or_default();
        if from > 0 {
            if let Some(at) = tail.iter().position(|byte| *byte == b'\n').filter(|at| at + 1 < tail.len()) {
                tail = tail.get(at + 1..).unwrap_or_default();
            }
            while let Some((_, rest)) = tail.split_first().filter(|(first, _)| **first & 0xc0 == 0x80) {
                tail = rest;
            }
        }
        String::from_utf8_lossy(tail).into_owned()
    }
}

/// A file in the sandbox that grows with a command's output, and appears when it is complete.
pub(crate) struct Spill {
    path: String,
    gathered: Vec<u8>,
    written: u64,
    /// Gone when the file takes no more.
    to: Option<mpsc::Sender<Bytes>>,
    done: oneshot::Receiver<Result<(), Error>>,
    closing: Bytes,
}

impl Spill {
    pub(crate) fn begin(link: &Arc<Link>, tasks: &kit::Tasks, id: &str, path: String, so_far: &[u8]) -> Self {
        let form = Form::new(&path);
        let (to, from) = mpsc::channel(WAITING);
        let (tell, done) = oneshot::channel();
        let opening = Bytes::from(form.opening);
        let (link, id, kind) = (link.clone(), id.to_owned(), form.kind);
        tasks.tenant("command output", async move {
            let data = stream::unfold((Some(opening), from), |(opening, mut from)| async move {
                let next = match opening {
                    Some(opening) => Some(opening),
                    None => from.recv().await,
                };
                next.map(|data| (Ok(Frame::data(data)), (None, from)))
            });
            let body = StreamBody::new(data).boxed_unsync();
            let _ = tell.send(link.execd(&id, Method::POST, "files/upload", &kind, body).await.map(drop));
        });
        Self {
            path,
            gathered: so_far.to_vec(),
            written: so_far.len() as u64,
            to: Some(to),
            done,
            closing: form.closing.into(),
        }
    }

    pub(crate) async fn push(&mut self, text: &str) {
        if self.written >= FULL {
            return;
        }
        self.gathered.extend_from_slice(text.as_bytes());
        self.written += text.len() as u64;
        if self.gathered.len() >= CHUNK {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        let gathered = Bytes::from(std::mem::take(&mut self.gathered));
        if let Some(to) = &self.to
            && to.send(gathered).await.is_err()
        {
            self.to = None;
        }
    }

    /// Closes the file: where it is and how much is in it, or why it is not. Dropped before, it leaves no file.
    pub(crate) async fn finish(mut self) -> Result<(String, u64), String> {
        self.flush().await;
        if let Some(to) = self.to.take() {
            let _ = to.send(self.closing.clone()).await;
        }
        match tokio::time::timeout(CLOSE, &mut self.done).await {
            Ok(Ok(Ok(()))) => Ok((self.path, self.written)),
            Ok(Ok(Err(error))) => Err(kit::chain(&error)),
            Ok(Err(_)) | Err(_) => Err("it was not closed in time".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_begins_with_a_line_and_ends_with_the_end() {
        let table: [(usize, &[&str], &str, bool); 6] = [
            (10, &["one\n", "two\n"], "one\ntwo\n", false),
            (10, &["one\n", "two\n", "three\n"], "three\n", true),
            (4, &["abcdefghij"], "ghij", true),
            (4, &["abcdefghi\n"], "ghi\n", true),
            (3, &["ééé"], "é", true),
            (0, &["x"], "", true),
        ];
        for (keep, pieces, expected, over) in table {
            let mut tail = Tail::new(keep);
            pieces.iter().for_each(|piece| tail.push(piece));
            assert_eq!((tail.is_over(), tail.total as usize), (over, pieces.concat().len()));
            assert_eq!(tail.text(), expected, "{keep} {pieces:?}");
        }
    }

    #[test]
    fn the_tail_takes_no_more_room_however_much_is_said() {
        let mut tail = Tail::new(1000);
        let mut whole_when_over = false;
        for i in 0..100_000 {
            let before = tail.is_over();
            tail.push(&format!("line {i}\n"));
            whole_when_over |= !before && tail.is_over() && tail.all().is_some_and(|all| all.starts_with(b"line 0\n"));
            assert!(tail.bytes.len() < 3000);
        }
        assert!(whole_when_over, "what is spilled begins with the beginning");
        let text = tail.text();
        assert!(text.starts_with("line ") && text.ends_with("line 99999\n") && text.len() <= 1000);
    }
}
