//! What a Pod says of one of its containers.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// Whether it has a container of this name, of whichever kind.
pub(super) fn has(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.any(|it| it.name == name) || spec.ephemeral_containers.iter().flatten().any(|it| it.name == name)
}

fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|it| it.name == name)
}

/// Why a container has no log, in the words of a kubelet, or the id of the attempt whose log it is.
pub(super) fn logged(pod: &Pod, name: &str, previous: bool) -> Result<String, String> {
    let of = pod.metadata.name.as_deref().unwrap_or_default();
    let status = status(pod, name).ok_or_else(|| format!("container {name:?} in pod {of:?} is not available"))?;
    let given = |id: Option<&String>| id.filter(|id| !id.is_empty()).cloned();
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|it| it.terminated.as_ref());
    let earlier = last.and_then(|it| given(it.container_id.as_ref()));
    if previous {
        return earlier.ok_or_else(|| format!("previous terminated container {name:?} in pod {of:?} not found"));
    }
    let ended = || format!("container {name:?} in pod {of:?} is terminated");
    let waits = |why: &str| format!("container {name:?} in pod {of:?} is waiting to start{why}");
    if state.running.is_some() {
        given(status.container_id.as_ref()).ok_or_else(|| waits(" - no logs yet"))
    } else if let Some(terminated) = &state.terminated {
        given(terminated.container_id.as_ref()).or(earlier).ok_or_else(ended)
    } else if last.is_some() {
        earlier.ok_or_else(ended)
    } else if let Some(waiting) = &state.waiting {
        Err(match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" => waits(": image can't be pulled"),
            "ImagePullBackOff" => waits(": trying and failing to pull image"),
            reason => waits(&format!(": {reason}")),
        })
    } else {
        Err(waits(" - no logs yet"))
    }
}
