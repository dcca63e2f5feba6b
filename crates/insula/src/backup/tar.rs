//! The archive: POSIX tar as `tar` reads it (pax records, holes as GNU's format 1.0), of what a backup has and nothing
//! else. The reader takes what the writer writes and refuses the rest: no device, no hard link, no entry without a bound.

use std::io::{self, ErrorKind, Read, Write};

const BLOCK: usize = 512;
/// Of all pax records of one entry.
const MOST_RECORDS: u64 = 64 << 10;
/// Stretches of data in one file.
pub(super) const MOST_EXTENTS: usize = 1 << 16;
/// GNU tar's name for an extended attribute, before the attribute's own.
const XATTR: &str = "SCHILY.xattr.";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link(Vec<u8>),
}

/// What is said of an entry before its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: u64,
    /// Bytes of a file, holes included.
    pub(super) size: u64,
    /// Where a file has data, as offsets and lengths in order; the data follows without its holes.
    pub(super) extents: Vec<(u64, u64)>,
    /// Has the extended attribute of a workspace that is a file system in a file.
    pub(super) marked: bool,
}

impl Head {
    /// The one attribute that is kept.
    const XATTR: &str = match node::WORKSPACE_MARK.to_str() {
        Ok(name) => name,
        Err(_) => "",
    };

    pub(super) fn new(path: impl Into<Vec<u8>>, kind: Kind, size: u64) -> Self {
        let extents = if size == 0 { Vec::new() } else { vec![(0, size)] };
        Self { path: path.into(), kind, mode: 0o600, uid: 0, gid: 0, mtime: 0, size, extents, marked: false }
    }

    /// Bytes of data.
    pub(super) fn stored(&self) -> u64 {
        self.extents.iter().map(|(_, length)| length).sum()
    }

    fn has_holes(&self) -> bool {
        self.stored() != self.size
    }
}

pub(super) struct Writer<W>(W);

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Self(to)
    }

    /// `data` has the entry's stretches of data one after the other.
    pub(super) fn append(&mut self, head: &Head, data: &mut dyn Read) -> io::Result<()> {
        let map = if head.has_holes() { map(&head.extents, head.size) } else { Vec::new() };
        let size = head.stored() + map.len() as u64;
        let mut records = Vec::new();
        let (kind, link): (u8, &[u8]) = match &head.kind {
            Kind::Directory => (b'5', b""),
            Kind::File => (b'0', b""),
            Kind::Link(to) => (b'2', to),
        };
        if head.has_holes() {
            record(&mut records, "GNU.sparse.major", b"1");
            record(&mut records, "GNU.sparse.minor", b"0");
            record(&mut records, "GNU.sparse.name", &head.path);
            record(&mut records, "GNU.sparse.realsize", head.size.to_string().as_bytes());
        } else if head.path.len() > 100 {
            record(&mut records, "path", &head.path);
        }
        if link.len() > 100 {
            record(&mut records, "linkpath", link);
        }
        for (name, value, digits) in [("size", size, 11), ("uid", head.uid.into(), 7), ("gid", head.gid.into(), 7)] {
            if value >= 1 << (3 * digits) {
                record(&mut records, name, value.to_string().as_bytes());
            }
        }
        if head.marked {
            record(&mut records, &format!("{XATTR}{}", Head::XATTR), b"1");
        }
        if !records.is_empty() {
            let size = records.len() as u64;
            let about = Head { size, extents: vec![(0, size)], ..Head::new("pax", Kind::File, 0) };
            self.0.write_all(&header(&about, b'x', b"", size))?;
            self.data(&mut records.as_slice(), size)?;
        }
        self.0.write_all(&header(head, kind, link, size))?;
        self.data(&mut map.as_slice().chain(data), size)
    }

    fn data(&mut self, data: &mut dyn Read, size: u64) -> io::Result<()> {
        let copied = io::copy(&mut data.take(size), &mut self.0)?;
        if copied < size {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        io::copy(&mut io::repeat(0).take(padding(size)), &mut self.0)?;
        Ok(())
    }

    /// Writes the end and gives back what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        Ok(self.0)
    }
}

