//! A workspace or a claim's volume with a hard bound: a file system in a file of its directory, mounted over a loop device.
//!
//! The mount of a workspace is made in the launcher's own namespace, a sandbox gets a copy of it, and it is taken away when
//! the sandbox has ended ([`release`]): the kernel then writes back what is left, and nobody waits for that. That of a
//! volume is in no namespace but those of the pods that have it ([`detached`]). Loop devices free themselves with their
//! last mount, whoever was killed before.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, XattrFlags};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::{Failure, Step};
use crate::sys;

/// The file in a directory of a workspace, or of a claim's volume.
pub const IMAGE: &str = "workspace.ext4";
/// The directory in it that is shown.
pub(crate) const FILES: &str = "files";

/// Beside the stage, one directory to mount at for each sandbox.
pub(super) const MOUNTS: &str = "../disks";

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
    let at = Path::new(MOUNTS).join(key);
    fs::create_dir_all(&at).step(|| format!("make {}", at.display()))?;
    mount(directory, &at)?;
    files(directory, &at)
}

/// A mount of a volume's file system that is in no namespace. Whoever has it mounted already has the same one. With `bytes`
/// it becomes as large as that, if it was smaller.
///
/// This process is alone in its mount namespace from then on: nobody who is forked meanwhile has a copy of what is mounted
/// here, and nothing has to be taken away.
pub(super) fn detached(directory: &Path, bytes: Option<u64>) -> Result<OwnedFd, Failure> {
    let at = Path::new(MOUNTS);
    sys::unshare(UnshareFlags::NEWNS).step(|| "make a mount namespace".into())?;
    let (image, device) = mount(directory, at)?;
    let tree = files(directory, at)?;
    if let Some(bytes) = bytes {
        let grown = fs::File::open(at).and_then(|root| grow(&image, &device, &root, bytes));
        grown.step(|| format!("make the file system in {} larger", directory.display()))?;
    }
    Ok(tree)
}

/// Bytes of the file system in a file, or on a device.
pub(crate) fn size(of: &fs::File) -> io::Result<u64> {
    let (blocks, block) = shape(of)?;
    Ok(blocks.saturating_mul(block))
}

/// The number of its blocks, and the bytes of each, as its superblock says.
fn shape(of: &fs::File) -> io::Result<(u64, u64)> {
    const SUPERBLOCK: u64 = 1024;
    const SIXTY_FOUR_BITS: u32 = 0x80;
    let mut text = [0; 1024];
    of.read_exact_at(&mut text, SUPERBLOCK)?;
    let word = |at: usize| match text.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    if word(0x38) & 0xffff != 0xef53 {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let high = if word(0x60) & SIXTY_FOUR_BITS == 0 { 0 } else { word(0x150) };
    let block = 1024_u64.checked_shl(word(0x18)).filter(|it| *it > 0 && *it <= 65536);
    Ok((u64::from(high) << 32 | u64::from(word(4)), block.ok_or(io::ErrorKind::InvalidData)?))
}

/// Only who has CAP_SYS_RESOURCE over the machine can, root or not: some machines keep it from root.
fn grow(image: &fs::File, device: &fs::File, root: &fs::File, bytes: u64) -> io::Result<()> {
    if image.metadata()?.len() < bytes {
        image.set_len(bytes)?;
    }
    sys::loop_grow(device.as_fd())?;
    // Of what is mounted: it may not have come to the file yet.
    let (blocks, block) = shape(device)?;
    if blocks.saturating_mul(block) < bytes { sys::ext4_grow(root.as_fd(), bytes / block) } else { Ok(()) }
}

fn files(directory: &Path, at: &Path) -> Result<OwnedFd, Failure> {
    rustix::mount::open_tree(
        CWD,
        at.join(FILES),
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
    )
    .step(|| format!("open {FILES} in {}", directory.join(IMAGE).display()))
}

/// Takes the launcher's own mount for a sandbox away, if it has one.
pub(super) fn release(key: &str) {
    let at = Path::new(MOUNTS).join(key);
    let _ = rustix::mount::unmount(&at, UnmountFlags::empty());
    let _ = fs::remove_dir(&at);
}

/// Mounts the image of a directory, and returns it with its device.
fn mount(directory: &Path, at: &Path) -> Result<(fs::File, fs::File), Failure> {
    let path = directory.join(IMAGE);
    let open = || {
        let image = image(directory).and_then(|it| it.ok_or_else(|| io::ErrorKind::NotFound.into()));
        image.step(|| format!("open {}", path.display()))
    };
    // Two who find no device for it would each take one. The lock is of a file that no device keeps open.
    let lock = open()?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).step(|| format!("lock {}", path.display()))?;
    let image = open()?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..TRIES {
        match device(&image).and_then(|(path, device)| mount_device(&path, at).map(|()| device)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENXIO)) => last = error,
            other => return other.map(|device| (image, device)).step(|| format!("mount {}", path.display())),
        }
    }
    Err(last).step(|| format!("mount {}", path.display()))
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
