//! The sandboxes of one node: what makes, changes and ends them.

mod adopt;
mod freeze;
mod ids;
pub(crate) mod pods;
mod sandbox;
mod start;
mod stats;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kit::{Clock, Tasks};
use rustix::process::{Resource, Rlimit};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, watch};
use wire::node::{Limits, Phase, Workspace};

pub(crate) use ids::{Ids, is_root, open_launcher};
pub(crate) use sandbox::Sandbox;

use pods::Seat;

use crate::cgroup::Cgroups;
use crate::doctor::{self, Finding};
use crate::image::{ImageMap, Images};
use crate::launcher::{self, Handle};
use crate::quota::Formatter;
use crate::state::Dir;
use crate::{Error, Guards, sys};

/// Before a launcher that went unasked is replaced unasked; whoever needs one does not wait for that.
const AGAIN: Duration = Duration::from_secs(1);
/// Descriptors that a process of a sandbox may have.
///
/// The kernel counts descriptors that are in flight in Unix sockets per user, lets a user have as many as the *sender's*
/// limit, and an ordinary user's sandboxes are all his. So theirs must stay well below ours, or one could have so many in
/// flight that the launcher is refused. 4,096 is four times what programs find by default and leaves room for those that
/// raise it (bundlers, test runners, servers), and a machine gives its users far more (20,000 to 1,048,576).
const FILES: u64 = 4096;
/// Changes that a watcher may lag behind before it is cut off.
const CHANGES: usize = 1024;

/// What a node is given.
#[derive(Clone)]
pub struct Options {
    /// Its directory; made when it is not there. One node at a time works in it.
    pub data: PathBuf,
    /// execd: a static program, started as the first process of every sandbox.
    pub execd: PathBuf,
    /// A program whose `main` calls [`crate::launcher_main`] first: `/proc/self/exe` where that is this one.
    pub launcher: PathBuf,
    pub clock: Clock,
    pub tasks: Tasks,
    /// What a sandbox may use when nothing is said.
    pub limits: Limits,
    /// Most sandboxes at once.
    pub most: usize,
    pub guards: Guards,
    /// What names of images mean here.
    pub image_map: ImageMap,
}

impl Options {
    /// 2 GiB of memory, 1 GiB of writable layer, 1,024 processes, all processors; 4,096 sandboxes.
    pub fn new(data: impl Into<PathBuf>, execd: impl Into<PathBuf>, clock: Clock, tasks: Tasks) -> Self {
        Self {
            data: data.into(),
            execd: execd.into(),
            launcher: "/proc/self/exe".into(),
            clock,
            tasks,
            limits: Limits { memory: Some(2 << 30), cpu: None, pids: Some(1024), disk: Some(1 << 30) },
            most: 4096,
            guards: Guards::all(),
            image_map: ImageMap::default(),
        }
    }
}

/// Shared by everybody who talks to the node.
pub(crate) struct Engine {
    pub clock: Clock,
    pub tasks: Tasks,
    defaults: Limits,
    /// Descriptors that a process of a sandbox may have.
    pub files: u64,
    most: usize,
    sandboxes: PathBuf,
    pub boot: String,
    program: PathBuf,
    setup: launcher::Setup,
    pub ids: Ids,
    launcher: tokio::sync::Mutex<Option<Arc<Handle>>>,
    pub cgroups: Cgroups,
    map: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    /// What the pods have of what sandboxes have too.
    seats: Mutex<BTreeMap<String, Seat>>,
    pub changes: broadcast::Sender<wire::node::Sandbox>,
    ending: AtomicBool,
    formatter: Option<Formatter>,
    /// The same, for volumes of claims: everybody may write to them.
    volumes: Option<Formatter>,
    pub images: Images,
    found: tokio::sync::OnceCell<Vec<Finding>>,
    /// What doctor finds of gVisor, once it was tried.
    sentry: watch::Sender<Option<Finding>>,
    /// Held while that is found out.
    sentry_tried: tokio::sync::Mutex<()>,
    /// Held for as long as this node lives; the kernel lets go of it with the process.
    _lock: fs::File,
}

