//! Files that sandboxes write: read so that no link, however it changes meanwhile, leads out of their directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::tar::{Head, Kind, MOST_EXTENTS};

/// How deep directories are looked into.
pub(super) const DEEPEST: usize = 200;
/// A hole smaller than this is data.
const LEAST_HOLE: u64 = 64 << 10;

/// What is done with each entry; a file comes with what it is read from.
pub(super) trait Visit {
    fn entry(&mut self, head: &mut Head, file: Option<&File>) -> io::Result<()>;
    /// What cannot be read, or is no file, directory or link.
    fn left_out(&mut self, path: &[u8], why: &str);
}

struct Level {
    /// Reads the names.
    names: Dir,
    /// Opens them.
    at: OwnedFd,
    path: Vec<u8>,
}

/// Visits everything below an open directory, whose path in the archive is `path`.
pub(super) fn walk(root: OwnedFd, path: &[u8], skip: &[u8], visit: &mut dyn Visit) -> io::Result<()> {
    let mut levels = vec![Level { names: Dir::read_from(&root)?, at: root, path: path.to_owned() }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return Ok(()) };
        let Some(entry) = level.names.read() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = [&level.path, b"/".as_slice(), name.to_bytes()].concat();
        if path == skip {
            continue;
        }
        let found = match rustix::fs::statat(&level.at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let open = |more| rustix::fs::openat(&level.at, name, OFlags::NOFOLLOW | OFlags::CLOEXEC | more, Mode::empty());
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if depth < DEEPEST => match open(OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(at) => {
                    let at_file = File::from(at);
                    visit.entry(&mut head(&path, Kind::Directory, &at_file)?, None)?;
                    let at = OwnedFd::from(at_file);
                    levels.push(Level { names: Dir::read_from(&at)?, at, path });
                }
                Err(error) => gone(visit, &path, error)?,
            },
            FileType::Directory => visit.left_out(&path, "it is nested too deeply"),
            // Opening a pipe that took the file's place must not wait.
            FileType::RegularFile => match open(OFlags::RDONLY | OFlags::NONBLOCK) {
                Ok(file) => {
                    let file = File::from(file);
                    if !file.metadata()?.is_file() {
                        continue;
                    }
                    let mut head = head(&path, Kind::File, &file)?;
                    if extents(&file, &mut head)? {
                        visit.entry(&mut head, Some(&file))?;
                    } else {
                        visit.left_out(&path, "it is in too many pieces");
                    }
                }
                Err(error) => gone(visit, &path, error)?,
            },
            FileType::Symlink => match rustix::fs::readlinkat(&level.at, name, Vec::new()) {
                Ok(to) => {
                    let mut head = Head::new(path, Kind::Link(to.into_bytes()), 0);
                    (head.uid, head.gid) = (found.st_uid, found.st_gid);
                    visit.entry(&mut head, None)?;
                }
                Err(error) => gone(visit, &path, error)?,
            },
            _ => visit.left_out(&path, "it is a socket, a pipe or a device"),
        }
    }
}

/// What a sandbox may do to its own files is no failure of the backup.
fn gone(visit: &mut dyn Visit, path: &[u8], error: Errno) -> io::Result<()> {
    match error {
        // It went, or something else took its place.
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO => Ok(()),
        Errno::ACCESS | Errno::PERM => {
            visit.left_out(path, "it may not be read");
            Ok(())
        }
        error => Err(error.into()),
    }
}

/// A file or directory of ours or a sandbox's, as it is.
pub(super) fn head(path: &[u8], kind: Kind, file: &File) -> io::Result<Head> {
    let found = file.metadata()?;
    let size = if kind == Kind::File { found.len() } else { 0 };
    let mut head = Head::new(path, kind, size);
    (head.mode, head.uid, head.gid) = (found.mode() & 0o7777, found.uid(), found.gid());
    head.mtime = u64::try_from(found.mtime()).unwrap_or(0);
    Ok(head)
}

/// Finds where a file has data; `false` when that is too many pieces to tell.
pub(super) fn extents(file: &File, head: &mut Head) -> io::Result<bool> {
    // Of a file without holes nothing needs to be asked.
    if file.metadata()?.blocks() * 512 >= head.size {
        return Ok(true);
    }
    let (mut extents, mut at) = (Vec::<(u64, u64)>::new(), 0);
    while at < head.size {
        let data = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(data) => data.min(head.size),
            // No more data.
            Err(Errno::NXIO) => break,
            // A file system that knows of no holes.
            Err(Errno::INVAL) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(file.as_fd(), SeekFrom::Hole(data)) {
            Ok(end) => end.min(head.size),
            // It was cut short meanwhile.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = end.max(data + 1);
        // In whole blocks of an archive, should a file system count in smaller ones.
        let (begin, end) = (data / 512 * 512, end.next_multiple_of(512).min(head.size));
        match extents.last_mut() {
            Some((from, length)) if begin.saturating_sub(*from + *length) < LEAST_HOLE => *length = end - *from,
            _ if end > begin => extents.push((begin, end - begin)),
            _ => {}
        }
        if extents.len() > MOST_EXTENTS {
            return Ok(false);
        }
    }
    head.extents = extents;
    Ok(true)
}

/// The data of a file as its head says: what is cut off it meanwhile is zeros.
pub(super) struct Data<'a> {
    pub(super) file: &'a File,
    pub(super) extents: &'a [(u64, u64)],
    /// Of the first extent.
    pub(super) read: u64,
}

impl Read for Data<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(((from, length), rest)) = self.extents.split_first() else { return Ok(0) };
        let most = usize::try_from(length - self.read).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        let count = match self.file.read_at(into, from + self.read)? {
            0 => {
                into.fill(0);
                most
            }
            count => count,
        };
        self.read += count as u64;
        if self.read == *length {
            (self.extents, self.read) = (rest, 0);
        }
        Ok(count)
    }
}
