//! An archive as a data directory. What comes in is hostile until it has been looked at: nothing is written outside of
//! the directory or through a link, and no more than fits.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::bufread::GzDecoder;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tar::{Head, Kind, Reader};
use super::tree::DEEPEST;
use super::{FORMAT, KEYS, MOST_PLAIN, PLAIN, STAMP, Stamp, WORKSPACES, pack};
use crate::home;

/// Of a path in the archive.
const LONGEST_PATH: usize = 16 << 10;
/// What an entry takes on a disk beside its data, roughly.
const ENTRY: u64 = 4 << 10;
/// What is left free on the disk.
const SPARE: u64 = 32 << 20;
/// Blocks of zeros that may follow the end.
const MOST_TRAILING: u64 = 1 << 20;

/// Why an archive is not restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it is no backup of Insula")]
    Foreign,
    #[error("it was written by a newer version, {version} (its {what} is {found}, this program knows {known})")]
    Newer { version: String, what: &'static str, found: u32, known: u32 },
    #[error("it ends early: it is not whole")]
    Cut,
    #[error("it is damaged: {0}")]
    Damaged(String),
    #[error("it is not of our making: {path:?} {why}")]
    Hostile { path: String, why: &'static str },
    #[error("it needs more than the {} MiB that are free there", room >> 20)]
    TooLarge { room: u64 },
    #[error(
        "the workspace {path:?} is a file system in a file, which cannot be had there: restore as root to a disk, or with --without-workspaces"
    )]
    Image { path: String, source: Errno },
    #[error("it has no {0}")]
    Lacks(&'static str),
    #[error("it was stopped")]
    Stopped,
    #[error("cannot write {path:?}")]
    Write { path: String, source: io::Error },
    #[error("its objects cannot be used")]
    Objects(#[from] apiserver::OpenError),
    #[error("its runs cannot be used")]
    Runs(#[from] ledger::Error),
}

/// What reading it came to.
fn read(error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => Error::Cut,
        _ => Error::Damaged(error.to_string()),
    }
}

fn hostile(path: &[u8], why: &'static str) -> Error {
    Error::Hostile { path: shown(path), why }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// Unpacks into an empty directory, checks what is there then, and has it on the disk.
pub(super) fn unpack(
    from: impl Read,
    into: &Path,
    workspaces: bool,
    goes_on: &dyn Fn() -> bool,
) -> Result<Stamp, Error> {
    let mut from = BufReader::with_capacity(128 << 10, from);
    match from.fill_buf().map_err(read)? {
        [] => return Err(Error::Cut),
        [0x1f, 0x8b, ..] => {}
        _ => return Err(Error::Foreign),
    }
    let mut archive = Reader::new(GzDecoder::new(from));
    let stamp = stamp(&mut archive)?;
    let failed =
        |source: Errno| Error::Write { path: shown(into.as_os_str().as_encoded_bytes()), source: source.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, into, flags, Mode::empty()).map_err(failed)?;
    let disk = rustix::fs::fstatvfs(&root).map_err(failed)?;
    let room = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(SPARE);
    let mut unpacker = Unpacker {
        root,
        room,
        left: room,
        owners: rustix::process::geteuid().is_root(),
        directories: Vec::new(),
        plain: HashSet::new(),
    };
    while let Some(head) = archive.next().map_err(read)? {
        if !goes_on() {
            return Err(Error::Stopped);
        }
        if workspaces || head.path.split(|byte| *byte == b'/').next() != Some(WORKSPACES.as_bytes()) {
            unpacker.entry(&head, &mut archive, goes_on)?;
        }
    }
    end(archive)?;
    for name in ["kubernetes.db", "ledger.db"] {
        if !unpacker.plain.contains(name.as_bytes()) {
            return Err(Error::Lacks(name));
        }
    }
    apiserver::restored(into)?;
    ledger::check(&into.join("ledger.db"))?;
    unpacker.finish().map_err(failed)?;
    Ok(stamp)
}

fn stamp(archive: &mut Reader<impl Read>) -> Result<Stamp, Error> {
    // Of something else entirely, the first bytes fail in one way or another.
    let head = archive.next().map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Error::Cut,
        _ => Error::Foreign,
    })?;
    let head = head.filter(|head| head.path == STAMP.as_bytes() && head.size <= MOST_PLAIN).ok_or(Error::Foreign)?;
    let mut text = Vec::new();
    archive.read_to_end(&mut text).map_err(read)?;
    if head.kind != Kind::File {
        return Err(Error::Foreign);
    }
    // A newer format may say other things: its number is looked at by itself.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|_| Error::Foreign)?;
    let number = |name| value.get(name).and_then(serde_json::Value::as_u64).and_then(|it| u32::try_from(it).ok());
    let version = value.get("version").and_then(serde_json::Value::as_str).unwrap_or("unknown").to_owned();
    for (what, known) in [("format", FORMAT), ("layout", home::LAYOUT)] {
        let found = number(what).ok_or(Error::Foreign)?;
        if found > known {
            return Err(Error::Newer { version: shown(version.as_bytes()), what, found, known });
        }
    }
    serde_json::from_value(value).map_err(|_| Error::Foreign)
}

