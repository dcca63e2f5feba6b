//! Entries of a tar as image builders write it: ustar, pax and GNU's long names, each with a bound.

use std::io::{self, ErrorKind, Read};

const BLOCK: usize = 512;
/// Of a long name and of the pax records of one entry, extended attributes included.
const MOST_RECORDS: u64 = 1 << 20;
/// Records (pax, long names) that may stand before one entry.
const MOST_HEADERS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// What is said of an entry before its data.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one after the other; between two, [`Read`] gives the data of the last one.
pub(crate) struct Reader<R> {
    from: R,
    /// Of the entry's data, and to the next block.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry; none at the end of the archive.
    pub(crate) fn next(&mut self) -> io::Result<Option<Head>> {
        let (mut records, mut name, mut link) = (Vec::new(), None, None);
        for _ in 0..=MOST_HEADERS {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            let kind = header.entry_type().as_byte();
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.entry(&header, &records, name, link).map(Some);
            }
            if size > MOST_RECORDS {
                return Err(bad("an entry has too long a name, or too many records"));
            }
            (self.left, self.padding) = (size, padding(size));
            let mut text = Vec::new();
            self.read_to_end(&mut text)?;
            match kind {
                b'x' => records = text,
                b'L' => name = Some(until_nul(text)),
                b'K' => link = Some(until_nul(text)),
                // Of all entries: nothing that matters in a layer is said so.
                _ => {}
            }
        }
        Err(bad("an entry has too many headers"))
    }

    /// The next block that is not empty; none at the end.
    fn header(&mut self) -> io::Result<Option<::tar::Header>> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.from).take(rest), &mut io::sink())? < rest {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut header = ::tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while let Some(free) = block.get_mut(filled..).filter(|it| !it.is_empty()) {
            match self.from.read(free) {
                // Some builders leave the end away.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block.iter().map(|it| u32::from(*it)).sum();
        let own: u32 = block.get(148..156).unwrap_or_default().iter().map(|it| u32::from(*it)).sum();
        if header.cksum()? != sum - own + 8 * u32::from(b' ') {
            return Err(bad("a header does not add up"));
        }
        // What is left empty is nothing: mode, user, group, size, time.
        for field in [100..108, 108..116, 116..124, 124..136, 136..148] {
            let field = header.as_mut_bytes().get_mut(field).unwrap_or_default();
            if field.iter().all(|it| matches!(it, 0 | b' '))
                && let Some(first) = field.first_mut()
            {
                *first = b'0';
            }
        }
        Ok(Some(header))
    }

    fn entry(
        &mut self,
        header: &::tar::Header,
        records: &[u8],
        name: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
    ) -> io::Result<Head> {
        let id = |value: u64| u32::try_from(value).ok().filter(|it| *it != u32::MAX);
        let id = |value: u64| id(value).ok_or_else(|| bad("a user or group is none"));
        let path = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let mut head = Head {
            kind: Kind::File,
            link: link.or_else(|| header.link_name_bytes().map(|it| it.into_owned())).unwrap_or_default(),
            mode: header.mode()? & 0o7777,
            uid: id(header.uid()?)?,
            gid: id(header.gid()?)?,
            mtime: (header.mtime().ok().and_then(|it| i64::try_from(it).ok()).unwrap_or(0), 0),
            xattrs: Vec::new(),
            path,
        };
        let mut size = header.entry_size()?;
        let mut rest = records;
        while !rest.is_empty() {
            let (key, value) = take_record(&mut rest).ok_or_else(|| bad("a record is none"))?;
            let number = || str::from_utf8(value).ok().and_then(|it| it.parse::<u64>().ok());
            let number = || number().ok_or_else(|| bad("a number is none"));
            match key {
                b"path" => head.path = value.to_vec(),
                b"linkpath" => head.link = value.to_vec(),
                b"size" => size = number()?,
                b"uid" => head.uid = id(number()?)?,
                b"gid" => head.gid = id(number()?)?,
                b"mtime" => head.mtime = time(value).ok_or_else(|| bad("a time is none"))?,
                _ if key.starts_with(b"GNU.sparse.") => return Err(bad("a file is sparse, which no layer may have")),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        head.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        head.kind = match header.entry_type().as_byte() {
            // Before POSIX, a directory was a file whose name ends so.
            b'0' | 0 if head.path.ends_with(b"/") => Kind::Directory,
            b'0' | b'7' | 0 => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(bad("a file is sparse, which no layer may have")),
            other => return Err(bad(format!("an entry has an unknown type ({:?})", char::from(other)))),
        };
        // Links and devices may say a size and have no data.
        let size = if head.kind == Kind::File { size } else { 0 };
        (self.left, self.padding) = (size, padding(size));
        Ok(head)
    }

    /// Bytes of the entry that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    pub(crate) fn inner(&self) -> &R {
        &self.from
    }

    pub(crate) fn into_inner(self) -> R {
        self.from
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = (&mut self.from).take(self.left).read(into)?;
        if read == 0 && self.left > 0 && !into.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// From the end of the data to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn until_nul(mut text: Vec<u8>) -> Vec<u8> {
    text.truncate(text.iter().position(|it| *it == 0).unwrap_or(text.len()));
    text
}

/// `LENGTH NAME=VALUE\n`, the length being that of all of it.
fn take_record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = rest.iter().position(|it| *it == b' ')?;
    let length: usize = str::from_utf8(rest.get(..space)?).ok()?.parse().ok()?;
    let body = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|it| *it == b'=')?;
    *rest = rest.get(length..)?;
    Some((body.get(..equals)?, body.get(equals + 1..)?))
}

/// `-12.5` as seconds and nanoseconds after them.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = str::from_utf8(text).ok()?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds, digits.parse().ok()?))
}

fn bad(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}
