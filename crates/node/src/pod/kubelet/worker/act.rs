//! What a pod's task does; each thing to its end, and then what came of it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::labels::FROZEN;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodStatus, Probe};
use kit::Shutdown;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::{CALL, Inner};
use crate::pod::kubelet::memory::Kind;
use crate::pod::kubelet::plan::Note;
use crate::pod::kubelet::probes::{self, Found, Target};
use crate::pod::kubelet::spec::{self, Unit};
use crate::pod::kubelet::world::{Download, Looking, Refused, World};
use crate::pod::{ContainerConfig, PodConfig, StartError};
use crate::projection::objects;

/// The field manager of what is written here.
const MANAGER: &str = "insula-kubelet";

pub(super) struct Acting<'a, W> {
    pub inner: &'a Inner<W>,
    pub pod: Arc<Pod>,
}

/// What came of it. Where something did not work, it is tried again by the plan.
pub(super) enum Outcome {
    Volumes(Option<PodConfig>),
    /// What the pod was given is not what it should be given any more.
    Changed,
    Created(bool),
    Started {
        container: String,
        image: (String, String),
        config: Box<ContainerConfig>,
    },
    NotStarted {
        container: String,
        image: Option<(String, String)>,
        attempt: u32,
        refused: Refused,
    },
    HookFailed {
        container: String,
        image: (String, String),
        config: Box<ContainerConfig>,
        refused: Refused,
    },
    /// Its pod stands still.
    TurnedAway {
        container: String,
    },
    Cancelled {
        container: String,
    },
    PreStopped {
        container: String,
    },
    Signalled,
    Killed {
        container: String,
        done: bool,
    },
    /// Frozen, or thawed.
    Turned(bool),
    Probed {
        container: String,
        kind: Kind,
        id: String,
        spec: Box<Probe>,
        passed: Option<bool>,
    },
    Stopped(bool),
    Removed(bool),
    Deleted(bool),
    /// `version`: of the object with it; `None`: it could not be written.
    Written {
        status: Box<PodStatus>,
        version: Option<u64>,
    },
}

