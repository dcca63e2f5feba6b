//! What a node starts: its launcher, and in each sandbox execd.

use std::process::ExitCode;

use execd::{Access, Listen};

fn main() -> ExitCode {
    node::launcher_main();
    match execd::run(Listen::Inherited(wire::node::init::LISTEN_FD), Access::Bind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
