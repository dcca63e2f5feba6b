//! The same requests to this API server and to a real one, and their answers side by side.
//!
//! A case is a list of requests (`cases/*.yaml`), each case in a namespace of its own, `$ns`. Compared are the code, the
//! content type, the warnings and the body, with what must differ masked: times, and the names that each server gives
//! (uids, revisions, the ends of generated names), which are numbered in the order in which they appear. So an answer that
//! repeats a revision on one side must repeat it on the other.
//!
//! `$ip`, `$port` and `$tls` are where both may reach a server, at an address of this machine that is not loopback.
//!
//! `$hook` is the address of a webhook that both may ask, `$ca` what vouches for it.
//!
//! `INSULA_TWIN` names the kubeconfig of the real one; `tests/twin/run` makes one. Without it nothing is compared.
//! Arguments: parts of the names of the cases to run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test that meets what it did not expect shall fail there"
)]

mod case;
#[path = "../it/echo.rs"]
mod echo;
#[path = "../it/hook.rs"]
mod hook;
mod mask;
mod side;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use apiserver::{ApiServer, Data, Options};
use futures::StreamExt;
use kit::{Clock, Shutdown, Tasks};
use kube::config::{KubeConfigOptions, Kubeconfig};

use case::{Case, Found};
use echo::Echo;
use hook::Hook;

/// Cases at once: most of the time is the real server's.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let Ok(kubeconfig) = std::env::var("INSULA_TWIN") else {
        println!(
            "skipped: INSULA_TWIN names no kubeconfig of a real Kubernetes to compare with; tests/twin/run makes one"
        );
        return ExitCode::SUCCESS;
    };
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(&kubeconfig))
}

async fn compare(kubeconfig: &str) -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cases = Case::all(&here.join("tests/twin/cases"));
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    // What is refused for now is an answer as well.
    config.default_retry = false;
    let theirs = kube::Client::try_from(config).unwrap();
    let tasks = Tasks::new(Shutdown::new());
    let options = Options {
        data: Data::Memory,
        clock: Clock::system(),
        tasks: tasks.clone(),
        kubelets: None,
        audit: None,
        volumes: None,
    };
    let ours = ApiServer::open(options).await.unwrap().client();
    // Both ask the same one.
    let hook = Hook::serve(&tasks).await;
    let mut fill = vec![("$hook", format!("https://{}", hook.at)), ("$ca", hook.authority)];
    match Echo::serve(&tasks).await {
        Some(echo) => {
            fill.extend([
                ("$ip", echo.plain.ip().to_string()),
                ("$port", echo.plain.port().to_string()),
                ("$tls", echo.tls.port().to_string()),
            ]);
        }
        None => println!("this machine has no address but loopback: cases with $ip are skipped"),
    }
    let reached = fill.iter().any(|(name, _)| *name == "$ip");

    let documented = std::fs::read_to_string(here.join("../../docs/kubernetes-api.md")).unwrap();
    let run = |case: Case| {
        let (ours, theirs, fill) = (ours.clone(), theirs.clone(), &fill);
        async move { (case.name.clone(), case.run(&ours, &theirs, fill).await) }
    };
    let chosen = cases.into_iter().filter(|case| reached || !case.mentions("$ip"));
    let chosen = chosen.filter(|case| wanted.is_empty() || wanted.iter().any(|it| case.name.contains(it)));
    let mut results = futures::stream::iter(chosen.map(run)).buffered(AT_ONCE);
    let (mut same, mut bad, mut known) = (0, 0, BTreeSet::new());
    while let Some((name, steps)) = results.next().await {
        let mut told = false;
        for (step, found) in steps {
            match found {
                Found::Same => same += 1,
                Found::Known(why) if documented.contains(&why) => {
                    known.insert(why);
                }
                Found::Known(why) => {
                    bad += 1;
                    println!("{name}: {step}: the difference is not in docs/kubernetes-api.md: {why}");
                }
                Found::Different(how) => {
                    bad += 1;
                    told = true;
                    println!("{name}: {step}\n{how}");
                }
            }
        }
        println!("{name}: {}", if told { "DIFFERENT" } else { "ok" });
    }
    println!("{same} answers are the same, {bad} differ; differences that are known: {}", known.len());
    for why in known {
        println!("- {why}");
    }
    tasks.end().await;
    ExitCode::from(u8::from(bad > 0))
}
