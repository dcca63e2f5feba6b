//! What an API server asks a node's kubelet: `kubectl logs` and `kubectl exec`, over the real execd.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use wire::node::{Bind, Sandbox};
use wire::query::encode;
use wire::websocket::{Opcode, Side, frame};

use crate::cell::{Cell, at, open_dir, program};

/// The longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);
const ALL: &str = "input=1&output=1&error=1";

/// A node with one Pod, `agents/hand`, whose sandbox is `it`.
struct Shown {
    cell: Cell,
    workspace: PathBuf,
}

impl Shown {
    async fn open() -> Self {
        let cell = Cell::make(open_dir(), &program("node-execd"), node::Guards::all()).await;
        let workspace = cell.dir.path().join("workspace");
        cell.sandbox("it").await;
        let labels = [("insula.dev/namespace", "agents"), ("insula.dev/pod", "hand")];
        let labels: BTreeMap<_, _> = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let bind = Bind { workspace: Some(at(&workspace)), labels, ..Bind::default() };
        cell.client().post::<Sandbox>("/v1/sandboxes/it/bind", &bind).await.unwrap();
        Self { cell, workspace }
    }

    /// Runs a command the other way, as the tools of an agent do, and returns what it printed.
    async fn command(&self, command: &str) -> Vec<String> {
        let body = serde_json::to_vec(&json!({ "command": command })).unwrap();
        let (status, _, said) = self.cell.client().call("POST", "/v1/sandboxes/it/execd/command", body).await;
        assert_eq!(status, StatusCode::OK);
        let events = String::from_utf8(said.to_vec()).unwrap();
        let events = events.split_terminator("\n\n").map(|it| serde_json::from_str::<wire::execd::Event>(it).unwrap());
        events.filter(|it| it.kind == wire::execd::Kind::Stdout).filter_map(|it| it.text).collect()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let path = format!("/kubelet/{path}");
        let asked = self.cell.client().call("GET", &path, Vec::new());
        let (status, _, said) = tokio::time::timeout(PATIENCE, asked).await.unwrap();
        (status.as_u16(), String::from_utf8_lossy(&said).into_owned())
    }

    async fn logs(&self, query: &str) -> String {
        let (status, said) = self.get(&format!("containerLogs/agents/hand/sandbox?{query}")).await;
        assert_eq!(status, 200, "{said}");
        said
    }

