//! The classes that are there from the beginning: of priority, as upstream, and where disks can be made, of storage.

use std::sync::Arc;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::reader::key;

use super::volumes::{DEFAULT_CLASS, PROVISIONER};
use super::{call, options};
use crate::core::Core;
use crate::kinds::strategy::SYSTEM_CLASSES;
use crate::object::status::Problem;
use crate::store::Key;
use crate::verbs::create;

/// Who makes them.
const SERVER: &str = "kube-apiserver";

/// Makes what is missing. The class of storage is an example that its user may change or delete: only a store in which
/// nothing is yet gets it.
pub(crate) async fn make(core: &Arc<Core>, of_storage: bool) -> Result<(), Problem> {
    if of_storage && core.store.revision() == 0 {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "standard", "annotations": {DEFAULT_CLASS: "true"}},
            "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
        });
        ensure(core, key::<StorageClass>("", "standard"), class).await?;
    }
    for (name, value, description) in SYSTEM_CLASSES {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority",
        });
        ensure(core, key::<PriorityClass>("", name), class).await?;
    }
    Ok(())
}

async fn ensure(core: &Arc<Core>, key: Key, object: Value) -> Result<(), Problem> {
    if core.store.get(&key).is_some() {
        return Ok(());
    }
    let Some(mut call) = call(core, &key) else { return Ok(()) };
    call.name.clear();
    create::create(&mut call, object, &options(SERVER)).await.map(drop)
}
