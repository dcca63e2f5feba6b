//! The data directory: who holds it, which version made it, and what is where in it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kit::{ExposeSecret, SecretString};
use rustix::fs::FlockOperation;

/// The layout that this program writes. A directory with a higher number is refused and not touched.
pub(crate) const LAYOUT: u32 = 1;
/// Where a restore unpacks, within the directory that it fills.
const RESTORING: &str = ".restoring";

/// Says which layout a directory has; without it, it is no data directory.
const LAYOUT_FILE: &str = "layout";
const LAYOUT_FRESH: &str = "layout.new";

/// A data directory, held by this process until it is dropped. An ephemeral one is then removed.
pub(crate) struct Home {
    dir: PathBuf,
    /// Held for its lock, which the kernel frees however this process ends.
    lock: File,
    ephemeral: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the data directory {} is in use by process {holder}: stop that one, or choose another with --data-dir", .dir.display())]
    InUse { dir: PathBuf, holder: String },
    #[error(
        "the data directory {} was written by a newer version (layout {found}, this program knows {LAYOUT}): \
         use that version, or another directory", .dir.display()
    )]
    Newer { dir: PathBuf, found: u32 },
    #[error("there is no data directory {}", .dir.display())]
    Absent { dir: PathBuf },
    #[error("{} is not empty: what is there is not overwritten, name another directory with --data-dir", .dir.display())]
    NotEmpty { dir: PathBuf },
    #[error("{} is no data directory of Insula: it is not empty, and its `layout` file is missing or damaged", .dir.display())]
    Foreign { dir: PathBuf },
    #[error(
        "the data directory {} cannot be used (name another with --data-dir, or use --ephemeral): cannot {doing}",
        .dir.display()
    )]
    Io { dir: PathBuf, doing: &'static str, source: std::io::Error },
    #[error("the temporary directory {} cannot be used (TMPDIR names another)", .dir.display())]
    Temporary { dir: PathBuf, source: std::io::Error },
}

impl Home {
    /// Opens a data directory, making it when it is not there, and holds it.
    ///
    /// # Errors
    /// One clear sentence, with nothing touched: in use, from a newer version, somebody else's, or not writable.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let io = |doing| move |source| Error::Io { dir: dir.to_owned(), doing, source };
        let dir = &std::path::absolute(dir).map_err(io("find it"))?;
        let layout = dir.join(LAYOUT_FILE);
        match fs::read_dir(dir) {
            Ok(mut entries) => {
                // Killed at its first start, it has these alone.
                let ours = |name: &OsStr| name == "lock" || name == LAYOUT_FRESH;
                if !layout.exists() && entries.any(|entry| entry.is_ok_and(|entry| !ours(&entry.file_name()))) {
                    return Err(Error::Foreign { dir: dir.to_owned() });
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create it"))?;
            }
            Err(error) => return Err(io("read it")(error)),
        }
        look(dir)?;
        let lock = lock(&dir.join("lock")).map_err(io("write its lock file"))?;
        let lock = lock.map_err(|holder| Error::InUse { dir: dir.to_owned(), holder })?;
        if !layout.exists() {
            mark(dir).map_err(io("write to it"))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io("close it to others"))?;
        Ok(Self { dir: dir.to_owned(), lock, ephemeral: false })
    }

