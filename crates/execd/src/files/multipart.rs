//! multipart/form-data, taken apart as it arrives: no part is ever held whole.

use bytes::{Buf, Bytes, BytesMut};

use crate::scan;

/// The headers of one part.
const LONGEST_HEADERS: usize = 16 << 10;
/// What may come before the first boundary.
const LONGEST_PREAMBLE: usize = 64 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A part begins: the name of its field.
    Part(String),
    Data(Bytes),
    /// The part ends.
    End,
    /// All parts have been.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Preamble,
    /// After a boundary: CR LF begins a part, `--` ends all.
    Boundary,
    Headers,
    Body,
    Done,
}

pub(super) struct Multipart {
    /// `CR LF -- boundary`.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Multipart {
    /// For the value of a Content-Type header; `Err` says what it lacks.
    pub(super) fn new(content_type: &str) -> Result<Self, &'static str> {
        let mut parameters = content_type.split(';').map(str::trim);
        if !parameters.next().is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data")) {
            return Err("the body must be multipart/form-data");
        }
        let boundary = parameters
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"))
            .map(|(_, value)| value.trim().trim_matches('"'))
            .filter(|boundary| !boundary.is_empty() && boundary.len() <= 200)
            .ok_or("the content type names no boundary of 1 to 200 characters")?;
        // The first boundary has no line before it: one is put there.
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Preamble,
        })
    }

    pub(super) fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next piece, `None` when more must be fed first. Between two calls of [`Multipart::feed`] the buffer is
    /// emptied but for less than a boundary or a part's headers.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, &'static str> {
        loop {
            match self.state {
                State::Preamble => match self.find_delimiter() {
                    Ok(at) => {
                        self.buffer.advance(at + self.delimiter.len());
                        self.state = State::Boundary;
                    }
                    Err(_) if self.buffer.len() > LONGEST_PREAMBLE => {
                        return Err("the body does not begin with its boundary");
                    }
                    Err(_) => return Ok(None),
                },
                State::Boundary => {
                    // Blanks may follow a boundary on its line.
                    let blanks = self.buffer.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
                    match self.buffer.get(blanks..blanks + 2) {
                        Some(b"--") => self.state = State::Done,
                        Some(b"\r\n") => {
                            self.buffer.advance(blanks + 2);
                            self.state = State::Headers;
                        }
                        Some(_) => return Err("a boundary is followed by neither a part nor the end"),
                        None if blanks > LONGEST_HEADERS => return Err("a boundary's line is too long"),
                        None => return Ok(None),
                    }
                }
                State::Headers => {
                    // A part without headers begins with its empty line at once.
                    let end = if self.buffer.starts_with(b"\r\n") {
                        Some((0, 2))
                    } else {
                        self.buffer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| (at, 4))
                    };
                    let Some((at, skip)) = end else {
                        if self.buffer.len() > LONGEST_HEADERS {
                            return Err("a part's headers are too long");
                        }
                        return Ok(None);
                    };
                    if at > LONGEST_HEADERS {
                        return Err("a part's headers are too long");
                    }
                    let headers = self.buffer.split_to(at);
                    self.buffer.advance(skip);
                    // The body's own first line may be the delimiter: the line before it was just taken.
                    let name = name(&headers).ok_or("a part has no name")?;
                    self.state = State::Body;
                    if self.starts_with_bare_delimiter() {
                        let mut with_line = BytesMut::from(&b"\r\n"[..]);
                        with_line.extend_from_slice(&self.buffer);
                        self.buffer = with_line;
                    }
                    return Ok(Some(Piece::Part(name)));
                }
                State::Body => match self.find_delimiter() {
                    Ok(0) => {
                        self.buffer.advance(self.delimiter.len());
                        self.state = State::Boundary;
                        return Ok(Some(Piece::End));
                    }
                    Ok(at) => return Ok(Some(Piece::Data(self.buffer.split_to(at).freeze()))),
                    Err(0) => return Ok(None),
                    Err(sure) => return Ok(Some(Piece::Data(self.buffer.split_to(sure).freeze()))),
                },
                State::Done => {
                    self.buffer.clear();
                    return Ok(Some(Piece::Done));
                }
            }
        }
    }

    /// Where the delimiter begins, or how much is surely before it.
    fn find_delimiter(&self) -> Result<usize, usize> {
        let mut from = 0;
        while let Some(at) = self.buffer.get(from..).and_then(|rest| scan::byte(rest, b'\r')) {
            from += at;
            let rest = self.buffer.get(from..).unwrap_or_default();
            if rest.starts_with(&self.delimiter) {
                return Ok(from);
            }
            if self.delimiter.starts_with(rest) {
                return Err(from);
            }
            from += 1;
        }
        Err(self.buffer.len())
    }

    /// An empty body may leave its line end out, because the headers' has just been.
    fn starts_with_bare_delimiter(&self) -> bool {
        self.delimiter.get(2..).is_some_and(|bare| self.buffer.starts_with(bare))
    }
}

