use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use wire::execd::channel::{REPLAY, STDERR, STDIN, STDOUT};

use crate::house::{Answer, Execd, encode};

struct Client(UnixStream);

#[derive(Debug, PartialEq)]
enum Message {
    Text(Value),
    Binary(u8, Vec<u8>),
    Close(u16),
    Gone,
}

fn create(execd: &Execd, request: &Value) -> String {
    let answer = execd.post("/pty", request);
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["session_id"].as_str().unwrap().to_owned()
}

impl Client {
    fn connect(execd: &Execd, id: &str, query: &str) -> Result<Self, Answer> {
        Self::at(execd, &format!("/pty/{id}/ws{query}"))
    }

    fn at(execd: &Execd, target: &str) -> Result<Self, Answer> {
        let mut stream = execd.connect();
        let key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        write!(stream, "GET {target} HTTP/1.1\r\nHost: execd\r\n{key}\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let text = String::from_utf8(head.clone()).unwrap();
        if !text.starts_with("HTTP/1.1 101") {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            return Err(Answer::read_on(head, stream));
        }
        assert!(text.to_ascii_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="));
        Ok(Self(stream))
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) {
        assert!(payload.len() < 126);
        let mut frame = vec![0x80 | opcode, 0x80 | payload.len() as u8, 1, 2, 3, 4];
        frame.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.0.write_all(&frame).unwrap();
    }

    fn say(&mut self, text: &str) {
        self.send(2, &[&[STDIN], text.as_bytes()].concat());
    }

    fn ask(&mut self, message: &Value) {
        self.send(1, message.to_string().as_bytes());
    }

    fn next(&mut self) -> Message {
        let mut head = [0; 2];
        if self.0.read_exact(&mut head).is_err() {
            return Message::Gone;
        }
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length) as usize
            }
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        match head[0] {
            0x81 => Message::Text(serde_json::from_slice(&payload).unwrap()),
            0x82 => Message::Binary(payload[0], payload[1..].to_vec()),
            0x88 => Message::Close(u16::from_be_bytes([payload[0], payload[1]])),
            other => panic!("frame {other:x}"),
        }
    }

    /// Reads the output of one channel until it holds `wanted`.
    #[track_caller]
    fn until(&mut self, wanted_channel: u8, wanted: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(wanted) {
            match self.next() {
                Message::Binary(channel, data) if channel == wanted_channel => seen += &String::from_utf8_lossy(&data),
                Message::Binary(..) => {}
                other => panic!("{other:?} instead of {wanted:?} after {seen:?}"),
            }
        }
        seen
    }

    /// What it is told next, other than output: a shell may write a prompt at any moment.
    fn told(&mut self) -> Message {
        loop {
            match self.next() {
                Message::Binary(..) => {}
                other => return other,
            }
        }
    }

    /// What it is connected to, which has a name of its own.
    #[track_caller]
    fn is_connected_in(&mut self, wanted: &str) {
        let Message::Text(connected) = self.next() else { panic!("not connected") };
        assert_eq!((connected["type"].as_str(), connected["mode"].as_str()), (Some("connected"), Some(wanted)));
    }

    #[track_caller]
    fn is_connected(&mut self, id: &str, mode: &str) {
        assert_eq!(self.next(), Message::Text(json!({"type": "connected", "session_id": id, "mode": mode})));
    }
}

