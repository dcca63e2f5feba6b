//! From a command's bytes to events, many in one buffer.
//!
//! Lines end at LF, CR or CR LF. An event's text is the line without its end; an empty line's text is `"\n"`. That is
//! OpenSandbox's rule, which its SDKs and everybody's programs rely on.

use std::io::Write;

use crate::scan;

/// A line longer than this is told in pieces: memory is bounded whatever a command prints.
const LONGEST: usize = 1 << 20;

/// Which stream a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Cuts one stream into lines and writes them as events.
pub(crate) struct Lines {
    head: &'static [u8],
    /// The line that has not ended yet.
    pending: Vec<u8>,
    after_cr: bool,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        let head: &[u8] = match stream {
            Stream::Stdout => b"{\"type\":\"stdout\",\"text\":\"",
            Stream::Stderr => b"{\"type\":\"stderr\",\"text\":\"",
        };
        Self { head, pending: Vec::new(), after_cr: false }
    }

    /// Appends the events of all lines that `data` completes to `out`.
    pub(crate) fn push(&mut self, mut data: &[u8], tail: &Tail, out: &mut Vec<u8>) {
        while let Some(at) = scan::line_end(data) {
            let (line, rest) = data.split_at(at);
            let (end, rest) = rest.split_first().unwrap_or((&b'\n', rest));
            data = rest;
            if !self.pending.is_empty() {
                let mut whole = std::mem::take(&mut self.pending);
                whole.extend_from_slice(line);
                self.event(&whole, tail, out);
                whole.clear();
                if whole.capacity() <= 4096 {
                    self.pending = whole;
                }
            } else if !line.is_empty() {
                self.event(line, tail, out);
            } else if *end == b'\n' && self.after_cr {
                // The CR before it has ended the line.
            } else {
                self.event(b"\n", tail, out);
            }
            self.after_cr = *end == b'\r';
        }
        if !data.is_empty() {
            self.after_cr = false;
            self.pending.extend_from_slice(data);
            while self.pending.len() >= LONGEST {
                let piece = whole_characters(&self.pending);
                let rest = self.pending.split_off(piece);
                let line = std::mem::replace(&mut self.pending, rest);
                self.event(&line, tail, out);
            }
        }
    }

    /// The rest without a line end, when the stream has ended.
    pub(crate) fn finish(&mut self, tail: &Tail, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.event(&rest, tail, out);
        }
    }

    fn event(&self, line: &[u8], tail: &Tail, out: &mut Vec<u8>) {
        out.reserve(self.head.len() + line.len() + tail.0.len());
        out.extend_from_slice(self.head);
        escape(line, out);
        out.extend_from_slice(&tail.0);
    }
}

/// What ends every event of one moment: its time.
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn at(ms: u64) -> Self {
        Self(format!("\",\"timestamp\":{ms}}}\n\n").into_bytes())
    }
}

/// Writes `text` as the inside of a JSON string; what is no UTF-8 becomes U+FFFD.
pub(crate) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        while let Some(at) = scan::unsafe_in_json(rest) {
            let (plain, special) = rest.split_at(at);
            out.extend_from_slice(plain);
            let Some((byte, after)) = special.split_first() else { break };
            rest = after;
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                byte => {
                    let _ = write!(out, "\\u{byte:04x}");
                }
            }
        }
        out.extend_from_slice(rest);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

/// How many of the bytes to tell so that no character is cut in two.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    let start_of_last =
        bytes.iter().rev().take(4).position(|byte| byte & 0xc0 != 0x80).map(|back| bytes.len() - 1 - back);
    match start_of_last.and_then(|at| bytes.get(at..).map(|last| (at, last))) {
        Some((at, last)) if at > 0 && std::str::from_utf8(last).is_err_and(|e| e.error_len().is_none()) => at,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut out) = (Lines::new(Stream::Stdout), Vec::new());
        for piece in pieces {
            lines.push(piece, &Tail::at(7), &mut out);
        }
        lines.finish(&Tail::at(7), &mut out);
        String::from_utf8(out)
            .unwrap()
            .split_terminator("\n\n")
            .map(|event| {
                let event: serde_json::Value = serde_json::from_str(event).unwrap();
                assert_eq!((event["type"].as_str(), event["timestamp"].as_u64()), (Some("stdout"), Some(7)));
                event["text"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_cut_as_opensandbox_cuts_them() {
        assert_eq!(texts(&[b"a\n\nb\n\n\nc"]), ["a", "\n", "b", "\n", "\n", "c"]);
        assert_eq!(texts(&[b"a\r\nb\rc\n\r\n", b"\r", b"\n"]), ["a", "b", "c", "\n", "\n"]);
        assert_eq!(texts(&[b"10%\r20%\r", b"done\n"]), ["10%", "20%", "done"]);
        assert_eq!(texts(&[b"\"q\" \\ \t\x01\n"]), ["\"q\" \\ \t\u{1}"]);
    }

    #[test]
    fn bytes_that_are_no_text_stay_readable_json() {
        assert_eq!(
            texts(&[b"a\xff\xfeb\n\xf0\x9f", b"\x98\x80\n\xe2\x82"]),
            ["a\u{fffd}\u{fffd}b", "\u{1f600}", "\u{fffd}"]
        );
    }

    #[test]
    fn a_line_without_end_comes_in_pieces_of_whole_characters() {
        let long = "é".repeat(LONGEST);
        let got = texts(&long.as_bytes().chunks(65_537).collect::<Vec<_>>());
        assert!(got.len() >= 2 && got.iter().all(|piece| piece.len() <= LONGEST + 65_537));
        assert_eq!(got.concat(), long);
    }

    proptest! {
        #[test]
        fn however_output_arrives_the_lines_are_the_same(
            data in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'"'), Just(b'a'), any::<u8>()], 0..400),
            cuts in prop::collection::vec(1..50_usize, 1..40),
        ) {
            let mut pieces = Vec::new();
            let mut rest = &data[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            prop_assert_eq!(texts(&pieces), texts(&[&data]));
        }
    }
}
