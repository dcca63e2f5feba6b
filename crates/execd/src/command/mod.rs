//! Commands: started, followed, asked about, ended.

mod encode;
pub(crate) mod env;
pub(crate) mod journal;
mod log;
mod output;
pub(crate) mod session;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hyper::StatusCode;
use rustix::fs::{Access, AtFlags, CWD, MemfdFlags};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use wire::execd::{CommandStatus, RunCommand, code};

use crate::daemon::Daemon;
use crate::os::identity::Identity;
use crate::os::reaper::Exit;
use crate::os::spawn::{SCRIPT_FD, Spawn};
use crate::os::tree::{self, Mark, Tree};
use crate::os::users::Users;
use crate::os::{self, now_ms};
use crate::reply::{Body, Problem, Reply, Result, events};

use self::env::Env;
use self::log::Log;
pub(crate) use self::output::{LogText, Output, available, forget};

/// Commands at once.
const RUNNING_MOST: usize = 256;
/// Ended commands whose status is remembered, and logs among them. The oldest go first.
const ENDED_MOST: usize = 1024;
const LOGS_MOST: usize = 64;
/// The kernel takes no argument of 128 KiB: a longer script goes through a descriptor.
const LONGEST_ARGUMENT: usize = 100 << 10;
/// Asked for each pipe; the kernel gives 64 KiB where it will not give this.
const PIPE: usize = 256 << 10;

/// One command, running or ended.
pub(crate) struct Command {
    pub id: String,
    content: String,
    tree: Tree,
    started: u64,
    end: RefCell<Option<End>>,
    /// Why we killed it, if we did.
    killed: RefCell<Option<String>>,
    /// Background commands have one, until it is dropped for newer ones.
    log: RefCell<Option<Rc<Log>>>,
    background: bool,
    /// Whether the stream's last event was given out.
    told: Cell<bool>,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// The command's own code, or 128 + the signal.
    pub code: i32,
    /// In words; empty when the code is 0.
    pub why: String,
    pub at: u64,
}

/// All commands, by id.
#[derive(Default)]
pub(crate) struct Commands {
    all: RefCell<HashMap<String, Rc<Command>>>,
    ended: RefCell<VecDeque<String>>,
    running: Cell<usize>,
}

/// What is to be started, with everything resolved.
pub(crate) struct Launch {
    pub content: String,
    pub program: OsString,
    pub args: Vec<OsString>,
    pub cwd: PathBuf,
    pub env: Env,
    pub identity: Option<Identity>,
    pub mark: Option<Mark>,
    pub extra: Vec<(OwnedFd, i32)>,
}

/// What a started command reads and writes.
pub(crate) struct Wires {
    /// None: `/dev/null`.
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Whether stdin is to be its controlling terminal.
    pub terminal: bool,
}

/// A started command, for its follower.
pub(crate) struct Started {
    pub command: Rc<Command>,
    pub ended: oneshot::Receiver<End>,
    /// Dropped with the follower: then nobody is there any more, and the command is killed.
    pub alive: oneshot::Sender<()>,
}

/// A started command and our ends of its pipes.
pub(crate) struct Followed {
    pub started: Started,
    pub stdout: Receiver,
    pub stderr: Option<Receiver>,
}

/// What is done once a command has ended, before anybody is told.
type After = Box<dyn FnOnce(&End)>;

impl Commands {
    pub(crate) fn get(&self, id: &str) -> Option<Rc<Command>> {
        self.all.borrow().get(id).cloned()
    }

    pub(crate) fn running(&self) -> Vec<Rc<Command>> {
        self.all.borrow().values().filter(|command| command.is_running()).cloned().collect()
    }

    fn add(&self, command: &Rc<Command>) {
        self.running.set(self.running.get() + 1);
        self.all.borrow_mut().insert(command.id.clone(), command.clone());
    }

    fn end(&self, command: &Command) {
        self.running.set(self.running.get().saturating_sub(1));
        let mut ended = self.ended.borrow_mut();
        let mut all = self.all.borrow_mut();
        ended.push_back(command.id.clone());
        while ended.len() > ENDED_MOST {
            if let Some(oldest) = ended.pop_front() {
                all.remove(&oldest);
            }
        }
        let logs = ended.iter().rev().filter_map(|id| all.get(id)).filter(|command| command.log.borrow().is_some());
        for old in logs.skip(LOGS_MOST) {
            old.log.replace(None);
        }
    }
}

