//! What all requests share.

use std::cell::{OnceCell, RefCell, RefMut};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hyper::StatusCode;
use rustix::process::{Resource, Rlimit};
use tokio::net::unix::pipe::Receiver;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use wire::execd::{Bind, Bound, GENERATION, Limits, Token, code};

use crate::command::env::{self, Env};
use crate::command::journal::Journal;
use crate::command::session::Sessions;
use crate::command::{Commands, forget};
use crate::metrics::Meter;
use crate::os::reaper::Reaper;
use crate::os::workers::Workers;
use crate::reply::{Problem, Result, json};
use crate::terminal::Terminals;

/// Pipes that children left behind write to and that nobody reads: at most so many are emptied.
const FORGOTTEN_MOST: usize = 64;
/// The longest path that the kernel takes, with its NUL.
const LONGEST_PATH: usize = 4096;

/// What this process holds for its whole life. One thread works with it.
pub(crate) struct Daemon {
    settings: OnceCell<Settings>,
    base: Env,
    pub commands: Commands,
    pub sessions: Sessions,
    pub terminals: Terminals,
    pub journal: Journal,
    pub reaper: Reaper,
    pub workers: Workers,
    pub meter: Meter,
    pub started: Instant,
    /// `/dev/null`, opened while it surely was one.
    pub null: OwnedFd,
    /// The limit on descriptors that commands get.
    pub files: Rlimit,
    scratch: RefCell<Vec<u8>>,
    forgotten: RefCell<VecDeque<AbortHandle>>,
}

/// What is known once execd is bound.
struct Settings {
    /// None: whoever reaches the socket may do everything.
    token: Option<Token>,
    env: Env,
    cwd: PathBuf,
    limits: Limits,
}

impl Daemon {
    /// `environment` is what commands inherit under everything else.
    pub(crate) fn new(environment: impl Iterator<Item = (OsString, OsString)>) -> io::Result<Self> {
        let mut base: Env = environment.collect();
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        base.entry("PATH".into()).or_insert_with(|| path.into());
        base.entry("HOME".into()).or_insert_with(|| "/root".into());
        let files = rustix::process::getrlimit(Resource::Nofile);
        // Ours may be as high as it can be; where not even that is allowed, the old one must do.
        let raised = Rlimit { current: files.maximum, maximum: files.maximum };
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
        Ok(Self {
            settings: OnceCell::new(),
            base,
            commands: Commands::default(),
            sessions: Sessions::default(),
            terminals: Terminals::default(),
            journal: Journal::default(),
            reaper: Reaper::default(),
            workers: Workers::default(),
            meter: Meter::default(),
            started: Instant::now(),
            null: OpenOptions::new().read(true).write(true).open("/dev/null")?.into(),
            files,
            scratch: RefCell::default(),
            forgotten: RefCell::default(),
        })
    }

