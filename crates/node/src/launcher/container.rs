//! A container's first process, and every further one, from its birth in the shim until it becomes its command.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::inside::{self, Base, LAYER, Shm, View};
use super::sentry::{self, Cage};
use super::shim::{self, Command, Container, Refusal, Said};
use super::stage::Stage;
use super::{Failure, IdMap, Join, Rlimit, Step, message};
use crate::guard::{self, Guards};
use crate::sys::{self, Fork};

/// Where the shim listens for children's terminals, and under which name.
type Newborn<'a> = (BorrowedFd<'a>, &'a str);

/// Both ends of a process's streams.
pub(super) struct Stdio {
    input: Option<(OwnedFd, OwnedFd)>,
    /// Standard output and error; none with a terminal.
    outputs: Vec<(OwnedFd, OwnedFd)>,
    /// Which of them go nowhere: to write to a pipe that nobody reads is the end of most programs.
    unheard: [bool; 2],
    tty: bool,
}

impl Stdio {
    pub(super) fn new(tty: bool, input: bool, unheard: [bool; 2]) -> Result<Self, Failure> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step(|| "make a pipe".into());
        if tty {
            return Ok(Self { input: None, outputs: Vec::new(), unheard, tty });
        }
        let input = input.then(pipe).transpose()?;
        Ok(Self { input, outputs: vec![pipe()?, pipe()?], unheard, tty })
    }

    /// What to read from, and what to write to; closes the process's ends.
    pub(super) fn ours(self) -> (Vec<OwnedFd>, Option<OwnedFd>) {
        (self.outputs.into_iter().map(|(read, _)| read).collect(), self.input.map(|(_, write)| write))
    }
}

/// Builds the container around this process and becomes its command; tells the node why when it cannot.
#[allow(clippy::too_many_arguments, reason = "what a process is made of; one caller")]
pub(super) fn run(
    stage: &Stage,
    ids: &[IdMap],
    lowers: &[PathBuf],
    container: &Container,
    trees: (Option<OwnedFd>, Option<OwnedFd>),
    groups: &[(Join, OwnedFd)],
    words: &Path,
    stdio: Stdio,
    answer: &OwnedFd,
    newborn: Newborn<'_>,
) -> ! {
    let done = build(stage, ids, lowers, container, trees, groups, words).and_then(|()| {
        if container.sentry {
            return become_sentry(stage, container, None, &container.args, &container.env, stdio, answer, newborn);
        }
        become_command(stage, container, &container.args, &container.env, stdio, answer, newborn)
    });
    refuse(answer, done)
}

/// A further process in a container: it is in its namespaces already.
pub(super) fn enter(
    stage: &Stage,
    container: &Container,
    command: &Command,
    groups: &[(Join, OwnedFd)],
    stdio: Stdio,
    answer: &OwnedFd,
    newborn: Newborn<'_>,
) -> ! {
    let mut env = container.env.clone();
    for (name, value) in &command.env {
        env.retain(|(it, _)| it != name);
        env.push((name.clone(), value.clone()));
    }
    let done = join(groups, container.oom_score_adj).map_err(Refusal::from).and_then(|()| {
        if container.sentry {
            return become_sentry(stage, container, Some(command), &command.args, &env, stdio, answer, newborn);
        }
        rustix::process::chdir(&*container.cwd).step(|| format!("enter {}", container.cwd))?;
        become_command(stage, container, &command.args, &env, stdio, answer, newborn)
    });
    refuse(answer, done)
}

fn refuse(answer: &OwnedFd, done: Result<std::convert::Infallible, Refusal>) -> ! {
    let Err(refusal) = done;
    let _ = message::send(answer.as_fd(), &Said::Refused(refusal), &[]);
    sys::exit_now(128)
}

/// Into the control groups of version 1 (we were born in that of version 2), which then are all that we see.
fn join(groups: &[(Join, OwnedFd)], oom_score_adj: i32) -> Result<(), Failure> {
    for (_, tasks) in groups.iter().filter(|(join, _)| *join == Join::Thread) {
        rustix::io::write(tasks, b"0").step(|| "join a control group".into())?;
    }
    sys::unshare(rustix::thread::UnshareFlags::NEWCGROUP).step(|| "see only our own control groups".into())?;
    // Lower than ours needs a right over the machine.
    let _ = fs::write("/proc/self/oom_score_adj", oom_score_adj.max(0).to_string());
    Ok(())
}

