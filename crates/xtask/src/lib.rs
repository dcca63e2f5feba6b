//! The workspace's chores: generated files and the law of rooms.

pub mod codegen;
pub mod kube_tables;
pub mod law;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or_else(|| Path::new(".")).to_owned()
}
