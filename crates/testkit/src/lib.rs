//! For tests only: a whole house in one process, and a valid object of each kind.

mod fixtures;
mod house;

pub use fixtures::*;
pub use house::*;
