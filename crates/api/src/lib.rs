//! The contract: every kind that users bring, and the words that our statuses use. No I/O, no async, no logging.
//!
//! Field names, defaults, enums and printer columns are those of the original systems, so that their manifests and
//! clients work unchanged; each module names its source. Schemas are never stricter than the original's: a required
//! string may be empty where it may be empty there.

pub mod agents;
pub mod conditions;
mod duration;
mod kind;
pub mod labels;
mod quantity;
pub mod reasons;

pub use duration::GoDuration;
pub use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
pub use kind::Kind;
pub use quantity::Quantity;

/// The CRDs of every kind that this version serves, in the order in which they are installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![agents::AgentRun::crd(), agents::SympoziumInstance::crd(), agents::SympoziumPolicy::crd()]
}
