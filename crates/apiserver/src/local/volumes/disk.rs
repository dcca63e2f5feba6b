//! The directories of provisioned volumes.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Where they are, each under the name of its volume.
#[derive(Clone)]
pub(super) struct Disk(PathBuf);

impl Disk {
    pub(super) fn new(root: PathBuf) -> Self {
        Self(std::path::absolute(&root).unwrap_or(root))
    }

    /// Makes the directory of a volume, if it is not there. Whoever gets it mounted may write in it; nobody else comes past
    /// its parent.
    pub(super) async fn make(&self, name: &str) -> io::Result<String> {
        let path = self.of(name)?;
        let text = path.to_str().ok_or_else(|| io::Error::other("the path is not UTF-8"))?.to_owned();
        let root = self.0.clone();
        off_the_runtime(move || {
            DirBuilder::new().recursive(true).mode(0o700).create(root)?;
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(&path)? => {}
                made => made?,
            }
            fs::set_permissions(&path, Permissions::from_mode(0o777))
        })
        .await?;
        Ok(text)
    }

    /// Removes what `path` names and all that is in it, if that is the directory of the volume: nothing else is ever
    /// touched, and links in it are removed, not followed.
    pub(super) async fn remove(&self, name: &str, path: &str) -> io::Result<()> {
        let own = self.of(name)?;
        if own != Path::new(path) {
            let why = format!(
                "host_path deleter only supports volumes below {} but received provided {path}",
                self.0.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        off_the_runtime(move || match fs::remove_dir_all(own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        })
        .await
    }

    fn of(&self, name: &str) -> io::Result<PathBuf> {
        let mut parts = Path::new(name).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(one)), None) if one == name => Ok(self.0.join(one)),
            _ => Err(io::Error::other("the name of the volume is no name of a directory")),
        }
    }
}

fn is_directory(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.is_dir())
}

async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
