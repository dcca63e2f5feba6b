//! Permissions, directories, moving.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use wire::execd::Permission;

use crate::os::users::Users;
use crate::reply::{Problem, Result};

use super::{mode, problem};

/// Mode, owner and group as far as they are given.
pub(super) fn permissions(path: &Path, wanted: &Permission) -> Result<()> {
    let (uid, gid) = owners(wanted)?;
    let io = |error: io::Error| problem(path, &error);
    if uid.is_some() || gid.is_some() {
        chown(path, uid, gid).map_err(io)?;
    }
    // After the owner, because a change of owner takes set-id bits away.
    if let Some(mode) = given_mode(wanted)? {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io)?;
    }
    Ok(())
}

/// The mode, if one is given; 0 means none, as OpenSandbox has it.
pub(super) fn given_mode(wanted: &Permission) -> Result<Option<u32>> {
    wanted.mode.filter(|digits| *digits != 0).map(mode).transpose()
}

/// The ids of owner and group, as far as they are given.
pub(super) fn owners(wanted: &Permission) -> Result<(Option<u32>, Option<u32>)> {
    let given = |name: &Option<String>| name.as_deref().filter(|name| !name.is_empty()).map(str::to_owned);
    let (owner, group) = (given(&wanted.owner), given(&wanted.group));
    if owner.is_none() && group.is_none() {
        return Ok((None, None));
    }
    let users = Users::read();
    let unknown = |what: &str, name: &str| Problem::invalid(format!("there is no {what} {name} in this sandbox"));
    let uid = owner.map(|name| users.uid(&name).ok_or_else(|| unknown("user", &name))).transpose()?;
    let gid = group.map(|name| users.gid(&name).ok_or_else(|| unknown("group", &name))).transpose()?;
    Ok((uid, gid))
}

/// Makes a directory and its parents. What was there keeps its owner and mode; what is made gets the owner, and the last
/// one the mode.
pub(super) fn make_directory(path: &Path, wanted: &Permission) -> Result<()> {
    let owners = owners(wanted)?;
    let mode = given_mode(wanted)?;
    let made = make_parents(path)?;
    for made in &made {
        if owners != (None, None) {
            chown(made, owners.0, owners.1).map_err(|error| problem(made, &error))?;
        }
    }
    if let (Some(mode), Some(last)) = (mode, made.last()) {
        fs::set_permissions(last, fs::Permissions::from_mode(mode)).map_err(|error| problem(last, &error))?;
    }
    Ok(())
}

/// Makes what is missing of `path`, and tells which directories that were, outermost first.
pub(super) fn make_parents(path: &Path) -> Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = Vec::new();
    for at in path.ancestors() {
        match fs::metadata(at) {
            Ok(about) if about.is_dir() => break,
            Ok(_) => return Err(Problem::invalid(format!("{} is there and is no directory", at.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(at),
            Err(error) => return Err(problem(at, &error)),
        }
    }
    let mut made = Vec::new();
    for at in missing.into_iter().rev() {
        match fs::create_dir(at) {
            Ok(()) => made.push(at.to_owned()),
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && at.is_dir() => {}
            Err(error) => return Err(problem(at, &error)),
        }
    }
    Ok(made)
}

/// Moves `from` to `to`, whose parents are made and which must not be there.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::symlink_metadata(from).map_err(|error| problem(from, &error))?;
    if let Some(parent) = to.parent() {
        make_parents(parent)?;
    }
    let taken = || Problem::runtime(format!("destination path already exists: {}", to.display()));
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that does not know the flag.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(taken());
            }
            fs::rename(from, to)
        }
        other => other.map_err(io::Error::from),
    };
    match moved {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => across(from, to),
        Err(error) => Err(Problem::runtime(format!("{} to {}: {error}", from.display(), to.display()))),
    }
}

/// From one file system to another: a copy that takes the place once it is whole. Files only.
fn across(from: &Path, to: &Path) -> Result<()> {
    let mut source = super::readable(from).map_err(|problem| {
        let message = format!("{}; only a file can be moved to another file system", problem.message);
        Problem { message, ..problem }
    })?;
    let about = source.metadata().map_err(|error| problem(from, &error))?;
    let mut copy = super::replace::Replacement::new(to, Some(&about))?;
    io::copy(&mut source, copy.file()).map_err(|error| problem(to, &error))?;
    copy.finish()?;
    fs::remove_file(from).map_err(|error| problem(from, &error))
}
