//! exec and attach.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use wire::websocket::{Opcode, Side, frame};

use super::super::Kubelet;
use super::super::door::Attach;
use super::scripted::{Scripted, UID, ask};
use crate::pod::Stream;

const WEBSOCKET: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
const SPDY: &str = "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

fn running() -> Arc<Scripted> {
    let pods = Scripted::new(json!({}));
    pods.attempt("c", 0, "id", false);
    pods.attempt("i", 0, "id", true);
    pods
}

struct Client(DuplexStream);

impl Client {
    async fn open(kubelet: &Arc<Kubelet>, path: &str) -> Self {
        Self::with(kubelet, path, WEBSOCKET).await
    }

    async fn with(kubelet: &Arc<Kubelet>, path: &str, headers: &str) -> Self {
        let (stream, (status, said)) = ask(kubelet, "GET", path, headers).await;
        assert_eq!(status, 101, "{said}");
        Self(stream)
    }

    async fn send(&mut self, channel: u8, data: &[u8]) {
        self.0.write_all(&frame(Side::Client, Opcode::Binary, &[&[channel], data])).await.unwrap();
    }

    /// The channel and the content of the next message that has some; 8 is the close.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            let kind = self.0.read_u8().await.unwrap() & 0xf;
            let length = match self.0.read_u8().await.unwrap() {
                126 => usize::from(self.0.read_u16().await.unwrap()),
                short => usize::from(short),
            };
            let mut data = vec![0; length];
            self.0.read_exact(&mut data).await.unwrap();
            match (kind, data.as_slice()) {
                (8, _) => {
                    let _ = self.0.write_all(&frame(Side::Client, Opcode::Close, &[])).await;
                    return (8, data);
                }
                (2, [channel, said @ ..]) if !said.is_empty() => return (*channel, said.to_vec()),
                _ => {}
            }
        }
    }

    async fn outcome(&mut self) -> Value {
        let (channel, said) = self.next().await;
        assert_eq!(channel, 3, "{}", String::from_utf8_lossy(&said));
        assert_eq!(self.next().await, (8, vec![3, 232]));
        serde_json::from_slice(&said).unwrap()
    }
}

fn failed(why: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {why}"), "details": {"causes": [{"message": why}]},
    })
}