/// From the end of the data to the next block.
fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Where the data is, as GNU's format 1.0 puts it before the data.
fn map(extents: &[(u64, u64)], size: u64) -> Vec<u8> {
    // Data of no length says where a hole at the end ends.
    let end = extents.last().is_none_or(|(offset, length)| offset + length < size).then_some((size, 0));
    let mut text = format!("{}\n", extents.len() + usize::from(end.is_some()));
    for (offset, length) in extents.iter().chain(&end) {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// `LENGTH NAME=VALUE\n`, the length being that of all of it.
fn record(records: &mut Vec<u8>, name: &str, value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(format!("{length} {name}=").into_bytes());
    records.extend(value);
    records.push(b'\n');
}

fn header(head: &Head, kind: u8, link: &[u8], size: u64) -> Vec<u8> {
    let build = |sum: &str| {
        let mut out = Vec::with_capacity(BLOCK);
        let mut field = |value: &[u8], width: usize| {
            let end = out.len() + width;
            out.extend(value.iter().take(width));
            out.resize(end, 0);
        };
        // What does not fit is in a pax record.
        let octal = |value: u64, digits: u32| match value < 1 << (3 * digits) {
            true => format!("{value:0width$o}\0", width = digits as usize).into_bytes(),
            false => Vec::new(),
        };
        field(&head.path, 100);
        field(&octal(u64::from(head.mode & 0o7777), 7), 8);
        field(&octal(u64::from(head.uid), 7), 8);
        field(&octal(u64::from(head.gid), 7), 8);
        field(&octal(size, 11), 12);
        field(&octal(head.mtime, 11), 12);
        field(sum.as_bytes(), 8);
        field(&[kind], 1);
        field(link, 100);
        field(b"ustar\x0000", 8);
        field(b"", BLOCK - 265);
        out
    };
    let sum: u32 = build("        ").iter().map(|byte| u32::from(*byte)).sum();
    build(&format!("{sum:06o}\0 "))
}

/// Reads entries one after the other; between two, [`Read`] gives the data of the last one.
pub(super) struct Reader<R> {
    from: R,
    /// Of the entry's data.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry; none at the end of the archive.
    pub(super) fn next(&mut self) -> io::Result<Option<Head>> {
        let mut records = Vec::new();
        loop {
            let rest = self.left.saturating_add(self.padding);
            if io::copy(&mut (&mut self.from).take(rest), &mut io::sink())? < rest {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            (self.left, self.padding) = (0, 0);
            let mut block = [0; BLOCK];
            self.from.read_exact(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                return if records.is_empty() { Ok(None) } else { Err(bad("it ends within an entry")) };
            }
            let raw = Raw::parse(&block)?;
            if raw.kind != b'x' {
                return self.entry(raw, &records).map(Some);
            }
            if !records.is_empty() || raw.size > MOST_RECORDS {
                return Err(bad("an entry has too many records"));
            }
            (self.left, self.padding) = (raw.size, padding(raw.size));
            self.read_to_end(&mut records)?;
            if (records.len() as u64) < raw.size {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn entry(&mut self, raw: Raw, records: &[u8]) -> io::Result<Head> {
        let kind = match raw.kind {
            b'0' | 0 => Kind::File,
            b'5' => Kind::Directory,
            b'2' => Kind::Link(raw.link),
            other => return Err(bad(format!("an entry is neither file, directory nor link (its type is {other:?})"))),
        };
        let mut head =
            Head { mode: raw.mode, uid: raw.uid, gid: raw.gid, mtime: raw.mtime, ..Head::new(raw.name, kind, 0) };
        let (mut size, mut real) = (raw.size, None);
        let mut rest = records;
        while !rest.is_empty() {
            let (name, value) = take_record(&mut rest).ok_or_else(|| bad("a record is none"))?;
            let number = || str::from_utf8(value).ok().and_then(|it| it.parse::<u64>().ok());
            let number = || number().ok_or_else(|| bad("a number is none"));
            let id = || u32::try_from(number()?).map_err(|_| bad("a user or group is none"));
            match name {
                b"path" | b"GNU.sparse.name" => head.path = value.to_vec(),
                b"linkpath" => match &mut head.kind {
                    Kind::Link(to) => *to = value.to_vec(),
                    _ => return Err(bad("a file has a link's record")),
                },
                b"size" => size = number()?,
                b"uid" => head.uid = id()?,
                b"gid" => head.gid = id()?,
                b"GNU.sparse.realsize" => real = Some(number()?),
                _ => head.marked |= name.strip_prefix(XATTR.as_bytes()) == Some(Head::XATTR.as_bytes()),
            }
        }
        if head.kind != Kind::File && (size > 0 || real.is_some()) {
            return Err(bad("something that is no file has data"));
        }
        (self.left, self.padding) = (size, padding(size));
        head.size = real.unwrap_or(size);
        head.extents = match real {
            Some(real) => self.map(real)?,
            None if size > 0 => vec![(0, size)],
            None => Vec::new(),
        };
        if head.stored() != self.left {
            return Err(bad("a file's data is not as long as is said"));
        }
        Ok(head)
    }

    /// Where a file of `real` bytes has its data.
    fn map(&mut self, real: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut block = io::Cursor::new([0; BLOCK]);
        block.set_position(BLOCK as u64);
        let mut number = || {
            let mut number = 0u64;
            loop {
                let mut byte = [0];
                if block.read(&mut byte)? == 0 {
                    self.read_exact(block.get_mut())?;
                    block.set_position(0);
                    continue;
                }
                let digit = match byte {
                    [digit @ b'0'..=b'9'] => u64::from(digit - b'0'),
                    [b'\n'] => return Ok::<_, io::Error>(number),
                    _ => return Err(bad("a map of holes is none")),
                };
                let next = number.checked_mul(10).and_then(|it| it.checked_add(digit));
                number = next.ok_or_else(|| bad("a number is none"))?;
            }
        };
        let count = number()?;
        if count > MOST_EXTENTS as u64 + 1 {
            return Err(bad("a file is in too many pieces"));
        }
        let (mut extents, mut end) = (Vec::new(), 0u64);
        for _ in 0..count {
            let (offset, length) = (number()?, number()?);
            let next = offset.checked_add(length).filter(|next| offset >= end && *next <= real);
            end = next.ok_or_else(|| bad("a map of holes is none"))?;
            if length > 0 {
                extents.push((offset, length));
            }
        }
        Ok(extents)
    }

    pub(super) fn into_inner(self) -> R {
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

/// What a block says, as it says it.
struct Raw {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u64,
}

impl Raw {
    fn parse(block: &[u8; BLOCK]) -> io::Result<Self> {
        let field = |at: usize, width: usize| block.get(at..at + width).unwrap_or_default();
        let text = |at, width| field(at, width).split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let number = |at, width| {
            let digits = text(at, width);
            let digits = digits.trim_ascii();
            digits.iter().try_fold(0u64, |number, byte| match byte {
                b'0'..=b'7' => Ok(number << 3 | u64::from(byte - b'0')),
                _ => Err(bad("a header is none")),
            })
        };
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        let own: u64 = field(148, 8).iter().map(|byte| u64::from(*byte)).sum();
        if number(148, 8)? != sum - own + 8 * u64::from(b' ') {
            return Err(bad("a header does not add up"));
        }
        let (prefix, mut name) = (text(345, 155), text(0, 100));
        if !prefix.is_empty() {
            name = [prefix, name].join(&b'/');
        }
        let id = |at| number(at, 8).map(|it| u32::try_from(it).unwrap_or(u32::MAX));
        Ok(Self {
            name,
            kind: block.get(156).copied().unwrap_or_default(),
            link: text(157, 100),
            mode: id(100)? & 0o7777,
            uid: id(108)?,
            gid: id(116)?,
            size: number(124, 12)?,
            mtime: number(136, 12)?,
        })
    }
}

/// The first record, taken off.
fn take_record<'a>(records: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(records.get(..space)?).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    *records = records.get(length..)?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?))
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(archive: &[u8]) -> io::Result<Vec<(Head, Vec<u8>)>> {
        let mut reader = Reader::new(archive);
        let mut all = Vec::new();
        while let Some(head) = reader.next()? {
            let mut data = Vec::new();
            reader.read_to_end(&mut data)?;
            all.push((head, data));
        }
        Ok(all)
    }

    fn archive(entries: &[(Head, Vec<u8>)]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (head, data) in entries {
            writer.append(head, &mut data.as_slice()).unwrap();
        }
        writer.finish().unwrap()
    }

    fn some() -> Vec<(Head, Vec<u8>)> {
        let long = format!("workspaces/{}/{}", "n".repeat(140), "ü".repeat(90));
        let mut plain = Head::new("kubernetes.db", Kind::File, 700);
        (plain.mode, plain.uid, plain.gid, plain.mtime) = (0o640, 0x5000_0000, 12, 1_700_000_000);
        let mut holes = Head::new(long.clone(), Kind::File, 1 << 40);
        holes.extents = (0..300).map(|n| (n << 20, 1024)).collect();
        holes.marked = true;
        let data = |head: &Head| (0..head.stored()).map(|n| n as u8).collect::<Vec<_>>();
        [
            plain,
            Head::new("workspaces", Kind::Directory, 0),
            holes,
            Head::new(format!("{long}.link"), Kind::Link("../".repeat(80).into_bytes()), 0),
            Head::new("short", Kind::Link(b"/usr/bin/python3".to_vec()), 0),
            Head::new("nothing-but-a-hole", Kind::File, 0),
        ]
        .map(|head| (head.clone(), data(&head)))
        .to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(all(&archive(&some())).unwrap(), some());
    }

    #[test]
    fn the_systems_tar_reads_it() {
        let scratch = tempfile::tempdir().unwrap();
        let mut entries = some();
        // As much as a test may unpack, holes included.
        entries[2].0.size = 300 << 20;
        std::fs::write(scratch.path().join("a.tar"), archive(&entries)).unwrap();
        let mut tar = std::process::Command::new("tar");
        let done = match tar.args(["xf", "a.tar", "--no-same-owner"]).current_dir(scratch.path()).output() {
            Ok(done) => done,
            Err(error) => return println!("skipped: tar does not start: {error}"),
        };
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        for (head, data) in &entries {
            let path = scratch.path().join(str::from_utf8(&head.path).unwrap());
            match &head.kind {
                Kind::File => {
                    let found = std::fs::read(&path).unwrap();
                    assert_eq!(found.len() as u64, head.size);
                    let stored =
                        head.extents.iter().flat_map(|(at, length)| &found[*at as usize..(at + length) as usize]);
                    assert!(stored.eq(data), "{}", path.display());
                }
                Kind::Directory => assert!(path.is_dir()),
                Kind::Link(to) => assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(), to),
            }
        }
    }

    #[test]
    fn an_archive_cut_anywhere_is_not_taken_for_a_whole_one() {
        let whole = archive(&some()[..3]);
        for cut in (0..whole.len() - 1023).step_by(97) {
            assert!(all(&whole[..cut]).is_err(), "cut at {cut} of {}", whole.len());
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_does_more_than_fail(at in 0usize..8192, with in prop::collection::vec(any::<u8>(), 1..40)) {
            let mut bytes = archive(&some()[..4]);
            for (to, from) in bytes.iter_mut().skip(at).zip(with) {
                *to = from;
            }
            if let Ok(read) = all(&bytes) {
                prop_assert!(read.iter().all(|(head, data)| data.len() as u64 == head.stored() && head.stored() <= head.size));
            }
        }
    }
}
