//! A workspace with a hard bound: a file system in a file of its directory, mounted over a loop device.
//!
//! The mount is made in the launcher's own namespace, a sandbox gets a copy of it, and it is taken away when the sandbox
//! has ended ([`release`]): the kernel then writes back what is left, and nobody waits for that. Loop devices free
//! themselves with their last mount.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, XattrFlags};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use super::{Failure, Step};
use crate::sys;

/// The file in a workspace's directory.
pub const IMAGE: &str = "workspace.ext4";
/// The directory in it that is shown.
pub(crate) const FILES: &str = "files";

/// In the stage, one directory to mount at for each sandbox.
const MOUNTS: &str = "disks";

/// Another builder may take the free device first, and one that is just being freed cannot be opened.
const TRIES: usize = 32;

/// On an image that we made. A sandbox cannot set it, whose files a workspace without an image shows as they are.
pub const MARK: &CStr = c"trusted.insula.workspace";

/// Marks a file as an image of ours; `false` where the file system, or a want of rights, does not let us.
pub(crate) fn mark(image: &fs::File) -> bool {
    rustix::fs::fsetxattr(image, MARK, b"1", XattrFlags::empty()).is_ok()
}

/// Whether there is a file that we marked.
pub(crate) fn is_marked(path: &Path) -> bool {
    rustix::fs::lgetxattr(path, MARK, &mut [0; 1]).is_ok()
}

/// The image of a workspace, if it has one of ours.
pub(crate) fn image(directory: &Path) -> io::Result<Option<fs::File>> {
    let mut options = fs::OpenOptions::new();
    // Neither a link out of here nor something that makes us wait.
    let opened =
        options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(directory.join(IMAGE));
    let image = match opened {
        Ok(image) => image,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A link, a directory, a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO)) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let ours = image.metadata()?.is_file() && rustix::fs::fgetxattr(&image, MARK, &mut [0; 1]).is_ok();
    Ok(ours.then_some(image))
}

/// A detached copy of the mount of a workspace's file system, for the sandbox `key`.
pub(super) fn tree(directory: &Path, key: &str) -> Result<OwnedFd, Failure> {
    let path = directory.join(IMAGE);
    let image = image(directory).and_then(|it| it.ok_or_else(|| io::ErrorKind::NotFound.into()));
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
