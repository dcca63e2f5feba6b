//! Stories of the controllers, against a whole API server: what a user declares and what comes of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking, too")]

mod agent_run;
mod faults;
mod instance;
mod policy;