fn build(
    stage: &Stage,
    ids: &[IdMap],
    lowers: &[PathBuf],
    container: &Container,
    (image, devices): (Option<OwnedFd>, Option<OwnedFd>),
    groups: &[(Join, OwnedFd)],
    words: &Path,
) -> Result<(), Refusal> {
    join(groups, container.oom_score_adj)?;
    let placed = |tree: Option<OwnedFd>, at: &'static str| {
        let tree = tree.map(|tree| {
            rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .step(|| format!("place what is given as {at}"))
                .map(|()| Path::new(at))
        });
        tree.transpose()
    };
    let view = View {
        layer: container.layer,
        tmp: None,
        shm: Shm::Shared(Path::new(shim::SHM)),
        hostname: &container.hostname,
        hosts: &container.hosts,
        resolv: Some(&container.resolv),
        ids,
        privileged: container.privileged,
        devices: placed(devices, "devices")?,
        group: Some(&container.group_name),
        sentry: container.sentry,
    };
    let base = match placed(image, "image")? {
        Some(at) => Base::Image(at),
        None => Base::Host(lowers),
    };
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let root = inside::mount_all(stage, &view, &base)?;
    let mut cage = None;
    if container.sentry {
        let mut made = Cage::new(stage, ids)?;
        let shm = opened(Path::new(shim::SHM)).step(|| "share /dev/shm".into())?;
        bind(&root, &shm, "/dev/shm", false)?;
        made.mount(&shm, "/dev/shm", false)?;
        // Otherwise the Sentry has one in its memory, which nothing else sees or bounds.
        if !container.mounts.iter().any(|it| it.path.trim_end_matches('/') == "/tmp") {
            let tmp = make(&root, Path::new("/tmp"), true).map_err(|why| at("/tmp", &why))?;
            made.mount(&tmp, "/tmp", container.read_only_root)?;
        }
        cage = Some(made);
    }
    if !container.message_path.is_empty() {
        // Whoever it runs as writes to it.
        rustix::fs::chmod(words, Mode::from_raw_mode(0o666)).step(|| "open a file for last words".into())?;
        let at_words = opened(words).map_err(|why| at(&container.message_path, &why))?;
        bind(&root, &at_words, &container.message_path, false)?;
        if let Some(cage) = &mut cage {
            cage.mount(&at_words, &container.message_path, false)?;
        }
    }
    let mut mounts: Vec<_> = container.mounts.iter().collect();
    // What is mounted below something else comes after it.
    mounts.sort_by_key(|it| Path::new(&it.path).components().count());
    for it in mounts {
        let source = opened(&Path::new(shim::VOLUMES).join(&it.volume)).map_err(|why| at(&it.path, &why))?;
        let source = within(source, &it.sub_path).map_err(|_| Refusal::SubPath(it.volume.clone()))?;
        bind(&root, &source, &it.path, it.read_only)?;
        if let Some(cage) = &mut cage {
            cage.mount(&source, &it.path, it.read_only)?;
        }
    }
    let cwd = make(&root, Path::new(&container.cwd), true).map_err(|why| at(&container.cwd, &why))?;
    drop(cwd);
    if container.read_only_root {
        let tree = rustix::mount::open_tree(CWD, &root, OpenTreeFlags::OPEN_TREE_CLOEXEC).step(|| "open /".into())?;
        sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, None, false).step(|| "make / read-only".into())?;
        // Each directory of the host's is a mount of its own.
        let lowers = if matches!(base, Base::Host(_)) { stage.lowers.as_slice() } else { &[] };
        for lower in lowers {
            let at = root.join(&lower.name);
            let tree = rustix::mount::open_tree(CWD, &at, OpenTreeFlags::OPEN_TREE_CLOEXEC);
            let tree = tree.step(|| format!("open /{}", lower.name))?;
            sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, None, false)
                .step(|| format!("make /{} read-only", lower.name))?;
        }
    }
    if let Some(cage) = cage {
        cage.close(&container.hostname, sentry::process(container, &container.args, &container.env, container.tty))?;
        return Ok(inside::enter(stage.guards, Path::new(LAYER))?);
    }
    inside::enter(stage.guards, &root)?;
    rustix::process::chdir(&*container.cwd).map_err(|error| at(&container.cwd, &error))?;
    Ok(())
}

