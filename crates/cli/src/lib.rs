//! What talks to a running Insula, as anyone could: manifests over the Kubernetes API, a run's events over the gateway.

mod apply;
pub mod events;
mod show;

pub use apply::{Applied, apply};
pub use show::Show;
