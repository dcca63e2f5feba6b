//! Sandboxes of sessions through their door: a real node with real sandboxes on this machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod cell;
mod claims;
mod commands;
mod files;
mod tools;
