use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::{no, yes};
use super::{ResourceRequirements, SecretRef, SkillRef, WarmPool};
use crate::kind::kind;

kind!(
    /// One tenant: its agents, keys, channels, skills, policy and memory.
    SympoziumInstance, "sympoziuminstances", SympoziumInstanceSpec, SympoziumInstanceStatus,
    "One tenant: its agents, keys, channels, skills, policy and memory.",
    [
        ("Phase", "string", ".status.phase"),
        ("Active Agents", "integer", ".status.activeAgentPods"),
        ("Total Runs", "integer", ".status.totalAgentRuns"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
);

/// What the tenant wants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SympoziumInstanceSpec {
    /// The agents of the instance.
    pub agents: Agents,
    /// The channels on which people reach the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<Channel>>,
    /// Skills that every run of the instance has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skills: Option<Vec<SkillRef>>,
    /// The SympoziumPolicy that binds the instance, in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_ref: Option<String>,
    /// Secrets with the keys of model providers; the first one wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_refs: Option<Vec<SecretRef>>,
    /// What the agents remember between runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Where telemetry goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observability: Option<Observability>,
    /// MCP servers whose tools the agents may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Vec<McpServerRef>>,
    /// Deprecated in favour of the web-endpoint skill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_endpoint: Option<WebEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agents {
    /// The agent that runs use unless they name another.
    pub default: Agent,
}

/// How an agent thinks and acts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The model's name at its provider.
    pub model: String,
    /// An OpenAI-compatible address, up to and with `/v1`. Empty: the provider's own.
    #[serde(default, rename = "baseURL", skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// off, low, medium or high.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Image and limits of the agents' sandboxes. Tools act in a sandbox even when it is not enabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<InstanceSandbox>,
    /// Isolation class of the agents' sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_sandbox: Option<InstanceAgentSandbox>,
    /// Limits for runs that start runs, and for how many run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subagents: Option<Subagents>,
    /// Labels of the nodes on which the agents may act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceSandbox {
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceAgentSandbox {
    pub enabled: bool,
    /// gvisor, kata, ... : a RuntimeClass that must exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<WarmPool>,
}

/// Limits for runs that start runs, and for how many run at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subagents {
    #[serde(default = "two")]
    pub max_depth: i64,
    /// How many runs of the instance go on at once; more wait.
    #[serde(default = "five")]
    pub max_concurrent: i64,
    #[serde(default = "three")]
    pub max_children_per_agent: i64,
}

impl Default for Subagents {
    fn default() -> Self {
        Self { max_depth: two(), max_concurrent: five(), max_children_per_agent: three() }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    /// telegram, whatsapp, discord or slack.
    #[serde(rename = "type")]
    pub type_: String,
    /// The Secret with the channel's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_ref: Option<SecretRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_control: Option<AccessControl>,
}

/// Who may talk to the instance. A denied sender stays denied when also allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessControl {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_senders: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_senders: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_chats: Option<Vec<String>>,
    /// What a refused sender is told; empty: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    #[serde(default = "yes")]
    pub enabled: bool,
    /// The most that is remembered, in KiB.
    #[serde(default = "memory_size", rename = "maxSizeKB")]
    pub max_size_kb: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Observability {
    #[serde(default = "no")]
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_protocol: Option<OtlpProtocol>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_attributes: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<String>,
    /// A number from 0 to 1, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_ratio: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    #[serde(rename = "grpc")]
    Grpc,
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// An MCP server, by address or by the name of an MCPServer object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct McpServerRef {
    #[schemars(length(min = 1))]
    pub name: String,
    /// Put before each tool's name, with an underscore.
    #[schemars(length(min = 1))]
    pub tools_prefix: String,
    /// Empty: the MCPServer object of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Seconds that one call may take.
    #[serde(default = "thirty")]
    pub timeout: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret: Option<String>,
    /// The key in that Secret; `token` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_allow: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_deny: Option<Vec<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebEndpoint {
    #[serde(default = "no")]
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    #[serde(default = "sixty")]
    pub requests_per_minute: i64,
    #[serde(default = "ten")]
    pub burst_size: i64,
}

/// What is there of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SympoziumInstanceStatus {
    /// Derived from the conditions, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<InstancePhase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<ChannelStatus>>,
    /// Runs of the instance that go on now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_agent_pods: Option<i64>,
    /// Runs that the instance has ever had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_agent_runs: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_endpoint: Option<WebEndpointStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InstancePhase {
    Pending,
    Running,
    Serving,
    Error,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelStatus {
    #[serde(rename = "type")]
    pub type_: String,
    pub status: ChannelState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_health_check: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ChannelState {
    Connected,
    Disconnected,
    Error,
    Pending,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebEndpointStatus {
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_name: Option<String>,
}

fn two() -> i64 {
    2
}

fn three() -> i64 {
    3
}

fn five() -> i64 {
    5
}

fn ten() -> i64 {
    10
}

fn thirty() -> i64 {
    30
}

fn sixty() -> i64 {
    60
}

fn memory_size() -> i64 {
    256
}
