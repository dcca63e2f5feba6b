//! Start, use and end of sandboxes, with percentiles and a count of what leaked.
//!
//! `cargo bench -p node --bench start -- [execd=PATH] [one=N] [once=N] [soak=N]`
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use kit::{Clock, Shutdown, Tasks};
use node::{Node, Options};

/// Which program is the first process, and how it is asked to run one.
static RUN: std::sync::OnceLock<(&str, &str)> = std::sync::OnceLock::new();

struct Arguments {
    execd: PathBuf,
    one: usize,
    once: usize,
    soak: usize,
}

fn main() {
    node::launcher_main();
    let mut arguments = Arguments { execd: env!("CARGO_BIN_EXE_intruder").into(), one: 200, once: 200, soak: 1000 };
    for (name, value) in std::env::args().filter_map(|it| it.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())))
    {
        match name.as_str() {
            "execd" => {
                arguments.execd = value.into();
                RUN.set(("command", r#"{"argv":["true"]}"#)).unwrap();
            }
            "one" => arguments.one = value.parse().unwrap(),
            "once" => arguments.once = value.parse().unwrap(),
            "soak" => arguments.soak = value.parse().unwrap(),
            other => panic!("unknown argument {other}"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(bench(arguments));
}

type Sender = SendRequest<Full<Bytes>>;

async fn connect(node: &Node) -> Sender {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(node.connect())).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "a bench's client")]
    tokio::spawn(connection);
    sender
}

async fn call(sender: &mut Sender, method: &str, path: &str, body: &str) {
    sender.ready().await.unwrap();
    let request = Request::builder().method(method).uri(path).body(Full::from(body.to_owned())).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(status.is_success(), "{method} {path}: {status} {body:?}");
}

/// One life: created, bound to a workspace, first command's output, gone.
async fn life(sender: &mut Sender, id: &str, dir: &Path) -> [Duration; 4] {
    let mut last = Instant::now();
    let mut lap = || {
        let took = last.elapsed();
        last = Instant::now();
        took
    };
    call(sender, "POST", "/v1/sandboxes", &format!(r#"{{"id":"{id}"}}"#)).await;
    let created = lap();
    let workspace = dir.join("workspace").display().to_string();
    let bind = format!(r#"{{"workspace":{{"path":"{workspace}"}},"hostname":"bound"}}"#);
    call(sender, "POST", &format!("/v1/sandboxes/{id}/bind"), &bind).await;
    let bound = lap();
    run_true(sender, id).await;
    let ran = lap();
    call(sender, "DELETE", &format!("/v1/sandboxes/{id}"), "").await;
    [created, bound, ran, lap()]
}

async fn run_true(sender: &mut Sender, id: &str) {
    let (path, body) = RUN.get_or_init(|| ("run", r#"["true"]"#));
    call(sender, "POST", &format!("/v1/sandboxes/{id}/execd/{path}"), body).await;
}

fn print(what: &str, mut all: Vec<Duration>) {
    if all.is_empty() {
        return;
    }
    all.sort();
    let at = |part: usize| all[(all.len() * part / 100).min(all.len() - 1)].as_secs_f64() * 1000.0;
    println!(
        "{what:<28} p50 {:7.2}  p95 {:7.2}  p99 {:7.2}  max {:7.2} ms  (n={})",
        at(50),
        at(95),
        at(99),
        at(100),
        all.len()
    );
}

async fn bench(arguments: Arguments) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let tasks = Tasks::new(Shutdown::new());
    let mut options = Options::new(dir.path().join("node"), &arguments.execd, Clock::system(), tasks.clone());
    options.launcher = "/proc/self/exe".into();
    let node = Node::open(options).await.unwrap_or_else(|error| panic!("{}", kit::chain(&error)));
    let mut sender = connect(&node).await;
    life(&mut sender, "warm-up", dir.path()).await;

    let mut laps: [Vec<Duration>; 4] = Default::default();
    for i in 0..arguments.one {
        for (all, lap) in laps.iter_mut().zip(life(&mut sender, &format!("one-{i}"), dir.path()).await) {
            all.push(lap);
        }
    }
    for (what, all) in ["create (warm)", "bind (workspace, late)", "run true", "remove"].into_iter().zip(laps) {
        print(what, all);
    }

    let start = Instant::now();
    let starts = (0..arguments.once).map(|i| {
        let node = &node;
        async move {
            let mut sender = connect(node).await;
            call(&mut sender, "POST", "/v1/sandboxes", &format!(r#"{{"id":"at-once-{i}"}}"#)).await;
            call(&mut sender, "POST", &format!("/v1/sandboxes/at-once-{i}/bind"), "{}").await;
            run_true(&mut sender, &format!("at-once-{i}")).await;
            start.elapsed()
        }
    });
    print("at once, until it ran true", futures::future::join_all(starts).await);
    println!("idle: {} KiB PSS each", idle(arguments.once));
    let start = Instant::now();
    let ends = (0..arguments.once).map(|i| {
        let node = &node;
        async move {
            let mut sender = connect(node).await;
            call(&mut sender, "DELETE", &format!("/v1/sandboxes/at-once-{i}"), "").await;
            start.elapsed()
        }
    });
    print("at once, until gone", futures::future::join_all(ends).await);

    let before = Held::now(dir.path());
    let start = Instant::now();
    for i in 0..arguments.soak {
        life(&mut sender, &format!("soak-{i}"), dir.path()).await;
    }
    if arguments.soak > 0 {
        let each = start.elapsed() / u32::try_from(arguments.soak).unwrap();
        println!(
            "soak of {}: {each:.2?} each\n  before {before:?}\n  after  {:?}",
            arguments.soak,
            Held::now(dir.path())
        );
    }
    tasks.end().await;
}

/// Proportional memory of the first processes of all sandboxes, per sandbox.
fn idle(sandboxes: usize) -> usize {
    let pss = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        text.lines()
            .find_map(|it| it.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse::<usize>().ok())
            .unwrap_or(0)
    };
    let all: usize = pids().iter().filter(|it| comm(it) != "insula-launcher" && is_first(it)).map(|it| pss(it)).sum();
    all / sandboxes.max(1)
}

fn pids() -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|it| it.file_name().into_string().ok());
    all.filter(|it| it.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

fn comm(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Process 1 of a namespace of its own.
fn is_first(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|it| it.strip_prefix("NSpid:").is_some_and(|it| it.split_whitespace().collect::<Vec<_>>() == [pid, "1"]))
}

/// What must not grow.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
struct Held {
    descriptors: usize,
    host_mounts: usize,
    launcher_mounts: usize,
    cgroups: usize,
    directories: usize,
    processes: usize,
    rss_kib: usize,
    launcher_rss_kib: usize,
}

impl Held {
    fn now(dir: &Path) -> Self {
        let launcher = pids().into_iter().find(|it| comm(it) == "insula-launcher" && parent(it) == std::process::id());
        let launcher = launcher.unwrap_or_else(|| "self".into());
        let lines = |path: String| std::fs::read_to_string(path).unwrap_or_default().lines().count();
        let rss = |pid: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            text.lines()
                .find_map(|it| it.strip_prefix("VmRSS:")?.trim().trim_end_matches(" kB").parse().ok())
                .unwrap_or(0)
        };
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            host_mounts: lines("/proc/self/mountinfo".into()),
            launcher_mounts: lines(format!("/proc/{launcher}/mountinfo")),
            cgroups: cgroups(),
            directories: std::fs::read_dir(dir.join("node/sandboxes")).unwrap().count(),
            processes: pids().iter().filter(|it| is_first(it)).count(),
            rss_kib: rss("self"),
            launcher_rss_kib: rss(&launcher),
        }
    }
}

fn parent(pid: &str) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|it| it.strip_prefix("PPid:")?.trim().parse().ok()).unwrap_or(0)
}

fn cgroups() -> usize {
    let text = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    text.lines().skip(1).filter_map(|it| it.split_whitespace().nth(2)?.parse::<usize>().ok()).sum()
}
