//! A Kubernetes API for trying things out: `cargo run -p apiserver --example serve -- [PORT] [DIRECTORY]`.
//!
//! Prints the path of a kubeconfig and serves until Ctrl-C. Without a directory nothing is kept.

use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use apiserver::{ApiServer, Data, Options};
use kit::{Clock, Shutdown, Tasks};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().map_or(Ok(0), |it| it.parse())?;
    let directory = arguments.next().map(PathBuf::from);
    let home = directory.clone().unwrap_or_else(std::env::temp_dir);
    let tasks = Tasks::new(Shutdown::new());
    let data = directory.map_or(Data::Memory, Data::Dir);
    let server = ApiServer::open(Options {
        data,
        clock: Clock::system(),
        tasks: tasks.clone(),
        kubelets: None,
        audit: None,
        volumes: None,
    })
    .await?;
    let at = server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let kubeconfig = home.join(format!("kubeconfig-{}", at.port()));
    std::fs::write(&kubeconfig, server.kubeconfig(at))?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", kubeconfig.display())?;
    writeln!(out, "listening on {at} after {:?}", started.elapsed())?;
    tokio::select! {
        ended = tasks.watch() => ended?,
        done = tokio::signal::ctrl_c() => done?,
    }
    tasks.end().await;
    std::fs::remove_file(kubeconfig)?;
    Ok(())
}
