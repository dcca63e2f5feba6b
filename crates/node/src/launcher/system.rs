//! The /sys of a container: what the kernel says of the machine and of the pod's network, and the container's own control
//! groups, in which runtimes of languages read how much memory and how many processors they have.
//!
//! The shim keeps what it takes to mount them from before it lets go of the host's files.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount};
use serde::{Deserialize, Serialize};

use super::stage::tmpfs;
use super::{Failure, Step};
use crate::sys;

/// In the shim's own mount namespace: the machine's /sys, and the pod's control groups by their names.
const SYS: &str = "pod/sys";
const GROUPS: &str = "pod/groups";

/// These speak of the machine's own hardware, as with Docker; and of the files that others have as disks.
const MASKED: [&str; 3] = ["firmware", "devices/virtual/powercap", "devices/virtual/block"];

/// A pod's control group in one hierarchy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// The directory below /sys/fs/cgroup; empty for the only hierarchy of version 2, which is /sys/fs/cgroup itself.
    pub name: String,
    /// Where it is on the machine.
    pub dir: PathBuf,
}

const FLAGS: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);

/// Keeps what containers will be shown.
pub(super) fn keep(groups: &[Shown]) -> Result<(), Failure> {
    fs::create_dir(SYS).step(|| "make a place for /sys".into())?;
    match mount("sysfs", SYS, "sysfs", FLAGS, None::<&std::ffi::CStr>) {
        // It shows the machine's network, over which a user namespace has no rights; or we are in a container ourselves,
        // and what we see of it is not all.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error).step(|| "mount /sys".into()),
    }
    for it in groups {
        let at = Path::new(GROUPS).join(&it.name);
        fs::create_dir_all(&at).step(|| format!("make {}", at.display()))?;
        show(&it.dir, &at, 0)?;
    }
    Ok(())
}

/// Mounts /sys at `at`; read-only unless the container is privileged. Its groups, which are those of the pod's with this
/// name below them, are read-only in any case.
pub(super) fn mount_at(at: &Path, group: &str, privileged: bool) -> Result<(), Failure> {
    // None were kept by the shim of an older node, or there are none here.
    let kept = fs::read_dir(GROUPS).ok();
    if Path::new(SYS).join("class").exists() {
        let access = if privileged { MountFlags::empty() } else { MountFlags::RDONLY };
        mount("sysfs", at, "sysfs", FLAGS | access, None::<&std::ffi::CStr>).step(|| "mount /sys".into())?;
        for path in MASKED.iter().map(|it| at.join(it)).filter(|it| !privileged && it.is_dir()) {
            tmpfs(&path, 4096, "0555", FLAGS | MountFlags::RDONLY)?;
        }
    } else if kept.is_some() {
        // What an image has there may be links to anywhere.
        tmpfs(at, 4096, "0555", FLAGS)?;
        fs::create_dir_all(at.join("fs/cgroup")).step(|| "make /sys/fs/cgroup".into())?;
    }
    let at = at.join("fs/cgroup");
    let Some(kept) = kept.filter(|_| at.is_dir()) else { return Ok(()) };
    if Path::new(GROUPS).join("cgroup.procs").exists() {
        return show(&Path::new(GROUPS).join(group), &at, sys::ATTR_RDONLY);
    }
    tmpfs(&at, 4096, "0755", FLAGS)?;
    for it in kept.flatten() {
        let at = at.join(it.file_name());
        fs::create_dir(&at).step(|| format!("make {}", at.display()))?;
        show(&it.path().join(group), &at, sys::ATTR_RDONLY)?;
    }
    let tree = rustix::mount::open_tree(CWD, &at, OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let tree = tree.step(|| "open /sys/fs/cgroup".into())?;
    sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, None, false).step(|| "make /sys/fs/cgroup read-only".into())
}

fn show(dir: &Path, at: &Path, access: u64) -> Result<(), Failure> {
    let what = || format!("show the control group {}", dir.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, dir, flags).step(what)?;
    let attributes = access | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC;
    sys::mount_setattr(tree.as_fd(), attributes, None, false).step(what)?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(what)
}
