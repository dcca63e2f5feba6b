//! System calls that neither std nor rustix offers, each behind a safe function.
#![allow(unsafe_code, reason = "clone3, mount_setattr, close_range, execveat and fork exist only as raw system calls")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

/// What [`fork`] and [`clone_into`] return, on either side.
pub(crate) enum Fork {
    Child,
    Parent { child: Pid, pidfd: Option<OwnedFd> },
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks. The caller must be single-threaded: the launcher is, and nobody else calls this.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: no other thread exists (the launcher never makes one), so the child's memory, its allocator's locks
    // included, is consistent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent { child: pid_of(pid.into())?, pidfd: None }),
    }
}

/// Forks into new namespaces and, if given, into a control group of version 2; the child is a sibling of the caller (its
/// parent is the caller's parent).
pub(crate) fn clone_into(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    clone(namespaces | libc::CLONE_PARENT as u64, 0, cgroup)
}

/// The same, as a child of the caller.
pub(crate) fn clone_child(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    clone(namespaces, libc::SIGCHLD as u64, cgroup)
}

fn clone(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let into = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | into | libc::CLONE_PIDFD as u64,
        exit_signal,
        cgroup: cgroup.map_or(0, |it| it.as_raw_fd() as u64),
        pidfd: &raw mut pidfd as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with no new stack this is a fork of a single-threaded process; `args` has the size
    // given and `pidfd` outlives the call. libc's cached ids are not used by the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        // SAFETY: the kernel stored a fresh descriptor that nobody else owns.
        pid => Ok(Fork::Parent { child: pid_of(pid)?, pidfd: Some(unsafe { OwnedFd::from_raw_fd(pidfd) }) }),
    }
}

fn pid_of(raw: i64) -> io::Result<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

pub(crate) const ATTR_RDONLY: u64 = 0x1;
pub(crate) const ATTR_NOSUID: u64 = 0x2;
pub(crate) const ATTR_NODEV: u64 = 0x4;
pub(crate) const ATTR_NOEXEC: u64 = 0x8;
const ATTR_IDMAP: u64 = 0x0010_0000;

