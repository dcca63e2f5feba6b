//! For tests only: a whole house in one process, and a valid object of each kind.

mod fixtures;

pub use fixtures::*;
