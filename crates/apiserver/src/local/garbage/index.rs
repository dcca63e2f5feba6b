use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::plan::{FOREGROUND, ORPHAN};
use crate::local::Meta;
use crate::store::{Entry, Event, Key};

/// Uids of what was deleted lately, remembered at most: their kinds may be gone before their dependents are looked at.
const GONE: usize = 4096;

/// Who depends on whom. Only what has owners is in it.
#[derive(Default)]
pub(super) struct Index {
    owners: HashMap<Key, Vec<String>>,
    dependents: HashMap<String, BTreeSet<Key>>,
    /// Objects that wait for their dependents before they go, by uid.
    waiting: HashMap<String, Key>,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
}

impl Index {
    /// Takes a change over. Returns what is to be looked at because of it.
    pub(super) fn observe(&mut self, event: &Event) -> Vec<Key> {
        if event.deleted { self.delete(&event.entry) } else { self.put(&event.entry, event.prev.as_deref()) }
    }

    pub(super) fn put(&mut self, entry: &Entry, before: Option<&Entry>) -> Vec<Key> {
        let (now, before) = (Meta::of(entry), before.map(Meta::of));
        if before.as_ref() == Some(&now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let uids: Vec<String> = now.owners().iter().map(|owner| owner.uid.clone()).collect();
        if before.as_ref().is_none_or(|it| it.owners() != now.owners()) {
            due.extend(self.unlink(&entry.key));
            for uid in &uids {
                self.dependents.entry(uid.clone()).or_default().insert(entry.key.clone());
            }
            if !uids.is_empty() {
                self.owners.insert(entry.key.clone(), uids);
            }
        }
        if now.is_deleting() && (now.has_finalizer(FOREGROUND) || now.has_finalizer(ORPHAN)) {
            self.waiting.insert(now.uid.clone(), entry.key.clone());
            due.extend(self.dependents(&now.uid).cloned());
            due.push(entry.key.clone());
        } else {
            self.waiting.remove(&now.uid);
        }
        if !now.owners().is_empty() {
            due.push(entry.key.clone());
            // An owner that waits may wait for a new state of this one.
            due.extend(now.owners().iter().filter_map(|owner| self.waiting.get(&owner.uid)).cloned());
        }
        due
    }

    fn delete(&mut self, entry: &Entry) -> Vec<Key> {
        let it = Meta::of(entry);
        let mut due = self.unlink(&entry.key);
        due.extend(self.dependents(&it.uid).cloned());
        self.waiting.remove(&it.uid);
        // Only what had dependents need be remembered.
        if self.dependents.contains_key(&it.uid) && self.gone.insert(it.uid.clone()) {
            self.gone_in_order.push_back(it.uid);
            if self.gone_in_order.len() > GONE
                && let Some(oldest) = self.gone_in_order.pop_front()
            {
                self.gone.remove(&oldest);
            }
        }
        due
    }

    /// Forgets the key's owners. Returns those of them that wait for it.
    fn unlink(&mut self, key: &Key) -> Vec<Key> {
        let mut due = Vec::new();
        for uid in self.owners.remove(key).into_iter().flatten() {
            due.extend(self.waiting.get(&uid).cloned());
            if let Some(all) = self.dependents.get_mut(&uid) {
                all.remove(key);
                if all.is_empty() {
                    self.dependents.remove(&uid);
                }
            }
        }
        due
    }

    pub(super) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.dependents.get(uid).into_iter().flatten()
    }

    pub(super) fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }
}
