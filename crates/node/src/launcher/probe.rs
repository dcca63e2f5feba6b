//! What a sandbox's first process tries, where doctor wants to know what works: the code is there already, so no program
//! is needed that a machine may not have.

use std::fs;
use std::io::{self, Write};

use landlock::{AccessFs, Ruleset, RulesetAttr};
use serde::{Deserialize, Serialize};

use crate::sys::{self, Fork};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Probe {
    /// Ends with [`Works`] as its exit code.
    Look,
    /// Uses memory until it is killed, or this many bytes are used: then it ends with 0.
    Fill(u64),
    /// Forks this often; ends with 1 when it is refused before.
    Fork(u32),
    /// Waits to be killed.
    Wait,
    /// Waits for SIGUSR1, writes into /workspace, and ends with 0 when it is refused before so many bytes.
    FillWorkspace(u64),
    /// Has gVisor run a program, and ends as that does.
    Sentry,
}

/// What [`Probe::Look`] found, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Works(pub i32);

impl Works {
    pub(crate) const NETWORK: i32 = 1;
    pub(crate) const OVERLAY: i32 = 2;
    pub(crate) const MANY_IDS: i32 = 4;
    pub(crate) const SECCOMP: i32 = 8;
    pub(crate) const LANDLOCK: i32 = 16;
    pub(crate) const PROGRAMS: i32 = 32;

    pub(crate) fn has(self, bit: i32) -> bool {
        self.0 & bit != 0
    }
}

pub(super) fn run(probe: Probe) -> i32 {
    if sys::hold_word().is_err() {
        return 2;
    }
    // What exec would have closed: with this the node knows that we are here.
    let _ = sys::close_from(3);
    match probe {
        Probe::Look => look(),
        Probe::Fill(bytes) => {
            let mut all = Vec::new();
            while (all.len() as u64) < bytes >> 20 {
                // Written to, or the kernel would not have to find it.
                all.push(vec![1u8; 1 << 20]);
            }
            i32::from(std::hint::black_box(&all).is_empty())
        }
        Probe::Fork(times) => {
            for _ in 0..times {
                match sys::fork() {
                    Ok(Fork::Child) => wait(),
                    Ok(Fork::Parent { .. }) => {}
                    Err(_) => return 1,
                }
            }
            0
        }
        Probe::Wait => wait(),
        // Becomes another program before it comes here.
        Probe::Sentry => 2,
        Probe::FillWorkspace(bytes) => {
            sys::wait_for_word();
            let block = vec![b'x'; 1 << 20];
            let mut file = match fs::File::create("/workspace/fill") {
                Ok(file) => file,
                Err(_) => return 3,
            };
            for _ in 0..bytes >> 20 {
                if let Err(error) = file.write_all(&block) {
                    return if error.kind() == io::ErrorKind::StorageFull { 0 } else { 4 };
                }
            }
            1
        }
    }
}

fn wait() -> ! {
    loop {
        rustix::event::pause();
    }
}

fn look() -> i32 {
    let mut works = 0;
    let mut found = |bit: i32, ok: bool| works |= if ok { bit } else { 0 };
    found(Works::NETWORK, only_loopback().unwrap_or(false));
    found(Works::OVERLAY, overlay_over_etc().unwrap_or(false));
    found(Works::PROGRAMS, fs::create_dir_all("/usr/local/bin/probe").is_ok());
    found(Works::MANY_IDS, std::os::unix::fs::chown("/tmp", Some(1000), Some(1000)).is_ok());
    // Nothing but the filter refuses this: a keyring of one's own is everybody's right.
    found(Works::SECCOMP, sys::join_session_keyring().is_err_and(|it| it.raw_os_error() == Some(libc::EPERM)));
    found(Works::LANDLOCK, landlock_holds());
    works
}

/// Loopback is up, and there is no other device.
fn only_loopback() -> io::Result<bool> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let names: Vec<_> = devices.lines().skip(2).filter_map(|it| it.split(':').next()).map(str::trim).collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    std::net::TcpStream::connect(listener.local_addr()?)?;
    // Tunnel devices of old modules appear in every namespace, down.
    Ok(names.contains(&"lo") && !names.iter().any(|it| it.starts_with("eth") || it.starts_with("en")))
}

fn overlay_over_etc() -> io::Result<bool> {
    fs::write("/etc/probe", "x")?;
    Ok(fs::read_to_string("/proc/self/mounts")?.lines().any(|it| it.starts_with("overlay /etc ")))
}

/// A domain without a rule denies what it handles.
fn landlock_holds() -> bool {
    let handled = AccessFs::from_write(landlock::ABI::V1);
    let entered = Ruleset::default().handle_access(handled).and_then(Ruleset::create).and_then(|it| it.restrict_self());
    entered.is_ok() && fs::write("/tmp/landlock", "x").is_err()
}
