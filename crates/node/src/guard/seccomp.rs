//! The system call filter: what a program in a sandbox has no business calling, family by family, each with its reason.
//!
//! Everything else is allowed: what runs here is whatever an agent writes, so a list of what is allowed would break
//! tomorrow's libc. Namespaces, capabilities and Landlock guard the same doors; the filter also keeps kernel code out of
//! reach that has a history of holes.

use libc::{
    EAFNOSUPPORT, ENOSYS, EPERM, SYS_acct, SYS_add_key, SYS_adjtimex, SYS_bpf, SYS_clock_adjtime, SYS_clock_settime,
    SYS_clone, SYS_clone3, SYS_delete_module, SYS_fanotify_init, SYS_finit_module, SYS_fsconfig, SYS_fsmount,
    SYS_fsopen, SYS_fspick, SYS_init_module, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl,
    SYS_kcmp, SYS_kexec_file_load, SYS_kexec_load, SYS_keyctl, SYS_lookup_dcookie, SYS_mknodat, SYS_mount,
    SYS_mount_setattr, SYS_move_mount, SYS_name_to_handle_at, SYS_nfsservctl, SYS_open_by_handle_at, SYS_open_tree,
    SYS_perf_event_open, SYS_pidfd_getfd, SYS_pivot_root, SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace,
    SYS_quotactl, SYS_quotactl_fd, SYS_reboot, SYS_request_key, SYS_setns, SYS_settimeofday, SYS_socket,
    SYS_socketpair, SYS_swapoff, SYS_swapon, SYS_syslog, SYS_umount2, SYS_unshare, SYS_userfaultfd, SYS_vhangup,
};
use seccompiler::sock_filter;

