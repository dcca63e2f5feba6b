//! The images of a node on its disk, shared by everybody who has its directory: a node, and commands beside it.
//!
//! ```text
//! index.json     what images there are, and their names        (written whole, renamed)
//! blobs/sha256/  manifests, configs and layers by digest        (renamed to their place when they are whole and verified)
//! roots/CHAIN/   the files of an image, unpacked once            (renamed to their place when they are whole, on the disk)
//! ingest/        what is being made, or is going
//! lock           held by all who add (shared) and by who collects (alone)
//! locks/         each held by who makes the blobs or roots of some digests
//! ```
//!
//! What has a place is whole: killed at any instruction, a process leaves something in `ingest` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kit::Clock;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;

use super::name::Digest;

const FORMAT: u32 = 1;
const LARGEST_INDEX: u64 = 16 << 20;
const STRIPES: usize = 64;
/// Between two looks at a lock that another process holds; in this one nobody looks twice.
const LOOK: Duration = Duration::from_millis(50);
/// For the index, which is written in a moment.
const INDEX_PATIENCE: Duration = Duration::from_secs(10);
/// A part of a blob that nobody has gone on with for so long is given up.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// One image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// With tags, as `docker.io/library/busybox:1.36`.
    pub(crate) names: BTreeSet<String>,
    /// With digests, of indexes or manifests, as `docker.io/library/busybox@sha256:…`.
    pub(crate) digests: BTreeSet<String>,
    pub(crate) manifest: Digest,
    pub(crate) layers: Vec<Digest>,
    pub(crate) root: Digest,
    /// Bytes of all blobs, and of all files.
    pub(crate) size: u64,
    pub(crate) unpacked: u64,
    pub(crate) added: Timestamp,
    /// It came from an archive, so it cannot be had again: only who names it takes it away.
    pub(crate) loaded: bool,
}

impl Record {
    pub(crate) fn is_named(&self) -> bool {
        !self.names.is_empty() || !self.digests.is_empty()
    }
}

/// Images by the digest of their config, which is their id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    format: u32,
    pub(crate) images: BTreeMap<Digest, Record>,
}

impl Index {
    /// The image of a full name, with a tag, a digest, or both.
    pub(crate) fn find(&self, name: &str) -> Option<(&Digest, &Record)> {
        self.images.iter().find(|(_, it)| it.names.contains(name) || it.digests.contains(name))
    }
}

/// What is known of the file of the index that was read last.
type Stamp = (u64, u64, i64, i64);

pub(crate) struct Store {
    dir: PathBuf,
    clock: Clock,
    seen: Mutex<(Option<Stamp>, Arc<Index>)>,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
}

/// Who holds it is alone with what it is of; gone, it is free.
pub(crate) struct Held {
    _lock: Lock,
    _ours: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl Store {
    /// Opens a directory, making it when it is not there, and clears what a killed process has left.
    pub(crate) fn open(dir: PathBuf, clock: Clock) -> io::Result<Self> {
        for it in [dir.clone(), dir.join("blobs/sha256"), dir.join("roots"), dir.join("ingest"), dir.join("locks")] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(it)?;
        }
        // In there are programs of strangers, some of which would give who runs them another's rights.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let stripes = (0..2 * STRIPES).map(|_| Arc::default()).collect();
        let store = Self { dir: dir.canonicalize()?, clock, seen: Mutex::default(), stripes };
        store.index()?;
        if let Some(_alone) = try_lock(&store.dir.join("lock"), FlockOperation::NonBlockingLockExclusive)? {
            store.sweep()?;
        }
        Ok(store)
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    fn ingest(&self, name: &str) -> PathBuf {
        self.dir.join("ingest").join(name)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|it| it.is_file() && it.len() == size)
    }