impl Command {
    pub(crate) fn is_running(&self) -> bool {
        self.end.borrow().is_none()
    }

    pub(crate) fn root(&self) -> Pid {
        self.tree.root
    }

    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    /// The time, and never one before its start: the machine's clock may have been set back since.
    pub(crate) fn now(&self) -> u64 {
        now_ms().max(self.started)
    }

    fn status(&self) -> CommandStatus {
        let end = self.end.borrow();
        CommandStatus {
            id: self.id.clone(),
            content: self.content.clone(),
            running: end.is_none(),
            exit_code: end.as_ref().map(|end| end.code),
            error: end.as_ref().map(|end| end.why.clone()).filter(|why| !why.is_empty()),
            started_at: os::rfc3339_ms(self.started),
            finished_at: end.as_ref().map(|end| os::rfc3339_ms(end.at)),
        }
    }

    /// Kills the tree, with SIGTERM first when there is a grace: whether anything was there.
    pub(crate) async fn kill(&self, daemon: &Daemon, why: &str, grace: Duration) -> bool {
        if self.is_running() {
            self.killed.borrow_mut().get_or_insert_with(|| why.to_owned());
        }
        tree::end(self.tree, grace, &daemon.reaper, &daemon.workers).await
    }
}

/// `POST /command`.
pub(crate) async fn run(daemon: Rc<Daemon>, request: RunCommand) -> Result {
    if request.timeout == Some(0) {
        return Err(Problem::invalid("timeout must be at least 1 ms"));
    }
    let launch =
        launch(&daemon, &request)?.ok_or_else(|| Problem::invalid("exactly one of command and argv is needed"))?;
    let timeout = request.timeout.map(Duration::from_millis);
    if request.background {
        let command = background(&daemon, launch, timeout)?;
        return Ok(events(Body::Full(Some(output::started_in_background(&command)))));
    }
    let id = os::id();
    match foreground(&daemon, id.clone(), launch, timeout, false, Box::new(|_| ())) {
        Ok(followed) => Ok(events(Body::Output(Box::new(Output::new(daemon, followed, id))))),
        Err(Unstarted::Program(code, why)) => Ok(events(Body::Full(Some(output::not_started(&id, code, &why))))),
        Err(Unstarted::Problem(problem)) => Err(problem),
    }
}

/// What a request asks to be started; `None` when it names neither a command nor arguments.
pub(crate) fn launch(daemon: &Daemon, request: &RunCommand) -> Result<Option<Launch>> {
    let mut env = daemon.environment();
    for (key, value) in request.envs.iter().flatten() {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(Problem::invalid(format!("envs: {key:?} cannot be in an environment")));
        }
        env.insert(key.into(), value.into());
    }
    let cwd = daemon.working_directory(request.cwd.as_deref(), &env)?;
    if request.gid.is_some() && request.uid.is_none() {
        return Err(Problem::invalid("gid needs uid"));
    }
    let mut extra = Vec::new();
    let (content, program, args) = match (&request.command, &request.argv) {
        (None, None) => return Ok(None),
        (Some(command), None) if !command.trim().is_empty() => {
            let (program, args) = shell(&env, command, &mut extra)?;
            (command.clone(), program, args)
        }
        (None, Some(argv)) if argv.iter().any(|arg| arg.contains('\0')) => {
            return Err(Problem::invalid("argv cannot hold a NUL"));
        }
        (None, Some(argv)) => match argv.split_first() {
            Some((program, args)) if !program.is_empty() => {
                (argv.join(" "), program.into(), args.iter().map(OsString::from).collect())
            }
            _ => return Err(Problem::invalid("argv[0] must not be empty")),
        },
        (Some(_), None) => return Err(Problem::invalid("command must not be empty")),
        (Some(_), Some(_)) => return Err(Problem::invalid("exactly one of command and argv is needed")),
    };
    Ok(Some(Launch { content, program, args, cwd, env, identity: identity(request), mark: Mark::fresh(), extra }))
}