/// Which calls of a system call are denied.
enum When {
    Always,
    /// The argument has one of these bits.
    Bits(u8, u32),
    /// The argument is one of these.
    Is(u8, &'static [u32]),
    /// The argument is none of these.
    IsNot(u8, &'static [u32]),
}

struct Denied {
    calls: &'static [i64],
    when: When,
    errno: i32,
}

const fn always(calls: &'static [i64], errno: i32) -> Denied {
    Denied { calls, when: When::Always, errno }
}

const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
const NEW_TIME_NAMESPACE: u32 = 0x80;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const PTRACE_ATTACH: u32 = 16;
const PTRACE_SEIZE: u32 = 0x4206;

const DENIED: &[Denied] = &[
    // Mounts: what is visible is decided outside, once.
    always(
        &[
            SYS_mount,
            SYS_umount2,
            SYS_pivot_root,
            SYS_open_tree,
            SYS_move_mount,
            SYS_fsopen,
            SYS_fsconfig,
            SYS_fsmount,
            SYS_fspick,
            SYS_mount_setattr,
        ],
        EPERM,
    ),
    // Namespaces: inside a new one a process has every capability, and with them most of the kernel's holes.
    Denied { calls: &[SYS_unshare], when: When::Bits(0, NAMESPACES | NEW_TIME_NAMESPACE), errno: EPERM },
    Denied { calls: &[SYS_clone], when: When::Bits(0, NAMESPACES), errno: EPERM },
    always(&[SYS_setns], EPERM),
    // clone3 hides its flags behind a pointer; libc falls back to clone.
    always(&[SYS_clone3], ENOSYS),
    // Attaching to others, or reaching into them: a process traces only what it starts itself.
    Denied { calls: &[SYS_ptrace], when: When::Is(0, &[PTRACE_ATTACH, PTRACE_SEIZE]), errno: EPERM },
    always(&[SYS_process_vm_readv, SYS_process_vm_writev, SYS_pidfd_getfd, SYS_kcmp], EPERM),
    // Keyrings are not namespaced by anything else than the user.
    always(&[SYS_add_key, SYS_request_key, SYS_keyctl], EPERM),
    // BPF runs programs in the kernel; perf shows what other programs do.
    always(&[SYS_bpf, SYS_perf_event_open], EPERM),
    // userfaultfd stops the kernel in the middle of a copy, which makes races exploitable.
    always(&[SYS_userfaultfd], EPERM),
    // io_uring acts where no filter sees it; libuv and others fall back on ENOSYS.
    always(&[SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register], ENOSYS),
    // Another kernel, or code in this one.
    always(&[SYS_kexec_load, SYS_kexec_file_load, SYS_init_module, SYS_finit_module, SYS_delete_module], EPERM),
    // The machine's clock, power, swap, accounting, quotas, log and consoles belong to the machine.
    always(&[SYS_clock_settime, SYS_clock_adjtime, SYS_settimeofday, SYS_adjtimex], EPERM),
    always(&[SYS_reboot, SYS_swapon, SYS_swapoff, SYS_acct, SYS_quotactl, SYS_quotactl_fd, SYS_syslog], EPERM),
    always(&[SYS_vhangup], EPERM),
    // Opening files by number walks past every directory that is not visible.
    always(&[SYS_open_by_handle_at, SYS_name_to_handle_at], EPERM),
    // Watching a whole file system shows what others do on it.
    always(&[SYS_fanotify_init], EPERM),
    // Left-overs of old kernels.
    always(&[SYS_lookup_dcookie, SYS_nfsservctl], ENOSYS),
    // Device nodes.
    Denied { calls: &[SYS_mknodat], when: When::Bits(2, libc::S_IFCHR), errno: EPERM },
    // Typing into somebody's terminal.
    Denied { calls: &[SYS_ioctl], when: When::Is(1, &[TIOCSTI, TIOCLINUX]), errno: EPERM },
    // Network families beside Unix, IPv4, IPv6 and netlink: vsock is not namespaced and reaches the hypervisor, the
    // others are old code that nobody here needs.
    Denied {
        calls: &[SYS_socket, SYS_socketpair],
        when: When::IsNot(
            0,
            &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32],
        ),
        errno: EAFNOSUPPORT,
    },
    #[cfg(target_arch = "x86_64")]
    Denied { calls: &[libc::SYS_mknod], when: When::Bits(1, libc::S_IFCHR), errno: EPERM },
    #[cfg(target_arch = "x86_64")]
    // Ports of the machine, descriptor tables of other bitnesses, and calls that have no implementation any more.
    always(&[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_uselib, libc::SYS_ustat, libc::SYS__sysctl], EPERM),
];

#[cfg(target_arch = "x86_64")]
pub(super) const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCH: u32 = 0xc000_00b7;
/// System calls of the x32 interface: the same calls by other numbers.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

/// The compiled filter.
pub(crate) type Program = Vec<sock_filter>;

pub(super) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(super) const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
pub(super) const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

pub(super) const fn op(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

const fn refuse(errno: i32) -> sock_filter {
    op(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0)
}

/// The low half of an argument: all that these calls look at.
const fn argument(index: u8) -> sock_filter {
    op(LOAD, 16 + 8 * index as u32, 0, 0)
}

/// How a filter begins: a foreign architecture's calls are refused as a whole. The number is loaded after it.
pub(super) fn native() -> Program {
    let mut out = vec![op(LOAD, ARCHITECTURE, 0, 0), op(EQUAL, ARCH, 1, 0), refuse(ENOSYS), op(LOAD, NUMBER, 0, 0)];
    #[cfg(target_arch = "x86_64")]
    out.extend([op(AT_LEAST, X32, 0, 1), refuse(ENOSYS)]);
    out
}

/// Compiles the filter that all are under.
pub(crate) fn program() -> Program {
    let mut out = native();
    for denied in DENIED {
        for &call in denied.calls {
            let body = body(denied);
            // Every list above is short: a jump is one byte.
            out.push(op(EQUAL, call as u32, 0, body.len() as u8));
            out.extend(body);
        }
    }
    out.push(op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    out
}

/// What to do when the number is the right one; falls through with the number loaded again when it may pass.
fn body(denied: &Denied) -> Vec<sock_filter> {
    match denied.when {
        When::Always => vec![refuse(denied.errno)],
        When::Bits(index, bits) => {
            vec![argument(index), op(ANY_BIT, bits, 0, 1), refuse(denied.errno), op(LOAD, NUMBER, 0, 0)]
        }
        When::Is(index, values) => {
            let mut out = vec![argument(index)];
            for &value in values {
                out.extend([op(EQUAL, value, 0, 1), refuse(denied.errno)]);
            }
            out.push(op(LOAD, NUMBER, 0, 0));
            out
        }
        When::IsNot(index, values) => {
            let mut out = vec![argument(index)];
            for (at, &value) in values.iter().enumerate() {
                // Over the rest of the list and the refusal.
                out.push(op(EQUAL, value, (values.len() - at) as u8, 0));
            }
            out.extend([refuse(denied.errno), op(LOAD, NUMBER, 0, 0)]);
            out
        }
    }
}

/// Puts this process and all that come from it under the filter. Needs no_new_privs.
pub(crate) fn apply(program: &Program) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(program)
}

#[cfg(test)]
mod tests {
    use super::super::simulated::verdict;
    use super::*;

    #[test]
    fn the_filter_refuses_by_number_by_argument_and_by_architecture() {
        let filter = program();
        let allow = libc::SECCOMP_RET_ALLOW;
        let errno = |it: i32| libc::SECCOMP_RET_ERRNO | it as u32;
        let cases: &[(i64, [u64; 3], u32)] = &[
            (libc::SYS_read, [0; 3], allow),
            (SYS_mount, [0; 3], errno(EPERM)),
            (SYS_clone3, [0; 3], errno(ENOSYS)),
            (SYS_clone, [(libc::CLONE_VM | libc::SIGCHLD) as u64, 0, 0], allow),
            (SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD) as u64, 0, 0], errno(EPERM)),
            (SYS_unshare, [libc::CLONE_FILES as u64, 0, 0], allow),
            (SYS_unshare, [NEW_TIME_NAMESPACE.into(), 0, 0], errno(EPERM)),
            (SYS_ptrace, [0, 0, 0], allow),
            (SYS_ptrace, [PTRACE_SEIZE.into(), 1, 0], errno(EPERM)),
            (SYS_socket, [libc::AF_INET6 as u64, 1, 0], allow),
            (SYS_socket, [libc::AF_UNIX as u64, 1, 0], allow),
            (SYS_socket, [libc::AF_VSOCK as u64, 1, 0], errno(EAFNOSUPPORT)),
            (SYS_ioctl, [0, 0x5401, 0], allow),
            (SYS_ioctl, [0, TIOCSTI.into(), 0], errno(EPERM)),
            (SYS_mknodat, [0, 0, libc::S_IFIFO.into()], allow),
            (SYS_mknodat, [0, 0, libc::S_IFBLK.into()], errno(EPERM)),
            (libc::SYS_read | 0x4000_0000, [0; 3], errno(ENOSYS)),
        ];
        for &(number, args, expected) in cases {
            assert_eq!(verdict(&filter, ARCH, number, &args), expected, "{number} {args:?}");
        }
        assert_eq!(verdict(&filter, 0x4000_0003, 1, &[0; 3]), errno(ENOSYS), "32-bit calls");
    }
}
