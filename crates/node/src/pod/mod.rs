//! Pods of this machine: what a kubelet and its runtime are to a Kubernetes node.

mod given;
mod here;
mod kubelet;
mod log;
mod network;
mod runtime;
mod runtime_class;
mod signals;
mod types;
mod upkeep;

pub use given::Allow;
pub use here::PodOptions;
pub(crate) use here::{Close, Here};
#[cfg(test)]
pub(crate) use log::Rotation;
pub(crate) use log::{Log, LogOptions, Stream};
pub use network::Egress;
pub(crate) use network::{Network, NetworkOptions};
pub(crate) use runtime::{Attach, Resize, Runtime};
pub(crate) use types::*;