    async fn follow(&self, query: &str) -> Follower {
        let path = format!("/kubelet/containerLogs/agents/hand/sandbox?follow=true&{query}");
        let response = self.cell.client().send(http::Request::get(path).body(Default::default()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        Follower { body: response.into_body(), received: String::new() }
    }

    async fn exec(&self, streams: &str, protocol: &str, command: &[&str]) -> Exec {
        let words: String = command.iter().map(|it| format!("command={}&", encode(it.as_bytes()))).collect();
        let head = format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
        );
        let mut stream = self.cell.node.connect();
        let (status, said) = ask(&mut stream, "exec/agents/hand/sandbox", &format!("{words}{streams}"), &head).await;
        assert_eq!(status, 101, "{said}");
        assert!(said.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{said}");
        let chosen = protocol.split(", ").find(|it| it.starts_with('v')).unwrap();
        assert!(said.contains(&format!("sec-websocket-protocol: {chosen}\r\n")), "{said}");
        Exec { stream, out: Vec::new(), err: Vec::new() }
    }

    async fn end(self) {
        self.cell.end().await;
    }
}

/// Sends a request with these headers; the answer's status and head, and its body when it is no upgrade.
async fn ask(stream: &mut DuplexStream, path: &str, query: &str, headers: &str) -> (u16, String) {
    let request = format!("POST /kubelet/{path}?{query} HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        said.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(said).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if status == 101 {
        return (status, head);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (status, String::from_utf8(body).unwrap())
}

struct Follower {
    body: Incoming,
    received: String,
}

impl Follower {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.received.split_once('\n') {
                let line = line.to_owned();
                self.received = rest.to_owned();
                return Some(line);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.unwrap()?.unwrap();
            self.received.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }
}

/// The client's end of an exec.
struct Exec {
    stream: DuplexStream,
    out: Vec<u8>,
    err: Vec<u8>,
}

/// How an exec ended: the status that was told, and the code of the close frame.
type Ended = (Option<Value>, Option<u16>);

impl Exec {
    async fn send(&mut self, channel: u8, data: &[u8]) {
        self.stream.write_all(&frame(Side::Client, Opcode::Binary, &[&[channel], data])).await.unwrap();
    }

    /// The kind of the next frame and what is in it; `None` at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let kind = self.stream.read_u8().await.ok()? & 0xf;
            let length = match self.stream.read_u8().await.unwrap() {
                126 => usize::from(self.stream.read_u16().await.unwrap()),
                short => usize::from(short),
            };
            let mut data = vec![0; length];
            self.stream.read_exact(&mut data).await.unwrap();
            Some((kind, data))
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }

    /// Reads until stdout holds `wanted`.
    async fn until(&mut self, wanted: &str) {
        while !String::from_utf8_lossy(&self.out).contains(wanted) {
            match self.next().await {
                Some((2, data)) if data[0] == 1 => self.out.extend(&data[1..]),
                other => panic!("{other:?} instead of {wanted:?} after {:?}", String::from_utf8_lossy(&self.out)),
            }
        }
    }

    /// Reads to the end.
    async fn end(&mut self) -> Ended {
        let (mut status, mut code) = (None, None);
        while let Some((kind, data)) = self.next().await {
            match (kind, data.split_first()) {
                (2, Some((1, data))) => self.out.extend(data),
                (2, Some((2, data))) => self.err.extend(data),
                (2, Some((3, []))) => {}
                (2, Some((3, data))) => status = Some(serde_json::from_slice(data).unwrap()),
                (8, Some(_)) => {
                    code = Some(u16::from_be_bytes([data[0], data[1]]));
                    let _ = self.stream.write_all(&frame(Side::Client, Opcode::Close, &[])).await;
                }
                other => panic!("{other:?}"),
            }
        }
        (status, code)
    }

    fn texts(&self) -> (&str, &str) {
        (std::str::from_utf8(&self.out).unwrap(), std::str::from_utf8(&self.err).unwrap())
    }
}

fn success() -> Ended {
    (Some(json!({"metadata": {}, "status": "Success"})), Some(1000))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_its_input_to_the_end_both_outputs_apart_and_its_code() {
    let shown = Shown::open().await;
    let mut exec =
        shown.exec(ALL, "v5.channel.k8s.io, v4.channel.k8s.io", &["sh", "-c", "cat; echo err >&2; exit 7"]).await;
    assert_eq!(exec.next().await, Some((2, vec![1])), "that it is there is said at once");
    // As text too.
    exec.stream.write_all(&frame(Side::Client, Opcode::Text, &[b"\0one "])).await.unwrap();
    exec.until("one ").await;
    exec.send(0, &[b'x'; 100_000]).await;
    exec.send(255, &[0]).await;
    let ended = exec.end().await;
    assert_eq!((exec.out.len(), exec.err.as_slice()), (100_004, b"err\n".as_slice()));
    let status = json!({
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: error executing command \
                    [sh -c cat; echo err >&2; exit 7], exit code 7",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "7"}]},
    });
    assert_eq!(ended, (Some(status), Some(1000)));

    // Without input there is its end; words stay words; what nobody asked for is not sent.
    let mut exec = shown
        .exec(
            "output=1",
            "base64.channel.k8s.io, v4.channel.k8s.io",
            &["sh", "-c", "cat; printf %s. \"$@\"; echo >&2 err", "-", "a b", "", "ä"],
        )
        .await;
    assert_eq!(exec.end().await, success());
    assert_eq!(exec.texts(), ("a b..ä.", ""));

    let mut exec = shown.exec(ALL, "v5.channel.k8s.io", &["/nowhere"]).await;
    let (status, close) = exec.end().await;
    let status = status.unwrap();
    assert_eq!(
        (status["reason"].as_str(), status["code"].as_i64(), close),
        (Some("InternalError"), Some(500), Some(1000))
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("Internal error occurred: error executing command in container: /nowhere: ")
    );
    shown.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_one_output_and_the_size_of_the_clients() {
    let shown = Shown::open().await;
    let script = "test -t 0 && read x && stty size && echo err >&2 && exit 0";
    let mut exec = shown.exec(&format!("{ALL}&tty=1"), "v5.channel.k8s.io", &["sh", "-c", script]).await;
    // Nothing of this is a size, a channel or a message that says something.
    exec.send(4, b"{\"Width\":").await;
    exec.send(4, b"{\"Width\":-1,\"Height\":70000}").await;
    exec.send(17, b"who?").await;
    exec.stream.write_all(&frame(Side::Client, Opcode::Binary, &[])).await.unwrap();
    exec.send(4, b"{\"Width\":123,\"Height\":45}").await;
    exec.send(0, b"go\n").await;
    assert_eq!(exec.end().await, success());
    assert_eq!(exec.texts(), ("go\r\n45 123\r\nerr\r\n", ""));
    shown.end().await;
}

/// The frames of a client of SPDY, as Go's spdystream packs them: streams 1 `error`, 3 `stdin` and 5 `stdout`.
const STREAMS: [&str; 3] = [
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    "800300010000001700000003000000000000c22e555c92929907000000ffff",
    "800300010000001900000005000000000000c22ac5565c92925f5a02000000ffff",
];

/// The next frame of SPDY: its first four bytes, its flags, what is in it.
async fn spdy_frame(stream: &mut DuplexStream) -> Option<(u32, u8, Vec<u8>)> {
    let read = async {
        let (head, flags) = (stream.read_u32().await.ok()?, stream.read_u32().await.ok()?);
        let mut data = vec![0; (flags & 0xff_ffff) as usize];
        stream.read_exact(&mut data).await.ok()?;
        Some((head, (flags >> 24) as u8, data))
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_kubectl_speaks_spdy() {
    let shown = Shown::open().await;
    let head = "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
                X-Stream-Protocol-Version: channel.k8s.io\r\n";
    let query = format!("command=sh&command=-c&command={}&input=1&output=1", encode(b"cat; exit 7"));
    for broken in [false, true] {
        let mut stream = shown.cell.node.connect();
        let (status, said) = ask(&mut stream, "exec/agents/hand/sandbox", &query, head).await;
        assert!(status == 101 && said.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"), "{said}");
        for (at, made) in STREAMS.iter().enumerate() {
            let made: Vec<u8> =
                (0..made.len()).step_by(2).map(|at| u8::from_str_radix(&made[at..at + 2], 16).unwrap()).collect();
            stream.write_all(&made).await.unwrap();
            let (kind, flags, reply) = spdy_frame(&mut stream).await.unwrap();
            assert_eq!((kind, flags, &reply[..4]), (0x8003_0002, 0, &[0, 0, 0, 2 * at as u8 + 1][..]));
        }
        // A ping is answered; ours, which we see again, is not.
        stream.write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]).await.unwrap();
        stream.write_all(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]).await.unwrap();
        assert_eq!(spdy_frame(&mut stream).await, Some((0x8003_0006, 0, vec![0, 0, 0, 9])));
        stream.write_all(&[0, 0, 0, 3, 0, 0, 0, 4]).await.unwrap();
        stream.write_all(b"some").await.unwrap();
        assert_eq!(spdy_frame(&mut stream).await, Some((5, 0, b"some".to_vec())));
        if broken {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        } else {
            stream.write_all(&[0, 0, 0, 3, 1, 0, 0, 5]).await.unwrap();
            stream.write_all(b" more").await.unwrap();
            assert_eq!(spdy_frame(&mut stream).await, Some((5, 0, b" more".to_vec())));
        }
        let (id, flags, outcome) = spdy_frame(&mut stream).await.unwrap();
        assert_eq!((id, flags, outcome.is_empty()), (1, 1, broken));
        assert!(broken || serde_json::from_slice::<Value>(&outcome).unwrap()["reason"] == "NonZeroExitCode");
        assert_eq!(spdy_frame(&mut stream).await, Some((5, 1, vec![])));
    }
    shown.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_client_and_with_its_sandbox() {
    let shown = Shown::open().await;
    let rubbish: [(&str, Vec<u8>, Option<u16>); 3] = [
        ("leaves", Vec::new(), None),
        ("unmasked", frame(Side::Server, Opcode::Binary, &[&[0]]), Some(1002)),
        ("giant", [&[0x82, 0xff][..], &(2_u64 << 20).to_be_bytes()].concat(), Some(1009)),
    ];
    for (name, sent, code) in rubbish {
        for tty in ["", "&tty=1"] {
            let fifo = shown.workspace.join(format!("{name}{tty}"));
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
            std::fs::set_permissions(&fifo, PermissionsExt::from_mode(0o666)).unwrap();
            // It ends when nobody has it open any more, the child in the background included.
            let ended = tokio::task::spawn_blocking({
                let fifo = fifo.clone();
                move || std::fs::read(fifo).unwrap()
            });
            let script = format!("exec 3>'/workspace/{name}{tty}'; setsid sleep 3141 & echo begun; exec sleep 3141");
            let mut exec = shown.exec(&format!("{ALL}{tty}"), "v5.channel.k8s.io", &["sh", "-c", &script]).await;
            exec.until("begun").await;
            exec.stream.write_all(&sent).await.unwrap();
            if code.is_some() {
                assert_eq!(exec.end().await, (None, code), "{name}");
            }
            drop(exec);
            tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
        }
    }
    let mut exec = shown.exec(ALL, "v5.channel.k8s.io", &["sh", "-c", "echo begun; exec sleep 3141"]).await;
    exec.until("begun").await;
    shown.cell.client().delete("it").await.unwrap();
    let (status, code) = exec.end().await;
    assert_eq!((status.unwrap()["reason"].clone(), code), (json!("InternalError"), Some(1000)));
    shown.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_confined_as_any_other_of_its_sandbox() {
    let shown = Shown::open().await;
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status; readlink /proc/self/ns/*; \
                  cat /proc/self/cgroup /proc/self/uid_map; cat /proc/self/mountinfo; env | sort; ulimit -a | grep -v 'file locks'; pwd";
    let tools = shown.command(script).await.join("\n");
    let mut exec = shown.exec("output=1", "v5.channel.k8s.io", &["bash", "--noprofile", "--norc", "-c", script]).await;
    assert_eq!(exec.end().await, success());
    assert!(tools.contains("NoNewPrivs:\t1") && tools.contains("Seccomp:\t2"), "{tools}");
    assert_eq!(exec.texts().0.trim_end(), tools.replace("\n\n", "\n"));
    shown.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_in_the_kubelets_words() {
    let shown = Shown::open().await;
    shown.cell.sandbox("warm").await;
    let websocket =
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
    let v5 = &format!("{websocket}Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n");
    let spdy = "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\n";
    let run = "command=true&output=1";
    for (path, query, headers, status, words) in [
        ("exec/agents/nobody/sandbox", run, v5.as_str(), 404, "pod does not exist"),
        ("exec/other/hand/sandbox", run, v5, 404, "pod does not exist"),
        ("exec/agents/hand/other", run, v5, 404, "container not found (\"other\")"),
        ("exec/agents/hand/sandbox", "command=true", v5, 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("exec/agents/hand/sandbox", run, "", 400, "unable to upgrade: this is a WebSocket"),
        ("exec/agents/hand/sandbox", run, spdy, 403, "unable to upgrade: unable to negotiate protocol"),
        ("exec/agents/hand/sandbox", run, websocket, 403, "unable to upgrade: unable to negotiate protocol"),
        ("attach/agents/hand/sandbox", "output=1", v5, 501, "a sandbox cannot attach"),
        ("portForward/agents/hand", "port=80", v5, 501, "a sandbox cannot port-forward"),
        ("run/agents/hand/sandbox", "", "", 404, "there is no /kubelet/run/agents/hand/sandbox"),
    ] {
        let mut stream = shown.cell.node.connect();
        let (got, said) = ask(&mut stream, path, query, headers).await;
        let told: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((got, &told["kind"], &told["code"]), (status, &json!("Status"), &json!(status)), "{path}?{query}");
        assert!(told["message"].as_str().unwrap().starts_with(words), "{path}?{query}: {said}");
    }
    for (path, status, words) in [
        ("nobody/sandbox", 404, "pod \"nobody\" does not exist"),
        ("hand/other", 404, "container \"other\" not found in pod \"hand\""),
        ("hand/sandbox?previous=true", 400, "previous terminated container \"sandbox\" in pod \"hand\" not found"),
        ("hand/sandbox?tailLines=x", 400, "{\"message\": \"Unable to decode query.\"}"),
        ("hand/sandbox?tailLines=-1", 422, "{\"message\": \"Invalid request.\"}"),
    ] {
        assert_eq!(shown.get(&format!("containerLogs/agents/{path}")).await, (status, words.to_owned()));
    }
    shown.cell.client().post::<Sandbox>("/v1/sandboxes/it/freeze", &json!({})).await.unwrap();
    let words = "container \"sandbox\" is not running: the sandbox it is Frozen";
    assert_eq!(shown.get("containerLogs/agents/hand/sandbox").await, (400, words.to_owned()));
    let (status, said) = ask(&mut shown.cell.node.connect(), "exec/agents/hand/sandbox", run, spdy).await;
    assert_eq!((status, serde_json::from_str::<Value>(&said).unwrap()["message"].as_str()), (400, Some(words)));
    shown.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_what_the_commands_printed_as_it_is_asked_for() {
    let shown = Shown::open().await;
    assert_eq!(shown.logs("").await, "");
    shown.command("echo one; printf 'two\\n\\n ä'").await;
    shown.command("echo err >&2").await;
    let mut exec = shown.exec("output=1", "v5.channel.k8s.io", &["echo", "of its client alone"]).await;
    assert_eq!(exec.end().await, success());
    let all = "one\ntwo\n\n ä\nerr\n";
    assert_eq!(shown.logs("").await, all);
    assert_eq!(shown.logs("tailLines=2").await, " ä\nerr\n");
    assert_eq!(shown.logs("tailLines=0").await, "");
    assert_eq!(shown.logs("tailLines=3&limitBytes=4").await, "\n ä");
    assert_eq!(shown.logs("sinceSeconds=3600").await, all);
    assert_eq!(shown.logs("sinceTime=2999-01-01T00:00:00Z").await, "");
    let stamped = shown.logs("timestamps=true").await;
    let times: Vec<&str> = stamped.lines().map(|line| line.split_once(' ').unwrap().0).collect();
    assert!(times.iter().all(|time| time.len() == 30) && times.is_sorted(), "{stamped}");
    // Since the moment when the last one was read, that one is there.
    assert_eq!(shown.logs(&format!("sinceTime={}", times[4])).await, "err\n");

    let mut follower = shown.follow("tailLines=1").await;
    let mut limited = shown.follow("tailLines=0&limitBytes=5&timestamps=true").await;
    assert_eq!(follower.next().await.as_deref(), Some("err"));
    shown.command("echo three").await;
    assert_eq!(follower.next().await.as_deref(), Some("three"));
    assert_eq!((limited.next().await, limited.received.len()), (None, 5));

    // One who does not read holds no command up, and is told what it missed.
    let mut slow = shown.follow("").await;
    assert_eq!(shown.command("seq -f %01000g 1 8000").await.len(), 8000);
    shown.command("echo the last").await;
    let mut lost = 0;
    loop {
        let line = slow.next().await.unwrap();
        lost += usize::from(line.ends_with("bytes of this log were dropped before they were read"));
        if line == "the last" {
            break;
        }
    }
    assert!(lost > 0);
    // The sandbox's end is theirs.
    shown.cell.client().delete("it").await.unwrap();
    assert_eq!(slow.next().await, None);
    assert_eq!(shown.get("containerLogs/agents/hand/sandbox").await.0, 404);
    shown.end().await;
}
