//! The first process of a sandbox, from its birth in fresh namespaces until it becomes the program.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit as Limit};
use rustix::thread::{Gid, Uid};

use super::stage::{Lower, Stage, fill_dev, overlay, tmpfs};
use super::{Answer, Failure, IdMap, Probe, Rlimit, Start, Step, message, shim, system};
use crate::guard::{self, Guards};
use crate::sys;

/// Where the workspace is seen.
pub(super) const WORKSPACE: &str = "/workspace";

/// Where a root is built.
pub(super) const LAYER: &str = "new";

/// What a container may keep in its /dev, in bytes.
const DEV: u64 = 64 << 20;

/// What the root has besides what comes from the host, with modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("run/lock", 0o1777),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
    ("workspace", 0o755),
];

/// Parts of /proc that show or steer the machine.
const MASKED: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

pub(super) fn hosts(name: &str) -> String {
    format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback {name}\n")
}

/// Builds the sandbox around this process and becomes its program. Tells the node why when it cannot.
pub(super) fn run(stage: &Stage, start: &Start, outside: OwnedFd, answer: &OwnedFd, inherits: Vec<OwnedFd>) -> ! {
    // The builder says when ids are mapped; if it cannot, it has told the node itself.
    if let Ok(Some(((), trees))) = message::receive::<()>(outside.as_fd()) {
        drop(outside);
        if let Err(failure) = become_program(stage, start, trees, answer, inherits) {
            let _ = message::send(answer.as_fd(), &Answer::Failed(failure), &[]);
        }
    }
    sys::exit_now(127)
}

fn become_program(
    stage: &Stage,
    start: &Start,
    trees: Vec<OwnedFd>,
    answer: &OwnedFd,
    inherits: Vec<OwnedFd>,
) -> Result<(), Failure> {
    become_root(&start.ids)?;
    if let Some(pod) = &start.pod {
        return shim::run(stage, start, pod, trees, answer, inherits);
    }
    // Its root is the group that we were born in, which it was not yet while we were being made.
    sys::unshare(rustix::thread::UnshareFlags::NEWCGROUP).step(|| "see only our own control groups".into())?;
    // Before anything else in here asks for memory: when the machine runs out, sandboxes go first.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step(|| "keep mounts to ourselves".into())?;
    let sources = place(stage, trees)?;
    let view = View {
        layer: start.layer,
        tmp: Some(start.tmp),
        shm: Shm::Own(start.tmp),
        hostname: &start.hostname,
        hosts: &hosts(&start.hostname),
        resolv: None,
        ids: &start.ids,
        privileged: false,
        devices: None,
        group: None,
        sentry: start.probe == Some(Probe::Sentry),
    };
    let root = mount_all(stage, &view, &Base::Host(&sources))?;
    if view.sentry {
        return super::sentry::probe(stage, start, answer, inherits);
    }
    enter(stage.guards, &root)?;
    rustix::system::sethostname(start.hostname.as_bytes()).step(|| "set the host name".into())?;
    if stage.guards.has(Guards::NETWORK) {
        loopback()?;
    }
    rustix::process::setsid().step(|| "start a session".into())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    for &(which, value) in &start.rlimits {
        limit(which, value)?;
    }
    sys::reset_signals();

    let text = |it: &str| CString::new(it).step(|| "pass an argument with a NUL".into());
    let args = start.args.iter().map(|it| text(it)).collect::<Result<Vec<_>, _>>()?;
    let env = start.env.iter().map(|(k, v)| text(&format!("{k}={v}"))).collect::<Result<Vec<_>, _>>()?;
    let args: Vec<&CStr> = args.iter().map(CString::as_c_str).collect();
    let env: Vec<&CStr> = env.iter().map(CString::as_c_str).collect();

    let guards = stage.guards;
    if guards.has(Guards::CAPABILITIES) {
        guard::drop_privileges().step(|| "drop capabilities".into())?;
    }
    if guards.has(Guards::NO_NEW_PRIVILEGES) {
        guard::no_new_privileges().step(|| "set no_new_privs".into())?;
    }
    if guards.has(Guards::LANDLOCK) {
        guard::landlock(stage.program.as_ref().map(AsFd::as_fd))
            .map_err(std::io::Error::other)
            .step(|| "enter a Landlock domain".into())?;
    }
    let (program, answer) = descriptors(stage, start, answer, inherits)?;

    // The node writes down who we are before we do anything; when it is gone, so are we.
    let mut word = [0u8; 1];
    if !matches!(rustix::io::read(&answer, &mut word), Ok(1)) {
        sys::exit_now(0)
    }
    if guards.has(Guards::SECCOMP) {
        guard::seccomp(&stage.seccomp)
            .map_err(std::io::Error::other)
            .step(|| "install the system call filter".into())?;
    }
    if let Some(probe) = start.probe {
        sys::exit_now(super::probe::run(probe))
    }
    let program = program.ok_or_else(|| Failure { step: "find the program".into(), errno: libc::ENOENT })?;
    let error = sys::exec(program.as_fd(), &args, &env);
    let failure = Failure { step: "execute the program".into(), errno: error.raw_os_error().unwrap_or(libc::EIO) };
    // The socket that the caller knows may be closed; this one is its copy.
    let _ = message::send(answer.as_fd(), &Answer::Failed(failure), &[]);
    sys::exit_now(127)
}