fn at(path: &str, why: &Errno) -> Refusal {
    Refusal::Config(format!("cannot use {path}: {}", std::io::Error::from(*why)))
}

fn opened(at: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// What is at `sub_path` of `volume`, made where it is not there. Links are followed within it, never out.
fn within(volume: OwnedFd, sub_path: &str) -> Result<OwnedFd, Errno> {
    if sub_path.is_empty() {
        return Ok(volume);
    }
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let find = || rustix::fs::openat2(&volume, sub_path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
    find().or_else(|error| match error {
        Errno::NOENT => make_in(&volume, Path::new(sub_path), true, how).and_then(|_| find()),
        other => Err(other),
    })
}

/// Mounts `source` at `path` of the new root. Links are followed within the root, never out.
pub(super) fn bind(root: &Path, source: &OwnedFd, path: &str, read_only: bool) -> Result<(), Refusal> {
    let kind = rustix::fs::fstat(source).map_err(|error| at(path, &error))?.st_mode;
    let is_dir = rustix::fs::FileType::from_raw_mode(kind).is_dir();
    let target = make(root, Path::new(path), is_dir).map_err(|error| at(path, &error))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", flags).step(|| format!("open the volume for {path}"))?;
    if read_only {
        sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, None, false).step(|| format!("make {path} read-only"))?;
    }
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", target.as_fd(), "", both).step(|| format!("mount at {path}"))?;
    Ok(())
}

/// Opens what is at `path` of the root, and makes it, a directory or an empty file, where it is not there.
fn make(root: &Path, path: &Path, is_dir: bool) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    make_in(&root, path, is_dir, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens what is at `path` of a directory, and makes it, a directory or an empty file, where it is not there.
pub(crate) fn make_in(root: &OwnedFd, path: &Path, is_dir: bool, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let open = |path: &Path| rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how);
    match open(path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = make_in(root, parent, true, how)?;
    let made = match is_dir {
        true => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        false => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => open(path),
        Err(error) => Err(error),
    }
}

fn become_command(
    stage: &Stage,
    container: &Container,
    args: &[String],
    env: &[(String, String)],
    stdio: Stdio,
    answer: &OwnedFd,
    newborn: Newborn<'_>,
) -> Result<std::convert::Infallible, Refusal> {
    let theirs = begin(container.user, &container.rlimits, stdio, answer, newborn)?;
    let text = |it: &str| CString::new(it).map_err(|_| Refusal::Command("an argument has a NUL in it".into()));
    let argv = args.iter().map(|it| text(it)).collect::<Result<Vec<_>, _>>()?;
    let envp = env.iter().map(|(name, value)| text(&format!("{name}={value}"))).collect::<Result<Vec<_>, _>>()?;
    let argv: Vec<&CStr> = argv.iter().map(CString::as_c_str).collect();
    let envp: Vec<&CStr> = envp.iter().map(CString::as_c_str).collect();
    privileges(stage, container)?;
    let program = look_up(args, env)?;
    arrange(&theirs)?;
    if stage.guards.has(Guards::SECCOMP) && !container.privileged {
        guard::seccomp(&stage.seccomp)
            .map_err(std::io::Error::other)
            .step(|| "install the system call filter".into())?;
    }
    if let Some(filter) = container.filter.as_deref().filter(|_| !container.privileged) {
        // The last one: it need not allow anything but the execution.
        guard::seccomp(&guard::unpack(filter))
            .map_err(std::io::Error::other)
            .step(|| "install the container's own system call filter".into())?;
    }
    let error = sys::exec_path(&text(&program)?, &argv, &envp);
    Err(Refusal::Command(format!("exec: {program:?}: {}", words_of(&error))))
}

/// Becomes `runsc`, which starts the container's first process, or a further one.
#[allow(clippy::too_many_arguments, reason = "what a process is made of")]
fn become_sentry(
    stage: &Stage,
    container: &Container,
    command: Option<&Command>,
    args: &[String],
    env: &[(String, String)],
    stdio: Stdio,
    answer: &OwnedFd,
    newborn: Newborn<'_>,
) -> Result<std::convert::Infallible, Refusal> {
    rehearse(stage, container, args, env)?;
    // Its other limits are the Sentry's to keep, which needs more for itself.
    let theirs = begin(container.user, &[(Rlimit::Core, 0)], stdio, answer, newborn)?;
    arrange(&theirs)?;
    match command {
        None => Err(sentry::run(container).into()),
        Some(command) => {
            let process = sentry::process(container, args, env, command.tty);
            Ok(sentry::exec(container, newborn.1, &process)?)
        }
    }
}

/// Whether the command could be executed, as far as the machine sees it: in a process that becomes all but that, and goes.
fn rehearse(stage: &Stage, container: &Container, args: &[String], env: &[(String, String)]) -> Result<(), Refusal> {
    let (here, there) = message::pair().step(|| "make a socket".into())?;
    match sys::fork().step(|| "fork".into())? {
        Fork::Child => {
            let could = || {
                rustix::process::chroot(sentry::ROOT).step(|| "see the container's root".into())?;
                rustix::process::chdir(&*container.cwd).map_err(|error| at(&container.cwd, &error))?;
                privileges(stage, container)?;
                let program = look_up(args, env)?;
                match has_format(&program) {
                    true => Ok(()),
                    false => Err(Refusal::Command(format!("exec: {program:?}: exec format error"))),
                }
            };
            let could: Result<(), Refusal> = could();
            let _ = message::send(there.as_fd(), &could, &[]);
            sys::exit_now(0)
        }
        Fork::Parent { child, .. } => {
            drop(there);
            let said = message::receive::<Result<(), Refusal>>(here.as_fd()).step(|| "hear of a child".into())?;
            let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
            said.ok_or(Refusal::Gone)?.0
        }
    }
}

/// Whether this is a program or a script. Who may execute it and not read it has to find out.
fn has_format(program: &str) -> bool {
    let mut first = [0; 4];
    // Nobody need write to what it may have become.
    let opened = rustix::fs::open(program, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let read = |it: OwnedFd| std::io::Read::read_exact(&mut fs::File::from(it), &mut first);
    match opened.map_err(std::io::Error::from).and_then(read) {
        Ok(()) => first == *b"\x7fELF" || first.starts_with(b"#!"),
        Err(error) => error.kind() != std::io::ErrorKind::UnexpectedEof,
    }
}

/// In Go's words, which people search for.
fn words_of(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::EISDIR) => "is a directory".into(),
        _ => error.to_string(),
    }
}

/// What is the same for all that are executed: a session, streams (returned), limits and signals of their own.
fn begin(
    user: u32,
    limits: &[(Rlimit, u64)],
    stdio: Stdio,
    answer: &OwnedFd,
    newborn: Newborn<'_>,
) -> Result<Vec<OwnedFd>, Refusal> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::setsid().step(|| "start a session".into())?;
    let theirs = streams(stdio, user, answer, newborn)?;
    for &(which, value) in limits {
        inside::limit(which, value)?;
    }
    sys::reset_signals();
    // From here on others in the container are as privileged as we are, who still have the shim's memory and descriptors:
    // nobody looks into a process that cannot be dumped. The execution ends that.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "close ourselves to the container".into())?;
    Ok(theirs)
}

