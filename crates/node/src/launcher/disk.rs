//! A workspace with a hard bound: a file system in a file of its directory, mounted over a loop device.
//!
//! The mount is made in the launcher's own namespace, a sandbox gets a copy of it, and it is taken away when the sandbox
//! has ended ([`release`]): the kernel then writes back what is left, and nobody waits for that. Loop devices free
//! themselves with their last mount.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use super::{Failure, Step};
use crate::sys;

/// The file in a workspace's directory.
pub(crate) const IMAGE: &str = "workspace.ext4";
/// The directory in it that is shown.
pub(crate) const FILES: &str = "files";

/// In the stage, one directory to mount at for each sandbox.
const MOUNTS: &str = "disks";

/// Another builder may take the free device first, and one that is just being freed cannot be opened.
const TRIES: usize = 32;

/// A detached copy of the mount of a workspace's file system, for the sandbox `key`.
pub(super) fn tree(directory: &Path, key: &str) -> Result<OwnedFd, Failure> {
    let path = directory.join(IMAGE);
    let image = fs::OpenOptions::new().read(true).write(true).open(&path);
    let image = image.step(|| format!("open {}", path.display()))?;
    let at = Path::new(MOUNTS).join(key);
    fs::create_dir_all(&at).step(|| format!("make {}", at.display()))?;
    mount(&image, &at).step(|| format!("mount {}", path.display()))?;
    rustix::mount::open_tree(
        CWD,
        at.join(FILES),
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
    .step(|| format!("open {FILES} in {}", path.display()))
}

/// Takes the launcher's own mount for a sandbox away, if it has one.
pub(super) fn release(key: &str) {
    let at = Path::new(MOUNTS).join(key);
    let _ = rustix::mount::unmount(&at, UnmountFlags::empty());
    let _ = fs::remove_dir(&at);
}

fn mount(image: &fs::File, at: &Path) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES {
        match device(image).and_then(|(path, device)| mount_device(&path, at).map(|()| drop(device))) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENXIO)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

fn mount_device(device: &Path, at: &Path) -> io::Result<()> {
    // Freed blocks go back to the host; unused tables are not written out in the background.
    let options = Some(c"discard,noinit_itable");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    Ok(rustix::mount::mount(device, at, "ext4", flags, options)?)
}

/// The loop device that has `image` already (two over one file would destroy it), or a free one that then has it.
fn device(image: &fs::File) -> io::Result<(PathBuf, fs::File)> {
    let whose = image.metadata()?;
    for entry in fs::read_dir("/sys/block")?.flatten() {
        if !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(entry.file_name());
        let Ok(device) = open(&path) else { continue };
        if sys::loop_backing(device.as_fd()).is_ok_and(|it| it == (whose.dev(), whose.ino())) {
            return Ok((path, device));
        }
    }
    let number = sys::loop_free(open(Path::new("/dev/loop-control"))?.as_fd())?;
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let device = open(&path)?;
    sys::loop_configure(device.as_fd(), image.as_fd())?;
    Ok((path, device))
}

fn open(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).open(path)
}
