use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::store::{Entry, Key};

/// A kind of Kubernetes' own, as a type.
pub(super) trait Kind: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static {
    fn key(&self) -> Key {
        key::<Self>(self.namespace(), self.name())
    }

    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.metadata().labels.as_ref()?.get(name).map(String::as_str)
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata().annotations.as_ref()?.get(name).map(String::as_str)
    }
}

impl<T: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static> Kind for T {}

pub(super) fn key<T: Kind>(namespace: &str, name: &str) -> Key {
    Key::new(T::GROUP, T::URL_PATH_SEGMENT, namespace, name)
}

/// The objects of one kind as they are in the store now; each is parsed once for each of its revisions, however often it
/// is read.
pub(super) struct Reader<T> {
    core: Arc<Core>,
    parsed: Mutex<Parsed<T>>,
}

struct Parsed<T> {
    all: HashMap<Key, Known<T>>,
    /// With so many, those that are gone are forgotten.
    most: usize,
}

/// The newest revision, and the one before: every loop that hears of a change compares the two.
struct Known<T> {
    now: (u64, Arc<T>),
    before: Option<(u64, Arc<T>)>,
}

impl<T: Kind> Reader<T> {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self { core: core.clone(), parsed: Mutex::new(Parsed { all: HashMap::new(), most: 64 }) }
    }

    /// None also for what does not parse: it was stored by a version that is no more.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.parse(&mut self.parsed(), &*self.core.store.get(&key::<T>(namespace, name))?)
    }

    /// In order of namespace and name.
    pub(super) fn list(&self, namespace: Option<&str>) -> Vec<Arc<T>> {
        let listed = self.core.store.list(T::GROUP, T::URL_PATH_SEGMENT, namespace, None, None).entries;
        let mut parsed = self.parsed();
        listed.iter().filter_map(|it| self.parse(&mut parsed, it)).collect()
    }

    /// An entry of this kind, from a list or an event.
    pub(super) fn of(&self, entry: &Entry) -> Option<Arc<T>> {
        self.parse(&mut self.parsed(), entry)
    }

    fn parsed(&self) -> MutexGuard<'_, Parsed<T>> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parse(&self, parsed: &mut Parsed<T>, entry: &Entry) -> Option<Arc<T>> {
        let known = parsed.all.get(&entry.key);
        let both = known.map(|it| [Some(&it.now), it.before.as_ref()]);
        if let Some((_, object)) = both.into_iter().flatten().flatten().find(|it| it.0 == entry.rev) {
            return Some(object.clone());
        }
        let newest = known.map(|it| it.now.0);
        let object: Arc<T> = match serde_json::from_slice(&entry.json) {
            Ok(object) => Arc::new(object),
            Err(error) => {
                tracing::warn!(key = ?entry.key, %error, "an object is not as its kind is");
                return None;
            }
        };
        // What is read of an older event is not what is asked for next.
        if newest.is_none_or(|newest| newest < entry.rev) {
            if parsed.all.len() >= parsed.most {
                parsed.all.retain(|key, _| self.core.store.get(key).is_some());
                parsed.most = parsed.all.len() * 2 + 64;
            }
            let before = parsed.all.remove(&entry.key).map(|it| it.now);
            parsed.all.insert(entry.key.clone(), Known { now: (entry.rev, object.clone()), before });
        }
        Some(object)
    }
}
