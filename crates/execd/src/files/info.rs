//! What is there: one path, a directory, a search.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx};
use wire::execd::FileInfo;

use crate::os::rfc3339;
use crate::os::users::Users;
use crate::reply::{Problem, Result};

use super::glob::fits;
use super::{DEEPEST, LISTED_MOST, VISITED_MOST, digits, problem};

/// The entries at `paths`, under the names that the request had for them.
pub(super) fn of(paths: Vec<(String, PathBuf)>) -> Result<BTreeMap<String, FileInfo>> {
    let users = Users::read();
    let about = |(name, path): (String, PathBuf)| {
        let seen = look(CWD, path.as_os_str()).map_err(|error| problem(&path, &error))?;
        Ok((name, entry(&path, &seen, &users)))
    };
    paths.into_iter().map(about).collect()
}

/// What is below `root`, down to `depth` levels, each directory's entries in the order of their names and followed by
/// what is in them. Symbolic links are told, never followed.
pub(super) fn list(root: &Path, depth: usize) -> Result<Vec<FileInfo>> {
    let seen = look(CWD, root.as_os_str()).map_err(|error| problem(root, &error))?;
    if kind(&seen) == FileType::Symlink {
        return Err(Problem::parameter(format!("{} is a symbolic link: list what it points at", root.display())));
    }
    let mut found = Found::default();
    walk(root, depth, &mut |path, seen| {
        found.add(path, seen)?;
        Ok(())
    })?;
    Ok(found.entries)
}

/// The files below `root` (no directories) whose name fits `pattern`; one with a `/` in it is held against the path below
/// `root`.
pub(super) fn search(root: &Path, pattern: &[u8]) -> Result<Vec<FileInfo>> {
    let whole = pattern.contains(&b'/');
    let mut found = Found::default();
    let mut keep = |path: &Path, seen: &Statx| {
        let subject = if whole {
            path.strip_prefix(root).unwrap_or(path).as_os_str()
        } else {
            path.file_name().unwrap_or_default()
        };
        if kind(seen) != FileType::Directory && fits(pattern, subject.as_bytes()) {
            found.add(path, seen)?;
        }
        Ok(())
    };
    let real = std::fs::canonicalize(root).map_err(|error| problem(root, &error))?;
    let seen = look(CWD, real.as_os_str()).map_err(|error| problem(root, &error))?;
    if kind(&seen) == FileType::Directory {
        walk(root, DEEPEST, &mut keep)?;
    } else {
        keep(root, &seen)?;
    }
    Ok(found.entries)
}

/// Entries for an answer, not too many.
struct Found {
    users: Users,
    entries: Vec<FileInfo>,
}

impl Default for Found {
    fn default() -> Self {
        Self { users: Users::read(), entries: Vec::new() }
    }
}

impl Found {
    fn add(&mut self, path: &Path, seen: &Statx) -> Result<()> {
        if self.entries.len() >= LISTED_MOST {
            return Err(Problem::too_large(format!("there are more than {LISTED_MOST} entries: ask for less")));
        }
        self.entries.push(entry(path, seen, &self.users));
        Ok(())
    }
}

/// A directory on the way down: its remaining entries, last first.
struct Level {
    fd: OwnedFd,
    path: PathBuf,
    left: Vec<(Vec<u8>, Statx)>,
}

/// Visits everything below `root`. What vanishes or may not be read on the way is passed over, except `root` itself.
fn walk(root: &Path, depth: usize, visit: &mut dyn FnMut(&Path, &Statx) -> Result<()>) -> Result<()> {
    let top = open(CWD, root.as_os_str(), OFlags::empty()).map_err(|error| problem(root, &error))?;
    let mut visited = 0;
    let mut levels = vec![read(top, root.to_owned(), &mut visited).map_err(|error| problem(root, &error))?];
    while let Some(level) = levels.last_mut() {
        let Some((name, seen)) = level.left.pop() else {
            levels.pop();
            continue;
        };
        if visited > VISITED_MOST {
            return Err(Problem::too_large(format!(
                "there are more than {VISITED_MOST} entries below {}",
                root.display()
            )));
        }
        let path = level.path.join(OsStr::from_bytes(&name));
        visit(&path, &seen)?;
        if kind(&seen) == FileType::Directory && levels.len() < depth {
            // By its parent's descriptor and without following: it may have become a link since.
            let below =
                levels.last().and_then(|level| open(&level.fd, OsStr::from_bytes(&name), OFlags::NOFOLLOW).ok());
            if let Some(level) = below.and_then(|fd| read(fd, path, &mut visited).ok()) {
                levels.push(level);
            }
        }
    }
    Ok(())
}

fn read(fd: OwnedFd, path: PathBuf, visited: &mut usize) -> io::Result<Level> {
    let mut left = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *visited += 1;
        if *visited > VISITED_MOST {
            break;
        }
        if let Ok(seen) = look(&fd, OsStr::from_bytes(name.to_bytes())) {
            left.push((name.to_bytes().to_vec(), seen));
        }
    }
    left.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
    Ok(Level { fd, path, left })
}

fn open(at: impl rustix::fd::AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(openat(at, name, flags, Mode::empty())?)
}

fn look(at: impl rustix::fd::AsFd, name: &OsStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?)
}

fn kind(seen: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(seen.stx_mode))
}

fn entry(path: &Path, seen: &Statx, users: &Users) -> FileInfo {
    let kind = match kind(seen) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        _ => "other",
    };
    // Not every file system knows when a file was made, and some say 1970.
    let born = if seen.stx_mask & StatxFlags::BTIME.bits() == 0 || seen.stx_btime.tv_sec == 0 {
        &seen.stx_ctime
    } else {
        &seen.stx_btime
    };
    FileInfo {
        path: path.to_string_lossy().into_owned(),
        kind: kind.to_owned(),
        size: seen.stx_size,
        modified_at: rfc3339(seen.stx_mtime.tv_sec, seen.stx_mtime.tv_nsec),
        created_at: rfc3339(born.tv_sec, born.tv_nsec),
        owner: users.user_name(seen.stx_uid),
        group: users.group_name(seen.stx_gid),
        mode: digits(u32::from(seen.stx_mode)),
    }
}
