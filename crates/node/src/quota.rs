//! File systems in files, by which workspaces and claims' volumes are bounded.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::SeekFrom;
use tokio::process::Command;

use crate::Error;
use crate::launcher::{self, FILES, IMAGE};

/// Templates of each kind that are kept.
const KEPT: usize = 8;
/// Longer than mkfs takes for the largest, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Less than this is no file system.
pub(crate) const LEAST: u64 = 16 << 20;

/// Makes images; each size is formatted once and then copied.
pub(crate) struct Formatter {
    program: PathBuf,
    templates: PathBuf,
    /// Of the directory that is shown: who may write to it, and to whom it belongs.
    mode: u32,
    owner: Option<u32>,
    /// One format at a time.
    work: tokio::sync::Mutex<()>,
}

impl Formatter {
    /// `None` where there is no mkfs.ext4. `templates`: a directory of ours, for this mode and owner alone.
    pub(crate) fn find(templates: PathBuf, mode: u32, owner: Option<u32>) -> Option<Self> {
        let places = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
        let program = places.iter().map(|it| Path::new(it).join("mkfs.ext4")).find(|it| it.exists())?;
        Some(Self { program, templates, mode, owner, work: tokio::sync::Mutex::default() })
    }

    /// Whether a workspace is, or now becomes, a file system of at most `bytes`. One that has files already, made where
    /// it was counted, stays what it is; one that has an image keeps its size.
    pub(crate) async fn prepare(&self, workspace: &Path, bytes: u64) -> Result<bool, Error> {
        let found = launcher::image(workspace).map_err(Error::disk(format!("look into {}", workspace.display())))?;
        if found.is_some() {
            return Ok(true);
        }
        let (new, image) = (workspace.join(format!("{IMAGE}.new")), workspace.join(IMAGE));
        // Of a node that died while it copied.
        if launcher::is_marked(&new) {
            fs::remove_file(&new).map_err(Error::disk(format!("remove {}", new.display())))?;
        }
        let mut entries = fs::read_dir(workspace).map_err(Error::disk(format!("read {}", workspace.display())))?;
        if entries.next().is_some() {
            return Ok(false);
        }
        let template = self.template(rounded(bytes)).await?;
        let copied = tokio::task::spawn_blocking(move || {
            let copy = fs::OpenOptions::new().write(true).create_new(true).open(&new)?;
            if !launcher::mark(&copy) {
                return fs::remove_file(&new).map(|()| false);
            }
            copy_sparse(&template, &copy)?;
            fs::rename(&new, &image).map(|()| true)
        });
        let copied = copied.await.map_err(Error::machine("copy an empty file system"))?;
        copied.map_err(Error::disk(format!("make a file system in {}", workspace.display())))
    }

    fn shown(&self, files: &Path) -> io::Result<()> {
        fs::create_dir_all(files)?;
        fs::set_permissions(files, fs::Permissions::from_mode(self.mode))?;
        match self.owner {
            Some(owner) => std::os::unix::fs::chown(files, Some(owner), Some(owner)),
            None => Ok(()),
        }
    }

    /// An empty file system of that size.
    async fn template(&self, bytes: u64) -> Result<fs::File, Error> {
        let path = self.templates.join(format!("{bytes}.ext4"));
        let _work = self.work.lock().await;
        if let Ok(there) = fs::File::open(&path) {
            return Ok(there);
        }
        let (new, root) = (path.with_extension("new"), self.templates.join("root"));
        let _ = fs::remove_file(&new);
        self.shown(&root.join(FILES)).map_err(Error::disk(format!("make {}", root.display())))?;
        let (block, journal) = if bytes < 128 << 20 { ("1024", "1") } else { ("4096", "8") };
        let mut mkfs = Command::new(&self.program);
        let done = mkfs
            .args(["-q", "-F", "-m", "0", "-b", block, "-J", &format!("size={journal}")])
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d"])
            .args([root.as_os_str(), new.as_os_str(), format!("{}k", bytes >> 10).as_ref()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = tokio::time::timeout(PATIENCE, done).await.map_err(Error::machine("wait for mkfs.ext4"))?;
        let done = done.map_err(Error::machine("run mkfs.ext4"))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            return Err(Error::machine("make a file system")(said));
        }
        fs::rename(&new, &path).map_err(Error::disk(format!("make {}", path.display())))?;
        let made = fs::File::open(&path).map_err(Error::disk(format!("open {}", path.display())))?;
        self.prune();
        Ok(made)
    }

    /// Keeps the latest templates: who asks for ever new sizes does not fill the disk with them.
    fn prune(&self) {
        let all = fs::read_dir(&self.templates).into_iter().flatten().flatten().map(|it| it.path());
        let templates = all.filter(|it| it.extension().is_some_and(|it| it == "ext4"));
        let mut dated: Vec<_> = templates.filter_map(|it| Some((it.metadata().ok()?.modified().ok()?, it))).collect();
        dated.sort();
        for (_, path) in dated.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What an image is as large as that is to hold `bytes`.
pub(crate) fn rounded(bytes: u64) -> u64 {
    bytes.max(LEAST).checked_next_multiple_of(1 << 20).unwrap_or(u64::MAX)
}

/// Copies what is there of a file that is mostly holes.
fn copy_sparse(from: &fs::File, to: &fs::File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // No more data.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = begin;
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..most).unwrap_or_default();
            let read = from.read_at(part, at)?;
            if read == 0 {
                return Ok(());
            }
            to.write_all_at(part.get(..read).unwrap_or_default(), at)?;
            at += read as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_stay_holes_when_an_image_is_copied() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = fs::File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        let file = fs::File::open(&from).unwrap();
        copy_sparse(&file, &fs::File::create(&to).unwrap()).unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read(&from).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    #[tokio::test]
    async fn ever_new_sizes_leave_a_few_templates() {
        let dir = tempfile::tempdir().unwrap();
        let Some(formatter) = Formatter::find(dir.path().join("templates"), 0o777, None) else {
            eprintln!("skipped: there is no mkfs.ext4");
            return;
        };
        for size in 0..KEPT as u64 + 2 {
            let made = formatter.template(LEAST + (size << 20)).await.unwrap();
            assert_eq!(made.metadata().unwrap().len(), LEAST + (size << 20));
        }
        let kept = fs::read_dir(dir.path().join("templates")).unwrap();
        let kept = kept.filter(|it| it.as_ref().unwrap().path().extension().is_some_and(|it| it == "ext4"));
        assert_eq!(kept.count(), KEPT);
    }
}
