//! New content for files: put in place once it is whole, so that a failure (no space, a lost client) leaves the old one.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use wire::execd::{Replace, Replaced};

use crate::os;
use crate::reply::{Problem, Result};
use crate::scan;

use super::{open, problem, readable, regular};

/// The largest file in which text is replaced: it is held in memory.
const LARGEST: u64 = 64 << 20;

/// Replaces in all files; the counts by the names that the request had. The first failure ends it: what was done stays.
pub(super) fn all(wanted: Vec<(String, PathBuf, Replace)>) -> Result<BTreeMap<String, Replaced>> {
    if wanted.iter().any(|(_, _, item)| item.old.is_empty()) {
        return Err(Problem::invalid("old content must not be empty"));
    }
    let one = |(name, path, item): (String, PathBuf, Replace)| {
        one(&path, item.old.as_bytes(), item.new.as_bytes()).map(|count| (name, Replaced { replaced_count: count }))
    };
    wanted.into_iter().map(one).collect()
}

fn one(path: &Path, old: &[u8], new: &[u8]) -> Result<u64> {
    let file = readable(path)?;
    let io = |error: io::Error| problem(path, &error);
    let about = file.metadata().map_err(io)?;
    let mut content = Vec::new();
    if about.len() <= LARGEST {
        file.take(LARGEST + 1).read_to_end(&mut content).map_err(io)?;
    }
    if about.len().max(content.len() as u64) > LARGEST {
        return Err(Problem::too_large(format!("{} is over {LARGEST} bytes: too large to replace in", path.display())));
    }
    let places = places(&content, old);
    if places.is_empty() {
        return Ok(0);
    }
    let mut replacement = Replacement::new(path, None)?;
    let mut out = io::BufWriter::with_capacity(128 << 10, replacement.file());
    let mut from = 0;
    for &at in &places {
        out.write_all(content.get(from..at).unwrap_or_default()).and_then(|()| out.write_all(new)).map_err(io)?;
        from = at + old.len();
    }
    out.write_all(content.get(from..).unwrap_or_default()).and_then(|()| out.flush()).map_err(io)?;
    drop(out);
    replacement.finish()?;
    Ok(places.len() as u64)
}

/// Where `what` is in `content`, from the left and without overlaps.
fn places(content: &[u8], what: &[u8]) -> Vec<usize> {
    let Some(first) = what.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = content.get(from..).and_then(|rest| scan::byte(rest, *first)) {
        from += at;
        if content.get(from..).is_some_and(|rest| rest.starts_with(what)) {
            found.push(from);
            from += what.len();
        } else {
            from += 1;
        }
    }
    found
}

/// A file being written that takes the place of another (or of none) when it is finished, and is gone when it is not.
///
/// Where no file can be made beside the old one, or the old one has more than one name, it is overwritten in place.
pub(super) struct Replacement {
    /// What a symbolic link points at, if the path was one.
    target: PathBuf,
    file: File,
    /// None: this is the old file itself.
    temporary: Option<PathBuf>,
}

impl Replacement {
    /// `like` gives mode and owner where there is no old file.
    pub(super) fn new(path: &Path, like: Option<&Metadata>) -> Result<Self> {
        let io = |error: io::Error| problem(path, &error);
        let (target, old) = match fs::canonicalize(path) {
            Ok(target) => {
                let old = fs::metadata(&target).map_err(io)?;
                (target, Some(old))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
            Err(error) => return Err(io(error)),
        };
        let name = target.file_name().and_then(|_| target.parent());
        let Some(parent) = name else { return Err(super::not_a_file(path, "a directory")) };
        if let Some(old) = &old {
            if !old.is_file() {
                // Says what it is, by the same words as a download.
                let file = open(OpenOptions::new().read(true), &target)?;
                regular(&file, path)?;
            }
            if old.nlink() > 1 {
                return Self::in_place(target);
            }
        }
        let temporary = parent.join(format!(".execd-{}", os::id()));
        let file = match OpenOptions::new().write(true).read(true).create_new(true).open(&temporary) {
            Ok(file) => file,
            // A directory that takes no new file may still hold one that can be written.
            Err(_) if old.is_some() => return Self::in_place(target),
            Err(error) => return Err(problem(path, &error)),
        };
        let this = Self { target, file, temporary: Some(temporary) };
        if let Some(about) = old.as_ref().or(like) {
            // Not everybody may give files away; the content matters more.
            let _ = fchown(&this.file, Some(about.uid()), Some(about.gid()));
            let _ = this.file.set_permissions(Permissions::from_mode(about.mode() & 0o7777));
        }
        Ok(this)
    }

    fn in_place(target: PathBuf) -> Result<Self> {
        let file = open(OpenOptions::new().read(true).write(true), &target)?;
        regular(&file, &target)?;
        file.set_len(0).map_err(|error| problem(&target, &error))?;
        Ok(Self { target, file, temporary: None })
    }

    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts it in place.
    pub(super) fn finish(mut self) -> Result<()> {
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let placed = fs::rename(&temporary, &self.target).or_else(|error| {
            // A file that something is mounted on, or another's in a sticky directory, cannot be replaced, only written.
            let only_written = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::EACCES));
            let copied = if only_written { self.copy_over() } else { Err(error) };
            let _ = fs::remove_file(&temporary);
            copied
        });
        placed.map_err(|error| problem(&self.target, &error))
    }

    fn copy_over(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut old = OpenOptions::new().write(true).truncate(true).open(&self.target)?;
        io::copy(&mut self.file, &mut old).map(drop)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_replaced_and_the_rest_of_the_file_stays_its_own() {
        let home = tempfile::tempdir().unwrap();
        let (path, link) = (home.path().join("a"), home.path().join("link"));
        fs::write(&path, b"aaa\xffbaab").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(one(&link, b"aa", b"X").unwrap(), 2);
        assert_eq!(fs::read(&path).unwrap(), b"Xa\xffbXb");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(one(&path, b"nothing", b"").unwrap(), 0);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn a_file_with_two_names_stays_one_file_and_an_unfinished_one_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let (path, other) = (home.path().join("a"), home.path().join("b"));
        fs::write(&path, "old").unwrap();
        fs::hard_link(&path, &other).unwrap();
        one(&path, b"old", b"new").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "new");

        let fresh = home.path().join("fresh");
        let mut unfinished = Replacement::new(&fresh, None).unwrap();
        unfinished.file().write_all(b"half").unwrap();
        drop(unfinished);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_of_bearable_size_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let giant = home.path().join("giant");
        File::create(&giant).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(one(&giant, b"a", b"b").unwrap_err().code, wire::execd::code::TOO_LARGE);
        for path in [home.path(), Path::new("/dev/null"), Path::new("/")] {
            assert!(one(path, b"a", b"b").is_err() && Replacement::new(path, None).is_err(), "{}", path.display());
        }
        assert!(all(vec![("x".into(), giant, Replace { old: String::new(), new: "y".into() })]).is_err());
    }
}
