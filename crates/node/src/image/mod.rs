//! The images of a node: what a name means, where it comes from, and its files, unpacked once and shared.
//!
//! `host` is this machine's own files. A few names mean the same unless something else was loaded or pulled under them
//! ([`ImageMap`]). Everything else comes from an archive ([`Images::load`]) or from a registry, verified by digest.

mod collect;
mod credentials;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod load;
mod manifest;
mod map;
mod name;
mod pull;
mod registry;
mod store;
mod tar;
#[cfg(test)]
mod tests;
mod unpack;
mod user;
mod zstd;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kit::{Clock, Shutdown};
use serde::Serialize;
use tokio::time::Instant;

pub use credentials::Credential;
pub use map::ImageMap;
pub use pull::PullProgress;
pub(crate) use user::{User, look_up as look_up_user};

use manifest::ImageConfig;
use map::{HOST, Meaning};
use name::{Digest, Name};
use registry::{Patience, Registries};
use store::{Record, Store};

use crate::pod::Root;

/// What finds programs where an image says nothing, as docker has it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What one image may have.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of its files, unpacked, and of its layers, packed.
    pub bytes: u64,
    pub entries: u64,
    /// Bytes of the disk that are left free.
    pub reserve: u64,
}

impl Default for Limits {
    /// 20 GiB, a million entries, and 1 GiB that stays free.
    fn default() -> Self {
        Self { bytes: 20 << 30, entries: 1_000_000, reserve: 1 << 30 }
    }
}

/// When a registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// An image that is here, and what a container of it runs when it is told nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// `sha256:…` of its config; `host`.
    pub(crate) id: String,
    /// As `status.containerStatuses[].image` shows it.
    pub(crate) name: String,
    /// As `status.containerStatuses[].imageID` shows it.
    pub(crate) reference: String,
    pub(crate) root: Root,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    /// The image names its user by a name, so that nobody can know it is not root.
    pub(crate) user_name: Option<String>,
    /// The signal by which it is told to end.
    pub(crate) stop_signal: Option<String>,
    /// What there is to tell of how it came; `None` when it was there.
    pub(crate) pulled: Option<Pulled>,
}

/// How an image came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pulled {
    /// What its name means here, when that is something else.
    pub(crate) means: Option<String>,
    /// Bytes of its blobs and how long it took, if it was pulled now.
    pub(crate) now: Option<(u64, Duration)>,
}

impl Image {
    /// What is to be said where its name means something else here.
    pub(crate) fn remark(&self) -> Option<String> {
        Some(match self.pulled.as_ref()?.means.as_deref()? {
            HOST => "here this name means \"host\", this machine's own files".to_owned(),
            other => format!("here this name means {other:?}"),
        })
    }
}

/// Why there is no image.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    /// As `status.containerStatuses[].state.waiting` has it: `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, ...
    pub reason: &'static str,
    pub message: String,
}

impl ImageError {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn pull(message: impl Into<String>) -> Self {
        Self::new("ErrImagePull", message)
    }

    fn disk(what: &str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::new("ImageInspectError", format!("cannot {what}: {error}"))
    }
}

/// An image, for whoever lists them.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub id: String,
    pub names: Vec<String>,
    pub digests: Vec<String>,
    /// Bytes of its blobs, packed, and of its files.
    pub size: u64,
    pub unpacked: u64,
    pub added: Timestamp,
    /// Not to be had from a registry again, so never collected as long as it has a name.
    pub loaded: bool,
}

/// The images in one directory. Cheap to clone; other processes may work in the same directory.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    registries: Arc<Registries>,
    map: Arc<ImageMap>,
    limits: Arc<Limits>,
    ending: Shutdown,
}

impl Images {
    /// Makes the directory when it is not there, closes it to others, and clears what killed processes have left.
    ///
    /// # Errors
    /// When it cannot be written to, or a newer version has.
    pub fn open(dir: PathBuf, map: ImageMap, limits: Limits, clock: Clock, ending: Shutdown) -> io::Result<Self> {
        Ok(Self {
            store: Arc::new(Store::open(dir, clock)?),
            registries: Arc::new(Registries::new(Patience::usual())),
            map: Arc::new(map),
            limits: Arc::new(limits),
            ending,
        })
    }

