//! `insula doctor`

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

/// Find out what this machine can do, by doing it, and what to do about the rest.
#[derive(Args)]
pub(crate) struct Doctor {
    /// How it is told
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Doctor {
    pub(crate) async fn run(self) -> Result<()> {
        let launcher = std::env::current_exe().context("find this program")?;
        let found = node::doctor::probe(&launcher, &std::env::temp_dir()).await;
        match self.output {
            Output::Json => {
                let can = found.into_iter().map(|it| (it.name.to_owned(), json!({"ok": it.ok, "why": it.why})));
                println!("{:#}", json!({"can": Value::Object(can.collect::<Map<_, _>>())}));
            }
            Output::Text => {
                for it in found {
                    println!("{} {:<10} {}", if it.ok { "yes" } else { "no " }, it.name, it.why);
                }
            }
        }
        Ok(())
    }
}
