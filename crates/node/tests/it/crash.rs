//! The node dies; nothing stays that the next one does not know.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use wire::node::{Bind, Code, Create, Event, Limits, Phase, Problem, Sandboxes};

use crate::cell::{Cell, Client, at, copy, is_root, program};

/// A node in a process of its own.
struct Other {
    process: Child,
    dir: tempfile::TempDir,
    intruder: Program,
}

/// A program and its file, by which those who run it are known when it has no name any more.
#[derive(Clone)]
struct Program {
    path: PathBuf,
    file: (u64, u64),
}

impl Program {
    fn of(path: PathBuf) -> Self {
        Self { file: file(&path).unwrap(), path }
    }
}

fn file(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Other {
    fn start(step: Option<&str>) -> Self {
        // Nobody but its owner gets through: neither node nor workspaces may need that.
        let dir = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .tempdir_in("/var/tmp")
            .unwrap();
        // A copy, by which its processes are known.
        let path = dir.path().join("intruder");
        copy(&program("intruder"), &path);
        let intruder = Program::of(path);
        let mut process = Command::new(program("node-launcher"))
            .arg(dir.path().join("node"))
            .arg(&intruder.path)
            .args(step)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { process, dir, intruder }
    }

    async fn client(&self) -> Option<Client> {
        Some(Client::over(tokio::net::UnixStream::connect(self.dir.path().join("node/node")).await.ok()?))
    }

    /// The whole life of a sandbox, as far as the node lives.
    async fn live(&self) {
        let create = Create { id: Some("it".into()), ..Create::default() };
        let bind = Bind { workspace: Some(at(&self.dir.path().join("workspace"))), ..Bind::default() };
        let calls = [
            ("POST", "/v1/sandboxes", serde_json::to_vec(&create).unwrap()),
            ("POST", "/v1/sandboxes/it/bind", serde_json::to_vec(&bind).unwrap()),
            ("DELETE", "/v1/sandboxes/it", Vec::new()),
        ];
        for (method, path, body) in calls {
            let Some(client) = self.client().await else { return };
            match client.try_call(method, path, body).await {
                None => return,
                Some((status, said)) => assert!(status.is_success(), "{method} {path}: {status} {said}"),
            }
        }
    }

    /// Waits for its death and opens the next node over the same directory.
    async fn heir(mut self) -> (Cell, Program) {
        let deadline = Duration::from_secs(30);
        let died = tokio::task::spawn_blocking(move || {
            self.process.wait().unwrap();
            (self.dir, self.intruder)
        });
        let (dir, intruder) = tokio::time::timeout(deadline, died).await.unwrap().unwrap();
        (Cell::over(dir, &intruder.path).await, intruder)
    }
}

/// Pids of whatever runs `program`, or is a launcher for its directory.
fn processes(program: &Program) -> Vec<String> {
    let dir = program.path.parent().unwrap().display().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|it| it.file_name().into_string().ok());
    all.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        runs(pid, program) || String::from_utf8_lossy(&line).contains(&format!("{dir}/node/stage"))
    })
    .collect()
}

fn runs(pid: &str, program: &Program) -> bool {
    file(&PathBuf::from(format!("/proc/{pid}/exe"))) == Some(program.file)
}

fn groups(dir: &Path) -> Vec<PathBuf> {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(dir.join("node").as_os_str().as_encoded_bytes());
    let name = format!("insula-{}", digest.iter().take(6).map(|it| format!("{it:02x}")).collect::<String>());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let all = mounts.lines().filter(|it| it.starts_with("cgroup")).filter_map(|it| it.split(' ').nth(1));
    all.map(|it| Path::new(it).join(&name)).filter(|it| it.exists()).collect()
}

/// Waits for the end of all `processes` but those that live in a sandbox and the launcher with this parent.
async fn gone(program: &Program, but: impl Fn(&str) -> bool + Send + 'static) {
    let program = program.clone();
    let waited = tokio::task::spawn_blocking(move || {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left: Vec<_> = processes(&program).into_iter().filter(|it| !but(it)).collect();
            let Some(pid) = left.first() else { return };
            assert!(Instant::now() < deadline, "{left:?} stay");
            let Some(pid) = rustix::process::Pid::from_raw(pid.parse().unwrap()) else { continue };
            if let Ok(end) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
                let mut end = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut end, Some(&rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 })).unwrap();
            }
        }
    });
    waited.await.unwrap();
}

fn parent(pid: &str) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|it| it.strip_prefix("PPid:")?.trim().parse().ok())
}

