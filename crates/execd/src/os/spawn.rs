//! Starting a command's first process.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Resource, Rlimit};

use super::identity::Identity;
use super::tree::Mark;

/// Where a session's shell writes its state. One digit, because that is all that a POSIX shell can redirect.
pub(crate) const STATE_FD: i32 = 9;
/// Where a shell finds a script too long for an argument.
pub(crate) const SCRIPT_FD: i32 = 8;

/// Everything that a first process is given.
pub(crate) struct Spawn {
    pub program: OsString,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Further descriptors and the numbers under which the process finds them.
    pub extra: Vec<(OwnedFd, i32)>,
    pub identity: Option<Identity>,
    pub mark: Option<Mark>,
    /// The process's controlling terminal is its stdin.
    pub terminal: bool,
    /// The limit on descriptors that execd itself was given, before it raised its own.
    pub files: Rlimit,
}

impl Spawn {
    /// Starts it in a session of its own. When this fails nothing was started; the error is the kernel's
    /// (`NotFound`, `PermissionDenied`, EAGAIN at the pids limit, E2BIG, ...).
    pub(crate) fn start(self) -> io::Result<Pid> {
        let Self { program, args, env, cwd, stdin, stdout, stderr, extra, identity, mark, terminal, files } = self;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(env).current_dir(cwd);
        command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
        let groups = identity.as_ref().map(Identity::raw_groups);
        let prepare = move || -> io::Result<()> {
            rustix::process::setsid()?;
            if terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            if let Some(mark) = mark {
                mark.put_on_self()?;
            }
            rustix::process::setrlimit(Resource::Nofile, files)?;
            for (fd, number) in &extra {
                // SAFETY: dup2 of a descriptor that lives as long as this closure, to a number that nothing in this
                // process refers to: the standard library's own descriptors are closed by exec. Async-signal-safe.
                if unsafe { libc::dup2(fd.as_raw_fd(), *number) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            if let (Some(identity), Some(groups)) = (&identity, &groups) {
                // A user namespace whose setgroups is denied has no groups to drop either.
                let _ = rustix::thread::set_thread_groups(groups);
                rustix::thread::set_thread_gid(identity.raw_gid())?;
                rustix::thread::set_thread_uid(identity.raw_uid())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec `prepare` makes system calls only (rustix's raw ones and dup2): it allocates
        // nothing, takes no lock and touches no state but what it owns; what it returns is an errno.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn()?;
        Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}
