//! What is done once, before there is a second thread.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::spawn::{SCRIPT_FD, STATE_FD};

/// Takes a descriptor that our parent left open for us, off the low numbers. Commands do not inherit it.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an inherited descriptor must not be a standard one"));
    }
    // SAFETY: the borrow lives for one call, and duplicating a number that is not open is an error, no harm.
    let moved = rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 10)?;
    // SAFETY: it is open, as was just seen, and nothing else in this process owns it: it was there before us.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(moved)
}

/// Closes all that our parent left open and did not mean for us, and occupies the numbers under which commands get
/// descriptors, so that nothing of ours ever has one of them. Gives back what occupies them, `/dev/null`.
pub(crate) fn own_descriptors(kept: Option<&OwnedFd>) -> io::Result<[OwnedFd; 2]> {
    let kept = kept.map_or(2, |fd| fd.as_raw_fd().cast_unsigned());
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: at the start of the process, before the runtime, nothing has opened a descriptor above the
            // standard ones but `kept`, which is spared: none that anybody owns is closed.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    let occupy = |number: i32| {
        let fd = rustix::io::fcntl_dupfd_cloexec(&null, number)?;
        let taken = || io::Error::new(io::ErrorKind::AddrInUse, format!("descriptor {number} is in use"));
        (fd.as_raw_fd() == number).then_some(fd).ok_or_else(taken)
    };
    Ok([occupy(SCRIPT_FD)?, occupy(STATE_FD)?])
}

/// Has the allocator give memory back: a burst must not be held for the rest of a sandbox's idle life.
pub(crate) fn lean_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets the allocator's own numbers; there is no second thread yet.
    unsafe {
        // Threads that work on files for a moment need no arenas of their own.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        // Above what a stream's frames take, so that they come from the heap, whose pages are there already.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}
