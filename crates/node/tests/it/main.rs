//! The node through its door: real sandboxes on this machine, as root or as an ordinary user.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod cell;
mod crash;
mod escape;
mod kubelet;
mod life;
mod projection;
