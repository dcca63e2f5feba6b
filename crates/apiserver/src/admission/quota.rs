//! ResourceQuotas: upstream's admission plugin `ResourceQuota`, and the count that it goes by.
//!
//! Who takes something from a quota holds its namespace's turn from the look at `status.used` until the object is seen,
//! so that nobody takes the last place twice. What was counted and not written after all is counted anew by the loop
//! ([`crate::local`]), which holds the same turn.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::forbidden;
use super::usage::{self, Amounts, amounts, to_value};
use crate::core::Core;
use crate::object::apply::{self, Updater};
use crate::object::quantity::Quantity;
use crate::object::status::Problem;
use crate::store::{Change, Entry, Event, Expect, WriteError};
use crate::verbs::{Call, meta, refused};

/// Namespaces share so many turns.
const TURNS: usize = 64;
/// How long a turn is waited for (upstream's).
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a quota that somebody else writes at the same time is looked at again.
const ATTEMPTS: usize = 16;
const MANAGER: &str = "kube-controller-manager";
const PLURAL: &str = "resourcequotas";

pub(crate) struct Quotas {
    turns: Vec<Arc<tokio::sync::Mutex<()>>>,
    /// Namespaces in which something was counted that may not have been written.
    doubtful: Mutex<BTreeSet<String>>,
    bell: Notify,
}

impl Quotas {
    pub(super) fn new() -> Self {
        let turns = (0..TURNS).map(|_| Arc::default()).collect();
        Self { turns, doubtful: Mutex::default(), bell: Notify::new() }
    }

    async fn turn(&self, namespace: &str) -> Result<OwnedMutexGuard<()>, Problem> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(namespace);
        let at = usize::try_from(hash % TURNS as u64).unwrap_or_default();
        let turn = self.turns.get(at).cloned().unwrap_or_default();
        let timed_out = |_| Problem::internal("resource quota evaluation timed out");
        tokio::time::timeout(PATIENCE, turn.lock_owned()).await.map_err(timed_out)
    }

    /// Waits until there are namespaces to count anew, and takes them.
    pub(crate) async fn doubtful(&self) -> BTreeSet<String> {
        loop {
            let bell = self.bell.notified();
            let taken = std::mem::take(&mut *self.doubtful.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            bell.await;
        }
    }
}

/// A place that was taken. Dropped before [`used`], it is given back.
pub(crate) struct Reserved {
    core: Arc<Core>,
    namespace: String,
    charged: bool,
    _turn: OwnedMutexGuard<()>,
}

/// The object is there: what was taken for it stays taken.
pub(crate) fn used(reserved: Option<Reserved>) {
    if let Some(mut reserved) = reserved {
        reserved.charged = false;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.charged {
            let quotas = &self.core.admission.quotas;
            let namespace = std::mem::take(&mut self.namespace);
            quotas.doubtful.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace);
            quotas.bell.notify_one();
        }
    }
}

fn all(core: &Core, namespace: &str) -> Vec<Arc<Entry>> {
    core.store.list("", PLURAL, Some(namespace), None, None).entries
}

/// Takes what the object needs from the quotas of its namespace, or says which has not enough.
pub(crate) async fn reserve(
    call: &Call,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Option<Reserved>, Problem> {
    let changes = call.resource.is("", "services") || call.resource.is("", "persistentvolumeclaims");
    if !call.resource.namespaced || !call.subresource.is_empty() || (old.is_some() && !changes) {
        return Ok(None);
    }
    let core = &call.core;
    if all(core, &call.namespace).is_empty() {
        return Ok(None);
    }
    let turn = core.admission.quotas.turn(&call.namespace).await?;
    let (group, plural) = (call.resource.stored_group.as_str(), call.resource.plural.as_str());
    let demand = Demand { call, object, group, plural, is_pod: call.resource.is("", "pods") };
    let mut reserved = Reserved { core: core.clone(), namespace: call.namespace.clone(), charged: false, _turn: turn };
    for _ in 0..ATTEMPTS {
        let mut limiting = Vec::new();
        for entry in all(core, &call.namespace) {
            let Some(entry) = settled(core, entry).await.map_err(|it| refused(&it, &call.resource, ""))? else {
                continue;
            };
            let quota = entry.value();
            let limits = demand.limits(&quota)?;
            if !limits.is_empty() {
                limiting.push((entry, quota, limits));
            }
        }
        if limiting.is_empty() {
            return Ok(None);
        }
        let more = demand.more(old)?;
        let mut charges = Vec::new();
        for (entry, quota, limits) in limiting {
            if let Some(quota) = demand.charge(quota, &limits, &more)? {
                charges.push((entry, quota));
            }
        }
        if dry_run {
            return Ok(None);
        }
        let mut overtaken = false;
        for (entry, quota) in charges {
            reserved.charged = true;
            match core.store.write(entry.key.clone(), Expect::Rev(entry.rev), Change::Put(quota)).await {
                Ok(_) => {}
                Err(WriteError::Conflict { .. } | WriteError::Absent) => overtaken = true,
                Err(error) => return Err(refused(&error, &call.resource, "")),
            }
        }
        if !overtaken {
            return Ok(Some(reserved));
        }
        // Some may have been charged: counted anew, they are right again.
        for entry in all(core, &call.namespace) {
            count(core, entry).await.map_err(|it| refused(&it, &call.resource, ""))?;
        }
    }
    Err(Problem::internal("resource quota evaluation timed out"))
}

/// What an object asks of the quotas of its namespace.
struct Demand<'a> {
    call: &'a Call,
    object: &'a Value,
    group: &'a str,
    plural: &'a str,
    is_pod: bool,
}