pub(super) fn loopback() -> Result<(), Failure> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
        .step(|| "open a socket".into())?;
    sys::loopback_up(socket.as_fd()).step(|| "bring loopback up".into())
}

/// Root of the own user namespace, in nobody else's groups as far as that can be.
fn become_root(ids: &[IdMap]) -> Result<(), Failure> {
    let many = ids.iter().any(|it| it.count > 1);
    if many {
        rustix::thread::set_thread_groups(&[]).step(|| "leave the launcher's groups".into())?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(|| "become group 0".into())?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(|| "become user 0".into())?;
    // Changing ids made /proc/self the host root's.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .step(|| "own /proc/self again".into())
}

/// What a root is made of besides what it is based on.
pub(super) struct View<'a> {
    /// Bytes of memory for what is written to it.
    pub layer: u64,
    /// Bytes of a /tmp of its own.
    pub tmp: Option<u64>,
    pub shm: Shm<'a>,
    pub hostname: &'a str,
    pub hosts: &'a str,
    pub resolv: Option<&'a str>,
    pub ids: &'a [IdMap],
    /// All of /proc, and /sys to write to.
    pub privileged: bool,
    /// The name of the control groups in its /sys; without one, that is empty.
    pub group: Option<&'a str>,
    /// Where the host's /dev is, if it is to be seen.
    pub devices: Option<&'a Path>,
    /// A Sentry brings its own /dev, /proc and /sys.
    pub sentry: bool,
}

/// Where /dev/shm comes from.
pub(super) enum Shm<'a> {
    /// Its own, of so many bytes.
    Own(u64),
    /// A directory that others see too.
    Shared(&'a Path),
}