/// Reads on to the end, where the sum over all of it is.
fn end(archive: Reader<GzDecoder<BufReader<impl Read>>>) -> Result<(), Error> {
    let mut rest = archive.into_inner();
    if io::copy(&mut (&mut rest).take(MOST_TRAILING), &mut io::sink()).map_err(read)? == MOST_TRAILING {
        return Err(Error::Damaged("something follows its end".into()));
    }
    match rest.into_inner().read(&mut [0; 1]).map_err(read)? {
        0 => Ok(()),
        _ => Err(Error::Damaged("something follows its end".into())),
    }
}

struct Unpacker {
    root: OwnedFd,
    /// Bytes that may be written at all, and from here on.
    room: u64,
    left: u64,
    /// Files get the owners that they had.
    owners: bool,
    /// Their modes and times are set at the end, when nothing is made in them any more.
    directories: Vec<Head>,
    /// Files of ours that have been there.
    plain: HashSet<Vec<u8>>,
}

impl Unpacker {
    fn entry(&mut self, head: &Head, data: &mut dyn Read, goes_on: &dyn Fn() -> bool) -> Result<(), Error> {
        let parts: Vec<&[u8]> = head.path.split(|byte| *byte == b'/').collect();
        allowed(head, &parts)?;
        let needs = head.stored().checked_add(ENTRY);
        self.left = needs.and_then(|it| self.left.checked_sub(it)).ok_or(Error::TooLarge { room: self.room })?;
        let (name, above) = parts.split_last().ok_or_else(|| hostile(&head.path, "has no name"))?;
        let failed = |source: Errno| match source {
            Errno::EXIST => hostile(&head.path, "is there twice"),
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => hostile(&head.path, "is below something that is no directory"),
            Errno::NOENT => hostile(&head.path, "is in no directory of the archive"),
            source => Error::Write { path: shown(&head.path), source: source.into() },
        };
        let above = self.open(&above.join(&b'/')).map_err(failed)?;
        match &head.kind {
            Kind::Directory => {
                rustix::fs::mkdirat(&above, *name, Mode::RWXU).map_err(failed)?;
                self.directories.push(head.clone());
            }
            Kind::Link(to) => {
                rustix::fs::symlinkat(to.as_slice(), &above, *name).map_err(failed)?;
                if self.owners {
                    let (uid, gid) = owner(head);
                    rustix::fs::chownat(&above, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                }
            }
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&above, *name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let file = File::from(file);
                write(&file, head, data, goes_on)?;
                if head.marked {
                    let marked = rustix::fs::fsetxattr(&file, node::WORKSPACE_MARK, b"1", XattrFlags::empty());
                    marked.map_err(|source| Error::Image { path: shown(&head.path), source })?;
                }
                self.dress(file.as_fd(), head).map_err(failed)?;
                if parts.len() == 1 {
                    self.plain.insert(head.path.clone());
                }
            }
        }
        Ok(())
    }

