//! `insula image`

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use kit::{Clock, Shutdown};
use node::{Credential, ImageLimits, ImageMap, Images, PullProgress};

use crate::home;
use crate::house::default_data_dir;

/// Load, pull, list and remove the images of a data directory, beside an `insula up` that uses it or without one.
#[derive(Subcommand)]
pub(crate) enum Image {
    Load(Load),
    Pull(Pull),
    Ls(Ls),
    Rm(Rm),
}

#[derive(Args)]
struct Where {
    /// Whose images [default: those of the user's data directory]
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

impl Where {
    /// The directory in which the node works.
    fn node(&self) -> Result<PathBuf> {
        let dir = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        let exists = dir.exists();
        match home::existing(&dir) {
            // Before the first start, images can be brought.
            Err(home::Error::Absent { .. }) if !exists => drop(home::Home::open(&dir)?),
            found => drop(found?),
        }
        let node = dir.join("node");
        fs::create_dir_all(&node).with_context(|| format!("make {}", node.display()))?;
        fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .with_context(|| format!("close {} to others", node.display()))?;
        Ok(node)
    }

    fn open(&self) -> Result<(Images, PathBuf)> {
        let node = self.node()?;
        let dir = node.join("images");
        let opened =
            Images::open(dir.clone(), ImageMap::default(), ImageLimits::default(), Clock::system(), Shutdown::new());
        Ok((opened.with_context(|| format!("open the images in {}", dir.display()))?, node))
    }
}

/// Load the images of an archive: of `docker save`, of `podman save`, or OCI's, packed or not
#[derive(Args)]
pub(crate) struct Load {
    /// The archive, or a directory with OCI's layout; - is the standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What the image is called if the archive has only one
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// Pull an image from its registry, whatever its name means to Pods
#[derive(Args)]
pub(crate) struct Pull {
    #[arg(value_name = "NAME")]
    name: String,
    /// Passwords of registries, as docker's config.json has them
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

/// List the images that are here
#[derive(Args)]
pub(crate) struct Ls {
    /// How they are told
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    #[command(flatten)]
    at: Where,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Take names from images; an image goes with its last name, when no container uses it
#[derive(Args)]
pub(crate) struct Rm {
    /// Names as they are listed, or ids
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    at: Where,
}

impl Image {
    pub(crate) async fn run(self) -> Result<()> {
        match self {
            Self::Load(it) => it.run().await,
            Self::Pull(it) => it.run().await,
            Self::Ls(it) => it.run(),
            Self::Rm(it) => it.run().await,
        }
    }
}

impl Load {
    async fn run(self) -> Result<()> {
        let (images, _) = self.at.open()?;
        let file = if self.file == Path::new("-") { Path::new("/dev/stdin") } else { &self.file };
        for name in images.load(file, self.name.as_deref()).await? {
            println!("{name}");
        }
        Ok(())
    }
}

impl Pull {
    async fn run(self) -> Result<()> {
        let credentials = match &self.credentials {
            Some(path) => {
                let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
                Credential::parse_config(&bytes)
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("read {}", path.display()))?
            }
            None => Vec::new(),
        };
        let (images, _) = self.at.open()?;
        let tell = |it| match it {
            PullProgress::Resolved { digest, size } => eprintln!("{digest}, {}", amount(size)),
            PullProgress::Fetched { digest, size } => eprintln!("{digest} is here, {}", amount(size)),
            PullProgress::Unpacking => eprintln!("unpacking"),
        };
        images.pull(&self.name, &credentials, &tell).await?;
        println!("{}", self.name);
        Ok(())
    }
}

impl Ls {
    fn run(self) -> Result<()> {
        let (images, _) = self.at.open()?;
        let all = images.list().context("read the index of images")?;
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?,
            Output::Text => {
                let rows: Vec<_> = all
                    .iter()
                    .flat_map(|it| {
                        let id: String = it.id.trim_start_matches("sha256:").chars().take(12).collect();
                        let names = if it.names.is_empty() { &it.digests } else { &it.names };
                        let none = names.is_empty().then(|| "<none>".to_owned());
                        let names: Vec<_> = names.iter().cloned().chain(none).collect();
                        names.into_iter().map(move |name| (name, id.clone(), amount(it.size), amount(it.unpacked)))
                    })
                    .collect();
                let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0).max(4);
                writeln!(out, "{:width$}  {:12}  {:>10}  {:>10}", "NAME", "ID", "PACKED", "UNPACKED")?;
                for (name, id, size, unpacked) in rows {
                    writeln!(out, "{name:width$}  {id:12}  {size:>10}  {unpacked:>10}")?;
                }
            }
        }
        Ok(())
    }
}

impl Rm {
    async fn run(self) -> Result<()> {
        let (images, node) = self.at.open()?;
        for name in &self.names {
            images.remove(name)?;
        }
        if !images.clear_unnamed(&node).await.context("remove the files of images")? {
            eprintln!("The files of images go when no container uses them: a node works here, or has left containers.");
        }
        Ok(())
    }
}

fn amount(bytes: u64) -> String {
    match bytes {
        0..0x0010_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes >> 20),
    }
}