/// What a root is based on.
pub(super) enum Base<'a> {
    /// The host's directories, each where [`place`] put it.
    Host(&'a [PathBuf]),
    /// An unpacked image.
    Image(&'a Path),
}

/// Puts the host's directories with shifted ids where they can be mounted from; where ids are not shifted, they are
/// already.
pub(super) fn place(stage: &Stage, trees: Vec<OwnedFd>) -> Result<Vec<PathBuf>, Failure> {
    if trees.is_empty() {
        return Ok(stage.lowers.iter().map(|it| it.source.clone()).collect());
    }
    let mut places = Vec::new();
    for (lower, tree) in stage.lowers.iter().zip(trees) {
        let at = Path::new("low").join(&lower.name);
        rustix::mount::move_mount(tree.as_fd(), "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step(|| format!("place the layer /{}", lower.name))?;
        places.push(at);
    }
    Ok(places)
}

/// Builds a root and returns where it is.
pub(super) fn mount_all(stage: &Stage, view: &View<'_>, base: &Base<'_>) -> Result<PathBuf, Failure> {
    let flags = if stage.guards.has(Guards::MOUNT_FLAGS) {
        MountFlags::NOSUID | MountFlags::NODEV
    } else {
        MountFlags::empty()
    };
    let layer = Path::new(LAYER);
    tmpfs(layer, view.layer, "0755", flags)?;
    let root = layer.join("root");
    for dir in [&root, &layer.join("upper"), &layer.join("work")] {
        fs::create_dir(dir).step(|| format!("make {}", dir.display()))?;
    }
    match base {
        Base::Host(sources) => {
            // A root must be a mount; what is mounted below comes on top of it.
            rustix::mount::mount_bind(&root, &root).step(|| "bind the new root".into())?;
            host(stage, view, layer, sources)?;
        }
        Base::Image(source) => {
            if !stage.found.overlay {
                return Err(Failure { step: "mount an image without overlays".into(), errno: libc::ENOTSUP });
            }
            overlay(source, &layer.join("upper"), &layer.join("work"), &root).step(|| "mount the image".into())?;
            image(view, &root)?;
        }
    }
    if let Some(tmp) = view.tmp {
        tmpfs(&root.join("tmp"), tmp, "1777", flags)?;
    }
    if view.sentry {
        return Ok(root);
    }
    match view.shm {
        Shm::Own(_) => {
            rustix::mount::mount_bind_recursive("dev", root.join("dev")).step(|| "mount /dev".into())?;
        }
        // Volumes are mounted below it, and programs of containers make their sockets there.
        Shm::Shared(_) => {
            fill_dev(&root.join("dev"), Path::new("dev"), DEV)?;
            if let Some(from) = view.devices {
                super::devices::show(from, &root.join("dev"))?;
            }
        }
    }
    let no = MountFlags::NOSUID | MountFlags::NOEXEC;
    terminals(view.ids, &root.join("dev/pts"))?;
    let shm = root.join("dev/shm");
    match view.shm {
        Shm::Own(bytes) => tmpfs(&shm, bytes, "1777", flags | MountFlags::NOEXEC)?,
        Shm::Shared(from) => rustix::mount::mount_bind(from, &shm).step(|| "share /dev/shm".into())?,
    }
    let proc = root.join("proc");
    if stage.guards.has(Guards::PROCESSES) {
        rustix::mount::mount("proc", &proc, "proc", no | MountFlags::NODEV, None::<&CStr>)
            .step(|| "mount /proc (a container's masked /proc forbids it)".into())?;
    } else {
        // There is no own one to be had.
        rustix::mount::mount_bind_recursive("/proc", &proc).step(|| "show /proc".into())?;
    }
    if stage.guards.has(Guards::PROC) && !view.privileged {
        mask(&proc)?;
    }
    if let Some(group) = view.group {
        system::mount_at(&root.join("sys"), group, view.privileged)?;
    }
    Ok(root)
}

/// Terminals of one's own.
pub(super) fn terminals(ids: &[IdMap], at: &Path) -> Result<(), Failure> {
    let gid = if ids.iter().any(|it| it.inside <= 5 && 5 - it.inside < it.count) { ",gid=5,mode=620" } else { "" };
    let options = CString::new(format!("newinstance,ptmxmode=0666{gid}")).step(|| "name options".into())?;
    let no = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("devpts", at, "devpts", no, Some(options.as_c_str())).step(|| "mount /dev/pts".into())
}

/// The host's directories, and those that come from nowhere.
fn host(stage: &Stage, view: &View<'_>, layer: &Path, sources: &[PathBuf]) -> Result<(), Failure> {
    let root = layer.join("root");
    for &(name, mode) in DIRECTORIES {
        let path = root.join(name);
        rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(mode)).step(|| format!("make /{name}"))?;
        if mode & 0o1000 != 0 {
            rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode)).step(|| format!("open /{name}"))?;
        }
    }
    for (name, target) in &stage.links {
        symlink(target, root.join(name)).step(|| format!("link /{name}"))?;
    }
    symlink("../run", root.join("var/run")).step(|| "link /var/run".into())?;
    for (lower, source) in stage.lowers.iter().zip(sources) {
        mount_lower(stage, view, layer, lower, source)?;
    }
    Ok(())
}

/// One directory of the host: read-only below, what the sandbox writes above.
fn mount_lower(stage: &Stage, view: &View<'_>, layer: &Path, lower: &Lower, source: &Path) -> Result<(), Failure> {
    let name = &lower.name;
    let to = layer.join("root").join(name);
    let [upper, work] = ["upper", "work"].map(|it| layer.join(it).join(name));
    for dir in [&to, &upper, &work] {
        fs::create_dir(dir).step(|| format!("make {}", dir.display()))?;
    }
    if name == "etc" {
        let into = if stage.found.overlay { &upper } else { &to };
        if !stage.found.overlay {
            copy_tree(source, into).step(|| "copy /etc".into())?;
        }
        for (file, text) in names(view) {
            fs::write(into.join(file), text).step(|| format!("write /etc/{file}"))?;
        }
    }
    if stage.found.overlay {
        return overlay(source, &upper, &work, &to).step(|| format!("mount the overlay of /{name}"));
    }
    if name == "etc" { Ok(()) } else { read_only(source, &to, true) }
}

/// The files of /etc that tell names, and what is in them.
fn names<'a>(view: &'a View<'_>) -> impl Iterator<Item = (&'static str, String)> + use<'a> {
    [("hostname", Some(format!("{}\n", view.hostname))), ("hosts", Some(view.hosts.to_owned()))]
        .into_iter()
        .chain([("resolv.conf", view.resolv.map(str::to_owned))])
        .filter_map(|(file, text)| Some((file, text?)))
}

