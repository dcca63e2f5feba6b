//! Images from archives: what `docker save`, `podman save`, `skopeo` and `buildctl` write, OCI's layout as a directory too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::manifest::{
    Descriptor, Document, ImageConfig, LARGEST_CONFIG, LARGEST_MANIFEST, Manifest, ManifestError, OCI_CONFIG,
    OCI_LAYER, OCI_MANIFEST, choose,
};
use super::name::{Digest, Name};
use super::pull::{Arrival, PullError};
use super::store::Store;
use super::tar::{Kind, Reader};
use super::unpack::unpacked;
use super::{ImageError, Images, blocking};

/// Files in an archive, and bytes of all their names.
const MOST_FILES: usize = 100_000;
const MOST_NAMES: usize = 16 << 20;
/// Images in an archive.
const MOST_IMAGES: usize = 256;
const DEEPEST: usize = 3;

/// Where the files of an archive are.
enum Source {
    Dir(PathBuf),
    /// Offsets and lengths in a tar, and links between its files.
    Tar {
        file: File,
        files: HashMap<String, (u64, u64)>,
        links: HashMap<String, String>,
    },
}

/// An image found in an archive, whose blobs are in the store.
struct Found {
    manifest: Manifest,
    digest: Digest,
    config: ImageConfig,
    names: Vec<Name>,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Images {
    /// Loads all images of an archive, a tar as it is or packed by gzip or zstd, or of a directory; says their names.
    /// `name`: of an image that the archive gives none.
    ///
    /// # Errors
    /// When it is no archive of images, what is in it is damaged or not for this machine, or there is no room for it.
    pub async fn load(&self, from: &Path, name: Option<&str>) -> Result<Vec<String>, ImageError> {
        let failed = |error: PullError| {
            ImageError::new("ErrImageLoad", format!("cannot load {}: {}", from.display(), kit::chain(&error)))
        };
        let parse = |it: &str| {
            Name::parse(it)
                .map(|it| it.full())
                .map_err(|why| ImageError::new("InvalidImageName", format!("{it:?}: {why}")))
        };
        let name = name.map(parse).transpose()?;
        // What is in it comes into the store about as it is.
        let about = fs::metadata(from).map_err(|error| failed(error.into()))?;
        if about.is_file() {
            self.room(about.len()).map_err(failed)?;
        }
        let held = self.store.adding(self.registries.patience.whole).await.map_err(PullError::Disk);
        let _adding = held.map_err(failed)?;
        let (store, limits, path) = (self.store.clone(), self.limits.clone(), from.to_owned());
        let found = blocking(move || {
            let source = Source::open(&path, &store, limits.bytes)?;
            let mut found = source.images(&store, limits.bytes)?;
            if let (Some(name), [only]) = (name, found.as_mut_slice()) {
                only.names = vec![name];
            }
            Ok::<_, PullError>(found)
        });
        let found = found.await.map_err(failed)?;
        if found.iter().any(|it| it.names.is_empty()) {
            let why = "an image in it has no name: give it one with --name".to_owned();
            return Err(failed(ManifestError::Unsupported(why).into()));
        }
        let mut names = Vec::new();
        for Found { manifest, digest, config, names: of } in found {
            if self.store.root(&config.chain()).is_none() {
                self.unpack(&manifest, &config).await.map_err(failed)?;
            }
            names.extend(of.iter().map(Name::to_string));
            let arrival = Arrival {
                manifest: &manifest,
                manifest_digest: digest,
                config: &config,
                names: of,
                digest: None,
                loaded: true,
            };
            self.add(arrival).await.map_err(failed)?;
        }
        Ok(names)
    }
}

impl Source {
    fn open(path: &Path, store: &Store, most: u64) -> Result<Self, PullError> {
        let mut file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        // A pipe cannot be read twice, nor what is packed from its middle.
        let mut begin = [0; 4];
        let plain = match file.stream_position() {
            Ok(_) => {
                let read = (&mut file).take(4).read(&mut begin)?;
                file.seek(SeekFrom::Start(0))?;
                !matches!(begin.get(..read).unwrap_or_default(), [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])
            }
            Err(_) => false,
        };
        if !plain {
            let mut scratch = store.scratch()?;
            let mut whole = unpacked(BufReader::with_capacity(128 << 10, file))?.take(most.saturating_mul(2));
            io::copy(&mut whole, &mut scratch)?;
            if whole.limit() == 0 {
                return Err(ManifestError::Unsupported(format!("it has more than {} MiB", most >> 19)).into());
            }
            file = scratch;
        }
        Self::scan(file)
    }

