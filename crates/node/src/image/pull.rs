//! An image from a registry into the store.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use futures::{StreamExt, TryStreamExt};

use super::credentials::Credential;
use super::manifest::{
    Descriptor, Document, ImageConfig, LARGEST_CONFIG, LARGEST_MANIFEST, Manifest, ManifestError, choose,
};
use super::name::{Digest, Name};
use super::registry::{RegistryError, Session};
use super::store::{Record, Store};
use super::unpack::{UnpackError, Unpacker};
use super::{ImageError, Images, Panicked, blocking};

/// Layers on their way at once.
const AT_ONCE: usize = 3;
/// Indexes in indexes.
const DEEPEST: usize = 3;

/// What a pull has come to.
#[derive(Clone, Debug)]
pub enum PullProgress {
    /// It is known what the name stands for: a digest, and how many bytes that is.
    Resolved {
        digest: String,
        size: u64,
    },
    /// A blob is there.
    Fetched {
        digest: String,
        size: u64,
    },
    Unpacking,
}

/// Told how far a pull has come.
pub(super) type Tell<'a> = &'a (dyn Fn(PullProgress) + Send + Sync);

#[derive(Debug, thiserror::Error)]
pub(super) enum PullError {
    #[error("failed to resolve reference \"{0}\": {1}")]
    Resolve(String, RegistryError),
    #[error("failed to copy: {0}")]
    Copy(RegistryError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("failed to extract layer {0}: {1}")]
    Extract(Digest, UnpackError),
    #[error("its layers have {found} MiB, and {why}")]
    TooLarge { found: u64, why: String },
    #[error("it takes too long")]
    Late,
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl From<Panicked> for PullError {
    fn from(it: Panicked) -> Self {
        Self::Disk(it.into())
    }
}

/// An image that is going to be in the store.
pub(super) struct Arrival<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) manifest_digest: Digest,
    pub(super) config: &'a ImageConfig,
    pub(super) names: Vec<Name>,
    /// With what its name was resolved to.
    pub(super) digest: Option<String>,
    pub(super) loaded: bool,
}

impl Images {
    /// Pulls an image whatever its name means to Pods here.
    ///
    /// # Errors
    /// When it has no such name, or the registry does not give it.
    pub async fn pull(
        &self,
        name: &str,
        credentials: &[Credential],
        tell: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let parsed =
            Name::parse(name).map_err(|why| ImageError::new("InvalidImageName", format!("{name:?}: {why}")))?;
        self.pull_into_store(&parsed.full(), credentials, tell).await.map(|_| ())
    }

    /// Says how many bytes its blobs are.
    pub(super) async fn pull_into_store(
        &self,
        name: &Name,
        credentials: &[Credential],
        tell: Tell<'_>,
    ) -> Result<u64, ImageError> {
        let whole = self.registries.patience.whole;
        let pulled = tokio::time::timeout(whole, Box::pin(self.fetch(name, credentials, tell))).await;
        pulled.unwrap_or(Err(PullError::Late)).map_err(|error| {
            let text = format!("failed to pull and unpack image \"{name}\": {}", kit::chain(&error));
            // A kubelet shows gRPC's code where it says more than that it is unknown.
            let missing = matches!(&error, PullError::Resolve(_, RegistryError::NotFound(_)) | PullError::Manifest(ManifestError::Platform));
            let code = if missing { "rpc error: code = NotFound desc = " } else { "" };
            let help = match &error {
                PullError::Resolve(..) => {
                    "; load it with `insula image load`, or say what stands for it with `insula up --image-map NAME=IMAGE`"
                }
                _ => "",
            };
            ImageError::pull(format!("{code}{text}{help}"))
        })
    }

    async fn fetch(&self, name: &Name, credentials: &[Credential], tell: Tell<'_>) -> Result<u64, PullError> {
        let (session, bytes, media_type) = self.resolve(name, credentials).await?;
        let target = Digest::of(&bytes);
        let (bytes, manifest) = self.manifest(&session, bytes, &media_type).await?;
        let size = manifest
            .layers
            .iter()
            .chain([&manifest.config])
            .fold(bytes.len() as u64, |sum, it| sum.saturating_add(it.size));
        tell(PullProgress::Resolved { digest: target.to_string(), size });
        self.allow(size)?;
        if manifest.config.size > LARGEST_CONFIG {
            return Err(ManifestError::Unsupported(format!("its config has more than {LARGEST_CONFIG} bytes")).into());
        }

        let _adding = self.store.adding(self.registries.patience.whole).await?;
        let store = self.store.clone();
        let manifest_digest = blocking(move || store.put(&mut bytes.as_slice(), LARGEST_MANIFEST, None)).await?.0;
        self.blob(&session, &manifest.config).await?;
        let (store, of) = (self.store.clone(), manifest.config.digest.clone());
        let config = blocking(move || store.read_blob(&of, LARGEST_CONFIG)).await?;
        // What cannot run here is not fetched.
        let config = ImageConfig::parse(&config, manifest.layers.len())?;
        if self.store.root(&config.chain()).is_none() {
            let fetched = futures::stream::iter(manifest.layers.clone()).map(|it| {
                let session = &session;
                async move {
                    self.blob(session, &it).await?;
                    tell(PullProgress::Fetched { digest: it.digest.to_string(), size: it.size });
                    Ok::<_, PullError>(())
                }
            });
            fetched.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            tell(PullProgress::Unpacking);
            self.unpack(&manifest, &config).await?;
        }
        let digest = Some(format!("{}@{target}", name.repository()));
        let names = vec![name.clone()];
        self.add(Arrival { manifest: &manifest, manifest_digest, config: &config, names, digest, loaded: false })
            .await?;
        Ok(size)
    }

