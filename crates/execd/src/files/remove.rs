//! Removing files, and trees of any depth.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::os;
use crate::reply::{Problem, Result};

use super::problem;

/// Removes a file, a link (not what it points at), a FIFO or a socket. What is not there is as good as removed.
pub(super) fn file(name: &str, path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(problem(path, &error)),
        Ok(about) if about.is_dir() => {
            return Err(Problem::runtime(format!("error removing file {name}: path is a directory")));
        }
        Ok(_) => {}
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(problem(path, &error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it, or whatever else is there. Links are removed, never followed.
pub(super) fn tree(name: &str, path: &Path) -> Result<()> {
    let failed = |error: io::Error| Problem::runtime(format!("error removing directory {name}: {error}"));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(about) if !about.is_dir() => return fs::remove_file(path).map_err(failed),
        Ok(_) => {}
    }
    let top = directory(CWD, path.as_os_str()).map_err(|error| failed(error.into()))?;
    // Directories too deep for our stack are moved up to the top and found there in the next round.
    while contents(&top, &top, 0).map_err(|error| failed(error.into()))? {}
    fs::remove_dir(path).map_err(failed)
}

/// How many levels are gone down before what is below is moved to the top.
const DEEP: usize = 64;

/// Empties `at`; whether something was moved to `top`.
fn contents(at: &OwnedFd, top: &OwnedFd, depth: usize) -> rustix::io::Result<bool> {
    let mut moved = false;
    let mut names: Vec<(CString, FileType)> = Vec::new();
    loop {
        // Read anew each time: what was moved here, or made meanwhile, counts too.
        let mut seen = 0;
        for entry in Dir::read_from(at)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
            if names.len() >= 1024 {
                break;
            }
        }
        for (name, kind) in names.drain(..) {
            seen += 1;
            if kind != FileType::Directory {
                match unlinkat(at, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    Err(Errno::ISDIR) => {}
                    Err(error) => return Err(error),
                }
            }
            match unlinkat(at, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            if depth >= DEEP {
                renameat(at, &name, top, format!(".removing-{}", os::id()))?;
                moved = true;
                continue;
            }
            let below = directory(at, OsStr::from_bytes(name.to_bytes()))?;
            moved |= contents(&below, top, depth + 1)?;
            match unlinkat(at, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        if seen < 1024 {
            return Ok(moved);
        }
    }
}

fn directory(at: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_removed_whatever_its_depth_and_links_are_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let kept = home.path().join("kept");
        fs::write(&kept, "x").unwrap();
        let root = home.path().join("root");
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(home.path(), root.join("link")).unwrap();
        // Far deeper than a path can name: made by descriptors.
        let mut at = directory(CWD, root.as_os_str()).unwrap();
        for level in 0..3000 {
            let name = format!("level-{level}");
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            drop(openat(&at, "file\n", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR).unwrap());
            at = directory(&at, name.as_ref()).unwrap();
        }
        for many in 0..2500 {
            fs::write(root.join(format!("many-{many}")), "").unwrap();
        }
        tree("root", &root).unwrap();
        assert!(!root.exists() && kept.exists());
        tree("root", &root).unwrap();
        assert!(file("home", home.path()).is_err());
    }
}
