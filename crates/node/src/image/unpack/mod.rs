//! Layers of an image, one upon the other, as files below one directory.
//!
//! A layer is a stranger's. Every path is resolved by the kernel as if the directory were the root of the file system
//! (`openat2`, RESOLVE_IN_ROOT), so that no name, symbolic link or hard link leads out of it; what is made is made in a
//! directory that is open, under one name. Devices are left out. The directory lies in one that nobody else may enter, so
//! that set-user-id bits and file capabilities, which are kept when root unpacks, are of use to nobody outside.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::Limits;
use super::name::Digest;
use super::tar::{Head, Kind, Reader};

/// A name that takes away the one after it, and the one that takes away all that layers below have there.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh.opq";
/// Bytes of a path, of one of its components, and directories that may lie in each other.
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;
const DEEPEST: usize = 256;
/// Bytes written between two looks at the free space of the disk.
const LOOK: u64 = 64 << 20;
/// What an entry costs on the disk beside its bytes.
const ENTRY: u64 = 512;

/// Why a layer is not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("the entry {0:?} {1}")]
    Entry(String, &'static str),
    #[error("it is damaged")]
    Damaged(#[source] io::Error),
    #[error("unpacked it has {found}, its image says {expected}")]
    Digest { found: Digest, expected: Digest },
    #[error("its image has more than {0}, which is all that an image may have")]
    Limit(String),
    #[error("the disk has only {0} MiB left, which are kept free")]
    Full(u64),
    #[error("the node is ending")]
    Ending,
    #[error("cannot {0}")]
    Machine(String, #[source] io::Error),
}

impl UnpackError {
    fn entry(path: &[u8], what: &'static str) -> Self {
        let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
        Self::Entry(text, what)
    }
}

type Result<T> = std::result::Result<T, UnpackError>;

/// Unpacks the layers of one image.
pub(crate) struct Unpacker<'a> {
    root: OwnedFd,
    /// Of the root, to say where a directory lies in it.
    at: PathBuf,
    limits: &'a Limits,
    /// Whether owners, set-user-id bits and capabilities are kept: only root can.
    owners: bool,
    ending: &'a dyn Fn() -> bool,
    spent: Spent,
}

/// Of all layers.
#[derive(Clone, Copy, Default)]
struct Spent {
    bytes: u64,
    entries: u64,
    looked: u64,
}

/// What one layer has brought: hashes of its paths and of those above them.
struct Own {
    hashes: HashSet<u64>,
    by: RandomState,
}

impl Own {
    fn add(&mut self, path: &[u8]) {
        let ends = path.iter().enumerate().filter(|(_, it)| **it == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            self.hashes.insert(self.by.hash_one(path.get(..end).unwrap_or_default()));
        }
    }

    fn has(&self, path: &[u8]) -> bool {
        self.hashes.contains(&self.by.hash_one(path))
    }
}

impl<'a> Unpacker<'a> {
    /// Into an empty directory of ours. `owners`: as root.
    pub(crate) fn new(root: &Path, limits: &'a Limits, owners: bool, ending: &'a dyn Fn() -> bool) -> Result<Self> {
        let open = || -> io::Result<_> {
            let at = root.canonicalize()?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok((rustix::fs::open(&at, flags, Mode::empty())?, at))
        };
        let (root, at) = open().map_err(|error| UnpackError::Machine("open the image's directory".into(), error))?;
        Ok(Self { root, at, limits, owners, ending, spent: Spent::default() })
    }

    /// Bytes of all files so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.spent.bytes
    }

    /// Adds a layer: a tar, as it is or packed by gzip or zstd. `expected`: of the tar.
    pub(crate) fn layer(&mut self, from: File, expected: &Digest) -> Result<()> {
        let from = BufReader::with_capacity(128 << 10, from);
        let from = unpacked(from).map_err(UnpackError::Damaged)?;
        // Beside what is written, padding and headers.
        let most = self.limits.bytes.saturating_mul(2).saturating_add(64 << 20);
        let mut reader = Reader::new(Hashed { from, hash: Sha256::new(), left: most });
        let mut own = Own { hashes: HashSet::new(), by: RandomState::new() };
        while let Some(head) = reader.next().map_err(|error| self.damaged(error))? {
            self.count(ENTRY, 1)?;
            self.entry(&head, &mut reader, &mut own)?;
        }
        let mut rest = reader.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(|error| self.damaged(error))?;
        let found = Digest::finish(rest.hash);
        match found == *expected {
            true => Ok(()),
            false => Err(UnpackError::Digest { found, expected: expected.clone() }),
        }
    }

    fn damaged(&self, error: io::Error) -> UnpackError {
        match error.kind() {
            io::ErrorKind::QuotaExceeded => self.too_large(),
            _ => UnpackError::Damaged(error),
        }
    }

    fn too_large(&self) -> UnpackError {
        UnpackError::Limit(format!("{} MiB", self.limits.bytes >> 20))
    }

    fn count(&mut self, bytes: u64, entries: u64) -> Result<()> {
        self.spent.bytes = self.spent.bytes.saturating_add(bytes);
        self.spent.entries += entries;
        if self.spent.bytes > self.limits.bytes {
            return Err(self.too_large());
        }
        if self.spent.entries > self.limits.entries {
            return Err(UnpackError::Limit(format!("{} entries", self.limits.entries)));
        }
        if self.spent.looked == 0 || self.spent.bytes - self.spent.looked >= LOOK {
            self.spent.looked = self.spent.bytes;
            let disk = rustix::fs::fstatvfs(&self.root)
                .map_err(|error| UnpackError::Machine("look at the disk".into(), error.into()))?;
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            if free < self.limits.reserve {
                return Err(UnpackError::Full(free >> 20));
            }
        }
        if (self.ending)() { Err(UnpackError::Ending) } else { Ok(()) }
    }

    fn entry(&mut self, head: &Head, data: &mut Reader<impl Read>, own: &mut Own) -> Result<()> {
        let path = clean(&head.path).map_err(|what| UnpackError::entry(&head.path, what))?;
        let failed = |error: Errno| match error {
            Errno::NOTDIR => UnpackError::entry(&path, "lies in something that is no directory"),
            Errno::LOOP => UnpackError::entry(&path, "lies behind links that lead nowhere"),
            error => UnpackError::Machine(format!("make {:?}", OsStr::from_bytes(&path)), error.into()),
        };
        if path.is_empty() {
            return match head.kind {
                Kind::Directory => self.dress(self.root.as_fd(), head).map_err(failed),
                _ => Err(UnpackError::entry(&head.path, "is the root, and no directory")),
            };
        }
        let (above, name) = split(&path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(above, name, hidden, own).map_err(|error| match error {
                Errno::INVAL => UnpackError::entry(&path, "takes away nothing that can be"),
                error => failed(error),
            });
        }
        let dir = match self.open(above) {
            Err(Errno::NOENT) => self.make(above)?,
            dir => dir.map_err(failed)?,
        };
        let found = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Some(FileType::from_raw_mode(found.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        let stays = head.kind == Kind::Directory && found == Some(FileType::Directory);
        if found.is_some() && !stays && head.kind != Kind::Device {
            // A hard link to itself must not take away what it is a link to.
            if head.kind == Kind::HardLink && clean(&head.link).is_ok_and(|to| to == path) {
                return Ok(());
            }
            remove(dir.as_fd(), name)
                .map_err(|error| UnpackError::Machine(format!("replace {:?}", OsStr::from_bytes(&path)), error))?;
        }
        match head.kind {
            // What devices a container sees is nothing that its image decides.
            Kind::Device => return Ok(()),
            Kind::Directory => {
                if !stays {
                    self.room_below(dir.as_fd(), &path)?;
                    rustix::fs::mkdirat(&dir, name, Mode::RWXU).map_err(failed)?;
                }
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&dir, name, flags, Mode::empty()).map_err(failed)?;
                self.dress(made.as_fd(), head).map_err(failed)?;
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let mut file = File::from(file);
                self.copy(data, &mut file, &path)?;
                self.dress(file.as_fd(), head).map_err(failed)?;
            }
            Kind::Symlink => {
                if head.link.is_empty() || head.link.len() > LONGEST_PATH || head.link.contains(&0) {
                    return Err(UnpackError::entry(&path, "is a link to nothing that can be"));
                }
                rustix::fs::symlinkat(head.link.as_slice(), &dir, name).map_err(failed)?;
                self.label(dir.as_fd(), name, head).map_err(failed)?;
            }
            Kind::HardLink => {
                let to = clean(&head.link).map_err(|what| UnpackError::entry(&head.link, what))?;
                let (above, to) = split(&to);
                let linked =
                    self.open(above).and_then(|from| rustix::fs::linkat(&from, to, &dir, name, AtFlags::empty()));
                linked.map_err(|error| match error {
                    Errno::NOENT | Errno::NOTDIR => UnpackError::entry(&path, "is a link to a file that is not there"),
                    Errno::PERM => UnpackError::entry(&path, "is a link to something that is no file"),
                    error => failed(error),
                })?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(&dir, name, FileType::Fifo, mode(head.mode & 0o777), 0).map_err(failed)?;
                self.label(dir.as_fd(), name, head).map_err(failed)?;
            }
        }
        own.add(&path);
        Ok(())
    }

    /// The directory at a path in the image, through links, but never out.
    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // Something was renamed elsewhere while the kernel looked: it cannot know that it was not here.
                Err(Errno::AGAIN | Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Makes what is not there of a path of directories.
    fn make(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let failed = |error: Errno| UnpackError::Machine(format!("make {:?}", OsStr::from_bytes(path)), error.into());
        let mut dir = self.open(b"").map_err(failed)?;
        let ends = path.iter().enumerate().filter(|(_, it)| **it == b'/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let part = path.get(..end).unwrap_or_default();
            dir = match self.open(part) {
                Err(Errno::NOENT) => {
                    self.count(ENTRY, 1)?;
                    self.room_below(dir.as_fd(), part)?;
                    let (_, name) = split(part);
                    let made = rustix::fs::mkdirat(&dir, name, mode(0o755)).and_then(|()| self.open(part));
                    made.map_err(|error| match error {
                        Errno::EXIST => UnpackError::entry(path, "lies behind a link that leads nowhere"),
                        error => failed(error),
                    })?
                }
                dir => dir.map_err(failed)?,
            };
        }
        Ok(dir)
    }

    /// Refuses a directory where there are too many above it already: links make paths longer than they are written.
    fn room_below(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let deep = || UnpackError::entry(path, "lies too deep");
        let real = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(|_| deep())?;
        let inside = real.strip_prefix(&self.at).map_err(|_| UnpackError::entry(path, "lies outside"))?;
        if inside.components().count() >= DEEPEST || inside.as_os_str().len() > LONGEST_PATH - 2 * LONGEST_NAME {
            return Err(deep());
        }
        Ok(())
    }

    fn copy(&mut self, data: &mut Reader<impl Read>, to: &mut File, path: &[u8]) -> Result<()> {
        let mut buffer = vec![0; 128 << 10];
        // A claim of more than is allowed needs not be tried.
        if self.spent.bytes.saturating_add(data.left()) > self.limits.bytes {
            return Err(self.too_large());
        }
        loop {
            let read = data.read(&mut buffer).map_err(|error| self.damaged(error))?;
            if read == 0 {
                return Ok(());
            }
            self.count(read as u64, 0)?;
            to.write_all(buffer.get(..read).unwrap_or_default())
                .map_err(|error| UnpackError::Machine(format!("write {:?}", OsStr::from_bytes(path)), error))?;
        }
    }

    /// Gives an open file or directory its owner, mode, attributes and time.
    fn dress(&self, file: BorrowedFd<'_>, head: &Head) -> rustix::io::Result<()> {
        let needed = if head.kind == Kind::Directory { 0o700 } else { 0o600 };
        // An ordinary user's files are all his: what he could not enter or read himself, nobody inside could either.
        let bits = if self.owners { head.mode } else { head.mode & 0o1777 | needed };
        if self.owners {
            rustix::fs::fchown(file, Some(Uid::from_raw(head.uid)), Some(Gid::from_raw(head.gid)))?;
        }
        for (name, value) in &head.xattrs {
            // The overlay that lies above it would obey its own.
            let plain = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let kept = plain || (self.owners && name == b"security.capability");
            if kept && name.len() <= LONGEST_NAME && !name.contains(&0) {
                match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                    // A file system that has none, or for this one no more room.
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        rustix::fs::fchmod(file, mode(bits))?;
        rustix::fs::futimens(file, &times(head))
    }

    /// Gives what cannot be opened its owner and time.
    fn label(&self, dir: BorrowedFd<'_>, name: &[u8], head: &Head) -> rustix::io::Result<()> {
        if self.owners {
            let (uid, gid) = (Uid::from_raw(head.uid), Gid::from_raw(head.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if head.kind == Kind::Fifo {
            rustix::fs::chmodat(dir, name, mode(head.mode & 0o777), AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &times(head), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Takes away what layers below have at a path; what this one has brought stays, whichever came first.
    fn whiteout(&self, above: &[u8], name: &[u8], hidden: &[u8], own: &Own) -> rustix::io::Result<()> {
        let dir = match self.open(above) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            dir => dir?,
        };
        if name == OPAQUE {
            return empty(dir.as_fd(), above, own);
        }
        // What aufs kept for itself.
        if hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Errno::INVAL);
        }
        take(dir.as_fd(), above, hidden, own)
    }
}

/// Takes away an entry of a directory, but for what this layer has brought.
fn take(dir: BorrowedFd<'_>, above: &[u8], name: &[u8], own: &Own) -> rustix::io::Result<()> {
    let path = if above.is_empty() { name.to_vec() } else { [above, name].join(&b'/') };
    if !own.has(&path) {
        return remove(dir, name).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(inner) => empty(inner.as_fd(), &path, own),
        Err(_) => Ok(()),
    }
}

/// No deeper than directories may lie in each other.
fn empty(dir: BorrowedFd<'_>, path: &[u8], own: &Own) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let names: Vec<_> = rustix::fs::Dir::read_from(&dir)?
        .filter_map(|it| it.map(|it| it.file_name().to_bytes().to_vec()).ok())
        .filter(|it| !matches!(it.as_slice(), b"." | b".."))
        .collect();
    names.iter().try_for_each(|name| take(dir.as_fd(), path, name, own))
}

/// Removes an entry of a directory with all that is in it, following nothing.
fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let within = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            std::fs::remove_dir_all(within.join(OsStr::from_bytes(name)))
        }
        Err(error) => Err(error.into()),
    }
}

/// A path as the image has it, without what changes nothing; or what is wrong with it.
pub(super) fn clean(path: &[u8]) -> std::result::Result<Vec<u8>, &'static str> {
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    // An absolute path begins where the image begins, as it will for those inside.
    for part in path.split(|it| *it == b'/').filter(|it| !matches!(*it, b"" | b".")) {
        if part == b".." {
            return Err("climbs out of its image");
        }
        if part.len() > LONGEST_NAME || part.contains(&0) {
            return Err("has a name that no file can have");
        }
        if depth > 0 {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
        depth += 1;
    }
    if clean.len() > LONGEST_PATH || depth > DEEPEST { Err("lies too deep") } else { Ok(clean) }
}

/// The path above, and the last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|it| *it == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits)
}

fn times(head: &Head) -> Timestamps {
    let time = Timespec { tv_sec: head.mtime.0, tv_nsec: head.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Knows the digest of what was read, and ends what would never end.
struct Hashed<R> {
    from: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::QuotaExceeded)?;
        self.hash.update(into.get(..read).unwrap_or_default());
        Ok(read)
    }
}

/// What is packed, unpacked, by how it begins.
pub(crate) fn unpacked(mut from: BufReader<File>) -> io::Result<Box<dyn Read>> {
    use std::io::BufRead;
    Ok(match from.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(super::zstd::Frames::new(from)),
        _ => Box::new(from),
    })
}
