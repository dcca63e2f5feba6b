//! A node of a test's own, and a client of its protocol.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kit::{Clock, Shutdown, Tasks};
use node::{Guards, Node, Options};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::node::{Bind, Create, Limits, Problem, Sandbox, Workspace};

/// A helper program: beside this test, where it was copied for another user, or where cargo built it.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = std::env::current_exe().unwrap().with_file_name(name);
    let built = match name {
        "intruder" => env!("CARGO_BIN_EXE_intruder").into(),
        "node-launcher" => env!("CARGO_BIN_EXE_node-launcher").into(),
        example => PathBuf::from(env!("CARGO_BIN_EXE_intruder")).with_file_name("examples").join(example),
    };
    if beside.exists() { beside } else { built }
}

/// A copy that can be executed at once. Written by this process it would be open for writing in what other tests fork
/// meanwhile, too, and busy.
pub(crate) fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-p").args([from, to]).status().unwrap();
    assert!(copied.success(), "{}: {copied}", from.display());
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) struct Cell {
    pub(crate) node: Node,
    pub(crate) tasks: Tasks,
    /// World-readable on purpose: what keeps sandboxes out must not be its mode.
    pub(crate) dir: tempfile::TempDir,
}

impl Cell {
    pub(crate) async fn open() -> Self {
        Self::with(Guards::all()).await
    }

    pub(crate) async fn with(guards: Guards) -> Self {
        Self::make(open_dir(), &program("intruder"), guards).await
    }

    /// Over a directory that another node worked in.
    pub(crate) async fn over(dir: tempfile::TempDir, execd: &Path) -> Self {
        Self::make(dir, execd, Guards::all()).await
    }

    pub(crate) async fn make(dir: tempfile::TempDir, execd: &Path, guards: Guards) -> Self {
        let tasks = Tasks::new(Shutdown::new());
        let mut options = Options::new(dir.path().join("node"), execd, Clock::system(), tasks.clone());
        options.launcher = program("node-launcher");
        options.guards = guards;
        let node = Node::open(options).await.unwrap_or_else(|error| panic!("{}", kit::chain(&error)));
        Self { node, tasks, dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::over(self.node.connect())
    }

    pub(crate) async fn sandbox(&self, id: &str) -> Sandbox {
        self.client().create(id, Limits::default()).await
    }

    /// One that is bound to a fresh workspace, whose path is the second value.
    pub(crate) async fn bound(&self, id: &str) -> (Sandbox, PathBuf) {
        self.sandbox(id).await;
        let workspace = self.dir.path().join(format!("workspace-{id}"));
        let bind = Bind { workspace: Some(at(&workspace)), ..Bind::default() };
        (self.client().post(&format!("/v1/sandboxes/{id}/bind"), &bind).await.unwrap(), workspace)
    }

    /// What a program prints in a sandbox, and its exit code.
    pub(crate) async fn run(&self, id: &str, args: &[&str]) -> (i32, String) {
        self.client().run(id, args).await
    }

    pub(crate) async fn sh(&self, id: &str, script: &str) -> String {
        self.run(id, &["sh", "-c", script]).await.1.trim_end().to_owned()
    }

    /// Whether doctor says so; if not, why this test skips.
    pub(crate) async fn can(&self, what: &str) -> bool {
        let node: wire::node::Node = self.client().get("/v1/node").await.unwrap();
        if !node.can[what].ok {
            println!("skipped: {what}: {}", node.can[what].why);
        }
        node.can[what].ok
    }

    /// Ends everything; the directory must then be as empty as it can be.
    pub(crate) async fn end(self) -> tempfile::TempDir {
        self.tasks.end().await;
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("node/sandboxes")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        self.dir
    }
}

/// A directory that everybody may read.
pub(crate) fn open_dir() -> tempfile::TempDir {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    tempfile::Builder::new().permissions(mode).tempdir_in("/var/tmp").unwrap()
}

pub(crate) fn at(path: &Path) -> Workspace {
    Workspace { path: path.display().to_string(), read_only: false, quota: None }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Speaks the protocol over one connection.
pub(crate) struct Client(Box<dyn FnOnce() -> std::pin::Pin<Box<dyn Future<Output = Sender> + Send>> + Send>);

impl Client {
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(move || {
            Box::pin(async move {
                let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                #[allow(clippy::disallowed_methods, reason = "a test's client")]
                tokio::spawn(connection.with_upgrades());
                sender
            })
        }))
    }

    pub(crate) async fn send(self, request: Request<Full<Bytes>>) -> http::Response<hyper::body::Incoming> {
        (self.0)().await.send_request(request).await.unwrap()
    }

    /// `None` when the node dies meanwhile.
    pub(crate) async fn try_call(self, method: &str, path: &str, body: Vec<u8>) -> Option<(StatusCode, String)> {
        let request = Request::builder().method(method).uri(path).body(Full::from(body)).unwrap();
        let response = (self.0)().await.send_request(request).await.ok()?;
        let status = response.status();
        let said = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&said).into_owned()))
    }

    pub(crate) async fn call(self, method: &str, path: &str, body: Vec<u8>) -> (StatusCode, http::HeaderMap, Bytes) {
        let request = Request::builder().method(method).uri(path).body(Full::from(body)).unwrap();
        let response = self.send(request).await;
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes())
    }

    async fn json<T: DeserializeOwned>(self, method: &str, path: &str, body: Vec<u8>) -> Result<T, Problem> {
        let (status, _, body) = self.call(method, path, body).await;
        if status.is_success() {
            Ok(serde_json::from_slice(&body).unwrap())
        } else {
            Err(serde_json::from_slice(&body).unwrap())
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(self, path: &str) -> Result<T, Problem> {
        self.json("GET", path, Vec::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Problem> {
        self.json("POST", path, serde_json::to_vec(body).unwrap()).await
    }

    pub(crate) async fn delete(self, id: &str) -> Result<Sandbox, Problem> {
        self.json("DELETE", &format!("/v1/sandboxes/{id}"), Vec::new()).await
    }

    pub(crate) async fn create(self, id: &str, limits: Limits) -> Sandbox {
        let create = Create { id: Some(id.into()), limits, ..Create::default() };
        self.post("/v1/sandboxes", &create).await.unwrap()
    }

    pub(crate) async fn run(self, id: &str, args: &[&str]) -> (i32, String) {
        let path = format!("/v1/sandboxes/{id}/execd/run");
        let (status, headers, body) = self.call("POST", &path, serde_json::to_vec(args).unwrap()).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(status.is_success(), "{status}: {text}");
        (headers["exit-code"].to_str().unwrap().parse().unwrap(), text)
    }
}
