//! What all parts of the server share.

use std::sync::{Arc, OnceLock};

use kit::{Clock, Tasks};

use crate::access::roles::Roles;
use crate::access::tokens::Tokens;
use crate::admission::Admission;
use crate::audit::Audit;
use crate::kubelets::Kubelets;
use crate::metrics::Metrics;
use crate::object::status::Problem;
use crate::proxy::Room;
use crate::registry::{Registry, Resources, custom};
use crate::store::Store;

/// The server's state. One per server, shared by everything.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    /// None where no node can be reached.
    pub(crate) kubelets: Option<Kubelets>,
    pub(crate) proxied: Room,
    pub(crate) roles: Roles,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Option<Audit>,
    pub(crate) admission: Admission,
    /// There before anybody is served.
    tokens: OnceLock<Tokens>,
}

impl Core {
    pub(crate) fn new(
        store: Store,
        clock: Clock,
        tasks: Tasks,
        kubelets: Option<Kubelets>,
        audit: Option<Audit>,
    ) -> Arc<Self> {
        let roles = Roles::new(&store);
        let registry = Registry::new();
        let admission = Admission::new(&store);
        let (metrics, tokens) = (Metrics::default(), OnceLock::new());
        let proxied = Room::default();
        let core = Self { store, registry, clock, tasks, kubelets, proxied, roles, admission, metrics, audit, tokens };
        core.reload();
        Arc::new(core)
    }

    /// Takes the stored definitions over into the registry.
    pub(crate) fn reload(&self) {
        self.registry.update(|| self.store.list(custom::GROUP, custom::PLURAL, None, None, None).entries);
    }

    /// The resources by the definitions that readers of the store see now: who has seen a definition established finds
    /// its resource served.
    pub(crate) fn fresh(&self) -> Arc<Resources> {
        self.reload();
        self.registry.now()
    }

    /// Gives the key of tokens, once.
    pub(crate) fn keep(&self, tokens: Tokens) {
        let _ = self.tokens.set(tokens);
    }

    pub(crate) fn tokens(&self) -> Result<&Tokens, Problem> {
        self.tokens.get().ok_or_else(|| Problem::unavailable("the server is starting"))
    }

    /// Now, as `metav1.Time` is written.
    pub(crate) fn now(&self) -> String {
        time(self.clock.now())
    }
}

/// A `metav1.Time`: RFC 3339 in whole seconds, UTC.
pub(crate) fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
