//! Files that change all at once, in the way that Kubernetes' pods know: `..data` is a link to a directory with all files,
//! each visible name a link into `..data`. What is new is a new directory, to which `..data` is moved.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::ownership::{self, Group};
use super::payload::{File, Payload};
use crate::engine::Ids;

const DATA: &str = "..data";
const NEXT: &str = "..data_next";

/// Brings the directory to the payload, whose paths are clean and stay in it. Returns whether anything changed. Killed at
/// any instruction, it leaves what readers can read, and the next call makes up for it.
pub(super) fn write(
    dir: &Path,
    payload: &Payload,
    group: Option<Group>,
    ids: &Ids,
    now: Timestamp,
) -> io::Result<bool> {
    let data = dir.join(DATA);
    let current = match fs::read_link(&data) {
        Ok(it) => Some(it),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let same = match &current {
        Some(name) => is_same(&dir.join(name), payload)?,
        None => false,
    };
    if !same {
        let stamp = format!("..{}.{}", now.strftime("%Y_%m_%d_%H_%M_%S"), kit::id());
        let new = dir.join(&stamp);
        make(&new, ids)?;
        for (path, file) in payload {
            put(&new, path, file, ids)?;
        }
        if let Some(group) = group {
            // Before anybody sees them. The directory itself too: it may be the first time.
            ownership::give(dir, group, ownership::Mode::ReadOnly)?;
        }
        let next = dir.join(NEXT);
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(&stamp, &next)?,
        }
        ownership::own(&next, None, ids)?;
        fs::rename(&next, &data)?;
    }
    let visible: BTreeSet<&str> = payload.keys().map(|path| first(path)).collect();
    for name in &visible {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
            ownership::own(&link, None, ids)?;
            if let Some(group) = group {
                ownership::give_link(&link, group)?;
            }
        }
    }
    let current = fs::read_link(&data)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|it| it == DATA || visible.contains(it)) || name == current.as_os_str();
        if known {
            continue;
        }
        let kind = entry.file_type()?;
        // A directory without the two dots is where another volume is mounted.
        if kind.is_dir() && name.to_string_lossy().starts_with("..") {
            fs::remove_dir_all(entry.path())?;
        } else if kind.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(!same)
}

fn first(path: &str) -> &str {
    path.split('/').next().unwrap_or(path)
}

fn make(dir: &Path, ids: &Ids) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    ownership::own(dir, None, ids).map(drop)
}

fn put(dir: &Path, path: &str, file: &File, ids: &Ids) -> io::Result<()> {
    let mut at = dir.to_path_buf();
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    for part in parents.split('/').filter(|it| !it.is_empty()) {
        at.push(part);
        if !at.is_dir() {
            make(&at, ids)?;
        }
    }
    at.push(name);
    fs::write(&at, &file.data)?;
    let given = ownership::own(&at, file.user, ids)?;
    // Who cannot give files away (nobody but root can) lets the whole pod read them: nobody else sees them.
    let mode = if given { file.mode } else { file.mode | 0o044 };
    fs::set_permissions(&at, fs::Permissions::from_mode(mode))
}

/// Whether the directory holds these files with this content, and no others.
fn is_same(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let mut seen = 0;
    let mut pending = vec![PathBuf::new()];
    while let Some(at) = pending.pop() {
        let entries = match fs::read_dir(dir.join(&at)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let path = at.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                pending.push(path);
                continue;
            }
            let Some(file) = path.to_str().and_then(|it| payload.get(it)) else { return Ok(false) };
            let length = usize::try_from(entry.metadata()?.len()).unwrap_or(usize::MAX);
            if length != file.data.len() || fs::read(entry.path())? != file.data {
                return Ok(false);
            }
            seen += 1;
        }
    }
    Ok(seen == payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const IDS: Ids = Ids::Own { count: 1 };

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |(path, data): &(&str, &str)| {
            ((*path).to_owned(), File { data: data.as_bytes().to_vec(), mode: 0o640, user: None })
        };
        files.iter().map(file).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .map(|it| if it.starts_with("..20") { "..stamp".to_owned() } else { it })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_volume_changes_all_at_once_and_keeps_nothing_of_before() {
        let at = tempfile::tempdir().unwrap();
        let dir = at.path();
        let now: Timestamp = "2026-03-26T12:00:00Z".parse().unwrap();
        let first = payload(&[("a", "1"), ("d/e/f", "2"), ("gone", "3")]);
        assert!(write(dir, &first, None, &IDS, now).unwrap());
        assert_eq!(names(dir), ["..data", "..stamp", "a", "d", "gone"]);
        assert_eq!(fs::read_to_string(dir.join("d/e/f")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::metadata(dir.join("a")).unwrap().mode() & 0o7777, 0o640);
        let stamp = fs::read_link(dir.join("..data")).unwrap();
        assert!(stamp.to_str().unwrap().starts_with("..2026_03_26_12_00_00."));

        assert!(!write(dir, &first, None, &IDS, now).unwrap());
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), stamp);

        // Who looks from inside the directory of before sees all of before, until it goes.
        let second = payload(&[("a", "1"), ("d/x", "4")]);
        assert!(write(dir, &second, None, &IDS, now).unwrap());
        assert_eq!(names(dir), ["..data", "..stamp", "a", "d"]);
        assert_eq!(fs::read_to_string(dir.join("d/x")).unwrap(), "4");
        assert!(!dir.join("d/e").exists() && !dir.join(&stamp).exists());
        assert!(write(dir, &payload(&[]), None, &IDS, now).unwrap());
        assert_eq!(names(dir), ["..data", "..stamp"]);
    }

    #[test]
    fn what_a_killed_writer_left_is_made_good() {
        let at = tempfile::tempdir().unwrap();
        let dir = at.path();
        let now: Timestamp = "2026-03-26T12:00:00Z".parse().unwrap();
        fs::create_dir(dir.join("..2020_01_01_00_00_00.half")).unwrap();
        symlink("..2020_01_01_00_00_00.half", dir.join(NEXT)).unwrap();
        symlink("..2020_01_01_00_00_00.lost", dir.join(DATA)).unwrap();
        symlink("..data/old", dir.join("old")).unwrap();
        fs::create_dir(dir.join("mounted")).unwrap();
        assert!(write(dir, &payload(&[("a", "1")]), None, &IDS, now).unwrap());
        assert_eq!(names(dir), ["..data", "..stamp", "a", "mounted"]);
        // A name that was removed before it was written again.
        fs::remove_file(dir.join("a")).unwrap();
        assert!(!write(dir, &payload(&[("a", "1")]), None, &IDS, now).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
    }
}