impl Engine {
    /// Takes the directory, starts the launcher, and adopts or ends what an earlier node left.
    pub(crate) async fn open(options: Options) -> Result<Arc<Self>, Error> {
        let Options { data, execd, launcher: program, clock, tasks, limits, most, guards, image_map } = options;
        let files = FILES.min(raise_files() / 2);
        let (stage, sandboxes) = (data.join("stage"), data.join("sandboxes"));
        for dir in [&data, &stage, &sandboxes] {
            fs::create_dir_all(dir).map_err(Error::disk(format!("make {}", dir.display())))?;
        }
        // Nobody else on this machine has any business in it: tokens are in there, and files of others' ids.
        fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(Error::disk(format!("close {} to others", data.display())))?;
        let data = data.canonicalize().map_err(Error::disk(format!("find {}", data.display())))?;
        let lock = take_lock(&data.join("lock")).await?;
        sweep(&data).map_err(Error::disk(format!("clear {}", data.display())))?;
        let execd = execd.canonicalize().map_err(Error::disk(format!("find {}", execd.display())))?;

        let runsc = doctor::runsc();
        let opened = ids::open_launcher(&program, &data, Some(&execd), runsc.as_deref(), guards);
        let (ids, handle, listen, setup) = opened.await?;
        let images = data.join("images");
        let opened =
            Images::open(images.clone(), image_map, Default::default(), clock.clone(), tasks.shutdown().clone());
        let images = opened.map_err(Error::disk(format!("open the images in {}", images.display())))?;
        let owner = ids.on_disk(0);
        let engine = Arc::new(Self {
            clock,
            defaults: limits,
            files,
            most,
            sandboxes: data.join("sandboxes"),
            boot: crate::state::boot(),
            program,
            setup,
            ids,
            launcher: tokio::sync::Mutex::new(Some(Arc::new(handle))),
            cgroups: Cgroups::find(&format!("insula-{}", name_of(&data))),
            map: Mutex::default(),
            seats: Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
            ending: AtomicBool::new(false),
            formatter: Formatter::find(data.join("templates"), 0o755, None),
            volumes: Formatter::find(data.join("templates/volumes"), 0o777, owner),
            images,
            found: tokio::sync::OnceCell::new(),
            sentry: watch::Sender::new(None),
            sentry_tried: tokio::sync::Mutex::default(),
            _lock: lock,
            tasks: tasks.clone(),
        });
        engine.keep_launcher(listen);
        engine.adopt_all().await?;

        // Known before the first workspace is asked for.
        let trying = engine.clone();
        tasks.tenant("node doctor", async move {
            trying.findings().await;
        });
        let (ending, shutdown) = (engine.clone(), tasks.shutdown().clone());
        tasks.tenant("node", async move {
            shutdown.begun().await;
            ending.end().await;
        });
        Ok(engine)
    }

    /// What doctor finds here; tried at the first question.
    pub(crate) async fn findings(&self) -> &[Finding] {
        let scratch = self.setup.lock.parent().unwrap_or_else(|| Path::new("/tmp"));
        self.found.get_or_init(|| doctor::look(&self.program, scratch)).await
    }

    /// Whether gVisor runs programs here; tried at the first question, and again at the next one if it did not.
    pub(crate) async fn sentry(&self) -> Finding {
        let known = || self.sentry.borrow().clone().filter(|it| it.ok || self.setup.runsc.is_none());
        if let Some(it) = known() {
            return it;
        }
        let _tried = self.sentry_tried.lock().await;
        if let Some(it) = known() {
            return it;
        }
        let scratch = self.setup.lock.parent().unwrap_or_else(|| Path::new("/tmp"));
        let found = doctor::sentry(&self.program, scratch, self.setup.runsc.as_deref()).await;
        self.sentry.send_replace(Some(found.clone()));
        found
    }

    /// The same, as far as it is known now.
    pub(crate) fn sentry_so_far(&self) -> Finding {
        self.sentry.borrow().clone().unwrap_or_else(|| match &self.setup.runsc {
            None => doctor::no_sentry(),
            Some(at) => Finding { name: "runsc", ok: false, why: format!("{} was not tried yet", at.display()) },
        })
    }

    /// There is a program that could be gVisor's.
    pub(crate) fn has_runsc(&self) -> bool {
        self.setup.runsc.is_some()
    }

