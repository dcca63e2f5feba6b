//! What a PodSpec says, in the words that deciding needs.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a kubelet gives who says nothing.
const GRACE: i64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Init,
    /// An init container that is restarted always: it runs beside what comes after it.
    Sidecar,
    Regular,
    Ephemeral,
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Unit<'a> {
    pub kind: Kind,
    pub spec: Cow<'a, Container>,
    /// Whose processes an ephemeral container sees.
    pub target: Option<&'a str>,
}

impl Unit<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Where events about it point.
    pub(crate) fn field_path(&self) -> String {
        let list = match self.kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::Regular => "containers",
            Kind::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.spec.name)
    }

    /// Whether it is started again after it has ended with this code.
    pub(crate) fn restarts(&self, pod: &Pod, code: i32) -> bool {
        if self.kind == Kind::Sidecar {
            return true;
        }
        let rules = self.spec.restart_policy_rules.iter().flatten();
        let by_rule = rules.filter(|rule| rule.action == "Restart").any(|rule| {
            rule.exit_codes.as_ref().is_some_and(|codes| {
                let among = codes.values.iter().flatten().any(|it| *it == code);
                if codes.operator == "NotIn" { !among } else { among }
            })
        });
        let policy = self.spec.restart_policy.as_deref().unwrap_or_else(|| policy(pod));
        match (self.kind, policy) {
            (Kind::Ephemeral, _) => false,
            _ if by_rule => true,
            (Kind::Init, "Always" | "OnFailure") | (Kind::Regular, "OnFailure") => code != 0,
            (Kind::Regular, "Always") => true,
            _ => false,
        }
    }
}

/// All containers: init containers, regular ones, ephemeral ones, each in their order.
pub(crate) fn units(pod: &Pod) -> Vec<Unit<'_>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|it| Unit {
        kind: if it.restart_policy.as_deref() == Some("Always") { Kind::Sidecar } else { Kind::Init },
        spec: Cow::Borrowed(it),
        target: None,
    });
    let regular = spec.containers.iter().map(|it| Unit { kind: Kind::Regular, spec: Cow::Borrowed(it), target: None });
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|it| Unit {
        kind: Kind::Ephemeral,
        spec: Cow::Owned(plain(it)),
        target: it.target_container_name.as_deref().filter(|name| !name.is_empty()),
    });
    init.chain(regular).chain(ephemeral).collect()
}

/// An ephemeral container as the container that it is but for its target.
pub(crate) fn plain(it: &EphemeralContainer) -> Container {
    let it = it.clone();
    Container {
        args: it.args,
        command: it.command,
        env: it.env,
        env_from: it.env_from,
        image: it.image,
        image_pull_policy: it.image_pull_policy,
        name: it.name,
        resources: it.resources,
        security_context: it.security_context,
        stdin: it.stdin,
        stdin_once: it.stdin_once,
        termination_message_path: it.termination_message_path,
        termination_message_policy: it.termination_message_policy,
        tty: it.tty,
        volume_devices: it.volume_devices,
        volume_mounts: it.volume_mounts,
        working_dir: it.working_dir,
        ..Container::default()
    }
}

pub(crate) fn policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|it| it.restart_policy.as_deref()).unwrap_or("Always")
}

/// Seconds that the pod's containers have for their end: what its deletion says, else what it says itself.
pub(crate) fn grace(pod: &Pod) -> i64 {
    let own = pod.spec.as_ref().and_then(|it| it.termination_grace_period_seconds);
    pod.metadata.deletion_grace_period_seconds.or(own).unwrap_or(GRACE).max(0)
}

/// As Kubernetes draws the line: what the cluster does not run without.
pub(crate) fn is_critical(pod: &Pod) -> bool {
    const SYSTEM: i32 = 2_000_000_000;
    pod.spec.as_ref().and_then(|it| it.priority).is_some_and(|it| it >= SYSTEM)
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// As a kubelet names a pod in messages: `name_namespace(uid)`.
pub(crate) fn full_name(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    format!("{name}_{namespace}({})", uid(pod))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether nothing of it runs any more, or ever will.
pub(crate) fn is_over(pod: &Pod) -> bool {
    is_terminal(phase(pod))
}

/// The port that a probe or a hook names.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|it| it.name.as_deref() == Some(name));
            match named.map(|it| it.container_port).or_else(|| name.parse().ok()) {
                Some(number) => number,
                None => return Err(format!("couldn't find port: \"{name}\" in container")),
            }
        }
    };
    u16::try_from(number).ok().filter(|it| *it > 0).ok_or_else(|| format!("invalid port number: {number}"))
}
