use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SeccompProfile, SkillRef, StringResources, ToolPolicy};
use crate::kind::kind;

kind!(
    /// One task, given to an agent of an instance, from its prompt to its result.
    AgentRun, "agentruns", AgentRunSpec, AgentRunStatus,
    "One task, given to an agent of an instance, from its prompt to its result.",
    [
        ("Instance", "string", ".spec.instanceRef"),
        ("Phase", "string", ".status.phase"),
        ("Pod", "string", ".status.podName"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
);

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRunSpec {
    /// The SympoziumInstance that this run belongs to, in the same namespace.
    pub instance_ref: String,
    /// The agent of the instance that runs, usually `primary`.
    pub agent_id: String,
    /// The session: runs that share one go in order and remember its turns. Empty: none is shared.
    pub session_key: String,
    /// The prompt.
    pub task: String,
    /// The base system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The model that thinks.
    pub model: ModelSpec,
    /// More environment variables for the run's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// The run that started this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentRun>,
    /// Skills of this run; empty: those of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skills: Option<Vec<SkillRef>>,
    /// Tools that this run may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_policy: Option<ToolPolicy>,
    /// The image, limits and context of the run's sandbox. Tools act in a sandbox even when it is not enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<RunSandbox>,
    /// The isolation class of the run's sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_sandbox: Option<RunAgentSandbox>,
    /// The longest time that the run may take, as Go writes durations. 10m unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Whether what the run leaves is deleted at its end.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// A task that ends, or a server that stays.
    #[serde(default)]
    pub mode: Mode,
}

/// Which model, where it is, and how it is paid for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// openai, ollama, lm-studio, ... : decides the address when baseURL is empty.
    pub provider: String,
    /// The model's name at the provider.
    pub model: String,
    /// The Secret with the key. Empty: the instance's first authRef.
    pub auth_secret_ref: String,
    /// An OpenAI-compatible address, up to and with `/v1`.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// off, low, medium or high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Labels of the nodes on which the run may act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
}

/// The run that started this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRun {
    pub run_name: String,
    pub session_key: String,
    /// How deep this run is below the first one.
    pub spawn_depth: i64,
}

/// Image, limits and security context of a run's sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSandbox {
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<RunSecurityContext>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<StringResources>,
}

/// What the processes of the sandbox may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSecurityContext {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only_root_filesystem: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Linux capabilities to take away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<Vec<String>>,
}

/// Isolation by a runtime class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunAgentSandbox {
    pub enabled: bool,
    /// gvisor, kata, ... : a RuntimeClass that must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<StringResources>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cleanup {
    #[default]
    Delete,
    Keep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Task,
    Server,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRunStatus {
    /// Derived from the conditions, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<RunPhase>,
    /// The pod of the run's sandbox, once a tool has needed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_claim_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// When a runner first took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// The answer, word for word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_usage: Option<TokenUsage>,
    #[serde(default, rename = "traceID", skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunPhase {
    Pending,
    Running,
    Serving,
    Succeeded,
    Failed,
}

impl RunPhase {
    /// Whether the run has ended and never runs again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What the run has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenUsage {
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub total_tokens: i64,
    pub tool_calls: i64,
    /// From the first lease to the end, in milliseconds.
    pub duration_ms: i64,
}
