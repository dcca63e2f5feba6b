//! What every namespace has: a ServiceAccount `default`, and the authority's certificate in a ConfigMap. What the default one
//! has besides: the Service by which the API server is known within a cluster.

use std::sync::Arc;

use serde_json::{Value, json};

use super::agenda::Agenda;
use super::{Meta, call, is_refused, is_stale, options};
use crate::core::Core;
use crate::kinds::strategy::OWN_ADDRESS;
use crate::object::status::Problem;
use crate::store::{Event, Key};
use crate::verbs::{create, meta, update};

const ACCOUNT: &str = "default";
const SERVICE: &str = "kubernetes";
const AUTHORITY: &str = "kube-root-ca.crt";
/// Whose work this is in a cluster.
const MANAGER: &str = "kube-controller-manager";
/// Who makes the Service.
const SERVER: &str = "kube-apiserver";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

pub(super) async fn follow(core: Arc<Core>, authority: Arc<str>) {
    let (core, authority) = (&core, &*authority);
    let rev = core.store.revision();
    let watch = |resource| core.store.watch("", resource, None, rev);
    let (Ok(mut namespaces), Ok(mut accounts), Ok(mut maps), Ok(mut services)) =
        (watch("namespaces"), watch("serviceaccounts"), watch("configmaps"), watch("services"))
    else {
        return;
    };
    let mut agenda = Agenda::new(core.clock.clone());
    agenda.add(core.store.list("", "namespaces", None, None, None).entries.iter().map(|it| it.key.name.clone()));
    loop {
        for name in agenda.take(usize::MAX) {
            match complete(core, &name, authority).await {
                Ok(()) => {}
                Err(problem) if is_stale(&problem) => agenda.add([name]),
                Err(problem) => {
                    tracing::warn!(namespace = &*name, why = problem.message, "a namespace lacks its defaults");
                    agenda.failed(name);
                }
            }
        }
        if agenda.is_due() {
            continue;
        }
        let change = tokio::select! {
            change = namespaces.next() => change.map(|it| (!it.deleted && it.prev.is_none()).then(|| it.entry.key.name.clone())),
            change = accounts.next() => change.map(|it| concerns(&it, ACCOUNT)),
            change = maps.next() => change.map(|it| concerns(&it, AUTHORITY)),
            change = services.next() => change.map(|it| concerns(&it, SERVICE)),
            () = agenda.again() => Some(None),
        };
        match change {
            Some(namespace) => agenda.add(namespace),
            None => return,
        }
    }
}

fn concerns(change: &Event, name: &str) -> Option<Arc<str>> {
    (*change.entry.key.name == *name).then(|| change.entry.key.namespace.clone())
}

/// Makes what the namespace lacks, unless it is about to go.
async fn complete(core: &Arc<Core>, name: &Arc<str>, authority: &str) -> Result<(), Problem> {
    match core.store.get(&Key::new("", "namespaces", "", name.clone())) {
        Some(namespace) if !Meta::of(&namespace).is_deleting() => {}
        _ => return Ok(()),
    }
    let data = json!({"ca.crt": authority});
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": **name}});
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": AUTHORITY, "namespace": **name, "annotations": {"kubernetes.io/description": DESCRIPTION}},
    });
    let account = ensure(core, Key::new("", "serviceaccounts", name.clone(), ACCOUNT), account, MANAGER);
    let service = async {
        if **name != *"default" {
            return Ok(());
        }
        ensure(core, Key::new("", "services", name.clone(), SERVICE), service(), SERVER).await
    };
    let map = async {
        let key = Key::new("", "configmaps", name.clone(), AUTHORITY);
        match core.store.get(&key) {
            Some(entry) if entry.value().get("data") != Some(&data) => restore(core, &key, &data).await,
            Some(_) => Ok(()),
            None => ensure(core, key, map, MANAGER).await,
        }
    };
    futures::future::try_join3(account, map, service).await.map(drop)
}

/// Without a selector: where the API server is, whoever carries connections to services knows.
fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": OWN_ADDRESS, "type": "ClusterIP",
            "internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    })
}

async fn ensure(core: &Arc<Core>, key: Key, object: Value, manager: &str) -> Result<(), Problem> {
    if core.store.get(&key).is_some() {
        return Ok(());
    }
    let Some(mut call) = call(core, &key) else { return Ok(()) };
    call.name.clear();
    match create::create(&mut call, object, &options(manager)).await {
        Err(problem) if !is_refused(&problem) => Err(problem),
        _ => Ok(()),
    }
}

async fn restore(core: &Arc<Core>, key: &Key, data: &Value) -> Result<(), Problem> {
    let Some(mut call) = call(core, key) else { return Ok(()) };
    update::guaranteed(&mut call, &options(MANAGER), false, |call, current| {
        let mut object = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
        meta::map(&mut object).insert("data".into(), data.clone());
        Ok(object)
    })
    .await
    .map(drop)
}
