//! What a run does in its sandbox.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use wire::execd::{Event, Failure, Kind, RunCommand, code};

use crate::Error;
use crate::link::{Link, full};
use crate::live::{Busy, Live};
use crate::output::{Spill, Tail};
use crate::sandboxes::Inner;

/// How long a sandbox may take to start a command.
const BEGIN: Duration = Duration::from_secs(20);
/// How long after its timeout a command's end may take to be told.
const GRACE: Duration = Duration::from_secs(15);
/// The longest event: a line of 1 MiB in which every byte is escaped.
const EVENT: usize = 8 << 20;
/// How long to wait for the reason of an end.
const REASON: Duration = Duration::from_secs(1);
/// Where the whole of long outputs is, in the sandbox.
const OUTPUTS: &str = "/workspace/.outputs";
/// What is left of a process that was killed.
const KILLED: i32 = 137;

/// A command for a shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub command: String,
    /// Where it runs; /workspace when not given.
    pub workdir: Option<String>,
    /// Then its whole tree is killed.
    pub timeout: Duration,
    /// Bytes of its output that are given back; of what is more, the last ones.
    pub keep: usize,
}

/// A command that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub exit: Exit,
    /// The end of what it wrote to its stdout and stderr, in the order in which it came; every line ends with a newline.
    pub output: String,
    /// Bytes of all that it wrote.
    pub total: u64,
    /// Where all of it is, when `output` is not all: a file in the sandbox and how much is in it, or why it is not.
    pub full: Option<Result<(String, u64), String>>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its own code, or 128 and the signal that ended it; 126 or 127 when it could not be started.
    Code(i32),
    /// Killed at its timeout.
    TimedOut,
    /// A process of it was killed, for the sandbox is at its limit of memory.
    OutOfMemory,
    /// Killed: the workspace had grown to so many bytes, over its quota.
    OverQuota(u64),
}

/// A run's hold of its sandbox. Cheap to clone; for the next call ask [`crate::Sandboxes::claim`] again.
#[derive(Clone)]
pub struct Hand {
    pub(crate) all: Arc<Inner>,
    pub(crate) live: Arc<Live>,
}

impl Hand {
    /// The name under which people see the sandbox.
    pub fn pod(&self) -> &str {
        &self.live.pod
    }

    /// The node's id of the sandbox.
    pub fn id(&self) -> &str {
        &self.live.id
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.all.link
    }

    /// Runs a command to its end; `on_output` sees its lines as they come. Dropping the future kills the command with
    /// everything that it started.
    ///
    /// # Errors
    /// [`Error::Ended`] when the sandbox is over; [`Error::Refused`] when it cannot start the command, such as in a
    /// directory that is not there.
    pub async fn exec(&self, command: &Command, mut on_output: impl FnMut(&str) + Send) -> Result<Done, Error> {
        let _busy = self.begin()?;
        let asked = RunCommand {
            command: Some(command.command.clone()),
            cwd: command.workdir.clone(),
            timeout: Some(u64::try_from(command.timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            ..RunCommand::default()
        };
        let asked = serde_json::to_vec(&asked).map_err(Error::unreachable("pass a command on"))?;
        let began = self.link().execd(&self.live.id, Method::POST, "command", "application/json", full(asked));
        let mut events = Events::of(self.within(BEGIN, began).await?.into_body());

        let mut said = Said { tail: Tail::new(command.keep), spill: None };
        let mut late = pin!(tokio::time::sleep(command.timeout.saturating_add(GRACE)));
        let mut growing = pin!(self.growing());
        let exit = loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                size = &mut growing => break Exit::OverQuota(size),
                () = &mut late => return Err(self.silent().await),
            };
            match event {
                Ok(Some(Event { kind: Kind::Stdout | Kind::Stderr, text, .. })) => {
                    let mut line = text.unwrap_or_default();
                    if line != "\n" {
                        line.push('\n');
                    }
                    on_output(&line);
                    said.push(self, &line).await;
                }
                Ok(Some(Event { kind: Kind::ExecutionComplete, .. })) => break Exit::Code(0),
                Ok(Some(Event { kind: Kind::Error, error, .. })) => break self.failed(error).await?,
                Ok(Some(Event { kind: Kind::Init | Kind::Ping | Kind::Other, .. })) => {}
                Ok(None) => return Err(self.cut_off("it broke off in the middle of a command").await),
                Err(error @ Error::Nonsense(_)) => return Err(error),
                Err(error) => return Err(self.cut_off(&kit::chain(&error)).await),
            }
        };
        drop(events);
        if let Some(note) = self.over_quota().await {
            on_output(&note);
            said.push(self, &note).await;
        }
        let total = said.tail.total;
        let full = match said.spill {
            Some(spill) => Some(spill.finish().await),
            None => None,
        };
        Ok(Done { exit, output: said.tail.text(), total, full })
    }

