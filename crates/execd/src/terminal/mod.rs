//! Terminals: a process that a client talks to over a WebSocket, and comes back to.
//!
//! The process starts with its first client, under a pseudo-terminal or (`?pty=0`) with plain pipes. It goes on without
//! a client, and its last output is replayed to whoever comes back; it is started once.

mod client;
mod past;
mod reader;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::upgrade::OnUpgrade;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use wire::execd::{RunCommand, TerminalStatus, code};
use wire::websocket;

use crate::command::{self, Command, Launch, Started, Unstarted, Wires, available, plumbing};
use crate::daemon::Daemon;
use crate::os::tree::Mark;
use crate::os::{self, pty};
use crate::reply::{Body, Problem, Reply, Result, empty, header, json};
use crate::request::Query;

use self::past::Past;

/// Terminals at once; and as many commands that run for one client alone.
const MOST: usize = 64;
/// Read at once; a client's messages are not longer.
const CHUNK: usize = 16 << 10;
/// Chunks that wait for a slow client. Then its process waits, too.
const WAITING: usize = 16;

#[derive(Default)]
pub(crate) struct Terminals {
    all: RefCell<HashMap<String, Rc<Terminal>>>,
    /// Held by each of those that nobody comes back to, and by us.
    passing: Rc<()>,
}

pub(crate) struct Terminal {
    id: String,
    request: RunCommand,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    process: Option<Rc<Process>>,
    past: Past,
    exit: Option<i32>,
    client: Option<Attached>,
    /// Counts the clients: one that was displaced must not detach its successor.
    clients: u64,
}

/// The client's ends here.
struct Attached {
    number: u64,
    /// Dropped when there is nothing more to come.
    output: Option<mpsc::Sender<Chunk>>,
    /// Dropped when another client takes its place.
    _leave: oneshot::Sender<()>,
}

/// What a client gets when it is attached.
struct Attachment {
    number: u64,
    output: mpsc::Receiver<Chunk>,
    /// What was written since the offset that it named, and from where on that can be had.
    replay: (u64, Vec<u8>),
}

/// A piece of output: on which channel, and what.
type Chunk = (u8, Bytes);

/// A started process and our ends of what it reads.
struct Process {
    command: Rc<Command>,
    input: RefCell<Option<Rc<Sender>>>,
    /// The pseudo-terminal, if it has one.
    master: Option<OwnedFd>,
    /// Kept until the terminal is deleted: the process lives without a client.
    _alive: oneshot::Sender<()>,
}

/// `POST /pty`.
pub(crate) fn create(daemon: &Daemon, request: RunCommand) -> Result {
    // What can be known to be wrong is told here and not to the first client.
    daemon.working_directory(request.cwd.as_deref(), &daemon.environment())?;
    if request.gid.is_some() && request.uid.is_none() {
        return Err(Problem::invalid("gid needs uid"));
    }
    let mut all = daemon.terminals.all.borrow_mut();
    if all.len() >= MOST {
        return Err(Problem::too_many(format!("there are {MOST} terminals: delete one")));
    }
    let terminal = Terminal { id: os::id(), request, state: RefCell::default() };
    let mut reply = json(&terminal.status());
    *reply.status_mut() = StatusCode::CREATED;
    all.insert(terminal.id.clone(), Rc::new(terminal));
    Ok(reply)
}

/// `GET /pty/{id}`.
pub(crate) fn status(daemon: &Daemon, id: &str) -> Result {
    Ok(json(&daemon.terminals.get(id)?.status()))
}

/// `DELETE /pty/{id}`: ends its process and all that comes from it.
pub(crate) async fn delete(daemon: &Daemon, id: &str) -> Result {
    let terminal = daemon.terminals.get(id)?;
    daemon.terminals.all.borrow_mut().remove(id);
    let process = terminal.state.borrow().process.clone();
    if let Some(process) = process {
        process.command.kill(daemon, "its terminal was deleted", Duration::ZERO).await;
    }
    Ok(empty())
}

/// `GET /pty/{id}/ws?pty=0&since=N&takeover=1`.
pub(crate) fn connect(
    daemon: &Rc<Daemon>,
    id: &str,
    query: &Query,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
) -> Result {
    let terminal = daemon.terminals.get(id)?;
    let (upgrade, reply) = upgraded(headers, upgrade)?;
    let since = query.number("since", 0)?.unwrap_or(0);
    let pipes = query.get("pty") == Some(b"0");
    let takeover = query.get("takeover") == Some(b"1");
    if !takeover && terminal.state.borrow().client.is_some() {
        let why = format!("another client is connected to {id}: takeover=1 takes its place");
        return Err(Problem::new(StatusCode::CONFLICT, code::ALREADY_CONNECTED, why));
    }
    daemon.spawn(client::serve(daemon.clone(), terminal, upgrade, since, pipes, takeover));
    Ok(reply)
}

