//! `insula up`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use apiserver::AuditLog;
use clap::{Args, ValueEnum};
use kit::ExposeSecret;
use node::{Allow, Egress, ImageMap};
use serde_json::json;

use crate::home::write_private;
use crate::house::{House, Options, POD_GRACE, default_data_dir};

/// Start everything on loopback: Kubernetes API, controllers, runner, gateway.
#[derive(Args)]
pub(crate) struct Up {
    /// Keep the state here [default: insula in the user's data directory]
    #[arg(long, value_name = "DIR", env = "INSULA_DATA_DIR", conflicts_with = "ephemeral")]
    data_dir: Option<PathBuf>,
    /// Use a fresh directory and remove it at the end
    #[arg(long)]
    ephemeral: bool,
    /// Where kubectl is answered; port 0: the port of last time, else any free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    kube_listen: SocketAddr,
    /// Where the gateway is; port 0 as above
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Write the kubeconfig here too
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// When all of it answers, write where it is here, as JSON
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Where a model provider is, in place of its own address (as in openai=http://127.0.0.1:8000/v1); repeatable
    #[arg(long = "provider", value_name = "NAME=URL", value_parser = provider)]
    providers: Vec<(String, String)>,
    /// How many runs may go on at once in this process
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// How many sandboxes are kept ready for tool calls
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    warm: u16,
    /// Have sandboxes in the `insula node` that answers at this Unix socket and serves no other `up`
    #[arg(long, value_name = "SOCKET", conflicts_with = "ephemeral")]
    node: Option<PathBuf>,
    /// What an image name of a Pod means here (as in ghcr.io/me/tools=host, or =another/name); repeatable. The names of common images mean the machine's own files unless said otherwise
    #[arg(long = "image-map", value_name = "NAME=IMAGE")]
    image_map: Vec<String>,
    /// Let Pods have hostPath volumes of this directory and what is below it; repeatable
    #[arg(long = "allow-host-path", value_name = "DIR")]
    host_paths: Vec<PathBuf>,
    /// Where Pods may go outside of their own network, by the proxy that their environment names: `allow` (all public addresses), `deny`, names (example.org, *.example.org; as far as they are public), HOST:PORT (wherever it is; this machine is host.insula.internal); several, with commas
    #[arg(long, value_name = "RULE", value_delimiter = ',', default_value = "allow")]
    egress: Vec<String>,
    /// Let Pods have what the machine has in place of their own: its network (hostNetwork), its processes (hostPID), its IPC (hostIPC), ports at its addresses (hostPort), or all rights over it (privileged). As root, such a Pod has no user namespace of its own, but for ports; repeatable
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    allow: Vec<Reach>,
    /// How many seconds Pods have to end when this process is asked to: critical ones the last third of it. A second Ctrl-C cuts it short
    #[arg(long, value_name = "SECONDS", default_value_t = POD_GRACE.as_secs(), value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pod_grace: u64,
    /// Write who asked the Kubernetes API for what here, one JSON document a line: no bodies and no tokens, but what policies and webhooks annotate
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// MiB of a file of the audit log; then it becomes FILE.1, and that FILE.2
    #[arg(long, value_name = "MIB", default_value_t = 100, requires = "audit_log", value_parser = clap::value_parser!(u32).range(1..))]
    audit_log_maxsize: u32,
    /// How many older files of the audit log are kept
    #[arg(long, value_name = "N", default_value_t = 10, requires = "audit_log", value_parser = clap::value_parser!(u32).range(0..=1_000))]
    audit_log_maxbackup: u32,
}

/// What Pods may reach.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reach {
    Network,
    Pid,
    Ipc,
    Ports,
    Privileged,
}

fn provider(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && (url.starts_with("http://") || url.starts_with("https://")) => {
            Ok((name.into(), url.into()))
        }
        _ => Err("write it as NAME=URL, as in openai=http://127.0.0.1:8000/v1".into()),
    }
}