    /// A blob that is small. Verified: the disk may have changed it.
    pub(crate) fn read_blob(&self, digest: &Digest, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.blob(digest))?.take(most).read_to_end(&mut bytes)?;
        match Digest::of(&bytes) == *digest {
            true => Ok(bytes),
            false => Err(io::Error::new(ErrorKind::InvalidData, format!("the blob {digest} is damaged"))),
        }
    }

    /// The files of an image, if they are there.
    pub(crate) fn root(&self, chain: &Digest) -> Option<PathBuf> {
        let root = self.dir.join("roots").join(chain.hex());
        root.join("about").exists().then(|| root.join("fs"))
    }

    /// Bytes of an unpacked image, and when it was used last.
    pub(crate) fn about(&self, chain: &Digest) -> Option<(u64, Timestamp)> {
        let path = self.dir.join("roots").join(chain.hex()).join("about");
        let bytes = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        let used = Timestamp::try_from(fs::metadata(path).ok()?.modified().ok()?).ok()?;
        Some((bytes, used))
    }

    /// Notes that an image is used now.
    pub(crate) fn touch(&self, chain: &Digest) {
        let path = self.dir.join("roots").join(chain.hex()).join("about");
        let now = self.clock.now().into();
        if let Err(error) = File::open(path).and_then(|it| it.set_modified(now)) {
            tracing::warn!(%error, image = %chain, "cannot note that an image is used");
        }
    }

    /// What images there are now, whoever has added them.
    pub(crate) fn index(&self) -> io::Result<Arc<Index>> {
        let path = self.dir.join("index.json");
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Arc::default()),
            file => file?,
        };
        let about = file.metadata()?;
        let stamp = (about.ino(), about.len(), about.mtime(), about.mtime_nsec());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0 == Some(stamp) {
            return Ok(seen.1.clone());
        }
        let bad = |why: String| io::Error::new(ErrorKind::InvalidData, format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        (&mut file).take(LARGEST_INDEX).read_to_end(&mut bytes)?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if index.format > FORMAT {
            return Err(bad(format!("it was written by a newer version (format {})", index.format)));
        }
        *seen = (Some(stamp), Arc::new(index));
        Ok(seen.1.clone())
    }

    /// Changes the index: on the disk when it returns. Waits for whoever else does; not on a thread that serves others.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Index) -> T) -> io::Result<T> {
        let lock = self.dir.join("index.lock");
        let mut waited = Duration::ZERO;
        let _alone = loop {
            match try_lock(&lock, FlockOperation::NonBlockingLockExclusive)? {
                Some(held) => break held,
                None if waited < INDEX_PATIENCE => std::thread::sleep(LOOK / 10),
                None => return Err(io::Error::new(ErrorKind::TimedOut, "another process holds the index of images")),
            }
            waited += LOOK / 10;
        };
        let mut index = Index { format: FORMAT, ..(*self.index()?).clone() };
        let changed = change(&mut index);
        let bytes = serde_json::to_vec(&index)?;
        if bytes.len() as u64 >= LARGEST_INDEX {
            return Err(io::Error::new(ErrorKind::QuotaExceeded, "there are too many images"));
        }
        // What it speaks of is on the disk before it.
        for dir in ["blobs/sha256", "roots"] {
            File::open(self.dir.join(dir))?.sync_all()?;
        }
        let fresh = self.ingest("index.tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, self.dir.join("index.json"))?;
        File::open(&self.dir)?.sync_all()?;
        Ok(changed)
    }

    /// While it is held, nothing is collected.
    pub(crate) async fn adding(&self, patience: Duration) -> io::Result<Held> {
        let lock = wait_lock(&self.dir.join("lock"), FlockOperation::NonBlockingLockShared, patience).await?;
        Ok(Held { _lock: lock, _ours: None })
    }

    /// While it is held, nobody else makes this blob (or, with `root`, the files of this image).
    pub(crate) async fn making(&self, digest: &Digest, root: bool, patience: Duration) -> io::Result<Held> {
        let byte = digest.hex().get(..2).and_then(|it| usize::from_str_radix(it, 16).ok()).unwrap_or_default();
        let at = byte % STRIPES + if root { STRIPES } else { 0 };
        let ours = match self.stripes.get(at) {
            Some(stripe) => tokio::time::timeout(patience, stripe.clone().lock_owned()).await.map_err(|_| busy())?,
            None => return Err(ErrorKind::NotFound.into()),
        };
        let path = self.dir.join("locks").join(at.to_string());
        let lock = wait_lock(&path, FlockOperation::NonBlockingLockExclusive, patience).await?;
        Ok(Held { _lock: lock, _ours: Some(ours) })
    }

    /// What is there of a blob, to be gone on with by who is [`Self::making`] it.
    pub(crate) async fn part(&self, digest: &Digest) -> io::Result<Part> {
        let path = self.ingest(&format!("{}.part", digest.hex()));
        let opened = tokio::task::spawn_blocking(move || {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).append(true).create(true).mode(0o600).open(&path)?;
            let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 128 << 10]);
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hash.update(buffer.get(..read).unwrap_or_default());
                length += read as u64;
            }
            Ok::<_, io::Error>(Part { file: tokio::fs::File::from_std(file), path, hash, length })
        });
        opened.await?
    }

    /// Puts a whole part to its place, or away when it is not what it should be.
    pub(crate) async fn keep(&self, part: Part, expected: &Digest) -> io::Result<Result<(), Digest>> {
        let Part { mut file, path, hash, .. } = part;
        file.flush().await?;
        file.sync_all().await?;
        let found = Digest::finish(hash);
        if found != *expected {
            fs::remove_file(path)?;
            return Ok(Err(found));
        }
        fs::rename(path, self.blob(expected))?;
        Ok(Ok(()))
    }

    /// Writes a blob from what is at hand, at most `most` bytes, and says which it is and how long. With `expected`,
    /// nothing else is kept.
    pub(crate) fn put(&self, from: &mut dyn Read, most: u64, expected: Option<&Digest>) -> io::Result<(Digest, u64)> {
        let path = self.ingest(&format!("{}.tmp", kit::id()));
        let mut put = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 128 << 10]);
            loop {
                let read = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                length += read as u64;
                if length > most {
                    return Err(io::Error::new(ErrorKind::QuotaExceeded, format!("a blob has more than {most} bytes")));
                }
                let bytes = buffer.get(..read).unwrap_or_default();
                hash.update(bytes);
                file.write_all(bytes)?;
            }
            let found = Digest::finish(hash);
            if let Some(expected) = expected.filter(|it| **it != found) {
                let why = format!("unexpected digest {found}, expected {expected}");
                return Err(io::Error::new(ErrorKind::InvalidData, why));
            }
            file.sync_all()?;
            fs::rename(&path, self.blob(&found))?;
            Ok((found, length))
        };
        put().inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }

    /// A file without a name, for what must be read twice.
    pub(crate) fn scratch(&self) -> io::Result<File> {
        let path = self.ingest(&format!("{}.tmp", kit::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(path)?;
        Ok(file)
    }

    /// Makes the files of an image by `unpack`, which is given an empty directory and says how many bytes it has filled:
    /// all of them or none. For who is [`Self::making`] them.
    pub(crate) fn make_root<E: From<io::Error>>(
        &self,
        chain: &Digest,
        unpack: impl FnOnce(&Path) -> Result<u64, E>,
    ) -> Result<PathBuf, E> {
        if let Some(root) = self.root(chain) {
            return Ok(root);
        }
        let fresh = self.ingest(&format!("{}.root", chain.hex()));
        let make = || -> Result<(), E> {
            remove(&fresh)?;
            let files = fresh.join("fs");
            fs::DirBuilder::new().mode(0o700).create(&fresh)?;
            fs::DirBuilder::new().mode(0o755).create(&files)?;
            // Whatever the umask was.
            fs::set_permissions(&files, fs::Permissions::from_mode(0o755))?;
            let bytes = unpack(&files)?;
            let about = fresh.join("about");
            fs::write(&about, bytes.to_string())?;
            File::open(&about)?.set_modified(self.clock.now().into())?;
            rustix::fs::syncfs(File::open(&fresh)?).map_err(io::Error::from)?;
            let root = self.dir.join("roots").join(chain.hex());
            remove(&root)?;
            fs::rename(&fresh, root)?;
            Ok(())
        };
        match make() {
            Ok(()) => Ok(self.dir.join("roots").join(chain.hex()).join("fs")),
            Err(error) => {
                let _ = remove(&fresh);
                Err(error)
            }
        }
    }

    /// Removes images by `choose`, and then everything that no image has. Nothing when somebody adds right now: `None`.
    pub(crate) fn collect(&self, choose: impl FnOnce(&Index) -> Vec<Digest>) -> io::Result<Option<Vec<Record>>> {
        let Some(_alone) = try_lock(&self.dir.join("lock"), FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(None);
        };
        let gone = choose(&*self.index()?);
        let mut removed = Vec::new();
        if !gone.is_empty() {
            removed = self.update(|index| gone.iter().filter_map(|id| index.images.remove(id)).collect())?;
        }
        let index = self.index()?;
        let (mut blobs, mut roots) = (BTreeSet::new(), BTreeSet::new());
        for (id, it) in &index.images {
            blobs.extend(it.layers.iter().chain([id, &it.manifest]).map(|it| it.hex()));
            roots.insert(it.root.hex());
        }
        for (dir, kept) in [("blobs/sha256", blobs), ("roots", roots)] {
            for entry in fs::read_dir(self.dir.join(dir))? {
                let entry = entry?;
                if !entry.file_name().to_str().is_some_and(|it| kept.contains(it)) {
                    fs::rename(entry.path(), self.ingest(&format!("{}.gone", kit::id())))?;
                }
            }
        }
        self.sweep()?;
        Ok(Some(removed))
    }

    /// Clears what nobody goes on with. For who is alone.
    fn sweep(&self) -> io::Result<()> {
        let now = self.clock.now();
        for entry in fs::read_dir(self.dir.join("ingest"))? {
            let entry = entry?;
            let part = entry.file_name().to_str().is_some_and(|it| it.ends_with(".part"));
            let changed =
                entry.metadata().and_then(|it| it.modified()).ok().and_then(|it| Timestamp::try_from(it).ok());
            let fresh = changed.is_some_and(|it| now.duration_since(it).unsigned_abs() < STALE);
            if !(part && fresh) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Bytes of the disk it is on: all, and what is free for us.
    pub(crate) fn disk(&self) -> io::Result<(u64, u64)> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        Ok((disk.f_blocks.saturating_mul(disk.f_frsize), disk.f_bavail.saturating_mul(disk.f_frsize)))
    }
}

/// A blob that is not whole yet.
pub(crate) struct Part {
    file: tokio::fs::File,
    path: PathBuf,
    hash: Sha256,
    length: u64,
}

impl Part {
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// What is there is on the disk's queue, for whoever goes on with it.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await
    }

    /// Begins again.
    pub(crate) async fn restart(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.set_len(0).await?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }
}

/// Removes a file or a directory with all that is in it; what an image has forbidden to its owner, too.
fn remove(path: &Path) -> io::Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(it) if it.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that is locked.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closed alone it stays locked as long as a process that was forked meanwhile has not executed anything.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn try_lock(path: &Path, how: FlockOperation) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, how) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn wait_lock(path: &Path, how: FlockOperation, patience: Duration) -> io::Result<Lock> {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if let Some(file) = try_lock(path, how)? {
            return Ok(file);
        }
        if tokio::time::Instant::now() >= end {
            return Err(busy());
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn busy() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "somebody else has been busy with it for too long")
}
