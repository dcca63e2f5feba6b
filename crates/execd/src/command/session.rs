//! Sessions: commands one after the other that share exported variables and a working directory.
//!
//! Each run is a shell of its own. At its end, however it comes about, the shell writes its state to a file in memory
//! that only it and we hold; what cannot be read leaves the state as it was.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use wire::execd::{CreateSession, RunInSession, Session as Created};

use crate::daemon::Daemon;
use crate::os;
use crate::os::spawn::STATE_FD;
use crate::os::tree::Mark;
use crate::reply::{Body, Problem, Result, empty, events, json};

use super::env::Env;
use super::output::{Output, not_started};
use super::{Command, Launch, Unstarted, foreground, memory, shell};

const MOST: usize = 256;
/// A state longer than this is not taken over.
const LONGEST_STATE: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Sessions(RefCell<HashMap<String, Rc<Session>>>);

pub(crate) struct Session {
    env: RefCell<Env>,
    cwd: RefCell<PathBuf>,
    /// One for all its runs: what they leave behind goes with the session.
    mark: Option<Mark>,
    current: RefCell<Option<Rc<Command>>>,
}

impl Sessions {
    fn get(&self, id: &str) -> Result<Rc<Session>> {
        self.0.borrow().get(id).cloned().ok_or_else(|| Problem::no_context(format!("no session {id}")))
    }

    /// The last command of session `id`.
    pub(crate) fn current(&self, id: &str) -> Option<Rc<Command>> {
        self.0.borrow().get(id).and_then(|session| session.current.borrow().clone())
    }
}

/// `POST /session`.
pub(crate) fn create(daemon: &Daemon, request: &CreateSession) -> Result {
    let env = daemon.environment();
    if let Some(cwd) = request.cwd.as_deref().filter(|cwd| !cwd.is_empty()) {
        let path = daemon.expand(cwd.as_bytes(), &env)?;
        std::fs::create_dir_all(&path).map_err(|error| Problem::io("making the session's directory", &error))?;
    }
    let cwd = daemon.working_directory(request.cwd.as_deref(), &env)?;
    let mut all = daemon.sessions.0.borrow_mut();
    if all.len() >= MOST {
        return Err(Problem::too_many(format!("there are {MOST} sessions: delete one")));
    }
    let id = os::id();
    let session =
        Session { env: RefCell::new(env), cwd: RefCell::new(cwd), mark: Mark::fresh(), current: RefCell::new(None) };
    all.insert(id.clone(), Rc::new(session));
    Ok(json(&Created { session_id: id }))
}

/// `POST /session/{id}/run`.
pub(crate) fn run(daemon: Rc<Daemon>, id: String, request: &RunInSession) -> Result {
    let session = daemon.sessions.get(&id)?;
    if request.command.trim().is_empty() {
        return Err(Problem::invalid("command must not be empty"));
    }
    if session.current.borrow().as_ref().is_some_and(|command| command.is_running()) {
        return Err(Problem::runtime("session is busy: its last command is still running"));
    }
    let env = session.env.borrow().clone();
    let cwd = match request.cwd.as_deref().filter(|cwd| !cwd.is_empty()) {
        Some(cwd) => daemon.working_directory(Some(cwd), &env)?,
        None => session.cwd.borrow().clone(),
    };
    if !cwd.is_dir() {
        return Err(Problem::invalid(format!("the session's directory {} is gone", cwd.display())));
    }
    // The trap comes first, so that `exit` in the middle of the command keeps the state too.
    let script =
        format!("trap '{{ printf \"%s\\0\" \"$PWD\"; env -0; }} >&{STATE_FD} 2>/dev/null' EXIT\n{}\n", request.command);
    let mut extra = Vec::new();
    let (program, args) = shell(&env, &script, &mut extra)?;
    let io = |error| Problem::io("keeping the session's state", &error);
    let state = memory(&[]).map_err(io)?;
    extra.push((state.try_clone().map_err(io)?, STATE_FD));
    let launch =
        Launch { content: request.command.clone(), program, args, cwd, env, identity: None, mark: session.mark, extra };
    let timeout = request.timeout.filter(|ms| *ms > 0).map(Duration::from_millis);
    let kept = session.clone();
    let after = Box::new(move |_: &super::End| kept.take_over(&state));
    match foreground(&daemon, os::id(), launch, timeout, true, after) {
        Ok(followed) => {
            session.current.replace(Some(followed.started.command.clone()));
            Ok(events(Body::Output(Box::new(Output::new(daemon, followed, id)))))
        }
        Err(Unstarted::Program(code, why)) => Ok(events(Body::Full(Some(not_started(&id, code, &why))))),
        Err(Unstarted::Problem(problem)) => Err(problem),
    }
}

/// `DELETE /session/{id}`: ends what runs in it and what its runs left behind.
pub(crate) async fn delete(daemon: &Daemon, id: &str) -> Result {
    let session = daemon.sessions.get(id)?;
    daemon.sessions.0.borrow_mut().remove(id);
    let last = session.current.borrow().clone();
    if let Some(command) = last {
        command.kill(daemon, "its session was deleted", Duration::ZERO).await;
    }
    Ok(empty())
}

impl Session {
    fn take_over(&self, state: &OwnedFd) {
        let size = rustix::fs::fstat(state).map_or(0, |about| about.st_size);
        let Some(size) = usize::try_from(size).ok().filter(|size| *size <= LONGEST_STATE) else { return };
        let mut text = vec![0; size];
        let Ok(length) = rustix::io::pread(state, &mut text, 0) else { return };
        text.truncate(length);
        if let Some((cwd, env)) = parse(&text) {
            self.cwd.replace(cwd);
            self.env.replace(env);
        }
    }
}

/// The working directory and the variables, each with a NUL behind it.
fn parse(state: &[u8]) -> Option<(PathBuf, Env)> {
    let mut fields = state.strip_suffix(&[0])?.split(|&byte| byte == 0);
    let cwd = fields.next().filter(|cwd| cwd.starts_with(b"/"))?;
    let mut env = Env::new();
    for field in fields {
        let at = field.iter().position(|&byte| byte == b'=').filter(|&at| at > 0)?;
        let (key, value) = field.split_at(at);
        // The shell's own, which would count up or point at the command that wrote the state.
        if !matches!(key, b"_" | b"SHLVL") {
            env.insert(OsString::from_vec(key.to_vec()), OsStr::from_bytes(value.get(1..)?).to_owned());
        }
    }
    (!env.is_empty()).then(|| (PathBuf::from(OsStr::from_bytes(cwd)), env))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_whole_or_not_at_all() {
        let (cwd, env) = parse(b"/a\nb\0X=1\0Y=a=b\nc\0_=x\0SHLVL=2\0").unwrap();
        assert_eq!(cwd, PathBuf::from("/a\nb"));
        assert_eq!(env.into_iter().collect::<Vec<_>>(), [("X".into(), "1".into()), ("Y".into(), "a=b\nc".into())]);
        for broken in [&b""[..], b"\0", b"/a\0", b"a\0X=1\0", b"/a\0X=1", b"/a\0X\0"] {
            assert!(parse(broken).is_none(), "{broken:?}");
        }
    }
}
