//! What all sandboxes share, built once in the launcher's own mount namespace: the host's read-only layers, /etc without
//! the host's secrets, /dev, and the places to mount at.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use super::{Failure, Found, Setup, Step, disk};
use crate::guard::{Guards, Seccomp};
use crate::sys::{self, Fork};

/// What a distribution puts programs and libraries into; on most of them all but the first are links into it.
const PROGRAMS: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What of the host's /etc programs need to run at all: no accounts, no keys, no names of machines. Only what everybody
/// on the host may read is taken.
const ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "inputrc",
    "java-8-openjdk",
    "java-11-openjdk",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "lsb-release",
    "magic",
    "magic.mime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls/certs",
    "profile",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "redhat-release",
    "rpc",
    "security/limits.conf",
    "services",
    "shells",
    "skel",
    "ssl/certs",
    "ssl/cert.pem",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "alpine-release",
    "apk/arch",
];
/// More than this of one file or of all is not configuration.
const ETC_FILE: u64 = 4 << 20;
const ETC_ALL: u64 = 32 << 20;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
    mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n\
    www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
    user:x:1000:1000:user:/home/user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nstaff:x:50:\n\
    users:x:100:\nuser:x:1000:\nnogroup:x:65534:\n";

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// A directory of the root that comes from the host.
pub(super) struct Lower {
    pub name: String,
    pub source: PathBuf,
}

/// A file system with `low/NAME`, `new`, `dev`, `empty`: the working directory of the launcher and of all that it forks.
/// What is in it has relative names only, for the directories above may be closed to the ids of sandboxes, and a sandbox
/// reads the names in its list of mounts.
pub(super) struct Stage {
    /// The program of every sandbox, on a read-only mount of its own: it is a file of the host, and inside, /proc/1/exe
    /// leads to it.
    pub program: Option<OwnedFd>,
    /// There is a `runsc` beside the places to mount at, read-only too.
    pub runsc: bool,
    pub lowers: Vec<Lower>,
    /// Links in the root, as on the host: name and target.
    pub links: Vec<(String, PathBuf)>,
    pub seccomp: Seccomp,
    pub guards: Guards,
    pub found: Found,
}

impl Stage {
    pub(super) fn build(setup: &Setup) -> Result<Self, Failure> {
        let (dir, root) = (setup.stage.as_path(), setup.rootless.is_none());
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .step(|| "keep the launcher's mounts to itself".into())?;
        let program = setup.program.as_deref().map(|it| read_only(it, setup.guards)).transpose()?;
        // What is mounted for one sandbox is beside the stage: pods keep a copy of that, with all that is mounted in it.
        tmpfs(dir, 1 << 20, "0711", MountFlags::NOSUID | MountFlags::NODEV)?;
        let own = dir.join("stage");
        for it in [&own, &own.join(disk::MOUNTS)] {
            fs::create_dir(it).step(|| format!("make {}", it.display()))?;
        }
        tmpfs(&own, 64 << 20, "0711", MountFlags::NOSUID | MountFlags::NODEV)?;
        rustix::process::chdir(&own).step(|| "enter the stage".into())?;
        let (mut lowers, mut links) = (Vec::new(), Vec::new());
        for &name in PROGRAMS {
            let path = Path::new("/").join(name);
            let Ok(found) = path.symlink_metadata() else { continue };
            if found.is_dir() {
                lowers.push(Lower { name: name.into(), source: path });
            } else if let Ok(target) = path.read_link() {
                links.push((name.into(), target));
            }
        }
        let etc = PathBuf::from("etc");
        build_etc(&etc).step(|| "gather /etc".into())?;
        lowers.push(Lower { name: "etc".into(), source: etc });
        for it in lowers
            .iter()
            .map(|it| format!("low/{}", it.name))
            .chain(["new", "empty", "proc", "pod", "image", "devices"].map(Into::into))
        {
            fs::create_dir_all(&it).step(|| format!("make {it}"))?;
        }
        build_dev(Path::new("dev"))?;
        // Sandboxes and other pods do without.
        let runsc = setup.runsc.as_deref().is_some_and(|it| place_runsc(it, setup.guards).is_ok());
        let seccomp = crate::guard::program();
        let found = Found { overlay: false, shift: false };
        let mut stage = Self { program, runsc, lowers, links, seccomp, guards: setup.guards, found };
        let data = dir.parent().unwrap_or(dir);
        stage.found = Found { overlay: stage.overlay_works(), shift: root && stage.shift_works(data).unwrap_or(false) };
        Ok(stage)
    }

