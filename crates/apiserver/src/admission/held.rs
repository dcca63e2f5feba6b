//! Who is asked, parsed once and kept until it changes.

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::watch;

use super::hook::Hook;
use super::policy::{Binding, Policy};
use super::quota::Quotas;
use crate::object::schema::aside;
use crate::store::{Entry, Store};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";
const POLICIES: &str = "validatingadmissionpolicies";
const BINDINGS: &str = "validatingadmissionpolicybindings";

/// What admission keeps between requests. One per server.
pub(crate) struct Admission {
    pub(crate) quotas: Quotas,
    kept: RwLock<Kept>,
}

struct Kept {
    bells: [watch::Receiver<u64>; 4],
    /// None before anybody has asked.
    held: Option<Arc<Held>>,
}

/// Everybody who is asked, in upstream's order: by the names of the configurations.
#[derive(Default)]
pub(super) struct Held {
    pub(super) mutating: Vec<Arc<Configuration>>,
    pub(super) validating: Vec<Arc<Configuration>>,
    pub(super) policies: Vec<Arc<Policy>>,
    pub(super) bindings: Vec<Arc<Binding>>,
}

impl Held {
    /// Whether nobody judges what is written.
    pub(super) fn judges_nothing(&self) -> bool {
        self.validating.is_empty() && self.bindings.is_empty()
    }
}

/// One object of hooks.
pub(super) struct Configuration {
    rev: u64,
    pub(super) hooks: Vec<Hook>,
}

impl Admission {
    pub(crate) fn new(store: &Store) -> Self {
        let bells = [MUTATING, VALIDATING, POLICIES, BINDINGS].map(|resource| store.bell(GROUP, resource));
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
        let held = aside(|| Held {
            mutating: read(store, MUTATING, &before.mutating, |it| it.rev, Configuration::new),
            validating: read(store, VALIDATING, &before.validating, |it| it.rev, Configuration::new),
            policies: read(store, POLICIES, &before.policies, |it| it.rev, Policy::new),
            bindings: read(store, BINDINGS, &before.bindings, |it| it.rev, Binding::new),
        });
        let held = Arc::new(held);
        kept.held = Some(held.clone());
        held
    }
}

/// What there is of a resource; what has not changed is taken over.
fn read<T>(store: &Store, resource: &str, known: &[Arc<T>], rev: fn(&T) -> u64, new: fn(&Entry) -> T) -> Vec<Arc<T>> {
    let entries = store.list(GROUP, resource, None, None, None).entries;
    let one = |entry: &Arc<Entry>| match known.iter().find(|it| rev(it) == entry.rev) {
        Some(known) => known.clone(),
        None => Arc::new(new(entry)),
    };
    entries.iter().map(one).collect()
}

impl Configuration {
    fn new(entry: &Entry) -> Self {
        let object = entry.value();
        let hooks = object.get("webhooks").and_then(Value::as_array).into_iter().flatten().enumerate();
        let hook = |(at, hook): (usize, &Value)| Hook::new(&entry.key.name, at, hook);
        Self { rev: entry.rev, hooks: hooks.map(hook).collect() }
    }
}
