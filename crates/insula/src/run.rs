//! `insula run`

use std::io::stdout;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use api::agents::AgentRun;
use clap::Args;
use cli::Show;
use cli::events::Gateway;
use kit::{ExposeSecret, SecretString};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::house::{House, Options, POD_GRACE};

/// Give one task to an agent and show its work, with everything in a temporary directory.
#[derive(Args)]
pub(crate) struct Run {
    /// What is to be done
    #[arg(value_parser = task)]
    task: String,
    /// The model's name at its provider
    #[arg(long, default_value = "gpt-4.1")]
    model: String,
    /// An OpenAI-compatible address, up to and with /v1 [default: OpenAI's own]
    #[arg(long, value_name = "URL", env = "OPENAI_BASE_URL")]
    base_url: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The longest that it may take, as in 90s or 10m
    #[arg(long, default_value = "10m")]
    timeout: api::GoDuration,
    /// A file with the model's key, in place of the environment's OPENAI_API_KEY
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

fn task(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() { Err("say what is to be done") } else { Ok(text.to_owned()) }
}

impl Run {
    pub(crate) async fn run(self) -> Result<()> {
        let key = self.key()?;
        let house = House::start(Options::default()).await?;
        house.end_on_signal(POD_GRACE);
        let done = tokio::select! {
            done = self.go(&house, key) => done,
            ended = house.watch() => ended.and_then(|()| bail!("interrupted")),
        };
        house.end().await;
        done
    }

    /// The key, unless the model is somewhere that may need none.
    #[allow(clippy::disallowed_methods, reason = "the edge: the key comes by the environment, never by argv")]
    fn key(&self) -> Result<Option<SecretString>> {
        if let Some(file) = &self.key_file {
            let key = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            return Ok(Some(SecretString::from(key.trim())));
        }
        match std::env::var("OPENAI_API_KEY") {
            Ok(key) if !key.trim().is_empty() => Ok(Some(SecretString::from(key.trim()))),
            _ if self.base_url.is_some() => Ok(None),
            _ => bail!("set OPENAI_API_KEY, or name another model with --base-url (a local one may need no key)"),
        }
    }

    async fn go(&self, house: &House, key: Option<SecretString>) -> Result<()> {
        let secret = key.as_ref().map_or("", |_| "model-key");
        if let Some(key) = key {
            let secrets: Api<k8s_openapi::api::core::v1::Secret> = Api::default_namespaced(house.client.clone());
            let made = json!({"metadata": {"name": "model-key"}, "stringData": {"API_KEY": key.expose_secret()}});
            secrets.create(&PostParams::default(), &serde_json::from_value(made)?).await?;
        }
        let auth: Value = if secret.is_empty() { json!([]) } else { json!([{"provider": "openai", "secret": secret}]) };
        let instance = json!({
            "apiVersion": "sympozium.ai/v1alpha1", "kind": "SympoziumInstance", "metadata": {"name": "run"},
            "spec": {"agents": {"default": {"model": self.model, "baseURL": self.base_url}}, "authRefs": auth},
        });
        let instances: Api<api::agents::SympoziumInstance> = Api::default_namespaced(house.client.clone());
        instances.patch("run", &PatchParams::apply("insula-run"), &Patch::Apply(&instance)).await?;
        let run = json!({
            "metadata": {"name": "run"},
            "spec": {
                "instanceRef": "run", "agentId": "primary", "sessionKey": "", "task": self.task,
                "systemPrompt": self.system, "timeout": format!("{}ms", self.timeout.0.as_millis()),
                "model": {"provider": "openai", "model": self.model, "authSecretRef": secret, "baseURL": self.base_url},
            },
        });
        let runs: Api<AgentRun> = Api::default_namespaced(house.client.clone());
        runs.create(&PostParams::default(), &serde_json::from_value(run)?).await?;

        let gateway = Gateway { url: house.gateway_url(), key: house.api_key.clone(), http: kit::http::client()? };
        let mut show = Show::new(stdout());
        let last = gateway.follow("default", "run", |event| drop(show.event(event))).await?;
        let usage = last.usage.unwrap_or_default();
        eprintln!("{} tokens in, {} out, {} tool calls", usage.input_tokens, usage.output_tokens, usage.tool_calls);
        if last.state != "succeeded" {
            bail!("the run {}", last.state);
        }
        Ok(())
    }
}