    /// Mounts one as a sandbox would.
    fn overlay_works(&self) -> bool {
        in_user_namespace(|| {
            let at = Path::new("new");
            tmpfs(at, 1 << 20, "0755", MountFlags::NODEV).map_err(|_| io::Error::other("tmpfs"))?;
            for name in ["u", "w", "m"] {
                fs::create_dir(at.join(name))?;
            }
            let lower = self.lowers.first().map(|it| it.source.clone()).unwrap_or_default();
            overlay(&lower, &at.join("u"), &at.join("w"), &at.join("m"))?;
            fs::write(at.join("m/probe"), "x")
        })
    }

    /// Shifts every layer, and what is kept for workspaces, by a user namespace's map.
    fn shift_works(&self, data: &Path) -> io::Result<bool> {
        let (hold, held) = super::message::pair()?;
        match sys::fork()? {
            Fork::Child => {
                drop(hold);
                let said = sys::unshare(UnshareFlags::NEWUSER).is_ok();
                let _ = super::message::send(held.as_fd(), &said, &[]);
                let _ = super::message::receive::<bool>(held.as_fd());
                sys::exit_now(0)
            }
            Fork::Parent { child, .. } => {
                drop(held);
                let works = || -> io::Result<()> {
                    super::message::receive::<bool>(hold.as_fd())?;
                    fs::write(format!("/proc/{}/uid_map", child.as_raw_nonzero()), "0 1342177280 65536")?;
                    fs::write(format!("/proc/{}/gid_map", child.as_raw_nonzero()), "0 1342177280 65536")?;
                    let ids = fs::File::open(format!("/proc/{}/ns/user", child.as_raw_nonzero()))?;
                    for source in self.lowers.iter().map(|it| it.source.as_path()).chain([data]) {
                        shifted(source, &ids.as_fd())?;
                    }
                    Ok(())
                };
                let result = works();
                drop(hold);
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
                Ok(result.is_ok())
            }
        }
    }
}

/// A file of the host that nobody in a sandbox can change, whoever it belongs to.
fn read_only(path: &Path, guards: Guards) -> Result<OwnedFd, Failure> {
    let step = || format!("open {}", path.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags).step(step)?;
    if guards.has(Guards::MOUNT_FLAGS) {
        let set = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV;
        sys::mount_setattr(tree.as_fd(), set, None, false).step(step)?;
    }
    Ok(tree)
}

fn place_runsc(path: &Path, guards: Guards) -> Result<(), Failure> {
    let (tree, at) = (read_only(path, guards)?, super::sentry::PROGRAM);
    fs::write(at, "").step(|| format!("make {at}"))?;
    rustix::mount::move_mount(tree.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| format!("place {}", path.display()))
}

/// A read-only copy of the mount at `source` whose files are owned by the same ids inside `ids`.
pub(super) fn shifted(source: &Path, ids: &impl AsFd) -> io::Result<OwnedFd> {
    let tree =
        rustix::mount::open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let set = sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV;
    sys::mount_setattr(tree.as_fd(), set, Some(ids.as_fd()), false)?;
    Ok(tree)
}

pub(super) fn tmpfs(at: &Path, bytes: u64, mode: &str, flags: MountFlags) -> Result<(), Failure> {
    let options = std::ffi::CString::new(format!("size={bytes},mode={mode}"))
        .map_err(|_| Failure { step: "name a size".into(), errno: libc::EINVAL })?;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, Some(options.as_c_str()))
        .step(|| format!("mount a tmpfs at {}", at.display()))
}

pub(super) fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path) -> io::Result<()> {
    let path = |it: &Path| it.display().to_string().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:");
    let options = std::ffi::CString::new(format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        path(lower),
        path(upper),
        path(work)
    ))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    Ok(rustix::mount::mount("overlay", at, "overlay", flags, Some(options.as_c_str()))?)
}

