//! Which ids of the host a sandbox has.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::launcher::{self, Handle, IdMap, Ranges, Rootless, Setup};
use crate::{Error, Guards};

/// Ids of the host that no account has: 4,096 slots of 65,536 from here, as root.
const BASE: u32 = 0x5000_0000;
const SLOT: u32 = 0x1_0000;
const SLOTS: u32 = 4096;

/// What this node maps into its sandboxes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ids {
    /// As root, a range of its own for each; files of the host are shown shifted by it.
    Slots,
    /// As root on a file system that cannot shift: the same range for all.
    OneSlot,
    /// As anybody else: the user's own id and, where there are any, his subordinate ones, in the launcher's namespace.
    Own { count: u32 },
}

impl Ids {
    /// A slot that none of `used` is.
    pub(super) fn slot(&self, used: &BTreeSet<u32>) -> Option<u32> {
        match self {
            Self::Slots => (0..SLOTS).find(|it| !used.contains(it)),
            Self::OneSlot => Some(0),
            Self::Own { .. } => None,
        }
    }

    pub(crate) fn map(&self, slot: Option<u32>) -> Vec<IdMap> {
        match self {
            Self::Slots | Self::OneSlot => {
                vec![IdMap { inside: 0, outside: BASE + slot.unwrap_or(0) * SLOT, count: SLOT }]
            }
            Self::Own { count } => vec![IdMap { inside: 0, outside: 0, count: *count }],
        }
    }

    /// Of a pod that has no user namespace of its own.
    pub(crate) fn same() -> Vec<IdMap> {
        vec![IdMap { inside: 0, outside: 0, count: u32::MAX }]
    }

    /// The host's number of an id inside. None where it is the same, or where only the launcher knows.
    pub(crate) fn outside(&self, slot: Option<u32>, id: u32) -> Option<u32> {
        match self {
            Self::Slots | Self::OneSlot if id < SLOT => Some(BASE + slot.unwrap_or(0) * SLOT + id),
            _ => None,
        }
    }

    /// The number that a file has on the disk whose owner is this id inside. None where it cannot be had.
    pub(crate) fn on_disk(&self, id: u32) -> Option<u32> {
        match self {
            Self::Slots => Some(id),
            Self::OneSlot => self.outside(None, id),
            Self::Own { .. } => None,
        }
    }

    /// There is such an id inside.
    pub(crate) fn has(&self, id: u32) -> bool {
        match self {
            Self::Slots | Self::OneSlot => id < SLOT,
            Self::Own { count } => id < *count,
        }
    }

    pub(super) fn needs_slot(&self) -> bool {
        *self == Self::Slots
    }

    /// The node is root.
    pub(crate) fn is_root(&self) -> bool {
        !matches!(self, Self::Own { .. })
    }

    pub(crate) fn shift(&self) -> bool {
        *self == Self::Slots
    }

    /// Makes a directory of ours the sandbox's root's, where it would not seem so by itself.
    pub(crate) fn own(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::OneSlot if fs::metadata(dir)?.uid() == 0 => std::os::unix::fs::chown(dir, Some(BASE), Some(BASE)),
            _ => Ok(()),
        }
    }
}

pub(crate) type Opened<F> = (Ids, Handle, F, Setup);

/// Starts the launcher of sandboxes that run `execd` (`None`: that try things) with as many ids as can be had: root's, then a range, then one.
pub(crate) async fn open_launcher(
    program: &Path,
    data: &Path,
    execd: Option<&Path>,
    runsc: Option<&Path>,
    guards: Guards,
) -> Result<Opened<impl Future<Output = ()> + Send + use<>>, Error> {
    let setup = |rootless| Setup {
        stage: data.join("stage"),
        rootless,
        program: execd.map(Path::to_owned),
        runsc: runsc.map(Path::to_owned),
        lock: data.join("lock"),
        guards,
    };
    if is_root() {
        let setup = setup(None);
        let (handle, listen) = open(program, &setup, None).await?;
        let ids = if handle.found.shift { Ids::Slots } else { Ids::OneSlot };
        return Ok((ids, handle, listen, setup));
    }
    if let Some(ranges) = ranges() {
        let setup = setup(Some(Rootless::Range));
        let count = count(&ranges);
        match open(program, &setup, Some(ranges)).await {
            Ok((handle, listen)) => return Ok((Ids::Own { count }, handle, listen, setup)),
            Err(error) => tracing::warn!(error = kit::chain(&error), "sandboxes have one user id only"),
        }
    }
    let setup = setup(Some(Rootless::One));
    let (handle, listen) = open(program, &setup, None).await?;
    Ok((Ids::Own { count: 1 }, handle, listen, setup))
}

/// The same launcher once more.
pub(super) async fn reopen_launcher(
    program: &Path,
    setup: &Setup,
) -> Result<(Handle, impl Future<Output = ()> + Send + use<>), Error> {
    let ranges = if matches!(setup.rootless, Some(Rootless::Range)) { ranges() } else { None };
    open(program, setup, ranges).await
}

async fn open(
    program: &Path,
    setup: &Setup,
    ranges: Option<Ranges>,
) -> Result<(Handle, impl Future<Output = ()> + Send + use<>), Error> {
    launcher::Handle::open(program, setup, ranges).await.map_err(Error::machine("make sandboxes on this machine"))
}

/// Root of the machine, not of some namespace that lacks the rights.
pub(crate) fn is_root() -> bool {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None).is_ok_and(|it| it.effective.contains(needed))
}

/// Ids that the launcher's namespace gets, 0 and those that follow without a gap.
fn count(ranges: &Ranges) -> u32 {
    let sum = |lines: &[[u32; 3]]| lines.iter().map(|it| it[2]).sum::<u32>();
    sum(&ranges.uids).min(sum(&ranges.gids))
}

/// Our own id as 0, and above it the first range of /etc/subuid and of /etc/subgid.
pub(crate) fn ranges() -> Option<Ranges> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then_some(name)
    });
    let line = |file: &str, own: u32| {
        let (start, count) = subordinate(&fs::read_to_string(file).ok()?, name, uid)?;
        // More than a container image ever uses, and the same for both.
        Some(vec![[0, own, 1], [1, start, count.min(65_535)]])
    };
    Some(Ranges { uids: line("/etc/subuid", uid)?, gids: line("/etc/subgid", gid)? })
}

/// The first range of a user in a file of `name:start:count` lines, by name or by number.
fn subordinate(text: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let whose = fields.next()?;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        ((Some(whose) == name || whose == uid.to_string()) && count > 0).then_some((start, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sandbox_of_root_has_a_range_of_its_own() {
        let used = BTreeSet::from([0, 1, 3]);
        assert_eq!(Ids::Slots.slot(&used), Some(2));
        assert_eq!(Ids::Slots.map(Some(2)), [IdMap { inside: 0, outside: 0x5002_0000, count: 65_536 }]);
        assert_eq!(Ids::Slots.slot(&(0..SLOTS).collect()), None, "all are in use");
        assert!(BASE.checked_add(SLOTS * SLOT).is_some());
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let file = "ann:100000:65536\n# a comment\n1001:300000:10\nbob:400000:0\n";
        assert_eq!(subordinate(file, Some("ann"), 1000), Some((100_000, 65_536)));
        assert_eq!(subordinate(file, Some("carl"), 1001), Some((300_000, 10)));
        assert_eq!(subordinate(file, Some("bob"), 1002), None);
    }
}
