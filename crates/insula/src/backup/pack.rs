//! A data directory as an archive.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{CWD, Mode, OFlags};

use super::tar::{Head, Kind, Writer};
use super::tree::{self, Data, Visit};
use super::{KEYS, PLAIN, STAMP, Stamp, WORKSPACES};

/// What became of the files of workspaces.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) files: u64,
    /// Written to while they were read.
    pub(super) changed: u64,
    pub(super) left_out: u64,
    /// Its path and why.
    pub(super) first_left_out: Option<(String, String)>,
}

/// Writes all of it, and copies of the databases to `scratch` on the way.
pub(super) fn pack(
    dir: &Path,
    stamp: &Stamp,
    to: &mut dyn Write,
    scratch: &Path,
    goes_on: &dyn Fn() -> bool,
) -> Result<Packed> {
    // Objects first and runs a moment later: of a run that is submitted in between, the object is there to be found.
    let objects = apiserver::Snapshot::of(dir)?;
    let runs = ledger::Snapshot::of(&dir.join("ledger.db"))?;

    let to = BufWriter::with_capacity(128 << 10, Watched { to, goes_on });
    let mut packer =
        Packer { to: Writer::new(GzEncoder::new(to, Compression::fast())), packed: Packed::default(), synced: false };
    let stamp_json = serde_json::to_vec_pretty(stamp)?;
    let head = Head::new(STAMP, Kind::File, stamp_json.len() as u64);
    packer.to.append(&head, &mut stamp_json.as_slice())?;
    for name in PLAIN {
        packer.file(&dir.join(name), name)?;
    }
    match fs::read_dir(dir.join(KEYS)) {
        Ok(keys) => {
            packer.to.append(&directory(KEYS), &mut io::empty())?;
            for key in keys {
                let name = key?.file_name();
                packer.file(&dir.join(KEYS).join(&name), &format!("{KEYS}/{}", name.to_string_lossy()))?;
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("read the keys"),
    }
    let copy = scratch.join("kubernetes.db");
    objects.write(&copy, goes_on)?;
    drop(objects);
    packer.file(&copy, "kubernetes.db")?;
    fs::remove_file(&copy)?;
    let copy = scratch.join("ledger.db");
    runs.write(&copy, goes_on)?;
    drop(runs);
    packer.file(&copy, "ledger.db")?;
    fs::remove_file(&copy)?;
    if stamp.workspaces {
        packer.workspaces(&dir.join(WORKSPACES))?;
    }
    let Packer { to, packed, .. } = packer;
    to.finish()?.finish()?.flush()?;
    Ok(packed)
}

fn directory(path: &str) -> Head {
    Head { mode: 0o700, ..Head::new(path, Kind::Directory, 0) }
}

struct Packer<W: Write> {
    to: Writer<W>,
    packed: Packed,
    /// The machine's file systems were, once.
    synced: bool,
}

impl<W: Write> Packer<W> {
    /// A file of ours, if it is there.
    fn file(&mut self, path: &Path, name: &str) -> Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let head = tree::head(name.as_bytes(), Kind::File, &file)?;
        self.append(&head, &file).with_context(|| format!("pack {}", path.display()))
    }

    fn append(&mut self, head: &Head, file: &File) -> Result<()> {
        Ok(self.to.append(head, &mut Data { file, extents: &head.extents, read: 0 })?)
    }

    fn workspaces(&mut self, path: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root: OwnedFd = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        self.to.append(&directory(WORKSPACES), &mut io::empty())?;
        // What is being removed.
        let skip = format!("{WORKSPACES}/.removed");
        tree::walk(root, WORKSPACES.as_bytes(), skip.as_bytes(), self).context("pack the workspaces")
    }
}

impl<W: Write> Visit for Packer<W> {
    fn entry(&mut self, head: &mut Head, file: Option<&File>) -> io::Result<()> {
        let Some(file) = file else { return self.to.append(head, &mut io::empty()) };
        if is_image(&head.path) {
            head.marked = rustix::fs::fgetxattr(file, node::WORKSPACE_MARK, &mut [0; 1]).is_ok();
        }
        // What a sandbox has written last is not in its file system's file yet.
        if head.marked && !std::mem::replace(&mut self.synced, true) {
            rustix::fs::sync();
            tree::extents(file, head)?;
        }
        let before = file.metadata()?;
        self.to.append(head, &mut Data { file, extents: &head.extents, read: 0 })?;
        let after = file.metadata()?;
        let times = |it: &fs::Metadata| (it.ctime(), it.ctime_nsec(), it.len());
        self.packed.changed += u64::from(times(&before) != times(&after));
        self.packed.files += 1;
        Ok(())
    }

    fn left_out(&mut self, path: &[u8], why: &str) {
        self.packed.left_out += 1;
        let first = || (String::from_utf8_lossy(path).into_owned(), why.to_owned());
        self.packed.first_left_out.get_or_insert_with(first);
    }
}

/// Whether a path is one at which a workspace may be a file system in a file.
pub(super) fn is_image(path: &[u8]) -> bool {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    parts.len() == 5
        && parts.first() == Some(&WORKSPACES.as_bytes())
        && parts.last() == Some(&node::WORKSPACE_IMAGE.as_bytes())
}

/// Ends the work when it is not to go on.
struct Watched<'a> {
    to: &'a mut dyn Write,
    goes_on: &'a dyn Fn() -> bool,
}

impl Write for Watched<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !(self.goes_on)() {
            return Err(io::Error::other("it was stopped"));
        }
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