/// Nothing but its streams is left when it is executed. The node's socket is closed by that, which tells it.
fn arrange(theirs: &[OwnedFd]) -> Result<(), Failure> {
    for (fd, number) in theirs.iter().zip([0, 1, 2]) {
        sys::dup_to(fd.as_fd(), number).step(|| "arrange descriptors".into())?;
    }
    sys::cloexec_from(3).step(|| "arrange descriptors".into())
}

/// The process's ends: of its pipes, or of a terminal of the container's own, whose other end goes to the node, and to
/// the shim, which keeps it.
fn streams(stdio: Stdio, user: u32, answer: &OwnedFd, newborn: Newborn<'_>) -> Result<Vec<OwnedFd>, Refusal> {
    let mut theirs = Vec::new();
    if stdio.tty {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let what = || "open a terminal".to_owned();
        let ours = openpt(flags).step(what)?;
        grantpt(&ours).step(what)?;
        unlockpt(&ours).step(what)?;
        let slave = ioctl_tiocgptpeer(&ours, flags).step(what)?;
        rustix::process::ioctl_tiocsctty(&slave).step(what)?;
        let (to, key) = newborn;
        message::send(to, &key, &[ours.as_fd()]).step(what)?;
        message::send(answer.as_fd(), &Said::Terminal, &[ours.as_fd()]).step(what)?;
        for _ in 0..3 {
            theirs.push(rustix::io::fcntl_dupfd_cloexec(&slave, 3).step(what)?);
        }
    } else {
        // The shim's own input: what is at /dev/null here, the container decides.
        let null = || rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).step(|| "share /dev/null".into());
        theirs.push(stdio.input.map_or_else(null, |(read, _)| Ok(read))?);
        for ((_, write), unheard) in stdio.outputs.into_iter().zip(stdio.unheard) {
            theirs.push(if unheard { null()? } else { write });
        }
    }
    let above = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(&fd, 3).step(|| "arrange descriptors".into());
    let theirs = theirs.into_iter().map(above).collect::<Result<Vec<_>, _>>()?;
    for fd in &theirs {
        // So that it can open /dev/stdout again. A device is nobody's to give away.
        let kind = rustix::fs::fstat(fd).map(|it| rustix::fs::FileType::from_raw_mode(it.st_mode));
        if stdio.tty || kind.is_ok_and(|it| it.is_fifo()) {
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(user)), None);
        }
    }
    Ok(theirs)
}