#[test]
fn a_shell_in_a_terminal_is_talked_to() {
    let execd = Execd::open();
    let id = create(&execd, &json!({"cwd": "/usr", "envs": {"PS1": "", "MARK": "m4rk"}}));
    assert_eq!(
        execd.get(&format!("/pty/{id}")).ok().json(),
        json!({"session_id": id, "running": false, "output_offset": 0})
    );
    let mut client = Client::connect(&execd, &id, "").unwrap();
    client.is_connected(&id, "pty");
    client.ask(&json!({"type": "resize", "cols": 123, "rows": 45}));
    client.say("stty -echo; tty; stty size; echo $TERM $MARK $PWD\n");
    client.until(STDOUT, "xterm-256color m4rk /usr");
    client.say("stty size; echo over\n");
    assert!(client.until(STDOUT, "over").contains("45 123"));
    client.ask(&json!({"type": "ping"}));
    assert_eq!(client.told(), Message::Text(json!({"type": "pong"})));
    client.ask(&json!({"type": "dance"}));
    let Message::Text(refused) = client.told() else { panic!("no answer") };
    assert_eq!(refused["code"], "INVALID_FRAME");
    // What runs in the foreground is interrupted; the shell goes on.
    client.say("sh -c 'echo begin; exec sleep 3141'\n");
    client.until(STDOUT, "begin");
    client.ask(&json!({"type": "signal", "signal": "SIGINT"}));
    client.ask(&json!({"type": "stdin", "data": "echo next\n"}));
    client.until(STDOUT, "next");
    assert_eq!(execd.get(&format!("/pty/{id}")).ok().json()["running"], true);
    client.say("exit 3\n");
    assert_eq!(client.told(), Message::Text(json!({"type": "exit", "exit_code": 3})));
    assert_eq!(client.next(), Message::Close(1000));
    let status = execd.get(&format!("/pty/{id}")).ok().json();
    assert_eq!((status["running"].as_bool(), status["exit_code"].as_i64()), (Some(false), Some(3)));
    // It is not started again: who comes back hears of its end.
    let mut late = Client::connect(&execd, &id, &format!("?since={}", status["output_offset"])).unwrap();
    late.is_connected(&id, "pty");
    assert_eq!(late.next(), Message::Text(json!({"type": "exit", "exit_code": 3})));
    execd.delete(&format!("/pty/{id}")).ok();
    assert_eq!(execd.get(&format!("/pty/{id}")).problem(404), "CONTEXT_NOT_FOUND");
}

#[test]
fn plain_pipes_carry_input_to_its_end_and_both_outputs_apart() {
    let execd = Execd::open();
    let id = create(&execd, &json!({"command": "cat; echo err >&2; test -t 0 || exit 7"}));
    let mut client = Client::connect(&execd, &id, "?pty=0").unwrap();
    client.is_connected(&id, "pipe");
    client.say("one\n");
    client.until(STDOUT, "one\n");
    client.say("two");
    client.ask(&json!({"type": "eof"}));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let end = loop {
        match client.next() {
            Message::Binary(STDOUT, data) => out.extend(data),
            Message::Binary(STDERR, data) => err.extend(data),
            other => break other,
        }
    };
    assert_eq!((out, err), (b"two".to_vec(), b"err\n".to_vec()));
    assert_eq!(end, Message::Text(json!({"type": "exit", "exit_code": 7})));
    let none = create(&execd, &json!({"argv": ["/nowhere"]}));
    let mut client = Client::connect(&execd, &none, "").unwrap();
    let Message::Text(failed) = client.next() else { panic!("no answer") };
    assert_eq!((failed["type"].as_str(), failed["code"].as_str()), (Some("error"), Some("START_FAILED")));
    assert_eq!(client.next(), Message::Close(1011));
}

#[test]
fn who_comes_back_is_told_what_was_missed_and_only_one_is_there() {
    let execd = Execd::open();
    let (go, done) = (execd.fifo("go"), execd.fifo("done"));
    let script =
        format!("echo first; read x < {}; echo second; echo > {}; exec sleep 3141", go.display(), done.display());
    let id = create(&execd, &json!({"command": script}));
    let mut first = Client::connect(&execd, &id, "?pty=0").unwrap();
    first.is_connected(&id, "pipe");
    first.until(STDOUT, "first\n");
    assert_eq!(Client::connect(&execd, &id, "").err().unwrap().problem(409), "ALREADY_CONNECTED");
    let mut second = Client::connect(&execd, &id, "?takeover=1&since=6").unwrap();
    assert_eq!(first.next(), Message::Close(4001));
    second.is_connected(&id, "pipe");
    drop(second);
    // Nobody is there: it goes on all the same.
    std::fs::write(go, "go\n").unwrap();
    std::fs::read(done).unwrap();
    let mut third = loop {
        if let Ok(client) = Client::connect(&execd, &id, "?since=2") {
            break client;
        }
    };
    let Message::Binary(REPLAY, replay) = third.next() else { panic!("no replay") };
    assert_eq!(replay[..8], 2_u64.to_be_bytes());
    third.is_connected(&id, "pipe");
    // What it wrote last may still be on its way when the replay is made.
    let mut seen = String::from_utf8_lossy(&replay[8..]).into_owned();
    if !seen.ends_with("second\n") {
        seen += &third.until(STDOUT, "second\n");
    }
    assert_eq!(seen, "rst\nsecond\n");
    let pid = execd.get(&format!("/command/status/{id}")).ok().json();
    assert_eq!(pid["running"], true);
    execd.delete(&format!("/pty/{id}")).ok();
    assert_eq!(third.next(), Message::Text(json!({"type": "exit", "exit_code": 137})));
}

