//! execd: the daemon inside a sandbox, its PID 1.
//!
//! It runs commands and works on files for whoever holds the sandbox's token, over OpenSandbox's HTTP
//! ([`wire::execd`]). One thread, plain pipes, no polling: a stream ends when its command has ended and what it wrote has
//! been sent. As PID 1 (or as a subreaper, anywhere else) it reaps every process, and it finds all processes of a
//! command wherever they have gone.
//!
//! A warm execd knows nothing: it is bound, once, when somebody claims its sandbox ([`wire::execd::Bind`]).

mod command;
mod daemon;
mod files;
mod metrics;
mod os;
mod reply;
mod request;
mod route;
mod scan;
mod server;
mod terminal;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rustix::net::AddressFamily;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use wire::execd::{Limits, Token};

use crate::command::env::Env;
use crate::daemon::Daemon;
use crate::os::reaper::Reaper;
use crate::os::{start, tree};
use crate::server::Listener;

/// How long processes may take to end by themselves when execd is told to end.
const GRACE: Duration = Duration::from_secs(1);

/// Where execd listens. All but an inherited socket are told in one line on stdout once they answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A new Unix socket, for this user alone.
    Unix(PathBuf),
    /// An address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// The number of a descriptor that listens already, Unix or TCP.
    Inherited(i32),
}

/// Who is let in before anybody binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody: it is warm, and waits for its [`wire::execd::Bind`].
    Bind,
    /// Who has this token. There is nothing to bind any more.
    Token(Token),
    /// Everybody who reaches the socket. There is nothing to bind any more.
    Open,
}

/// The token that our parent wrote to the descriptor `number`: up to its end, at most 4 KiB, without blanks around it.
pub fn token_from(number: i32) -> io::Result<Token> {
    let mut text = String::new();
    std::fs::File::from(start::inherited(number)?).take(4096).read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(io::Error::new(io::ErrorKind::InvalidData, "the token is empty")),
        token => Ok(Token::new(token)),
    }
}

/// Serves until SIGTERM or SIGINT; then ends every process below it, by force after a second, and returns.
///
/// Must be called before any other thread is started. Fails when it cannot listen.
pub fn run(listen: Listen, access: Access) -> io::Result<()> {
    start::lean_heap();
    let inherited = match listen {
        Listen::Inherited(number) => Some(start::inherited(number)?),
        Listen::Unix(_) | Listen::Tcp(_) => None,
    };
    let _occupied = start::own_descriptors(inherited.as_ref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(listen, inherited, access))
}

async fn serve(listen: Listen, inherited: Option<OwnedFd>, access: Access) -> io::Result<()> {
    Reaper::adopt_orphans()?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let environment = std::env::vars_os().filter(|(key, _)| key != "EXECD_ACCESS_TOKEN");
    let daemon = Rc::new(Daemon::new(environment)?);
    let limits = Limits::default();
    match access {
        Access::Bind => {}
        Access::Token(token) => daemon.settle(Some(token), Env::new(), None, limits),
        Access::Open => daemon.settle(None, Env::new(), None, limits),
    }
    let listener = match inherited {
        Some(socket) => adopt(socket)?,
        None => open(listen)?,
    };
    for kind in [SignalKind::hangup(), SignalKind::quit(), SignalKind::user_defined1(), SignalKind::user_defined2()] {
        daemon.spawn(forward(daemon.clone(), kind));
    }
    // A file over the limit is the writer's error, not our end. Commands do not inherit a handler.
    let _too_large = signal(SignalKind::from_raw(libc::SIGXFSZ))?;
    let serving = server::run(daemon.clone(), listener);
    tokio::select! {
        reaped = daemon.reaper.run() => reaped?,
        () = serving => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    end(&daemon).await;
    Ok(())
}

fn open(listen: Listen) -> io::Result<Listener> {
    match listen {
        Listen::Unix(path) => {
            let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
            let listener = UnixListener::bind(&path);
            rustix::process::umask(mask);
            tell(&format!("unix:{}", path.display()));
            Ok(Listener::Unix(listener?))
        }
        Listen::Tcp(at) => {
            let listener = std::net::TcpListener::bind(at)?;
            tell(&format!("tcp:{}", listener.local_addr()?));
            tcp(listener.into())
        }
        Listen::Inherited(number) => adopt(start::inherited(number)?),
    }
}

fn adopt(socket: OwnedFd) -> io::Result<Listener> {
    if rustix::net::getsockname(&socket)?.address_family() == AddressFamily::UNIX {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        return Ok(Listener::Unix(UnixListener::from_std(listener)?));
    }
    tcp(socket)
}

fn tcp(socket: OwnedFd) -> io::Result<Listener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(listener)?))
}

/// Whoever started us may wait for this line, or have closed the pipe.
fn tell(at: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "listening on {at}").and_then(|()| out.flush());
}

/// Passes a signal on to every running command's group, as a terminal would.
async fn forward(daemon: Rc<Daemon>, kind: SignalKind) {
    let Ok(mut signals) = signal(kind) else { return };
    let Some(signal) = rustix::process::Signal::from_named_raw(kind.as_raw_value()) else { return };
    while signals.recv().await.is_some() {
        for command in daemon.commands.running() {
            tree::forward(command.root(), signal);
        }
    }
}

/// Ends everything below us.
async fn end(daemon: &Daemon) {
    // The reaper's loop is over with the select above: this one takes its place.
    let reaping = daemon.reaper.run();
    let ending = async {
        let _ = daemon.workers.run(tree::terminate_all).await;
        if tokio::time::timeout(GRACE, daemon.reaper.childless()).await.is_err() {
            let _ = daemon.workers.run(tree::kill_all).await;
            let _ = tokio::time::timeout(GRACE, daemon.reaper.childless()).await;
        }
    };
    tokio::select! {
        _ = reaping => {}
        () = ending => {}
    }
}
