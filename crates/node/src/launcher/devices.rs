//! The /dev of a privileged container: the devices of the host's that it may open.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;

use super::{Failure, Step};

/// What of /dev is no device, or the container's own.
const LEFT_OUT: [&str; 7] = ["console", "fd", "hugepages", "mqueue", "ptmx", "pts", "shm"];
/// Devices that are shown, and how deep in /dev.
const MOST: usize = 4096;
const DEPTH: usize = 4;

/// Adds them to a /dev that has what every container has. `from`: the host's.
pub(super) fn show(from: &Path, to: &Path) -> Result<(), Failure> {
    let mut left = MOST;
    below(from, to, DEPTH, &mut left)
}

fn below(from: &Path, to: &Path, depth: usize, left: &mut usize) -> Result<(), Failure> {
    // One that we may not read shows nothing.
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if depth == DEPTH && LEFT_OUT.iter().any(|it| name == *it) {
            continue;
        }
        let at = to.join(&name);
        if kind.is_dir() && depth > 1 {
            below(&path, &at, depth - 1, left)?;
            continue;
        }
        let may = |what| rustix::fs::access(&path, what).is_ok();
        let device = kind.is_char_device() || kind.is_block_device();
        // What is there already is the same.
        if !device || at.exists() || !(may(Access::READ_OK) || may(Access::WRITE_OK)) || *left == 0 {
            continue;
        }
        *left -= 1;
        let what = || format!("show the device {}", at.display());
        fs::create_dir_all(to).step(what)?;
        fs::write(&at, "").step(what)?;
        match rustix::mount::mount_bind(&path, &at) {
            // Unplugged meanwhile.
            Err(Errno::NOENT) => fs::remove_file(&at).step(what)?,
            done => done.step(what)?,
        }
    }
    Ok(())
}
