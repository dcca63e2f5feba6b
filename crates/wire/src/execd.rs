//! execd's HTTP: what goes over the socket into a sandbox.
//!
//! Commands, sessions and files are OpenSandbox's execd API (its SDK 1.1.1 works unchanged against it); what begins
//! with `/insula/` is ours. Bodies are JSON, an error is [`Problem`], and a stream of [`Event`]s is bare JSON objects,
//! each followed by an empty line (`{...}\n\n`, no `data:`), as OpenSandbox frames them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The generation of the private part ([`BIND`]). A host refuses to bind an execd of another generation.
pub const GENERATION: u32 = 1;

/// Carries the sandbox's token in every request but `GET /ping`.
pub const TOKEN_HEADER: &str = "x-execd-access-token";
/// On the logs of a background command: the cursor (a byte offset since its start) for the next call.
pub const CURSOR_HEADER: &str = "execd-commands-tail-cursor";
/// `POST`, once: gives a warm execd its [`Bind`].
pub const BIND: &str = "/insula/v1/bind";

/// `GET /insula/v1/log?follow=1&tail=N`: the newest lines that foreground and background commands printed, about 256 KiB
/// of them: all, or the last N. With `follow`, also what comes, until the sandbox ends.
///
/// A line is `TIME STREAM TEXT\n`: when it was read, in RFC 3339 with nine digits of the second and `Z`; `stdout`,
/// `stderr`, or `lost`, whose text says how much a slow reader missed; what was printed, at most 16 KiB, in pieces when
/// it was longer. Both outputs of a background command come as `stdout`.
pub const LOG: &str = "/insula/v1/log";
/// `GET /insula/v1/exec?arg=A&arg=B&pty=1`, a WebSocket: starts these arguments under a pseudo-terminal or, without
/// `pty=1`, with plain pipes. It speaks as a terminal's does ([`TerminalStatus`]), but nobody comes back: when the
/// connection ends before the process, the process is killed with all that comes from it.
pub const EXEC: &str = "/insula/v1/exec";

/// The `code`s of [`Problem`]: OpenSandbox's, then ours.
pub mod code {
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST_BODY";
    pub const MISSING_QUERY: &str = "MISSING_QUERY";
    pub const INVALID_PARAMETER: &str = "INVALID_PARAMETER";
    pub const RUNTIME: &str = "RUNTIME_ERROR";
    pub const INVALID_FILE: &str = "INVALID_FILE";
    pub const INVALID_FILE_CONTENT: &str = "INVALID_FILE_CONTENT";
    pub const INVALID_FILE_METADATA: &str = "INVALID_FILE_METADATA";
    pub const FILE_NOT_FOUND: &str = "FILE_NOT_FOUND";
    pub const CONTEXT_NOT_FOUND: &str = "CONTEXT_NOT_FOUND";
    pub const NOT_SUPPORTED: &str = "NOT_SUPPORTED";
    /// Of a terminal: it has a client already.
    pub const ALREADY_CONNECTED: &str = "ALREADY_CONNECTED";
    pub const START_FAILED: &str = "START_FAILED";
    pub const STDIN_WRITE_FAILED: &str = "STDIN_WRITE_FAILED";
    pub const INVALID_FRAME: &str = "INVALID_FRAME";
    pub const UNKNOWN: &str = "UNKNOWN";

    pub const UNAUTHORIZED: &str = "UNAUTHORIZED";
    /// The execd is warm: nobody has bound it yet.
    pub const NOT_BOUND: &str = "NOT_BOUND";
    pub const ALREADY_BOUND: &str = "ALREADY_BOUND";
    /// A limit of execd itself is reached; the message says which.
    pub const TOO_MANY: &str = "TOO_MANY";
    /// The sandbox is at its limit of processes or memory: nothing starts in it now.
    pub const AT_LIMIT: &str = "AT_LIMIT";
    pub const TOO_LARGE: &str = "TOO_LARGE";
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: String,
    pub message: String,
}

/// The sandbox's access token. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What a warm execd learns when somebody claims its sandbox. One-shot: a second one is answered with 409
/// [`code::ALREADY_BOUND`], another generation with 400.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    pub generation: u32,
    pub token: Token,
    /// Over execd's own environment; under the file that `EXECD_ENVS` names and under a request's `envs`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where commands run that name no `cwd`, and what relative paths are relative to. Made when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What `/metrics` shows as the sandbox's size.
    #[serde(default)]
    pub limits: Limits,
}

/// The sandbox's limits; absent means the machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
}

/// The answer to [`Bind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub generation: u32,
}