impl<W: World> Acting<'_, W> {
    fn uid(&self) -> &str {
        spec::uid(&self.pod)
    }

    fn note(&self, warning: bool, reason: &'static str, message: String, path: Option<&str>) {
        self.inner.recorder.note(&self.pod, Note { warning, reason, message, path: path.map(str::to_owned) });
    }

    pub(super) async fn volumes(self) -> Outcome {
        match self.inner.world.volumes(&self.pod).await {
            Ok(config) => Outcome::Volumes(Some(config)),
            Err(Refused { reason, message }) => {
                let reason = if let Cow::Borrowed(reason) = reason { reason } else { "FailedMount" };
                self.note(true, reason, message, None);
                Outcome::Volumes(None)
            }
        }
    }

    pub(super) async fn changed(self) -> Outcome {
        self.inner.world.changed(&self.pod).await;
        Outcome::Changed
    }

    pub(super) async fn create(self, config: Option<PodConfig>) -> Outcome {
        let Some(config) = config else { return Outcome::Created(false) };
        let _turn = self.inner.starts.acquire().await;
        let done = self.inner.world.create(config).await;
        if let Err(error) = &done {
            let message = format!("Failed to create pod sandbox: {}", kit::chain(error));
            self.note(true, "FailedCreatePodSandBox", message, None);
        }
        Outcome::Created(done.is_ok())
    }

    pub(super) async fn start(
        self,
        spec: Container,
        target: Option<String>,
        kind: spec::Kind,
        attempt: u32,
        address: Option<IpAddr>,
        cancel: &Shutdown,
    ) -> Outcome {
        let container = spec.name.clone();
        let path = path(&spec, kind);
        let found = tokio::select! {
            found = self.image(&spec, &path) => found,
            () = cancel.begun() => return Outcome::Cancelled { container },
        };
        let found = match found {
            Ok(found) => found,
            Err(refused) => return Outcome::NotStarted { container, image: None, attempt, refused },
        };
        let image = (found.name.clone(), found.id.clone());
        let world = &self.inner.world;
        let config = world.container(&self.pod, &spec, target.as_deref(), &found.image, attempt, address);
        let config = tokio::select! {
            config = config => config,
            () = cancel.begun() => return Outcome::Cancelled { container },
        };
        let config = match config {
            Ok(config) => config,
            Err(refused) => {
                self.note(true, "Failed", format!("Error: {}", refused.message), Some(&path));
                return Outcome::NotStarted { container, image: None, attempt, refused };
            }
        };
        let started = {
            let _turn = self.inner.starts.acquire().await;
            if cancel.has_begun() {
                return Outcome::Cancelled { container };
            }
            world.start(self.uid(), config.clone()).await
        };
        let created = || self.note(false, "Created", format!("Created container: {container}"), Some(&path));
        match started {
            Ok(_) => created(),
            Err(error) => {
                let (reason, message) = match error {
                    // It is started when the pod goes on.
                    StartError::Frozen(_) => return Outcome::TurnedAway { container },
                    StartError::Command(message) => ("RunContainerError", message),
                    StartError::SubPath(volume) => (
                        "CreateContainerConfigError",
                        format!("failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\""),
                    ),
                    StartError::Config(message) => ("CreateContainerError", message),
                    StartError::Machine(error) => ("CreateContainerError", kit::chain(&error)),
                };
                let ran = reason == "RunContainerError";
                if ran {
                    created();
                }
                self.note(true, "Failed", format!("Error: {message}"), Some(&path));
                let refused = Refused { reason: reason.into(), message };
                return Outcome::NotStarted { container, image: Some(image).filter(|_| ran), attempt, refused };
            }
        }
        self.note(false, "Started", format!("Started container {container}"), Some(&path));
        let hook = spec.lifecycle.as_ref().and_then(|it| it.post_start.as_ref());
        let config = Box::new(config);
        if let Some(hook) = hook {
            let ran = tokio::select! {
                ran = self.hook(&spec, hook, address) => ran,
                () = cancel.begun() => Ok(()),
            };
            if let Err(message) = ran {
                self.note(true, "FailedPostStartHook", "PostStartHook failed".to_owned(), Some(&path));
                let refused = Refused { reason: "PostStartHookError".into(), message };
                return Outcome::HookFailed { container, image, config, refused };
            }
        }
        Outcome::Started { container, image, config }
    }

    async fn image(
        &self,
        spec: &Container,
        path: &str,
    ) -> Result<crate::pod::kubelet::world::Found<W::Image>, Refused> {
        let name = spec.image.as_deref().unwrap_or_default();
        let tell = |what| match what {
            Looking::Pulling => self.note(false, "Pulling", format!("Pulling image \"{name}\""), Some(path)),
            Looking::Without(secrets) => {
                let secrets = secrets.join(", ");
                let message = format!(
                    "Unable to retrieve some image pull secrets ({secrets}); attempting to pull the image may not succeed."
                );
                self.note(true, "FailedToRetrieveImagePullSecret", message, None);
            }
        };
        let found = self.inner.world.image(&self.pod, spec, tell).await;
        match &found {
            Ok(found) => {
                let mut message = match found.pulled {
                    None => format!("Container image \"{name}\" already present on machine"),
                    Some(Download { took, waited, bytes }) => {
                        let (took, waited) = (go(took), go(waited));
                        let size = format!("Image size: {bytes} bytes.");
                        format!("Successfully pulled image \"{name}\" in {took} ({waited} including waiting). {size}")
                    }
                };
                if let Some(remark) = &found.remark {
                    message = format!("{message}: {remark}");
                }
                self.note(false, "Pulled", message, Some(path));
            }
            Err(Refused { reason, message }) => {
                let (event, said) = match reason.as_ref() {
                    "ErrImageNeverPull" => ("ErrImageNeverPull", message.clone()),
                    "InvalidImageName" => ("InspectFailed", message.clone()),
                    _ => ("Failed", format!("Failed to pull image \"{name}\": {message}")),
                };
                self.note(true, event, said, Some(path));
                self.note(true, "Failed", format!("Error: {reason}"), Some(path));
            }
        }
        found
    }

    fn target<'b>(&'b self, container: &'b Container, address: Option<IpAddr>) -> Target<'b, W> {
        let address = address.map_or_else(|| "127.0.0.1".to_owned(), |it| it.to_string());
        Target { world: self.inner.world.as_ref(), pod: &self.pod, container, address }
    }

    async fn hook(&self, spec: &Container, hook: &LifecycleHandler, address: Option<IpAddr>) -> Result<(), String> {
        probes::hook(&self.target(spec, address), hook).await
    }

    pub(super) async fn pre_stop(
        self,
        spec: Container,
        kind: spec::Kind,
        seconds: i64,
        address: Option<IpAddr>,
    ) -> Outcome {
        let hook = spec.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref());
        if let Some(hook) = hook {
            let limit = Duration::from_secs(seconds.max(0).unsigned_abs());
            let ran = tokio::time::timeout(limit, self.hook(&spec, hook, address)).await;
            if !matches!(ran, Ok(Ok(()))) {
                self.note(true, "FailedPreStopHook", "PreStopHook failed".to_owned(), Some(&path(&spec, kind)));
            }
        }
        Outcome::PreStopped { container: spec.name }
    }

    pub(super) async fn signal(self, container: String, signal: i32) -> Outcome {
        if let Err(error) = self.inner.world.signal(self.uid(), &container, signal).await {
            tracing::debug!(container, error = kit::chain(&error), "cannot signal a container");
        }
        Outcome::Signalled
    }

    pub(super) async fn kill(self, container: String) -> Outcome {
        let done = self.inner.world.kill(self.uid(), &container).await;
        if let Err(error) = &done {
            self.note(true, "FailedKillPod", format!("error killing pod: {}", kit::chain(error)), None);
        }
        Outcome::Killed { container, done: done.is_ok() }
    }

    pub(super) async fn freeze(self, frozen: bool) -> Outcome {
        let done = self.inner.world.freeze(self.uid(), frozen).await;
        let (warning, reason, message) = match (&done, frozen) {
            (Ok(()), true) => {
                let message = format!("Froze all containers, as the annotation {FROZEN} says");
                (false, "Frozen", message)
            }
            (Ok(()), false) => (false, "Thawed", "All containers go on".to_owned()),
            (Err(error), true) => (true, "FailedFreeze", format!("error freezing pod: {}", kit::chain(error))),
            (Err(error), false) => (true, "FailedThaw", format!("error thawing pod: {}", kit::chain(error))),
        };
        self.note(warning, reason, message, None);
        Outcome::Turned(done.is_ok())
    }

    pub(super) async fn probe(
        self,
        container: Container,
        unit: spec::Kind,
        kind: Kind,
        id: String,
        address: Option<IpAddr>,
        cancel: &Shutdown,
    ) -> Outcome {
        let spec = match kind {
            Kind::Startup => &container.startup_probe,
            Kind::Liveness => &container.liveness_probe,
            Kind::Readiness => &container.readiness_probe,
        };
        let spec = Box::new(spec.clone().unwrap_or_default());
        let target = self.target(&container, address);
        let found = tokio::select! {
            found = probes::probe(&target, &spec) => found,
            // What it would find now says nothing of the container.
            () = cancel.begun() => return Outcome::Probed { container: container.name, kind, id, spec, passed: None },
        };
        let path = path(&container, unit);
        let kind_name = kind.name();
        let passed = match found {
            Found::Passed => Some(true),
            Found::Warned(why) => {
                self.note(true, "ProbeWarning", format!("{kind_name} probe warning: {why}"), Some(&path));
                Some(true)
            }
            Found::Failed(why) => {
                self.note(true, "Unhealthy", format!("{kind_name} probe failed: {why}"), Some(&path));
                Some(false)
            }
            Found::Unknown(why) => {
                let message = format!("{kind_name} probe errored and resulted in unknown state: {why}");
                self.note(true, "Unhealthy", message, Some(&path));
                None
            }
        };
        Outcome::Probed { container: container.name, kind, id, spec, passed }
    }

    pub(super) async fn stop(self) -> Outcome {
        Outcome::Stopped(self.done(self.inner.world.stop(self.uid()).await))
    }

    pub(super) async fn remove(self) -> Outcome {
        Outcome::Removed(self.done(self.inner.world.remove(self.uid()).await))
    }

    fn done(&self, done: Result<(), crate::Error>) -> bool {
        if let Err(error) = &done {
            self.note(true, "FailedKillPod", format!("error killing pod: {}", kit::chain(error)), None);
        }
        done.is_ok()
    }

    /// The object, of which nothing is left here.
    pub(super) async fn delete(self) -> Outcome {
        let meta = &self.pod.metadata;
        let pods = objects::<Pod>(&self.inner.client, meta.namespace.as_deref());
        let only = Preconditions { uid: meta.uid.clone(), resource_version: None };
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only), ..DeleteParams::default() };
        let _turn = self.inner.writes.acquire().await;
        let deleted = tokio::time::timeout(CALL, pods.delete(meta.name.as_deref().unwrap_or_default(), &now)).await;
        Outcome::Deleted(match deleted {
            Ok(Ok(_)) => true,
            // Gone, and the name may be another's by now.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = meta.name, error = kit::chain(&error), "cannot remove a pod that has ended");
                false
            }
            Err(_) => false,
        })
    }

    pub(super) async fn write(self, status: PodStatus) -> Outcome {
        let meta = &self.pod.metadata;
        let pods = objects::<Pod>(&self.inner.client, meta.namespace.as_deref());
        let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"uid": meta.uid}, "status": status});
        let params = PatchParams::apply(MANAGER).force();
        let _turn = self.inner.writes.acquire().await;
        let name = meta.name.as_deref().unwrap_or_default();
        let written = tokio::time::timeout(CALL, pods.patch_status(name, &params, &Patch::Apply(&body))).await;
        let version = match written {
            Ok(Ok(it)) => Some(it.metadata.resource_version.and_then(|it| it.parse().ok()).unwrap_or(0)),
            // There is nobody left to be told.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Some(0),
            // Nor would another try help; a pod that is deleted must not wait for it.
            Ok(Err(kube::Error::Api(refused))) if matches!(refused.code, 400 | 413 | 422) => {
                tracing::warn!(pod = meta.name, why = refused.message, "a pod's status is refused");
                Some(0)
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    pod = meta.name,
                    error = kit::chain(&error),
                    "cannot write a pod's status; trying again"
                );
                None
            }
            Err(_) => None,
        };
        Outcome::Written { status: Box::new(status), version }
    }
}

fn path(spec: &Container, kind: spec::Kind) -> String {
    Unit { kind, spec: std::borrow::Cow::Borrowed(spec), target: None }.field_path()
}

/// As Go writes a duration that is in whole milliseconds.
fn go(it: Duration) -> String {
    let millis = it.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", millis % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{point}{fraction}s", millis / 1000);
    if minutes > 0 { format!("{minutes}m{seconds}") } else { seconds }
}
