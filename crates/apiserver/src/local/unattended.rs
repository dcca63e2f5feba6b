//! Kinds that are stored and that nobody acts on say so, in one event for each kind and namespace that has one.

use std::sync::Arc;

use serde_json::json;

use super::{Meta, call, is_refused, options};
use crate::core::{Core, time};
use crate::store::{Entry, Key};
use crate::verbs::create;

const COMPONENT: &str = "apiserver";

/// Group, resource, and what does not happen.
const KINDS: [(&str, &str, &str); 7] = [
    ("autoscaling", "horizontalpodautoscalers", "nothing is scaled"),
    ("networking.k8s.io", "ingresses", "nothing is routed"),
    ("networking.k8s.io", "networkpolicies", "no traffic is refused"),
    ("certificates.k8s.io", "certificatesigningrequests", "nothing is signed"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", "no request waits for another"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations", "no request waits for another"),
    ("apiregistration.k8s.io", "apiservices", "no request is passed on"),
];

fn known(key: &Key) -> Option<&'static str> {
    KINDS.iter().find(|it| *it.0 == *key.group && *it.1 == *key.resource).map(|it| it.2)
}

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let rev = core.store.revision();
    let Ok(mut changes) = core.store.watch_everything(rev) else { return };
    for (group, resource, _) in KINDS {
        for entry in core.store.list(group, resource, None, None, None).entries {
            tell(core, &entry).await;
        }
    }
    while let Some(change) = changes.next().await {
        if change.prev.is_none() && !change.deleted {
            tell(core, &change.entry).await;
        }
    }
}

/// Says it of this object, unless it was said of another one in its namespace.
async fn tell(core: &Arc<Core>, entry: &Entry) {
    let Some(what) = known(&entry.key) else { return };
    let Key { group, resource, namespace, name } = &entry.key;
    let suffix = if group.is_empty() { String::new() } else { format!(".{group}") };
    // What is in no namespace is spoken of in the default one.
    let told = if namespace.is_empty() { "default".into() } else { namespace.clone() };
    let key = Key::new("", "events", told.clone(), format!("unattended.{resource}{suffix}"));
    if core.store.get(&key).is_some() {
        return;
    }
    let Some(mut call) = call(core, &key) else { return };
    call.name.clear();
    let object = entry.value();
    let text = |field: &str| object.get(field).cloned().unwrap_or_default();
    let now = time(core.clock.now());
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": &*key.name, "namespace": &*told},
        "type": "Warning", "reason": "NotActedOn",
        "message": format!("{resource}{suffix} are stored, but nothing here acts on them: {what}"),
        "involvedObject": {"apiVersion": text("apiVersion"), "kind": text("kind"), "namespace": &**namespace,
            "name": &**name, "uid": Meta::of(entry).uid, "resourceVersion": entry.rev.to_string()},
        "source": {"component": COMPONENT},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    if let Err(problem) = create::create(&mut call, event, &options(COMPONENT)).await
        && !is_refused(&problem)
    {
        tracing::info!(?key, why = problem.message, "an event is not written");
    }
}