    /// Spawns a task of one command or connection. A panic in it is its own.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        tokio::task::spawn_local(task).abort_handle()
    }

    /// The buffer into which everything is read before it is turned into something else; never held over an await.
    pub(crate) fn scratch(&self, size: usize) -> RefMut<'_, Vec<u8>> {
        let mut scratch = self.scratch.borrow_mut();
        if scratch.len() < size {
            scratch.resize(size, 0);
        }
        scratch
    }

    /// Empties a pipe that only strangers write to, so that they neither die of it nor wait for it.
    pub(crate) fn discard(self: &Rc<Self>, pipe: Receiver) {
        let task = self.spawn(forget(self.clone(), pipe));
        let mut forgotten = self.forgotten.borrow_mut();
        forgotten.retain(|task| !task.is_finished());
        if forgotten.len() >= FORGOTTEN_MOST
            && let Some(oldest) = forgotten.pop_front()
        {
            oldest.abort();
        }
        forgotten.push_back(task);
    }

    /// `POST /insula/v1/bind`: once.
    pub(crate) fn bind(&self, bind: Bind) -> Result {
        if bind.generation != GENERATION {
            let why = format!("this execd is of generation {GENERATION}, the request of {}", bind.generation);
            return Err(Problem::invalid(why));
        }
        if bind.token.expose().is_empty() {
            return Err(Problem::invalid("the token is empty"));
        }
        if let Some(key) =
            bind.env.iter().find(|(key, value)| key.is_empty() || key.contains(['=', '\0']) || value.contains('\0'))
        {
            return Err(Problem::invalid(format!("env: {:?} cannot be in an environment", key.0)));
        }
        if self.settings.get().is_some() {
            return Err(Problem::new(StatusCode::CONFLICT, code::ALREADY_BOUND, "this execd is bound already"));
        }
        let env: Env = bind.env.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let cwd = bind.cwd.filter(|cwd| !cwd.is_empty()).map(PathBuf::from);
        if let Some(cwd) = &cwd {
            std::fs::create_dir_all(cwd).map_err(|error| Problem::io(&format!("cwd {}", cwd.display()), &error))?;
        }
        self.settle(Some(bind.token), env, cwd, bind.limits);
        Ok(json(&Bound { generation: GENERATION }))
    }

    /// Binds without a request: at the start of one that is not warmed up for somebody later.
    pub(crate) fn settle(&self, token: Option<Token>, env: Env, cwd: Option<PathBuf>, limits: Limits) {
        let cwd = cwd.or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| "/".into());
        let _ = self.settings.set(Settings { token, env, cwd, limits });
    }

    /// Whether a request with this token may do anything.
    pub(crate) fn admit(&self, token: Option<&[u8]>) -> Result<()> {
        let Some(settings) = self.settings.get() else {
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, code::NOT_BOUND, "this execd is not bound yet"));
        };
        let given = token.unwrap_or_default();
        if settings.token.as_ref().is_none_or(|token| same(token.expose().as_bytes(), given)) {
            return Ok(());
        }
        let why = format!("invalid or missing header {}", wire::execd::TOKEN_HEADER);
        Err(Problem::new(StatusCode::UNAUTHORIZED, code::UNAUTHORIZED, why))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.settings.get().map(|settings| settings.limits).unwrap_or_default()
    }

    /// What a command gets that asks for nothing: execd's own environment, under the bound one, under the file's.
    pub(crate) fn environment(&self) -> Env {
        let mut env = self.base.clone();
        if let Some(settings) = self.settings.get() {
            env.extend(settings.env.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        env::add_file(&mut env);
        env
    }

    /// The directory of a command: as asked, or the bound one.
    pub(crate) fn working_directory(&self, asked: Option<&str>, env: &Env) -> Result<PathBuf> {
        let cwd = match asked.filter(|cwd| !cwd.is_empty()) {
            None => self.cwd().to_owned(),
            Some(cwd) => {
                let unknown = |_| Problem::invalid(format!("cwd {cwd}: a variable in it is not set"));
                let filled = env::expand(cwd.as_bytes(), env).map_err(unknown)?;
                self.absolute(&filled)?
            }
        };
        match std::fs::metadata(&cwd) {
            Ok(about) if about.is_dir() => Ok(cwd),
            Ok(_) => Err(Problem::invalid(format!("cwd {} is no directory", cwd.display()))),
            Err(error) => Err(Problem::invalid(format!("cwd {}: {error}", cwd.display()))),
        }
    }

    /// A path of the file API: `~` and known `$NAME`s filled, made absolute.
    pub(crate) fn expand(&self, raw: &[u8], env: &Env) -> Result<PathBuf> {
        if raw.is_empty() {
            return Err(Problem::parameter("a path is empty"));
        }
        let filled = env::expand(raw, env).unwrap_or_else(|as_written| as_written);
        self.absolute(&filled)
    }

    fn absolute(&self, path: &OsStr) -> Result<PathBuf> {
        if path.as_bytes().contains(&0) {
            return Err(Problem::parameter("a path holds a NUL"));
        }
        let path = self.cwd().join(path);
        if path.as_os_str().len() >= LONGEST_PATH {
            return Err(Problem::parameter(format!("a path is over {} bytes", LONGEST_PATH - 1)));
        }
        Ok(path)
    }

    fn cwd(&self) -> &Path {
        self.settings.get().map_or_else(|| Path::new("/"), |settings| &settings.cwd)
    }
}

/// Compares in a time that tells nothing of where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