    /// The image of a name as a Pod has it: what is there, or what the registry gives.
    ///
    /// # Errors
    /// With the reason and the message that a kubelet shows.
    pub(crate) async fn ensure(
        &self,
        asked: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<Image, ImageError> {
        let began = Instant::now();
        let (name, means) = match self.meaning(asked)? {
            Place::Host(image) => return Ok(*image),
            Place::Store { name, means } => (name, means),
        };
        let found = if policy == PullPolicy::Always { None } else { self.find(&name).await? };
        if found.is_none() && policy == PullPolicy::Never {
            let message = format!("Container image {asked:?} is not present with pull policy of Never");
            return Err(ImageError::new("ErrImageNeverPull", message));
        }
        let (mut image, now) = match found {
            Some(image) => (image, None),
            None => {
                let size = self.pull_into_store(&name, credentials, &|_| {}).await?;
                let image =
                    self.find(&name).await?.ok_or_else(|| ImageError::pull("the image was removed meanwhile"))?;
                (image, Some((size, began.elapsed())))
            }
        };
        if now.is_some() || means.is_some() {
            image.pulled = Some(Pulled { means, now });
        }
        Ok(image)
    }

    /// Whether [`Self::ensure`] would ask a registry: what the event `Pulling` says before.
    pub(crate) fn would_pull(&self, asked: &str, policy: PullPolicy) -> bool {
        match self.meaning(asked) {
            Ok(Place::Store { name, .. }) => match policy {
                PullPolicy::Always => true,
                PullPolicy::Never => false,
                PullPolicy::IfNotPresent => !self.knows(&name),
            },
            _ => false,
        }
    }

    fn knows(&self, name: &Name) -> bool {
        self.store.index().is_ok_and(|it| it.find(&name.key()).is_some())
    }

    /// What a name means here.
    fn meaning(&self, asked: &str) -> Result<Place, ImageError> {
        if asked == HOST {
            return Ok(Place::Host(Box::new(host(HOST, vec!["sh".to_owned()], None))));
        }
        let name = Name::parse(asked).map_err(|why| {
            let message =
                format!("Failed to apply default image tag {asked:?}: couldn't parse image name {asked:?}: {why}");
            ImageError::new("InvalidImageName", message)
        })?;
        let name = name.full();
        let means = |meaning: Meaning| match meaning {
            Meaning::Host(cmd) => Place::Host(Box::new(host(&name.to_string(), cmd, Some(HOST.to_owned())))),
            Meaning::Image(it) => Place::Store { name: it.full(), means: Some(it.to_string()) },
        };
        if let Some(meaning) = self.map.said(&name) {
            return Ok(means(meaning.clone()));
        }
        match ImageMap::default_for(&name) {
            // What somebody has brought himself is what he wants.
            Some(meaning) if !self.knows(&name) => Ok(means(meaning)),
            _ => Ok(Place::Store { name, means: None }),
        }
    }

    /// An image of the store. Its files are unpacked again where they are gone and its layers are not.
    async fn find(&self, name: &Name) -> Result<Option<Image>, ImageError> {
        let index = self.store.index().map_err(ImageError::disk("read the index of images"))?;
        let Some((id, record)) = index.find(&name.key()).map(|(id, record)| (id.clone(), record.clone())) else {
            return Ok(None);
        };
        let held = self.store.adding(self.registries.patience.whole).await;
        let _held = held.map_err(ImageError::disk("use the images"))?;
        let (store, of) = (self.store.clone(), (id.clone(), record.manifest.clone()));
        let manifest =
            blocking(move || store.manifest(&of.0, &of.1)).await.map_err(ImageError::disk("read an image"))?;
        let Some((manifest, config)) = manifest else { return Ok(None) };
        let root = match self.store.root(&record.root) {
            Some(root) => root,
            None if manifest.layers.iter().all(|it| self.store.has_blob(&it.digest, it.size)) => {
                let unpacked = self.unpack(&manifest, &config).await;
                unpacked.map_err(|error| {
                    ImageError::pull(format!("failed to unpack image \"{name}\": {}", kit::chain(&error)))
                })?
            }
            None => return Ok(None),
        };
        let store = self.store.clone();
        let name = name.clone();
        let made = blocking(move || {
            store.touch(&record.root);
            image(&name, &id, &record, config, root)
        });
        made.await.map(Some)
    }

    /// What is in the store now, by name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn list(&self) -> io::Result<Vec<Listed>> {
        let index = self.store.index()?;
        let listed = |(id, it): (&Digest, &Record)| Listed {
            id: id.to_string(),
            names: it.names.iter().cloned().collect(),
            digests: it.digests.iter().cloned().collect(),
            size: it.size,
            unpacked: it.unpacked,
            added: it.added,
            loaded: it.loaded,
        };
        let mut all: Vec<_> = index.images.iter().map(listed).collect();
        all.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(all)
    }

