//! What keeps a sandbox in, one by one. Several of them close the same door: belt and braces.

mod landlock;
mod privileges;
mod profile;
mod seccomp;
#[cfg(test)]
mod simulated;

use serde::{Deserialize, Serialize};

pub(crate) use landlock::restrict as landlock;
pub(crate) use privileges::{drop as drop_privileges, keep_no_new as no_new_privileges};
pub(crate) use profile::{Packed, TEXT as PROFILE, compile as profile, pack, unpack};
pub(crate) use seccomp::{Program as Seccomp, apply as seccomp, program};

/// The guards that are up. A product has all of them; only a build with the feature `holes` (our own tests) can take
/// one away, to show that the door it guards would stand open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guards(u32);

impl Guards {
    /// The host's file system is detached from the sandbox's.
    pub const ROOT: Self = Self(1 << 0);
    /// Own process ids.
    pub const PROCESSES: Self = Self(1 << 1);
    /// Own network, and with it own abstract sockets.
    pub const NETWORK: Self = Self(1 << 2);
    /// Own System V and POSIX IPC.
    pub const IPC: Self = Self(1 << 3);
    /// Parts of /proc masked or read-only.
    pub const PROC: Self = Self(1 << 4);
    /// Capabilities dropped, save those over the sandbox's own files and processes.
    pub const CAPABILITIES: Self = Self(1 << 5);
    /// No program gains rights by being executed.
    pub const NO_NEW_PRIVILEGES: Self = Self(1 << 6);
    /// Landlock: no mounts, no device nodes, no signals, traces or abstract sockets out.
    pub const LANDLOCK: Self = Self(1 << 7);
    /// The system call filter.
    pub const SECCOMP: Self = Self(1 << 8);
    /// No descriptor but those meant to be there.
    pub const DESCRIPTORS: Self = Self(1 << 9);
    /// Mounts refuse device nodes and set-user-id bits, that of the first program refuses changes.
    pub const MOUNT_FLAGS: Self = Self(1 << 10);

    /// All of them.
    pub const fn all() -> Self {
        Self((1 << 11) - 1)
    }

    pub(crate) const fn has(self, guard: Self) -> bool {
        self.0 & guard.0 == guard.0
    }

    /// All but `guard`.
    #[cfg(feature = "holes")]
    #[must_use]
    pub const fn without(self, guard: Self) -> Self {
        Self(self.0 & !guard.0)
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self::all()
    }
}