    /// What the registry has under a name, asked as one after the other of those who may, else as nobody.
    async fn resolve(&self, name: &Name, credentials: &[Credential]) -> Result<(Session, Vec<u8>, String), PullError> {
        let mut who: Vec<_> = credentials.iter().filter(|it| it.fits(name)).map(Some).collect();
        if who.is_empty() {
            who.push(None);
        }
        let mut last = None;
        for it in who {
            let asked = async {
                let session = self.registries.session(name, it)?;
                let (bytes, media_type) = session.manifest(name.version()).await?;
                Ok::<_, RegistryError>((session, bytes, media_type))
            };
            match asked.await {
                Ok(found) => return Ok(found),
                Err(error) => last = Some(error),
            }
        }
        let error = last.unwrap_or_else(|| RegistryError::NotFound(name.to_string()));
        Err(PullError::Resolve(name.to_string(), error))
    }

    /// The manifest for this machine, and its bytes.
    async fn manifest(
        &self,
        session: &Session,
        mut bytes: Vec<u8>,
        media_type: &str,
    ) -> Result<(Vec<u8>, Manifest), PullError> {
        let mut media_type = media_type.to_owned();
        for _ in 0..DEEPEST {
            let all = match Document::parse(&bytes, &media_type)? {
                Document::Manifest(manifest) => return Ok((bytes, manifest)),
                Document::Index(all) => all,
            };
            let chosen = choose(&all)?;
            (bytes, media_type) = session.manifest(chosen.digest.as_str()).await.map_err(PullError::Copy)?;
        }
        Err(ManifestError::Unsupported("its index has too many indexes in each other".into()).into())
    }

    fn allow(&self, size: u64) -> Result<(), PullError> {
        if size > self.limits.bytes {
            let why = format!("an image may have {} MiB", self.limits.bytes >> 20);
            return Err(PullError::TooLarge { found: size >> 20, why });
        }
        self.room(size)
    }

    /// Whether layers of so many bytes leave free on the disk what is kept free.
    pub(super) fn room(&self, size: u64) -> Result<(), PullError> {
        let (_, free) = self.store.disk()?;
        if free.saturating_sub(self.limits.reserve) >= size {
            return Ok(());
        }
        let kept = self.limits.reserve >> 20;
        let why = format!("the disk has {} MiB left, of which {kept} are kept free", free >> 20);
        Err(PullError::TooLarge { found: size >> 20, why })
    }

    /// A blob into the store, going on where somebody has stopped.
    async fn blob(&self, session: &Session, it: &Descriptor) -> Result<(), PullError> {
        let patience = self.registries.patience;
        let _making = self.store.making(&it.digest, false, patience.whole).await?;
        if self.store.has_blob(&it.digest, it.size) {
            return Ok(());
        }
        loop {
            let mut part = self.store.part(&it.digest).await?;
            if part.len() > it.size {
                part.restart().await?;
            }
            let found_here = part.len() > 0;
            let mut backoff = patience.backoff();
            loop {
                let before = part.len();
                let error = match go_on(session, it, &mut part).await {
                    Ok(()) => break,
                    Err(error) => error,
                };
                part.flush().await?;
                if part.len() > before {
                    backoff.reset();
                }
                let passes = match &error {
                    PullError::Copy(it) => it.passes() || matches!(it, RegistryError::Request { .. }),
                    _ => false,
                };
                if !passes || backoff.failures() + 1 >= patience.tries {
                    return Err(error);
                }
                tracing::debug!(blob = %it.digest, at = part.len(), error = kit::chain(&error), "a blob is asked for again");
                tokio::time::sleep(backoff.pause()).await;
            }
            match self.store.keep(part, &it.digest).await? {
                Ok(()) => return Ok(()),
                // What was found on the disk may have been broken, not what came.
                Err(_) if found_here => {}
                Err(found) => {
                    return Err(PullError::Copy(RegistryError::Digest { found, expected: it.digest.clone() }));
                }
            }
        }
    }