impl Demand<'_> {
    fn refused(&self, why: &str) -> Problem {
        forbidden(self.call, Some(self.object), why)
    }

    /// What a quota limits of such objects; nothing when it is not about this one.
    fn limits(&self, quota: &Value) -> Result<Amounts, Problem> {
        let mut hard = amounts(quota.pointer("/status/hard"));
        hard.retain(|name, _| usage::counted(name) == Some((self.group, self.plural)));
        if hard.is_empty() || !usage::in_scopes(quota, self.is_pod.then_some(self.object)) {
            return Ok(Amounts::new());
        }
        let unsaid = if self.is_pod { usage::unsaid(self.object, &hard) } else { Vec::new() };
        if !unsaid.is_empty() {
            let why = format!("failed quota: {}: must specify {}", meta::name(quota), unsaid.join("; "));
            return Err(self.refused(&why));
        }
        Ok(hard)
    }

    /// By how much more is used with the object than with what was there before.
    fn more(&self, old: Option<&Value>) -> Result<Amounts, Problem> {
        let now = self.call.core.clock.now();
        let mut more = usage::usage(self.group, self.plural, self.object, now);
        let negative: Vec<&str> = more.iter().filter(|it| it.1.sign() < 0).map(|it| it.0.as_str()).collect();
        if !negative.is_empty() {
            let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
            return Err(self.refused(&why));
        }
        if let Some(old) = old {
            for (name, amount) in usage::usage(self.group, self.plural, old, now) {
                let less = amount.negated();
                more.entry(name).and_modify(|it| *it = it.plus(less)).or_insert(less);
            }
        }
        more.retain(|_, amount| amount.sign() != 0);
        Ok(more)
    }

    /// The quota with this taken from it; none when it limits nothing of this.
    fn charge(&self, mut quota: Value, limited: &Amounts, more: &Amounts) -> Result<Option<Value>, Problem> {
        let mut wanted = more.clone();
        wanted.retain(|name, _| limited.contains_key(name));
        if wanted.is_empty() {
            return Ok(None);
        }
        let (hard, used) = (amounts(quota.pointer("/status/hard")), amounts(quota.pointer("/status/used")));
        let mut after = used.clone();
        usage::add(&mut after, &wanted);
        let exceeded: Vec<&String> = wanted.keys().filter(|it| after.get(*it) > hard.get(*it)).collect();
        if !exceeded.is_empty() {
            let said = |of: &Amounts| {
                let all = exceeded.iter().filter_map(|name| Some(format!("{name}={}", of.get(*name)?)));
                all.collect::<Vec<_>>().join(",")
            };
            let why = format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                meta::name(&quota),
                said(&wanted),
                said(&used),
                said(&hard)
            );
            return Err(self.refused(&why));
        }
        put_status(&self.call.core, &mut quota, &hard, &after);
        Ok(Some(quota))
    }
}

fn put_status(core: &Core, quota: &mut Value, hard: &Amounts, used: &Amounts) {
    let before = quota.clone();
    meta::map(quota).insert("status".into(), json!({"hard": to_value(hard), "used": to_value(used)}));
    let Some(resource) = core.registry.now().find("", "v1", PLURAL).cloned() else { return };
    let updater = Updater { manager: MANAGER, subresource: "status", api_version: "v1", now: core.clock.now() };
    apply::track(Some(&before), quota, &resource.schema(), &updater);
}

