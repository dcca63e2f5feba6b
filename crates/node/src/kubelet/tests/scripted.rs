//! Pods as a test plays them, and a client.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kit::{Clock, Shutdown, Tasks};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{broadcast, mpsc, oneshot};
use wire::node::Stats;

use super::super::Kubelet;
use super::super::door::{Attach, Connection, Exec, Pods};
use crate::pod::{ContainerState, ExecConfig, Exit, Log, PodConfig, PodState, StartError, Stream};

pub(super) const UID: &str = "0a1b2c3d";
const START: &str = "2026-11-21T10:00:00Z";

/// The pod `n/p` with the container `c`, which has a terminal, `d` and the init container `i`.
pub(super) fn pod(status: Value) -> Pod {
    let pod = json!({
        "metadata": {"namespace": "n", "name": "p", "uid": UID},
        "spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "c", "tty": true, "stdin": true}],
        },
        "status": status,
    });
    serde_json::from_value(pod).unwrap()
}

/// A command's side of its streams.
pub(super) struct Played {
    pub(super) config: ExecConfig,
    pub(super) stdin: DuplexStream,
    pub(super) stdout: DuplexStream,
    pub(super) stderr: DuplexStream,
    pub(super) sizes: mpsc::UnboundedReceiver<(u16, u16)>,
    pub(super) exit: oneshot::Sender<i32>,
}

pub(super) struct Scripted {
    pod: Arc<Pod>,
    dir: TempDir,
    states: Mutex<Vec<ContainerState>>,
    stats: Mutex<Stats>,
    pub(super) frozen: AtomicBool,
    live: Mutex<Option<Log>>,
    execs: Mutex<Option<mpsc::UnboundedSender<Played>>>,
    pub(super) output: broadcast::Sender<(Stream, Bytes)>,
    /// What a container's own streams are played with.
    pub(super) attached: Mutex<Option<Attach>>,
    /// Ports that listen, and where their connections go.
    pub(super) ports: Mutex<HashMap<u16, mpsc::UnboundedSender<DuplexStream>>>,
}

impl Scripted {
    pub(super) fn new(status: Value) -> Arc<Self> {
        Arc::new(Self {
            pod: Arc::new(pod(status)),
            dir: TempDir::new().unwrap(),
            states: Mutex::default(),
            stats: Mutex::default(),
            frozen: AtomicBool::new(false),
            live: Mutex::default(),
            execs: Mutex::default(),
            output: broadcast::channel(4).0,
            attached: Mutex::default(),
            ports: Mutex::default(),
        })
    }

    pub(super) fn kubelet(self: &Arc<Self>) -> Arc<Kubelet> {
        let now: Timestamp = "2026-11-21T10:00:10Z".parse().unwrap();
        let kubelet = Kubelet::new(Clock::starting_at(now), Tasks::new(Shutdown::new()), None);
        kubelet.serve(self.clone());
        Arc::new(kubelet)
    }

    pub(super) fn logs(&self, container: &str) -> PathBuf {
        self.dir.path().join(container)
    }

    pub(super) fn keep(&self, log: Log) {
        *self.live.lock().unwrap() = Some(log);
    }

    pub(super) fn attempt(&self, name: &str, attempt: u32, id: &str, ended: bool) {
        let started = START.parse().unwrap();
        let exit = ended.then(|| Exit {
            code: 1,
            signal: None,
            out_of_memory: false,
            finished: started,
            message: String::new(),
            unseen: false,
        });
        let (id, stop_signal) = (id.into(), None);
        let state = ContainerState { name: name.into(), attempt, id, started, exit, stop_signal };
        self.states.lock().unwrap().push(state);
    }

    pub(super) fn uses(&self, stats: Stats) {
        *self.stats.lock().unwrap() = stats;
    }

    /// The commands that are started from now on.
    pub(super) fn commands(&self) -> mpsc::UnboundedReceiver<Played> {
        let (send, execs) = mpsc::unbounded_channel();
        *self.execs.lock().unwrap() = Some(send);
        execs
    }

    /// The connections to a port from now on.
    pub(super) fn listen(&self, port: u16) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (send, connections) = mpsc::unbounded_channel();
        self.ports.lock().unwrap().insert(port, send);
        connections
    }
}