    /// The files of an image from the layers in the store, made once.
    pub(super) async fn unpack(&self, manifest: &Manifest, config: &ImageConfig) -> Result<PathBuf, PullError> {
        let chain = config.chain();
        let making = self.store.making(&chain, true, self.registries.patience.whole).await?;
        let layers: Vec<_> =
            manifest.layers.iter().map(|it| it.digest.clone()).zip(config.rootfs.diff_ids.clone()).collect();
        let (store, limits, ending) = (self.store.clone(), self.limits.clone(), self.ending.clone());
        // Goes on to its end even if nobody waits for it any more.
        blocking(move || {
            let _making = making;
            let owners = crate::engine::is_root();
            let ending = move || ending.has_begun();
            store.make_root(&chain, |root| {
                let first = layers.first().map_or_else(|| chain.clone(), |(layer, _)| layer.clone());
                let mut unpacker =
                    Unpacker::new(root, &limits, owners, &ending).map_err(|it| PullError::Extract(first, it))?;
                for (layer, diff) in &layers {
                    let file = File::open(store.blob(layer))?;
                    unpacker.layer(file, diff).map_err(|it| PullError::Extract(layer.clone(), it))?;
                }
                Ok::<_, PullError>(unpacker.bytes())
            })
        })
        .await
    }

    /// Notes an image whose files are there.
    pub(super) async fn add(&self, it: Arrival<'_>) -> Result<(), PullError> {
        let blobs = it.manifest.layers.iter().chain([&it.manifest.config]);
        let root = it.config.chain();
        let record = Record {
            names: it.names.iter().filter(|it| it.digest.is_none()).map(Name::key).collect(),
            digests: it.names.iter().filter(|it| it.digest.is_some()).map(Name::key).chain(it.digest).collect(),
            manifest: it.manifest_digest,
            layers: it.manifest.layers.iter().map(|it| it.digest.clone()).collect(),
            size: blobs.fold(0, |sum, it| sum.saturating_add(it.size)),
            unpacked: self.store.about(&root).map_or(0, |(bytes, _)| bytes),
            root,
            added: self.store.clock().now(),
            loaded: it.loaded,
        };
        let (store, id) = (self.store.clone(), it.manifest.config.digest.clone());
        let noted = blocking(move || {
            store.update(|index| {
                // A name is of one image.
                for other in index.images.values_mut() {
                    other.names.retain(|name| !record.names.contains(name));
                }
                let mut record = record;
                if let Some(older) = index.images.get(&id) {
                    record.names.extend(older.names.iter().cloned());
                    record.digests.extend(older.digests.iter().cloned());
                    record.added = older.added;
                    record.loaded |= older.loaded;
                }
                index.images.insert(id, record);
            })
        });
        Ok(noted.await?)
    }
}

/// Fetches the rest of a blob.
async fn go_on(session: &Session, it: &Descriptor, part: &mut super::store::Part) -> Result<(), PullError> {
    if part.len() == it.size {
        return Ok(());
    }
    let mut body = session.blob(&it.digest, part.len()).await.map_err(PullError::Copy)?;
    if body.from != part.len() {
        part.restart().await?;
        if body.from != 0 {
            return Err(PullError::Copy(RegistryError::Short(it.size)));
        }
    }
    while let Some(bytes) = body.next().await.map_err(PullError::Copy)? {
        if part.len() + bytes.len() as u64 > it.size {
            part.restart().await?;
            let why = format!("the blob {} has more than the {} bytes that its manifest says", it.digest, it.size);
            return Err(ManifestError::Unsupported(why).into());
        }
        part.write(&bytes).await?;
    }
    match it.size - part.len() {
        0 => Ok(()),
        short => Err(PullError::Copy(RegistryError::Short(short))),
    }
}

impl Store {
    /// The manifest and the config of an image; nothing where they are gone.
    pub(super) fn manifest(&self, id: &Digest, manifest: &Digest) -> io::Result<Option<(Manifest, ImageConfig)>> {
        let read = |digest, most| match self.read_blob(digest, most) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        };
        let (Some(manifest), Some(config)) = (read(manifest, LARGEST_MANIFEST)?, read(id, LARGEST_CONFIG)?) else {
            return Ok(None);
        };
        let broken = |error: ManifestError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        match Document::parse(&manifest, "").map_err(broken)? {
            Document::Manifest(manifest) => {
                let config = ImageConfig::parse(&config, manifest.layers.len()).map_err(broken)?;
                Ok(Some((manifest, config)))
            }
            Document::Index(_) => Ok(None),
        }
    }
}
