//! What a kubelet does: it watches the pods of its node, decides what each needs next, does it through a [`World`], and
//! writes what became of it.
//!
//! [`plan`] decides, without doing anything: from the pod, the state of its processes, what is remembered and the time.
//! [`worker`] acts: one task for each pod, woken by whatever it knows of. [`status`] and [`conditions`] say what the API
//! server is told, [`events`] what people are.

mod admission;
mod conditions;
mod events;
mod eviction;
mod memory;
mod plan;
mod probes;
mod spec;
#[cfg(test)]
mod stage;
mod status;
mod worker;
mod world;

pub(crate) use eviction::{Pressure, Used, candidate, is_bounded, oversized};
pub(crate) use spec::{is_critical, is_over, plain};
pub(crate) use worker::{Kubelet, Options, start};
pub(crate) use world::{Download, Found, Looking, Node, Ran, Refused, Wire, World};