/// The field's name out of a part's headers.
fn name(headers: &[u8]) -> Option<String> {
    let headers = String::from_utf8_lossy(headers);
    let disposition = headers.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    // A file's name may hold anything, `; name=` included: what is quoted is passed over.
    let mut rest = disposition;
    while let Some((_, after)) = rest.split_once(';') {
        let (key, value) = after.split_once('=')?;
        let (value, after) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find(';').unwrap_or(value.len());
                let (value, after) = value.split_at(end);
                (value.trim().to_owned(), after)
            }
        };
        if key.trim().eq_ignore_ascii_case("name") {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// What is before the closing quote, with `\"` and `\\` undone, and what is after it.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            char => value.push(char),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All parts as (name, content), fed in the given cuts.
    fn parts(body: &[u8], cuts: &[usize]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let mut multipart = Multipart::new("multipart/form-data; boundary=XX")?;
        let (mut parts, mut rest, mut cuts) = (Vec::new(), body, cuts.iter().cycle());
        loop {
            match multipart.next()? {
                Some(Piece::Part(name)) => parts.push((name, Vec::new())),
                Some(Piece::Data(data)) => parts.last_mut().unwrap().1.extend_from_slice(&data),
                Some(Piece::End) => {}
                Some(Piece::Done) => return Ok(parts),
                None if rest.is_empty() => return Err("cut off".to_owned()),
                None => {
                    let (piece, after) = rest.split_at((*cuts.next().unwrap()).clamp(1, rest.len()));
                    multipart.feed(piece);
                    assert!(multipart.buffer.len() <= LONGEST_PREAMBLE + piece.len() + 8);
                    rest = after;
                }
            }
        }
    }

    #[test]
    fn parts_are_taken_as_the_sdk_sends_them() {
        let body = b"--XX\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"metadata\"\r\nContent-Type: application/json\r\n\r\n{\"path\":\"/a\"}\r\n\
                     --XX\r\nContent-Disposition: form-data; filename=\"a; name=\\\"no\\\"\"; name=file\r\n\r\nline\r\n--X\r\nend\r\n--XX--\r\nepilogue";
        let want = vec![
            ("metadata".to_owned(), b"{\"path\":\"/a\"}".to_vec()),
            ("file".to_owned(), b"line\r\n--X\r\nend".to_vec()),
        ];
        for cut in [1, 2, 3, 7, 1000] {
            assert_eq!(parts(body, &[cut]).unwrap(), want, "in pieces of {cut}");
        }
        assert_eq!(
            parts(b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--XX--", &[5]).unwrap(),
            [("a".to_owned(), vec![])]
        );
        assert_eq!(
            parts(b"--XX\r\nContent-Disposition: form-data; name=a\r\n\r\n--XX--", &[500]).unwrap(),
            [("a".to_owned(), vec![])]
        );
        assert_eq!(parts(b"--XX--", &[9]).unwrap(), []);
    }

    #[test]
    fn what_is_no_multipart_is_refused_and_never_gathered() {
        for kind in [
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"\"",
        ] {
            assert!(Multipart::new(kind).is_err(), "{kind}");
        }
        assert!(Multipart::new("Multipart/Form-Data; charset=x; Boundary=\"a b\"").is_ok());
        let endless = |start: &[u8]| [start, &vec![b'x'; 1 << 20]].concat();
        for body in [
            &endless(b""),
            &endless(b"--XX\r\n"),
            &endless(b"--XX"),
            &b"--XX\r\nX: y\r\n\r\nz\r\n--XX--".to_vec(),
            &b"--XX\r\n".to_vec(),
        ] {
            assert!(parts(body, &[4096]).is_err());
        }
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_parts_comes_out_however_it_is_cut(
            contents in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), any::<u8>()], 0..80), 0..5),
            cuts in prop::collection::vec(1..30_usize, 1..20),
        ) {
            prop_assume!(contents.iter().all(|content| !content.windows(4).any(|four| four == b"--XX")));
            let mut body = Vec::new();
            for (at, content) in contents.iter().enumerate() {
                body.extend(format!("--XX\r\nContent-Disposition: form-data; name=\"{at}\"\r\n\r\n").into_bytes());
                body.extend(content);
                body.extend(b"\r\n");
            }
            body.extend(b"--XX--\r\n");
            let want: Vec<_> = contents.into_iter().enumerate().map(|(at, content)| (at.to_string(), content)).collect();
            prop_assert_eq!(parts(&body, &cuts), Ok(want));
        }

        #[test]
        fn rubbish_ends_with_an_error_or_parts(body in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), Just(b':'), any::<u8>()], 0..300), cuts in prop::collection::vec(1..30_usize, 1..5)) {
            let _ = parts(&[b"--XX\r\n", &body[..]].concat(), &cuts);
        }
    }
}
