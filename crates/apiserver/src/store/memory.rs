//! Everything live, and the latest events, in memory: what get, list and watch are answered from.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::watch;

use super::key::{Entry, Key, Place};

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) rev: u64,
    /// The object after the change; for a deletion its last state with the deletion's revision inside.
    pub(crate) entry: Arc<Entry>,
    /// The object before the change; none for a creation.
    pub(crate) prev: Option<Arc<Entry>>,
    pub(crate) deleted: bool,
}

impl Event {
    /// What keeping this event costs: its predecessor is mostly kept anyway, by the event before or the live map.
    fn weight(&self) -> usize {
        self.entry.json.len() + 256
    }
}

/// A consistent view of one resource.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The revision at which this was the truth; a watch from it continues without gap or repetition.
    pub(crate) rev: u64,
    /// How many more there are behind the limit.
    pub(crate) remaining: usize,
}

/// Which events somebody wants.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    All,
    Of { group: Arc<str>, resource: Arc<str>, namespace: Option<Arc<str>> },
}

impl Scope {
    fn holds(&self, key: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Of { namespace, .. } => namespace.as_ref().is_none_or(|it| *it == key.namespace),
        }
    }
}

/// How much history stays in memory, over all resources.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// The latest events in order of revision, and the bell that rings for a new one.
pub(super) struct Feed {
    events: VecDeque<Arc<Event>>,
    /// Every event after this revision is in `events`.
    dropped: u64,
    bell: Arc<watch::Sender<u64>>,
}

impl Feed {
    fn new(dropped: u64) -> Self {
        Self { events: VecDeque::new(), dropped, bell: Arc::new(watch::Sender::new(dropped)) }
    }

    fn after(&self, rev: u64) -> impl Iterator<Item = &Arc<Event>> {
        self.events.range(self.events.partition_point(|it| it.rev <= rev)..)
    }

    fn drop_oldest(&mut self) -> Option<Arc<Event>> {
        let oldest = self.events.pop_front()?;
        self.dropped = oldest.rev;
        Some(oldest)
    }
}

struct Shelf {
    objects: BTreeMap<Place, Arc<Entry>>,
    feed: Feed,
}

/// What a reader at some revision finds in a feed.
pub(super) enum Found {
    /// It had fallen behind what is kept here.
    Behind,
    /// Events for it, oldest first, and the revision through which the feed has been looked at.
    Events(VecDeque<Arc<Event>>, u64),
}

/// Names of what changed since an older revision, with what was there then.
pub(super) type Undo = BTreeMap<Place, Option<Arc<Entry>>>;

pub(super) struct Memory {
    pub(super) revision: u64,
    /// States and events before this revision are not in the log any more.
    pub(super) compacted: u64,
    /// The revision at opening: what happened before is in the log only.
    opened: u64,
    shelves: HashMap<Arc<str>, HashMap<Arc<str>, Shelf>>,
    all: Feed,
    weight: usize,
    window: Window,
}

impl Memory {
    pub(super) fn new(revision: u64, compacted: u64, live: Vec<Entry>, window: Window) -> Self {
        let all = Feed::new(revision);
        let shelves = HashMap::new();
        let mut memory = Self { revision, compacted, opened: revision, shelves, all, weight: 0, window };
        for mut entry in live {
            memory.intern(&mut entry.key);
            let shelf = memory.shelf(&entry.key.group, &entry.key.resource);
            shelf.objects.insert(entry.key.place(), Arc::new(entry));
        }
        memory
    }

    fn find(&self, group: &str, resource: &str) -> Option<&Shelf> {
        self.shelves.get(group)?.get(resource)
    }

    /// Lets the key share the strings of those before it.
    pub(super) fn intern(&self, key: &mut Key) {
        if let Some((group, resources)) = self.shelves.get_key_value(&key.group) {
            key.group = group.clone();
            if let Some((resource, _)) = resources.get_key_value(&key.resource) {
                key.resource = resource.clone();
            }
        }
    }

    /// The resource's shelf, made when this is its first use.
    fn shelf(&mut self, group: &Arc<str>, resource: &Arc<str>) -> &mut Shelf {
        let resources = self.shelves.entry(group.clone()).or_default();
        let opened = self.opened;
        let empty = || Shelf { objects: BTreeMap::new(), feed: Feed::new(opened) };
        resources.entry(resource.clone()).or_insert_with(empty)
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.find(&key.group, &key.resource)?.objects.get(&key.place())
    }

    /// How many objects each shelf has.
    pub(super) fn counts(&self) -> BTreeMap<(Arc<str>, Arc<str>), usize> {
        let shelves = self.shelves.iter().flat_map(|(group, resources)| {
            resources.iter().map(|(resource, shelf)| ((group.clone(), resource.clone()), shelf.objects.len()))
        });
        shelves.collect()
    }

    /// Every live object, resource by resource.
    pub(super) fn everything(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.shelves.values().flat_map(HashMap::values).flat_map(|shelf| shelf.objects.values())
    }

