//! The process between the launcher and a sandbox: it has the launcher's rights, serves one request and goes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::stage::{Stage, shifted};
use super::{Answer, Attach, Cgroup, Disk, Failure, Join, Start, Step, Trees, Workspace, disk, inside, message};
use crate::guard::Guards;
use crate::pod::HostSpaces;
use crate::sys::{self, Fork};

/// Makes the sandbox's first process and tells the node about it.
pub(super) fn start(
    stage: &Stage,
    start: &Start,
    answer: &OwnedFd,
    newborn: &OwnedFd,
    inherits: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let mut birth = None;
    for cgroup in &start.cgroups {
        birth = join(cgroup)?.or(birth);
    }
    let (here, there) = message::pair().step(|| "make a socket".into())?;
    let host = start.pod.as_ref().map(|it| it.host).unwrap_or_default();
    match sys::clone_into(namespaces(stage.guards, host), birth.as_ref().map(AsFd::as_fd))
        .step(|| "clone into namespaces".into())?
    {
        Fork::Child => {
            drop(here);
            inside::run(stage, start, there, answer, inherits)
        }
        Fork::Parent { child, pidfd } => {
            drop((there, inherits));
            if !host.users {
                map_ids(child, start)?;
            }
            let mut trees = Vec::new();
            if start.shift {
                let ids = user_namespace(child)?;
                for lower in &stage.lowers {
                    trees.push(shifted(&lower.source, &ids).step(|| format!("shift the ids of /{}", lower.name))?);
                }
            }
            let pidfd = pidfd.ok_or_else(|| Failure { step: "hold the process".into(), errno: libc::EBADF })?;
            let cgroups: Vec<_> = start.cgroups.iter().map(|it| &it.dir).collect();
            message::send(newborn.as_fd(), &cgroups, &[pidfd.as_fd()]).step(|| "tell the launcher".into())?;
            message::send(answer.as_fd(), &Answer::Made { pid: child.as_raw_nonzero().get() }, &[pidfd.as_fd()])
                .step(|| "answer the node".into())?;
            let trees: Vec<_> = trees.iter().map(AsFd::as_fd).collect();
            message::send(here.as_fd(), &(), &trees).step(|| "hand mounts over".into())
        }
    }
}

fn namespaces(guards: Guards, host: HostSpaces) -> u64 {
    let always = libc::CLONE_NEWNS | libc::CLONE_NEWUTS;
    let optional = [
        (!host.users, libc::CLONE_NEWUSER),
        (guards.has(Guards::PROCESSES) && !host.processes, libc::CLONE_NEWPID),
        (guards.has(Guards::NETWORK) && !host.network, libc::CLONE_NEWNET),
        (guards.has(Guards::IPC) && !host.ipc, libc::CLONE_NEWIPC),
    ];
    optional.iter().filter(|(own, _)| *own).fold(always, |all, (_, flag)| all | flag) as u64
}

/// Makes a control group and joins it, or opens it for the child to be born in.
fn join(cgroup: &Cgroup) -> Result<Option<OwnedFd>, Failure> {
    let dir = &cgroup.dir;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).step(|| format!("make the control group {}", dir.display()));
        }
        _ => {}
    }
    for (file, value) in &cgroup.writes {
        fs::write(dir.join(file), value).step(|| format!("write {value} to {}/{file}", dir.display()))?;
    }
    match cgroup.join {
        // Only ourselves, and with one thread: the kernel then needs no lock over all processes.
        Join::Thread => fs::write(dir.join("tasks"), "0").map(|()| None),
        Join::Birth => fs::File::open(dir).map(|it| Some(it.into())),
    }
    .step(|| format!("join the control group {}", dir.display()))
}

fn map_ids(child: Pid, start: &Start) -> Result<(), Failure> {
    let text: String = start.ids.iter().map(|it| format!("{} {} {}\n", it.inside, it.outside, it.count)).collect();
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", child.as_raw_nonzero()), &text)
            .step(|| format!("write {} to the sandbox's {file}", text.trim_end()))?;
    }
    Ok(())
}

fn user_namespace(of: Pid) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{}/ns/user", of.as_raw_nonzero());
    Ok(fs::File::open(path).step(|| "open the sandbox's user namespace".into())?.into())
}