    /// Takes a name (`busybox:1.36`, `busybox@sha256:…`) from its image, or all of them where an id is given. The files go
    /// with the next collection, when no container uses them.
    ///
    /// # Errors
    /// When there is no such image, or the index cannot be written.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let id = Digest::parse(name);
        let key = Name::parse(name).map(|it| it.full().key()).unwrap_or_default();
        let removed = self.store.update(|index| match &id {
            Some(id) => index.images.get_mut(id).map(|it| (it.names.clear(), it.digests.clear())).is_some(),
            None => {
                let mut removed = false;
                for it in index.images.values_mut() {
                    let tag = it.names.remove(&key);
                    removed |= tag | it.digests.remove(&key);
                    // What it was resolved to went with it, unless another name leads there.
                    if tag && it.names.is_empty() {
                        it.digests.clear();
                    }
                }
                removed
            }
        });
        match removed.map_err(ImageError::disk("write the index of images"))? {
            true => Ok(()),
            false => Err(ImageError::new("NotFound", format!("there is no image {name:?} here"))),
        }
    }
}

/// Where an image is.
enum Place {
    Host(Box<Image>),
    Store { name: Name, means: Option<String> },
}

/// The machine's own files under a name.
fn host(name: &str, cmd: Vec<String>, means: Option<String>) -> Image {
    Image {
        id: HOST.to_owned(),
        name: name.to_owned(),
        reference: HOST.to_owned(),
        root: Root::Host,
        entrypoint: Vec::new(),
        cmd,
        env: vec![("PATH".to_owned(), PATH.to_owned())],
        cwd: "/".to_owned(),
        user: 0,
        group: 0,
        groups: Vec::new(),
        user_name: None,
        stop_signal: None,
        pulled: means.map(|means| Pulled { means: Some(means), now: None }),
    }
}

fn image(name: &Name, id: &Digest, record: &Record, config: ImageConfig, root: PathBuf) -> Result<Image, ImageError> {
    let defaults = config.config;
    let user = look_up_user(&root, &defaults.user.unwrap_or_default());
    let User { uid, gid, groups, name: user_name } =
        user.map_err(|why| ImageError::new("CreateContainerError", why))?;
    let mut env: Vec<_> = defaults
        .env
        .unwrap_or_default()
        .iter()
        .filter_map(|it| it.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".to_owned(), PATH.to_owned()));
    }
    let repository = format!("{}@", name.repository());
    let reference = record.digests.iter().find(|it| it.starts_with(&repository)).or_else(|| record.digests.first());
    let reference = reference.map_or_else(|| id.to_string(), Clone::clone);
    let shown = if name.digest.is_none() { Some(name.key()) } else { record.names.first().cloned() };
    Ok(Image {
        id: id.to_string(),
        name: shown.unwrap_or_else(|| reference.clone()),
        reference,
        root: Root::Image(root),
        entrypoint: defaults.entrypoint.unwrap_or_default(),
        cmd: defaults.cmd.unwrap_or_default(),
        env,
        cwd: defaults.working_dir.filter(|it| !it.is_empty()).unwrap_or_else(|| "/".to_owned()),
        user: uid,
        group: gid,
        groups,
        user_name,
        stop_signal: defaults.stop_signal.filter(|it| !it.is_empty()),
        pulled: None,
    })
}

/// Work that waits for the disk, off the threads that serve others.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Panicked> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Panicked.into()),
    }
}

/// Work on the disk did not end.
struct Panicked;

impl From<Panicked> for io::Error {
    fn from(_: Panicked) -> Self {
        Self::other("work on the disk was given up")
    }
}

impl From<Panicked> for ImageError {
    fn from(_: Panicked) -> Self {
        Self::new("ImageInspectError", "work on the disk was given up")
    }
}