/// `GET /insula/v1/exec?arg=..&arg=..&pty=1`: a terminal that nobody comes back to.
pub(crate) fn exec(daemon: &Rc<Daemon>, query: &Query, headers: &HeaderMap, upgrade: Option<OnUpgrade>) -> Result {
    let text = |value: &[u8]| String::from_utf8(value.to_vec()).map_err(|_| Problem::parameter("arg is no UTF-8"));
    let argv = query.all("arg").map(text).collect::<Result<Vec<_>>>()?;
    let pipes = query.get("pty") != Some(b"1");
    if Rc::strong_count(&daemon.terminals.passing) > MOST {
        return Err(Problem::too_many(format!("{MOST} commands run for one client each: that is all")));
    }
    let (upgrade, reply) = upgraded(headers, upgrade)?;
    let request = RunCommand { argv: Some(argv), ..RunCommand::default() };
    let terminal = Rc::new(Terminal { id: os::id(), request, state: RefCell::default() });
    let (shared, place) = (daemon.clone(), daemon.terminals.passing.clone());
    daemon.spawn(async move {
        let (daemon, _place) = (shared, place);
        client::serve(daemon.clone(), terminal.clone(), upgrade, 0, pipes, false).await;
        let process = terminal.state.borrow_mut().process.take();
        if let Some(process) = process
            && process.command.is_running()
        {
            process.command.kill(&daemon, "its client went away", Duration::ZERO).await;
        }
    });
    Ok(reply)
}

/// What becomes of the connection, and the answer that says so.
fn upgraded(headers: &HeaderMap, upgrade: Option<OnUpgrade>) -> Result<(OnUpgrade, Reply)> {
    let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let accept = websocket::accept(values).map_err(Problem::parameter)?;
    let upgrade = upgrade.ok_or_else(|| Problem::parameter("this connection cannot become a WebSocket"))?;
    let mut reply = Reply::new(Body::Full(None));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    header(&mut reply, hyper::header::SEC_WEBSOCKET_ACCEPT, &accept);
    Ok((upgrade, reply))
}

impl Terminals {
    fn get(&self, id: &str) -> Result<Rc<Terminal>> {
        self.all.borrow().get(id).cloned().ok_or_else(|| Problem::no_context(format!("no terminal {id}")))
    }
}

impl Terminal {
    fn status(&self) -> TerminalStatus {
        let state = self.state.borrow();
        TerminalStatus {
            session_id: self.id.clone(),
            running: state.process.is_some() && state.exit.is_none(),
            output_offset: state.past.end(),
            exit_code: state.exit,
        }
    }

    /// Takes a client in, with what resolves when another one takes its place. `None` when somebody else is there and is
    /// not to be displaced.
    fn attach(&self, since: u64, takeover: bool) -> Option<(Attachment, oneshot::Receiver<()>)> {
        let mut state = self.state.borrow_mut();
        if state.client.is_some() && !takeover {
            return None;
        }
        let (output, chunks) = mpsc::channel(WAITING);
        let (leave, displaced) = oneshot::channel();
        state.clients += 1;
        let number = state.clients;
        let output = state.exit.is_none().then_some(output);
        // Both in one step: nothing is written between what is replayed and what comes live.
        state.client = Some(Attached { number, output, _leave: leave });
        Some((Attachment { number, output: chunks, replay: state.past.since(since) }, displaced))
    }

    fn detach(&self, number: u64) {
        let mut state = self.state.borrow_mut();
        if state.client.as_ref().is_some_and(|client| client.number == number) {
            state.client = None;
        }
    }

    /// Starts the process, unless that was done.
    fn start(self: &Rc<Self>, daemon: &Rc<Daemon>, pipes: bool) -> std::result::Result<Rc<Process>, String> {
        if let Some(process) = &self.state.borrow().process {
            return Ok(process.clone());
        }
        let started = self.launch(daemon, pipes).map_err(|unstarted| match unstarted {
            Unstarted::Program(_, why) => why,
            Unstarted::Problem(problem) => problem.message,
        })?;
        self.state.borrow_mut().process = Some(started.clone());
        Ok(started)
    }

