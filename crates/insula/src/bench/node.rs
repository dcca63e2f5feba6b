//! A real `insula node` in a process of its own, asked over its socket and looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub(crate) struct Node {
    process: Child,
    dir: PathBuf,
    http: reqwest::Client,
    /// What the names of this bench's sandboxes begin with, and nobody else's.
    prefix: String,
}

impl Node {
    /// Starts it over an empty directory of its own and waits until it answers.
    pub(crate) async fn start() -> Result<Self> {
        let id = kit::id();
        let dir = std::env::temp_dir().join(format!("insula-bench-{id}"));
        std::fs::DirBuilder::new().mode(0o700).create(&dir).context("make a directory")?;
        let socket = dir.join("socket");
        let mut process = Command::new(std::env::current_exe().context("find this program")?)
            .arg("node")
            .args(["--data-dir".as_ref(), dir.join("data").as_os_str()])
            .args(["--listen".as_ref(), socket.as_os_str()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start `insula node`")?;
        let mut said = BufReader::new(process.stderr.take().context("its stderr")?).lines();
        let first = tokio::time::timeout(Duration::from_secs(30), said.next_line()).await;
        let first = first.context("wait for `insula node`")??.unwrap_or_default();
        if !first.starts_with("The node answers") {
            let _ = std::fs::remove_dir_all(&dir);
            bail!("{}", first.trim_start_matches("insula: "));
        }
        let http = reqwest::Client::builder().unix_socket(socket).no_proxy().build()?;
        // Of an id, what is random in it: ids of sandboxes are short.
        let prefix = id.chars().rev().filter(char::is_ascii_alphanumeric).take(10).collect();
        Ok(Self { process, dir, http, prefix })
    }

    fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    async fn call(&self, method: reqwest::Method, path: &str, body: Value) -> Result<String> {
        let asked = self.http.request(method, format!("http://node/v1/sandboxes{path}")).json(&body).send();
        let answer = asked.await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            bail!("{path}: {status}: {text}");
        }
        Ok(text)
    }

    /// Starts a sandbox; returns when its execd answers.
    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        let id = self.id(name);
        self.call(reqwest::Method::POST, "", json!({"id": id})).await?;
        self.call(reqwest::Method::GET, &format!("/{id}/execd/ping"), Value::Null).await?;
        Ok(())
    }

    /// Binds it to a workspace of that number, bounded as those of sessions are, and runs `true` in it.
    pub(crate) async fn exec(&self, name: &str, workspace: usize) -> Result<()> {
        let id = self.id(name);
        let path = self.dir.join(format!("workspace-{workspace}"));
        let bind = json!({"hostname": "bench", "workspace": {"path": path, "quota": 64 << 20}});
        self.call(reqwest::Method::POST, &format!("/{id}/bind"), bind).await?;
        let said =
            self.call(reqwest::Method::POST, &format!("/{id}/execd/command"), json!({"command": "true"})).await?;
        if !said.contains("execution_complete") {
            bail!("`true` did not end well: {said}");
        }
        Ok(())
    }

    /// Returns when nothing of it is left.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        self.call(reqwest::Method::DELETE, &format!("/{}", self.id(name)), Value::Null).await.map(drop)
    }

    pub(crate) fn held(&self) -> Result<Held> {
        let pid = self.process.id().context("it has ended")?;
        let all = Processes::now()?;
        let below = all.below(pid);
        // The node's only children.
        let launchers: Vec<u32> = below.iter().copied().filter(|it| all.parent(*it) == Some(pid)).collect();
        let (mut ours, mut sandboxes) = (vec![pid], Vec::new());
        for it in below {
            if launchers.contains(&it) { ours.push(it) } else { sandboxes.push(it) }
        }
        let lines = |path: String| std::fs::read_to_string(path).unwrap_or_default().lines().count();
        let sum = |pids: &[u32], of: fn(u32) -> u64| pids.iter().map(|it| of(*it)).sum::<u64>();
        Ok(Held {
            memory: sum(&ours, |pid| kib(pid, "smaps_rollup", "Pss:")),
            sandbox_memory: sum(&sandboxes, |pid| kib(pid, "smaps_rollup", "Pss:")),
            processes: sandboxes.len(),
            descriptors: ours.iter().map(|pid| entries(Path::new(&format!("/proc/{pid}/fd")), |_| true, 1)).sum(),
            mounts: lines("/proc/self/mountinfo".into())
                + launchers.iter().map(|pid| lines(format!("/proc/{pid}/mountinfo"))).sum::<usize>(),
            disks: self.disks(),
            cgroups: entries(Path::new("/sys/fs/cgroup"), |name| name.starts_with(&self.prefix), 16),
            files: entries(&self.dir, |_| true, 16),
        })
    }

    /// Loop devices over files in its directory.
    fn disks(&self) -> usize {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let files = devices.filter_map(|it| std::fs::read_to_string(it.path().join("loop/backing_file")).ok());
        files.filter(|it| Path::new(it.trim_end()).starts_with(&self.dir)).count()
    }

    /// Ends it, and checks that it leaves nothing.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if let Some(pid) = self.process.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = self.process.wait().await?;
        let left = entries(&self.dir.join("data/node/sandboxes"), |_| true, 1);
        let _ = std::fs::remove_dir_all(&self.dir);
        if !status.success() || left > 0 {
            bail!("`insula node` ended with {status} on SIGTERM, {left} directories of sandboxes were left");
        }
        Ok(())
    }
}

/// What a node holds.
#[derive(Debug)]
pub(crate) struct Held {
    /// Of node and launcher, in KiB of proportional memory.
    pub(crate) memory: u64,
    /// Of everything in sandboxes, likewise.
    pub(crate) sandbox_memory: u64,
    /// In sandboxes.
    pub(crate) processes: usize,
    /// Of node and launcher.
    pub(crate) descriptors: usize,
    /// Of the host and of the launcher.
    pub(crate) mounts: usize,
    /// Loop devices.
    pub(crate) disks: usize,
    pub(crate) cgroups: usize,
    /// Files and directories in the node's directory.
    pub(crate) files: usize,
}

/// Every process's parent.
struct Processes(BTreeMap<u32, u32>);

impl Processes {
    fn now() -> Result<Self> {
        let pids = std::fs::read_dir("/proc")?.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
        Ok(Self(pids.filter_map(|pid| Some((pid, u32::try_from(field(pid, "status", "PPid:")?).ok()?))).collect()))
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        self.0.get(&pid).copied()
    }

    /// All that descend from `pid`.
    fn below(&self, pid: u32) -> BTreeSet<u32> {
        let descends = |it: &u32| std::iter::successors(self.parent(*it), |it| self.parent(*it)).any(|it| it == pid);
        self.0.keys().copied().filter(descends).collect()
    }
}

/// The number after `name` in a file of a process.
fn field(pid: u32, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

fn kib(pid: u32, file: &str, name: &str) -> u64 {
    field(pid, file, name).unwrap_or_default()
}

/// How many entries of that name there are below a directory, so many levels deep. What goes meanwhile is not counted.
fn entries(dir: &Path, name: impl Fn(&str) -> bool + Copy, levels: usize) -> usize {
    let Ok(found) = std::fs::read_dir(dir) else { return 0 };
    found
        .flatten()
        .map(|it| {
            let below = levels > 1 && it.file_type().is_ok_and(|kind| kind.is_dir());
            let ours = it.file_name().to_str().is_some_and(name);
            usize::from(ours) + if below { entries(&it.path(), name, levels - 1) } else { 0 }
        })
        .sum()
}
