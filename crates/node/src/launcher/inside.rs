//! The first process of a sandbox, from its birth in fresh namespaces until it becomes the program.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit as Limit};
use rustix::thread::{Gid, Uid};

use super::stage::{Stage, overlay, tmpfs};
use super::{Answer, Failure, Rlimit, Start, Step, message};
use crate::guard::{self, Guards};
use crate::sys;

/// Where the workspace is seen.
pub(super) const WORKSPACE: &str = "/workspace";

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
    become_root(start)?;
    // Its root is the group that we were born in, which it was not yet while we were being made.
    sys::unshare(rustix::thread::UnshareFlags::NEWCGROUP).step(|| "see only our own control groups".into())?;
    // Before anything else in here asks for memory: when the machine runs out, sandboxes go first.
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    mount_all(stage, start, trees)?;
    rustix::system::sethostname(start.hostname.as_bytes()).step(|| "set the host name".into())?;
    if stage.guards.has(Guards::NETWORK) {
        let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
            .step(|| "open a socket".into())?;
        sys::loopback_up(socket.as_fd()).step(|| "bring loopback up".into())?;
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

/// Root of the own user namespace, in nobody else's groups as far as that can be.
fn become_root(start: &Start) -> Result<(), Failure> {
    let many = start.ids.iter().any(|it| it.count > 1);
    if many {
        rustix::thread::set_thread_groups(&[]).step(|| "leave the launcher's groups".into())?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(|| "become group 0".into())?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(|| "become user 0".into())?;
    // Changing ids made /proc/self the host root's.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .step(|| "own /proc/self again".into())
}

fn mount_all(stage: &Stage, start: &Start, trees: Vec<OwnedFd>) -> Result<(), Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .step(|| "keep mounts to ourselves".into())?;
    let mut trees = trees.into_iter();
    let flags = if stage.guards.has(Guards::MOUNT_FLAGS) {
        MountFlags::NOSUID | MountFlags::NODEV
    } else {
        MountFlags::empty()
    };
    let layer = Path::new("new");
    tmpfs(layer, start.layer, "0755", flags)?;
    let root = layer.join("root");
    for dir in [&root, &layer.join("upper"), &layer.join("work")] {
        fs::create_dir(dir).step(|| format!("make {}", dir.display()))?;
    }
    // A root must be a mount; what is mounted below comes on top of it.
    rustix::mount::mount_bind(&root, &root).step(|| "bind the new root".into())?;
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
    for lower in &stage.lowers {
        let tree = if start.shift { trees.next() } else { None };
        mount_lower(stage, start, layer, lower, tree)?;
    }
    tmpfs(&root.join("tmp"), start.tmp, "1777", flags)?;
    rustix::mount::mount_bind_recursive("dev", root.join("dev")).step(|| "mount /dev".into())?;
    let gid =
        if start.ids.iter().any(|it| it.inside <= 5 && 5 - it.inside < it.count) { ",gid=5,mode=620" } else { "" };
    let options = CString::new(format!("newinstance,ptmxmode=0666{gid}")).step(|| "name options".into())?;
    let no = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("devpts", root.join("dev/pts"), "devpts", no, Some(options.as_c_str()))
        .step(|| "mount /dev/pts".into())?;
    tmpfs(&root.join("dev/shm"), start.tmp, "1777", flags | MountFlags::NOEXEC)?;
    let proc = root.join("proc");
    if stage.guards.has(Guards::PROCESSES) {
        rustix::mount::mount("proc", &proc, "proc", no | MountFlags::NODEV, None::<&CStr>)
            .step(|| "mount /proc (a container's masked /proc forbids it)".into())?;
    } else {
        // There is no own one to be had.
        rustix::mount::mount_bind_recursive("/proc", &proc).step(|| "show /proc".into())?;
    }
    if stage.guards.has(Guards::PROC) {
        mask(&proc)?;
    }
    enter(stage.guards, &root)
}

/// One directory of the host: read-only below, what the sandbox writes above.
fn mount_lower(
    stage: &Stage,
    start: &Start,
    layer: &Path,
    lower: &super::stage::Lower,
    tree: Option<OwnedFd>,
) -> Result<(), Failure> {
    let name = &lower.name;
    let source = match tree {
        None => lower.source.clone(),
        Some(tree) => {
            let at = Path::new("low").join(name);
            rustix::mount::move_mount(tree.as_fd(), "", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .step(|| format!("place the layer /{name}"))?;
            at
        }
    };
    let to = layer.join("root").join(name);
    let [upper, work] = ["upper", "work"].map(|it| layer.join(it).join(name));
    for dir in [&to, &upper, &work] {
        fs::create_dir(dir).step(|| format!("make {}", dir.display()))?;
    }
    if name == "etc" {
        let into = if stage.found.overlay { &upper } else { &to };
        if !stage.found.overlay {
            copy_tree(&source, into).step(|| "copy /etc".into())?;
        }
        fs::write(into.join("hostname"), format!("{}\n", start.hostname)).step(|| "write /etc/hostname".into())?;
        fs::write(into.join("hosts"), hosts(&start.hostname)).step(|| "write /etc/hosts".into())?;
    }
    if stage.found.overlay {
        return overlay(&source, &upper, &work, &to).step(|| format!("mount the overlay of /{name}"));
    }
    if name == "etc" { Ok(()) } else { read_only(&source, &to, true) }
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

fn read_only(source: &Path, to: &Path, recursive: bool) -> Result<(), Failure> {
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
fn enter(guards: Guards, root: &Path) -> Result<(), Failure> {
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
fn limit(which: Rlimit, value: u64) -> Result<(), Failure> {
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
fn descriptors(
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
