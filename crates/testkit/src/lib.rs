//! For tests only: a whole house in one process, and a valid object of each kind.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "what goes wrong in here fails a test, and tests fail by panicking"
)]

mod fixtures;
mod house;

pub use fixtures::*;
pub use house::*;