    /// Finds the files of a tar.
    fn scan(mut file: File) -> Result<Self, PullError> {
        file.seek(SeekFrom::Start(0))?;
        let (mut files, mut links, mut bytes) = (HashMap::new(), HashMap::new(), 0);
        let mut reader = Reader::new(Counted { from: BufReader::with_capacity(128 << 10, file.try_clone()?), at: 0 });
        while let Some(head) = reader.next()? {
            let Some(path) = plain(&head.path) else { continue };
            bytes += path.len() + head.link.len();
            if files.len() + links.len() >= MOST_FILES || bytes > MOST_NAMES {
                return Err(ManifestError::Unsupported("it has too many files".into()).into());
            }
            match head.kind {
                Kind::File => {
                    files.insert(path, (reader.inner().at, reader.left()));
                }
                // Older ones link layers that images have in common.
                Kind::Symlink => {
                    let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                    if let Some(to) = plain(format!("{above}/{}", String::from_utf8_lossy(&head.link)).as_bytes()) {
                        links.insert(path, to);
                    }
                }
                Kind::HardLink => {
                    if let Some(to) = plain(&head.link) {
                        links.insert(path, to);
                    }
                }
                _ => {}
            }
        }
        Ok(Self::Tar { file, files, links })
    }

    /// A file and its length.
    fn file(&self, name: &str) -> io::Result<(Box<dyn Read>, u64)> {
        let missing = || io::Error::new(ErrorKind::NotFound, format!("there is no {name} in it"));
        match self {
            Self::Dir(dir) => {
                let name = plain(name.as_bytes()).ok_or_else(missing)?;
                let file = File::open(dir.join(name)).map_err(|_| missing())?;
                let length = file.metadata()?.len();
                Ok((Box::new(file), length))
            }
            Self::Tar { file, files, links } => {
                let name = plain(name.as_bytes()).ok_or_else(missing)?;
                let found = files.get(&name).or_else(|| files.get(links.get(&name)?));
                let (at, length) = *found.ok_or_else(missing)?;
                let mut file = file;
                file.seek(SeekFrom::Start(at))?;
                Ok((Box::new(file.try_clone()?.take(length)), length))
            }
        }
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let (file, length) = self.file(name)?;
        if length > most {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("{name} has more than {most} bytes")));
        }
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn optional(&self, name: &str, most: u64) -> io::Result<Option<Vec<u8>>> {
        match self.read(name, most) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// All images, whose blobs are in the store after it.
    fn images(&self, store: &Store, most: u64) -> Result<Vec<Found>, PullError> {
        let broken = |why: serde_json::Error| ManifestError::Broken { what: "manifest.json", why: why.to_string() };
        let saved: Vec<Saved> = match self.optional("manifest.json", LARGEST_MANIFEST)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(broken)?,
            None => Vec::new(),
        };
        let found = match self.optional("index.json", LARGEST_MANIFEST)? {
            Some(index) => match Document::parse(&index, "")? {
                Document::Index(all) if all.len() <= MOST_IMAGES => {
                    // What proves where an image comes from is none itself.
                    let all = all.iter().filter(|it| it.media_type != OCI_CONFIG);
                    all.map(|it| self.layout(it, &saved, store, most)).collect::<Result<Vec<_>, _>>()?
                }
                _ => return Err(ManifestError::Unsupported(format!("it has more than {MOST_IMAGES} images")).into()),
            },
            None if saved.len() > MOST_IMAGES => {
                return Err(ManifestError::Unsupported(format!("it has more than {MOST_IMAGES} images")).into());
            }
            None => saved.iter().map(|it| self.saved(it, store, most)).collect::<Result<_, _>>()?,
        };
        if found.is_empty() {
            return Err(ManifestError::Unsupported(
                "it has neither OCI's index.json nor docker's manifest.json".into(),
            )
            .into());
        }
        Ok(found)
    }