impl Up {
    pub(crate) async fn run(self) -> Result<()> {
        let began = Instant::now();
        if let Some(path) = &self.kubeconfig {
            refuse_foreign_kubeconfig(path)?;
        }
        for path in [&self.kubeconfig, &self.ready_file].into_iter().flatten() {
            let within = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            if !within.is_dir() {
                bail!("{} cannot be written: there is no directory {}", path.display(), within.display());
            }
        }
        for at in [self.kube_listen, self.listen] {
            if !at.ip().is_loopback() {
                bail!("{at} is not a loopback address: `insula up` serves this machine alone");
            }
        }
        let data_dir = match (self.data_dir, self.ephemeral) {
            (_, true) => None,
            (Some(dir), false) => Some(dir),
            (None, false) => Some(default_data_dir()?),
        };
        if let Some(path) = &self.ready_file {
            // Whoever waits for the file must not find that of an earlier start.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove the old {}", path.display()));
                }
                _ => {}
            }
        }
        let mut providers = self.providers.into_iter().collect::<BTreeMap<_, _>>();
        // The original's default is a Service of a cluster; here Ollama is where it is installed.
        providers.entry("ollama".into()).or_insert_with(|| "http://127.0.0.1:11434/v1".into());
        let mut images = ImageMap::default();
        for entry in &self.image_map {
            images.add(entry).map_err(|why| anyhow::anyhow!("--image-map {entry}: {why}"))?;
        }
        for path in &self.host_paths {
            if !path.is_absolute() {
                bail!("--allow-host-path {}: it is no absolute path", path.display());
            }
        }
        let egress = Egress::new(&self.egress).map_err(|why| anyhow::anyhow!("--egress: {why}"))?;
        let may = |what| self.allow.contains(&what);
        let allow = Allow {
            network: may(Reach::Network),
            pid: may(Reach::Pid),
            ipc: may(Reach::Ipc),
            ports: may(Reach::Ports),
            privileged: may(Reach::Privileged),
        };
        let house = House::start(Options {
            data_dir,
            kube_listen: self.kube_listen,
            listen: self.listen,
            providers,
            concurrency: self.concurrency as usize,
            warm: usize::from(self.warm),
            node: self.node,
            images,
            host_paths: self.host_paths,
            egress,
            allow,
            audit: self.audit_log.map(|path| AuditLog {
                path,
                max_bytes: u64::from(self.audit_log_maxsize) << 20,
                max_backups: self.audit_log_maxbackup,
            }),
        })
        .await?;
        // Whoever finds the ready file may ask it to end at once.
        house.end_on_signal(Duration::from_secs(self.pod_grace));
        let kubeconfig = house.write_kubeconfig()?;
        if let Some(path) = &self.kubeconfig {
            write_private(path, &house.kubeconfig).with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(path) = &self.ready_file {
            let ready = json!({
                "kubeconfig": kubeconfig,
                "gateway": house.gateway_url(),
                "apiKey": house.api_key.expose_secret(),
                "pid": std::process::id(),
            });
            write_private(path, &ready.to_string()).with_context(|| format!("write {}", path.display()))?;
        }
        eprintln!("Insula is up after {} ms, in {}", began.elapsed().as_millis(), house.home().dir().display());
        eprintln!("  kubectl   export KUBECONFIG={}", self.kubeconfig.as_ref().unwrap_or(&kubeconfig).display());
        eprintln!("  gateway   {}  (its key: {})", house.gateway_url(), house.home().path("api-key").display());
        eprintln!("  Ctrl-C ends it.");

        let ended = house.watch().await;
        if let Some(path) = &self.ready_file
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(%error, "the ready file {} stays", path.display());
        }
        house.end().await;
        ended
    }
}

/// A kubeconfig of somebody else's clusters is not overwritten.
fn refuse_foreign_kubeconfig(path: &Path) -> Result<()> {
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() && !text.contains("current-context: insula") => bail!(
            "{} is another cluster's kubeconfig and is not overwritten: name a new file, and join the two with KUBECONFIG=A:B",
            path.display()
        ),
        _ => Ok(()),
    }
}
