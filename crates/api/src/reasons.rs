//! Reasons of conditions and events: UpperCamelCase, stable, searchable.

/// All is well.
pub const ACCEPTED: &str = "Accepted";
pub const READY: &str = "Ready";

/// Something the object names is not there yet; the message names it. It heals when the thing appears.
pub const SECRET_MISSING: &str = "SecretMissing";
pub const POLICY_MISSING: &str = "PolicyMissing";
pub const INSTANCE_MISSING: &str = "InstanceMissing";
pub const MCP_SERVER_MISSING: &str = "MCPServerMissing";
pub const SKILL_PACK_MISSING: &str = "SkillPackMissing";
pub const RUNTIME_CLASS_MISSING: &str = "RuntimeClassMissing";
/// The RuntimeClass is there, and no machine here has its handler.
pub const RUNTIME_HANDLER_MISSING: &str = "RuntimeHandlerMissing";
/// No machine here has the image that is named for the sandbox.
pub const IMAGE_MISSING: &str = "ImageMissing";
pub const WARM_POOL_MISSING: &str = "WarmPoolMissing";
pub const NODE_MISSING: &str = "NodeMissing";
/// The object asks for something that this version does not do.
pub const NOT_SUPPORTED: &str = "NotSupported";
/// The object is wrong and stays wrong until it is edited.
pub const INVALID: &str = "Invalid";

/// A run waits for its turn: a limit, or an earlier run of its session.
pub const QUEUED: &str = "Queued";
pub const RUNNING: &str = "Running";
pub const SUCCEEDED: &str = "Succeeded";
pub const FAILED: &str = "Failed";
/// It ended, and the provider cut the answer: at a limit of tokens, or by a filter.
pub const ANSWER_CUT: &str = "AnswerCut";
pub const TIMEOUT: &str = "Timeout";
/// The model's provider refused, or did not do, what it was asked; also where a run's timeout passed meanwhile.
pub const PROVIDER_FAILED: &str = "ProviderFailed";
/// The model's provider failed, and is asked again.
pub const RETRYING: &str = "Retrying";
pub const CANCELLED: &str = "Cancelled";
/// A policy forbids it.
pub const DENIED: &str = "Denied";
