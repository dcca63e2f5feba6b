//! One sandbox as the node knows it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::watch;
use wire::node::{Exit, Phase};

use crate::launcher::Handle;
use crate::proxy::Pool;
use crate::state::{Dir, State};

pub(crate) struct Sandbox {
    pub id: String,
    pub dir: Dir,
    live: Mutex<Live>,
    pidfd: OnceLock<Arc<OwnedFd>>,
    /// What started it; nothing for one of an earlier node.
    launcher: OnceLock<Weak<Handle>>,
    /// Held by whoever changes it: one change at a time.
    pub work: tokio::sync::Mutex<()>,
    ended: watch::Sender<bool>,
    /// Connections to its execd.
    pub pool: Pool,
}

pub(crate) struct Live {
    /// As written down, or about to be.
    pub state: State,
    pub phase: Phase,
    pub bound: bool,
    pub adopted: bool,
    /// Somebody asked for its end.
    pub removed: bool,
    pub exit: Option<Exit>,
    /// The launcher has something mounted for it.
    pub disk: bool,
}

impl Sandbox {
    pub(super) fn new(dir: Dir, state: State, adopted: bool) -> Self {
        let live =
            Live { phase: Phase::Starting, bound: false, adopted, removed: false, exit: None, disk: false, state };
        Self {
            id: live.state.id.clone(),
            dir,
            live: Mutex::new(live),
            pidfd: OnceLock::new(),
            launcher: OnceLock::new(),
            work: tokio::sync::Mutex::default(),
            ended: watch::Sender::new(false),
            pool: Pool::default(),
        }
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the protocol shows it.
    pub(crate) fn view(&self) -> wire::node::Sandbox {
        let live = self.live();
        wire::node::Sandbox {
            id: self.id.clone(),
            phase: live.phase,
            bound: live.bound,
            labels: live.state.labels.clone(),
            limits: live.state.limits,
            hostname: live.state.hostname.clone(),
            workspace: live.state.workspace.clone(),
            created: live.state.created.clone(),
            adopted: live.adopted,
            exit: live.exit.clone(),
        }
    }

    pub(super) fn slot(&self) -> Option<u32> {
        self.live().state.slot
    }

    pub(super) fn runs_as(&self, pidfd: OwnedFd) -> Arc<OwnedFd> {
        self.pidfd.get_or_init(|| Arc::new(pidfd)).clone()
    }

    pub(super) fn pidfd(&self) -> Option<Arc<OwnedFd>> {
        self.pidfd.get().cloned()
    }

    pub(super) fn started_by(&self, launcher: &Arc<Handle>) {
        let _ = self.launcher.set(Arc::downgrade(launcher));
    }

    pub(super) fn has_launcher(&self) -> bool {
        self.launcher.get().is_some()
    }

    pub(super) fn is_of(&self, launcher: &Arc<Handle>) -> bool {
        self.launcher.get().is_some_and(|it| std::ptr::eq(it.as_ptr(), Arc::as_ptr(launcher)))
    }

    pub(super) fn has_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Resolves when nothing of it is left.
    pub(super) async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|it| *it).await;
    }

    /// The token of its execd, once it is bound.
    pub(crate) fn token(&self) -> Option<String> {
        self.live().state.token.clone()
    }
}