/// Who the command runs as, if not as execd itself.
pub(crate) fn identity(request: &RunCommand) -> Option<Identity> {
    let wanted = Users::read().identity(request.uid?, request.gid);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    (wanted.uid != uid || wanted.gid != gid).then_some(wanted)
}

/// Where the shell is, with what it is given before anything else: bash where the environment's PATH has it, else sh.
pub(crate) fn shell_program(env: &Env) -> (OsString, Vec<OsString>) {
    let path = env.get(OsStr::new("PATH")).map_or(b"/usr/local/bin:/usr/bin:/bin".as_slice(), |path| path.as_bytes());
    let bash = path
        .split(|&byte| byte == b':')
        .filter(|place| place.starts_with(b"/"))
        .map(|place| Path::new(OsStr::from_bytes(place)).join("bash"))
        .find(|bash| rustix::fs::accessat(CWD, bash, Access::EXEC_OK, AtFlags::empty()).is_ok());
    match bash {
        Some(bash) => (bash.into(), vec!["--noprofile".into(), "--norc".into()]),
        None => ("/bin/sh".into(), Vec::new()),
    }
}

/// The shell with `script` to run.
pub(crate) fn shell(env: &Env, script: &str, extra: &mut Vec<(OwnedFd, i32)>) -> Result<(OsString, Vec<OsString>)> {
    if script.contains('\0') {
        return Err(Problem::invalid("command cannot hold a NUL"));
    }
    let (program, mut args) = shell_program(env);
    if script.len() < LONGEST_ARGUMENT {
        args.extend(["-c".into(), script.into()]);
    } else {
        let file = memory(script.as_bytes()).map_err(|error| Problem::io("keeping the script", &error))?;
        extra.push((file, SCRIPT_FD));
        args.push(format!("/dev/fd/{SCRIPT_FD}").into());
    }
    Ok((program, args))
}

/// A file in memory that holds `content`, to be read from its start.
pub(crate) fn memory(content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("execd", MemfdFlags::CLOEXEC)?;
    let mut at = 0;
    while let Some(rest) = content.get(at..).filter(|rest| !rest.is_empty()) {
        at += rustix::io::pwrite(&file, rest, at as u64)?;
    }
    Ok(file)
}

/// Why a command was not started.
pub(crate) enum Unstarted {
    /// The program cannot be run: the command has failed, with this code, as it would in a shell.
    Program(i32, String),
    Problem(Problem),
}

/// Starts a command whose output its caller follows.
pub(crate) fn foreground(
    daemon: &Rc<Daemon>,
    id: String,
    launch: Launch,
    timeout: Option<Duration>,
    merged: bool,
    after: After,
) -> std::result::Result<Followed, Unstarted> {
    let (stdout, out) = pipe()?;
    let (stderr, err) = if merged {
        (None, out.try_clone().map_err(plumbing)?)
    } else {
        let (stderr, err) = pipe()?;
        (Some(stderr), err)
    };
    let wires = Wires { stdin: None, stdout: out, stderr: err, terminal: false };
    let started = follow(daemon, id, launch, wires, timeout, after)?;
    Ok(Followed { started, stdout, stderr })
}

/// Starts a command that lives as long as its follower.
pub(crate) fn follow(
    daemon: &Rc<Daemon>,
    id: String,
    launch: Launch,
    wires: Wires,
    timeout: Option<Duration>,
    after: After,
) -> std::result::Result<Started, Unstarted> {
    let (command, exit) = start(daemon, id, launch, wires, None)?;
    let (tell, ended) = oneshot::channel();
    let (alive, gone) = oneshot::channel();
    daemon.spawn(supervise(daemon.clone(), command.clone(), exit, timeout, Some((gone, tell)), after));
    Ok(Started { command, ended, alive })
}

