//! Who is asked, parsed once and kept until it changes.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::watch;

use super::hook::Hook;
use super::quota::Quotas;
use crate::store::{Entry, Store};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

/// What admission keeps between requests. One per server.
pub(crate) struct Admission {
    pub(crate) quotas: Quotas,
    kept: RwLock<Kept>,
}

struct Kept {
    bells: [watch::Receiver<u64>; 2],
    /// None before anybody has asked.
    held: Option<Arc<Held>>,
}

/// Everybody who is asked, in upstream's order: by the names of the configurations.
#[derive(Default)]
pub(super) struct Held {
    pub(super) mutating: Vec<Arc<Configuration>>,
    pub(super) validating: Vec<Arc<Configuration>>,
}

/// One object of hooks.
pub(super) struct Configuration {
    rev: u64,
    pub(super) hooks: Vec<Hook>,
}

impl Admission {
    pub(crate) fn new(store: &Store) -> Self {
        let bells = [MUTATING, VALIDATING].map(|resource| store.bell(GROUP, resource));
        Self { quotas: Quotas::new(), kept: RwLock::new(Kept { bells, held: None }) }
    }

    /// As the store has them now: who has seen a configuration written is judged by it.
    pub(super) fn now(&self, store: &Store) -> Arc<Held> {
        {
            let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = &kept.held
                && !kept.bells.iter().any(|it| it.has_changed().unwrap_or(true))
            {
                return held.clone();
            }
        }
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        // Marked before it is looked at: what rings meanwhile is looked at again.
        for bell in &mut kept.bells {
            bell.borrow_and_update();
        }
        let before = kept.held.take().unwrap_or_default();
        let read = |resource: &str, known: &[Arc<Configuration>]| {
            let entries = store.list(GROUP, resource, None, None, None).entries;
            let one = |entry: &Arc<Entry>| match known.iter().find(|it| it.rev == entry.rev) {
                Some(known) => known.clone(),
                None => Arc::new(Configuration::new(entry)),
            };
            entries.iter().map(one).collect::<Vec<_>>()
        };
        let held = Arc::new(Held {
            mutating: read(MUTATING, &before.mutating),
            validating: read(VALIDATING, &before.validating),
        });
        kept.held = Some(held.clone());
        held
    }
}

impl Configuration {
    fn new(entry: &Entry) -> Self {
        let object = entry.value();
        let hooks = object.get("webhooks").and_then(Value::as_array).into_iter().flatten().enumerate();
        let hook = |(at, hook): (usize, &Value)| Hook::new(&entry.key.name, at, hook);
        Self { rev: entry.rev, hooks: hooks.map(hook).collect() }
    }
}
