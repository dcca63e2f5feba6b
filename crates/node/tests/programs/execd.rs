//! execd as the first process of a test's sandboxes.

use std::process::ExitCode;

use execd::{Access, Listen};

fn main() -> ExitCode {
    match execd::run(Listen::Inherited(wire::node::init::LISTEN_FD), Access::Bind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