    fn launch(self: &Rc<Self>, daemon: &Rc<Daemon>, pipes: bool) -> std::result::Result<Rc<Process>, Unstarted> {
        let mut launch = match command::launch(daemon, &self.request).map_err(Unstarted::Problem)? {
            Some(launch) => launch,
            None => self.shell(daemon).map_err(Unstarted::Problem)?,
        };
        let (sources, input, master, wires) = if pipes {
            let (stdout, out) = command::pipe()?;
            let (stderr, err) = command::pipe()?;
            let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(kernel)?;
            let input = Sender::from_owned_fd(ours).map_err(plumbing)?;
            let wires = Wires { stdin: Some(theirs), stdout: out, stderr: err, terminal: false };
            ([Some(stdout), Some(stderr)], input, None, wires)
        } else {
            launch.env.entry("TERM".into()).or_insert_with(|| "xterm-256color".into());
            let (ours, theirs) = pty::open().map_err(plumbing)?;
            let copy = |fd: &OwnedFd| fd.try_clone().map_err(plumbing);
            let output = Receiver::from_owned_fd_unchecked(copy(&ours)?).map_err(plumbing)?;
            let input = Sender::from_owned_fd_unchecked(copy(&ours)?).map_err(plumbing)?;
            let wires = Wires { stdin: Some(copy(&theirs)?), stdout: copy(&theirs)?, stderr: theirs, terminal: true };
            ([Some(output), None], input, Some(ours), wires)
        };
        let started = command::follow(daemon, self.id.clone(), launch, wires, None, Box::new(|_| ()))?;
        let Started { command, ended, alive } = started;
        daemon.spawn(pump(daemon.clone(), self.clone(), sources, ended));
        Ok(Rc::new(Process { command, input: RefCell::new(Some(Rc::new(input))), master, _alive: alive }))
    }

    /// A shell that waits for what the client says.
    fn shell(&self, daemon: &Daemon) -> Result<Launch> {
        let mut env = daemon.environment();
        env.extend(self.request.envs.iter().flatten().map(|(key, value)| (key.into(), value.into())));
        let cwd = daemon.working_directory(self.request.cwd.as_deref(), &env)?;
        let (program, args) = command::shell_program(&env);
        let content = program.to_string_lossy().into_owned();
        let identity = command::identity(&self.request);
        Ok(Launch { content, program, args, cwd, env, identity, mark: Mark::fresh(), extra: Vec::new() })
    }

    /// Keeps what was written, and hands it to the client, waiting while that one is slow.
    async fn tell(&self, channel: u8, data: Bytes) {
        let client = {
            let mut state = self.state.borrow_mut();
            state.past.push(&data);
            state.client.as_ref().and_then(|client| client.output.clone())
        };
        if let Some(client) = client {
            // A client that has gone does not mind, and its successor finds this among the past.
            let _ = client.send((channel, data)).await;
        }
    }
}

fn kernel(error: rustix::io::Errno) -> Unstarted {
    plumbing(error.into())
}

/// Reads what the process writes until it has ended and that has been read.
async fn pump(
    daemon: Rc<Daemon>,
    terminal: Rc<Terminal>,
    mut sources: [Option<Receiver>; 2],
    mut ended: oneshot::Receiver<command::End>,
) {
    let end = loop {
        let [out, err] = &sources;
        let (at, ready) = tokio::select! {
            biased;
            ready = readable(out.as_ref()) => (0, ready),
            ready = readable(err.as_ref()) => (1, ready),
            end = &mut ended => break end,
        };
        match ready.and_then(|()| take(&daemon, sources.get(at).and_then(Option::as_ref), CHUNK)) {
            Ok(Some(data)) if data.is_empty() => {}
            Ok(Some(data)) => terminal.tell(channel(at), data).await,
            // A pseudo-terminal whose other end nobody holds is an error (EIO), a pipe's is its end.
            Ok(None) | Err(_) => {
                if let Some(over) = sources.get_mut(at) {
                    *over = None;
                }
            }
        }
    };
    for (at, source) in sources.iter().enumerate() {
        let mut left = source.as_ref().map_or(0, available);
        while left > 0
            && let Ok(Some(data)) = take(&daemon, source.as_ref(), left.min(CHUNK))
            && !data.is_empty()
        {
            left -= data.len().min(left);
            terminal.tell(channel(at), data).await;
        }
    }
    let mut state = terminal.state.borrow_mut();
    state.exit = Some(end.map_or(255, |end| end.code));
    if let Some(client) = &mut state.client {
        client.output = None;
    }
}

fn channel(at: usize) -> u8 {
    if at == 0 { wire::execd::channel::STDOUT } else { wire::execd::channel::STDERR }
}

async fn readable(source: Option<&Receiver>) -> io::Result<()> {
    match source {
        Some(source) => source.readable().await,
        None => std::future::pending().await,
    }
}

/// Reads once: nothing at the end, an empty piece when there is nothing now.
fn take(daemon: &Daemon, source: Option<&Receiver>, most: usize) -> io::Result<Option<Bytes>> {
    let Some(source) = source else { return Ok(None) };
    let mut scratch = daemon.scratch(CHUNK);
    match source.try_read(scratch.get_mut(..most).unwrap_or_default()) {
        Ok(0) => Ok(None),
        Ok(length) => Ok(Some(Bytes::copy_from_slice(scratch.get(..length).unwrap_or_default()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(Some(Bytes::new()))
        }
        Err(error) => Err(error),
    }
}
