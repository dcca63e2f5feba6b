//! A real `insula up` in a process of its own, to be measured from outside.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::process::{Child, Command};

pub(crate) struct Up {
    process: Child,
    ready_file: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) started: Instant,
}

impl Up {
    /// Starts it with an empty directory of its own and waits until it says that it is ready.
    pub(crate) async fn start(more: &[&str]) -> Result<Self> {
        Self::start_with(&[&["--ephemeral"], more].concat()).await
    }

    /// Starts it on a directory, which stays, and waits likewise.
    pub(crate) async fn start_in(dir: &Path, more: &[&str]) -> Result<Self> {
        let dir = dir.to_str().context("a path that is text")?;
        Self::start_with(&[&["--data-dir", dir], more].concat()).await
    }

    async fn start_with(args: &[&str]) -> Result<Self> {
        let ready_file = std::env::temp_dir().join(format!("insula-bench-{}", kit::id()));
        let program = std::env::current_exe().context("find this program")?;
        let started = Instant::now();
        let mut process = Command::new(program)
            .args(["up", "--ready-file"])
            .arg(&ready_file)
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start `insula up`")?;
        let ready = loop {
            if let Ok(text) = std::fs::read_to_string(&ready_file) {
                break text;
            }
            if let Some(status) = process.try_wait()? {
                bail!("`insula up` ended with {status}");
            }
            if started.elapsed() > Duration::from_secs(30) {
                bail!("`insula up` was not ready after 30 s");
            }
            // As anybody waits for it who has started a program; at most this is added to the figures.
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let ready: serde_json::Value = serde_json::from_str(&ready).context("read the ready file")?;
        let text = |name: &str| {
            ready
                .get(name)
                .and_then(|it| it.as_str())
                .map(str::to_owned)
                .with_context(|| format!("{name} in the ready file"))
        };
        Ok(Self { kubeconfig: text("kubeconfig")?.into(), process, ready_file, started })
    }

    /// A client over TLS, as kubectl is one.
    pub(crate) async fn client(&self) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Resident memory in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        resident(self.pid()?)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.process.id().context("it has ended")
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) -> Result<()> {
        self.process.kill().await?;
        let _ = std::fs::remove_file(&self.ready_file);
        Ok(())
    }

    /// SIGTERM, and how long it took to end.
    pub(crate) async fn stop(mut self) -> Result<Duration> {
        let asked = Instant::now();
        if let Some(pid) = self.process.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = self.process.wait().await?;
        let _ = std::fs::remove_file(&self.ready_file);
        if !status.success() {
            bail!("`insula up` ended with {status} on SIGTERM");
        }
        Ok(asked.elapsed())
    }
}

/// Resident memory of a process in bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