/// Runs `attempt` as the root of a fresh user and mount namespace in a process of its own; whether it worked.
fn in_user_namespace(attempt: impl FnOnce() -> io::Result<()>) -> bool {
    match sys::fork() {
        Ok(Fork::Child) => {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let enter = || -> io::Result<()> {
                sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
                fs::write("/proc/self/setgroups", "deny")?;
                fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
                fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
            };
            sys::exit_now(i32::from(enter().and_then(|()| attempt()).is_err()))
        }
        Ok(Fork::Parent { child, .. }) => {
            let done = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
            matches!(done, Ok(Some((_, status))) if status.exit_status() == Some(0))
        }
        Err(_) => false,
    }
}

fn build_etc(to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut left = ETC_ALL;
    for name in ETC {
        let target = to.join(name);
        if !Path::new("/etc").join(name).exists() {
            continue;
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        copy(&Path::new("/etc").join(name), &target, &mut left)?;
    }
    for (name, text) in [
        ("passwd", PASSWD),
        ("group", GROUP),
        ("resolv.conf", "# no resolver: names are resolved by the egress proxy\n"),
        ("host.conf", "multi on\n"),
    ] {
        fs::write(to.join(name), text)?;
    }
    fs::write(to.join("shadow"), "root:*:19000:0:99999:7:::\n")?;
    fs::set_permissions(to.join("shadow"), std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    // Programs look here for mounts.
    symlink("/proc/self/mounts", to.join("mtab"))
}

/// Copies files, links and directories that everybody may read; leaves out what it cannot.
fn copy(from: &Path, to: &Path, left: &mut u64) -> io::Result<()> {
    let Ok(found) = from.symlink_metadata() else { return Ok(()) };
    if found.is_symlink() {
        symlink(from.read_link()?, to)?;
    } else if found.is_dir() && found.mode() & 0o005 == 0o005 {
        fs::create_dir_all(to)?;
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        for entry in entries.flatten() {
            copy(&entry.path(), &to.join(entry.file_name()), left)?;
        }
    } else if found.is_file() && found.mode() & 0o004 != 0 && found.len() <= ETC_FILE.min(*left) {
        let Ok(file) = fs::File::open(from) else { return Ok(()) };
        let mut bytes = Vec::new();
        file.take(ETC_FILE).read_to_end(&mut bytes)?;
        *left = left.saturating_sub(bytes.len() as u64);
        fs::write(to, bytes)?;
        fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(found.mode() & 0o755))?;
    }
    Ok(())
}

/// A read-only /dev, for all that need none of their own.
fn build_dev(at: &Path) -> Result<(), Failure> {
    fs::create_dir(at).step(|| "make dev".into())?;
    fill_dev(at, Path::new("/dev"), 64 << 10)?;
    let tree = rustix::mount::open_tree(CWD, at, OpenTreeFlags::OPEN_TREE_CLOEXEC).step(|| "open dev".into())?;
    // The devices too, which are the host's: nobody may change their modes, and writing to one needs no such right.
    sys::mount_setattr(tree.as_fd(), sys::ATTR_RDONLY, None, true).step(|| "make /dev read-only".into())
}

/// The few devices that programs need, as they are at `from`, places for terminals and shared memory, and nothing else.
pub(super) fn fill_dev(at: &Path, from: &Path, bytes: u64) -> Result<(), Failure> {
    tmpfs(at, bytes, "0755", MountFlags::NOSUID | MountFlags::NOEXEC)?;
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(at.join(name)).step(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, at.join(name)).step(|| format!("link /dev/{name}"))?;
    }
    // Where the last words of a pod's container are mounted.
    fs::write(at.join("termination-log"), "").step(|| "make /dev/termination-log".into())?;
    for name in DEVICES {
        let to = at.join(name);
        rustix::fs::open(&to, rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC, Mode::from_raw_mode(0o666))
            .step(|| format!("make /dev/{name}"))?;
        rustix::mount::mount_bind(from.join(name), &to).step(|| format!("show /dev/{name}"))?;
    }
    Ok(())
}