#[tokio::test]
async fn a_command_runs_in_a_container_with_its_streams_and_its_code() {
    let pods = running();
    let (kubelet, mut commands) = (pods.kubelet(), pods.commands());
    let path = format!("exec/n/p/{UID}/c?command=sh&command=-c&command=x&input=1&output=1&error=1");
    let mut client = Client::open(&kubelet, &path).await;
    let mut it = commands.recv().await.unwrap();
    assert_eq!((it.config.args.join(" "), it.config.tty), ("sh -c x".into(), false));
    client.send(0, b"input").await;
    client.send(255, &[0]).await;
    let mut input = String::new();
    it.stdin.read_to_string(&mut input).await.unwrap();
    it.stdout.write_all(input.to_uppercase().as_bytes()).await.unwrap();
    assert_eq!(client.next().await, (1, b"INPUT".to_vec()));
    it.stderr.write_all(b"oops").await.unwrap();
    assert_eq!(client.next().await, (2, b"oops".to_vec()));
    drop((it.stdout, it.stderr));
    it.exit.send(7).unwrap();
    let outcome = client.outcome().await;
    assert_eq!(outcome["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
    assert!(outcome["message"].as_str().unwrap().ends_with("error executing command [sh -c x], exit code 7"));

    // With a terminal there is one output, and its size.
    let mut client = Client::open(&kubelet, "exec/n/p/c?command=sh&input=1&output=1&error=1&tty=1").await;
    let mut it = commands.recv().await.unwrap();
    assert_eq!((it.config.tty, it.config.stderr), (true, false));
    client.send(4, br#"{"Width":123,"Height":45}"#).await;
    assert_eq!(it.sizes.recv().await, Some((45, 123)));
    // A client that leaves takes its command with it.
    drop(client);
    it.exit.closed().await;
}

#[tokio::test]
async fn an_old_client_is_told_what_went_wrong_in_words() {
    let pods = running();
    let (kubelet, mut commands) = (pods.kubelet(), pods.commands());
    let old = WEBSOCKET.replace("v5.channel", "channel");
    for (code, says) in [(0, None), (7, Some("command terminated with non-zero exit code: "))] {
        let mut client = Client::with(&kubelet, "exec/n/p/c?command=x&output=1", &old).await;
        let mut it = commands.recv().await.unwrap();
        it.stdout.write_all(b"out").await.unwrap();
        drop((it.stdout, it.stderr));
        it.exit.send(code).unwrap();
        assert_eq!(client.next().await, (1, b"out".to_vec()));
        if let Some(says) = says {
            let (channel, said) = client.next().await;
            assert!(channel == 3 && said.starts_with(says.as_bytes()), "{}", String::from_utf8_lossy(&said));
        }
        assert_eq!(client.next().await, (8, vec![3, 232]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_ends_although_another_process_keeps_its_outputs() {
    let pods = running();
    let (kubelet, mut commands) = (pods.kubelet(), pods.commands());
    let mut client = Client::open(&kubelet, "exec/n/p/c?command=sh&output=1").await;
    let mut it = commands.recv().await.unwrap();
    it.exit.send(0).unwrap();
    // What is still coming is waited for.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        it.stdout.write_all(b"more").await.unwrap();
        assert_eq!(client.next().await, (1, b"more".to_vec()));
    }
    assert_eq!(client.outcome().await, json!({"metadata": {}, "status": "Success"}));
}

#[tokio::test]
async fn what_does_not_run_or_start_is_said_as_a_kubelet_says_it() {
    let pods = running();
    let kubelet = pods.kubelet();
    let why = async |path: &str| Client::open(&kubelet, path).await.outcome().await;
    let nowhere = "error executing command in container: exec: \"nowhere\": executable file not found in $PATH";
    assert_eq!(why("exec/n/p/c?command=nowhere&output=1").await, failed(nowhere));
    for (path, words) in [
        ("exec/n/p/i?command=x&output=1", "container not found (\"i\")"),
        ("exec/n/p/x?command=x&output=1", "container not found (\"x\")"),
        ("attach/n/p/i?output=1", "container i not found in pod p_n"),
    ] {
        assert_eq!(why(path).await, failed(&format!("unable to upgrade connection: {words}")));
        assert_eq!(ask(&kubelet, "POST", path, SPDY).await.1, (500, words.into()));
    }
    for path in ["exec/n/q/c?command=x&output=1", "exec/n/p/other/c?command=x&output=1"] {
        let (code, said) = ask(&kubelet, "POST", path, SPDY).await.1;
        assert!(code == 404 && said.contains("\"pod does not exist\""), "{said}");
    }
    assert_eq!(ask(&kubelet, "POST", "attach/n/p/c", SPDY).await.1.0, 400);
}

#[tokio::test]
async fn who_wants_something_of_a_frozen_pod_is_told_at_once() {
    let pods = running();
    let kubelet = pods.kubelet();
    pods.frozen.store(true, std::sync::atomic::Ordering::Relaxed);
    let words = "the pod is frozen; kubectl annotate -n n pod p insula.dev/frozen- thaws it";
    for path in ["exec/n/p/c?command=x&output=1", "attach/n/p/c?output=1"] {
        let told = Client::open(&kubelet, path).await.outcome().await;
        assert_eq!(told, failed(&format!("unable to upgrade connection: {words}")));
        assert_eq!(ask(&kubelet, "POST", path, SPDY).await.1, (500, words.into()));
    }
    let (status, said) = ask(&kubelet, "POST", "portForward/n/p", SPDY).await.1;
    assert!(status == 500 && said.contains(words), "{said}");
}

#[tokio::test]
async fn who_attaches_sees_what_comes_until_the_container_ends() {
    let pods = running();
    let kubelet = pods.kubelet();
    let attach = |outlasts_input| {
        let ((into, stdin), (exit, ended)) = (tokio::io::duplex(100), oneshot::channel::<()>());
        let (size, sizes) = mpsc::unbounded_channel();
        let resize = move |rows, columns| {
            let _ = size.send((rows, columns));
        };
        *pods.attached.lock().unwrap() = Some(Attach {
            stdin: Some(Box::pin(into)),
            output: pods.output.subscribe(),
            resize: Some(Box::new(resize)),
            exit: ended.map(drop).boxed(),
            outlasts_input,
        });
        (stdin, sizes, exit)
    };
    let print = |text: &'static [u8]| drop(pods.output.send((Stream::Stdout, Bytes::from_static(text))));
    let (mut stdin, mut sizes, exit) = attach(false);
    let mut client = Client::open(&kubelet, "attach/n/p/c?input=1&output=1&error=1&tty=1").await;
    client.send(4, br#"{"Width":80,"Height":24}"#).await;
    assert_eq!(sizes.recv().await, Some((24, 80)));
    client.send(0, b"hi").await;
    let mut input = [0; 2];
    stdin.read_exact(&mut input).await.unwrap();
    print(b"hello");
    assert_eq!(client.next().await, (1, b"hello".to_vec()));
    print(b"bye");
    drop(exit);
    assert_eq!(client.next().await, (1, b"bye".to_vec()));
    assert_eq!(client.outcome().await, json!({"metadata": {}, "status": "Success"}));

    // Who has no more input is done, unless that is the end of the container's too.
    for outlasts in [false, true] {
        let (mut stdin, _sizes, exit) = attach(outlasts);
        let mut client = Client::open(&kubelet, "attach/n/p/c?input=1&output=1").await;
        client.send(0, b"all").await;
        client.send(255, &[0]).await;
        let mut input = String::new();
        stdin.read_to_string(&mut input).await.unwrap();
        assert_eq!(input, "all");
        if outlasts {
            print(b"more");
            assert_eq!(client.next().await, (1, b"more".to_vec()));
            drop(exit);
        }
        assert_eq!(client.outcome().await, json!({"metadata": {}, "status": "Success"}));
    }

    // One who does not keep up is cut off: the container waits for nobody.
    let (mut stdin, _sizes, _exit) = attach(false);
    for _ in 0..10 {
        print(b"much");
    }
    let mut client = Client::open(&kubelet, "attach/n/p/c?output=1").await;
    // Its input it has not asked for: another one may have it.
    assert_eq!(stdin.read(&mut [0]).await.unwrap(), 0);
    let outcome = client.outcome().await;
    assert!(outcome["message"].as_str().unwrap().contains("error attaching to container: "), "{outcome}");
}