/// What every root must have, where an image lacks it. Nothing of an image is followed: a directory that is a link there
/// is replaced.
fn image(view: &View<'_>, root: &Path) -> Result<(), Failure> {
    for (name, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("etc", 0o755), ("tmp", 0o1777)] {
        let path = root.join(name);
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => fs::remove_file(&path).step(|| format!("replace /{name}"))?,
            Err(_) => {}
        }
        rustix::fs::mkdir(&path, rustix::fs::Mode::from_raw_mode(mode)).step(|| format!("make /{name}"))?;
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode)).step(|| format!("open /{name}"))?;
    }
    for (file, text) in names(view) {
        let path = root.join("etc").join(file);
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => fs::remove_file(&path).step(|| format!("replace /etc/{file}"))?,
            Err(_) => {}
        }
        fs::write(&path, text).step(|| format!("write /etc/{file}"))?;
    }
    Ok(())
}

/// The place of an overlay over /etc, where there is none.
fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)?.flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy_tree(&path, &to)?;
        } else if kind.is_symlink() {
            symlink(path.read_link()?, to)?;
        } else {
            fs::copy(path, to)?;
        }
    }
    Ok(())
}

pub(super) fn read_only(source: &Path, to: &Path, recursive: bool) -> Result<(), Failure> {
    let what = || format!("show {} read-only", to.display());
    use rustix::mount::OpenTreeFlags as Flags;
    let mut flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= Flags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, source, flags).step(what)?;
    sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY | sys::ATTR_NOSUID, None, recursive).step(what)?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(what)
}

fn mask(proc: &Path) -> Result<(), Failure> {
    for name in MASKED {
        let path = proc.join(name);
        let Ok(found) = path.symlink_metadata() else { continue };
        let cover = if found.is_dir() { "empty" } else { "dev/null" };
        read_only(Path::new(cover), &path, false)?;
    }
    for name in READ_ONLY {
        let path = proc.join(name);
        if path.exists() {
            read_only(&path, &path, false)?;
        }
    }
    Ok(())
}

/// Makes `root` the root and lets go of everything else.
pub(super) fn enter(guards: Guards, root: &Path) -> Result<(), Failure> {
    rustix::process::chdir(root).step(|| "enter the new root".into())?;
    if guards.has(Guards::ROOT) {
        rustix::process::pivot_root(".", ".").step(|| "change the root".into())?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).step(|| "detach the old root".into())?;
    } else {
        rustix::process::pivot_root(".", "mnt").step(|| "change the root".into())?;
    }
    rustix::process::chdir("/").step(|| "enter the root".into())
}

/// Lowers a limit; one that is lower already stays.
pub(super) fn limit(which: Rlimit, value: u64) -> Result<(), Failure> {
    let resource = match which {
        Rlimit::Processes => Resource::Nproc,
        Rlimit::Data => Resource::Data,
        Rlimit::Core => Resource::Core,
        Rlimit::Files => Resource::Nofile,
    };
    let value = rustix::process::getrlimit(resource).maximum.map_or(value, |top| top.min(value));
    rustix::process::setrlimit(resource, Limit { current: Some(value), maximum: Some(value) })
        .step(|| format!("limit {which:?} to {value}"))
}

/// Puts descriptors where the program expects them, closes all others, and returns the program and the answer's socket,
/// which exec closes.
pub(super) fn descriptors(
    stage: &Stage,
    start: &Start,
    answer: &OwnedFd,
    inherits: Vec<OwnedFd>,
) -> Result<(Option<OwnedFd>, OwnedFd), Failure> {
    let what = || "arrange descriptors".to_owned();
    // Out of the way of the numbers to come.
    let top = start.inherits.iter().copied().max().unwrap_or(2).max(2) + 1;
    let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, top).step(what);
    let inherits = inherits.iter().map(above).collect::<Result<Vec<_>, _>>()?;
    let (program, answer) = (stage.program.as_ref().map(above).transpose()?, above(answer)?);
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").step(|| "open /dev/null".into())?;
    for number in 0..=2 {
        sys::dup_to(null.as_fd(), number).step(what)?;
    }
    for (fd, &number) in inherits.iter().zip(&start.inherits) {
        sys::dup_to(fd.as_fd(), number).step(what)?;
    }
    if stage.guards.has(Guards::DESCRIPTORS) {
        sys::cloexec_from(top).step(what)?;
    }
    Ok((program, answer))
}
