//! The claims of pods' generic ephemeral volumes: `pkg/controller/volume/ephemeral` of upstream.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use serde_json::json;

use crate::local::World;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader, key};
use crate::local::workload::{is_controlled_by, pods, reference};
use crate::object::status::Problem;
use crate::store::Key;

/// Makes the claims that pods describe; they go with them.
pub(in crate::local) async fn follow(world: Arc<World>) {
    let (claims, by) = (Reader::new(&world.core), world.events.of(&world.core, "ephemeral_volume"));
    let wants = |pod: &Pod| is_wanted(pod).then(|| pod.key());
    let first = || world.pods.list(None).iter().filter_map(|it| wants(it)).collect();
    let wakes = |change: &crate::store::Event| {
        let pod = world.pods.of(&change.entry).filter(|_| !change.deleted && change.prev.is_none());
        pod.and_then(|it| wants(&it)).into_iter().collect()
    };
    drive(&world.core, &[("", "pods")], first, wakes, |key| look(&world, &claims, &by, key)).await;
}

fn is_wanted(pod: &Pod) -> bool {
    pods::is_active(pod) && volumes(pod).next().is_some()
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|it| it.volumes.iter().flatten()).filter(|it| it.ephemeral.is_some())
}

async fn look(
    world: &World,
    claims: &Reader<PersistentVolumeClaim>,
    by: &Recorder,
    of: Key,
) -> Result<Option<Timestamp>, Problem> {
    let Some(pod) = world.pods.get(&of.namespace, &of.name).filter(|it| is_wanted(it)) else { return Ok(None) };
    for volume in volumes(&pod) {
        let Some(template) = volume.ephemeral.as_ref().and_then(|it| it.volume_claim_template.as_ref()) else {
            continue;
        };
        let name = format!("{}-{}", pod.name(), volume.name);
        if let Some(claim) = claims.get(pod.namespace(), &name) {
            if is_controlled_by(&*claim, &*pod) {
                continue;
            }
            let why =
                format!("PVC {}/{name} was not created for pod {0}/{} (pod is not owner)", pod.namespace(), pod.name());
            by.warning(&*pod, "FailedBinding", format!("ephemeral volume {}: {why}", volume.name));
            return Err(Problem::internal(&why));
        }
        let meta = template.metadata.as_ref();
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": name, "namespace": pod.namespace(), "ownerReferences": [reference(&*pod)],
                "labels": meta.and_then(|it| it.labels.as_ref()), "annotations": meta.and_then(|it| it.annotations.as_ref()),
            },
            "spec": template.spec,
        });
        match world.make(&key::<PersistentVolumeClaim>(pod.namespace(), &name), claim).await {
            Err(problem) if problem.reason != "AlreadyExists" => {
                let why = format!("ephemeral volume {}: create PVC {name}: {}", volume.name, problem.message);
                by.warning(&*pod, "FailedBinding", why);
                return Err(problem);
            }
            _ => {}
        }
    }
    Ok(None)
}