    fn map(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Sandbox>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        self.map().get(id).cloned().ok_or_else(|| Error::Gone(id.to_owned()))
    }

    /// The bound sandbox with these labels; one that runs where several have them.
    pub(crate) fn bound_with(&self, labels: &[(&str, &str)]) -> Option<Arc<Sandbox>> {
        let all: Vec<_> = self.map().values().cloned().collect();
        let has = |it: &&Arc<Sandbox>| {
            let live = it.live();
            let given = &live.state.labels;
            live.bound && labels.iter().all(|(name, value)| given.get(*name).is_some_and(|it| it == value))
        };
        all.iter().filter(has).max_by_key(|it| it.live().phase == Phase::Running).cloned()
    }

    pub(crate) fn list(&self) -> Vec<wire::node::Sandbox> {
        let all: Vec<_> = self.map().values().cloned().collect();
        all.iter().map(|it| it.view()).collect()
    }

    /// Where everything of the node is kept.
    pub(crate) fn directory(&self) -> &Path {
        self.sandboxes.parent().unwrap_or(&self.sandboxes)
    }

    fn dir(&self, id: &str) -> Dir {
        Dir::of(&self.sandboxes, id)
    }

    /// Listens to a launcher, and starts another one when it has gone unasked: without one, nobody would end the sandboxes
    /// if this node died.
    fn keep_launcher(self: &Arc<Self>, listen: impl Future<Output = ()> + Send + 'static) {
        let engine = self.clone();
        self.tasks.tenant("launcher", async move {
            listen.await;
            if engine.ending.load(Ordering::Acquire) {
                return;
            }
            tokio::time::sleep(AGAIN).await;
            if let Err(error) = engine.launcher().await {
                tracing::error!(error = kit::chain(&error), "no launcher");
            }
        });
    }

    /// The launcher; started again when it is gone, and then told about every sandbox that lives.
    pub(crate) async fn launcher(self: &Arc<Self>) -> Result<Arc<Handle>, Error> {
        let mut slot = self.launcher.lock().await;
        if let Some(handle) = slot.as_ref().filter(|it| it.lives()) {
            return Ok(handle.clone());
        }
        if self.ending.load(Ordering::Acquire) {
            return Err(Error::Ending);
        }
        tracing::warn!("the launcher is gone; starting another one");
        let (handle, listen) = ids::reopen_launcher(&self.program, &self.setup).await?;
        self.keep_launcher(listen);
        let handle = Arc::new(handle);
        for (pidfd, dirs) in self.living_pods() {
            let adopted = handle.adopt(pidfd.as_fd(), dirs).await;
            adopted.map_err(Error::machine("hand a pod to the new launcher"))?;
        }
        let living: Vec<_> = self.map().values().cloned().collect();
        for it in living {
            if let Some(pidfd) = it.pidfd() {
                let adopted = handle.adopt(pidfd.as_fd(), self.cgroups.dirs(&it.id)).await;
                adopted.map_err(Error::machine("hand a sandbox to the new launcher"))?;
            }
        }
        *slot = Some(handle.clone());
        if !self.enters_strangers() {
            self.end_unbindable(&handle);
        }
        Ok(handle)
    }

    /// Whether a launcher can enter what another one has started. An ordinary user's cannot: each has a user namespace of
    /// its own, and in its sisters' children it has no rights.
    fn enters_strangers(&self) -> bool {
        self.setup.rootless.is_none()
    }

    /// Whether this launcher can give a sandbox its workspace.
    fn can_enter(&self, launcher: &Arc<Handle>, sandbox: &Sandbox) -> bool {
        self.enters_strangers() || sandbox.is_of(launcher)
    }

    /// Ends the warm sandboxes that a dead launcher has left, which nobody could bind any more.
    fn end_unbindable(self: &Arc<Self>, launcher: &Arc<Handle>) {
        let all: Vec<_> = self.map().values().cloned().collect();
        for it in all.into_iter().filter(|it| it.has_launcher() && !it.live().bound && !it.is_of(launcher)) {
            let engine = self.clone();
            self.tasks.tenant("sandbox end", async move {
                match engine.remove_unbound(&it).await {
                    Ok(_) | Err(Error::Gone(_) | Error::Conflict(_)) => {}
                    Err(error) => {
                        tracing::warn!(sandbox = it.id, error = kit::chain(&error), "cannot end a sandbox");
                    }
                }
            });
        }
    }