/// The capabilities of Linux by their numbers, without CAP_.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Of the pod's user namespace, where it has one: nothing of it reaches the machine then.
fn privileges(stage: &Stage, container: &Container) -> Result<(), Refusal> {
    let kept = CAPABILITIES.iter().zip(0u32..).filter(|(name, _)| container.capabilities.iter().any(|it| it == *name));
    let kept = CapabilitySet::from_bits_truncate(kept.fold(0u64, |all, (_, bit)| all | 1 << bit));
    // Without a user namespace of its own it has at most what the node has.
    let kept = kept & rustix::thread::capabilities(None).step(|| "see our own capabilities".into())?.permitted;
    if stage.guards.has(Guards::CAPABILITIES) {
        for capability in (CapabilitySet::all() & !kept).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // Newer than this kernel.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Ok(Err(error).step(|| "drop capabilities".into())?),
            }
        }
        rustix::thread::clear_ambient_capability_set().step(|| "drop capabilities".into())?;
    }
    let groups: Vec<Gid> = container.groups.iter().map(|it| Gid::from_raw(*it)).collect();
    let ids = |name: &str, id: u32, error: Errno| {
        Refusal::Config(format!(
            "cannot become {name} {id}: {} (are there ids for it here? see `insula doctor`, idmap)",
            std::io::Error::from(error)
        ))
    };
    match rustix::thread::set_thread_groups(&groups) {
        Ok(()) => {}
        // With one id alone there are no groups to be in beside one's own.
        Err(Errno::PERM) if container.groups.iter().all(|it| *it == container.group) => {}
        Err(error) => return Err(ids("a member of groups", container.groups.first().copied().unwrap_or(0), error)),
    }
    let (gid, uid) = (Gid::from_raw(container.group), Uid::from_raw(container.user));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|error| ids("group", container.group, error))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|error| ids("user", container.user, error))?;
    if stage.guards.has(Guards::CAPABILITIES) && container.user == 0 {
        let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets).step(|| "drop capabilities".into())?;
    }
    if stage.guards.has(Guards::NO_NEW_PRIVILEGES) && !container.privileged {
        guard::no_new_privileges().step(|| "set no_new_privs".into())?;
    }
    Ok(())
}

/// The program's path: as it is, or the first one of this name in the PATH that can be executed.
fn look_up(args: &[String], env: &[(String, String)]) -> Result<String, Refusal> {
    let name = args.first().filter(|it| !it.is_empty());
    let name = name.ok_or_else(|| Refusal::Command("no command specified".into()))?;
    let can = |path: &str| {
        let found = rustix::fs::stat(path)?;
        if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(Errno::ISDIR);
        }
        if !rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
            return Err(Errno::ACCESS);
        }
        rustix::fs::accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)
    };
    if name.contains('/') {
        return match can(name) {
            Ok(()) => Ok(name.clone()),
            Err(Errno::NOENT) => {
                Err(Refusal::Command(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err(Refusal::Command(format!("exec: {name:?}: {}", words_of(&error.into())))),
        };
    }
    let path = env.iter().rev().find(|(it, _)| it == "PATH").map_or("", |(_, value)| value);
    let found = path.split(':').map(|dir| if dir.is_empty() { "." } else { dir }).find_map(|dir| {
        let path = format!("{}/{name}", dir.trim_end_matches('/'));
        can(&path).is_ok().then_some(path)
    });
    found.ok_or_else(|| Refusal::Command(format!("exec: {name:?}: executable file not found in $PATH")))
}
