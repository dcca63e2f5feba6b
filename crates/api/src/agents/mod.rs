//! `sympozium.ai/v1alpha1`: agents as Kubernetes objects, in the dialect of March 2026 (v0.5.8).
//!
//! Source of every field, default and column: Sympozium's own Go types. Its required strings may be empty, its
//! durations are Go's, its unknown fields are pruned.

mod agent_run;
mod instance;
mod policy;
mod shared;

pub use agent_run::*;
pub use instance::*;
pub use policy::*;
pub use shared::*;

/// The entries of a Secret in which a model's key is looked for, in this order: the names by which the original's agents
/// read it from their environment. No other entry is ever sent to a provider.
pub const MODEL_KEYS: [&str; 5] =
    ["API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_OPENAI_API_KEY", "PROVIDER_API_KEY"];

pub const GROUP: &str = "sympozium.ai";
pub const VERSION: &str = "v1alpha1";
