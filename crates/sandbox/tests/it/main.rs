//! Sandboxes of sessions through their door: a real node with real sandboxes on this machine.

mod cell;
mod claims;
mod commands;
mod files;
