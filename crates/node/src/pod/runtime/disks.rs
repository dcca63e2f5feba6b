//! Volumes of claims whose sizes hold: each is a file system in a file of its directory, as a workspace is. It is mounted
//! nowhere but in the pods that have it, which all have the same one: with the last of them it goes, and its loop device.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Runtime, blocking};
use crate::launcher::{self, Disk};
use crate::pod::{PodConfig, VolumeSource};
use crate::{Error, quota};

/// Larger ones cost too much before anything is in them: 16 MiB for this.
const MOST: u64 = 1 << 40;

impl Runtime {
    /// Whether a directory of ours is, or now becomes, a file system, of `bytes` when that is said. What has files already
    /// stays what it is, and so does what a pod has as it is. One that is smaller grows, whoever has it mounted.
    pub(crate) async fn bounded(&self, directory: &Path, bytes: Option<u64>) -> Result<bool, Error> {
        let at = directory.to_owned();
        let look = Error::disk(format!("look into {}", directory.display()));
        let looked = blocking(move || {
            let image = launcher::image(&at)?;
            let size = image.as_ref().map(|it| Ok::<_, std::io::Error>(it.metadata()?.len().min(launcher::size(it)?)));
            let disk = rustix::fs::statvfs(&at)?;
            Ok((size.transpose()?, disk.f_blocks.saturating_mul(disk.f_frsize)))
        });
        let (has, room) = looked.await?.map_err(look)?;
        let Some(bytes) = bytes.map(quota::rounded) else { return Ok(has.is_some()) };
        if bytes > MOST.min(room) {
            let (volume, kept) = (directory.display(), has.is_some());
            tracing::warn!(%volume, bytes, "the size of a volume does not hold: it is more than this disk has, or 1 TiB");
            return Ok(kept);
        }
        match has {
            Some(has) if has < bytes => {
                // Whoever has it can do with what there is.
                if let Err(error) = self.mounted(directory, Some(bytes), None).await {
                    tracing::warn!(
                        error = kit::chain(&error),
                        "a volume stays smaller than its claim (growing it takes CAP_SYS_RESOURCE)"
                    );
                }
                Ok(true)
            }
            Some(_) => Ok(true),
            None => {
                let _alone = self.shared.formatting.lock().await;
                if self.is_plain(directory) {
                    return Ok(false);
                }
                self.shared.engine.format_volume(directory, bytes).await
            }
        }
    }

    /// A pod that lives has the directory itself.
    fn is_plain(&self, directory: &Path) -> bool {
        let has = |pod: &PodConfig| {
            pod.volumes.iter().any(|it| matches!(&it.source, VolumeSource::Path(path) if path == directory))
        };
        self.list().iter().any(|it| it.alive && has(&it.config))
    }

    /// The root of a directory's file system, with its owners as they are on the disk or as a pod sees them.
    pub(crate) async fn mounted(
        &self,
        directory: &Path,
        bytes: Option<u64>,
        shift: Option<i32>,
    ) -> Result<OwnedFd, Error> {
        let engine = &self.shared.engine;
        let asked = Disk { directory: PathBuf::from(directory), bytes, shift };
        let mut made = engine.launcher().await?.disk(asked.clone()).await;
        if matches!(made, Err(launcher::Error::Gone)) {
            made = engine.launcher().await?.disk(asked).await;
        }
        made.map_err(Error::machine("mount the volume of a claim"))
    }
}
