//! Pseudo-terminals.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetpgrp, tcsetwinsize};

/// Our end, which never blocks, and the processes' end.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    // By our end and not by its name: whatever is mounted on /dev/pts, this is the other end.
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    resize(&ours, 80, 24)?;
    Ok((ours, theirs))
}

pub(crate) fn resize(ours: &OwnedFd, cols: u16, rows: u16) -> io::Result<()> {
    Ok(tcsetwinsize(ours, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}

/// The group that runs in the terminal's foreground.
pub(crate) fn foreground(ours: &OwnedFd) -> Option<Pid> {
    tcgetpgrp(ours).ok()
}

/// A signal by its name, with or without SIG.
pub(crate) fn signal(name: &str) -> Option<Signal> {
    let name = name.to_ascii_uppercase();
    Some(match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TERM" => Signal::TERM,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "TSTP" => Signal::TSTP,
        "WINCH" => Signal::WINCH,
        _ => return None,
    })
}
