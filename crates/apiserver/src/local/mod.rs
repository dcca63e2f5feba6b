//! The small loops that the API itself needs: what Kubernetes' own controllers do for any object, whatever its kind.
//!
//! Each looks at the whole state first and then at every change of it, so that a missed or doubled event changes
//! nothing but time. They act as requests do, through [`crate::verbs`], as the administrator.

mod agenda;
mod aggregation;
pub(crate) mod budgets;
mod classes;
mod defaults;
mod drive;
mod endpoints;
mod events;
mod expiry;
mod garbage;
mod namespaces;
mod nodes;
mod policies;
pub(crate) mod protection;
mod quotas;
mod reader;
mod scheduler;
mod unattended;
mod volumes;
mod workload;
mod write;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use aggregation::AGGREGATOR;
use bytes::Bytes;
pub(crate) use classes::make as make_classes;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;

use self::events::Events;
use self::reader::Reader;
use crate::access::User;
use crate::core::Core;
use crate::http::FieldValidation;
use crate::object::status::Problem;
use crate::store::{Entry, Key};
use crate::verbs::patch::{Language, patch};
use crate::verbs::{Call, WriteOptions};

/// Changes that one loop has in flight at once: they share the commits.
const AT_ONCE: usize = 16;

/// What the loops share that make pods.
struct World {
    core: Arc<Core>,
    pods: Reader<Pod>,
    events: Events,
}

/// Starts the loops. `authority` is the certificate (PEM) that each namespace publishes, `volumes` where the directories of
/// claims are made.
pub(crate) fn start(core: &Arc<Core>, authority: &str, volumes: Option<PathBuf>) {
    keep(core, "garbage collection", garbage::follow);
    keep(core, "namespaces", namespaces::follow);
    let authority: Arc<str> = authority.into();
    keep(core, "namespace defaults", move |core| defaults::follow(core, authority.clone()));
    keep(core, "expiry of events", expiry::follow);
    keep(core, "aggregation of roles", aggregation::follow);
    keep(core, "use of quotas", quotas::follow);
    keep(core, "types of policies", policies::follow);
    keep(core, "protection of volumes", protection::follow);
    let world = Arc::new(World { core: core.clone(), pods: Reader::new(core), events: Events::start(core) });
    let of = || world.clone();
    let shared = of();
    keep(core, "scheduling", move |_| scheduler::follow(shared.clone()));
    let shared = of();
    keep(core, "replica sets", move |_| workload::replicas::replica_sets(shared.clone()));
    let shared = of();
    keep(core, "replication controllers", move |_| workload::replicas::replication_controllers(shared.clone()));
    let shared = of();
    keep(core, "deployments", move |_| workload::deployments::follow(shared.clone()));
    let shared = of();
    keep(core, "nodes", move |_| nodes::follow(shared.clone()));
    let shared = of();
    keep(core, "pods that have ended", move |_| nodes::ended::follow(shared.clone()));
    let shared = of();
    keep(core, "jobs", move |_| workload::jobs::follow(shared.clone()));
    let shared = of();
    keep(core, "cron jobs", move |_| workload::cronjobs::follow(shared.clone()));
    let shared = of();
    keep(core, "stateful sets", move |_| workload::statefulsets::follow(shared.clone()));
    let shared = of();
    keep(core, "daemon sets", move |_| workload::daemonsets::follow(shared.clone()));
    let shared = of();
    keep(core, "binding of volumes", move |_| volumes::follow(shared.clone(), volumes.clone()));
    let shared = of();
    keep(core, "claims of ephemeral volumes", move |_| volumes::ephemeral::follow(shared.clone()));
    let shared = of();
    keep(core, "disruption budgets", move |_| budgets::follow(shared.clone()));
    let shared = of();
    keep(core, "endpoints of services", move |_| endpoints::follow(shared.clone()));
    keep(core, "kinds that nobody acts on", unattended::follow);
}

/// Has a loop look and follow until the shutdown: from the beginning again whenever it has fallen behind.
fn keep<F>(core: &Arc<Core>, name: &'static str, follow: impl Fn(Arc<Core>) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send,
{
    let (of, shutdown) = (core.clone(), core.tasks.shutdown().clone());
    core.tasks.platform(name, async move {
        tokio::select! {
            () = shutdown.begun() => Ok::<_, Infallible>(()),
            never = async {
                loop {
                    follow(of.clone()).await;
                    tokio::task::yield_now().await;
                }
            } => never,
        }
    });
}

/// A call about one object. None when its kind is not served (any more).
fn call(core: &Arc<Core>, key: &Key) -> Option<Call> {
    let resources = core.registry.now();
    let resource = resources.preferred().find(|it| it.is(&key.group, &key.resource))?.clone();
    Some(Call {
        core: core.clone(),
        resource,
        user: User::admin(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        subresource: String::new(),
        warnings: Vec::new(),
        annotations: Default::default(),
    })
}

fn options(manager: &str) -> WriteOptions {
    WriteOptions {
        dry_run: false,
        manager: manager.to_owned(),
        validation: FieldValidation::Ignore,
        force: false,
        said: Default::default(),
    }
}

/// Changes the object's metadata, if it still is as `entry` says.
async fn merge_metadata(call: &mut Call, entry: &Entry, mut change: Value, manager: &str) -> Result<(), Problem> {
    if let Some(change) = change.as_object_mut() {
        change.insert("resourceVersion".into(), entry.rev.to_string().into());
    }
    let body = Bytes::from(serde_json::json!({"metadata": change}).to_string());
    patch(call, Language::Merge, &body, &options(manager)).await.map(drop)
}

/// Changes the object or its subresource. What the change says of `metadata.resourceVersion` must be so.
async fn merge(core: &Arc<Core>, key: &Key, subresource: &str, change: Value, manager: &str) -> Result<(), Problem> {
    let Some(mut call) = call(core, key) else { return Ok(()) };
    call.subresource = subresource.to_owned();
    patch(&mut call, Language::Merge, &Bytes::from(change.to_string()), &options(manager)).await.map(drop)
}

/// Whether the problem is that the object changed or went meanwhile: then look again.
fn is_stale(problem: &Problem) -> bool {
    matches!(problem.code, 404 | 409)
}

/// Somebody else made what was to be made, or the namespace is going.
fn is_refused(problem: &Problem) -> bool {
    matches!(problem.code, 403 | 404) || problem.reason == "AlreadyExists"
}

/// What the loops want to know of an object, without building the whole of it.
#[derive(Default, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    uid: String,
    deletion_timestamp: Option<String>,
    finalizers: Option<Vec<String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Default, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", default)]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    block_owner_deletion: Option<bool>,
}

impl Meta {
    fn of(entry: &Entry) -> Self {
        #[derive(Deserialize)]
        struct Object {
            metadata: Meta,
        }
        // What does not parse was never an object of ours: it owns nothing and waits for nothing.
        serde_json::from_slice::<Object>(&entry.json).map(|it| it.metadata).unwrap_or_default()
    }

    fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().flatten().any(|it| it == name)
    }

    fn owners(&self) -> &[Owner] {
        self.owner_references.as_deref().unwrap_or_default()
    }
}
