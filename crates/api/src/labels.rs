//! Labels, annotations and finalizers. Those of the originals keep their names: their users select by them.

/// The instance that an object belongs to.
pub const INSTANCE: &str = "sympozium.ai/instance";
/// The run that an object belongs to.
pub const AGENT_RUN: &str = "sympozium.ai/agent-run";
/// What an object is to its owner: `memory`, `channel`, `agent-run`, ...
pub const COMPONENT: &str = "sympozium.ai/component";
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Of a sandbox, in the words of its node: the namespace and the name of the Pod as which people see it.
pub const POD_NAMESPACE: &str = "insula.dev/namespace";
pub const POD: &str = "insula.dev/pod";
/// On a Pod, with the value `true`: it shows a sandbox that is there anyway. On the Node that has them, too.
pub const PROJECTED: &str = "insula.dev/projected";
/// Annotation of such a Pod: the sandbox's id at its node.
pub const SANDBOX: &str = "insula.dev/sandbox";
/// Annotation of any other Pod: with the value `true` its containers stand still, with `false` or without it they go on.
pub const FROZEN: &str = "insula.dev/frozen";

/// Held by a run until it is stopped and its record is gone.
pub const RUN_FINALIZER: &str = "sympozium.ai/agentrun-finalizer";
/// Held by an instance until what it made is gone.
pub const INSTANCE_FINALIZER: &str = "sympozium.ai/finalizer";