    /// A fresh directory that goes when this process ends. One that a killed process left behind goes now.
    ///
    /// # Errors
    /// When the machine's temporary directory is not writable.
    pub(crate) fn ephemeral() -> Result<Self, Error> {
        let all = std::env::temp_dir().join(format!("insula-{}", rustix::process::getuid().as_raw()));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&all)
            .and_then(|()| fs::set_permissions(&all, fs::Permissions::from_mode(0o700)))
            .map_err(|source| Error::Temporary { dir: all.clone(), source })?;
        // In a directory that everybody may write to, somebody else could have made it first.
        let owner = fs::metadata(&all).map(|it| std::os::unix::fs::MetadataExt::uid(&it));
        if !owner.is_ok_and(|uid| uid == rustix::process::geteuid().as_raw()) {
            return Err(Error::Foreign { dir: all });
        }
        sweep(&all);
        let mut home = Self::open(&all.join(kit::id()))?;
        home.ephemeral = true;
        Ok(home)
    }

    /// A file of ours that nobody else may read, made empty when it is not there.
    pub(crate) fn private(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path(name);
        let made = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        made.map_err(self.io("write to it"))?;
        Ok(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The gateway's API key: made once, kept for the owner's eyes only.
    ///
    /// # Errors
    /// When it can be neither read nor written.
    pub(crate) fn api_key(&self) -> Result<SecretString, Error> {
        let path = self.path("api-key");
        if let Ok(key) = fs::read_to_string(&path)
            && !key.trim().is_empty()
        {
            return Ok(SecretString::from(key.trim()));
        }
        let key = kit::token();
        write_private(&path, key.expose_secret()).map_err(self.io("write its API key"))?;
        Ok(key)
    }

    /// The address of last time for a listener, so that a kubeconfig outlives a restart.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        fs::read_to_string(self.path(&format!("{name}.address"))).ok()?.trim().parse().ok()
    }

    /// Notes a listener's address for the next time. That it cannot is no reason to fail.
    pub(crate) fn note_address(&self, name: &str, at: SocketAddr) {
        if self.address(name) != Some(at)
            && let Err(error) = fs::write(self.path(&format!("{name}.address")), at.to_string())
        {
            tracing::warn!(%error, "the address of {name} cannot be noted for the next start");
        }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let dir = self.dir.clone();
        move |source| Error::Io { dir, doing, source }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.ephemeral
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, dir = %self.dir.display(), "the ephemeral data directory could not be removed");
        }
        unlock(&self.lock);
    }
}

/// Makes a data directory of a directory, at once and for good.
fn mark(dir: &Path) -> std::io::Result<()> {
    let fresh = dir.join(LAYOUT_FRESH);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    writeln!(file, "{LAYOUT}")?;
    file.sync_all()?;
    fs::rename(&fresh, dir.join(LAYOUT_FILE))?;
    File::open(dir)?.sync_all()
}

/// Whether this program knows the layout of the directory; `false` where it has none.
fn look(dir: &Path) -> Result<bool, Error> {
    let Ok(found) = fs::read_to_string(dir.join(LAYOUT_FILE)) else { return Ok(false) };
    match found.trim().parse::<u32>() {
        Ok(found) if found <= LAYOUT => Ok(true),
        Ok(found) => Err(Error::Newer { dir: dir.to_owned(), found }),
        Err(_) => Err(Error::Foreign { dir: dir.to_owned() }),
    }
}

/// A data directory that is only read, whoever holds it.
///
/// # Errors
/// When it is none, or a newer version's.
pub(crate) fn existing(dir: &Path) -> Result<PathBuf, Error> {
    let dir = std::path::absolute(dir).map_err(|source| Error::Io { dir: dir.to_owned(), doing: "find it", source })?;
    match (look(&dir)?, dir.exists()) {
        (true, _) => Ok(dir),
        (false, true) => Err(Error::Foreign { dir }),
        (false, false) => Err(Error::Absent { dir }),
    }
}

/// A directory that becomes a data directory all at once, or stays empty. Nobody else can open it meanwhile.
pub(crate) struct Vacant {
    dir: PathBuf,
    lock: File,
    /// It was not there before, and goes again unless it is filled.
    made: bool,
}

impl Vacant {
    /// Takes an empty directory, making it when it is not there.
    ///
    /// # Errors
    /// When it is in use, or has anything in it.
    pub(crate) fn take(dir: &Path) -> Result<Self, Error> {
        let io = |doing| move |source| Error::Io { dir: dir.to_owned(), doing, source };
        let dir = &std::path::absolute(dir).map_err(io("find it"))?;
        let vacant = || match fs::read_dir(dir) {
            // What a restore leaves that was killed is nothing.
            Ok(mut entries) => {
                Ok(entries.all(|it| it.is_ok_and(|it| it.file_name() == "lock" || it.file_name() == RESTORING)))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(io("read it")(error)),
        };
        // Nothing is made in a directory that is somebody's.
        if !vacant()? && !dir.join("lock").exists() {
            return Err(Error::NotEmpty { dir: dir.to_owned() });
        }
        let made = !dir.exists();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create it"))?;
        let lock = lock(&dir.join("lock")).map_err(io("write its lock file"))?;
        let lock = lock.map_err(|holder| Error::InUse { dir: dir.to_owned(), holder })?;
        if !vacant()? {
            return Err(Error::NotEmpty { dir: dir.to_owned() });
        }
        let it = Self { dir: dir.to_owned(), lock, made };
        it.clear().map_err(io("write to it"))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io("close it to others"))?;
        fs::DirBuilder::new().mode(0o700).create(it.inside()).map_err(io("write to it"))?;
        Ok(it)
    }