/// A detached mount of a workspace, to be attached in a sandbox.
fn tree(stage: &Stage, attach: &Attach, workspace: &Workspace, pid: Pid) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let source: &Path = &workspace.source;
    let tree = if workspace.disk {
        disk::tree(source, &attach.id)?
    } else {
        rustix::mount::open_tree(CWD, source, flags).step(|| format!("open {}", source.display()))?
    };
    let mut set = 0;
    if stage.guards.has(Guards::MOUNT_FLAGS) {
        set |= sys::ATTR_NOSUID | sys::ATTR_NODEV;
    }
    if workspace.read_only {
        set |= sys::ATTR_RDONLY;
    }
    let ids = if attach.shift { Some(user_namespace(pid)?) } else { None };
    sys::mount_setattr(tree.as_fd(), set, ids.as_ref().map(AsFd::as_fd), false)
        .step(|| format!("prepare the mount of {}", source.display()))?;
    Ok(tree)
}

/// Gives a running sandbox what it was started without, from within its namespaces.
pub(super) fn attach(stage: &Stage, attach: &Attach, answer: &OwnedFd, pidfd: Option<OwnedFd>) -> Result<(), Failure> {
    let gone = || Failure { step: "find the sandbox".into(), errno: libc::ESRCH };
    let (pidfd, pid) = (pidfd.ok_or_else(gone)?, Pid::from_raw(attach.pid).ok_or_else(gone)?);
    let tree = match &attach.workspace {
        Some(workspace) => Some(tree(stage, attach, workspace, pid)?),
        None => None,
    };
    let into =
        ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), into).step(|| "enter the sandbox".into())?;
    if let Some(tree) = tree {
        // A link in its place is not followed; and everything is resolved within the sandbox's own root.
        rustix::mount::move_mount(tree.as_fd(), "", CWD, inside::WORKSPACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step(|| "mount the workspace".into())?;
    }
    if let Some(name) = &attach.hostname {
        rustix::system::sethostname(name.as_bytes()).step(|| "set the host name".into())?;
        let _ = fs::write("/etc/hostname", format!("{name}\n"));
        let _ = fs::write("/etc/hosts", inside::hosts(name));
    }
    message::send(answer.as_fd(), &Answer::Done, &[]).step(|| "answer the node".into())
}

/// A mount of a volume.
pub(super) fn disk(stage: &Stage, asked: &Disk, answer: &OwnedFd) -> Result<(), Failure> {
    let gone = || Failure { step: "find the pod".into(), errno: libc::ESRCH };
    let whose = asked.shift.map(|pid| Pid::from_raw(pid).ok_or_else(gone)).transpose()?;
    let ids = whose.map(user_namespace).transpose()?;
    let tree = disk::detached(&asked.directory, asked.bytes)?;
    let set = if stage.guards.has(Guards::MOUNT_FLAGS) { sys::ATTR_NOSUID | sys::ATTR_NODEV } else { 0 };
    sys::mount_setattr(tree.as_fd(), set, ids.as_ref().map(AsFd::as_fd), false)
        .step(|| format!("prepare the mount of {}", asked.directory.display()))?;
    message::send(answer.as_fd(), &Answer::Done, &[tree.as_fd()]).step(|| "answer the node".into())
}

/// Copies of mounts for the pod whose first process this is, with its ids.
pub(super) fn trees(stage: &Stage, asked: &Trees, answer: &OwnedFd) -> Result<(), Failure> {
    let pid = Pid::from_raw(asked.pid).ok_or_else(|| Failure { step: "find the pod".into(), errno: libc::ESRCH })?;
    let ids = if asked.shift { Some(user_namespace(pid)?) } else { None };
    const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mut set = 0;
    if stage.guards.has(Guards::MOUNT_FLAGS) {
        set |= sys::ATTR_NOSUID | sys::ATTR_NODEV;
    }
    if asked.devices {
        flags |= OpenTreeFlags::AT_RECURSIVE;
        set &= !sys::ATTR_NODEV;
    }
    if asked.read_only {
        set |= sys::ATTR_RDONLY;
    }
    let mut trees = Vec::new();
    for path in &asked.paths {
        let what = || format!("open {}", path.display());
        // Somebody who may write there may have put a link into the path since it was looked at.
        let real = rustix::fs::openat2(CWD, path, PATH, Mode::empty(), ResolveFlags::NO_SYMLINKS).step(what)?;
        let tree = rustix::mount::open_tree(&real, "", flags).step(what)?;
        sys::mount_setattr(tree.as_fd(), set, ids.as_ref().map(AsFd::as_fd), asked.devices)
            .step(|| format!("prepare the mount of {}", path.display()))?;
        trees.push(tree);
    }
    let trees: Vec<_> = trees.iter().map(AsFd::as_fd).collect();
    message::send(answer.as_fd(), &Answer::Done, &trees).step(|| "answer the node".into())
}
