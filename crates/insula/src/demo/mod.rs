//! `insula demo`: everything at once in a temporary directory, with a scripted model, driven by the quickstart's manifests.

use std::collections::BTreeMap;
use std::io::stdout;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use api::agents::AgentRun;
use clap::Args;
use cli::Show;
use cli::events::{Event, Gateway};
use jiff::{SignedDuration, Timestamp};
use kube::Api;
use llm::scripted::{Script, Server};

use crate::house::{House, Options, POD_GRACE};

const MODEL: &str = include_str!("model.yaml");
const MANIFESTS: [(&str, &str); 3] = [
    ("1-key.yaml", include_str!("../../../../examples/quickstart/1-key.yaml")),
    ("2-instance.yaml", include_str!("../../../../examples/quickstart/2-instance.yaml")),
    ("3-runs.yaml", include_str!("../../../../examples/quickstart/3-runs.yaml")),
];

/// Show an agent at work: a scripted model, the manifests of examples/quickstart, nothing to set up.
#[derive(Args)]
pub(crate) struct Demo {
    /// Stay up at the end, for kubectl, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// What one run told of itself.
#[derive(Default)]
struct Told {
    asked: Option<Timestamp>,
    /// Between its questions and their answers.
    model: SignedDuration,
    answered: Option<Timestamp>,
    ended: Option<Timestamp>,
    input: u64,
    output: u64,
    tools: u64,
    /// The Pod of its sandbox.
    pod: Option<String>,
    succeeded: bool,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<()> {
        let began = Instant::now();
        // The model listens first, so that the house can be told where it is; it goes with the house's tasks.
        let model_tasks = kit::Tasks::new(kit::Shutdown::new());
        let script = Script::parse(MODEL).context("the demo's own script")?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let model = Server::listen(script, any, &model_tasks).await.context("start the scripted model")?;
        let providers = BTreeMap::from([("openai".to_owned(), model.base_url())]);
        let house = House::start(Options { providers, ..Options::default() }).await?;
        let kubeconfig = house.write_kubeconfig()?;
        println!("Everything is up after {} ms, in {}.", began.elapsed().as_millis(), house.home().dir().display());
        println!("The model is a scripted one at {}.\n", model.base_url());
        house.end_on_signal(POD_GRACE);

        let shown = tokio::select! {
            shown = show(&house) => shown,
            ended = house.watch() => ended.and_then(|()| bail!("interrupted")),
        };
        if shown.is_ok() {
            println!("\nNext:");
            if self.keep {
                println!("  export KUBECONFIG={}", kubeconfig.display());
                println!("  kubectl get agentruns,sympoziuminstances");
                println!("  kubectl describe agentrun write-and-run");
                println!("Ctrl-C ends it.");
                house.watch().await?;
            } else {
                println!("  insula demo --keep             the same, and stays up for kubectl");
                println!("  insula up                      your own, kept between starts");
                println!("  OPENAI_API_KEY=... insula run \"Name three uses of a brick\"     with a real model");
            }
        }
        house.end().await;
        model_tasks.end().await;
        shown
    }
}

async fn show(house: &House) -> Result<()> {
    let mut runs = Vec::new();
    for (file, manifest) in MANIFESTS {
        for it in cli::apply(&house.client, manifest, "insula-demo").await.with_context(|| file.to_owned())? {
            println!("applied {:<18} {:<14} from examples/quickstart/{file}", it.kind, it.name);
            if it.kind == "AgentRun" {
                runs.push(it);
            }
        }
    }
    let gateway = Gateway { url: house.gateway_url(), key: house.api_key.clone(), http: kit::http::client()? };
    let api: Api<AgentRun> = Api::default_namespaced(house.client.clone());
    let mut table = Vec::new();
    for run in &runs {
        let object = api.get(&run.name).await?;
        println!("\n{}: {}", run.name, object.spec.task);
        let (mut told, mut show) = (Told::default(), Show::new(stdout()));
        let last = gateway
            .follow(&run.namespace, &run.name, |event| {
                match event {
                    Event::Asked(it) => told.asked = Some(it.at),
                    Event::Answer(it) => {
                        told.model += told.asked.take().map(|asked| it.at.duration_since(asked)).unwrap_or_default();
                        told.answered = Some(it.at);
                    }
                    _ => {}
                }
                // That a terminal is gone is no reason to stop the run.
                let _ = show.event(event);
            })
            .await?;
        let usage = last.usage.unwrap_or_default();
        told.ended = last.at;
        told.succeeded = last.state == "succeeded";
        if let Some(pod) = &last.pod {
            println!("  (→ is what the model asked of its tools, ← what came back, from the sandbox {pod})");
        }
        told.pod = last.pod;
        (told.input, told.output, told.tools) = (usage.input_tokens, usage.output_tokens, usage.tool_calls);
        table.push((run.name.clone(), told));
    }

    println!(
        "\n{:<16} {:<10} {:>9} {:>9} {:>6} {:>12} {:>10}   SANDBOX",
        "RUN", "PHASE", "TOKENS IN", "OUT", "TOOLS", "MODEL", "OURS"
    );
    for (name, told) in &table {
        let millis = |it: SignedDuration| format!("{:.1} ms", it.as_secs_f64() * 1e3);
        let ours = told.answered.zip(told.ended).map(|(answered, ended)| ended.duration_since(answered));
        println!(
            "{name:<16} {:<10} {:>9} {:>9} {:>6} {:>12} {:>10}   {}",
            if told.succeeded { "Succeeded" } else { "Failed" },
            told.input,
            told.output,
            told.tools,
            millis(told.model),
            ours.map_or_else(|| "-".into(), millis),
            told.pod.as_deref().unwrap_or("-"),
        );
    }
    if table.iter().any(|(_, told)| !told.succeeded) {
        bail!("not every run succeeded");
    }
    Ok(())
}
