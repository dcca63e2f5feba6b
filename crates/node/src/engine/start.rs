//! The life of a sandbox: made warm, bound once, frozen and thawed, ended.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kit::ExposeSecret;
use rustix::process::{Pid, Resource};
use tokio::sync::oneshot;
use wire::node::{Bind, Create, Exit, ExitReason, Limits, Phase};

use super::sandbox::Sandbox;
use super::{Engine, blocking, freeze};
use crate::fault::point;
use crate::launcher::{self, Attach, Handle, Made, Rlimit, Start, Status};
use crate::proxy;
use crate::state::{Process, State, Step};
use crate::{Error, cgroup, sys};

/// How long a killed sandbox may take to be gone: the kernel has to tear it down.
pub(super) const END: Duration = Duration::from_secs(30);
/// Bytes of /tmp, and of /dev/shm.
const TMP: u64 = 512 << 20;
/// The environment that execd starts with, and so every command.
const ENVIRONMENT: &[(&str, &str)] =
    &[("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("LANG", "C.UTF-8")];
const LABELS: usize = 64;

impl Engine {
    /// A warm sandbox; the one that is there when the id is known already, and then `false`.
    pub(crate) async fn create(self: &Arc<Self>, asked: Create) -> Result<(wire::node::Sandbox, bool), Error> {
        if asked.image.as_deref().is_some_and(|it| it != "host") {
            return Err(Error::Rejected(format!("the image {:?} is not here; there is `host`", asked.image)));
        }
        check_labels(&asked.labels)?;
        let id = asked.id.unwrap_or_else(kit::id);
        check_id(&id)?;
        if self.ending.load(Ordering::Acquire) {
            return Err(Error::Ending);
        }

        let state = State {
            id: id.clone(),
            boot: self.boot.clone(),
            step: Step::Creating,
            process: None,
            slot: None,
            labels: asked.labels,
            limits: self.with_defaults(&asked.limits),
            hostname: id.clone(),
            workspace: None,
            token: None,
            created: self.clock.now().to_string(),
        };
        let (sandbox, new) = self.reserve(state)?;
        if !new {
            // Its start holds this.
            drop(sandbox.work.lock().await);
            return Ok((sandbox.view(), false));
        }

        // A caller who goes away in the middle changes nothing.
        let (said, started) = oneshot::channel();
        let engine = self.clone();
        self.tasks.tenant("sandbox", async move {
            let work = sandbox.work.lock().await;
            let done = engine.start(&sandbox).await;
            match done {
                Ok(made) => {
                    sandbox.live().phase = Phase::Running;
                    drop(work);
                    engine.changed(&sandbox);
                    let _ = said.send(Ok(sandbox.view()));
                    engine.watch(&sandbox, made.pidfd, Some(made.exit)).await;
                }
                Err(error) => {
                    engine.undo(&sandbox).await;
                    drop(work);
                    let _ = said.send(Err(error));
                }
            }
        });
        let view = started.await.map_err(Error::machine("start a sandbox"))??;
        Ok((view, true))
    }

    /// A place, and ids of its own, for a new sandbox; or the one that has the id, and `false`.
    fn reserve(&self, mut state: State) -> Result<(Arc<Sandbox>, bool), Error> {
        let mut map = self.map();
        if let Some(there) = map.get(&state.id) {
            return Ok((there.clone(), false));
        }
        state.slot = self.free(&map, &self.seats())?;
        let sandbox = Arc::new(Sandbox::new(self.dir(&state.id), state, false));
        map.insert(sandbox.id.clone(), sandbox.clone());
        Ok((sandbox, true))
    }

    async fn start(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Made, Error> {
        let mut state = sandbox.live().state.clone();
        let (dir, first) = (sandbox.dir.clone(), state.clone());
        let listener = blocking(move || {
            dir.write(&first)?;
            point("create: noted");
            dir.listen()
        })
        .await?
        .map_err(Error::disk("make a sandbox's directory"))?;
        point("create: listening");

        let mut made = self.make(sandbox, &state, &listener).await?;
        drop(listener);
        point("create: made");
        let process = Process::look(made.pid).map_err(Error::disk("look at a new process"))?;
        state.process = Some(process);
        state.step = Step::Running;
        sandbox.live().state = state.clone();
        let dir = sandbox.dir.clone();
        blocking(move || dir.write(&state)).await?.map_err(Error::disk("write a sandbox down"))?;
        point("create: written down");
        made.go().await.map_err(Error::machine("start execd in a sandbox"))?;
        point("create: started");
        let pidfd = made.pidfd.try_clone().map_err(Error::disk("hold a process"))?;
        sandbox.runs_as(pidfd);
        Ok(made)
    }

    async fn make(self: &Arc<Self>, sandbox: &Sandbox, state: &State, listener: &UnixListener) -> Result<Made, Error> {
        let limits = &state.limits;
        let mut rlimits = vec![(Rlimit::Core, 0), (Rlimit::Files, self.files)];
        // Where no control group does it, by process: weaker, and doctor says so.
        if !self.cgroups.limits_pids() {
            rlimits.extend(limits.pids.map(|it| (Rlimit::Processes, it.into())));
        }
        if !self.cgroups.limits_memory() {
            rlimits.extend(limits.memory.map(|it| (Rlimit::Data, it)));
        }
        let start = Start {
            hostname: state.hostname.clone(),
            ids: self.ids.map(state.slot),
            shift: self.ids.shift(),
            cgroups: self.cgroups.plan(&state.id, &groups(limits)),
            layer: limits.disk.unwrap_or(1 << 30),
            tmp: limits.disk.unwrap_or(TMP).min(TMP),
            rlimits,
            args: wire::node::init::ARGS.map(str::to_owned).to_vec(),
            env: ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            inherits: vec![wire::node::init::LISTEN_FD],
            probe: None,
            pod: None,
        };
        let fds = [listener.as_fd()];
        let mut launcher = self.launcher().await?;
        let mut made = launcher.start(start.clone(), &fds).await;
        if matches!(made, Err(launcher::Error::Gone)) {
            // It died since it was last looked at; the next one is asked once.
            launcher = self.launcher().await?;
            made = launcher.start(start, &fds).await;
        }
        let made = made.map_err(Error::machine("start a sandbox"))?;
        sandbox.started_by(&launcher);
        Ok(made)
    }

    /// Leaves nothing of a start that failed.
    async fn undo(self: &Arc<Self>, sandbox: &Sandbox) {
        // What was made and not let go ends by itself: its socket is closed. If it lives, its groups know it.
        self.cgroups.kill(&sandbox.id);
        self.clear(sandbox).await;
        sandbox.has_ended();
    }

    /// Removes groups and directory, and forgets it.
    pub(super) async fn clear(self: &Arc<Self>, sandbox: &Sandbox) {
        let has_disk = sandbox.live().disk;
        if has_disk && let Ok(launcher) = self.launcher().await {
            // Were it lost, the launcher's end would do the same.
            let _ = launcher.release(&sandbox.id).await;
        }
        if let Err(error) = self.cgroups.remove(&sandbox.id).await {
            tracing::error!(sandbox = sandbox.id, %error, "a control group stays until the next start");
        }
        point("end: groups removed");
        let dir = sandbox.dir.clone();
        if let Ok(Err(error)) = blocking(move || dir.remove()).await {
            tracing::error!(sandbox = sandbox.id, %error, "a directory stays until the next start");
        }
        sandbox.live().phase = Phase::Ended;
        self.map().remove(&sandbox.id);
    }

    /// Waits for the end of a sandbox, however it comes, and leaves nothing of it.
    pub(super) async fn watch(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        pidfd: OwnedFd,
        status: Option<oneshot::Receiver<Status>>,
    ) {
        let dead = match sys::watch(pidfd) {
            Ok(pidfd) => pidfd.readable().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = dead {
            // No descriptor left, for one. Better ended than unwatched.
            tracing::error!(sandbox = sandbox.id, %error, "cannot watch a sandbox; ending it");
            self.cgroups.kill(&sandbox.id);
        }
        point("end: ended");
        let status = match status {
            Some(said) => tokio::time::timeout(Duration::from_secs(1), said).await.ok().and_then(Result::ok),
            None => None,
        };
        let _work = sandbox.work.lock().await;
        let oom = self.cgroups.usage(&sandbox.id).oom_kills.is_some_and(|it| it > 0);
        let removed = {
            let mut live = sandbox.live();
            live.phase = Phase::Ending;
            live.removed
        };
        let (code, signal) = match status {
            Some(Status::Code(code)) => (Some(code), None),
            Some(Status::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        let reason = match (removed, oom, status) {
            (true, _, _) => ExitReason::Removed,
            (false, true, _) => ExitReason::OutOfMemory,
            (false, false, Some(_)) => ExitReason::Exited,
            (false, false, None) => ExitReason::Unknown,
        };
        sandbox.live().exit = Some(Exit { reason, code, signal, at: self.clock.now().to_string() });
        self.clear(sandbox).await;
        self.changed(sandbox);
        sandbox.has_ended();
    }

    /// Ends a sandbox; returns when nothing of it is left.
    pub(crate) async fn remove(&self, id: &str) -> Result<wire::node::Sandbox, Error> {
        let sandbox = self.find(id)?;
        self.remove_if(&sandbox, |_| true).await
    }

    /// Ends a sandbox, unless it was bound meanwhile.
    pub(super) async fn remove_unbound(&self, sandbox: &Sandbox) -> Result<wire::node::Sandbox, Error> {
        self.remove_if(sandbox, |bound| !bound).await
    }

    async fn remove_if(&self, sandbox: &Sandbox, test: impl Fn(bool) -> bool) -> Result<wire::node::Sandbox, Error> {
        let id = &sandbox.id;
        {
            let _work = sandbox.work.lock().await;
            let (state, frozen) = {
                let mut live = sandbox.live();
                if live.phase == Phase::Ended {
                    return Err(Error::Gone(id.clone()));
                }
                if !test(live.bound) {
                    return Err(Error::Conflict(format!("the sandbox {id} is bound")));
                }
                live.removed = true;
                live.state.step = Step::Ending;
                (live.state.clone(), std::mem::replace(&mut live.phase, Phase::Ending) == Phase::Frozen)
            };
            let dir = sandbox.dir.clone();
            // Not being able to write it down must not keep it alive: a full disk is when one removes things.
            if let Ok(Err(error)) = blocking(move || dir.write(&state)).await {
                tracing::warn!(sandbox = id, %error, "cannot write down that a sandbox ends");
            }
            point("end: noted");
            if let Some(pidfd) = sandbox.pidfd() {
                // The first process takes all others with it; the kernel waits for them.
                let _ = rustix::process::pidfd_send_signal(&*pidfd, rustix::process::Signal::KILL);
            }
            point("end: killed");
            if frozen {
                // Version 1 keeps even the killed frozen.
                let _ = self.thaw_all(sandbox).await;
            }
        }
        tokio::time::timeout(END, sandbox.ended()).await.map_err(Error::machine("see a killed sandbox end"))?;
        Ok(sandbox.view())
    }

    /// Makes a warm sandbox somebody's, once. When it fails in the middle, the sandbox is ended: nobody can say what it
    /// has got already.
    pub(crate) async fn bind(self: &Arc<Self>, id: &str, asked: Bind) -> Result<wire::node::Sandbox, Error> {
        check_labels(&asked.labels)?;
        if let Some(name) = &asked.hostname {
            check_hostname(name)?;
        }
        if asked.limits.disk.is_some() {
            return Err(Error::Rejected("limits.disk can only be given when a sandbox is created".into()));
        }
        let sandbox = self.find(id)?;
        let workspace = match asked.workspace.clone() {
            Some(it) => Some(self.workspace(it).await?),
            None => None,
        };
        let (said, bound) = oneshot::channel();
        let engine = self.clone();
        self.tasks.tenant("bind", async move {
            let done = engine.bind_now(&sandbox, asked, workspace).await;
            if let Err((error, true)) = &done {
                tracing::warn!(sandbox = sandbox.id, error = kit::chain(error), "a bind failed; ending the sandbox");
                let _ = engine.remove(&sandbox.id).await;
            }
            let _ = said.send(done.map(|()| sandbox.view()).map_err(|(error, _)| error));
        });
        bound.await.map_err(Error::machine("bind a sandbox"))?
    }

    /// The second half of an error: whether something was done already.
    async fn bind_now(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        asked: Bind,
        workspace: Option<launcher::Workspace>,
    ) -> Result<(), (Error, bool)> {
        let _work = sandbox.work.lock().await;
        let before = |error| (error, false);
        let midway = |error| (error, true);
        let token = kit::token();
        let (state, pid, pidfd) = {
            let live = sandbox.live();
            if live.bound || live.phase != Phase::Running {
                let what = if live.bound { "bound already".to_owned() } else { format!("{:?}", live.phase) };
                return Err(before(Error::Conflict(format!("the sandbox {} is {what}", sandbox.id))));
            }
            let (Some(process), Some(pidfd)) = (live.state.process, sandbox.pidfd()) else {
                return Err(before(Error::Gone(sandbox.id.clone())));
            };
            let mut state = live.state.clone();
            state.step = Step::Binding;
            state.labels.extend(asked.labels);
            state.workspace = asked.workspace;
            state.token = Some(token.expose_secret().to_owned());
            state.hostname = asked.hostname.clone().unwrap_or(state.hostname);
            state.limits = Limits {
                memory: asked.limits.memory.or(state.limits.memory),
                cpu: asked.limits.cpu.or(state.limits.cpu),
                pids: asked.limits.pids.or(state.limits.pids),
                disk: state.limits.disk,
            };
            (state, process.pid, pidfd)
        };
        self.write(sandbox, &state).await.map_err(before)?;
        point("bind: written down");
        let id = &sandbox.id;
        if workspace.as_ref().is_some_and(|it| !it.disk)
            && let Some(quota) = state.workspace.as_ref().and_then(|it| it.quota)
        {
            limit_files(pid, quota).map_err(Error::machine("limit the size of files")).map_err(midway)?;
        }
        self.cgroups.limit(id, &groups(&asked.limits)).map_err(Error::machine("set the limits")).map_err(midway)?;
        if workspace.is_some() || asked.hostname.is_some() {
            let id = id.clone();
            let attach = Attach { id, pid, workspace, shift: self.ids.shift(), hostname: asked.hostname };
            sandbox.live().disk = attach.workspace.as_ref().is_some_and(|it| it.disk);
            self.attach(sandbox, attach, &pidfd).await.map_err(midway)?;
        }
        point("bind: attached");
        let bind = wire::execd::Bind {
            generation: wire::execd::GENERATION,
            token: wire::execd::Token::new(token.expose_secret()),
            env: asked.env,
            cwd: Some(asked.cwd.unwrap_or_else(|| "/workspace".into())),
            limits: wire::execd::Limits {
                memory_bytes: state.limits.memory,
                cpus: state.limits.cpu.map(|it| f64::from(it) / 1000.0),
            },
        };
        proxy::bind(sandbox, &self.tasks, &bind).await.map_err(midway)?;
        point("bind: bound");
        let state = State { step: Step::Bound, ..state };
        self.write(sandbox, &state).await.map_err(midway)?;
        sandbox.live().bound = true;
        self.changed(sandbox);
        Ok(())
    }

    async fn attach(self: &Arc<Self>, sandbox: &Sandbox, attach: Attach, pidfd: &OwnedFd) -> Result<(), Error> {
        let mut launcher = self.launcher().await?;
        let mut done = self.attach_by(&launcher, sandbox, attach.clone(), pidfd).await?;
        if matches!(done, Err(launcher::Error::Gone)) {
            launcher = self.launcher().await?;
            done = self.attach_by(&launcher, sandbox, attach, pidfd).await?;
        }
        done.map_err(Error::machine("attach the workspace"))
    }

    async fn attach_by(
        &self,
        launcher: &Arc<Handle>,
        sandbox: &Sandbox,
        attach: Attach,
        pidfd: &OwnedFd,
    ) -> Result<Result<(), launcher::Error>, Error> {
        if !self.can_enter(launcher, sandbox) {
            // As if it had been ended a moment ago, which it would have been.
            return Err(Error::Gone(sandbox.id.clone()));
        }
        Ok(launcher.attach(attach, pidfd.as_fd()).await)
    }

    async fn write(&self, sandbox: &Sandbox, state: &State) -> Result<(), Error> {
        let (dir, text) = (sandbox.dir.clone(), state.clone());
        blocking(move || dir.write(&text)).await?.map_err(Error::disk("write a sandbox down"))?;
        sandbox.live().state = state.clone();
        Ok(())
    }

    /// Stops (or continues) every process of a sandbox where it stands. Idempotent.
    pub(crate) async fn freeze(&self, id: &str, frozen: bool) -> Result<wire::node::Sandbox, Error> {
        let sandbox = self.find(id)?;
        let _work = sandbox.work.lock().await;
        let (from, to) = if frozen { (Phase::Running, Phase::Frozen) } else { (Phase::Frozen, Phase::Running) };
        let now = sandbox.live().phase;
        if now == to {
            return Ok(sandbox.view());
        }
        if now != from {
            return Err(Error::Conflict(format!("the sandbox {id} is {now:?}")));
        }
        let done = if self.cgroups.freezes() {
            self.cgroups.freeze(id, frozen).await
        } else {
            freeze::signal(&sandbox, frozen)
        };
        if let Err(error) = done {
            // Half frozen is worst.
            let _ = self.thaw_all(&sandbox).await;
            return Err(Error::machine(if frozen { "freeze a sandbox" } else { "thaw a sandbox" })(error));
        }
        sandbox.live().phase = to;
        self.changed(&sandbox);
        Ok(sandbox.view())
    }

    pub(super) async fn thaw_all(&self, sandbox: &Sandbox) -> std::io::Result<()> {
        if self.cgroups.freezes() {
            self.cgroups.freeze(&sandbox.id, false).await
        } else {
            freeze::signal(sandbox, false)
        }
    }

    pub(super) fn changed(&self, sandbox: &Sandbox) {
        let _ = self.changes.send(sandbox.view());
    }
}

/// Bounds each file that a sandbox writes, where its workspace is only counted: one call can make a file of any size, long
/// before anybody counts.
fn limit_files(pid: i32, bytes: u64) -> std::io::Result<()> {
    // Ours is what it was started with.
    let bytes = rustix::process::getrlimit(Resource::Fsize).maximum.map_or(bytes, |top| top.min(bytes));
    let limit = rustix::process::Rlimit { current: Some(bytes), maximum: Some(bytes) };
    rustix::process::prlimit(Pid::from_raw(pid), Resource::Fsize, limit)?;
    Ok(())
}

pub(super) fn groups(limits: &Limits) -> cgroup::Limits {
    cgroup::Limits { memory: limits.memory, cpu: limits.cpu, pids: limits.pids }
}

fn check_id(id: &str) -> Result<(), Error> {
    let fits = (1..=40).contains(&id.len())
        && id.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'-')
        && !id.starts_with('-');
    if fits { Ok(()) } else { Err(Error::Rejected(format!("{id:?} is no id: 1 to 40 of a-z, 0-9 and -"))) }
}

fn check_hostname(name: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-' || it == b'.')
        && !name.starts_with(['-', '.']);
    if fits { Ok(()) } else { Err(Error::Rejected(format!("{name:?} is no host name"))) }
}

fn check_labels(labels: &std::collections::BTreeMap<String, String>) -> Result<(), Error> {
    let fits = labels.len() <= LABELS && labels.iter().all(|(name, value)| name.len() <= 317 && value.len() <= 1024);
    if fits { Ok(()) } else { Err(Error::Rejected(format!("more than {LABELS} labels, or one too long"))) }
}