/// Sets attributes of the mount that `tree` is the root of, and with `ids` (a user namespace) maps the owners of its
/// files into it.
pub(crate) fn mount_setattr(
    tree: BorrowedFd<'_>,
    set: u64,
    ids: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: set | if ids.is_some() { ATTR_IDMAP } else { 0 },
        userns_fd: ids.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..MountAttr::default()
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal and `attr` has the size given; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: called right before exec, in a process that uses none of these descriptors afterwards.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on as to be closed by exec.
pub(crate) fn cloexec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag on descriptors, touches no memory.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `fd` known under exactly the number `to`, inherited by exec.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: dup2 touches no memory; whoever owned the number `to` is gone (the caller is about to exec).
    match unsafe { libc::dup2(fd.as_raw_fd(), to) } {
        -1 => Err(io::Error::last_os_error()),
        _ if fd.as_raw_fd() == to => {
            // SAFETY: clears the close-on-exec flag; dup2 of a number onto itself would have left it.
            match unsafe { libc::fcntl(to, libc::F_SETFD, 0) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Replaces this process by the program open at `program`. Returns only on failure.
pub(crate) fn exec(program: BorrowedFd<'_>, args: &[&CStr], env: &[&CStr]) -> io::Error {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are NULL-terminated and, like the strings they point to, outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Replaces this process by the program at a path, which may be a script. Returns only on failure.
pub(crate) fn exec_path(program: &CStr, args: &[&CStr], env: &[&CStr]) -> io::Error {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|it| it.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays are NULL-terminated and, like the strings they point to, outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Sends a signal by its number, real-time ones too.
pub(crate) fn signal(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is given, so no memory is read.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor but these.
pub(crate) fn close_all_but(kept: &[&OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = kept.iter().map(|it| it.as_raw_fd()).collect();
    kept.sort_unstable();
    let mut from = 0;
    for number in kept.into_iter().chain([RawFd::MAX]) {
        if number > from {
            // SAFETY: called in a process that was just forked and that uses no other descriptor any more.
            let done = unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Ends this process at once, running nothing of the parent's exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` is always sound; a forked child must not run the handlers of the process it was copied from.
    unsafe { libc::_exit(code) }
}

/// Makes others see this word as all the arguments of this process, which was forked and goes on without them. The caller
/// must be single-threaded: a shim is.
pub(crate) fn set_arguments(word: &str) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, in brackets, may have anything in it. Of the fields behind it, counted from the third.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|it| it.parse::<usize>().ok());
    let (Some(start), Some(end)) = (field(48), field(49)) else { return Err(io::ErrorKind::InvalidData.into()) };
    let length =
        end.checked_sub(start).filter(|it| start != 0 && *it > word.len()).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel says that these bytes of our stack are our arguments. They are writable, no other thread exists,
    // and nobody has a reference to them: std reads them anew whenever it is asked, and would find no more than this word.
    unsafe {
        let place = std::ptr::with_exposed_provenance_mut::<u8>(start);
        std::ptr::write_bytes(place, 0, length);
        std::ptr::copy_nonoverlapping(word.as_ptr(), place, word.len());
    }
    Ok(())
}

/// Moves this process into fresh namespaces. The caller must be single-threaded: the launcher is.
pub(crate) fn unshare(namespaces: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags that could invalidate descriptors or memory others rely on (FILES, FS) are never given.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces) }?)
}

/// Brings the loopback device of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The network namespace that a socket is in.
pub(crate) fn network_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u64 = 0x894c;
    // SAFETY: takes no argument, and returns a fresh descriptor that nobody else owns.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) } {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Lets the runtime wait for a descriptor.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives, and the AsyncFd owns it.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// Takes the descriptor that exec left under `number`.
///
/// Call it once per number: whoever holds the result closes it.
pub(crate) fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the process was started with this descriptor and nothing else in it has taken ownership of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A descriptor that becomes readable when a child of this process ends; blocks SIGCHLD for the calling thread.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before use; the calls touch only it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Gives every signal its default action and blocks none: what a program expects to be started with.
pub(crate) fn reset_signals() {
    // SAFETY: `set` is initialised before use; setting a default action cannot run code of ours.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Locks the whole of an open file for as long as it is open; `false` when somebody else has it.
pub(crate) fn lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: the kernel reads one flock, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            error => Err(error),
        },
    }
}

/// Whether somebody else has locked the file; takes no lock to find out.
pub(crate) fn is_locked(file: BorrowedFd<'_>) -> io::Result<bool> {
    let mut lock = whole_file(libc::F_RDLCK);
    // SAFETY: the kernel writes one flock, which outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for a session keyring of one's own: something that only a filter refuses.
pub(crate) fn join_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is touched.
    let done =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_GET_STATUS64: u64 = 0x4c05;
const LOOP_SET_CAPACITY: u64 = 0x4c07;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Device and inode of the file under a loop device.
pub(crate) fn loop_backing(device: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: an all-zero value is valid for this plain C struct.
    let mut info: LoopInfo = unsafe { std::mem::zeroed() };
    // SAFETY: LOOP_GET_STATUS64 fills one loop_info64, which outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) } {
        // The kernel tells the device in the encoding of stat.
        0 => Ok((info.device, info.inode)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of a loop device that nobody uses; it is made if need be.
pub(crate) fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: takes no argument.
    match unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) } {
        -1 => Err(io::Error::last_os_error()),
        number => u32::try_from(number).map_err(io::Error::other),
    }
}

/// Puts `image` under a loop device, which frees itself after its last user.
pub(crate) fn loop_configure(device: BorrowedFd<'_>, image: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an all-zero value is valid for this plain C struct.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = image.as_raw_fd() as u32;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    // SAFETY: LOOP_CONFIGURE reads one loop_config, which outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells a loop device that its file has become longer.
pub(crate) fn loop_grow(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no argument.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY as _, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the mounted ext4 that `file` is in so many blocks.
pub(crate) fn ext4_grow(file: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
    // SAFETY: the kernel reads one u64, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps SIGUSR1 for [`wait_for_word`], also in a first process, which ignores what it does not handle.
pub(crate) fn hold_word() -> io::Result<()> {
    // SAFETY: `set` is initialised by sigemptyset before use.
    let done = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until somebody sends the SIGUSR1 that [`hold_word`] keeps.
pub(crate) fn wait_for_word() {
    // SAFETY: `set` is initialised by sigemptyset before use, `signal` is written to.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        let mut signal = 0;
        libc::sigwait(&raw const set, &raw mut signal);
    }
}