/// Starts a command whose output goes to a log.
fn background(daemon: &Rc<Daemon>, launch: Launch, timeout: Option<Duration>) -> Result<Rc<Command>> {
    let problem = |unstarted| match unstarted {
        Unstarted::Program(_, why) => Problem::runtime(format!("the command was not started: {why}")),
        Unstarted::Problem(problem) => problem,
    };
    let log = Rc::new(Log::open().map_err(|error| Problem::io("opening the command's log", &error))?);
    let kept = Rc::new(output::Kept::new(log.clone()));
    let (output, out) = pipe().map_err(problem)?;
    let err = out.try_clone().map_err(|error| problem(plumbing(error)))?;
    let output = Rc::new(output);
    let wires = Wires { stdin: None, stdout: out, stderr: err, terminal: false };
    let (command, exit) = start(daemon, os::id(), launch, wires, Some(log)).map_err(problem)?;
    daemon.spawn(output::keep(daemon.clone(), output.clone(), kept.clone()));
    let last = daemon.clone();
    // Whoever learns that it has ended finds all that it printed.
    let after = Box::new(move |_: &End| output::keep_available(&last, &output, &kept));
    daemon.spawn(supervise(daemon.clone(), command.clone(), exit, timeout, None, after));
    Ok(command)
}

fn start(
    daemon: &Rc<Daemon>,
    id: String,
    launch: Launch,
    wires: Wires,
    log: Option<Rc<Log>>,
) -> std::result::Result<(Rc<Command>, oneshot::Receiver<Exit>), Unstarted> {
    if daemon.commands.running.get() >= RUNNING_MOST {
        let why = format!("{RUNNING_MOST} commands are running: wait for one to end or interrupt it");
        return Err(Unstarted::Problem(Problem::too_many(why)));
    }
    let Launch { content, program, args, cwd, env, identity, mark, extra } = launch;
    let name = program.to_string_lossy().into_owned();
    let who = identity.as_ref().map(|identity| (identity.uid, identity.gid));
    let spawn = Spawn {
        program,
        args,
        env: env.into_iter().collect(),
        cwd,
        stdin: wires.stdin.map_or_else(|| daemon.null.try_clone(), Ok).map_err(plumbing)?,
        stdout: wires.stdout,
        stderr: wires.stderr,
        extra,
        identity,
        mark,
        terminal: wires.terminal,
        files: daemon.files,
    };
    let started = now_ms();
    let root = spawn.start().map_err(|error| unstarted(&name, who, &error))?;
    let exit = daemon.reaper.exit(root);
    let background = log.is_some();
    let command = Rc::new(Command {
        id,
        content,
        tree: Tree { mark, root },
        started,
        end: RefCell::new(None),
        killed: RefCell::new(None),
        log: RefCell::new(log),
        background,
        told: Cell::new(false),
    });
    daemon.commands.add(&command);
    Ok((command, exit))
}

fn unstarted(program: &str, who: Option<(u32, u32)>, error: &io::Error) -> Unstarted {
    let again = |code, why| Unstarted::Problem(Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, why));
    match (error.raw_os_error(), who) {
        (Some(libc::EAGAIN | libc::ENOMEM), _) => {
            again(code::AT_LIMIT, format!("the sandbox is at its limit of processes or memory: {error}"))
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => again(code::RUNTIME, format!("no descriptors are left: {error}")),
        (Some(libc::E2BIG), _) => {
            Unstarted::Problem(Problem::too_large("the arguments and the environment are too long together"))
        }
        (Some(libc::EPERM | libc::EINVAL), Some((uid, gid))) => Unstarted::Problem(Problem::runtime(format!(
            "this sandbox may not run a command as uid {uid}, gid {gid}: {error}"
        ))),
        (Some(libc::ENOENT | libc::ENOTDIR), _) => Unstarted::Program(127, format!("{program}: {error}")),
        _ => Unstarted::Program(126, format!("{program}: {error}")),
    }
}

pub(crate) fn plumbing(error: io::Error) -> Unstarted {
    unstarted("the command's pipes", None, &error)
}

/// Our end, which never blocks, and the command's.
pub(crate) fn pipe() -> std::result::Result<(Receiver, OwnedFd), Unstarted> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| plumbing(error.into()))?;
    let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE);
    Ok((Receiver::from_owned_fd(ours).map_err(plumbing)?, theirs))
}

