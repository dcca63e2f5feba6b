//! What every namespace has: a ServiceAccount `default`, and the authority's certificate in a ConfigMap. What the default one
//! has besides: the Service by which the API server is known within a cluster, and where it is.

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
const DISCOVERY: &str = "discovery.k8s.io";
const SLICES: &str = "endpointslices";
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
    let (Ok(mut namespaces), Ok(mut accounts), Ok(mut maps)) =
        (watch("namespaces"), watch("serviceaccounts"), watch("configmaps"))
    else {
        return;
    };
    let (Ok(mut services), Ok(mut endpoints), Ok(mut slices)) =
        (watch("services"), watch("endpoints"), core.store.watch(DISCOVERY, SLICES, None, rev))
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
            change = services.next() => change.map(|it| concerns_server(&it)),
            change = endpoints.next() => change.map(|it| concerns_server(&it)),
            change = slices.next() => change.map(|it| concerns_server(&it)),
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

fn concerns_server(change: &Event) -> Option<Arc<str>> {
    concerns(change, SERVICE).filter(|it| **it == *"default")
}

/// Makes what the namespace lacks, unless it is about to go.
async fn complete(core: &Arc<Core>, name: &Arc<str>, authority: &str) -> Result<(), Problem> {
    match core.store.get(&Key::new("", "namespaces", "", name.clone())) {
        Some(namespace) if !Meta::of(&namespace).is_deleting() => {}
        _ => return Ok(()),
    }
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": **name}});
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": authority},
        "metadata": {"name": AUTHORITY, "namespace": **name, "annotations": {"kubernetes.io/description": DESCRIPTION}},
    });
    let account = ensure(core, Key::new("", "serviceaccounts", name.clone(), ACCOUNT), account, MANAGER);
    let map = ensure_is(core, Key::new("", "configmaps", name.clone(), AUTHORITY), map, &["data"], MANAGER);
    let server = async {
        if **name != *"default" {
            return Ok(());
        }
        ensure(core, Key::new("", "services", name.clone(), SERVICE), service(), SERVER).await?;
        let key = Key::new("", "endpoints", name.clone(), SERVICE);
        ensure_is(core, key, endpoints(), &["subsets"], SERVER).await?;
        let key = Key::new(DISCOVERY, SLICES, name.clone(), SERVICE);
        ensure_is(core, key, slice(), &["endpoints", "ports"], SERVER).await
    };
    futures::future::try_join3(account, map, server).await.map(drop)
}

/// Without a selector: who answers there is said by [`endpoints`].
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

/// Where pods reach the server: at the service's own address, by way of their node. The server itself listens on loopback,
/// which no endpoint may be, and nothing else reaches.
fn endpoints() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": SERVICE, "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": OWN_ADDRESS}], "ports": [{"name": "https", "port": 443, "protocol": "TCP"}],
        }],
    })
}

fn slice() -> Value {
    json!({
        "apiVersion": format!("{DISCOVERY}/v1"), "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": SERVICE, "namespace": "default", "labels": {"kubernetes.io/service-name": SERVICE},
        },
        "endpoints": [{"addresses": [OWN_ADDRESS], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": 443, "protocol": "TCP"}],
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

/// The same, and what somebody else has made of these fields is undone.
async fn ensure_is(core: &Arc<Core>, key: Key, object: Value, fields: &[&str], manager: &str) -> Result<(), Problem> {
    let differs = |current: &Value| fields.iter().any(|it| current.get(it) != object.get(it));
    match core.store.get(&key) {
        Some(entry) if differs(&entry.value()) => {}
        Some(_) => return Ok(()),
        None => return ensure(core, key, object, manager).await,
    }
    let Some(mut call) = call(core, &key) else { return Ok(()) };
    update::guaranteed(&mut call, &options(manager), false, |call, current| {
        let mut changed = current.cloned().ok_or_else(|| call.not_found(&call.name))?;
        for field in fields {
            meta::map(&mut changed).insert((*field).to_owned(), object.get(field).cloned().unwrap_or_default());
        }
        Ok(changed)
    })
    .await
    .map(drop)
}
