//! A node in a process of its own, which can be killed; and its launcher, when it is started as that.
//!
//! `node-launcher DATA EXECD [STEP]`: serves at DATA/node, prints a line when it does, dies at STEP.

use std::path::PathBuf;

use kit::{Clock, Shutdown, Tasks};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    node::launcher_main();
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [data, execd, step @ ..] = args.as_slice() else { return Err("DATA EXECD [STEP]".into()) };
    if let Some(step) = step.first() {
        node::die_at(step);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let tasks = Tasks::new(Shutdown::new());
        let node = node::Node::open(node::Options::new(data, execd, Clock::system(), tasks.clone())).await?;
        node.listen(&PathBuf::from(data).join("node"))?;
        println!("ready");
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        term.recv().await;
        tasks.end().await;
        Ok(())
    })
}