    async fn failed(&self, failure: Option<Failure>) -> Result<Exit, Error> {
        let failure = failure.ok_or_else(|| Error::Nonsense("a failure without a reason".to_owned()))?;
        if failure.traceback.first().is_some_and(|why| why.starts_with("timed out after")) {
            return Ok(Exit::TimedOut);
        }
        let code = failure.evalue.parse::<i32>();
        let code = code.map_err(|_| Error::Nonsense(format!("an exit code {:?}", failure.evalue)))?;
        if code == KILLED
            && let Ok(stats) = self.link().stats(&self.live.id).await
            && let Some(kills) = stats.oom_kills
            && self.live.oom_kills.swap(kills, Ordering::AcqRel) < kills
        {
            return Ok(Exit::OutOfMemory);
        }
        Ok(Exit::Code(code))
    }

    /// Bounds a call; a sandbox that does not answer in time is ended.
    pub(crate) async fn within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, call).await {
            Ok(Err(Error::Unreachable { doing, source })) => {
                Err(self.cut_off(&kit::chain(&Error::Unreachable { doing, source })).await)
            }
            Ok(Err(Error::Refused { code, said })) if code == code::AT_LIMIT => Err(self.at_limit(said)),
            Ok(other) => other,
            Err(_) => Err(self.silent().await),
        }
    }

    /// A call begins; not the first one after the session's sandbox was ended under it, which is told why.
    pub(crate) fn begin(&self) -> Result<Busy, Error> {
        match self.live.unsaid() {
            Some(why) => Err(Error::Stopped { why }),
            None => Ok(self.live.busy()),
        }
    }

    /// Nothing starts in it any more. What holds it full may be another call's, which ends; else it is what earlier ones
    /// have left, and that ends with the sandbox only.
    fn at_limit(&self, said: String) -> Error {
        const WHY: &str = "it was at its limit of processes or memory, so that nothing could start in it, and what earlier \
                           commands had left running was ended with it";
        if self.live.calls() > 1 {
            return Error::Refused { code: code::AT_LIMIT.to_owned(), said };
        }
        self.all.clone().end_live(&self.live, WHY);
        Error::Stopped { why: WHY.to_owned() }
    }

    /// Why a call broke off: the sandbox has ended, or will.
    async fn cut_off(&self, how: &str) -> Error {
        match tokio::time::timeout(REASON, self.live.over()).await {
            Ok(why) => Error::Ended { why, begun: true },
            Err(_) => {
                let why = format!("it broke off: {how}");
                self.all.clone().end_live(&self.live, &why);
                Error::Ended { why, begun: true }
            }
        }
    }

    async fn silent(&self) -> Error {
        const WHY: &str = "it did not answer in time";
        self.all.clone().end_live(&self.live, WHY);
        Error::Ended { why: WHY.to_owned(), begun: true }
    }
}

/// What a command has said so far.
struct Said {
    tail: Tail,
    spill: Option<Spill>,
}

impl Said {
    async fn push(&mut self, hand: &Hand, line: &str) {
        self.tail.push(line);
        if let Some(spill) = &mut self.spill {
            spill.push(line).await;
        } else if self.tail.is_over()
            && let Some(all) = self.tail.all()
        {
            let path = format!("{OUTPUTS}/{}.txt", crate::short_id());
            self.spill = Some(Spill::begin(hand.link(), &hand.all.tasks, &hand.live.id, path, all));
        }
    }
}

/// A stream of events, parsed with limits.
struct Events {
    body: Incoming,
    read: Vec<u8>,
    /// What was parsed of it, and what was searched for the end of a line.
    parsed: usize,
    seen: usize,
}

impl Events {
    fn of(body: Incoming) -> Self {
        Self { body, read: Vec::new(), parsed: 0, seen: 0 }
    }

    /// Losing the future loses nothing.
    async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let unseen = self.read.get(self.seen..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                let end = self.seen + at;
                let line = self.read.get(self.parsed..end).unwrap_or_default();
                let event = (!line.is_empty()).then(|| serde_json::from_slice(line));
                (self.parsed, self.seen) = (end + 1, end + 1);
                match event {
                    Some(event) => return event.map(Some).map_err(|error| Error::Nonsense(error.to_string())),
                    None => continue,
                }
            }
            self.read.drain(..self.parsed);
            (self.parsed, self.seen) = (0, self.read.len());
            if self.seen > EVENT {
                return Err(Error::Nonsense(format!("an event of more than {EVENT} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(error)) => return Err(Error::unreachable("pass a command's output on")(error)),
                None => return Ok(None),
            }
        }
    }
}