    /// Ends every sandbox, and then the launcher. Nothing is made any more.
    async fn end(&self) {
        self.ending.store(true, Ordering::Release);
        let all: Vec<_> = self.map().keys().cloned().collect();
        let ends = all.iter().map(|id| async move {
            if let Err(error) = self.remove(id).await
                && !matches!(error, Error::Gone(_))
            {
                tracing::error!(sandbox = id, error = kit::chain(&error), "cannot end a sandbox");
            }
        });
        futures::future::join_all(ends).await;
        self.cgroups.close();
        *self.launcher.lock().await = None;
    }

    /// Both as asked, with the node's defaults where nothing was.
    fn with_defaults(&self, asked: &Limits) -> Limits {
        Limits {
            memory: asked.memory.or(self.defaults.memory),
            cpu: asked.cpu.or(self.defaults.cpu),
            pids: asked.pids.or(self.defaults.pids),
            disk: asked.disk.or(self.defaults.disk),
        }
    }

    /// Makes a workspace as it is asked for: with a hard bound where that can be.
    async fn workspace(self: &Arc<Self>, asked: Workspace) -> Result<launcher::Workspace, Error> {
        let source = PathBuf::from(&asked.path);
        let plain = source.components().all(|it| !matches!(it, std::path::Component::ParentDir));
        if !source.is_absolute() || !plain || asked.path.len() > 4000 {
            return Err(Error::Rejected(format!("the workspace {:?} is no absolute path", asked.path)));
        }
        let (engine, path) = (self.clone(), source.clone());
        let made = blocking(move || {
            fs::create_dir_all(&path)?;
            engine.ids.own(&path)?;
            launcher::image(&path).map(|it| it.is_some())
        });
        let has_image = made.await?.map_err(Error::disk(format!("make the workspace {}", source.display())))?;
        let disk = match asked.quota {
            _ if has_image => true,
            Some(bytes) if self.bounds_workspaces().await => match &self.formatter {
                Some(formatter) => formatter.prepare(&source, bytes).await?,
                None => false,
            },
            _ => false,
        };
        Ok(launcher::Workspace { source, read_only: asked.read_only, disk })
    }

    /// Whether the directory of a claim's volume, which holds none yet, becomes a file system of `bytes`. Not to be called
    /// twice at a time.
    pub(crate) async fn format_volume(&self, directory: &Path, bytes: u64) -> Result<bool, Error> {
        match &self.volumes {
            Some(formatter) if self.bounds_workspaces().await => formatter.prepare(directory, bytes).await,
            _ => Ok(false),
        }
    }

    /// Whether a workspace's size can be bounded by a file system; tried once.
    pub(crate) async fn bounds_workspaces(&self) -> bool {
        self.findings().await.iter().any(|it| it.name == "quota" && it.ok)
    }
}

/// Lets this process, and the launcher with it, have as many descriptors as the system allows; how many that are.
fn raise_files() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// Removes what a doctor left that was killed; there is no other one while we hold the directory.
fn sweep(data: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|it| it.starts_with(doctor::SCRATCH)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A node that was killed may have left a child that was about to begin its program: it has the lock until it does.
const STRAGGLER: Duration = Duration::from_secs(1);

async fn take_lock(path: &Path) -> Result<fs::File, Error> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).read(true).open(path);
    let file = file.map_err(Error::disk(format!("open {}", path.display())))?;
    let patience = tokio::time::Instant::now() + STRAGGLER;
    loop {
        match sys::lock(file.as_fd()) {
            Ok(true) => return Ok(file),
            Ok(false) if tokio::time::Instant::now() < patience => tokio::time::sleep(STRAGGLER / 50).await,
            Ok(false) => return Err(Error::InUse(path.parent().unwrap_or(path).display().to_string())),
            Err(source) => return Err(Error::disk(format!("lock {}", path.display()))(source)),
        }
    }
}

/// A short name for what is outside the directory and belongs to it; the same for every node that works in it.
fn name_of(data: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    Sha256::digest(data.as_os_str().as_bytes()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Work that waits for the disk, off the threads that serve others.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::machine("finish work on the disk"))
}
