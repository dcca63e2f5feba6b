//! What the claims of a pod ask of its node.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use super::info::{Claim, Info};
use super::plan::Volumes;
use super::view::View;
use crate::local::reader::{Kind, Reader};
use crate::local::volumes::{BIND_COMPLETED, SELECTED_NODE};
use crate::local::{World, merge};
use crate::object::status::Problem;

const MANAGER: &str = "kube-scheduler";

pub(super) struct Shelf {
    claims: Reader<PersistentVolumeClaim>,
    volumes: Reader<PersistentVolume>,
    classes: Reader<StorageClass>,
}

impl Shelf {
    pub(super) fn new(world: &World) -> Self {
        let core = &world.core;
        Self { claims: Reader::new(core), volumes: Reader::new(core), classes: Reader::new(core) }
    }

    pub(super) fn of(&self, pod: &Info, view: &View) -> Volumes {
        let mut found = Volumes::default();
        for claim in &pod.claims {
            if let Err(problem) = self.look(pod, claim, view, &mut found) {
                found.problem = Some(problem);
                break;
            }
        }
        found
    }

    fn look(&self, pod: &Info, claim: &Claim, view: &View, found: &mut Volumes) -> Result<(), String> {
        let name = &claim.name;
        let namespace = pod.pod.namespace();
        let it = match self.claims.get(namespace, name) {
            Some(it) => it,
            None if claim.ephemeral => {
                let what = "waiting for ephemeral volume controller to create the persistentvolumeclaim";
                return Err(format!("{what} {name:?}"));
            }
            None => return Err(format!("persistentvolumeclaim {name:?} not found")),
        };
        if it.is_deleting() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if claim.ephemeral && !crate::local::workload::is_controlled_by(&*it, &*pod.pod) {
            return Err(format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                pod.pod.name()
            ));
        }
        let spec = it.spec.clone().unwrap_or_default();
        if spec.access_modes.iter().flatten().any(|it| it == "ReadWriteOncePod") {
            let uses = |other: &Info| {
                other.pod.namespace() == namespace
                    && other.pod.name() != pod.pod.name()
                    && other.claims.iter().any(|it| it.name == *name)
            };
            found.taken |= view.pods().any(|(_, other)| uses(other));
        }
        let phase = it.status.as_ref().and_then(|it| it.phase.as_deref());
        let bound = it.annotation(BIND_COMPLETED).is_some() || phase == Some("Bound");
        match spec.volume_name.filter(|it| !it.is_empty() && bound) {
            Some(volume) => match self.volumes.get("", &volume) {
                None => found.lost = true,
                Some(volume) => {
                    let affinity = volume.spec.as_ref().and_then(|it| it.node_affinity.as_ref()?.required.clone());
                    found.reach.extend(affinity);
                }
            },
            None => {
                let class = spec.storage_class_name.as_deref().filter(|it| !it.is_empty());
                let mode = class.and_then(|it| self.classes.get("", it)?.volume_binding_mode.clone());
                if mode.as_deref() != Some("WaitForFirstConsumer") {
                    return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
                }
                found.unbound.push(name.clone());
                found.chosen = found.chosen.take().or_else(|| it.annotation(SELECTED_NODE).map(str::to_owned));
            }
        }
        Ok(())
    }

    /// Says for which node these claims shall get their volumes, where that was not said.
    pub(super) async fn prepare(
        &self,
        world: &World,
        namespace: &str,
        claims: &[String],
        node: &str,
    ) -> Result<(), Problem> {
        for name in claims {
            let Some(claim) = self.claims.get(namespace, name) else { continue };
            if claim.annotation(SELECTED_NODE).is_none() {
                let metadata =
                    json!({"annotations": {SELECTED_NODE: node}, "resourceVersion": claim.metadata.resource_version});
                merge(&world.core, &claim.key(), "", json!({"metadata": metadata}), MANAGER).await?;
            }
        }
        Ok(())
    }
}
