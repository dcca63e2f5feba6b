//! A node, a ledger and the sandboxes of sessions, in a directory of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kit::{Clock, Shutdown, Tasks};
use ledger::{Job, Lease, Ledger, Location, RunId, Ticket};
use sandbox::{Command, Done, Hand, Options, Owner, Sandboxes, Want};
use sha2::Digest;
use tempfile::TempDir;
use wire::node::{Event, Phase};

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Cell {
    pub(crate) dir: TempDir,
    pub(crate) house: House,
}

/// One process's share of it.
pub(crate) struct House {
    pub(crate) node: node::Node,
    pub(crate) ledger: Ledger,
    pub(crate) tasks: Tasks,
    pub(crate) sandboxes: Sandboxes,
}

impl Cell {
    /// `None`, and says why, where this machine makes no sandboxes.
    pub(crate) async fn open() -> Option<Self> {
        Self::open_with(|_| {}).await
    }

    pub(crate) async fn open_with(change: impl FnOnce(&mut Options)) -> Option<Self> {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let house = House::open(dir.path(), change).await?;
        Some(Self { dir, house })
    }

    pub(crate) async fn end(self) {
        self.house.tasks.end().await;
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("node/sandboxes")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Cell {
    /// Gives a session of the instance `me` a workspace with a file in it, `old`: such a one gets no file system of its
    /// own, so that its size is counted on every machine.
    pub(crate) fn count_only(&self, session: &str) -> std::path::PathBuf {
        let hash = sha2::Sha256::digest(format!("session\0{session}").as_bytes());
        let name: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let workspace = self.dir.path().join("workspaces/default/me").join(name);
        std::fs::create_dir_all(&workspace).unwrap();
        std::fs::write(workspace.join("old"), "old\n").unwrap();
        workspace
    }
}

impl std::ops::Deref for Cell {
    type Target = House;

    fn deref(&self) -> &House {
        &self.house
    }
}

impl House {
    pub(crate) async fn open(dir: &Path, change: impl FnOnce(&mut Options)) -> Option<Self> {
        let tasks = Tasks::new(Shutdown::new());
        let program = program();
        let mut options = node::Options::new(dir.join("node"), &program, Clock::system(), tasks.clone());
        options.launcher = program;
        let node = match node::Node::open(options).await {
            Ok(node) => node,
            Err(error) => {
                println!("skipped: {}", kit::chain(&error));
                return None;
            }
        };
        let ledger = Ledger::open(Location::File(dir.join("ledger.db")), Clock::system()).unwrap();
        let way = node.clone();
        let way = sandbox::Node::within(move || way.connect());
        let mut options = Options::new(way, ledger.clone(), Clock::system(), tasks.clone(), dir.join("workspaces"));
        change(&mut options);
        let sandboxes = Sandboxes::open(options).await.unwrap();
        Some(Self { node, ledger, tasks, sandboxes })
    }

    /// Begins a run of the instance `me`.
    pub(crate) async fn begin(&self, run: &str, session: &str) -> (Owner, Lease) {
        let ticket = Ticket {
            run: run.into(),
            namespace: "default".to_owned(),
            name: format!("name-of-{run}"),
            instance: "me".to_owned(),
            session: session.to_owned(),
            created: Timestamp::UNIX_EPOCH,
            limit: 100,
            timeout: Duration::from_secs(600),
            job: Job::default(),
        };
        self.ledger.submit(ticket).await.unwrap();
        let lease = self.ledger.lease("test").await.unwrap();
        assert_eq!(lease.run.as_str(), run);
        (owner(run, session), lease)
    }

    pub(crate) async fn claim(&self, owner: &Owner) -> Hand {
        self.sandboxes.claim(owner, &Want::default()).await.unwrap()
    }

    /// Ends a sandbox from outside, as who deletes its Pod does.
    pub(crate) async fn remove(&self, id: &str) {
        let io = hyper_util::rt::TokioIo::new(self.node.connect());
        let (mut sender, connection) = hyper::client::conn::http1::handshake::<_, String>(io).await.unwrap();
        self.tasks.tenant("delete", async move { drop(connection.await) });
        let request = http::Request::delete(format!("/v1/sandboxes/{id}")).body(String::new()).unwrap();
        assert!(sender.send_request(request).await.unwrap().status().is_success());
    }

    /// Sees what happens on the node from now on.
    pub(crate) async fn watch(&self) -> Watch {
        let (sender, connection) =
            hyper::client::conn::http1::handshake::<_, String>(hyper_util::rt::TokioIo::new(self.node.connect()))
                .await
                .unwrap();
        self.tasks.tenant("watch", async move { drop(connection.await) });
        let mut sender = sender;
        let request = http::Request::get("/v1/watch").body(String::new()).unwrap();
        let body = sender.send_request(request).await.unwrap().into_body();
        let mut watch = Watch { body: Box::pin(http_body_util::BodyStream::new(body)), _sender: Box::new(sender) };
        assert!(matches!(watch.next().await, Event::All { .. }));
        watch
    }
}

pub(crate) struct Watch {
    body: std::pin::Pin<Box<http_body_util::BodyStream<hyper::body::Incoming>>>,
    _sender: Box<dyn std::any::Any + Send>,
}

impl Watch {
    async fn next(&mut self) -> Event {
        // The node writes an event at once.
        let frame = tokio::time::timeout(PATIENCE, self.body.next()).await.expect("an event in time");
        serde_json::from_slice(&frame.unwrap().unwrap().into_data().unwrap()).unwrap()
    }

    /// Waits until a sandbox has come to a phase.
    pub(crate) async fn until(&mut self, test: impl Fn(&str, Phase) -> bool) {
        loop {
            if let Event::Changed { sandbox } = self.next().await
                && test(&sandbox.id, sandbox.phase)
            {
                return;
            }
        }
    }

    pub(crate) async fn ended(&mut self, id: &str) {
        self.until(|it, phase| it == id && phase == Phase::Ended).await;
    }
}

pub(crate) fn owner(run: &str, session: &str) -> Owner {
    Owner {
        namespace: "default".to_owned(),
        instance: "me".to_owned(),
        session: session.to_owned(),
        run: RunId::from(run),
        run_name: format!("name-of-{run}"),
    }
}

pub(crate) fn command(text: &str) -> Command {
    Command { command: text.to_owned(), workdir: None, timeout: Duration::from_secs(30), keep: 32 << 10 }
}

/// What a command says.
pub(crate) async fn sh(hand: &Hand, text: &str) -> String {
    run(hand, text).await.output.trim_end().to_owned()
}

pub(crate) async fn run(hand: &Hand, text: &str) -> Done {
    hand.exec(&command(text), |_| {}).await.unwrap()
}

/// The example `cell`, which cargo builds beside the tests.
fn program() -> PathBuf {
    let path = std::env::current_exe().unwrap();
    let path = path.parent().and_then(Path::parent).unwrap().join("examples/cell");
    assert!(path.exists(), "{} is not there: build it with `cargo build -p sandbox --example cell`", path.display());
    path
}

/// Whether a process runs on this machine that was started with this text.
pub(crate) fn is_running(marker: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|it| {
        let line = std::fs::read(it.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|arg| arg == marker.as_bytes())
    })
}

/// Runs these tests once more as somebody who is not root, where this is root.
pub(crate) async fn as_ordinary_user(tests: &[&str]) {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const ORDINARY: u32 = 54_322;
    if !std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0) {
        return;
    }
    let open = || PermissionsExt::from_mode(0o755);
    let dir = tempfile::Builder::new().permissions(open()).tempdir_in("/var/tmp").unwrap();
    let me = dir.path().join("deps/it");
    for (from, to) in [(std::env::current_exe().unwrap(), me.clone()), (program(), dir.path().join("examples/cell"))] {
        std::fs::create_dir(to.parent().unwrap()).unwrap();
        // By another process: what other tests fork would have it open for writing, too, and make it busy.
        assert!(std::process::Command::new("cp").arg("-p").args([&from, &to]).status().unwrap().success());
        std::fs::set_permissions(&to, open()).unwrap();
    }
    let mut command = std::process::Command::new(me);
    command.arg("--exact").args(tests).uid(ORDINARY).gid(ORDINARY).current_dir("/").env("TMPDIR", "/var/tmp");
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{said}");
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains(&format!("test result: ok. {} passed", tests.len())), "{said}");
}
