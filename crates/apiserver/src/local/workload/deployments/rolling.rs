//! How many pods each ReplicaSet of a Deployment shall have, without I/O.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::local::workload::share;

/// A ReplicaSet, as far as its size is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) replicas: i32,
    pub(super) available: i32,
    /// How many pods the Deployment could have at most when this one was scaled last.
    pub(super) most: i32,
}

/// The bounds of a Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) replicas: i32,
    pub(super) surge: i32,
    pub(super) unavailable: i32,
}

impl Bounds {
    pub(super) fn new(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let surge = surge.map_or(0, |it| share(it, replicas, true));
        let unavailable = unavailable.map_or(0, |it| share(it, replicas, false));
        // One of them has to move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas.max(0)) }
    }

    /// How many have to be available.
    pub(super) fn least(self) -> i32 {
        self.replicas.saturating_sub(self.unavailable)
    }

    pub(super) fn most(self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }
}

fn sum(sets: impl IntoIterator<Item = i32>) -> i32 {
    sets.into_iter().fold(0, i32::saturating_add)
}

/// How large the new one becomes next.
pub(super) fn next_new(bounds: Bounds, new: Set, old: &[Set]) -> i32 {
    if new.replicas >= bounds.replicas {
        return bounds.replicas;
    }
    let have = sum(old.iter().map(|it| it.replicas)).saturating_add(new.replicas);
    let room = bounds.most().saturating_sub(have);
    new.replicas.saturating_add(room.min(bounds.replicas.saturating_sub(new.replicas)).max(0))
}

/// How large the old ones (oldest first) become next: first what does not work anyway goes, then what can be spared.
pub(super) fn next_old(bounds: Bounds, new: Set, old: &[Set]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|it| it.replicas).collect();
    let least = bounds.least();
    let all = sum(sizes.iter().copied()).saturating_add(new.replicas);
    let mut spare = all.saturating_sub(least).saturating_sub(new.replicas.saturating_sub(new.available));
    if spare <= 0 {
        return sizes;
    }
    for (size, it) in sizes.iter_mut().zip(old) {
        let gone = spare.min(it.replicas.saturating_sub(it.available)).clamp(0, it.replicas.max(0));
        *size -= gone;
        spare -= gone;
    }
    let available = sum(old.iter().map(|it| it.available)).saturating_add(new.available);
    let mut spare = available.saturating_sub(least).max(0);
    for size in &mut sizes {
        let gone = spare.min(*size).max(0);
        *size -= gone;
        spare -= gone;
    }
    sizes
}

/// How large the active ones become when the Deployment is scaled while it rolls: each in proportion. They are in order
/// of who gets what is left over.
pub(super) fn in_proportion(bounds: Bounds, sets: &[Set]) -> Vec<i32> {
    let total = sum(sets.iter().map(|it| it.replicas));
    let allowed = if bounds.replicas > 0 { bounds.most() } else { 0 };
    let add = allowed.saturating_sub(total);
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(sets.len());
    for it in sets {
        let left = add.saturating_sub(added);
        let mut more = 0;
        if it.replicas != 0 && add != 0 && left != 0 {
            let share = fraction(bounds, *it);
            more = if add > 0 { share.min(left) } else { share.max(left) };
        }
        added = added.saturating_add(more);
        sizes.push(it.replicas.saturating_add(more).max(0));
    }
    if add != 0
        && let Some(first) = sizes.first_mut()
    {
        *first = first.saturating_add(add.saturating_sub(added)).max(0);
    }
    sizes
}

fn fraction(bounds: Bounds, it: Set) -> i32 {
    if bounds.replicas == 0 || it.most == 0 {
        return it.replicas.saturating_neg();
    }
    let scaled = f64::from(it.replicas) * f64::from(bounds.most()) / f64::from(it.most);
    #[allow(clippy::cast_possible_truncation, reason = "at most some i32, rounded")]
    let scaled = scaled.round() as i32;
    scaled.saturating_sub(it.replicas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32, available: i32) -> Set {
        Set { replicas, available, most: 0 }
    }

    fn bounds(replicas: i32, surge: i32, unavailable: i32) -> Bounds {
        Bounds { replicas, surge, unavailable }
    }

    #[test]
    fn bounds_are_rounded_so_that_something_can_move() {
        let percent = |it: &str| IntOrString::String(it.to_owned());
        for (replicas, surge, unavailable, want) in [
            (10, percent("25%"), percent("25%"), bounds(10, 3, 2)),
            (1, percent("25%"), percent("25%"), bounds(1, 1, 0)),
            (3, percent("0%"), percent("10%"), bounds(3, 0, 1)),
            (2, IntOrString::Int(0), IntOrString::Int(5), bounds(2, 0, 2)),
            (0, IntOrString::Int(1), IntOrString::Int(0), bounds(0, 1, 0)),
        ] {
            assert_eq!(Bounds::new(replicas, Some(&surge), Some(&unavailable)), want);
        }
    }

    #[test]
    fn a_rolling_update_never_has_too_many_or_too_few() {
        for (surge, unavailable) in [(0, 1), (1, 0), (1, 1), (3, 2), (10, 10)] {
            let bounds = bounds(10, surge, unavailable);
            let (mut new, mut old) = (set(0, 0), vec![set(4, 4), set(6, 6)]);
            for round in 0.. {
                assert!(round < 100, "it does not end: {bounds:?} {new:?} {old:?}");
                let before = (new, old.clone());
                new.replicas = next_new(bounds, new, &old);
                if new == before.0 {
                    for (it, size) in old.iter_mut().zip(next_old(bounds, new, &before.1)) {
                        *it = set(size, size.min(it.available));
                    }
                }
                let all: i32 = new.replicas + old.iter().map(|it| it.replicas).sum::<i32>();
                let available: i32 = new.available + old.iter().map(|it| it.available).sum::<i32>();
                assert!(all <= 10 + surge && available >= 10 - unavailable, "{bounds:?} {new:?} {old:?}");
                if (new, old.clone()) == before {
                    if new.available == 10 {
                        break;
                    }
                    // One more becomes available only when nothing else can be done.
                    assert!(new.available < new.replicas, "it is stuck: {bounds:?} {new:?} {old:?}");
                    new.available += 1;
                }
            }
            assert_eq!((new, old), (set(10, 10), vec![set(0, 0); 2]));
        }
    }

    #[test]
    fn what_does_not_work_goes_first() {
        // 10 are wanted, 8 must be available; 6 of the older and 2 of the newer are.
        assert_eq!(next_old(bounds(10, 3, 2), set(3, 0), &[set(5, 6), set(5, 2)]), [5, 3]);
        assert_eq!(next_old(bounds(10, 3, 2), set(5, 0), &[set(8, 8)]), [8]);
        assert_eq!(next_old(bounds(10, 3, 2), set(5, 5), &[set(8, 8)]), [3]);
    }

    #[test]
    fn scaling_while_rolling_is_in_proportion() {
        let it = |replicas| Set { replicas, available: replicas, most: 13 };
        for (replicas, surge, sets, want) in [
            // From 10 (and 3 more) to 15.
            (15, 3, [it(8), it(5)], [11, 7]),
            (5, 3, [it(8), it(5)], [5, 3]),
            (0, 3, [it(8), it(5)], [0, 0]),
            (10, 3, [it(8), it(5)], [8, 5]),
        ] {
            assert_eq!(in_proportion(bounds(replicas, surge, 0), &sets), want, "{replicas}");
        }
    }
}
