//! The RuntimeClass by which pods ask for gVisor.

use std::time::Duration;

use api::labels;
use k8s_openapi::api::node::v1::RuntimeClass;
use kit::{Backoff, Tasks};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::json;

use super::Runtime;
use crate::projection::objects;

/// As everybody calls it.
const NAME: &str = "gvisor";
/// What a RuntimeClass of gVisor's has for a handler, whatever it is called.
pub(super) const HANDLER: &str = "runsc";
const MANAGER: &str = "insula-pods";
const OURS: &str = "insula";
/// After a failure, and at the most.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(300);

/// Publishes the class where gVisor works, and takes it back where there is none any more; somebody else's is left alone.
/// Nothing waits for it.
pub(super) fn publish(client: Client, runtime: Runtime, tasks: &Tasks) {
    let shutdown = tasks.shutdown().clone();
    tasks.tenant("runtime class", async move {
        let published = async {
            let there = runtime.has_runsc();
            if there {
                works(&runtime).await;
            }
            keep(&client, there).await;
        };
        tokio::select! {
            () = shutdown.begun() => {}
            () = published => {}
        }
    });
}

/// Returns once programs were run with it.
async fn works(runtime: &Runtime) {
    let mut failing = Backoff::new(PAUSE, LONGEST);
    loop {
        let found = runtime.sentry().await;
        if found.ok {
            return;
        }
        // A class that was published stays, and its pods wait.
        tracing::warn!(why = found.why, "no pods with gVisor; trying again");
        tokio::time::sleep(failing.pause()).await;
    }
}

/// Has our class be there, or not.
async fn keep(client: &Client, there: bool) {
    let classes = objects::<RuntimeClass>(client, None);
    let mut failing = Backoff::new(PAUSE, LONGEST);
    loop {
        let done = match there {
            true => apply(&classes).await,
            false => remove(&classes).await,
        };
        let Err(error) = done else { return };
        tracing::debug!(error = kit::chain(&error), "the runtime class of gVisor is not as it should be; trying again");
        tokio::time::sleep(failing.pause()).await;
    }
}

fn is_ours(it: &DynamicObject) -> bool {
    it.metadata.labels.as_ref().and_then(|all| all.get(labels::MANAGED_BY)).is_some_and(|it| it == OURS)
}

async fn apply(classes: &Api<DynamicObject>) -> Result<(), kube::Error> {
    let class = json!({
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": NAME, "labels": {labels::MANAGED_BY: OURS}},
        "handler": HANDLER,
    });
    match classes.get_opt(NAME).await? {
        None => {
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            let class = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
            match classes.create(&params, &class).await {
                // Somebody was faster.
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                other => other.map(drop),
            }
        }
        Some(there) if is_ours(&there) => {
            classes.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&class)).await.map(drop)
        }
        Some(_) => Ok(()),
    }
}

async fn remove(classes: &Api<DynamicObject>) -> Result<(), kube::Error> {
    let Some(there) = classes.get_opt(NAME).await?.filter(is_ours) else { return Ok(()) };
    let only = Preconditions { uid: there.metadata.uid, resource_version: None };
    match classes.delete(NAME, &DeleteParams { preconditions: Some(only), ..DeleteParams::default() }).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use kit::{Clock, Shutdown};

    use super::*;

    #[tokio::test]
    async fn the_class_is_published_and_taken_back_and_somebody_elses_is_left_alone() {
        let (clock, tasks) = (Clock::system(), Tasks::new(Shutdown::new()));
        let client = testkit::api_server(&clock, &tasks).await;
        let classes = Api::<RuntimeClass>::all(client.clone());
        let handler = async || classes.get_opt(NAME).await.unwrap().map(|it| it.handler);
        keep(&client, false).await;
        assert_eq!(handler().await, None);
        for _ in 0..2 {
            keep(&client, true).await;
            assert_eq!(handler().await.as_deref(), Some(HANDLER));
        }
        keep(&client, false).await;
        assert_eq!(handler().await, None);
        let class = json!({"metadata": {"name": NAME}, "handler": "theirs"});
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
        for there in [true, false] {
            keep(&client, there).await;
            assert_eq!(handler().await.as_deref(), Some("theirs"));
        }
        tasks.end().await;
    }
}
