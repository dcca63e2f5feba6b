//! Doing something to files with another user's rights.
#![allow(unsafe_code)]

use std::io;

use rustix::thread::{Gid, Uid};

/// A user's ids. `gid` and `groups` as the user database has them, unless the request said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Identity {
    pub(crate) fn raw_groups(&self) -> Vec<Gid> {
        self.groups.iter().map(|&gid| Gid::from_raw(gid)).collect()
    }

    pub(crate) fn raw_gid(&self) -> Gid {
        Gid::from_raw(self.gid)
    }

    pub(crate) fn raw_uid(&self) -> Uid {
        Uid::from_raw(self.uid)
    }
}

/// Runs `act` with the file-system rights of `identity`: the kernel checks permissions and stamps owners as for that
/// user. Only this thread is changed, and it is changed back before this returns.
///
/// Fails with `PermissionDenied` when this process may not take the identity (no CAP_SETUID, an id outside the map).
pub(crate) fn with<T>(identity: &Identity, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _back = Back { groups: rustix::process::getgroups()?, uid: own_uid(), gid: own_gid() };
    // Supplementary groups first, while we still may. A user namespace without a right to set them keeps ours: then
    // the one group must do, and the kernel still checks uid and gid.
    let _ = rustix::thread::set_thread_groups(&identity.raw_groups());
    fs_gid(identity.gid);
    fs_uid(identity.uid);
    // The calls answer with the previous id whatever happens: asking again tells whether it took.
    if fs_uid(identity.uid) != identity.uid || fs_gid(identity.gid) != identity.gid {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    act()
}

/// Gives the thread its own identity back, also when `act` panics.
struct Back {
    groups: Vec<Gid>,
    uid: u32,
    gid: u32,
}

impl Drop for Back {
    fn drop(&mut self) {
        fs_uid(self.uid);
        fs_gid(self.gid);
        let _ = rustix::thread::set_thread_groups(&self.groups);
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn own_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

fn fs_uid(uid: u32) -> u32 {
    // SAFETY: setfsuid takes one integer, touches no memory of ours and changes the calling thread only.
    let previous = unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    u32::try_from(previous & 0xffff_ffff).unwrap_or(u32::MAX)
}

fn fs_gid(gid: u32) -> u32 {
    // SAFETY: as for setfsuid.
    let previous = unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    u32::try_from(previous & 0xffff_ffff).unwrap_or(u32::MAX)
}
