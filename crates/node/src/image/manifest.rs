//! What an image is made of, in OCI's and docker's words.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::name::Digest;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Bytes of an index or a manifest, and of a configuration.
pub(crate) const LARGEST_MANIFEST: u64 = 4 << 20;
pub(crate) const LARGEST_CONFIG: u64 = 8 << 20;
const MOST_LAYERS: usize = 512;

/// Where a blob is said to be, and what it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// An index of manifests, or a manifest.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Why an image cannot be used here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("no match for platform in manifest: not found")]
    Platform,
    #[error("{0}")]
    Unsupported(String),
    #[error("{what} is none: {why}")]
    Broken { what: &'static str, why: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Self, ManifestError> {
        let broken = |error: serde_json::Error| ManifestError::Broken { what: "the manifest", why: error.to_string() };
        let raw: Raw = serde_json::from_slice(bytes).map_err(broken)?;
        let media_type = if raw.media_type.is_empty() { media_type } else { &raw.media_type };
        match (media_type, raw.manifests) {
            (OCI_INDEX | DOCKER_INDEX, Some(all)) => Ok(Self::Index(all)),
            // One that does not say what it is: a layout's index needs not.
            ("", Some(all)) => Ok(Self::Index(all)),
            (OCI_MANIFEST | DOCKER_MANIFEST | "", None) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(broken)?;
                if !matches!(manifest.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
                    let kind: String = manifest.config.media_type.chars().take(200).collect();
                    return Err(ManifestError::Unsupported(format!("it is no image: its config is of type {kind:?}")));
                }
                if manifest.layers.len() > MOST_LAYERS {
                    return Err(ManifestError::Unsupported(format!("it has more than {MOST_LAYERS} layers")));
                }
                Ok(Self::Manifest(manifest))
            }
            (other, _) => {
                let other: String = other.chars().take(200).collect();
                Err(ManifestError::Unsupported(format!("media type {other:?} is not supported")))
            }
        }
    }
}

/// The manifest of an index that runs on this machine.
pub(crate) fn choose(all: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let usable = |it: &&Descriptor| {
        matches!(it.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_INDEX | "")
    };
    let all: Vec<_> = all.iter().filter(usable).collect();
    let runs = |it: &&&Descriptor| it.platform.as_ref().is_some_and(runs_here);
    // A machine of the 8th ARM's 64 bits says v8 or nothing.
    let variant =
        |it: &&&Descriptor| it.platform.as_ref().and_then(|it| it.variant.clone()).is_none_or(|it| it == "v8");
    let found = all.iter().filter(runs).find(variant).or_else(|| all.iter().find(runs));
    // Without a platform it is as good as any, if there is no choice.
    let only = all.first().filter(|it| all.len() == 1 && it.platform.is_none());
    found.or(only).copied().ok_or(ManifestError::Platform)
}

/// This machine as Go names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn runs_here(platform: &Platform) -> bool {
    platform.os == "linux" && platform.architecture == architecture()
}

/// An image's own configuration, as far as it matters here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ImageConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    pub(crate) config: Defaults,
    pub(crate) rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RootFs {
    /// Of the layers, unpacked.
    pub(crate) diff_ids: Vec<Digest>,
}

/// What a container has that is told nothing else. Builders write `null` for what is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Defaults {
    pub(crate) user: Option<String>,
    pub(crate) env: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
}

impl ImageConfig {
    /// Of an image with that many layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<Self, ManifestError> {
        let broken = |why: String| ManifestError::Broken { what: "the image's config", why };
        let config: Self = serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
        if config.rootfs.diff_ids.len() != layers {
            let found = config.rootfs.diff_ids.len();
            return Err(broken(format!("mismatched image rootfs and manifest layers ({found} and {layers})")));
        }
        let said = |it: &str, ours: &str| it.is_empty() || it == ours;
        if !said(&config.os, "linux") || !said(&config.architecture, architecture()) {
            return Err(ManifestError::Platform);
        }
        Ok(config)
    }

    /// What images with the same layers have in common, however these are packed: OCI's chain id.
    pub(crate) fn chain(&self) -> Digest {
        let mut all = self.rootfs.diff_ids.iter();
        let first = all.next().cloned().unwrap_or_else(|| Digest::of(b""));
        all.fold(first, |chain, next| Digest::of(format!("{chain} {next}").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(platforms: &[Option<(&str, &str, Option<&str>)>]) -> Vec<Descriptor> {
        let digest = |n: usize| Digest::of(&[n as u8]);
        let list = platforms.iter().enumerate().map(|(n, it)| {
            let platform = it
                .map(|(os, architecture, variant)| json!({"os": os, "architecture": architecture, "variant": variant}));
            json!({"mediaType": OCI_MANIFEST, "digest": digest(n), "size": 1, "platform": platform})
        });
        list.map(|it| serde_json::from_value(it).unwrap()).collect()
    }

    #[test]
    fn an_index_gives_what_runs_on_this_machine_and_nothing_else() {
        let here = architecture();
        let all = of(&[
            Some(("windows", here, None)),
            Some(("linux", "s390x", None)),
            Some(("linux", here, Some("v9"))),
            Some(("linux", here, None)),
        ]);
        assert_eq!(choose(&all).unwrap().digest, Digest::of(&[3]));
        assert_eq!(choose(&all[..3]).unwrap().digest, Digest::of(&[2]));
        assert_eq!(choose(&all[..2]).unwrap_err().to_string(), "no match for platform in manifest: not found");
        assert!(choose(&of(&[None])).is_ok());
        assert!(choose(&of(&[None, None])).is_err());
    }

    #[test]
    fn what_is_no_image_says_what_it_is() {
        let digest = Digest::of(b"");
        let chart = json!({"schemaVersion": 2, "layers": [],
            "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest, "size": 1}});
        for (text, media_type, why) in [
            (chart.to_string(), OCI_MANIFEST, "helm.config"),
            ("{}".to_owned(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "v1+prettyjws"),
            ("{}".to_owned(), OCI_MANIFEST, "missing field"),
            ("<html>".to_owned(), OCI_MANIFEST, "the manifest is none"),
            (json!({"schemaVersion": 2, "config": {"mediaType": OCI_CONFIG, "digest": "sha256:../../etc", "size": 1}, "layers": []}).to_string(), OCI_MANIFEST, "is no sha256 digest"),
        ] {
            let error = Document::parse(text.as_bytes(), media_type).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
