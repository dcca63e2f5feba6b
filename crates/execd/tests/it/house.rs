//! A running execd with a directory of its own, and the least HTTP client that will do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Long enough for the slowest machine, short enough for a hang to be seen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Execd {
    pub dir: tempfile::TempDir,
    pub child: Child,
    pub token: Option<String>,
}

impl Drop for Execd {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

pub(crate) fn program(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_execd"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", dir)
        .env("EXECD_ENVS", dir.join("envs"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

impl Execd {
    /// One that asks for no token.
    pub(crate) fn open() -> Self {
        Self::start(|command| {
            command.arg("--open");
        })
    }

    /// One that nobody has bound.
    pub(crate) fn warm() -> Self {
        Self::start(|_| ())
    }

    pub(crate) fn start(more: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = program(dir.path());
        command.arg("--listen").arg(format!("unix:{}", dir.path().join("socket").display()));
        command.current_dir(dir.path());
        more(&mut command);
        Self::from_command(dir, command)
    }

    pub(crate) fn from_command(dir: tempfile::TempDir, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening on unix:"), "{line:?}");
        Self { dir, child, token: None }
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn head(&self, method: &str, target: &str, more: &str) -> String {
        let token = self.token.as_ref().map(|token| format!("X-EXECD-ACCESS-TOKEN: {token}\r\n")).unwrap_or_default();
        format!("{method} {target} HTTP/1.1\r\nHost: execd\r\nConnection: close\r\n{token}{more}")
    }

    pub(crate) fn send(&self, method: &str, target: &str, more: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = self.head(method, target, &format!("{more}Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes()).unwrap();
        // An answer may come before the body was taken.
        let _ = stream.write_all(body);
        Answer::read(stream)
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.send("GET", target, "", b"")
    }

    pub(crate) fn delete(&self, target: &str) -> Answer {
        self.send("DELETE", target, "", b"")
    }

    pub(crate) fn post(&self, target: &str, body: &Value) -> Answer {
        self.send("POST", target, "Content-Type: application/json\r\n", body.to_string().as_bytes())
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, command: &str) -> Run {
        Run::of(self.post("/command", &serde_json::json!({ "command": command })))
    }

    /// Begins a command: its id, and the rest of its stream.
    pub(crate) fn begin(&self, request: &Value) -> (String, Stream) {
        let mut stream = self.connect();
        let body = request.to_string();
        let head = self.head("POST", "/command", &format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut stream = Stream(BufReader::new(stream));
        let init = stream.event().unwrap();
        assert_eq!(init["type"], "init");
        (init["text"].as_str().unwrap().to_owned(), stream)
    }

    /// A FIFO in the directory.
    pub(crate) fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        path
    }

    pub(crate) fn upload(&self, path: &str, mode: u32, content: &[u8]) -> Answer {
        let metadata = serde_json::json!({"path": path, "owner": null, "group": null, "mode": mode}).to_string();
        let mut body = format!("--B\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"metadata\"\r\nContent-Type: application/json\r\n\r\n{metadata}\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n").into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--B--\r\n");
        self.send("POST", "/files/upload", "Content-Type: multipart/form-data; boundary=B\r\n", &body)
    }
}

/// Percent-encodes everything.
pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("%{byte:02x}")).collect()
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn read(stream: UnixStream) -> Self {
        Self::read_on(Vec::new(), stream)
    }

    /// The rest of an answer that has begun.
    pub(crate) fn read_on(mut bytes: Vec<u8>, mut stream: UnixStream) -> Self {
        let _ = stream.read_to_end(&mut bytes);
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let at = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let at = at.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[at + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            let mut reader = BufReader::new(&body[..]);
            let mut whole = Vec::new();
            while let Some(chunk) = chunk(&mut reader) {
                whole.extend(chunk);
            }
            body = whole;
        }
        Self { status, head, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The code of an error in the API's shape.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let problem: wire::execd::Problem = serde_json::from_slice(&self.body).unwrap();
        assert!(!problem.message.is_empty());
        problem.code
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(matches!(self.status, 200 | 206), "{} {}", self.status, self.text());
        self
    }
}

fn chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
    let mut data = vec![0; size + 2];
    reader.read_exact(&mut data).ok()?;
    data.truncate(size);
    Some(data)
}

/// A stream of events under way.
pub(crate) struct Stream(BufReader<UnixStream>);

impl Stream {
    /// The next event that is no ping; None at the end.
    pub(crate) fn event(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 || line == "0\r\n" {
                return None;
            }
            // The chunks' sizes and the lines of the head are passed over.
            if line.starts_with('{') {
                let event: Value = serde_json::from_str(&line).unwrap();
                if event["type"] != "ping" {
                    return Some(event);
                }
            }
        }
    }

    pub(crate) fn leave(self) {
        let _ = self.0.into_inner().shutdown(Shutdown::Both);
    }
}

/// What a command told.
#[derive(Debug)]
pub(crate) struct Run {
    pub out: Vec<String>,
    pub err: Vec<String>,
    pub code: i32,
    pub why: String,
}

impl Run {
    pub(crate) fn of(answer: Answer) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let events: Vec<wire::execd::Event> =
            answer.text().split_terminator("\n\n").map(|event| serde_json::from_str(event).unwrap()).collect();
        let mut run = Self { out: Vec::new(), err: Vec::new(), code: -1, why: String::new() };
        let last = events.len() - 1;
        for (at, event) in events.into_iter().enumerate() {
            match event.kind {
                wire::execd::Kind::Init => assert_eq!((at, event.text.unwrap().len()), (0, 32)),
                wire::execd::Kind::Stdout => run.out.push(event.text.unwrap()),
                wire::execd::Kind::Stderr => run.err.push(event.text.unwrap()),
                wire::execd::Kind::Ping => {}
                wire::execd::Kind::ExecutionComplete => {
                    assert_eq!(at, last);
                    run.code = 0;
                }
                wire::execd::Kind::Error => {
                    assert_eq!(at, last);
                    let error = event.error.unwrap();
                    assert_eq!(error.ename, "CommandExecError");
                    (run.code, run.why) = (error.evalue.parse().unwrap(), error.traceback.join("\n"));
                }
                wire::execd::Kind::Other => panic!("an unknown event"),
            }
        }
        run
    }
}