    /// Where what it becomes is put together.
    pub(crate) fn inside(&self) -> PathBuf {
        self.dir.join(RESTORING)
    }

    /// Moves what is [inside](Self::inside), and on the disk, to its place.
    ///
    /// # Errors
    /// When it cannot be moved; the directory is then no data directory.
    pub(crate) fn fill(mut self) -> Result<PathBuf, Error> {
        self.made = false;
        let move_all = || {
            let inside = self.inside();
            for entry in fs::read_dir(&inside)? {
                let entry = entry?;
                fs::rename(entry.path(), self.dir.join(entry.file_name()))?;
            }
            fs::remove_dir(&inside)?;
            File::open(&self.dir)?.sync_all()?;
            // Only with this file it is a data directory.
            mark(&self.dir)
        };
        match move_all() {
            Ok(()) => Ok(self.dir.clone()),
            Err(source) => {
                Err(Error::Io { dir: self.dir.clone(), doing: "move the restored files to their place", source })
            }
        }
    }

    fn clear(&self) -> std::io::Result<()> {
        match fs::remove_dir_all(self.inside()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for Vacant {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, dir = %self.inside().display(), "what was unpacked could not be removed");
        }
        if self.made {
            let _ = fs::remove_file(self.dir.join("lock")).and_then(|()| fs::remove_dir(&self.dir));
        }
        unlock(&self.lock);
    }
}

/// Writes a file that only its owner can read, complete or not at all.
///
/// A file that is so already is left alone: a full disk must not keep us from starting.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&fresh, path)
}

/// The lock, or the pid of its holder.
fn lock(path: &Path) -> std::io::Result<Result<File, String>> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            // The pid is for people; the lock holds without it, on a full disk too.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(Ok(file))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            file.take(20).read_to_string(&mut holder)?;
            Ok(Err(holder))
        }
        Err(error) => Err(error.into()),
    }
}

/// Closed alone it stays locked as long as a process that was forked meanwhile has not executed anything.
fn unlock(lock: &File) {
    let _ = rustix::fs::flock(lock, FlockOperation::Unlock);
}

/// Removes the ephemeral directories whose processes are gone. A directory that was made a moment ago and has no lock
/// yet is somebody's who is just starting: it has no `layout` either, and stays.
fn sweep(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for dir in entries.flatten().map(|entry| entry.path()).filter(|dir| dir.join("layout").exists()) {
        if let Ok(Ok(_free)) = lock(&dir.join("lock")) {
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(result: Result<Home, Error>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_directory_is_held_by_one_and_free_again_after() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("data");
        let first = Home::open(&dir).unwrap();
        let key = first.api_key().unwrap();
        assert!(told(Home::open(&dir)).contains(&format!("in use by process {}", std::process::id())));
        drop(first);
        let second = Home::open(&dir).unwrap();
        assert_eq!(second.api_key().unwrap().expose_secret(), key.expose_secret());
    }

    #[test]
    fn what_is_newer_or_not_ours_is_refused_and_not_touched() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("layout"), "99").unwrap();
        assert!(told(Home::open(tmp.path())).contains("newer version"));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);

        let killed_at_first = tempfile::tempdir().unwrap();
        for name in ["lock", LAYOUT_FRESH] {
            fs::write(killed_at_first.path().join(name), "").unwrap();
        }
        drop(Home::open(killed_at_first.path()).unwrap());
        assert!(look(killed_at_first.path()).unwrap());

        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("thesis.txt"), "x").unwrap();
        assert!(told(Home::open(tmp.path())).contains("no data directory"));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);

        assert!(told(Home::open(Path::new("/proc/insula"))).contains("cannot create it"));
    }

    #[test]
    fn an_ephemeral_directory_goes_with_its_holder_and_leftovers_are_swept() {
        let home = Home::ephemeral().unwrap();
        let (dir, all) = (home.dir().to_owned(), home.dir().parent().unwrap().to_owned());
        drop(home);
        assert!(!dir.exists());
        let left = all.join("left-by-a-killed-process");
        drop(Home::open(&left).unwrap());
        let held = Home::open(&all.join("held")).unwrap();
        drop(Home::ephemeral().unwrap());
        assert!(!left.exists() && held.dir().exists());
        fs::remove_dir_all(held.dir()).unwrap();
    }
}
