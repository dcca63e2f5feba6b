//! The composition root: every role, and `main`. The only place that installs a TLS provider and reads the environment.

mod apart;
mod backup;
mod bench;
mod demo;
mod doctor;
mod hands;
mod home;
mod house;
mod image;
mod model;
mod run;
mod signals;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Runs AI agents, driven by Kubernetes manifests, from one binary.
#[derive(Parser)]
#[command(name = "insula", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// What is logged to stderr, as in `info` or `warn,runner=debug`
    #[arg(long, global = true, value_name = "FILTER", env = "INSULA_LOG", default_value = "warn", value_parser = filter)]
    log: EnvFilter,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Demo(demo::Demo),
    Run(run::Run),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Model(model::Model),
    Node(apart::Apart),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Image(image::Image),
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    node::launcher_main();
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("insula: {}", kit::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn filter(text: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    EnvFilter::try_new(text)
}

fn start(cli: Cli) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(cli.log)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a TLS provider was installed before main");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Up(it) => it.run().await,
            Command::Demo(it) => it.run().await,
            Command::Run(it) => it.run().await,
            Command::Backup(it) => it.run().await,
            Command::Restore(it) => it.run().await,
            Command::Model(it) => it.run().await,
            Command::Node(it) => it.run().await,
            Command::Doctor(it) => it.run().await,
            Command::Image(it) => it.run().await,
            Command::Bench(it) => it.run().await,
        }
    })
}
