//! A volume or a claim in use outlives its deletion: `pkg/controller/volume/{pvcprotection,pvprotection}` of upstream.

use std::sync::Arc;

use serde_json::{Value, json};

use super::agenda::Agenda;
use super::{Meta, call, is_stale, merge_metadata};
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Entry, Event, Key};

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
/// Whose work this is in a cluster.
const MANAGER: &str = "kube-controller-manager";

/// The finalizer that protects objects of a resource of the core group.
pub(crate) fn finalizer(plural: &str) -> Option<&'static str> {
    match plural {
        CLAIMS => Some("kubernetes.io/pvc-protection"),
        VOLUMES => Some("kubernetes.io/pv-protection"),
        _ => None,
    }
}

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let rev = core.store.revision();
    let watch = |resource| core.store.watch("", resource, None, rev);
    let (Ok(mut claims), Ok(mut volumes), Ok(mut pods)) = (watch(CLAIMS), watch(VOLUMES), watch("pods")) else {
        return;
    };
    let mut agenda = Agenda::new(core.clock.clone());
    for resource in [CLAIMS, VOLUMES] {
        agenda.add(keys(core, resource, None));
    }
    loop {
        for key in agenda.take(usize::MAX) {
            match settle(core, &key).await {
                Ok(()) => {}
                Err(problem) if is_stale(&problem) => agenda.add([key]),
                Err(problem) => {
                    tracing::warn!(?key, why = problem.message, "a volume is protected too little or too long");
                    agenda.failed(key);
                }
            }
        }
        if agenda.is_due() {
            continue;
        }
        let own = |change: Arc<Event>| vec![change.entry.key.clone()];
        let change = tokio::select! {
            change = claims.next() => change.map(own),
            change = volumes.next() => change.map(own),
            // What a pod uses it may use no longer.
            change = pods.next() => change.map(|it| keys(core, CLAIMS, Some(&it.entry.key.namespace))),
            () = agenda.again() => Some(Vec::new()),
        };
        match change {
            Some(keys) => agenda.add(keys),
            None => return,
        }
    }
}

fn keys(core: &Core, resource: &str, namespace: Option<&str>) -> Vec<Key> {
    let all = core.store.list("", resource, namespace, None, None).entries;
    all.iter().map(|it| it.key.clone()).collect()
}

/// Gives the object its finalizer, or takes it away when it is to go and nobody uses it.
async fn settle(core: &Arc<Core>, key: &Key) -> Result<(), Problem> {
    let (Some(entry), Some(finalizer)) = (core.store.get(key), finalizer(&key.resource)) else { return Ok(()) };
    let it = Meta::of(&entry);
    let mut finalizers = it.finalizers.clone().unwrap_or_default();
    match (it.is_deleting(), it.has_finalizer(finalizer)) {
        (false, false) => finalizers.push(finalizer.to_owned()),
        (true, true) if !is_used(core, &entry) => finalizers.retain(|it| it != finalizer),
        _ => return Ok(()),
    }
    let Some(mut call) = call(core, key) else { return Ok(()) };
    merge_metadata(&mut call, &entry, json!({"finalizers": finalizers}), MANAGER).await
}

fn is_used(core: &Core, entry: &Entry) -> bool {
    if *entry.key.resource == *VOLUMES {
        return entry.value().pointer("/status/phase").is_some_and(|it| it == "Bound");
    }
    let pods = core.store.list("", "pods", Some(&entry.key.namespace), None, None).entries;
    pods.iter().any(|pod| uses(&pod.value(), &entry.key.name))
}

/// Whether a node may be using the claim for this pod.
fn uses(pod: &Value, claim: &str) -> bool {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let is_shut_down = !text("/metadata/deletionTimestamp").is_empty()
        && pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64) == Some(0);
    if text("/spec/nodeName").is_empty() || is_shut_down {
        return false;
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    volumes.into_iter().flatten().any(|volume| {
        let named = volume.pointer("/persistentVolumeClaim/claimName").is_some_and(|it| it == claim);
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        named || (volume.get("ephemeral").is_some() && claim == format!("{}-{name}", text("/metadata/name")))
    })
}
