//! What the garbage collector has to say to whoever wrote an owner reference.

use std::sync::Arc;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::MANAGER;
use crate::core::{Core, time};
use crate::local::{Meta, Owner, call, options};
use crate::store::{Entry, Key};
use crate::verbs::create;

/// Says, once, that an owner is in another namespace than its dependent, where no owner can be.
pub(super) async fn wrong_namespace(core: &Arc<Core>, entry: &Entry, it: &Meta, owner: &Owner) {
    let Key { namespace, name, .. } = &entry.key;
    let object = entry.value();
    let text = |field: &str| object.get(field).cloned().unwrap_or_default();
    let digest = Sha256::digest(format!("{} {}", it.uid, owner.uid));
    let suffix: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let key =
        Key::new("", "events", if namespace.is_empty() { "default" } else { namespace }, format!("{name}.{suffix}"));
    if core.store.get(&key).is_some() {
        return;
    }
    let Some(mut call) = call(core, &key) else { return };
    call.name.clear();
    let reference = format!(
        "[{}/{}, namespace: {namespace}, name: {}, uid: {}]",
        owner.api_version, owner.kind, owner.name, owner.uid
    );
    let now = time(core.clock.now());
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": &*key.name, "namespace": &*key.namespace},
        "type": "Warning", "reason": "OwnerRefInvalidNamespace",
        "message": format!("ownerRef {reference} does not exist in namespace {:?}", &**namespace),
        "involvedObject": {
            "apiVersion": text("apiVersion"), "kind": text("kind"), "namespace": &**namespace, "name": &**name, "uid": it.uid,
        },
        "source": {"component": "garbage-collector-controller"},
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
    });
    if let Err(problem) = create::create(&mut call, event, &options(MANAGER)).await {
        tracing::info!(?key, why = problem.message, "an event is not written");
    }
}