    /// Opens a directory below the root, through no link.
    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// Owner, mode and time. What gives a file another's rights is not given back.
    fn dress(&self, file: impl AsFd, head: &Head) -> rustix::io::Result<()> {
        if self.owners && head.path.starts_with(WORKSPACES.as_bytes()) {
            let (uid, gid) = owner(head);
            rustix::fs::fchown(&file, uid, gid)?;
        }
        rustix::fs::fchmod(&file, Mode::from_bits_truncate(head.mode & 0o1777))?;
        let time = Timespec { tv_sec: i64::try_from(head.mtime).unwrap_or(0), tv_nsec: 0 };
        rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })
    }

    fn finish(self) -> rustix::io::Result<()> {
        for head in self.directories.iter().rev() {
            self.dress(self.open(&head.path)?, head)?;
        }
        rustix::fs::syncfs(&self.root)
    }
}

fn owner(head: &Head) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(head.uid)), Some(Gid::from_raw(head.gid)))
}

/// Whether a backup has such an entry at all.
fn allowed(head: &Head, parts: &[&[u8]]) -> Result<(), Error> {
    let refuse = |why| Err(hostile(&head.path, why));
    if head.path.len() > LONGEST_PATH || parts.len() > DEEPEST + 1 {
        return refuse("is too long");
    }
    if parts.iter().any(|part| matches!(*part, b"" | b"." | b"..") || part.len() > 255 || part.contains(&0)) {
        return refuse("leads somewhere else");
    }
    let is = |part: Option<&&[u8]>, name: &str| part.is_some_and(|part| *part == name.as_bytes());
    let known = match (&head.kind, parts) {
        (Kind::File, [name]) if PLAIN.iter().any(|plain| name == &plain.as_bytes()) => head.size <= MOST_PLAIN,
        (Kind::File, [name]) => matches!(*name, b"kubernetes.db" | b"ledger.db"),
        (Kind::File, [keys, _]) if is(Some(keys), KEYS) => head.size <= MOST_PLAIN,
        (Kind::Directory, [name]) => is(Some(name), KEYS) || is(Some(name), WORKSPACES),
        // Where the directories are that are Insula's own, there is nothing that a sandbox makes.
        (Kind::Directory, [workspaces, ..]) => is(Some(workspaces), WORKSPACES),
        (_, [workspaces, _, _, _, _, ..]) => is(Some(workspaces), WORKSPACES),
        _ => false,
    };
    if !known {
        return refuse("is nothing that a backup has");
    }
    if head.marked && !pack::is_image(&head.path) {
        return refuse("is no workspace");
    }
    // A link may say what it likes, as it may in the sandbox that it is of, but not more.
    if matches!(&head.kind, Kind::Link(to) if to.is_empty() || to.len() > 4095 || to.contains(&0)) {
        return refuse("is a link to nothing");
    }
    Ok(())
}

/// The file's data where it belongs, and holes between.
fn write(file: &File, head: &Head, data: &mut dyn Read, goes_on: &dyn Fn() -> bool) -> Result<(), Error> {
    let failed = |source| Error::Write { path: shown(&head.path), source };
    file.set_len(head.size).map_err(failed)?;
    let mut buffer = vec![0; 128 << 10];
    for (mut at, length) in head.extents.iter().copied() {
        let end = at + length;
        while at < end {
            if !goes_on() {
                return Err(Error::Stopped);
            }
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..most).unwrap_or_default();
            let count = data.read(part).map_err(read)?;
            if count == 0 {
                return Err(Error::Cut);
            }
            file.write_all_at(part.get(..count).unwrap_or_default(), at).map_err(failed)?;
            at += count as u64;
        }
    }
    Ok(())
}
