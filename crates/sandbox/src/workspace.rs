//! Directories that outlive sandboxes: `NAMESPACE/INSTANCE/HASH`, one for each session, or for each run without one.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::Error;
use crate::live::{Key, Whose};

/// What waits to be removed; no namespace has such a name.
const REMOVED: &str = ".removed";

pub(crate) struct Workspaces {
    root: PathBuf,
    /// Held while directories above workspaces are made or removed: what one call made is not to go before it has put a
    /// workspace there.
    above: Mutex<()>,
}

impl Workspaces {
    /// Takes the directory and makes it this user's alone.
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join(REMOVED));
        let root = made.and_then(|()| root.canonicalize()).map_err(Error::disk("make", &root))?;
        Ok(Self { root, above: Mutex::default() })
    }

    pub(crate) fn of_instance(&self, namespace: &str, instance: &str) -> Result<PathBuf, Error> {
        for name in [namespace, instance] {
            let plain = !name.is_empty() && !name.starts_with('.') && name.len() <= 253;
            if !plain || name.contains(['/', '\0']) {
                return Err(Error::Unfit(format!("{name:?} is no name of an object")));
            }
        }
        Ok(self.root.join(namespace).join(instance))
    }

    pub(crate) fn of(&self, key: &Key) -> Result<PathBuf, Error> {
        let (kind, name) = match &key.whose {
            Whose::Session(session) => ("session", session.as_str()),
            Whose::Run(run) => ("run", run.as_str()),
        };
        let hash = Sha256::digest(format!("{kind}\0{name}").as_bytes());
        let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Ok(self.of_instance(&key.namespace, &key.instance)?.join(hash))
    }

    /// Makes a workspace, where it is not there yet. Only the last directory is open to the sandbox's own ids.
    pub(crate) fn make(&self, workspace: &Path) -> Result<(), Error> {
        let _above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match workspace.parent() {
            Some(above) => fs::DirBuilder::new().recursive(true).mode(0o700).create(above),
            None => Ok(()),
        };
        let made = made.and_then(|()| match fs::DirBuilder::new().mode(0o755).create(workspace) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
        made.map_err(Error::disk("make the workspace", workspace))
    }

    /// Takes a directory out of the way, at once, and tells where it is then; what uses its name again begins empty.
    pub(crate) fn discard(&self, directory: &Path) -> Result<Option<PathBuf>, Error> {
        let away = self.root.join(REMOVED).join(kit::id());
        match fs::rename(directory, &away) {
            Ok(()) => {
                let _above = self.above.lock().unwrap_or_else(PoisonError::into_inner);
                for above in directory.ancestors().skip(1).take_while(|it| *it != self.root) {
                    // The instance's and the namespace's: refused while anything is in them.
                    let _ = fs::remove_dir(above);
                }
                Ok(Some(away))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::disk("remove the workspace", directory)(error)),
        }
    }

    /// What was discarded and is still there.
    pub(crate) fn removed(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.join(REMOVED));
        entries.map(|entries| entries.flatten().map(|it| it.path()).collect()).unwrap_or_default()
    }
}

/// Bytes that a directory takes on its file system; links are not followed, what cannot be read is not counted. Blocks.
pub(crate) fn size(directory: &Path) -> u64 {
    let mut size = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            // Of the entry itself: a link counts as a link.
            let Ok(metadata) = entry.metadata() else { continue };
            size += metadata.blocks() * 512;
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, instance: &str, whose: Whose) -> Key {
        Key { namespace: namespace.into(), instance: instance.into(), whose }
    }

    #[test]
    fn every_session_has_its_own_place_and_no_name_leaves_it() {
        let home = tempfile::tempdir().unwrap();
        let all = Workspaces::open(home.path().join("workspaces")).unwrap();
        let session = |name: &str| Whose::Session(name.to_owned());
        let mut seen = std::collections::BTreeSet::new();
        for whose in [session("a"), session("../../etc"), session("b/c"), Whose::Run("a".into())] {
            let path = all.of(&key("default", "me", whose)).unwrap();
            assert_eq!(path.parent().unwrap(), all.of_instance("default", "me").unwrap());
            assert!(seen.insert(path));
        }
        for (namespace, instance) in [("..", "me"), ("default", "."), ("a/b", "me"), ("", "me"), (REMOVED, "x")] {
            assert!(all.of(&key(namespace, instance, session("a"))).is_err(), "{namespace} {instance}");
        }
    }

    #[test]
    fn what_is_discarded_is_out_of_the_way_at_once() {
        let home = tempfile::tempdir().unwrap();
        let all = Workspaces::open(home.path().to_owned()).unwrap();
        let path = all.of(&key("default", "me", Whose::Session("s".into()))).unwrap();
        all.make(&path).unwrap();
        all.make(&path).unwrap();
        fs::write(path.join("file"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/", path.join("link")).unwrap();
        assert!((8192..65_536).contains(&size(&path)), "{}", size(&path));
        let away = all.discard(&all.of_instance("default", "me").unwrap()).unwrap().unwrap();
        assert!(!path.exists() && all.removed() == [away]);
        assert!(!home.path().join("default").exists(), "nor is anything left above it");
        assert_eq!(all.discard(&path).unwrap(), None);
    }

    #[test]
    fn one_can_be_made_while_the_last_one_beside_it_goes() {
        let home = tempfile::tempdir().unwrap();
        let all = Workspaces::open(home.path().join("workspaces")).unwrap();
        let again_and_again = |run: &str| {
            let path = all.of(&key("default", "me", Whose::Run(run.into()))).unwrap();
            for _ in 0..2000 {
                all.make(&path).unwrap();
                fs::remove_dir(all.discard(&path).unwrap().unwrap()).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for run in ["a", "b", "c", "d"] {
                scope.spawn(move || again_and_again(run));
            }
        });
    }
}
