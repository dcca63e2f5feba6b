//! What is done for the pods of this machine from time to time: who goes when memory runs out or a volume holds too much,
//! and which images go when the disk is full.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod};
use kit::Clock;

use super::here::Here;
use super::kubelet::{Kubelet, Pressure, Used, candidate, is_critical, is_over};
use crate::projection::available_memory;

/// As a kubelet looks at its machine. It is the kernel that acts at once.
const LOOK: SignedDuration = SignedDuration::from_secs(10);
/// Looks after which whole directories are counted, and images.
const VOLUMES: u64 = 6;
const IMAGES: u64 = 30;
/// Pods that are looked at at the same time: one that does not answer holds up few.
const AT_ONCE: usize = 4;
/// Bytes of memory of which less is too little, as a kubelet has it.
const MEMORY: u64 = 100 << 20;

/// For ever.
pub(super) async fn keep(here: Arc<Here>, kubelet: Kubelet<Here>, clock: Clock) {
    for round in 1_u64.. {
        let next = clock.now().checked_add(LOOK).unwrap_or(jiff::Timestamp::MAX);
        clock.until(next).await;
        let pods = kubelet.known();
        if let Some(available) = available_memory().filter(|it| *it < MEMORY) {
            let pressure = Pressure { resource: "memory", threshold: MEMORY, available };
            let stays = |it: &&Arc<Pod>| !is_over(it) && it.metadata.deletion_timestamp.is_none();
            let used = pods.iter().filter(stays).map(|it| (&**it, here.memory(it)));
            if let Some((pod, message)) = candidate(used, pressure) {
                evict(&kubelet, pod, message, true);
            }
        }
        let whole = round.is_multiple_of(VOLUMES);
        let live: Vec<_> = pods.iter().filter(|it| !is_over(it) && !is_critical(it)).cloned().collect();
        let looks = live.into_iter().map(|pod| {
            let here = here.clone();
            async move { here.overfull(&pod, whole).await.map(|message| (pod, message)) }
        });
        let over: Vec<_> = futures::stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        for (pod, message) in over.into_iter().flatten() {
            // It has itself to blame.
            evict(&kubelet, &pod, message, false);
        }
        if round.is_multiple_of(IMAGES)
            && let Err(error) = here.collect_images(&pods).await
        {
            tracing::warn!(%error, "images that nobody uses stay");
        }
    }
}

fn evict(kubelet: &Kubelet<Here>, pod: &Pod, message: String, disruption: bool) {
    tracing::info!(pod = pod.metadata.name, namespace = pod.metadata.namespace, message, "evicting a pod");
    kubelet.evict(pod.metadata.uid.as_deref().unwrap_or_default(), message, disruption);
}

/// The images that the containers of these pods have, as their statuses name them.
pub(super) fn used_images(pods: &[Arc<Pod>]) -> BTreeSet<&str> {
    let statuses = pods.iter().filter_map(|it| it.status.as_ref()).flat_map(|it| {
        let all = [&it.container_statuses, &it.init_container_statuses, &it.ephemeral_container_statuses];
        all.into_iter().flatten().flatten()
    });
    statuses.map(|it| it.image_id.as_str()).filter(|it| !it.is_empty()).collect()
}

pub(super) fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|it| it.containers.iter().chain(it.init_containers.iter().flatten()))
}

/// What the containers of a pod use of something.
pub(super) fn used(pod: &Pod, of: impl Fn(&str) -> Option<u64>) -> Used {
    containers(pod).filter_map(|it| Some((it.name.clone(), of(&it.name)?))).collect()
}