impl Pods for Scripted {
    fn node(&self) -> String {
        "node".into()
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    fn state(&self, uid: &str) -> Option<PodState> {
        let config = PodConfig {
            uid: uid.into(),
            namespace: "n".into(),
            name: "p".into(),
            hostname: "p".into(),
            ..PodConfig::default()
        };
        let containers = self.states.lock().unwrap().clone();
        let created = START.parse().unwrap();
        let frozen = self.frozen.load(Ordering::Relaxed);
        (uid == UID).then_some(PodState { config, alive: true, frozen, address: None, created, containers })
    }

    fn log(&self, _uid: &str, container: &str, attempt: u32) -> io::Result<Log> {
        match (attempt, self.live.lock().unwrap().clone()) {
            (1, Some(log)) => Ok(log),
            _ => Log::ended(&self.logs(container), attempt, Clock::system()),
        }
    }

    fn exec(&self, _uid: &str, _container: &str, config: ExecConfig) -> BoxFuture<'static, Result<Exec, StartError>> {
        if config.args[0] == "nowhere" {
            let why = "exec: \"nowhere\": executable file not found in $PATH";
            return async move { Err(StartError::Command(why.into())) }.boxed();
        }
        let pipe = || tokio::io::duplex(1 << 10);
        let ((stdin, into), (stdout, out), (stderr, err)) = (pipe(), pipe(), pipe());
        let ((size, sizes), (exit, code)) = (mpsc::unbounded_channel(), oneshot::channel());
        let resize = move |rows, columns| {
            let _ = size.send((rows, columns));
        };
        let exec = Exec {
            stdin: config.stdin.then(|| Box::pin(into) as _),
            stdout: config.stdout.then(|| Box::pin(out) as _),
            stderr: config.stderr.then(|| Box::pin(err) as _),
            resize: config.tty.then(|| Box::new(resize) as _),
            exit: code.map(Result::ok).boxed(),
        };
        let played = Played { config, stdin, stdout, stderr, sizes, exit };
        assert!(self.execs.lock().unwrap().as_ref().unwrap().send(played).is_ok());
        async move { Ok(exec) }.boxed()
    }

    fn attach(&self, _uid: &str, _container: &str, stdin: bool) -> Option<Attach> {
        let mut attached = self.attached.lock().unwrap().take()?;
        attached.stdin = attached.stdin.filter(|_| stdin);
        Some(attached)
    }

    fn dial(&self, _uid: &str, port: u16) -> BoxFuture<'static, io::Result<Connection>> {
        let listens = self.ports.lock().unwrap().get(&port).cloned();
        async move {
            let (ours, theirs) = tokio::io::duplex(1 << 10);
            match listens.map(|it| it.send(theirs)) {
                Some(Ok(())) => Ok(Box::pin(ours) as Connection),
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        }
        .boxed()
    }

    fn usage(&self, _uid: &str, _container: Option<&str>) -> Option<Stats> {
        Some(*self.stats.lock().unwrap())
    }
}

/// A connection to the API.
fn connect(kubelet: &Arc<Kubelet>) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (serving, tasks) = (kubelet.clone(), kubelet.tasks.clone());
    tasks.tenant("connection", async move {
        let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let kubelet = serving.clone();
            async move { Ok::<_, std::convert::Infallible>(kubelet.answer(request.map(drop)).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        let _ = serving.with_upgrades().await;
    });
    ours
}

/// Sends a request with these headers: the connection, and the answer's status and head, or its body when it is no
/// upgrade.
pub(super) async fn ask(
    kubelet: &Arc<Kubelet>,
    method: &str,
    path: &str,
    headers: &str,
) -> (DuplexStream, (u16, String)) {
    let mut stream = connect(kubelet);
    let request = format!("{method} /kubelet/{path} HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(said).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 101 {
        return (stream, (status, head));
    }
    let mut body = Vec::new();
    match head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        Some(length) => {
            body.resize(length.parse().unwrap(), 0);
            stream.read_exact(&mut body).await.unwrap();
        }
        None => loop {
            let mut line = String::new();
            while !line.ends_with("\r\n") {
                line.push(char::from(stream.read_u8().await.unwrap()));
            }
            let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let from = body.len();
            body.resize(from + length + 2, 0);
            stream.read_exact(&mut body[from..]).await.unwrap();
            body.truncate(from + length);
            if length == 0 {
                break;
            }
        },
    }
    (stream, (status, String::from_utf8(body).unwrap()))
}

pub(super) async fn get(kubelet: &Arc<Kubelet>, path: &str) -> (u16, String) {
    ask(kubelet, "GET", path, "").await.1
}
