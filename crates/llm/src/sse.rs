use crate::Error;

/// Takes server-sent events apart as bytes arrive, and keeps no more than one event of `limit` bytes.
///
/// Only `data` matters to the dialects we speak; other fields and comments are read over. Line ends are LF, CRLF or CR,
/// as the standard says.
pub(crate) struct Events {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_cr: bool,
    limit: usize,
}

impl Events {
    pub(crate) fn new(limit: usize) -> Self {
        Self { line: Vec::new(), data: None, after_cr: false, limit }
    }

    /// Takes a piece of the stream and hands each event that it completes to `on`, until `on` fails.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut on: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) {
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let Some(end) = bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.keep(bytes)?;
                return Ok(());
            };
            let (head, rest) = bytes.split_at(end);
            self.keep(head)?;
            self.after_cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            self.end_line(&mut on)?;
        }
        Ok(())
    }

    /// The stream has ended: an event whose blank line is missing counts, since some servers leave it out at the end.
    pub(crate) fn end(&mut self, mut on: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        if !self.line.is_empty() {
            self.end_line(&mut on)?;
        }
        self.end_line(&mut on)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let held = self.line.len() + self.data.as_ref().map_or(0, Vec::len);
        if held + bytes.len() > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, on: &mut impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        if self.line.is_empty() {
            return self.data.take().map_or(Ok(()), |data| on(&data));
        }
        if let Some(value) = self.line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        self.line.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut seen) = (Events::new(100), Vec::new());
        let mut on = |event: &[u8]| {
            seen.push(String::from_utf8(event.to_vec()).unwrap());
            Ok(())
        };
        for piece in pieces {
            parser.push(piece, &mut on).unwrap();
        }
        parser.end(&mut on).unwrap();
        seen
    }

    #[test]
    fn however_a_stream_is_cut_its_events_are_the_same() {
        let stream = ": hello\r\nid: 7\ndata: one\r\n\r\ndata:two\ndata:  three é\r\rdata: [DONE]".as_bytes();
        let whole = events(&[stream]);
        assert_eq!(whole, ["one", "two\n three é", "[DONE]"]);
        for cut in 0..stream.len() {
            let (head, tail) = stream.split_at(cut);
            assert_eq!(events(&[head, tail]), whole, "cut at {cut}");
        }
        assert_eq!(events(&stream.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn an_event_without_end_is_too_large() {
        let mut parser = Events::new(100);
        parser.push(b"data: ", |_| Ok(())).unwrap();
        let error = parser.push(&[b'x'; 95], |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 100 }));
    }
}
