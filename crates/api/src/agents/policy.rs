use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SeccompProfile;
use super::shared::{no, yes};
use crate::kind::kind;

kind!(
    /// What the runs of the instances that name it may do.
    SympoziumPolicy, "sympoziumpolicies", SympoziumPolicySpec, SympoziumPolicyStatus,
    "What the runs of the instances that name it may do.",
    [
        ("Bound", "integer", ".status.boundInstances"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SympoziumPolicySpec {
    /// What sandboxes must be and may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_policy: Option<SandboxPolicy>,
    /// Limits for runs that start runs, and for how many run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subagent_policy: Option<SubagentPolicy>,
    /// Which tools may be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_gating: Option<ToolGating>,
    /// Features by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_gates: Option<BTreeMap<String, bool>>,
    /// Where sandboxes may connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPolicy {
    pub required: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_image: Option<String>,
    #[serde(default, rename = "maxCPU", skip_serializing_if = "Option::is_none")]
    pub max_cpu: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<String>,
    #[serde(default = "no")]
    pub allow_host_mounts: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seccomp_profile: Option<SeccompProfile>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_sandbox_policy: Option<AgentSandboxPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentSandboxPolicy {
    pub required: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_runtime_class: Option<String>,
    /// If not empty, only these classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_runtime_classes: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubagentPolicy {
    #[serde(default = "three")]
    pub max_depth: i64,
    /// How many runs of one instance go on at once; more wait.
    #[serde(default = "five")]
    pub max_concurrent: i64,
}

/// The first rule that names a tool decides; otherwise the default does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolGating {
    /// allow, deny or ask.
    #[serde(default = "allow")]
    pub default_action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<ToolRule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolRule {
    /// The tool's name.
    pub tool: String,
    /// allow, deny or ask.
    pub action: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    #[serde(default = "yes")]
    pub deny_all: bool,
    #[serde(default = "yes", rename = "allowDNS")]
    pub allow_dns: bool,
    #[serde(default = "yes")]
    pub allow_event_bus: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_egress: Option<Vec<EgressRule>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SympoziumPolicyStatus {
    /// How many instances name this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_instances: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

fn three() -> i64 {
    3
}

fn five() -> i64 {
    5
}

fn allow() -> String {
    "allow".into()
}
