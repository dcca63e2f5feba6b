//! What of the store goes when the disk fills, by a kubelet's thresholds.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::load::is_empty;
use super::name::Digest;
use super::{Images, blocking};
use crate::sys;

/// A kubelet's `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent` and `imageMinimumGCAge`.
const HIGH: u64 = 85;
const LOW: u64 = 80;
const YOUNGEST: Duration = Duration::from_secs(120);

/// What is known of an image when somebody must go.
#[derive(Clone, Debug)]
struct Candidate {
    id: Digest,
    bytes: u64,
    used: Timestamp,
    /// Somebody has named it, and it cannot be had again or there is no need for room.
    named: bool,
    loaded: bool,
}

/// Which images go: those that no container uses and no name keeps; and as long as the disk (`total`, `free` bytes) is
/// fuller than it may be, those from registries that were used longest ago.
fn plan(mut all: Vec<Candidate>, in_use: &BTreeSet<String>, total: u64, free: u64, now: Timestamp) -> Vec<Digest> {
    all.retain(|it| !in_use.contains(it.id.as_str()) && now.duration_since(it.used).unsigned_abs() >= YOUNGEST);
    let (mut gone, mut freed) = (Vec::new(), 0u64);
    let mut rest = Vec::new();
    for it in all {
        if it.named {
            rest.push(it);
        } else {
            freed = freed.saturating_add(it.bytes);
            gone.push(it.id);
        }
    }
    let share = |percent: u64| u64::try_from(u128::from(total) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    let used = total.saturating_sub(free);
    if used >= share(HIGH) {
        let needed = used - share(LOW);
        rest.retain(|it| !it.loaded);
        rest.sort_by_key(|it| it.used);
        for it in rest {
            if freed >= needed {
                break;
            }
            freed = freed.saturating_add(it.bytes);
            gone.push(it.id);
        }
    }
    gone
}

impl Images {
    /// Removes what goes by a kubelet's rules, given the ids of the images that containers use; says how many images went.
    /// When an image is being added, nothing: the next time, then.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub(crate) async fn collect(&self, in_use: &BTreeSet<String>) -> io::Result<usize> {
        let (store, in_use) = (self.store.clone(), in_use.clone());
        blocking(move || {
            let (total, free) = store.disk()?;
            let now = store.clock().now();
            let removed = store.collect(|index| {
                let candidate = |(id, it): (&Digest, &super::store::Record)| Candidate {
                    id: id.clone(),
                    bytes: it.size.saturating_add(it.unpacked),
                    used: store.about(&it.root).map_or(it.added, |(_, used)| used.max(it.added)),
                    named: it.is_named(),
                    loaded: it.loaded,
                };
                plan(index.images.iter().map(candidate).collect(), &in_use, total, free, now)
            })?;
            Ok::<_, io::Error>(removed.map_or(0, |it| it.len()))
        })
        .await
    }

    /// Removes what no name keeps, beside no node: `false` when one works in `data` or has left containers there, which
    /// may use it.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn clear_unnamed(&self, data: &Path) -> io::Result<bool> {
        let lock = match File::options().read(true).write(true).open(data.join("lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if lock.as_ref().map(|it| sys::is_locked(it.as_fd())).transpose()? == Some(true)
            || !is_empty(&data.join("pods"))
        {
            return Ok(false);
        }
        let store = self.store.clone();
        let cleared = blocking(move || {
            store.collect(|index| {
                index.images.iter().filter(|(_, it)| !it.is_named()).map(|(id, _)| id.clone()).collect()
            })
        });
        Ok(cleared.await?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, bytes: u64, used: i64, named: bool, loaded: bool) -> Candidate {
        Candidate { id: Digest::of(name.as_bytes()), bytes, used: Timestamp::from_second(used).unwrap(), named, loaded }
    }

    #[test]
    fn what_nobody_wants_goes_and_under_pressure_what_was_used_longest_ago() {
        let all = || {
            vec![
                candidate("unnamed", 1, 0, false, false),
                candidate("young", 1, 990, false, false),
                candidate("old", 30, 100, true, false),
                candidate("older", 30, 50, true, false),
                candidate("newer", 30, 200, true, false),
                candidate("loaded", 500, 10, true, true),
                candidate("in use", 500, 10, true, false),
                candidate("in use, unnamed", 500, 10, false, false),
            ]
        };
        let in_use = ["in use", "in use, unnamed"].map(|it| Digest::of(it.as_bytes()).to_string()).into();
        let now = Timestamp::from_second(1000).unwrap();
        let ids = |names: &[&str]| names.iter().map(|it| Digest::of(it.as_bytes())).collect::<Vec<_>>();
        assert_eq!(plan(all(), &in_use, 1000, 151, now), ids(&["unnamed"]), "84.9 per cent are not full");
        // 50 must go to come from 85 to 80 per cent; one is there.
        assert_eq!(plan(all(), &in_use, 1000, 150, now), ids(&["unnamed", "older", "old"]));
        assert_eq!(plan(all(), &in_use, 1000, 0, now), ids(&["unnamed", "older", "old", "newer"]), "all that may");
        let back = Timestamp::from_second(-5000).unwrap();
        assert_eq!(plan(all(), &in_use, 1000, 900, back).len(), 2, "a clock that was set back keeps nothing for ever");
    }
}