/// Binds a sandbox to a workspace and a name of its own.
async fn bind(cell: &Cell, id: &str) -> Result<wire::node::Sandbox, Problem> {
    let workspace = Some(at(&cell.dir.path().join(format!("late-{id}"))));
    let asked = Bind { workspace, hostname: Some("late".into()), ..Bind::default() };
    cell.client().post(&format!("/v1/sandboxes/{id}/bind"), &asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_at_any_step_leaves_nothing_that_the_next_one_does_not_know() {
    let runs = node::STEPS.iter().map(|step| async move {
        let other = Other::start(Some(step));
        other.live().await;
        let (cell, intruder) = other.heir().await;
        let all: Sandboxes = cell.client().get("/v1/sandboxes").await.unwrap();
        let adopted = all.sandboxes.len();
        for it in &all.sandboxes {
            assert!(it.adopted, "{step}: {it:?}");
            assert_eq!(cell.sh("it", "echo alive").await, "alive", "{step}");
        }
        // Started and not yet being bound or ended: it goes on, where the next node can bind it. In between nobody can
        // say what it has got.
        assert_eq!(adopted, usize::from(*step == "create: started" && is_root()), "{step}");
        if adopted == 1 {
            bind(&cell, "it").await.unwrap();
        }
        // The dead node's launcher goes when it sees its heir.
        let running = intruder.clone();
        gone(&intruder, move |pid| parent(pid) == Some(std::process::id()) || (adopted == 1 && runs(pid, &running)))
            .await;
        cell.bound("next").await;
        let dir = intruder.path.parent().unwrap().to_owned();
        let kept = cell.end().await;
        gone(&intruder, |_| false).await;
        assert_eq!(groups(&dir), Vec::<PathBuf>::new(), "{step}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.display().to_string()), "{step}: {mounts}");
        drop(kept);
    });
    futures::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_sandbox_goes_on_under_the_next_node() {
    let mut other = Other::start(None);
    other.client().await.unwrap().create("it", Limits::default()).await;
    let workspace = other.dir.path().join("workspace");
    let bind = Bind { workspace: Some(at(&workspace)), ..Bind::default() };
    let bound: wire::node::Sandbox = other.client().await.unwrap().post("/v1/sandboxes/it/bind", &bind).await.unwrap();
    let path = "/v1/sandboxes/it/execd/bind";
    let before = other.client().await.unwrap().call("GET", path, Vec::new()).await;
    other
        .client()
        .await
        .unwrap()
        .run("it", &["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! > /workspace/pid"])
        .await;
    other.process.kill().unwrap();

    let (cell, _) = other.heir().await;
    let all: Sandboxes = cell.client().get("/v1/sandboxes").await.unwrap();
    let adopted = wire::node::Sandbox { adopted: true, ..bound };
    assert_eq!(all.sandboxes, [adopted]);
    assert_eq!(cell.sh("it", "kill -0 $(cat /workspace/pid) && echo runs").await, "runs");
    let after = cell.client().call("GET", path, Vec::new()).await;
    assert_eq!(before.1["seen-token"], after.1["seen-token"], "the token is still known");
    cell.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_doctor_left_is_cleared() {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let first = Cell::open().await;
    let node: wire::node::Node = first.client().get("/v1/node").await.unwrap();
    let dir = first.end().await;
    let scratch = dir.path().join("node/doctor-left");
    std::fs::create_dir_all(scratch.join("stage")).unwrap();
    let group = node.can["memcg"].why.strip_prefix("control group ").filter(|_| node.can["memcg"].ok).map(|it| {
        let group = Path::new(it).with_file_name(format!("insula-doctor-{}-left", dead.id()));
        std::fs::create_dir_all(group.join("look")).unwrap();
        group
    });
    let next = Cell::over(dir, &program("intruder")).await;
    let _: wire::node::Node = next.client().get("/v1/node").await.unwrap();
    assert!(!scratch.exists() && group.is_none_or(|it| !it.exists()));
    next.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_end_when_no_node_can_come_back() {
    let mut other = Other::start(None);
    other.client().await.unwrap().create("one", Limits::default()).await;
    let intruder = other.intruder.clone();
    let one = processes(&intruder).into_iter().find(|it| runs(it, &intruder)).unwrap();
    other.client().await.unwrap().create("two", Limits::default()).await;
    // It dies with something unread: that one of them has ended.
    let signal = |pid, signal| rustix::process::kill_process(pid, signal).unwrap();
    signal(rustix::process::Pid::from_child(&other.process), rustix::process::Signal::STOP);
    signal(rustix::process::Pid::from_raw(one.parse().unwrap()).unwrap(), rustix::process::Signal::KILL);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new("/proc").join(&one).exists() {
        assert!(Instant::now() < deadline, "nobody reaps it");
        std::thread::yield_now();
    }
    other.process.kill().unwrap();
    other.process.wait().unwrap();
    let dir = other.dir.path().to_owned();
    drop(other.dir);
    gone(&intruder, |_| false).await;
    assert_eq!(groups(&dir), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_launcher_takes_the_place_of_one_that_was_killed() {
    let cell = Cell::open().await;
    let (_, workspace) = cell.bound("bound").await;
    cell.sandbox("before").await;
    let request = http::Request::get("/v1/watch").body(http_body_util::Full::default()).unwrap();
    let mut events = cell.client().send(request).await.into_body();
    let line = format!("{}/node/stage", cell.dir.path().display());
    let launcher = std::fs::read_dir("/proc").unwrap().flatten().find(|it| {
        std::fs::read(it.path().join("cmdline")).is_ok_and(|it| String::from_utf8_lossy(&it).contains(&line))
    });
    let pid = launcher.unwrap().file_name().into_string().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    cell.bound("after").await;
    assert_eq!(cell.sh("bound", "echo lives > /workspace/f; cat /workspace/f").await, "lives");
    assert_eq!(std::fs::read_to_string(workspace.join("f")).unwrap(), "lives\n");
    if is_root() {
        bind(&cell, "before").await.unwrap();
        assert_eq!(cell.sh("before", "hostname").await, "late");
    } else {
        // The next launcher could never enter it: it goes by itself.
        let ended = async {
            loop {
                let line = events.frame().await.unwrap().unwrap().into_data().unwrap();
                let event = serde_json::from_slice(&line).unwrap();
                if matches!(event, Event::Changed { sandbox } if sandbox.id == "before" && sandbox.phase == Phase::Ended)
                {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
        assert_eq!(bind(&cell, "before").await.unwrap_err().code, Code::Gone);
        cell.bound("next").await;
    }
    let gone = cell.client().delete("bound").await.unwrap();
    assert_eq!(gone.exit.unwrap().reason, wire::node::ExitReason::Removed);
    cell.end().await;
}
