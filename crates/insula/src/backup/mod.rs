//! `insula backup` and `insula restore`: a data directory in one file.

mod pack;
mod restore;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use kit::{Clock, Shutdown, Tasks};
use serde::{Deserialize, Serialize};

use crate::home::{self, Vacant};
use crate::house::default_data_dir;
use crate::signals;

/// The name of the archive's first entry, which says what the archive is.
const STAMP: &str = "insula-backup.json";
/// What this program writes. An archive with a higher number is refused.
const FORMAT: u32 = 1;
/// Files of the data directory that are copied as they are.
const PLAIN: [&str; 3] = ["api-key", "kubernetes.address", "gateway.address"];
/// The keys of the Kubernetes API.
const KEYS: &str = "pki";
const WORKSPACES: &str = "workspaces";
/// The most that is taken for a key or an address.
const MOST_PLAIN: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stamp {
    format: u32,
    /// The layout of the data directory.
    layout: u32,
    /// The program that made it.
    version: String,
    created_at: jiff::Timestamp,
    workspaces: bool,
}

/// Copy a data directory into one file, also while an `insula up` uses it.
///
/// In the file are the Kubernetes objects and the runs and sessions as they are at one moment, all keys, and the
/// workspaces, each file as it is when it is come to. Keep it as you keep a key. Volumes of PersistentVolumeClaims, images
/// and the logs of Pods are not in it.
#[derive(Args)]
pub(crate) struct Backup {
    /// The file, which is written whole or not at all; `-` is stdout
    file: PathBuf,
    /// Of this data directory [default: insula in the user's data directory]
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Leave out the files of sessions
    #[arg(long)]
    without_workspaces: bool,
}

/// Make a data directory of a file that `insula backup` wrote.
///
/// It must be empty or not there yet, and becomes a data directory only when all of the file has been read and checked.
#[derive(Args)]
pub(crate) struct Restore {
    /// The file; `-` is stdin
    file: PathBuf,
    /// Into this directory [default: insula in the user's data directory]
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Leave out the files of sessions
    #[arg(long)]
    without_workspaces: bool,
}

impl Backup {
    pub(crate) async fn run(self) -> Result<()> {
        let dir = home::existing(&data_dir(self.data_dir)?)?;
        let to = (self.file.as_os_str() != "-").then_some(self.file);
        if to.is_none() && io::stdout().is_terminal() {
            bail!("a backup is nothing for a terminal: name a file, or send stdout to one");
        }
        interruptibly(move |shutdown| backup(&dir, to.as_deref(), !self.without_workspaces, shutdown)).await
    }
}

impl Restore {
    pub(crate) async fn run(self) -> Result<()> {
        let dir = data_dir(self.data_dir)?;
        interruptibly(move |shutdown| {
            let from: Box<dyn io::Read> = match self.file.as_os_str() == "-" {
                true => Box::new(io::stdin().lock()),
                false => Box::new(File::open(&self.file).with_context(|| format!("open {}", self.file.display()))?),
            };
            let vacant = Vacant::take(&dir)?;
            let restored = restore::unpack(from, &vacant.inside(), !self.without_workspaces, &|| !shutdown.has_begun());
            let stamp = restored.with_context(|| format!("cannot restore {}", self.file.display()))?;
            let dir = vacant.fill()?;
            eprintln!("{} is as it was backed up on {}", dir.display(), stamp.created_at);
            Ok(())
        })
        .await
    }
}

fn data_dir(named: Option<PathBuf>) -> Result<PathBuf> {
    named.map_or_else(default_data_dir, Ok)
}

/// Does what blocks, which looks at the shutdown now and then.
async fn interruptibly(work: impl FnOnce(&Shutdown) -> Result<()> + Send + 'static) -> Result<()> {
    let tasks = Tasks::new(Shutdown::new());
    signals::end_on_signal(&tasks);
    let shutdown = tasks.shutdown().clone();
    let done = tokio::task::spawn_blocking(move || work(&shutdown)).await;
    let interrupted = tasks.shutdown().has_begun();
    tasks.end().await;
    match done? {
        Err(_) if interrupted => bail!("interrupted"),
        done => done,
    }
}

fn backup(dir: &Path, to: Option<&Path>, workspaces: bool, shutdown: &Shutdown) -> Result<()> {
    let to = to.map(std::path::absolute).transpose()?;
    let beside = match &to {
        Some(to) => to.parent().unwrap_or(to).to_owned(),
        None => std::env::temp_dir(),
    };
    if let Some(to) = &to
        && fs::symlink_metadata(to).is_ok_and(|found| !found.is_file())
    {
        bail!("{} is there and no file: name another one", to.display());
    }
    let scratch = Scratch::make(&beside)?;
    let goes_on = || !shutdown.has_begun();
    let stamp = Stamp {
        format: FORMAT,
        layout: home::LAYOUT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at: Clock::system().now(),
        workspaces,
    };
    let packed = match &to {
        Some(to) => {
            let archive = scratch.0.join("archive");
            let options = File::options().create_new(true).write(true).mode(0o600).clone();
            let mut file = options.open(&archive).with_context(|| format!("write beside {}", to.display()))?;
            let packed = pack::pack(dir, &stamp, &mut file, &scratch.0, &goes_on)?;
            file.sync_all()?;
            fs::rename(&archive, to).with_context(|| format!("write {}", to.display()))?;
            File::open(&beside)?.sync_all()?;
            packed
        }
        None => pack::pack(dir, &stamp, &mut io::stdout().lock(), &scratch.0, &goes_on)?,
    };
    if packed.changed > 0 {
        eprintln!("{} files of workspaces changed while they were copied", packed.changed);
    }
    if let Some((path, why)) = &packed.first_left_out {
        eprintln!("{} entries of workspaces are left out: of the first, {path:?}, {why}", packed.left_out);
    }
    let shown = to.as_deref().unwrap_or_else(|| Path::new("stdout"));
    eprintln!("{} is backed up to {}, with {} files of workspaces", dir.display(), shown.display(), packed.files);
    Ok(())
}

/// A directory for what is in the making, for the owner's eyes only, that goes in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn make(beside: &Path) -> Result<Self> {
        let path = beside.join(format!(".insula-backup-{}", kit::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("write to {}", beside.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "what a backup needed could not be removed");
        }
    }
}