/// Waits for the end, or brings it about when the time is up or nobody follows any more.
async fn supervise(
    daemon: Rc<Daemon>,
    command: Rc<Command>,
    mut exit: oneshot::Receiver<Exit>,
    timeout: Option<Duration>,
    follower: Option<(oneshot::Receiver<()>, oneshot::Sender<End>)>,
    after: After,
) {
    let (gone, tell) = follower.unzip();
    let late = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
        format!("timed out after {} ms", timeout.unwrap_or_default().as_millis())
    };
    let left = async {
        match gone {
            Some(gone) => drop(gone.await),
            None => std::future::pending().await,
        }
        "its client went away".to_owned()
    };
    let exit = tokio::select! {
        biased;
        exit = &mut exit => exit,
        why = late => {
            command.kill(&daemon, &why, Duration::ZERO).await;
            exit.await
        }
        why = left => {
            command.kill(&daemon, &why, Duration::ZERO).await;
            exit.await
        }
    };
    let killed = command.killed.borrow().clone();
    let (code, mut why) = match exit {
        Ok(Exit::Code(0)) => (0, String::new()),
        Ok(Exit::Code(code)) => (code, format!("exit status {code}")),
        Ok(Exit::Signal(signal)) => (128 + signal, format!("signal: {}", signal_name(signal))),
        Err(_) => (255, "its end was not seen".to_owned()),
    };
    if let Some(killed) = killed.filter(|_| code != 0) {
        why = format!("{killed} ({why})");
    }
    let end = End { code, why, at: command.now() };
    after(&end);
    command.end.replace(Some(end.clone()));
    daemon.commands.end(&command);
    if let Some(tell) = tell {
        let _ = tell.send(end);
    }
}

fn signal_name(signal: i32) -> String {
    match signal {
        libc::SIGHUP => "hangup".into(),
        libc::SIGINT => "interrupt".into(),
        libc::SIGQUIT => "quit".into(),
        libc::SIGILL => "illegal instruction".into(),
        libc::SIGABRT => "aborted".into(),
        libc::SIGBUS => "bus error".into(),
        libc::SIGFPE => "floating point exception".into(),
        libc::SIGKILL => "killed".into(),
        libc::SIGSEGV => "segmentation fault".into(),
        libc::SIGPIPE => "broken pipe".into(),
        libc::SIGALRM => "alarm clock".into(),
        libc::SIGTERM => "terminated".into(),
        libc::SIGXCPU => "cpu time limit exceeded".into(),
        libc::SIGXFSZ => "file size limit exceeded".into(),
        libc::SIGSYS => "bad system call".into(),
        other => format!("number {other}"),
    }
}

/// `DELETE /command?id=`. Returns when the whole tree is gone; also takes what a command left behind when it ended.
pub(crate) async fn interrupt(daemon: &Daemon, id: &str) -> Result {
    let command = daemon.commands.get(id).or_else(|| daemon.sessions.current(id));
    let Some(command) = command else { return Err(no_command(id)) };
    if command.kill(daemon, "interrupted", tree::GRACE).await {
        Ok(crate::reply::empty())
    } else {
        Err(Problem::runtime(format!("command {id} is not running")))
    }
}

/// `GET /command/status/{id}`.
pub(crate) fn status(daemon: &Daemon, id: &str) -> Result {
    let command = daemon.commands.get(id).ok_or_else(|| no_command(id))?;
    Ok(crate::reply::json(&command.status()))
}

/// `GET /command/{id}/logs?cursor=`: what a background command printed since the cursor.
pub(crate) fn logs(daemon: &Daemon, id: &str, cursor: u64) -> Result {
    let command = daemon.commands.get(id).ok_or_else(|| Problem::parameter(format!("no command {id}")))?;
    if !command.background {
        return Err(Problem::parameter(format!("command {id} is no background command: its output was streamed")));
    }
    let Some(log) = command.log.borrow().clone() else {
        return Err(Problem::parameter(format!(
            "the log of command {id} was dropped: {LOGS_MOST} newer ones are kept"
        )));
    };
    let text =
        LogText::new(log, cursor, command.is_running()).map_err(|error| Problem::io("reading the log", &error))?;
    let end = text.end();
    let mut reply = Reply::new(Body::Log(text));
    let headers = reply.headers_mut();
    headers.insert(wire::execd::CURSOR_HEADER, end.into());
    headers.insert("content-type", hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(reply)
}

fn no_command(id: &str) -> Problem {
    Problem::no_context(format!("no command {id}: {ENDED_MOST} ended ones are remembered"))
}
