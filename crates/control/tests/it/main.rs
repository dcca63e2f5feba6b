//! Stories of the controllers, against a whole API server: what a user declares and what comes of it.

mod agent_run;
mod faults;
mod instance;
mod policy;