/// The quota with a count of what it limits: counted now, if that was not done yet.
async fn settled(core: &Core, entry: Arc<Entry>) -> Result<Option<Arc<Entry>>, WriteError> {
    let quota = entry.value();
    let (spec, status) = (amounts(quota.pointer("/spec/hard")), amounts(quota.pointer("/status/hard")));
    if spec == status { Ok(Some(entry)) } else { count(core, entry).await }
}

/// Counts anew what a quota limits. None when it is gone meanwhile.
async fn count(core: &Core, entry: Arc<Entry>) -> Result<Option<Arc<Entry>>, WriteError> {
    let mut entry = entry;
    for _ in 0..ATTEMPTS {
        let quota = entry.value();
        let hard = amounts(quota.pointer("/spec/hard"));
        let used = in_use(core, &quota, &entry.key.namespace, &hard);
        let is =
            |field: &str, amounts: &Amounts| quota.pointer(&format!("/status/{field}")) == Some(&to_value(amounts));
        if is("hard", &hard) && is("used", &used) {
            return Ok(Some(entry));
        }
        let mut counted = quota.clone();
        put_status(core, &mut counted, &hard, &used);
        match core.store.write(entry.key.clone(), Expect::Rev(entry.rev), Change::Put(counted)).await {
            Ok(written) => return Ok(Some(written)),
            Err(WriteError::Conflict { current }) => entry = current,
            Err(WriteError::Absent) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(entry))
}

/// What the objects of a namespace use of what a quota limits.
fn in_use(core: &Core, quota: &Value, namespace: &str, hard: &Amounts) -> Amounts {
    let now = core.clock.now();
    let resources: BTreeSet<(&str, &str)> = hard.keys().filter_map(|it| usage::counted(it)).collect();
    let mut used: Amounts =
        hard.keys().filter(|it| usage::counted(it).is_some()).map(|name| (name.clone(), Quantity::whole(0))).collect();
    let scoped = quota.pointer("/spec/scopes").is_some() || quota.pointer("/spec/scopeSelector").is_some();
    for (group, plural) in resources {
        let entries = core.store.list(group, plural, Some(namespace), None, None).entries;
        if !scoped && !usage::varies(group, plural) {
            let each = usage::usage(group, plural, &Value::Null, now);
            let count = Quantity::whole(i64::try_from(entries.len()).unwrap_or(i64::MAX));
            usage::add(&mut used, &each.into_keys().map(|name| (name, count)).collect());
            continue;
        }
        for entry in entries {
            let object = entry.value();
            if usage::in_scopes(quota, ((group, plural) == ("", "pods")).then_some(&object)) {
                usage::add(&mut used, &usage::usage(group, plural, &object, now));
            }
        }
    }
    used.retain(|name, _| hard.contains_key(name));
    used
}

/// Counts anew for all quotas of a namespace.
pub(crate) async fn recount(core: &Core, namespace: &str) -> Result<(), Problem> {
    let _turn = core.admission.quotas.turn(namespace).await?;
    for entry in all(core, namespace) {
        count(core, entry).await.map_err(|error| Problem::internal(&kit::chain(&error)))?;
    }
    Ok(())
}

/// Whether something was freed (or taken, past admission) by a change. What was created has been counted already.
pub(crate) fn frees(core: &Core, change: &Event) -> bool {
    let key = &change.entry.key;
    let Some(before) = change.prev.as_ref().filter(|_| !change.deleted) else { return change.deleted };
    if !key.group.is_empty() || !matches!(&*key.resource, "pods" | "services" | "persistentvolumeclaims") {
        return false;
    }
    let of = |entry: &Entry| usage::usage(&key.group, &key.resource, &entry.value(), core.clock.now());
    of(before) != of(&change.entry)
}

/// Whether the namespace has a quota.
pub(crate) fn is_limited(core: &Core, namespace: &str) -> bool {
    !all(core, namespace).is_empty()
}

/// Whether a quota is no longer (or not yet) counted as it says.
pub(crate) fn is_uncounted(entry: &Entry) -> bool {
    let quota = entry.value();
    quota.pointer("/spec/hard") != quota.pointer("/status/hard")
}