    /// An image of OCI's layout.
    fn layout(&self, it: &Descriptor, saved: &[Saved], store: &Store, most: u64) -> Result<Found, PullError> {
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let mut next = it.clone();
        for _ in 0..DEEPEST {
            let bytes = self.read(&path(&next.digest), LARGEST_MANIFEST)?;
            let (digest, _) = store.put(&mut bytes.as_slice(), LARGEST_MANIFEST, Some(&next.digest))?;
            let manifest = match Document::parse(&bytes, &next.media_type)? {
                Document::Index(all) => {
                    next = choose(&all)?.clone();
                    continue;
                }
                Document::Manifest(manifest) => manifest,
            };
            let config = self.read(&path(&manifest.config.digest), LARGEST_CONFIG)?;
            store.put(&mut config.as_slice(), LARGEST_CONFIG, Some(&manifest.config.digest))?;
            let config = ImageConfig::parse(&config, manifest.layers.len())?;
            for layer in &manifest.layers {
                if !store.has_blob(&layer.digest, layer.size) {
                    let (mut from, _) = self.file(&path(&layer.digest))?;
                    store.put(&mut from, most.min(layer.size), Some(&layer.digest))?;
                }
            }
            let said = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
            let said = said.iter().filter_map(|key| it.annotations.get(*key)).filter(|it| it.contains([':', '/']));
            let tags = saved.iter().filter(|it| it.config.contains(manifest.config.digest.hex()));
            let tags = tags.flat_map(|it| it.repo_tags.iter().flatten());
            let names = said.chain(tags).filter_map(|it| Name::parse(it).ok()).map(|it| it.full());
            let mut names: Vec<_> = names.filter(|it| it.digest.is_none()).collect();
            names.sort_by_key(Name::key);
            names.dedup();
            return Ok(Found { manifest, digest, config, names });
        }
        Err(ManifestError::Unsupported("its index has too many indexes in each other".into()).into())
    }

    /// An image of docker's own format, of which we make OCI's.
    fn saved(&self, it: &Saved, store: &Store, most: u64) -> Result<Found, PullError> {
        let bytes = self.read(&it.config, LARGEST_CONFIG)?;
        let (config_digest, size) = store.put(&mut bytes.as_slice(), LARGEST_CONFIG, None)?;
        let config = ImageConfig::parse(&bytes, it.layers.len())?;
        let descriptor = |media_type: &str, digest: Digest, size: u64| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: Default::default(),
        };
        let mut layers = Vec::new();
        for name in &it.layers {
            let (mut from, _) = self.file(name)?;
            let (digest, size) = store.put(&mut from, most, None)?;
            layers.push(descriptor(OCI_LAYER, digest, size));
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: descriptor(OCI_CONFIG, config_digest, size),
            layers,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(io::Error::from)?;
        let (digest, _) = store.put(&mut bytes.as_slice(), LARGEST_MANIFEST, None)?;
        let names = it.repo_tags.iter().flatten().filter_map(|it| Name::parse(it).ok()).map(|it| it.full()).collect();
        Ok(Found { manifest, digest, config, names })
    }
}

/// A path within an archive, `..` and all resolved as far as it stays inside.
fn plain(path: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    for part in str::from_utf8(path).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Knows how far it has read.
struct Counted<R> {
    from: R,
    at: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether there is anything in a directory.
pub(super) fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut it| it.next().is_none())
}