#[test]
fn a_client_that_reads_nothing_stops_its_terminal_alone() {
    let execd = Execd::open();
    let id = create(&execd, &json!({"command": "yes"}));
    let stuck = Client::connect(&execd, &id, "").unwrap();
    for at in 0..20 {
        assert_eq!(execd.run(&format!("echo {at}")).out, [at.to_string()]);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", execd.child.id())).unwrap();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().split_ascii_whitespace().next().unwrap();
    assert!(resident.parse::<u64>().unwrap() < 32 << 10, "{resident} KiB");
    let mut other = Client::connect(&execd, &id, "?takeover=1").unwrap();
    let Message::Binary(REPLAY, replay) = other.next() else { panic!("no replay") };
    assert!(replay.len() > 1000);
    drop(stuck);
    for wrong in ["POST", "GET"] {
        assert_eq!(execd.send(wrong, &format!("/pty/{id}/ws"), "", b"").status, if wrong == "GET" { 400 } else { 404 });
    }
    assert_eq!(Client::connect(&execd, "none", "").err().unwrap().problem(404), "CONTEXT_NOT_FOUND");
    assert_eq!(execd.post("/pty", &json!({"cwd": "/nowhere"})).problem(400), "INVALID_REQUEST_BODY");
    let made: Vec<u16> = (0..70).map(|_| execd.post("/pty", &json!({})).status).collect();
    assert_eq!((made[0], made[69]), (201, 429));
}

#[test]
fn what_is_executed_for_one_client_has_its_arguments_and_ends_with_it() {
    let execd = Execd::open();
    let mut client = Client::at(
        &execd,
        &format!("/insula/v1/exec?arg=sh&arg=-c&arg={}&arg=x&arg=", encode("cat; exit $(($# + 6))")),
    )
    .unwrap();
    client.is_connected_in("pipe");
    client.say("all of it");
    client.until(STDOUT, "all of it");
    client.ask(&json!({"type": "eof"}));
    assert_eq!(client.told(), Message::Text(json!({"type": "exit", "exit_code": 7})));
    assert_eq!(client.next(), Message::Close(1000));

    // The FIFO ends when nobody has it open any more, the child in the background included.
    for mode in ["", "&pty=1"] {
        let fifo = execd.fifo(&format!("open{}", mode.len()));
        let script = format!("exec 3>{}; setsid sleep 3141 & echo begun; exec sleep 3141", fifo.display());
        let mut client =
            Client::at(&execd, &format!("/insula/v1/exec?arg=sh&arg=-c&arg={}{mode}", encode(script))).unwrap();
        let mut open = std::fs::File::open(fifo).unwrap();
        client.is_connected_in(if mode.is_empty() { "pipe" } else { "pty" });
        client.until(STDOUT, "begun");
        drop(client);
        assert_eq!(open.read(&mut [0]).unwrap(), 0);
    }

    let mut none = Client::at(&execd, "/insula/v1/exec?arg=/nowhere").unwrap();
    let Message::Text(failed) = none.next() else { panic!("no answer") };
    assert_eq!((failed["type"].as_str(), failed["code"].as_str()), (Some("error"), Some("START_FAILED")));
    assert_eq!(Client::at(&execd, "/insula/v1/exec?arg=%ff").err().unwrap().problem(400), "INVALID_PARAMETER");
    assert_eq!(execd.get("/insula/v1/exec?arg=true").problem(400), "INVALID_PARAMETER");
    assert!(execd.get("/insula/v1/log").ok().text().is_empty(), "what a terminal shows is its client's");
}

#[test]
fn as_many_run_for_one_client_each_as_there_are_terminals() {
    let execd = Execd::open();
    let mut many: Vec<_> = (0..64).map(|_| Client::at(&execd, "/insula/v1/exec?arg=cat").unwrap()).collect();
    many.iter_mut().for_each(|client| client.is_connected_in("pipe"));
    assert_eq!(Client::at(&execd, "/insula/v1/exec?arg=cat").err().unwrap().problem(429), "TOO_MANY");
}
