//! Whose files are. Nothing here follows a link: pods write into these directories.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode as Bits, OFlags, Uid};
use rustix::io::Errno;

use crate::engine::Ids;

/// How deep a tree may be.
const DEPTH: usize = 256;

/// What the group may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    ReadOnly,
    ReadWrite,
}

/// To whom files are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// By its number on the disk.
    Id(u32),
    /// Where this machine has no such id to give: the whole pod, and nobody else sees them.
    Everybody,
}

impl Group {
    pub(super) fn of(group: u32, ids: &Ids) -> Self {
        ids.on_disk(group).map_or(Self::Everybody, Self::Id)
    }
}

/// Gives a directory and all in it to a group, as a kubelet does: directories hand it on to what is made in them.
pub(super) fn give(dir: &Path, group: Group, mode: Mode) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Bits::empty())?;
    tree(&dir, group, mode, 0)
}

/// Whether the directory was given to the group before.
pub(super) fn is_given(dir: &Path, group: Group) -> io::Result<bool> {
    let it = rustix::fs::lstat(dir)?;
    Ok(matches!(group, Group::Id(id) if it.st_gid == id) && it.st_mode & 0o2060 == 0o2060)
}

pub(super) fn give_link(link: &Path, group: Group) -> io::Result<()> {
    let Group::Id(group) = group else { return Ok(()) };
    let given = rustix::fs::chownat(CWD, link, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW);
    allowed(given).map(drop)
}

/// Makes what we have made the pod's root's, or a user's in it. Returns whether that can be here.
pub(super) fn own(path: &Path, user: Option<u32>, ids: &Ids) -> io::Result<bool> {
    let Some((owner, root)) = ids.on_disk(user.unwrap_or(0)).zip(ids.on_disk(0)) else {
        // All that is ours is the pod's root's.
        return Ok(user.is_none_or(|it| it == 0));
    };
    if user.is_none() && root == 0 {
        return Ok(true);
    }
    let (owner, root) = (Uid::from_raw(owner), Gid::from_raw(root));
    allowed(rustix::fs::chownat(CWD, path, Some(owner), Some(root), AtFlags::SYMLINK_NOFOLLOW))
}

fn allowed(given: Result<(), Errno>) -> io::Result<bool> {
    match given {
        Ok(()) => Ok(true),
        // In a namespace that does not have the id, too.
        Err(Errno::PERM | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn tree(dir: &OwnedFd, group: Group, mode: Mode, depth: usize) -> io::Result<()> {
    if depth > DEPTH {
        return Err(io::Error::other(format!("the volume has directories more than {DEPTH} deep")));
    }
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let it = match rustix::fs::openat(dir, name, flags, Bits::empty()) {
            // Somebody removed it.
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&it)?.st_mode);
        if kind == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            tree(&rustix::fs::openat(&it, c".", flags, Bits::empty())?, group, mode, depth + 1)?;
        } else {
            one(it.as_fd(), kind, group, mode)?;
        }
    }
    one(dir.as_fd(), FileType::Directory, group, mode)
}

fn one(it: BorrowedFd<'_>, kind: FileType, group: Group, mode: Mode) -> io::Result<()> {
    if let Group::Id(group) = group {
        allowed(rustix::fs::chownat(it, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH))?;
    }
    if kind == FileType::Symlink {
        return Ok(());
    }
    let mut add = if mode == Mode::ReadOnly { 0o440 } else { 0o660 };
    if kind == FileType::Directory {
        add |= 0o2110;
    }
    if group == Group::Everybody {
        add |= (add & 0o070) >> 3;
    }
    let now = rustix::fs::fstat(it)?.st_mode & 0o7777;
    // A descriptor that names a file and does not open it cannot be asked directly.
    let path = format!("/proc/self/fd/{}", it.as_raw_fd());
    match rustix::fs::chmod(path.as_str(), Bits::from_raw_mode(now | add)) {
        Err(Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

/// The bytes that a tree takes on its disk. What cannot be read is not counted.
pub(super) fn usage(dir: &Path) -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut budget = 1_000_000;
    count(&rustix::fs::open(dir, flags, Bits::empty())?, &mut budget, 0)
}

fn count(dir: &OwnedFd, budget: &mut u32, depth: usize) -> io::Result<u64> {
    let mut sum: u64 = 0;
    for entry in Dir::read_from(dir)? {
        // A directory may be removed while it is read.
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || *budget == 0 {
            continue;
        }
        *budget -= 1;
        let Ok(it) = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        sum = sum.saturating_add(u64::try_from(it.st_blocks).unwrap_or(0).saturating_mul(512));
        if FileType::from_raw_mode(it.st_mode) == FileType::Directory && depth < DEPTH {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(below) = rustix::fs::openat(dir, name, flags, Bits::empty()) {
                sum = sum.saturating_add(count(&below, budget, depth + 1).unwrap_or(0));
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_group_gets_a_tree_and_nothing_that_links_lead_to() {
        let at = tempfile::tempdir().unwrap();
        let (dir, outside) = (at.path().join("volume"), at.path().join("outside"));
        fs::create_dir_all(dir.join("d")).unwrap();
        for file in [&outside, &dir.join("d/f")] {
            fs::write(file, "x").unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, dir.join("link")).unwrap();
        symlink(at.path(), dir.join("up")).unwrap();
        let group = Group::Id(fs::metadata(&dir).unwrap().gid());
        assert!(!is_given(&dir, group).unwrap());
        give(&dir, group, Mode::ReadWrite).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert!(is_given(&dir, group).unwrap());
        assert_eq!(mode(&dir) & 0o2770, 0o2770);
        assert_eq!(mode(&dir.join("d")) & 0o2770, 0o2770);
        assert_eq!((mode(&dir.join("d/f")), mode(&outside)), (0o660, 0o600));
        assert!(usage(&dir).unwrap() >= 512);
        give(&dir, Group::Everybody, Mode::ReadOnly).unwrap();
        assert_eq!((mode(&dir.join("d/f")), mode(&outside)), (0o664, 0o600));
    }

    #[test]
    fn files_are_whose_they_are_in_the_pod_where_the_machine_has_the_ids() {
        let at = tempfile::tempdir().unwrap();
        let file = at.path().join("f");
        fs::write(&file, "x").unwrap();
        let owner = || fs::metadata(&file).map(|it| (it.uid(), it.gid())).unwrap();
        let before = owner();
        for (user, can) in [(None, true), (Some(0), true), (Some(1000), false)] {
            assert_eq!(own(&file, user, &Ids::Own { count: 1 }).unwrap(), can);
        }
        assert_eq!((owner(), Group::of(5, &Ids::Own { count: 1 })), (before, Group::Everybody));
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        assert!(own(&file, Some(1000), &Ids::Slots).unwrap());
        assert_eq!((owner(), Group::of(5, &Ids::Slots)), ((1000, 0), Group::Id(5)));
        assert!(own(&file, None, &Ids::OneSlot).unwrap());
        assert_eq!(owner(), (0x5000_0000, 0x5000_0000));
    }
}