/// `POST /command`: exactly one of `command` (a shell's text) and `argv`. Answers with [`Event`]s.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunCommand {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The stream ends at once with `execution_complete`; output goes to the log.
    #[serde(default)]
    pub background: bool,
    /// In milliseconds, then the whole tree is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Needs `uid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
}

/// `POST /session`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CreateSession {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// The answer to [`CreateSession`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    pub session_id: String,
}

/// `POST /session/{id}/run`. Answers with [`Event`]s; stderr comes as stdout.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RunInSession {
    pub command: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// In milliseconds; 0 and absent mean none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// One event of a stream. A command that ended well ends with [`Kind::ExecutionComplete`], any other with
/// [`Kind::Error`]; never both. A stream without either was cut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: Kind,
    /// `init`: the command's id (a session's run: the session's). `stdout`, `stderr`: one line without its end, and
    /// `"\n"` for an empty one; bytes that are no UTF-8 come as U+FFFD; a line over 1 MiB comes in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_time: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Milliseconds since 1970.
    pub timestamp: u64,
}

/// What an [`Event`] tells. Whoever reads a stream passes over kinds that it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Init,
    Stdout,
    Stderr,
    /// Every 3 seconds; tells nothing.
    Ping,
    Error,
    ExecutionComplete,
    #[serde(other)]
    Other,
}

/// How a command failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `CommandExecError`.
    pub ename: String,
    /// The exit code: the command's own, 128 + the signal that ended it, 127 or 126 when it could not be started.
    pub evalue: String,
    /// One line in words: `exit status 7`, `signal: killed`, `timed out after 1000 ms`, ...
    #[serde(default)]
    pub traceback: Vec<String>,
}

/// The answer to `POST /pty` (whose body is a [`RunCommand`]; one that names no command gets a shell) and to `GET
/// /pty/{id}`. The process starts with the first client of its WebSocket, `/pty/{id}/ws`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalStatus {
    pub session_id: String,
    pub running: bool,
    /// How many bytes it has written: what a client that comes back gives as `since`.
    pub output_offset: u64,
    /// Once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// The first byte of a binary message of a terminal's WebSocket.
pub mod channel {
    /// To the process.
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    /// Without a terminal (`?pty=0`) only.
    pub const STDERR: u8 = 2;
    /// What was written since `since`: its offset in 8 bytes, the highest first, then the bytes.
    pub const REPLAY: u8 = 3;
}

/// A text message to a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToTerminal {
    Stdin {
        data: String,
    },
    /// A signal's name, with or without SIG, for whatever runs in the foreground.
    Signal {
        signal: String,
    },
    Resize {
        cols: u16,
        rows: u16,
    },
    Ping,
    /// Ours: there is no more input.
    Eof,
}

/// A text message from a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromTerminal {
    /// `mode` is `pty` or `pipe`.
    Connected {
        session_id: String,
        mode: String,
    },
    Exit {
        exit_code: i32,
    },
    Error {
        code: String,
        error: String,
    },
    Pong,
}

/// The close code for a client whose place another one took (`?takeover=1`).
pub const TAKEN_OVER: u16 = 4001;

/// `GET /command/status/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandStatus {
    pub id: String,
    pub content: String,
    pub running: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// RFC 3339.
    pub started_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// Owner, group and mode, as a request gives them: what is absent stays as it is. **`mode` is octal digits written as
/// a decimal number**: 0644 is 644.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// The `metadata` part of an upload, before its `file` part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMetadata {
    pub path: String,
    #[serde(flatten)]
    pub permission: Permission,
}

/// One entry of a file system, never followed when it is a symlink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    pub path: String,
    /// `file`, `directory`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    pub size: u64,
    /// RFC 3339.
    pub modified_at: String,
    pub created_at: String,
    /// A name, or the number of an id without one.
    pub owner: String,
    pub group: String,
    /// Octal digits as a decimal number.
    pub mode: u32,
}

/// An item of `POST /files/mv`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rename {
    pub src: String,
    pub dest: String,
}

/// An item of `POST /files/replace`, by path: every `old` becomes `new`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replace {
    pub old: String,
    pub new: String,
}

/// An item of the answer to `POST /files/replace?verbose=true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    #[serde(rename = "replacedCount")]
    pub replaced_count: u64,
}

/// `GET /metrics`, and once a second on `GET /metrics/watch`: the sandbox's own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    pub cpu_count: f64,
    pub cpu_used_pct: f64,
    pub mem_total_mib: f64,
    pub mem_used_mib: f64,
    /// Milliseconds since 1970.
    pub timestamp: u64,
}