    /// Every live object of a namespace.
    pub(super) fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Entry>> {
        let first = Place { namespace: namespace.into(), name: "".into() };
        let shelves = self.shelves.values().flat_map(HashMap::values);
        let of = move |shelf: &'a Shelf| {
            shelf.objects.range(first.clone()..).take_while(move |it| *it.0.namespace == *namespace).map(|it| it.1)
        };
        shelves.flat_map(of)
    }

    /// The resource's objects in order, strictly after a key, as they are but for what `undo` says was otherwise.
    pub(super) fn list(
        &self,
        (group, resource, namespace): (&str, &str, Option<&str>),
        after: Option<&Key>,
        limit: Option<usize>,
        undo: &Undo,
    ) -> Listed {
        let mut listed = Listed { rev: self.revision, ..Listed::default() };
        let limit = limit.unwrap_or(usize::MAX);
        let empty = BTreeMap::new();
        let objects = self.find(group, resource).map_or(&empty, |shelf| &shelf.objects);
        let start = match (after, namespace) {
            (Some(key), _) => Bound::Excluded(key.place()),
            (None, Some(namespace)) => Bound::Included(Place { namespace: namespace.into(), name: "".into() }),
            (None, None) => Bound::Unbounded,
        };
        let within = |place: &Place| namespace.is_none_or(|it| *place.namespace == *it);
        let mut now = objects.range((start.clone(), Bound::Unbounded)).take_while(|it| within(it.0)).peekable();
        let mut then = undo.range((start, Bound::Unbounded)).take_while(|it| within(it.0)).peekable();
        loop {
            let undone = match (now.peek(), then.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(live), Some(old)) => old.0 <= live.0,
            };
            let entry = if undone {
                let Some((place, old)) = then.next() else { break };
                now.next_if(|live| live.0 == place);
                old.as_ref()
            } else {
                now.next().map(|it| it.1)
            };
            let Some(entry) = entry else { continue };
            if listed.entries.len() < limit {
                listed.entries.push(entry.clone());
            } else {
                listed.remaining += 1;
            }
        }
        listed
    }

    /// Adds to `undo` what the events after `rev` changed. False when they are not all kept here.
    pub(super) fn undo(&self, group: &str, resource: &str, rev: u64, undo: &mut Undo) -> bool {
        let Some(shelf) = self.find(group, resource) else { return rev >= self.opened };
        if rev < shelf.feed.dropped {
            return false;
        }
        for event in shelf.feed.after(rev) {
            undo.entry(event.entry.key.place()).or_insert_with(|| event.prev.clone());
        }
        true
    }

    /// At most `max` of the events after `rev`.
    pub(super) fn events(&self, scope: &Scope, rev: u64, max: usize) -> Found {
        let feed = match scope {
            Scope::All => &self.all,
            Scope::Of { group, resource, .. } => match self.find(group, resource) {
                Some(shelf) => &shelf.feed,
                None if rev < self.opened => return Found::Behind,
                None => return Found::Events(VecDeque::new(), self.revision.max(rev)),
            },
        };
        if rev < feed.dropped {
            return Found::Behind;
        }
        let mut looked = self.revision.max(rev);
        let mut events = VecDeque::new();
        for (at, event) in feed.after(rev).enumerate() {
            if at == max {
                break;
            }
            looked = event.rev;
            if scope.holds(&event.entry.key) {
                events.push_back(event.clone());
            }
        }
        // Looked at all of them: everything up to now has been seen, what happened elsewhere included.
        if feed.events.back().is_none_or(|newest| newest.rev <= looked) {
            looked = self.revision.max(rev);
        }
        Found::Events(events, looked)
    }

    /// The revision after which every event of the scope is kept here.
    pub(super) fn kept_after(&self, scope: &Scope) -> u64 {
        match scope {
            Scope::All => self.all.dropped,
            Scope::Of { group, resource, .. } => self.find(group, resource).map_or(self.opened, |it| it.feed.dropped),
        }
    }

    /// Rings at every new revision.
    pub(super) fn any_bell(&self) -> watch::Receiver<u64> {
        self.all.bell.subscribe()
    }

    /// The bell that rings when the scope may have an event.
    pub(super) fn bell(&mut self, scope: &Scope) -> watch::Receiver<u64> {
        match scope {
            Scope::All => self.all.bell.subscribe(),
            Scope::Of { group, resource, .. } => self.shelf(group, resource).feed.bell.subscribe(),
        }
    }

    /// Takes over what was committed, in order of revision. Returns the bells to ring once the lock is free.
    pub(super) fn publish(&mut self, events: &[Arc<Event>]) -> Vec<Arc<watch::Sender<u64>>> {
        let mut bells = vec![self.all.bell.clone()];
        for event in events {
            let key = &event.entry.key;
            let shelf = self.shelf(&key.group, &key.resource);
            if event.deleted {
                shelf.objects.remove(&key.place());
            } else {
                shelf.objects.insert(key.place(), event.entry.clone());
            }
            shelf.feed.events.push_back(event.clone());
            if !bells.iter().any(|bell| Arc::ptr_eq(bell, &shelf.feed.bell)) {
                bells.push(shelf.feed.bell.clone());
            }
            self.all.events.push_back(event.clone());
            self.weight += event.weight();
            self.revision = event.rev;
        }
        while self.all.events.len() > self.window.events || self.weight > self.window.bytes {
            let Some(oldest) = self.all.drop_oldest() else { break };
            self.weight -= oldest.weight();
            self.shelf(&oldest.entry.key.group, &oldest.entry.key.resource).feed.drop_oldest();
        }
        bells
    }
}
